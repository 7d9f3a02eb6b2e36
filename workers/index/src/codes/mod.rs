//! The quantised copies of a shard that the search reads instead of its f32 rows.
//!
//! They are made when a shard is loaded, not stored beside it: making them takes about as long as reading
//! 40 % more from the store would, depends on nothing but the rows, and the file stays the plain table that it is.
//! What they promise, and why, is said in `search`.

pub(crate) mod four;
pub(crate) mod frame;
pub(crate) mod query;
pub(crate) mod seven;
pub(crate) mod two;

use rayon::prelude::*;

use crate::buffer::{Embeddings, Memory};
use crate::error::Result;
use crate::kernels::{BLOCK, Dots, Isa, Work};
use four::Four;
use frame::Frame;
use query::NORMS;
pub(crate) use seven::Fit as SevenFit;
pub(crate) use seven::Seven;

/// Rows of which the mean is taken.
const MEAN_ROWS: usize = 4096;
/// Rows on which a frame is tried.
const TRIAL_ROWS: usize = 256;
/// How much better a frame must be than a simpler one.
const GAIN: f64 = 0.9;
/// Sums that are added to in turn.
const LANES: usize = 8;
/// Blocks that a thread quantises at once.
const TASK_BLOCKS: usize = 64;

/// Both levels of a shard.
#[derive(Debug)]
pub(crate) struct Codes {
    frame: Frame,
    four: Four,
    seven: Seven,
    reach: f64,
}

/// What all rows of a level have in common.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stats {
    /// Largest norm of what the codes stand for.
    pub hat: f64,
    /// Largest sum of squared codes in one 16-bit lane.
    pub lane_square: i32,
    /// Largest distance of a row's part along its codes' direction from what the codes stand for; 0 where it is in the slack.
    pub along: f64,
}

impl Stats {
    pub fn lane_norm(&self) -> f64 {
        f64::from(self.lane_square).sqrt()
    }

    pub fn and(self, other: Self) -> Self {
        Self {
            hat: self.hat.max(other.hat),
            lane_square: self.lane_square.max(other.lane_square),
            along: self.along.max(other.along),
        }
    }
}

impl Codes {
    /// Quantises all rows on the current rayon pool.
    ///
    /// `None` where codes would be of no use: too few rows, or norms so extreme that bounds in f32 can't be had.
    pub fn build(rows: &Embeddings, count: usize, isa: Isa) -> Result<Option<Self>> {
        let Some(frame) = best_frame(rows, count, isa) else { return Ok(None) };
        let dim = rows.dim();
        let (mut four, mut seven) = (Four::memory(count, dim)?, Seven::memory(count, dim)?);
        let task_rows = TASK_BLOCKS * BLOCK;
        let four_tasks = four.bytes_mut().par_chunks_mut(TASK_BLOCKS * Four::block_bytes(dim));
        let seven_tasks = seven.bytes_mut().par_chunks_mut(task_rows * Seven::row_bytes(dim));
        let tasks = four_tasks.zip(seven_tasks).enumerate();
        let stats = tasks.map(|(task, (four, seven))| {
            isa.run(Quantise { rows, frame: &frame, first: task * task_rows, four, seven })
        });
        let all = stats.reduce(Summary::default, Summary::and);
        Ok(NORMS.contains(&all.reach).then(|| Self {
            frame,
            four: Four::new(dim, four, all.four),
            seven: Seven::new(dim, seven, all.seven),
            reach: all.reach,
        }))
    }

    /// From what [`Self::frame`] and the levels' `parts_of_all` told; `None` for sizes that don't fit.
    pub fn of(
        (count, dim): (usize, usize),
        frame: Frame,
        (four, four_stats): (Memory, Stats),
        (seven, seven_stats): (Memory, Stats),
        reach: f64,
    ) -> Option<Self> {
        let sizes = (count.div_ceil(BLOCK) * Four::block_bytes(dim), count * Seven::row_bytes(dim));
        ((four.bytes().len(), seven.bytes().len()) == sizes && NORMS.contains(&reach)).then(|| Self {
            frame,
            four: Four::new(dim, four, four_stats),
            seven: Seven::new(dim, seven, seven_stats),
            reach,
        })
    }

    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    pub fn four(&self) -> &Four {
        &self.four
    }

    pub fn seven(&self) -> &Seven {
        &self.seven
    }

    /// Largest norm of a row in the frame.
    pub fn reach(&self) -> f64 {
        self.reach
    }

    /// Bytes of memory of the codes of `rows` rows; a frame takes a few more.
    pub fn bytes_for(rows: usize, dim: usize) -> usize {
        let four = rows.div_ceil(BLOCK) * Four::block_bytes(dim);
        four + rows * Seven::row_bytes(dim) + Frame::most_bytes(dim)
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.four.bytes() + self.seven.bytes() + self.frame.bytes()
    }
}

/// A norm as f32 that is not below it, nor below it after a few roundings in a bound.
fn rounded_up(norm: f64) -> f32 {
    ((norm * (1.0 + 4e-6)) as f32).next_up()
}

/// What was found while quantising.
#[derive(Debug, Clone, Copy, Default)]
struct Summary {
    four: Stats,
    seven: Stats,
    reach: f64,
}

impl Summary {
    fn and(self, other: Self) -> Self {
        let (four, seven) = (self.four.and(other.four), self.seven.and(other.seven));
        Self { four, seven, reach: self.reach.max(other.reach) }
    }
}

/// Quantises the rows of some blocks.
struct Quantise<'a> {
    rows: &'a Embeddings,
    frame: &'a Frame,
    first: usize,
    four: &'a mut [u8],
    seven: &'a mut [u8],
}

impl Work for Quantise<'_> {
    type Output = Summary;

    #[inline(always)]
    fn call<D: Dots>(self, _: D) -> Summary {
        let dim = self.rows.dim();
        let (mut row, mut narrow) = (vec![0.0; dim], vec![0.0; dim]);
        let (mut four_fit, mut seven_fit) = (four::Fit::default(), seven::Fit::default());
        let (mut summary, mut writer) = (Summary::default(), four::Writer::default());
        let sevens = self.seven.chunks_mut(BLOCK * Seven::row_bytes(dim));
        let mut first = self.first;
        for (block, sevens) in self.four.chunks_exact_mut(Four::block_bytes(dim)).zip(sevens) {
            for (i, seven) in sevens.chunks_exact_mut(Seven::row_bytes(dim)).enumerate() {
                self.frame.apply(self.rows.row(first + i), &mut row);
                let square = squared(&row);
                narrow.iter_mut().zip(&row).for_each(|(out, v)| *out = *v as f32);
                summary.reach = summary.reach.max(square.sqrt());
                let half = ((square / 2.0) as f32).next_down();
                four_fit.fit(&row, &narrow, &mut summary.four);
                writer.add(&four_fit, half, block);
                seven_fit.fit(&row, &narrow, &mut summary.seven);
                seven_fit.write(seven, half);
            }
            writer.finish(block, &mut summary.four);
            first += BLOCK;
        }
        summary
    }
}

/// ‖x‖²/2 of a row as it is, rounded to f32.
#[inline(always)]
pub(crate) fn half_square(row: &[f32]) -> f32 {
    let mut lanes = [0f64; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for values in whole {
        for i in 0..LANES {
            lanes[i] += f64::from(values[i]) * f64::from(values[i]);
        }
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, v)| *lane += f64::from(*v) * f64::from(*v));
    (lanes.iter().sum::<f64>() / 2.0) as f32
}

#[inline(always)]
fn squared(row: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for values in whole {
        for i in 0..LANES {
            lanes[i] += values[i] * values[i];
        }
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, v)| *lane += v * v);
    lanes.iter().sum()
}

/// The sum of `term(value, code)`, in lanes: one sum after the other would wait for each addition.
#[inline(always)]
fn sum_of(row: &[f64], codes: &[i32], term: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let ((rows, row_rest), (codes, code_rest)) = (row.as_chunks::<LANES>(), codes.as_chunks::<LANES>());
    for (values, codes) in rows.iter().zip(codes) {
        for i in 0..LANES {
            lanes[i] += term(values[i], f64::from(codes[i]));
        }
    }
    for (lane, (v, code)) in lanes.iter_mut().zip(row_rest.iter().zip(code_rest)) {
        *lane += term(*v, f64::from(*code));
    }
    lanes.iter().sum()
}

/// The frame that leaves the smallest margins on a sample, with a preference for simple ones.
fn best_frame(rows: &Embeddings, count: usize, isa: Isa) -> Option<Frame> {
    if count == 0 {
        return None;
    }
    let centre = mean(rows, count);
    let mut best: Option<(f64, Frame)> = None;
    for (centre, turned) in [(None, false), (None, true), (Some(&centre), false), (Some(&centre), true)] {
        let frame = Frame::new(rows.dim(), centre.cloned(), turned);
        let Some(margin) = isa.run(Trial { rows, count, frame: &frame }) else { continue };
        if best.as_ref().is_none_or(|(least, _)| margin < GAIN * least) {
            best = Some((margin, frame));
        }
    }
    best.map(|(_, frame)| frame)
}

/// The mean of a sample of the rows.
fn mean(rows: &Embeddings, count: usize) -> Vec<f32> {
    let step = count.div_ceil(MEAN_ROWS);
    let mut sum = vec![0.0; rows.dim()];
    for row in (0..count).step_by(step) {
        sum.iter_mut().zip(rows.row(row)).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    let taken = count.div_ceil(step) as f64;
    sum.into_iter().map(|sum| (sum / taken) as f32).collect()
}

/// What margins a frame leaves: residual norm times norm, on the mean of a sample.
struct Trial<'a> {
    rows: &'a Embeddings,
    count: usize,
    frame: &'a Frame,
}

impl Work for Trial<'_> {
    type Output = Option<f64>;

    #[inline(always)]
    fn call<D: Dots>(self, _: D) -> Option<f64> {
        let dim = self.rows.dim();
        let (mut row, mut narrow) = (vec![0.0; dim], vec![0.0; dim]);
        let (mut fit, mut stats) = (four::Fit::default(), Stats::default());
        let (mut residuals, mut norms, mut reach) = (0.0, 0.0, 0f64);
        for i in (0..self.count).step_by(self.count.div_ceil(TRIAL_ROWS)) {
            self.frame.apply(self.rows.row(i), &mut row);
            narrow.iter_mut().zip(&row).for_each(|(out, v)| *out = *v as f32);
            fit.fit(&row, &narrow, &mut stats);
            residuals += fit.epsilon;
            let norm = squared(&row).sqrt();
            norms += norm;
            reach = reach.max(norm);
        }
        NORMS.contains(&reach).then_some(residuals * norms)
    }
}

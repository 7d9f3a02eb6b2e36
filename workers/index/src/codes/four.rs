//! The 4-bit level: what a scan reads of every row.
//!
//! Rows lie in blocks of 16. A block has, for every eight dimensions, four bytes of each row: their low
//! halves are the first four dimensions, the high halves the next four. If at most four dimensions are left, four bytes are those
//! of two rows: the low halves are of one of the first eight, the high halves of that eight rows later. Then comes the block's
//! tail: the rows' scales and halved squared norms, 16 u16 of each, their residual norms, 16 u8, and what these numbers are
//! multiples of. So a scan reads one stream and nothing else, of 100 dimensions 56 bytes a row.
//!
//! *Rounding in the tail.* A residual norm is rounded up and a halved squared norm down, both for the values as they are decoded,
//! in f32: bounds stay bounds. The scale that is decoded *is* the row's scale: the residual norm is of what that one leaves over.
//! It is no longer the row's part along the codes' direction; by how much at most is [`Stats::along`].

use super::query::{Shape, four_shape, lane_square};
use super::{Stats, sum_of};
use crate::buffer::Memory;
use crate::error::Result;
use crate::kernels::{BLOCK, FOUR_SEGMENT, FOUR_STEP};

/// Bytes of a block for eight dimensions, and for four at the end.
const STEP_BYTES: usize = 4 * BLOCK;
const HALF_STEP_BYTES: usize = STEP_BYTES / 2;
/// Places in a block's tail: scales, halved squared norms, residual norms, and the four numbers of [`Units`].
const SCALES: usize = 0;
const HALVES: usize = SCALES + 2 * BLOCK;
const EPSILONS: usize = HALVES + 2 * BLOCK;
const UNITS: usize = EPSILONS + BLOCK;
/// Bytes of a block after its codes.
const TAIL_BYTES: usize = UNITS + 4 * 4;
/// Largest numbers of a scale, a halved squared norm and a residual norm.
const LARGEST: [f32; 3] = [65_535.0, 65_534.0, 255.0];
/// Instead of a halved squared norm: the row is in no answer.
const NONE: u16 = u16::MAX;
/// Largest values that are tried as the codes' end, as parts of the row's largest: the best one is taken.
const CLIPS: [f32; 7] = [1.0, 0.92, 0.85, 0.78, 0.72, 0.66, 0.60];

/// Sums that are added to in turn where a step's width is chosen.
const FIT_LANES: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Four {
    dim: usize,
    memory: Memory,
    stats: Stats,
}

/// One block: its codes, and what belongs to its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<'a> {
    pub codes: &'a [u8],
    tail: &'a [u8; TAIL_BYTES],
}

/// What the numbers in a block's tail are multiples of.
#[derive(Debug, Clone, Copy)]
struct Units {
    scale: f32,
    /// The least halved squared norm, and the unit of what the others are above it.
    half: (f32, f32),
    epsilon: f32,
}

impl Units {
    #[inline(always)]
    fn scale(&self, number: u16) -> f32 {
        f32::from(number) * self.scale
    }

    #[inline(always)]
    fn half(&self, number: u16) -> f32 {
        let half = self.half.0 + f32::from(number) * self.half.1;
        if number == NONE { f32::INFINITY } else { half }
    }

    #[inline(always)]
    fn epsilon(&self, number: u8) -> f32 {
        f32::from(number) * self.epsilon
    }
}

impl Block<'_> {
    /// Scales, residual norms and halves of the squared norms of all rows.
    #[inline(always)]
    pub fn rows(&self) -> [[f32; BLOCK]; 3] {
        let unit = |at: usize| f32::from_le_bytes(self.tail[UNITS..].as_chunks::<4>().0[at]);
        let units = Units { scale: unit(0), half: (unit(1), unit(2)), epsilon: unit(3) };
        let words = |at: usize| &self.tail[at..at + 2 * BLOCK].as_chunks::<2>().0[..BLOCK];
        let (scales, halves, epsilons) = (words(SCALES), words(HALVES), &self.tail[EPSILONS..EPSILONS + BLOCK]);
        let mut rows = [[0.0; BLOCK]; 3];
        for i in 0..BLOCK {
            rows[0][i] = units.scale(u16::from_le_bytes(scales[i]));
        }
        for i in 0..BLOCK {
            rows[1][i] = units.epsilon(epsilons[i]);
        }
        for i in 0..BLOCK {
            rows[2][i] = units.half(u16::from_le_bytes(halves[i]));
        }
        rows
    }
}

impl Four {
    /// Bytes of a block's codes.
    fn code_bytes(dim: usize) -> usize {
        dim.div_ceil(FOUR_STEP / 2) * HALF_STEP_BYTES
    }

    pub(crate) fn block_bytes(dim: usize) -> usize {
        Self::code_bytes(dim) + TAIL_BYTES
    }

    /// Memory for rows, not yet written.
    pub(crate) fn memory(rows: usize, dim: usize) -> Result<Memory> {
        Memory::zeroed(rows.div_ceil(BLOCK) * Self::block_bytes(dim))
    }

    pub(crate) fn new(dim: usize, memory: Memory, stats: Stats) -> Self {
        Self { dim, memory, stats }
    }

    /// All bytes of a block.
    #[inline(always)]
    pub fn block_memory(&self, block: usize) -> &[u8] {
        let bytes = Self::block_bytes(self.dim);
        &self.memory.bytes()[block * bytes..][..bytes]
    }

    /// A block of 16 rows; those after the last have a score of −∞.
    #[inline(always)]
    pub fn block(&self, block: usize) -> Block<'_> {
        let (codes, tail) = self.block_memory(block).split_last_chunk().expect("a block has a tail");
        Block { codes, tail }
    }

    pub fn shape(&self) -> Shape {
        four_shape(self.dim, self.stats.lane_norm())
    }

    /// What all rows have in common.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    pub fn bytes(&self) -> usize {
        self.memory.bytes().len()
    }

    /// All codes, and what they have in common.
    pub fn parts_of_all(&self) -> (&[u8], Stats) {
        (self.memory.bytes(), self.stats)
    }
}

/// A row's codes with their scale and residual norm.
#[derive(Debug, Default)]
pub(crate) struct Fit {
    /// (D), from 0 to 15; they stand for (code − 7.5) · scale.
    pub codes: Vec<i32>,
    /// Norm of the codes.
    norm: f64,
    scale: f32,
    /// Norm of what is left over.
    pub epsilon: f64,
}

impl Fit {
    /// Quantises `row` (D); `narrow` is the same in f32.
    #[inline(always)]
    pub fn fit(&mut self, row: &[f64], narrow: &[f32], stats: &mut Stats) {
        let largest = narrow.iter().fold(0f32, |a, v| a.max(v.abs())).max(f32::MIN_POSITIVE);
        let inverse = best_inverse(narrow, largest);
        self.codes.clear();
        self.codes.extend(narrow.iter().map(|v| code(*v, inverse) as i32));
        let product = sum_of(row, &self.codes, |v, c| v * (c - 7.5));
        let square = sum_of(row, &self.codes, |_, c| (c - 7.5) * (c - 7.5));
        self.norm = square.sqrt();
        self.scale = ((product / square) as f32).max(0.0);
        let scale = f64::from(self.scale);
        let left = sum_of(row, &self.codes, |v, c| (v - scale * (c - 7.5)) * (v - scale * (c - 7.5)));
        self.epsilon = left.sqrt();
        for code in &mut self.codes {
            *code -= 8;
        }
        stats.lane_square = stats.lane_square.max(lane_square(&self.codes, FOUR_SEGMENT * FOUR_STEP));
        for code in &mut self.codes {
            *code += 8;
        }
    }

    /// Writes the codes as row `row` of a block.
    fn write(&self, codes: &mut [u8], row: usize) {
        for (step, values) in self.codes.chunks(FOUR_STEP).enumerate() {
            let step = &mut codes[step * STEP_BYTES..];
            let whole = step.len() >= STEP_BYTES;
            let (at, high) = if whole { (row, 0) } else { (row % (BLOCK / 2), row / (BLOCK / 2)) };
            for (i, code) in values.iter().enumerate() {
                step[4 * at + i % 4] |= (*code as u8) << ((i / 4 + high) * 4);
            }
        }
    }
}

/// A block while it is written: what its tail will be made from.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    rows: Vec<Tail>,
}

#[derive(Debug)]
struct Tail {
    scale: f32,
    half: f32,
    epsilon: f64,
    /// Norm of the codes.
    norm: f64,
}

impl Writer {
    /// Adds the next row, whose halved squared norm is `half`.
    pub fn add(&mut self, fit: &Fit, half: f32, block: &mut [u8]) {
        let codes = block.len() - TAIL_BYTES;
        fit.write(&mut block[..codes], self.rows.len());
        let Fit { scale, epsilon, norm, .. } = *fit;
        self.rows.push(Tail { scale, half, epsilon, norm });
    }

    /// Writes the tail of the rows that were added; there are none where rows are missing.
    pub fn finish(&mut self, block: &mut [u8], stats: &mut Stats) {
        let tail: &mut [u8; TAIL_BYTES] = block.last_chunk_mut().expect("a block has a tail");
        let largest = |value: fn(&Tail) -> f32| self.rows.iter().map(value).fold(0.0, f32::max);
        let least = self.rows.iter().map(|row| row.half).fold(f32::INFINITY, f32::min).min(f32::MAX);
        let mut units = Units {
            scale: largest(|row| row.scale) / LARGEST[0],
            half: (least, (largest(|row| row.half) - least).max(0.0) / LARGEST[1]),
            epsilon: 0.0,
        };
        // Which scales are decoded decides what they leave over.
        let mut epsilons = [0f32; BLOCK];
        for (i, row) in self.rows.iter().enumerate() {
            let number = whole(row.scale / units.scale, LARGEST[0]) as u16;
            tail[SCALES + 2 * i..][..2].copy_from_slice(&number.to_le_bytes());
            let scale = f64::from(units.scale(number));
            let along = (scale - f64::from(row.scale)).abs() * row.norm;
            epsilons[i] = super::rounded_up(row.epsilon + along);
            stats.along = stats.along.max(along);
            stats.hat = stats.hat.max(scale * row.norm);
            let mut number = whole((row.half - units.half.0) / units.half.1, LARGEST[1]) as u16;
            while units.half(number) > row.half {
                number -= 1;
            }
            tail[HALVES + 2 * i..][..2].copy_from_slice(&number.to_le_bytes());
        }
        units.epsilon = epsilons.into_iter().fold(0.0, f32::max) / LARGEST[2];
        while units.epsilon(u8::MAX) < epsilons.into_iter().fold(0.0, f32::max) {
            units.epsilon = units.epsilon.next_up();
        }
        for (i, epsilon) in epsilons.into_iter().enumerate() {
            let mut number = whole(epsilon / units.epsilon, LARGEST[2]) as u8;
            while units.epsilon(number) < epsilon {
                number += 1;
            }
            tail[EPSILONS + i] = number;
        }
        for i in self.rows.len()..BLOCK {
            tail[HALVES + 2 * i..][..2].copy_from_slice(&NONE.to_le_bytes());
        }
        for (i, unit) in [units.scale, units.half.0, units.half.1, units.epsilon].into_iter().enumerate() {
            tail[UNITS + 4 * i..][..4].copy_from_slice(&unit.to_le_bytes());
        }
        self.rows.clear();
    }
}

/// The integer below a number that is not negative, at most `largest`; 0 for what is no number, since 0 / 0 is asked for too.
fn whole(value: f32, largest: f32) -> f32 {
    if value > 0.0 { value.floor().min(largest) } else { 0.0 }
}

#[inline(always)]
fn code(value: f32, inverse: f32) -> f32 {
    let code = (value * inverse + 8.0).floor();
    // Two plain comparisons, which become one instruction each; values are finite.
    let code = if code > 0.0 { code } else { 0.0 };
    if code < 15.0 { code } else { 15.0 }
}

/// The reciprocal of a step's width that leaves the least over.
#[inline(always)]
fn best_inverse(row: &[f32], largest: f32) -> f32 {
    let mut best = (f32::NEG_INFINITY, 0.0);
    for clip in CLIPS {
        let inverse = 7.5 / (largest * clip);
        let (mut product, mut square) = ([0f32; FIT_LANES], [0f32; FIT_LANES]);
        let (whole, rest) = row.as_chunks::<FIT_LANES>();
        for values in whole {
            let mut levels = [0f32; FIT_LANES];
            for i in 0..FIT_LANES {
                levels[i] = code(values[i], inverse) - 7.5;
            }
            for i in 0..FIT_LANES {
                product[i] += values[i] * levels[i];
            }
            for i in 0..FIT_LANES {
                square[i] += levels[i] * levels[i];
            }
        }
        for (i, value) in rest.iter().enumerate() {
            let level = code(*value, inverse) - 7.5;
            product[i] += value * level;
            square[i] += level * level;
        }
        let (product, square): (f32, f32) = (product.iter().sum(), square.iter().sum());
        let kept = product * product / square;
        if kept > best.0 {
            best = (kept, inverse);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::Codes;
    use crate::codes::query::Narrow;

    fn value(seed: usize, i: usize) -> f32 {
        let hash = (seed as u64 * 1009 + i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        hash as f32 / (1 << 23) as f32 - 1.0
    }

    /// Rows of all sizes, down to nothing, in one block; the last places are empty.
    fn rows(dim: usize) -> Vec<Vec<f64>> {
        let size = |row: usize| [1.0, 0.9, 1e-3, 1e-20, 0.0, 50.0][row % 6];
        (0..13).map(|row| (0..dim).map(|i| f64::from(value(row, i)) * size(row)).collect()).collect()
    }

    #[test]
    fn what_is_decoded_bounds_what_was_written() {
        for dim in [1, 3, 4, 5, 8, 9, 100, 300, 324] {
            let (mut fit, mut writer, mut stats) = (Fit::default(), Writer::default(), Stats::default());
            let mut memory = Four::memory(BLOCK, dim).unwrap();
            let mut all = Vec::new();
            for row in rows(dim) {
                let narrow: Vec<f32> = row.iter().map(|v| *v as f32).collect();
                let square: f64 = row.iter().map(|v| v * v).sum();
                let half = ((square / 2.0) as f32).next_down();
                fit.fit(&row, &narrow, &mut stats);
                writer.add(&fit, half, memory.bytes_mut());
                all.push((row, fit.codes.clone(), half));
            }
            writer.finish(memory.bytes_mut(), &mut stats);
            let four = Four::new(dim, memory, stats);
            let [scales, epsilons, halves] = four.block(0).rows();
            for (at, (row, codes, half)) in all.iter().enumerate() {
                let level = |i: usize| f64::from(codes[i]) - 7.5;
                let scale = f64::from(scales[at]);
                let left: f64 = (0..dim).map(|i| (row[i] - scale * level(i)).powi(2)).sum::<f64>().sqrt();
                let norm = (0..dim).map(|i| level(i).powi(2)).sum::<f64>().sqrt();
                let part = (0..dim).map(|i| row[i] * level(i)).sum::<f64>() / norm;
                let case = format!("{dim} row {at}");
                assert!(left <= f64::from(epsilons[at]), "{case}: {left} {}", epsilons[at]);
                assert!(halves[at] <= *half, "{case}: {} {half}", halves[at]);
                let along = (part - scale * norm).abs();
                assert!(along <= stats.along + 1e-6 * part.abs(), "{case}: {along} {}", stats.along);
                assert!(scale * norm <= stats.hat, "{case}");
            }
            assert!(halves[all.len()..].iter().all(|half| *half == f32::INFINITY));
        }
    }

    /// Blocks of rows of one size lose next to nothing by their short tails.
    #[test]
    fn short_tails_are_tight() {
        let (dim, mut stats) = (100, Stats::default());
        let (mut fit, mut writer) = (Fit::default(), Writer::default());
        let mut memory = Four::memory(BLOCK, dim).unwrap();
        let mut all = Vec::new();
        for row in 0..BLOCK {
            let row: Vec<f64> = (0..dim).map(|i| f64::from(value(row, i)) * 0.17).collect();
            let narrow: Vec<f32> = row.iter().map(|v| *v as f32).collect();
            let half = (row.iter().map(|v| v * v).sum::<f64>() / 2.0) as f32;
            fit.fit(&row, &narrow, &mut stats);
            writer.add(&fit, half, memory.bytes_mut());
            all.push((fit.epsilon, half));
        }
        writer.finish(memory.bytes_mut(), &mut stats);
        let [_, epsilons, halves] = Four::new(dim, memory, stats).block(0).rows();
        for (at, (epsilon, half)) in all.into_iter().enumerate() {
            assert!(f64::from(epsilons[at]) < epsilon * 1.01 && halves[at] > half - 1e-5, "{at}");
        }
        assert!(stats.along < 1e-4, "{}", stats.along);
    }

    #[test]
    fn a_quick_margin_is_never_less_than_a_margin() {
        let (dim, count) = (40, 64);
        let mut held = crate::buffer::Embeddings::zeroed(count, dim).unwrap();
        for row in 0..count {
            held.row_mut(row).iter_mut().enumerate().for_each(|(i, v)| *v = value(row, i) * 0.27);
        }
        let codes = Codes::build(&held, count, crate::kernels::Isa::best()).unwrap().unwrap();
        for size in [1e-3, 0.27, 30.0] {
            let query: Vec<f32> = (0..dim).map(|i| value(99, i) * size).collect();
            let narrow = Narrow::new(&codes, &query).unwrap();
            let level = narrow.four_level;
            for part in -120..=120 {
                let y = level.norm * 1.1 * part as f32 / 100.0;
                let (quick, exact) = (level.quick_margin(y, 0.1), level.margin(y, 0.1));
                assert!(quick >= exact, "{size} {part}: {quick} {exact}");
            }
        }
    }
}

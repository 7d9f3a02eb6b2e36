//! The centroids: Lloyd's algorithm on a sample, on 7-bit codes.
//!
//! Every row is compared with every centroid. Comparing it with the centroids of near groups only takes a part of the
//! time, but misses enough of them that a search has to look at half as many rows again, and at twice as many for a
//! recall of 0.99 on word vectors. All sums are taken in the order of rows, so that threads don't matter.

use rayon::prelude::*;

use crate::buffer::Embeddings;
use crate::codes::query::{query_codes, seven_shape};
use crate::codes::{SevenFit, Stats};
use crate::error::Result;
use crate::kernels::{Dots, GROUP, GROUPS, Isa, QueryCodes, SEVEN_STEP, WIDE, Work};

/// Rows per centroid in the sample.
const SAMPLE: usize = 20;
/// Rounds on the sample.
const ROUNDS: usize = 6;
/// Rows that a thread takes at once.
const TASK_ROWS: usize = 256;
/// Rows of one call of the kernel.
const SET: usize = GROUP * GROUPS;

/// Centroids (L × D) of the rows, and the nearest of them for every row. `left_out` rows are not learned from.
pub(super) fn cluster(rows: &Embeddings, count: usize, left_out: &[u32]) -> Result<(Embeddings, Vec<u32>)> {
    let lists = lists_for(count);
    let sample = sample(count, lists * SAMPLE, left_out);
    let mut centroids = Embeddings::zeroed(lists, rows.dim())?;
    for list in 0..lists {
        centroids.row_mut(list).copy_from_slice(rows.row(sample[list * sample.len() / lists] as usize));
    }
    for _ in 0..ROUNDS {
        let nearest = nearest(rows, &sample, &Table::new(&centroids));
        move_to_means(&mut centroids, rows, &sample, &nearest);
    }
    let all: Vec<u32> = (0..count as u32).collect();
    let assigned = nearest(rows, &all, &Table::new(&centroids));
    Ok((centroids, assigned))
}

/// The nearest of the centroids for each of the chosen rows, as [`cluster`] assigns them.
pub(super) fn assign(rows: &Embeddings, chosen: &[u32], centroids: &Embeddings) -> Vec<u32> {
    nearest(rows, chosen, &Table::new(centroids))
}

/// 8·√N, whole sets of the kernel.
fn lists_for(count: usize) -> usize {
    ((8.0 * (count as f64).sqrt()) as usize).next_multiple_of(SET)
}

/// About `wanted` rows, evenly spread, without `left_out` (sorted).
fn sample(count: usize, wanted: usize, left_out: &[u32]) -> Vec<u32> {
    let wanted = wanted.min(count);
    let rows = (0..wanted).map(|i| (i as u64 * count as u64 / wanted as u64) as u32);
    rows.filter(|row| left_out.binary_search(row).is_err()).collect()
}

/// Moves each centroid to the mean of the rows that are nearest to it; one without rows stays.
fn move_to_means(centroids: &mut Embeddings, rows: &Embeddings, sample: &[u32], nearest: &[u32]) {
    let dim = rows.dim();
    let members = members(nearest, centroids.values_mut().len() / centroids.stride());
    let stride = centroids.stride();
    centroids.values_mut().par_chunks_mut(stride).zip(&members).filter(|(_, members)| !members.is_empty()).for_each(
        |(centroid, members)| {
            let mut sum = vec![0f64; dim];
            for member in members {
                let row = rows.row(sample[*member as usize] as usize);
                sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
            }
            let share = 1.0 / members.len() as f64;
            centroid.iter_mut().zip(&sum).for_each(|(c, sum)| *c = (sum * share) as f32);
        },
    );
}

/// Positions by what they were assigned to.
pub(super) fn members(assigned: &[u32], lists: usize) -> Vec<Vec<u32>> {
    let mut members = vec![Vec::new(); lists];
    for (at, list) in assigned.iter().enumerate() {
        members[*list as usize].push(at as u32);
    }
    members
}

/// The centroids as the kernel takes them: 7-bit codes in sets of rows.
struct Table {
    groups: Vec<u8>,
    scale: Vec<f32>,
    half: Vec<f32>,
    steps: usize,
    lane_norm: f64,
}

impl Table {
    fn new(centroids: &Embeddings) -> Self {
        let (dim, count) = (centroids.dim(), centroids.rows());
        let steps = dim.div_ceil(SEVEN_STEP);
        let padded = count.next_multiple_of(SET);
        let mut table = Self {
            groups: vec![64; padded * steps * SEVEN_STEP],
            scale: vec![0.0; padded],
            half: vec![f32::INFINITY; padded],
            steps,
            lane_norm: 0.0,
        };
        let (mut fit, mut stats) = (SevenFit::default(), Stats::default());
        for at in 0..count {
            let narrow = centroids.row(at);
            let row: Vec<f64> = narrow.iter().map(|v| f64::from(*v)).collect();
            fit.fit(&row, narrow, &mut stats);
            table.scale[at] = fit.scale;
            table.half[at] = (row.iter().map(|v| v * v).sum::<f64>() / 2.0) as f32;
            let group = at / GROUP * steps * SEVEN_STEP * GROUP;
            for (i, code) in fit.codes.iter().enumerate() {
                let place = group + i / SEVEN_STEP * SEVEN_STEP * GROUP + at % GROUP * SEVEN_STEP + i % SEVEN_STEP;
                table.groups[place] = (code + 64) as u8;
            }
        }
        table.lane_norm = stats.lane_norm();
        table
    }
}

/// The nearest centroid of each of the chosen rows.
fn nearest(rows: &Embeddings, chosen: &[u32], table: &Table) -> Vec<u32> {
    let isa = Isa::best();
    let some = |chosen: &[u32]| isa.run(Nearest { rows, chosen, table });
    chosen.par_chunks(TASK_ROWS).flat_map_iter(some).collect()
}

/// The nearest centroids of some rows.
struct Nearest<'a> {
    rows: &'a Embeddings,
    chosen: &'a [u32],
    table: &'a Table,
}

impl Work for Nearest<'_> {
    type Output = Vec<u32>;

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Vec<u32> {
        let Table { groups, scale, half, steps, lane_norm } = self.table;
        let shape = seven_shape(self.rows.dim(), *lane_norm);
        let mut row = vec![0.0; self.rows.dim()];
        let queries = self.chosen.iter().map(|chosen| {
            let values = self.rows.row(*chosen as usize);
            row.iter_mut().zip(values).for_each(|(out, v)| *out = f64::from(*v));
            let (codes, unit, _) = query_codes(&row, shape);
            (codes, unit)
        });
        let all: Vec<(QueryCodes, f32)> = queries.collect();
        let mut best = vec![(f32::NEG_INFINITY, 0u32); all.len()];
        for (set, groups) in groups.chunks_exact(SET * steps * SEVEN_STEP).enumerate() {
            let (scale, half) = (&scale[set * SET..][..SET], &half[set * SET..][..SET]);
            for (quad, best) in best.chunks_mut(WIDE).enumerate() {
                let queries = &all[quad * WIDE..];
                let mut four = [&queries[0].0; WIDE];
                four.iter_mut().zip(queries).for_each(|(four, query)| *four = &query.0);
                let sums = dots.seven(groups, four);
                for (group, sums) in sums.iter().enumerate() {
                    let part = group * GROUP;
                    for ((best, (_, unit)), sums) in best.iter_mut().zip(queries).zip(sums) {
                        let mut scores = [0f32; GROUP];
                        for i in 0..GROUP {
                            scores[i] = sums[i] as f32 * unit * scale[part + i] - half[part + i];
                        }
                        let largest = scores.iter().fold(f32::NEG_INFINITY, |a, v| if *v > a { *v } else { a });
                        if largest > best.0 {
                            let at = scores.iter().position(|score| *score == largest).unwrap_or(0);
                            *best = (largest, (set * SET + part + at) as u32);
                        }
                    }
                }
            }
        }
        best.into_iter().map(|(_, at)| at).collect()
    }
}

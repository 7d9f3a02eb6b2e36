//! Exact search with the rows on a GPU: candidates by a matrix product, answers by the canonical distance.
//!
//! With d² = ‖q‖² − 2G and the score G = q·x − ‖x‖²/2 the nearest rows are those of the largest scores. The device computes
//! g, which is G but for roundings, for all rows at once; whatever may be among the best K by that goes to
//! `canonical_d2` on the processor, so that the answer is the one of every other way.
//!
//! *Margin.* In f32, with u = 2⁻²⁴ and γ = Du/(1 − Du), a sum of D products is within γ‖q‖‖x‖ of q·x in whatever order
//! it is added up, fused or not (the products' sizes sum to at most ‖q‖‖x‖, Cauchy–Schwarz). ‖x‖²/2 is rounded once, and
//! so is the difference. With X the largest ‖x‖ that is ε = (γ + 2u)‖q‖X + 2uX². The canonical d² is an f64 sum within
//! 10⁻¹¹(‖q‖² + X²) of the true one; that is added, and 10⁻³⁰ for devices that flush what is tiny to 0. Products of fewer bits
//! (TF32, bf16) would break the bound: candle leaves them off for f32, and [`Resident::new`] turns them off again.
//!
//! *Why nothing is missed.* Let t be at most the K-th largest g. A row with g < t − 2ε has K rows whose G, and whose
//! canonical distances, are strictly better than its own. So candidates are the rows with g ≥ t − 2ε, ties with all of
//! them. Rows come in chunks; the K-th largest of the chunks' maxima is such a t, so only maxima and the few chunks that reach it
//! leave the device. Hostile data makes more candidates, never another answer.
//!
//! A device that fails costs time: the same rows are then scanned on the processor.

use candle_core::{DType, Device, Tensor};
use likeness_contract::ranking::{Candidate, canonical_d2, merge_top_k, rank};
use likeness_index::{Cancel, Query, RowSet, Shard};
use rayon::prelude::*;

use super::holdings::HeldShard;

/// Rows of a chunk.
const CHUNK: usize = 128;
/// Norms of queries that are searched on the device; others could overflow, or lose all their bits.
const NORMS: std::ops::RangeInclusive<f64> = 1e-3..=1e3;
/// Unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// The rows of one shard on a device.
#[derive(Debug)]
pub struct Resident {
    /// (N, D), in whole chunks: rows past the end are 0.
    rows: Tensor,
    /// ‖x‖²/2, (1, N); infinite past the end.
    halves: Tensor,
    /// X.
    largest_norm: f64,
}

type Scores<T> = candle_core::Result<T>;

impl Resident {
    /// Copies a shard's rows to a device.
    pub fn new(shard: &Shard, device: &Device) -> Scores<Self> {
        candle_core::cuda::set_gemm_reduced_precision_f32(false);
        let (dim, padded) = (shard.dim(), shard.rows().next_multiple_of(CHUNK));
        let mut rows = Vec::with_capacity(padded * dim);
        let mut halves = Vec::with_capacity(padded);
        let mut largest = 0f64;
        for row in 0..shard.rows() as u32 {
            let values = shard.embedding(row);
            let square: f64 = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
            largest = largest.max(square);
            halves.push((square / 2.0) as f32);
            rows.extend_from_slice(values);
        }
        rows.resize(padded * dim, 0.0);
        halves.resize(padded, f32::INFINITY);
        Ok(Self {
            rows: Tensor::from_vec(rows, (padded, dim), device)?,
            halves: Tensor::from_vec(halves, (1, padded), device)?,
            largest_norm: largest.sqrt(),
        })
    }

    /// 2ε.
    fn margin(&self, query: &[f32]) -> f64 {
        let (q, x, dim) = (norm(query), self.largest_norm, query.len() as f64);
        let gamma = dim * U / (1.0 - dim * U);
        let rounding = (gamma + 2.0 * U) * q * x + 2.0 * U * x * x;
        2.0 * (rounding + 1e-11 * (q * q + x * x) + 1e-30)
    }

    /// The rows that may be among the best K of each query.
    fn candidates(&self, queries: &[Query], within: &[Option<&RowSet>]) -> Scores<Vec<Vec<u32>>> {
        let (padded, dim) = self.rows.dims2()?;
        let chunks = padded / CHUNK;
        let all: Vec<f32> = queries.iter().flat_map(|query| query.vector.iter().copied()).collect();
        let asked = Tensor::from_vec(all, (queries.len(), dim), self.rows.device())?;
        // (B, N)
        let scores = asked.matmul(&self.rows.t()?)?.broadcast_sub(&self.halves)?;
        let scores = scores.reshape((queries.len(), chunks, CHUNK))?;
        let maxima: Vec<Vec<f32>> = scores.max(2)?.to_dtype(DType::F32)?.to_vec2()?;
        let each = queries.iter().zip(within).zip(maxima).enumerate();
        each.map(|(at, ((query, within), maxima))| {
            let scores = scores.get(at)?;
            match within {
                Some(set) => self.among(&scores.flatten_all()?.to_vec1()?, query, set),
                None => self.reaching(&scores, query, maxima),
            }
        })
        .collect()
    }

    /// Of all rows; `scores` are (chunks, CHUNK).
    fn reaching(&self, scores: &Tensor, query: &Query, maxima: Vec<f32>) -> Scores<Vec<u32>> {
        let least = kth_largest(maxima.clone(), query.k) - self.margin(query.vector);
        let reach = (0u32..).zip(maxima).filter(|(_, max)| f64::from(*max) >= least);
        let chunks: Vec<u32> = reach.map(|(chunk, _)| chunk).collect();
        let count = chunks.len();
        let picked = scores.index_select(&Tensor::from_vec(chunks.clone(), count, scores.device())?, 0)?;
        let picked: Vec<Vec<f32>> = picked.to_vec2()?;
        let rows = chunks.iter().zip(&picked).flat_map(|(chunk, scores)| (chunk * CHUNK as u32..).zip(scores));
        Ok(rows.filter(|(_, score)| score.is_finite() && f64::from(**score) >= least).map(|(row, _)| row).collect())
    }

    /// Of the rows of a set.
    fn among(&self, scores: &[f32], query: &Query, set: &RowSet) -> Scores<Vec<u32>> {
        let known: Vec<f32> = set.iter().map(|row| scores[row as usize]).collect();
        let least = kth_largest(known, query.k) - self.margin(query.vector);
        Ok(set.iter().filter(|row| f64::from(scores[*row as usize]) >= least).collect())
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt()
}

/// Less than every value when there are not so many.
fn kth_largest(mut values: Vec<f32>, k: usize) -> f64 {
    if k == 0 || k > values.len() {
        return f64::NEG_INFINITY;
    }
    let (_, kth, _) = values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    f64::from(*kth)
}

/// [`likeness_index::top_k_batch`], on the device where all shards are there.
pub fn top_k_batch(
    shards: &[&HeldShard],
    queries: &[Query],
    cancel: &Cancel,
) -> likeness_index::Result<Vec<Vec<Candidate>>> {
    let suits = |query: &Query| NORMS.contains(&norm(query.vector)) && query.vector.len() == dim_of(shards);
    let resident: Option<Vec<&Resident>> = shards.iter().map(|shard| shard.resident()).collect();
    let found = match resident {
        Some(resident) if !shards.is_empty() && queries.iter().all(suits) => {
            on_device(shards, &resident, queries, cancel)
        }
        _ => None,
    };
    match found {
        Some(found) => Ok(found),
        None => {
            let plain: Vec<&Shard> = shards.iter().map(|shard| &***shard).collect();
            likeness_index::top_k_batch(&plain, queries, cancel)
        }
    }
}

fn dim_of(shards: &[&HeldShard]) -> usize {
    shards.first().map_or(0, |shard| shard.dim())
}

/// None when the device failed, or the search was cancelled.
fn on_device(
    shards: &[&HeldShard],
    resident: &[&Resident],
    queries: &[Query],
    cancel: &Cancel,
) -> Option<Vec<Vec<Candidate>>> {
    let mut partials = vec![Vec::with_capacity(shards.len()); queries.len()];
    for (place, (shard, resident)) in shards.iter().zip(resident).enumerate() {
        if cancel.is_cancelled() {
            return None;
        }
        let within: Vec<Option<&RowSet>> = queries.iter().map(|query| query.within.map(|sets| sets[place])).collect();
        let rows = match resident.candidates(queries, &within) {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(shard = shard.number(), %error, "the device failed; its shards are scanned on the processor");
                return None;
            }
        };
        let ranked: Vec<_> = queries.par_iter().zip(rows).map(|(query, rows)| ranked(shard, query, rows)).collect();
        partials.iter_mut().zip(ranked).for_each(|(partials, ranked)| partials.push(ranked));
    }
    let merged = partials.into_iter().zip(queries).map(|(partials, query)| merge_top_k(partials, query.k));
    Some(merged.collect())
}

/// The best K of some rows.
fn ranked(shard: &Shard, query: &Query, rows: Vec<u32>) -> Vec<Candidate> {
    let distance = |row: u32| (canonical_d2(query.vector, shard.embedding(row)), row);
    let mut all: Vec<(f64, u32)> = rows.into_iter().map(distance).collect();
    let order = |a: &(f64, u32), b: &(f64, u32)| rank((a.0, shard.item(a.1)), (b.0, shard.item(b.1)));
    if query.k < all.len() {
        all.select_nth_unstable_by(query.k, order);
        all.truncate(query.k);
    }
    all.sort_unstable_by(order);
    let candidate = |(d2, row)| Candidate { d2, item: shard.item(row).to_string(), shard: shard.number(), row };
    all.into_iter().map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use likeness_index::{Filter, Label, ShardRows};

    use super::*;

    fn shard(number: u32, embeddings: Vec<f32>, dim: usize) -> Shard {
        let count = embeddings.len() / dim;
        let rows = ShardRows {
            // Not in the order of their rows, so that ties are decided by the items.
            item_ids: (0..count).map(|row| format!("{:05}-{number}", row * 7919 % 10_007)).collect(),
            embeddings,
            labels: (0..count).map(|row| (row % 3) as i8 - 1).collect(),
            split: vec![0; count],
            source_part: vec![0; count],
            source_row: vec![0; count],
            image_digest: vec![[0; 32]; count],
        };
        Shard::new(number, rows, dim, 1).unwrap()
    }

    fn held(number: u32, embeddings: Vec<f32>, dim: usize) -> HeldShard {
        let shard = shard(number, embeddings, dim);
        let resident = Resident::new(&shard, &Device::Cpu).unwrap();
        HeldShard::new(shard, Some(resident))
    }

    /// Splitmix64 of a seed, in [-1, 1).
    fn noise(seed: u64) -> f32 {
        let mixed = super::super::rendezvous::mixed(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn unit(values: impl IntoIterator<Item = f32>) -> Vec<f32> {
        let values: Vec<f32> = values.into_iter().collect();
        let norm = norm(&values).max(1e-12);
        values.iter().map(|v| (f64::from(*v) / norm) as f32).collect()
    }

    fn random(rows: usize, dim: usize, seed: u64) -> Vec<f32> {
        (0..rows).flat_map(|row| unit((0..dim).map(|at| noise(seed << 40 ^ (row as u64) << 12 ^ at as u64)))).collect()
    }

    /// Rows that differ from one another by less than the products are exact to, with norms at both ends of what is allowed.
    fn adversarial(rows: usize, dim: usize) -> Vec<f32> {
        let base = random(1, dim, 99);
        let row = |row: usize| {
            let scale = if row.is_multiple_of(2) { 1.0 } else { 1.0004 };
            let bent =
                base.iter().enumerate().map(move |(at, v)| v * scale + 3e-8 * noise((row / 5 * dim + at) as u64));
            bent.collect::<Vec<f32>>()
        };
        (0..rows).flat_map(row).collect()
    }

    fn same_as_the_scan(shards: &[HeldShard], queries: &[Vec<f32>], k: usize) {
        let refs: Vec<&HeldShard> = shards.iter().collect();
        let plain: Vec<&Shard> = refs.iter().map(|shard| &***shard).collect();
        let filter = Filter::new().and(0, Label::Has);
        let sets: Vec<RowSet> = plain.iter().map(|shard| shard.matching(&filter).unwrap()).collect();
        let sets: Vec<&RowSet> = sets.iter().collect();
        let all = queries.iter().map(|vector| Query { vector, k, within: None });
        let some = queries.iter().map(|vector| Query { vector, k, within: Some(&sets) });
        let asked: Vec<Query> = all.chain(some).collect();
        let resident: Vec<&Resident> = refs.iter().map(|shard| shard.resident().unwrap()).collect();
        let found = on_device(&refs, &resident, &asked, &Cancel::new()).unwrap();
        assert!(found == likeness_index::top_k_batch(&plain, &asked, &Cancel::new()).unwrap(), "k = {k}");
    }

    #[test]
    fn candidates_of_a_product_end_in_the_exact_answer() {
        for (dim, rows) in [(1, 300), (7, 1000), (64, 3000), (300, 1500)] {
            let shards = [held(0, random(rows, dim, 1), dim), held(1, random(rows / 2, dim, 2), dim)];
            let queries: Vec<Vec<f32>> = (0..5).map(|seed| random(1, dim, 100 + seed)).collect();
            for k in [1, 10, 200, rows * 2] {
                same_as_the_scan(&shards, &queries, k);
            }
        }
    }

    #[test]
    fn hostile_rows_make_more_candidates_and_no_other_answer() {
        for dim in [3, 48, 300] {
            let twins: Vec<f32> = random(4, dim, 5).repeat(300);
            let shards = [held(0, adversarial(1200, dim), dim), held(1, twins, dim)];
            let near = shards[0].embedding(3).to_vec();
            let queries =
                [near.clone(), unit(near.iter().map(|v| -v)), shards[1].embedding(0).to_vec(), random(1, dim, 8)];
            for k in [1, 10, 500] {
                same_as_the_scan(&shards, &queries, k);
            }
        }
    }

    #[test]
    fn the_margin_holds_for_every_row() {
        for dim in [5, 300, 1024] {
            let shard = shard(0, [adversarial(200, dim), random(200, dim, 3)].concat(), dim);
            let resident = Resident::new(&shard, &Device::Cpu).unwrap();
            for seed in 0..4 {
                let query = random(1, dim, 50 + seed);
                let asked = Tensor::from_vec(query.clone(), (1, dim), &Device::Cpu).unwrap();
                let scores =
                    asked.matmul(&resident.rows.t().unwrap()).unwrap().broadcast_sub(&resident.halves).unwrap();
                let scores: Vec<f32> = scores.flatten_all().unwrap().to_vec1().unwrap();
                let square = norm(&query).powi(2);
                for row in 0..400 {
                    let exact = (square - canonical_d2(&query, shard.embedding(row))) / 2.0;
                    let off = (f64::from(scores[row as usize]) - exact).abs();
                    assert!(off <= resident.margin(&query) / 2.0, "{off} at row {row} of dimension {dim}");
                }
            }
        }
    }

    #[test]
    fn what_the_device_cannot_take_is_scanned_on_the_processor() {
        let shards = [held(0, random(300, 16, 1), 16)];
        let refs: Vec<&HeldShard> = shards.iter().collect();
        for scale in [1e-20, 1e30] {
            let query: Vec<f32> = random(1, 16, 9).iter().map(|v| v * scale).collect();
            let asked = [Query { vector: &query, k: 5, within: None }];
            let expected = likeness_index::top_k_batch(&[&*shards[0]], &asked, &Cancel::new()).unwrap();
            assert_eq!(top_k_batch(&refs, &asked, &Cancel::new()).unwrap(), expected);
        }
        let cancel = Cancel::new();
        cancel.cancel();
        let query = random(1, 16, 9);
        assert!(top_k_batch(&refs, &[Query { vector: &query, k: 5, within: None }], &cancel).is_err());
    }

    #[test]
    fn any_rows_any_k() {
        for seed in 0..60u64 {
            let draw = |of: u64, most: u64| 1 + (super::super::rendezvous::mixed(seed << 8 ^ of) % most) as usize;
            let (rows, dim, k, copies) = (draw(1, 400), draw(2, 40), draw(3, 80), draw(4, 4));
            let some = random(rows.div_ceil(copies), dim, seed).repeat(copies);
            same_as_the_scan(&[held(0, some, dim)], &[random(1, dim, seed + 5000)], k);
        }
    }
}

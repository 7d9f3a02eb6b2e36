use likeness_contract::ranking::{canonical_d2, rank};
use proptest::prelude::*;

use super::*;
use crate::rows::ShardRows;

type Row = (String, Vec<f32>);

/// Rows that are drawn from few vectors, so that many distances tie.
fn gallery(dim: usize, picks: &[(u8, u16)]) -> Vec<Row> {
    let vector = |pick: u8| {
        let raw = (0..dim).map(|i| f32::from((i as u8).wrapping_mul(pick).wrapping_add(pick / 3)) - 100.5);
        unit(raw.collect())
    };
    let rows: std::collections::BTreeMap<String, Vec<f32>> =
        picks.iter().map(|(pick, id)| (format!("i{id}"), vector(*pick))).collect();
    let mut rows: Vec<_> = rows.into_iter().collect();
    // Not in the order of ids.
    rows.sort_by_key(|(id, _)| id.bytes().fold(7u32, |h, b| h.wrapping_mul(31) ^ u32::from(b)));
    rows
}

fn unit(raw: Vec<f32>) -> Vec<f32> {
    let norm = raw.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    raw.into_iter().map(|v| (f64::from(v) / norm) as f32).collect()
}

fn shard(number: u32, dim: usize, rows: &[&Row]) -> Shard {
    let n = rows.len();
    let rows = ShardRows {
        item_ids: rows.iter().map(|row| row.0.clone()).collect(),
        embeddings: rows.iter().flat_map(|row| row.1.clone()).collect(),
        labels: vec![0; n],
        split: vec![0; n],
        source_part: vec![0; n],
        source_row: vec![0; n],
        image_digest: vec![[0; 32]; n],
    };
    Shard::new(number, rows, dim, 1).unwrap()
}

/// The oracle: all distances, sorted.
fn sorted(rows: &[Row], query: &[f32], k: usize) -> Vec<(u64, String)> {
    let mut all: Vec<_> = rows.iter().map(|(id, row)| (canonical_d2(query, row), id.clone())).collect();
    all.sort_by(|a, b| rank((a.0, &a.1), (b.0, &b.1)));
    all.into_iter().take(k).map(|(d2, id)| (d2.to_bits(), id)).collect()
}

fn answers(candidates: &[Candidate]) -> Vec<(u64, String)> {
    candidates.iter().map(|c| (c.d2.to_bits(), c.item.clone())).collect()
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

/// Pseudo-random numbers around 0, about normal.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    fn value(&mut self) -> f32 {
        let sum: u64 = (0..4).map(|_| self.bits() >> 40).sum();
        (sum as f64 / f64::from(1 << 24) - 2.0) as f32
    }

    fn vector(&mut self, dim: usize) -> Vec<f32> {
        let mut vector: Vec<f32> = (0..dim).map(|_| self.value()).collect();
        vector[self.0 as usize % dim] += 1e-3;
        unit(vector)
    }
}

/// Kinds of data that a search must answer alike.
#[derive(Debug, Clone, Copy)]
enum Data {
    Random,
    /// Clusters of rows close to each other, one after the other.
    Clustered,
    /// Most rows equal others.
    Duplicates,
    AllEqual,
    /// All rows on one line.
    Line,
    /// One coordinate has nearly everything.
    Spike,
    /// Neighbours that differ in the last bits only.
    Close,
    /// Norms at the ends of what is allowed.
    Norms,
}

const KINDS: [Data; 8] = [
    Data::Random,
    Data::Clustered,
    Data::Duplicates,
    Data::AllEqual,
    Data::Line,
    Data::Spike,
    Data::Close,
    Data::Norms,
];

fn near(noise: &mut Noise, centre: &[f32], distance: f32) -> Vec<f32> {
    let scale = distance / (centre.len() as f32).sqrt();
    unit(centre.iter().map(|v| v + scale * noise.value() + f32::MIN_POSITIVE).collect())
}

/// A row in any direction at just so far from a unit vector.
fn at_distance(noise: &mut Noise, centre: &[f32], distance: f32) -> Vec<f32> {
    let aside = noise.vector(centre.len());
    let along: f32 = aside.iter().zip(centre).map(|(a, c)| a * c).sum();
    let aside = unit(aside.iter().zip(centre).map(|(a, c)| a - along * c).collect());
    let angle = 2.0 * (distance / 2.0).asin();
    unit(aside.iter().zip(centre).map(|(a, c)| c * angle.cos() + a * angle.sin()).collect())
}

fn rows(kind: Data, n: usize, dim: usize, noise: &mut Noise) -> Vec<Row> {
    let base = noise.vector(dim);
    let few: Vec<Vec<f32>> = (0..5).map(|_| noise.vector(dim)).collect();
    let mut row = |i: usize| match kind {
        Data::Random => noise.vector(dim),
        Data::Clustered => near(noise, &few[i * 5 / n.max(1)], 0.4),
        Data::Duplicates => few[noise.below(5)].clone(),
        Data::AllEqual => base.clone(),
        Data::Line => base.iter().map(|v| if i.is_multiple_of(2) { *v } else { -v }).collect(),
        Data::Spike => {
            let mut row: Vec<f32> = (0..dim).map(|_| noise.value() * 1e-2).collect();
            row[0] += 5.0;
            unit(row)
        }
        Data::Close => base.iter().map(|v| if noise.below(4) == 0 { v.next_up() } else { *v }).collect(),
        Data::Norms => {
            let factor = if i.is_multiple_of(2) { 1.0009 } else { 0.9991 };
            noise.vector(dim).iter().map(|v| v * factor).collect()
        }
    };
    let vectors: Vec<Vec<f32>> = (0..n).map(&mut row).collect();
    // Ids in another order than rows.
    vectors.into_iter().enumerate().map(|(i, row)| (format!("{:05}", (i * 7919 + 13) % 100_003), row)).collect()
}

/// A row, a vector near one, a random one, and ones of other norms than rows may have.
fn queries(rows: &[Row], dim: usize, noise: &mut Noise) -> Vec<Vec<f32>> {
    let some = rows.get(noise.below(rows.len().max(1))).map_or_else(|| noise.vector(dim), |row| row.1.clone());
    let scaled = |factor: f32| some.iter().map(|v| v * factor).collect();
    vec![
        some.clone(),
        near(noise, &some, 0.3),
        noise.vector(dim),
        scaled(1e4),
        scaled(-3e-5),
        scaled(1e30),
        vec![0.0; dim],
    ]
}

/// About `share` per cent of the rows of each shard.
fn picked(shards: &[&Shard], share: usize, noise: &mut Noise) -> Vec<RowSet> {
    let set = |shard: &&Shard| {
        let mut set = RowSet::none(shard.rows());
        (0..shard.rows()).filter(|_| noise.below(100) < share).for_each(|row| set.insert(row as u32));
        set
    };
    shards.iter().map(set).collect()
}

/// All distances of the searched rows, sorted.
fn oracle(shards: &[&Shard], query: &Query) -> Vec<(u64, String)> {
    let mut all = Vec::new();
    for (at, shard) in shards.iter().enumerate() {
        let searched = |row: &u32| query.within.is_none_or(|sets| sets[at].contains(*row));
        let rows = (0..shard.rows() as u32).filter(searched);
        all.extend(rows.map(|row| (canonical_d2(query.vector, shard.embedding(row)), shard.item(row))));
    }
    all.sort_by(|a, b| rank(*a, *b));
    all.into_iter().take(query.k).map(|(d2, id)| (d2.to_bits(), id.to_string())).collect()
}

fn all_of<'a>(vectors: impl IntoIterator<Item = &'a Vec<f32>>, k: usize) -> Vec<Query<'a>> {
    vectors.into_iter().map(|vector| Query { vector, k, within: None }).collect()
}

/// Every way, set of instructions and guard, on several threads, against the oracle.
fn check_all(kind: Data, n: usize, dim: usize, k: usize, shards: usize, threads: usize, seed: u64) {
    let mut noise = Noise(seed);
    let rows = rows(kind, n, dim, &mut noise);
    let mut parts = vec![Vec::new(); shards];
    for row in &rows {
        parts[noise.below(shards)].push(row);
    }
    let shards: Vec<Shard> =
        parts.iter().enumerate().map(|(i, part)| shard(i as u32, dim, part).with_codes().unwrap()).collect();
    let shards: Vec<&Shard> = shards.iter().collect();
    let queries = queries(&rows, dim, &mut noise);
    // Every query has a K and a set of rows of its own: all, none, one, some, most.
    let share = [100, 0, 50, 3, 97, 20, 100];
    let sets: Vec<Vec<RowSet>> = share.iter().map(|share| picked(&shards, *share, &mut noise)).collect();
    let sets: Vec<Vec<&RowSet>> = sets.iter().map(|sets| sets.iter().collect()).collect();
    let ks: Vec<usize> = (0..queries.len()).map(|at| [k, k.max(3), 1][at % 3]).collect();
    let queries: Vec<Query> = (0..queries.len())
        .map(|at| Query { vector: &queries[at], k: ks[at], within: (at > 0).then_some(sets[at].as_slice()) })
        .collect();
    let expected: Vec<_> = queries.iter().map(|query| oracle(&shards, query)).collect();
    let pool = pool(threads);
    for isa in Isa::all() {
        for way in [None, Some(Way::Plain), Some(Way::Few), Some(Way::Levels), Some(Way::Tiles)] {
            for guard in [0, GUARD, 100] {
                let search = Search::new(&shards, isa, guard);
                let asked: Vec<Asked> = queries.iter().map(|query| search.asked(query)).collect();
                // A way that goes through a list needs one.
                let listed = asked.iter().all(|asked| asked.within.is_some());
                let found = pool.install(|| {
                    let way = way.filter(|way| *way != Way::Few || listed);
                    search.answers(&asked, way, &Cancel::new())
                });
                let found = found.unwrap();
                for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let case =
                        format!("{kind:?} n={n} d={dim} k={k} {isa:?} {way:?} guard={guard} query {at} seed {seed}");
                    assert_eq!(&answers(found), expected, "{case}");
                }
            }
        }
    }
}

#[test]
fn the_answer_is_the_canonical_one_for_any_data_and_dimension() {
    for (i, dim) in [1, 2, 3, 7, 8, 31, 64, 100, 257, 300, 321, 700, 1024].into_iter().enumerate() {
        for (j, kind) in KINDS.into_iter().enumerate() {
            let (n, k) = ([300, 130, 700, 401][(i + j) % 4], [1, 10, 16, 37][(i * 3 + j) % 4]);
            check_all(kind, n, dim, k.min(n / 8), 1 + (i + j) % 3, 1 + (i * j) % 3, (i * 100 + j) as u64);
        }
    }
}

#[test]
fn the_answer_does_not_depend_on_the_number_of_shards() {
    for shards in [1, 3, 16, 64] {
        for kind in [Data::Random, Data::Clustered, Data::Duplicates] {
            check_all(kind, 2_000, 20, 25, shards, 2, shards as u64);
        }
    }
}

#[test]
fn a_k_of_any_size_is_answered() {
    for k in [1, 2, 62, 63, 250, 499, 500, 501, 10_000] {
        check_all(Data::Random, 500, 12, k, 3, 2, k as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_small_case_is_answered_exactly(
        kind in prop::sample::select(KINDS.to_vec()),
        n in 1usize..500,
        dim in 1usize..50,
        k in 1usize..64,
        shards in 1usize..9,
        threads in 1usize..4,
        seed in any::<u64>(),
    ) {
        check_all(kind, n, dim, k, shards, threads, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_plain_scan_equals_the_oracle_for_any_layout(
        dim in prop_oneof![1usize..4, 15usize..35, Just(128)],
        picks in proptest::collection::vec((0u8..40, 0u16..3000), 1..400),
        cuts in proptest::collection::vec(0usize..5, 400),
        k in prop_oneof![1usize..12, 350usize..500],
        block in prop_oneof![1usize..9, 60usize..200],
        threads in 1usize..4,
    ) {
        let rows = gallery(dim, &picks);
        let mut parts = vec![Vec::new(); 5];
        for (row, cut) in rows.iter().zip(&cuts) {
            parts[*cut].push(row);
        }
        let shards: Vec<Shard> = parts.iter().enumerate().map(|(i, part)| shard(i as u32, dim, part)).collect();
        let shards: Vec<&Shard> = shards.iter().collect();
        let queries: Vec<Vec<f32>> = gallery(dim, &[(7, 0), (33, 1)]).into_iter().map(|row| row.1).collect();
        let search = Search::new(&shards, Isa::best(), GUARD);
        let asked: Vec<Asked> = all_of(&queries, k).iter().map(|query| search.asked(query)).collect();
        let asked: Vec<(&Asked, f64)> = asked.iter().map(|asked| (asked, f64::INFINITY)).collect();
        let filled = &search.shards;
        let found = pool(threads).install(|| plain::scan(filled, &asked, block, &Cancel::new())).unwrap();
        for (query, found) in queries.iter().zip(&found) {
            prop_assert_eq!(answers(found), sorted(&rows, query, k));
            for candidate in found {
                let held = shards[candidate.shard as usize];
                prop_assert_eq!(held.item(candidate.row), &candidate.item);
                prop_assert_eq!(held.find(&candidate.item), Some(candidate.row));
            }
        }
    }
}

/// Codes that let most rows pass would answer rightly too: this says that they do what they are for.
#[test]
fn few_rows_pass_the_levels() {
    let (dim, n) = (100, 20_000);
    let mut noise = Noise(5);
    let centres: Vec<Vec<f32>> = (0..200).map(|_| noise.vector(dim)).collect();
    let rows: Vec<Row> = (0..n).map(|i| (format!("{i:05}"), near(&mut noise, &centres[i % 200], 0.8))).collect();
    let shard = shard(0, dim, &rows.iter().collect::<Vec<_>>()).with_codes().unwrap();
    let query = near(&mut noise, &rows[77].1, 0.3);
    for (way, per_cent) in [(Way::Levels, 2), (Way::Tiles, 8)] {
        let search = Search::new(&[&shard], Isa::best(), per_cent);
        let asked = search.asked(&Query { vector: &query, k: 10, within: None });
        let outcome = pool(1).install(|| search.by(way, &[&asked], &Cancel::new()));
        let [Outcome::Found(found)] = &outcome.unwrap()[..] else { panic!("{way:?} gave up") };
        assert_eq!(answers(found), sorted(&rows, &query, 10));
    }
    let survivors = survivors(&[&shard], &Query { vector: &query, k: 10, within: None }, &Cancel::new()).unwrap();
    let Survivors { four, seven } = survivors.unwrap();
    assert!((10..=four.unwrap()).contains(&seven) && four.unwrap() <= n / 50, "{four:?} {seven}");
}

/// Shards so large that a sample of the rows says what the sweep notes: rows in no order, where the guess is good; rows sorted by
/// distance, near rows that only the sample has, and near rows that it has none of, where it is not; a few in the sample so near that
/// the guess is far too low, while many rows are about as far as their codes can tell, some of which are noted although they
/// are further than others; and all rows alike.
#[test]
fn whatever_a_sample_says_answers_are_exact() {
    let (dim, n) = (6, 70_000);
    let mut noise = Noise(31);
    let query = noise.vector(dim);
    let far: Vec<Vec<f32>> = (0..n).map(|_| noise.vector(dim)).collect();
    let mut sorted_rows = far.clone();
    sorted_rows.sort_by(|a, b| canonical_d2(&query, a).total_cmp(&canonical_d2(&query, b)));
    let sampled = |at: usize| (at / 1024).is_multiple_of(16);
    let mut with_near = |near: &dyn Fn(usize) -> bool| -> Vec<Vec<f32>> {
        let rows = far.iter().enumerate();
        rows.map(|(at, row)| if near(at) { self::near(&mut noise, &query, 0.05) } else { row.clone() }).collect()
    };
    let near_in_sample = with_near(&|at| sampled(at) && at.is_multiple_of(97));
    let near_elsewhere = with_near(&|at| !sampled(at) && at.is_multiple_of(97));
    let mut too_low = |distance: f32| -> Vec<Vec<f32>> {
        let mut row = |(at, row): (usize, &Vec<f32>)| match (at.is_multiple_of(47), sampled(at)) {
            (true, true) if at < 200 => self::near(&mut noise, &query, 1e-4),
            (true, false) => {
                let further = distance * (1.0 + 0.02 * noise.value());
                at_distance(&mut noise, &query, further)
            }
            // On the other side of the sphere.
            _ if canonical_d2(&query, row) < 2.0 => row.iter().map(|value| -value).collect(),
            _ => row.clone(),
        };
        far.iter().enumerate().map(&mut row).collect()
    };
    let [low_0, low_1, low_2, low_3] = [0.1, 0.15, 0.2, 0.3].map(&mut too_low);
    let alike = vec![far[0].clone(); n];
    let queries = [query.clone(), far[9].clone(), far[0].clone(), query.iter().map(|v| -v).collect()];
    let mut ways = [0; 2];
    for rows in [&far, &sorted_rows, &near_in_sample, &near_elsewhere, &low_0, &low_1, &low_2, &low_3, &alike] {
        let rows: Vec<Row> =
            rows.iter().enumerate().map(|(i, row)| (format!("{:05}", (i * 11) % n), row.clone())).collect();
        let expected: Vec<_> = queries.iter().map(|query| sorted(&rows, query, 100)).collect();
        for cuts in [vec![n], vec![40_000, 30_000]] {
            let mut left = rows.iter().collect::<Vec<_>>();
            let parts: Vec<Vec<&Row>> = cuts.iter().map(|size| left.drain(..*size).collect()).collect();
            let shards: Vec<Shard> =
                parts.iter().enumerate().map(|(i, part)| shard(i as u32, dim, part).with_codes().unwrap()).collect();
            let shards: Vec<&Shard> = shards.iter().collect();
            for k in [1, 10, 100] {
                let (search, asked) = (Search::new(&shards, Isa::best(), GUARD), all_of(&queries, k));
                let asked: Vec<Asked> = asked.iter().map(|query| search.asked(query)).collect();
                let asked: Vec<&Asked> = asked.iter().collect();
                let outcomes = pool(2).install(|| search.by(Way::Levels, &asked, &Cancel::new())).unwrap();
                outcomes.iter().for_each(|outcome| ways[usize::from(matches!(outcome, Outcome::Plain(_)))] += 1);
                for (expected, outcome) in expected.iter().zip(&outcomes) {
                    if let Outcome::Found(found) = outcome {
                        assert_eq!(answers(found), expected[..k]);
                    }
                }
            }
        }
    }
    assert!(ways[0] > 60 && ways[1] >= 24, "{ways:?}");
}

#[test]
fn more_queries_than_go_together_are_all_answered() {
    let mut noise = Noise(9);
    let rows = rows(Data::Clustered, 900, 33, &mut noise);
    let shard = shard(0, 33, &rows.iter().collect::<Vec<_>>()).with_codes().unwrap();
    let queries: Vec<Vec<f32>> = (0..300).map(|_| noise.vector(33)).collect();
    for count in [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 300] {
        let queries = &queries[..count];
        let found = pool(2).install(|| top_k_batch(&[&shard], &all_of(queries, 7), &Cancel::new())).unwrap();
        assert_eq!(found.len(), count);
        for (query, found) in queries.iter().zip(&found) {
            assert_eq!(answers(found), sorted(&rows, query, 7));
        }
    }
}

#[test]
fn a_cancelled_search_ends_as_cancelled() {
    let mut noise = Noise(1);
    let rows = rows(Data::Random, 100, 3, &mut noise);
    let shard = shard(0, 3, &rows.iter().collect::<Vec<_>>()).with_codes().unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    let set = &RowSet::all(100);
    for way in [Way::Plain, Way::Few, Way::Levels, Way::Tiles] {
        let search = Search::new(&[&shard], Isa::best(), GUARD);
        let vector: &[f32] = &[1.0, 0.0, 0.0];
        let asked = Asked { values: vector, k: 1, within: Some(vec![set]), rows: 100 };
        let error = search.answers(&[asked], Some(way), &cancel).unwrap_err();
        assert_eq!(error.kind, crate::ErrorKind::Cancelled);
    }
}

#[test]
fn wrong_queries_are_refused() {
    let rows = gallery(3, &[(1, 1)]);
    let (a, b) = (shard(4, 3, &rows.iter().collect::<Vec<_>>()), shard(4, 3, &[]));
    let message = |shards: &[&Shard], query: &[f32]| top_k(shards, query, 1, &Cancel::new()).unwrap_err().to_string();
    assert_eq!(message(&[&a], &[1.0]), "the query has dimension 1, shard 4 has 3");
    assert_eq!(message(&[&a], &[1.0, f32::NAN, 0.0]), "the query is not finite");
    assert_eq!(message(&[&a, &b], &[1.0, 0.0, 0.0]), "shard 4 is given twice");
    for sets in [vec![], vec![RowSet::all(2)], vec![RowSet::all(1), RowSet::all(1)]] {
        let sets: Vec<&RowSet> = sets.iter().collect();
        let query = Query { vector: &[1.0, 0.0, 0.0], k: 1, within: Some(&sets) };
        let error = top_k_batch(&[&a], &[query], &Cancel::new()).unwrap_err();
        assert_eq!(error.to_string(), "the row sets of a query are not those of the shards");
    }
}

#[test]
fn no_shards_and_no_rows_answer_nothing() {
    let empty = shard(0, 3, &[]).with_codes().unwrap();
    assert!(top_k(&[], &[1.0], 5, &Cancel::new()).unwrap().is_empty());
    assert!(top_k(&[&empty], &[1.0, 0.0, 0.0], 5, &Cancel::new()).unwrap().is_empty());
    assert!(top_k(&[&empty], &[1.0, 0.0, 0.0], 0, &Cancel::new()).unwrap().is_empty());
}

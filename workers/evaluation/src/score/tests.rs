use std::sync::Arc;

use likeness_contract::ranking::canonical_d2;
use proptest::prelude::*;

use super::*;
use crate::bootstrap::{below, stream};
use crate::gallery::{Judgement, PlainBlock, judge};
use crate::queries::QuerySet;

const ATTRIBUTES: usize = 3;
const DIM: usize = 2;
/// A budget for all queries at once.
const ALL: usize = 1 << 20;

struct Item {
    id: String,
    embedding: Vec<f32>,
    labels: Vec<i8>,
}

/// Items with few distinct embeddings, so that ties are common.
fn items(count: usize, unknown: bool, seed: u64) -> Vec<Item> {
    let mut rng = stream(seed, 0);
    let levels = if unknown { 3 } else { 2 };
    (0..count)
        .map(|number| Item {
            id: format!("{}-{number}", below(&mut rng, 1000)),
            embedding: (0..DIM).map(|_| below(&mut rng, 4) as f32 / 4.0).collect(),
            labels: (0..ATTRIBUTES).map(|_| [1, -1, 0][below(&mut rng, levels) as usize]).collect(),
        })
        .collect()
}

fn queries() -> Vec<(Query, Vec<f32>)> {
    let terms = [vec![(0, true)], vec![(1, false)], vec![(0, true), (2, false)], vec![(0, true), (1, true), (2, true)]];
    let queries = terms.into_iter().enumerate().map(|(number, terms)| {
        let query = Query::of(QuerySet::ALL[terms.len() - 1], &terms);
        let embedding = vec![number as f32 / 4.0, 0.25];
        (Query { number: number as u32, text: format!("q{number}"), ..query }, embedding)
    });
    queries.collect()
}

/// The image of `item` with its attribute 1 turned round, as query 4.
fn by_image(item: &Item) -> (Query, Vec<f32>) {
    let query = Query::of(QuerySet::Images, &[(1, item.labels[1] == -1)]);
    let has = (0u32..).zip(&item.labels).filter(|(_, label)| **label == 1).map(|(attribute, _)| attribute).collect();
    let image = Some(QueryImage { item: item.id.clone(), index: 0, has, stays: false });
    (Query { number: 4, text: "q4".into(), image, ..query }, item.embedding.clone())
}

fn blocks(items: &[Item], cuts: &[usize]) -> Vec<Arc<PlainBlock>> {
    let mut blocks = Vec::new();
    let mut rest = items;
    for cut in cuts.iter().copied().chain([usize::MAX]) {
        let (head, tail) = rest.split_at(cut.min(rest.len()));
        rest = tail;
        let ids = head.iter().map(|item| item.id.clone()).collect();
        let embeddings = head.iter().flat_map(|item| item.embedding.clone()).collect();
        let labels = head.iter().flat_map(|item| item.labels.clone()).collect();
        blocks.push(Arc::new(PlainBlock::new(ids, embeddings, labels, DIM, ATTRIBUTES).unwrap()));
    }
    blocks
}

/// The plain way: sort everything.
fn oracle(items: &[Item], query: &Query, embedding: &[f32]) -> QueryScore {
    let judge = |item: &Item| judge(query, &*blocks(std::slice::from_ref(item), &[])[0], 0);
    let fulfilled = |item: &Item| match judge(item) {
        Judgement::Unjudged => None,
        Judgement::Relevant => Some(query.terms.len()),
        Judgement::NotRelevant { fulfilled } => Some(fulfilled as usize),
    };
    let mut judged: Vec<(&Item, f64, usize)> = items
        .iter()
        .filter_map(|item| Some((item, canonical_d2(embedding, &item.embedding), fulfilled(item)?)))
        .collect();
    judged.sort_by(|a, b| likeness_contract::ranking::rank((a.1, &a.0.id), (b.1, &b.0.id)));
    let relevant: Vec<bool> = judged.iter().map(|(_, _, fulfilled)| *fulfilled == query.terms.len()).collect();
    let total = relevant.iter().filter(|r| **r).count();
    let hits = |k: usize| relevant.iter().take(k).filter(|r| **r).count() as f64;
    let sum: f64 = (0..relevant.len()).filter(|&i| relevant[i]).map(|i| hits(i + 1) / (i + 1) as f64).sum();
    let cosine = |image: &QueryImage, item: &Item| {
        let has = |labels: &dyn Fn(u32) -> bool| (0..ATTRIBUTES as u32).filter(|a| labels(*a)).count() as f64;
        let theirs = |a: u32| item.labels[a as usize] == 1;
        let ours = |a: u32| image.has.contains(&a);
        let norm = (has(&ours) * has(&theirs)).sqrt();
        if norm == 0.0 { 0.0 } else { has(&|a| ours(a) && theirs(a)) / norm }
    };
    let cs = |image: &QueryImage| {
        let fit = judged.iter().take(10).filter(|(_, _, fulfilled)| *fulfilled == query.terms.len());
        fit.map(|(item, _, _)| cosine(image, item)).sum::<f64>() / 10.0
    };
    let gains: Vec<u32> = judged.iter().map(|(_, _, fulfilled)| *fulfilled as u32).collect();
    let mut levels = vec![0; query.terms.len() + 1];
    gains.iter().for_each(|gain| levels[*gain as usize] += 1);
    QueryScore {
        query: query.number,
        set: query.set,
        text: query.text.clone(),
        relevant: total as u64,
        judged: judged.len() as u64,
        average_precision: sum / total as f64,
        chance: total as f64 / judged.len() as f64,
        p_at: [hits(1), hits(5) / 5.0, hits(10) / 10.0, hits(100) / 100.0],
        further: Some(Further {
            r_precision: hits(total) / total as f64,
            article_ap: (1..=total).map(|k| hits(k) / k as f64).sum::<f64>() / total as f64,
            ndcg_at_10: ndcg_at(10, gains.iter().copied(), &levels),
            ndcg_at_100: ndcg_at(100, gains.iter().copied(), &levels),
            cs_p_at_10: query.image.as_ref().map(cs),
        }),
        first: Some(
            judged.iter().take(100).map(|(item, d2, _)| Found { item: item.id.clone(), distance: d2.sqrt() }).collect(),
        ),
    }
}

fn run(
    blocks: &[Arc<PlainBlock>],
    queries: &[(Query, Vec<f32>)],
    budget: usize,
    threads: usize,
) -> Result<Vec<QueryScore>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| score_within(|_| budget, queries, blocks.len(), |i| Ok(Arc::clone(&blocks[i])), &mut |_, _| {}))
}

proptest! {
    #[test]
    fn scores_equal_a_plain_sort_for_any_blocks_threads_and_budget(
        count in 1usize..240,
        unknown: bool,
        seed in 0u64..1000,
        cuts in proptest::collection::vec(0usize..50, 0..5),
        threads in 1usize..4,
        budget in prop_oneof![Just(1usize), Just(400), Just(ALL)],
    ) {
        let items = items(count, unknown, seed);
        let mut all: Vec<(Query, Vec<f32>)> = queries();
        all.push(by_image(&items[count / 2]));
        let expected: Vec<QueryScore> = all.iter().map(|(query, embedding)| oracle(&items, query, embedding)).collect();
        let answerable: Vec<bool> = expected.iter().map(|score| score.relevant > 0).collect();
        let keep = |i: &usize| answerable[*i];
        let asked: Vec<(Query, Vec<f32>)> = (0..all.len()).filter(keep).map(|i| all[i].clone()).collect();
        let expected: Vec<QueryScore> = (0..all.len()).filter(keep).map(|i| expected[i].clone()).collect();
        let mut blocks = blocks(&items, &cuts);
        prop_assert_eq!(&run(&blocks, &asked, budget, threads).unwrap(), &expected);
        blocks.reverse();
        prop_assert_eq!(&run(&blocks, &asked, budget, threads).unwrap(), &expected);
    }
}

#[test]
fn average_precision_with_ties_equals_scikit_learns_on_the_order_by_id() {
    // import numpy as np
    // from sklearn.metrics import average_precision_score
    // ids = ["b", "a", "d", "c", "e", "f"]; d2 = [1, 1, .25, .25, 0, 4]; y = [1, 0, 0, 1, 0, 1]
    // order = sorted(range(6), key=lambda i: (d2[i], ids[i]))
    // average_precision_score(np.array(y)[order], -np.arange(6))   → 0.4666666666666666
    let rows = [("b", 1.0, 1), ("a", 1.0, -1), ("d", 0.5, -1), ("c", 0.5, 1), ("e", 0.0, -1), ("f", 2.0, 1)];
    let items: Vec<Item> = rows
        .iter()
        .map(|(id, x, label)| Item { id: id.to_string(), embedding: vec![*x, 0.0], labels: vec![*label, 0, 0] })
        .collect();
    let mut query = queries().swap_remove(0);
    query.1 = vec![0.0, 0.0];
    let scores = run(&blocks(&items, &[4, 1]), &[query], ALL, 1).unwrap();
    assert!((scores[0].average_precision - 0.466_666_666_666_666_6).abs() < 1e-15, "{}", scores[0].average_precision);
    assert_eq!((scores[0].relevant, scores[0].judged, scores[0].p_at[1]), (3, 6, 0.4));
}

#[test]
fn progress_ends_at_its_total_and_an_error_of_the_loader_ends_the_scoring() {
    let blocks = blocks(&items(50, false, 1), &[10, 10]);
    let mut seen = Vec::new();
    let load = |i: usize| Ok::<_, Error>(Arc::clone(&blocks[i]));
    score_within(|_| 1, &queries(), 3, load, &mut |done, of| seen.push((done, of))).unwrap();
    assert_eq!(seen.last(), Some(&(15, 15)));
    let stopped = score(
        &queries(),
        3,
        |i| if i == 1 { Err(Error::invalid("cancelled")) } else { Ok(Arc::clone(&blocks[i])) },
        &mut |_, _| {},
    );
    assert_eq!(stopped.unwrap_err().to_string(), "cancelled");
}

#[test]
fn what_does_not_fit_the_gallery_is_named() {
    let mut all = items(30, false, 1);
    let ask =
        |blocks: &[Arc<PlainBlock>], query: (Query, Vec<f32>)| run(blocks, &[query], ALL, 1).unwrap_err().to_string();
    let query = || queries().swap_remove(0);
    let fine = blocks(&all, &[]);
    assert_eq!(ask(&fine, (query().0, vec![0.0; 3])), "query `q0` has dimension 3, the gallery 2");
    assert_eq!(ask(&fine, (query().0, vec![0.0, f32::NAN])), "the embedding of query `q0` is not finite");
    let mut beyond = query();
    beyond.0.terms[0].attribute = 3;
    assert_eq!(ask(&fine, beyond), "query `q0` asks for more than the gallery's 3 attributes");
    all.iter_mut().for_each(|item| item.labels[0] = -1);
    assert_eq!(ask(&blocks(&all, &[]), query()), "no item of the gallery is relevant to `q0`");
    all[0].labels[0] = 1;
    all[7].id = all[21].id.clone();
    assert_eq!(ask(&blocks(&all, &[9]), query()), format!("item `{}` is twice in the gallery", all[7].id));
}

#[test]
fn a_budget_grows_with_the_gallery_within_bounds() {
    assert_eq!(
        [0, 200_000, 209_716, 1_000_000, 100_000_000].map(budget_bytes),
        [64 << 20, 64 << 20, 209_716 * 320, 320_000_000, 384 << 20]
    );
}

//! Result sheets: a few queries with the pictures that they find, so that people see what the figures mean.

use likeness_contract::ranking::{canonical_d2, rank};
use rayon::prelude::*;

use crate::error::Error;
use crate::gallery::{Block, Judgement, judge};
use crate::queries::Query;
use crate::scores::QueryScore;

/// Sheets of a report: best, middle and worst queries.
const BEST: usize = 3;
const MIDDLE: usize = 2;
const WORST: usize = 3;

/// A query that is shown, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// `best`, `middle`, `worst`.
    pub why: &'static str,
    /// Number of the query.
    pub query: u32,
}

/// How far a query's AP is above the share of relevant items: what queries are compared by, since AP alone
/// says mostly how many items are relevant.
pub fn gain(score: &QueryScore) -> f64 {
    score.average_precision - score.chance
}

/// The queries of the pooled sets from best to worst gain, or of all sets where none is pooled; ties by number.
pub fn by_gain(scores: &[QueryScore]) -> Vec<&QueryScore> {
    let any_pooled = scores.iter().any(|score| score.set.is_pooled());
    let mut sorted: Vec<&QueryScore> = scores.iter().filter(|score| score.set.is_pooled() || !any_pooled).collect();
    sorted.sort_by(|a, b| gain(b).total_cmp(&gain(a)).then(a.query.cmp(&b.query)));
    sorted
}

/// The queries whose results are shown: 3 best, 2 middle, 3 worst by gain; all of them when there are fewer.
pub fn picks(scores: &[QueryScore]) -> Vec<Pick> {
    let sorted = by_gain(scores);
    let count = sorted.len();
    let middle = (count / 2).saturating_sub(MIDDLE / 2).max(BEST.min(count));
    let worst = count.saturating_sub(WORST);
    let why = |place: usize| match place {
        _ if place < BEST => Some("best"),
        _ if place >= worst => Some("worst"),
        _ if (middle..middle + MIDDLE).contains(&place) => Some("middle"),
        _ => None,
    };
    let chosen =
        sorted.iter().enumerate().filter_map(|(place, score)| Some(Pick { why: why(place)?, query: score.query }));
    chosen.collect()
}

/// An item that a query found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Its id.
    pub item: String,
    /// Canonical squared distance.
    pub d2: f64,
    /// Its block.
    pub block: usize,
    /// Its row there.
    pub row: usize,
    /// Whether it fulfils the query.
    pub relevant: bool,
}

/// The best `k` judged items of every query, in ranking order; one pass over the blocks.
pub fn top_items<B: Block, E: From<Error>>(
    queries: &[(Query, Vec<f32>)],
    k: usize,
    blocks: usize,
    mut load: impl FnMut(usize) -> std::result::Result<B, E>,
) -> std::result::Result<Vec<Vec<Hit>>, E> {
    let mut found: Vec<Vec<Hit>> = vec![Vec::new(); queries.len()];
    for number in 0..blocks {
        let block = load(number)?;
        found.par_iter_mut().zip(queries).for_each(|(hits, (query, embedding))| {
            for row in 0..block.rows() {
                offer(hits, k, query, embedding, &block, number, row);
            }
        });
    }
    Ok(found)
}

fn offer(
    hits: &mut Vec<Hit>,
    k: usize,
    query: &Query,
    embedding: &[f32],
    block: &impl Block,
    number: usize,
    row: usize,
) {
    let relevant = match judge(query, block, row) {
        Judgement::Unjudged => return,
        judgement => judgement == Judgement::Relevant,
    };
    let (d2, item) = (canonical_d2(embedding, block.embedding(row)), block.item(row));
    let place = hits.partition_point(|hit| rank((hit.d2, &hit.item), (d2, item)).is_lt());
    if place < k {
        hits.insert(place, Hit { item: item.to_string(), d2, block: number, row, relevant });
        hits.truncate(k);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::gallery::PlainBlock;
    use crate::queries::QuerySet;

    fn scores(count: u32) -> Vec<QueryScore> {
        (0..count)
            .map(|query| QueryScore {
                query,
                set: QuerySet::Singles,
                text: format!("+A{query}"),
                relevant: 5,
                judged: 10,
                average_precision: f64::from(query * 7 % count) / f64::from(count),
                chance: 0.5,
                p_at: [0.0; 4],
                further: None,
                first: None,
            })
            .collect()
    }

    #[test]
    fn picks_are_distinct_and_from_both_ends_and_the_middle() {
        for count in [1, 2, 3, 5, 7, 8, 9, 100] {
            let picks = picks(&scores(count));
            let mut numbers: Vec<u32> = picks.iter().map(|pick| pick.query).collect();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), picks.len());
            assert_eq!(picks.len(), 8.min(count as usize), "{count}");
        }
        let whys: Vec<&str> = picks(&scores(100)).iter().map(|pick| pick.why).collect();
        assert_eq!(whys, ["best", "best", "best", "middle", "middle", "worst", "worst", "worst"]);
    }

    #[test]
    fn top_items_are_sorted_by_distance_then_id_and_leave_unjudged_items_out() {
        let query = Query::of(QuerySet::Singles, &[(0, true)]);
        let block = |ids: &[&str], x: &[f32], labels: &[i8]| {
            let items = ids.iter().map(|id| id.to_string()).collect();
            Arc::new(PlainBlock::new(items, x.to_vec(), labels.to_vec(), 1, 1).unwrap())
        };
        let blocks = [block(&["d", "b"], &[0.5, 0.1], &[1, 0]), block(&["c", "a", "e"], &[0.5, 0.9, 0.2], &[-1, 1, 1])];
        let found = top_items::<_, Error>(&[(query, vec![0.0])], 3, 2, |i| Ok(Arc::clone(&blocks[i]))).unwrap();
        let seen: Vec<(&str, bool)> = found[0].iter().map(|hit| (hit.item.as_str(), hit.relevant)).collect();
        assert_eq!(seen, [("e", true), ("c", false), ("d", true)]);
    }
}

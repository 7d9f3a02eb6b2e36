//! Rankings and judgements as files of TREC, so that `trec_eval` and its kin can check every figure.
//!
//! A run has one line `QUERY Q0 ITEM RANK SCORE likeness` per judged item, the score being −rank: ties are broken before, by
//! item id, and can't be broken otherwise by a reader. Judgements have one line `QUERY 0 ITEM LEVEL`; level is 1 for a
//! relevant item and 0 for another, or in the graded file the number of terms that it fulfils. Items that a query does not
//! judge are in none of them. A query is `q` and its number; blanks and `%` of an item's id are written `%20` and so on.
//!
//! Whole rankings of a large gallery are long, so a file holds a sample of the queries: [`sample`].

use std::fmt::Write as _;

use likeness_contract::ranking::{canonical_d2, rank};
use rayon::prelude::*;

use crate::error::Error;
use crate::gallery::{Block, Judgement, judge};
use crate::queries::Query;

/// Most lines of a file, unless one query alone has more.
pub const MAX_LINES: u64 = 250_000;

/// The three files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trec {
    /// Rankings.
    pub run: String,
    /// Judgements, 0 or 1.
    pub qrels: String,
    /// Judgements by terms fulfilled.
    pub graded: String,
}

/// Places of the queries that are written: evenly through all `queries`, as many as have [`MAX_LINES`] items together,
/// at least one if there is any.
pub fn sample(queries: usize, items: u64) -> Vec<usize> {
    let fit = usize::try_from(MAX_LINES / items.max(1)).unwrap_or(usize::MAX).clamp(1, queries.max(1));
    let count = fit.min(queries);
    (0..count).map(|i| i * queries / count).collect()
}

/// A judged item of a query.
struct Judged {
    d2: f64,
    /// Its place in the order of blocks.
    item: u32,
    fulfilled: u32,
}

/// Ranks all judged items of every query, in one pass over the blocks: 16 bytes per query and item, and all ids.
pub fn trec<B: Block, E: From<Error>>(
    queries: &[(Query, Vec<f32>)],
    blocks: usize,
    mut load: impl FnMut(usize) -> std::result::Result<B, E>,
) -> std::result::Result<Trec, E> {
    let mut ids: Vec<Box<str>> = Vec::new();
    let mut rankings: Vec<Vec<Judged>> = queries.iter().map(|_| Vec::new()).collect();
    for number in 0..blocks {
        let block = load(number)?;
        let first = ids.len();
        ids.extend((0..block.rows()).map(|row| Box::from(block.item(row))));
        rankings.par_iter_mut().zip(queries).for_each(|(ranking, (query, embedding))| {
            ranking.extend((0..block.rows()).filter_map(|row| {
                let fulfilled = match judge(query, &block, row) {
                    Judgement::Unjudged => return None,
                    Judgement::NotRelevant { fulfilled } => fulfilled,
                    Judgement::Relevant => query.terms.len() as u32,
                };
                let d2 = canonical_d2(embedding, block.embedding(row));
                Some(Judged { d2, item: (first + row) as u32, fulfilled })
            }));
        });
    }
    let id = |judged: &Judged| &*ids[judged.item as usize];
    rankings.par_iter_mut().for_each(|ranking| ranking.sort_unstable_by(|a, b| rank((a.d2, id(a)), (b.d2, id(b)))));
    let mut files = Trec { run: String::new(), qrels: String::new(), graded: String::new() };
    for ((query, _), ranking) in queries.iter().zip(&rankings) {
        for (judged, rank) in ranking.iter().zip(1u64..) {
            files.add(query, &escaped(id(judged)), rank, judged.fulfilled);
        }
    }
    Ok(files)
}

impl Trec {
    fn add(&mut self, query: &Query, item: &str, rank: u64, fulfilled: u32) {
        let number = query.number;
        let relevant = u32::from(fulfilled as usize == query.terms.len());
        let written = [
            writeln!(self.run, "q{number} Q0 {item} {rank} -{rank} likeness"),
            writeln!(self.qrels, "q{number} 0 {item} {relevant}"),
            writeln!(self.graded, "q{number} 0 {item} {fulfilled}"),
        ];
        debug_assert!(written.iter().all(Result::is_ok), "a string takes everything");
    }
}

/// An id without blanks, which separate the cells of a line.
fn escaped(item: &str) -> String {
    let mut escaped = String::with_capacity(item.len());
    for c in item.chars() {
        if c.is_whitespace() || c.is_control() || c == '%' {
            let mut bytes = [0; 4];
            c.encode_utf8(&mut bytes).bytes().for_each(|byte| escaped.push_str(&format!("%{byte:02X}")));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::gallery::PlainBlock;
    use crate::queries::QuerySet;

    #[test]
    fn a_run_is_the_ranking_and_the_judgements_are_its_levels() {
        let query = Query { number: 7, ..Query::of(QuerySet::Pairs, &[(0, true), (1, false)]) };
        let block = |ids: &[&str], x: &[f32], labels: &[i8]| {
            let items = ids.iter().map(|id| id.to_string()).collect();
            Arc::new(PlainBlock::new(items, x.to_vec(), labels.to_vec(), 1, 2).unwrap())
        };
        let blocks = [
            block(&["d", "b 1"], &[0.5, 0.1], &[1, -1, 1, 1]),
            block(&["c", "a%", "e"], &[0.5, 0.9, 0.2], &[-1, 1, 1, 0, 1, -1]),
        ];
        let files = trec::<_, Error>(&[(query, vec![0.0])], 2, |i| Ok(Arc::clone(&blocks[i]))).unwrap();
        assert_eq!(
            files.run,
            "q7 Q0 b%201 1 -1 likeness\nq7 Q0 e 2 -2 likeness\nq7 Q0 c 3 -3 likeness\nq7 Q0 d 4 -4 likeness\n"
        );
        assert_eq!(files.qrels, "q7 0 b%201 0\nq7 0 e 1\nq7 0 c 0\nq7 0 d 1\n");
        assert_eq!(files.graded, "q7 0 b%201 1\nq7 0 e 2\nq7 0 c 0\nq7 0 d 2\n");
        assert_eq!(escaped("a%\u{2003}ß\n"), "a%25%E2%80%83ß%0A");
    }

    #[test]
    fn a_sample_goes_through_all_queries_and_is_never_empty() {
        assert_eq!(sample(10, 800), (0..10).collect::<Vec<_>>());
        assert_eq!(sample(1_000, 50_000), [0, 200, 400, 600, 800]);
        assert_eq!(sample(7, 10_000_000), [0]);
        assert_eq!((sample(0, 10), sample(3, 0)), (vec![], vec![0, 1, 2]));
    }
}

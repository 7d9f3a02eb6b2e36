//! Means over a query set: the table that people look at first.

use likeness_contract::documents::HeadlineRow;

use crate::bootstrap::mean;
use crate::queries::QuerySet;
use crate::scores::QueryScore;

/// The scores of a set, in the order of the queries.
pub fn of_set(scores: &[QueryScore], set: QuerySet) -> Vec<&QueryScore> {
    scores.iter().filter(|score| score.set == set).collect()
}

/// One row per set that has queries.
pub fn headline(scores: &[QueryScore]) -> Vec<HeadlineRow> {
    QuerySet::ALL
        .into_iter()
        .map(|set| (set, of_set(scores, set)))
        .filter(|(_, of_set)| !of_set.is_empty())
        .map(|(set, of_set)| row(set, &of_set))
        .collect()
}

fn row(set: QuerySet, scores: &[&QueryScore]) -> HeadlineRow {
    HeadlineRow {
        set: set.name().into(),
        queries: scores.len() as u32,
        map: mean_of(scores, |score| score.average_precision),
        chance: mean_of(scores, |score| score.chance),
        p_at: std::array::from_fn(|k| mean_of(scores, |score| score.p_at[k])),
    }
}

/// Mean of a figure over scores.
pub fn mean_of(scores: &[&QueryScore], figure: impl Fn(&QueryScore) -> f64) -> f64 {
    mean(&scores.iter().map(|score| figure(score)).collect::<Vec<_>>())
}

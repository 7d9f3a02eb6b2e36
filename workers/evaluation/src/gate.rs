//! The gate: may a new generation replace the one that serves?
//!
//! Both generations of the same items were asked the same singles, pairs and triples (other sets don't count). The gate pools the
//! queries and looks at the paired difference of AP with a bootstrap over queries. It refuses when the whole
//! 95 % interval lies below 0: worse, and not by chance of the draw. A first release has no one to be compared
//! with; it must beat chance, so the whole interval of AP − chance must lie above 0. Chance is there the
//! *expected AP of a random order* (`metrics::random_ap`), not the share of relevant items: the share is
//! smaller, so that in a small gallery a random order itself would pass. A floor ([`with_floor`]) is an absolute mAP beside that.

use likeness_contract::documents::GateDecision;

use crate::bootstrap::{interval, mean};
use crate::error::{Error, Result};
use crate::metrics::random_ap;
use crate::scores::QueryScore;

/// Purpose of the gate's random stream.
const STREAM: u64 = 100;

/// Decides about `candidate`; `baseline` is the number of the release compared with and its scores of the
/// same queries.
///
/// Fails as invalid when there is no query, or when the two were not asked the same queries of the same items.
pub fn gate(candidate: &[QueryScore], baseline: Option<(u64, &[QueryScore])>, seed: u64) -> Result<GateDecision> {
    let candidate = &pooled(candidate);
    let baseline = baseline.map(|(release, scores)| (release, pooled(scores)));
    if candidate.is_empty() {
        return Err(Error::invalid("the gate has no query to compare by"));
    }
    let against: Vec<f64> = match &baseline {
        Some((_, scores)) => {
            check_paired(candidate, scores)?;
            scores.iter().map(|score| score.average_precision).collect()
        }
        None => candidate.iter().map(|score| random_ap(score.relevant, score.judged)).collect(),
    };
    let ours: Vec<f64> = candidate.iter().map(|score| score.average_precision).collect();
    let differences: Vec<f64> = ours.iter().zip(&against).map(|(a, b)| a - b).collect();
    let interval = interval(&differences, seed, STREAM);
    Ok(GateDecision {
        passed: if baseline.is_some() { interval[1] >= 0.0 } else { interval[0] > 0.0 },
        baseline: baseline.as_ref().map(|(release, _)| *release),
        candidate_map: mean(&ours),
        baseline_map: mean(&against),
        difference: mean(&differences),
        interval,
        queries: candidate.len() as u32,
    })
}

/// Refuses what has a lower mAP than the floor, whatever the comparison says.
pub fn with_floor(decision: GateDecision, floor: f64) -> GateDecision {
    GateDecision { passed: decision.passed && decision.candidate_map >= floor, ..decision }
}

fn pooled(scores: &[QueryScore]) -> Vec<&QueryScore> {
    scores.iter().filter(|score| score.set.is_pooled()).collect()
}

fn check_paired(candidate: &[&QueryScore], baseline: &[&QueryScore]) -> Result<()> {
    if candidate.len() != baseline.len() {
        let detail = format!("{} queries of the candidate, {} of the baseline", candidate.len(), baseline.len());
        return Err(Error::invalid(detail));
    }
    let asked = |score: &QueryScore| (score.query, score.text.clone(), score.relevant, score.judged);
    match candidate.iter().zip(baseline).find(|(ours, theirs)| asked(ours) != asked(theirs)) {
        None => Ok(()),
        Some((ours, theirs)) => Err(Error::invalid(format!(
            "candidate and baseline are no galleries of the same items: `{}` has {} relevant of {} here, `{}` {} of {} there",
            ours.text, ours.relevant, ours.judged, theirs.text, theirs.relevant, theirs.judged
        ))),
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng as _;

    use super::*;
    use crate::bootstrap::{below, stream};
    use crate::metrics::{average_precision, chance};
    use crate::queries::QuerySet;

    fn score(query: u32, relevant: u64, judged: u64, average_precision: f64) -> QueryScore {
        let chance = chance(relevant, judged);
        let text = format!("+A{query}");
        let set = QuerySet::Pairs;
        let (p_at, further, first) = ([0.5; 4], None, None);
        QueryScore { query, set, text, relevant, judged, average_precision, chance, p_at, further, first }
    }

    /// Queries whose AP spreads around `level`, each shifted by about `shift`.
    fn scores(shift: f64) -> Vec<QueryScore> {
        let (mut spread, mut noise) = (stream(1, 0), stream(2, shift.to_bits()));
        let unit = |rng: &mut rand_chacha::ChaCha8Rng| f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.5;
        (0..400)
            .map(|query| score(query, 20, 200, 0.5 + 0.4 * unit(&mut spread) + shift + 0.05 * unit(&mut noise)))
            .collect()
    }

    /// AP of a random order of 12 items of 60.
    fn at_random(queries: u32, seed: u64) -> Vec<QueryScore> {
        let mut rng = stream(seed, 9);
        (0..queries)
            .map(|query| {
                let mut ranks = std::collections::BTreeSet::new();
                while ranks.len() < 12 {
                    ranks.insert(1 + below(&mut rng, 60));
                }
                score(query, 12, 60, average_precision(&ranks.into_iter().collect::<Vec<_>>()))
            })
            .collect()
    }

    #[test]
    fn a_worse_generation_is_refused_and_a_better_or_equal_one_passes() {
        let old = scores(0.0);
        let worse = gate(&scores(-0.02), Some((4, &old)), 0).unwrap();
        assert!(!worse.passed && worse.interval[1] < 0.0 && worse.baseline == Some(4), "{worse:?}");
        let better = gate(&scores(0.02), Some((4, &old)), 0).unwrap();
        assert!(better.passed && better.interval[0] > 0.0 && (better.difference - 0.02).abs() < 0.005, "{better:?}");
        let equal = gate(&old, Some((4, &old)), 0).unwrap();
        assert!(equal.passed && equal.interval == [0.0, 0.0] && equal.queries == 400);
    }

    #[test]
    fn a_floor_refuses_what_is_below_it_and_lets_nothing_else_pass() {
        let old = scores(0.0);
        let passed = |shift, floor| with_floor(gate(&scores(shift), Some((4, &old)), 0).unwrap(), floor).passed;
        assert!(passed(0.02, 0.5) && !passed(0.02, 0.9), "better, but not good enough");
        assert!(!passed(-0.02, 0.1), "above the floor, but worse");
        let level = gate(&old, None, 0).unwrap().candidate_map;
        assert!(with_floor(gate(&old, None, 0).unwrap(), level).passed, "the floor itself is no refusal");
    }

    #[test]
    fn only_pooled_sets_count() {
        let old = scores(0.0);
        let mut worse = scores(-0.02);
        worse.iter_mut().for_each(|score| score.set = QuerySet::Images);
        let decision = gate(&[old.clone(), worse].concat(), Some((1, &old)), 0).unwrap();
        assert!(decision.passed && decision.difference == 0.0 && decision.queries == 400, "{decision:?}");
    }

    #[test]
    fn a_difference_within_the_noise_passes() {
        let decision = gate(&scores(-0.0005), Some((1, &scores(0.0))), 0).unwrap();
        assert!(decision.passed && decision.interval[0] < 0.0, "{decision:?}");
    }

    #[test]
    fn a_first_release_at_chance_is_refused_and_one_above_passes() {
        // A random order has more AP than its share of relevant items, .2 here, so the share would let it pass.
        let random = at_random(2_000, 5);
        let decision = gate(&random, None, 0).unwrap();
        assert!(!decision.passed && decision.baseline.is_none(), "{decision:?}");
        assert!(decision.candidate_map > 0.23 && (decision.difference).abs() < 0.01, "{decision:?}");
        let above: Vec<QueryScore> = scores(0.0);
        let decision = gate(&above, None, 0).unwrap();
        assert!(decision.passed && decision.interval[0] > 0.2, "{decision:?}");
    }

    #[test]
    fn a_decision_is_reproducible_and_depends_on_its_seed_only_a_little() {
        let (new, old) = (scores(0.01), scores(0.0));
        let decide = |seed| gate(&new, Some((1, &old)), seed).unwrap();
        assert_eq!(decide(3), decide(3));
        assert_ne!(decide(3).interval, decide(4).interval);
        assert!((decide(3).interval[0] - decide(4).interval[0]).abs() < 0.001);
    }

    #[test]
    fn other_queries_or_other_items_are_refused() {
        let old = scores(0.0);
        assert!(gate(&old[..5], Some((1, &old)), 0).is_err());
        let mut other = old.clone();
        other[7].judged = 199;
        let error = gate(&other, Some((1, &old)), 0).unwrap_err();
        assert!(error.to_string().contains("no galleries of the same items"), "{error}");
        assert!(gate(&[], None, 0).is_err());
    }
}

//! What the figures of a training say to the one who set it up, in words.

use likeness_model::StepFigures;

/// Share of correct triplets at step 0 that chance explains, whatever the batch.
const CHANCE: std::ops::RangeInclusive<f64> = 0.3..=0.7;
/// From this share of correct triplets on there is little left to learn from.
const NEARLY_ALL: f64 = 0.98;
/// A fall of the loss by this share counts as falling.
const FALLING: f64 = 0.05;
/// A rise of the correct share by less than this counts as not rising.
const RISING: f64 = 0.01;
/// Fewest steps that show a trend.
const TREND_STEPS: usize = 20;

/// On the first batch of a training: fresh weights know nothing.
pub(super) fn at_the_start(first: &StepFigures) -> Option<String> {
    if CHANCE.contains(&first.correct) {
        return None;
    }
    let percent = 100.0 * first.correct;
    Some(format!(
        "at step 0 about half of the triplets should be correct by chance, {percent:.0} % are: check the margin and the input"
    ))
}

/// On consecutive steps early in a training.
pub(super) fn early_on(steps: &[StepFigures]) -> Option<String> {
    if steps.len() < TREND_STEPS {
        return None;
    }
    let quarter = steps.len() / 4;
    let mean =
        |steps: &[StepFigures], f: fn(&StepFigures) -> f64| steps.iter().map(f).sum::<f64>() / steps.len() as f64;
    let (first, last) = (&steps[..quarter], &steps[steps.len() - quarter..]);
    let (correct_before, correct) = (mean(first, |f| f.correct), mean(last, |f| f.correct));
    if correct >= NEARLY_ALL {
        return Some(format!(
            "{:.0} % of the triplets are correct so early: the negatives are too easy",
            100.0 * correct
        ));
    }
    let loss_falls = mean(last, |f| f.loss) < (1.0 - FALLING) * mean(first, |f| f.loss);
    if loss_falls && correct < correct_before + RISING {
        return Some(
            "the loss falls while the share of correct triplets does not rise: the margin is too large".into(),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::figures::{Phase, example};
    use super::*;

    fn figures(loss: f64, correct: f64) -> StepFigures {
        StepFigures { loss, correct, ..example(0, Phase::Train).figures }
    }

    fn trend(loss: [f64; 2], correct: [f64; 2]) -> Option<String> {
        let at = |[from, to]: [f64; 2], i: usize| from + (to - from) * i as f64 / 39.0;
        let steps: Vec<_> = (0..40).map(|i| figures(at(loss, i), at(correct, i))).collect();
        early_on(&steps)
    }

    #[test]
    fn fresh_weights_are_right_half_of_the_time() {
        assert_eq!(at_the_start(&figures(0.1, 0.52)), None);
        assert!(at_the_start(&figures(0.1, 0.05)).unwrap().contains("5 %"));
    }

    #[test]
    fn a_training_that_learns_needs_no_advice() {
        assert_eq!(trend([0.1, 0.05], [0.5, 0.8]), None);
        assert_eq!(early_on(&[]), None);
    }

    #[test]
    fn a_loss_that_falls_without_more_correct_triplets_tells_of_the_margin() {
        assert!(trend([0.5, 0.3], [0.5, 0.5]).unwrap().contains("margin"));
    }

    #[test]
    fn nearly_all_correct_tells_of_easy_negatives() {
        assert!(trend([0.02, 0.001], [0.97, 1.0]).unwrap().contains("too easy"));
    }
}

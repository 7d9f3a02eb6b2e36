//! The learning rate over a training.

use likeness_contract::settings::TrainSettings;

/// Learning rate of step `step` (from 0) of `total`: rises linearly over the first `warmup_share` of the steps,
/// reaching its peak in the last of them, then falls as half a cosine towards 0.
pub fn learning_rate(settings: &TrainSettings, step: u64, total: u64) -> f64 {
    let peak = settings.optimizer.lr();
    let warmup = (f64::from(settings.warmup_share) * total as f64).ceil() as u64;
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let rest = total.saturating_sub(warmup).max(1) as f64;
    let gone = ((step - warmup) as f64 / rest).min(1.0);
    peak * 0.5 * (1.0 + (std::f64::consts::PI * gone).cos())
}

/// Steps at the start of `total` in which the backbone is frozen; all of them when it is for every epoch.
pub(crate) fn frozen_steps(settings: &TrainSettings, total: u64) -> u64 {
    let frozen = settings.backbone.frozen_epochs;
    if frozen >= settings.epochs {
        return u64::MAX;
    }
    total / u64::from(settings.epochs) * u64::from(frozen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(warmup_share: f32, total: u64) -> Vec<f64> {
        let settings = TrainSettings { warmup_share, ..TrainSettings::default() };
        (0..total).map(|step| learning_rate(&settings, step, total) / settings.optimizer.lr()).collect()
    }

    #[test]
    fn rises_linearly_then_falls_as_a_cosine() {
        let rates = rates(0.25, 8);
        assert_eq!(&rates[..3], &[0.5, 1.0, 1.0]);
        assert!((rates[5] - 0.5).abs() < 1e-12, "half-way down at half of the rest");
        assert!(rates[2..].windows(2).all(|w| w[0] > w[1]) && rates[7] > 0.0, "{rates:?}");
    }

    #[test]
    fn without_warm_up_it_starts_at_the_peak() {
        assert_eq!(rates(0.0, 4)[0], 1.0);
    }

    #[test]
    fn past_the_end_it_is_zero() {
        let settings = TrainSettings::default();
        assert_eq!(learning_rate(&settings, 1_000, 10), 0.0);
        assert!(learning_rate(&settings, 0, 0).is_finite());
    }
}

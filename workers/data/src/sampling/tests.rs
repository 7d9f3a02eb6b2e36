use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

fn settings() -> TrainSettings {
    TrainSettings { batch_size: 16, ..TrainSettings::default() }
}

fn with_mix(random: f32, other: f32, flipped: f32) -> TrainSettings {
    TrainSettings { negatives: NegativeMix { random, other, flipped }, ..settings() }
}

/// Rows like CelebA's: attributes of very different frequency, some labels not known.
fn labels(rows: usize, attributes: usize, unknown: f32, seed: u64) -> Vec<i8> {
    let mut rng = stream(seed, Purpose::Order, 99);
    let mut label = |a: usize| {
        let has = unit(&mut rng) < 0.02 + 0.5 * a as f32 / attributes as f32;
        if unit(&mut rng) < unknown {
            0
        } else if has {
            1
        } else {
            -1
        }
    };
    (0..rows * attributes).map(|i| label(i % attributes)).collect()
}

fn sampler(settings: &TrainSettings, labels: Vec<i8>, attributes: usize) -> TripletSampler {
    TripletSampler::new(settings, QueryEncoding::ThreeState, labels, attributes).unwrap()
}

/// Anchor's labels, positive, negative of every triplet of a batch.
fn triplets<'a>(
    batch: &'a TripletRows,
    labels: &'a [i8],
    attributes: usize,
) -> impl Iterator<Item = (&'a [i8], &'a [f32], &'a [f32])> {
    let anchors = batch.rows.iter().map(move |row| &labels[*row as usize * attributes..][..attributes]);
    anchors
        .zip(batch.positives.chunks_exact(attributes))
        .zip(batch.negatives.chunks_exact(attributes))
        .map(|((anchor, positive), negative)| (anchor, positive, negative))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn positives_hold_negatives_contradict_and_both_speak_of_the_same(
        seed in any::<u64>(), rows in 20usize..200, attributes in 1usize..41, unknown in 0f32..0.9,
        masked_share in 0f32..=1.0, random in 0f32..=1.0, step in 0u64..500,
    ) {
        let labels = labels(rows, attributes, unknown, seed);
        prop_assume!(labels.iter().any(|label| *label != 0));
        let settings = TrainSettings {
            seed, masked_share, negatives: NegativeMix { random, other: (1.0 - random) * 0.7, flipped: (1.0 - random) * 0.3 },
            ..settings()
        };
        let batch = sampler(&settings, labels.clone(), attributes).batch(step);
        for (anchor, positive, negative) in triplets(&batch, &labels, attributes) {
            let mut contradictions = 0;
            for a in 0..attributes {
                prop_assert!(positive[a] == 0.0 || positive[a] == f32::from(anchor[a]));
                prop_assert_eq!(positive[a] == 0.0, negative[a] == 0.0);
                contradictions += usize::from(positive[a] * negative[a] < 0.0);
            }
            prop_assert!(contradictions >= 1);
        }
    }

    #[test]
    fn an_epoch_takes_every_labelled_row_once(
        seed in any::<u64>(), batches in 1usize..8, batch_size in 1u32..20, epoch in 0u64..50,
    ) {
        let rows = batches * batch_size as usize;
        let settings = TrainSettings { seed, batch_size, ..settings() };
        let sampler = sampler(&settings, labels(rows, 5, 0.0, seed), 5);
        prop_assert_eq!(sampler.steps_per_epoch(), batches as u64);
        let steps = epoch * batches as u64..(epoch + 1) * batches as u64;
        let mut taken: Vec<u32> = steps.flat_map(|step| sampler.batch(step).rows).collect();
        taken.sort_unstable();
        prop_assert!(taken.into_iter().eq(0..rows as u32));
    }

    #[test]
    fn a_batch_depends_on_settings_and_step_alone(seed in any::<u64>(), step in 0u64..1000) {
        let settings = TrainSettings { seed, ..settings() };
        let one = sampler(&settings, labels(100, 7, 0.1, 1), 7);
        let another = sampler(&settings, labels(100, 7, 0.1, 1), 7);
        (0..step % 13).for_each(|earlier| { another.batch(earlier); });
        prop_assert_eq!(one.batch(step), another.batch(step));
        prop_assert_ne!(one.batch(step), one.batch(step + 1));
    }
}

#[test]
fn epochs_and_seeds_have_orders_of_their_own() {
    let at = |seed: u64, step: u64| {
        sampler(&TrainSettings { seed, ..settings() }, labels(160, 5, 0.0, 1), 5).batch(step).rows
    };
    let all: HashSet<Vec<u32>> = [at(0, 0), at(0, 10), at(0, 20), at(1, 0), at(2, 0)].into_iter().collect();
    assert_eq!(all.len(), 5);
}

/// Differences to the positive of many negatives, with all attributes asked.
fn differences(settings: &TrainSettings) -> Vec<usize> {
    let settings = TrainSettings { masked_share: 0.0, ..settings.clone() };
    let labels = labels(400, 40, 0.0, 3);
    let sampler = sampler(&settings, labels.clone(), 40);
    let batches: Vec<TripletRows> = (0..200).map(|step| sampler.batch(step)).collect();
    batches
        .iter()
        .flat_map(|batch| triplets(batch, &labels, 40))
        .map(|(_, p, n)| p.iter().zip(n).filter(|(p, n)| p != n).count())
        .collect()
}

#[test]
fn flipped_negatives_turn_one_to_three_attributes_equally_often() {
    let differences = differences(&with_mix(0.0, 0.0, 1.0));
    for flips in 1..=3 {
        let share = differences.iter().filter(|d| **d == flips).count() as f64 / differences.len() as f64;
        assert!((share - 1.0 / 3.0).abs() < 0.03, "{flips} flips: {share}");
    }
    assert!(differences.iter().all(|d| (1..=3).contains(d)));
}

#[test]
fn the_mix_is_kept() {
    // Of forty attributes, random words differ in about 20, other images in about 13, flips in at most 3.
    let differences = differences(&with_mix(0.2, 0.5, 0.3));
    let share =
        |holds: fn(usize) -> bool| differences.iter().filter(|d| holds(**d)).count() as f64 / differences.len() as f64;
    assert!((share(|d| d <= 3) - 0.3).abs() < 0.03, "{}", share(|d| d <= 3));
    assert!((share(|d| d > 3) - 0.7).abs() < 0.03);
    let only_random = self::differences(&with_mix(1.0, 0.0, 0.0));
    let mean = only_random.iter().sum::<usize>() as f64 / only_random.len() as f64;
    assert!((mean - 20.0).abs() < 0.3, "{mean}");
}

#[test]
fn negatives_of_other_images_are_vectors_that_exist() {
    let labels = labels(200, 12, 0.0, 5);
    let settings = TrainSettings { masked_share: 0.0, ..with_mix(0.0, 1.0, 0.0) };
    let sampler = sampler(&settings, labels.clone(), 12);
    let known: HashSet<Vec<i8>> = labels.chunks_exact(12).map(<[i8]>::to_vec).collect();
    for step in 0..40 {
        for (_, _, negative) in triplets(&sampler.batch(step), &labels, 12) {
            assert!(known.contains(&negative.iter().map(|word| *word as i8).collect::<Vec<_>>()));
        }
    }
}

#[test]
fn masked_queries_have_the_sizes_that_the_module_promises() {
    let labels = labels(400, 40, 0.0, 7);
    let settings = TrainSettings { masked_share: 1.0, ..settings() };
    let sampler = sampler(&settings, labels.clone(), 40);
    let mut sizes = [0usize; 41];
    for step in 0..400 {
        for (_, positive, _) in triplets(&sampler.batch(step), &labels, 40) {
            sizes[positive.iter().filter(|word| **word != 0.0).count()] += 1;
        }
    }
    let total: usize = sizes.iter().sum();
    let share = |size: usize| sizes[size] as f64 / total as f64;
    assert!((share(1) - 0.30).abs() < 0.02 && (share(2) - 0.30).abs() < 0.02 && (share(3) - 0.25).abs() < 0.02);
    assert!(sizes[0] == 0 && sizes[4..].iter().sum::<usize>() > 0 && sizes[30..].iter().sum::<usize>() > 0);
}

#[test]
fn nothing_tells_a_positive_from_its_negative_without_the_image() {
    let labels = labels(2000, 40, 0.0, 7);
    let (mut has, mut words) = ([0usize; 2], 0);
    let (mut single_has, mut singles) = (0, 0);
    for mix in [with_mix(0.0, 1.0, 0.0), with_mix(0.0, 0.0, 1.0)] {
        let sampler = sampler(&TrainSettings { masked_share: 1.0, ..mix }, labels.clone(), 40);
        for step in 0..1000 {
            for (_, positive, negative) in triplets(&sampler.batch(step), &labels, 40) {
                let size = positive.iter().filter(|word| **word != 0.0).count();
                if size > 3 {
                    continue;
                }
                let count = |words: &[f32]| words.iter().filter(|word| **word > 0.0).count();
                has = [has[0] + count(positive), has[1] + count(negative)];
                words += size;
                if size == 1 {
                    single_has += count(positive);
                    singles += 1;
                }
            }
        }
    }
    let share = |count: usize, of: usize| count as f64 / of as f64;
    assert!((share(has[0], words) - share(has[1], words)).abs() < 0.02, "{has:?} of {words}");
    assert!((share(single_has, singles) - 0.5).abs() < 0.03, "{single_has} of {singles}");
}

#[test]
fn the_share_of_masked_queries_is_kept() {
    let labels = labels(400, 40, 0.0, 9);
    let settings = TrainSettings { masked_share: 0.6, ..settings() };
    let sampler = sampler(&settings, labels.clone(), 40);
    let full = (0..300)
        .flat_map(|step| sampler.batch(step).positives.chunks_exact(40).map(|p| !p.contains(&0.0)).collect::<Vec<_>>());
    let full: Vec<bool> = full.collect();
    let share = full.iter().filter(|full| **full).count() as f64 / full.len() as f64;
    // A masked query keeps all forty once in 250.
    assert!((share - 0.4).abs() < 0.03, "{share}");
}

#[test]
fn multi_hot_is_one_and_zero_and_never_masked() {
    let labels = labels(100, 9, 0.2, 4);
    let settings = TrainSettings { masked_share: 1.0, ..settings() };
    let sampler = TripletSampler::new(&settings, QueryEncoding::MultiHot, labels.clone(), 9).unwrap();
    for step in 0..20 {
        for (anchor, positive, negative) in triplets(&sampler.batch(step), &labels, 9) {
            let expected: Vec<f32> = anchor.iter().map(|label| if *label == 1 { 1.0 } else { 0.0 }).collect();
            assert_eq!(positive, expected);
            assert!(negative.iter().all(|word| *word == 0.0 || *word == 1.0));
            assert_ne!(positive, negative);
        }
    }
}

#[test]
fn validation_is_all_rows_fixed_and_plain() {
    let labels = labels(100, 9, 0.1, 4);
    let at = |seed| sampler(&TrainSettings { seed, ..settings() }, labels.clone(), 9).validation();
    let batches = at(1);
    assert_eq!(batches, at(2));
    let rows: Vec<u32> = batches.iter().flat_map(|batch| batch.rows.clone()).collect();
    assert!(rows.into_iter().eq(0..100));
    assert!(batches.iter().flat_map(|batch| &batch.augment).all(|augment| *augment == Augment::NONE));
    assert_eq!(batches.iter().map(|batch| batch.rows.len()).collect::<Vec<_>>(), [16, 16, 16, 16, 16, 16, 4]);
}

#[test]
fn rows_without_any_label_are_no_anchors() {
    let mut labels = labels(50, 4, 0.0, 4);
    labels[..40].fill(0);
    let sampler = sampler(&TrainSettings { batch_size: 20, ..settings() }, labels, 4);
    assert_eq!(sampler.steps_per_epoch(), 2);
    let mut rows: Vec<u32> = (0..2).flat_map(|step| sampler.batch(step).rows).collect();
    rows.sort_unstable();
    assert!(rows.into_iter().eq(10..50));
}

#[test]
fn a_split_smaller_than_a_batch_is_one_batch() {
    let sampler = sampler(&TrainSettings { batch_size: 128, ..settings() }, labels(10, 4, 0.0, 4), 4);
    assert_eq!((sampler.steps_per_epoch(), sampler.batch(3).rows.len()), (1, 10));
}

#[test]
fn augmentation_follows_the_settings() {
    let at = |mirror, random_crop| {
        let settings = TrainSettings { mirror, random_crop, ..settings() };
        let sampler = sampler(&settings, labels(160, 4, 0.0, 4), 4);
        (0..50).flat_map(|step| sampler.batch(step).augment).collect::<Vec<_>>()
    };
    assert!(at(false, 0.0).iter().all(|augment| *augment == Augment::NONE));
    let all = at(true, 0.1);
    let mirrored = all.iter().filter(|augment| augment.mirror).count() as f64 / all.len() as f64;
    assert!((mirrored - 0.5).abs() < 0.06, "{mirrored}");
    assert!(all.iter().all(|a| (-1.0..1.0).contains(&a.dx) && (-1.0..1.0).contains(&a.dy)));
    assert!(all.iter().any(|a| a.dx < -0.9) && all.iter().any(|a| a.dy > 0.9));
}

#[test]
fn colours_and_resized_crops_are_drawn_anew_for_every_anchor() {
    use crate::augment::ColourStep;
    use likeness_contract::settings::{ColourJitter, ResizedCrop};
    let colour = ColourJitter { brightness: 0.4, contrast: 0.0, saturation: 2.0, hue: 0.1 };
    let resized_crop = Some(ResizedCrop::from_scale(0.5));
    let settings = TrainSettings { colour, resized_crop, random_crop: 0.0, ..settings() };
    let sampler = sampler(&settings, labels(160, 4, 0.0, 4), 4);
    let all: Vec<_> = (0..50).flat_map(|step| sampler.batch(step).augment).collect();
    let seeds: HashSet<u64> = all.iter().map(|augment| augment.resized.unwrap()).collect();
    assert_eq!(seeds.len(), all.len());
    let steps: Vec<_> = all.iter().map(|augment| augment.colour.unwrap()).collect();
    let within = |step: &ColourStep| match step {
        ColourStep::Brightness(factor) => (0.6..=1.4).contains(factor),
        ColourStep::Contrast(factor) => *factor == 1.0,
        ColourStep::Saturation(factor) => (0.0..=3.0).contains(factor),
        ColourStep::Hue(turn) => (-0.1..=0.1).contains(turn),
    };
    assert!(steps.iter().flatten().all(within));
    let hue_first = steps.iter().filter(|steps| matches!(steps[0], ColourStep::Hue(_))).count() as f64;
    assert!((hue_first / steps.len() as f64 - 0.25).abs() < 0.06, "{hue_first} of {}", steps.len());
    assert_eq!(sampler.batch(7).augment, sampler.batch(7).augment);
}

#[test]
fn settings_and_labels_that_make_no_sense_are_refused() {
    let refusal = |settings: &TrainSettings, labels: Vec<i8>, attributes| {
        let error = TripletSampler::new(settings, QueryEncoding::ThreeState, labels, attributes).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        error.to_string()
    };
    let good = || vec![1, -1, 1, 1];
    assert!(refusal(&with_mix(0.5, 0.6, 0.1), good(), 2).contains("sum 1"));
    assert!(refusal(&with_mix(-0.5, 1.5, 0.0), good(), 2).contains("within 0–1"));
    assert!(refusal(&TrainSettings { masked_share: f32::NAN, ..settings() }, good(), 2).contains("masked share"));
    assert!(refusal(&TrainSettings { batch_size: 0, ..settings() }, good(), 2).contains("batch size"));
    assert!(refusal(&settings(), good(), 3).contains("are no rows of 3 attributes"));
    assert!(refusal(&settings(), vec![1, 2], 2).contains("label 2"));
    assert!(refusal(&settings(), vec![], 2).contains("nothing to train on"));
    assert!(refusal(&settings(), vec![0, 0], 2).contains("nothing to train on"));
}

/// The first numbers of a stream: a change would break the resumption of every training under way.
#[test]
fn streams_never_change() {
    let mut rng = stream(7, Purpose::Batch, 3);
    let drawn: Vec<usize> = (0..6).map(|_| below(&mut rng, 1000)).collect();
    assert_eq!(drawn, STREAM);
}

const STREAM: [usize; 6] = [453, 570, 973, 631, 582, 439];

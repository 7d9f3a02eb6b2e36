use bytes::Bytes;

use super::*;
use crate::error::ErrorKind;
use crate::image::Loader;
use crate::testing::{fixture, png};

const PX: usize = 16;

fn preprocessing(crop: Crop) -> Preprocessing {
    Preprocessing { crop, ..Preprocessing::imagenet(PX as u32) }
}

fn set() -> Vec<Bytes> {
    vec![png(45, 32), png(20, 50), fixture("rgb.jpg"), png(16, 16), png(7, 5)]
}

fn shift(shift: f32) -> Crops {
    Crops { shift, ..Crops::NONE }
}

fn filled(images: &TrainImages, rows: &[u32], augment: &[Augment]) -> Vec<f32> {
    let mut out = vec![0.0; rows.len() * 3 * PX * PX];
    images.fill(rows, augment, &mut out).unwrap();
    out
}

#[test]
fn without_augmentation_the_input_is_the_loaders() {
    for crop in [Crop::CenterSquare, Crop::Stretch] {
        for random_crop in [0.0, 0.1, 0.25] {
            let p = preprocessing(crop);
            let images = TrainImages::new(&p, shift(random_crop), set()).unwrap();
            let loader = Loader::new(&p);
            for (row, bytes) in set().iter().enumerate() {
                let mut expected = vec![0.0; loader.input_len()];
                loader.load(bytes, &mut expected).unwrap();
                let found = filled(&images, &[row as u32], &[Augment::NONE]);
                // One step of 255 in normalised numbers, for sums that round the other way.
                let step = 1.001 / 255.0 / 0.224;
                let far = found.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() > step).count();
                assert_eq!(far, 0, "row {row}, {crop:?}, crop {random_crop}");
            }
        }
    }
}

#[test]
fn a_shift_moves_the_picture_by_whole_pixels_and_keeps_its_scale() {
    let images = TrainImages::new(&preprocessing(Crop::CenterSquare), shift(0.25), set()).unwrap();
    let centre = filled(&images, &[0], &[Augment::NONE]);
    let right = filled(&images, &[0], &[Augment { dx: 0.999, ..Augment::NONE }]);
    // 45 × 32 goes on to the right of its centre square: margin 4 is real.
    for y in 0..PX {
        assert_eq!(right[y * PX..y * PX + PX - 4], centre[y * PX + 4..(y + 1) * PX]);
    }
    assert!(right[PX - 1] > centre[PX - 1], "the picture brightens to the right");
    // Above there is nothing: the top row is repeated.
    let up = filled(&images, &[0], &[Augment { dy: -1.0, ..Augment::NONE }]);
    assert_eq!(up[..PX], up[PX..2 * PX]);
    assert_eq!(up[4 * PX..5 * PX], centre[..PX]);
}

#[test]
fn mirroring_twice_is_nothing() {
    let images = TrainImages::new(&preprocessing(Crop::CenterSquare), shift(0.1), set()).unwrap();
    let plain = filled(&images, &[1], &[Augment::NONE]);
    let mut mirrored = filled(&images, &[1], &[Augment { mirror: true, ..Augment::NONE }]);
    assert_ne!(plain, mirrored);
    mirrored.chunks_exact_mut(PX).for_each(<[f32]>::reverse);
    assert_eq!(plain, mirrored);
}

#[test]
fn images_beyond_the_memory_limit_give_the_same_input() {
    let p = preprocessing(Crop::CenterSquare);
    let all = TrainImages::new(&p, shift(0.1), set()).unwrap();
    let side = PX + 2;
    let some = TrainImages::with_memory(&p, shift(0.1), set(), 2 * 3 * side * side + 5).unwrap();
    let none = TrainImages::with_memory(&p, shift(0.1), set(), 0).unwrap();
    assert_eq!((some.decoded.len() / (3 * side * side), some.encoded.len(), none.encoded.len()), (2, 3, 5));
    let augment: Vec<Augment> = (0..5)
        .map(|i| Augment { mirror: i % 2 == 0, dx: i as f32 / 3.0 - 0.7, dy: 0.9 - i as f32 / 4.0, ..Augment::NONE })
        .collect();
    let rows = [4, 0, 3, 1, 2];
    let expected = filled(&all, &rows, &augment);
    assert_eq!(filled(&some, &rows, &augment), expected);
    assert_eq!(filled(&none, &rows, &augment), expected);
    assert_eq!((all.len(), some.len(), none.len()), (5, 5, 5));
}

#[test]
fn a_bad_image_names_its_row() {
    let mut images = set();
    images[3] = Bytes::from_static(b"no image");
    let p = preprocessing(Crop::CenterSquare);
    let error = TrainImages::new(&p, shift(0.1), &images).unwrap_err();
    assert_eq!(
        (error.kind, error.to_string().as_str()),
        (ErrorKind::Corrupt, "image of training row 3 can't be decoded")
    );
    let lazy = TrainImages::with_memory(&p, shift(0.1), &images, 0).unwrap();
    let mut out = vec![0.0; 3 * PX * PX];
    assert!(lazy.fill(&[3], &[Augment::NONE], &mut out).unwrap_err().to_string().contains("row 3"));
}

#[test]
fn rows_that_are_not_there_and_wrong_lengths_are_refused() {
    let images = TrainImages::new(&preprocessing(Crop::CenterSquare), shift(0.1), set()).unwrap();
    let mut out = vec![0.0; 3 * PX * PX];
    assert!(images.fill(&[5], &[Augment::NONE], &mut out).is_err());
    assert!(images.fill(&[0, 1], &[Augment::NONE; 2], &mut out).is_err());
    assert!(images.fill(&[0], &[], &mut out).is_err());
    assert!(TrainImages::new(&preprocessing(Crop::Stretch), shift(1.5), set()).is_err());
}

#[test]
fn every_shift_is_equally_likely() {
    let canvas = Canvas { crop: Crop::Stretch, px: 16, margin: 2 };
    let mut counts = [0; 5];
    (0..1000).for_each(|i| counts[canvas.offset((i as f32 + 0.5) / 500.0 - 1.0)] += 1);
    assert_eq!(counts, [200; 5]);
    assert_eq!([canvas.offset(-1.0), canvas.offset(0.0), canvas.offset(1.0)], [0, 2, 4]);
}

#[test]
fn a_resized_crop_takes_its_window_out_of_the_image_itself() {
    let p = preprocessing(Crop::Stretch);
    let crop = ResizedCrop { scale: [0.1, 0.3], ratio: [0.5, 2.0] };
    let images = TrainImages::new(&p, Crops { shift: 0.0, resized: Some(crop) }, set()).unwrap();
    let whole = filled(&images, &[0], &[Augment::NONE]);
    let at = |seed| filled(&images, &[0], &[Augment { resized: Some(seed), ..Augment::NONE }]);
    assert_eq!(at(3), at(3));
    assert_ne!(at(3), at(4));
    // The picture brightens to the right: what the window shows of it tells its width.
    let span = |x: &[f32]| x[PX - 1] - x[0];
    let window = resized_window(&crop, 3, 45, 32);
    let expected = window.width / 45.0;
    let found = f64::from(span(&at(3)) / span(&whole));
    assert!((found - expected).abs() < 0.15, "{found} instead of {expected}");
    let mirrored = filled(&images, &[0], &[Augment { resized: Some(3), mirror: true, ..Augment::NONE }]);
    assert!((span(&mirrored) + span(&at(3))).abs() < 1e-6);
}

#[test]
fn colours_change_before_they_are_normalised() {
    use crate::augment::ColourStep::{Brightness, Contrast, Hue, Saturation};
    let p = preprocessing(Crop::CenterSquare);
    let images = TrainImages::new(&p, Crops::NONE, set()).unwrap();
    let with = |colour| filled(&images, &[2], &[Augment { colour, ..Augment::NONE }]);
    let (plain, same) = (with(None), with(Some([Brightness(1.0), Contrast(1.0), Saturation(1.0), Hue(0.0)])));
    let far = plain.iter().zip(&same).filter(|(a, b)| (*a - *b).abs() > 1e-5).count();
    assert_eq!(far, 0, "factors of 1 change nothing");
    let black = with(Some([Brightness(0.0), Contrast(1.0), Saturation(1.0), Hue(0.0)]));
    let zero = -p.mean[0] / p.std[0];
    assert!(black[..PX * PX].iter().all(|v| (v - zero).abs() < 1e-5), "{:?} instead of {zero}", &black[..3]);
}

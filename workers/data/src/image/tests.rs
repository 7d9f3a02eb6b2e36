use bytes::Bytes;
use likeness_contract::settings::{Crop, Preprocessing};

use super::*;
use crate::testing::{fixture, picture, png};

/// Pixels that pillow 13.0.0 reads from the fixtures at (3, 3), (10, 25), (40, 16); see `tests/fixtures/make.py`.
const PILLOW: [(&str, [[u8; 3]; 3]); 5] = [
    ("rgb.jpg", [[49, 39, 190], [72, 170, 155], [220, 116, 103]]),
    ("progressive.jpg", [[49, 38, 194], [72, 170, 157], [220, 117, 102]]),
    ("gray.jpg", [[59, 59, 59], [139, 139, 139], [146, 146, 146]]),
    ("cmyk.jpg", [[49, 38, 191], [70, 170, 155], [220, 116, 104]]),
    ("palette.png", [[54, 38, 188], [54, 182, 164], [199, 116, 118]]),
];

fn pixel(image: &Rgb8, x: u32, y: u32) -> [u8; 3] {
    let at = 3 * (y * image.width + x) as usize;
    image.pixels[at..at + 3].try_into().unwrap()
}

fn near(a: &[u8], b: &[u8], tolerance: u8) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.abs_diff(*b) <= tolerance)
}

fn cutout(crop: Crop, (width, height): (u32, u32), px: usize) -> Cutout {
    Cutout { window: window_of(crop, width, height), width: px, height: px }
}

#[test]
fn jpeg_of_every_kind_decodes_as_in_pillow() {
    for (name, expected) in PILLOW {
        let image = decode_rgb(&fixture(name)).unwrap();
        assert_eq!((image.width, image.height, image.pixels.len()), (45, 32, 3 * 45 * 32), "{name}");
        for ((x, y), expected) in [(3, 3), (10, 25), (40, 16)].into_iter().zip(expected) {
            let found = pixel(&image, x, y);
            assert!(near(&found, &expected, 3), "{name} at {x}, {y}: {found:?} instead of {expected:?}");
        }
    }
}

#[test]
fn png_and_lossless_webp_give_the_very_pixels() {
    for name in ["rgb.png", "lossless.webp"] {
        assert_eq!(decode_rgb(&fixture(name)).unwrap(), picture(45, 32), "{name}");
    }
}

#[test]
fn sixteen_bits_become_eight_and_transparency_lies_over_white() {
    let gray = decode_rgb(&fixture("gray16.png")).unwrap();
    assert!(near(&pixel(&gray, 10, 25), &[139; 3], 1), "{:?}", pixel(&gray, 10, 25));
    let half = decode_rgb(&fixture("alpha.png")).unwrap();
    let expected = pixel(&picture(45, 32), 3, 3).map(|value| ((u32::from(value) * 128 + 255 * 127) / 255) as u8);
    assert!(near(&pixel(&half, 3, 3), &expected, 1), "{:?}", pixel(&half, 3, 3));
}

#[test]
fn what_is_no_image_is_told_apart() {
    assert_eq!(decode_rgb(b""), Err(ImageError::Empty));
    assert_eq!(decode_rgb(b"GIF89a, of which we know nothing"), Err(ImageError::Format));
    assert_eq!(decode_rgb(&[0; 64]), Err(ImageError::Format));
    let huge = vec![0; MAX_IMAGE_BYTES + 1];
    assert_eq!(decode_rgb(&huge), Err(ImageError::TooManyBytes { bytes: MAX_IMAGE_BYTES + 1 }));
}

#[test]
fn an_image_cut_anywhere_is_damaged() {
    for name in ["rgb.jpg", "progressive.jpg", "gray.jpg", "rgb.png", "lossless.webp"] {
        let bytes = fixture(name);
        // The last chunk of a PNG says only that it is over.
        let least = if name.ends_with(".png") { bytes.len() - 12 } else { bytes.len() };
        for length in 16..least {
            assert!(decode_rgb(&bytes[..length]).is_err(), "{name} cut to {length} of {}", bytes.len());
        }
    }
}

#[test]
fn flipped_bits_end_in_pixels_or_an_error() {
    for name in ["rgb.jpg", "progressive.jpg", "cmyk.jpg", "rgb.png", "palette.png", "lossless.webp"] {
        let bytes = fixture(name);
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xFF] {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= flip;
                if let Ok(image) = decode_rgb(&flipped) {
                    assert_eq!(image.pixels.len(), 3 * (image.width * image.height) as usize, "{name} at {at}");
                }
            }
        }
    }
}

#[test]
fn a_header_that_promises_too_many_pixels_is_refused_before_memory_is_taken() {
    let over = |bytes: &[u8], expected: (u64, u64)| match decode_rgb(bytes) {
        Err(ImageError::TooManyPixels { width, height }) => assert_eq!((width, height), expected),
        other => panic!("{other:?}"),
    };
    over(&fixture("bomb.png"), (16_000, 16_000));
    let mut jpeg = fixture("rgb.jpg").to_vec();
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xF0, 0, 0xF0, 0]);
    over(&jpeg, (0xF000, 0xF000));
    let mut webp = fixture("lossless.webp").to_vec();
    let start = webp.windows(4).position(|four| four == b"VP8L").unwrap() + 9;
    webp[start..start + 4].copy_from_slice(&[0xFE, 0xBF, 0xFF, 0x0F]);
    over(&webp, (16_383, 16_383));
}

/// Pillow 13.0.0, `tests/fixtures/make.py`: the first row of R, the first column of G, of the picture at 8 × 8.
#[test]
fn resizing_equals_pillows_bilinear() {
    let image = picture(45, 32);
    let resized = |crop| resize(&image, cutout(crop, (45, 32), 8));
    let (square, stretched) = (resized(Crop::CenterSquare), resized(Crop::Stretch));
    let green = [31, 53, 77, 101, 125, 149, 173, 195];
    for (name, resized, red) in [
        ("square", square, [63, 75, 87, 115, 169, 183, 195, 207]),
        ("stretched", stretched, [49, 64, 81, 115, 173, 191, 208, 223]),
    ] {
        for y in 0..8 {
            for x in 0..8 {
                let found = &resized[3 * (8 * y + x)..][..2];
                assert!(near(found, &[red[x], green[y]], 1), "{name} {x}, {y}: {found:?}");
            }
        }
    }
}

#[test]
fn enlarging_equals_pillows_bilinear() {
    let larger = resize(&picture(6, 5), cutout(Crop::Stretch, (6, 5), 12));
    let red = [40, 41, 42, 44, 45, 47, 48, 50, 51, 53, 54, 55];
    let green = [20, 21, 23, 26, 28, 31, 33, 36, 38, 41, 43, 44];
    for y in 0..12 {
        for x in 0..12 {
            let found = &larger[3 * (12 * y + x)..][..2];
            assert!(near(found, &[red[x], green[y]], 1), "{x}, {y}: {found:?}");
        }
    }
}

#[test]
fn the_loader_writes_normalised_planes() {
    let loader = Loader::new(&Preprocessing::imagenet(8));
    let mut out = vec![0.0; 192];
    loader.load(&png(45, 32), &mut out).unwrap();
    let expected = |byte: f32, mean: f32, std: f32| (byte / 255.0 - mean) / std;
    let near = |found: f32, expected: f32| assert!((found - expected).abs() < 0.02, "{found} instead of {expected}");
    near(out[0], expected(63.0, 0.485, 0.229));
    near(out[7], expected(207.0, 0.485, 0.229));
    near(out[64 + 8], expected(53.0, 0.456, 0.224));
    near(out[128], expected(183.0, 0.406, 0.225));
}

#[test]
fn a_batch_equals_its_images_one_by_one_and_a_bad_one_harms_no_other() {
    let loader = Loader::new(&Preprocessing::imagenet(16));
    let images = [png(45, 32), fixture("rgb.jpg"), Bytes::from_static(b"no image"), png(20, 50)];
    let slices: Vec<&[u8]> = images.iter().map(|bytes| bytes.as_ref()).collect();
    let mut batch = vec![0.0; 4 * loader.input_len()];
    let results = loader.load_batch(&slices, &mut batch);
    assert_eq!(results, [Ok(()), Ok(()), Err(ImageError::Format), Ok(())]);
    for i in [0, 1, 3] {
        let mut one = vec![0.0; loader.input_len()];
        loader.load(slices[i], &mut one).unwrap();
        assert_eq!(one, batch[i * loader.input_len()..(i + 1) * loader.input_len()]);
    }
}

#[test]
fn one_pixel_is_an_image() {
    let loader = Loader::new(&Preprocessing::imagenet(8));
    let mut out = vec![0.0; loader.input_len()];
    loader.load(&png(1, 1), &mut out).unwrap();
    loader.load(&png(1, 40), &mut out).unwrap();
}

#[test]
fn a_check_takes_what_can_be_decoded_and_refuses_the_rest() {
    for name in ["rgb.jpg", "half.jpg", "gray.jpg", "cmyk.jpg", "progressive.jpg", "rgb.png", "lossless.webp"] {
        let bytes = fixture(name);
        let image = decode_rgb(&bytes).unwrap();
        assert_eq!(check(&bytes), Ok((image.width, image.height)), "{name}");
        for length in (0..bytes.len()).step_by(5) {
            assert_eq!(
                check(&bytes[..length]).is_err(),
                decode_rgb(&bytes[..length]).is_err(),
                "{name} cut to {length}"
            );
        }
    }
}

#[test]
fn what_passes_the_check_becomes_an_input() {
    let bytes = fixture("rgb.jpg");
    let loader = Loader::new(&Preprocessing::imagenet(32));
    let mut out = vec![0.0; loader.input_len()];
    for at in 2..bytes.len() {
        for bits in [0x01, 0x80, 0xFF] {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= bits;
            if check(&flipped).is_ok() {
                assert!(loader.load(&flipped, &mut out).is_ok(), "byte {at}, bits {bits:x}");
            }
        }
    }
}

use bytes::Bytes;
use image::ImageEncoder;
use proptest::prelude::*;

use super::*;
use crate::image::{Rgb8, decode_rgb, resize};
use crate::testing::{fixture, picture};

/// A picture as JPEG with colours in full resolution.
fn jpeg(width: u32, height: u32) -> Bytes {
    encoded(&picture(width, height))
}

/// Waves of colour, which stay off 0 and 255 where decoders cut.
fn waves(width: u32, height: u32) -> Bytes {
    let wave = |at: u32, length: f32| 100.0 * (at as f32 / length).sin();
    let pixel = |x, y| [wave(x, 9.0), wave(y, 7.0), wave(x + y, 15.0)].map(|value| (128.0 + value) as u8);
    let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect();
    encoded(&Rgb8 { width, height, pixels })
}

fn encoded(&Rgb8 { width, height, ref pixels }: &Rgb8) -> Bytes {
    let mut bytes = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 90);
    encoder.write_image(pixels, width, height, image::ExtendedColorType::Rgb8).unwrap();
    bytes.into()
}

fn cutout(left: f64, top: f64, (width, height): (f64, f64), out: (usize, usize)) -> Cutout {
    Cutout { window: Window { left, top, width, height }, width: out.0, height: out.1 }
}

fn drawn(bytes: &[u8], cutout: &Cutout) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    Decoder::new().draw(bytes, &Header::parse(bytes)?, cutout, &mut out)?;
    Some(out)
}

/// Largest and mean distance from what the general decoder and a resize of all its pixels give.
fn distance(bytes: &[u8], cutout: &Cutout) -> (u8, f64) {
    let found = drawn(bytes, cutout).unwrap();
    let expected = resize(&decode_rgb(bytes).unwrap(), *cutout);
    assert_eq!(found.len(), expected.len());
    let plane = found.len() / 3;
    let distances = (0..found.len()).map(|i| found[i].abs_diff(expected[3 * (i % plane) + i / plane]));
    let sum: f64 = distances.clone().map(f64::from).sum();
    (distances.max().unwrap(), sum / found.len() as f64)
}

#[test]
fn every_common_kind_is_drawn_as_the_general_decoder_and_a_resize_do() {
    let cutouts = [
        cutout(0.0, 0.0, (45.0, 32.0), (45, 32)),
        cutout(6.0, 0.0, (32.0, 32.0), (16, 16)),
        cutout(0.0, 0.0, (45.0, 32.0), (23, 31)),
        cutout(3.3, 1.7, (30.2, 25.1), (13, 9)),
        cutout(40.0, 30.0, (5.0, 2.0), (20, 20)),
    ];
    for name in ["rgb.jpg", "gray.jpg", "half.jpg", "wide.jpg"] {
        for cutout in &cutouts {
            let (largest, mean) = distance(&fixture(name), cutout);
            // The general decoder's own rounding of colours is 3 off Pillow's.
            assert!(largest <= 4 && mean < 0.6, "{name} {cutout:?}: {largest}, {mean}");
        }
    }
}

const HALF_RED: [u8; 8] = [62, 74, 86, 116, 167, 182, 195, 206];
const HALF_GREEN: [u8; 8] = [31, 53, 77, 101, 125, 149, 173, 194];

/// Pillow 13.0.0: `Image.open("half.jpg").resize((8, 8), BILINEAR, box=(6, 0, 38, 32))`, R of the first row, G of the first column.
#[test]
fn colours_in_half_resolution_are_pillows() {
    let square = drawn(&fixture("half.jpg"), &cutout(6.0, 0.0, (32.0, 32.0), (8, 8))).unwrap();
    let near = |found: u8, expected: u8| assert!(found.abs_diff(expected) <= 1, "{found} instead of {expected}");
    HALF_RED.iter().enumerate().for_each(|(x, red)| near(square[x], *red));
    HALF_GREEN.iter().enumerate().for_each(|(y, green)| near(square[64 + 8 * y], *green));
}

#[test]
fn large_reductions_by_means_stay_near_the_resize_of_all_pixels() {
    let bytes = waves(403, 301);
    for (px, side) in [(150, 8), (37, 4), (18, 2), (9, 1), (5, 1)] {
        let cutout = cutout(51.0, 0.0, (301.0, 301.0), (px, px));
        assert_eq!(8 / reduction(&cutout), side, "{px}");
        let (largest, mean) = distance(&bytes, &cutout);
        assert!(largest <= 5 && mean < 1.5, "{px}: {largest}, {mean}");
    }
}

#[test]
fn one_decoder_draws_image_after_image_as_a_fresh_one() {
    let mut decoder = Decoder::new();
    let mut out = vec![7; 5];
    let images = [(jpeg(60, 50), 10), (fixture("gray.jpg"), 20), (fixture("half.jpg"), 32), (jpeg(60, 50), 48)];
    for (bytes, px) in images {
        let cutout = cutout(2.0, 0.0, (32.0, 32.0), (px, px));
        decoder.draw(&bytes, &Header::parse(&bytes).unwrap(), &cutout, &mut out).unwrap();
        assert_eq!(Some(&out), drawn(&bytes, &cutout).as_ref());
    }
}

#[test]
fn bytes_do_not_depend_on_the_instructions() {
    for (bytes, px) in
        [(jpeg(203, 150), 64), (jpeg(203, 150), 4), (jpeg(203, 150), 2), (jpeg(203, 150), 1), (fixture("half.jpg"), 16)]
    {
        let (cutout, header) = (cutout(0.0, 0.0, (32.0, 32.0), (px, px)), Header::parse(&bytes).unwrap());
        let mut decoder = Decoder::new();
        decoder.prepare(&header, &cutout).unwrap();
        decoder.scan.set(&bytes[header.scan..]).unwrap();
        let mut out = vec![0; 3 * px * px];
        instructions::portable(&mut decoder, &header, &mut out).unwrap();
        assert_eq!(Some(out), drawn(&bytes, &cutout));
    }
}

#[test]
fn other_kinds_and_what_is_cut_are_left_to_the_general_decoder() {
    for name in ["progressive.jpg", "cmyk.jpg", "rgb.png"] {
        assert!(Header::parse(&fixture(name)).is_none(), "{name}");
    }
    for name in ["rgb.jpg", "wide.jpg"] {
        let bytes = fixture(name);
        for length in 0..bytes.len() {
            assert_eq!(drawn(&bytes[..length], &cutout(6.0, 0.0, (32.0, 32.0), (8, 8))), None, "{name} {length}");
        }
    }
}

#[test]
fn flipped_bits_end_in_a_picture_or_nothing() {
    for name in ["rgb.jpg", "half.jpg", "wide.jpg", "gray.jpg"] {
        let bytes = fixture(name);
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xFF] {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= flip;
                let small = Header::parse(&flipped).filter(|header| header.width * header.height < 1 << 20);
                if let Some(header) = small {
                    let size = (header.width as f64, header.height as f64);
                    let mut out = Vec::new();
                    let done = Decoder::new().draw(&flipped, &header, &cutout(0.0, 0.0, size, (9, 8)), &mut out);
                    assert!(done.is_none() || out.len() == 3 * 72, "{name} at {at}");
                }
            }
        }
    }
}

#[test]
fn an_image_with_the_code_of_the_one_before_is_checked_alike() {
    let decide = |decoder: &mut Decoder, bytes: &[u8]| decoder.check(bytes, &Header::parse(bytes)?);
    for name in ["rgb.jpg", "half.jpg", "wide.jpg", "gray.jpg"] {
        let bytes = fixture(name);
        let scan = Header::parse(&bytes).unwrap().scan;
        let mut warm = Decoder::new();
        (0..2).for_each(|_| decide(&mut warm, &bytes).unwrap());
        let mut refused = 0;
        for (at, flip) in (scan..bytes.len()).flat_map(|at| [0x01, 0x10, 0x80, 0xFF].map(|flip| (at, flip))) {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= flip;
            let alone = decide(&mut Decoder::new(), &flipped);
            assert_eq!(decide(&mut warm, &flipped), alone, "{name} at {at}");
            refused += usize::from(alone.is_none());
        }
        assert!(refused > 0, "{name}: no flipped bit was noticed");
    }
}

#[test]
fn an_image_that_ends_before_its_end_is_not_whole_whatever_follows() {
    let bytes = fixture("rgb.jpg");
    let header = Header::parse(&bytes).unwrap();
    let check = |bytes: &[u8]| Decoder::new().check(bytes, &header).is_some();
    assert!(check(&bytes) && check(&[&bytes[..], b"and more"].concat()));
    assert!(!check(&bytes[..bytes.len() - 2]));
    assert!(!check(&[&bytes[..], &[0xFF, 0xDA, 1, 2]].concat()), "the start of a scan that has no end");
    assert!(check(&[&bytes[..], &[0xFF, 0xDA, 1, 0xFF, 0xD9]].concat()));
}

/// The transform by its definition (ITU-T T.81, A.3.3).
fn by_definition(block: &[i16; 64], said: &[u8; 64]) -> [[f64; 8]; 8] {
    let c = |k: usize| if k == 0 { 0.5f64.sqrt() } else { 1.0 };
    let wave = |x: usize, k: usize| ((2 * x + 1) as f64 * k as f64 * std::f64::consts::PI / 16.0).cos() * c(k);
    let term = |x, y, at: usize| f64::from(block[at]) * f64::from(said[at]) * wave(x, at % 8) * wave(y, at / 8) / 4.0;
    std::array::from_fn(|x| std::array::from_fn(|y| 128.0 + (0..64).map(|at| term(x, y, at)).sum::<f64>()))
}

fn mean_of(samples: &[[f64; 8]; 8], part: usize, (x, y): (usize, usize)) -> f64 {
    let inside = |n: usize| n * part..(n + 1) * part;
    inside(x).flat_map(|x| inside(y).map(move |y| samples[x][y])).sum::<f64>() / (part * part) as f64
}

proptest! {
    #[test]
    fn blocks_become_samples_and_means_by_definition(
        block in proptest::array::uniform32(-40i16..40),
        first in -200i16..200,
        said in 1u8..9,
    ) {
        let mut all = [0; 64];
        all[..32].copy_from_slice(&block);
        all[0] = first;
        let said = [said; 64];
        let exact = by_definition(&all, &said);
        let check = |x, y, part, found: u8| {
            let expected = mean_of(&exact, part, (x, y)).clamp(0.0, 255.0);
            prop_assert!((f64::from(found) - expected).abs() < 0.51, "{found} instead of {expected} at {x}, {y} of {part}");
            Ok(())
        };
        let mut factors = Factors::new();
        let positions = |side: usize| (0..side * side).map(move |i| (i / side, i % side));
        factors.set(&said, 8);
        let whole = idct::whole(&all, &factors, idct::transpose);
        positions(8).try_for_each(|(x, y)| check(x, y, 1, whole[x][y]))?;
        factors.set(&said, 4);
        let fours = idct::means::<4>(&all, &factors, idct::transpose);
        positions(4).try_for_each(|(x, y)| check(x, y, 2, fours[x][y]))?;
        factors.set(&said, 2);
        let twos = idct::means::<2>(&all, &factors, idct::transpose);
        positions(2).try_for_each(|(x, y)| check(x, y, 4, twos[x][y]))?;
        prop_assert!((f64::from(factors.flat(first)) - mean_of(&exact, 8, (0, 0)).clamp(0.0, 255.0)).abs() < 0.51);
    }

    #[test]
    fn weights_sum_to_one_and_lie_inside(
        length in 1usize..400,
        share in 0.0f64..1.0,
        kept in 0.01f64..1.0,
        out in 1usize..70,
        sampling in 1usize..3,
        averaged in 0u32..4,
    ) {
        let kept = kept * length as f64;
        let from = share * (length as f64 - kept);
        let mut filter = Filter::new();
        filter.set(Axis { length, from, kept, out, sampling, averaged: 1 << averaged });
        prop_assert_eq!(filter.starts.len() * filter.taps, filter.weights.len());
        prop_assert!(filter.range().end <= length.div_ceil(sampling).div_ceil(1 << averaged));
        for weights in filter.weights.chunks_exact(filter.taps) {
            prop_assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn a_code_that_is_none_is_refused() {
    let mut code = entropy_code([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(Table::new().set(&code).is_some());
    code.counts[1] = 5;
    assert!(Table::new().set(&code).is_none(), "five codes of two bits");
}

fn entropy_code(counts: [u8; 16]) -> header::Code {
    header::Code { counts, symbols: std::array::from_fn(|i| i as u8) }
}

#[test]
fn restart_markers_cut_the_scan_and_must_be_in_order() {
    let mut scan = Scan::default();
    scan.set(&[1, 0xFF, 0, 2, 0xFF, 0xD0, 3, 0xFF, 0xFF, 0xD1, 0xFF, 0xD9, 9]).unwrap();
    assert!(scan.interval(2).is_some() && scan.interval(3).is_none());
    assert!(scan.set(&[1, 0xFF, 0xD1, 2, 0xFF, 0xD9]).is_none());
    assert!(scan.set(&[1, 2, 3]).is_none(), "no marker at the end");
}

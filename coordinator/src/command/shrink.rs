//! Images as they travel in a request: at most 512 px and 256 KiB, whatever file the user has.

use std::io::Cursor;
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use image::{DynamicImage, ImageFormat, ImageReader, Limits};
use likeness_contract::search::{MAX_QUERY_IMAGE_BYTES, MAX_QUERY_IMAGE_PX};

use crate::command::bounded::read_at_most;
use crate::command::exit::{Failure, Outcome};

/// Largest file that is read at all.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Largest side that is decoded; a phone's panorama fits.
const MAX_SIDE_PX: u32 = 30_000;
/// Most memory for decoding.
const MAX_DECODED_BYTES: u64 = 1 << 30;
/// Qualities that are tried until the file is small enough.
const QUALITIES: [u8; 5] = [92, 85, 75, 60, 40];

/// Reads a file and shrinks it where it is too large.
pub fn read(file: &Path) -> Outcome<Vec<u8>> {
    let bad = |error: String| Failure::usage(format!("can't use image `{}`: {error}", file.display()));
    let opened = std::fs::File::open(file).map_err(|error| bad(error.to_string()))?;
    let bytes = read_at_most(opened, MAX_FILE_BYTES).map_err(bad)?;
    shrink(bytes).map_err(bad)
}

/// Decodes with limits.
pub fn decode(bytes: &[u8]) -> Result<DynamicImage, String> {
    reader(bytes)?.decode().map_err(|error| error.to_string())
}

fn reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, String> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
    let known = [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP];
    if !reader.format().is_some_and(|format| known.contains(&format)) {
        return Err("it is neither JPEG nor PNG nor WebP".into());
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE_PX);
    limits.max_image_height = Some(MAX_SIDE_PX);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    Ok(reader)
}

/// The bytes of a file as they travel: as they are where they are small enough.
pub fn shrink(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    // Decoded in any case: a damaged file is refused here and not by a searcher.
    let image = decode(&bytes)?;
    let side = image.width().max(image.height());
    if side <= MAX_QUERY_IMAGE_PX && bytes.len() <= MAX_QUERY_IMAGE_BYTES {
        return Ok(bytes);
    }
    let image = if side > MAX_QUERY_IMAGE_PX {
        image.resize(MAX_QUERY_IMAGE_PX, MAX_QUERY_IMAGE_PX, FilterType::Triangle)
    } else {
        image
    };
    for quality in QUALITIES {
        let encoded = encode(&image, quality)?;
        if encoded.len() <= MAX_QUERY_IMAGE_BYTES {
            return Ok(encoded);
        }
    }
    Err(format!("it can't be brought below {MAX_QUERY_IMAGE_BYTES} bytes"))
}

fn encode(image: &DynamicImage, quality: u8) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let rgb = image.to_rgb8();
    JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(&rgb).map_err(|error| error.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    /// An image that compresses badly.
    fn noise(width: u32, height: u32) -> Vec<u8> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let image = RgbImage::from_fn(width, height, |_, _| Rgb([next(), next(), next()]));
        let mut bytes = Vec::new();
        DynamicImage::from(image).write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
        bytes
    }

    #[test]
    fn a_small_image_travels_as_it_is() {
        let bytes = noise(64, 64);
        assert_eq!(shrink(bytes.clone()).unwrap(), bytes);
    }

    #[test]
    fn a_large_one_is_brought_within_both_limits() {
        for (width, height) in [(1500, 900), (600, 100), (512, 512)] {
            let bytes = noise(width, height);
            let small = shrink(bytes).unwrap();
            let image = decode(&small).unwrap();
            assert!(small.len() <= MAX_QUERY_IMAGE_BYTES, "{} bytes", small.len());
            assert!(image.width().max(image.height()) <= MAX_QUERY_IMAGE_PX);
            let ratio = f64::from(image.width()) / f64::from(image.height());
            assert!((ratio / (f64::from(width) / f64::from(height)) - 1.0).abs() < 0.02, "{ratio}");
        }
    }

    #[test]
    fn what_is_no_image_is_a_usage_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("me.jpg");
        std::fs::write(&file, b"hello").unwrap();
        let failure = read(&file).unwrap_err();
        assert_eq!(failure.exit as u8, 64);
        assert!(failure.to_string().contains("me.jpg"), "{failure}");
        let mut cut = noise(64, 64);
        cut.truncate(500);
        assert!(shrink(cut).is_err());
        assert!(read(&folder.path().join("none.png")).unwrap_err().to_string().contains("none.png"));
    }
}

//! Pictures of found items, small enough for a report.

use std::collections::BTreeMap;
use std::sync::Arc;

use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use image::{RgbImage, imageops};
use likeness_contract::documents::DatasetManifest;
use likeness_data::{Part, decode_rgb};

use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Longest side of a thumbnail, pixels.
const SIDE: u32 = 96;
/// JPEG quality of a thumbnail.
const QUALITY: u8 = 82;

/// Thumbnails of the images at the given (part, row) places of a dataset; an image that can't be read has none.
pub async fn thumbnails(
    cx: &TaskContext,
    dataset: &DatasetManifest,
    places: impl IntoIterator<Item = (u32, u32)>,
) -> Result<BTreeMap<(u32, u32), Vec<u8>>, TaskError> {
    let mut by_part: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (part, row) in places {
        by_part.entry(part).or_default().push(row);
    }
    let mut made = BTreeMap::new();
    for (number, rows) in by_part {
        let Some(entry) = dataset.parts.get(number as usize) else { continue };
        let part = cx.cache.part(entry, dataset.vocabulary.len()).await?;
        let shrunk =
            tokio::task::spawn_blocking(move || shrink_rows(&part, &rows)).await.map_err(TaskError::transient)?;
        made.extend(shrunk.into_iter().map(|(row, jpeg)| ((number, row), jpeg)));
    }
    Ok(made)
}

fn shrink_rows(part: &Arc<Part>, rows: &[u32]) -> Vec<(u32, Vec<u8>)> {
    let known = rows.iter().filter(|row| (**row as usize) < part.rows());
    known.filter_map(|&row| Some((row, shrink(part.image(row as usize))?))).collect()
}

/// An encoded image → JPEG of at most [`SIDE`] pixels a side.
fn shrink(bytes: &[u8]) -> Option<Vec<u8>> {
    let decoded = decode_rgb(bytes).ok()?;
    let image = RgbImage::from_raw(decoded.width, decoded.height, decoded.pixels)?;
    let scale = f64::from(SIDE) / f64::from(decoded.width.max(decoded.height));
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).clamp(1, SIDE);
    let small = match scale < 1.0 {
        true => imageops::resize(&image, side(decoded.width), side(decoded.height), FilterType::Triangle),
        false => image,
    };
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&small).ok()?;
    Some(jpeg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn pictures_shrink_to_the_side_and_keep_their_shape() {
        for ((width, height), expected) in [((192, 96), (96, 48)), ((40, 30), (40, 30)), ((2000, 1), (96, 1))] {
            let small = decode_rgb(&shrink(&png(width, height)).unwrap()).unwrap();
            assert_eq!((small.width, small.height), expected);
        }
    }

    #[test]
    fn what_is_no_image_has_no_picture() {
        assert_eq!(shrink(b"no image"), None);
    }
}

//! What the tests of several modules share.

use std::path::PathBuf;

use bytes::Bytes;

use crate::error::Error;
use crate::image::Rgb8;

/// A file of `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> Bytes {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read(path).unwrap().into()
}

/// The picture of `tests/fixtures/make.py`: smooth with an edge in it.
pub(crate) fn picture(width: u32, height: u32) -> Rgb8 {
    let pixel = |x: u32, y: u32| {
        let edge = if x > 20 { 60 } else { 0 };
        [(40 + 3 * x + edge) as u8, (20 + 6 * y) as u8, (200 - 2 * x as i32 - y as i32) as u8]
    };
    let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect();
    Rgb8 { width, height, pixels }
}

/// [`picture`] as PNG.
pub(crate) fn png(width: u32, height: u32) -> Bytes {
    let Rgb8 { width, height, pixels } = picture(width, height);
    let mut bytes = Vec::new();
    let image = image::RgbImage::from_raw(width, height, pixels).unwrap();
    image.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png).unwrap();
    bytes.into()
}

/// The error with its causes, as users see it.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

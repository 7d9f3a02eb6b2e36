//! libjpeg-turbo as the general JPEG decoder, for those who have cmake and nasm. Most images never come here: see
//! [`crate::jpeg`].

use turbojpeg::{Decompressor, Image, PixelFormat, Result};

use super::MAX_SCANS;

/// All pixels as R G B. The caller has checked the size; a warning of the library is an error.
pub(super) fn decode(bytes: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    let mut decompressor = Decompressor::new()?;
    decompressor.set_scan_limit(MAX_SCANS as u32)?;
    let mut pixels = vec![0; 3 * width * height];
    let output = Image { pixels: &mut pixels[..], width, pitch: 3 * width, height, format: PixelFormat::RGB };
    decompressor.decompress(bytes, output)?;
    Ok(pixels)
}

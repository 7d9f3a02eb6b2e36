//! Encoded images to pixels, pixels to the model's input.
//!
//! JPEG by zune-jpeg (grey and colour by libjpeg-turbo with the feature `turbojpeg`), PNG and WebP by `image`; what becomes a network's input goes through [`crate::jpeg`] first, which makes
//! the small picture of a common JPEG several times as fast. Hard limits on bytes and pixels are checked before memory is taken, so a
//! hostile file costs at most [`MAX_PIXELS`] × 3 bytes and its decoder's own buffers. A truncated image is an
//! error, not a half-grey picture. Grey and CMYK become RGB, 16 bits become 8, transparency is laid over white; EXIF
//! orientation and colour profiles are ignored.
//!
//! Resizing is bilinear with the filter's support scaled by the reduction (antialiased), as Pillow and
//! torchvision do by default; numbers agree with Pillow's to ±1 of 255.

use std::cell::RefCell;
use std::io::Cursor;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::{DynamicImage, ImageDecoder, ImageFormat, Limits};
use likeness_contract::settings::{Crop, Preprocessing};
use rayon::prelude::*;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::guard::guarded;
use crate::jpeg::{Decoder, Header};

/// Most bytes of an encoded image.
pub const MAX_IMAGE_BYTES: usize = 32 << 20;
/// Most pixels of an image: a large camera's photograph passes.
pub const MAX_PIXELS: u64 = 50_000_000;
/// Longest side in pixels.
pub const MAX_SIDE: u32 = 16_384;
/// A progressive JPEG with more scans was made to cost time.
const MAX_SCANS: usize = 64;

/// Why bytes are no usable image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No byte.
    #[error("empty file")]
    Empty,
    /// Over [`MAX_IMAGE_BYTES`].
    #[error("{bytes} bytes are over the limit of {MAX_IMAGE_BYTES}")]
    TooManyBytes {
        /// Its size.
        bytes: usize,
    },
    /// Over [`MAX_PIXELS`] or [`MAX_SIDE`].
    #[error("{width}×{height} pixels are over the limit of {MAX_PIXELS} pixels or {MAX_SIDE} a side")]
    TooManyPixels {
        /// Width that the header claims.
        width: u64,
        /// Height that the header claims.
        height: u64,
    },
    /// None of the formats.
    #[error("neither JPEG nor PNG nor WebP")]
    Format,
    /// A format that we know, damaged or cut short.
    #[error("damaged {format}: {detail}")]
    Damaged {
        /// `JPEG`, `PNG`, `WebP`.
        format: &'static str,
        /// What the decoder says.
        detail: String,
    },
}

/// A decoded image: rows from the top, three bytes R G B per pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb8 {
    /// Width in pixels, at least 1.
    pub width: u32,
    /// Height in pixels, at least 1.
    pub height: u32,
    /// `3 · width · height` bytes.
    pub pixels: Vec<u8>,
}

/// Decodes a JPEG, PNG or WebP in full.
pub fn decode_rgb(bytes: &[u8]) -> Result<Rgb8, ImageError> {
    check_bytes(bytes)?;
    let format = image::guess_format(bytes).map_err(|_| ImageError::Format)?;
    let panicked = |detail| ImageError::Damaged { format: format.to_mime_type(), detail };
    guarded(|| decode(bytes, format)).map_err(panicked)?
}

/// Reads an image to its end, whose width and height it returns: a check that it can be decoded. A common JPEG costs a third
/// of its decoding, all else is decoded.
pub fn check(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    check_bytes(bytes)?;
    let checked = WORKBENCH.with_borrow_mut(|bench| read_through(&mut bench.decoder, bytes));
    if let Some(size) = checked {
        return Ok(size);
    }
    decode_rgb(bytes).map(|image| (image.width, image.height))
}

/// The fast way for common JPEGs; `None` for all else, and for what is damaged.
fn read_through(decoder: &mut Decoder, bytes: &[u8]) -> Option<(u32, u32)> {
    let header = Header::parse(bytes)?;
    check_size(header.width as u64, header.height as u64).ok()?;
    let checked = guarded(|| decoder.check(bytes, &header));
    if checked.is_err() {
        *decoder = Decoder::new();
    }
    checked.ok().flatten().map(|()| (header.width as u32, header.height as u32))
}

fn decode(bytes: &[u8], format: ImageFormat) -> Result<Rgb8, ImageError> {
    match format {
        ImageFormat::Jpeg => decode_jpeg(bytes),
        ImageFormat::Png => {
            let decoder = image::codecs::png::PngDecoder::with_limits(Cursor::new(bytes), limits());
            decode_with("PNG", decoder)
        }
        ImageFormat::WebP => decode_with("WebP", image::codecs::webp::WebPDecoder::new(Cursor::new(bytes))),
        _ => Err(ImageError::Format),
    }
}

fn check_bytes(bytes: &[u8]) -> Result<(), ImageError> {
    match bytes.len() {
        0 => Err(ImageError::Empty),
        bytes if bytes > MAX_IMAGE_BYTES => Err(ImageError::TooManyBytes { bytes }),
        _ => Ok(()),
    }
}

fn check_size(width: u64, height: u64) -> Result<(), ImageError> {
    let side = u64::from(MAX_SIDE);
    if width > side || height > side || width * height > MAX_PIXELS {
        return Err(ImageError::TooManyPixels { width, height });
    }
    Ok(())
}

fn decode_jpeg(bytes: &[u8]) -> Result<Rgb8, ImageError> {
    let damaged = |detail: String| ImageError::Damaged { format: "JPEG", detail };
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_max_scans(MAX_SCANS)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    if !has_end(bytes) {
        return Err(damaged("cut short: no end-of-image marker".into()));
    }
    decoder.decode_headers().map_err(|e| damaged(e.to_string()))?;
    let info = decoder.info().ok_or_else(|| damaged("no header".into()))?;
    check_size(u64::from(info.width), u64::from(info.height))?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    #[cfg(feature = "turbojpeg")]
    if info.components < 4 {
        let pixels = turbo::decode(bytes, width as usize, height as usize).map_err(|e| damaged(e.to_string()))?;
        return Ok(Rgb8 { width, height, pixels });
    }
    let pixels = decoder.decode().map_err(|e| damaged(e.to_string()))?;
    if pixels.len() != 3 * width as usize * height as usize {
        return Err(damaged(format!("{} bytes of pixels for {width}×{height}", pixels.len())));
    }
    Ok(Rgb8 { width, height, pixels })
}

/// Whether an end-of-image marker follows the last start of a scan. In a scan itself `FF` is never followed by
/// `D9` or `DA`; a thumbnail inside the headers brings both, but lies before the image's own scans.
pub(crate) fn has_end(bytes: &[u8]) -> bool {
    let scan = memchr::memmem::rfind(bytes, &[0xFF, 0xDA]).unwrap_or(0);
    memchr::memmem::find(&bytes[scan..], &[0xFF, 0xD9]).is_some()
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    // 16-bit RGBA of the largest image.
    limits.max_alloc = Some(8 * MAX_PIXELS);
    limits
}

fn decode_with<D: ImageDecoder>(
    format: &'static str,
    decoder: Result<D, image::ImageError>,
) -> Result<Rgb8, ImageError> {
    let damaged = |e: image::ImageError| ImageError::Damaged { format, detail: e.to_string() };
    let mut decoder = decoder.map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    check_size(u64::from(width), u64::from(height))?;
    decoder.set_limits(limits()).map_err(damaged)?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    let pixels = if decoded.color().has_alpha() { over_white(&decoded) } else { decoded.into_rgb8().into_raw() };
    Ok(Rgb8 { width, height, pixels })
}

fn over_white(decoded: &DynamicImage) -> Vec<u8> {
    let rgba = decoded.to_rgba8();
    let over = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    rgba.pixels().flat_map(|pixel| [0, 1, 2].map(|channel| over(pixel[channel], pixel[3]))).collect()
}

/// A rectangle of an image in pixels; may lie between pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

/// The part of an image that becomes the square input.
pub(crate) fn window_of(crop: Crop, width: u32, height: u32) -> Window {
    match crop {
        Crop::Stretch => Window { left: 0.0, top: 0.0, width: width.into(), height: height.into() },
        Crop::CenterSquare => {
            let side = width.min(height);
            let (left, top) = ((width - side) / 2, (height - side) / 2);
            Window { left: left.into(), top: top.into(), width: side.into(), height: side.into() }
        }
    }
}

/// A part of an image and the size that it gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cutout {
    pub window: Window,
    /// In pixels of the result.
    pub width: usize,
    pub height: usize,
}

/// A window of an image as `width × height` RGB bytes. Pixels outside the window take part at its edges.
pub(crate) fn resize(image: &Rgb8, Cutout { window, width, height }: Cutout) -> Vec<u8> {
    let source = TypedImageRef::<U8x3>::from_buffer(image.width, image.height, &image.pixels)
        .expect("an Rgb8 has three bytes per pixel");
    let mut pixels = vec![0; 3 * width * height];
    let mut target = TypedImage::<U8x3>::from_buffer(width as u32, height as u32, &mut pixels)
        .expect("three bytes per pixel were allocated");
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).crop(
        window.left,
        window.top,
        window.width,
        window.height,
    );
    // `resize_typed` and not `resize`, which would compile the filters for every kind of pixel.
    Resizer::new().resize_typed(&source, &mut target, &options).expect("the window lies inside the image");
    pixels
}

/// A thread's memory, used again for every image.
struct Workbench {
    decoder: Decoder,
    /// Planes of R, G, B.
    planes: Vec<u8>,
}

impl Workbench {
    fn new() -> Self {
        Self { decoder: Decoder::new(), planes: Vec::new() }
    }
}

/// Larger images do not leave their memory behind in every thread.
const KEPT_PIXELS: usize = 4_000_000;

thread_local! {
    static WORKBENCH: RefCell<Workbench> = RefCell::new(Workbench::new());
}

/// Decodes an image, cuts out what `choose` says for its width and height, resizes it, and hands the planes of R, G and B to
/// `take` with what else `choose` said.
pub(crate) fn cut_out<C, T>(
    bytes: &[u8],
    choose: impl Fn(u32, u32) -> (Cutout, C),
    take: impl FnOnce(C, &[u8]) -> T,
) -> Result<T, ImageError> {
    check_bytes(bytes)?;
    let drawn = WORKBENCH.with_borrow_mut(|bench| match draw(bench, bytes, &choose) {
        Some(chosen) => Ok(take(chosen, &bench.planes)),
        None => Err(take),
    });
    let take = match drawn {
        Ok(taken) => return Ok(taken),
        Err(take) => take,
    };
    let image = decode_rgb(bytes)?;
    let (cutout, chosen) = choose(image.width, image.height);
    Ok(take(chosen, &split(&resize(&image, cutout))))
}

/// The fast way for common JPEGs; `None` for all else.
fn draw<C>(bench: &mut Workbench, bytes: &[u8], choose: impl Fn(u32, u32) -> (Cutout, C)) -> Option<C> {
    let header = Header::parse(bytes)?;
    check_size(header.width as u64, header.height as u64).ok()?;
    let (cutout, chosen) = choose(header.width as u32, header.height as u32);
    let Workbench { decoder, planes } = bench;
    let drawn = guarded(|| decoder.draw(bytes, &header, &cutout, planes));
    if drawn.is_err() || header.width * header.height > KEPT_PIXELS {
        *decoder = Decoder::new();
    }
    drawn.ok().flatten().map(|()| chosen)
}

/// R G B R G B … into planes.
fn split(pixels: &[u8]) -> Vec<u8> {
    let plane = |channel: usize| pixels.chunks_exact(3).map(move |pixel| pixel[channel]);
    (0..3).flat_map(plane).collect()
}

/// Bytes 0–255 to the numbers that a network sees, per channel.
#[derive(Debug, Clone)]
pub(crate) struct Normaliser {
    scale: [f32; 3],
    shift: [f32; 3],
}

impl Normaliser {
    pub(crate) fn new(p: &Preprocessing) -> Self {
        let scale = std::array::from_fn(|channel| 1.0 / (255.0 * p.std[channel]));
        Self { scale, shift: std::array::from_fn(|channel| -p.mean[channel] / p.std[channel]) }
    }

    /// Numbers of a channel from 0 to 1, in place.
    pub(crate) fn normalise(&self, channel: usize, values: &mut [f32]) {
        let (scale, shift) = (255.0 * self.scale[channel], self.shift[channel]);
        values.iter_mut().for_each(|value| *value = *value * scale + shift);
    }

    /// Bytes of a channel.
    pub(crate) fn write(&self, channel: usize, bytes: &[u8], out: &mut [f32]) {
        let (scale, shift) = (self.scale[channel], self.shift[channel]);
        out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = f32::from(*byte) * scale + shift);
    }
}

/// Makes the `(3, px, px)` input of a model from encoded images; the same for training without augmentation,
/// embedding and queries.
#[derive(Debug, Clone)]
pub struct Loader {
    crop: Crop,
    px: u32,
    normaliser: Normaliser,
}

impl Loader {
    /// A loader for a model's preprocessing.
    pub fn new(p: &Preprocessing) -> Loader {
        Loader { crop: p.crop, px: p.input_px, normaliser: Normaliser::new(p) }
    }

    /// Length of one input: 3 · px².
    pub fn input_len(&self) -> usize {
        3 * self.px as usize * self.px as usize
    }

    /// Decodes, crops, resizes and normalises one image into `out`: 3 · px² numbers, channel by channel.
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn load(&self, bytes: &[u8], out: &mut [f32]) -> Result<(), ImageError> {
        assert_eq!(out.len(), self.input_len(), "out must hold one image");
        let px = self.px as usize;
        let square =
            |width, height| (Cutout { window: window_of(self.crop, width, height), width: px, height: px }, ());
        cut_out(bytes, square, |(), planes| {
            for (channel, (plane, out)) in planes.chunks_exact(px * px).zip(out.chunks_exact_mut(px * px)).enumerate() {
                self.normaliser.write(channel, plane, out);
            }
        })
    }

    /// [`Loader::load`] of many images on all cores; `out` holds them one after the other. What stands in the
    /// place of a bad image is not defined.
    ///
    /// # Panics
    /// When `out` has another length than images × 3 · px².
    pub fn load_batch(&self, images: &[&[u8]], out: &mut [f32]) -> Vec<Result<(), ImageError>> {
        assert_eq!(out.len(), images.len() * self.input_len(), "out must hold one input per image");
        images
            .par_iter()
            .zip(out.par_chunks_exact_mut(self.input_len()))
            .map(|(bytes, out)| self.load(bytes, out))
            .collect()
    }
}

#[cfg(feature = "turbojpeg")]
mod turbo;

#[cfg(test)]
mod tests;

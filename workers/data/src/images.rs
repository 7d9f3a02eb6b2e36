//! A training set in memory: every image decoded once and kept as bytes at the input's scale.
//!
//! What is kept is the input square with a margin around it, as wide as the random crop may shift: from the image itself where
//! it goes on beyond the square, else its edge repeated. So a crop never changes the scale, and without
//! augmentation the input is the very one that [`crate::Loader`] makes.
//!
//! Images beyond the memory limit keep their encoded bytes and are decoded at every use. So do all images where a random
//! resized crop is asked for: it takes its part out of the image as it came, which no square at the input's scale has.

use likeness_contract::settings::{Crop, Preprocessing, ResizedCrop};
use rayon::prelude::*;

use crate::augment::{Augment, change_colours, resized_window};
use crate::error::{Error, Result};
use crate::image::{self, Cutout, ImageError, Normaliser, Window};

/// Memory for decoded images unless told otherwise: CelebA at 64 px takes 2.8 GB.
pub const DEFAULT_MEMORY_BYTES: usize = 8 << 30;
/// Images that are decoded at once while loading.
const LOAD_BATCH: usize = 512;

/// How training crops its images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crops {
    /// Largest shift as a share of the side.
    pub shift: f32,
    /// A random part of the image in any size, instead of a shift.
    pub resized: Option<ResizedCrop>,
}

impl Crops {
    /// The input as it is when the model serves.
    pub const NONE: Self = Self { shift: 0.0, resized: None };
}

/// The images of a training set, by row.
#[derive(Debug)]
pub struct TrainImages {
    canvas: Canvas,
    resized: Option<ResizedCrop>,
    normaliser: Normaliser,
    /// Canvases of the first images, one after the other.
    decoded: Vec<u8>,
    /// The others as they came.
    encoded: Vec<Box<[u8]>>,
    memory_bytes: usize,
}

/// Geometry of what is kept of an image.
#[derive(Debug, Clone, Copy)]
struct Canvas {
    crop: Crop,
    px: usize,
    /// Margin on each side, pixels.
    margin: usize,
}

impl TrainImages {
    /// Decodes the images in order, ready for `crops`. An image that can't be decoded is an error naming its row: ingest has decoded every one before.
    pub fn new<I>(p: &Preprocessing, crops: Crops, images: I) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]> + Sync,
    {
        Self::with_memory(p, crops, images, DEFAULT_MEMORY_BYTES)
    }

    /// [`TrainImages::new`] with at most `memory_bytes` of decoded images.
    pub fn with_memory<I>(p: &Preprocessing, crops: Crops, images: I, memory_bytes: usize) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]> + Sync,
    {
        let Crops { shift, resized } = crops;
        if !(0.0..=1.0).contains(&shift) {
            return Err(Error::invalid(format!("random crop {shift} is not within 0–1")));
        }
        let px = p.input_px as usize;
        let margin = (shift * px as f32) as usize;
        let memory_bytes = if resized.is_some() { 0 } else { memory_bytes };
        let canvas = Canvas { crop: p.crop, px, margin };
        let normaliser = Normaliser::new(p);
        let mut all = Self { canvas, resized, normaliser, decoded: Vec::new(), encoded: Vec::new(), memory_bytes };
        let mut images = images.into_iter();
        loop {
            let some: Vec<I::Item> = images.by_ref().take(LOAD_BATCH).collect();
            if some.is_empty() {
                return Ok(all);
            }
            all.extend(&some)?;
        }
    }

    /// Adds images behind those already there.
    pub fn extend<T: AsRef<[u8]> + Sync>(&mut self, images: &[T]) -> Result<()> {
        let first = self.len();
        let size = self.canvas.bytes();
        let room = if self.encoded.is_empty() { (self.memory_bytes - self.decoded.len()) / size } else { 0 };
        let (now, later) = images.split_at(room.min(images.len()));
        let start = self.decoded.len();
        self.decoded.resize(start + now.len() * size, 0);
        now.par_iter()
            .zip(self.decoded[start..].par_chunks_exact_mut(size))
            .enumerate()
            .try_for_each(|(i, (bytes, canvas))| self.canvas.draw(bytes.as_ref(), canvas).map_err(|e| (first + i, e)))
            .map_err(|(row, error)| undecodable(row, error))?;
        self.encoded.extend(later.iter().map(|bytes| bytes.as_ref().into()));
        Ok(())
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.decoded.len() / self.canvas.bytes() + self.encoded.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the inputs of `rows`, `(B, 3, px, px)`, each augmented, on all cores.
    pub fn fill(&self, rows: &[u32], augment: &[Augment], out: &mut [f32]) -> Result<()> {
        let input = 3 * self.canvas.px * self.canvas.px;
        if augment.len() != rows.len() || out.len() != rows.len() * input {
            let (augment, out) = (augment.len(), out.len());
            return Err(Error::invalid(format!("{} rows, {augment} augmentations, {out} numbers", rows.len())));
        }
        rows.par_iter()
            .zip(augment)
            .zip(out.par_chunks_exact_mut(input))
            .try_for_each(|((row, augment), out)| self.fill_one(*row as usize, *augment, out))
    }

    fn fill_one(&self, row: usize, augment: Augment, out: &mut [f32]) -> Result<()> {
        let size = self.canvas.bytes();
        let decoded = self.decoded.len() / size;
        if row < decoded {
            self.canvas.read(&self.decoded[row * size..(row + 1) * size], augment, &self.normaliser, out);
            return Ok(());
        }
        let bytes = self.encoded.get(row - decoded);
        let bytes = bytes.ok_or_else(|| Error::invalid(format!("row {row} of {} images", self.len())))?;
        if let (Some(crop), Some(seed)) = (&self.resized, augment.resized) {
            let drawn = self.fill_resized(bytes, crop, seed, augment, out);
            return drawn.map_err(|error| undecodable(row, error));
        }
        let mut canvas = vec![0; size];
        self.canvas.draw(bytes, &mut canvas).map_err(|error| undecodable(row, error))?;
        self.canvas.read(&canvas, augment, &self.normaliser, out);
        Ok(())
    }

    /// A part of the image itself, resized to the input.
    fn fill_resized(
        &self,
        bytes: &[u8],
        crop: &ResizedCrop,
        seed: u64,
        augment: Augment,
        out: &mut [f32],
    ) -> std::result::Result<(), ImageError> {
        let px = self.canvas.px;
        let choose = |width, height| {
            let window = resized_window(crop, seed, width, height);
            (Cutout { window, width: px, height: px }, ())
        };
        image::cut_out(bytes, choose, |(), planes| {
            let lines = planes.chunks_exact(px * px).map(|plane| plane.chunks_exact(px));
            write(lines, augment, &self.normaliser, out);
        })
    }
}

fn undecodable(row: usize, error: ImageError) -> Error {
    Error::corrupt(format!("image of training row {row} can't be decoded")).because(error)
}

impl Canvas {
    fn side(self) -> usize {
        self.px + 2 * self.margin
    }

    fn bytes(self) -> usize {
        3 * self.side() * self.side()
    }

    /// Decodes and resizes an image into a canvas: planes of R, G and B.
    fn draw(self, bytes: &[u8], canvas: &mut [u8]) -> std::result::Result<(), ImageError> {
        let choose = |width, height| {
            let window = image::window_of(self.crop, width, height);
            let (left, right) = self.real_margins(window.left, window.width, width);
            let (top, bottom) = self.real_margins(window.top, window.height, height);
            let wider = self.widen(window, (width, height), (left, right), (top, bottom));
            let cutout = Cutout { window: wider, width: left + self.px + right, height: top + self.px + bottom };
            (cutout, (cutout, (self.margin - left, self.margin - top)))
        };
        image::cut_out(bytes, choose, |(cutout, at), planes| {
            let (size, side) = (cutout.width * cutout.height, self.side());
            for (plane, canvas) in planes.chunks_exact(size).zip(canvas.chunks_exact_mut(side * side)) {
                self.repeat_edges(plane, (cutout.width, cutout.height), at, canvas);
            }
        })
    }

    /// Whole output pixels that the image itself offers before and behind the window, at most the margin.
    fn real_margins(self, start: f64, length: f64, image: u32) -> (usize, usize) {
        let scale = length / self.px as f64;
        let behind = f64::from(image) - start - length;
        let pixels = |source: f64| ((source / scale) as usize).min(self.margin);
        (pixels(start), pixels(behind))
    }

    fn widen(self, window: Window, image: (u32, u32), x: (usize, usize), y: (usize, usize)) -> Window {
        let widen = |start: f64, length: f64, (before, behind): (usize, usize), limit: u32| {
            let scale = length / self.px as f64;
            let start = (start - before as f64 * scale).max(0.0);
            (start, ((before + self.px + behind) as f64 * scale).min(f64::from(limit) - start))
        };
        let (left, width) = widen(window.left, window.width, x, image.0);
        let (top, height) = widen(window.top, window.height, y, image.1);
        Window { left, top, width, height }
    }

    /// Lays a plane into the canvas's at `at` and repeats its edges around it.
    fn repeat_edges(self, plane: &[u8], (width, height): (usize, usize), at: (usize, usize), canvas: &mut [u8]) {
        for (y, line) in canvas.chunks_exact_mut(self.side()).enumerate() {
            let source = &plane[y.saturating_sub(at.1).min(height - 1) * width..][..width];
            line[..at.0].fill(source[0]);
            line[at.0..at.0 + width].copy_from_slice(source);
            line[at.0 + width..].fill(source[width - 1]);
        }
    }

    /// Shift in pixels from a share of the largest one: each of the 2 · margin + 1 shifts equally often.
    fn offset(self, share: f32) -> usize {
        let steps = (2 * self.margin + 1) as f32;
        (((share + 1.0) / 2.0 * steps) as usize).min(2 * self.margin)
    }

    /// The augmented window of a canvas as numbers, channel by channel.
    fn read(self, canvas: &[u8], augment: Augment, normaliser: &Normaliser, out: &mut [f32]) {
        let (left, top) = (self.offset(augment.dx), self.offset(augment.dy));
        let (side, px) = (self.side(), self.px);
        let planes = canvas.chunks_exact(side * side);
        let lines = planes.map(|plane| plane.chunks_exact(side).skip(top).take(px).map(|line| &line[left..left + px]));
        write(lines, augment, normaliser, out);
    }
}

/// The lines of each channel as numbers, mirrored and with other colours where `augment` says so.
fn write<'a, L: Iterator<Item = &'a [u8]>>(
    channels: impl Iterator<Item = L>,
    augment: Augment,
    normaliser: &Normaliser,
    out: &mut [f32],
) {
    let plane = out.len() / 3;
    for (channel, (lines, out)) in channels.zip(out.chunks_exact_mut(plane)).enumerate() {
        let mut rest = out;
        for line in lines {
            let (out, others) = rest.split_at_mut(line.len());
            match augment.colour {
                None => normaliser.write(channel, line, out),
                Some(_) => out.iter_mut().zip(line).for_each(|(out, byte)| *out = f32::from(*byte) / 255.0),
            }
            if augment.mirror {
                out.reverse();
            }
            rest = others;
        }
    }
    if let Some(steps) = augment.colour {
        change_colours(&steps, out);
        out.chunks_exact_mut(plane).enumerate().for_each(|(channel, out)| normaliser.normalise(channel, out));
    }
}

#[cfg(test)]
mod tests;

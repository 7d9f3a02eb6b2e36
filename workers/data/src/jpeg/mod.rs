//! A decoder of common JPEGs straight to a small picture: of the image it makes only what the resized part needs.
//!
//! Whoever shrinks a photograph to a network's input throws away most of what a general decoder made: blocks outside the
//! crop, colours at full resolution, their conversion to RGB. Here the blocks' samples stay planes of Y, Cb and Cr, every
//! plane is resized from its own resolution, and only the resized pixels become RGB. All of it is linear, so the result
//! is that of decoding in full, interpolating colours as libjpeg does and resizing as Pillow does: on photographs 0.2 of 255
//! apart on average and within 1 for 99.6 % of the bytes; more where colours beyond 0–255 would have been cut before resizing.
//!
//! From eight times the input's size on, blocks are decoded to means of 2 × 2 (16 ×: 4 × 4, 32 ×: 8 × 8) samples, and a mean gets
//! the weight of its samples. That smooths a little more: by less than 3 % of a wave's height. Training and serving go the same
//! way, so they see the same.
//!
//! Common means: baseline (sequential, Huffman, 8 bits), grey or Y Cb Cr, colours in full or half resolution, one scan. For
//! anything else, and for anything that looks damaged, this module says `None`: the general decoder of
//! [`crate::image`] has the last word, its checks and its errors. Bytes do not depend on the instruction set.

mod entropy;
mod filter;
mod header;
mod idct;
mod instructions;
mod resample;

use entropy::{Bits, Scan, Table, ZIGZAG};
use filter::{Axis, Filter};
pub(crate) use header::Header;
use idct::{Factors, Transpose};
use resample::{Plane, Rows};

use crate::image::{Cutout, Window, has_end};

/// The marker EOI.
const END_OF_IMAGE: u8 = 0xD9;

/// Reduction that is left to the resizing's own filter when blocks are decoded to means.
const LEFT_TO_FILTER: f64 = 4.0;

/// Decodes one image after the other in the same memory.
#[derive(Debug)]
pub(crate) struct Decoder {
    scan: Scan,
    dc: [Table; 2],
    ac: [Table; 2],
    components: [ComponentWork; 3],
    rows: [Rows; 3],
    lines: [Vec<f32>; 3],
}

/// How one component's blocks become samples, and the samples pixels.
#[derive(Debug)]
struct ComponentWork {
    factors: Factors,
    /// Samples a block's side becomes: 8, or 4, 2, 1 means.
    side: usize,
    across: Filter,
    down: Filter,
    /// Blocks that are needed.
    columns: std::ops::Range<usize>,
    lines: std::ops::Range<usize>,
    plane: Plane,
}

impl Decoder {
    pub fn new() -> Self {
        let component = || ComponentWork {
            factors: Factors::new(),
            side: 8,
            across: Filter::new(),
            down: Filter::new(),
            columns: 0..0,
            lines: 0..0,
            plane: Plane::default(),
        };
        Self {
            scan: Scan::default(),
            dc: std::array::from_fn(|_| Table::new()),
            ac: std::array::from_fn(|_| Table::new()),
            components: std::array::from_fn(|_| component()),
            rows: Default::default(),
            lines: Default::default(),
        }
    }

    /// Draws a part of the image that `header` begins into `out`: planes of R, G and B. `None` when it is damaged.
    pub fn draw(&mut self, bytes: &[u8], header: &Header, cutout: &Cutout, out: &mut Vec<u8>) -> Option<()> {
        self.prepare(header, cutout)?;
        self.scan.set(bytes.get(header.scan..)?)?;
        // Every pixel is written below.
        out.resize(3 * cutout.width * cutout.height, 0);
        instructions::draw(self, header, out)
    }

    /// Reads the whole image that `header` begins and makes nothing of it. `None` when it is damaged or cut short: what makes samples and
    /// pixels of the blocks' coefficients can't fail, so an image that passes can be drawn.
    pub fn check(&mut self, bytes: &[u8], header: &Header) -> Option<()> {
        self.set_tables(header)?;
        let quantised = |component: &header::Component| header.quantisation.get(component.quantisation)?.as_ref();
        header.components[..header.count].iter().try_for_each(|component| quantised(component).map(drop))?;
        self.ac.iter_mut().for_each(Table::prepare_leaps);
        let (marker, rest) = self.scan.set(bytes.get(header.scan..)?)?;
        // The usual end is told without going through the file again.
        let ends = marker == END_OF_IMAGE && memchr::memmem::find(rest, &[0xFF, 0xDA]).is_none();
        if !ends && !has_end(bytes) {
            return None;
        }
        instructions::read_through(self, header)
    }

    fn set_tables(&mut self, header: &Header) -> Option<()> {
        let codes = header.dc.iter().zip(&mut self.dc).chain(header.ac.iter().zip(&mut self.ac));
        for (code, table) in codes {
            code.as_ref().map_or(Some(()), |code| table.set(code))?;
        }
        for component in &header.components[..header.count] {
            let (dc, ac) = (header.dc.get(component.dc)?, header.ac.get(component.ac)?);
            if dc.is_none() || ac.is_none() {
                return None;
            }
        }
        Some(())
    }

    /// Tables and geometry.
    fn prepare(&mut self, header: &Header, cutout: &Cutout) -> Option<()> {
        self.set_tables(header)?;
        let reduced = reduction(cutout);
        for (component, work) in header.components[..header.count].iter().zip(&mut self.components) {
            let first = &header.components[0];
            let sampling = (first.across / component.across, first.down / component.down);
            work.prepare(header.quantisation.get(component.quantisation)?.as_ref()?, header, cutout, sampling, reduced);
        }
        Some(())
    }

    /// Reads all blocks.
    #[inline(always)]
    fn read_through(&self, header: &Header) -> Option<()> {
        let first = &header.components[0];
        let units = header.width.div_ceil(8 * first.across) * header.height.div_ceil(8 * first.down);
        let restart = if header.restart == 0 { usize::MAX } else { header.restart };
        let mut bits = self.scan.interval(0)?;
        for unit in 0..units {
            if unit > 0 && unit % restart == 0 {
                bits = self.scan.interval(unit / restart)?;
            }
            for component in &header.components[..header.count] {
                let (dc, ac) = (&self.dc[component.dc], &self.ac[component.ac]);
                for _ in 0..component.across * component.down {
                    bits.skip(dc, ac)?;
                }
            }
        }
        Some(())
    }

    /// Reads blocks in the file's order, down to the last that is needed, and resizes their samples.
    #[inline(always)]
    fn run(&mut self, header: &Header, out: &mut [u8], transpose: impl Transpose) -> Option<()> {
        self.decode(header, &transpose)?;
        for (rows, work) in self.rows.iter_mut().zip(&self.components).take(header.count) {
            rows.set(&work.plane, &work.across, &transpose);
        }
        self.paint(header, out);
        Some(())
    }

    #[inline(always)]
    fn decode(&mut self, header: &Header, transpose: impl Transpose) -> Option<()> {
        let first = &header.components[0];
        let units_across = header.width.div_ceil(8 * first.across);
        let components = &header.components[..header.count];
        let needed = components.iter().zip(&self.components).map(|(c, work)| work.lines.end.div_ceil(c.down)).max()?;
        let restart = if header.restart == 0 { usize::MAX } else { header.restart };
        let mut bits = self.scan.interval(0)?;
        let mut predictions = [0; 3];
        for unit in 0..needed * units_across {
            if unit > 0 && unit % restart == 0 {
                bits = self.scan.interval(unit / restart)?;
                predictions = [0; 3];
            }
            let (unit_x, unit_y) = (unit % units_across, unit / units_across);
            for (i, component) in components.iter().enumerate() {
                let (dc, ac) = (&self.dc[component.dc], &self.ac[component.ac]);
                for y in unit_y * component.down..(unit_y + 1) * component.down {
                    for x in unit_x * component.across..(unit_x + 1) * component.across {
                        let work = &mut self.components[i];
                        work.block(&mut bits, dc, ac, &mut predictions[i], (x, y), &transpose)?;
                    }
                }
            }
        }
        Some(())
    }

    #[inline(always)]
    fn paint(&mut self, header: &Header, out: &mut [u8]) {
        let (width, height) = (self.components[0].across.starts.len(), self.components[0].down.starts.len());
        self.lines.iter_mut().for_each(|line| line.resize(self.rows[0].stride(), 0.0));
        let [luma, blue, red] = &mut self.lines;
        let (r, rest) = out.split_at_mut(width * height);
        let (g, b) = rest.split_at_mut(width * height);
        for y in 0..height {
            let here = y * width..(y + 1) * width;
            let (r, g, b) = (&mut r[here.clone()], &mut g[here.clone()], &mut b[here]);
            self.rows[0].down(&self.components[0].down, y, luma);
            if header.count == 1 {
                resample::grey(luma, r);
                g.copy_from_slice(r);
                b.copy_from_slice(r);
                continue;
            }
            self.rows[1].down(&self.components[1].down, y, blue);
            self.rows[2].down(&self.components[2].down, y, red);
            resample::colours([luma, blue, red], [r, g, b]);
        }
    }
}

/// Samples per side of a mean: 1, 2, 4 or 8, as long as the filter keeps [`LEFT_TO_FILTER`] to do.
fn reduction(cutout: &Cutout) -> usize {
    let Cutout { window: Window { width, height, .. }, width: across, height: down } = cutout;
    let scale = (width / *across as f64).min(height / *down as f64);
    [8, 4, 2].into_iter().find(|by| scale >= LEFT_TO_FILTER * *by as f64).unwrap_or(1)
}

impl ComponentWork {
    fn prepare(
        &mut self,
        quantisation: &[u8; 64],
        header: &Header,
        cutout: &Cutout,
        sampling: (usize, usize),
        reduced: usize,
    ) {
        // Colours in half resolution are means of 2 × 2 already.
        let averaged = if sampling == (2, 2) { (reduced / 2).max(1) } else { reduced };
        self.side = 8 / averaged;
        let mut by_row = [0; 64];
        ZIGZAG.iter().zip(quantisation).for_each(|(at, value)| by_row[usize::from(*at)] = *value);
        self.factors.set(&by_row, self.side);
        let Cutout { window, width, height } = cutout;
        let (left, top) = (window.left, window.top);
        let across =
            Axis { length: header.width, from: left, kept: window.width, out: *width, sampling: sampling.0, averaged };
        let down = Axis {
            length: header.height,
            from: top,
            kept: window.height,
            out: *height,
            sampling: sampling.1,
            averaged,
        };
        self.across.set(across);
        self.down.set(down);
        let side = self.side;
        let blocks = |samples: std::ops::Range<usize>| samples.start / side..samples.end.div_ceil(side);
        (self.columns, self.lines) = (blocks(self.across.range()), blocks(self.down.range()));
        let at = (self.columns.start * side, self.lines.start * side);
        self.plane.set(at, (self.columns.len() * side, self.lines.len() * side));
    }

    /// Reads a block; makes samples of it where they are needed.
    #[inline(always)]
    fn block(
        &mut self,
        bits: &mut Bits<'_>,
        dc: &Table,
        ac: &Table,
        prediction: &mut i32,
        (x, y): (usize, usize),
        transpose: impl Transpose,
    ) -> Option<()> {
        let mut block = [0; 64];
        let used = bits.block(dc, ac, prediction, &mut block)?;
        if !self.columns.contains(&x) || !self.lines.contains(&y) {
            return Some(());
        }
        let at = (x - self.columns.start) * self.side * self.plane.stride + (y - self.lines.start) * self.side;
        match self.side {
            _ if used == 1 => self.fill(at, self.factors.flat(block[0])),
            8 => self.write(at, idct::whole(&block, &self.factors, transpose)),
            4 => self.write(at, idct::means::<4>(&block, &self.factors, transpose)),
            2 => self.write(at, idct::means::<2>(&block, &self.factors, transpose)),
            _ => self.fill(at, self.factors.flat(block[0])),
        }
        Some(())
    }

    #[inline(always)]
    fn write<const SIDE: usize>(&mut self, at: usize, columns: [[u8; SIDE]; SIDE]) {
        for (x, column) in columns.iter().enumerate() {
            self.plane.samples[at + x * self.plane.stride..][..SIDE].copy_from_slice(column);
        }
    }

    #[inline(always)]
    fn fill(&mut self, at: usize, value: u8) {
        for x in 0..self.side {
            self.plane.samples[at + x * self.plane.stride..][..self.side].fill(value);
        }
    }
}

#[cfg(test)]
mod tests;

//! Windows of a tensor as the rows of a matrix.
//!
//! One object serves the convolution forward (all taps of a window), its gradient at stride 1 (the same taps, turned
//! round) and at any other stride (for each residue of the position, the taps that meet it).

use std::ops::Range;

use super::vector::Simd;
use crate::nhwc::Dims;

/// `taps` neighbours in a line of pixels, the first of them `(y, x)` from the window's origin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) y: isize,
    pub(super) x: isize,
    pub(super) taps: usize,
}

/// What a window reads, in order: lines of adjacent pixels, all channels of each.
#[derive(Clone, Debug)]
pub(super) struct Gather {
    lines: Vec<Line>,
    channels: usize,
    /// Pixels from one origin to the next.
    step: usize,
    /// Values of a row.
    depth: usize,
    /// What all lines together span, from the origin.
    reach: (Range<isize>, Range<isize>),
}

impl Gather {
    pub(super) fn new(lines: Vec<Line>, channels: usize, step: usize) -> Self {
        let depth = lines.iter().map(|line| line.taps).sum::<usize>() * channels;
        let span = |start: fn(&Line) -> isize, end: fn(&Line) -> isize| {
            lines.iter().map(start).min().unwrap_or(0)..lines.iter().map(end).max().unwrap_or(0)
        };
        let reach = (span(|l| l.y, |l| l.y + 1), span(|l| l.x, |l| l.x + l.taps as isize));
        Self { lines, channels, step, depth, reach }
    }

    /// Values of a row.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Whether the rows of a grid are the tensor's own pixels, so that there is nothing to gather.
    pub(super) fn is_identity(&self, dims: Dims, grid: (usize, usize)) -> bool {
        matches!(self.lines[..], [Line { y: 0, x: 0, taps: 1 }]) && self.step == 1 && grid == (dims.h, dims.w)
    }

    /// Writes columns `from..to` of the rows of origins `first..first + count` in a grid of `grid` (height, width) a
    /// picture, to rows `ld` apart.
    ///
    /// # Safety
    /// The processor has `I`. `x` holds a tensor of sizes `dims`, `rows` holds `count` rows, the origins exist.
    pub(super) unsafe fn rows<I: Simd>(
        &self,
        x: (*const f32, Dims),
        grid: (usize, usize),
        origins: (usize, usize),
        columns: (usize, usize),
        rows: (*mut f32, usize),
    ) {
        // SAFETY: the caller's.
        unsafe {
            I::run(
                #[inline(always)]
                || self.every_row::<I>(x, grid, origins, columns, rows),
            )
        }
    }

    /// # Safety
    /// As [`Self::rows`].
    #[inline(always)]
    unsafe fn every_row<I: Simd>(
        &self,
        (x, dims): (*const f32, Dims),
        grid: (usize, usize),
        (first, count): (usize, usize),
        (from, to): (usize, usize),
        (rows, ld): (*mut f32, usize),
    ) {
        let mut at = Origin::new(first, grid);
        for row in 0..count {
            // SAFETY: the caller's; the origin's picture is one of the tensor's.
            unsafe {
                let picture = x.add(at.picture * dims.h * dims.w * dims.c);
                self.row::<I>(picture, dims, (at.y * self.step, at.x * self.step), (from, to), rows.add(row * ld));
            }
            at.advance(grid);
        }
    }

    /// Whether the window at `(y, x)` reads no padding.
    #[inline(always)]
    fn inside(&self, dims: Dims, (y, x): (usize, usize)) -> bool {
        let within = |at: usize, reach: &Range<isize>, side: usize| {
            at as isize + reach.start >= 0 && at as isize + reach.end <= side as isize
        };
        within(y, &self.reach.0, dims.h) && within(x, &self.reach.1, dims.w)
    }

    /// The row of a window without padding.
    ///
    /// # Safety
    /// As [`Self::rows`], and the window lies inside.
    #[inline(always)]
    unsafe fn whole_row<I: Simd>(&self, picture: *const f32, dims: Dims, (y, x): (usize, usize), row: *mut f32) {
        let mut row = row;
        for line in &self.lines {
            let pixel = (y as isize + line.y) * dims.w as isize + x as isize + line.x;
            let len = line.taps * self.channels;
            // SAFETY: the caller's.
            unsafe {
                copy::<I>(picture.offset(pixel * self.channels as isize), row, len);
                row = row.add(len);
            }
        }
    }

    /// # Safety
    /// As [`Self::rows`].
    #[inline(always)]
    unsafe fn row<I: Simd>(
        &self,
        picture: *const f32,
        dims: Dims,
        (y, x): (usize, usize),
        (from, to): (usize, usize),
        row: *mut f32,
    ) {
        let c = self.channels;
        let mut start = 0;
        if (from, to) == (0, self.depth) && self.inside(dims, (y, x)) {
            // SAFETY: all lines lie inside the picture, and the row holds them all.
            return unsafe { self.whole_row::<I>(picture, dims, (y, x), row) };
        }
        for line in &self.lines {
            let len = line.taps * c;
            let (low, high) = (start.max(from), (start + len).min(to));
            let (y, x) = (y.wrapping_add_signed(line.y), x as isize + line.x);
            // Of the line's values those from `inside` to `outside` are pixels, the others padding.
            let inside = start + ((-x).max(0) as usize).min(line.taps) * c;
            let outside = start + ((dims.w as isize - x).max(0) as usize).min(line.taps) * c;
            let (inside, outside) = if y < dims.h { (inside, outside) } else { (start, start) };
            if low < high {
                let (inside, outside) = (inside.clamp(low, high), outside.clamp(low, high));
                let source = (y as isize * dims.w as isize + x) * c as isize + (inside - start) as isize;
                // SAFETY: `low..high` lies in `from..to`; values from `inside` to `outside` lie in the picture.
                unsafe {
                    zero::<I>(row.add(low - from), inside.max(low) - low);
                    if outside > inside {
                        copy::<I>(picture.offset(source), row.add(inside - from), outside - inside);
                    }
                    let end = outside.max(inside);
                    zero::<I>(row.add(end - from), high - end);
                }
            }
            start += len;
        }
    }
}

/// Position in a row of pictures.
pub(super) struct Origin {
    pub(super) picture: usize,
    pub(super) y: usize,
    pub(super) x: usize,
}

impl Origin {
    pub(super) fn new(index: usize, (h, w): (usize, usize)) -> Self {
        Self { picture: index / (h * w), y: index / w % h, x: index % w }
    }

    pub(super) fn advance(&mut self, (h, w): (usize, usize)) {
        self.x += 1;
        if self.x == w {
            self.x = 0;
            self.y += 1;
        }
        if self.y == h {
            self.y = 0;
            self.picture += 1;
        }
    }
}

/// # Safety
/// The processor has `I`; both hold `len` values.
#[inline(always)]
pub(super) unsafe fn copy<I: Simd>(from: *const f32, to: *mut f32, len: usize) {
    let mut i = 0;
    // SAFETY: every access ends at `len` or before.
    unsafe {
        while i + I::LANES <= len {
            I::store(to.add(i), I::load(from.add(i)));
            i += I::LANES;
        }
        if i < len && len >= I::LANES {
            let last = len - I::LANES;
            I::store(to.add(last), I::load(from.add(last)));
        } else if i < len {
            I::store_first(to.add(i), len - i, I::load_first(from.add(i), len - i));
        }
    }
}

/// # Safety
/// The processor has `I`; `to` holds `len` values.
#[inline(always)]
unsafe fn zero<I: Simd>(to: *mut f32, len: usize) {
    let mut i = 0;
    // SAFETY: every access ends at `len` or before.
    unsafe {
        while i + I::LANES <= len {
            I::store(to.add(i), I::zero());
            i += I::LANES;
        }
        if i < len {
            I::store_first(to.add(i), len - i, I::zero());
        }
    }
}

/// `to += from`
///
/// # Safety
/// The processor has `I`; both hold `len` values.
#[inline(always)]
pub(super) unsafe fn add<I: Simd>(from: *const f32, to: *mut f32, len: usize) {
    let mut i = 0;
    // SAFETY: every access ends at `len` or before.
    unsafe {
        while i + I::LANES <= len {
            I::store(to.add(i), I::add(I::load(to.add(i)), I::load(from.add(i))));
            i += I::LANES;
        }
        if i < len {
            let sum = I::add(I::load_first(to.add(i), len - i), I::load_first(from.add(i), len - i));
            I::store_first(to.add(i), len - i, sum);
        }
    }
}

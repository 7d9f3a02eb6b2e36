//! Huffman-coded data to the coefficients of blocks (ITU-T T.81, annex F.2).

use super::header::Code;

/// Bits that one look-up decodes; most codes with their value fit.
const LOOK_UP_BITS: u32 = 10;
/// More bytes than one block can take: 64 × (16 + 15) bits. They follow the data, so that a reader that ran over its end is
/// found out after the block.
const PADDING: usize = 256;

/// Position in a block, row by row, of the coefficients in the order in which a file has them.
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// The symbols of no value: the rest of the block is zeros, and 16 zeros.
const END: u8 = 0x00;
const ZEROS: u8 = 0xF0;

/// What the next bits mean: a code alone, or a code and the value behind it.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    value: i16,
    /// Of the code: run of zeros and size of the value.
    symbol: u8,
    /// Bits to consume; 0 for a code longer than the look-up.
    length: u8,
    /// Whether `value` is there and `length` counts its bits.
    whole: bool,
}

/// Bits that decide about a [`Leap`]: of photographs they hold two coefficients on average.
const LEAP_BITS: u32 = 12;

/// How to go over the coefficients that the next bits begin, as many as these bits tell.
#[derive(Debug, Clone, Copy, Default)]
struct Leap {
    /// Bits to consume, at most `LEAP_BITS` + 15; 0 where a code is longer than the look-up, or none.
    bits: u8,
    /// Places that they take in the block.
    coefficients: u8,
    /// Whether the block ends behind them.
    ends: bool,
}

/// A Huffman code made for decoding.
#[derive(Debug)]
pub(super) struct Table {
    code: Option<Code>,
    /// Whether an image before had the same code.
    shared: bool,
    entries: Vec<Entry>,
    /// By the next bits, of a code of coefficients; empty until it is worth it.
    leaps: Vec<Leap>,
    /// For each length, one past the largest code, left-aligned in 16 bits.
    limits: [u32; 17],
    /// For each length, what to add to a code to find its symbol.
    offsets: [i32; 17],
}

impl Table {
    pub fn new() -> Self {
        let entries = vec![Entry::default(); 1 << LOOK_UP_BITS];
        Self { code: None, shared: false, entries, leaps: Vec::new(), limits: [0; 17], offsets: [0; 17] }
    }

    /// Becomes the table of `code`, unless it is already: the files of one data set mostly share theirs.
    /// `None` when the lengths make no code.
    pub fn set(&mut self, code: &Code) -> Option<()> {
        self.shared = self.code.as_ref() == Some(code);
        if self.shared {
            return Some(());
        }
        self.code = None;
        self.leaps.clear();
        self.entries.fill(Entry::default());
        let (mut next, mut symbol) = (0u32, 0usize);
        for length in 1..=16 {
            let count = usize::from(code.counts[length - 1]);
            self.offsets[length] = symbol as i32 - next as i32;
            for value in &code.symbols[symbol..symbol + count] {
                self.enter(next, length as u32, *value)?;
                next += 1;
            }
            symbol += count;
            self.limits[length] = next << (16 - length);
            if next > 1 << length {
                return None;
            }
            next <<= 1;
        }
        self.code = Some(*code);
        Some(())
    }

    /// Fills the places of the look-up that begin with a code.
    fn enter(&mut self, code: u32, length: u32, symbol: u8) -> Option<()> {
        let Some(free) = LOOK_UP_BITS.checked_sub(length) else { return Some(()) };
        let first = (code << free) as usize;
        for (rest, entry) in self.entries.get_mut(first..first + (1 << free))?.iter_mut().enumerate() {
            *entry = Entry { value: 0, symbol, length: length as u8, whole: false };
            let size = u32::from(symbol & 15);
            if size > 0 && size <= free {
                let value = extended(rest as u32 >> (free - size), size) as i16;
                *entry = Entry { value, symbol, length: (length + size) as u8, whole: true };
            }
        }
        Some(())
    }

    /// Makes the leaps of a code that images share: a single one is read sooner without them.
    pub fn prepare_leaps(&mut self) {
        if self.shared && self.leaps.is_empty() {
            self.leaps = (0..1 << LEAP_BITS).map(|bits| self.leap(bits)).collect();
        }
    }

    fn leap(&self, next: u32) -> Leap {
        let (mut used, mut coefficients) = (0, 0);
        while used < LEAP_BITS {
            let rest = (next << used) & ((1 << LEAP_BITS) - 1);
            let Entry { symbol, length, whole, .. } = self.entries[(rest >> (LEAP_BITS - LOOK_UP_BITS)) as usize];
            let (run, size) = (symbol >> 4, u32::from(symbol & 15));
            let code = if whole { u32::from(length) - size } else { length.into() };
            let is_coefficient = size > 0 || symbol == ZEROS;
            if code == 0 || used + code > LEAP_BITS || !(is_coefficient || symbol == END) {
                break;
            }
            used += code + size;
            if symbol == END {
                return Leap { bits: used as u8, coefficients, ends: true };
            }
            coefficients += run + 1;
        }
        Leap { bits: used as u8, coefficients, ends: false }
    }

    /// A code longer than the look-up: its length and symbol.
    #[cold]
    fn long(&self, next: u32) -> Option<(u32, u8)> {
        let code = self.code.as_ref()?;
        let length = (LOOK_UP_BITS as usize + 1..=16).find(|length| next < self.limits[*length])?;
        let symbol = (next >> (16 - length)) as i32 + self.offsets[length];
        Some((length as u32, *code.symbols.get(symbol as usize)?))
    }
}

/// Figure F.12: `size` bits to a signed value.
fn extended(bits: u32, size: u32) -> i32 {
    let half = 1i32 << (size - 1);
    let value = bits as i32;
    if value < half { value - 2 * half + 1 } else { value }
}

/// A scan's data without its stuffed bytes, cut at the restart markers.
#[derive(Debug, Default)]
pub(super) struct Scan {
    bytes: Vec<u8>,
    /// Where each interval ends.
    ends: Vec<usize>,
}

impl Scan {
    /// Returns the marker at its end and what follows. `None` when the data ends without one, or restart markers are out of
    /// order.
    pub fn set<'a>(&mut self, mut data: &'a [u8]) -> Option<(u8, &'a [u8])> {
        self.bytes.clear();
        self.ends.clear();
        let end = loop {
            let plain = memchr::memchr(0xFF, data)?;
            self.bytes.extend_from_slice(&data[..plain]);
            let behind = data[plain + 1..].iter().position(|byte| *byte != 0xFF)?;
            let marker = data[plain + 1 + behind];
            data = &data[plain + behind + 2..];
            match marker {
                0 => self.bytes.push(0xFF),
                0xD0..=0xD7 if self.ends.len() % 8 == usize::from(marker & 7) => self.ends.push(self.bytes.len()),
                0xD0..=0xD7 => return None,
                other => break other,
            }
        };
        self.ends.push(self.bytes.len());
        self.bytes.resize(self.bytes.len() + PADDING, 0);
        Some((end, data))
    }

    /// The bits of an interval.
    pub fn interval(&self, number: usize) -> Option<Bits<'_>> {
        let from = if number == 0 { 0 } else { *self.ends.get(number - 1)? };
        let end = *self.ends.get(number)?;
        Some(Bits { bytes: &self.bytes[from..], end: end - from, at: 0, buffer: 0, count: 0 })
    }
}

/// Reads bits, highest first.
#[derive(Debug)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    end: usize,
    /// The next byte for the buffer.
    at: usize,
    /// Left-aligned.
    buffer: u64,
    /// At most so many of it are taken from the bytes.
    count: u32,
}

impl Bits<'_> {
    /// At least 56 bits; zeros beyond the data.
    #[inline(always)]
    fn refill(&mut self) -> Option<()> {
        let next = self.bytes.get(self.at..)?.first_chunk::<8>()?;
        self.buffer |= u64::from_be_bytes(*next) >> self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
        Some(())
    }

    #[inline(always)]
    fn peek(&self, bits: u32) -> u32 {
        (self.buffer >> (64 - bits)) as u32
    }

    #[inline(always)]
    fn consume(&mut self, bits: u32) {
        self.buffer <<= bits;
        self.count -= bits;
    }

    #[inline(always)]
    fn value(&mut self, size: u32) -> i32 {
        let bits = self.peek(size);
        self.consume(size);
        extended(bits, size)
    }

    /// Whether more was read than there is.
    fn is_over(&self) -> bool {
        8 * self.at > 8 * self.end + self.count as usize
    }

    /// A symbol, and its value where the look-up holds it; needs 16 bits.
    #[inline(always)]
    fn symbol(&mut self, table: &Table) -> Option<(u8, Option<i16>)> {
        let entry = table.entries[self.peek(LOOK_UP_BITS) as usize];
        if entry.length == 0 {
            let (length, symbol) = table.long(self.peek(16))?;
            self.consume(length);
            return Some((symbol, None));
        }
        self.consume(u32::from(entry.length));
        Some((entry.symbol, entry.whole.then_some(entry.value)))
    }

    /// Goes over a block; fails where [`Bits::block`] would.
    #[inline(always)]
    pub fn skip(&mut self, dc: &Table, ac: &Table) -> Option<()> {
        self.refill()?;
        match self.symbol(dc)? {
            (_, Some(_)) | (0, None) => {}
            (size @ 1..=11, None) => self.consume(u32::from(size)),
            _ => return None,
        }
        let mut at = 1;
        while at < 64 {
            if self.count < 32 {
                self.refill()?;
            }
            if let Some(Leap { bits, coefficients, ends }) = ac.leaps.get(self.peek(LEAP_BITS) as usize).copied() {
                let behind = at + usize::from(coefficients);
                // At the last place a block ends without saying so, and what follows is of the next one.
                if bits > 0 && behind < 64 {
                    self.consume(u32::from(bits));
                    if ends {
                        break;
                    }
                    at = behind;
                    continue;
                }
            }
            let (symbol, value) = self.symbol(ac)?;
            at += usize::from(symbol >> 4);
            match (value, symbol & 15) {
                (Some(_), _) => {}
                (None, 0) if symbol == END => break,
                (None, 0) if symbol == ZEROS => {
                    at += 1;
                    continue;
                }
                (None, size @ 1..) => self.consume(u32::from(size)),
                _ => return None,
            }
            if at >= 64 {
                return None;
            }
            at += 1;
        }
        (!self.is_over()).then_some(())
    }

    /// The coefficients of a block, row by row; `block` must be zeros. Returns how many of its leading ones, in zigzag
    /// order, may be other than zero. `prediction` is the first coefficient of the component's block before.
    #[inline(always)]
    pub fn block(&mut self, dc: &Table, ac: &Table, prediction: &mut i32, block: &mut [i16; 64]) -> Option<usize> {
        self.refill()?;
        let difference = match self.symbol(dc)? {
            (_, Some(value)) => i32::from(value),
            (0, None) => 0,
            (size @ 1..=11, None) => self.value(u32::from(size)),
            _ => return None,
        };
        *prediction = prediction.wrapping_add(difference);
        block[0] = *prediction as i16;
        let (mut at, mut used) = (1, 1);
        while at < 64 {
            if self.count < 32 {
                self.refill()?;
            }
            let (symbol, value) = self.symbol(ac)?;
            at += usize::from(symbol >> 4);
            let value = match (value, symbol & 15) {
                (Some(value), _) => value,
                (None, 0) if symbol == END => break,
                (None, 0) if symbol == ZEROS => {
                    at += 1;
                    continue;
                }
                (None, size @ 1..) => self.value(u32::from(size)) as i16,
                _ => return None,
            };
            block[usize::from(*ZIGZAG.get(at)?)] = value;
            at += 1;
            used = at;
        }
        (!self.is_over()).then_some(used)
    }
}

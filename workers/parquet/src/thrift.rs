//! Going over a Thrift structure in the compact protocol without knowing its fields.

/// What was found at the beginning of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A structure with its end.
    Whole,
    /// The beginning of one.
    CutOff,
    /// One with more elements that take no bytes than anybody writes.
    TooLong,
    /// No such structure, one that is nested too deep, or one with a number of more than 64 bits.
    Other,
}

/// Structures and lists within each other; the `parquet` crate stops there, too.
const DEPTH: u8 = 64;
/// Elements of lists that take no bytes, in all; no footer and no page header has any.
const EMPTY: u64 = 1 << 16;

type Step<T> = std::result::Result<T, Found>;

/// Goes over the structure at the beginning of `bytes`, behind which the file may go on. Time is linear in the number of bytes.
pub fn walk(bytes: &[u8]) -> Found {
    match (Walk { bytes, at: 0, empty: EMPTY }).structure(DEPTH) {
        Ok(()) => Found::Whole,
        Err(found) => found,
    }
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Of [`EMPTY`].
    empty: u64,
}

impl Walk<'_> {
    fn byte(&mut self) -> Step<u8> {
        let byte = *self.bytes.get(self.at).ok_or(Found::CutOff)?;
        self.at += 1;
        Ok(byte)
    }

    fn skip(&mut self, bytes: u64) -> Step<()> {
        let end = usize::try_from(bytes).ok().and_then(|bytes| self.at.checked_add(bytes)).ok_or(Found::Other)?;
        if end > self.bytes.len() {
            return Err(Found::CutOff);
        }
        self.at = end;
        Ok(())
    }

    fn number(&mut self) -> Step<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Found::Other)
    }

    /// Takes note of elements that take no bytes.
    fn elements(&mut self, elements: u64, take_bytes: bool) -> Step<()> {
        if !take_bytes {
            self.empty = self.empty.checked_sub(elements).ok_or(Found::TooLong)?;
        }
        Ok(())
    }

    fn structure(&mut self, depth: u8) -> Step<()> {
        let depth = depth.checked_sub(1).ok_or(Found::Other)?;
        loop {
            let head = self.byte()?;
            if head & 0x0f == 0 {
                return Ok(());
            }
            if head >> 4 == 0 {
                // The field's number in full.
                self.number()?;
            }
            self.value(head & 0x0f, depth)?;
        }
    }

    /// A field's value: of a `bool` it is in the type.
    fn value(&mut self, kind: u8, depth: u8) -> Step<()> {
        match kind {
            1 | 2 => Ok(()),
            3 => self.skip(1),
            4..=6 => self.number().map(drop),
            7 => self.skip(8),
            8 => {
                let bytes = self.number()?;
                self.skip(bytes)
            }
            9 | 10 => self.list(depth),
            11 => self.map(depth),
            12 => self.structure(depth),
            13 => self.skip(16),
            _ => Err(Found::Other),
        }
    }

    fn list(&mut self, depth: u8) -> Step<()> {
        let depth = depth.checked_sub(1).ok_or(Found::Other)?;
        let head = self.byte()?;
        let elements = match head >> 4 {
            15 => self.number()?,
            few => u64::from(few),
        };
        let kind = head & 0x0f;
        self.elements(elements, takes_bytes(kind))?;
        for _ in 0..elements {
            self.value(kind, depth)?;
        }
        Ok(())
    }

    fn map(&mut self, depth: u8) -> Step<()> {
        let depth = depth.checked_sub(1).ok_or(Found::Other)?;
        let pairs = self.number()?;
        if pairs == 0 {
            return Ok(());
        }
        let kinds = self.byte()?;
        let (key, value) = (kinds >> 4, kinds & 0x0f);
        self.elements(pairs, takes_bytes(key) || takes_bytes(value))?;
        for _ in 0..pairs {
            self.value(key, depth)?;
            self.value(value, depth)?;
        }
        Ok(())
    }
}

/// Whether an element of this type takes a byte at least.
fn takes_bytes(kind: u8) -> bool {
    !matches!(kind, 1 | 2)
}

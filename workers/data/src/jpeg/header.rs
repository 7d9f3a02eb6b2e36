//! The headers of a JPEG file (ITU-T T.81, annex B), as far as [`super`] decodes what follows them.

/// One component of the picture: luminance, or a difference of colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Component {
    id: u8,
    /// Its samples per smallest sampled unit, 1 or 2.
    pub across: usize,
    pub down: usize,
    /// Which of the four tables.
    pub quantisation: usize,
    pub dc: usize,
    pub ac: usize,
}

/// A Huffman table as the file describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code {
    /// How many codes there are of length 1–16.
    pub(super) counts: [u8; 16],
    /// Their symbols in order.
    pub symbols: [u8; 256],
}

/// What is said before the scan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub width: usize,
    pub height: usize,
    /// The first `count` are there: one (grey) or three (Y, Cb, Cr).
    pub(super) components: [Component; 3],
    pub(super) count: usize,
    /// In the file's zigzag order.
    pub(super) quantisation: [Option<[u8; 64]>; 4],
    pub(super) dc: [Option<Code>; 2],
    pub(super) ac: [Option<Code>; 2],
    /// Units between restart markers, 0 for none.
    pub(super) restart: usize,
    /// Where the scan's data begins.
    pub(super) scan: usize,
}

/// Reads markers and lengths; `None` at the end of the data.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        self.at += 1;
        self.bytes.get(self.at - 1).copied()
    }

    /// The next marker; what lies between two segments is not for us.
    fn marker(&mut self) -> Option<u8> {
        if self.byte()? != 0xFF {
            return None;
        }
        loop {
            match self.byte()? {
                0xFF => (),
                marker => return Some(marker),
            }
        }
    }

    /// A segment behind its marker, without its length.
    fn segment(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.byte()?) << 8 | usize::from(self.byte()?);
        let from = self.at;
        self.at += length.checked_sub(2)?;
        self.bytes.get(from..self.at)
    }
}

impl Header {
    /// `None` for what is damaged or not of the common kind: see [`super`].
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader { bytes, at: 0 };
        let mut header = Self::empty();
        if reader.marker()? != 0xD8 {
            return None;
        }
        loop {
            let marker = reader.marker()?;
            let segment = reader.segment()?;
            match marker {
                0xC0 => header.frame(segment)?,
                0xC4 => header.codes(segment)?,
                0xDB => header.quantisations(segment)?,
                0xDD => header.restart = usize::from(*segment.first()?) << 8 | usize::from(*segment.get(1)?),
                0xEE if segment.starts_with(b"Adobe") => header.adobe(segment)?,
                0xDA => {
                    header.scan(segment)?;
                    header.scan = reader.at;
                    return Some(header);
                }
                0xE0..=0xEF | 0xFE => (),
                _ => return None,
            }
        }
    }

    fn empty() -> Self {
        let none = Component { id: 0, across: 1, down: 1, quantisation: 0, dc: 0, ac: 0 };
        Self {
            width: 0,
            height: 0,
            components: [none; 3],
            count: 0,
            quantisation: [None; 4],
            dc: [None; 2],
            ac: [None; 2],
            restart: 0,
            scan: 0,
        }
    }

    fn frame(&mut self, segment: &[u8]) -> Option<()> {
        let [8, h1, h0, w1, w0, count, components @ ..] = segment else { return None };
        if self.count != 0 || !matches!(count, 1 | 3) || components.len() != 3 * usize::from(*count) {
            return None;
        }
        self.count = usize::from(*count);
        self.height = usize::from(*h1) << 8 | usize::from(*h0);
        self.width = usize::from(*w1) << 8 | usize::from(*w0);
        for (component, said) in self.components.iter_mut().zip(components.chunks_exact(3)) {
            let [id, sampling, quantisation] = said else { return None };
            component.id = *id;
            (component.across, component.down) = (usize::from(sampling >> 4), usize::from(sampling & 15));
            component.quantisation = usize::from(*quantisation);
        }
        (self.width > 0 && self.height > 0 && self.sampling_is_common()).then_some(())
    }

    /// Grey, or colour in full or half resolution. The sampling of a single component means nothing.
    fn sampling_is_common(&mut self) -> bool {
        let [first, second, third] = &mut self.components;
        if self.count == 1 {
            (first.across, first.down) = (1, 1);
            return true;
        }
        let plain = |component: &Component| (component.across, component.down) == (1, 1);
        let ids_are_rgb = [first.id, second.id, third.id] == *b"RGB";
        matches!((first.across, first.down), (1 | 2, 1 | 2)) && plain(second) && plain(third) && !ids_are_rgb
    }

    fn codes(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((kind, rest)) = segment.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let total = counts.iter().map(|count| usize::from(*count)).sum::<usize>();
            let mut code = Code { counts: *counts, symbols: [0; 256] };
            code.symbols.get_mut(..total)?.copy_from_slice(rest.get(..total)?);
            let tables = if kind >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables.get_mut(usize::from(kind & 15)).filter(|_| kind >> 4 < 2)? = Some(code);
            segment = &rest[total..];
        }
        Some(())
    }

    fn quantisations(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((number, rest)) = segment.split_first() {
            // The upper half says 16 bits, which no baseline file has.
            let (values, rest) = rest.split_first_chunk::<64>()?;
            *self.quantisation.get_mut(usize::from(*number))? = Some(*values);
            segment = rest;
        }
        Some(())
    }

    /// Adobe's segment ends with the kind of colours: 1 is Y, Cb, Cr.
    fn adobe(&self, segment: &[u8]) -> Option<()> {
        let transform = *segment.get(11)?;
        (transform == 1 || self.count == 1).then_some(())
    }

    /// The one scan that has every component whole.
    fn scan(&mut self, segment: &[u8]) -> Option<()> {
        let [count, rest @ ..] = segment else { return None };
        if self.count == 0 || usize::from(*count) != self.count || rest.len() != 2 * self.count + 3 {
            return None;
        }
        for (component, said) in self.components.iter_mut().zip(rest.chunks_exact(2)).take(self.count) {
            let [id, tables] = said else { return None };
            if *id != component.id {
                return None;
            }
            (component.dc, component.ac) = (usize::from(tables >> 4), usize::from(tables & 15));
        }
        (rest[2 * self.count..] == [0, 63, 0]).then_some(())
    }
}

//! Reads a column page by page, and hands its values on as they lie in the file.
//!
//! A general reader decodes a repetition and a definition level for every float of a list, which takes ten times as
//! long as reading the file. In a column of fixed-size lists without nulls the levels can only be one thing:
//! repetition 0 at the start of every row and 1 inside, definition 1 everywhere. So they are compared run by
//! run. Required columns of one value per row have no levels at all.

use parquet::basic::{Encoding, Type};
use parquet::column::page::{Page, PageReader};
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};

use crate::error::{Error, Result};

/// Bytes of one value of a list.
pub(crate) const VALUE_BYTES: usize = 4;

/// A leaf column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    /// Its name, for errors.
    pub name: &'static str,
    /// Position among the file's leaf columns.
    pub leaf: usize,
    /// Values per row.
    pub width: usize,
    /// Its physical type.
    pub physical: Type,
    /// Whether a row is a list, and so has levels.
    pub list: bool,
    /// Bytes of a value; `None` where each tells its own length.
    pub value_bytes: Option<usize>,
}

/// Some values that follow each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values<'a> {
    /// Position of the first, counted from the group's start.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// As they are encoded, plainly.
    pub bytes: &'a [u8],
}

/// Hands all values of `column` in one row group to `put`, in order. Tells the CRC-32C of their bytes.
///
/// Every page is checked: plain encoding, exactly the levels that fixed-size lists have, and `rows × width`
/// values in all.
pub(crate) fn read_group<R: ChunkReader + 'static>(
    file: &SerializedFileReader<R>,
    column: Column,
    group: usize,
    put: impl FnMut(Values) -> Result<()>,
) -> Result<u32> {
    check_leaf(file, column)?;
    let damaged = |source| column.damaged("can't be read").caused_by(source);
    let group = file.get_row_group(group).map_err(damaged)?;
    let rows = usize::try_from(group.metadata().num_rows()).map_err(|_| column.damaged("has a negative length"))?;
    let pages = group.get_column_page_reader(column.leaf).map_err(damaged)?;
    read_chunk(column, pages, rows, put)
}

/// The pages of one column chunk.
fn read_chunk(
    column: Column,
    mut pages: Box<dyn PageReader>,
    rows: usize,
    mut put: impl FnMut(Values) -> Result<()>,
) -> Result<u32> {
    let (mut done, mut sum) = (0, 0);
    while let Some(page) = pages.get_next_page().map_err(|e| column.damaged("can't be read").caused_by(e))? {
        let count = page.num_values() as usize;
        if count > rows * column.width - done {
            return Err(column.damaged("has more values than rows"));
        }
        let bytes = column.values(&page, done)?;
        sum = crc32c::crc32c_append(sum, bytes);
        put(Values { first: done, count, bytes })?;
        done += count;
    }
    if done < rows * column.width {
        return Err(column.damaged("has fewer values than rows"));
    }
    Ok(sum)
}

fn check_leaf<R: ChunkReader + 'static>(file: &SerializedFileReader<R>, column: Column) -> Result<()> {
    let schema = file.metadata().file_metadata().schema_descr();
    let leaf = schema.columns().get(column.leaf).ok_or_else(|| column.damaged("is missing"))?;
    let levels = (leaf.max_rep_level(), leaf.max_def_level());
    let expected = if column.list { (1, 1) } else { (0, 0) };
    if leaf.physical_type() != column.physical || levels != expected {
        let kind = if column.list { "list" } else { "column" };
        return Err(column.damaged(&format!("is no {kind} of required {} values", column.physical)));
    }
    Ok(())
}

impl Column {
    /// The values of a page after its levels, which must say that `done` values of complete lists lie before it.
    fn values<'a>(&self, page: &'a Page, done: usize) -> Result<&'a [u8]> {
        if page.encoding() != Encoding::PLAIN {
            return Err(self.damaged(&format!("is encoded as {}, expected PLAIN", page.encoding())));
        }
        let (repetitions, definitions, values) =
            if self.list { self.sections(page)? } else { (&[][..], &[][..], self.flat(page)?) };
        let count = page.num_values() as usize;
        if self.value_bytes.is_some_and(|bytes| values.len() != count * bytes) {
            return Err(self.damaged("has a page of the wrong size"));
        }
        if !self.list {
            return Ok(values);
        }
        // Counted on from run to run: a division for every value would take a tenth of the time of reading.
        let (width, mut column) = (self.width, done % self.width);
        let repetitions_fit = levels_are(repetitions, count, |_, length, level| {
            let fits = match level {
                // A run of zeros is a run of rows of one value each, or a single start of a row.
                0 => column == 0 && (width == 1 || length == 1),
                _ => column != 0 && length <= width - column,
            };
            column = if width == 1 || column + length == width { 0 } else { column + length };
            fits
        });
        if !repetitions_fit || !levels_are(definitions, count, |_, _, level| level == 1) {
            return Err(self.damaged(&format!("is not made of lists of {} values", self.width)));
        }
        Ok(values)
    }

    /// A page without levels.
    fn flat<'a>(&self, page: &'a Page) -> Result<&'a [u8]> {
        match page {
            Page::DataPage { buf, .. } => Ok(buf),
            Page::DataPageV2 { buf, rep_levels_byte_len: 0, def_levels_byte_len: 0, .. } => Ok(buf),
            Page::DataPageV2 { .. } => Err(self.damaged("has levels, expected none")),
            Page::DictionaryPage { .. } => Err(self.damaged("has a dictionary, expected plain values")),
        }
    }

    /// Repetition levels, definition levels and values of a page.
    fn sections<'a>(&self, page: &'a Page) -> Result<(&'a [u8], &'a [u8], &'a [u8])> {
        let short = || self.damaged("has a page that is cut off");
        match page {
            Page::DataPage { buf, def_level_encoding, rep_level_encoding, .. } => {
                if (*def_level_encoding, *rep_level_encoding) != (Encoding::RLE, Encoding::RLE) {
                    return Err(self.damaged("has levels that are not run-length encoded"));
                }
                let (repetitions, rest) = sized_prefix(buf).ok_or_else(short)?;
                let (definitions, values) = sized_prefix(rest).ok_or_else(short)?;
                Ok((repetitions, definitions, values))
            }
            Page::DataPageV2 { buf, rep_levels_byte_len, def_levels_byte_len, .. } => {
                let (repetitions, rest) = buf.split_at_checked(*rep_levels_byte_len as usize).ok_or_else(short)?;
                let (definitions, values) = rest.split_at_checked(*def_levels_byte_len as usize).ok_or_else(short)?;
                Ok((repetitions, definitions, values))
            }
            Page::DictionaryPage { .. } => Err(self.damaged("has a dictionary, expected plain values")),
        }
    }

    fn damaged(&self, what: &str) -> Error {
        Error::corrupt(format!("column `{}` {what}", self.name))
    }
}

/// Four bytes of length, then so many bytes; and the rest.
fn sized_prefix(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// Whether `count` one-bit levels in Parquet's run-length/bit-packed hybrid are all as expected:
/// `fits(first position, length of the run, level)`, asked in order.
fn levels_are(mut bytes: &[u8], count: usize, mut fits: impl FnMut(usize, usize, u8) -> bool) -> bool {
    let mut at = 0;
    while at < count {
        let Some((header, rest)) = varint(bytes) else { return false };
        let length = (header >> 1) as usize;
        if header & 1 == 0 {
            let Some((&level, rest)) = rest.split_first() else { return false };
            let run = length.min(count - at);
            if level > 1 || run == 0 || !fits(at, run, level) {
                return false;
            }
            (at, bytes) = (at + run, rest);
        } else {
            let Some((packed, rest)) = rest.split_at_checked(length) else { return false };
            let run = length.saturating_mul(8).min(count - at);
            if run == 0 || !(0..run).all(|i| fits(at + i, 1, packed[i / 8] >> (i % 8) & 1)) {
                return false;
            }
            (at, bytes) = (at + run, rest);
        }
    }
    true
}

/// A little-endian base-128 number of at most five bytes.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (i, byte) in bytes.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[i + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_compared_across_packed_and_repeated_runs() {
        // One packed group 0,1,1,0,1,1,0,1 (lists of three), then a single 1 as a run.
        let bytes = [0b11, 0b1011_0110, 2, 1];
        let lists_of = |width: usize| {
            move |at: usize, length: usize, level: u8| length == 1 && (level == 0) == at.is_multiple_of(width)
        };
        assert!(levels_are(&bytes, 9, lists_of(3)));
        assert!(!levels_are(&bytes, 9, lists_of(4)));
        assert!(!levels_are(&bytes, 10, lists_of(3)), "one level is missing");
        assert!(!levels_are(&bytes[..1], 9, lists_of(3)), "cut off");
        assert!(!levels_are(&[0, 1], 1, lists_of(1)), "an empty run does not go on for ever");
    }
}

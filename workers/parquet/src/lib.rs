//! Parquet files of others, read without being held up by what their headers claim.
//!
//! Footer and page headers are Thrift structures (compact protocol). The `parquet` crate skips fields that it does not know element by
//! element, whether or not elements take bytes: a `bool` takes none there, and a `double` behind the end of the file none either. So a list of
//! 2³¹ of them is six bytes that keep a reader busy for seconds, and a file may have thousands. Here every structure is gone over
//! before the reader sees it; one with more elements of nothing than anybody writes is an error, and so is one that does not end.
//!
//! [`Sound`] does that for any [`ChunkReader`]. Page headers are looked at where a read begins, the footer where it ends.

use std::io::{self, Cursor, Read};

use bytes::Bytes;
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

mod thrift;

use thrift::Found;

/// Bytes that are looked at first: page headers are shorter, but for those with long statistics.
const LOOK: usize = 256;
/// Longest header that is looked at; a longer one is an error.
const LONGEST: usize = 16 << 20;
/// Bytes of the footer's length and the magic behind it.
const TAIL: u64 = 8;

/// A file whose headers are gone over before they are read.
#[derive(Debug, Clone)]
pub struct Sound<R>(pub R);

impl<R: Length> Length for Sound<R> {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl<R: ChunkReader> ChunkReader for Sound<R> {
    type T = Headed<R::T>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        let is_header = self.len().saturating_sub(start) > TAIL;
        Ok(Headed { seen: Cursor::default(), is_sound: !is_header, rest: self.0.get_read(start)? })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let bytes = self.0.get_bytes(start, length)?;
        let is_footer = start.checked_add(length as u64 + TAIL) == Some(self.len());
        match is_footer.then(|| thrift::walk(&bytes)) {
            None | Some(Found::Whole) => Ok(bytes),
            Some(found) => Err(ParquetError::General(unsound(found))),
        }
    }
}

/// A page header and what comes behind it. It is looked at when it is read first: a reader also asks for what it does not read.
#[derive(Debug)]
pub struct Headed<T> {
    seen: Cursor<Vec<u8>>,
    is_sound: bool,
    rest: T,
}

impl<T: Read> Headed<T> {
    fn look(&mut self) -> io::Result<()> {
        let (mut seen, mut wanted) = (Vec::new(), LOOK);
        loop {
            self.rest.by_ref().take((wanted - seen.len()) as u64).read_to_end(&mut seen)?;
            let is_all = seen.len() < wanted;
            match thrift::walk(&seen) {
                Found::Whole => break,
                Found::CutOff if !is_all && wanted < LONGEST => wanted *= 4,
                other => return Err(io::Error::new(io::ErrorKind::InvalidData, unsound(other))),
            }
        }
        (self.seen, self.is_sound) = (Cursor::new(seen), true);
        Ok(())
    }
}

impl<T: Read> Read for Headed<T> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if !self.is_sound {
            self.look()?;
        }
        match self.seen.read(into)? {
            0 => self.rest.read(into),
            some => Ok(some),
        }
    }
}

fn unsound(found: Found) -> String {
    match found {
        Found::TooLong => "a header has lists of more elements than anybody writes".into(),
        Found::CutOff => format!("a header does not end, within {LONGEST} bytes or the file"),
        Found::Whole | Found::Other => "a header is no structure of Thrift's".into(),
    }
}

#[cfg(test)]
mod tests;

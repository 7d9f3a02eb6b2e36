//! Parquet files of others, read without being held up by what their headers claim.
//!
//! Footer and page headers are Thrift structures (compact protocol). The `parquet` crate skips fields that it does not know element by
//! element, and an element of type `bool` takes no bytes there: a list of 2³¹ of them is six bytes that keep a reader busy for seconds,
//! and a file may have thousands. Here every structure is gone over before the reader sees it, and one with more such elements than anybody
//! writes is an error.
//!
//! [`Sound`] does that for any [`ChunkReader`]. Page headers are looked at where a read begins, the footer where it ends; what is
//! no such structure is passed on, since the reader itself knows best what is wrong with it.

use std::io::{Cursor, Read};

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
    type T = std::io::Chain<Cursor<Vec<u8>>, R::T>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        let mut rest = self.0.get_read(start)?;
        let (mut seen, mut wanted) = (Vec::new(), LOOK);
        loop {
            let before = seen.len();
            rest.by_ref().take((wanted - before) as u64).read_to_end(&mut seen)?;
            let all = seen.len() < wanted;
            match thrift::walk(&seen) {
                Found::TooLong => return Err(too_long()),
                Found::CutOff if !all && wanted < LONGEST => wanted *= 4,
                Found::CutOff if !all => {
                    return Err(ParquetError::General(format!("a header of more than {LONGEST} bytes")));
                }
                Found::CutOff | Found::Whole | Found::Other => return Ok(Cursor::new(seen).chain(rest)),
            }
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let bytes = self.0.get_bytes(start, length)?;
        let is_footer = start.checked_add(length as u64 + TAIL) == Some(self.len());
        if is_footer && thrift::walk(&bytes) == Found::TooLong {
            return Err(too_long());
        }
        Ok(bytes)
    }
}

fn too_long() -> ParquetError {
    ParquetError::General("a header has lists of more elements than anybody writes".into())
}

#[cfg(test)]
mod tests;

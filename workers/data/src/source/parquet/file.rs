//! A file of a source as the Parquet reader wants to see it: by ranges, and what its errors mean.

use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use likeness_parquet::Sound;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use crate::error::{Error, Result};
use crate::source::Files;

/// A reader of one file, not yet built.
pub(crate) type Builder = ParquetRecordBatchReaderBuilder<Sound<Chunks>>;

/// Reads the footer.
pub(crate) fn open(path: &str, files: Arc<dyn Files>) -> Result<(Builder, Blame)> {
    let length = files.size(path).map_err(|e| Error::io(path, e))?;
    let blame = Blame { path: path.into(), failure: Arc::default() };
    let chunks = Chunks { files, path: path.into(), length, failure: blame.failure.clone() };
    let builder = ParquetRecordBatchReaderBuilder::try_new(Sound(chunks)).map_err(|e| blame.error(e))?;
    Ok((builder, blame))
}

/// The leaf columns that `wanted` names, nested ones by their dotted path.
pub(crate) fn projection(builder: &Builder, wanted: impl Fn(&str) -> bool) -> ProjectionMask {
    let schema = builder.parquet_schema();
    let leaves = schema.columns().iter().enumerate().filter(|(_, leaf)| wanted(&leaf.path().string())).map(|(i, _)| i);
    ProjectionMask::leaves(schema, leaves)
}

/// Tells what an error of the Parquet reader means. On its way through the reader an I/O error becomes text, so
/// it is noted where it happens.
pub(crate) struct Blame {
    path: String,
    failure: Arc<Mutex<Option<io::Error>>>,
}

impl Blame {
    /// Failing I/O underneath, or a file that is no good.
    pub fn error(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        let failure = self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        match failure {
            Some(failure) => Error::io(&self.path, failure),
            None => damaged(&self.path).because(error),
        }
    }
}

/// Not what the reader expects.
pub(crate) fn damaged(path: &str) -> Error {
    Error::invalid(format!("`{path}` is no Parquet file or is damaged"))
}

/// The file is another one than at the scan.
pub(crate) fn changed(path: &str) -> Error {
    Error::invalid(format!("`{path}` is not what it was when it was scanned"))
}

/// A file of a source as Parquet wants to see it: by ranges.
pub(crate) struct Chunks {
    files: Arc<dyn Files>,
    path: String,
    length: u64,
    failure: Arc<Mutex<Option<io::Error>>>,
}

impl Chunks {
    fn note(&self, error: io::Error) -> io::Error {
        let copy = io::Error::new(error.kind(), error.to_string());
        *self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
        copy
    }

    fn range(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.files.read(&self.path, range).map_err(|error| self.note(error))
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<Tail>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        let chunks =
            Self { files: self.files.clone(), path: self.path.clone(), failure: self.failure.clone(), ..*self };
        Ok(BufReader::new(Tail { chunks, next: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let end = start.checked_add(length as u64).filter(|end| *end <= self.length);
        let end = end.ok_or_else(|| ParquetError::EOF(format!("{length} bytes at {start} of {}", self.length)))?;
        self.range(start..end).map_err(|e| ParquetError::External(Box::new(e)))
    }
}

/// The rest of a file from some byte on.
pub(crate) struct Tail {
    chunks: Chunks,
    next: u64,
}

impl Read for Tail {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let end = self.chunks.length.min(self.next.saturating_add(into.len() as u64));
        let bytes = self.chunks.range(self.next..end.max(self.next))?;
        into[..bytes.len()].copy_from_slice(&bytes);
        self.next += bytes.len() as u64;
        Ok(bytes.len())
    }
}

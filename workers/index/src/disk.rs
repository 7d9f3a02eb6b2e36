//! A file on disk as Parquet's reader wants it: positions are absolute, so that threads can read at the same time.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use crate::error::{Error, Result};

/// Bytes that are read at once where nobody says how many are wanted: page headers.
const AHEAD: usize = 512;

/// See the module; clones share the file.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    file: Arc<File>,
    len: u64,
    /// Buffers that were read before: fresh memory would cost more than the reading.
    buffers: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A buffer that goes back when nobody needs it any more.
struct Lent {
    bytes: Vec<u8>,
    len: usize,
    home: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.bytes));
    }
}

impl Disk {
    pub fn open(path: &Path) -> Result<Self> {
        let unreadable = |source| Error::corrupt(format!("`{}` can't be read", path.display())).caused_by(source);
        let file = File::open(path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        Ok(Self { file: Arc::new(file), len, buffers: Arc::default() })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    fn read_at(&self, into: &mut [u8], position: u64) -> std::io::Result<usize> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_at(&*self.file, into, position);
        #[cfg(windows)]
        return std::os::windows::fs::FileExt::seek_read(&*self.file, into, position);
    }

    pub fn read_exactly(&self, mut into: &mut [u8], mut position: u64) -> std::io::Result<()> {
        while !into.is_empty() {
            match self.read_at(into, position) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    position += read as u64;
                    into = &mut into[read..];
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Length for Disk {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Disk {
    type T = BufReader<At>;

    fn get_read(&self, start: u64) -> std::result::Result<Self::T, ParquetError> {
        Ok(BufReader::with_capacity(AHEAD, At { disk: self.clone(), position: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> std::result::Result<Bytes, ParquetError> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.len) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} of {}", self.len)));
        }
        let mut bytes = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        if bytes.len() < length {
            bytes.resize(length, 0);
        }
        self.read_exactly(&mut bytes[..length], start)?;
        Ok(Bytes::from_owner(Lent { bytes, len: length, home: Arc::clone(&self.buffers) }))
    }
}

/// A position in a file.
#[derive(Debug)]
pub(crate) struct At {
    disk: Disk,
    position: u64,
}

impl Read for At {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.disk.read_at(into, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

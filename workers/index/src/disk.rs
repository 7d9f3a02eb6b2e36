//! A file on disk as Parquet's reader wants it: positions are absolute, so that threads can read at the same time.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

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
}

impl Disk {
    pub fn open(path: &Path) -> Result<Self> {
        let unreadable = |source| Error::corrupt(format!("`{}` can't be read", path.display())).caused_by(source);
        let file = File::open(path).map_err(unreadable)?;
        let len = file.metadata().map_err(unreadable)?.len();
        Ok(Self { file: Arc::new(file), len })
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
        let mut bytes = Vec::with_capacity(length);
        At { disk: self.clone(), position: start }.take(length as u64).read_to_end(&mut bytes)?;
        if bytes.len() != length {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} were cut off")));
        }
        Ok(bytes.into())
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
        #[cfg(unix)]
        let read = std::os::unix::fs::FileExt::read_at(&*self.disk.file, into, self.position)?;
        #[cfg(windows)]
        let read = std::os::windows::fs::FileExt::seek_read(&*self.disk.file, into, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

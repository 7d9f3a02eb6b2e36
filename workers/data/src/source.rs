//! Sources: what users have. A scan lists the rows with labels and splits and reads no image; reading takes
//! some of these rows, checks every image by reading it to its end, and keeps the image's own bytes.
//!
//! What is wrong with a source as a whole is an error that names file and line or column. What is wrong with
//! one image costs that row only: it is skipped with a reason.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use likeness_contract::documents::Skipped;
use likeness_contract::jobs::{CelebaSplit, CsvColumns, CsvSource, IngestSource, LabelWords, ReadFrom, ReadSource};
use likeness_contract::settings::Vocabulary;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::image;
use crate::part::PartRow;
use crate::rows::{Place, Scan, ScanRow};

pub mod celeba;
pub mod csv;
pub mod folder;
mod glob;
mod labels;
pub mod parquet;
pub(crate) mod split;

/// Where the images of a scan's rows are: what tasks need to read them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// The folder that paths of image files start from.
    pub dir: String,
    /// Parquet files by their numbers.
    pub files: Vec<TableFile>,
}

/// A Parquet file that holds images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFile {
    /// Its path or URL.
    pub path: String,
    /// The column of the images.
    pub image: String,
}

/// What became of some rows of a scan.
#[derive(Debug, Default)]
pub struct PartContent {
    /// Rows with a good image, in the order of the scan.
    pub rows: Vec<PartRow>,
    /// The others.
    pub skipped: Vec<Skipped>,
}

/// Where the files of a source are read from: [`Disk`], or what stands behind a URL.
pub trait Files: Send + Sync + 'static {
    /// Size in bytes.
    fn size(&self, path: &str) -> std::io::Result<u64>;
    /// The bytes `range`, all of them.
    fn read(&self, path: &str, range: Range<u64>) -> std::io::Result<Bytes>;
    /// The whole file, if it has at most `limit` bytes; else its size.
    fn read_whole(&self, path: &str, limit: u64) -> std::io::Result<std::result::Result<Bytes, u64>> {
        match self.size(path)? {
            size if size > limit => Ok(Err(size)),
            size => self.read(path, 0..size).map(Ok),
        }
    }
    /// Whether there is a folder.
    fn is_folder(&self, path: &str) -> std::io::Result<bool>;
    /// Paths of all files below a folder, relative to it and sorted.
    fn list(&self, folder: &str) -> std::io::Result<Vec<String>>;
}

/// The file system; paths are as this process sees them, `file://` may stand before an absolute one.
#[derive(Debug, Clone, Copy)]
pub struct Disk;

impl Disk {
    fn local(path: &str) -> &str {
        path.strip_prefix("file://").unwrap_or(path)
    }
}

impl Files for Disk {
    fn size(&self, path: &str) -> std::io::Result<u64> {
        std::fs::metadata(Self::local(path)).map(|metadata| metadata.len())
    }

    fn read(&self, path: &str, range: Range<u64>) -> std::io::Result<Bytes> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = std::fs::File::open(Self::local(path))?;
        file.seek(SeekFrom::Start(range.start))?;
        let length = range.end.saturating_sub(range.start);
        let mut bytes = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
        file.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }

    fn read_whole(&self, path: &str, limit: u64) -> std::io::Result<std::result::Result<Bytes, u64>> {
        use std::io::Read;
        let mut file = std::fs::File::open(Self::local(path))?;
        let size = file.metadata()?.len();
        if size > limit {
            return Ok(Err(size));
        }
        // What was said of its size may no longer be so, and then it is the reader that tells what is wrong with it.
        let mut bytes = Vec::with_capacity(usize::try_from(size).map_err(std::io::Error::other)?);
        file.by_ref().take(limit).read_to_end(&mut bytes)?;
        Ok(Ok(bytes.into()))
    }

    fn is_folder(&self, path: &str) -> std::io::Result<bool> {
        Ok(std::path::Path::new(Self::local(path)).is_dir())
    }

    fn list(&self, folder: &str) -> std::io::Result<Vec<String>> {
        let mut found = Vec::new();
        list_below(std::path::Path::new(Self::local(folder)), "", MAX_DEPTH, &mut found)?;
        found.sort_unstable();
        Ok(found)
    }
}

/// Folders within folders; more are a circle of links.
const MAX_DEPTH: usize = 32;

fn list_below(dir: &std::path::Path, before: &str, depth: usize, found: &mut Vec<String>) -> std::io::Result<()> {
    use std::io::{Error, ErrorKind};
    let invalid = |what: &str| Error::new(ErrorKind::InvalidInput, format!("`{}`: {what}", dir.display()));
    if depth == 0 {
        return Err(invalid("more than 32 folders within each other"));
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|_| invalid("holds a name that is not UTF-8"))?;
        let path = format!("{before}{name}");
        let kind = entry.file_type()?;
        // A link counts as what it leads to.
        if kind.is_dir() || (kind.is_symlink() && entry.path().is_dir()) {
            list_below(&entry.path(), &format!("{path}/"), depth - 1, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// Lists the rows of a source on disk.
pub fn scan(source: &IngestSource) -> Result<Scan> {
    scan_from(source, Arc::new(Disk), None)
}

/// [`scan`] of a source that lies elsewhere. A folder that names no attributes takes those of `base`.
pub fn scan_from(source: &IngestSource, files: Arc<dyn Files>, base: Option<&Vocabulary>) -> Result<Scan> {
    let ReadSource { from, columns, labels } = described(source)?;
    let words = labels::Words::new(&labels)?;
    let mut scan = match &from {
        ReadFrom::Celeba { dir, split } => celeba::scan(dir, *split, files.as_ref())?,
        ReadFrom::Parquet { files: paths } => parquet::scan(paths, &columns, &words, files)?,
        ReadFrom::Csv { file, dir } => {
            csv::scan(&csv::Csv { file, dir, columns: &columns, words: &words }, files.as_ref())?
        }
        ReadFrom::Folder { dir } => {
            let own = (!columns.attributes.is_empty()).then_some(columns.attributes.as_slice());
            folder::scan(dir, own.or(base.map(|base| base.names.as_slice())), files.as_ref())?
        }
    };
    scan.warnings.extend(constant_attributes(&scan));
    Ok(scan)
}

/// The source with everything that can be said of it.
fn described(source: &IngestSource) -> Result<ReadSource> {
    let plain = |from| ReadSource { from, columns: CsvColumns::default(), labels: LabelWords::default() };
    Ok(match source.clone() {
        IngestSource::Celeba { dir } => plain(ReadFrom::Celeba { dir, split: CelebaSplit::Partition }),
        IngestSource::Parquet { files } => plain(ReadFrom::Parquet { files }),
        IngestSource::Csv(CsvSource { file, dir, columns, zero }) => {
            let labels = LabelWords { zero, ..LabelWords::default() };
            ReadSource { from: ReadFrom::Csv { file, dir }, columns, labels }
        }
        IngestSource::Read(source) => *source,
        IngestSource::Append(_) => return Err(Error::invalid("what grows a dataset is no source of files")),
    })
}

/// A warning that names the attributes that never differ: nothing can be learned about them.
fn constant_attributes(scan: &Scan) -> Option<String> {
    let mut seen = vec![[false; 3]; scan.vocabulary.len()];
    for row in &scan.rows {
        row.attributes.iter().zip(&mut seen).for_each(|(label, seen)| seen[(label + 1) as usize] = true);
    }
    let differs = |[has_not, _, has]: &[bool; 3]| *has_not && *has;
    let constant = scan.vocabulary.names.iter().zip(&seen).filter(|(_, seen)| !differs(seen));
    let constant: Vec<&str> = constant.map(|(name, _)| name.as_str()).collect();
    let names = constant.join("`, `");
    (!constant.is_empty()).then(|| format!("`{names}` never differ between rows: nothing can be learned about them"))
}

/// Reads the images of `rows` from disk and decodes each on all cores; `progress` hears, from any thread, how
/// many rows are behind it. A file that is there and can't be read (`Io`) fails the whole.
pub fn read_rows(places: &Places, rows: &[ScanRow], progress: &(dyn Fn(u64) + Sync)) -> Result<PartContent> {
    read_rows_from(places, rows, Arc::new(Disk), progress)
}

/// [`read_rows`] of a source that lies elsewhere.
pub fn read_rows_from(
    places: &Places,
    rows: &[ScanRow],
    files: Arc<dyn Files>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<PartContent> {
    let progress = Counter { done: AtomicU64::new(0), report: progress };
    let mut content = PartContent::default();
    let is_file = |row: &ScanRow| matches!(row.place, Place::File { .. });
    for run in rows.chunk_by(|a, b| is_file(a) == is_file(b)) {
        let read = if is_file(&run[0]) {
            check_all(run, |_, row: &ScanRow| read_image(&places.dir, &row.place, files.as_ref()), &progress)?
        } else {
            parquet::read_rows(&places.files, run, files.clone(), &progress)?
        };
        content.rows.extend(read.rows);
        content.skipped.extend(read.skipped);
    }
    Ok(content)
}

/// Counts rows from any thread.
struct Counter<'a> {
    done: AtomicU64,
    report: &'a (dyn Fn(u64) + Sync),
}

impl Counter<'_> {
    fn one_more(&self) {
        (self.report)(self.done.fetch_add(1, Ordering::Relaxed) + 1);
    }
}

/// The image of a row as the source gives it: its bytes, or why there are none.
type Found = std::result::Result<Bytes, String>;

/// Reads and checks rows on all cores, in order; `read` gets a row and its position in `rows`.
fn check_all(
    rows: &[ScanRow],
    read: impl Fn(usize, &ScanRow) -> Result<Found> + Sync,
    progress: &Counter<'_>,
) -> Result<PartContent> {
    let checked: Vec<std::result::Result<PartRow, Skipped>> = rows
        .par_iter()
        .enumerate()
        .map(|(i, row)| {
            let checked = check(row, || read(i, row));
            progress.one_more();
            checked
        })
        .collect::<Result<_>>()?;
    let mut content = PartContent::default();
    for row in checked {
        match row {
            Ok(row) => content.rows.push(row),
            Err(skipped) => content.skipped.push(skipped),
        }
    }
    Ok(content)
}

fn check(row: &ScanRow, read: impl Fn() -> Result<Found>) -> Result<std::result::Result<PartRow, Skipped>> {
    let skipped = |reason: String| Ok(Err(Skipped { item: row.item.clone(), reason }));
    if let Some(problem) = &row.problem {
        return skipped(problem.clone());
    }
    let bytes = match read()? {
        Ok(bytes) => bytes,
        Err(reason) => return skipped(reason),
    };
    match image::check(&bytes) {
        Ok((width, height)) => Ok(Ok(PartRow {
            item: row.item.clone(),
            image: bytes,
            width,
            height,
            attributes: row.attributes.clone(),
            split: row.split,
        })),
        Err(error) => skipped(error.to_string()),
    }
}

/// The image of a row that is a file below `dir`.
fn read_image(dir: &str, place: &Place, files: &dyn Files) -> Result<Found> {
    match place {
        Place::File { path } => read_image_file(files, &inside(dir, path)),
        Place::Parquet { .. } => Err(Error::corrupt("list of rows: a Parquet row in a source of files")),
    }
}

fn inside(dir: &str, path: &str) -> String {
    format!("{}/{path}", dir.trim_end_matches('/'))
}

/// A list of ten million rows fits.
const MAX_LIST_BYTES: u64 = 1 << 30;

/// The text of a list; `expected` says what should be there when nothing is.
pub(crate) fn read_list(files: &dyn Files, path: &str, expected: &str) -> Result<String> {
    let bytes = match read_whole(files, path, MAX_LIST_BYTES) {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(too_large)) => return Err(Error::invalid(format!("`{path}`: {too_large}"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::invalid(format!("`{path}` is missing: {expected}")));
        }
        Err(error) => return Err(Error::io(path, error)),
    };
    decode_text(path, &bytes)
}

fn decode_text(path: &str, bytes: &[u8]) -> Result<String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_string()),
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
            Err(Error::invalid(format!("`{path}` line {line}: not UTF-8 text")))
        }
    }
}

/// The start of what a message quotes.
fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

/// A whole text or image file of at most `limit` bytes.
fn read_whole(files: &dyn Files, path: &str, limit: u64) -> std::io::Result<std::result::Result<Bytes, String>> {
    let read = files.read_whole(path, limit)?;
    Ok(read.map_err(|size| format!("{size} bytes are over the limit of {limit}")))
}

/// One image file: gone, closed to us or too large is the row's own fault; any other failure is not.
fn read_image_file(files: &dyn Files, path: &str) -> Result<Found> {
    match read_whole(files, path, image::MAX_IMAGE_BYTES as u64) {
        Ok(found) => Ok(found),
        Err(error) => match Error::io(path, error) {
            error if error.kind == crate::ErrorKind::Invalid => Ok(Err(reason(&error))),
            error => Err(error),
        },
    }
}

fn reason(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// [`check_names`] of names that need not be there.
pub(crate) fn check_names_if_any(place: &str, names: &[String]) -> Result<()> {
    if names.is_empty() { Ok(()) } else { check_names(place, names) }
}

/// Refuses attribute names that a query could not tell apart.
fn check_names(place: &str, names: &[String]) -> Result<()> {
    use std::collections::HashMap;
    if names.is_empty() {
        return Err(Error::invalid(format!("{place}: no attribute")));
    }
    let mut seen: HashMap<String, &String> = HashMap::new();
    for name in names {
        let folded: String = name.to_lowercase().replace(['-', ' '], "_");
        if let Some(first) = seen.insert(folded, name) {
            return Err(Error::invalid(format!(
                "{place}: attribute `{name}` is there twice (first as `{first}`); case, `-`, `_` and blanks make no difference"
            )));
        }
    }
    Ok(())
}

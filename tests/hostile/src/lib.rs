//! Everything of ours that reads bytes from outside, as functions of bytes: they may refuse, and must neither panic, hang nor take
//! memory out of proportion.
//!
//! `infra/fuzz` drives each with ever new bytes (cargo-fuzz, address sanitizer); what it started from and what it found lies in
//! `corpus/<target>` and is fed again by the tests. Absent on purpose: what these functions return, which other tests look at.

use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use likeness_contract::codec::{Encoding, Message, decode, decode_document};
use likeness_contract::documents::{DatasetManifest, GenerationManifest, ModelManifest, Release, ReportManifest};
use likeness_contract::jobs::{
    CsvColumns, CsvSource, IngestSource, JobSpec, Outcome, Plan, Run, TaskMessage, TaskRecord, ZeroLabel,
};
use likeness_contract::messages::{
    AliasState, ApiReply, ApiRequest, DeadLetter, JobEvent, Leader, Placement, Presence, TaskEvent,
};
use likeness_contract::search::{Cursor, LeafCancel, LeafReply, LeafRequest, SearchReply, SearchRequest};
use likeness_contract::settings::{Architecture, Preprocessing};
use likeness_contract::weights::{Header, WholeParts, export, plan_start};
use likeness_data::{Files, Loader, Part, decode_rgb, decode_rows, read_rows_from, scan_from};
use likeness_index::Shard;

/// A reader and its name.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 9] = [
    ("messages", messages),
    ("documents", documents),
    ("dataset_part", dataset_part),
    ("scan", scan),
    ("shard", shard),
    ("image", image),
    ("weights", weights),
    ("csv", csv),
    ("parquet", parquet),
];

/// For the fuzzer: other people's decoders panic, which our readers catch and refuse, so only a panic that nobody catches is a finding.
/// (libFuzzer's own hook would end at the first.)
pub fn heed_uncaught_panics() {
    std::panic::set_hook(Box::new(|_| ()));
}

fn message<M: Message>(bytes: &[u8]) {
    for encoding in [Encoding::Bincode, Encoding::Json] {
        let _refused = decode::<M>(bytes, encoding);
    }
}

/// What travels, in both forms.
pub fn messages(bytes: &[u8]) {
    message::<ApiRequest>(bytes);
    message::<ApiReply>(bytes);
    message::<TaskMessage>(bytes);
    message::<TaskEvent>(bytes);
    message::<JobEvent>(bytes);
    message::<DeadLetter>(bytes);
    message::<Presence>(bytes);
    message::<Placement>(bytes);
    message::<AliasState>(bytes);
    message::<Leader>(bytes);
    message::<SearchRequest>(bytes);
    message::<SearchReply>(bytes);
    message::<LeafRequest>(bytes);
    message::<LeafReply>(bytes);
    message::<LeafCancel>(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _refused = Cursor::from_text(text);
    }
}

/// What is stored as JSON.
pub fn documents(bytes: &[u8]) {
    let _refused = decode_document::<JobSpec>(bytes);
    let _refused = decode_document::<Plan>(bytes);
    let _refused = decode_document::<Run>(bytes);
    let _refused = decode_document::<TaskRecord>(bytes);
    let _refused = decode_document::<Outcome>(bytes);
    let _refused = decode_document::<DatasetManifest>(bytes);
    let _refused = decode_document::<ModelManifest>(bytes);
    let _refused = decode_document::<GenerationManifest>(bytes);
    let _refused = decode_document::<ReportManifest>(bytes);
    let _refused = decode_document::<Release>(bytes);
}

/// Attributes of the parts, scans and shards in the corpus.
pub const ATTRIBUTES: usize = 3;
/// Dimension of the shards in the corpus.
pub const DIM: usize = 8;

/// Part of a dataset.
pub fn dataset_part(bytes: &[u8]) {
    if let Ok(part) = Part::decode(Bytes::copy_from_slice(bytes), ATTRIBUTES) {
        for row in 0..part.rows() {
            let _read = (part.item(row), part.image(row), part.attributes(row), part.split(row));
        }
    }
}

/// The rows of a source, as a scan left them.
pub fn scan(bytes: &[u8]) {
    let _refused = decode_rows(Bytes::copy_from_slice(bytes), ATTRIBUTES, 0, 1_000);
}

/// Shard of a gallery: by the quick way and by the library's.
pub fn shard(bytes: &[u8]) {
    let _refused = Shard::decode(0, Bytes::copy_from_slice(bytes), DIM, ATTRIBUTES);
    let _refused = likeness_index::decode_shard(Bytes::copy_from_slice(bytes), DIM, ATTRIBUTES);
}

/// An image that somebody put into a source or asks with.
pub fn image(bytes: &[u8]) {
    let _refused = decode_rgb(bytes);
    let loader = Loader::new(&Preprocessing::imagenet(64));
    let mut input = vec![0.0; loader.input_len()];
    let _refused = loader.load(bytes, &mut input);
}

/// Weights that somebody trains from.
pub fn weights(bytes: &[u8]) {
    if let Ok(header) = Header::parse(bytes) {
        let _refused =
            plan_start(Architecture::CnnS, WholeParts { head: Some(300), attributes: true }, &header.shapes());
    }
    let _refused = export(bytes, "{}");
}

/// A table of paths and labels, its images anything.
pub fn csv(bytes: &[u8]) {
    let columns = CsvColumns::default();
    let (file, dir) = ("file".into(), "dir".into());
    whole(&IngestSource::Csv(CsvSource { file, dir, columns, zero: ZeroLabel::Auto }), bytes);
}

/// A table with images and labels.
pub fn parquet(bytes: &[u8]) {
    whole(&IngestSource::Parquet { files: vec!["file".into()] }, bytes);
}

fn whole(source: &IngestSource, bytes: &[u8]) {
    let files: Arc<dyn Files> = Arc::new(OneFile(Bytes::copy_from_slice(bytes)));
    if let Ok(found) = scan_from(source, Arc::clone(&files), None) {
        let rows = &found.rows[..found.rows.len().min(16)];
        let _refused = read_rows_from(&found.places, rows, files, &|_| ());
    }
}

/// Every path leads to the same bytes.
struct OneFile(Bytes);

impl Files for OneFile {
    fn size(&self, _path: &str) -> std::io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read(&self, _path: &str, range: Range<u64>) -> std::io::Result<Bytes> {
        let end = || Error::from(ErrorKind::UnexpectedEof);
        let (from, to) = (usize::try_from(range.start), usize::try_from(range.end));
        let (Ok(from), Ok(to)) = (from, to) else { return Err(end()) };
        if from > to || to > self.0.len() { Err(end()) } else { Ok(self.0.slice(from..to)) }
    }

    fn is_folder(&self, path: &str) -> std::io::Result<bool> {
        Ok(path == "dir")
    }

    fn list(&self, _folder: &str) -> std::io::Result<Vec<String>> {
        Ok(vec!["a.jpg".into()])
    }
}

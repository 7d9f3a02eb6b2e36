//! Embeddings that were made elsewhere become a generation: its shards are like any other's, but no model belongs to it.
//!
//! As in an ingest the scan fixes everything that the shards share: the list of rows is an object, and shard `n` is the rows
//! `from..from + rows` of it. A vector that is not finite, of another length or not of norm 1 ends the job with its name:
//! whoever made it can make it again.

use std::sync::Arc;

use likeness_contract::documents::{GenerationManifest, ObjectRef, Origin};
use likeness_contract::ids::Digest;
use likeness_contract::jobs::{GenerationRef, Import, JobSpec, JobWork, TaskOutput, task_ids};
use likeness_contract::keys;
use likeness_contract::settings::{Split, Vocabulary};
use likeness_data::{ScanRow, decode_rows, encode_rows, read_embeddings, scan_embeddings};
use likeness_index::ShardRows;

use super::{entry, store_shard};
use crate::error::TaskError;
use crate::job::ingest::source_files::SourceFiles;
use crate::runtime::context::TaskContext;

/// Lists the rows.
pub async fn scan(cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    let import = import(cx.spec())?.clone();
    cx.progress(0, 1, "listing rows");
    let files = Arc::new(SourceFiles::new(cx.store.clone()));
    let list = move || -> Result<_, TaskError> {
        let found = scan_embeddings(&import, files)?;
        let bytes = encode_rows(&found.scan, String::new());
        Ok((found, bytes))
    };
    let (found, bytes) = blocking(list).await?;
    let rows_object = cx.create_object(|digest| keys::job_data(cx.job(), "rows", digest, "parquet"), bytes).await?;
    let rows = found.scan.rows.len() as u64;
    let (vocabulary, warnings) = (found.scan.vocabulary, found.scan.warnings);
    Ok(TaskOutput::ImportScan { rows_object, rows, embedding_dim: found.dim, vocabulary, warnings })
}

/// Reads, checks and stores the embeddings of the rows `from..from + rows` of the scan.
pub async fn shard(cx: &TaskContext, shard: u32, from: u64, rows: u32) -> Result<TaskOutput, TaskError> {
    let import = import(cx.spec())?.clone();
    let Scanned { rows_object, vocabulary, embedding_dim, .. } = scanned(cx).await?;
    let target = GenerationRef { gallery: import.gallery.clone(), generation: cx.job().clone() };
    let list = cx.store.read(&rows_object).await?;
    let (attributes, files) = (vocabulary.len(), Arc::new(SourceFiles::new(cx.store.clone())));
    cx.progress(0, rows.into(), "reading vectors");
    let read = move || -> Result<_, TaskError> {
        let listed = decode_rows(list, attributes, from, rows)?;
        let embeddings = read_embeddings(&import, embedding_dim, &listed, files)?;
        Ok(shard_rows(listed, embeddings, shard))
    };
    let rows = blocking(read).await?;
    let made = store_shard(cx, &target, shard, rows, None, (embedding_dim as usize, attributes)).await?;
    Ok(made.output(Vec::new(), 0))
}

/// A row has no image: its place is its shard and row, and its digest is that of its own embedding.
fn shard_rows(listed: Vec<ScanRow>, embeddings: Vec<f32>, shard: u32) -> ShardRows {
    let dim = embeddings.len() / listed.len().max(1);
    let digest = |vector: &[f32]| {
        let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        *Digest::of(&bytes).as_bytes()
    };
    ShardRows {
        split: listed.iter().map(|row| row.split).collect(),
        labels: listed.iter().flat_map(|row| row.attributes.iter().copied()).collect(),
        source_part: vec![shard; listed.len()],
        source_row: (0..).take(listed.len()).collect(),
        image_digest: embeddings.chunks_exact(dim.max(1)).map(digest).collect(),
        item_ids: listed.into_iter().map(|row| row.item).collect(),
        embeddings,
    }
}

/// Writes the generation's manifest, once every shard has its record.
pub async fn finish(cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    let import = import(cx.spec())?;
    let Scanned { rows, vocabulary, embedding_dim, .. } = scanned(cx).await?;
    let planned = rows.div_ceil(u64::from(import.shard_rows.max(1)));
    let planned = u32::try_from(planned).map_err(|_| TaskError::invalid(format!("{planned} shards are too many")))?;
    let mut shards = Vec::new();
    for number in 0..planned {
        let record = cx.record(&task_ids::shard(cx.job(), cx.job(), number)).await?;
        shards.extend(entry(number, record)?.0);
        cx.progress(u64::from(number) + 1, u64::from(planned), "shards");
    }
    let generation = GenerationRef { gallery: import.gallery.clone(), generation: cx.job().clone() };
    let key = keys::generation_manifest(&generation.gallery, &generation.generation);
    let manifest = GenerationManifest {
        generation,
        origin: Origin::Elsewhere,
        rows: Split::All,
        embedding_dim,
        vocabulary,
        shards,
        skipped: Vec::new(),
    };
    cx.ensure_leased()?;
    cx.store.create_document(&key, &manifest).await?;
    Ok(TaskOutput::Manifest { key })
}

fn import(spec: &JobSpec) -> Result<&Import, TaskError> {
    match &spec.work {
        JobWork::Import(import) => Ok(import),
        other => Err(TaskError::invalid(format!("a job of kind `{}` imports nothing", other.kind()))),
    }
}

/// What the scan's record says.
struct Scanned {
    rows_object: ObjectRef,
    rows: u64,
    vocabulary: Vocabulary,
    embedding_dim: u32,
}

async fn scanned(cx: &TaskContext) -> Result<Scanned, TaskError> {
    let record = cx.record(&task_ids::import_scan()).await?;
    match record.output {
        TaskOutput::ImportScan { rows_object, rows, embedding_dim, vocabulary, warnings: _ } => {
            Ok(Scanned { rows_object, rows, vocabulary, embedding_dim })
        }
        _ => Err(TaskError::invalid(format!("the record of `{}` is not of a scan of embeddings", record.task))),
    }
}

/// Works away from tokio's own threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    tokio::task::spawn_blocking(work).await.map_err(TaskError::transient)?
}

//! A generation's shards, one after the other, as the evaluation sees them: only rows of the asked split.

use std::sync::Arc;

use likeness_contract::documents::GenerationManifest;
use likeness_contract::jobs::GenerationRef;
use likeness_contract::settings::Split;
use likeness_evaluation::Block;
use likeness_index::Shard;
use tokio::runtime::Handle;

use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// The searched rows of one shard.
#[derive(Debug)]
pub struct Searched {
    shard: Arc<Shard>,
    rows: Vec<u32>,
}

impl Searched {
    /// Dataset part and row in it that a row was made from.
    pub fn source(&self, row: usize) -> (u32, u32) {
        self.shard.source(self.rows[row])
    }
}

impl Block for Searched {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn dim(&self) -> usize {
        self.shard.dim()
    }

    fn attributes(&self) -> usize {
        self.shard.attributes()
    }

    fn item(&self, row: usize) -> &str {
        self.shard.item(self.rows[row])
    }

    fn embedding(&self, row: usize) -> &[f32] {
        self.shard.embedding(self.rows[row])
    }

    fn labels(&self, row: usize) -> &[i8] {
        self.shard.labels(self.rows[row])
    }
}

/// Loads shards one at a time. Cheap to clone, so that a closure on another thread can own one.
#[derive(Debug, Clone)]
pub struct Gallery {
    cx: TaskContext,
    split: Split,
    runtime: Handle,
    /// What the shards are.
    pub manifest: Arc<GenerationManifest>,
}

impl Gallery {
    /// The rows of `split` of a generation.
    pub async fn open(cx: &TaskContext, generation: &GenerationRef, split: Split) -> Result<Self, TaskError> {
        let manifest = cx.cache.generation(generation).await?;
        Ok(Self { cx: cx.clone(), split, runtime: Handle::current(), manifest })
    }

    /// Number of shards.
    pub fn blocks(&self) -> usize {
        self.manifest.shards.len()
    }

    /// The searched rows of a shard.
    pub async fn block(&self, number: usize) -> Result<Searched, TaskError> {
        let shard = self.cx.cache.shard(&self.manifest, &self.manifest.shards[number]).await?;
        let rows = u32::try_from(shard.rows()).map_err(TaskError::invalid)?;
        let rows = (0..rows).filter(|row| self.split.contains(shard.split(*row))).collect();
        Ok(Searched { shard, rows })
    }

    /// [`Self::block`] for a thread that computes; fails when the task is to stop.
    pub fn wait_for_block(&self, number: usize) -> Result<Searched, TaskError> {
        self.cx.ensure_leased()?;
        self.runtime.block_on(self.block(number))
    }
}

//! Settings of a searcher.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;

use crate::args::ByteSize;

/// Flags of the search role.
#[derive(Debug, Clone, Args)]
pub struct SearchArgs {
    /// Searchers that hold every shard, as far as there are so many; the same for all searchers
    #[arg(long, value_name = "N", env = "LIKENESS_REPLICAS", default_value = "2")]
    pub replicas: NonZeroUsize,
    /// Seconds for which a generation stays in memory after the switch to another release
    #[arg(long, value_name = "SECONDS", env = "LIKENESS_KEEP_GENERATION", default_value_t = 600)]
    pub keep_generation: u64,
    /// Memory that shards may take, in bytes; K, M, G are taken. A shard that does not fit is refused, and `likeness status`
    /// says so; without, there is no limit. After a switch two generations are held for a while
    #[arg(long, value_name = "BYTES", env = "LIKENESS_SEARCH_MEMORY")]
    pub search_memory: Option<ByteSize>,
}

/// What a searcher is told.
#[derive(Debug, Clone)]
pub struct SearchSettings {
    /// R, searchers that hold every shard.
    pub replicas: usize,
    /// How long a generation stays that no alias names any more.
    pub keep_generation: Duration,
    /// Requests that may wait for a scan; more are refused at once. The roots share it: each takes its part of so many
    /// queries, so that a query that can't be finished is refused before any leaf has worked for it.
    pub waiting: usize,
    /// Bytes that shards may take.
    pub memory: Option<u64>,
    /// First pause after something could not be loaded; doubles up to a minute.
    pub retry_first: Duration,
}

impl SearchArgs {
    /// The settings that they mean.
    pub fn resolve(&self) -> SearchSettings {
        let memory = self.search_memory.map(|size| size.0);
        SearchSettings { memory, ..SearchSettings::new(self.replicas.get(), Duration::from_secs(self.keep_generation)) }
    }
}

impl SearchSettings {
    /// The usual settings.
    pub fn new(replicas: usize, keep_generation: Duration) -> Self {
        let retry_first = Duration::from_secs(1);
        Self { replicas, keep_generation, waiting: 512, memory: None, retry_first }
    }
}

//! Gallery shards: their files, and exact nearest neighbours among their rows.
//!
//! A shard is an immutable slice of one generation: unit-norm embeddings with item ids, labels and a pointer
//! to the source image. [`encode_shard`] and [`decode_shard`] are its file form (Parquet, readable by any
//! tool), [`Shard`] its form in memory, [`top_k`] the search. [`Shard::with_codes`] makes searches several times
//! faster than the rows can be read; `search` says how, and why answers stay what they are. [`Cache`] keeps shards on the
//! local disk in a form that is ready at once and needs no memory for the f32 rows.
//!
//! Invariants.
//! * Nothing enters a file or a [`Shard`] unchecked: every embedding is finite and of norm 1 ± 0.001, item ids
//!   are unique, every column has the promised length.
//! * Equal rows give equal bytes, so that a repeated task ends in the same digest.
//! * Every distance that leaves is `contract::ranking::canonical_d2` and every order is `ranking::rank`: the
//!   answer does not depend on the number of shards, threads or blocks, nor on whether there are codes.
//!
//! Deliberately absent: async, network and tensors.

mod approximate;
mod buffer;
mod cache;
mod cancel;
mod codes;
mod disk;
mod error;
mod file;
mod filter;
mod ids;
mod kernels;
mod local;
mod pages;
mod rows;
mod search;
mod shard;

pub use approximate::{Approximate, Approximation, EarlierShard, top_k_approximate, top_k_approximate_batch};
pub use cache::Cache;
pub use cancel::Cancel;
pub use error::{Error, ErrorKind, Result};
pub use file::{decode_image_digests, decode_shard, encode_shard};
pub use filter::{Filter, Label, RowSet};
pub use rows::ShardRows;
pub use search::{Query, Survivors, survivors, top_k, top_k_batch};
pub use shard::{Memory, Shard};

//! Arrow schemas of the Parquet files.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema};

fn column(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

fn list(name: &str, item: DataType, length: usize) -> Field {
    let length = i32::try_from(length).expect("a row's vector is shorter than 2³¹");
    column(name, DataType::FixedSizeList(Arc::new(column("item", item)), length))
}

/// A part of a dataset: the images' own bytes and their labels (A attributes, each −1, 0 or +1).
pub fn dataset_part_schema(attributes: usize) -> Schema {
    Schema::new(vec![
        column("item_id", DataType::Utf8),
        column("image", DataType::Binary),
        column("image_digest", DataType::FixedSizeBinary(32)),
        column("width", DataType::UInt32),
        column("height", DataType::UInt32),
        list("attributes", DataType::Int8, attributes),
        column("split", DataType::UInt8),
    ])
}

/// A gallery shard: unit-norm embeddings of dimension D, labels, and where the image lies (part and row of
/// the dataset version that the generation's manifest names).
pub fn shard_schema(embedding_dim: usize, attributes: usize) -> Schema {
    Schema::new(vec![
        column("item_id", DataType::Utf8),
        list("embedding", DataType::Float32, embedding_dim),
        list("attributes", DataType::Int8, attributes),
        column("split", DataType::UInt8),
        column("source_part", DataType::UInt32),
        column("source_row", DataType::UInt32),
        column("image_digest", DataType::FixedSizeBinary(32)),
    ])
}

/// Bins of the histograms of dp and dn in the training figures, over 0–2.
pub const DISTANCE_BINS: usize = 20;

/// The figures of a training: one row per optimizer step, and one per validation (`phase`).
pub fn training_schema() -> Schema {
    Schema::new(vec![
        column("step", DataType::UInt64),
        column("phase", DataType::Utf8), // "train" or "validation"
        column("loss", DataType::Float64),
        column("easy", DataType::Float64),
        column("semi_hard", DataType::Float64),
        column("hard", DataType::Float64),
        column("correct", DataType::Float64),
        column("dp_mean", DataType::Float64),
        column("dn_mean", DataType::Float64),
        list("dp_histogram", DataType::UInt32, DISTANCE_BINS),
        list("dn_histogram", DataType::UInt32, DISTANCE_BINS),
        column("lr", DataType::Float64),
    ])
}

/// Per-query results of an evaluation.
pub fn query_report_schema() -> Schema {
    Schema::new(vec![
        column("query", DataType::UInt32),
        column("set", DataType::Utf8),
        column("text", DataType::Utf8),
        column("relevant", DataType::UInt64),
        column("judged", DataType::UInt64),
        column("average_precision", DataType::Float64),
        column("chance", DataType::Float64),
        column("p_at_1", DataType::Float64),
        column("p_at_5", DataType::Float64),
        column("p_at_10", DataType::Float64),
        column("p_at_100", DataType::Float64),
        Field::new("r_precision", DataType::Float64, true),
        Field::new("article_ap", DataType::Float64, true),
        Field::new("ndcg_at_10", DataType::Float64, true),
        Field::new("ndcg_at_100", DataType::Float64, true),
        Field::new("cs_p_at_10", DataType::Float64, true),
        // The nearest judged items, at most 100, and how far they are.
        values("items", DataType::Utf8),
        values("distances", DataType::Float64),
    ])
}

/// A list of any length, or none.
fn values(name: &str, item: DataType) -> Field {
    Field::new(name, DataType::List(Arc::new(column("item", item))), true)
}

/// Columns of the first version of [`query_report_schema`], which later ones only add to.
pub const QUERY_REPORT_COLUMNS_V1: usize = 11;

/// Columns of its second version.
pub const QUERY_REPORT_COLUMNS_V2: usize = 16;

/// Answers to a file of questions: one row a question, its results as lists of equal length, nearest first.
pub fn answer_schema() -> Schema {
    let values = |data_type| DataType::List(Arc::new(column("item", data_type)));
    Schema::new(vec![
        column("query", DataType::UInt64),
        Field::new("id", DataType::Utf8, true),
        Field::new("release", DataType::UInt64, true),
        Field::new("coverage", DataType::Float64, true),
        Field::new("matching", DataType::UInt64, true),
        column("items", values(DataType::Utf8)),
        column("distances", values(DataType::Float64)),
        Field::new("error", DataType::Utf8, true),
    ])
}

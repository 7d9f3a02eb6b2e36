//! `likeness embed import`: embeddings that were made elsewhere, as a generation that can be searched like any other.

use std::path::{Path, PathBuf};

use clap::Args;
use likeness_contract::ids::Name;
use likeness_contract::jobs::{EmbeddingSource, Import, ImportColumns, JobRequest, RequestedWork, ZeroLabel};
use likeness_link::client::Client;

use crate::command::Global;
use crate::command::exit::{Failure, Outcome};
use crate::command::ingest::absolute;
use crate::command::options::{DEFAULT_ROWS, JobOptions, MAX_SHARD_ROWS, within, words};

/// What an array is called.
const ARRAY: &str = "npy";

/// Flags of `likeness embed import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Workers read the files themselves: a path must be one that they see too. It may be a URL: s3://, gs:// and az:// with the \
workers' credentials, http:// and https://.

Parquet: a column of ids, one of vectors (lists of f32, f64 or f16 of one length), and label columns: boolean, or integers \
-1, 0, 1. A .npy array has f4, f8 or f2 numbers, a row an item; its table is text with a header, a line an item in the \
same order, labels as `likeness ingest csv` understands them.

There is no model that could embed attributes or images for such a generation: it is searched by stored items, by \
vectors, and by known labels.

Examples:
  likeness embed import vectors-*.parquet --gallery mine --normalize
  likeness embed import vectors.npy --table ids.csv --gallery mine
  likeness releases promote mine mine/import-5d1c409f4bdf6613
  likeness search --alias mine --like 000123.jpg")]
pub struct ImportArgs {
    /// Parquet files in order, or one .npy array; or their URLs.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Table of ids and labels of a .npy array, or its URL.
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// Name of the gallery.
    #[arg(long)]
    gallery: Name,
    /// Divide every vector by its norm; without, one that is not of norm 1 is refused.
    #[arg(long)]
    normalize: bool,
    /// Column of the item id [default: item_id, id, or another usual name].
    #[arg(long, value_name = "COLUMN")]
    id_column: Option<String>,
    /// Column of the vector [default: the only one of lists of numbers].
    #[arg(long, value_name = "COLUMN")]
    vector_column: Option<String>,
    /// Column of the split: train, validation, test, or 0, 1, 2 [default: split, else all are test].
    #[arg(long, value_name = "COLUMN")]
    split_column: Option<String>,
    /// Columns of attributes [default: all others that hold labels].
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',')]
    attributes: Vec<String>,
    /// What 0 means in a table beside a .npy array [default: not known in a column that also has -1, else has not].
    #[arg(long, value_name = "MEANING", value_parser = words::<ZeroLabel>(&["auto", "no", "unknown"]))]
    zero: Option<ZeroLabel>,
    /// Rows per shard: one task each [default: 8192].
    #[arg(long, value_name = "ROWS")]
    shard_rows: Option<u32>,
    /// Print the job's id and don't wait.
    #[arg(long)]
    pub detach: bool,
    #[command(flatten)]
    job: JobOptions,
}

/// The job that flags ask for.
pub async fn job(global: &Global, args: ImportArgs) -> Outcome<(Client, JobRequest)> {
    let import = import(&args)?;
    let client = global.connection.client().await?;
    let request = args.job.request(RequestedWork::Import(import));
    Ok((client, request))
}

fn import(args: &ImportArgs) -> Outcome<Import> {
    let shard_rows = args.shard_rows.unwrap_or(DEFAULT_ROWS);
    within("shard-rows", shard_rows, 1, MAX_SHARD_ROWS)?;
    let (item, vector, split) = (args.id_column.clone(), args.vector_column.clone(), args.split_column.clone());
    Ok(Import {
        gallery: args.gallery.clone(),
        source: source(&args.files, args.table.as_deref())?,
        columns: ImportColumns { item, vector, split, attributes: args.attributes.clone() },
        zero: args.zero.unwrap_or_default(),
        normalize: args.normalize,
        shard_rows,
    })
}

fn source(files: &[PathBuf], table: Option<&Path>) -> Outcome<EmbeddingSource> {
    let arrays = files.iter().filter(|file| file.extension().is_some_and(|extension| extension == ARRAY)).count();
    match (files, table) {
        ([file], Some(table)) if arrays == 1 => {
            Ok(EmbeddingSource::Npy { file: absolute(file)?, table: absolute(table)? })
        }
        (_, None) if arrays == 0 => {
            Ok(EmbeddingSource::Parquet { files: files.iter().map(|file| absolute(file)).collect::<Outcome<_>>()? })
        }
        (_, Some(_)) if arrays == 0 => {
            Err(Failure::usage("Parquet files have their ids in them: `--table` goes with a .npy array"))
        }
        ([_], _) => Err(Failure::usage("a .npy array has no ids: give the table of them with `--table FILE`")),
        _ => Err(Failure::usage("give one .npy array with its table, or Parquet files")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ImportArgs,
    }

    fn parse(line: &str) -> Outcome<Import> {
        import(&Line::try_parse_from(std::iter::once("import").chain(line.split(' '))).unwrap().args)
    }

    #[test]
    fn an_array_needs_its_table_and_parquet_none() {
        let parquet = parse("/a.parquet /b.parquet --gallery g").unwrap();
        let files = vec!["/a.parquet".into(), "/b.parquet".into()];
        assert_eq!((parquet.source, parquet.normalize), (EmbeddingSource::Parquet { files }, false));
        let npy = parse("/v.npy --table s3://b/ids.csv --gallery g --normalize --id-column who").unwrap();
        let expected = EmbeddingSource::Npy { file: "/v.npy".into(), table: "s3://b/ids.csv".into() };
        assert_eq!((npy.source, npy.columns.item.as_deref()), (expected, Some("who")));
        for (line, word) in [
            ("/v.npy --gallery g", "`--table FILE`"),
            ("/a.parquet --table /t.csv --gallery g", "in them"),
            ("/v.npy /w.npy --table /t.csv --gallery g", "one .npy array"),
            ("/a.parquet --shard-rows 0 --gallery g", "shard-rows"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}

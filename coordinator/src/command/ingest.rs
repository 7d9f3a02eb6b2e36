//! `likeness ingest`: images and labels into a new version of a dataset.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use likeness_contract::ids::Name;
use likeness_contract::jobs::{CsvColumns, CsvSource, IngestSource, JobRequest, RequestedWork, ZeroLabel};

use crate::command::Global;
use crate::command::exit::{Failure, Outcome};
use crate::command::follow;
use crate::command::options::{DEFAULT_ROWS, JobOptions, within, words};

/// Flags of `likeness ingest`.
#[derive(Debug, Args)]
#[command(after_help = "\
Workers read the source themselves: a path must be one that they see too. It may be a URL: s3://, gs:// and az:// \
with the workers' credentials; http:// and https:// for Parquet and CSV files. Bad images are skipped and listed; a wrong \
header, a missing column or a duplicate name is an error that names its line.

Examples:
  likeness ingest celeba ~/celeba
  likeness ingest parquet train-*.parquet --dataset faces --part-rows 4096
  likeness ingest csv faces.csv --images photos/ --split-column fold
  likeness ingest csv faces.tsv --path-column picture --group-column person --attributes smiling,glasses
  likeness ingest celeba s3://raw/celeba")]
pub struct IngestArgs {
    #[command(subcommand)]
    source: Source,
}

#[derive(Debug, Subcommand)]
enum Source {
    /// CelebA as distributed: img_align_celeba/, list_attr_celeba.txt, list_eval_partition.txt.
    Celeba {
        /// The folder, or its URL in an object store.
        dir: PathBuf,
        #[command(flatten)]
        options: IngestOptions,
    },
    /// Parquet files as on the Hugging Face hub: an image column and one boolean column per attribute.
    Parquet {
        /// The files or their URLs, in order.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        options: IngestOptions,
    },
    /// A CSV file, one row an image: its path, and one column of labels per attribute.
    #[command(after_help = CSV_HELP)]
    Csv {
        /// The file or its URL; cells are separated by comma, semicolon or tab.
        file: PathBuf,
        #[command(flatten)]
        csv: CsvOptions,
        #[command(flatten)]
        options: IngestOptions,
    },
}

const CSV_HELP: &str = "\
Labels: 1, true, yes have the attribute; -1, false, no have it not; an empty cell, na, nan, null and ? are not known. \
A column most of whose cells are something else is left out and named; one with a few such cells is an error that names \
the first. What was understood is listed with counts when the dataset is there.";

/// Flags of a CSV source.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Table")]
struct CsvOptions {
    /// Folder (or its URL) that the paths of images start from [default: the file's own].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Column of the image's path [default: path, file, filename, file_name, image_path, image or image_id].
    #[arg(long, value_name = "COLUMN")]
    path_column: Option<String>,
    /// Column of the item id [default: item_id or id, else the path].
    #[arg(long, value_name = "COLUMN")]
    id_column: Option<String>,
    /// Column of the split: train, validation, test, or 0, 1, 2 [default: split, partition or fold, else 80/10/10 by a hash].
    #[arg(long, value_name = "COLUMN")]
    split_column: Option<String>,
    /// Column of what stays together in one split when a hash chooses it, such as a person.
    #[arg(long, value_name = "COLUMN", conflicts_with = "split_column")]
    group_column: Option<String>,
    /// Columns of attributes [default: all others that hold labels].
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',')]
    attributes: Vec<String>,
    /// What 0 means [default: not known in a column that also has -1, else has not].
    #[arg(long, value_name = "MEANING", value_parser = words::<ZeroLabel>(&["auto", "no", "unknown"]))]
    zero: Option<ZeroLabel>,
}

/// What every source has.
#[derive(Debug, Clone, Args)]
struct IngestOptions {
    /// Name of the dataset [default: `celeba`, or `images` for Parquet and CSV].
    #[arg(long)]
    dataset: Option<Name>,
    /// Rows per part: one task each [default: 8192].
    #[arg(long, value_name = "ROWS")]
    part_rows: Option<u32>,
    /// Print the job's id and don't wait.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    job: JobOptions,
}

/// Submits the job.
pub async fn run(global: &Global, args: IngestArgs) -> Outcome {
    let (source, name, options) = match args.source {
        Source::Celeba { dir, options } => (celeba_source(&dir)?, "celeba", options),
        Source::Parquet { files, options } => (parquet_source(&files)?, "images", options),
        Source::Csv { file, csv, options } => (csv_source(&file, csv)?, "images", options),
    };
    let detach = options.detach;
    let request = request(source, name, options)?;
    let client = global.connection.client().await?;
    let job = client.submit(request).await?;
    follow::submitted(global, &client, job, detach).await
}

fn request(source: IngestSource, default_name: &str, options: IngestOptions) -> Outcome<JobRequest> {
    let IngestOptions { dataset, part_rows, detach: _, job } = options;
    let part_rows = part_rows.unwrap_or(DEFAULT_ROWS);
    within("part-rows", part_rows, 1, 1_000_000)?;
    let dataset = dataset.map_or_else(|| Name::new(default_name).map_err(Failure::usage), Ok)?;
    Ok(job.request(RequestedWork::Ingest { dataset, source, part_rows }))
}

/// CelebA in a folder.
pub fn celeba_source(dir: &Path) -> Outcome<IngestSource> {
    Ok(IngestSource::Celeba { dir: absolute(dir)? })
}

/// Parquet files.
pub fn parquet_source(files: &[PathBuf]) -> Outcome<IngestSource> {
    let files = files.iter().map(|file| absolute(file)).collect::<Outcome<_>>()?;
    Ok(IngestSource::Parquet { files })
}

/// A table of images and labels.
fn csv_source(file: &Path, options: CsvOptions) -> Outcome<IngestSource> {
    let CsvOptions { images, path_column, id_column, split_column, group_column, attributes, zero } = options;
    let file = absolute(file)?;
    let dir = match images {
        Some(dir) => absolute(&dir)?,
        // Both a path and a URL: what stands before the last slash, the root's own included.
        None => file.rsplit_once('/').map_or(".", |(dir, _)| if dir.is_empty() { "/" } else { dir }).into(),
    };
    let (path, item, split, group) = (path_column, id_column, split_column, group_column);
    let columns = CsvColumns { path, item, split, group, attributes };
    Ok(IngestSource::Csv(CsvSource { file, dir, columns, zero: zero.unwrap_or_default() }))
}

/// The path as workers on this machine see it, a URL as it is. It need not be there: workers may see more than we do.
pub fn absolute(path: &Path) -> Outcome<String> {
    if let Some(url) = path.to_str().filter(|path| likeness_link::remote::is_remote(path)) {
        return Ok(url.into());
    }
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(_) => std::path::absolute(path)?,
    };
    path.into_os_string().into_string().map_err(|path| Failure::usage(format!("{path:?} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: IngestArgs,
    }

    fn parse(line: &str) -> Outcome<JobRequest> {
        match Line::try_parse_from(std::iter::once("ingest").chain(line.split(' '))).unwrap().args.source {
            Source::Celeba { dir, options } => request(celeba_source(&dir)?, "celeba", options),
            Source::Parquet { files, options } => request(parquet_source(&files)?, "images", options),
            Source::Csv { file, csv, options } => request(csv_source(&file, csv)?, "images", options),
        }
    }

    #[test]
    fn images_of_a_table_start_from_its_own_folder_unless_told() {
        let csv = |line: &str| {
            let RequestedWork::Ingest { source: IngestSource::Csv(csv), .. } = parse(line).unwrap().work else {
                panic!("a table")
            };
            csv
        };
        let plain = csv("csv /data/faces.csv");
        assert_eq!((plain.file.as_str(), plain.dir.as_str()), ("/data/faces.csv", "/data"));
        assert_eq!((plain.columns, plain.zero), (CsvColumns::default(), ZeroLabel::Auto));
        assert_eq!(csv("csv s3://raw/a/faces.csv").dir, "s3://raw/a");
        let told = csv("csv /f.csv --images /photos --group-column who --attributes old,young --zero unknown");
        assert_eq!((told.dir.as_str(), told.zero), ("/photos", ZeroLabel::Unknown));
        assert_eq!((told.columns.group.as_deref(), told.columns.attributes.len()), (Some("who"), 2));
    }

    #[test]
    fn paths_are_made_absolute() {
        let RequestedWork::Ingest { dataset, source, part_rows } = parse("celeba some/folder").unwrap().work else {
            panic!("an ingest")
        };
        let IngestSource::Celeba { dir } = source else { panic!("celeba") };
        assert!(dir.starts_with('/') && dir.ends_with("some/folder"), "{dir}");
        assert_eq!((dataset.as_str(), part_rows), ("celeba", DEFAULT_ROWS));
    }

    #[test]
    fn flags_may_follow_the_files() {
        let request = parse("parquet a.parquet b.parquet --dataset faces --part-rows 10 --id x1").unwrap();
        let RequestedWork::Ingest { dataset, source, part_rows } = request.work else { panic!("an ingest") };
        let IngestSource::Parquet { files } = source else { panic!("parquet") };
        assert_eq!((dataset.as_str(), part_rows, files.len()), ("faces", 10, 2));
        assert_eq!(request.id.unwrap().as_str(), "x1");
    }

    #[test]
    fn an_empty_part_is_refused() {
        assert_eq!(parse("celeba d --part-rows 0").unwrap_err().exit as u8, 64);
    }
}

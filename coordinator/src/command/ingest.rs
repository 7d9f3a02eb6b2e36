//! `likeness ingest`: images and labels into a new version of a dataset.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Subcommand};
use likeness_contract::ids::Name;
use likeness_contract::jobs::{
    AppendSource, CelebaSplit, CsvColumns, CsvSource, IngestSource, JobRequest, LabelWords, ReadFrom, ReadSource,
    RequestedWork, ZeroLabel,
};
use likeness_link::client::Client;

use crate::command::Global;
use crate::command::datasets;
use crate::command::exit::{Failure, Outcome};
use crate::command::follow;
use crate::command::options::{DEFAULT_ROWS, JobOptions, within, words};
use crate::command::selectors::DatasetArg;

/// Flags of `likeness ingest`.
#[derive(Debug, Args)]
#[command(after_help = "\
Workers read the source themselves: a path must be one that they see too. It may be a URL: s3://, gs:// and az:// \
with the workers' credentials; http:// and https:// for Parquet and CSV files. Bad images are skipped and listed; a wrong \
header, a missing column or a duplicate name is an error that names its line. What labels were understood as is listed with counts \
when the dataset is there.

With --append the newest version grows: the new one shares its parts, and only new images are read and written. Items that were \
removed (`likeness datasets remove`) are in no version made afterwards.

Examples:
  likeness ingest celeba ~/celeba
  likeness ingest celeba ~/celeba --split-by identity
  likeness ingest parquet 'faces/*.parquet' --dataset faces --part-rows 4096
  likeness ingest parquet s3://raw/faces --group-column person --dataset faces
  likeness ingest csv faces.csv --images photos/ --split-column fold
  likeness ingest csv faces.tsv --path-column picture --group-column person --attributes smiling,glasses
  likeness ingest csv faces.csv --labels 'has=ja,has-not=nein,unknown=-'
  likeness ingest folder photos/ --vocabulary-of celeba --dataset photos
  likeness ingest csv more.csv --dataset faces --append")]
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
        /// What tells the split: the partition list, a hash of the item id, or a hash of the person (identity_CelebA.txt).
        #[arg(long, value_name = "WHAT", value_parser = words::<CelebaSplit>(&["partition", "item", "identity"]))]
        split_by: Option<CelebaSplit>,
        #[command(flatten)]
        options: IngestOptions,
    },
    /// Parquet files as on the Hugging Face hub: an image column and one column of labels per attribute.
    #[command(after_help = PARQUET_HELP)]
    Parquet {
        /// Files, folders of files, patterns ('faces/*.parquet') or their URLs, in order.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Column of the images: binary, or a struct of `bytes` and `path` [default: image].
        #[arg(long, value_name = "COLUMN", help_heading = "Table")]
        image_column: Option<String>,
        #[command(flatten)]
        table: TableOptions,
        #[command(flatten)]
        options: IngestOptions,
    },
    /// A CSV file, one row an image: its path, and one column of labels per attribute.
    #[command(after_help = LABELS_HELP)]
    Csv {
        /// The file or its URL; cells are separated by comma, semicolon or tab.
        file: PathBuf,
        #[command(flatten)]
        csv: CsvOptions,
        #[command(flatten)]
        table: TableOptions,
        #[command(flatten)]
        options: IngestOptions,
    },
    /// A folder of images: the folder that an image lies in names the attribute that it has.
    #[command(after_help = FOLDER_HELP)]
    Folder {
        /// The folder, or its URL in an object store.
        dir: PathBuf,
        /// The attributes that images may have, if folders do not name them: what no folder says is not known.
        #[arg(long, value_name = "NAME,…", value_delimiter = ',', conflicts_with = "vocabulary_of")]
        attributes: Vec<String>,
        /// The same, taken from another dataset: to embed images without labels with a model that was trained on it.
        #[arg(long, value_name = "DATASET")]
        vocabulary_of: Option<DatasetArg>,
        #[command(flatten)]
        options: IngestOptions,
    },
}

const LABELS_HELP: &str = "\
Labels: 1, true, yes have the attribute; -1, false, no have it not; an empty cell, na, nan, null and ? are not known; 0 is \
not known in a column that also has -1, else has not. \
A column most of whose cells are something else is left out and named; one with a few such cells is an error that names \
the first. What was understood is listed with counts when the dataset is there.";

const PARQUET_HELP: &str = "\
An item's id is the --id-column's cell, else `path` of its image, else the cell of item_id, image_id, file_name, … Its split is told \
by a hash of the --group-column's cell, else by the split column, else by how the file's name begins (train-, validation-, \
test-), else by a hash of the item id (80/10/10).

Attributes are the columns of booleans and numbers that hold labels, or those of --attributes, which may be of text: 1, true, yes have the \
attribute; -1, false, no have it not; null and empty are not known; 0 is not known in a column that also has -1, else has not.";

const FOLDER_HELP: &str = "\
DIR/smiling/1.jpg has `smiling` and none of the other folders' attributes; DIR/train/…, DIR/val/… and DIR/test/… tell the \
split, which else is 80/10/10 by a hash of the item id. Item ids are paths below DIR.";

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
}

/// Flags of tables of any kind.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Table")]
struct TableOptions {
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
    /// Words that are labels, beside the usual ones or against them: has=WORD|WORD, has-not=WORD, unknown=WORD.
    #[arg(long, value_name = "KIND=WORDS,…", value_delimiter = ',')]
    labels: Vec<Told>,
}

/// Words of one kind of label.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Has(Vec<String>),
    HasNot(Vec<String>),
    Unknown(Vec<String>),
}

impl FromStr for Told {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, words) = text.split_once('=').ok_or("expected KIND=WORDS, such as has=ja|oui")?;
        let words = words.split('|').map(|word| word.trim().to_string()).collect();
        match kind.trim() {
            "has" => Ok(Self::Has(words)),
            "has-not" => Ok(Self::HasNot(words)),
            "unknown" => Ok(Self::Unknown(words)),
            other => Err(format!("`{other}` is not has, has-not or unknown")),
        }
    }
}

impl TableOptions {
    fn parts(self, path: Option<String>) -> (CsvColumns, LabelWords) {
        let Self { id_column, split_column, group_column, attributes, zero, labels } = self;
        let columns = CsvColumns { path, item: id_column, split: split_column, group: group_column, attributes };
        let mut words = LabelWords { zero: zero.unwrap_or_default(), ..LabelWords::default() };
        for told in labels {
            match told {
                Told::Has(more) => words.has.extend(more),
                Told::HasNot(more) => words.has_not.extend(more),
                Told::Unknown(more) => words.unknown.extend(more),
            }
        }
        (columns, words)
    }
}

/// What every source has.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Dataset")]
struct IngestOptions {
    /// Name of the dataset [default: `celeba`, or `images` for all else].
    #[arg(long)]
    dataset: Option<Name>,
    /// Let the newest version of the dataset grow, instead of beginning anew: the attributes must be the same.
    #[arg(long)]
    append: bool,
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
    let (client, request, detach) = job(global, args).await?;
    let job = client.submit(request).await?;
    follow::submitted(global, &client, job, detach).await
}

/// The job that flags ask for, and whether to wait for it.
pub async fn job(global: &Global, args: IngestArgs) -> Outcome<(Client, JobRequest, bool)> {
    let client = global.connection.client().await?;
    let (source, name, options) = asked(args.source, Some(&client)).await?;
    let detach = options.detach;
    let request = request(source, name, options)?;
    Ok((client, request, detach))
}

/// The source, the usual name of its dataset, and the other options.
async fn asked(source: Source, client: Option<&Client>) -> Outcome<(IngestSource, &'static str, IngestOptions)> {
    Ok(match source {
        Source::Celeba { dir, split_by, options } => (celeba_split(&dir, split_by)?, "celeba", options),
        Source::Parquet { files, image_column, table, options } => {
            let (columns, labels) = table.parts(image_column);
            (parquet_table(&files, columns, labels)?, "images", options)
        }
        Source::Csv { file, csv, table, options } => (csv_source(&file, csv, table)?, "images", options),
        Source::Folder { dir, attributes, vocabulary_of, options } => {
            let attributes = match (vocabulary_of, client) {
                (Some(DatasetArg(of)), Some(client)) => datasets::manifest(client, &of).await?.vocabulary.names,
                _ => attributes,
            };
            (folder_source(&dir, attributes)?, "images", options)
        }
    })
}

fn request(source: IngestSource, default_name: &str, options: IngestOptions) -> Outcome<JobRequest> {
    let IngestOptions { dataset, append, part_rows, detach: _, job } = options;
    let part_rows = part_rows.unwrap_or(DEFAULT_ROWS);
    within("part-rows", part_rows, 1, 1_000_000)?;
    let dataset = dataset.map_or_else(|| Name::new(default_name).map_err(Failure::usage), Ok)?;
    let source = if append {
        IngestSource::Append(Box::new(AppendSource { base: None, removals: 0, source: Some(source) }))
    } else {
        source
    };
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

fn celeba_split(dir: &Path, split: Option<CelebaSplit>) -> Outcome<IngestSource> {
    match split {
        None | Some(CelebaSplit::Partition) => celeba_source(dir),
        Some(split) => {
            let from = ReadFrom::Celeba { dir: absolute(dir)?, split };
            Ok(read(from, CsvColumns::default(), LabelWords::default()))
        }
    }
}

/// Parquet files, and how they are understood. What every version can say is said as it always was.
fn parquet_table(files: &[PathBuf], columns: CsvColumns, labels: LabelWords) -> Outcome<IngestSource> {
    if columns == CsvColumns::default() && labels == LabelWords::default() {
        return parquet_source(files);
    }
    let files = files.iter().map(|file| absolute(file)).collect::<Outcome<_>>()?;
    Ok(read(ReadFrom::Parquet { files }, columns, labels))
}

fn folder_source(dir: &Path, attributes: Vec<String>) -> Outcome<IngestSource> {
    let columns = CsvColumns { attributes, ..CsvColumns::default() };
    Ok(read(ReadFrom::Folder { dir: absolute(dir)? }, columns, LabelWords::default()))
}

fn read(from: ReadFrom, columns: CsvColumns, labels: LabelWords) -> IngestSource {
    IngestSource::Read(Box::new(ReadSource { from, columns, labels }))
}

/// A table of images and labels.
fn csv_source(file: &Path, options: CsvOptions, table: TableOptions) -> Outcome<IngestSource> {
    let CsvOptions { images, path_column } = options;
    let file = absolute(file)?;
    let dir = match images {
        Some(dir) => absolute(&dir)?,
        // Both a path and a URL: what stands before the last slash, the root's own included.
        None => file.rsplit_once('/').map_or(".", |(dir, _)| if dir.is_empty() { "/" } else { dir }).into(),
    };
    let (columns, labels) = table.parts(path_column);
    let zero = labels.zero;
    if labels == (LabelWords { zero, ..LabelWords::default() }) {
        return Ok(IngestSource::Csv(CsvSource { file, dir, columns, zero }));
    }
    Ok(read(ReadFrom::Csv { file, dir }, columns, labels))
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
        let source = Line::try_parse_from(std::iter::once("ingest").chain(line.split(' '))).unwrap().args.source;
        let (source, name, options) = futures::executor::block_on(asked(source, None))?;
        request(source, name, options)
    }

    fn source(line: &str) -> IngestSource {
        let RequestedWork::Ingest { source, .. } = parse(line).unwrap().work else { panic!("an ingest") };
        source
    }

    #[test]
    fn what_was_always_said_is_said_as_before() {
        assert!(source("parquet /a.parquet").is_of_before());
        assert!(source("csv /a.csv --zero no --group-column who").is_of_before());
        assert!(source("celeba /d --split-by partition").is_of_before());
        for new in
            ["parquet /a.parquet --zero no", "csv /a.csv --labels has=ja", "celeba /d --split-by item", "folder /d"]
        {
            assert!(!source(new).is_of_before(), "{new}");
        }
    }

    #[test]
    fn words_and_columns_reach_the_source() {
        let line =
            "parquet /d/*.parquet --image-column photo --group-column who --labels has=ja|oui,has-not=nein,unknown=";
        let IngestSource::Read(read) = source(line) else { panic!("more is said") };
        assert_eq!(read.from, ReadFrom::Parquet { files: vec!["/d/*.parquet".into()] });
        assert_eq!((read.columns.path.as_deref(), read.columns.group.as_deref()), (Some("photo"), Some("who")));
        let LabelWords { has, has_not, unknown, zero } = read.labels;
        assert_eq!(
            (has, has_not, unknown, zero),
            (vec!["ja".into(), "oui".into()], vec!["nein".into()], vec!["".into()], ZeroLabel::Auto)
        );
        assert!("maybe=x".parse::<Told>().is_err() && "has".parse::<Told>().is_err());
    }

    #[test]
    fn a_growing_dataset_takes_any_source() {
        let IngestSource::Append(append) = source("folder /photos --attributes old,young --append") else { panic!() };
        let AppendSource { base, removals, source } = *append;
        assert_eq!((base, removals), (None, 0));
        let Some(IngestSource::Read(read)) = source else { panic!("a folder") };
        assert_eq!((read.from, read.columns.attributes.len()), (ReadFrom::Folder { dir: "/photos".into() }, 2));
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

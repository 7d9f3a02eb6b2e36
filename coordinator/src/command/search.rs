//! `likeness search`: asks the searchers one question, or all of a file.

mod answers;
mod batch;
mod file;
mod online;
mod show;

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use likeness_contract::ids::{JobId, Name};
use likeness_contract::ranking::MAX_K;
use likeness_contract::search::{LabelFilter, SearchRequest, SearchResults, Term, WeightedTerm};
use likeness_link::client::Client;

pub use show::{draw, print};

use crate::command::Global;
use crate::command::bounded;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::options::{JobOptions, within};
use crate::command::output::{self, say};
use crate::command::pipeline::DEFAULT_ALIAS;
use crate::command::shrink;

/// Flags that ask one question; a file has its own.
const QUESTION: [&str; 10] =
    ["with", "without", "image", "like", "vector", "only_with", "only_without", "page", "cursor", "explain"];

/// Flags of `likeness search`.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("files").args(["queries", "batch", "answers"]))]
#[command(after_help = "\
Attributes, images, items and a vector may be asked for together: the answer is near to their sum. A weight says how \
much one of them counts; a negative one asks for its opposite. --only-with and --only-without are different: they do not \
say what results should be like, they leave out every image whose known label is another one or is not known.

Answers are exact unless --recall says that an approximate one is enough; what is expected of it is told with it.

Examples:
  likeness search --with Smiling,Eyeglasses --without Male
  likeness search --image me.jpg --with Eyeglasses --sheet out.png
  likeness search --like 000123.jpg -k 5 --json
  likeness search --like 000123.jpg --with Eyeglasses --attributes-weight 0.5    this face, but with glasses
  likeness search --like 000123.jpg --without Beard --min-coverage 1             all of the gallery, or an error
  likeness search --vector query.json                                            [0.12, -0.3, …]: D numbers
  likeness search --like 000123.jpg --only-with Smiling --only-without Male      like this one, among smiling women
  likeness search --with Smiling -k 50 --page 3                                  results 101 to 150
  likeness search --with Smiling --page 1 --json | jq -r .next > next            and what follows, of the same release:
  likeness search --cursor next
  likeness search --with Smiling --recall 0.95                                   faster in large galleries
  likeness search --like a.jpg --like b.jpg --like-weight 1 --like-weight 0.5    between the two, nearer to the first
  likeness search --with Smiling,Eyeglasses --explain                            what is known and estimated of every hit
  likeness search --queries questions.jsonl --out answers.parquet                every question of a file
  likeness search --batch questions.parquet --out answers.parquet                a large file: as a job, on workers

A file of questions is JSON lines, CSV or Parquet, by its ending; `-` reads JSON lines from the standard input. A line or row \
has any of: id, with, without, like, image, vector, attributes_weight, like_weight, image_weight, vector_weight, only_with, \
only_without, k, recall. Answers go to --out (.parquet or .jsonl), else as JSON lines to the standard output, in the order of \
the questions; what could not be answered says why, and then the exit code is 1.
  {\"id\": \"q1\", \"with\": [\"Smiling\"], \"without\": \"Male,Young\", \"like\": \"000123.jpg\", \"like_weight\": 0.5, \"k\": 10}

When the searchers have too much to do (`overloaded`), try again after a pause; the exit code is 69.")]
pub struct SearchArgs {
    /// Attributes that results should have, separated by commas; repeat the flag for names with commas.
    #[arg(long, value_name = "NAMES")]
    pub with: Vec<String>,
    /// Attributes that results should not have.
    #[arg(long, value_name = "NAMES")]
    pub without: Vec<String>,
    /// How much the attributes count [default: 1].
    #[arg(long, value_name = "W")]
    pub attributes_weight: Option<f32>,
    /// An image (JPEG, PNG or WebP) that results should be like; it is shrunk before it is sent. Repeat the flag for several.
    #[arg(long, value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// How much the image counts; of several images once for all, or once for each [default: 1].
    #[arg(long, value_name = "W")]
    pub image_weight: Vec<f32>,
    /// An item of the gallery that results should be like; it is left out of the answer. Repeat the flag for several.
    #[arg(long, value_name = "ITEM")]
    pub like: Vec<String>,
    /// How much the item counts; of several items once for all, or once for each [default: 1].
    #[arg(long, value_name = "W")]
    pub like_weight: Vec<f32>,
    /// A file with a vector that results should be near to: a JSON list of as many numbers as the model has dimensions.
    /// Repeat the flag for several.
    #[arg(long, value_name = "FILE")]
    pub vector: Vec<PathBuf>,
    /// How much the vector counts; of several vectors once for all, or once for each [default: 1].
    #[arg(long, value_name = "W")]
    pub vector_weight: Vec<f32>,
    /// Only images that are known to have these attributes, separated by commas.
    #[arg(long, value_name = "NAMES", help_heading = "Filter")]
    pub only_with: Vec<String>,
    /// Only images that are known not to have these attributes.
    #[arg(long, value_name = "NAMES", help_heading = "Filter")]
    pub only_without: Vec<String>,
    /// An approximate answer is enough that has this part of the true one, on average, such as 0.95; of more than 100 results, with a
    /// filter and in small galleries the answer stays exact.
    #[arg(long, value_name = "SHARE")]
    pub recall: Option<f64>,
    /// Results wanted, at most 10000.
    #[arg(short, long, default_value_t = 20)]
    pub k: u32,
    /// The page of K results with this number, from 1; it tells how to ask for the next one. Pages end with result 10000.
    #[arg(long, value_name = "N", help_heading = "Pages")]
    pub page: Option<u32>,
    /// A file with the `next` of an earlier answer (`-` for the standard input): what follows it, of the same release, as
    /// long as that is loaded.
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Pages",
        conflicts_with_all = ["with", "without", "image", "like", "vector", "only_with", "only_without", "recall", "page", "explain"]
    )]
    pub cursor: Option<PathBuf>,
    /// Tell, for every attribute that is asked for, each hit's known label and how likely it is that it has the attribute by
    /// what the model sees.
    #[arg(long)]
    pub explain: bool,
    /// Draw the results into this PNG.
    #[arg(long, value_name = "FILE")]
    pub sheet: Option<PathBuf>,
    /// Fail when less than this share of the gallery could be asked.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub min_coverage: f64,
    /// Time after which an answer is of no use.
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    pub deadline_ms: u32,
    /// The alias that is asked.
    #[arg(long, default_value = DEFAULT_ALIAS)]
    pub alias: Name,
    /// Ask all questions of this file; flags such as -k hold where a question does not say otherwise.
    #[arg(long, value_name = "FILE", help_heading = "Files", conflicts_with_all = QUESTION)]
    pub queries: Option<PathBuf>,
    /// The same as a job, for large files: workers that evaluate answer it from the newest release.
    #[arg(long, value_name = "FILE", help_heading = "Files", conflicts_with_all = QUESTION, conflicts_with = "queries")]
    pub batch: Option<PathBuf>,
    /// Fetch the answers of such a job.
    #[arg(long, value_name = "JOB", help_heading = "Files", conflicts_with_all = QUESTION, conflicts_with_all = ["queries", "batch"])]
    pub answers: Option<JobId>,
    /// Where the answers go: a file that ends in .parquet or .jsonl; there when it is complete.
    #[arg(long, value_name = "FILE", help_heading = "Files", requires = "files")]
    pub out: Option<PathBuf>,
    /// Questions of a file that are asked at once.
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Files", requires = "queries")]
    pub at_once: u32,
    /// Questions of a task of the job.
    #[arg(long, value_name = "N", default_value_t = batch::DEFAULT_PART_QUESTIONS, help_heading = "Files", requires = "batch")]
    pub queries_per_task: u32,
    /// Print the job's id and don't wait; `--answers` fetches what it left.
    #[arg(long, help_heading = "Job", requires = "batch")]
    pub detach: bool,
    #[command(flatten)]
    pub job: JobOptions,
}

/// Asks and prints.
pub async fn run(global: &Global, args: SearchArgs) -> Outcome {
    if args.batch.is_none() && args.job != JobOptions::default() {
        return Err(Failure::usage("--id, --device, --priority and their like are of a job: give --batch"));
    }
    let questions = args.queries.as_ref().or(args.batch.as_ref());
    if let (Some(questions), Some(out)) = (questions, &args.out)
        && same_file(questions, out)
    {
        return Err(Failure::usage(format!("`{}` would be overwritten by its answers", questions.display())));
    }
    match (&args.queries, &args.batch, &args.answers) {
        (Some(file), _, _) => online::run(global, &args, file).await,
        (None, Some(file), _) => batch::run(global, &args, file).await,
        (None, None, Some(job)) => batch::answers(global, &args, job).await,
        (None, None, None) => ask_one(global, &args).await,
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

async fn ask_one(global: &Global, args: &SearchArgs) -> Outcome {
    let request = request(args)?;
    let before = show::ranks_before(args, &request);
    let client = global.connection.client().await?;
    let results = turn_to_page(&client, request, args.page.unwrap_or(1)).await?;
    if global.json {
        output::json(&results)?;
    } else {
        print(args, before, &results);
    }
    if let Some(file) = &args.sheet {
        draw(&client, args, &results)
            .await?
            .save_with_format(file, image::ImageFormat::Png)
            .map_err(|error| Failure::failed(format!("can't write `{}`: {error}", file.display())))?;
        say(format!("wrote {}", file.display()));
    }
    Ok(Exit::Done)
}

/// The answer's page with this number: all pages before it are asked for, too.
async fn turn_to_page(client: &Client, mut request: SearchRequest, page: u32) -> Outcome<SearchResults> {
    let mut results = client.search(&request).await?;
    for number in 2..=page {
        let Some(next) = results.next.take() else {
            return Err(Failure::failed(format!("there is no page {number}: page {} is the last one", number - 1)));
        };
        request = request.after(next);
        results = client.search(&request).await?;
    }
    Ok(results)
}

/// The request for these flags.
pub fn request(args: &SearchArgs) -> Outcome<SearchRequest> {
    let cursor = args.cursor.as_deref().map(read_cursor).transpose()?;
    let terms = terms(args)?;
    if terms.is_empty() && cursor.is_none() {
        return Err(Failure::usage(
            "nothing is asked: give --with, --without, --image, --like or --vector (`likeness search --help` has examples)",
        ));
    }
    if args.explain && !terms.iter().any(|term| matches!(term.term, Term::Attributes { .. })) {
        return Err(Failure::usage("--explain tells of the attributes that are asked for: give --with or --without"));
    }
    let filter = LabelFilter { with: lists(&args.only_with), without: lists(&args.only_without) };
    let (paged, explain) = (args.page.is_some(), args.explain);
    Ok(SearchRequest { terms, filter, paged, cursor, explain, ..blank(args)? })
}

/// What all questions of these flags have in common.
fn blank(args: &SearchArgs) -> Outcome<SearchRequest> {
    within("k", args.k, 1, MAX_K as u32)?;
    within("min-coverage", args.min_coverage, 0.0, 1.0)?;
    within("deadline-ms", args.deadline_ms, 1, 600_000)?;
    within("recall", args.recall.unwrap_or(1.0), 0.0, 1.0)?;
    within("page", args.page.unwrap_or(1), 1, MAX_K as u32)?;
    let (min_coverage, deadline_ms, recall) = (args.min_coverage, args.deadline_ms, args.recall);
    Ok(SearchRequest {
        min_coverage,
        deadline_ms,
        recall,
        ..SearchRequest::new(args.alias.clone(), Vec::new(), args.k)
    })
}

/// A reply's own limit; a cursor is a part of one.
const MAX_CURSOR_BYTES: u64 = 1 << 20;
/// A few times what thousands of numbers take.
const MAX_VECTOR_BYTES: u64 = 1 << 20;

fn read_cursor(file: &Path) -> Outcome<String> {
    Ok(bounded::text(file, MAX_CURSOR_BYTES)?.trim().to_string())
}

fn terms(args: &SearchArgs) -> Outcome<Vec<WeightedTerm>> {
    let attributes = attributes(lists(&args.with), lists(&args.without)).map_err(Failure::usage)?;
    let weight = args.attributes_weight.as_slice();
    let images =
        args.image.iter().map(|file| Ok(Term::Image { bytes: shrink::read(file)? })).collect::<Outcome<_>>()?;
    let items = args.like.iter().map(|item| Term::Item { item: item.clone() }).collect();
    let vectors =
        args.vector.iter().map(|file| Ok(Term::Vector { values: read_vector(file)? })).collect::<Outcome<_>>()?;
    let flag = |name: &str| format!("--{name}");
    let weighed = [
        weighed(&flag("attributes-weight"), &flag("with"), weight, attributes),
        weighed(&flag("image-weight"), &flag("image"), &args.image_weight, images),
        weighed(&flag("like-weight"), &flag("like"), &args.like_weight, items),
        weighed(&flag("vector-weight"), &flag("vector"), &args.vector_weight, vectors),
    ];
    let mut all = Vec::new();
    for terms in weighed {
        all.extend(terms.map_err(Failure::usage)?);
    }
    Ok(all)
}

/// The term of attributes, if any are named.
fn attributes(with: Vec<String>, without: Vec<String>) -> Result<Vec<Term>, String> {
    if let Some(both) = with.iter().find(|name| without.contains(name)) {
        return Err(format!("`{both}` is asked both with and without"));
    }
    let asked = !with.is_empty() || !without.is_empty();
    Ok(asked.then_some(Term::Attributes { with, without }).into_iter().collect())
}

/// Terms with their weights: 1 where none is given, else one for all, or one for each.
fn weighed(weight: &str, of: &str, weights: &[f32], terms: Vec<Term>) -> Result<Vec<WeightedTerm>, String> {
    if let Some(wrong) = weights.iter().find(|weight| **weight == 0.0 || !weight.is_finite()) {
        return Err(format!("`{weight}` is {wrong}: it must be a number other than 0"));
    }
    let weights = match weights {
        [] => vec![1.0; terms.len()],
        [_, ..] if terms.is_empty() => return Err(format!("`{weight}` is given, but no `{of}` that it is of")),
        [one] => vec![*one; terms.len()],
        each if each.len() == terms.len() => each.to_vec(),
        each => {
            let (given, there) = (each.len(), terms.len());
            return Err(format!(
                "`{weight}` is given {given} times and `{of}` {there} times: give one weight, or as many"
            ));
        }
    };
    Ok(weights.into_iter().zip(terms).map(|(weight, term)| WeightedTerm { weight, term }).collect())
}

fn read_vector(file: &Path) -> Outcome<Vec<f32>> {
    let name = file.display();
    let text = bounded::text(file, MAX_VECTOR_BYTES)?;
    let wrong = |e| Failure::usage(format!("`{name}` is no vector, such as [0.1, -0.2, 0.3]: {e}"));
    serde_json::from_str(&text).map_err(wrong)
}

/// Those that name anything. Searchers take them apart: they know which names have commas.
fn lists(lists: &[String]) -> Vec<String> {
    let names_any = |list: &&String| list.chars().any(|c| c != ',' && !c.is_whitespace());
    lists.iter().filter(names_any).map(|list| list.trim().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SearchArgs,
    }

    pub fn parse(line: &str) -> SearchArgs {
        Line::try_parse_from(std::iter::once("search").chain(line.split_whitespace())).unwrap().args
    }

    #[test]
    fn names_may_be_listed_or_repeated() {
        let request = request(&parse("--with Smiling,Eyeglasses --with Young --without Male,")).unwrap();
        let Term::Attributes { with, without } = &request.terms[0].term else { panic!("attributes") };
        assert_eq!(with, &["Smiling,Eyeglasses", "Young"]);
        assert_eq!(without, &["Male,"]);
        assert_eq!((request.k, request.alias.as_str()), (20, "main"));
    }

    #[test]
    fn an_empty_or_impossible_question_is_refused() {
        for line in [
            "",
            "--with ,",
            "--with Male --without Male",
            "--with Male -k 0",
            "--with Male -k 10001",
            "--with Male --min-coverage 2",
            "--with Male --attributes-weight 0",
            "--like a.jpg --like-weight NaN",
            "--vector /nowhere.json",
            "--only-with Male",
            "--with Male --recall 1.5",
            "--with Male --page 0",
            "--cursor /nowhere",
            "--like a.jpg --explain",
            "--like a.jpg --image-weight 2",
            "--like a.jpg --attributes-weight 2",
            "--like a.jpg --like b.jpg --like c.jpg --like-weight 1 --like-weight 2",
        ] {
            assert_eq!(request(&parse(line)).unwrap_err().exit as u8, 64, "{line}");
        }
    }

    #[test]
    fn terms_of_all_kinds_are_asked_together() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("v.json");
        std::fs::write(&file, "[0.5, -1]").unwrap();
        let line = format!("--with Male --like a.jpg --like-weight=-0.5 --vector {} --vector-weight 2", file.display());
        let terms = request(&parse(&line)).unwrap().terms;
        assert_eq!(terms.iter().map(|term| term.weight).collect::<Vec<_>>(), [1.0, -0.5, 2.0]);
        assert!(matches!(&terms[1].term, Term::Item { item } if item == "a.jpg"));
        assert_eq!(terms[2].term, Term::Vector { values: vec![0.5, -1.0] });
        std::fs::write(&file, "{}").unwrap();
        assert!(request(&parse(&line)).unwrap_err().to_string().contains("is no vector"));
    }

    #[test]
    fn several_of_a_kind_have_one_weight_or_one_each() {
        let weights =
            |line: &str| -> Vec<f32> { request(&parse(line)).unwrap().terms.iter().map(|term| term.weight).collect() };
        assert_eq!(weights("--like a --like b"), [1.0, 1.0]);
        assert_eq!(weights("--like a --like b --like-weight 0.5 --with Male"), [1.0, 0.5, 0.5]);
        assert_eq!(weights("--like a --like b --like-weight 2 --like-weight=-1"), [2.0, -1.0]);
        let error = request(&parse("--like a --like b --like c --like-weight 1 --like-weight 1")).unwrap_err();
        assert!(error.to_string().contains("`--like-weight` is given 2 times and `--like` 3 times"), "{error}");
        assert!(request(&parse("--with Male --explain")).unwrap().explain);
    }

    #[test]
    fn a_file_of_questions_goes_alone() {
        assert!(parse("--queries q.jsonl -k 5 --out a.parquet --recall 0.9").queries.is_some());
        for line in ["--queries q --with Male", "--queries q --like a", "--queries q --page 2", "--out a.jsonl"] {
            assert!(Line::try_parse_from(std::iter::once("search").chain(line.split(' '))).is_err(), "{line}");
        }
    }

    #[test]
    fn a_filter_a_recall_and_pages_are_asked_for() {
        let request = request(&parse("--like a.jpg --only-with A,B --only-without C --recall 0.9 --page 2")).unwrap();
        assert_eq!(request.filter, LabelFilter { with: vec!["A,B".into()], without: vec!["C".into()] });
        assert_eq!(show::ranks_before(&parse("-k 30 --page 3"), &request), 60);
        assert_eq!((request.recall, request.paged, request.cursor), (Some(0.9), true, None));
    }

    #[test]
    fn a_cursor_goes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("next");
        std::fs::write(&file, "abc\n").unwrap();
        let request = request(&parse(&format!("--cursor {} -k 7", file.display()))).unwrap();
        assert_eq!((request.cursor.as_deref(), request.k, request.terms.len()), (Some("abc"), 7, 0));
        assert!(Line::try_parse_from(["search", "--cursor", "x", "--like", "a.jpg"]).is_err());
    }
}

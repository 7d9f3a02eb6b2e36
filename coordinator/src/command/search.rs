//! `likeness search`: asks the searchers, prints what they found, draws it.

use std::path::{Path, PathBuf};

use clap::Args;
use futures::{StreamExt, TryStreamExt};
use image::RgbImage;
use likeness_contract::ids::Name;
use likeness_contract::ranking::MAX_K;
use likeness_contract::search::{
    Coverage, Cursor, Hit, LabelFilter, Recall, SearchRequest, SearchResults, Term, WeightedTerm,
};
use likeness_contract::settings::Vocabulary;
use likeness_link::client::Client;
use likeness_link::images::image_bytes;

use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::options::within;
use crate::command::output::{self, Table, line, say, thousands};
use crate::command::pipeline::DEFAULT_ALIAS;
use crate::command::sheet::{self, Cell, Mark, Sheet};
use crate::command::shrink;

/// Images that are read from the store at once.
const READS_AT_ONCE: usize = 8;
/// Pictures on a sheet; more would be no sheet.
const MAX_SHEET: usize = 200;

/// Flags of `likeness search`.
#[derive(Debug, Clone, Args)]
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

When the searchers have too much to do (`overloaded`), try again after a pause; the exit code is 69.")]
pub struct SearchArgs {
    /// Attributes that results should have, separated by commas; repeat the flag for names with commas.
    #[arg(long, value_name = "NAMES")]
    pub with: Vec<String>,
    /// Attributes that results should not have.
    #[arg(long, value_name = "NAMES")]
    pub without: Vec<String>,
    /// How much the attributes count.
    #[arg(long, value_name = "W", default_value_t = 1.0)]
    pub attributes_weight: f32,
    /// An image (JPEG, PNG or WebP) that results should be like; it is shrunk before it is sent.
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// How much the image counts.
    #[arg(long, value_name = "W", default_value_t = 1.0)]
    pub image_weight: f32,
    /// An item of the gallery that results should be like; it is left out of the answer.
    #[arg(long, value_name = "ITEM")]
    pub like: Option<String>,
    /// How much the item counts.
    #[arg(long, value_name = "W", default_value_t = 1.0)]
    pub like_weight: f32,
    /// A file with a vector that results should be near to: a JSON list of as many numbers as the model has dimensions.
    #[arg(long, value_name = "FILE")]
    pub vector: Option<PathBuf>,
    /// How much the vector counts.
    #[arg(long, value_name = "W", default_value_t = 1.0)]
    pub vector_weight: f32,
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
        conflicts_with_all = ["with", "without", "image", "like", "vector", "only_with", "only_without", "recall", "page"]
    )]
    pub cursor: Option<PathBuf>,
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
}

/// Asks and prints.
pub async fn run(global: &Global, args: SearchArgs) -> Outcome {
    let request = request(&args)?;
    let before = ranks_before(&args, &request);
    let client = global.connection.client().await?;
    let results = turn_to_page(&client, request, args.page.unwrap_or(1)).await?;
    if global.json {
        output::json(&results)?;
    } else {
        print(&args, before, &results);
    }
    if let Some(file) = &args.sheet {
        draw(&client, &args, &results)
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
    within("k", args.k, 1, MAX_K as u32)?;
    within("min-coverage", args.min_coverage, 0.0, 1.0)?;
    within("deadline-ms", args.deadline_ms, 1, 600_000)?;
    within("recall", args.recall.unwrap_or(1.0), 0.0, 1.0)?;
    within("page", args.page.unwrap_or(1), 1, MAX_K as u32)?;
    let cursor = args.cursor.as_deref().map(read_cursor).transpose()?;
    let terms = terms(args)?;
    if terms.is_empty() && cursor.is_none() {
        return Err(Failure::usage(
            "nothing is asked: give --with, --without, --image, --like or --vector (`likeness search --help` has examples)",
        ));
    }
    Ok(SearchRequest {
        min_coverage: args.min_coverage,
        deadline_ms: args.deadline_ms,
        filter: LabelFilter { with: lists(&args.only_with), without: lists(&args.only_without) },
        recall: args.recall,
        paged: args.page.is_some(),
        cursor,
        ..SearchRequest::new(args.alias.clone(), terms, args.k)
    })
}

fn read_cursor(file: &Path) -> Outcome<String> {
    let name = file.display();
    let wrong = |error| Failure::usage(format!("can't read `{name}`: {error}"));
    let text = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()).map_err(wrong)?,
        _ => std::fs::read_to_string(file).map_err(wrong)?,
    };
    Ok(text.trim().to_string())
}

fn terms(args: &SearchArgs) -> Outcome<Vec<WeightedTerm>> {
    let (with, without) = (lists(&args.with), lists(&args.without));
    if let Some(both) = with.iter().find(|name| without.contains(name)) {
        return Err(Failure::usage(format!("`{both}` is asked both with and without")));
    }
    let mut terms = Vec::new();
    if !with.is_empty() || !without.is_empty() {
        terms.push(weighted("attributes", args.attributes_weight, Term::Attributes { with, without })?);
    }
    if let Some(file) = &args.image {
        terms.push(weighted("image", args.image_weight, Term::Image { bytes: shrink::read(file)? })?);
    }
    if let Some(item) = &args.like {
        terms.push(weighted("like", args.like_weight, Term::Item { item: item.clone() })?);
    }
    if let Some(file) = &args.vector {
        terms.push(weighted("vector", args.vector_weight, Term::Vector { values: read_vector(file)? })?);
    }
    Ok(terms)
}

fn weighted(what: &str, weight: f32, term: Term) -> Outcome<WeightedTerm> {
    if weight == 0.0 || !weight.is_finite() {
        return Err(Failure::usage(format!("`{what}-weight` is {weight}: it must be a number other than 0")));
    }
    Ok(WeightedTerm { weight, term })
}

fn read_vector(file: &Path) -> Outcome<Vec<f32>> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|e| Failure::usage(format!("can't read `{name}`: {e}")))?;
    let wrong = |e| Failure::usage(format!("`{name}` is no vector, such as [0.1, -0.2, 0.3]: {e}"));
    serde_json::from_str(&text).map_err(wrong)
}

/// Those that name anything. Searchers take them apart: they know which names have commas.
fn lists(lists: &[String]) -> Vec<String> {
    let names_any = |list: &&String| list.chars().any(|c| c != ',' && !c.is_whitespace());
    lists.iter().filter(names_any).map(|list| list.trim().to_string()).collect()
}

/// An attribute that was asked for.
struct Asked {
    name: String,
    position: usize,
    wanted: i8,
}

impl Asked {
    /// `+Smiling`, `−Male`.
    fn text(&self) -> String {
        format!("{}{}", if self.wanted > 0 { '+' } else { '−' }, self.name)
    }

    /// Whether a hit is as asked; `None` when its label is not known.
    fn agrees(&self, hit: &Hit) -> Option<bool> {
        let label = *hit.labels.get(self.position)?;
        (label != 0).then_some(label == self.wanted)
    }
}

fn asked(args: &SearchArgs, results: &SearchResults) -> Vec<Asked> {
    let vocabulary = Vocabulary { names: results.vocabulary.clone() };
    let signed = |asked: &[String], wanted: i8| {
        // Whoever answered knew every name.
        let positions = lists(asked).iter().filter_map(|list| vocabulary.positions(list).ok()).flatten().collect();
        let ask = |position: usize| Asked { name: vocabulary.names[position].clone(), position, wanted };
        each_once(positions).into_iter().map(ask).collect::<Vec<_>>()
    };
    [signed(&args.with, 1), signed(&args.without, -1)].into_iter().flatten().collect()
}

fn each_once(positions: Vec<usize>) -> Vec<usize> {
    let mut seen = std::collections::HashSet::new();
    positions.into_iter().filter(|position| seen.insert(*position)).collect()
}

/// Prints hits as a table, and coverage and time as talk. `before` results were on earlier pages.
pub fn print(args: &SearchArgs, before: usize, results: &SearchResults) {
    line(table(&asked(args, results), before, &results.hits));
    say(footer(args, results));
    for reason in &results.coverage.reasons {
        say(format!("  {reason}"));
    }
    if let Some(Recall { estimate, shards, exact }) = &results.recall {
        let part = format!("about {:.1} % of the exact answer is expected", estimate * 100.0);
        say(match shards {
            0 => "exact: no shard was searched approximately".into(),
            _ => format!("approximate: {part}"),
        });
        exact.iter().for_each(|reason| say(format!("  exactly {reason}")));
    }
    if let (Some(page), Some(_)) = (args.page, &results.next) {
        say(format!("more: --page {}", page + 1));
    }
}

/// Results on the pages before.
fn ranks_before(args: &SearchArgs, request: &SearchRequest) -> usize {
    match request.cursor.as_deref().and_then(|text| Cursor::from_text(text).ok()) {
        Some(cursor) => cursor.answered as usize,
        None => (args.page.unwrap_or(1) as usize - 1) * args.k as usize,
    }
}

fn table(asked: &[Asked], before: usize, hits: &[Hit]) -> String {
    let head = ["rank", "item", "distance"].map(String::from).into_iter().chain(asked.iter().map(Asked::text));
    let mut table = Table::with_head(head.collect());
    for (rank, hit) in hits.iter().enumerate() {
        let found = asked.iter().map(|asked| agreement(asked.agrees(hit)).to_string());
        let cells = [(before + rank + 1).to_string(), hit.item.clone(), format!("{:.4}", hit.distance)];
        table.row(cells.into_iter().chain(found));
    }
    table.render()
}

fn agreement(agrees: Option<bool>) -> &'static str {
    match agrees {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "?",
    }
}

fn footer(args: &SearchArgs, results: &SearchResults) -> String {
    let Coverage { rows, total_rows, shards, total_shards, .. } = results.coverage;
    let total = results.timings_ms.iter().find(|(stage, _)| stage == "total");
    let took = total.map_or(String::new(), |(_, ms)| format!(" in {ms:.1} ms"));
    let partial = if results.coverage.share() < 1.0 { "PARTIAL ANSWER: " } else { "" };
    let matching = results.matching.map_or(String::new(), |rows| format!(" ({} fit the filter)", thousands(rows)));
    format!(
        "{partial}{} release {}: {} of {} images{matching}, {shards} of {total_shards} shards{took}",
        args.alias,
        results.release,
        thousands(rows),
        thousands(total_rows),
    )
}

/// Draws query and results.
pub async fn draw(client: &Client, args: &SearchArgs, results: &SearchResults) -> Outcome<RgbImage> {
    let asked = asked(args, results);
    let hits: Vec<&Hit> = results.hits.iter().take(MAX_SHEET).collect();
    let reads = hits.iter().map(|hit| image_bytes(client.store(), &hit.image));
    let images: Vec<_> = futures::stream::iter(reads).buffered(READS_AT_ONCE).try_collect().await?;
    let cells = hits.iter().zip(images).enumerate().map(|(i, (hit, bytes))| Cell {
        image: shrink::decode(&bytes).ok().map(|image| image.to_rgb8()),
        caption: format!("{}  {:.3}", i + 1, hit.distance),
        marks: asked.iter().map(|asked| Mark { text: asked.text(), agrees: asked.agrees(hit) }).collect(),
    });
    let sheet = Sheet { title: title(args, &asked), subtitle: footer(args, results), cells: cells.collect() };
    Ok(sheet::draw(&sheet))
}

/// `+Smiling −Male, like 000123.jpg`
fn title(args: &SearchArgs, asked: &[Asked]) -> String {
    let mut parts = Vec::new();
    if !asked.is_empty() {
        parts.push(asked.iter().map(Asked::text).collect::<Vec<_>>().join(" "));
    }
    parts.extend(args.like.as_ref().map(|item| format!("like {item}")));
    let file = args.image.as_ref().and_then(|file| file.file_name());
    parts.extend(file.map(|name| format!("like {}", name.to_string_lossy())));
    parts.extend(args.vector.as_ref().map(|_| "near a vector".to_string()));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use likeness_contract::ids::JobId;
    use likeness_contract::jobs::GenerationRef;
    use likeness_contract::search::ImageRef;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SearchArgs,
    }

    fn parse(line: &str) -> SearchArgs {
        Line::try_parse_from(std::iter::once("search").chain(line.split_whitespace())).unwrap().args
    }

    fn results() -> SearchResults {
        let hit = |item: &str, labels: [i8; 2]| Hit {
            item: item.into(),
            distance: 0.5,
            labels: labels.to_vec(),
            image: ImageRef { part: "p".into(), row: 0 },
        };
        SearchResults {
            release: 3,
            generation: GenerationRef { gallery: Name::new("g").unwrap(), generation: JobId::new("j").unwrap() },
            hits: vec![hit("a.jpg", [1, -1]), hit("b.jpg", [-1, 0])],
            coverage: Coverage { rows: 500, total_rows: 1000, shards: 2, total_shards: 4, reasons: vec![] },
            vocabulary: vec!["Smiling".into(), "Male".into()],
            timings_ms: vec![("total".into(), 12.34)],
            matching: None,
            recall: None,
            next: None,
        }
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
    fn a_filter_a_recall_and_pages_are_asked_for() {
        let request = request(&parse("--like a.jpg --only-with A,B --only-without C --recall 0.9 --page 2")).unwrap();
        assert_eq!(request.filter, LabelFilter { with: vec!["A,B".into()], without: vec!["C".into()] });
        assert_eq!(ranks_before(&parse("-k 30 --page 3"), &request), 60);
        assert_eq!((request.recall, request.paged, request.cursor), (Some(0.9), true, None));
        let text = footer(&parse("--with Male"), &SearchResults { matching: Some(3), ..results() });
        assert!(text.contains("500 of 1,000 images (3 fit the filter), "), "{text}");
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

    #[test]
    fn agreement_is_told_per_attribute() {
        let args = parse("--with smiling --without Male");
        let text = table(&asked(&args, &results()), 0, &results().hits);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["rank", "item", "distance", "+Smiling", "−Male"]);
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["1", "a.jpg", "0.5000", "yes", "yes"]);
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["2", "b.jpg", "0.5000", "NO", "?"]);
    }

    #[test]
    fn an_attribute_asked_twice_is_one_column() {
        let args = parse("--with smiling,Smiling --with Smiling");
        assert_eq!(asked(&args, &results()).len(), 1);
    }

    #[test]
    fn a_name_with_a_comma_is_one_attribute() {
        let results = SearchResults { vocabulary: vec!["A,B".into(), "C".into()], ..results() };
        let texts: Vec<String> = asked(&parse("--with A,B --with C"), &results).iter().map(Asked::text).collect();
        assert_eq!(texts, ["+A,B", "+C"]);
    }

    #[test]
    fn a_partial_answer_is_called_so() {
        let text = footer(&parse("--with Male"), &results());
        assert_eq!(text, "PARTIAL ANSWER: main release 3: 500 of 1,000 images, 2 of 4 shards in 12.3 ms");
    }

    #[test]
    fn the_title_tells_the_whole_question() {
        let args = parse("--with Smiling --without Male --like b.jpg --image /tmp/c.png");
        assert_eq!(title(&args, &asked(&args, &results())), "+Smiling −Male, like b.jpg, like c.png");
    }
}

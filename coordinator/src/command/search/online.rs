//! `likeness search --queries`: asks the searchers all questions of a file, some at once, in the order of the file.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use likeness_contract::search::{SearchErrorKind, SearchRequest, SearchResults};
use likeness_contract::searches::{FileAnswer, FileHit};
use likeness_link::client::{Client, ClientError};
use likeness_link::error::ErrorKind;

use super::answers::Answers;
use super::file::{self, Row};
use super::{SearchArgs, blank};
use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::options::within;
use crate::command::output::{count, say, thousands};

/// Most questions at once: more would only wait in the searchers.
const MOST_AT_ONCE: u32 = 256;
/// Pauses before a question is asked again that nobody had time for.
const PAUSES_MS: [u64; 5] = [50, 100, 200, 400, 800];
/// Failures that are told one by one; the answers have them all.
const TOLD_FAILURES: u64 = 100;
/// Without a terminal, a line of progress at most so often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Asks, writes, tells.
pub async fn run(global: &Global, args: &SearchArgs, questions: &Path) -> Outcome {
    within("at-once", args.at_once, 1, MOST_AT_ONCE)?;
    let blank = blank(args)?;
    let rows = file::open(questions)?;
    let mut answers = Answers::create(args.out.as_deref())?;
    let client = global.connection.client().await?;
    let mut tally = Tally::new(args.out.is_some());
    let asked = ask_all(client, rows, blank, args.at_once as usize);
    let mut asked = std::pin::pin!(asked);
    while let Some((line, answer)) = asked.next().await.transpose()? {
        tally.add(line, &answer);
        answers.write(answer)?;
    }
    answers.finish()?;
    tally.close(args.out.as_deref());
    Ok(if tally.failed == 0 { Exit::Done } else { Exit::Failed })
}

/// The answers with their lines, in the order of the questions.
fn ask_all(
    client: Client,
    rows: file::RowsOf,
    blank: SearchRequest,
    at_once: usize,
) -> impl Stream<Item = Outcome<(u64, FileAnswer)>> {
    let ask = move |(query, row): (u64, Outcome<Row>)| {
        let (client, blank) = (client.clone(), blank.clone());
        async move {
            let Row { line, fields } = row?;
            let id = fields.as_ref().ok().and_then(file::id);
            // Images are decoded and shrunk: not on the thread that talks.
            let understood = move || fields.and_then(|fields| file::question(&fields, &blank));
            let request = tokio::task::spawn_blocking(understood).await.map_err(Failure::failed)?;
            let answer = match request {
                Ok(request) => answer(&client, query, id, &request).await?,
                Err(why) => FileAnswer::failed(query, id, why),
            };
            Ok((line, answer))
        }
    };
    futures::stream::iter((0..).zip(rows)).map(ask).buffered(at_once)
}

/// An answer, or why there is none; fails only where nobody can be asked any more.
async fn answer(client: &Client, query: u64, id: Option<String>, request: &SearchRequest) -> Outcome<FileAnswer> {
    let mut found = client.search(request).await;
    for pause in PAUSES_MS {
        if !found.as_ref().is_err_and(is_passing) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
        found = client.search(request).await;
    }
    match found {
        Ok(results) => Ok(of_results(query, id, results)),
        Err(ClientError::Search(error)) => Ok(FileAnswer::failed(query, id, error.message)),
        Err(error) => Err(Failure::from(error).context(format!("question {} was not answered", query + 1))),
    }
}

/// Whether the same question may be answered in a moment.
fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Search(error) => {
            matches!(error.kind, SearchErrorKind::Overloaded | SearchErrorKind::Unavailable)
        }
        ClientError::Link(error) => matches!(error.kind, ErrorKind::Transient | ErrorKind::Unreachable),
        ClientError::Api(_) => false,
    }
}

fn of_results(query: u64, id: Option<String>, results: SearchResults) -> FileAnswer {
    let coverage = Some(results.coverage.share());
    let hits = results.hits.into_iter().map(|hit| FileHit { item: hit.item, distance: hit.distance }).collect();
    FileAnswer { query, id, release: Some(results.release), coverage, matching: results.matching, hits, error: None }
}

/// What was asked so far.
struct Tally {
    asked: u64,
    failed: u64,
    partial: u64,
    began: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Tally {
    /// A bar would be drawn into answers that are printed.
    fn new(to_file: bool) -> Self {
        let bar = (to_file && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{spinner} {human_pos} questions, {per_sec}");
            ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        let now = Instant::now();
        Self { asked: 0, failed: 0, partial: 0, began: now, told: now, bar }
    }

    fn add(&mut self, line: u64, answer: &FileAnswer) {
        self.asked += 1;
        self.partial += u64::from(answer.coverage.is_some_and(|coverage| coverage < 1.0));
        if let Some(why) = &answer.error {
            self.failed += 1;
            if self.failed <= TOLD_FAILURES {
                let id = answer.id.as_ref().map_or(String::new(), |id| format!(" (`{id}`)"));
                self.say(format!("line {line}{id}: {why}"));
            }
        }
        match &self.bar {
            Some(bar) => bar.set_position(self.asked),
            None if self.told.elapsed() >= LINE_EVERY => {
                self.told = Instant::now();
                say(format!("{} questions, {} failed", thousands(self.asked), thousands(self.failed)));
            }
            None => {}
        }
    }

    fn say(&self, text: String) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    fn close(&self, out: Option<&Path>) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.failed > TOLD_FAILURES {
            say(format!("and {} more that failed", thousands(self.failed - TOLD_FAILURES)));
        }
        let rate = self.asked as f64 / self.began.elapsed().as_secs_f64().max(1e-9);
        let partial = if self.partial > 0 { format!(", {} PARTIAL", thousands(self.partial)) } else { String::new() };
        let (asked, failed) = (count(self.asked, "question"), thousands(self.failed));
        let file = out.map_or(String::new(), |file| format!(", in `{}`", file.display()));
        say(format!("{asked}, {failed} failed{partial}, {rate:.0} a second{file}"));
    }
}

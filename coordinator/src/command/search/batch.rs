//! `likeness search --batch`: a file of questions as a job, for files that are large; and `--answers`, which fetches what one left.

use std::path::Path;

use bytes::Bytes;
use likeness_contract::codec::{self, Encoding};
use likeness_contract::ids::{Digest, JobId};
use likeness_contract::jobs::RequestedWork;
use likeness_contract::keys;
use likeness_contract::messages::JobState;
use likeness_contract::search::SearchRequest;
use likeness_contract::searches::{
    FileQuestion, MAX_PART_BYTES, MAX_PART_RESULTS, QuestionPart, SearchFile, SearchManifest,
};
use likeness_link::answers::AnswerReader;
use likeness_link::client::Client;

use super::answers::{self, Answers};
use super::file::{self, Row};
use super::{SearchArgs, blank};
use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::follow;
use crate::command::options::within;
use crate::command::output::{count, say, thousands};

/// Questions of a task unless said otherwise: about half a minute on a processor in a gallery of a million.
pub const DEFAULT_PART_QUESTIONS: u32 = 4096;
/// Most questions of a task.
const MOST_PART_QUESTIONS: u32 = likeness_contract::searches::MAX_PART_QUESTIONS;
/// Failures that are told one by one; the answers have them all.
const TOLD_FAILURES: u64 = 20;

/// Hands the file in, waits, fetches the answers.
pub async fn run(global: &Global, args: &SearchArgs, questions: &Path) -> Outcome {
    within("queries-per-task", args.queries_per_task, 1, MOST_PART_QUESTIONS)?;
    if args.out.is_none() && !args.detach {
        return Err(Failure::usage(
            "--batch writes its answers to a file: give --out, or --detach to leave them in the store",
        ));
    }
    args.out.as_deref().map_or(Ok(()), answers::check)?;
    let blank = blank(args)?;
    let rows = file::open(questions)?;
    let client = global.connection.client().await?;
    let parts = hand_in(&client, rows, blank, args.queries_per_task).await?;
    let work = RequestedWork::Search(SearchFile { alias: args.alias.clone(), parts });
    let summary = client.submit(args.job.request(work)).await?;
    let job = summary.job.clone();
    let exit = follow::submitted(global, &client, summary, args.detach).await?;
    match &args.out {
        Some(out) if exit == Exit::Done && !args.detach => fetch(&client, &job, Some(out)).await,
        _ => Ok(exit),
    }
}

/// Writes the answers of a job that is done.
pub async fn answers(global: &Global, args: &SearchArgs, job: &JobId) -> Outcome {
    args.out.as_deref().map_or(Ok(()), answers::check)?;
    let client = global.connection.client().await?;
    let state = client.show(job).await?.summary;
    if state.kind != "search" {
        return Err(Failure::usage(format!("job `{job}` is of kind {}: it answered no file of questions", state.kind)));
    }
    if state.state != JobState::Done {
        return Err(Failure::failed(format!(
            "job `{job}` is {}: its answers are there when it is done",
            state.state.name()
        )));
    }
    fetch(&client, job, args.out.as_deref()).await
}

async fn fetch(client: &Client, job: &JobId, out: Option<&Path>) -> Outcome {
    let manifest: SearchManifest = client.store().require(&keys::search_manifest(job)).await?;
    let mut answers = Answers::create(out)?;
    let mut failed = 0;
    for part in &manifest.answers {
        for answer in AnswerReader::new(client.store().read(&part.object).await?)? {
            let answer = answer?;
            if let Some(why) = &answer.error {
                failed += 1;
                if failed <= TOLD_FAILURES {
                    let id = answer.id.as_ref().map_or(String::new(), |id| format!(" (`{id}`)"));
                    say(format!("question {}{id}: {why}", answer.query + 1));
                }
            }
            answers.write(answer)?;
        }
    }
    answers.finish()?;
    if failed > TOLD_FAILURES {
        say(format!("and {} more that failed", thousands(failed - TOLD_FAILURES)));
    }
    let SearchManifest { alias, release, questions, failed, .. } = manifest;
    let file = out.map_or(String::new(), |file| format!(", in `{}`", file.display()));
    say(format!(
        "{} asked of {alias} release {release}, {} failed{file}",
        count(questions, "question"),
        thousands(failed)
    ));
    Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
}

/// Stores the questions in parts, one after the other: memory holds one.
async fn hand_in(
    client: &Client,
    mut rows: file::RowsOf,
    blank: SearchRequest,
    per_task: u32,
) -> Outcome<Vec<QuestionPart>> {
    let (mut parts, mut next) = (Vec::new(), 0);
    let mut waiting = None;
    loop {
        let (blank, first) = (blank.clone(), waiting.take());
        // Images are read, decoded and shrunk here.
        let read = move || cut(&mut rows, first, next, &blank, per_task).map(|cut| (cut, rows));
        let (cut, left) = tokio::task::spawn_blocking(read).await.map_err(Failure::failed)??;
        let Cut { lines, questions, over } = cut;
        (rows, waiting) = (left, over);
        if questions == 0 {
            return Ok(parts);
        }
        let digest = Digest::of(&lines);
        let object = client.store().create_object(keys::questions(&digest), Bytes::from(lines), digest).await?;
        parts.push(QuestionPart { object, from: next, questions });
        next += u64::from(questions);
    }
}

/// A line of a part, with the results that it asks for.
type Line = (Vec<u8>, u64);

/// Lines of one part.
struct Cut {
    lines: Vec<u8>,
    questions: u32,
    /// One that did not fit any more: the next part begins with it.
    over: Option<Line>,
}

/// The lines of the part that begins with question `from`.
fn cut(
    rows: &mut file::RowsOf,
    mut waiting: Option<Line>,
    from: u64,
    blank: &SearchRequest,
    per_task: u32,
) -> Outcome<Cut> {
    let (mut part, mut results) = (Cut { lines: Vec::new(), questions: 0, over: None }, 0);
    while part.questions < per_task {
        let query = from + u64::from(part.questions);
        let line = match waiting.take() {
            Some(line) => line,
            None => match rows.next() {
                None => break,
                Some(row) => line(query, row?, blank)?,
            },
        };
        let (bytes, asks) = &line;
        let fits = results + asks <= MAX_PART_RESULTS && (part.lines.len() + bytes.len()) as u64 <= MAX_PART_BYTES;
        if !fits && part.questions > 0 {
            part.over = Some(line);
            break;
        }
        part.lines.extend_from_slice(bytes);
        results += asks;
        part.questions += 1;
    }
    Ok(part)
}

/// A question as a task reads it; one that can't be understood says why.
fn line(query: u64, row: Row, blank: &SearchRequest) -> Outcome<Line> {
    let id = row.fields.as_ref().ok().and_then(file::id);
    let asked = row.fields.and_then(|fields| file::question(&fields, blank));
    let (request, error) = match asked {
        Ok(request) => (Some(request), None),
        Err(why) => (None, Some(why)),
    };
    // Items that are asked for may rank before the results.
    let asks = request.as_ref().map_or(0, |request| u64::from(request.k) + request.terms.len() as u64);
    let question = FileQuestion { query, id, request, error };
    let encoded = codec::encode(&question, Encoding::Json);
    let encoded = encoded.or_else(|error| {
        let question = FileQuestion { request: None, error: Some(error.to_string()), ..question };
        codec::encode(&question, Encoding::Json)
    });
    let mut bytes = encoded.map_err(Failure::failed)?;
    bytes.push(b'\n');
    Ok((bytes, asks))
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::Name;
    use serde_json::json;

    use super::*;

    fn rows(asked: &[u32]) -> file::RowsOf {
        let row = |(line, k): (u64, u32)| {
            let value =
                if k == 0 { json!({"id": line, "wiht": "x"}) } else { json!({"id": line, "like": "a", "k": k}) };
            let serde_json::Value::Object(fields) = value else { unreachable!("an object") };
            Ok(Row { line, fields: Ok(fields) })
        };
        Box::new((1..).zip(asked.to_vec()).map(row))
    }

    fn parts(asked: &[u32], per_task: u32) -> Vec<Vec<FileQuestion>> {
        let blank = SearchRequest::new(Name::new("main").unwrap(), Vec::new(), 20);
        let (mut rows, mut over, mut from, mut parts) = (rows(asked), None, 0, Vec::new());
        loop {
            let part = cut(&mut rows, over.take(), from, &blank, per_task).unwrap();
            if part.questions == 0 {
                return parts;
            }
            let lines = part.lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let part_lines: Vec<FileQuestion> =
                lines.map(|line| codec::decode(line, Encoding::Json).unwrap()).collect();
            assert_eq!(part_lines.len(), part.questions as usize);
            (from, over) = (from + u64::from(part.questions), part.over);
            parts.push(part_lines);
        }
    }

    #[test]
    fn parts_are_cut_by_number_and_by_results_and_lose_nothing() {
        let sizes = |asked: &[u32], per_task| -> Vec<usize> { parts(asked, per_task).iter().map(Vec::len).collect() };
        assert_eq!(sizes(&[5; 10], 4), [4, 4, 2]);
        assert_eq!(sizes(&[10_000; 250], 1000), [99, 99, 52]);
        assert_eq!(sizes(&[], 4), [] as [usize; 0]);
        let numbers: Vec<u64> = parts(&[10_000; 250], 1000).concat().iter().map(|question| question.query).collect();
        assert_eq!(numbers, (0..250).collect::<Vec<_>>());
    }

    #[test]
    fn a_question_that_cannot_be_understood_goes_along_with_the_reason() {
        let part = parts(&[3, 0], 10).concat();
        assert_eq!(part[0].request.as_ref().unwrap().k, 3);
        assert_eq!((part[1].id.as_deref(), &part[1].request), (Some("2"), &None));
        assert!(part[1].error.as_ref().unwrap().contains("did you mean `with`?"));
    }
}

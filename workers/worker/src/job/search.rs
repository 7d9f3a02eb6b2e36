//! Answers a file of questions from one release: a task takes a part, the last one writes the manifest.
//!
//! An answer is the one that the searchers give: a question is checked, embedded and summed by what they use
//! ([`crate::search::query`]), each by itself, and ranked exactly by the canonical distance. What differs is the order of the work.
//! All questions of a part share one reading of the shards, which are loaded one after the other, so that memory holds
//! two of them and the results so far, whatever the size of the gallery. A question that can't be answered fails for itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use likeness_contract::codec::{self, Encoding};
use likeness_contract::datasets::Removed;
use likeness_contract::documents::GenerationManifest;
use likeness_contract::ids::Digest;
use likeness_contract::jobs::{JobWork, TaskOutput, task_ids};
use likeness_contract::keys;
use likeness_contract::ranking::{Candidate, merge_top_k};
use likeness_contract::search::SearchRequest;
use likeness_contract::searches::{
    AnswerPart, FileAnswer, FileHit, FileQuestion, MAX_PART_RESULTS, QuestionPart, SearchManifest, SearchStage,
};
use likeness_index::{Cancel, Filter, Label, Query, RowSet, Shard, top_k_batch};
use likeness_link::answers::AnswerWriter;

use super::evaluate::known_model;
use crate::cache::LoadedModel;
use crate::error::TaskError;
use crate::runtime::context::TaskContext;
use crate::search::query::{self, Input, Question};

/// Questions that are scanned together before the task looks whether it is to stop.
const TOGETHER: usize = 256;
/// Questions from which on it is worth while to quantise a shard's rows.
const CODES_FROM: usize = 8;

/// Answers the questions of a part.
pub async fn part(cx: &TaskContext, number: u32) -> Result<TaskOutput, TaskError> {
    let stage = stage(cx)?.clone();
    let missing = || TaskError::invalid(format!("the file of questions has no part {number}"));
    let part = stage.parts.get(number as usize).ok_or_else(missing)?;
    let manifest = cx.cache.generation(&stage.generation).await?;
    let model = known_model(cx, &manifest).await?;
    let questions = read(cx, part).await?;
    let asked = |question| Asked::of(question, &manifest, model.as_deref());
    let mut asked: Vec<Asked> = questions.into_iter().map(asked).collect();
    within_limits(&asked, part)?;
    let removed = Arc::new(removed(cx, &manifest).await?);
    embed(cx, &manifest, model.as_ref(), &removed, &mut asked).await?;
    search(cx, &manifest, &removed, &mut asked).await?;
    let answers: Vec<FileAnswer> = asked.into_iter().map(|asked| asked.answer(stage.release)).collect();
    let failed = answers.iter().filter(|answer| answer.error.is_some()).count() as u32;
    let questions = answers.len() as u32;
    let table = tokio::task::spawn_blocking(move || table(answers)).await.map_err(TaskError::transient)??;
    let object = cx.create_object(|digest| keys::answers(cx.job(), number, digest), table).await?;
    Ok(TaskOutput::Answers { object, questions, failed })
}

/// Writes the manifest, when all parts are answered.
pub async fn finish(cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    let SearchStage { alias, release, model, generation, parts } = stage(cx)?.clone();
    let mut answers = Vec::with_capacity(parts.len());
    for (number, part) in (0..).zip(&parts) {
        let record = cx.record(&task_ids::answers(number)).await?;
        let TaskOutput::Answers { object, questions, failed } = record.output else {
            return Err(TaskError::invalid(format!("the record of `{}` is not of answers", record.task)));
        };
        answers.push(AnswerPart { object, from: part.from, questions, failed });
    }
    let sum = |of: fn(&AnswerPart) -> u32| answers.iter().map(|part| u64::from(of(part))).sum();
    let (questions, failed) = (sum(|part| part.questions), sum(|part| part.failed));
    let search = cx.job().clone();
    let key = keys::search_manifest(&search);
    let manifest = SearchManifest { search, alias, release, model, generation, questions, failed, answers };
    cx.ensure_leased()?;
    cx.store.create_document(&key, &manifest).await?;
    Ok(TaskOutput::Manifest { key })
}

fn stage(cx: &TaskContext) -> Result<&SearchStage, TaskError> {
    match &cx.spec().work {
        JobWork::Search(stage) => Ok(stage),
        other => Err(TaskError::invalid(format!("a job of kind `{}` answers no questions", other.kind()))),
    }
}

async fn read(cx: &TaskContext, part: &QuestionPart) -> Result<Vec<FileQuestion>, TaskError> {
    let bytes = cx.store.read(&part.object).await?;
    let key = part.object.key.clone();
    let parse = move || {
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let question = |(at, line): (usize, &[u8])| {
            let wrong = |error| TaskError::invalid(format!("question {at} of `{key}`: {error}"));
            codec::decode::<FileQuestion>(line, Encoding::Json).map_err(wrong)
        };
        lines.enumerate().map(question).collect::<Result<Vec<_>, TaskError>>()
    };
    let questions = tokio::task::spawn_blocking(parse).await.map_err(TaskError::transient)??;
    if questions.len() != part.questions as usize {
        let (found, key) = (questions.len(), &part.object.key);
        return Err(TaskError::invalid(format!("`{key}` has {found} questions, expected {}", part.questions)));
    }
    Ok(questions)
}

/// A question on its way to its answer; `vector` and `best` come one after the other.
#[derive(Debug)]
struct Asked {
    query: u64,
    id: Option<String>,
    question: Result<Question, String>,
    left_out: BTreeSet<String>,
    vector: Vec<f32>,
    best: Vec<Candidate>,
    matching: u64,
}

impl Asked {
    fn of(question: FileQuestion, manifest: &GenerationManifest, model: Option<&LoadedModel>) -> Self {
        let FileQuestion { query, id, request, error } = question;
        let question = match (request, error) {
            (_, Some(error)) => Err(error),
            (None, None) => Err("nothing is asked".into()),
            (Some(request), None) => checked(&request, manifest, model),
        };
        let left_out = question.as_ref().map(Question::items).unwrap_or_default();
        Self { query, id, question, left_out, vector: Vec::new(), best: Vec::new(), matching: 0 }
    }

    fn fail(&mut self, why: String) {
        self.question = Err(why);
    }

    /// Ranks that must be known: items that are asked for may be among them.
    fn depth(&self) -> usize {
        self.question.as_ref().map_or(0, |question| question.k + self.left_out.len())
    }

    fn answer(self, release: u64) -> FileAnswer {
        let Self { query, id, question, left_out, vector: _, best, matching } = self;
        let Question { k, filter, .. } = match question {
            Ok(question) => question,
            Err(why) => return FileAnswer::failed(query, id, why),
        };
        let kept = best.into_iter().filter(|candidate| !left_out.contains(&candidate.item)).take(k);
        let hits = kept.map(|candidate| FileHit { item: candidate.item, distance: candidate.d2.sqrt() }).collect();
        let matching = (!filter.is_empty()).then_some(matching);
        FileAnswer { query, id, release: Some(release), coverage: Some(1.0), matching, hits, error: None }
    }
}

fn checked(
    request: &SearchRequest,
    manifest: &GenerationManifest,
    model: Option<&LoadedModel>,
) -> Result<Question, String> {
    if request.cursor.is_some() {
        return Err("a file of questions asks no further pages: ask for a larger k".into());
    }
    let settings = query::settings(model, manifest.embedding_dim);
    query::check_kinds(request, model.is_some())
        .and_then(|()| query::check(request, &manifest.vocabulary, &settings))
        .map_err(|error| error.message)
}

/// Whoever made the part kept to this; another program may not.
fn within_limits(asked: &[Asked], part: &QuestionPart) -> Result<(), TaskError> {
    let results: u64 = asked.iter().map(|asked| asked.depth() as u64).sum();
    // The largest question is taken in any case.
    if results > MAX_PART_RESULTS && asked.len() > 1 {
        let key = &part.object.key;
        let text =
            format!("`{key}` asks for {results} results together, at most {MAX_PART_RESULTS} are held: cut it smaller");
        return Err(TaskError::invalid(text));
    }
    Ok(())
}

/// What a term's embedding depends on; none for one that is its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Attributes(Vec<u32>),
    Image(Digest),
    Item(String),
}

impl Key {
    fn of(input: &Input) -> Option<Self> {
        match input {
            Input::Attributes(values) => Some(Self::Attributes(values.iter().map(|value| value.to_bits()).collect())),
            Input::Image(bytes) => Some(Self::Image(Digest::of(bytes))),
            Input::Item(item) => Some(Self::Item(item.clone())),
            Input::Vector(_) => None,
        }
    }
}

type Embedded = Result<Arc<[f32]>, String>;

/// Items that are down when the part begins: its answers leave them out, as the searchers' do.
async fn removed(cx: &TaskContext, manifest: &GenerationManifest) -> Result<Removed, TaskError> {
    let Some(dataset) = manifest.dataset() else { return Ok(Removed::default()) };
    Ok(likeness_link::removals::removed(&cx.store, &dataset.dataset).await?)
}

/// Gives every question its vector, or the reason why it has none. What is asked again and again is embedded once.
async fn embed(
    cx: &TaskContext,
    manifest: &GenerationManifest,
    model: Option<&Arc<LoadedModel>>,
    removed: &Removed,
    asked: &mut [Asked],
) -> Result<(), TaskError> {
    let mut known = stored(cx, manifest, removed, asked).await?;
    let questions = asked.len() as u64;
    for (at, asked) in (0..).zip(asked) {
        let Ok(question) = &asked.question else { continue };
        let mut terms = Vec::with_capacity(question.terms.len());
        for (weight, input) in &question.terms {
            terms.push(embedded(cx, model, &mut known, input).await?.map(|vector| (*weight, vector)));
        }
        let terms = terms.into_iter().collect::<Result<Vec<_>, String>>();
        match terms.and_then(|terms| query::combine(&terms).map_err(|error| error.message)) {
            Ok(vector) => asked.vector = vector,
            Err(why) => asked.fail(why),
        }
        if at % 64 == 0 {
            cx.ensure_leased()?;
            cx.progress(0, 1, format!("{at} of {questions} questions embedded"));
        }
    }
    Ok(())
}

async fn embedded(
    cx: &TaskContext,
    model: Option<&Arc<LoadedModel>>,
    known: &mut HashMap<Key, Embedded>,
    input: &Input,
) -> Result<Embedded, TaskError> {
    let key = Key::of(input);
    if let Some(found) = key.as_ref().and_then(|key| known.get(key)) {
        return Ok(found.clone());
    }
    let embedded: Embedded = match (input, model) {
        (Input::Attributes(_) | Input::Image(_), None) => Err(query::no_model().message),
        (Input::Attributes(vector), Some(model)) => {
            Ok(query::embed_attributes(&cx.device, Arc::clone(model), vector.clone()).await?.into())
        }
        (Input::Image(bytes), Some(model)) => {
            let (bytes, of) = (bytes.clone(), Arc::clone(model));
            let pixels = tokio::task::spawn_blocking(move || query::pixels(&of, &bytes)).await;
            match pixels.map_err(TaskError::transient)? {
                Ok(pixels) => Ok(query::embed_pixels(&cx.device, Arc::clone(model), pixels).await?.into()),
                Err(error) => Err(error.message),
            }
        }
        (Input::Vector(values), _) => Ok(values.as_slice().into()),
        // All that there are were looked up before.
        (Input::Item(item), _) => Err(format!("the gallery has no item `{item}`")),
    };
    if let Some(key) = key {
        known.insert(key, embedded.clone());
    }
    Ok(embedded)
}

/// The embeddings of all items that are asked for, from whichever shards have them.
async fn stored(
    cx: &TaskContext,
    manifest: &GenerationManifest,
    removed: &Removed,
    asked: &[Asked],
) -> Result<HashMap<Key, Embedded>, TaskError> {
    let mut wanted: BTreeSet<&String> = asked.iter().flat_map(|asked| &asked.left_out).collect();
    let gone = |item: &&String| removed.reason(item).map(|reason| format!("item `{item}` {reason}"));
    let down = wanted.iter().filter_map(|item| Some((Key::Item((*item).clone()), Err(gone(item)?))));
    let down: HashMap<Key, Embedded> = down.collect();
    wanted.retain(|item| !removed.contains(item));
    let mut found = HashMap::with_capacity(wanted.len());
    for (at, entry) in (1..).zip(&manifest.shards) {
        if found.len() == wanted.len() {
            break;
        }
        cx.ensure_leased()?;
        let shard = cx.cache.shard(manifest, entry).await?;
        let rows = wanted.iter().filter_map(|item| Some((*item, shard.find(item)?)));
        found.extend(rows.map(|(item, row)| (Key::Item(item.clone()), Ok(shard.embedding(row).into()))));
        cx.progress(at, manifest.shards.len() as u64, "items looked up");
    }
    let gallery = &manifest.generation.gallery;
    let missing = wanted.into_iter().map(|item| (Key::Item(item.clone()), item));
    for (key, item) in missing {
        found.entry(key).or_insert_with(|| Err(format!("gallery `{gallery}` has no item `{item}`")));
    }
    found.extend(down);
    Ok(found)
}

/// Ranks the gallery for all questions, shard by shard.
async fn search(
    cx: &TaskContext,
    manifest: &Arc<GenerationManifest>,
    removed: &Arc<Removed>,
    asked: &mut [Asked],
) -> Result<(), TaskError> {
    let places: Vec<usize> = (0..asked.len()).filter(|at| asked[*at].question.is_ok()).collect();
    if places.is_empty() {
        return Ok(());
    }
    let with_codes = places.len() >= CODES_FROM;
    let queries: Arc<Vec<Ranked>> = Arc::new(places.iter().map(|at| Ranked::of(&asked[*at])).collect());
    let mut best: Vec<(Vec<Candidate>, u64)> = queries.iter().map(|_| (Vec::new(), 0)).collect();
    let begin = |number: usize| tokio::spawn(load(cx.clone(), Arc::clone(manifest), number, with_codes));
    let shards = manifest.shards.len();
    let mut next = (shards > 0).then(|| begin(0));
    for number in 0..shards {
        let shard = next.take().expect("loaded before its turn").await.map_err(TaskError::transient)??;
        next = (number + 1 < shards).then(|| begin(number + 1));
        let (queries, running, task) = (Arc::clone(&queries), std::mem::take(&mut best), cx.clone());
        let removed = Arc::clone(removed);
        best = cx.device.run(move |_| rank(&task, &shard, &removed, &queries, running)).await?;
        cx.progress(number as u64 + 1, shards as u64, format!("shards, {} questions", best.len()));
    }
    for (at, (best, matching)) in places.into_iter().zip(best) {
        (asked[at].best, asked[at].matching) = (best, matching);
    }
    Ok(())
}

/// What is ranked for one question.
#[derive(Debug)]
struct Ranked {
    vector: Vec<f32>,
    depth: usize,
    filter: Vec<(u32, bool)>,
}

impl Ranked {
    fn of(asked: &Asked) -> Self {
        let filter = asked.question.as_ref().map(|question| question.filter.clone()).unwrap_or_default();
        Self { vector: asked.vector.clone(), depth: asked.depth(), filter }
    }
}

/// A shard in memory; not through the cache, which would keep it without its codes.
async fn load(
    cx: TaskContext,
    manifest: Arc<GenerationManifest>,
    number: usize,
    with_codes: bool,
) -> Result<Shard, TaskError> {
    cx.ensure_leased()?;
    let entry = &manifest.shards[number];
    let bytes = cx.store.read(&entry.object).await?;
    let (shard, dim, attributes) = (entry.shard, manifest.embedding_dim as usize, manifest.vocabulary.len());
    let decode = move || {
        let shard = Shard::decode(shard, bytes, dim, attributes)?;
        if with_codes { shard.with_codes() } else { Ok(shard) }
    };
    Ok(tokio::task::spawn_blocking(decode).await.map_err(TaskError::transient)??)
}

/// The best rows so far with those of another shard, and how many rows could be among them.
fn rank(
    cx: &TaskContext,
    shard: &Shard,
    removed: &Removed,
    queries: &[Ranked],
    best: Vec<(Vec<Candidate>, u64)>,
) -> Result<Vec<(Vec<Candidate>, u64)>, TaskError> {
    let sets = row_sets(shard, removed, queries)?;
    let mut merged = Vec::with_capacity(queries.len());
    let mut best = best.into_iter();
    for queries in queries.chunks(TOGETHER) {
        cx.ensure_leased()?;
        let within: Vec<Option<[&RowSet; 1]>> =
            queries.iter().map(|query| sets.get(&query.filter).map(|set| [set])).collect();
        let asked = queries.iter().zip(&within);
        let asked: Vec<Query> = asked
            .map(|(query, within)| Query {
                vector: &query.vector,
                k: query.depth,
                within: within.as_ref().map(<[&RowSet; 1]>::as_slice),
            })
            .collect();
        let found = top_k_batch(&[shard], &asked, &Cancel::new())?;
        for ((found, within), query) in found.into_iter().zip(&within).zip(queries) {
            let (before, matching) = best.next().expect("one for every question");
            let matching = matching + within.as_ref().map_or(shard.rows(), |[set]| set.count()) as u64;
            merged.push((merge_top_k(vec![before, found], query.depth), matching));
        }
    }
    Ok(merged)
}

/// The rows that each filter lets through and that are not down; none for the empty filter where that is all of them.
fn row_sets(
    shard: &Shard,
    removed: &Removed,
    queries: &[Ranked],
) -> Result<BTreeMap<Vec<(u32, bool)>, RowSet>, TaskError> {
    let mut down = RowSet::none(shard.rows());
    removed.items().filter_map(|item| shard.find(item)).for_each(|row| down.insert(row));
    let mut sets = BTreeMap::new();
    for Ranked { filter: conditions, .. } in queries {
        if (conditions.is_empty() && down.count() == 0) || sets.contains_key(conditions) {
            continue;
        }
        let label = |has: bool| if has { Label::Has } else { Label::HasNot };
        let and = |filter: Filter, (attribute, has): &(u32, bool)| filter.and(*attribute as usize, label(*has));
        let filter = conditions.iter().fold(Filter::new(), and);
        let mut rows = if conditions.is_empty() { RowSet::all(shard.rows()) } else { shard.matching(&filter)? };
        rows.subtract(&down);
        sets.insert(conditions.clone(), rows);
    }
    Ok(sets)
}

fn table(answers: Vec<FileAnswer>) -> Result<Vec<u8>, TaskError> {
    let mut table = AnswerWriter::new(Vec::new())?;
    for answer in answers {
        table.write(answer)?;
    }
    Ok(table.finish()?)
}

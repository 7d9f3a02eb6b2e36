//! A file of questions as a task: its answers are those of the searchers, to the last bit.

use likeness_contract::ids::{RunNumber, TaskId};
use likeness_contract::jobs::{
    DeviceClass, JobOptions, JobSpec, JobWork, Priority, TaskMessage, TaskOutput, TaskRecord, TaskWork, task_ids,
};
use likeness_contract::searches::{FileAnswer, FileQuestion, QuestionPart, SearchManifest, SearchStage};
use likeness_link::answers::AnswerReader;
use likeness_worker::error::TaskErrorKind;
use likeness_worker::job;
use likeness_worker::runtime::context::TaskContext;
use likeness_worker::runtime::device::DeviceThread;

use super::*;

/// Everything that can be asked, and much that can't.
fn questions(generation: &Generation) -> Vec<SearchRequest> {
    let item = |item: &str| Term::Item { item: item.into() };
    let near = |row: usize| vector(&generation.rows[row].1);
    let mut all = vec![
        request(vec![attributes(&["Smiling"], &["Male"])]),
        request(vec![item("000033.jpg")]),
        request(vec![item("000033.jpg"), item("000034.jpg"), attributes(&["Eyeglasses"], &[])]),
        SearchRequest { filter: filter(&["eyeglasses"], &[]), ..request(vec![near(5)]) },
        SearchRequest { filter: filter(&["Male"], &[]), ..request(vec![near(5)]) },
        SearchRequest { filter: filter(&["Smiling"], &["Eyeglasses"]), k: 2000, ..request(vec![item("000040.jpg")]) },
        request(vec![attributes(&["Smilling"], &[])]),
        request(vec![item("nowhere.jpg")]),
        request(vec![vector(&[1.0])]),
        request(vec![]),
        request(vec![Term::Image { bytes: vec![1, 2, 3] }]),
        SearchRequest { filter: filter(&[], &["Smilling"]), ..request(vec![near(1)]) },
        SearchRequest { k: 0, ..request(vec![near(1)]) },
    ];
    all.extend((0..300).map(|row| SearchRequest { k: 1 + row % 40, ..request(vec![near(row as usize * 5)]) }));
    all.push(SearchRequest { k: 1500, ..request(vec![near(77)]) });
    all
}

struct World {
    bench: Bench,
    generation: Generation,
}

impl World {
    async fn part(&self, questions: Vec<FileQuestion>, from: u64) -> QuestionPart {
        let mut lines = Vec::new();
        for question in &questions {
            lines.extend(codec::encode(question, Encoding::Json).unwrap());
            lines.push(b'\n');
        }
        let digest = Digest::of(&lines);
        let key = keys::questions(&digest);
        let object = self.bench.store.create_object(key, lines.into(), digest).await.unwrap();
        QuestionPart { object, from, questions: questions.len() as u32 }
    }

    fn context(&self, parts: Vec<QuestionPart>, task: TaskId, work: TaskWork) -> TaskContext {
        let Served { release, model, generation } = self.generation.served(7);
        let stage = SearchStage { alias: Name::new("production").unwrap(), release, model, generation, parts };
        let (work_of_job, options) = (JobWork::Search(stage), JobOptions::default());
        let spec = JobSpec { work: work_of_job, device: DeviceClass::Any, priority: Priority::Lo, options };
        let message = TaskMessage { job: JobId::new("search-1").unwrap(), run: RunNumber(1), task, work };
        let device = DeviceThread::start(Device::Cpu).unwrap();
        TaskContext::alone(self.bench.store.clone(), device, WorkerId::new("tester").unwrap(), message, spec)
    }

    async fn run(&self, parts: &[QuestionPart], part: u32) -> (TaskOutput, Vec<FileAnswer>) {
        let cx = self.context(parts.to_vec(), task_ids::answers(part), TaskWork::SearchPart { part });
        let output = job::run(&cx).await.unwrap();
        let TaskOutput::Answers { object, .. } = &output else { panic!("answers: {output:?}") };
        let table = self.bench.store.read(object).await.unwrap();
        (output.clone(), AnswerReader::new(table).unwrap().map(Result::unwrap).collect())
    }
}

fn file_question(query: u64, request: SearchRequest) -> FileQuestion {
    FileQuestion { query, id: Some(format!("q{query}")), request: Some(request), error: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_answered_as_the_searchers_answer() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    bench.alias(Some(generation.served(7)), None).await;
    let _a = bench.searcher("a", 1);
    bench.placed(&generation.reference, 1, 1).await;
    let world = World { bench, generation };
    let asked = questions(&world.generation);
    let all: Vec<FileQuestion> =
        (0..).zip(asked.clone()).map(|(query, request)| file_question(query, request)).collect();
    let parts = [world.part(all, 0).await];
    let (output, answers) = world.run(&parts, 0).await;
    assert_eq!(answers.len(), asked.len());
    let mut failed = 0;
    for (request, answer) in asked.iter().zip(&answers) {
        let online = until(async || match world.bench.ask(&strict(request.clone())).await {
            Err(error) if error.kind == SearchErrorKind::Unavailable => None,
            answered => Some(answered),
        });
        match online.await {
            Ok(results) => {
                let hits: Vec<_> = answer.hits.iter().map(|hit| (hit.item.clone(), hit.distance)).collect();
                assert_eq!(hits, found(&results.hits), "{request:?}");
                assert_eq!((answer.matching, answer.release), (results.matching, Some(7)));
                assert_eq!((answer.coverage, &answer.error), (Some(1.0), &None));
            }
            Err(error) => {
                failed += 1;
                assert_eq!(answer.error.as_deref(), Some(error.message.as_str()));
                assert!(answer.hits.is_empty() && answer.release.is_none());
            }
        }
    }
    assert_eq!(failed, 7);
    let TaskOutput::Answers { questions, failed: told, .. } = output else { unreachable!("it was one before") };
    assert_eq!((questions as usize, told), (asked.len(), failed));
}

#[tokio::test]
async fn the_manifest_joins_the_parts_and_a_repeated_task_gives_the_same_bytes() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    let world = World { bench, generation };
    let question = |query: u64| file_question(query, request(vec![vector(&world.generation.rows[query as usize].1)]));
    let wrong = FileQuestion { query: 3, id: None, request: None, error: Some("it is no JSON".into()) };
    let first = world.part((0..3).map(question).collect(), 0).await;
    let parts = vec![first, world.part(vec![wrong, question(4)], 3).await];
    for number in 0..2 {
        let (output, _) = world.run(&parts, number).await;
        assert_eq!(world.run(&parts, number).await.0, output, "a repeated task");
        let task = task_ids::answers(number);
        let record = TaskRecord {
            job: JobId::new("search-1").unwrap(),
            run: RunNumber(1),
            task: task.clone(),
            worker: WorkerId::new("tester").unwrap(),
            attempt: 1,
            started_ms: 0,
            finished_ms: 0,
            device_ms: 0,
            output,
        };
        world.bench.store.create_document(&keys::task_record(&record.job, &task), &record).await.unwrap();
    }
    let cx = world.context(parts.clone(), task_ids::search_finish(), TaskWork::SearchFinish);
    let key = keys::search_manifest(cx.job());
    assert_eq!(job::run(&cx).await.unwrap(), TaskOutput::Manifest { key: key.clone() });
    let manifest: SearchManifest = world.bench.store.require(&key).await.unwrap();
    assert_eq!((manifest.questions, manifest.failed, manifest.release), (5, 1, 7));
    assert_eq!(manifest.answers.iter().map(|part| (part.from, part.failed)).collect::<Vec<_>>(), [(0, 0), (3, 1)]);
}

#[tokio::test]
async fn a_part_that_is_not_what_it_was_said_to_be_is_refused() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    let world = World { bench, generation };
    let whole = world.part(vec![file_question(0, request(vec![vector(&[1.0; DIM])]))], 0).await;
    let large: Vec<_> = (0..101)
        .map(|query| file_question(query, SearchRequest { k: 10_000, ..request(vec![vector(&[1.0; DIM])]) }))
        .collect();
    let large = world.part(large, 0).await;
    let refused = async |parts: Vec<QuestionPart>, part: u32| {
        let cx = world.context(parts, task_ids::answers(part), TaskWork::SearchPart { part });
        let error = job::run(&cx).await.unwrap_err();
        assert_eq!(error.kind, TaskErrorKind::Invalid);
        error.chain()
    };
    assert!(refused(vec![whole.clone()], 1).await.contains("no part 1"));
    let other = QuestionPart { questions: 2, ..whole.clone() };
    assert!(refused(vec![other], 0).await.contains("has 1 questions, expected 2"));
    assert!(refused(vec![large], 0).await.contains("1010000 results together"));
}

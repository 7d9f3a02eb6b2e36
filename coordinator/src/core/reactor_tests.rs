use std::collections::HashSet;

use super::super::attempts::{REPORTED_LIMIT, SILENT_LIMIT};
use super::super::planner;
use super::super::testing::*;
use super::*;
use likeness_contract::jobs::{DeviceClass, Priority, Run, TaskKind};
use likeness_contract::messages::{JobState, Presence};

/// One job under a core, with a recording outbox.
struct Bench {
    core: Reactor,
    out: Recording,
    job: JobId,
    spec: JobSpec,
    now_ms: u64,
    attempts: u32,
}

impl Bench {
    /// The run is open, past events were read; what that published lies in the outbox.
    fn open(spec: JobSpec) -> Self {
        Self::open_with(spec, &[])
    }

    fn open_with(spec: JobSpec, records: &[&str]) -> Self {
        let (core, out) = (Reactor::new(60_000), Recording::default());
        let mut bench = Self { core, out, job: job_id("j"), spec, now_ms: 1_000, attempts: 0 };
        bench.open_run(1, records);
        bench.core.on_replayed(bench.now_ms, &mut bench.out);
        bench
    }

    fn open_run(&mut self, number: u32, records: &[&str]) {
        let opened = OpenedJob {
            spec: self.spec.clone(),
            plan: planner::plan(&self.job, &self.spec),
            accepted_ms: 500,
            run: Run { job: self.job.clone(), run: RunNumber(number), opened_ms: 500 },
            records: records.iter().map(|task| task_id(task)).collect(),
            tellers: Vec::new(),
        };
        self.core.on_opened(&self.job, opened, self.now_ms, &mut self.out);
    }

    fn event_of(&mut self, run: u32, task: &str, attempt: &str, what: TaskNews) {
        let event = TaskEvent {
            job: self.job.clone(),
            run: RunNumber(run),
            task: task_id(task),
            worker: worker_id("w"),
            attempt: attempt.into(),
            at_ms: 0,
            what,
        };
        self.core.on_event(&round_trip(event), self.now_ms, &mut self.out);
    }

    fn event(&mut self, task: &str, what: TaskNews) {
        self.attempts += 1;
        let attempt = format!("attempt-{}", self.attempts);
        self.event_of(1, task, &attempt, what);
    }

    fn done(&mut self, task: &str) {
        self.event(task, TaskNews::Done { adopted: false, device_ms: 7 });
    }

    fn failed(&mut self, task: &str, retryable: bool) {
        self.event(task, TaskNews::Failed { error: format!("`{task}` broke"), retryable });
    }

    fn record(&mut self, task: &str, output: TaskOutput) {
        let record = round_trip(record(&self.job, task, output));
        self.core.on_record(&record, self.now_ms, &mut self.out);
    }

    fn records(&mut self, records: &[&str]) {
        let records: HashSet<TaskId> = records.iter().map(|task| task_id(task)).collect();
        self.core.on_records(&self.job, RunNumber(1), &records, self.now_ms, &mut self.out);
    }

    fn outcome(&mut self, result: RunResult) {
        let outcome = Outcome { job: self.job.clone(), run: RunNumber(1), closed_ms: self.now_ms, result };
        self.core.on_outcome(round_trip(outcome), self.now_ms, &mut self.out);
    }

    #[track_caller]
    fn expect_listing(&mut self) {
        assert_eq!(self.out.next(), Effect::ListRecords { job: self.job.clone(), run: RunNumber(1) });
    }

    #[track_caller]
    fn expect_find(&mut self, task: &str) {
        let (job, run, task) = (self.job.clone(), RunNumber(1), task_id(task));
        assert_eq!(self.out.next(), Effect::FindRecord { job, run, task });
    }

    #[track_caller]
    fn expect_find_outcome(&mut self) {
        assert_eq!(self.out.next(), Effect::FindOutcome { job: self.job.clone(), run: RunNumber(1) });
    }

    #[track_caller]
    fn expect_close(&mut self) -> RunResult {
        match self.out.next() {
            Effect::Close { job, run, result } => {
                assert_eq!((job, run), (self.job.clone(), RunNumber(1)));
                result
            }
            other => panic!("expected the run to be closed, found {other:?}"),
        }
    }

    #[track_caller]
    fn expect_given_up(&mut self, task: &str) -> TaskFailure {
        match self.out.next() {
            Effect::PurgeTask { subject, .. } => assert!(subject.ends_with(&format!(".j.{task}")), "{subject}"),
            other => panic!("expected a purge, found {other:?}"),
        }
        match self.out.next() {
            Effect::DeadLetter(letter) => letter.failure,
            other => panic!("expected a dead letter, found {other:?}"),
        }
    }

    fn state(&self) -> JobState {
        self.core.job(&self.job).unwrap().state()
    }
}

fn shards(n: u32) -> Vec<String> {
    (0..n).map(|shard| format!("shard-{shard:05}")).collect()
}

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

const DONE: RunResult = RunResult::Done { gate: None, release: None };

#[test]
fn a_submitted_job_is_published_stage_by_stage_and_closed_by_its_records() {
    let mut b = Bench::open(embed(2, 1));
    b.out.expect_published(&["shard-00000", "shard-00001"]);
    b.done("shard-00001");
    b.out.expect_nothing();
    b.done("shard-00000");
    b.out.expect_published(&["generation"]);
    b.done("generation");
    b.expect_listing();
    b.records(&["shard-00000", "shard-00001", "generation"]);
    assert_eq!(b.expect_close(), DONE);
    assert_eq!(b.state(), JobState::Running, "the outcome in the store decides");
    b.outcome(DONE);
    assert_eq!(b.state(), JobState::Done);
    assert_eq!(b.out.next(), Effect::PurgeJob { job: b.job.clone() });
    let Effect::Announce(JobEvent { what: JobNews::Closed(DONE), .. }) = b.out.next() else { panic!() };
    let detail = b.core.job(&b.job).unwrap().detail();
    assert_eq!((detail.summary.done, detail.summary.tasks, detail.device_ms), (3, 3, 21));
}

#[test]
fn nothing_is_published_while_past_events_are_read() {
    let (core, out) = (Reactor::new(60_000), Recording::default());
    let mut b = Bench { core, out, job: job_id("j"), spec: embed(2, 1), now_ms: 0, attempts: 0 };
    b.open_run(1, &[]);
    b.done("shard-00000");
    b.core.on_tick(1_000_000, &mut b.out);
    b.out.expect_nothing();
    b.core.on_replayed(0, &mut b.out);
    b.out.expect_published(&["shard-00001"]);
}

#[test]
fn past_failures_count_after_a_change_of_leaders() {
    let (core, out) = (Reactor::new(60_000), Recording::default());
    let mut b = Bench { core, out, job: job_id("j"), spec: embed(2, 1), now_ms: 0, attempts: 0 };
    b.open_run(1, &[]);
    for _ in 0..REPORTED_LIMIT {
        b.failed("shard-00000", true);
    }
    b.expect_given_up("shard-00000");
    b.core.on_replayed(0, &mut b.out);
    b.out.expect_published(&["shard-00001"]);
}

#[test]
fn records_that_a_new_leader_finds_are_not_done_again() {
    let mut b = Bench::open_with(embed(3, 1), &["shard-00000", "shard-00002"]);
    b.out.expect_published(&["shard-00001"]);
    let mut b = Bench::open_with(embed(1, 1), &["shard-00000", "generation"]);
    b.expect_listing();
}

#[test]
fn the_window_holds_sixteen_tasks_and_is_refilled_as_they_end() {
    let names = shards(40);
    let mut b = Bench::open(embed(40, 1));
    b.out.expect_published(&refs(&names[..16]));
    b.out.expect_nothing();
    b.done("shard-00003");
    b.out.expect_published(&["shard-00016"]);
    b.failed("shard-00004", false);
    b.expect_given_up("shard-00004");
    b.out.expect_published(&["shard-00017"]);
}

fn presence(n: usize, device_class: DeviceClass) -> Vec<Presence> {
    let presence = |i| Presence {
        worker: worker_id(&format!("w{i}")),
        roles: vec![TaskKind::Embed],
        searches: false,
        device: "cpu".into(),
        device_class,
        host: "h".into(),
        version: "0".into(),
        task: None,
        draining: i == 0,
    };
    (0..=n).map(presence).collect()
}

#[test]
fn the_window_grows_with_the_live_workers_of_its_kind_and_class() {
    let names = shards(40);
    let mut b = Bench::open(embed(40, 1));
    b.out.expect_published(&refs(&names[..16]));
    b.core.on_workers(Workers::count(&presence(50, DeviceClass::Cuda)), 0, &mut b.out);
    b.out.expect_nothing();
    b.core.on_workers(Workers::count(&presence(10, DeviceClass::Cpu)), 0, &mut b.out);
    b.out.expect_published(&refs(&names[16..20]));
    b.core.on_workers(Workers::count(&presence(0, DeviceClass::Cpu)), 0, &mut b.out);
    b.done("shard-00000");
    b.out.expect_nothing();
}

#[test]
fn any_device_counts_every_worker() {
    let workers = Workers::count(&presence(12, DeviceClass::Cuda));
    assert_eq!(workers.window(TaskKind::Embed, DeviceClass::Any), 24);
    assert_eq!(workers.window(TaskKind::Embed, DeviceClass::Cpu), 16);
    assert_eq!(workers.window(TaskKind::Train, DeviceClass::Any), 16);
}

#[test]
fn priority_and_device_stand_in_the_subject() {
    let spec = JobSpec { device: DeviceClass::Cuda, priority: Priority::Hi, ..embed(1, 1) };
    let mut b = Bench::open(spec);
    let Effect::Publish { subject, .. } = b.out.next() else { panic!() };
    assert_eq!(subject, "likeness.v1.job.embed.cuda.hi.j.shard-00000");
}

#[test]
fn five_reported_failures_give_a_task_up_and_the_rest_goes_on() {
    let mut b = Bench::open(embed(2, 1));
    b.out.expect_published(&["shard-00000", "shard-00001"]);
    for _ in 1..REPORTED_LIMIT {
        b.failed("shard-00000", true);
        b.out.expect_nothing();
    }
    b.failed("shard-00000", true);
    let failure = b.expect_given_up("shard-00000");
    assert_eq!((failure.reported, failure.silent), (5, 0));
    assert_eq!(failure.error, "`shard-00000` broke");
    b.out.expect_nothing();
    b.done("shard-00001");
    b.expect_listing();
    b.records(&["shard-00001"]);
    assert_eq!(b.expect_close(), RunResult::Failed { failures: vec![failure] });
}

#[test]
fn a_failure_that_no_attempt_can_mend_gives_the_task_up_at_once() {
    let mut b = Bench::open(embed(1, 1));
    b.out.expect_published(&["shard-00000"]);
    b.failed("shard-00000", false);
    assert_eq!(b.expect_given_up("shard-00000").reported, 1);
    b.expect_listing();
}

#[test]
fn twenty_attempts_without_an_end_give_a_task_up() {
    let mut b = Bench::open(embed(1, 1));
    b.out.expect_published(&["shard-00000"]);
    for _ in 0..SILENT_LIMIT {
        b.event("shard-00000", TaskNews::Started);
    }
    b.out.expect_nothing();
    b.event("shard-00000", TaskNews::Started);
    let failure = b.expect_given_up("shard-00000");
    assert_eq!((failure.reported, failure.silent), (0, SILENT_LIMIT));
    assert!(failure.error.contains("without a word"), "{}", failure.error);
    b.expect_listing();
}

#[test]
fn events_that_come_twice_are_counted_once() {
    let mut b = Bench::open(embed(1, 1));
    b.out.expect_published(&["shard-00000"]);
    for _ in 0..100 {
        b.event_of(1, "shard-00000", "a", TaskNews::Started);
        b.event_of(1, "shard-00000", "a", TaskNews::Failed { error: "x".into(), retryable: true });
        b.event_of(1, "shard-00000", "b", TaskNews::Released);
    }
    let troubles = b.core.job(&b.job).unwrap().detail().troubles;
    assert_eq!((troubles.len(), troubles[0].reported, troubles[0].silent), (1, 1, 0));
}

#[test]
fn news_of_another_run_and_of_unknown_things_change_nothing() {
    let mut b = Bench::open(embed(2, 1));
    b.out.expect_published(&["shard-00000", "shard-00001"]);
    b.event_of(2, "shard-00000", "a", TaskNews::Failed { error: "x".into(), retryable: false });
    b.event_of(1, "no-such-task", "a", TaskNews::Failed { error: "x".into(), retryable: false });
    b.done("no-such-task");
    b.record("no-such-task", shard_output());
    let (other, run, task) = (job_id("other"), RunNumber(1), task_id("shard-00000"));
    b.core.on_no_record(&other, run, &task, 0, &mut b.out);
    b.core.on_records(&other, run, &HashSet::new(), 0, &mut b.out);
    b.core.on_records(&b.job, run, &HashSet::new(), 0, &mut b.out);
    b.core.on_promoted(&b.job, run, &gate_decision(true), Ok(1), &mut b.out);
    b.out.expect_nothing();
}

#[test]
fn progress_shows_who_works_on_what() {
    let mut b = Bench::open(embed(1, 1));
    b.out.expect_published(&["shard-00000"]);
    b.event_of(1, "shard-00000", "a", TaskNews::Progress { done: 3, of: 9, note: "loss 0.1".into() });
    let active = b.core.job(&b.job).unwrap().detail().active;
    assert_eq!((active[0].task.as_str(), active[0].progress, active[0].of), ("shard-00000", 3, 9));
    assert_eq!(active[0].note, "loss 0.1");
    b.event_of(1, "shard-00000", "a", TaskNews::Released);
    assert!(b.core.job(&b.job).unwrap().detail().active.is_empty());
}

#[test]
fn a_scan_is_read_once_it_is_done_and_tells_the_parts() {
    let mut b = Bench::open(ingest(100));
    b.out.expect_published(&["scan"]);
    b.done("scan");
    b.expect_find("scan");
    b.done("scan");
    b.out.expect_nothing();
    b.record("scan", scan_output(250));
    b.out.expect_published(&["part-00000", "part-00001", "part-00002"]);
    b.record("scan", scan_output(250));
    b.out.expect_nothing();
}

#[test]
fn the_record_of_a_scan_is_looked_for_again_while_it_is_missing() {
    let mut b = Bench::open(ingest(100));
    b.out.expect_published(&["scan"]);
    b.done("scan");
    b.expect_find("scan");
    b.core.on_tick(b.now_ms, &mut b.out);
    b.expect_find("scan");
    b.expect_find_outcome();
    let (job, run, scan) = (b.job.clone(), RunNumber(1), task_id("scan"));
    b.core.on_no_record(&job, run, &scan, b.now_ms, &mut b.out);
    b.out.expect_published(&["scan"]);
}

#[test]
fn a_source_without_rows_fails_the_run_and_names_the_scan() {
    let mut b = Bench::open(ingest(100));
    b.out.expect_published(&["scan"]);
    b.done("scan");
    b.expect_find("scan");
    b.record("scan", scan_output(0));
    b.expect_listing();
    b.records(&["scan"]);
    let RunResult::Failed { failures } = b.expect_close() else { panic!() };
    assert_eq!((failures[0].task.as_str(), failures[0].error.as_str()), ("scan", "the source lists no rows"));
}

#[test]
fn a_record_that_cannot_be_read_fails_the_run_and_names_its_task() {
    let mut b = Bench::open(ingest(100));
    b.out.expect_published(&["scan"]);
    b.done("scan");
    b.expect_find("scan");
    let (job, run, scan) = (b.job.clone(), RunNumber(1), task_id("scan"));
    b.core.on_unreadable(&job, run, &scan, "`scan.json` is damaged".into(), b.now_ms, &mut b.out);
    b.expect_listing();
    b.records(&["scan"]);
    let RunResult::Failed { failures } = b.expect_close() else { panic!() };
    assert_eq!((failures.len(), failures[0].error.as_str()), (1, "`scan.json` is damaged"));
}

#[test]
fn parts_that_were_done_before_their_stage_was_told_are_not_done_again() {
    let mut b = Bench::open_with(ingest(100), &["scan", "part-00001"]);
    b.expect_find("scan");
    b.record("scan", scan_output(250));
    b.out.expect_published(&["part-00000", "part-00002"]);
}

#[test]
fn a_done_event_without_a_record_closes_nothing() {
    let mut b = Bench::open(embed(1, 1));
    b.out.expect_published(&["shard-00000"]);
    b.done("shard-00000");
    b.out.expect_published(&["generation"]);
    b.done("generation");
    b.expect_listing();
    b.records(&["generation"]);
    b.out.expect_published(&["shard-00000"]);
    b.done("shard-00000");
    b.expect_listing();
    b.records(&["generation", "shard-00000"]);
    assert_eq!(b.expect_close(), DONE);
}

#[test]
fn a_record_outweighs_reported_failures() {
    let mut b = Bench::open(embed(1, 1));
    b.out.expect_published(&["shard-00000"]);
    b.failed("shard-00000", false);
    b.expect_given_up("shard-00000");
    b.expect_listing();
    b.records(&["shard-00000"]);
    b.out.expect_published(&["generation"]);
}

#[test]
fn a_task_without_news_for_two_ack_waits_is_looked_after() {
    let mut b = Bench::open(embed(2, 1));
    b.out.expect_published(&["shard-00000", "shard-00001"]);
    b.now_ms = 40_000;
    b.event_of(1, "shard-00001", "a", TaskNews::Started);
    b.now_ms = 61_000;
    b.core.on_tick(b.now_ms, &mut b.out);
    b.expect_find("shard-00000");
    b.expect_find_outcome();
    b.core.on_tick(b.now_ms + 1, &mut b.out);
    b.expect_find_outcome();
    let (job, run, task) = (b.job.clone(), RunNumber(1), task_id("shard-00000"));
    b.core.on_no_record(&job, run, &task, b.now_ms, &mut b.out);
    b.out.expect_published(&["shard-00000"]);
}

#[test]
fn a_lost_done_event_is_made_up_for_by_the_record() {
    let mut b = Bench::open(embed(1, 1));
    b.out.expect_published(&["shard-00000"]);
    b.core.on_tick(100_000, &mut b.out);
    b.expect_find("shard-00000");
    b.expect_find_outcome();
    b.record("shard-00000", shard_output());
    b.out.expect_published(&["generation"]);
}

#[test]
fn a_broker_that_lost_its_streams_gets_every_task_looked_after_at_once() {
    let mut b = Bench::open(embed(2, 1));
    b.out.expect_published(&["shard-00000", "shard-00001"]);
    b.core.on_broker_doubted(b.now_ms, &mut b.out);
    b.expect_find("shard-00000");
    b.expect_find("shard-00001");
    b.expect_find_outcome();
}

#[test]
fn a_cancelled_run_is_over_whatever_its_tasks_say() {
    let mut b = Bench::open(embed(1, 1));
    b.out.expect_published(&["shard-00000"]);
    b.outcome(RunResult::Cancelled);
    b.out.drain();
    assert_eq!(b.state(), JobState::Cancelled);
    b.done("shard-00000");
    b.failed("shard-00000", false);
    b.record("shard-00000", shard_output());
    b.core.on_tick(1_000_000, &mut b.out);
    b.outcome(DONE);
    assert_eq!(b.state(), JobState::Cancelled, "the first outcome holds");
}

#[test]
fn a_cancel_wins_against_a_close_under_way() {
    let mut b = Bench::open_with(embed(1, 1), &["shard-00000", "generation"]);
    b.expect_listing();
    b.records(&["shard-00000", "generation"]);
    assert_eq!(b.expect_close(), DONE);
    b.outcome(RunResult::Cancelled);
    b.out.drain();
    assert_eq!(b.state(), JobState::Cancelled);
}

#[test]
fn a_retry_purges_what_was_left_and_keeps_records_but_not_failures() {
    let mut b = Bench::open(embed(2, 1));
    b.out.expect_published(&["shard-00000", "shard-00001"]);
    for _ in 1..REPORTED_LIMIT {
        b.failed("shard-00001", true);
    }
    b.outcome(RunResult::Cancelled);
    b.out.drain();
    b.open_run(2, &["shard-00000"]);
    assert_eq!(b.out.next(), Effect::PurgeJob { job: b.job.clone() });
    let Effect::Publish { message, .. } = b.out.next() else { panic!() };
    assert_eq!((message.run, message.task.as_str()), (RunNumber(2), "shard-00001"));
    b.event_of(2, "shard-00001", "x", TaskNews::Failed { error: "e".into(), retryable: true });
    b.out.expect_nothing();
    assert_eq!(b.core.job(&b.job).unwrap().detail().troubles[0].reported, 1);
}

#[test]
fn a_run_that_is_known_already_stays_as_it_is() {
    let mut b = Bench::open(embed(1, 1));
    b.out.expect_published(&["shard-00000"]);
    b.open_run(1, &[]);
    b.out.expect_nothing();
}

fn pipeline() -> JobSpec {
    spec(JobWork::Pipeline {
        train: train_stage(),
        embed: embed_stage(1, 1),
        evaluate: evaluate_stage(),
        alias: name("live"),
        baseline: None,
    })
}

const PIPELINE: [&str; 14] = [
    "init",
    "round-00000-slot-000",
    "round-00000-outer",
    "round-00001-slot-000",
    "round-00001-outer",
    "round-00002-slot-000",
    "round-00002-outer",
    "model",
    "shard-00000",
    "generation",
    "queries",
    "scores-00000",
    "report",
    "gate",
];

/// A pipeline of which every task is done.
fn finished_pipeline() -> Bench {
    let mut b = Bench::open_with(pipeline(), &PIPELINE);
    b.expect_find("queries");
    b.record("queries", TaskOutput::Queries { object: object(), queries: 9 });
    b.expect_listing();
    b.records(&PIPELINE);
    b.expect_find("gate");
    b
}

#[test]
fn a_pipeline_that_passes_its_gate_is_promoted_and_then_closed() {
    let mut b = finished_pipeline();
    b.record("gate", TaskOutput::Gate(gate_decision(true)));
    let Effect::Promote(promotion) = b.out.next() else { panic!() };
    assert_eq!((promotion.alias.as_str(), promotion.replaces), ("live", None));
    assert_eq!(promotion.generation.generation, b.job);
    let job = b.job.clone();
    b.core.on_promoted(&job, RunNumber(1), &promotion.gate, Ok(1), &mut b.out);
    let expected = RunResult::Done { gate: Some(gate_decision(true)), release: Some(1) };
    assert_eq!(b.expect_close(), expected);
    b.core.on_promoted(&job, RunNumber(1), &promotion.gate, Ok(1), &mut b.out);
    b.out.expect_nothing();
    b.outcome(expected);
    b.out.drain();
    assert_eq!(b.state(), JobState::Done);
}

#[test]
fn a_pipeline_that_its_gate_refuses_is_done_without_a_release() {
    let mut b = finished_pipeline();
    b.record("gate", TaskOutput::Gate(gate_decision(false)));
    let refused = b.expect_close();
    assert_eq!(refused, RunResult::Done { gate: Some(gate_decision(false)), release: None });
    b.outcome(refused);
    b.out.drain();
    assert_eq!(b.state(), JobState::Refused);
    assert_eq!(b.core.job(&b.job).unwrap().detail().gate, Some(gate_decision(false)));
}

#[test]
fn a_promotion_that_is_not_possible_fails_the_run() {
    let mut b = finished_pipeline();
    b.record("gate", TaskOutput::Gate(gate_decision(true)));
    b.out.next();
    let job = b.job.clone();
    let why = "not loaded within 120 s".to_string();
    b.core.on_promoted(&job, RunNumber(1), &gate_decision(true), Err(why.clone()), &mut b.out);
    let RunResult::Failed { failures } = b.expect_close() else { panic!() };
    assert_eq!((failures[0].task.as_str(), &failures[0].error), ("promote", &why));
}

#[test]
fn a_gate_without_a_decision_fails_the_run() {
    let mut b = finished_pipeline();
    b.record("gate", shard_output());
    b.expect_listing();
    b.records(&PIPELINE);
    let RunResult::Failed { failures } = b.expect_close() else { panic!() };
    assert_eq!(failures[0].task.as_str(), "gate");
}

#[test]
fn a_gate_whose_record_vanished_is_asked_again() {
    let mut b = finished_pipeline();
    let (job, run, gate) = (b.job.clone(), RunNumber(1), task_id("gate"));
    b.core.on_no_record(&job, run, &gate, b.now_ms, &mut b.out);
    b.out.expect_published(&["gate"]);
}

#[test]
fn a_plan_that_never_ends_fails_by_name_instead_of_succeeding() {
    let mut b = Bench::open(embed(1, 1));
    b.out.expect_published(&["shard-00000"]);
    let mut plan = planner::plan(&b.job, &b.spec);
    plan.stages[1].tasks.clear();
    plan.stages[1].expands = Some(task_id("nobody"));
    let run = Run { job: job_id("k"), run: RunNumber(1), opened_ms: 0 };
    let (spec, records, tellers) = (b.spec.clone(), HashSet::new(), Vec::new());
    let opened = OpenedJob { spec, plan, accepted_ms: 0, run, records, tellers };
    b.core.on_opened(&job_id("k"), opened, 0, &mut b.out);
    b.out.expect_published(&["shard-00000"]);
    let id = job_id("k");
    let records = HashSet::from([task_id("shard-00000")]);
    let done = record(&id, "shard-00000", shard_output());
    b.core.on_record(&done, 0, &mut b.out);
    assert_eq!(b.out.next(), Effect::ListRecords { job: id.clone(), run: RunNumber(1) });
    b.core.on_records(&id, RunNumber(1), &records, 0, &mut b.out);
    let Effect::Close { result: RunResult::Failed { failures }, .. } = b.out.next() else { panic!() };
    assert_eq!(failures[0].task.as_str(), "nobody");
}

#[test]
fn what_an_event_costs_does_not_depend_on_the_number_of_tasks() {
    let time = |tasks: u64| {
        let mut b = Bench::open(embed(tasks, 1));
        b.out.drain();
        let start = std::time::Instant::now();
        for shard in 0..2_000 {
            b.done(&format!("shard-{shard:05}"));
            b.out.drain();
        }
        start.elapsed()
    };
    time(2_001);
    let (few, many) = (time(2_001), time(90_000));
    assert!(many < few * 8, "2,000 events took {few:?} in a small job and {many:?} in a large one");
}

#[test]
fn a_job_that_closed_before_this_leader_is_known_and_told_in_full_when_asked() {
    let mut b = Bench::open(embed(1, 1));
    b.out.drain();
    let id = job_id("old");
    let run = Run { job: id.clone(), run: RunNumber(2), opened_ms: 3 };
    let outcome = Outcome { job: id.clone(), run: RunNumber(2), closed_ms: 9, result: DONE };
    b.core.on_found_closed(&id, ClosedJob { spec: embed(1, 1), accepted_ms: 1, run, outcome });
    assert!(b.core.job(&id).unwrap().untold(false).is_some());
    let (_, run) = OpenedJob {
        spec: embed(1, 1),
        plan: planner::plan(&id, &embed(1, 1)),
        accepted_ms: 1,
        run: Run { job: id.clone(), run: RunNumber(2), opened_ms: 3 },
        records: HashSet::from([task_id("shard-00000"), task_id("generation")]),
        tellers: Vec::new(),
    }
    .open();
    b.core.on_tally(&id, RunNumber(2), Tally::of(&run, None));
    assert!(b.core.job(&id).unwrap().untold(false).is_none(), "a list is told by counts");
    assert!(b.core.job(&id).unwrap().untold(true).is_some());
    b.core.on_tally(&id, RunNumber(2), Tally::of(&run, Some(77)));
    let job = b.core.job(&id).unwrap();
    let detail = job.detail();
    assert_eq!((detail.summary.done, detail.summary.tasks, detail.device_ms), (2, 2, 77));
    assert!(job.untold(true).is_none());
}

const SLOTS: [&str; 3] = ["round-00000-slot-000", "round-00000-slot-001", "round-00000-slot-002"];
const NEXT_SLOTS: [&str; 3] = ["round-00001-slot-000", "round-00001-slot-001", "round-00001-slot-002"];

/// A training whose first round has begun.
fn in_rounds(quorum: u32, deadline_s: u32) -> Bench {
    let mut b = Bench::open(train_in_rounds(quorum, deadline_s));
    b.out.expect_published(&["init"]);
    b.done("init");
    b.out.expect_published(&SLOTS);
    b
}

#[test]
fn an_outer_step_waits_for_every_slot_unless_a_quorum_is_enough() {
    let mut b = in_rounds(3, 0);
    b.done(SLOTS[2]);
    b.done(SLOTS[0]);
    b.core.on_deadlines(1_000_000, &mut b.out);
    b.out.expect_nothing();
    b.done(SLOTS[1]);
    b.out.expect_published(&["round-00000-outer"]);

    let mut b = in_rounds(2, 0);
    b.done(SLOTS[2]);
    b.out.expect_nothing();
    b.done(SLOTS[0]);
    b.out.expect_published(&["round-00000-outer"]);
}

#[test]
fn after_its_deadline_a_round_goes_on_with_its_quorum_and_what_comes_later_is_late() {
    let mut b = in_rounds(2, 10);
    b.done(SLOTS[0]);
    b.core.on_deadlines(1_000_000, &mut b.out);
    b.out.expect_nothing();
    b.now_ms = 5_000;
    b.done(SLOTS[2]);
    b.core.on_deadlines(10_999, &mut b.out);
    b.out.expect_nothing();
    b.core.on_deadlines(11_000, &mut b.out);
    b.out.expect_published(&["round-00000-outer"]);
    b.core.on_deadlines(12_000, &mut b.out);
    b.out.expect_nothing();
    b.done("round-00000-outer");
    match b.out.next() {
        Effect::PurgeTask { subject, .. } => assert!(subject.ends_with(SLOTS[1]), "{subject}"),
        other => panic!("expected the purge of the late slot, found {other:?}"),
    }
    b.out.expect_published(&NEXT_SLOTS);
    b.event_of(1, SLOTS[1], "late", TaskNews::Started);
    b.failed(SLOTS[1], false);
    let (job, late) = (b.job.clone(), task_id(SLOTS[1]));
    b.core.on_no_record(&job, RunNumber(1), &late, b.now_ms, &mut b.out);
    b.out.expect_nothing();
    let stages = b.core.job(&job).unwrap().detail().stages;
    assert_eq!((stages[1].name.as_str(), stages[1].done, stages[1].tasks), ("round 0 (1 late)", 2, 2));

    for task in NEXT_SLOTS {
        b.done(task);
    }
    b.out.expect_published(&["round-00001-outer"]);
    b.done("round-00001-outer");
    b.out.expect_published(&["model"]);
    b.done("model");
    b.expect_listing();
    let records: Vec<&str> = ["init", SLOTS[0], SLOTS[2], "round-00000-outer", "round-00001-outer", "model"]
        .into_iter()
        .chain(NEXT_SLOTS)
        .collect();
    b.records(&records);
    assert_eq!(b.expect_close(), DONE);
}

#[test]
fn a_slot_that_comes_before_the_outer_step_is_done_is_waited_for_no_more_and_is_not_late() {
    let mut b = in_rounds(2, 0);
    b.done(SLOTS[0]);
    b.done(SLOTS[2]);
    b.out.expect_published(&["round-00000-outer"]);
    b.done(SLOTS[1]);
    b.out.expect_nothing();
    b.done("round-00000-outer");
    b.out.expect_published(&NEXT_SLOTS);
}

#[test]
fn a_slot_that_fails_for_good_holds_its_round() {
    let mut b = in_rounds(2, 10);
    b.failed(SLOTS[1], false);
    b.expect_given_up(SLOTS[1]);
    b.done(SLOTS[0]);
    b.done(SLOTS[2]);
    b.expect_listing();
    b.records(&["init", SLOTS[0], SLOTS[2]]);
    let RunResult::Failed { failures } = b.expect_close() else { panic!("a quorum forgives being late alone") };
    assert_eq!(failures[0].task.as_str(), SLOTS[1]);
}

#[test]
fn a_new_leader_asks_for_no_slot_that_was_late_before() {
    let records = ["init", SLOTS[0], SLOTS[2], "round-00000-outer"];
    let mut b = Bench::open_with(train_in_rounds(2, 10), &records);
    b.out.expect_published(&NEXT_SLOTS);
    // It comes all the same.
    b.done(SLOTS[1]);
    b.out.expect_nothing();
    let stages = b.core.job(&b.job).unwrap().detail().stages;
    assert_eq!((stages[1].name.as_str(), stages[1].done, stages[1].tasks), ("round 0", 3, 3));
}

#[test]
fn an_outer_step_that_is_heard_of_before_its_slots_leaves_them_behind_when_their_time_comes() {
    let mut b = Bench::open(train_in_rounds(2, 10));
    b.out.expect_published(&["init"]);
    b.done("round-00000-outer");
    b.out.expect_nothing();
    b.done("init");
    b.out.expect_published(&NEXT_SLOTS);
}

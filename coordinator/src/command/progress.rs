//! How far a job is, for people: one bar per phase on a terminal, plain lines elsewhere.
//!
//! A training has a stage for every round, so stages are grouped into the four phases that users think in.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use likeness_contract::jobs::{DeviceClass, TaskKind};
use likeness_contract::messages::JobDetail;

use crate::command::output::{say, span};
use crate::command::rounds;

/// Resolution of a bar.
const BAR_UNITS: u64 = 1000;
/// Without a terminal, a line at most so often.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// The rate is averaged over about this time.
const RATE_WINDOW_S: f64 = 8.0;
/// A phase without a task at hand for so long waits for a worker that takes the next one.
const WAITING_AFTER: Duration = Duration::from_secs(5);
/// A time left is guessed only after so long: before, it would jump about.
const GUESS_AFTER: Duration = Duration::from_secs(2);

/// One phase of a job at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// Which.
    pub kind: TaskKind,
    /// Tasks with a record.
    pub done: u64,
    /// Tasks known so far.
    pub tasks: u64,
    /// Whether there will be more tasks.
    pub open_ended: bool,
    /// Share that is done, tasks at hand included: 0–1.
    pub share: f64,
    /// Tasks that workers are at.
    pub at_hand: usize,
    /// What a worker says of the task at hand.
    pub note: String,
    /// Class of device that its next task asks for.
    pub device: DeviceClass,
}

impl Phase {
    /// Whether nothing is left to do.
    pub fn is_complete(&self) -> bool {
        !self.open_ended && self.done == self.tasks
    }
}

/// The phases of a job, in order.
pub fn phases(detail: &JobDetail) -> Vec<Phase> {
    TaskKind::ALL.into_iter().filter_map(|kind| phase(detail, kind)).collect()
}

/// Phases that have begun, and the one that is next: it may wait for a worker.
fn shown(phases: Vec<Phase>) -> Vec<Phase> {
    let next = phases.iter().find(|phase| !phase.is_complete()).map(|phase| phase.kind);
    let begun = |phase: &Phase| phase.share > 0.0 || !phase.note.is_empty();
    phases.into_iter().filter(|phase| begun(phase) || Some(phase.kind) == next).collect()
}

/// `a worker that trains on cuda`
pub fn worker_for(kind: TaskKind, device: DeviceClass) -> String {
    let does = match kind {
        TaskKind::Ingest => "ingests",
        TaskKind::Train => "trains",
        TaskKind::Embed => "embeds",
        TaskKind::Evaluate => "evaluates",
    };
    let on = if device == DeviceClass::Any { String::new() } else { format!(" on {}", device.name()) };
    format!("a worker that {does}{on}")
}

fn phase(detail: &JobDetail, kind: TaskKind) -> Option<Phase> {
    let stages: Vec<_> = detail.stages.iter().filter(|stage| kind_of(&stage.name) == kind).collect();
    if stages.is_empty() {
        return None;
    }
    let done: u64 = stages.iter().map(|stage| stage.done).sum();
    let tasks: u64 = stages.iter().map(|stage| stage.tasks).sum();
    let active: Vec<_> = detail.active.iter().filter(|task| kind_of(task.task.as_str()) == kind).collect();
    let begun: f64 = active.iter().map(|task| fraction(task.progress, task.of)).sum();
    let open_ended = stages.iter().any(|stage| stage.tasks == 0);
    // A stage whose tasks are not known yet counts as one task to come.
    let expected = tasks + stages.iter().filter(|stage| stage.tasks == 0).count() as u64;
    let share = ((done as f64 + begun) / expected.max(1) as f64).min(1.0);
    let said = active.iter().map(|task| task.note.as_str()).find(|note| !note.is_empty()).unwrap_or_default();
    let of_rounds = rounds::in_words(detail).filter(|_| kind == TaskKind::Train);
    let note = of_rounds.as_deref().into_iter().chain(Some(said).filter(|said| !said.is_empty())).collect::<Vec<_>>();
    let next = stages.iter().find(|stage| stage.tasks == 0 || stage.done < stage.tasks);
    let device = next.map_or(DeviceClass::Any, |stage| device_of(&stage.name, detail.spec.device));
    Some(Phase { kind, done, tasks, open_ended, share, at_hand: active.len(), note: note.join(" · "), device })
}

/// The job's class for what computes on images or tensors, any for the rest: as the coordinator plans it.
fn device_of(stage: &str, asked: DeviceClass) -> DeviceClass {
    match stage.rsplit(' ').next() {
        Some("scan" | "dataset" | "generation" | "queries" | "gate" | "search") => DeviceClass::Any,
        _ => asked,
    }
}

fn fraction(done: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { (done as f64 / of as f64).min(1.0) }
}

/// The phase of a stage by its name, or of a task by its id.
fn kind_of(name: &str) -> TaskKind {
    let name = name.strip_prefix("baseline").map_or(name, |rest| rest.trim_start_matches(['-', ' ']));
    let first = name.split(['-', ' ']).next().unwrap_or(name);
    match first {
        "scan" | "part" | "parts" | "dataset" => TaskKind::Ingest,
        "init" | "round" | "model" => TaskKind::Train,
        "shard" | "embed" | "generation" => TaskKind::Embed,
        _ => TaskKind::Evaluate,
    }
}

/// What the units of a phase's tasks are, where their rate is worth telling: a step's size is a setting, and the
/// blocks of an evaluation are nobody's business.
fn unit(kind: TaskKind) -> Option<&'static str> {
    match kind {
        TaskKind::Ingest | TaskKind::Embed => Some("images"),
        TaskKind::Train | TaskKind::Evaluate => None,
    }
}

/// Follows one phase over time: its rate and the time that it still needs.
#[derive(Debug)]
struct Meter {
    /// When it was first at work, and how much was done then.
    first: (Instant, f64),
    last_seen: Instant,
    idle_since: Option<Instant>,
    units_per_s: Option<f64>,
}

impl Meter {
    fn new(now: Instant, share: f64) -> Self {
        Self { first: (now, share), last_seen: now, idle_since: None, units_per_s: None }
    }

    fn observe(&mut self, now: Instant, units: u64, phase: &Phase) {
        self.idle_since = if phase.at_hand > 0 { None } else { self.idle_since.or(Some(now)) };
        if phase.at_hand == 0 && phase.share <= self.first.1 {
            self.first.0 = now;
        }
        let seconds = now.duration_since(self.last_seen).as_secs_f64();
        if seconds < 0.05 {
            return;
        }
        self.last_seen = now;
        let rate = units as f64 / seconds;
        let weight = 1.0 - (-seconds / RATE_WINDOW_S).exp();
        self.units_per_s = Some(self.units_per_s.map_or(rate, |old| old + weight * (rate - old)));
    }

    fn waits(&self, now: Instant) -> bool {
        self.idle_since.is_some_and(|since| now.duration_since(since) >= WAITING_AFTER)
    }

    fn left(&self, now: Instant, share: f64) -> Option<Duration> {
        let (since, share_then) = self.first;
        let elapsed = now.duration_since(since);
        let gained = share - share_then;
        if elapsed < GUESS_AFTER || gained <= 0.005 {
            return None;
        }
        Some(elapsed.mul_f64(((1.0 - share) / gained).clamp(0.0, 1e6)))
    }
}

/// Units of the tasks at hand, to tell how many were done between two looks.
#[derive(Debug, Default)]
struct Units(HashMap<String, (TaskKind, u64, u64)>);

impl Units {
    /// Units done since the last look, per phase; a task that is no longer at hand has done the rest of its own.
    fn advance(&mut self, detail: &JobDetail) -> HashMap<TaskKind, u64> {
        let now: HashMap<String, (TaskKind, u64, u64)> = detail
            .active
            .iter()
            .map(|task| (task.task.to_string(), (kind_of(task.task.as_str()), task.progress, task.of)))
            .collect();
        let mut gained: HashMap<TaskKind, u64> = HashMap::new();
        for (task, (kind, done, of)) in &self.0 {
            let to = now.get(task).map_or(*of, |(_, done, _)| *done);
            *gained.entry(*kind).or_default() += to.saturating_sub(*done);
        }
        for (task, (kind, done, _)) in &now {
            if !self.0.contains_key(task) {
                *gained.entry(*kind).or_default() += done;
            }
        }
        self.0 = now;
        gained
    }
}

/// Shows a job's progress on stderr.
#[derive(Debug)]
pub struct Display {
    bars: Option<MultiProgress>,
    shown: HashMap<TaskKind, ProgressBar>,
    meters: HashMap<TaskKind, Meter>,
    units: Units,
    printed: Option<Instant>,
    /// The phase whose waiting for a worker was printed.
    waits: Option<TaskKind>,
    finished: Vec<TaskKind>,
}

impl Display {
    /// Bars on a terminal, lines elsewhere.
    pub fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self {
            bars,
            shown: HashMap::new(),
            meters: HashMap::new(),
            units: Units::default(),
            printed: None,
            waits: None,
            finished: Vec::new(),
        }
    }

    /// Shows where the job is now.
    pub fn update(&mut self, detail: &JobDetail, now: Instant) {
        let gained = self.units.advance(detail);
        let mut current = None;
        for phase in shown(phases(detail)) {
            let meter = self.meters.entry(phase.kind).or_insert_with(|| Meter::new(now, phase.share));
            meter.observe(now, gained.get(&phase.kind).copied().unwrap_or(0), &phase);
            let waits = !phase.is_complete() && meter.waits(now);
            let text = describe(&phase, meter, now);
            self.show(&phase, &text);
            if !phase.is_complete() {
                current = Some((phase.kind, waits, text));
            }
        }
        if let Some((kind, waits, text)) = current
            && self.bars.is_none()
            && self.is_due(kind, waits, now)
        {
            say(format!("{}: {text}", kind.name()));
            self.printed = Some(now);
        }
    }

    /// Whether to print a line now: that a phase waits is said at once, else a line now and then.
    fn is_due(&mut self, kind: TaskKind, waits: bool, now: Instant) -> bool {
        let before = std::mem::replace(&mut self.waits, waits.then_some(kind));
        let news = waits && before != Some(kind);
        news || self.printed.is_none_or(|at| now.duration_since(at) >= LINE_EVERY)
    }

    /// A line that stays above the bars.
    pub fn say(&self, text: &str) {
        match &self.bars {
            // Fails only when stderr is gone.
            Some(bars) => drop(bars.println(text)),
            None => say(text),
        }
    }

    /// Leaves what is shown as it stands.
    pub fn close(&self) {
        for bar in self.shown.values() {
            bar.abandon();
        }
    }

    fn show(&mut self, phase: &Phase, text: &str) {
        let complete = phase.is_complete();
        match &self.bars {
            Some(bars) => {
                let bar = self.shown.entry(phase.kind).or_insert_with(|| bars.add(new_bar(phase.kind)));
                bar.set_position((phase.share * BAR_UNITS as f64) as u64);
                bar.set_message(text.to_string());
            }
            None if complete && !self.finished.contains(&phase.kind) => {
                say(format!("{}: {text}", phase.kind.name()));
            }
            None => {}
        }
        if complete && !self.finished.contains(&phase.kind) {
            self.finished.push(phase.kind);
        }
    }
}

fn new_bar(kind: TaskKind) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:9} {bar:24} {percent:>3} %  {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    let bar = ProgressBar::new(BAR_UNITS).with_style(style);
    bar.set_prefix(kind.name());
    bar
}

/// `45/118 tasks · 3.1 steps/s · 1 min 20 s left · loss 0.093`
fn describe(phase: &Phase, meter: &Meter, now: Instant) -> String {
    let mut parts = vec![format!("{}/{}{} tasks", phase.done, phase.tasks, if phase.open_ended { "+" } else { "" })];
    if phase.is_complete() {
        let took = now.duration_since(meter.first.0);
        if took > GUESS_AFTER {
            parts.push(span(millis(took)));
        }
        return parts.join(" · ");
    }
    if meter.waits(now) {
        parts.push(format!("waiting for {}", worker_for(phase.kind, phase.device)));
        return parts.join(" · ");
    }
    let rate = meter.units_per_s.filter(|rate| *rate > 0.0).zip(unit(phase.kind));
    if let Some((rate, unit)) = rate {
        parts.push(format!("{} {unit}/s", short(rate)));
    }
    if let Some(left) = meter.left(now, phase.share) {
        parts.push(format!("{} left", span(millis(left).max(1000) / 1000 * 1000)));
    }
    // Ours is the rate of all workers, theirs that of one.
    let repeats = rate.is_some() && phase.note.ends_with("/s");
    if !phase.note.is_empty() && !repeats {
        parts.push(phase.note.clone());
    }
    parts.join(" · ")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn short(rate: f64) -> String {
    if rate < 10.0 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

#[cfg(test)]
pub mod tests {
    use likeness_contract::ids::{JobId, Name, RunNumber, TaskId, WorkerId};
    use likeness_contract::jobs::{IngestSource, JobOptions, JobSpec, JobWork, Priority};
    use likeness_contract::messages::{ActiveTask, JobState, JobSummary, StageProgress};

    use super::*;

    /// A job with these stages (name, done, tasks) and tasks at hand (id, progress, of, note).
    pub fn detail(stages: &[(&str, u64, u64)], active: &[(&str, u64, u64, &str)]) -> JobDetail {
        let source = IngestSource::Celeba { dir: "/d".into() };
        JobDetail {
            summary: JobSummary {
                job: JobId::new("j").unwrap(),
                kind: "ingest".into(),
                state: JobState::Running,
                run: RunNumber(1),
                done: stages.iter().map(|stage| stage.1).sum(),
                tasks: stages.iter().map(|stage| stage.2).sum(),
                opened_ms: 0,
                closed_ms: None,
            },
            spec: JobSpec {
                work: JobWork::Ingest { dataset: Name::new("d").unwrap(), source, part_rows: 1 },
                device: DeviceClass::Any,
                priority: Priority::Lo,
                options: JobOptions::default(),
            },
            stages: stages
                .iter()
                .map(|(name, done, tasks)| StageProgress { name: name.to_string(), done: *done, tasks: *tasks })
                .collect(),
            active: active
                .iter()
                .map(|(task, progress, of, note)| ActiveTask {
                    task: TaskId::new(*task).unwrap(),
                    worker: WorkerId::new("w").unwrap(),
                    progress: *progress,
                    of: *of,
                    note: note.to_string(),
                })
                .collect(),
            troubles: Vec::new(),
            device_ms: 0,
            result: None,
            gate: None,
        }
    }

    #[test]
    fn rounds_are_one_phase() {
        let stages = [
            ("init", 1, 1),
            ("round 0", 1, 1),
            ("round 0 outer", 1, 1),
            ("round 1", 0, 1),
            ("round 1 outer", 0, 1),
            ("model", 0, 1),
        ];
        let phases = phases(&detail(&stages, &[("round-00001-slot-000", 25, 50, "loss 0.1")]));
        assert_eq!(phases.len(), 1);
        assert_eq!((phases[0].kind, phases[0].done, phases[0].tasks), (TaskKind::Train, 3, 6));
        assert!((phases[0].share - 3.5 / 6.0).abs() < 1e-9);
        assert_eq!(phases[0].note, "loss 0.1");
    }

    #[test]
    fn a_pipeline_has_its_phases_in_order() {
        let stages = [
            ("init", 1, 1),
            ("model", 1, 1),
            ("embed", 0, 4),
            ("generation", 0, 1),
            ("baseline embed", 0, 4),
            ("queries", 0, 1),
            ("scores", 0, 0),
            ("baseline scores", 0, 0),
            ("report", 0, 1),
            ("gate", 0, 1),
        ];
        let phases = phases(&detail(&stages, &[("baseline-shard-00001", 1, 2, "")]));
        let kinds: Vec<TaskKind> = phases.iter().map(|phase| phase.kind).collect();
        assert_eq!(kinds, [TaskKind::Train, TaskKind::Embed, TaskKind::Evaluate]);
        assert!(phases[0].is_complete());
        assert_eq!((phases[1].tasks, phases[1].share > 0.0), (9, true));
        assert!(phases[2].open_ended && !phases[2].is_complete());
    }

    #[test]
    fn the_rate_counts_the_rest_of_tasks_that_ended() {
        let mut units = Units::default();
        let stages = [("parts", 0, 2)];
        assert_eq!(units.advance(&detail(&stages, &[("part-00000", 10, 100, "")]))[&TaskKind::Ingest], 10);
        assert_eq!(units.advance(&detail(&stages, &[("part-00000", 60, 100, "")]))[&TaskKind::Ingest], 50);
        assert_eq!(units.advance(&detail(&stages, &[("part-00001", 5, 100, "")]))[&TaskKind::Ingest], 45);
    }

    #[test]
    fn time_left_follows_what_was_gained_since_we_watch() {
        let start = Instant::now();
        let meter = Meter::new(start, 0.5);
        let later = start + Duration::from_secs(10);
        assert_eq!(meter.left(later, 0.75).map(|left| left.as_secs()), Some(10));
        assert_eq!(meter.left(later, 0.5), None);
        assert_eq!(meter.left(start + Duration::from_secs(1), 0.9), None);
    }

    #[test]
    fn a_line_tells_tasks_rate_time_and_note() {
        let start = Instant::now();
        let mut meter = Meter::new(start, 0.0);
        let now = start + Duration::from_secs(10);
        let phase = |kind, note: &str| Phase {
            kind,
            done: 1,
            tasks: 4,
            open_ended: false,
            share: 0.25,
            at_hand: 1,
            note: note.into(),
            device: DeviceClass::Any,
        };
        let training = phase(TaskKind::Train, "loss 0.093, 402 images/s");
        meter.observe(now, 31, &training);
        assert_eq!(describe(&training, &meter, now), "1/4 tasks · 30 s left · loss 0.093, 402 images/s");
        let embedding = phase(TaskKind::Embed, "2 images/s");
        assert_eq!(describe(&embedding, &meter, now), "1/4 tasks · 3.1 images/s · 30 s left");
        meter.observe(now, 0, &Phase { at_hand: 0, ..embedding.clone() });
        let later = now + Duration::from_secs(6);
        assert_eq!(describe(&embedding, &meter, later), "1/4 tasks · waiting for a worker that embeds");
        let on_cuda = describe(&Phase { device: DeviceClass::Cuda, ..embedding }, &meter, later);
        assert_eq!(on_cuda, "1/4 tasks · waiting for a worker that embeds on cuda");
    }

    #[test]
    fn a_job_that_nobody_has_begun_is_shown_and_said_to_wait() {
        let mut display = Display { bars: None, ..Display::new() };
        let start = Instant::now();
        let job = detail(&[("scan", 0, 1), ("parts", 0, 0), ("dataset", 0, 1)], &[]);
        display.update(&job, start);
        assert_eq!((display.printed, display.waits), (Some(start), None));
        let later = start + Duration::from_secs(6);
        display.update(&job, later);
        assert_eq!((display.printed, display.waits), (Some(later), Some(TaskKind::Ingest)), "said at once");
        display.update(&job, later + Duration::from_secs(1));
        assert_eq!(display.printed, Some(later), "and not again");
    }

    #[test]
    fn the_next_phase_is_shown_and_those_after_it_are_not() {
        let stages = [("init", 1, 1), ("model", 1, 1), ("embed", 0, 4), ("queries", 0, 1)];
        let kinds: Vec<TaskKind> = shown(phases(&detail(&stages, &[]))).iter().map(|phase| phase.kind).collect();
        assert_eq!(kinds, [TaskKind::Train, TaskKind::Embed]);
    }

    #[test]
    fn only_what_computes_waits_for_the_class_of_device_asked_for() {
        let asks = |stages: &[(&str, u64, u64)]| {
            let mut detail = detail(stages, &[]);
            detail.spec.device = DeviceClass::Cuda;
            phases(&detail)[0].device
        };
        assert_eq!(asks(&[("scan", 0, 1), ("parts", 0, 0)]), DeviceClass::Any);
        assert_eq!(asks(&[("scan", 1, 1), ("parts", 1, 2)]), DeviceClass::Cuda);
        assert_eq!(asks(&[("baseline embed", 2, 2), ("baseline generation", 0, 1)]), DeviceClass::Any);
    }

    #[test]
    fn waiting_does_not_count_as_time_taken() {
        let start = Instant::now();
        let idle = &phases(&detail(&[("parts", 0, 4)], &[]))[0];
        let mut meter = Meter::new(start, 0.0);
        let begun = start + Duration::from_secs(100);
        meter.observe(begun, 0, idle);
        assert_eq!(meter.left(begun + Duration::from_secs(10), 0.5).map(|left| left.as_secs()), Some(10));
    }
}

//! Schedules: jobs that are submitted again and again, at times that a cron pattern tells in a time zone.
//!
//! Every change of a schedule is a document of its own, numbered, with all of the schedule as it is from then on; the newest one counts.
//! What became of a scheduled time is a document too (`Firing`), which is created once, keyed by that time: whoever comes second adopts it. The
//! job of a firing has an id that follows from the schedule's name and the time. So whichever coordinator comes to it, and however often, a
//! scheduled time has one record and at most one job.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::{CodecError, Message, OldBody, Writer};
use crate::ids::{JobId, Name};
use crate::jobs::{DatasetRef, JobRequest, asks_for_rounds};
use crate::messages::JobSummary;

/// Most letters of a schedule's name, so that the ids of its jobs are ids.
pub const MAX_NAME: usize = 64;
/// A firing that begins so much later than scheduled was missed, seconds, unless said otherwise.
pub const DEFAULT_LATE_AFTER_S: u32 = 300;
/// Missed firings that are made up for by [`CatchUp::All`] unless said otherwise.
pub const DEFAULT_CATCH_UP_LIMIT: u32 = 24;

/// What a schedule does, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleSettings {
    /// Five fields (minute, hour, day of the month, month, day of the week), six with seconds before them, seven with years behind.
    pub cron: String,
    /// Time zone of the fields: `Europe/Berlin`, `UTC`. In JSON it may be left out, as may all that follows but the job.
    #[serde(default = "utc")]
    pub zone: String,
    /// What happens while the job of an earlier firing runs.
    #[serde(default)]
    pub overlap: Overlap,
    /// What happens to firings that were missed.
    #[serde(default)]
    pub catch_up: CatchUp,
    /// A firing that begins so much later than scheduled was missed, seconds.
    #[serde(default = "late_after_s")]
    pub late_after_s: u32,
    /// Fires only when a dataset that the job names has another version than when a firing last was a success.
    #[serde(default)]
    pub only_if_changed: bool,
    /// The job of every firing; it has no id of its own.
    pub job: JobRequest,
}

fn utc() -> String {
    "UTC".into()
}

fn late_after_s() -> u32 {
    DEFAULT_LATE_AFTER_S
}

/// What happens to a firing while the job of an earlier one runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Overlap {
    /// It is left out.
    #[default]
    Skip,
    /// It waits; several wait in order.
    Queue,
    /// The earlier job is cancelled.
    CancelOld,
}

impl Overlap {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Queue => "queue",
            Self::CancelOld => "cancel-old",
        }
    }
}

/// What happens to firings that were missed because no coordinator led.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CatchUp {
    /// They are left out.
    None,
    /// The newest one fires, unless a later one is due already.
    #[default]
    Last,
    /// The newest ones fire, one after another.
    All {
        /// How many at most.
        limit: u32,
    },
}

/// Whether a schedule fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleState {
    /// It does.
    Active,
    /// Not for now; what it does not do meanwhile it never does.
    Paused,
    /// Never again, unless a schedule of that name is added.
    Removed,
}

impl ScheduleState {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Removed => "removed",
        }
    }
}

/// `schedules/<name>/00000001.json`: a schedule from this change on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Schedule {
    /// Its name.
    pub name: Name,
    /// Number of the change, from 1.
    pub number: u64,
    /// When it was changed, milliseconds since 1970. Only later times fire.
    pub changed_ms: u64,
    /// Whether it fires.
    pub state: ScheduleState,
    /// What it does, and when.
    pub settings: ScheduleSettings,
}

impl Message for Schedule {
    const NAME: &'static str = "schedule";
    const VERSION: u16 = 2;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        match ScheduleV1::of(self) {
            Some(old) => writer.newest(&old),
            None => writer.newest(self),
        }
    }

    fn upgrade(_version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        // Version 2 only added trainings in rounds.
        body.read(Self::NAME)
    }
}

/// Version 1: a training has one slot a round.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
struct ScheduleV1(Schedule);

impl Message for ScheduleV1 {
    const NAME: &'static str = Schedule::NAME;
    const VERSION: u16 = 1;
}

impl ScheduleV1 {
    /// The same schedule, if version 1 says all of it.
    fn of(schedule: &Schedule) -> Option<Self> {
        (!asks_for_rounds(&schedule.settings.job)).then(|| Self(schedule.clone()))
    }
}

/// `firings/<name>/<day>/<time>.json`: what became of a scheduled time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Firing {
    /// The schedule.
    pub schedule: Name,
    /// The scheduled time, milliseconds since 1970.
    pub scheduled_ms: u64,
    /// Number of the change that was in force.
    pub change: u64,
    /// When it was decided, milliseconds since 1970.
    pub decided_ms: u64,
    /// What became of it.
    pub became: Became,
}

impl Message for Firing {
    const NAME: &'static str = "firing";
    const VERSION: u16 = 1;
}

/// What became of a scheduled time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Became {
    /// A job. It is submitted after this was written, by whoever leads then; unless it can't be met ([`Unmet`]).
    Submitted {
        /// The job.
        job: JobId,
        /// Jobs of earlier firings that are cancelled before.
        cancels: Vec<JobId>,
    },
    /// Nothing: the job of an earlier firing was running.
    Overlapped {
        /// That job.
        running: JobId,
    },
    /// Nothing: no dataset that the job names has changed.
    Unchanged {
        /// The versions.
        datasets: Vec<DatasetRef>,
        /// The job of an earlier firing that used the same.
        since: JobId,
    },
    /// Nothing: it was missed.
    Missed {
        /// How.
        how: Missed,
        /// It stands for all earlier times after this one too, milliseconds since 1970: there were too many for a record each.
        all_since_ms: Option<u64>,
    },
}

impl Became {
    /// The word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Submitted { .. } => "submitted",
            Self::Overlapped { .. } => "overlapped",
            Self::Unchanged { .. } => "unchanged",
            Self::Missed { .. } => "missed",
        }
    }
}

/// How a firing was missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Missed {
    /// No coordinator led at the time.
    Late,
    /// It waited for an earlier job when the schedule was changed, paused or removed.
    Changed,
}

/// `firings/<name>/<day>/<time>-unmet.json`: the job of a firing could not be accepted, and will not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unmet {
    /// The schedule.
    pub schedule: Name,
    /// The scheduled time, milliseconds since 1970.
    pub scheduled_ms: u64,
    /// When it was tried, milliseconds since 1970.
    pub at_ms: u64,
    /// Why not.
    pub error: String,
}

impl Message for Unmet {
    const NAME: &'static str = "unmet";
    const VERSION: u16 = 1;
}

/// What is asked of schedules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleRequest {
    /// Add one, or say the same again.
    Add {
        /// Its name.
        name: Name,
        /// What it does, and when.
        settings: Box<ScheduleSettings>,
        /// Whether one of that name may be there that does something else.
        replace: bool,
    },
    /// All of them.
    List,
    /// One with its firings, newest first.
    Show {
        /// Its name.
        name: Name,
        /// Most firings.
        limit: u32,
    },
    /// Let it fire no more for now.
    Pause {
        /// Its name.
        name: Name,
    },
    /// Let it fire again.
    Resume {
        /// Its name.
        name: Name,
    },
    /// Let it fire never again; its history stays.
    Remove {
        /// Its name.
        name: Name,
    },
}

/// A schedule as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleStatus {
    /// The schedule.
    pub schedule: Schedule,
    /// The next times, milliseconds since 1970; none of one that is paused.
    pub next_ms: Vec<u64>,
    /// The same in its own time zone, as RFC 9557 has it; of one that can't fire, why not.
    pub next: Vec<String>,
    /// Times that are past and not decided yet: they wait for an earlier job.
    pub waiting_ms: Vec<u64>,
    /// The newest time that was decided.
    pub last: Option<Fired>,
}

/// A scheduled time, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Fired {
    /// What was decided.
    pub firing: Firing,
    /// Why its job was not accepted.
    pub unmet: Option<String>,
    /// Its job, if it was accepted.
    pub job: Option<JobSummary>,
}

/// A schedule with its history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScheduleDetail {
    /// The schedule.
    pub status: ScheduleStatus,
    /// Its firings, newest first.
    pub firings: Vec<Fired>,
}

/// A scheduled time as ids and keys have it: `20261128T030000Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    days: u64,
    second: u64,
}

const DAY_S: u64 = 24 * 3600;
/// Its letters.
const STAMP_LETTERS: usize = 16;

impl Stamp {
    /// Of a time in milliseconds since 1970; less than a second counts for nothing.
    pub fn of(ms: u64) -> Self {
        let seconds = ms / 1000;
        Self { days: seconds / DAY_S, second: seconds % DAY_S }
    }

    /// Milliseconds since 1970.
    pub fn ms(self) -> u64 {
        (self.days * DAY_S + self.second) * 1000
    }

    /// `20261128`.
    pub fn day(self) -> String {
        let (year, month, day) = civil(self.days);
        format!("{year:04}{month:02}{day:02}")
    }

    /// `030000`.
    pub fn time(self) -> String {
        let Self { second, .. } = self;
        format!("{:02}{:02}{:02}", second / 3600, second / 60 % 60, second % 60)
    }

    /// From `20261128` and `030000`; none of what is no time.
    pub fn parse(day: &str, time: &str) -> Option<Self> {
        let number = |text: &str, from: usize, letters: usize| text.get(from..from + letters)?.parse::<u64>().ok();
        let is_digits = |text: &str, letters: usize| text.len() == letters && text.bytes().all(|b| b.is_ascii_digit());
        (is_digits(day, 8) && is_digits(time, 6)).then_some(())?;
        let (hour, minute, second) = (number(time, 0, 2)?, number(time, 2, 2)?, number(time, 4, 2)?);
        (hour < 24 && minute < 60 && second < 60).then_some(())?;
        let days = days_from_civil(number(day, 0, 4)?, number(day, 4, 2)?, number(day, 6, 2)?)?;
        let stamp = Self { days, second: hour * 3600 + minute * 60 + second };
        (stamp.day() == day && stamp.time() == time).then_some(stamp)
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}T{}Z", self.day(), self.time())
    }
}

/// Year, month and day of a day since 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

/// The inverse; none before 1970 and of what is no month or day at all.
fn days_from_civil(year: u64, month: u64, day: u64) -> Option<u64> {
    (year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day)).then_some(())?;
    let y = year - u64::from(month <= 2);
    let (era, yoe) = (y / 400, y % 400);
    let mp = if month > 2 { month - 3 } else { month + 9 };
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + (153 * mp + 2) / 5 + day - 1;
    (era * 146_097 + doe).checked_sub(719_468)
}

/// The job of a firing: `<schedule>-20261128T030000Z`.
pub fn job_of(schedule: &Name, scheduled_ms: u64) -> JobId {
    let name = &schedule.as_str()[..schedule.as_str().len().min(MAX_NAME)];
    JobId::new(format!("{name}-{}", Stamp::of(scheduled_ms))).expect("made of a name, letters and digits")
}

/// The scheduled time of a job, if its id is that of a firing of this schedule.
pub fn scheduled_ms_of(schedule: &Name, job: &JobId) -> Option<u64> {
    let stamp = job.as_str().strip_prefix(schedule.as_str())?.strip_prefix('-')?;
    (stamp.len() == STAMP_LETTERS).then_some(())?;
    let (day, time) = stamp.strip_suffix('Z')?.split_once('T')?;
    Stamp::parse(day, time).map(Stamp::ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-29 23:59:58 UTC.
    const LEAP_MS: u64 = 1_709_251_198_000;

    #[test]
    fn the_job_of_a_firing_tells_its_schedule_and_time() {
        let nightly = Name::new("nightly").unwrap();
        let job = job_of(&nightly, LEAP_MS + 999);
        assert_eq!(job.as_str(), "nightly-20240229T235958Z");
        assert_eq!(scheduled_ms_of(&nightly, &job), Some(LEAP_MS));
        assert_eq!(job_of(&nightly, 0).as_str(), "nightly-19700101T000000Z");
        for other in
            ["nightly", "nightly-2", "nightly-20240230T000000Z", "nightly-20240229T240000Z", "x-20240229T235958Z"]
        {
            assert_eq!(scheduled_ms_of(&nightly, &JobId::new(other).unwrap()), None, "{other}");
        }
    }

    #[test]
    fn in_json_only_the_pattern_and_the_job_must_be_said() {
        let job = serde_json::json!({ "id": null, "device": "any", "priority": "lo", "options": { "max_workers": null, "notify": [] },
            "work": { "ingest": { "dataset": "d", "source": { "celeba": { "dir": "/d" } }, "part_rows": 9 } } });
        let said = serde_json::json!({ "cron": "@daily", "job": job });
        let settings: ScheduleSettings = serde_json::from_value(said).unwrap();
        let ScheduleSettings { zone, overlap, catch_up, late_after_s, only_if_changed, .. } = settings;
        assert_eq!((zone.as_str(), overlap, catch_up), ("UTC", Overlap::Skip, CatchUp::Last));
        assert_eq!((late_after_s, only_if_changed), (DEFAULT_LATE_AFTER_S, false));
    }

    #[test]
    fn stamps_of_two_centuries_are_read_back_and_sort_as_times_do() {
        let mut before = String::new();
        for day in 0..80_000_u64 {
            let stamp = Stamp::of((day * DAY_S + day % DAY_S) * 1000);
            assert_eq!(Stamp::parse(&stamp.day(), &stamp.time()), Some(stamp));
            let text = stamp.to_string();
            assert!(text > before, "{text}");
            before = text;
        }
    }
}

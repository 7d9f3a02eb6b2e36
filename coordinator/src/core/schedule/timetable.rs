//! When a schedule fires: a cron pattern in a time zone, as instants.
//!
//! The pattern is of the local clock. Where that is set forward, times that it skips fire once, right after. Where it is set back, times
//! that come twice fire once, at the first. A pattern of every hour (`*` for the hour) has no local time of its own: it fires whenever the
//! clock shows it, so that a change of the clock makes no hole of an hour and no firing between.
//!
//! `croner` knows the pattern and the calendar; it is only asked about a clock that is never set, and what time zones do is told here.

use std::cmp::Ordering;

use croner::parser::CronParser;
use croner::{Cron, CronDateTime, Resolution};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use likeness_contract::names;

/// Patterns are short.
const MAX_PATTERN: usize = 200;
const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// How far back due times are looked for, if the window before had too few: so a pattern of every second is not gone through for days.
const WINDOWS_MS: [u64; 5] = [HOUR_MS, DAY_MS, 30 * DAY_MS, 366 * DAY_MS, u64::MAX];

/// See the module.
#[derive(Debug, Clone)]
pub struct Timetable {
    cron: Cron,
    zone: TimeZone,
    every_hour: bool,
}

/// Scheduled times that are past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The newest ones, oldest first, milliseconds since 1970.
    pub times: Vec<u64>,
    /// Whether there are older ones.
    pub more: bool,
}

impl Timetable {
    /// Reads a pattern and the name of a zone, or says what is wrong with them.
    pub fn parse(pattern: &str, zone: &str) -> Result<Self, String> {
        if pattern.len() > MAX_PATTERN {
            return Err(format!("a cron pattern of {} letters, expected at most {MAX_PATTERN}", pattern.len()));
        }
        let no_pattern = |error| {
            let fields = "expected five fields: minute, hour, day of the month, month, day of the week (with seconds before them: six)";
            format!("`{pattern}` is no cron pattern: {error}; {fields}")
        };
        let cron = CronParser::new().parse(pattern).map_err(no_pattern)?;
        let every_hour = cron.pattern.hours.values().len() == 24;
        Ok(Self { cron, zone: zone_of(zone)?, every_hour })
    }

    /// The first time after this one, milliseconds since 1970; none when it never fires again.
    pub fn next_after(&self, after_ms: u64) -> Option<u64> {
        // Whole seconds fire, and the next one is later than any part of this one.
        let after = Timestamp::from_second(i64::try_from(after_ms / 1000).ok()?).ok()?;
        let found = if self.every_hour { self.by_the_clock(after) } else { self.once_a_local_time(after) };
        u64::try_from(found?.as_millisecond()).ok()
    }

    /// The newest times in `(after_ms, now_ms]`.
    pub fn due(&self, after_ms: u64, now_ms: u64, most: usize) -> Due {
        let mut due = Due { times: Vec::new(), more: false };
        for window_ms in WINDOWS_MS {
            let from_ms = after_ms.max(now_ms.saturating_sub(window_ms));
            due.times = std::iter::successors(self.next_after(from_ms), |ms| self.next_after(*ms))
                .take_while(|ms| *ms <= now_ms)
                .collect();
            due.more = from_ms > after_ms;
            if !due.more || due.times.len() >= most {
                break;
            }
        }
        let too_many = due.times.len().saturating_sub(most);
        due.more |= too_many > 0;
        due.times.drain(..too_many);
        due
    }

    /// A time as the schedule's own clock shows it, as RFC 9557 has it.
    pub fn text(&self, ms: u64) -> String {
        let at = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        at.map_or_else(|| ms.to_string(), |at| at.to_zoned_datetime(self.zone.clone()).to_string())
    }

    /// Every time at which the clock shows the pattern.
    fn by_the_clock(&self, after: Timestamp) -> Option<Timestamp> {
        let (mut from, mut inclusive) = (after, false);
        loop {
            let offset = self.zone.to_offset(from);
            let shown = self.find(offset.to_datetime(from), inclusive)?;
            let found = offset.to_timestamp(shown).ok()?;
            match self.zone.following(from).next().map(|change| change.timestamp()) {
                // The clock is set before: from there on it shows something else.
                Some(change) if change <= found => (from, inclusive) = (change, true),
                _ => return Some(found),
            }
        }
    }

    /// Every local time once.
    fn once_a_local_time(&self, after: Timestamp) -> Option<Timestamp> {
        let mut shown = self.zone.to_datetime(after);
        loop {
            shown = self.find(shown, false)?;
            let found = match self.zone.to_ambiguous_timestamp(shown).offset() {
                AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(shown).ok()?,
                AmbiguousOffset::Fold { before, .. } => before.to_timestamp(shown).ok()?,
                AmbiguousOffset::Gap { after, .. } => {
                    // By the clock after the change it was before the change.
                    self.zone.following(after.to_timestamp(shown).ok()?).next()?.timestamp()
                }
            };
            // In an hour that comes twice, the first was before.
            if found > after {
                return Some(found);
            }
        }
    }

    fn find(&self, from: DateTime, inclusive: bool) -> Option<DateTime> {
        self.cron.find_next_occurrence(&Clock(from), inclusive).ok().map(|Clock(found)| found)
    }
}

fn zone_of(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| {
        let known: Vec<String> = jiff::tz::db().available().map(|name| name.to_string()).collect();
        let nearest = names::nearest(name, known.iter().map(String::as_str));
        format!("no time zone `{name}`{}: names are like Europe/Berlin or UTC", names::hint(&nearest))
    })
}

/// A clock that is never set.
#[derive(Clone)]
struct Clock(DateTime);

impl CronDateTime for Clock {
    fn to_civil(&self) -> croner::CivilDateTime {
        let (date, time) = (self.0.date(), self.0.time());
        let part = |part: i8| u32::try_from(part).unwrap_or_default();
        croner::CivilDateTime::from_ymd_hms(
            i32::from(date.year()),
            part(date.month()),
            part(date.day()),
            part(time.hour()),
            part(time.minute()),
            part(time.second()),
        )
        .expect("a date and a time of day, without leap seconds")
    }

    fn civil_weekday(&self) -> croner::Weekday {
        let from_sunday = self.0.date().weekday().to_sunday_zero_offset();
        croner::Weekday::from_days_from_sunday(u32::try_from(from_sunday).unwrap_or_default())
    }

    fn resolve_civil(&self, civil: croner::CivilDateTime) -> Result<Resolution<Self>, croner::errors::CronError> {
        let beyond = || croner::errors::CronError::InvalidDate;
        let year = i16::try_from(civil.year()).map_err(|_| beyond())?;
        let part = |part: u32| i8::try_from(part).map_err(|_| beyond());
        let (month, day) = (part(civil.month())?, part(civil.day())?);
        let (hour, minute, second) = (part(civil.hour())?, part(civil.minute())?, part(civil.second())?);
        let found = DateTime::new(year, month, day, hour, minute, second, 0).map_err(|_| beyond())?;
        Ok(Resolution::Single(Self(found)))
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        self.0.checked_add(jiff::SignedDuration::from_secs(seconds)).ok().map(Self)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
    }

    /// The next times as UTC.
    fn next(pattern: &str, zone: &str, after: &str, count: usize) -> Vec<String> {
        let timetable = Timetable::parse(pattern, zone).unwrap();
        let times = std::iter::successors(timetable.next_after(ms(after)), |ms| timetable.next_after(*ms));
        times
            .take(count)
            .map(|ms| Timestamp::from_millisecond(i64::try_from(ms).unwrap()).unwrap().to_string())
            .collect()
    }

    #[test]
    fn a_local_time_follows_the_zone_through_the_year() {
        assert_eq!(next("0 3 * * *", "Europe/Berlin", "2026-01-10T12:00:00Z", 1), ["2026-01-11T02:00:00Z"]);
        assert_eq!(next("0 3 * * *", "Europe/Berlin", "2026-07-10T12:00:00Z", 1), ["2026-07-11T01:00:00Z"]);
        assert_eq!(next("0 3 * * *", "America/New_York", "2026-07-10T12:00:00Z", 1), ["2026-07-11T07:00:00Z"]);
        assert_eq!(next("0 3 * * *", "UTC", "2026-07-10T03:00:00Z", 1), ["2026-07-11T03:00:00Z"]);
        assert_eq!(next("0 3 * * *", "UTC", "2026-07-10T02:59:59.999Z", 1), ["2026-07-10T03:00:00Z"]);
    }

    #[test]
    fn a_local_time_that_a_clock_change_skips_fires_once_right_after() {
        // Berlin goes from 2 to 3 at 01:00 UTC on 29 March 2026, New York at 07:00 UTC on 8 March.
        let berlin = next("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 3);
        assert_eq!(berlin, ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
        let new_york = next("30 2 * * *", "America/New_York", "2026-03-08T00:00:00Z", 2);
        assert_eq!(new_york, ["2026-03-08T07:00:00Z", "2026-03-09T06:30:00Z"]);
        // All quarters of the skipped hour together, and with one that stands there by itself.
        let quarters = next("*/15 2,3 * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3);
        assert_eq!(quarters, ["2026-03-29T01:00:00Z", "2026-03-29T01:15:00Z", "2026-03-29T01:30:00Z"]);
    }

    #[test]
    fn a_local_time_that_a_clock_change_repeats_fires_once() {
        // Berlin goes from 3 back to 2 at 01:00 UTC on 25 October 2026, New York from 2 to 1 at 06:00 UTC on 1 November.
        let berlin = next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(berlin, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        let new_york = next("30 1 * * *", "America/New_York", "2026-11-01T00:00:00Z", 2);
        assert_eq!(new_york, ["2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"]);
        // Asked within the hour as it comes again, also of a pattern of every second of it.
        assert_eq!(next("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", 1), ["2026-10-26T01:30:00Z"]);
        assert_eq!(next("* * 2 * * *", "Europe/Berlin", "2026-10-25T00:59:59Z", 1), ["2026-10-26T01:00:00Z"]);
    }

    #[test]
    fn every_hour_knows_no_hole_and_no_extra_firing() {
        let back = next("0 * * * *", "Europe/Berlin", "2026-10-24T22:30:00Z", 4);
        assert_eq!(
            back,
            ["2026-10-24T23:00:00Z", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"]
        );
        let forward = next("30 * * * *", "America/New_York", "2026-03-08T06:00:00Z", 3);
        assert_eq!(forward, ["2026-03-08T06:30:00Z", "2026-03-08T07:30:00Z", "2026-03-08T08:30:00Z"]);
        let seconds = next("* * * * * *", "Europe/Berlin", "2026-10-25T00:59:58Z", 3);
        assert_eq!(seconds, ["2026-10-25T00:59:59Z", "2026-10-25T01:00:00Z", "2026-10-25T01:00:01Z"]);
    }

    #[test]
    fn calendars_are_what_they_are() {
        assert_eq!(
            next("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", 2),
            ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]
        );
        assert_eq!(next("0 0 L * *", "UTC", "2028-02-01T00:00:00Z", 1), ["2028-02-29T00:00:00Z"]);
        assert_eq!(next("0 4 * * MON-FRI", "UTC", "2026-11-27T05:00:00Z", 1), ["2026-11-30T04:00:00Z"]);
        assert_eq!(next("@monthly", "Asia/Kolkata", "2026-11-28T00:00:00Z", 1), ["2026-11-30T18:30:00Z"]);
        // Samoa had no 30 December 2011: what was for that day fires as the next one begins.
        assert_eq!(next("0 12 30 12 *", "Pacific/Apia", "2011-12-01T00:00:00Z", 1), ["2011-12-30T10:00:00Z"]);
    }

    #[test]
    fn the_newest_due_times_are_found_however_many_there_are() {
        let seconds = Timetable::parse("* * * * * *", "UTC").unwrap();
        let now = ms("2026-11-28T06:00:00.700Z");
        let due = seconds.due(now - 3 * DAY_MS, now, 500);
        assert_eq!((due.times.len(), due.more), (500, true));
        assert_eq!(due.times.last(), Some(&ms("2026-11-28T06:00:00Z")));
        let due = seconds.due(now - 2_000, now, 500);
        assert_eq!((due.times.len(), due.more), (2, false));
        let nightly = Timetable::parse("0 3 * * *", "UTC").unwrap();
        let due = nightly.due(now - 3 * DAY_MS, now, 500);
        assert_eq!((due.times.len(), due.more), (3, false));
        assert!(nightly.due(now, now - HOUR_MS, 500).times.is_empty());
        let yearly = Timetable::parse("0 0 1 1 *", "UTC").unwrap();
        assert_eq!(yearly.due(0, now, 500).times.len(), 56);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = |pattern, zone| Timetable::parse(pattern, zone).unwrap_err();
        assert!(wrong("0 3 * *", "UTC").contains("expected five fields"));
        assert!(wrong("0 25 * * *", "UTC").contains("`0 25 * * *` is no cron pattern"));
        let long = "1,".repeat(1000);
        assert!(wrong(&long, "UTC").contains("2000 letters"));
        assert!(wrong("0 3 * * *", "Europe/Berln").contains("did you mean `Europe/Berlin`"));
        assert_eq!(Timetable::parse("0 0 30 2 *", "UTC").unwrap().next_after(0), None);
    }
}

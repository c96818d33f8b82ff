//! Schedules: cron's five fields, or words (`daily 02:00 UTC`). Always in UTC.
//!
//! A schedule is parsed once into the minutes, hours and days that it names, and then tells the next instant after another.
//! Other time zones are refused: where clocks change, an hour comes twice or not at all, and a backup at that hour is doubled or
//! left out.
//!
//! As in cron, when both the day of the month and the day of the week are restricted, a day that is named by either is meant.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::civil::Date;

use crate::Instant;

/// When something is due: a set of minutes in UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// As it was written, spaces tidied.
    text: String,
    /// Bit n: the minute n of the hour.
    minutes: u64,
    /// Bit n: the hour n of the day.
    hours: u32,
    /// Bit n: the day n of the month, from 1.
    days: u32,
    /// Bit n: the month n, from 1.
    months: u32,
    /// Bit n: the day of the week, Sunday is 0.
    weekdays: u32,
    /// Whether a day must be in both `days` and `weekdays` (one of them is `*`) or in either.
    both_days: bool,
}

/// The text is not a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSchedule {
    /// A time zone other than UTC.
    #[error("schedules are in UTC, and `{0}` is another time zone")]
    Zone(String),
    /// A field of a cron expression.
    #[error("`{text}` is not {field}")]
    Field {
        /// Which, with its article: a minute, an hour, a day of the month, …
        field: &'static str,
        /// What stands there.
        text: String,
    },
    /// Right in form, but there is no such day (30 February).
    #[error("`{0}` never comes")]
    Never(String),
    /// Anything else.
    #[error("`{0}` is not a schedule")]
    Malformed(String),
}

/// How far ahead is looked for a day: 29 February can be eight years away.
const DAYS_AHEAD_MAX: i32 = 8 * 366 + 1;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MINUTE_US: i64 = 60_000_000;
const DAY_MINUTES: i64 = 24 * 60;

impl Schedule {
    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first instant after `after` that the schedule names. `None` beyond the end of the calendar.
    pub fn next_after(&self, after: Instant) -> Option<Instant> {
        let next = after.micros().div_euclid(MINUTE_US) + 1;
        let (first_day, minute) = (next.div_euclid(DAY_MINUTES), next.rem_euclid(DAY_MINUTES));
        for ahead in 0..i64::from(DAYS_AHEAD_MAX) {
            let day = first_day + ahead;
            let from = if ahead == 0 { minute } else { 0 };
            if !self.names_day(date_of(day)?) {
                continue;
            }
            if let Some(minute) = (from..DAY_MINUTES).find(|m| self.names_minute(*m)) {
                return Some(Instant((day * DAY_MINUTES + minute).checked_mul(MINUTE_US)?));
            }
        }
        None
    }

    /// The longest time between two instants that it names, over four years.
    pub fn longest_gap(&self) -> Duration {
        let minutes: Vec<i64> = (0..DAY_MINUTES).filter(|m| self.names_minute(*m)).collect();
        let (Some(first), Some(last)) = (minutes.first(), minutes.last()) else { return Duration::ZERO };
        let within_day = minutes.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        // From 2024-01-01: whatever comes every year, a leap day too, comes at least once.
        let days: Vec<i64> = (19_723..19_723 + 4 * 366)
            .filter(|day| date_of(*day).is_some_and(|date| self.names_day(date)))
            .collect();
        let across_days = days
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) * DAY_MINUTES + first - last)
            .max()
            .unwrap_or(4 * 366 * DAY_MINUTES);
        Duration::from_secs(u64::try_from(within_day.max(across_days)).unwrap_or(0) * 60)
    }

    fn names_day(&self, date: Date) -> bool {
        let bit = |n: i8| 1_u32 << n;
        if self.months & bit(date.month()) == 0 {
            return false;
        }
        let day = self.days & bit(date.day()) != 0;
        let weekday = self.weekdays & bit(date.weekday().to_sunday_zero_offset()) != 0;
        if self.both_days { day && weekday } else { day || weekday }
    }

    fn names_minute(&self, minute_of_day: i64) -> bool {
        self.hours >> (minute_of_day / 60) & 1 == 1 && self.minutes >> (minute_of_day % 60) & 1 == 1
    }

    fn from_cron(fields: &[&str; 5]) -> Result<Self, BadSchedule> {
        let mask = |i: usize, field, first, last, names: &[&str]| {
            mask_of(fields[i], first, last, names)
                .ok_or_else(|| BadSchedule::Field { field, text: fields[i].to_owned() })
        };
        let weekdays = mask(4, "a day of the week", 0, 7, &WEEKDAYS)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "`mask_of` sets no bit above `last`, at most 31 here"
        )]
        let schedule = Self {
            text: String::new(),
            minutes: mask(0, "a minute", 0, 59, &[])?,
            hours: mask(1, "an hour", 0, 23, &[])? as u32,
            days: mask(2, "a day of the month", 1, 31, &[])? as u32,
            months: mask(3, "a month", 1, 12, &MONTHS)? as u32,
            // Sunday may be written 0 or 7.
            weekdays: ((weekdays | weekdays >> 7) & 0x7f) as u32,
            both_days: fields[2].starts_with('*') || fields[4].starts_with('*'),
        };
        match schedule.next_after(Instant(0)) {
            Some(_) => Ok(schedule),
            None => Err(BadSchedule::Never(fields.join(" "))),
        }
    }

    /// `every N`, `hourly`, `daily`, `weekly`, `monthly`, each with an optional day and time.
    fn from_words(words: &[&str]) -> Result<Self, BadSchedule> {
        let malformed = || BadSchedule::Malformed(words.join(" "));
        let Some((kind, mut rest)) = words.split_first() else { return Err(malformed()) };
        if *kind == "every" {
            return every(rest).ok_or_else(malformed);
        }
        let day = match (*kind, rest) {
            ("weekly", [day, tail @ ..]) if !day.contains(':') => {
                rest = tail;
                // Whole names are taken as well as the first three letters.
                let names = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
                let known = names.iter().position(|name| day == name || *day == &name[..3]);
                Some(
                    known
                        .ok_or_else(|| BadSchedule::Field {
                            field: "a day of the week",
                            text: (*day).to_owned(),
                        })?
                        .to_string(),
                )
            }
            ("monthly", [day, tail @ ..]) if !day.contains(':') => {
                rest = tail;
                Some((*day).to_owned())
            }
            _ => None,
        };
        let (hour, minute) = match rest {
            [] => ("2", "0"),
            [time] if *kind != "hourly" => time.split_once(':').ok_or_else(malformed)?,
            [time] => ("*", time.strip_prefix(':').ok_or_else(malformed)?),
            _ => return Err(malformed()),
        };
        match *kind {
            "hourly" => Self::from_cron(&[minute, "*", "*", "*", "*"]),
            "daily" => Self::from_cron(&[minute, hour, "*", "*", "*"]),
            "weekly" => Self::from_cron(&[minute, hour, "*", "*", day.as_deref().unwrap_or("0")]),
            "monthly" => Self::from_cron(&[minute, hour, day.as_deref().unwrap_or("1"), "*", "*"]),
            _ => Err(malformed()),
        }
    }
}

impl FromStr for Schedule {
    type Err = BadSchedule;

    fn from_str(text: &str) -> Result<Self, BadSchedule> {
        let lower = text.trim().to_ascii_lowercase();
        let mut words: Vec<&str> = lower.split_whitespace().collect();
        if let [_, .., zone] = words[..] {
            let written = text.split_whitespace().last().unwrap_or(zone);
            match zone {
                "utc" | "z" => drop(words.pop()),
                _ if zone.contains('/') && zone.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                    return Err(BadSchedule::Zone(written.to_owned()));
                }
                "gmt" | "cet" | "cest" | "est" | "edt" | "pst" | "pdt" | "local" => {
                    return Err(BadSchedule::Zone(written.to_owned()));
                }
                _ => {}
            }
        }
        let schedule = match words[..] {
            [a, b, c, d, e] => Self::from_cron(&[a, b, c, d, e])?,
            _ => Self::from_words(&words)?,
        };
        Ok(Self { text: text.split_whitespace().collect::<Vec<_>>().join(" "), ..schedule })
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `every 15m`, `every 6h`: what divides an hour or a day, so that the instants do not depend on when Mainstay was started.
fn every(words: &[&str]) -> Option<Schedule> {
    let [word] = words else { return None };
    let minutes = match crate::parse_duration(word).ok()?.as_secs() {
        seconds if seconds > 0 && seconds % 60 == 0 => seconds / 60,
        _ => return None,
    };
    let (minute, hour) = match minutes {
        1..60 if 60 % minutes == 0 => (format!("*/{minutes}"), "*".to_owned()),
        60..1440 if minutes % 60 == 0 && 1440 % minutes == 0 => {
            ("0".to_owned(), format!("*/{}", minutes / 60))
        }
        1440 => ("0".to_owned(), "0".to_owned()),
        _ => return None,
    };
    Schedule::from_cron(&[&minute, &hour, "*", "*", "*"]).ok()
}

/// One field of a cron expression: `*`, `7`, `1-5`, `*/15`, `1-31/2`, names, and lists of these. Bits `first..=last`.
fn mask_of(field: &str, first: u32, last: u32, names: &[&str]) -> Option<u64> {
    let number = |text: &str| -> Option<u32> {
        let value = match names.iter().position(|name| *name == text) {
            Some(index) => u32::try_from(index).ok()? + first,
            None if text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok()?,
            None => return None,
        };
        (first..=last).contains(&value).then_some(value)
    };
    let mut mask = 0;
    for item in field.split(',') {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => {
                (range, Some(step.parse::<u32>().ok().filter(|step| (1..=last).contains(step))?))
            }
            None => (item, None),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (first, last),
            Some((from, to)) => (number(from)?, number(to)?),
            None => (number(range)?, if step.is_some() { last } else { number(range)? }),
        };
        if from > to {
            return None;
        }
        for value in (from..=to).step_by(step.unwrap_or(1) as usize) {
            mask |= 1_u64 << value;
        }
    }
    Some(mask)
}

/// The day `days` after 1970-01-01.
fn date_of(days: i64) -> Option<Date> {
    let days = i32::try_from(days).ok()?;
    Date::constant(1970, 1, 1).checked_add(jiff::Span::new().try_days(days).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: &str, after: &str, expect: &str) {
        let schedule: Schedule = schedule.parse().unwrap();
        let next = schedule.next_after(after.parse().unwrap()).unwrap();
        assert_eq!(next, expect.parse().unwrap(), "{schedule} after {after}: {next}");
    }

    #[test]
    fn the_next_instant_is_found() {
        check("daily 02:00 UTC", "2026-01-31T02:00:00Z", "2026-02-01T02:00:00Z");
        check("daily 02:00", "2026-01-31T01:59:59.999999Z", "2026-01-31T02:00:00Z");
        check("daily", "2026-01-31T03:00:00Z", "2026-02-01T02:00:00Z");
        check("hourly", "2026-01-31T03:00:00Z", "2026-01-31T04:00:00Z");
        check("hourly :15", "2026-01-31T03:00:00Z", "2026-01-31T03:15:00Z");
        check("every 15m", "2026-01-31T03:01:00Z", "2026-01-31T03:15:00Z");
        check("every 6h", "2026-01-31T03:01:00Z", "2026-01-31T06:00:00Z");
        check("weekly", "2026-01-31T03:01:00Z", "2026-02-01T02:00:00Z");
        check("weekly Monday 05:30 UTC", "2026-01-31T03:01:00Z", "2026-02-02T05:30:00Z");
        check("monthly 15 00:00", "2026-01-31T03:01:00Z", "2026-02-15T00:00:00Z");
        check("30 4 1,15 * *", "2026-01-31T03:01:00Z", "2026-02-01T04:30:00Z");
        check("30 4 13 * fri", "2026-02-01T00:00:00Z", "2026-02-06T04:30:00Z");
        check("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z");
        check("0 22 * * 1-5", "2026-01-31T03:01:00Z", "2026-02-02T22:00:00Z");
        check("0 22 * * 7", "2026-01-31T03:01:00Z", "2026-02-01T22:00:00Z");
        check("*/20 9-17/4 * jan-mar mon", "2026-01-31T03:01:00Z", "2026-02-02T09:00:00Z");
    }

    #[test]
    fn the_longest_gap_is_found() {
        for (text, hours) in [
            ("daily", 24),
            ("hourly", 1),
            ("every 6h", 6),
            ("weekly", 168),
            ("0 22 * * 1-5", 72),
            ("monthly", 31 * 24),
            ("0 8,20 * * *", 12),
        ] {
            let gap = text.parse::<Schedule>().unwrap().longest_gap();
            assert_eq!(gap, Duration::from_secs(hours * 3600), "{text}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for wrong in [
            "",
            "dayly",
            "daily 25:00",
            "daily 2",
            "daily 02:60",
            "daily 02:00 Europe/Berlin",
            "daily 02:00 CET",
            "every",
            "every 7m",
            "every 90m",
            "every 10s",
            "every 2d",
            "weekly someday",
            "monthly 32",
            "0 0 30 2 *",
            "60 * * * *",
            "* * * *",
            "* * * * * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "*/99 * * * *",
            "1,,2 * * * *",
            "- * * * *",
        ] {
            assert!(wrong.parse::<Schedule>().is_err(), "{wrong}");
        }
    }
}

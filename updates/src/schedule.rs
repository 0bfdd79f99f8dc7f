use std::fmt;
use std::str::FromStr;

use cluster::Invalid;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::{SignedDuration, Timestamp};

use crate::Zone;
use crate::text::text_type;

/// When something begins, in the standard cron format: minute, hour, day of the month, month, day of the week.
///
/// As crontab(5) has it: `*`, numbers, ranges, lists, steps, and the names of months and days; 0 and 7 are Sunday; where
/// neither of the two days is `*`, either is enough. A time that a clock change leaves out is made up for at its end, and one
/// that comes twice counts once, when hour and minute are single numbers; with ranges, lists or steps the clock is followed.
#[derive(Debug, Clone)]
pub struct Schedule {
    text: String,
    cron: Cron,
}

struct Field {
    name: &'static str,
    least: u8,
    most: u8,
    words: &'static [&'static str],
}

/// The search fails at what the clocks left out if that is more than two hours; it was never more than a day (Samoa, 2011).
const LEFT_OUT: SignedDuration = SignedDuration::from_hours(24);

/// In characters, the blanks included.
const LONGEST: usize = 128;

const MONTHS: &[&str] = &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const DAYS: &[&str] = &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

const FIELDS: [Field; 5] = [
    Field { name: "minute", least: 0, most: 59, words: &[] },
    Field { name: "hour", least: 0, most: 23, words: &[] },
    Field { name: "day of the month", least: 1, most: 31, words: &[] },
    Field { name: "month", least: 1, most: 12, words: MONTHS },
    Field { name: "day of the week", least: 0, most: 7, words: DAYS },
];

impl Field {
    fn check(&self, text: &str) -> Result<(), String> {
        if text == "*" { Ok(()) } else { text.split(',').try_for_each(|item| self.item(item)) }
    }

    fn item(&self, item: &str) -> Result<(), String> {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (item, None),
        };
        let single = match range.split_once('-') {
            _ if range == "*" && step.is_some() => false,
            Some((from, to)) => {
                if self.value(from)? > self.value(to)? {
                    return Err(format!("has the {} range '{range}', which ends before it begins", self.name));
                }
                false
            }
            None => self.value(range).map(|_| true)?,
        };
        match step {
            Some(_) if single => Err(format!("has the {} '{item}': a step needs a range, as in */5 or 0-30/5", self.name)),
            Some(step) if number(step).is_none() || step.starts_with('0') => {
                Err(format!("has the {} '{item}', whose step is not a number from 1 to 99", self.name))
            }
            _ => Ok(()),
        }
    }

    fn value(&self, text: &str) -> Result<u8, String> {
        let word = || u8::try_from(self.words.iter().position(|w| w.eq_ignore_ascii_case(text))?).ok().map(|at| at + self.least);
        let found = number(text).filter(|n| (self.least..=self.most).contains(n)).or_else(word);
        let words = if let [first, .., last] = self.words { format!(" or {first} to {last}") } else { String::new() };
        found.ok_or_else(|| format!("has the {} '{text}', which is not from {} to {}{words}", self.name, self.least, self.most))
    }
}

/// One or two digits: more is never meant.
fn number(text: &str) -> Option<u8> {
    text.parse().ok().filter(|_| text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit()))
}

impl Schedule {
    /// The first time after `after`.
    pub(crate) fn next(&self, after: Timestamp, zone: &Zone) -> Option<Timestamp> {
        let find = |from: Timestamp, inclusive| self.cron.find_next_occurrence(&from.to_zoned(zone.get().clone()), inclusive).ok();
        Some(find(after, false).or_else(|| find(after.checked_add(LEFT_OUT).ok()?, true))?.timestamp())
    }

    /// The last time that is not after `at`.
    pub(crate) fn last(&self, at: Timestamp, zone: &Zone) -> Option<Timestamp> {
        let find = |from: Timestamp| self.cron.find_previous_occurrence(&from.to_zoned(zone.get().clone()), true).ok();
        Some(find(at).or_else(|| find(at.checked_sub(LEFT_OUT).ok()?))?.timestamp())
    }
}

impl FromStr for Schedule {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |why: String| Invalid::new("schedule", s, why);
        if s.len() > LONGEST {
            return Err(bad(format!("is longer than {LONGEST} characters")));
        }
        let fields: Vec<&str> = s.split_ascii_whitespace().collect();
        if fields.len() != FIELDS.len() {
            let count = fields.len();
            return Err(bad(format!(
                "needs 5 fields (minute, hour, day of the month, month, day of the week), not {count}; write for example '0 1 * * 1-5'"
            )));
        }
        FIELDS.iter().zip(&fields).try_for_each(|(field, text)| field.check(text)).map_err(bad)?;
        let text = fields.join(" ");
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let schedule = Self { cron: parser.parse(&text).map_err(|e| bad(format!("is not a schedule: {e}")))?, text };
        // a date that does not exist is found only by looking for it
        let found = schedule.next(Timestamp::UNIX_EPOCH, &Zone::default());
        found.map(|_| schedule).ok_or_else(|| bad("never comes: no month has such a day".into()))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// By what it means: `mon-fri` is `1-5`.
impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.cron == other.cron
    }
}

impl Eq for Schedule {}

const STEP: &str = "/[1-9][0-9]?";

/// One pattern for each field, so that a refusal shows the one that is wrong.
fn patterns() -> [String; 5] {
    let field = |before: usize, name: &str, value: &str| {
        let item = format!("({value}(-{value}({STEP})?)?|\\*{STEP})");
        let before = if before == 0 { String::new() } else { format!(r"(\S+\s+){{{before}}}") };
        format!(r"^\s*{before}(?P<{name}>\*|{item}(,{item})*)(\s|$)")
    };
    let last = field(4, "dayOfWeek", "(0?[0-7]|(?i:sun|mon|tue|wed|thu|fri|sat))");
    [
        field(0, "minute", "[0-5]?[0-9]"),
        field(1, "hour", "([01]?[0-9]|2[0-3])"),
        field(2, "dayOfMonth", "(0?[1-9]|[12][0-9]|3[01])"),
        field(3, "month", "(0?[1-9]|1[0-2]|(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec))"),
        last.replace(r"(\s|$)", r"\s*$"),
    ]
}

text_type!(
    Schedule,
    {
        "type": "string",
        "maxLength": LONGEST,
        "allOf": patterns().map(|pattern| serde_json::json!({ "pattern": pattern })),
        "description": "When the window opens, as crontab has it: minute, hour, day of the month, month, day of the week. \
                        0 1 * * 1-5 is 01:00 from Monday to Friday.",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> String {
        text.parse::<Schedule>().unwrap_err().to_string()
    }

    #[test]
    fn takes_what_crontab_takes() {
        for ok in [
            "0 1 * * 1-5",
            "* * * * *",
            "*/15 0-23/2 1,15 JAN-mar,Dec sun,mon-fri",
            "00 01 31 12 7",
            " 0\t1  29 2 * ",
            "59 23 */2 */3 0",
            "0 0 31 2 1",
        ] {
            assert!(ok.parse::<Schedule>().is_ok(), "{ok}");
        }
        assert_eq!(" 0\t1  29 2 * ".parse::<Schedule>().unwrap().to_string(), "0 1 29 2 *");
    }

    #[test]
    fn the_same_times_are_the_same_schedule() {
        let schedule = |text: &str| text.parse::<Schedule>().unwrap();
        for (a, b) in [
            ("0 1 * * 1-5", "00 01 * * mon-FRI"),
            ("0 1 * * 1-5", "0 1 * * 1,2,3,4,5"),
            ("0 1 * * 0", "0 1 * * 7"),
            ("0 1 1 jan *", "0 1 1 1 *"),
        ] {
            assert_eq!(schedule(a), schedule(b));
        }
        // any day; the 13th or any day; the 13th
        let (all, either, one) = (schedule("0 1 * * 0-6"), schedule("0 1 13 * 0-6"), schedule("0 1 13 * *"));
        assert!(all != either && either != one && schedule("0 1 * * 1-5") != schedule("0 1 * * 1-6"));
    }

    #[test]
    fn says_what_is_wrong() {
        insta::assert_snapshot!(
            [
                "", "0 1 * *", "0 1 * * * *", "@daily", "60 1 * * *", "0 24 * * *", "0 1 0 * *", "0 1 * 13 *", "0 1 * * 8", "0 1 * * 5-1",
                "0 1 * * mo", "0/5 * * * *", "*/0 * * * *", "*/x * * * *", "*,5 * * * *", "5, * * * *", "0 1 L * *", "0 1 * * 5#2", "0 1 31 2 *",
                "0 1 30 2 *", "0 1 31 4,6 *", "-1 1 * * *", "5-10-15 * * * *", "001 1 * * *",
            ]
            .map(why)
            .join("\n"),
            @r"
        schedule '': needs 5 fields (minute, hour, day of the month, month, day of the week), not 0; write for example '0 1 * * 1-5'
        schedule '0 1 * *': needs 5 fields (minute, hour, day of the month, month, day of the week), not 4; write for example '0 1 * * 1-5'
        schedule '0 1 * * * *': needs 5 fields (minute, hour, day of the month, month, day of the week), not 6; write for example '0 1 * * 1-5'
        schedule '@daily': needs 5 fields (minute, hour, day of the month, month, day of the week), not 1; write for example '0 1 * * 1-5'
        schedule '60 1 * * *': has the minute '60', which is not from 0 to 59
        schedule '0 24 * * *': has the hour '24', which is not from 0 to 23
        schedule '0 1 0 * *': has the day of the month '0', which is not from 1 to 31
        schedule '0 1 * 13 *': has the month '13', which is not from 1 to 12 or JAN to DEC
        schedule '0 1 * * 8': has the day of the week '8', which is not from 0 to 7 or SUN to SAT
        schedule '0 1 * * 5-1': has the day of the week range '5-1', which ends before it begins
        schedule '0 1 * * mo': has the day of the week 'mo', which is not from 0 to 7 or SUN to SAT
        schedule '0/5 * * * *': has the minute '0/5': a step needs a range, as in */5 or 0-30/5
        schedule '*/0 * * * *': has the minute '*/0', whose step is not a number from 1 to 99
        schedule '*/x * * * *': has the minute '*/x', whose step is not a number from 1 to 99
        schedule '*,5 * * * *': has the minute '*', which is not from 0 to 59
        schedule '5, * * * *': has the minute '', which is not from 0 to 59
        schedule '0 1 L * *': has the day of the month 'L', which is not from 1 to 31
        schedule '0 1 * * 5#2': has the day of the week '5#2', which is not from 0 to 7 or SUN to SAT
        schedule '0 1 31 2 *': never comes: no month has such a day
        schedule '0 1 30 2 *': never comes: no month has such a day
        schedule '0 1 31 4,6 *': never comes: no month has such a day
        schedule '-1 1 * * *': has the minute '', which is not from 0 to 59
        schedule '5-10-15 * * * *': has the minute '10-15', which is not from 0 to 59
        schedule '001 1 * * *': has the minute '001', which is not from 0 to 59
        "
        );
    }
}

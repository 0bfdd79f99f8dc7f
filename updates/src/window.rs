use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Schedule, Span, Zone};

/// A time in which an update may start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// When it opens, as crontab has it: minute, hour, day of the month, month, day of the week.
    /// 0 1 * * 1-5 is 01:00 from Monday to Friday.
    pub schedule: Schedule,
    /// How long it is open: hours and minutes, as in 1h30m, 0h45m or 2h; at most a week (168h).
    pub duration: Span,
    /// The time zone of the schedule, by its name in the IANA database, as in Europe/Berlin. Default: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<Zone>,
}

/// One time that a window is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Opening {
    /// When it opens.
    pub from: Timestamp,
    /// When it closes: from then on nothing starts any more.
    pub until: Timestamp,
}

impl Window {
    /// UTC unless given.
    pub(crate) fn zone(&self) -> Zone {
        self.time_zone.clone().unwrap_or_default()
    }

    /// Until when it is open, if it is open at `now`. The duration is time that passes, whatever clocks are changed meanwhile.
    pub fn open_at(&self, now: Timestamp) -> Option<Timestamp> {
        let from = self.schedule.last(now, &self.zone())?;
        from.checked_add(self.duration.get()).ok().filter(|until| *until > now)
    }

    /// Its next `n` openings that begin after `after`.
    pub fn openings(&self, after: Timestamp, n: usize) -> Vec<Opening> {
        let zone = self.zone();
        let next = |from: &Opening| self.opening_after(from.from, &zone);
        std::iter::successors(self.opening_after(after, &zone), next).take(n).collect()
    }

    fn opening_after(&self, after: Timestamp, zone: &Zone) -> Option<Opening> {
        let from = self.schedule.next(after, zone)?;
        Some(Opening { from, until: from.checked_add(self.duration.get()).ok()? })
    }
}

/// Whether updates may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// There are no windows: always.
    Always,
    /// At least until then, however many windows follow each other. Not looked further than a day ahead.
    Open(Timestamp),
    /// Not before then; never, where no window comes any more.
    Closed(Option<Timestamp>),
}

/// What several windows say together.
pub fn gate(windows: &[Window], now: Timestamp) -> Gate {
    let open_at = |at: Timestamp| windows.iter().filter_map(|w| w.open_at(at)).max();
    if windows.is_empty() {
        return Gate::Always;
    }
    let Some(mut until) = open_at(now) else {
        return Gate::Closed(windows.iter().flat_map(|w| w.openings(now, 1)).map(|o| o.from).min());
    };
    let horizon = now.saturating_add(SignedDuration::from_hours(24)).unwrap_or(Timestamp::MAX);
    while let Some(next) = open_at(until).filter(|_| until < horizon) {
        until = next;
    }
    Gate::Open(until)
}

#[cfg(test)]
mod tests;

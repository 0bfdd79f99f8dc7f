//! Times as people read them.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

/// In local time, and in UTC.
pub fn both(at: Timestamp, local: &TimeZone) -> String {
    let utc = in_utc(at);
    let here = at.to_zoned(local.clone());
    if here.offset().is_zero() { utc } else { format!("{} ({utc})", here.strftime("%a %Y-%m-%d %H:%M %Z")) }
}

/// The same, as short as a table needs it.
pub fn both_short(at: Timestamp, local: &TimeZone) -> String {
    let here = at.to_zoned(local.clone());
    if here.offset().is_zero() {
        return at.strftime("%a %m-%d %H:%M UTC").to_string();
    }
    let same_day = here.date() == at.to_zoned(TimeZone::UTC).date();
    format!("{} ({})", here.strftime("%a %m-%d %H:%M %Z"), at.strftime(if same_day { "%H:%M UTC" } else { "%a %H:%M UTC" }))
}

/// In UTC.
pub fn in_utc(at: Timestamp) -> String {
    at.strftime("%a %Y-%m-%d %H:%M UTC").to_string()
}

/// How long ago it was, in the greatest unit of which there is one at least.
pub fn ago(past: SignedDuration) -> String {
    let (minutes, hours) = (past.as_mins(), past.as_hours());
    match (minutes, hours) {
        (..1, _) => "now".into(),
        (_, ..1) => format!("{minutes} min ago"),
        (_, ..48) => format!("{hours} h ago"),
        _ => format!("{} d ago", hours / 24),
    }
}

/// How long something took, or may take.
pub fn took(time: SignedDuration) -> String {
    match (time.as_secs(), time.as_mins()) {
        (..120, _) => format!("{} s", time.as_secs()),
        (_, ..120) => format!("{} min", time.as_mins()),
        (_, minutes) => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let at: Timestamp = "2026-11-23T00:30:00Z".parse().unwrap();
        let zone = |name| TimeZone::get(name).unwrap();
        assert_eq!(both(at, &zone("America/New_York")), "Sun 2026-11-22 19:30 EST (Mon 2026-11-23 00:30 UTC)");
        assert_eq!(both(at, &zone("Europe/London")), "Mon 2026-11-23 00:30 UTC");
        assert_eq!(both_short(at, &zone("America/New_York")), "Sun 11-22 19:30 EST (Mon 00:30 UTC)");
        assert_eq!(both_short(at, &zone("Europe/Berlin")), "Mon 11-23 01:30 CET (00:30 UTC)");
        assert_eq!(both_short(at, &TimeZone::UTC), "Mon 11-23 00:30 UTC");
        let ago = |minutes| ago(SignedDuration::from_mins(minutes));
        assert_eq!(
            [-5, 0, 1, 59, 60, 47 * 60, 48 * 60].map(ago),
            ["now", "now", "1 min ago", "59 min ago", "1 h ago", "47 h ago", "2 d ago"]
        );
        assert_eq!(
            [119, 120, 7199, 7200, 9061].map(|s| took(SignedDuration::from_secs(s))),
            ["119 s", "2 min", "119 min", "2 h 0 min", "2 h 31 min"]
        );
    }
}

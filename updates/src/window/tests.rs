use jiff::tz::TimeZoneDatabase;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;

fn window(schedule: &str, duration: &str, zone: &str) -> Window {
    Window { schedule: schedule.parse().unwrap(), duration: duration.parse().unwrap(), time_zone: Some(zone.parse().unwrap()) }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// `from until` of the next three, in UTC.
fn next_three(w: &Window, after: &str) -> String {
    w.openings(at(after), 3).iter().map(|o| format!("{} {}", o.from, o.until)).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_time_that_spring_leaves_out_and_autumn_has_twice() {
    // 02:30 does not exist on 29 March 2026 in Berlin: it opens at 03:00, which is 01:00 UTC
    insta::assert_snapshot!(next_three(&window("30 2 * * *", "1h30m", "Europe/Berlin"), "2026-03-28T00:00:00Z"), @r"
    2026-03-28T01:30:00Z 2026-03-28T03:00:00Z
    2026-03-29T01:00:00Z 2026-03-29T02:30:00Z
    2026-03-30T00:30:00Z 2026-03-30T02:00:00Z
    ");
    // 02:30 comes twice on 25 October 2026: the first counts, and the second is an hour into the window
    let autumn = window("30 2 * * *", "1h30m", "Europe/Berlin");
    insta::assert_snapshot!(next_three(&autumn, "2026-10-24T00:00:00Z"), @r"
    2026-10-24T00:30:00Z 2026-10-24T02:00:00Z
    2026-10-25T00:30:00Z 2026-10-25T02:00:00Z
    2026-10-26T01:30:00Z 2026-10-26T03:00:00Z
    ");
    assert_eq!(autumn.open_at(at("2026-10-25T01:30:00Z")), Some(at("2026-10-25T02:00:00Z")));
    assert_eq!(autumn.open_at(at("2026-10-25T02:00:00Z")), None);
}

#[test]
fn overnight_and_over_a_clock_change() {
    // from 22:00 on Saturday; the night has 23 hours in spring: eight hours later it is 07:00
    let night = window("0 22 * * 6", "8h", "Europe/Berlin");
    insta::assert_snapshot!(next_three(&night, "2026-03-20T00:00:00Z"), @r"
    2026-03-21T21:00:00Z 2026-03-22T05:00:00Z
    2026-03-28T21:00:00Z 2026-03-29T05:00:00Z
    2026-04-04T20:00:00Z 2026-04-05T04:00:00Z
    ");
    assert_eq!(night.open_at(at("2026-03-28T23:30:00Z")), Some(at("2026-03-29T05:00:00Z")));
    assert_eq!(night.open_at(at("2026-03-29T05:00:00Z")), None);
    assert_eq!(night.open_at(at("2026-03-28T20:59:59Z")), None);
    assert_eq!(night.open_at(at("2026-03-28T21:00:00Z")), Some(at("2026-03-29T05:00:00Z")));
}

#[test]
fn a_day_that_a_zone_left_out() {
    // Samoa went from 29 to 31 December 2011
    let daily = window("0 12 * * *", "1h", "Pacific/Apia");
    insta::assert_snapshot!(next_three(&daily, "2011-12-29T00:00:00Z"), @r"
    2011-12-29T22:00:00Z 2011-12-29T23:00:00Z
    2011-12-30T22:00:00Z 2011-12-30T23:00:00Z
    2011-12-31T22:00:00Z 2011-12-31T23:00:00Z
    ");
}

#[test]
fn several_together() {
    assert_eq!(gate(&[], at("2026-01-01T00:00:00Z")), Gate::Always);
    let two = [window("0 1 * * *", "2h", "UTC"), window("0 3 * * *", "1h", "UTC"), window("30 0 1 1 *", "1h", "UTC")];
    for (now, expected) in [
        ("2026-01-01T00:00:00Z", Gate::Closed(Some(at("2026-01-01T00:30:00Z")))),
        ("2026-01-01T00:30:00Z", Gate::Open(at("2026-01-01T04:00:00Z"))),
        ("2026-01-02T01:00:00Z", Gate::Open(at("2026-01-02T04:00:00Z"))),
        ("2026-01-02T03:59:59Z", Gate::Open(at("2026-01-02T04:00:00Z"))),
        ("2026-01-02T04:00:00Z", Gate::Closed(Some(at("2026-01-03T01:00:00Z")))),
    ] {
        assert_eq!(gate(&two, at(now)), expected, "{now}");
    }
    let Gate::Open(until) = gate(&[window("0 * * * *", "1h", "UTC")], at("2026-01-01T00:30:00Z")) else { panic!("closed") };
    assert!(until >= at("2026-01-02T00:30:00Z"), "{until}");
}

#[test]
fn leap_days() {
    insta::assert_snapshot!(next_three(&window("0 0 29 2 *", "24h", "UTC"), "2096-01-01T00:00:00Z"), @r"
    2096-02-29T00:00:00Z 2096-03-01T00:00:00Z
    2104-02-29T00:00:00Z 2104-03-01T00:00:00Z
    2108-02-29T00:00:00Z 2108-03-01T00:00:00Z
    ");
}

fn zones() -> Vec<String> {
    TimeZoneDatabase::bundled().available().map(|n| n.to_string()).collect()
}

fn any_window() -> impl Strategy<Value = Window> {
    let hours = prop::sample::select(vec!["0", "1", "2", "3", "23", "*", "*/6", "0-4", "2,14"]);
    let days = prop::sample::select(vec!["* * *", "* * 1-5", "* * 0", "1,15 * *", "* 3,4,10,11 *", "31 * 6"]);
    let minutes = prop::sample::select(vec!["0", "30", "59", "*/20", "15,45"]);
    (minutes, hours, days, 1u16..=7 * 24 * 60, prop::sample::select(zones())).prop_map(|(minute, hour, days, duration, zone)| {
        window(&format!("{minute} {hour} {days}"), &format!("{}h{:02}m", duration / 60, duration % 60), &zone)
    })
}

/// Somewhere within 1975 and 2055.
fn any_time() -> impl Strategy<Value = Timestamp> {
    (157_000_000i64..2_680_000_000).prop_map(|s| Timestamp::from_second(s).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn openings_are_in_order_and_open(w in any_window(), after in any_time()) {
        let openings = w.openings(after, 5);
        prop_assert_eq!(openings.len(), 5);
        let mut before = after;
        for o in openings {
            prop_assert!(o.from > before);
            prop_assert_eq!(o.until.duration_since(o.from), w.duration.get());
            prop_assert!(w.open_at(o.from).is_some_and(|until| until == o.until), "{:?} at {}", w.open_at(o.from), o.from);
            before = o.from;
        }
    }

    #[test]
    fn open_is_what_the_openings_say(w in any_window(), now in any_time()) {
        // every opening that can reach now, one after the other
        let mut last = None;
        let mut after = now.checked_sub(w.duration.get()).unwrap();
        while let Some(o) = w.openings(after, 1).first().copied().filter(|o| o.from <= now) {
            last = Some(o.until);
            after = o.from;
        }
        prop_assert_eq!(w.open_at(now), last.filter(|until| *until > now));
    }

    #[test]
    fn an_opening_is_on_the_schedules_clock_or_makes_up_for_a_gap(hour in 0i8..24, minute in 0i8..60, zone in prop::sample::select(zones()), after in any_time()) {
        let w = window(&format!("{minute} {hour} * * *"), "1h", &zone);
        let zone = w.zone();
        for o in w.openings(after, 3) {
            let local = o.from.to_zoned(zone.get().clone());
            let meant = local.date().at(hour, minute, 0, 0);
            let gap = zone.get().to_ambiguous_timestamp(meant).offset();
            prop_assert!(local.datetime() == meant || matches!(gap, jiff::tz::AmbiguousOffset::Gap { .. }), "{local}");
        }
        // once a day, also where a day has an hour more or less
        let days: Vec<_> = w.openings(after, 40).iter().map(|o| o.from.to_zoned(zone.get().clone()).date()).collect();
        prop_assert!(days.windows(2).all(|d| d[0] < d[1]), "{days:?}");
    }

    #[test]
    fn a_gate_is_open_when_a_window_is(windows in prop::collection::vec(any_window(), 1..4), now in any_time()) {
        let open: Vec<_> = windows.iter().filter_map(|w| w.open_at(now)).collect();
        match gate(&windows, now) {
            Gate::Always => prop_assert!(false),
            Gate::Open(until) => {
                prop_assert!(open.iter().all(|o| *o <= until) && !open.is_empty());
                let just_before = until.checked_sub(SignedDuration::from_secs(1)).unwrap();
                prop_assert!(windows.iter().any(|w| w.open_at(just_before).is_some()));
                let a_day_on = until.duration_since(now) >= SignedDuration::from_hours(24);
                prop_assert!(a_day_on || windows.iter().all(|w| w.open_at(until).is_none()));
            }
            Gate::Closed(next) => {
                prop_assert!(open.is_empty());
                let next = next.unwrap();
                prop_assert!(windows.iter().all(|w| w.openings(now, 1)[0].from >= next));
            }
        }
    }
}

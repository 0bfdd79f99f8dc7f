use clap::{Args, Subcommand};
use jiff::Zoned;
use node::Result;
use serde_json::Value;
use updates::edit::{Edit, WhichWindow};
use updates::{Schedule, Span, Window, Zone};

use super::access::QUESTION;
use super::{At, change, parsed, when};
use crate::output;

#[derive(Debug, Args)]
pub struct WindowCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Let updates start in one window more
    Add(At<Add>),
    /// List the windows, with their next three openings
    List(At<List>),
    /// Take a window away
    Remove(At<Remove>),
}

#[derive(Debug, Args)]
struct Add {
    /// When it opens, as crontab has it: '0 1 * * 1-5' is 01:00 from Monday to Friday
    #[arg(value_parser = parsed::<Schedule>)]
    schedule: Schedule,
    /// How long it is open, as in 1h30m
    #[arg(value_parser = parsed::<Span>)]
    duration: Span,
    /// The schedule's time zone, as in Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE", value_parser = parsed::<Zone>)]
    time_zone: Option<Zone>,
}

#[derive(Debug, Args)]
struct List {}

#[derive(Debug, Args)]
struct Remove {
    /// Its schedule
    #[arg(value_parser = parsed::<Schedule>)]
    schedule: Schedule,
    /// Its duration, where several have the schedule
    #[arg(value_parser = parsed::<Span>)]
    duration: Option<Span>,
    /// Its time zone, where several have the schedule
    #[arg(long, value_name = "ZONE", value_parser = parsed::<Zone>)]
    time_zone: Option<Zone>,
}

impl WindowCommand {
    pub async fn run(self) -> Result<()> {
        match self.command {
            Command::Add(At { what: Add { schedule, duration, time_zone }, reach }) => {
                change::apply(&reach.open(QUESTION).await?, &[Edit::AddWindow(Window { schedule, duration, time_zone })]).await
            }
            Command::Remove(At { what: Remove { schedule, duration, time_zone }, reach }) => {
                change::apply(&reach.open(QUESTION).await?, &[Edit::RemoveWindow(WhichWindow { schedule, duration, time_zone })]).await
            }
            Command::List(At { reach, .. }) => {
                let manager = change::raw(&reach.open(QUESTION).await?.manager().await?)?;
                anstream::println!("{}", in_words(&manager, &Zoned::now()));
                Ok(())
            }
        }
    }
}

/// The windows of an `UpdateManager`, and those that smartup does not understand.
pub fn windows(manager: &Value) -> (Vec<Window>, Vec<&Value>) {
    let entries = manager.get("spec").and_then(|s| s.get("maintenanceWindows")?.as_array()).map(Vec::as_slice).unwrap_or_default();
    let read = |entry: &Value| serde_json::from_value(entry.clone()).ok();
    (entries.iter().filter_map(read).collect(), entries.iter().filter(|e| read(e).is_none()).collect())
}

/// With their next three openings, by the clock and in the time zone of `now`.
fn in_words(manager: &Value, now: &Zoned) -> String {
    let (windows, strange) = windows(manager);
    let rows: Vec<_> = windows.iter().flat_map(|w| rows(w, now)).collect();
    let mut text = Vec::new();
    if !rows.is_empty() {
        text.push(output::table(&["schedule", "duration", "time zone", "opens (local time)", "opens (UTC)"], rows));
    } else if strange.is_empty() {
        text.push("There are no windows: updates may start at any time.".into());
    }
    text.extend(strange.iter().map(|entry| format!("not understood: {entry}")));
    text.join("\n")
}

fn rows(window: &Window, now: &Zoned) -> Vec<Vec<String>> {
    let zone = window.time_zone.clone().unwrap_or_default();
    let name = [format!("'{}'", window.schedule), window.duration.to_string(), zone.to_string()];
    let open = window.open_at(now.timestamp()).map(|until| {
        let here = until.to_zoned(now.time_zone().clone());
        [format!("open until {}", here.strftime("%a %Y-%m-%d %H:%M %Z")), format!("open until {}", when::in_utc(until))]
    });
    let openings = window.openings(now.timestamp(), 3).into_iter().map(|opening| {
        let here = opening.from.to_zoned(now.time_zone().clone());
        [here.strftime("%a %Y-%m-%d %H:%M %Z").to_string(), when::in_utc(opening.from)]
    });
    let mut times: Vec<_> = open.into_iter().chain(openings).collect();
    if times.is_empty() {
        times.push(["never".into(), "never".into()]);
    }
    let first = |row: usize| if row == 0 { name.clone() } else { Default::default() };
    times.into_iter().enumerate().map(|(row, times)| first(row).into_iter().chain(times).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn windows_with_their_openings() {
        let now: Zoned = "2026-03-27T03:00:00+01:00[Europe/Berlin]".parse().unwrap();
        assert_eq!(in_words(&json!({ "spec": {} }), &now), "There are no windows: updates may start at any time.");
        let manager = json!({ "spec": { "maintenanceWindows": [
            { "schedule": "0 1 * * 1-5", "duration": "1h30m" },
            { "schedule": "30 2 * * *", "duration": "8h", "timeZone": "Europe/Berlin" },
            { "schedule": "@daily", "duration": "1h" },
        ] } });
        insta::assert_snapshot!(in_words(&manager, &now), @r#"
        SCHEDULE        DURATION   TIME ZONE       OPENS (LOCAL TIME)                    OPENS (UTC)
        '0 1 * * 1-5'   1h30m      UTC             open until Fri 2026-03-27 03:30 CET   open until Fri 2026-03-27 02:30 UTC
                                                   Mon 2026-03-30 03:00 CEST             Mon 2026-03-30 01:00 UTC
                                                   Tue 2026-03-31 03:00 CEST             Tue 2026-03-31 01:00 UTC
                                                   Wed 2026-04-01 03:00 CEST             Wed 2026-04-01 01:00 UTC
        '30 2 * * *'    8h00m      Europe/Berlin   open until Fri 2026-03-27 10:30 CET   open until Fri 2026-03-27 09:30 UTC
                                                   Sat 2026-03-28 02:30 CET              Sat 2026-03-28 01:30 UTC
                                                   Sun 2026-03-29 03:00 CEST             Sun 2026-03-29 01:00 UTC
                                                   Mon 2026-03-30 02:30 CEST             Mon 2026-03-30 00:30 UTC
        not understood: {"duration":"1h","schedule":"@daily"}
        "#);
    }
}

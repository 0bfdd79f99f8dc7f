//! Progress on many hosts: a line for each on a terminal, plain lines elsewhere, JSON lines for programs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use fleet::apply::News;
use fleet::order::{End, HostId};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use node::{Change, Event, Outcome};
use serde_json::json;

use crate::commands::Events;

/// What would change on a host: steps and their changes.
pub type Changes = Vec<(String, Vec<Change>)>;

/// Watches hosts.
pub struct Hosts {
    names: Vec<String>,
    width: usize,
    events: bool,
    verbose: bool,
    live: Option<Live>,
    changes: BTreeMap<HostId, Changes>,
    /// Each warning once, with the hosts that have it.
    warnings: Vec<(String, Option<String>, Vec<HostId>)>,
    /// What each host was said to be sent.
    sending: BTreeMap<HostId, &'static str>,
}

struct Live {
    all: &'static MultiProgress,
    bars: Vec<ProgressBar>,
    summary: ProgressBar,
    over: usize,
}

impl Hosts {
    /// For hosts with these names.
    pub fn new(names: Vec<String>, events: Option<Events>, verbose: bool) -> Self {
        let width = names.iter().map(|n| n.chars().count()).max().unwrap_or(0);
        let live = (events.is_none() && super::is_live()).then(|| Live::new(&names, width));
        Self {
            names,
            width,
            events: events.is_some(),
            verbose,
            live,
            changes: BTreeMap::new(),
            warnings: Vec::new(),
            sending: BTreeMap::new(),
        }
    }

    /// What was found to differ on each host.
    pub fn changes(&self) -> &BTreeMap<HostId, Changes> {
        &self.changes
    }

    /// Takes the news of a host.
    pub fn news(&mut self, host: HostId, news: &News<'_>) {
        match news {
            News::Event(Event::Warning { what, hint }) => self.warning(host, what, hint.as_ref()),
            News::Event(Event::StepDone { step, outcome: Outcome::WouldChange, changes, .. }) => {
                self.changes.entry(host).or_default().push((step.clone(), changes.clone()));
            }
            _ => {}
        }
        if self.events {
            self.as_json(host, news);
        } else if let Some(live) = &mut self.live {
            live.news(host, news);
            // a host's own line says what it does; only what must not scroll away is said beside it
            let stays = self.verbose || matches!(news, News::Ended(_) | News::Event(Event::StepDone { outcome: Outcome::Failed, .. }));
            if let Some(line) = line(news, self.verbose).filter(|_| stays) {
                let _ = live.all.println(format!("{:<width$}  {line}", self.names[host], width = self.width));
            }
        } else if let Some(line) = self.plain(host, news) {
            anstream::eprintln!("{:<width$}  {line}", self.names[host], width = self.width);
        }
    }

    fn plain(&mut self, host: HostId, news: &News<'_>) -> Option<String> {
        match news {
            News::Sending { what, .. } => {
                let told = self.sending.insert(host, what);
                (told != Some(what)).then(|| format!("sending     {what}"))
            }
            News::Event(Event::Waiting { step, what }) => Some(format!("waiting     {step}: {what}")),
            other => line(other, self.verbose),
        }
    }

    fn warning(&mut self, host: HostId, what: &str, hint: Option<&String>) {
        match self.warnings.iter_mut().find(|(w, h, _)| w == what && h.as_ref() == hint) {
            Some((_, _, hosts)) if hosts.contains(&host) => {}
            Some((_, _, hosts)) => hosts.push(host),
            None => self.warnings.push((what.to_owned(), hint.cloned(), vec![host])),
        }
    }

    /// Prints the warnings so far, each once.
    pub fn print_warnings(&mut self) {
        if self.events {
            return;
        }
        for (what, hint, mut hosts) in std::mem::take(&mut self.warnings) {
            hosts.sort_unstable();
            let names: Vec<&str> = hosts.iter().map(|h| self.names[*h].as_str()).collect();
            let mut text = format!("warning: {}: {what}", short(&names));
            if let Some(hint) = hint {
                text.push_str("\n  hint: ");
                text.push_str(&hint);
            }
            super::quietly(|| anstream::eprintln!("{text}"));
        }
    }

    /// Ends the live view.
    pub fn finish(&mut self) {
        if let Some(live) = self.live.take() {
            let _ = live.all.clear();
        }
        self.print_warnings();
    }

    fn as_json(&self, host: HostId, news: &News<'_>) {
        let name = &self.names[host];
        let value = match news {
            News::Event(event) => match serde_json::to_value(event) {
                Ok(serde_json::Value::Object(mut object)) => {
                    object.insert("host".into(), json!(name));
                    serde_json::Value::Object(object)
                }
                _ => return,
            },
            News::Sending { what, percent } => json!({ "event": "sending", "host": name, "what": what, "percent": percent }),
            News::Ended(end) => {
                let mut object = json!({ "event": "host_done", "host": name, "outcome": outcome(end) });
                if let End::Failed { error, .. } = end {
                    object["error"] = json!(error.chain());
                    object["hint"] = json!(error.hint);
                }
                if let End::NotStarted(why) = end {
                    object["error"] = json!(why);
                }
                object
            }
        };
        let mut out = std::io::stdout().lock();
        // a reader that has gone away is no reason to stop half-way
        let _ = writeln!(out, "{value}").and_then(|()| out.flush());
    }
}

/// How a host ended, in a word, as `-o` and `--events` have it.
pub fn outcome(end: &End) -> &'static str {
    match end {
        End::Unchanged => "unchanged",
        End::WouldChange => "would_change",
        End::Changed => "changed",
        End::Failed { unknown: false, .. } => "failed",
        End::Failed { unknown: true, .. } => "unknown",
        End::NotStarted(_) => "not_started",
    }
}

/// Names of hosts, with many of them cut short.
pub fn short(names: &[&str]) -> String {
    match names.get(6..) {
        Some(more) if more.len() > 1 => format!("{} and {} more", names[..6].join(", "), more.len()),
        _ => names.join(", "),
    }
}

/// What is worth a line that stays.
fn line(news: &News<'_>, verbose: bool) -> Option<String> {
    let dim = anstyle::Style::new().dimmed();
    let bold = anstyle::Style::new().bold();
    match news {
        News::Event(Event::StepDone { step, outcome, ms, .. }) => {
            let (word, style) = match outcome {
                Outcome::Changed => ("changed", bold),
                Outcome::Failed => ("failed", bold),
                Outcome::Unchanged if verbose => ("unchanged", dim),
                Outcome::Unchanged | Outcome::WouldChange => return None,
            };
            Some(format!("{style}{word:<10}{style:#}  {step} {dim}({ms} ms){dim:#}"))
        }
        News::Ended(End::Changed) => Some(format!("{bold}done{bold:#}")),
        News::Ended(End::Failed { error, .. }) => {
            Some(format!("{bold}failed{bold:#}      {}", error.what.lines().next().unwrap_or_default()))
        }
        News::Ended(End::NotStarted(why)) => Some(format!("not started: {why}")),
        _ => None,
    }
}

impl Live {
    fn new(names: &[String], width: usize) -> Self {
        let all = super::live_lines();
        let style = ProgressStyle::with_template("{prefix}  {elapsed:>4}  {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bars = names.iter().map(|name| {
            let bar = all.add(ProgressBar::new_spinner().with_style(style.clone()).with_prefix(format!("{name:<width$}")));
            bar.set_message("connecting");
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        let bars: Vec<_> = bars.collect();
        let summary = all.add(ProgressBar::new_spinner());
        summary.set_style(ProgressStyle::with_template("{msg}, {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        summary.enable_steady_tick(Duration::from_millis(500));
        let mut live = Self { all, bars, summary, over: 0 };
        live.count();
        live
    }

    fn news(&mut self, host: HostId, news: &News<'_>) {
        let bar = &self.bars[host];
        match news {
            News::Event(Event::StepStarted { step, index, total }) => {
                bar.reset_elapsed();
                bar.set_message(format!("[{index}/{total}] {step}"));
            }
            News::Event(Event::Waiting { step, what }) => bar.set_message(format!("{step}: {what}")),
            News::Event(_) => {}
            News::Sending { what, percent } => bar.set_message(format!("sending {what}: {percent} %")),
            News::Ended(_) => {
                bar.finish_and_clear();
                self.over += 1;
            }
        }
        self.count();
    }

    fn count(&mut self) {
        self.summary.set_message(format!("{} of {} hosts done", self.over, self.bars.len()));
    }
}

#[cfg(test)]
mod tests {
    use node::Error;

    use super::*;

    #[test]
    fn plain_lines_say_it_without_colour() {
        let mut hosts = Hosts::new(vec!["h1".into(), "node-2".into()], None, false);
        let done = |outcome| Event::StepDone { step: "file /etc/x".into(), outcome, changes: Vec::new(), ms: 3 };
        let failed = End::Failed { error: Error::failed("it broke\nin two lines"), unknown: false };
        let news = [
            News::Sending { what: "smartup", percent: 3 },
            News::Sending { what: "smartup", percent: 4 },
            News::Sending { what: "smartup", percent: 51 },
            News::Event(&done(Outcome::Unchanged)),
            News::Event(&done(Outcome::Changed)),
            News::Event(&Event::Waiting { step: "API ready".into(), what: "not yet: etcd".into() }),
            News::Ended(&failed),
            News::Ended(&End::NotStarted("h1 failed".into())),
        ];
        let lines: Vec<String> =
            news.iter().filter_map(|n| hosts.plain(1, n)).map(|l| anstream::adapter::strip_str(&l).to_string()).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        sending     smartup
        changed     file /etc/x (3 ms)
        waiting     API ready: not yet: etcd
        failed      it broke
        not started: h1 failed
        ");
    }

    #[test]
    fn a_warning_of_many_hosts_is_one() {
        let mut hosts = Hosts::new((0..3).map(|n| format!("h{n}")).collect(), None, false);
        for host in [0, 1, 1, 2] {
            hosts.news(host, &News::Event(&Event::Warning { what: "no clock".into(), hint: None }));
        }
        assert_eq!(hosts.warnings, [("no clock".into(), None, vec![0, 1, 2])]);
        let names: Vec<String> = (0..9).map(|n| format!("h{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(short(&names), "h0, h1, h2, h3, h4, h5 and 3 more");
        assert_eq!(short(&names[..7]), "h0, h1, h2, h3, h4, h5, h6");
    }
}

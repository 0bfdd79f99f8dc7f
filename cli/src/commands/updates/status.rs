use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures::stream::{BoxStream, StreamExt as _, pending};
use jiff::Zoned;
use kube::ResourceExt as _;
use kube::api::{Api, DynamicObject};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use node::Result;
use updates::names::INSTANCE;

use super::access::{Objects, QUESTION, Reach, WATCH, missing};
use super::reports::{Report, Reports, reports};
use super::{change, view};
use crate::commands::Format;
use crate::output;
use crate::run_here::stop_on_signal;

#[derive(Debug, Args)]
pub struct Status {
    /// How it is printed: json and yaml are the `UpdateManager` itself
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Show every change, until interrupted
    #[arg(long)]
    watch: bool,
}

impl Status {
    pub async fn run(self, reach: &Reach) -> Result<ExitCode> {
        if self.watch {
            self.follow(reach.open(WATCH).await?).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let objects = reach.open(QUESTION).await?;
        let manager = objects.manager().await?;
        let reports = if self.output == Format::Table { reports(objects.read_node_updates().await?) } else { Reports::new() };
        self.print(&manager, &reports)?;
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, manager: &DynamicObject, reports: &Reports) -> Result<()> {
        let mut manager = manager.clone();
        // as kubectl does: it is long, and nothing for people
        manager.metadata.managed_fields = None;
        output::print(&change::raw(&manager)?, self.output, |manager| view::in_words(manager, reports, &Zoned::now()))
    }

    async fn follow(self, objects: Objects) -> Result<()> {
        let stop = stop_on_signal()?;
        objects.manager().await?;
        let watch = |api: &Api<DynamicObject>, config| watcher(api.clone(), config).default_backoff().boxed();
        let mut managers = watch(&objects.managers, watcher::Config::default().fields(&format!("metadata.name={INSTANCE}")));
        let (mut updates, mut seen): (BoxStream<'_, _>, _) = match &objects.node_updates {
            Some(api) if self.output == Format::Table => (watch(api, watcher::Config::default()), Seen::default()),
            _ => (pending().boxed(), Seen { reports: Followed::nothing(), ..Seen::default() }),
        };
        // what was printed grows old: "5 min ago"
        let mut minute = tokio::time::interval(Duration::from_secs(60));
        let mut cut_off = false;
        loop {
            let news = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = minute.tick() => Ok(self.output == Format::Table),
                Some(event) = managers.next() => event.map(|e| seen.manager.take(e, |m| Some(m.clone()))),
                Some(event) = updates.next() => event.map(|e| seen.reports.take(e, Report::of)),
            };
            if news.is_err() && !cut_off {
                anstream::eprintln!("the cluster does not answer; this goes on as soon as it does");
            }
            cut_off = news.is_err();
            let (Ok(true), Some(managers), Some(reports)) = (news, seen.manager.all(), seen.reports.all()) else { continue };
            let manager = managers.get(INSTANCE).ok_or_else(missing)?;
            self.clear();
            self.print(manager, reports)?;
        }
    }

    fn clear(&self) {
        if self.output == Format::Table && std::io::stdout().is_terminal() {
            // to the top left, and clear the screen
            print!("\x1b[H\x1b[2J");
        } else if self.output == Format::Yaml {
            println!("---");
        }
    }
}

#[derive(Default)]
struct Seen {
    manager: Followed<DynamicObject>,
    reports: Followed<Report>,
}

/// Objects by name, as a watch tells of them.
struct Followed<T> {
    known: BTreeMap<String, T>,
    /// What a new list has brought so far.
    list: BTreeMap<String, T>,
    whole: bool,
}

impl<T> Default for Followed<T> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), list: BTreeMap::new(), whole: false }
    }
}

impl<T: PartialEq> Followed<T> {
    /// There is nothing to follow.
    fn nothing() -> Self {
        Self { whole: true, ..Self::default() }
    }

    /// None before the first list has come to its end.
    fn all(&self) -> Option<&BTreeMap<String, T>> {
        self.whole.then_some(&self.known)
    }

    /// Whether anything is different now.
    fn take(&mut self, event: Event<DynamicObject>, keep: impl Fn(&DynamicObject) -> Option<T>) -> bool {
        match event {
            Event::Apply(object) => match keep(&object) {
                Some(now) => {
                    self.known.get(&object.name_any()) != Some(&now) && {
                        self.known.insert(object.name_any(), now);
                        true
                    }
                }
                None => self.known.remove(&object.name_any()).is_some(),
            },
            Event::Delete(object) => self.known.remove(&object.name_any()).is_some(),
            Event::Init => {
                self.list.clear();
                false
            }
            Event::InitApply(object) => {
                self.list.extend(keep(&object).map(|now| (object.name_any(), now)));
                false
            }
            Event::InitDone => {
                let list = std::mem::take(&mut self.list);
                let different = !self.whole || self.known != list;
                (self.known, self.whole) = (list, true);
                different
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn update(name: &str, reported: Option<&str>) -> DynamicObject {
        let status = reported.map(|at| json!({ "reportedAt": at }));
        serde_json::from_value(json!({ "metadata": { "name": name }, "status": status })).unwrap()
    }

    #[test]
    fn only_what_is_different_is_news() {
        let (old, new) = (Some("2026-11-21T10:00:00Z"), Some("2026-11-21T11:00:00Z"));
        let mut seen = Followed::default();
        let mut take = |event| (seen.take(event, Report::of), seen.all().map(|all| all.keys().cloned().collect::<Vec<_>>().join(" ")));
        let known = |names: &str| Some(names.to_owned());
        assert_eq!(take(Event::Init), (false, None));
        assert_eq!(take(Event::InitApply(update("n1", old))), (false, None));
        assert_eq!(take(Event::InitApply(update("n2", None))), (false, None));
        assert_eq!(take(Event::InitDone), (true, known("n1")));
        assert_eq!(take(Event::Apply(update("n1", old))), (false, known("n1")));
        assert_eq!(take(Event::Apply(update("n1", new))), (true, known("n1")));
        assert_eq!(take(Event::Apply(update("n2", new))), (true, known("n1 n2")));
        assert_eq!(take(Event::Delete(update("n1", new))), (true, known("n2")));
        // the watch begins anew
        assert_eq!(take(Event::Init), (false, known("n2")));
        assert_eq!(take(Event::InitApply(update("n2", new))), (false, known("n2")));
        assert_eq!(take(Event::InitDone), (false, known("n2")));
    }
}

//! How the nodes stand, in words: from what was read and the time.

use jiff::Zoned;
use serde_json::Value;
use updates::api::{ItemsStatus, Reason, SPEC_VALID, State};
use updates::{Gate, gate};

use super::reports::{Report, Reports};
use super::{when, windows};
use crate::output;

/// A row for each node, and what holds for all of them.
pub fn in_words(manager: &Value, reports: &Reports, now: &Zoned) -> String {
    let status = manager.get("status");
    let nodes = status.and_then(|s| s.get("nodes")?.as_array()).map(Vec::as_slice).unwrap_or_default();
    let when = Times::of(manager, now);
    let mut text = vec![if nodes.is_empty() {
        "No node has a status yet: the operator writes them when it runs.".into()
    } else {
        let line = line(nodes, reports);
        let rows = nodes.iter().map(|node| row(node, reports, &line, &when)).collect();
        output::table(&["node", "stage", "kernel", "live patches", "packages", "reported", "next window", "why not"], rows)
    }];
    text.push(String::new());
    if manager.pointer("/spec/suspend") == Some(&Value::Bool(true)) {
        text.push("Suspended on all nodes; smartup updates resume ends it.".into());
    }
    text.extend(when.lines());
    let conditions = status.and_then(|s| s.get("conditions")?.as_array()).map(Vec::as_slice).unwrap_or_default();
    text.extend(conditions.iter().filter_map(complaint));
    text.join("\n")
}

/// When updates may start.
struct Times<'a> {
    gate: Gate,
    next: Option<jiff::Timestamp>,
    strange: Vec<&'a Value>,
    now: &'a Zoned,
}

impl<'a> Times<'a> {
    fn of(manager: &'a Value, now: &'a Zoned) -> Self {
        let (windows, strange) = windows::windows(manager);
        let at = now.timestamp();
        let next = windows.iter().flat_map(|w| w.openings(at, 1)).map(|o| o.from).min();
        // where there is one that is not understood, updates cannot be said to start at any time
        let gate = if windows.is_empty() && !strange.is_empty() { Gate::Closed(None) } else { gate(&windows, at) };
        Self { gate, next, strange, now }
    }

    /// When an update of a node may start.
    fn next_window(&self) -> String {
        match (self.gate, self.next) {
            (Gate::Always, _) => "at any time".into(),
            (Gate::Open(_), _) => "open".into(),
            (Gate::Closed(_), Some(next)) => when::both_short(next, self.now.time_zone()),
            (Gate::Closed(_), None) => "not known".into(),
        }
    }

    fn lines(&self) -> Vec<String> {
        let shown = |at| when::both(at, self.now.time_zone());
        let mut lines = Vec::new();
        match self.gate {
            Gate::Always => lines.push("There are no windows: updates may start at any time.".into()),
            Gate::Open(until) => lines.push(format!("A window is open until {}.", shown(until))),
            Gate::Closed(_) => lines.push("No window is open.".into()),
        }
        match self.next {
            Some(next) => lines.push(format!("The next window opens on {}.", shown(next))),
            None if self.gate == Gate::Always => {}
            None => lines.push("It is not known when the next window opens.".into()),
        }
        lines.extend(self.strange.iter().map(|w| format!("This window is not understood: {w}")));
        lines
    }
}

fn id(node: &Value) -> &str {
    node.get("id").and_then(Value::as_str).unwrap_or("-")
}

fn items(node: &Value, key: &str) -> Option<ItemsStatus> {
    node.get(key).and_then(|v| serde_json::from_value(v.clone()).ok())
}

/// Those that wait for their turn, the next one first: who was updated longest ago, then by name.
fn line<'a>(nodes: &'a [Value], reports: &Reports) -> Vec<&'a str> {
    let waits = |node: &Value, key| items(node, key).is_some_and(|items| items.reason == Some(Reason::WaitingForTurn));
    let waiting = nodes.iter().filter(|node| waits(node, "rpmPackages") || waits(node, "readyKernel"));
    let mut line: Vec<_> = waiting.map(|node| (reports.get(id(node)).and_then(|r| r.last_update), id(node))).collect();
    line.sort_unstable();
    line.into_iter().map(|(_, id)| id).collect()
}

fn row(node: &Value, reports: &Reports, line: &[&str], when: &Times<'_>) -> Vec<String> {
    let text = |key: &str| node.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
    let (patches, packages) = (items(node, "readyKernel"), items(node, "rpmPackages"));
    let id = text("id");
    let report = reports.get(&id);
    let reported = report.map_or("-".into(), |r| when::ago(when.now.timestamp().duration_since(r.at)));
    let cell = |items: &Option<ItemsStatus>| items.as_ref().map_or("-".into(), standing);
    let held = [&packages, &patches].into_iter().flatten().any(|items| items.status == State::Suspended);
    let next = if held { "-".into() } else { when.next_window() };
    let why = why(packages.as_ref(), patches.as_ref(), |reason| match (reason, report) {
        (Reason::WaitingForTurn, _) => {
            let place = line.iter().position(|waits| *waits == id).map(|n| format!(", it is number {}", n + 1));
            in_a_word(reason) + &place.unwrap_or_default()
        }
        (_, Some(report)) => in_words_of(reason, report, when.now),
        (_, None) => in_a_word(reason),
    });
    vec![id, text("stageName"), text("kernel"), cell(&patches), cell(&packages), reported, next, why]
}

fn standing(items: &ItemsStatus) -> String {
    let word = match (&items.status, &items.reason) {
        (State::UpToDate, Some(Reason::NotSupported)) => "none here",
        (State::UpToDate, _) => "up to date",
        (State::Suspended, _) => "suspended",
        (State::Pending, _) => "due",
        (State::Unknown, _) => "unknown",
        (State::Other(word), _) => word,
    };
    items.number_of_packages_to_update.map_or_else(|| word.to_owned(), |n| format!("{word}, {n} available"))
}

/// What keeps a node from being updated at present, though somebody asks for it now: not a window, its turn, or the time after a
/// failure.
pub fn obstacle(manager: &Value, node: &str) -> Option<String> {
    if manager.pointer("/spec/halted") == Some(&Value::Bool(true)) {
        return Some(in_a_word(&Reason::Halted));
    }
    let nodes = manager.pointer("/status/nodes").and_then(Value::as_array)?;
    let status = nodes.iter().find(|n| id(n) == node)?;
    let all = [items(status, "rpmPackages"), items(status, "readyKernel")];
    if all.iter().flatten().all(|items| items.status == State::UpToDate) {
        return Some("nothing is due on it".into());
    }
    let passed_over = [Reason::WindowClosed, Reason::DoesNotFit, Reason::RetryLater, Reason::WaitingForTurn];
    let holds = all.iter().flatten().filter(|items| items.status != State::UpToDate).find_map(|items| items.reason.as_ref());
    holds.filter(|reason| !passed_over.contains(reason)).map(in_a_word)
}

/// Each reason once, that of the packages first.
fn why(packages: Option<&ItemsStatus>, patches: Option<&ItemsStatus>, word: impl Fn(&Reason) -> String) -> String {
    let reason = |items: Option<&ItemsStatus>| items.filter(|i| i.status != State::UpToDate)?.reason.clone();
    let (of_packages, of_patches) = (reason(packages), reason(patches));
    let of_patches = of_patches.filter(|r| Some(r) != of_packages.as_ref());
    let said: Vec<_> = of_packages.iter().chain(&of_patches).map(word).collect();
    if said.is_empty() { "-".into() } else { said.join("; ") }
}

/// With what its agent and the controller say more of it.
fn in_words_of(reason: &Reason, report: &Report, now: &Zoned) -> String {
    let word = in_a_word(reason);
    match (reason, &report.phase, &report.put_off) {
        (Reason::CheckFailed, ..) if !report.errors.is_empty() => format!("{word}: {}", report.errors.join("; ")),
        (Reason::Updating, Some(phase), _) => format!("{word}: {phase}"),
        (_, None, Some(off)) if *reason == Reason::RetryLater || reason.to_string() == off.reason => {
            format!("{word}: {}; again on {}", off.message, when::both_short(off.until, now.time_zone()))
        }
        _ => word,
    }
}

fn in_a_word(reason: &Reason) -> String {
    match reason {
        Reason::ManuallySuspended => "suspended by its label".into(),
        Reason::ClusterSuspended => "suspended with all nodes".into(),
        Reason::StorageNode => "serves storage".into(),
        Reason::InvalidPolicy => "its policy label is none of fast, slow, stable and auto".into(),
        Reason::InvalidSpec => "the UpdateManager's spec is not understood".into(),
        Reason::WindowClosed => "no window is open".into(),
        Reason::NotReported => "its agent has not reported yet".into(),
        Reason::AgentSilent => "its agent is silent for more than a day".into(),
        Reason::CheckFailed => "looking for updates failed".into(),
        Reason::NotSupported => "no package manager that smartup knows".into(),
        Reason::Other(word) => word.clone(),
        plain => {
            let mut meaning = plain.meaning().to_owned();
            meaning.get_mut(..1).into_iter().for_each(str::make_ascii_lowercase);
            meaning
        }
    }
}

/// A condition that does not hold.
fn complaint(condition: &Value) -> Option<String> {
    let text = |key: &str| condition.get(key).and_then(Value::as_str);
    let what = match (text("type")?, text("status")?) {
        (_, "True") => return None,
        (SPEC_VALID, _) => "The spec is not understood",
        (updates::api::AGENTS_REPORTING, _) => "Not all agents report",
        (updates::api::NOT_HALTED, _) => "Updates are halted",
        (updates::api::ALL_LISTED, _) => "Not all nodes are listed",
        // a vendor's: whether it is bad that it does not hold is not known here
        _ => return None,
    };
    Some(format!("{what}: {}", text("message").unwrap_or("it does not say why")))
}

#[cfg(test)]
mod tests;

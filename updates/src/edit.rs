//! Edits of the `UpdateManager` and of nodes' labels: pure, from what was read to one merge patch.
//!
//! The patch holds only the fields that change, and the resource version that they were read with: a conflict with another
//! writer is refused by the API server, and the edit is made again on what is there then. Entries that are not understood, and
//! fields of a vendor's operator, stay as they are.

use serde_json::{Map, Value, json};

use crate::names::{POLICY_LABEL, SUSPEND_LABEL};
use crate::{BootId, Item, Policy, Schedule, Span, Window, Zone};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// One window more.
    AddWindow(Window),
    /// One window less.
    RemoveWindow(WhichWindow),
    /// Never installed.
    Ban(Item),
    /// Installed again.
    Unban(Item),
    /// No update starts on any node.
    Suspend,
    /// Updates start again.
    Resume,
    /// No update starts on any node, and what has touched nothing yet is given back.
    Halt,
    /// That is over.
    Continue,
    /// It may be installed where that has to be approved.
    Approve(Item),
    /// This boot may be ended where that has to be approved.
    ApproveReboot(BootId),
}

/// A window by its schedule; the rest may be left out where that is clear enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhichWindow {
    /// Its schedule.
    pub schedule: Schedule,
    /// Its duration.
    pub duration: Option<Span>,
    /// Its time zone.
    pub time_zone: Option<Zone>,
}

/// What edits come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The merge patch (RFC 7396); None where all is as it should be.
    pub patch: Option<Value>,
    /// What changes, or why nothing does: a line for each edit.
    pub said: Vec<String>,
}

/// Why an edit cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Refusal {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Makes all `edits`, or none of them, on an `UpdateManager` as it was read.
///
/// # Errors
/// A window or a ban that is to go and is not there; a window that could be one of several.
pub fn edit(manager: &Value, edits: &[Edit]) -> Result<Edited, Refusal> {
    let mut spec = Spec { before: manager.get("spec").and_then(Value::as_object), changed: Map::new() };
    let said = edits.iter().map(|edit| spec.apply(edit)).collect::<Result<Vec<_>, _>>()?;
    let Spec { before, mut changed } = spec;
    // what one edit did, another may have undone
    changed.retain(|key, value| before.and_then(|b| b.get(key)).unwrap_or(&absent(key)) != value);
    let version = manager.pointer("/metadata/resourceVersion").cloned();
    let patch = (!changed.is_empty()).then(|| json!({ "metadata": { "resourceVersion": version }, "spec": changed }));
    Ok(Edited { patch, said })
}

const WINDOWS: &str = "maintenanceWindows";
const SUSPEND: &str = "suspend";
const HALTED: &str = "halted";

/// What a field that is not there means.
fn absent(key: &str) -> Value {
    if [SUSPEND, HALTED].contains(&key) { false.into() } else { Value::Array(Vec::new()) }
}

struct Spec<'a> {
    before: Option<&'a Map<String, Value>>,
    changed: Map<String, Value>,
}

impl Spec<'_> {
    fn get(&self, key: &str) -> Value {
        let found = self.changed.get(key).or_else(|| self.before?.get(key)).filter(|v| !v.is_null());
        found.cloned().unwrap_or_else(|| absent(key))
    }

    fn list(&self, key: &str) -> Vec<Value> {
        if let Value::Array(list) = self.get(key) { list } else { Vec::new() }
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.changed.insert(key.to_owned(), value.into());
    }

    fn apply(&mut self, edit: &Edit) -> Result<String, Refusal> {
        match edit {
            Edit::AddWindow(window) => Ok(self.add_window(window)),
            Edit::RemoveWindow(which) => self.remove_window(which),
            Edit::Ban(item) => Ok(self.ban(item)),
            Edit::Unban(item) => self.unban(item),
            Edit::Suspend => {
                Ok(self.switch(SUSPEND, true, "updates suspended on all nodes", "updates were already suspended on all nodes"))
            }
            Edit::Resume => Ok(self.switch(SUSPEND, false, "updates resumed", "updates were not suspended")),
            Edit::Halt => Ok(self.switch(HALTED, true, "updates halted", "updates were already halted")),
            Edit::Continue => Ok(self.switch(HALTED, false, "updates go on", "updates were not halted")),
            Edit::Approve(item @ Item::Package(_)) => Ok(self.approve("approvedPackages", &item.to_string(), &item.to_string())),
            Edit::Approve(item @ Item::Patch(_)) => Ok(self.approve("approvedPatches", &item.to_string(), &item.to_string())),
            Edit::ApproveReboot(boot) => Ok(self.approve("approvedReboots", boot.as_str(), &format!("a reboot after boot {boot}"))),
        }
    }

    fn switch(&mut self, key: &str, on: bool, done: &str, already: &str) -> String {
        if self.get(key) == Value::Bool(on) {
            return already.to_owned();
        }
        self.set(key, on);
        done.to_owned()
    }

    fn approve(&mut self, key: &str, entry: &str, what: &str) -> String {
        let mut list = self.list(key);
        if list.iter().any(|e| e == entry) {
            return format!("{what} was already approved");
        }
        list.push(entry.into());
        self.set(key, list);
        format!("{what} approved")
    }

    fn add_window(&mut self, window: &Window) -> String {
        let mut windows = self.list(WINDOWS);
        if windows.iter().filter_map(read).any(|w| same(&w, window)) {
            return format!("window {} was already there", shown(window));
        }
        let mut entry = json!({ "schedule": window.schedule, "duration": window.duration });
        if let (Some(zone), Some(entry)) = (&window.time_zone, entry.as_object_mut()) {
            entry.insert("timeZone".into(), json!(zone));
        }
        windows.push(entry);
        self.set(WINDOWS, windows);
        format!("window {} added", shown(window))
    }

    fn remove_window(&mut self, which: &WhichWindow) -> Result<String, Refusal> {
        let mut windows = self.list(WINDOWS);
        let meant = |w: &Window| {
            w.schedule == which.schedule
                && which.duration.is_none_or(|d| d == w.duration)
                && which.time_zone.as_ref().is_none_or(|zone| *zone == w.zone())
        };
        let found: Vec<(usize, Window)> =
            windows.iter().enumerate().filter_map(|(at, entry)| Some((at, read(entry)?))).filter(|(_, w)| meant(w)).collect();
        let names = |windows: &[Window]| windows.iter().map(shown).collect::<Vec<_>>().join(", ");
        match found.as_slice() {
            [(at, window)] => {
                windows.remove(*at);
                self.set(WINDOWS, windows);
                Ok(format!("window {} removed", shown(window)))
            }
            [] => {
                let there: Vec<_> = windows.iter().filter_map(read).collect();
                let hint = if there.is_empty() { "there are no windows".into() } else { format!("there are {}", names(&there)) };
                Err(Refusal { what: format!("no such window: '{}'", which.schedule), hint: Some(hint) })
            }
            several => {
                let several: Vec<_> = several.iter().map(|(_, w)| w.clone()).collect();
                let what = format!("'{}' could be any of {}", which.schedule, names(&several));
                Err(Refusal { what, hint: Some("give its duration and time zone too".into()) })
            }
        }
    }

    fn ban(&mut self, item: &Item) -> String {
        let mut list = self.list(key(item));
        if list.iter().any(|entry| is(entry, item)) {
            return format!("{item} was already banned");
        }
        list.push(item.to_string().into());
        self.set(key(item), list);
        format!("{item} banned")
    }

    fn unban(&mut self, item: &Item) -> Result<String, Refusal> {
        let mut list = self.list(key(item));
        let before = list.len();
        list.retain(|entry| !is(entry, item));
        if list.len() < before {
            self.set(key(item), list);
            return Ok(format!("{item} is no longer banned"));
        }
        let banned: Vec<Item> = list.iter().filter_map(|entry| entry.as_str()?.parse().ok()).collect();
        let hint = crate::suggestion(&item.to_string(), &banned).map(|near| format!("did you mean {near}?"));
        Err(Refusal { what: format!("{item} is not banned"), hint })
    }
}

/// In which list an item is.
fn key(item: &Item) -> &'static str {
    match item {
        Item::Package(_) => "bannedPackages",
        Item::Patch(_) => "bannedPatches",
    }
}

fn is(entry: &Value, item: &Item) -> bool {
    entry.as_str().and_then(|text| text.parse().ok()).is_some_and(|entry: Item| entry == *item)
}

fn read(entry: &Value) -> Option<Window> {
    serde_json::from_value(entry.clone()).ok()
}

fn same(a: &Window, b: &Window) -> bool {
    a.schedule == b.schedule && a.duration == b.duration && a.zone() == b.zone()
}

fn shown(window: &Window) -> String {
    format!("'{}' {} {}", window.schedule, window.duration, window.zone())
}

/// Changes a node's labels; no other label is touched, so nobody else's change is lost.
pub fn label(node: &str, labels: &std::collections::BTreeMap<String, String>, edit: NodeEdit) -> Edited {
    let (key, value, done, already) = match edit {
        NodeEdit::Suspend => (SUSPEND_LABEL, Some(String::new()), "suspended".to_owned(), "was already suspended"),
        NodeEdit::Resume => (SUSPEND_LABEL, None, "resumed".to_owned(), "was not suspended by its label"),
        NodeEdit::Policy(policy) => (POLICY_LABEL, Some(policy.to_string()), format!("has policy {policy}"), "had that policy already"),
    };
    let there = match edit {
        NodeEdit::Suspend => labels.contains_key(key),
        _ => labels.get(key) == value.as_ref(),
    };
    let patch = (!there).then(|| json!({ "metadata": { "labels": { key: value } } }));
    Edited { patch, said: vec![format!("{node} {}", if there { already } else { &done })] }
}

/// One change of a node's labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeEdit {
    /// No update starts on it.
    Suspend,
    /// Updates start again.
    Resume,
    /// This policy.
    Policy(Policy),
}

#[cfg(test)]
mod tests;

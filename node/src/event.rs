use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One thing that differs from how it should be, or that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// In a few words: `write /etc/keepalived/keepalived.conf`.
    pub what: String,
    /// The difference as a unified diff, secrets masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

impl Change {
    /// A change without a diff.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), diff: None }
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All was as it should be.
    Unchanged,
    /// It was changed.
    Changed,
    /// A dry run found that it would be changed.
    WouldChange,
    /// It failed.
    Failed,
}

/// What happens, as it happens; one JSON line each with `--events json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A step begins.
    StepStarted {
        /// The step's name.
        step: String,
        /// Its place, from 1.
        index: usize,
        /// How many there are.
        total: usize,
    },
    /// A step says what it waits for; shown until the next event.
    Waiting {
        /// The step's name.
        step: String,
        /// What is awaited, and what is missing.
        what: String,
    },
    /// A step has ended.
    StepDone {
        /// The step's name.
        step: String,
        /// How.
        outcome: Outcome,
        /// What was (or would be) changed.
        changes: Vec<Change>,
        /// How long it took, in milliseconds.
        ms: u64,
    },
    /// Something the user should know that stops nothing.
    Warning {
        /// What.
        what: String,
        /// What to do about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}

/// Where events go; without a receiver they go nowhere.
#[derive(Clone, Default)]
pub struct Reporter(Option<Arc<dyn Fn(Event) + Send + Sync>>);

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Reporter(somebody)" } else { "Reporter(nobody)" })
    }
}

impl Reporter {
    /// Hands events to `receive`, which must not block, and for which a reader that has gone away is no reason to stop.
    pub fn new(receive: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(receive)))
    }

    /// Reports one event.
    pub fn report(&self, event: Event) {
        if let Some(receive) = &self.0 {
            receive(event);
        }
    }

    /// Reports a warning.
    pub fn warn(&self, what: impl Into<String>, hint: Option<String>) {
        self.report(Event::Warning { what: what.into(), hint });
    }
}

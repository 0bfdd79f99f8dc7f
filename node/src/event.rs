use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;

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

/// Where events go. Whoever shows them owns the other end; without one they go nowhere.
#[derive(Debug, Clone, Default)]
pub struct Reporter(Option<UnboundedSender<Event>>);

impl Reporter {
    /// Sends events to `sender`.
    pub fn new(sender: UnboundedSender<Event>) -> Self {
        Self(Some(sender))
    }

    /// Reports one event. A reader that has gone away is no reason to stop working.
    pub fn report(&self, event: Event) {
        if let Some(sender) = &self.0 {
            let _ = sender.send(event);
        }
    }

    /// Reports a warning.
    pub fn warn(&self, what: impl Into<String>, hint: Option<String>) {
        self.report(Event::Warning { what: what.into(), hint });
    }
}

//! What people are told about an update of a node.

use jiff::{SignedDuration, Timestamp};
use updates::api::{Failure, Notice, Reason, Transaction};
use updates::decide::Attribution;

/// Something that happened to a node's update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Happening {
    pub(in super::super) node: String,
    pub(in super::super) transaction: String,
    /// In one word, as Events have it.
    pub(in super::super) reason: &'static str,
    pub(in super::super) note: String,
    /// What somebody is notified of; None: it is in the Events only.
    pub(in super::super) tells: Option<Notice>,
}

impl Happening {
    /// The same, and that marks were refused, if they were.
    pub(super) fn although(mut self, refused: Option<String>) -> Self {
        if let Some(why) = refused {
            self.note = format!("{}; it could not be marked: {why}", self.note);
        }
        self
    }
}

fn happening(node: &str, transaction: &Transaction, reason: &'static str, text: String, tells: Option<Notice>) -> Happening {
    Happening { node: node.to_owned(), transaction: transaction.id.to_string(), reason, note: text, tells }
}

fn some(count: usize, what: &str) -> Option<String> {
    match count {
        0 => None,
        1 => Some(format!("1 {what}")),
        many => Some(format!("{many} {what}{}", if what.ends_with("ch") { "es" } else { "s" })),
    }
}

/// What a transaction is for.
fn work(transaction: &Transaction) -> String {
    let items = [some(transaction.packages.len(), "package"), some(transaction.patches.len(), "live patch")];
    let items: Vec<_> = items.into_iter().flatten().collect();
    if items.is_empty() { "a reboot".into() } else { items.join(" and ") }
}

/// An update starts.
pub(super) fn started(node: &str, transaction: &Transaction) -> Happening {
    let text = format!("the update starts: {}", work(transaction));
    happening(node, transaction, "UpdateStarted", text, Some(Notice::Started))
}

/// An update has taken another turn; None: all goes its way.
pub(super) fn failed(node: &str, before: &Transaction, after: &Transaction) -> Option<Happening> {
    let failure = after.failure.as_ref().filter(|_| before.failure.is_none())?;
    let Failure { reason, message, .. } = failure;
    let asked_for = matches!(reason, Reason::SpecChanged | Reason::Halted);
    let (word, what) = if after.touched || after.rebooted { ("UpdateFailed", "failed") } else { ("UpdatePutOff", "was put off") };
    let text = format!("the update of {} {what} ({reason}): {message}", work(after));
    Some(happening(node, after, word, text, (!asked_for).then_some(Notice::Failed)))
}

/// An update is over.
pub(super) fn over(node: &str, transaction: &Transaction, now: Timestamp) -> Option<Happening> {
    if transaction.failure.is_some() {
        // that was told when it failed
        return None;
    }
    let rebooted = if transaction.rebooted { ", the host was rebooted" } else { "" };
    let text = format!("updated: {}{rebooted}, in {}", work(transaction), took(now.duration_since(transaction.started_at.0)));
    Some(happening(node, transaction, "UpdateDone", text, Some(Notice::Done)))
}

/// What was banned.
pub(super) fn banned(learnt: &Attribution) -> Option<String> {
    let bans: Vec<_> = learnt.bans.iter().map(ToString::to_string).collect();
    (!bans.is_empty()).then(|| format!("banned after {}: {} ({})", learnt.node, bans.join(", "), learnt.because))
}

fn took(time: SignedDuration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        _ => format!("{} min", time.as_mins()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn transaction(more: &serde_json::Value) -> Transaction {
        let mut value = json!({
            "id": "0123456789abcdef", "reboot": "never", "startedAt": "2026-11-21T12:00:00Z", "phase": "Draining", "since": "2026-11-21T12:00:00Z",
            "packages": ["a-1-1.noarch", "b-1-1.noarch"], "patches": ["1-2-r3"],
        });
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn in_words() {
        let now: Timestamp = "2026-11-21T12:10:00Z".parse().unwrap();
        let failure = |reason: &str| json!({ "reason": reason, "message": "n/web is kept", "at": "2026-11-21T12:05:00Z" });
        let plain = transaction(&json!({}));
        let put_off = transaction(&json!({ "failure": failure("PodDisruptionBudget") }));
        let halted = transaction(&json!({ "failure": failure("Halted") }));
        let broken = transaction(&json!({ "failure": failure("NotVerified"), "touched": true, "packages": [], "patches": [] }));
        let rebooted = transaction(&json!({ "rebooted": true, "patches": [] }));
        let all = [
            Some(started("h1", &plain)),
            failed("h1", &plain, &put_off),
            failed("h1", &plain, &halted),
            failed("h1", &plain, &broken),
            failed("h1", &broken, &broken),
            over("h1", &rebooted, now),
            over("h1", &broken, now),
        ];
        let said = |h: &Option<Happening>| {
            h.as_ref().map_or("-".into(), |h| format!("{} ({:?}): {}", h.reason, h.tells.map(|n| n.to_string()), h.note))
        };
        insta::assert_snapshot!(all.iter().map(said).collect::<Vec<_>>().join("\n"), @r#"
        UpdateStarted (Some("started")): the update starts: 2 packages and 1 live patch
        UpdatePutOff (Some("failed")): the update of 2 packages and 1 live patch was put off (PodDisruptionBudget): n/web is kept
        UpdatePutOff (None): the update of 2 packages and 1 live patch was put off (Halted): n/web is kept
        UpdateFailed (Some("failed")): the update of a reboot failed (NotVerified): n/web is kept
        -
        UpdateDone (Some("done")): updated: 2 packages, the host was rebooted, in 10 min
        -
        "#);
    }
}

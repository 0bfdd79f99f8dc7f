//! What a drill found, as data and for people.

use std::collections::BTreeSet;

use fleet::drill::Fault;
use serde::Serialize;

use super::measure::Away;
use crate::output;

/// One fault, and what came of it. Times in milliseconds, counted from when it began.
#[derive(Debug, Clone, Serialize)]
pub struct Rehearsal {
    /// What was done.
    pub fault: Fault,
    /// The server that had the VIP, to which it was done.
    pub holder: String,
    /// The host from which the API was asked; None = none could ask.
    pub asked_from: Option<String>,
    /// How long no API server answered through the VIP.
    pub away: Option<Away>,
    /// How long the API was not ready, seen through the VIP: away, or without etcd.
    pub not_ready: Option<Away>,
    /// How long two servers had the VIP at once; None = a server that had it could not be watched to the end.
    pub two_holders_ms: Option<i64>,
    /// By how much that may be wrong.
    pub two_holders_error_ms: i64,
    /// Who took the VIP, and who let it go.
    pub transitions: Vec<Transition>,
    /// When the cluster was whole again; None = not within the time given.
    pub whole_after_ms: Option<i64>,
    /// What was missing then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
}

/// The VIP came, or went.
#[derive(Debug, Clone, Serialize)]
pub struct Transition {
    /// How long after the fault began.
    pub after_ms: i64,
    /// Which server.
    pub host: String,
    /// Whether it has it from then on.
    pub holds: bool,
}

impl Rehearsal {
    /// Whether the API came back and the cluster is whole.
    pub fn is_good(&self) -> bool {
        self.whole_after_ms.is_some() && [self.away, self.not_ready].iter().all(|a| a.is_some_and(|a| a.back))
    }

    /// Who has the VIP in the end, as far as was seen.
    fn last_holders(&self) -> String {
        let mut holders = BTreeSet::from([self.holder.as_str()]);
        for t in &self.transitions {
            if t.holds {
                holders.insert(&t.host)
            } else {
                holders.remove(t.host.as_str())
            };
        }
        // one that could not be watched has not told that it let it go
        if self.two_holders_ms.is_none() && holders.len() > 1 {
            holders.remove(self.holder.as_str());
        }
        if holders.is_empty() { "nobody".to_owned() } else { holders.into_iter().collect::<Vec<_>>().join(", ") }
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.fault.to_string(),
            self.holder.clone(),
            self.last_holders(),
            gap(self.away),
            gap(self.not_ready),
            match self.two_holders_ms {
                None => "unknown".to_owned(),
                Some(0) => "none".to_owned(),
                Some(ms) => figure(ms, self.two_holders_error_ms),
            },
            match self.whole_after_ms {
                Some(ms) => format!("after {} s", (ms + 500) / 1000),
                None => "NOT".to_owned(),
            },
        ]
    }
}

/// A table, and below it what it has no room for.
pub fn in_words(all: &[Rehearsal]) -> String {
    let head = ["fault", "holder", "then", "API away", "not ready", "two holders", "whole again"];
    let mut text = vec![output::table(&head, all.iter().map(Rehearsal::row).collect()), String::new()];
    for r in all {
        let moves: Vec<String> = r
            .transitions
            .iter()
            .map(|t| format!("{} {} after {} s", t.host, if t.holds { "took it" } else { "let it go" }, seconds(t.after_ms)))
            .collect();
        let moves = if moves.is_empty() { "nobody was seen to take it".to_owned() } else { moves.join(", ") };
        let from = r.asked_from.as_deref().map(|h| format!(" The API was asked from {h}.")).unwrap_or_default();
        let unseen = if r.two_holders_ms.is_none() { format!(" {} could not be watched all the time.", r.holder) } else { String::new() };
        text.push(format!("{}: {moves}.{unseen}{from}", r.fault));
        text.extend(r.troubles.iter().map(|t| format!("  not whole: {t}")));
    }
    text.join("\n")
}

fn gap(away: Option<Away>) -> String {
    match away {
        None => "unknown".to_owned(),
        Some(Away { times: 0, .. }) => "none".to_owned(),
        Some(a) => {
            let more = if a.times > 1 { format!(", {} times", a.times) } else { String::new() };
            let end = if a.back { "" } else { ", NOT BACK" };
            format!("{}{more}{end}", figure(a.longest_ms, a.error_ms))
        }
    }
}

/// As in `2.36 ±0.02 s`.
fn figure(ms: i64, error: i64) -> String {
    format!("{} ±{} s", seconds(ms), seconds(error))
}

/// With two places.
fn seconds(ms: i64) -> String {
    let hundredths = (ms + 5) / 10;
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rehearsal(fault: Fault) -> Rehearsal {
        let away = |longest_ms, times, back| Some(Away { longest_ms, error_ms: 24, total_ms: longest_ms * 2, times, back });
        let turn = |after_ms, host: &str, holds| Transition { after_ms, host: host.into(), holds };
        Rehearsal {
            fault,
            holder: "h1".into(),
            asked_from: Some("h4".into()),
            away: away(104, 1, true),
            not_ready: away(0, 0, true),
            two_holders_ms: Some(0),
            two_holders_error_ms: 7,
            transitions: vec![turn(12, "h1", false), turn(96, "h2", true)],
            whole_after_ms: Some(9400),
            troubles: Vec::new(),
        }
    }

    #[test]
    fn for_people() {
        let bad = Rehearsal {
            away: Some(Away { longest_ms: 25_000, error_ms: 20, total_ms: 25_100, times: 2, back: false }),
            not_ready: None,
            asked_from: None,
            two_holders_ms: Some(40),
            transitions: Vec::new(),
            whole_after_ms: None,
            troubles: vec!["h1: k3s-server.service is failed (failed)".into()],
            ..rehearsal(Fault::Freeze)
        };
        let unknown = Rehearsal { two_holders_ms: None, transitions: vec![], ..rehearsal(Fault::Reboot) };
        assert_eq!([rehearsal(Fault::Kill).is_good(), bad.is_good()], [true, false]);
        insta::assert_snapshot!(in_words(&[rehearsal(Fault::Keepalived), bad, unknown]), @r"
        FAULT        HOLDER   THEN   API AWAY                           NOT READY   TWO HOLDERS    WHOLE AGAIN
        keepalived   h1       h2     0.10 ±0.02 s                       none        none           after 9 s
        freeze       h1       h1     25.00 ±0.02 s, 2 times, NOT BACK   unknown     0.04 ±0.01 s   NOT
        reboot       h1       h1     0.10 ±0.02 s                       none        unknown        after 9 s

        keepalived: h1 let it go after 0.01 s, h2 took it after 0.10 s. The API was asked from h4.
        freeze: nobody was seen to take it.
          not whole: h1: k3s-server.service is failed (failed)
        reboot: nobody was seen to take it. h1 could not be watched all the time. The API was asked from h4.
        ");
    }

    #[test]
    fn who_has_it_in_the_end() {
        let turn = |host: &str, holds| Transition { after_ms: 0, host: host.into(), holds };
        let of = |transitions, two_holders_ms| Rehearsal { two_holders_ms, transitions, ..rehearsal(Fault::Link) }.last_holders();
        let there_and_back = vec![turn("h1", false), turn("h2", true), turn("h3", true), turn("h3", false)];
        assert_eq!(of(there_and_back, Some(5)), "h2");
        assert_eq!(of(vec![turn("h2", true)], None), "h2", "the first one was not seen any more");
        assert_eq!(of(vec![turn("h2", true)], Some(900)), "h1, h2");
        assert_eq!(of(vec![turn("h1", false)], Some(0)), "nobody");
    }

    #[test]
    fn for_machines() {
        let data = serde_json::to_value(rehearsal(Fault::Keepalived)).unwrap();
        assert_eq!(data["fault"], "keepalived");
        assert_eq!(data["away"]["longest_ms"], 104);
        assert_eq!(data["transitions"][1]["host"], "h2");
        assert!(data.get("troubles").is_none());
    }
}

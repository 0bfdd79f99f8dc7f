//! Since when nodes that are being updated have said nothing new.

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use updates::api::Progress;

use super::super::plan::Cluster;

/// What was seen last of each node that is being updated, and since when that is so: by a clock that nobody sets. A controller that
/// was restarted, as one is that was cut off from the API, begins anew.
#[derive(Debug, Default)]
pub(super) struct Quiet(BTreeMap<String, Seen>);

#[derive(Debug)]
struct Seen {
    ready: bool,
    progress: Option<Progress>,
    since: Instant,
}

impl Quiet {
    /// Compares what is there with what was seen before.
    pub(super) fn look(&mut self, cluster: &Cluster, now: Instant) {
        let updated = cluster.updates.iter().filter(|(_, update)| update.spec.transaction.is_some());
        let there = updated.filter_map(|(name, update)| Some((name, update, cluster.nodes.get(name)?.ready)));
        let seen = there.map(|(name, update, ready)| {
            let progress = update.status.as_ref().and_then(|s| s.progress.clone());
            let before = self.0.get(name).filter(|b| b.ready == ready && b.progress == progress);
            (name.clone(), Seen { ready, progress, since: before.map_or(now, |b| b.since) })
        });
        self.0 = seen.collect();
    }

    /// Since when a node has said nothing new, on a clock that shows `wall` now. None: it was not seen yet.
    pub(super) fn since(&self, node: &str, now: Instant, wall: Timestamp) -> Option<Timestamp> {
        let silent = now.saturating_duration_since(self.0.get(node)?.since);
        wall.checked_sub(SignedDuration::try_from(silent).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde_json::{Value, json};
    use updates::api::NodeUpdate;

    use super::super::super::view::{NodeView, SentNode};
    use super::*;

    fn cluster(ready: &str, at: Option<&str>) -> Cluster {
        let node = json!({ "metadata": { "name": "h1" }, "spec": {}, "status": { "conditions": [{ "type": "Ready", "status": ready }] } });
        let node = NodeView::of(&serde_json::from_value::<SentNode>(node).unwrap());
        let progress = at
            .map_or(Value::Null, |at| json!({ "transaction": "0123456789abcdef", "phase": "Installing", "outcome": "Running", "at": at }));
        let time = "2026-11-21T12:00:00Z";
        let update: NodeUpdate = serde_json::from_value(json!({
            "apiVersion": "maintenance.virtuozzo.io/v1", "kind": "NodeUpdate", "metadata": { "name": "h1" },
            "spec": {
                "stage": "fast", "policy": "auto", "check": "a",
                "transaction": { "id": "0123456789abcdef", "reboot": "never", "startedAt": time, "phase": "Installing", "since": time },
            },
            "status": { "agentVersion": "1", "reportedAt": time, "kernel": "6.1", "check": "a", "progress": progress },
        }))
        .unwrap();
        Cluster { manager: None, nodes: [("h1".to_owned(), Arc::new(node))].into(), updates: [("h1".to_owned(), Arc::new(update))].into() }
    }

    #[test]
    fn silence_is_counted_from_what_was_seen() {
        let (begin, wall) = (Instant::now(), Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1000));
        let mut quiet = Quiet::default();
        assert_eq!(quiet.since("h1", begin, wall), None);
        let mut silent = |minutes: u64, cluster: &Cluster| {
            let now = begin + Duration::from_secs(60 * minutes);
            quiet.look(cluster, now);
            wall.duration_since(quiet.since("h1", now, wall).unwrap()).as_mins()
        };
        assert_eq!(silent(0, &cluster("True", None)), 0, "it sees it for the first time");
        assert_eq!(silent(20, &cluster("True", None)), 20);
        // whatever the host's clock says
        assert_eq!(silent(21, &cluster("True", Some("2001-01-01T00:00:00Z"))), 0);
        assert_eq!(silent(50, &cluster("True", Some("2001-01-01T00:00:00Z"))), 29);
        assert_eq!(silent(51, &cluster("Unknown", Some("2001-01-01T00:00:00Z"))), 0, "the node was lost");
        assert_eq!(silent(90, &cluster("Unknown", Some("2001-01-01T00:00:00Z"))), 39);
        assert_eq!(silent(91, &cluster("True", Some("2001-01-01T00:00:00Z"))), 0, "and is back");
        assert_eq!(silent(92, &cluster("True", Some("2000-01-01T00:00:00Z"))), 0);
    }
}

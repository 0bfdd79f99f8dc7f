//! What nodes' agents have reported, as far as it is looked at here.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kube::api::{DynamicObject, ObjectMeta};
use serde::Deserialize;
use updates::Item;

/// A node's last report, and what the controller says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// When it was.
    pub at: Timestamp,
    /// Why looking for updates failed.
    pub errors: Vec<String>,
    /// When the node was last updated.
    pub last_update: Option<Timestamp>,
    /// The phase of the update that is under way.
    pub phase: Option<String>,
    /// Why and until when the node is left alone.
    pub put_off: Option<PutOff>,
}

/// Why and until when a node is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutOff {
    /// In a word.
    pub reason: String,
    /// In words.
    pub message: String,
    /// Until when.
    pub until: Timestamp,
}

/// Reports by the nodes' names.
pub type Reports = BTreeMap<String, Report>;

impl Report {
    /// None: the node's agent has not reported yet.
    pub fn of(update: &DynamicObject) -> Option<Self> {
        Body::deserialize(&update.data).ok()?.report()
    }
}

/// Of a `NodeUpdate`, what a report is made of. What there is to be installed is read over, not kept: of thousands of nodes it is
/// hundreds of megabytes.
#[derive(Debug, Clone, Deserialize)]
pub struct Reported {
    metadata: ObjectMeta,
    #[serde(flatten)]
    body: Body,
}

#[derive(Debug, Clone, Deserialize)]
struct Body {
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Debug, Clone, Deserialize)]
struct Spec {
    transaction: Option<Transaction>,
    retry: Option<Retry>,
}

#[derive(Debug, Clone, Deserialize)]
struct Transaction {
    phase: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Retry {
    failure: Failure,
    not_before: Timestamp,
}

#[derive(Debug, Clone, Deserialize)]
struct Failure {
    reason: String,
    message: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    reported_at: Option<String>,
    last_update: Option<Timestamp>,
    packages: Option<Look>,
    patches: Option<Look>,
}

#[derive(Debug, Clone, Deserialize)]
struct Look {
    error: Option<String>,
}

impl Body {
    fn report(self) -> Option<Report> {
        let status = self.status?;
        let (transaction, retry) = self.spec.map(|s| (s.transaction, s.retry)).unwrap_or_default();
        let put_off = |Retry { failure: Failure { reason, message }, not_before }| PutOff { reason, message, until: not_before };
        Some(Report {
            at: status.reported_at?.parse().ok()?,
            errors: [status.packages, status.patches].into_iter().flatten().filter_map(|look| look.error).collect(),
            last_update: status.last_update,
            phase: transaction.map(|t| t.phase),
            put_off: retry.map(put_off),
        })
    }
}

/// All reports.
pub fn reports(updates: Vec<Reported>) -> Reports {
    updates.into_iter().filter_map(|update| Some((update.metadata.name?, update.body.report()?))).collect()
}

/// Of a `NodeUpdate`, what can be installed.
#[derive(Debug, Clone, Deserialize)]
pub struct Offer {
    status: Option<OfferedStatus>,
}

#[derive(Debug, Clone, Deserialize)]
struct OfferedStatus {
    packages: Option<Offered>,
    patches: Option<Offered>,
}

#[derive(Debug, Clone, Deserialize)]
struct Offered {
    available: Vec<Name>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Name {
    name: String,
}

/// What can be installed on any node, each once.
pub fn available(updates: Vec<Offer>) -> Vec<Item> {
    let lists = updates.into_iter().filter_map(|update| update.status).flat_map(|status| [status.packages, status.patches]);
    let names: BTreeSet<Name> = lists.flatten().flat_map(|list| list.available).collect();
    names.into_iter().filter_map(|name| name.name.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn both_ways_to_read_a_report_say_the_same() {
        let all = [
            json!({ "reportedAt": "2026-11-21T10:00:00Z", "packages": { "error": "no mirror", "available": [{ "name": "a" }] }, "patches": {} }),
            json!({ "reportedAt": "2026-11-21T10:00:00Z", "kernel": "6.1" }),
            json!({ "reportedAt": "2026-11-21T10:00:00Z", "lastUpdate": "2026-11-20T10:00:00Z" }),
            json!({ "reportedAt": "soon" }),
            json!({}),
            Value::Null,
        ];
        for status in all {
            let failure = json!({ "reason": "Crashed", "message": "it did", "at": "2026-11-21T10:00:00Z" });
            let retry = json!({ "failure": failure, "notBefore": "2026-11-21T14:00:00Z", "times": 1 });
            let spec = json!({ "stage": "fast", "transaction": { "id": "0123456789abcdef", "phase": "Draining" }, "retry": retry });
            let object = json!({ "metadata": { "name": "n" }, "spec": spec, "status": status });
            let dynamic: DynamicObject = serde_json::from_value(object.clone()).unwrap();
            let small = reports(vec![serde_json::from_value(object).unwrap()]);
            assert_eq!(small.get("n"), Report::of(&dynamic).as_ref());
        }
    }

    #[test]
    fn what_several_nodes_lack_is_there_once() {
        let lacks = |packages: &[&str]| json!({ "status": { "packages": { "available": packages.iter().map(|p| json!({ "name": p, "since": "2026-11-21T10:00:00Z" })).collect::<Vec<_>>() } } });
        let all = [lacks(&["bash=5.2", "nonsense"]), lacks(&["bash=5.2", "acl=2.3"]), json!({ "status": null }), json!({})];
        let found = available(all.map(|u| serde_json::from_value(u).unwrap()).into());
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), ["acl=2.3", "bash=5.2"]);
    }
}

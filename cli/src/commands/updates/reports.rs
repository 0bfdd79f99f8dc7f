//! What nodes' agents have reported, as far as it is looked at here.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kube::api::{DynamicObject, ObjectMeta};
use serde::Deserialize;
use updates::Item;

/// A node's last report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// When it was.
    pub at: Timestamp,
    /// Why looking for updates failed.
    pub errors: Vec<String>,
}

/// Reports by the nodes' names.
pub type Reports = BTreeMap<String, Report>;

impl Report {
    /// None: the node's agent has not reported yet.
    pub fn of(update: &DynamicObject) -> Option<Self> {
        let status = update.data.get("status")?;
        let error = |list: &str| status.get(list)?.get("error")?.as_str().map(str::to_owned);
        Some(Self {
            at: status.get("reportedAt")?.as_str()?.parse().ok()?,
            errors: ["packages", "patches"].into_iter().filter_map(error).collect(),
        })
    }
}

/// Of a `NodeUpdate`, what a report is made of. What there is to be installed is read over, not kept: of thousands of nodes it is
/// hundreds of megabytes.
#[derive(Debug, Clone, Deserialize)]
pub struct Reported {
    metadata: ObjectMeta,
    status: Option<ReportedStatus>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReportedStatus {
    reported_at: Option<String>,
    packages: Option<Look>,
    patches: Option<Look>,
}

#[derive(Debug, Clone, Deserialize)]
struct Look {
    error: Option<String>,
}

/// All reports.
pub fn reports(updates: Vec<Reported>) -> Reports {
    let report = |status: ReportedStatus| {
        let looks = [status.packages, status.patches].into_iter().flatten();
        Some(Report { at: status.reported_at?.parse().ok()?, errors: looks.filter_map(|look| look.error).collect() })
    };
    updates.into_iter().filter_map(|update| Some((update.metadata.name?, report(update.status?)?))).collect()
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
            json!({ "reportedAt": "soon" }),
            json!({}),
            Value::Null,
        ];
        for status in all {
            let object = json!({ "metadata": { "name": "n" }, "status": status });
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

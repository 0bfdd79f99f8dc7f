//! What nodes' agents have reported, as far as it is looked at here.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kube::api::{DynamicObject, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;
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

/// What can be installed on any node, each once.
pub fn available(updates: &[DynamicObject]) -> Vec<Item> {
    let lists = updates.iter().filter_map(|u| u.data.get("status")).flat_map(|s| ["packages", "patches"].map(|list| s.get(list)));
    let entries = lists.flatten().filter_map(|list| list.get("available")?.as_array()).flatten();
    let names: BTreeSet<_> = entries.filter_map(|e| e.get("name").and_then(Value::as_str)).collect();
    names.into_iter().filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
}

//! What nodes' agents have reported, as far as it is looked at here.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
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

/// All reports.
pub fn reports(updates: &[DynamicObject]) -> Reports {
    updates.iter().filter_map(|u| Some((u.name_any(), Report::of(u)?))).collect()
}

/// What can be installed on any node, each once.
pub fn available(updates: &[DynamicObject]) -> Vec<Item> {
    let lists = updates.iter().filter_map(|u| u.data.get("status")).flat_map(|s| ["packages", "patches"].map(|list| s.get(list)));
    let entries = lists.flatten().filter_map(|list| list.get("available")?.as_array()).flatten();
    let names: BTreeSet<_> = entries.filter_map(|e| e.get("name").and_then(Value::as_str)).collect();
    names.into_iter().filter_map(|n| n.parse().ok()).collect()
}

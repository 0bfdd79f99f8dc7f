//! What of each object is kept in memory.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{DynamicObject, ObjectMeta};
use kube::core::Object;
use serde::Deserialize;
use updates::api::{NodeUpdate, UpdateManagerSpec, UpdateManagerStatus};
use updates::decide::Cordon;
use updates::{Builds, names};

use crate::CORDONED_FOR;

/// Of a Node as the API sends it, what is looked at: the rest of it, images above all, is not even taken apart.
pub(super) type SentNode = Object<SentSpec, SentStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct SentSpec {
    unschedulable: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct SentStatus {
    conditions: Vec<SentCondition>,
    addresses: Vec<SentAddress>,
}

#[derive(Debug, Clone, Deserialize)]
struct SentCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
}

#[derive(Debug, Clone, Deserialize)]
struct SentAddress {
    #[serde(rename = "type")]
    type_: String,
    address: String,
}

/// The labels that servers have; the second is that of old versions. One with `--disable-apiserver` has neither.
const SERVER: [&str; 3] = ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master", ETCD];
/// The label that k3s puts on servers with an etcd of their own.
const ETCD: &str = "node-role.kubernetes.io/etcd";

/// A node.
#[derive(Debug, PartialEq)]
pub(super) struct NodeView {
    pub(super) uid: String,
    pub(super) labels: BTreeMap<String, String>,
    /// Whether its condition Ready is True.
    pub(super) ready: bool,
    pub(super) server: bool,
    /// Whether it has a member of etcd.
    pub(super) etcd: bool,
    /// Its own address; only of those that have a member of etcd.
    pub(super) address: Option<String>,
    pub(super) cordon: Cordon,
    pub(super) run_requested: Option<Timestamp>,
}

impl NodeView {
    pub(super) fn of(node: &SentNode) -> Self {
        let (labels, annotations) = (node.labels(), node.annotations());
        let status = node.status.as_ref();
        let etcd = labels.contains_key(ETCD);
        let internal = || status?.addresses.iter().find(|a| a.type_ == "InternalIP").map(|a| a.address.clone());
        Self {
            uid: node.uid().unwrap_or_default(),
            ready: status.is_some_and(|s| s.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")),
            server: SERVER.iter().any(|role| labels.contains_key(*role)),
            etcd,
            address: etcd.then(internal).flatten(),
            cordon: match (node.spec.unschedulable, annotations.get(k3s::CORDON)) {
                (false, _) => Cordon::No,
                (true, Some(why)) if why == CORDONED_FOR => Cordon::Ours,
                (true, _) => Cordon::Theirs,
            },
            run_requested: annotations.get(names::RUN_ANNOTATION).and_then(|at| at.parse().ok()),
            labels: labels.clone(),
        }
    }
}

/// Of `NodeUpdate`s what the controller looks at, with the ages that builds have in the fleet.
pub(super) fn node_updates() -> impl FnMut(&NodeUpdate) -> NodeUpdate {
    let mut builds = Builds::default();
    move |object| {
        let ObjectMeta { name, owner_references, creation_timestamp, .. } = object.metadata.clone();
        let mut status = object.status.clone();
        if let Some(status) = &mut status {
            builds.settle(status, creation_timestamp.map(|t| t.0));
        }
        NodeUpdate { metadata: ObjectMeta { name, owner_references, ..ObjectMeta::default() }, spec: object.spec.clone(), status }
    }
}

/// The `UpdateManager`. Its schema is kept to by the API, but one that was stored under an older schema may say anything.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ManagerView {
    pub(super) uid: Option<String>,
    pub(super) generation: Option<i64>,
    /// What is asked for, or why that is not understood.
    pub(super) spec: Result<UpdateManagerSpec, String>,
    pub(super) check_requested: Option<String>,
    pub(super) status: UpdateManagerStatus,
}

impl ManagerView {
    pub(super) fn of(object: &DynamicObject) -> Self {
        let part = |name: &str| object.data.get(name).filter(|part| !part.is_null());
        let spec = part("spec").map_or_else(|| Ok(UpdateManagerSpec::default()), UpdateManagerSpec::deserialize);
        Self {
            uid: object.uid(),
            generation: object.metadata.generation,
            spec: spec.map_err(|e| e.to_string()),
            check_requested: object.annotations().get(names::CHECK_ANNOTATION).cloned(),
            // one that is not understood is written anew
            status: part("status").and_then(|status| UpdateManagerStatus::deserialize(status).ok()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_what_it_says() {
        let of = |node: serde_json::Value| NodeView::of(&serde_json::from_value::<SentNode>(node).unwrap());
        let mut node = json!({
            "metadata": { "name": "h1", "uid": "u", "labels": { "node-role.kubernetes.io/master": "true", "node-role.kubernetes.io/etcd": "true" } },
            "spec": { "podCIDR": "10.42.0.0/24" },
            "status": {
                "conditions": [{ "type": "MemoryPressure", "status": "False" }, { "type": "Ready", "status": "True" }],
                "addresses": [{ "type": "Hostname", "address": "h1" }, { "type": "InternalIP", "address": "10.79.0.11" }],
                "images": [{ "names": ["a"], "sizeBytes": 1 }],
            },
        });
        let view = of(node.clone());
        assert!(view.ready && view.server && view.etcd);
        assert_eq!(
            (view.uid.as_str(), view.address.as_deref(), view.cordon, view.run_requested),
            ("u", Some("10.79.0.11"), Cordon::No, None)
        );
        node["spec"]["unschedulable"] = json!(true);
        assert_eq!(of(node.clone()).cordon, Cordon::Theirs);
        node["metadata"]["annotations"] = json!({ k3s::CORDON: "h1 leaves the cluster", names::RUN_ANNOTATION: "2026-11-21T12:00:00Z" });
        let view = of(node.clone());
        assert_eq!((view.cordon, view.run_requested), (Cordon::Theirs, "2026-11-21T12:00:00Z".parse().ok()));
        node["metadata"]["annotations"] = json!({ k3s::CORDON: CORDONED_FOR, names::RUN_ANNOTATION: "now" });
        node["status"]["conditions"][1]["status"] = json!("Unknown");
        node["metadata"]["labels"] = json!({});
        let view = of(node);
        assert_eq!((view.cordon, view.run_requested, view.ready, view.server, view.address), (Cordon::Ours, None, false, false, None));
        let empty = of(json!({ "metadata": { "name": "new" }, "spec": {} }));
        assert!(!empty.ready && !empty.server);
        let only_etcd = of(json!({ "metadata": { "name": "h2", "labels": { "node-role.kubernetes.io/etcd": "true" } }, "spec": {} }));
        assert!(only_etcd.server && only_etcd.etcd);
    }

    #[test]
    fn a_spec_that_is_not_understood_is_no_reason_to_stop() {
        let of = |object| ManagerView::of(&serde_json::from_value::<DynamicObject>(object).unwrap());
        let base = json!({ "apiVersion": "maintenance.virtuozzo.io/v1", "kind": "UpdateManager", "metadata": { "name": "default" } });
        assert!(of(base.clone()).spec.unwrap().maintenance_windows.is_empty());
        let mut object = base.clone();
        object["spec"] = json!({ "suspend": true });
        assert!(of(object.clone()).spec.unwrap().suspend);
        object["spec"] = json!({ "suspend": "perhaps" });
        object["status"] = json!({ "nodes": "none" });
        let view = of(object);
        assert!(view.spec.unwrap_err().contains("perhaps"), "it says what is wrong");
        assert_eq!(view.status, UpdateManagerStatus::default());
    }
}

//! What of each object is kept in memory.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use kube::api::{DynamicObject, ObjectMeta, PartialObjectMeta};
use serde::Deserialize as _;
use updates::api::{NodeUpdate, UpdateManagerSpec, UpdateManagerStatus};
use updates::{Names, names};

/// A node: of its labels only those that decide something, and those that a storage selector may ask for.
#[derive(Debug, PartialEq)]
pub(super) struct NodeView {
    pub(super) uid: String,
    pub(super) labels: BTreeMap<String, String>,
}

impl NodeView {
    pub(super) fn of(node: &PartialObjectMeta<Node>) -> Self {
        Self { uid: node.uid().unwrap_or_default(), labels: node.labels().clone() }
    }
}

/// Of `NodeUpdate`s what the controller looks at. Nodes lack the same packages: each name is in memory once.
pub(super) fn node_updates() -> impl FnMut(&NodeUpdate) -> NodeUpdate {
    let mut names = Names::default();
    move |object| {
        let mut status = object.status.clone();
        for item in status.iter_mut().filter_map(|s| s.packages.as_mut()).flat_map(|p| &mut p.available) {
            item.name = names.one(&item.name);
        }
        let ObjectMeta { name, owner_references, .. } = object.metadata.clone();
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

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use super::words::{Reason, State};
use crate::{PackageName, PatchName, Stage, Window};

/// How all nodes of the cluster are updated.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, CustomResource)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "maintenance.virtuozzo.io",
    version = "v1",
    kind = "UpdateManager",
    plural = "updatemanagers",
    singular = "updatemanager",
    namespaced,
    status = "UpdateManagerStatus",
    derive = "PartialEq",
    doc = "Smart updates of the cluster's nodes: what is wanted, and how each node stands.",
    printcolumn = r#"{"name":"Suspended","type":"boolean","jsonPath":".spec.suspend"}"#,
    printcolumn = r#"{"name":"Nodes","type":"integer","jsonPath":".status.summary.nodes"}"#,
    printcolumn = r#"{"name":"Up-to-date","type":"integer","jsonPath":".status.summary.upToDate"}"#,
    printcolumn = r#"{"name":"Pending","type":"integer","jsonPath":".status.summary.pending"}"#,
    printcolumn = r#"{"name":"Held","type":"integer","jsonPath":".status.summary.suspended"}"#,
    printcolumn = r#"{"name":"Unknown","type":"integer","jsonPath":".status.summary.unknown"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
pub struct UpdateManagerSpec {
    /// Times in which an update may start. None: at any time.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub maintenance_windows: Vec<Window>,
    /// Builds of packages that are not installed: <name>-<version>-<release>.<arch>, as in bash-4.2.46-34.vl7.x86_64, or
    /// Debian's <name>=<version>.
    #[serde(default)]
    #[schemars(length(max = 4096), extend("x-kubernetes-list-type" = "set"))]
    pub banned_packages: Vec<PackageName>,
    /// Live patches that are not installed: X-Y-rZ, as in 123-4-r5.
    #[serde(default)]
    #[schemars(length(max = 4096), extend("x-kubernetes-list-type" = "set"))]
    pub banned_patches: Vec<PatchName>,
    /// true: no update starts on any node.
    #[serde(default)]
    pub suspend: bool,
    /// true: no update starts on nodes that serve storage.
    #[serde(default = "yes")]
    pub suspend_storage_nodes: bool,
    /// Labels that all nodes have that serve storage, and no others. None: nodes with a vstorage service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub storage_node_selector: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

/// How the nodes stand.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateManagerStatus {
    /// The spec's generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Each node, by name.
    #[serde(default)]
    pub nodes: Vec<NodeStatus>,
    /// How many nodes there are of each kind.
    #[serde(default)]
    pub summary: Summary,
    /// `SpecValid`, `AgentsReporting`; `AllListed` where that does not hold.
    #[serde(default)]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// How a node stands.
///
/// It is kept short: thousands of them are one object, and etcd takes 1.5 MB. All else is in the node's `NodeUpdate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The node's name.
    pub id: String,
    /// Its running kernel, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Live patches of its kernel.
    pub ready_kernel: ItemsStatus,
    /// Its packages.
    pub rpm_packages: ItemsStatus,
    /// How soon after their publication updates are installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Stage")]
    pub stage_name: Option<Stage>,
}

/// How a node stands with its packages or patches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ItemsStatus {
    /// In one word.
    pub status: State,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Packages that are available and not banned, those included that are too young for the stage; absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number_of_packages_to_update: Option<u32>,
}

/// How many nodes there are. Each counts once: as suspended, else as unknown, else as pending if its packages or its patches
/// are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    /// In all.
    pub nodes: u32,
    /// Nothing is due.
    pub up_to_date: u32,
    /// Updates are due.
    pub pending: u32,
    /// Held back by somebody.
    pub suspended: u32,
    /// Not known.
    pub unknown: u32,
}

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use super::settings::HostRules;
use super::transaction::{Progress, RebootNeed, Retry, Run, Transaction};
use crate::{BootId, PackageName, PatchName, Policy, ServiceName, Stage};

/// What the controller asks of one node; the object has the node's name.
///
/// It is namespaced, though nodes are not: a Role is enough for the agents, and nothing is left when the namespace goes. The
/// controller makes the Node its owner, so that it goes with the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "maintenance.virtuozzo.io",
    version = "v1",
    kind = "NodeUpdate",
    plural = "nodeupdates",
    singular = "nodeupdate",
    namespaced,
    status = "NodeUpdateStatus",
    derive = "PartialEq",
    doc = "Smart updates of one node: spec by the controller, status by the node's agent.",
    printcolumn = r#"{"name":"Stage","type":"string","jsonPath":".spec.stage"}"#,
    printcolumn = r#"{"name":"Policy","type":"string","jsonPath":".spec.policy"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".spec.transaction.phase"}"#,
    printcolumn = r#"{"name":"Kernel","type":"string","jsonPath":".status.kernel"}"#,
    printcolumn = r#"{"name":"Reboot","type":"string","jsonPath":".status.reboot.needed"}"#,
    printcolumn = r#"{"name":"Updated","type":"date","jsonPath":".status.lastUpdate"}"#,
    printcolumn = r#"{"name":"Agent","type":"string","jsonPath":".status.agentVersion"}"#,
    printcolumn = r#"{"name":"Reported","type":"date","jsonPath":".status.reportedAt"}"#
)]
pub struct NodeUpdateSpec {
    /// How soon after their publication updates are installed.
    pub stage: Stage,
    /// What the stage comes from. A node that stays at auto keeps its stage.
    pub policy: Policy,
    /// The agent looks for updates at once when this changes: a digest of all that asks for it.
    pub check: String,
    /// What agents do on their hosts: the `UpdateManager`'s own.
    #[serde(default, skip_serializing_if = "HostRules::is_default")]
    pub host: HostRules,
    /// What is being done to the node now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Transaction")]
    pub transaction: Option<Transaction>,
    /// Why, and until when, the node is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Retry")]
    pub retry: Option<Retry>,
}

impl NodeUpdateSpec {
    /// Nothing is done to the node.
    pub fn new(stage: Stage, policy: Policy, check: impl Into<String>) -> Self {
        Self { stage, policy, check: check.into(), host: HostRules::default(), transaction: None, retry: None }
    }
}

/// How many runs of the past a node's history has.
pub const HISTORY: usize = 10;

/// What the agent has found on its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeUpdateStatus {
    /// smartup's version on the node.
    pub agent_version: String,
    /// When the agent last reported.
    #[schemars(schema_with = "schema::time")]
    pub reported_at: Time,
    /// The running kernel, as `uname -r` prints it.
    pub kernel: String,
    /// The spec's `check` that this status answers.
    pub check: String,
    /// Packages; absent where the host has no package manager that smartup knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packages: Option<Listing<PackageName>>,
    /// Live patches; absent where nothing on the host installs any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patches: Option<Listing<PatchName>>,
    /// Storage services of the host, such as vstorage-mdsd.service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub storage_services: Vec<String>,
    /// The host's boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "BootId")]
    pub boot_id: Option<BootId>,
    /// Whether the host needs a reboot.
    #[serde(default)]
    pub reboot: RebootNeed,
    /// Whether the host has the floating address.
    #[serde(default)]
    pub has_vip: bool,
    /// Critical services of the host that have failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_services: Vec<ServiceName>,
    /// How far the agent is with the spec's transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Progress")]
    pub progress: Option<Progress>,
    /// When an update last came to a good end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub last_update: Option<Time>,
    /// The updates that came to an end last, the newest first; at most ten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Run>,
}

impl NodeUpdateStatus {
    /// Nothing is known yet.
    pub fn new(reported_at: Time) -> Self {
        Self {
            agent_version: String::new(),
            reported_at,
            kernel: String::new(),
            check: String::new(),
            packages: None,
            patches: None,
            storage_services: Vec::new(),
            boot_id: None,
            reboot: RebootNeed::default(),
            has_vip: false,
            failed_services: Vec::new(),
            progress: None,
            last_update: None,
            history: Vec::new(),
        }
    }
}

/// What could be installed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listing<T> {
    /// When it was last looked for with success; absent before the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub checked_at: Option<Time>,
    /// Why the last look failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the last look that succeeded found, those included that would come along anew.
    pub available: Vec<Available<T>>,
}

/// An update that could be installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Available<T> {
    /// Its name.
    pub name: T,
    /// When it was published; where the repository does not say, when the node first saw it.
    #[schemars(schema_with = "schema::time")]
    pub since: Time,
}

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use super::settings::{Approval, BlockingAlerts, Drain, HostRules, Marks, Notify, Reboots, StageDelays, Timeouts};
use super::words::{Reason, State};
use crate::{BootId, PackageName, PatchName, PodSelector, Share, Span, Stage, Suspects, Window};

/// How all nodes of the cluster are updated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, CustomResource)]
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
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the user's")]
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
    /// The andon cord. true: no update starts on any node, and one that has not touched its node yet is given back; one that
    /// has is finished.
    #[serde(default)]
    pub halted: bool,
    /// So many nodes may be updated, or not be ready, at once: a number, or a share of all, as in 10%. Of servers never more
    /// than one is updated at a time. Default: 1.
    #[serde(default = "one")]
    pub max_unavailable: Share,
    /// How many days after its publication an update is due, for each stage.
    #[serde(default)]
    pub stage_delays: StageDelays,
    /// Once the last update failed on so many nodes of a stage, a number or a share of that stage, nothing starts in the stages
    /// after it until they are mended. Default: 10%.
    #[serde(default = "tenth")]
    pub halt_when_failed: Share,
    /// true: an update starts only where it is likely to end while a window is open, by the time that updates took so far.
    #[serde(default)]
    pub fit_window: bool,
    /// automatic: all that is due is installed. manual: only what is approved.
    #[serde(default)]
    pub approval: Approval,
    /// With approval manual: packages that may be installed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096), extend("x-kubernetes-list-type" = "set"))]
    pub approved_packages: Vec<PackageName>,
    /// With approval manual: live patches that may be installed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096), extend("x-kubernetes-list-type" = "set"))]
    pub approved_patches: Vec<PatchName>,
    /// With approval manual: boots that may be ended by a reboot where nothing is installed; other tools may ask for one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8192), extend("x-kubernetes-list-type" = "set"))]
    pub approved_reboots: Vec<BootId>,
    /// true: after a crash, the packages of the transaction are tried by halves until one alone is banned. false: all of them
    /// are banned.
    #[serde(default)]
    pub crash_bisect: bool,
    /// never, when-needed or always. Default: when-needed.
    #[serde(default)]
    pub reboot: Reboots,
    /// What agents do on their hosts.
    #[serde(default)]
    pub host: HostRules,
    /// How pods are taken off a node.
    #[serde(default)]
    pub drain: Drain,
    /// How long a node may stay in each phase.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// How long a node has to be well after an update before the next one starts. Absent: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Span")]
    pub settle_time: Option<Span>,
    /// Alerts of Prometheus that keep updates from starting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "BlockingAlerts")]
    pub blocking_alerts: Option<BlockingAlerts>,
    /// As long as pods that one of these selectors finds are on a node, none starts there: runtime=long,cost=expensive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub blocking_pods: Vec<PodSelector>,
    /// Somebody is notified. Absent: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Notify")]
    pub notify: Option<Notify>,
    /// Put on a node when its update starts.
    #[serde(default, skip_serializing_if = "Marks::is_empty")]
    pub marks_before: Marks,
    /// Put on a node when its update has come to a good end.
    #[serde(default, skip_serializing_if = "Marks::is_empty")]
    pub marks_after: Marks,
}

fn yes() -> bool {
    true
}

fn one() -> Share {
    Share::ONE
}

fn tenth() -> Share {
    Share::TENTH
}

impl Default for UpdateManagerSpec {
    /// What an empty spec says.
    fn default() -> Self {
        Self {
            maintenance_windows: Vec::new(),
            banned_packages: Vec::new(),
            banned_patches: Vec::new(),
            suspend: false,
            suspend_storage_nodes: true,
            storage_node_selector: BTreeMap::new(),
            halted: false,
            max_unavailable: Share::ONE,
            stage_delays: StageDelays::default(),
            halt_when_failed: Share::TENTH,
            fit_window: false,
            approval: Approval::default(),
            approved_packages: Vec::new(),
            approved_patches: Vec::new(),
            approved_reboots: Vec::new(),
            crash_bisect: false,
            reboot: Reboots::default(),
            host: HostRules::default(),
            drain: Drain::default(),
            timeouts: Timeouts::default(),
            settle_time: None,
            blocking_alerts: None,
            blocking_pods: Vec::new(),
            notify: None,
            marks_before: Marks::default(),
            marks_after: Marks::default(),
        }
    }
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
    /// Packages of which one makes hosts crash, while it is found out which one (crashBisect). They are not installed but to
    /// find that out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspects: Vec<Suspects>,
    /// `SpecValid`, `AgentsReporting`, `NotHalted`; `AllListed` where that does not hold.
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

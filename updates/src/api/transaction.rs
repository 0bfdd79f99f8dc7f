//! One attempt to update one node: what the controller asks, and what the agent answers.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Reason;
use super::schema;
use super::settings::Reboots;
use crate::choice::choice;
use crate::{BootId, PackageName, PatchName, TransactionId};

choice! {
    /// Where a node is on its way through an update. Only the controller moves it; docs/development/updates.md draws the way.
    ///
    /// A node without a transaction is idle. Whatever is restarted, the phase stays: it is in the API server. The controller looks
    /// at the phase anew and goes on; the agent does what the phase asks anew (all of it can be done twice), but for
    /// `Installing`, whose intent it wrote on the host's disk ahead.
    Phase, "phase", "Where the node is on its way through the update." {
        /// The controller looks whether pods, budgets, alerts and quorum let it start. Deadline `timeouts.check`: given back.
        #[default]
        Checking = "Checking",
        /// The agent resolves and downloads; nothing on the host is changed. Deadline `timeouts.download`: given back.
        Downloading = "Downloading",
        /// The agent lets the floating address move to another server. Deadline `timeouts.handOver`: given back.
        HandingOver = "HandingOver",
        /// The controller cordons the node and takes its pods off. Deadline `timeouts.drain`: given back.
        Draining = "Draining",
        /// The agent installs; the only phase in which it may. Deadline `timeouts.install` without a sign of progress: counts as a
        /// crash where the agent had begun and its node is there, then `Broken`.
        Installing = "Installing",
        /// The agent reboots the host; the only phase in which it may. Deadline `timeouts.reboot`: `Broken`.
        Rebooting = "Rebooting",
        /// The agent compares the services and asks the gate; the controller looks at the node and the alerts. Deadline
        /// `timeouts.verify`: `Broken`.
        Verifying = "Verifying",
        /// As `Verifying`, but too late: the node stays cordoned, keeps its place among the unavailable ones and counts as failed.
        /// No deadline: it ends when the node is well, or gone. A node that was lost while it installed goes on with that when it is
        /// back.
        Broken = "Broken",
        /// The controller takes its cordon off; the agent notes the run in its history. Then, after `settleTime`, the transaction
        /// and the lease are gone. Deadline 5 minutes after that: gone without the agent's word.
        Releasing = "Releasing",
    }
}

choice! {
    /// How far the agent is with what the phase asks.
    Outcome, "outcome", "Running, Done, Failed, or Crashed: the host or the program that installs ended in the middle, or hung." {
        /// At work.
        #[default]
        Running = "Running",
        /// Done.
        Done = "Done",
        /// It ended badly, and the host is in order.
        Failed = "Failed",
        /// The host rebooted, or the program died or hung, while it installed.
        Crashed = "Crashed",
    }
}

choice! {
    /// A question that has three answers.
    Answer, "answer", "yes, no or unknown." {
        /// Yes.
        Yes = "yes",
        /// No.
        No = "no",
        /// Nobody knows; that is never taken for a yes.
        #[default]
        Unknown = "unknown",
    }
}

choice! {
    /// Of what kind the items are that are being installed.
    Part, "part", "patches are installed first, then packages." {
        /// Live patches: they come first.
        #[default]
        Patches = "patches",
        /// Packages.
        Packages = "packages",
    }
}

/// What is to be done to a node, and where it is on the way. Written by the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Transaction {
    /// Its name.
    pub id: TransactionId,
    /// These packages are installed, and nothing else: what needs more than these is left out and reported as such.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<PackageName>,
    /// These live patches are installed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<PatchName>,
    /// When the host is rebooted.
    pub reboot: Reboots,
    /// Whether pods are taken off before it is installed, and not only before a reboot.
    #[serde(default)]
    pub drain_first: bool,
    /// When it was decided.
    #[schemars(schema_with = "schema::time")]
    pub started_at: Time,
    /// The host's boot when it was decided: another one later means that the host was rebooted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "BootId")]
    pub boot_id: Option<BootId>,
    /// Where it is on the way.
    pub phase: Phase,
    /// Since when.
    #[schemars(schema_with = "schema::time")]
    pub since: Time,
    /// Until when the phase may last; absent: as long as it takes. In `Installing` each sign of progress puts it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub deadline: Option<Time>,
    /// Whether it finds out which of some suspects makes hosts crash: it has no other packages, but where they may need each other.
    #[serde(default)]
    pub trial: bool,
    /// Whether anything was, or may have been, installed.
    #[serde(default)]
    pub touched: bool,
    /// Whether the host was asked to reboot.
    #[serde(default)]
    pub rebooted: bool,
    /// Why it does not come to a good end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// Why an update of a node did not come to a good end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// In one word.
    pub reason: Reason,
    /// For people.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When.
    #[schemars(schema_with = "schema::time")]
    pub at: Time,
}

/// Why, and until when, a node is left alone after an update that did not come to a good end. Written by the controller; gone
/// after the next good end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// What happened.
    pub failure: Failure,
    /// Not before then.
    #[schemars(schema_with = "schema::time")]
    pub not_before: Time,
    /// How many times in a row.
    pub times: u32,
}

/// How far the agent is. Written by the agent, whenever it changes; while it installs, also each minute in which there is progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// With which transaction.
    pub transaction: TransactionId,
    /// With which of its phases. What is about another one than the transaction's is old news.
    pub phase: Phase,
    /// How far.
    pub outcome: Outcome,
    /// The last sign of progress.
    #[schemars(schema_with = "schema::time")]
    pub at: Time,
    /// For people: what is being done, or why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// In `Installing`, once it was begun: what is being installed, or was when it crashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Part")]
    pub part: Option<Part>,
    /// Packages of the transaction that are not installed, for they need something that is not in it. From `Downloading` on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<PackageName>,
    /// The live patches of the transaction are not installed, for what installs them would have done anything else by then. From
    /// `Installing` on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub patches_refused: bool,
    /// Pods must be taken off before it is installed: the packages stop what runs them. From `Downloading` on.
    #[serde(default)]
    pub drain_first: bool,
}

/// One update that came to an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Its transaction.
    pub transaction: TransactionId,
    /// When it was decided.
    #[schemars(schema_with = "schema::time")]
    pub started_at: Time,
    /// When it was over.
    #[schemars(schema_with = "schema::time")]
    pub finished_at: Time,
    /// How many packages were to be installed.
    pub packages: u32,
    /// How many live patches.
    pub patches: u32,
    /// Whether the host was rebooted.
    pub rebooted: bool,
    /// Why it did not come to a good end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// Whether the host needs a reboot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RebootNeed {
    /// In one word.
    pub needed: Answer,
    /// What says so, or why it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub because: Option<String>,
}

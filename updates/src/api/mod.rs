//! What is in the API server: `UpdateManager` and `NodeUpdate`.

mod condition;
mod manager;
mod node_update;
mod schema;
mod settings;
#[cfg(test)]
mod tests;
mod transaction;
mod words;

pub use condition::{AGENTS_REPORTING, ALL_LISTED, NOT_HALTED, SPEC_VALID, condition};
pub use manager::{ItemsStatus, NodeStatus, Summary, UpdateManager, UpdateManagerSpec, UpdateManagerStatus};
pub use node_update::{Available, HISTORY, Listing, NodeUpdate, NodeUpdateSpec, NodeUpdateStatus};
pub use settings::{Approval, BlockingAlerts, Command, Drain, HostRules, Marks, Notice, Notify, Reboots, StageDelays, Timeouts};
pub use transaction::{Answer, Failure, Outcome, Part, Phase, Progress, RebootNeed, Retry, Run, Transaction};
pub use words::{Reason, State};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// The definitions that the operator's manifest brings along.
///
/// They hold no CEL rules (`x-kubernetes-validations`): before Kubernetes 1.23 the field is unknown, and its kubectl refuses
/// what it does not know.
pub fn crds() -> [CustomResourceDefinition; 2] {
    [UpdateManager::crd(), NodeUpdate::crd()]
}

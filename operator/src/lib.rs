//! The maintenance operator: its image, its manifest, what runs in its pods (controller, node agent, deployment job), and what the
//! agent runs on its host.

mod agent;
mod client;
mod controller;
#[cfg(test)]
#[path = "../../k3s/src/fake_api.rs"]
#[allow(dead_code, reason = "its own crate uses the rest of it")]
mod fake_api;
pub mod image;
mod job;
mod manifest;
mod serve;
pub mod updaters;

pub use agent::{Seat, agent, work};
pub use controller::controller;
pub use job::job;
pub use manifest::{job_name, manifest};

/// smartup's version, which is the operator's.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What nodes are cordoned for while they are updated, as the annotation [`k3s::CORDON`] has it.
pub const CORDONED_FOR: &str = "update";
/// The lease that the leading controller holds, in the operator's namespace.
const LEASE: &str = "smartup-controller";
/// The agents' `DaemonSet`.
const AGENTS: &str = "smartup-agent";
/// Where pods answer probes and show their metrics.
const PORT: u16 = 8080;

/// The pod that this runs in.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The node that it is on.
    pub node: String,
}

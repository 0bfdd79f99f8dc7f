//! firewalld on a host: what each role needs to be let in, over firewalld's own D-Bus interface.
//!
//! [`Rules`] says what a role needs; [`plan`] makes it so, at once and after a reload, and touches nothing that is right
//! already; [`undo`] takes back exactly what was added; [`preflight`] finds firewalls that are not ours to change;
//! [`state`] says what is let in now.

mod firewalld;
mod mask;
mod offline;
mod others;
mod preflight;
mod rule;
mod settings;
mod ssh;
mod state;
mod steps;
mod undo;
mod zone_file;

pub use preflight::preflight;
pub use rule::{Ports, Protocol, Rule, Rules};
pub use state::{RuleState, state};
pub use steps::plan;
pub use undo::{BY, undo};

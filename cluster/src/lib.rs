//! What a cluster is made of: validated types and their rules. Pure, no I/O.

mod address;
pub mod file;
mod k3s;
mod names;
mod nearest;
mod role;
mod secret;
mod ssh;
mod ticket;
mod timeout;
mod vrrp;

pub use address::{Subnet, Vip};
pub use file::{Cluster, HostSpec};
pub use k3s::{K3sArg, K3sVersion, Mirror};
pub use names::{Hostname, Interface, Port};
pub use nearest::nearest;
pub use role::{Role, Runtime};
pub use secret::{AuthPass, Token};
pub use ssh::{Fingerprint, Jump, SshHost, SshUser};
pub use ticket::Ticket;
pub use timeout::Timeout;
pub use vrrp::{AdvertInterval, Priority, RouterId, Version, Vrrp};

/// An input that cannot become the type it was meant for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value}: {why}")]
pub struct Invalid {
    /// What was asked for, in the words of the command line: `VIP`, `port`.
    pub what: &'static str,
    /// The value in quotes; for a secret only its name.
    pub value: String,
    /// Why it cannot be.
    pub why: String,
}

impl Invalid {
    /// A `value` that is not a secret, and why it cannot be.
    pub fn new(what: &'static str, value: impl std::fmt::Display, why: impl Into<String>) -> Self {
        Self { what, value: format!("'{value}'"), why: why.into() }
    }

    pub(crate) fn secret(what: &'static str, why: impl Into<String>) -> Self {
        Self { what, value: "(not shown)".into(), why: why.into() }
    }
}

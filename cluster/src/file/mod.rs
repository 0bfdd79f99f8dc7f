//! cluster.yaml: a cluster and its hosts in one file.
//!
//! Text and environment in, [`Cluster`] or all [`Problems`] out. Files that it names are not read here.

mod problem;
mod read;
mod schema;
mod table;
#[cfg(test)]
mod tests;
mod tree;

use std::net::IpAddr;
use std::path::PathBuf;

pub use problem::{Problem, Problems};
pub use schema::schema;

use crate::{Fingerprint, Interface, Jump, K3sArg, K3sVersion, Mirror, Port, Role, Runtime, SshHost, SshUser, Timeout, Vip};

/// A commented file, with every key.
pub const EXAMPLE: &str = include_str!("example.yaml");

/// What a file describes. What it leaves open is None: then it is as the hosts have it already, or the default.
///
/// Paths are as they were written; a relative one is meant from the file's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The floating address.
    pub vip: Vip,
    /// The API's port; [`Port::API`] by default.
    pub port: Option<Port>,
    /// File with the cluster's secret; without one, the first server makes it.
    pub token_file: Option<PathBuf>,
    /// File with a VRRP password: VRRP version 2.
    pub auth_pass_file: Option<PathBuf>,
    /// The addresses of all servers, where VRRP is to be unicast; empty = multicast.
    pub unicast: Vec<IpAddr>,
    /// The hosts in the file's order: at least one server, none twice.
    pub hosts: Vec<HostSpec>,
}

/// A host, with what is said for all hosts worked in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    /// What ssh is told.
    pub host: SshHost,
    /// Server or agent.
    pub role: Role,
    /// Its own address, in the cluster's network.
    pub node_ip: Option<IpAddr>,
    /// The only key that this host may show.
    pub host_key: Option<Fingerprint>,
    /// How it is reached.
    pub ssh: Ssh,
    /// Interface of the VIP and of the pod network.
    pub interface: Option<Interface>,
    /// What runs the containers.
    pub runtime: Option<Runtime>,
    /// Whether smartup opens the firewall.
    pub firewall: Option<bool>,
    /// Where k3s comes from; None = it is on the host.
    pub k3s: Option<K3sFrom>,
    /// Flags for k3s: those for all hosts, then the host's own.
    pub k3s_args: Vec<K3sArg>,
    /// Names of checks that may fail: those for all hosts, then the host's own.
    pub ignore: Vec<String>,
    /// How long to wait for it to be ready.
    pub timeout: Timeout,
}

/// How a host is reached; what is None is taken from `~/.ssh/config`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ssh {
    /// The user to log in as.
    pub user: Option<SshUser>,
    /// The port.
    pub port: Option<Port>,
    /// Files with private keys, in the order in which they are tried.
    pub identity_files: Option<Vec<PathBuf>>,
    /// The hosts on the way, the nearest first; empty = straight there.
    pub jump: Option<Vec<Jump>>,
}

/// Where k3s comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum K3sFrom {
    /// A binary where smartup is run.
    File(PathBuf),
    /// A release that the host downloads.
    Release {
        /// Which one.
        version: K3sVersion,
        /// From where; k3s's own place by default.
        mirror: Option<Mirror>,
    },
}

impl Cluster {
    /// Reads a file's text. `env` answers what a variable holds.
    ///
    /// # Errors
    /// All that is wrong, as far as it can be seen at once.
    pub fn parse(text: &str, env: impl Fn(&str) -> Option<String>) -> Result<Self, Problems> {
        read::cluster(text, &env)
    }

    /// The servers, in the file's order: the first one starts the cluster.
    pub fn servers(&self) -> impl Iterator<Item = &HostSpec> {
        self.hosts.iter().filter(|h| h.role == Role::Server)
    }

    /// What is allowed but hardly meant.
    pub fn warnings(&self) -> Vec<String> {
        let servers = self.servers().count();
        // etcd works with a majority, n/2+1, and so bears the loss of (n-1)/2
        let bears = servers.saturating_sub(1) / 2;
        if servers > 0 && servers.is_multiple_of(2) {
            vec![format!("{servers} servers bear the loss of {bears}, no more than {} would; use an odd number", servers - 1)]
        } else {
            Vec::new()
        }
    }
}

impl HostSpec {
    /// Its address in the cluster's network, as far as the file says it.
    pub fn addr(&self) -> Option<IpAddr> {
        self.node_ip.or_else(|| self.host.addr())
    }
}

//! What the control side and `smartup node` say to each other: one JSON object a line, in both directions.
//!
//! The control side opens with a [`Job`]. For [`Job::Setup`] and [`Job::Upgrade`] this follows, and either side may end it at any time:
//!
//! ```text
//!   control                         node
//!   Job              →
//!                    ←              State       what the host is now
//!   Begin            →                          who starts the cluster is known once every server has said what it is
//!                    ←  events …    Surveyed    all checks passed; what would change. A plan ends here
//!   Go               →                          packages, files, firewall
//!   Ticket           →  events …                to those who join: the cluster and the wire are checked
//!   Start            →  events …                when it is their turn; k3s is started
//!                    ←              Voted       a server is a full member of etcd
//!                    ←              Joined      a server's API answers: with the tickets for the others
//!                    ←              Settled     etcd would take the next member
//!                    ←              Done, or at any point Failed
//! ```
//!
//! For [`Job::Doctor`]:
//!
//! ```text
//!   control                         node
//!   Job              →
//!                    ←              Examined    what the checks of the host found, and what it is to others
//!   Clock            →              Clock       several times: what its clock says
//!   Knock            →              Knocked     which ports of others let it in
//!                    ←              Done        at the end of the orders: until then its own doors stay open
//! ```
//!
//! For [`Job::Drill`], see [`crate::drill`].
//!
//! The end of the node's input means that the control side has gone: the step under way ends, and nothing new starts.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use cluster::{AdvertInterval, AuthPass, Interface, Port, Role, RouterId, Ticket, Version, Vip, Vrrp};
use node::{Error, Event, Kind};
use serde::{Deserialize, Serialize};

use crate::drill;
use crate::snapshot::SnapshotJob;

/// A secret on its way: Debug does not show it. It travels inside SSH, and over the pipes of `smartup node`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

/// To the node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum ToNode {
    /// What to do; always the first line.
    Job(Job),
    /// The host's place in the cluster is known.
    Begin(Begin),
    /// Make it so.
    Go {
        /// Say when etcd would take the next member: another server is waiting for it.
        settle: bool,
    },
    /// Nothing but a sign of life: a node whose control side says nothing for a minute takes it for gone.
    Here,
    /// The line that a new host joins with.
    Ticket {
        /// As `smartup ticket` prints it.
        ticket: Secret,
    },
    /// It is this host's turn to join.
    Start,
    /// A server is asked for the tickets of the cluster that it belongs to.
    Tickets,
    /// What does its clock say?
    Clock,
    /// Try whether these let it in, all at once.
    Knock {
        /// Which.
        at: Vec<Knock>,
    },
    /// Of a drill.
    Drill(drill::Order),
    /// End the step under way, start nothing new.
    Stop,
}

/// What a host is asked to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum Job {
    /// Be a server or an agent.
    Setup(Box<Setup>),
    /// Say how the cluster and this host are.
    Status,
    /// Undo what smartup did here.
    Reset {
        /// The packages that it installed too.
        packages: bool,
    },
    /// Hand out the administrator's kubeconfig.
    Kubeconfig,
    /// Look for what is wrong.
    Doctor(Box<Doctor>),
    /// Run another version of k3s.
    Upgrade(Box<Upgrade>),
    /// A server takes itself out of its cluster.
    Leave(Leave),
    /// A server takes another host, called by one of these names or addresses, out of the cluster.
    Remove {
        /// Names and addresses.
        called: Vec<String>,
        /// How.
        how: Leave,
    },
    /// Take part in a failover drill.
    Drill(drill::Job),
    /// Something about snapshots of etcd.
    Snapshot(SnapshotJob),
    /// A server brings the maintenance operator into its cluster.
    EnableUpdates(EnableUpdates),
    /// A server takes the maintenance operator out of its cluster.
    Disable {
        /// The manifest that brought it; None = the one on the server, or smartup's own.
        manifest: Option<String>,
        /// Nodes in the middle of an update are not waited for.
        now: bool,
    },
    /// Smart updates are disabled: let this host update itself again.
    Disabled {
        /// Stop k3s here too, and disable it at boot.
        k3s: bool,
    },
    /// Have the maintenance operator's image here.
    Image {
        /// What runs the containers, as the cluster's file says it; None = as this host was set up, or containerd.
        runtime: Option<cluster::Runtime>,
    },
}

/// How the maintenance operator comes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnableUpdates {
    /// The operator's manifest; None = the one on the server, or smartup's own.
    pub manifest: Option<String>,
    /// The `UpdateManager`; None = the one on the server, or an empty one.
    pub update_manager: Option<String>,
    /// How long it may take, in seconds.
    pub timeout_s: u64,
    /// Whether another server has begun with it, and was lost: the cluster gets time to be well again.
    pub goes_on: bool,
}

/// Which version of k3s shall run on a member of a cluster. The conversation is that of [`Job::Setup`], without tickets; k3s is
/// sent to a host only when it is its turn ([`FromNode::WantsK3s`]), so that one whose turn does not come is left as it was.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Upgrade {
    /// Only say what would change.
    pub plan: bool,
    /// Server or agent, as the cluster's file has it.
    pub role: Role,
    /// Where the new k3s comes from.
    pub k3s: K3s,
    /// Its version, as in `v1.31.2+k3s1`.
    pub version: String,
    /// How long to wait for the node to be ready, in seconds.
    pub timeout_s: u64,
}

/// How a host goes out of its cluster.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Leave {
    /// Evict pods that nothing brings back, and give up volumes on the host's disk.
    pub force: bool,
    /// How long the drain may take, in seconds.
    pub timeout_s: u64,
    /// Remove the packages that smartup installed too, where the host undoes what was done there.
    pub packages: bool,
}

/// What is looked for, and what the host is, or is to be, as the cluster's file says it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Doctor {
    /// Names of checks; empty = all.
    pub only: Vec<String>,
    /// Server or agent.
    pub role: Role,
    /// The floating address.
    pub vip: Vip,
    /// The API's port; None = the default.
    pub port: Option<Port>,
    /// Interface of the VIP and the pod network; None = the one whose subnet holds the VIP.
    pub interface: Option<Interface>,
    /// The node's own address; None = the interface's.
    pub node_ip: Option<IpAddr>,
    /// What the host's own doors answer, which nobody else knows; None = it opens none.
    pub password: Option<String>,
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of a host that others must reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Door {
    /// Its number.
    pub port: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = if self.transport == Transport::Tcp { "tcp" } else { "udp" };
        write!(f, "{}/{transport}", self.port)
    }
}

/// Where to try to be let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knock {
    /// Where.
    pub at: SocketAddr,
    /// TCP or UDP.
    pub transport: Transport,
    /// Whether a smartup answers there with the password; otherwise that a connection is taken is enough.
    pub smartup: bool,
}

/// What came of a [`Knock`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was let in.
    In,
    /// The host says that nobody listens there.
    Refused,
    /// A host on the way, or a firewall, says that it may not pass.
    Forbidden,
    /// Nobody says anything.
    Silence,
    /// Somebody answers, but it is not smartup.
    Stranger,
    /// This host could not even ask.
    Not(String),
}

/// What a host is to the others, and what its own checks found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Examined {
    /// The findings, in the form of whoever asked.
    pub findings: serde_json::Value,
    /// Its part in a cluster; None = none yet.
    pub member: Option<Member>,
    /// The floating address and the port of the API of its cluster.
    pub cluster: Option<(IpAddr, Port)>,
    /// Whether it has the VIP now.
    pub holds_vip: bool,
    /// Its own address; None = it has none in the VIP's subnet.
    pub address: Option<IpAddr>,
    /// Its address in the pod network; None = k3s has not made one.
    pub pod_network: Option<IpAddr>,
    /// Whether k3s runs here.
    pub runs: bool,
    /// The ports that smartup itself listens on, since k3s does not run.
    pub doors: Vec<Door>,
    /// Those of them that the host's own firewall does not let in yet.
    pub shut: Vec<Door>,
}

/// What a host shall be, as the cluster's file says it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// Only say what would change.
    pub plan: bool,
    /// Server or agent.
    pub role: Role,
    /// The floating address.
    pub vip: Vip,
    /// The API's port; None = as before, or the default.
    pub port: Option<Port>,
    /// The cluster's secret, for the first server; None = as before, or a new one.
    pub token: Option<Secret>,
    /// The VRRP password, which means version 2.
    pub auth_pass: Option<Secret>,
    /// The servers' addresses, where the network has no multicast.
    pub unicast: Vec<IpAddr>,
    /// Interface of the VIP and the pod network; None = the one whose subnet holds the VIP.
    pub interface: Option<Interface>,
    /// The node's own address; None = the interface's.
    pub node_ip: Option<IpAddr>,
    /// What runs the containers; None = as before, or containerd.
    pub runtime: Option<cluster::Runtime>,
    /// Where k3s comes from.
    pub k3s: K3s,
    /// Whether the firewall is smartup's to set.
    pub firewall: bool,
    /// More flags for k3s.
    pub k3s_args: Vec<String>,
    /// Checks that may fail.
    pub ignore: Vec<String>,
    /// How long to wait for the host to be ready, in seconds.
    pub timeout_s: u64,
}

/// Where k3s comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum K3s {
    /// It is on the host.
    Host,
    /// Sent by the control side if the host has another one.
    Sent {
        /// Where on the host it is put.
        path: PathBuf,
        /// Its SHA-256 in hexadecimal.
        sha256: String,
        /// Its size in bytes.
        size: u64,
    },
    /// Downloaded by the host.
    Release {
        /// As in `v1.31.2+k3s1`.
        version: String,
        /// None = k3s's own releases.
        mirror: Option<String>,
    },
}

/// The host's place in the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Begin {
    /// Whether it starts the cluster.
    pub first: bool,
    /// What the servers of the cluster agree on, if there is one already.
    pub vrrp: Option<VrrpWire>,
}

/// [`Vrrp`] on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrrpWire {
    router_id: RouterId,
    advert: AdvertInterval,
    auth_pass: Option<Secret>,
    unicast: Vec<IpAddr>,
}

impl VrrpWire {
    /// To be sent.
    pub fn of(vrrp: &Vrrp) -> Self {
        let auth_pass = match &vrrp.version {
            Version::V2(pass) => Some(Secret(pass.expose().to_owned())),
            Version::V3 => None,
        };
        Self { router_id: vrrp.router_id, advert: vrrp.advert, auth_pass, unicast: vrrp.unicast.clone() }
    }

    /// Whether two of them understand each other: all but the peers are the same.
    pub fn agrees_with(&self, other: &Self) -> bool {
        (self.router_id, self.advert, &self.auth_pass) == (other.router_id, other.advert, &other.auth_pass)
    }

    /// As it was.
    ///
    /// # Errors
    /// When the password cannot be one.
    pub fn vrrp(&self) -> Result<Vrrp, cluster::Invalid> {
        let version = match &self.auth_pass {
            Some(pass) => Version::V2(AuthPass::parse(&pass.0)?),
            None => Version::V3,
        };
        Ok(Vrrp { version, router_id: self.router_id, advert: self.advert, unicast: self.unicast.clone() })
    }
}

/// From the node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum FromNode {
    /// What the host is, before anything is done.
    State(State),
    /// In an upgrade, when it is its turn: the k3s is to be sent that its job names. The node goes on when it is there.
    WantsK3s,
    /// Something that happens.
    Event {
        /// What.
        event: Event,
    },
    /// The checks passed, and the steps were compared with the host.
    Surveyed(Survey),
    /// This server has its vote in etcd: its join cannot disturb others any more.
    Voted,
    /// This server's API answers; or, to [`ToNode::Tickets`], the answer.
    Joined(Tickets),
    /// It has none to give.
    NoTickets(Failure),
    /// Every voter of etcd has been healthy for as long as etcd asks before it takes another member.
    Settled,
    /// The host's own checks are made.
    Examined(Box<Examined>),
    /// To [`ToNode::Clock`].
    Clock {
        /// Milliseconds since 1970.
        unix_ms: i64,
    },
    /// To [`ToNode::Knock`], in its order.
    Knocked {
        /// What came of each.
        answers: Vec<Answer>,
    },
    /// Of a drill.
    Drill(drill::Said),
    /// The job is done.
    Done {
        /// Its result, in the job's own form.
        result: serde_json::Value,
    },
    /// The job failed.
    Failed(Failure),
}

/// What a host is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The name that its node has, or will have.
    pub name: String,
    /// Its part in a cluster; None = none yet.
    pub member: Option<Member>,
    /// Whether it has the VIP now.
    pub holds_vip: bool,
    /// Whether k3s must be sent first.
    pub wants_k3s: bool,
}

/// A host's part in a cluster, as its own disk tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Server or agent.
    pub role: Role,
    /// Whether it started the cluster.
    pub first: bool,
    /// The SHA-256 of the cluster's CA, which tells clusters apart; None when k3s has not run here yet.
    pub ca: Option<String>,
    /// What the servers agree on; None on an agent, or where it cannot be told.
    pub vrrp: Option<VrrpWire>,
}

/// What would change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// Steps that would change the host.
    pub changed: usize,
    /// Steps that find all as it should be.
    pub unchanged: usize,
    /// Whether it can go on only with a ticket.
    pub wants_ticket: bool,
    /// On a server whose API answers, the cluster's nodes.
    pub nodes: Vec<Node>,
}

/// A node of the cluster, as the API has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Server or agent.
    pub role: Role,
    /// Its own address.
    pub address: String,
}

/// What others join with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tickets {
    /// For servers.
    pub server: Secret,
    /// For agents.
    pub agent: Secret,
}

impl Tickets {
    /// The one for a role.
    pub fn for_role(&self, role: Role) -> &Secret {
        if role == Role::Server { &self.server } else { &self.agent }
    }

    /// From what `smartup ticket` makes.
    ///
    /// # Errors
    /// None in practice.
    pub fn of(server: &Ticket, agent: &Ticket) -> Result<Self, cluster::Invalid> {
        Ok(Self { server: Secret(server.expose()?), agent: Secret(agent.expose()?) })
    }
}

/// The result of [`Job::Kubeconfig`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kubeconfig {
    /// As k3s wrote it, for use on the host itself.
    pub text: Secret,
    /// The floating address.
    pub vip: Vip,
    /// The API's port.
    pub port: Port,
}

/// [`node::Error`] on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it means for the caller.
    pub kind: Kind,
    /// What failed and why.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

impl From<&Error> for Failure {
    fn from(e: &Error) -> Self {
        Self { kind: e.kind, what: e.chain(), hint: e.hint.clone() }
    }
}

impl From<Failure> for Error {
    fn from(f: Failure) -> Self {
        let e = match f.kind {
            Kind::Failed => Error::failed(f.what),
            Kind::Invalid => Error::invalid(f.what),
            Kind::Refused => Error::refused(f.what),
        };
        match f.hint {
            Some(hint) => e.hint(hint),
            None => e,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let tickets = Tickets { server: Secret("s3cret".into()), agent: Secret("s3cret".into()) };
        let vrrp = Vrrp::for_vip("10.0.0.10".parse().unwrap(), Some(AuthPass::parse("mypasswd").unwrap()), vec![]).unwrap();
        let shown = format!("{:?} {:?}", FromNode::Joined(tickets), VrrpWire::of(&vrrp));
        assert!(!shown.contains("s3cret") && !shown.contains("mypasswd"), "{shown}");
    }

    #[test]
    fn lines_come_back_as_they_went() {
        let event = FromNode::Event { event: Event::Warning { what: "w".into(), hint: None } };
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(line, r#"{"say":"event","event":{"event":"warning","what":"w"}}"#);
        for line in [
            r#"{"say":"go","settle":true}"#,
            r#"{"say":"job","job":"reset","packages":true}"#,
            r#"{"say":"knock","at":[{"at":"[fd00::11]:8472","transport":"udp","smartup":true}]}"#,
        ] {
            let back: ToNode = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_string(&back).unwrap(), line);
        }
    }
}

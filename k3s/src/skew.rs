//! Which versions go together, and how they may change. Pure.
//!
//! Kubernetes' version skew policy (kubernetes.io/releases/version-skew-policy): the API servers are within one minor version of
//! each other; a kubelet is never newer than they are, and at most three minor versions older (two before 1.25). k3s
//! (docs.k3s.io/upgrades/manual): servers first, one at a time, then agents, and no minor version is left out.

use std::fmt;
use std::str::FromStr;

use cluster::Role;
use node::{Error, Result};

use crate::NodeInfo;

/// A version of k3s that can be compared with others: `v1.31.2+k3s1`, `v1.31.2-rc1+k3s1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u64,
    minor: u64,
    patch: u64,
    stage: Stage,
    /// k3s's own revision, after the plus.
    revision: Vec<Piece>,
    revision_stage: Stage,
    text: String,
}

/// What stands after a dash comes before the release itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Before(Vec<Piece>),
    Released,
}

/// Digits count as a number: `k3s10` comes after `k3s2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    Number(u64),
    Text(String),
}

fn pieces(text: &str) -> Option<Vec<Piece>> {
    let mut rest = text;
    let mut found = Vec::new();
    while let Some(first) = rest.chars().next() {
        let digits = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (piece, more) = rest.split_at(end);
        found.push(if digits { Piece::Number(piece.parse().ok()?) } else { Piece::Text(piece.to_owned()) });
        rest = more;
    }
    Some(found)
}

fn staged(text: &str) -> Option<(&str, Stage)> {
    match text.split_once('-') {
        Some((before, stage)) => Some((before, Stage::Before(pieces(stage)?))),
        None => Some((text, Stage::Released)),
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let number = text.strip_prefix('v')?;
        let (core, revision) = number.split_once('+').unwrap_or((number, ""));
        let (core, stage) = staged(core)?;
        let (revision, revision_stage) = staged(revision)?;
        let mut numbers = core.split('.').map(|n| n.parse::<u64>().ok());
        let (major, minor, patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let version = Self { major, minor, patch, stage, revision: pieces(revision)?, revision_stage, text: text.to_owned() };
        numbers.next().is_none().then_some(version)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Version {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text).ok_or_else(|| Error::invalid(format!("'{text}' is not a version of k3s that can be compared with others")))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A node, and the k3s that it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Server or agent.
    pub role: Role,
    /// What it runs.
    pub version: Version,
}

impl TryFrom<&NodeInfo> for Running {
    type Error = Error;
    fn try_from(node: &NodeInfo) -> Result<Self> {
        let version = node.version.parse();
        let version = version.map_err(|e: Error| Error::failed(format!("node {} does not say what it runs: {}", node.name, e.what)))?;
        Ok(Self { name: node.name.clone(), role: node.role, version })
    }
}

/// The rules of every node.
fn forward(name: &str, now: &Version, to: &Version) -> Result<()> {
    if to < now {
        return Err(Error::refused(format!("{name} runs k3s {now}, and {to} is older: k3s does not go back"))
            .hint("give a version that is not older; a whole cluster goes back with a snapshot of etcd of that time"));
    }
    if to.major != now.major {
        return Err(Error::refused(format!("{name} runs k3s {now}, and {to} is of another major version")));
    }
    Ok(())
}

/// Whether the server `name` may change to `to` now, with the cluster's nodes as they are, itself among them.
///
/// # Errors
/// Refused, with the rule and the versions.
pub fn may_change_server(name: &str, to: &Version, nodes: &[Running]) -> Result<()> {
    for node in nodes {
        if node.name == name {
            forward(name, &node.version, to)?;
        }
        let (n, is) = (&node.name, &node.version);
        match node.role {
            Role::Server if to.minor > is.minor + 1 => {
                let next = format!("v{}.{}", is.major, is.minor + 1);
                return Err(Error::refused(format!("{n} runs k3s {is}, and {to} leaves out a minor version: servers go one at a time"))
                    .hint(format!("upgrade all servers to a {next} first")));
            }
            Role::Server if is.minor > to.minor + 1 => {
                return Err(Error::refused(format!(
                    "{n} runs k3s {is}: with {to} on {name}, servers would be more than one minor version apart"
                )));
            }
            Role::Agent if to.minor > is.minor + oldest_kubelet(is) => {
                return Err(Error::refused(format!(
                    "{n} runs k3s {is}: a server with {to} bears no agent that is more than {} minor versions older",
                    oldest_kubelet(is)
                ))
                .hint(format!("upgrade {n} to the servers' version first: on it, smartup upgrade --k3s VERSION")));
            }
            Role::Server | Role::Agent => {}
        }
    }
    Ok(())
}

/// By how many minor versions a kubelet may be older than an API server.
fn oldest_kubelet(kubelet: &Version) -> u64 {
    if kubelet.minor < 25 { 2 } else { 3 }
}

/// Whether the agent `name` may change from `now` to `to`, with a server that runs `server`; None = its servers change before it.
///
/// # Errors
/// Refused, with the rule and the versions.
pub fn may_change_agent(name: &str, now: &Version, to: &Version, server: Option<&Version>) -> Result<()> {
    forward(name, now, to)?;
    match server {
        Some(server) if server < to => {
            Err(Error::refused(format!("the servers run k3s {server}: with {to}, {name} would be newer than they are"))
                .hint("upgrade the servers first; smartup upgrade -f FILE has the right order"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn node(name: &str, role: Role, version: &str) -> Running {
        Running { name: name.into(), role, version: v(version) }
    }

    #[test]
    fn versions_in_their_order() {
        let sorted = [
            "v1.9.9",
            "v1.30.2-rc2+k3s1",
            "v1.30.2-rc10+k3s1",
            "v1.30.2+k3s1-rc1",
            "v1.30.2+k3s1",
            "v1.30.2+k3s2",
            "v1.30.2+k3s10",
            "v1.30.10+k3s1",
            "v2.0.0",
        ];
        for pair in sorted.windows(2) {
            assert!(v(pair[0]) < v(pair[1]), "{pair:?}");
        }
        for bad in ["", "1.30.2", "v1.30", "v1.30.2.1", "v1.x.2", "v1.99999999999999999999.1"] {
            assert_eq!(bad.parse::<Version>().unwrap_err().kind, node::Kind::Invalid, "{bad}");
        }
    }

    #[test]
    fn what_is_refused_says_the_rule() {
        let nodes =
            [node("h1", Role::Server, "v1.30.2+k3s1"), node("h2", Role::Server, "v1.29.9+k3s1"), node("h4", Role::Agent, "v1.27.1+k3s1")];
        let said = |name: &str, to: &str| {
            let e = may_change_server(name, &v(to), &nodes).unwrap_err();
            assert_eq!(e.kind, node::Kind::Refused);
            e.what
        };
        insta::assert_snapshot!(said("h1", "v1.30.1+k3s1"), @"h1 runs k3s v1.30.2+k3s1, and v1.30.1+k3s1 is older: k3s does not go back");
        insta::assert_snapshot!(said("h1", "v1.31.0+k3s1"), @"h2 runs k3s v1.29.9+k3s1, and v1.31.0+k3s1 leaves out a minor version: servers go one at a time");
        may_change_server("h1", &v("v1.30.3+k3s1"), &nodes).unwrap();
        may_change_server("h2", &v("v1.30.3+k3s1"), &nodes).unwrap();
        let old = [node("h1", Role::Server, "v1.22.2+k3s1"), node("h4", Role::Agent, "v1.20.1+k3s1")];
        let e = may_change_server("h1", &v("v1.23.0+k3s1"), &old).unwrap_err();
        insta::assert_snapshot!(e.what, @"h4 runs k3s v1.20.1+k3s1: a server with v1.23.0+k3s1 bears no agent that is more than 2 minor versions older");
        let e = may_change_agent("h4", &v("v1.29.0+k3s1"), &v("v1.30.0+k3s1"), Some(&v("v1.29.9+k3s1"))).unwrap_err();
        insta::assert_snapshot!(e.what, @"the servers run k3s v1.29.9+k3s1: with v1.30.0+k3s1, h4 would be newer than they are");
        may_change_agent("h4", &v("v1.27.0+k3s1"), &v("v1.30.0+k3s1"), Some(&v("v1.30.0+k3s1"))).unwrap();
        assert!(may_change_agent("h4", &v("v1.29.0+k3s2"), &v("v1.29.0+k3s1"), None).is_err());
    }

    /// The policy itself.
    fn fits(nodes: &[Running]) -> bool {
        let servers: Vec<&Version> = nodes.iter().filter(|n| n.role == Role::Server).map(|n| &n.version).collect();
        let (Some(oldest), Some(newest)) = (servers.iter().min(), servers.iter().max()) else { return true };
        newest.minor - oldest.minor <= 1
            && nodes
                .iter()
                .filter(|n| n.role == Role::Agent)
                .all(|n| n.version <= **oldest && newest.minor - n.version.minor <= oldest_kubelet(&n.version))
    }

    fn version(minor: u64, (patch, k3s): (u64, u64)) -> Version {
        v(&format!("v1.{minor}.{patch}+k3s{k3s}"))
    }

    fn small() -> impl Strategy<Value = (u64, u64)> {
        (0_u64..3, 1_u64..3)
    }

    fn cluster(servers: usize, versions: Vec<Version>) -> Vec<Running> {
        let role = |n| if n < servers { Role::Server } else { Role::Agent };
        versions.into_iter().enumerate().map(|(n, version)| Running { name: format!("h{n}"), role: role(n), version }).collect()
    }

    proptest! {
        /// From a cluster that fits, no sequence of changes that are allowed leads to one that does not, and nothing ever goes back.
        #[test]
        fn what_is_allowed_fits(
            servers in 1_usize..4,
            base in 20_u64..30,
            newer in prop::collection::vec(0_u64..2, 3),
            changes in prop::collection::vec((0_usize..6, 0_u64..5, small()), 1..80),
        ) {
            let minor = |n: usize| base + if n < servers { newer[n] } else { 0 };
            let mut nodes = cluster(servers, (0..6).map(|n| version(minor(n), (1, 1))).collect());
            prop_assert!(fits(&nodes));
            for (n, up, rest) in changes {
                let (name, now) = (nodes[n].name.clone(), nodes[n].version.clone());
                let to = version(now.minor + up - 1, rest);
                let oldest = nodes[..servers].iter().map(|n| &n.version).min().unwrap();
                let may = match nodes[n].role {
                    Role::Server => may_change_server(&name, &to, &nodes),
                    Role::Agent => may_change_agent(&name, &now, &to, Some(oldest)),
                };
                if may.is_ok() {
                    prop_assert!(to >= now);
                    nodes[n].version = to;
                    prop_assert!(fits(&nodes), "{:?}", nodes);
                }
            }
        }

        /// The order of a roll-out (all servers, then all agents) is never refused half-way if its first server was not refused.
        #[test]
        fn what_began_ends(servers in 1_usize..4, agents in 0_usize..3, minor in 20_u64..30, up in 0_u64..2, from in small(), to in small()) {
            let (from, to) = (version(minor, from), version(minor + up, to));
            let mut nodes = cluster(servers, vec![from.clone(); servers + agents]);
            prop_assert_eq!(may_change_server("h0", &to, &nodes).is_ok(), to >= from);
            if to >= from {
                for n in 0..nodes.len() {
                    let may = match nodes[n].role {
                        Role::Server => may_change_server(&nodes[n].name, &to, &nodes),
                        Role::Agent => may_change_agent(&nodes[n].name, &from, &to, Some(&to)),
                    };
                    prop_assert!(may.is_ok());
                    nodes[n].version = to.clone();
                    prop_assert!(fits(&nodes));
                }
            }
        }
    }
}

use std::fmt;
use std::str::FromStr;

use cluster::{Interface, Port, Role};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// flannel's VXLAN between all nodes (k3s, "Networking requirements").
const VXLAN: u16 = 8472;
/// etcd's clients and peers, between servers.
const ETCD: (u16, u16) = (2379, 2380);
/// The kubelet of every node: metrics, logs, exec.
const KUBELET: u16 = 10250;

/// What a host needs to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The host's role.
    pub role: Role,
    /// The API's port.
    pub port: Port,
    /// The interface that the other nodes are reached through.
    pub interface: Interface,
    /// The networks of pods and services, which may reach everything on a node.
    pub trusted: Vec<IpNet>,
}

impl Rules {
    /// The rules, each once: the reference's table (7.4.1, step 2), the kubelet's port, and the trusted networks.
    pub fn required(&self) -> Vec<Rule> {
        let port = |first, last, protocol| Rule::Port { ports: Ports { first, last }, protocol };
        let api = self.port.get();
        let mut rules = match self.role {
            Role::Server => vec![
                Rule::Vrrp,
                port(api, api, Protocol::Tcp),
                port(ETCD.0, ETCD.1, Protocol::Tcp),
                port(KUBELET, KUBELET, Protocol::Tcp),
                port(VXLAN, VXLAN, Protocol::Udp),
            ],
            Role::Agent => vec![port(KUBELET, KUBELET, Protocol::Tcp), port(VXLAN, VXLAN, Protocol::Udp)],
        };
        rules.extend(self.trusted.iter().map(|net| Rule::Source { net: net.trunc() }));
        rules
    }

    /// The rules in a few words, for a hint.
    pub(crate) fn listed(&self) -> String {
        self.required().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// One thing to let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A port, or several in a row.
    Port {
        /// Which.
        ports: Ports,
        /// TCP or UDP.
        protocol: Protocol,
    },
    /// The IP protocol 112, for the adverts of other servers.
    Vrrp,
    /// Everything from a network: it goes into the zone `trusted`.
    Source {
        /// The network, without host bits.
        net: IpNet,
    },
}

impl Rule {
    /// VRRP in firewalld's language for rich rules, as firewalld itself writes it.
    pub(crate) const VRRP: &'static str = "rule protocol value=\"vrrp\" accept";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Port { ports, protocol } => write!(f, "{ports}/{protocol}"),
            Rule::Vrrp => f.write_str("VRRP"),
            Rule::Source { net } => write!(f, "all from {net}"),
        }
    }
}

/// A port, or several in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last; equal to the first when it is one.
    pub last: u16,
}

impl Ports {
    /// A single port.
    pub fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// Whether all of `other` is among them.
    pub fn cover(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for Ports {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let number = |n: &str| n.trim().parse::<u16>().map_err(|_| format!("'{s}' is no port or range of ports"));
        let (first, last) = s.split_once('-').unwrap_or((s, s));
        let ports = Self { first: number(first)?, last: number(last)? };
        if ports.first > ports.last { Err(format!("'{s}' ends before it begins")) } else { Ok(ports) }
    }
}

impl TryFrom<String> for Ports {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<Ports> for String {
    fn from(p: Ports) -> Self {
        p.to_string()
    }
}

/// What a port belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As firewalld spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn rules(role: Role) -> Rules {
        Rules {
            role,
            port: Port::API,
            interface: "eth0".parse().unwrap(),
            trusted: vec!["10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()],
        }
    }

    #[test]
    fn each_role_gets_what_the_reference_lists() {
        assert_eq!(
            rules(Role::Server).listed(),
            "VRRP, 9443/tcp, 2379-2380/tcp, 10250/tcp, 8472/udp, all from 10.42.0.0/16, all from 10.43.0.0/16"
        );
        assert_eq!(rules(Role::Agent).listed(), "10250/tcp, 8472/udp, all from 10.42.0.0/16, all from 10.43.0.0/16");
    }

    #[test]
    fn ports_are_read_as_firewalld_writes_them() {
        assert_eq!("2379-2380".parse::<Ports>().unwrap(), Ports { first: 2379, last: 2380 });
        assert_eq!("22".parse::<Ports>().unwrap(), Ports::one(22));
        for bad in ["", "x", "2-1", "1-2-3", "70000", "-1"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_journal_reads_back_what_it_wrote() {
        for rule in rules(Role::Server).required() {
            let text = serde_json::to_string(&rule).unwrap();
            assert_eq!(serde_json::from_str::<Rule>(&text).unwrap(), rule, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_range_covers_what_lies_inside(a: u16, b: u16, c: u16) {
            let [first, middle, last] = { let mut s = [a, b, c]; s.sort_unstable(); s };
            let all = Ports { first, last };
            assert!(all.cover(Ports::one(middle)) && all.cover(all));
            assert_eq!(Ports::one(middle).cover(all), first == last);
            assert_eq!(all.to_string().parse::<Ports>().unwrap(), all);
        }
    }
}

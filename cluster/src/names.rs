use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Invalid;

macro_rules! string_serde {
    ($t:ty) => {
        impl TryFrom<String> for $t {
            type Error = Invalid;
            fn try_from(s: String) -> Result<Self, Invalid> {
                s.parse()
            }
        }
        impl From<$t> for String {
            fn from(v: $t) -> Self {
                v.to_string()
            }
        }
    };
}
pub(crate) use string_serde;

/// The name of a network interface: 1 to 15 bytes, no white space, no `/`, not `.` or `..`
/// (the kernel's `dev_valid_name`), and no `:` or `"`, which keepalived and labels would take apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Interface(String);

/// How the names of interfaces begin that containers, virtual machines and tunnels bring along.
const NOT_THE_HOSTS: [&str; 19] = [
    "lo",
    "cni",
    "flannel",
    "veth",
    "docker",
    "br-",
    "virbr",
    "vnet",
    "tun",
    "tap",
    "wg",
    "kube-",
    "cali",
    "lxc",
    "lxd",
    "cilium",
    "podman",
    "nodelocal",
    "tailscale",
];

impl Interface {
    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name says that it belongs to containers or a tunnel: no VIP goes there by default.
    pub fn is_container_or_tunnel(&self) -> bool {
        NOT_THE_HOSTS.iter().any(|p| self.0.starts_with(p))
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Interface {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |why: &str| Err(Invalid::new("interface", s, why));
        if s.is_empty() || s.len() > 15 {
            return bad("must have 1 to 15 characters");
        }
        if s == "." || s == ".." || s.chars().any(|c| c.is_whitespace() || c.is_control() || "/:\"'\\{}!#$".contains(c)) {
            return bad("is not a name that an interface can have");
        }
        Ok(Self(s.to_owned()))
    }
}

string_serde!(Interface);

/// A TCP port, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Port(NonZeroU16);

impl Port {
    /// The API's port in the reference (7.4.1: 9443); upstream's is 6443.
    pub const API: Port = Port(NonZeroU16::new(9443).unwrap());

    /// The number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Port {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        s.parse().map(Self).map_err(|_| Invalid::new("port", s, "is not a number from 1 to 65535"))
    }
}

/// A host's name as Kubernetes takes it for a node: a DNS subdomain (RFC 1123) of at most 253 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hostname(String);

impl Hostname {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Hostname {
    type Err = Invalid;
    /// k3s lowers the case of a host's name, so that is done here too.
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let name = s.to_ascii_lowercase();
        let bad = |why: &str| Err(Invalid::new("hostname", s, why));
        if name == "localhost" || name.starts_with("localhost.") {
            return bad("would be the same on every host");
        }
        let label = |l: &str| {
            !l.is_empty()
                && l.len() <= 63
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return bad("is not a DNS name (letters, digits, '-' and '.'), and so cannot be a node's name");
        }
        Ok(Self(name))
    }
}

string_serde!(Hostname);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces() {
        for ok in ["eth0", "enp1s0f0np0", "bond0.100", "br0", "ens192"] {
            assert!(!ok.parse::<Interface>().unwrap().is_container_or_tunnel(), "{ok}");
        }
        for other in ["cni0", "flannel.1", "veth1234", "docker0", "br-0123456789ab", "tun0", "wg0", "lo"] {
            assert!(other.parse::<Interface>().unwrap().is_container_or_tunnel(), "{other}");
        }
        for bad in ["", "a/b", "sixteen-chars-xx", "a b", "..", "a\nb", "a:b", "${I}"] {
            assert!(bad.parse::<Interface>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports() {
        assert_eq!("9443".parse::<Port>().unwrap(), Port::API);
        for bad in ["0", "65536", "-1", "", "x"] {
            assert!(bad.parse::<Port>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hostnames() {
        assert_eq!("Node1.Example.local".parse::<Hostname>().unwrap().as_str(), "node1.example.local");
        for bad in ["localhost", "localhost.localdomain", "", "a_b", "-a", "a..b", "ä"] {
            assert!(bad.parse::<Hostname>().is_err(), "{bad}");
        }
    }
}

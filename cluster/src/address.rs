use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Invalid, Port};

/// The floating address of the cluster's API, with or without a prefix length.
///
/// Without one, the prefix of the interface's own subnet is used: keepalived would make it a /32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Vip {
    addr: IpAddr,
    prefix: Option<u8>,
}

/// An address of an interface together with its subnet.
pub type Subnet = IpNet;

impl Vip {
    /// The address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The prefix length that the user gave.
    pub fn prefix(&self) -> Option<u8> {
        self.prefix
    }

    /// The address as it stands in a URL: IPv6 in brackets.
    fn url_host(&self) -> String {
        match self.addr {
            IpAddr::V4(a) => a.to_string(),
            IpAddr::V6(a) => format!("[{a}]"),
        }
    }

    /// Where the API is reached through it.
    pub fn api_url(&self, port: Port) -> String {
        format!("https://{}:{port}", self.url_host())
    }

    /// Puts the VIP into the subnet of `own`, an address of the interface, and answers the address with its prefix.
    ///
    /// # Errors
    /// When it lies outside, is the node's own address, or is the subnet's network or broadcast address.
    pub fn place(&self, own: &Subnet) -> Result<IpNet, Invalid> {
        let subnet = own.trunc();
        if !subnet.contains(&self.addr) {
            return Err(Invalid::new("VIP", self.addr, format!("lies outside {subnet}, the subnet of the interface")));
        }
        if self.addr == own.addr() {
            return Err(Invalid::new("VIP", self.addr, "is this node's own address; it must be a free address"));
        }
        if let IpNet::V4(net) = subnet
            && net.prefix_len() < 31
            && (self.addr == IpAddr::V4(net.network()) || self.addr == IpAddr::V4(net.broadcast()))
        {
            return Err(Invalid::new("VIP", self.addr, format!("is the network or broadcast address of {subnet}")));
        }
        if let IpNet::V6(net) = subnet
            && net.prefix_len() < 127
            && self.addr == IpAddr::V6(net.network())
        {
            return Err(Invalid::new("VIP", self.addr, format!("is the subnet-router anycast address of {subnet} (RFC 4291, 2.6.1)")));
        }
        let prefix = self.prefix.unwrap_or_else(|| own.prefix_len());
        IpNet::new(self.addr, prefix).map_err(|e| Invalid::new("VIP", self, e.to_string()))
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix {
            Some(p) => write!(f, "{}/{p}", self.addr),
            None => write!(f, "{}", self.addr),
        }
    }
}

impl FromStr for Vip {
    type Err = Invalid;

    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |why: &str| Invalid::new("VIP", s, why);
        let (addr, prefix) = match s.split_once('/') {
            Some((a, p)) => (a, Some(p)),
            None => (s, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| bad("is not an IPv4 or IPv6 address; write for example 10.0.0.10 or 10.0.0.10/24"))?;
        let bits = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => None,
            Some(p) => match p.parse::<u8>() {
                Ok(n) if (1..=bits).contains(&n) => Some(n),
                _ => return Err(bad(&format!("has a prefix length that is not between 1 and {bits}"))),
            },
        };
        let why = match addr {
            _ if addr.is_unspecified() => "is the unspecified address",
            _ if addr.is_loopback() => "is a loopback address",
            _ if addr.is_multicast() => "is a multicast address",
            IpAddr::V4(a) if a == Ipv4Addr::BROADCAST => "is the broadcast address",
            IpAddr::V4(a) if a.is_link_local() => "is a link-local address",
            IpAddr::V6(a) if a.is_unicast_link_local() => "is a link-local address",
            IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => "is an IPv4-mapped address; write the IPv4 address",
            _ => return Ok(Self { addr, prefix }),
        };
        Err(bad(why))
    }
}

impl TryFrom<String> for Vip {
    type Error = Invalid;
    fn try_from(s: String) -> Result<Self, Invalid> {
        s.parse()
    }
}

impl From<Vip> for String {
    fn from(v: Vip) -> Self {
        v.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vip(s: &str) -> Vip {
        s.parse().unwrap()
    }

    #[test]
    fn takes_the_prefix_of_the_subnet_unless_given() {
        let own = "10.0.0.11/24".parse().unwrap();
        assert_eq!(vip("10.0.0.10").place(&own).unwrap().to_string(), "10.0.0.10/24");
        assert_eq!(vip("10.0.0.10/32").place(&own).unwrap().to_string(), "10.0.0.10/32");
        assert_eq!(vip("fd00::10").place(&"fd00::11/64".parse().unwrap()).unwrap().to_string(), "fd00::10/64");
    }

    #[test]
    fn refuses_what_cannot_float() {
        let own = "10.0.0.11/24".parse().unwrap();
        for (v, why) in [
            ("10.0.1.10", "outside"),
            ("10.0.0.11", "own address"),
            ("10.0.0.0", "network or broadcast"),
            ("10.0.0.255", "network or broadcast"),
            ("fd00::10", "outside"),
        ] {
            let e = vip(v).place(&own).unwrap_err().to_string();
            assert!(e.contains(why), "{v}: {e}");
        }
        let e = vip("fd00::").place(&"fd00::11/64".parse().unwrap()).unwrap_err().to_string();
        assert!(e.contains("anycast"), "{e}");
    }

    #[test]
    fn refuses_nonsense() {
        for s in [
            "",
            "10.0.0",
            "10.0.0.10/33",
            "10.0.0.10/0",
            "10.0.0.10/",
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.18",
            "169.254.1.1",
            "fe80::1",
            "::1",
            "::",
            "::ffff:10.0.0.1",
            "node1",
            "10.0.0.10 ",
            "255.255.255.255",
        ] {
            assert!(s.parse::<Vip>().is_err(), "{s}");
        }
    }

    #[test]
    fn stands_in_a_url() {
        assert_eq!(vip("fd00::10/64").url_host(), "[fd00::10]");
        assert_eq!(vip("10.0.0.10/24").url_host(), "10.0.0.10");
        assert_eq!(vip("fd00::10/64").api_url(Port::API), "https://[fd00::10]:9443");
    }

    proptest::proptest! {
        #[test]
        fn placed_means_inside_and_not_own(vip: u32, own: u32, prefix in 8u8..=30) {
            let own: Subnet = IpNet::new(IpAddr::V4(own.into()), prefix).unwrap();
            let vip = Vip { addr: IpAddr::V4(vip.into()), prefix: None };
            if let Ok(placed) = vip.place(&own) {
                assert!(own.contains(&placed.addr()));
                assert_ne!(placed.addr(), own.addr());
                assert_ne!(placed.addr(), own.network());
                assert_ne!(placed.addr(), own.broadcast());
            }
        }
    }
}

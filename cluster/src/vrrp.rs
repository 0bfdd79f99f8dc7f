use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{AuthPass, Invalid};

/// The virtual router id, 1 to 255: what tells VRRP routers on one segment apart (RFC 5798, 5.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct RouterId(u8);

impl RouterId {
    /// Derived from the VIP, so that every host comes to the same one: the last byte of an IPv4 address (two clusters in
    /// one /24 differ), or a byte of the hash of an IPv6 address.
    pub fn for_vip(vip: IpAddr) -> Self {
        let byte = match vip {
            IpAddr::V4(a) if a.octets()[3] != 0 => a.octets()[3],
            IpAddr::V4(a) => hash_byte(&a.octets()),
            IpAddr::V6(a) => hash_byte(&a.octets()),
        };
        Self(byte)
    }

    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
}

fn hash_byte(bytes: &[u8]) -> u8 {
    Sha256::digest(bytes).iter().copied().find(|b| *b != 0).unwrap_or(1)
}

impl TryFrom<u8> for RouterId {
    type Error = Invalid;
    fn try_from(n: u8) -> Result<Self, Invalid> {
        if n == 0 { Err(Invalid::new("router id", n, "is not between 1 and 255")) } else { Ok(Self(n)) }
    }
}

impl From<RouterId> for u8 {
    fn from(r: RouterId) -> Self {
        r.0
    }
}

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A server's VRRP priority, 1 to 254 (255 is for who owns the address, which nobody does).
///
/// It only settles who wins when several servers start at the same moment: nobody takes the VIP from a healthy holder.
/// Derived from the host part of the node's address, so servers of one /24 differ without asking each other;
/// equal ones are settled by the higher address (RFC 5798, 6.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Priority(u8);

impl Priority {
    /// The priority of the server with this address.
    pub fn for_node(addr: IpAddr) -> Self {
        let host = match addr {
            IpAddr::V4(a) => u16::from_be_bytes([a.octets()[2], a.octets()[3]]),
            IpAddr::V6(a) => a.segments()[7],
        };
        let [_, low] = (host % 254 + 1).to_be_bytes();
        Self(low)
    }

    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
}

/// The time between two adverts, in hundredths of a second (VRRPv3's unit, RFC 5798, 5.2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct AdvertInterval(u16);

impl AdvertInterval {
    /// 0.1 s: a power cut is taken over in 0.4 s (measured; three intervals and the skew).
    pub const FAST: Self = Self(10);
    /// 1 s, the least that VRRPv2 can say.
    pub const SECOND: Self = Self(100);

    /// Hundredths of a second.
    pub fn centiseconds(self) -> u16 {
        self.0
    }

    /// As a duration.
    pub fn duration(self) -> Duration {
        Duration::from_millis(u64::from(self.0) * 10)
    }
}

impl TryFrom<u16> for AdvertInterval {
    type Error = Invalid;
    fn try_from(n: u16) -> Result<Self, Invalid> {
        if (1..=4095).contains(&n) {
            Ok(Self(n))
        } else {
            Err(Invalid::new("advert interval", n, "is not between 1 and 4095 hundredths of a second"))
        }
    }
}

impl From<AdvertInterval> for u16 {
    fn from(a: AdvertInterval) -> Self {
        a.0
    }
}

impl fmt::Display for AdvertInterval {
    /// In seconds, as keepalived's `advert_int` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(100) {
            write!(f, "{}", self.0 / 100)
        } else {
            write!(f, "{}", format!("{}.{:02}", self.0 / 100, self.0 % 100).trim_end_matches('0'))
        }
    }
}

/// The protocol's version; mixing two is a split brain.
#[derive(Debug, Clone)]
pub enum Version {
    /// With a password in clear, adverts each second: as the reference has it.
    V2(AuthPass),
    /// Without a password, adverts down to hundredths of a second.
    V3,
}

impl Version {
    /// 2 or 3, as it stands in a packet.
    pub fn number(&self) -> u8 {
        match self {
            Version::V2(_) => 2,
            Version::V3 => 3,
        }
    }
}

/// What all servers must agree on.
#[derive(Debug, Clone)]
pub struct Vrrp {
    /// Version 2 with its password, or 3.
    pub version: Version,
    /// The virtual router's id.
    pub router_id: RouterId,
    /// Time between adverts.
    pub advert: AdvertInterval,
    /// The servers' addresses where the network has no multicast; empty = multicast.
    pub unicast: Vec<IpAddr>,
}

impl Vrrp {
    /// The settings for a VIP: version 2 only where a password is given.
    ///
    /// # Errors
    /// VRRPv2 for IPv6 does not exist (RFC 3768 is IPv4 only).
    pub fn for_vip(vip: IpAddr, auth: Option<AuthPass>, unicast: Vec<IpAddr>) -> Result<Self, Invalid> {
        let (version, advert) = match auth {
            Some(_) if vip.is_ipv6() => return Err(Invalid::secret("VRRP password", "VRRP version 2, which has passwords, knows no IPv6")),
            Some(pass) => (Version::V2(pass), AdvertInterval::SECOND),
            None => (Version::V3, AdvertInterval::FAST),
        };
        if let Some(other) = unicast.iter().find(|a| a.is_ipv4() != vip.is_ipv4()) {
            return Err(Invalid::new("unicast peer", other, "is not of the VIP's address family"));
        }
        Ok(Self { version, router_id: RouterId::for_vip(vip), advert, unicast })
    }

    /// Whether a router with these settings and one with `other` understand each other: all but the peers are the same.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let same_version = match (&self.version, &other.version) {
            (Version::V2(a), Version::V2(b)) => a.expose() == b.expose(),
            (Version::V3, Version::V3) => true,
            _ => false,
        };
        same_version && self.router_id == other.router_id && self.advert == other.advert
    }

    /// How long a backup waits for adverts before it takes over: three intervals and the skew (RFC 5798, 6.1).
    pub fn master_down(&self, priority: Priority) -> Duration {
        let skew = self.advert.duration() * u32::from(256 - u16::from(priority.get())) / 256;
        self.advert.duration() * 3 + skew
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_from_addresses() {
        assert_eq!(RouterId::for_vip("10.0.0.10".parse().unwrap()).get(), 10);
        assert_ne!(RouterId::for_vip("10.0.1.0".parse().unwrap()).get(), 0);
        assert_eq!(RouterId::for_vip("fd00::10".parse().unwrap()), RouterId::for_vip("fd00::10".parse().unwrap()));
        let p = |s: &str| Priority::for_node(s.parse().unwrap()).get();
        assert!(p("10.0.0.11") != p("10.0.0.12") && p("10.0.0.11") != p("10.0.0.13"));
    }

    #[test]
    fn says_the_interval_as_keepalived_does() {
        for (n, s) in [(10, "0.1"), (20, "0.2"), (5, "0.05"), (100, "1"), (125, "1.25"), (4095, "40.95")] {
            assert_eq!(AdvertInterval::try_from(n).unwrap().to_string(), s);
        }
    }

    #[test]
    fn a_password_means_version_2() {
        let v = Vrrp::for_vip("10.0.0.10".parse().unwrap(), Some(AuthPass::parse("mypasswd").unwrap()), vec![]).unwrap();
        assert_eq!((v.version.number(), v.advert), (2, AdvertInterval::SECOND));
        assert!(Vrrp::for_vip("fd00::10".parse().unwrap(), Some(AuthPass::parse("x").unwrap()), vec![]).is_err());
        let v = Vrrp::for_vip("10.0.0.10".parse().unwrap(), None, vec![]).unwrap();
        assert_eq!(v.master_down(Priority(254)), Duration::from_micros(300_781) + Duration::from_nanos(250));
    }

    proptest::proptest! {
        #[test]
        fn priorities_and_ids_are_in_range(a: u32, b: u128) {
            for ip in [IpAddr::V4(a.into()), IpAddr::V6(b.into())] {
                assert!((1..=254).contains(&Priority::for_node(ip).get()));
                assert_ne!(RouterId::for_vip(ip).get(), 0);
            }
        }
    }
}

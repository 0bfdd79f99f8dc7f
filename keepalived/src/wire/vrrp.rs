//! VRRP version 2 (RFC 3768) and 3 (RFC 5798) adverts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{internet, pseudo_header};
use super::ip::on_link;

/// IP's number for VRRP.
pub(super) const PROTOCOL: u8 = 112;

const ADVERTISEMENT: u8 = 1;
/// Authentication by a password in clear (RFC 2338, 5.3.6.2; RFC 3768 took it away, keepalived kept it).
const PASSWORD: u8 = 1;

/// What a router announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    /// Where it came from; for IPv6 mostly a link-local address.
    pub source: IpAddr,
    /// 2 or 3.
    pub version: u8,
    /// The virtual router's id.
    pub router_id: u8,
    /// 1 to 255; 0 = it resigns.
    pub priority: u8,
    /// Time between adverts, in hundredths of a second.
    pub interval: u16,
    /// The addresses that it announces.
    pub addresses: Vec<IpAddr>,
    /// Version 2's password.
    pub password: Option<Password>,
}

/// A password that was heard on the wire. Debug does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Password([u8; 8]);

impl Password {
    #[cfg(test)]
    pub(crate) fn of(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// Whether it is this one (shorter ones are filled up with zeroes).
    pub fn is(&self, password: &str) -> bool {
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(password.bytes()).for_each(|(to, from)| *to = from);
        password.len() <= 8 && self.0 == bytes
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(not shown)")
    }
}

/// Reads an IP packet; None when it is not a whole, undamaged advert from this link.
pub(super) fn parse(packet: &[u8]) -> Option<Advert> {
    let ip = on_link(packet, PROTOCOL)?;
    let header: &[u8; 8] = ip.payload.first_chunk()?;
    let (version, kind, count) = (header[0] >> 4, header[0] & 15, usize::from(header[3]));
    if kind != ADVERTISEMENT || header[1] == 0 {
        return None;
    }
    let plain = || internet(&[ip.payload]) == 0;
    let with_pseudo_header = || {
        let length = u16::try_from(ip.payload.len()).unwrap_or(u16::MAX);
        internet(&[&pseudo_header(ip.source, ip.destination, PROTOCOL, length), ip.payload]) == 0
    };
    let width = if ip.source.is_ipv4() { 4 } else { 16 };
    let addresses = ip.payload.get(8..8 + count * width)?.chunks_exact(width).filter_map(address).collect();
    let (interval, password) = match version {
        2 if ip.source.is_ipv4() && plain() => {
            let password = ip.payload.get(8 + count * width..).and_then(|b| b.first_chunk::<8>());
            (u16::from(header[5]) * 100, password.filter(|_| header[4] == PASSWORD).map(|b| Password(*b)))
        }
        // over IPv4 some leave the pseudo header out: RFC 5798, 5.2.8 can be read either way
        3 if with_pseudo_header() || (ip.source.is_ipv4() && plain()) => (u16::from_be_bytes([header[4] & 15, header[5]]), None),
        _ => return None,
    };
    Some(Advert { source: ip.source, version, router_id: header[1], priority: header[2], interval, addresses, password })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|b| Ipv4Addr::from(*b).into()),
        _ => bytes.first_chunk::<16>().map(|b| Ipv6Addr::from(*b).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::v6_packet;

    fn v4_packet(payload: &[u8]) -> Vec<u8> {
        let total = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        [&[0x45, 0xc0, total[0], total[1], 0, 1, 0, 0, 255, 112, 0, 0, 10, 0, 0, 11, 224, 0, 0, 18], payload].concat()
    }

    /// With its checksum filled in.
    fn summed(mut payload: Vec<u8>, pseudo: &[u8]) -> Vec<u8> {
        let sum = internet(&[pseudo, &payload]).to_be_bytes();
        payload[6..8].copy_from_slice(&sum);
        payload
    }

    fn v4_pseudo(length: u16) -> Vec<u8> {
        pseudo_header("10.0.0.11".parse().unwrap(), "224.0.0.18".parse().unwrap(), 112, length)
    }

    fn v3_for(addresses: &[[u8; 4]]) -> Vec<u8> {
        let count = u8::try_from(addresses.len()).unwrap();
        let payload = [&[0x31, 10, 12, count, 0, 10, 0, 0], &addresses.concat()[..]].concat();
        let length = u16::try_from(payload.len()).unwrap();
        v4_packet(&summed(payload, &v4_pseudo(length)))
    }

    #[test]
    fn version_3() {
        let packet = v3_for(&[[10, 0, 0, 10], [10, 0, 0, 9]]);
        let advert = parse(&[&packet[..], &[0; 10]].concat()).unwrap();
        let expected = Advert {
            source: "10.0.0.11".parse().unwrap(),
            version: 3,
            router_id: 10,
            priority: 12,
            interval: 10,
            addresses: vec!["10.0.0.10".parse().unwrap(), "10.0.0.9".parse().unwrap()],
            password: None,
        };
        assert_eq!(advert, expected);
        for n in 20..packet.len() {
            let mut damaged = packet.clone();
            damaged[n] ^= 0x41;
            assert_eq!(parse(&damaged), None, "byte {n}");
        }
    }

    #[test]
    fn version_3_with_the_older_checksum() {
        let payload = summed(vec![0x31, 10, 12, 1, 0, 10, 0, 0, 10, 0, 0, 10], &[]);
        assert_eq!(parse(&v4_packet(&payload)).unwrap().version, 3);
    }

    #[test]
    fn version_3_over_ipv6() {
        let (source, group): (Ipv6Addr, Ipv6Addr) = ("fe80::1".parse().unwrap(), "ff02::12".parse().unwrap());
        let vip: Ipv6Addr = "fd00::10".parse().unwrap();
        let payload = [&[0x31, 77, 12, 1, 0, 100, 0, 0], &vip.octets()[..]].concat();
        let pseudo = pseudo_header(source.into(), group.into(), 112, 24);
        let packet = v6_packet(source, group, 112, &summed(payload.clone(), &pseudo));
        let advert = parse(&packet).unwrap();
        assert_eq!((advert.addresses, advert.interval, advert.router_id), (vec![vip.into()], 100, 77));
        assert_eq!(parse(&v6_packet(source, group, 112, &summed(payload, &[]))), None, "IPv6 always sums the pseudo header");
    }

    #[test]
    fn version_2_with_a_password_that_is_not_shown() {
        let payload = [&[0x21, 51, 100, 1, 1, 1, 0, 0, 10, 0, 0, 10][..], b"mypass\0\0"].concat();
        let advert = parse(&v4_packet(&summed(payload, &[]))).unwrap();
        assert_eq!((advert.version, advert.router_id, advert.interval), (2, 51, 100));
        assert!(!format!("{advert:?}").contains("mypass"));
        let password = advert.password.unwrap();
        assert!(password.is("mypass") && !password.is("mypasswd") && !password.is("mypass\0\0x"));
    }

    #[test]
    fn a_router_that_resigns_is_heard() {
        let payload = summed(vec![0x31, 10, 0, 1, 0, 10, 0, 0, 10, 0, 0, 10], &v4_pseudo(12));
        assert_eq!(parse(&v4_packet(&payload)).unwrap().priority, 0);
    }

    proptest::proptest! {
        #[test]
        fn takes_any_bytes(packet: Vec<u8>, payload: Vec<u8>) {
            let _ = parse(&packet);
            let _ = parse(&v4_packet(&payload));
        }

        #[test]
        fn takes_any_body_with_a_right_checksum(payload in proptest::collection::vec(proptest::num::u8::ANY, 8..64), two: bool) {
            let mut payload = payload;
            payload[0] = if two { 0x21 } else { 0x31 };
            payload[6..8].fill(0);
            let _ = parse(&v4_packet(&summed(payload, &[])));
        }
    }
}

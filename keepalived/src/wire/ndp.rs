//! Neighbour discovery (RFC 4861) in ARP's place: a solicitation as duplicate address detection sends it (RFC 4862, 5.4.2).

use std::net::{IpAddr, Ipv6Addr};

use super::checksum::{internet, pseudo_header};
use super::ip::{on_link, v6_packet};
use super::{Claim, How, Mac};

/// IPv6's number for its control messages.
pub(super) const PROTOCOL: u8 = 58;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The options with the sender's and the target's hardware address (RFC 4861, 4.6.1).
const TARGET_LINK_LAYER: u8 = 2;

/// A probe: a solicitation from the unspecified address, which is answered to all nodes; and the group's hardware address
/// that it goes to.
pub(super) fn probe(wanted: Ipv6Addr) -> (Mac, Vec<u8>) {
    let [.., high, low] = wanted.segments();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low);
    let mut message = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &wanted.octets()].concat();
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let sum = internet(&[&pseudo_header(Ipv6Addr::UNSPECIFIED.into(), group.into(), PROTOCOL, length), &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let octets = group.octets();
    (Mac([0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]), v6_packet(Ipv6Addr::UNSPECIFIED, group, PROTOCOL, &message))
}

/// Whether a packet that came from `from` claims the address: an advertisement of it, anything sent from it, or somebody
/// else's probe for it.
pub(super) fn claim(packet: &[u8], from: Mac, wanted: Ipv6Addr) -> Option<Claim> {
    let ip = on_link(packet, PROTOCOL)?;
    let length = u16::try_from(ip.payload.len()).ok()?;
    if internet(&[&pseudo_header(ip.source, ip.destination, PROTOCOL, length), ip.payload]) != 0 {
        return None;
    }
    let message: &[u8; 24] = ip.payload.first_chunk()?;
    let target = Ipv6Addr::from(*message[8..].first_chunk::<16>()?);
    match message[0] {
        ADVERTISEMENT if target == wanted => {
            let mac = target_link_layer(ip.payload.get(24..)?).unwrap_or(from);
            Some(Claim { mac, how: How::Answers })
        }
        SOLICITATION if target == wanted && ip.source == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Some(Claim { mac: from, how: How::Probes }),
        SOLICITATION if ip.source == IpAddr::V6(wanted) => Some(Claim { mac: from, how: How::Answers }),
        _ => None,
    }
}

fn target_link_layer(mut options: &[u8]) -> Option<Mac> {
    while let [kind, units, ..] = options {
        let length = usize::from(*units) * 8;
        if *kind == TARGET_LINK_LAYER {
            return options.get(2..)?.first_chunk::<6>().map(|mac| Mac(*mac));
        }
        // a length of 0 would go on for ever (RFC 4861, 4.6)
        options = options.get(length.max(8)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x12, 0x3456);
    const OTHER: Mac = Mac([2, 0x79, 0, 0, 0, 2]);

    fn advertisement(target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
        let source: Ipv6Addr = "fe80::2".parse().unwrap();
        let all: Ipv6Addr = "ff02::1".parse().unwrap();
        let mut message = [&[ADVERTISEMENT, 0, 0, 0, 0x20, 0, 0, 0][..], &target.octets(), options].concat();
        let length = u16::try_from(message.len()).unwrap();
        let sum = internet(&[&pseudo_header(source.into(), all.into(), PROTOCOL, length), &message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        v6_packet(source, all, PROTOCOL, &message)
    }

    #[test]
    fn a_probe_goes_to_the_solicited_nodes_group() {
        let (mac, packet) = probe(VIP);
        assert_eq!(mac.to_string(), "33:33:ff:12:34:56");
        assert_eq!(Ipv6Addr::from(*packet[24..].first_chunk::<16>().unwrap()), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
        assert_eq!(claim(&packet, OTHER, VIP), Some(Claim { mac: OTHER, how: How::Probes }), "and somebody else's is recognised");
    }

    #[test]
    fn an_advertisement_claims() {
        let with = advertisement(VIP, &[2, 1, 2, 0x79, 0, 0, 0, 3]);
        assert_eq!(claim(&with, OTHER, VIP).unwrap().mac.to_string(), "02:79:00:00:00:03");
        assert_eq!(claim(&advertisement(VIP, &[]), OTHER, VIP), Some(Claim { mac: OTHER, how: How::Answers }));
        assert_eq!(claim(&with, OTHER, "fd00::1".parse().unwrap()), None);
        let mut damaged = with.clone();
        damaged[50] ^= 1;
        assert_eq!(claim(&damaged, OTHER, VIP), None);
    }

    #[test]
    fn an_option_without_length_ends() {
        assert_eq!(target_link_layer(&[1, 0, 0, 0, 0, 0, 0, 0, 9]), None);
    }

    proptest::proptest! {
        #[test]
        fn takes_any_bytes(packet: Vec<u8>, options: Vec<u8>) {
            let _ = claim(&packet, OTHER, VIP);
            let _ = target_link_layer(&options);
            let _ = claim(&advertisement(VIP, &options), OTHER, VIP);
        }
    }
}

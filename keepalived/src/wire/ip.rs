//! Just enough of IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use socket2::SockFilter;

/// Ethernet's numbers for IPv4 and IPv6.
pub(super) const PROTOCOL_V4: u16 = 0x0800;
pub(super) const PROTOCOL_V6: u16 = 0x86dd;

/// A packet that was sent on this very link: its time to live, or hop limit, is still 255.
pub(super) struct OnLink<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// What the header carries, without padding.
    pub payload: &'a [u8],
}

/// The payload of a packet of the protocol that never crossed a router; None for any other.
pub(super) fn on_link(packet: &[u8], protocol: u8) -> Option<OnLink<'_>> {
    match packet.first()? >> 4 {
        4 => on_link_v4(packet, protocol),
        6 => on_link_v6(packet, protocol),
        _ => None,
    }
}

fn on_link_v4(packet: &[u8], protocol: u8) -> Option<OnLink<'_>> {
    let header: &[u8; 20] = packet.first_chunk()?;
    let header_length = usize::from(header[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // more fragments, or not the first one
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    if header_length < 20 || header[8] != 255 || header[9] != protocol || fragment != 0 {
        return None;
    }
    let address = |at: usize| header.get(at..at + 4).and_then(|b| b.first_chunk::<4>()).map(|b| Ipv4Addr::from(*b));
    Some(OnLink { source: address(12)?.into(), destination: address(16)?.into(), payload: packet.get(header_length..total)? })
}

fn on_link_v6(packet: &[u8], protocol: u8) -> Option<OnLink<'_>> {
    let header: &[u8; 40] = packet.first_chunk()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[6] != protocol || header[7] != 255 {
        return None;
    }
    let address = |at: usize| header.get(at..at + 16).and_then(|b| b.first_chunk::<16>()).map(|b| Ipv6Addr::from(*b));
    Some(OnLink { source: address(8)?.into(), destination: address(24)?.into(), payload: packet.get(40..40 + length)? })
}

/// An IPv6 packet with hop limit 255.
pub(super) fn v6_packet(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[0x60, 0, 0, 0, high, low, protocol, 255], &source.octets()[..], &destination.octets()[..], payload].concat()
}

/// Lets through only packets whose byte at `offset` of the IP header is `protocol`: the kernel then does not copy all the
/// other traffic of a busy interface.
pub(super) fn only(offset: u32, protocol: u8) -> [SockFilter; 4] {
    // load a byte; if it is the protocol, take all of it, else nothing (linux/bpf_common.h)
    [
        SockFilter::new(0x30, 0, 0, offset),
        SockFilter::new(0x15, 0, 1, u32::from(protocol)),
        SockFilter::new(0x06, 0, 0, u32::MAX),
        SockFilter::new(0x06, 0, 0, 0),
    ]
}

/// Where an IPv4 header names its protocol, and an IPv6 header the next one.
pub(super) const AT_V4: u32 = 9;
pub(super) const AT_V6: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_packets_of_this_link() {
        let packet = v6_packet("fe80::1".parse().unwrap(), "ff02::12".parse().unwrap(), 112, &[1, 2, 3]);
        let padded = [&packet[..], &[0; 9]].concat();
        let read = on_link(&padded, 112).unwrap();
        assert_eq!((read.payload, read.source.to_string()), (&[1, 2, 3][..], "fe80::1".to_owned()));
        assert!(on_link(&packet, 58).is_none(), "another protocol");
        assert!(on_link(&packet[..packet.len() - 1], 112).is_none(), "cut off");
        let mut routed = packet.clone();
        routed[7] = 254;
        assert!(on_link(&routed, 112).is_none(), "it crossed a router");
    }

    proptest::proptest! {
        #[test]
        fn takes_any_bytes(packet: Vec<u8>, protocol: u8) {
            let _ = on_link(&packet, protocol);
        }

        #[test]
        fn takes_any_header(mut packet in proptest::collection::vec(proptest::num::u8::ANY, 20..80), four: bool) {
            packet[0] = (packet[0] & 15) | if four { 0x40 } else { 0x60 };
            packet[if four { 8 } else { 7 }] = 255;
            let protocol = packet[if four { 9 } else { 6 }];
            let _ = on_link(&packet, protocol);
        }
    }
}

//! ARP for IPv4 over Ethernet (RFC 826), as RFC 5227 uses it to find out whether an address is in use.

use std::net::Ipv4Addr;

use super::{Claim, How, Mac};

/// Ethernet's number for ARP.
pub(super) const PROTOCOL: u16 = 0x0806;

const REQUEST: u16 = 1;
/// Ethernet, IPv4, addresses of 6 and 4 bytes.
const HEADER: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// A probe (RFC 5227, 2.1.1): a request whose sender address is all zeroes, so that nobody learns it.
pub(super) fn probe(own: Mac, wanted: Ipv4Addr) -> Vec<u8> {
    let [high, low] = REQUEST.to_be_bytes();
    [&HEADER[..], &[high, low], &own.0, &Ipv4Addr::UNSPECIFIED.octets(), &[0; 6], &wanted.octets()].concat()
}

/// Whether a packet claims the address: any packet that comes from it, or somebody else's probe for it (RFC 5227, 2.1.1).
pub(super) fn claim(packet: &[u8], wanted: Ipv4Addr) -> Option<Claim> {
    let packet: &[u8; 28] = packet.first_chunk()?;
    if packet[..6] != HEADER {
        return None;
    }
    let operation = u16::from_be_bytes([packet[6], packet[7]]);
    let mac = Mac(*packet[8..].first_chunk()?);
    let address = |at: usize| packet.get(at..at + 4).and_then(|b| b.first_chunk::<4>()).map(|b| Ipv4Addr::from(*b));
    let (sender, target) = (address(14)?, address(24)?);
    let how = if sender == wanted {
        How::Answers
    } else if operation == REQUEST && sender.is_unspecified() && target == wanted {
        How::Probes
    } else {
        return None;
    };
    Some(Claim { mac, how })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0x79, 0, 0, 0, 1]);
    const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);

    /// A reply as tcpdump showed it, of 02:79:00:00:00:02 for 10.0.0.10, with Ethernet's padding.
    const REPLY: [u8; 46] = {
        let mut p = [0; 46];
        let head = [0, 1, 8, 0, 6, 4, 0, 2, 2, 0x79, 0, 0, 0, 2, 10, 0, 0, 10, 2, 0x79, 0, 0, 0, 1];
        let mut n = 0;
        while n < head.len() {
            p[n] = head[n];
            n += 1;
        }
        p
    };

    #[test]
    fn an_answer_claims() {
        let claim = claim(&REPLY, VIP).unwrap();
        assert_eq!((claim.mac.to_string().as_str(), claim.how), ("02:79:00:00:00:02", How::Answers));
        assert_eq!(super::claim(&REPLY, Ipv4Addr::new(10, 0, 0, 11)), None);
        assert_eq!(super::claim(&REPLY[..27], VIP), None);
    }

    #[test]
    fn somebody_elses_probe_claims_and_a_question_does_not() {
        let mut packet = probe(OWN, VIP);
        assert_eq!(packet.len(), 28);
        assert_eq!(claim(&packet, VIP), Some(Claim { mac: OWN, how: How::Probes }));
        packet[14..18].copy_from_slice(&[10, 0, 0, 12]);
        assert_eq!(claim(&packet, VIP), None, "10.0.0.12 only asks who has it");
    }

    #[test]
    fn an_announcement_claims() {
        let mut packet = probe(OWN, VIP);
        packet[14..18].copy_from_slice(&VIP.octets());
        assert_eq!(claim(&packet, VIP), Some(Claim { mac: OWN, how: How::Answers }));
    }

    proptest::proptest! {
        #[test]
        fn takes_any_bytes(packet: Vec<u8>, vip: u32) {
            let _ = claim(&packet, vip.into());
        }

        #[test]
        fn a_probe_is_read_back(mac: [u8; 6], vip in 1_u32..) {
            proptest::prop_assert_eq!(claim(&probe(Mac(mac), vip.into()), vip.into()), Some(Claim { mac: Mac(mac), how: How::Probes }));
        }
    }
}

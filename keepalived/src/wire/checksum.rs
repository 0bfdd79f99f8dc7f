use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The Internet checksum (RFC 1071) of all parts one after the other; 0 over data that holds its right checksum. Every
/// part but the last must have an even length.
pub(super) fn internet(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            sum += u32::from(word);
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    let [_, _, high, low] = sum.to_be_bytes();
    !u16::from_be_bytes([high, low])
}

/// The pseudo header that upper-layer checksums cover: RFC 8200, 8.1 for IPv6; RFC 9293, 3.1 for IPv4.
pub(super) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => v4(s, d, &[0, protocol, high, low]),
        (s, d) => v6(to_v6(s), to_v6(d), &[0, 0, high, low, 0, 0, 0, protocol]),
    }
}

fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    }
}

fn v4(source: Ipv4Addr, destination: Ipv4Addr, rest: &[u8]) -> Vec<u8> {
    [&source.octets(), &destination.octets(), rest].concat()
}

fn v6(source: Ipv6Addr, destination: Ipv6Addr, rest: &[u8]) -> Vec<u8> {
    [&source.octets()[..], &destination.octets()[..], rest].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_rfcs_own_example() {
        // RFC 1071, 3: the one's complement sum of these is ddf2
        assert_eq!(internet(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }

    #[test]
    fn an_odd_last_byte_counts_as_the_high_half() {
        assert_eq!(internet(&[&[0x12, 0x34], &[0x56]]), !(0x1234 + 0x5600));
    }

    proptest::proptest! {
        #[test]
        fn over_its_own_checksum_it_is_zero(mut data: Vec<u8>) {
            if data.len() % 2 == 1 {
                data.push(0);
            }
            let sum = internet(&[&data]).to_be_bytes();
            // a sum of all ones says the same as one of zero
            proptest::prop_assert!(matches!(internet(&[&data, &sum]), 0 | 0xffff));
        }
    }
}

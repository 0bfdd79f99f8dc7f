//! A packet socket on one interface: the only `unsafe` of the project, since neither the standard library nor socket2
//! knows a link-layer address (`sockaddr_ll`, packet(7)).
#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::time::Instant;

use rustix::net::netdevice::name_to_index;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

use super::Mac;

/// The largest packet of interest; what is longer is cut off and then fails to parse.
const MTU: usize = 2048;

/// Receives and sends packets of one protocol without their link-layer header. It sees what arrives before any firewall.
pub(super) struct PacketSocket {
    socket: Socket,
    index: u32,
    protocol: u16,
    mac: Mac,
}

/// A packet that arrived, and from where.
pub(super) struct Received {
    /// The sender's hardware address.
    pub from: Mac,
    /// From the network layer's header on.
    pub packet: Vec<u8>,
}

impl PacketSocket {
    /// Opens it for an Ethernet protocol (`ETH_P_ARP`, …). With a filter (classic BPF) the kernel hands over only what
    /// passes it; an empty one passes all.
    pub fn open(interface: &str, protocol: u16, filter: &[SockFilter]) -> io::Result<Self> {
        // of no protocol at first: nothing may arrive before the filter is there
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        let index = name_to_index(&socket, interface)?;
        if !filter.is_empty() {
            socket.attach_filter(filter)?;
        }
        socket.bind(&link_layer(index, protocol, None)?)?;
        let (mac, _) = hardware_address(socket.local_addr()?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::AddrNotAvailable, format!("{interface} has no hardware address")))?;
        Ok(Self { socket, index, protocol, mac })
    }

    /// The interface's index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The interface's own hardware address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Sends a packet to a hardware address.
    pub fn send(&self, to: Mac, packet: &[u8]) -> io::Result<()> {
        self.socket.send_to(packet, &link_layer(self.index, self.protocol, Some(to))?).map(|_| ())
    }

    /// The next packet that arrives from elsewhere; None when none did until then.
    pub fn receive(&self, until: Instant) -> io::Result<Option<Received>> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let mut buffer = [MaybeUninit::<u8>::uninit(); MTU];
            let (length, from) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => continue,
                Err(e) => return Err(e),
            };
            let Some((from, kind)) = hardware_address(from) else { continue };
            if from == self.mac || matches!(kind, libc::PACKET_OUTGOING | libc::PACKET_LOOPBACK) {
                continue;
            }
            // SAFETY: recv_from has initialised the first `length` bytes, as socket2 documents.
            let packet = buffer.iter().take(length).map(|byte| unsafe { byte.assume_init() }).collect();
            return Ok(Some(Received { from, packet }));
        }
    }
}

fn link_layer(index: u32, protocol: u16, to: Option<Mac>) -> io::Result<SockAddr> {
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is a socket address, so it fits into a sockaddr_storage with its alignment, and all zeroes are a
    // valid one.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET.try_into().map_err(too_large)?;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.try_into().map_err(too_large)?;
    if let Some(Mac(bytes)) = to {
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&bytes);
    }
    let length = size_of::<libc::sockaddr_ll>().try_into().map_err(too_large)?;
    // SAFETY: the storage holds a sockaddr_ll of this length, as its family says.
    Ok(unsafe { SockAddr::new(storage, length) })
}

/// The hardware address in a packet socket's address, and what kind of packet it was (`sll_pkttype`).
fn hardware_address(from: SockAddr) -> Option<(Mac, u8)> {
    // the kernel leaves away what the hardware address does not fill
    let long_enough = usize::try_from(from.len()).is_ok_and(|l| l >= offset_of!(libc::sockaddr_ll, sll_addr) + 6);
    if i32::from(from.family()) != libc::AF_PACKET || !long_enough {
        return None;
    }
    let mut storage = from.as_storage();
    // SAFETY: the family says that it is a sockaddr_ll, which fits into the storage with its alignment; all its fields are
    // integers, and what the kernel did not write of them is zero or left from before, but initialised.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    let bytes = address.sll_addr.first_chunk::<6>()?;
    (address.sll_halen == 6).then_some((Mac(*bytes), address.sll_pkttype))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_back_as_it_went() {
        let mac = Mac([2, 0x79, 0, 0, 0, 1]);
        let address = link_layer(7, 0x0806, Some(mac)).unwrap();
        assert_eq!(hardware_address(address).unwrap().0, mac);
    }

    #[test]
    fn another_family_is_not_taken_for_one() {
        let address = SockAddr::from("127.0.0.1:1".parse::<std::net::SocketAddr>().unwrap());
        assert!(hardware_address(address).is_none());
        assert!(hardware_address(link_layer(7, 0x0806, None).unwrap()).is_none(), "without a hardware address");
    }
}

//! What is on the wire: who answers for an address, and which VRRP routers announce what.

mod arp;
mod checksum;
mod ip;
mod ndp;
mod socket;
mod vrrp;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use cluster::Interface;
use node::{Context as _, Error, Result};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

pub use vrrp::{Advert, Password};

use socket::PacketSocket;

/// Where VRRP routers announce (RFC 5798, 5.1.1.2 and 5.1.2.2).
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);

/// RFC 5227 sends three probes, one to two seconds apart, and waits two more; hosts of one segment answer within
/// milliseconds, so a quarter of a second between them and half a second after the last will do.
const PROBES: u32 = 3;

/// How long is waited between two probes; after the last one twice that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// A second in all: for an address that must be free.
    Careful,
    /// A third of that: for one whose holder is known.
    Quick,
}

impl Pace {
    fn gap(self) -> Duration {
        Duration::from_millis(if self == Self::Careful { 250 } else { 80 })
    }
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    const BROADCAST: Self = Self([0xff; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        out.write_str(&bytes.join(":"))
    }
}

/// How a host lays claim to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// It has it.
    Answers,
    /// It is about to take it, and asks first.
    Probes,
}

/// A host that lays claim to an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Its hardware address.
    pub mac: Mac,
    /// How.
    pub how: How,
}

/// A VRRP router that was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Its hardware address.
    pub mac: Mac,
    /// What it announced.
    pub advert: Advert,
}

/// Asks who else has the address, by ARP or neighbour discovery. Nobody = it is free.
///
/// # Errors
/// When there is no such interface, it has no hardware address, or this is not root.
pub async fn who_has(interface: &Interface, address: IpAddr, pace: Pace) -> Result<Vec<Claim>> {
    let name = interface.clone();
    in_thread(move || ask(name.as_str(), address, pace.gap()))
        .await
        .map_err(|e| failed(&format!("cannot ask on {interface} who has {address}"), e))
}

fn ask(interface: &str, address: IpAddr, gap: Duration) -> io::Result<Vec<Claim>> {
    let mut claims = Vec::new();
    let (socket, to, packet) = match address {
        IpAddr::V4(a) => {
            let socket = PacketSocket::open(interface, arp::PROTOCOL, &[])?;
            let packet = arp::probe(socket.mac(), a);
            (socket, Mac::BROADCAST, packet)
        }
        IpAddr::V6(a) => {
            // the answer goes to the group of all nodes, which every interface with IPv6 is in
            let (to, packet) = ndp::probe(a);
            (PacketSocket::open(interface, ip::PROTOCOL_V6, &ip::only(ip::AT_V6, ndp::PROTOCOL))?, to, packet)
        }
    };
    for n in 1..=PROBES {
        socket.send(to, &packet)?;
        let until = Instant::now() + if n < PROBES { gap } else { gap * 2 };
        while let Some(received) = socket.receive(until)? {
            let claim = match address {
                IpAddr::V4(a) => arp::claim(&received.packet, a),
                IpAddr::V6(a) => ndp::claim(&received.packet, received.from, a),
            };
            claims.extend(claim.filter(|c| c.mac != socket.mac()));
        }
    }
    claims.sort();
    claims.dedup();
    Ok(claims)
}

/// Listens for other routers' VRRP adverts of a family until `enough` says so, or for as long as `limit`. Each router is
/// listed once for each thing that it announced.
///
/// # Errors
/// When there is no such interface, it has no hardware address, or this is not root.
pub async fn listen(
    interface: &Interface,
    ipv6: bool,
    limit: Duration,
    enough: impl Fn(&Heard) -> bool + Send + 'static,
) -> Result<Vec<Heard>> {
    let name = interface.clone();
    in_thread(move || hear(name.as_str(), ipv6, limit, enough))
        .await
        .map_err(|e| failed(&format!("cannot listen for VRRP on {interface}"), e))
}

fn hear(interface: &str, ipv6: bool, limit: Duration, enough: impl Fn(&Heard) -> bool) -> io::Result<Vec<Heard>> {
    let until = Instant::now() + limit;
    let (protocol, at) = if ipv6 { (ip::PROTOCOL_V6, ip::AT_V6) } else { (ip::PROTOCOL_V4, ip::AT_V4) };
    let socket = PacketSocket::open(interface, protocol, &ip::only(at, vrrp::PROTOCOL))?;
    let _member = join(socket.index(), ipv6)?;
    let mut heard: Vec<Heard> = Vec::new();
    while let Some(received) = socket.receive(until)? {
        let Some(advert) = vrrp::parse(&received.packet) else { continue };
        let one = Heard { mac: received.from, advert };
        let done = enough(&one);
        if !heard.contains(&one) {
            heard.push(one);
        }
        if done {
            break;
        }
    }
    Ok(heard)
}

/// As long as this socket lives, the interface takes what is sent to VRRP's group, and switches forward it here.
fn join(index: u32, ipv6: bool) -> io::Result<Socket> {
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if ipv6 {
        socket.join_multicast_v6(&GROUP_V6, index)?;
    } else {
        socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(index))?;
    }
    Ok(socket)
}

async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn failed(what: &str, e: io::Error) -> Error {
    let denied = e.kind() == io::ErrorKind::PermissionDenied;
    let error = Err::<(), _>(e).context(what).err().unwrap_or_else(|| Error::failed(what));
    if denied { error.hint("run smartup as root") } else { error }
}

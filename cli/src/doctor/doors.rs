//! Ports between hosts: doors that are open for as long as somebody asks, and knocking at those of others.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cluster::{Port, Role};
use fleet::protocol::{Answer, Door, Knock, Transport};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// etcd, between servers.
pub const ETCD: [Door; 2] = [tcp(2379), tcp(2380)];
/// The kubelet, of every node.
pub const KUBELET: Door = tcp(10250);
/// flannel's VXLAN, between all nodes.
pub const VXLAN: Door = Door { port: 8472, transport: Transport::Udp };

const fn tcp(port: u16) -> Door {
    Door { port, transport: Transport::Tcp }
}

/// The API's port.
pub fn api(port: Port) -> Door {
    tcp(port.get())
}

/// What others must reach on a host of this role (docs/usage/networks.md).
pub fn of(role: Role, port: Port) -> Vec<Door> {
    let both = [KUBELET, VXLAN];
    match role {
        Role::Server => [api(port)].into_iter().chain(ETCD).chain(both).collect(),
        Role::Agent => both.to_vec(),
    }
}

/// Long enough for TCP's second try, after one second (RFC 6298, 2.1), and for the kernel to find that there is no such
/// neighbour, in three of a second each (`mcast_solicit` and `retrans_time` in arp(7)).
pub const LIMIT: Duration = Duration::from_secs(4);
/// Datagrams get lost: so many are sent, evenly within [`LIMIT`].
const TRIES: u32 = 5;

/// Doors of this host's, which close when this is dropped.
pub struct Doors {
    /// Those that could be opened: the others are in use.
    pub open: Vec<Door>,
    _keepers: JoinSet<()>,
}

impl Doors {
    /// Opens these at an address of this host's own. Whoever connects is told the password; whoever sends it is sent it back.
    pub async fn open(address: IpAddr, doors: &[Door], password: &str) -> Self {
        let mut open = Vec::new();
        let mut keepers = JoinSet::new();
        for door in doors {
            let at = SocketAddr::new(address, door.port);
            let password = password.as_bytes().to_vec();
            match door.transport {
                Transport::Tcp => {
                    let Ok(listener) = TcpListener::bind(at).await else { continue };
                    keepers.spawn(keep_tcp(listener, password));
                }
                Transport::Udp => {
                    let Ok(socket) = UdpSocket::bind(at).await else { continue };
                    keepers.spawn(keep_udp(socket, password));
                }
            }
            open.push(*door);
        }
        Self { open, _keepers: keepers }
    }
}

async fn keep_tcp(listener: TcpListener, password: Vec<u8>) {
    loop {
        match listener.accept().await {
            // so little fits into the socket's buffer at once
            Ok((mut stream, _)) => drop(stream.write_all(&password).await),
            // out of files: others will be closed
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn keep_udp(socket: UdpSocket, password: Vec<u8>) {
    let mut buffer = [0; 128];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((n, from)) if buffer[..n] == password => drop(socket.send_to(&password, from).await),
            Ok(_) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Knocks at all of them at once; the answers in their order.
pub async fn knock(at: &[Knock], password: &str) -> Vec<Answer> {
    let all = at.iter().map(|knock| async {
        let asked = async {
            match knock.transport {
                Transport::Tcp => try_tcp(knock, password.as_bytes()).await,
                Transport::Udp => try_udp(knock.at, password.as_bytes()).await,
            }
        };
        match timeout(LIMIT, asked).await {
            Err(_) => Answer::Silence,
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => answer_of(&e),
        }
    });
    futures::future::join_all(all).await
}

fn answer_of(e: &std::io::Error) -> Answer {
    match e.kind() {
        ErrorKind::ConnectionRefused => Answer::Refused,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Answer::Forbidden,
        ErrorKind::TimedOut => Answer::Silence,
        _ => Answer::Not(e.to_string()),
    }
}

async fn try_tcp(knock: &Knock, password: &[u8]) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(knock.at).await?;
    if !knock.smartup {
        return Ok(Answer::In);
    }
    let mut said = vec![0; password.len()];
    Ok(match stream.read_exact(&mut said).await {
        Ok(_) if said == password => Answer::In,
        _ => Answer::Stranger,
    })
}

async fn try_udp(at: SocketAddr, password: &[u8]) -> std::io::Result<Answer> {
    let any: IpAddr = if at.is_ipv6() { std::net::Ipv6Addr::UNSPECIFIED.into() } else { std::net::Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(at).await?;
    let mut buffer = [0; 128];
    for _ in 0..TRIES {
        socket.send(password).await?;
        if let Ok(received) = timeout(LIMIT / TRIES, socket.recv(&mut buffer)).await {
            let n = received?;
            return Ok(if &buffer[..n] == password { Answer::In } else { Answer::Stranger });
        }
    }
    Ok(Answer::Silence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn localhost() -> IpAddr {
        "127.0.0.1".parse().unwrap()
    }

    /// A port that nobody has, just now.
    async fn free(transport: Transport) -> Door {
        let at = (localhost(), 0);
        let port = match transport {
            Transport::Tcp => TcpListener::bind(at).await.unwrap().local_addr().unwrap().port(),
            Transport::Udp => UdpSocket::bind(at).await.unwrap().local_addr().unwrap().port(),
        };
        Door { port, transport }
    }

    fn at(door: Door) -> Knock {
        Knock { at: (localhost(), door.port).into(), transport: door.transport, smartup: true }
    }

    #[tokio::test]
    async fn a_door_knows_its_own_and_closes() {
        let wanted = [free(Transport::Tcp).await, free(Transport::Udp).await];
        let doors = Doors::open(localhost(), &wanted, "sesame").await;
        assert_eq!(doors.open, wanted);
        let knocks = wanted.map(at);
        assert_eq!(knock(&knocks, "sesame").await, [Answer::In, Answer::In]);
        // a door of another run's is none of ours; it does not answer what it does not know
        assert_eq!(knock(&knocks, "barley").await, [Answer::Stranger, Answer::Silence]);
        assert!(Doors::open(localhost(), &wanted, "sesame").await.open.is_empty(), "they are in use");
        drop(doors);
        // the sockets go with their tasks, which end when they are next looked at
        let gone = async {
            while knock(&knocks, "sesame").await != [Answer::Refused, Answer::Refused] {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.unwrap();
    }

    #[tokio::test]
    async fn whoever_takes_connections_there_will_do_where_k3s_runs() {
        let listener = TcpListener::bind((localhost(), 0)).await.unwrap();
        let door = tcp(listener.local_addr().unwrap().port());
        let plain = Knock { smartup: false, ..at(door) };
        assert_eq!(knock(&[plain], "sesame").await, [Answer::In]);
    }
}

//! Names to addresses to a TCP connection.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::select_ok;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::ResolverConfig;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use node::{Context as _, Error, Result};
use socket2::SockRef;
use tokio::net::TcpStream;

/// How long an address may stay silent before the next one is tried beside it (RFC 8305, 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to the first address of `host` that answers. The connection is over when what is sent stays unacknowledged
/// for longer than `unacknowledged` (tcp(7), `TCP_USER_TIMEOUT`); the kernel's own limit is a quarter of an hour.
///
/// # Errors
/// Failed when the name has no address, or none of them takes the connection.
pub(super) async fn dial(host: &str, port: u16, unacknowledged: Duration) -> Result<TcpStream> {
    let addresses = addresses(host).await?;
    let attempts = addresses.iter().zip(0..).map(|(address, n)| {
        let address = SocketAddr::new(*address, port);
        Box::pin(async move {
            tokio::time::sleep(STAGGER * n).await;
            TcpStream::connect(address).await.context(format!("{address} does not take the connection"))
        })
    });
    let (stream, _) = select_ok(attempts).await.map_err(|e| e.hint(format!("does sshd run there, and on port {port}?")))?;
    stream.set_nodelay(true).context("cannot switch off Nagle's algorithm")?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(unacknowledged)).context("cannot limit the time without acknowledgement")?;
    Ok(stream)
}

/// Not with the C library: linked statically, its `getaddrinfo` wants the libraries of the very release it was built on.
async fn addresses(host: &str) -> Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    // Without name servers, /etc/hosts may still know.
    let builder = TokioResolver::builder_tokio()
        .unwrap_or_else(|_| TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default()));
    let resolver = builder.build().context("cannot resolve names")?;
    let found = resolver.lookup_ip(host).await.map_err(|e| {
        Error::failed(format!("the name {host} has no address"))
            .hint("is it in DNS or /etc/hosts? HostName in ~/.ssh/config can say where a host is")
            .because(e)
    })?;
    Ok(found.iter().collect())
}

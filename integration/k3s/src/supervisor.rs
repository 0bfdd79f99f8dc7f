//! k3s's own endpoints beside the Kubernetes API, on one port.

use crate::error;
use crate::etcd::Etcd;
use crate::identity::{Identity, Verifier};
use crate::layout::Layout;
use crate::node_password::{self, Verdict};
use crate::passwd::Passwords;
use crate::pki::{BOOTSTRAP, Request as CertRequest, Sans, kubelet_bundle};
use crate::proxy::{Body, Proxy, full, status};
use anyhow::{Context as _, Result};
use base64::Engine as _;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What the endpoints answer from.
pub struct Supervisor {
    /// The data folder.
    pub layout: Layout,
    /// The tokens' users.
    pub passwords: Passwords,
    /// Where everything else goes.
    pub proxy: Proxy,
    /// This server's member, if it has one.
    pub etcd: Option<Etcd>,
    /// Of `/v1-k3s/config`.
    pub config: serde_json::Value,
    /// This server's own node.
    pub node: String,
    /// Whether kube-apiserver is up.
    pub ready: AtomicBool,
    /// For the node passwords.
    pub kube: kube::Client,
    /// Judges client certificates.
    pub verifier: Arc<Verifier>,
}

impl Supervisor {
    /// Serves for ever.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: rustls::ServerConfig) {
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(pair) => pair,
                Err(e) => {
                    error!("accept: {e}");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            // Meant for kube-apiserver, which does not listen yet.
            if stream.local_addr().is_ok_and(|a| a.ip().to_canonical() == crate::control_plane::LOOPBACK) {
                continue;
            }
            let (this, acceptor) = (self.clone(), acceptor.clone());
            tokio::spawn(async move {
                // A request and its answer are small and wait for each other.
                let _ = stream.set_nodelay(true);
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let identity = stream.get_ref().1.peer_certificates().and_then(|c| this.verifier.identify(c)).map(Arc::new);
                let service = hyper::service::service_fn(move |request| {
                    let (this, identity) = (this.clone(), identity.clone());
                    async move { Ok::<_, Infallible>(this.answer(request, identity.as_deref(), peer).await) }
                });
                // The peer may hang up at any time.
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await;
            });
        }
    }

    async fn answer(&self, request: Request<Incoming>, identity: Option<&Identity>, peer: SocketAddr) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/ping" => return text("pong"),
            "/cacerts" => return self.file(&["tls/server-ca.crt"]),
            _ => {}
        }
        let basic = basic_auth(&request).map(|(user, password)| self.passwords.check(&user, &password));
        if !(path.starts_with("/v1-k3s/") || path == "/db/info") {
            if !self.ready.load(Ordering::Relaxed) {
                return not_ready();
            }
            let token = match basic {
                Some(Some((user, group))) => Some(Identity { user: user.to_owned(), groups: vec![group.to_owned()] }),
                _ => None,
            };
            return self.proxy.pass(request, identity.or(token.as_ref())).await;
        }
        let server_only = path == "/v1-k3s/server-bootstrap" || path == "/db/info";
        if server_only && !self.ready.load(Ordering::Relaxed) && !peer.ip().to_canonical().is_loopback() {
            return not_ready();
        }
        match basic.flatten() {
            Some(("server", _)) => {}
            Some(_) if !server_only => {}
            _ => return status(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized"),
        }
        match path.as_str() {
            "/v1-k3s/server-bootstrap" => self.bootstrap(),
            "/db/info" => match &self.etcd {
                Some(etcd) => json(&serde_json::to_value(etcd.info().await).unwrap_or_default()),
                None => status(StatusCode::NOT_FOUND, "NotFound", "404 page not found"),
            },
            "/v1-k3s/config" => json(&self.config),
            "/v1-k3s/client-ca.crt" => self.file(&["tls/client-ca.crt"]),
            "/v1-k3s/server-ca.crt" => self.file(&["tls/server-ca.crt"]),
            "/v1-k3s/client-kube-proxy.crt" => self.file(&["tls/client-kube-proxy.crt", "tls/client-kube-proxy.key"]),
            "/v1-k3s/client-k3s-controller.crt" => self.file(&["tls/client-k3s-controller.crt", "tls/client-k3s-controller.key"]),
            "/v1-k3s/client-kubelet.crt" => self.kubelet(&request, false).await,
            "/v1-k3s/serving-kubelet.crt" => self.kubelet(&request, true).await,
            _ => status(StatusCode::NOT_FOUND, "NotFound", "404 page not found"),
        }
    }

    fn file(&self, paths: &[&str]) -> Response<Body> {
        let mut all = Vec::new();
        for path in paths {
            match std::fs::read(self.layout.server(path)) {
                Ok(bytes) => all.extend(bytes),
                Err(e) => {
                    error!("Failed to read {path}: {e}");
                    return internal(&e.to_string());
                }
            }
        }
        text(all)
    }

    fn bootstrap(&self) -> Response<Body> {
        let read = || -> Result<serde_json::Value> {
            let mut map = serde_json::Map::new();
            for (name, path) in BOOTSTRAP {
                let bytes = std::fs::read(self.layout.server(path)).with_context(|| format!("failed to read {path}"))?;
                map.insert((*name).to_owned(), base64::engine::general_purpose::STANDARD.encode(bytes).into());
            }
            Ok(map.into())
        };
        match read() {
            Ok(value) => json(&value),
            Err(e) => internal(&format!("{e:#}")),
        }
    }

    async fn kubelet(&self, request: &Request<Incoming>, serving: bool) -> Response<Body> {
        let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let node = header("k3s-node-name").to_lowercase();
        let password = header("k3s-node-password");
        if node.is_empty() {
            return internal("node name not set");
        }
        if password.is_empty() {
            return internal("node password not set");
        }
        // Our own node may ask before the API is there: its password is on this disk.
        let own = node == self.node && node_password::own().is_ok_and(|p| p == password);
        if !own {
            match node_password::check(&self.kube, &node, password).await {
                Ok(Verdict::Right) => {}
                Ok(Verdict::Wrong) => {
                    let message = format!("Node password validation failed for '{node}', hash does not match");
                    error!("{message}");
                    return status(StatusCode::FORBIDDEN, "Forbidden", &message);
                }
                Err(e) => {
                    error!("unable to verify password for node {node}: {e:#}");
                    return not_ready();
                }
            }
        }
        let made = if serving {
            let addresses = header("k3s-node-ip").split(',').filter(|a| a.parse::<IpAddr>().is_ok());
            let sans = Sans::new([node.as_str(), "localhost", "127.0.0.1"].into_iter().chain(addresses));
            let wanted = CertRequest { name: &node, organisation: "", sans, server: true, client: false };
            kubelet_bundle(&self.layout, "serving-kubelet.key", "server-ca", &wanted)
        } else {
            let name = format!("system:node:{node}");
            let wanted = CertRequest { name: &name, organisation: "system:nodes", sans: Sans::default(), server: false, client: true };
            kubelet_bundle(&self.layout, "client-kubelet.key", "client-ca", &wanted)
        };
        match made {
            Ok(pem) => text(pem),
            Err(e) => internal(&format!("{e:#}")),
        }
    }
}

fn basic_auth(request: &Request<Incoming>) -> Option<(String, String)> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn text(bytes: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn json(value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn internal(message: &str) -> Response<Body> {
    status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
}

fn not_ready() -> Response<Body> {
    status(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "apiserver not ready")
}

/// Listens on the API port of all addresses, or of one. kube-apiserver shares the port, on a
/// loopback address of its own, so that the `kubernetes` endpoints show the port that others
/// reach.
///
/// # Errors
/// `listen tcp :6443: bind: address already in use`
pub fn listen(bind: Option<IpAddr>, port: u16) -> Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let shown = bind.map(|a| a.to_string()).unwrap_or_default();
    let open = |address: IpAddr| -> std::io::Result<TcpListener> {
        let address = SocketAddr::new(address, port);
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        TcpListener::from_std(socket.into())
    };
    let listener = match bind {
        Some(address) => open(address),
        None => open(std::net::Ipv6Addr::UNSPECIFIED.into()).or_else(|e| match e.kind() {
            std::io::ErrorKind::AddrInUse => Err(e),
            // A kernel without IPv6.
            _ => open(std::net::Ipv4Addr::UNSPECIFIED.into()),
        }),
    };
    listener.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!("listen tcp {shown}:{port}: bind: address already in use"),
        _ => anyhow::anyhow!("listen tcp {shown}:{port}: {e}"),
    })
}

//! How etcd's members are, as far as a pod without rights over etcd can find out.
//!
//! Each server's own API server is asked whether it is ready. That includes a read from its etcd, which on k3s is the member on
//! the same host, and a read needs a leader and a quorum (kube-apiserver's etcd health check). So a server that is ready has a
//! healthy member; one that is not ready counts as one that is not, which is on the safe side.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Endpoints;
use kube::api::Api;
use updates::decide::{Etcd, Voter};

use super::super::view::NodeView;
use crate::client::Clients;

/// At once.
const ASKED: usize = 8;

/// How the members are. `nodes` are all nodes, by name.
pub(super) async fn members<'n>(clients: &Clients, nodes: impl Iterator<Item = (&'n str, &'n NodeView)>) -> Etcd {
    let servers: Vec<_> = nodes.filter(|(_, node)| node.etcd).collect();
    if servers.is_empty() {
        return Etcd::Elsewhere;
    }
    let port = match port(clients).await {
        Ok(Some(port)) => port,
        Ok(None) => return Etcd::Unknown,
        Err(e) => {
            tracing::warn!("cannot find the API servers: {}", k3s::in_words(&e));
            return Etcd::Unknown;
        }
    };
    let ask = async |(name, node): (&str, &NodeView)| {
        let ready = match &node.address {
            Some(address) => is_ready(clients, address, port).await,
            None => Err("it has no address".into()),
        };
        if let Err(why) = &ready {
            tracing::info!(node = name, "its API server is not ready: {why}");
        }
        Voter { node: name.to_owned(), healthy: ready.is_ok() }
    };
    let mut voters: Vec<_> = futures::stream::iter(servers.into_iter().map(ask)).buffer_unordered(ASKED).collect().await;
    voters.sort_by(|a, b| a.node.cmp(&b.node));
    Etcd::Voters(voters)
}

/// Where API servers listen on their own addresses.
async fn port(clients: &Clients) -> kube::Result<Option<u16>> {
    let endpoints = Api::<Endpoints>::namespaced(clients.asking.clone(), "default").get("kubernetes").await?;
    let ports = endpoints.subsets.into_iter().flatten().filter_map(|s| s.ports).flatten();
    Ok(ports.filter(|p| p.name.as_deref() == Some("https")).find_map(|p| u16::try_from(p.port).ok()))
}

async fn is_ready(clients: &Clients, address: &str, port: u16) -> Result<(), String> {
    let client = clients.of_server(address, port).map_err(|e| e.chain())?;
    let request = http::Request::get("/readyz").body(Vec::new()).map_err(|e| e.to_string())?;
    client.request_text(request).await.map(drop).map_err(|e| k3s::in_words(&e))
}

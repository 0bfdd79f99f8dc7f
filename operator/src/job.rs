//! The deployment job: ends when the operator works.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Resource as _;
use kube::api::{Api, ListParams, ObjectList, ObjectMeta, Request};
use node::{Error, Result};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use updates::api::{NodeUpdate, crds};
use updates::names;

use crate::client::Clients;
use crate::{LEASE, VERSION};

/// How often to look.
const LOOK: Duration = Duration::from_secs(2);
/// A look at thousands of nodes takes a while: no more of the time than one part in so many is spent with it.
const SELDOM: u32 = 10;

/// Of a `NodeUpdate`, what tells whether its agent has reported: all else is read over, not kept.
#[derive(Debug, Clone, Deserialize)]
struct Reported {
    metadata: ObjectMeta,
    status: Option<ReportedBy>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReportedBy {
    agent_version: String,
}

/// What there is of the operator.
struct Found {
    /// The names of the definitions that are established.
    established: Vec<String>,
    /// Whether a controller renewed the lease between the last look and this one.
    leads: bool,
    /// All nodes.
    nodes: Vec<String>,
    /// The nodes whose agents are of our version and have reported.
    reported: Vec<String>,
}

/// What is missing; None when the operator works. Pure.
fn missing(found: &Found) -> Option<String> {
    if let Some(crd) = crds().iter().map(kube::ResourceExt::name_any).find(|name| !found.established.contains(name)) {
        return Some(format!("{crd} is not established"));
    }
    if !found.leads {
        return Some("no controller leads yet".into());
    }
    let silent: Vec<&str> = found.nodes.iter().filter(|n| !found.reported.contains(n)).map(String::as_str).collect();
    if !silent.is_empty() || found.nodes.is_empty() {
        const SHOWN: usize = 5;
        let more = if silent.len() > SHOWN { ", …" } else { "" };
        let names = silent[..silent.len().min(SHOWN)].join(", ");
        return Some(format!("the agents of {} of {} nodes have not reported: {names}{more}", silent.len(), found.nodes.len()));
    }
    None
}

/// Waits until the definitions are established, a controller leads, and the agents of all nodes have reported, and says on the way
/// what is missing. The Job's own deadline ends it otherwise.
///
/// # Errors
/// When this is no pod, or it is told to stop.
pub async fn job(stop: &CancellationToken) -> Result<()> {
    let clients = Clients::in_cluster()?;
    let mut lease = None;
    let mut said = String::new();
    loop {
        let began = Instant::now();
        let missing = match look(&clients, &mut lease).await {
            Ok(found) => missing(&found),
            Err(e) => Some(format!("the API cannot be asked: {}", k3s::in_words(&e))),
        };
        let Some(missing) = missing else {
            tracing::info!(version = VERSION, "the operator works on all nodes");
            return Ok(());
        };
        if missing != said {
            tracing::info!("waiting: {missing}");
            said = missing;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK.max(began.elapsed() * SELDOM)) => {}
            () = stop.cancelled() => return Err(Error::failed(format!("told to stop while waiting: {said}"))),
        }
    }
}

async fn look(clients: &Clients, before: &mut Option<LeaseSpec>) -> Result<Found, kube::Error> {
    let client = &clients.asking;
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let mut established = Vec::new();
    for name in crds().iter().map(kube::ResourceExt::name_any) {
        let conditions = definitions.get_opt(&name).await?.and_then(|crd| crd.status?.conditions).unwrap_or_default();
        if conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
            established.push(name);
        }
    }
    let lease = Api::<Lease>::namespaced(client.clone(), names::NAMESPACE).get_opt(LEASE).await?.and_then(|l| l.spec);
    let held = lease.as_ref().is_some_and(|l| l.holder_identity.as_ref().is_some_and(|h| !h.is_empty()));
    // that it changes is the sign of life; its time is another host's
    let leads = held && before.is_some() && *before != lease;
    if !leads {
        *before = before.take().or(lease);
    }
    let nodes = Api::<Node>::all(client.clone()).list_metadata(&ListParams::default()).await?;
    let nodes = nodes.items.iter().map(kube::ResourceExt::name_any).collect();
    let reported = if established.len() == crds().len() {
        let request = Request::new(NodeUpdate::url_path(&(), Some(names::NAMESPACE))).list(&ListParams::default());
        let all: ObjectList<Reported> = client.request(request.map_err(kube::Error::BuildRequest)?).await?;
        let ours = all.items.into_iter().filter(|n| n.status.as_ref().is_some_and(|s| s.agent_version == VERSION));
        ours.filter_map(|n| n.metadata.name).collect()
    } else {
        Vec::new()
    };
    Ok(Found { established, leads, nodes, reported })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn says_what_is_missing_in_its_order() {
        let all: Vec<String> = crds().iter().map(kube::ResourceExt::name_any).collect();
        let mut found = Found { established: names(&[]), leads: false, nodes: names(&["a", "b"]), reported: names(&["b"]) };
        assert_eq!(missing(&found).unwrap(), "updatemanagers.maintenance.virtuozzo.io is not established");
        found.established = all;
        assert_eq!(missing(&found).unwrap(), "no controller leads yet");
        found.leads = true;
        assert_eq!(missing(&found).unwrap(), "the agents of 1 of 2 nodes have not reported: a");
        found.reported = names(&["a", "b", "gone"]);
        assert_eq!(missing(&found), None);
        found.nodes.clear();
        assert!(missing(&found).is_some(), "a cluster without nodes has no operator");
    }
}

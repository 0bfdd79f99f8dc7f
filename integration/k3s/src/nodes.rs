//! What a server does about Node objects: roles and annotations of its own node; a deleted
//! node's etcd member and password go.

use crate::etcd::Etcd;
use crate::{error, info, node_password};
use anyhow::Result;
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::time::Duration;

const MEMBER_NAME: &str = "etcd.k3s.cattle.io/node-name";
const MEMBER_ADDRESS: &str = "etcd.k3s.cattle.io/node-address";
const REMOVE: &str = "etcd.k3s.cattle.io/remove";
const REMOVED: &str = "etcd.k3s.cattle.io/removed-node-name";

/// Labels and annotates our own node as soon as it is there, then keeps watch; for ever.
pub async fn keep(client: Client, own: String, etcd: Option<Etcd>) {
    loop {
        if let Err(e) = keep_once(&client, &own, etcd.as_ref()).await {
            error!("node controller: {e:#}");
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

async fn keep_once(client: &Client, own: &str, etcd: Option<&Etcd>) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let mut known: BTreeMap<String, Node> = BTreeMap::new();
    let mut events = std::pin::pin!(watcher(api.clone(), watcher::Config::default()));
    while let Some(event) = events.try_next().await? {
        match event {
            watcher::Event::InitApply(node) | watcher::Event::Apply(node) => {
                let name = node.metadata.name.clone().unwrap_or_default();
                if name == own {
                    mark(&api, &node, etcd).await?;
                }
                if let Some(etcd) = etcd {
                    leave(&api, &node, etcd).await?;
                }
                known.insert(name, node);
            }
            watcher::Event::Delete(node) => {
                let name = node.metadata.name.clone().unwrap_or_default();
                known.remove(&name);
                if let Some(etcd) = etcd {
                    remove_member(&node, etcd).await;
                }
                // Several servers try; one of them is first.
                let _ = node_password::forget(client, &name).await;
            }
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
    }
    Ok(())
}

async fn mark(api: &Api<Node>, node: &Node, etcd: Option<&Etcd>) -> Result<()> {
    let mut labels = vec!["control-plane", "master"];
    let mut annotations = serde_json::Map::new();
    if let Some(etcd) = etcd {
        labels.push("etcd");
        annotations.insert(MEMBER_NAME.to_owned(), etcd.name.clone().into());
        annotations.insert(MEMBER_ADDRESS.to_owned(), etcd.address().to_string().into());
    }
    let labels: serde_json::Map<_, _> = labels.into_iter().map(|l| (format!("node-role.kubernetes.io/{l}"), "true".into())).collect();
    let has = |have: Option<&BTreeMap<String, String>>, want: &serde_json::Map<String, serde_json::Value>| {
        want.iter().all(|(k, v)| have.and_then(|h| h.get(k)).is_some_and(|h| v == h))
    };
    if has(node.metadata.labels.as_ref(), &labels) && has(node.metadata.annotations.as_ref(), &annotations) {
        return Ok(());
    }
    let patch = serde_json::json!({"metadata": {"labels": labels, "annotations": annotations}});
    let name = node.metadata.name.as_deref().unwrap_or_default();
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    info!("Labels and annotations have been set successfully on node: {name}");
    Ok(())
}

fn annotation<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The protocol of newer k3s: a node annotated `remove=true` loses its member and is annotated
/// with the member's name.
async fn leave(api: &Api<Node>, node: &Node, etcd: &Etcd) -> Result<()> {
    let (Some("true"), Some(member), Some(address)) =
        (annotation(node, REMOVE), annotation(node, MEMBER_NAME), annotation(node, MEMBER_ADDRESS))
    else {
        return Ok(());
    };
    if annotation(node, REMOVED) == Some(member) || !etcd.leads().await {
        return Ok(());
    }
    if let Err(e) = etcd.remove_peer(member, address).await {
        error!("failed to remove etcd member {member}: {e:#}");
        return Ok(());
    }
    let patch = serde_json::json!({"metadata": {"annotations": {REMOVED: member}}});
    let name = node.metadata.name.as_deref().unwrap_or_default();
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Every server but the one in question tries, since the leader may be the one that is gone.
async fn remove_member(node: &Node, etcd: &Etcd) {
    let (Some(member), Some(address)) = (annotation(node, MEMBER_NAME), annotation(node, MEMBER_ADDRESS)) else {
        return;
    };
    if address == etcd.address().to_string() {
        return;
    }
    for _ in 0..6 {
        match etcd.remove_peer(member, address).await {
            Ok(()) => return,
            Err(e) => error!("failed to remove etcd member {member}: {e:#}"),
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

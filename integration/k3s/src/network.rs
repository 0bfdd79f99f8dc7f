//! The pod network as flannel makes it: a bridge on each host, a VXLAN device between them, kept
//! in step with the Node objects.

use crate::layout::{Layout, write};
use crate::process::run;
use crate::settings::Node;
use crate::{error, info, kubeconfig};
use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, watcher};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
const DEVICE: &str = "flannel.1";

/// Another host's part of the pod network.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    /// Its pods.
    subnet: ipnet::Ipv4Net,
    /// Its VXLAN device.
    mac: String,
    /// Where it is reached.
    address: String,
}

/// Keeps the pod network of this host up, for ever.
pub async fn keep(node: Node, cluster_cidr: String, kubelet: PathBuf) {
    loop {
        if let Err(e) = keep_once(&node, &cluster_cidr, &kubelet).await {
            error!("flannel: {e:#}");
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

async fn keep_once(node: &Node, cluster_cidr: &str, kubelet: &Path) -> Result<()> {
    let api: kube::Api<NodeObject> = kube::Api::all(kubeconfig::client(kubelet).await?);
    let own = loop {
        let found = kubeconfig::soon(api.get_opt(&node.name)).await?;
        if let Some(cidr) = found.and_then(|n| n.spec?.pod_cidr) {
            break cidr.parse::<ipnet::Ipv4Net>().with_context(|| format!("pod CIDR {cidr}"))?;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let mac = device(node, own).await?;
    rules(cluster_cidr, own).await?;
    cni(&node.layout, cluster_cidr, own)?;
    let annotations = serde_json::json!({"metadata": {"annotations": {
        PUBLIC_IP: node.ip.to_string(),
        BACKEND_DATA: format!("{{\"VtepMAC\":\"{mac}\"}}"),
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
    }}});
    api.patch(&node.name, &PatchParams::default(), &Patch::Merge(annotations)).await?;
    info!("Running flannel backend: {own} on {DEVICE} over {}", node.iface);

    let mut peers = BTreeMap::new();
    let mut listed = BTreeMap::new();
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    while let Some(event) = events.try_next().await? {
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(n) => note(&mut listed, &n, &node.name),
            watcher::Event::InitDone => {
                let gone: Vec<Peer> =
                    peers.iter().filter(|(k, _)| !listed.contains_key(*k)).map(|(_, p): (&String, &Peer)| p.clone()).collect();
                for peer in gone {
                    remove(&peer).await;
                }
                for peer in listed.values() {
                    add(peer).await?;
                }
                peers.clone_from(&listed);
            }
            watcher::Event::Apply(n) => {
                let before = peers.get(n.metadata.name.as_deref().unwrap_or_default()).cloned();
                note(&mut peers, &n, &node.name);
                let after = peers.get(n.metadata.name.as_deref().unwrap_or_default());
                if before.as_ref() != after {
                    if let Some(old) = before {
                        remove(&old).await;
                    }
                    if let Some(new) = after {
                        add(new).await?;
                    }
                }
            }
            watcher::Event::Delete(n) => {
                if let Some(old) = peers.remove(n.metadata.name.as_deref().unwrap_or_default()) {
                    remove(&old).await;
                }
            }
        }
    }
    Ok(())
}

fn note(peers: &mut BTreeMap<String, Peer>, object: &NodeObject, own: &str) {
    if let Some(name) = object.metadata.name.as_deref().filter(|n| *n != own) {
        match peer(object) {
            Some(peer) => peers.insert(name.to_owned(), peer),
            None => peers.remove(name),
        };
    }
}

fn peer(object: &NodeObject) -> Option<Peer> {
    let annotations = object.metadata.annotations.as_ref()?;
    let data: serde_json::Value = serde_json::from_str(annotations.get(BACKEND_DATA)?).ok()?;
    Some(Peer {
        subnet: object.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?,
        mac: data["VtepMAC"].as_str()?.to_owned(),
        address: annotations.get(PUBLIC_IP)?.clone(),
    })
}

/// Makes the VXLAN device anew where it is not as it must be; its hardware address.
async fn device(node: &Node, own: ipnet::Ipv4Net) -> Result<String> {
    let local = node.ip.to_string();
    let existing = run("ip", &["-j", "-d", "link", "show", DEVICE]).await.ok();
    let existing: serde_json::Value = existing.and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default();
    let data = &existing[0]["linkinfo"]["info_data"];
    let as_wanted = [&data["local"], &data["local6"]].iter().any(|l| *l == local.as_str()) && data["link"] == node.iface.as_str();
    if !as_wanted {
        if existing[0].is_object() {
            run("ip", &["link", "del", DEVICE]).await?;
        }
        run(
            "ip",
            &["link", "add", DEVICE, "type", "vxlan", "id", "1", "dev", &node.iface, "local", &local, "dstport", "8472", "nolearning"],
        )
        .await?;
    }
    run("ip", &["addr", "replace", &format!("{}/32", own.network()), "dev", DEVICE]).await?;
    run("ip", &["link", "set", DEVICE, "up"]).await?;
    write_sysctl("net/ipv4/ip_forward");
    // Not on every kernel: bridged traffic then passes iptables unseen, which is all right here.
    write_sysctl("net/bridge/bridge-nf-call-iptables");
    let shown: serde_json::Value = serde_json::from_str(&run("ip", &["-j", "link", "show", DEVICE]).await?)?;
    Ok(shown[0]["address"].as_str().context("flannel.1 has no address")?.to_owned())
}

fn write_sysctl(name: &str) {
    let path = Path::new("/proc/sys").join(name);
    if path.exists()
        && let Err(e) = std::fs::write(&path, "1")
    {
        crate::warning!("cannot set {name}: {e}");
    }
}

async fn rule(table: &str, chain: &str, spec: &[&str]) -> Result<()> {
    let with = |verb: &'static str| -> Vec<&str> {
        let mut args = vec!["-w", "-t", table, verb, chain];
        args.extend(spec);
        args
    };
    if run("iptables", &with("-C")).await.is_err() {
        run("iptables", &with("-A")).await?;
    }
    Ok(())
}

/// What flannel adds: pods may be forwarded, and go out under the host's address.
async fn rules(cluster: &str, own: ipnet::Ipv4Net) -> Result<()> {
    let own = own.to_string();
    rule("filter", "FORWARD", &["-s", cluster, "-j", "ACCEPT"]).await?;
    rule("filter", "FORWARD", &["-d", cluster, "-j", "ACCEPT"]).await?;
    rule("nat", "POSTROUTING", &["-s", cluster, "-d", cluster, "-j", "RETURN"]).await?;
    rule("nat", "POSTROUTING", &["-s", cluster, "!", "-d", "224.0.0.0/4", "-j", "MASQUERADE"]).await?;
    rule("nat", "POSTROUTING", &["!", "-s", cluster, "-d", &own, "-j", "RETURN"]).await?;
    rule("nat", "POSTROUTING", &["!", "-s", cluster, "-d", cluster, "-j", "MASQUERADE"]).await
}

/// The CNI configuration; as soon as it is there, kubelet says Ready.
fn cni(layout: &Layout, cluster: &str, own: ipnet::Ipv4Net) -> Result<()> {
    let subnet = format!(
        "FLANNEL_NETWORK={cluster}\nFLANNEL_SUBNET={}/{}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        Ipv4Addr::from(u32::from(own.network()) + 1),
        own.prefix_len()
    );
    write(Path::new("/run/flannel/subnet.env"), subnet.as_bytes(), 0o644)?;
    let conflist = serde_json::json!({
        "name": "cbr0",
        "cniVersion": "0.3.1",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "mtu": 1450, "isDefaultGateway": true, "hairpinMode": true, "forceAddress": true,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": own.to_string()}]], "routes": [{"dst": cluster}], "dataDir": "/var/lib/cni/networks"},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    write(&layout.agent("etc/cni/net.d/10-flannel.conflist"), conflist.to_string().as_bytes(), 0o644)
}

async fn add(peer: &Peer) -> Result<()> {
    let (gateway, subnet) = (peer.subnet.network().to_string(), peer.subnet.to_string());
    run("ip", &["neigh", "replace", &gateway, "lladdr", &peer.mac, "dev", DEVICE, "nud", "permanent"]).await?;
    run("bridge", &["fdb", "replace", &peer.mac, "dev", DEVICE, "dst", &peer.address, "self", "permanent"]).await?;
    run("ip", &["route", "replace", &subnet, "via", &gateway, "dev", DEVICE, "onlink"]).await?;
    Ok(())
}

async fn remove(peer: &Peer) {
    let (gateway, subnet) = (peer.subnet.network().to_string(), peer.subnet.to_string());
    // Whatever is gone already need not go.
    let _ = run("ip", &["route", "del", &subnet, "dev", DEVICE]).await;
    let _ = run("bridge", &["fdb", "del", &peer.mac, "dev", DEVICE]).await;
    let _ = run("ip", &["neigh", "del", &gateway, "dev", DEVICE]).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, mac: Option<&str>) -> NodeObject {
        let mut annotations = serde_json::json!({PUBLIC_IP: "10.0.0.2"});
        if let Some(mac) = mac {
            annotations[BACKEND_DATA] = format!("{{\"VtepMAC\":\"{mac}\"}}").into();
        }
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"podCIDR": "10.42.1.0/24"},
        }))
        .unwrap()
    }

    #[test]
    fn peers_from_nodes() {
        let mut peers = BTreeMap::new();
        note(&mut peers, &object("me", Some("aa")), "me");
        assert!(peers.is_empty());
        note(&mut peers, &object("b", Some("aa")), "me");
        assert_eq!(peers["b"], Peer { subnet: "10.42.1.0/24".parse().unwrap(), mac: "aa".into(), address: "10.0.0.2".into() });
        note(&mut peers, &object("b", None), "me");
        assert!(peers.is_empty());
    }
}

//! A parsed command line as what it means.

use crate::cli::Parsed;
use crate::layout::Layout;
use crate::process;
use anyhow::{Context as _, Result, bail};
use std::net::IpAddr;

/// What server and agent share: this host as a node.
#[derive(Clone, Debug)]
pub struct Node {
    /// The data folder.
    pub layout: Layout,
    /// Lower case.
    pub name: String,
    /// The address that others reach it by.
    pub ip: IpAddr,
    /// The interface that carries the pod network.
    pub iface: String,
    /// `key=value`
    pub labels: Vec<String>,
    /// `key=value:Effect`
    pub taints: Vec<String>,
    /// `key=value` for kubelet.
    pub kubelet_args: Vec<String>,
    /// `key=value` for kube-proxy.
    pub kube_proxy_args: Vec<String>,
    /// Docker in containerd's place.
    pub docker: bool,
    /// containerd's.
    pub snapshotter: String,
    /// containerd's.
    pub selinux: bool,
}

impl Node {
    /// # Errors
    /// An address or name that is none; no default route to take the address from.
    pub async fn new(flags: &Parsed) -> Result<Self> {
        let layout = Layout::new(flags.one("data-dir").unwrap_or_default());
        let (ip, iface) = addresses(flags).await?;
        let mut name = match flags.one("node-name") {
            Some(n) => n.to_lowercase(),
            None => rustix::system::uname().nodename().to_str()?.to_lowercase(),
        };
        if flags.is("with-node-id") {
            let path = std::path::Path::new("/etc/rancher/node/id");
            if !path.exists() {
                crate::layout::write(path, crate::token::random_hex(4)?.as_bytes(), 0o644)?;
            }
            name = format!("{name}-{}", std::fs::read_to_string(path)?.trim());
        }
        Ok(Self {
            layout,
            name,
            ip,
            iface,
            labels: flags.many("node-label").to_vec(),
            taints: flags.many("node-taint").to_vec(),
            kubelet_args: component_args(flags, "kubelet-arg"),
            kube_proxy_args: component_args(flags, "kube-proxy-arg"),
            docker: flags.is("docker"),
            snapshotter: flags.one("snapshotter").unwrap_or("overlayfs").to_owned(),
            selinux: flags.is("selinux"),
        })
    }
}

/// A component's extra arguments; `--debug` lets it log all it does.
pub fn component_args(flags: &Parsed, name: &str) -> Vec<String> {
    let debug = flags.is("debug").then(|| ["logtostderr=true", "v=4"].map(ToOwned::to_owned));
    debug.into_iter().flatten().chain(flags.many(name).iter().cloned()).collect()
}

/// The token that flags, environment or a file give; empty means none.
///
/// # Errors
/// The file cannot be read.
pub fn token(flags: &Parsed, value: &str, file: &str) -> Result<Option<String>> {
    if let Some(token) = flags.one(value) {
        return Ok(Some(token.to_owned()));
    }
    let Some(path) = flags.one(file) else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("open {path}"))?;
    Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty()))
}

/// The node's address and the interface of its pod network.
async fn addresses(flags: &Parsed) -> Result<(IpAddr, String)> {
    let given = flags.comma_separated("node-ip");
    let given = match given.first() {
        Some(text) => Some(text.parse::<IpAddr>().with_context(|| format!("invalid node-ip: {text}"))?),
        None => None,
    };
    let named = flags.one("flannel-iface").map(ToOwned::to_owned);
    let interfaces: serde_json::Value = serde_json::from_str(&process::run("ip", &["-j", "addr", "show"]).await?)?;
    if let Some(name) = &named
        && !interfaces.as_array().is_some_and(|all| all.iter().any(|i| i["ifname"] == name.as_str()))
    {
        bail!("unable to find interface: route ip+net: no such network interface: {name}");
    }
    if let Some(ip) = given {
        let iface = match named {
            Some(name) => name,
            None => holder(&interfaces, ip).with_context(|| format!("no interface has the address {ip}"))?,
        };
        return Ok((ip, iface));
    }
    // As in k3s, the default route must exist, even if flannel has an interface of its own.
    let mut device = None;
    for family in ["-4", "-6"] {
        let routes = process::run("ip", &["-j", family, "route", "show", "default"]).await?;
        let routes: serde_json::Value = serde_json::from_str(&routes).unwrap_or_default();
        device = device.or(routes[0]["dev"].as_str().map(ToOwned::to_owned));
    }
    let device = device.context("no default routes found in \"/proc/net/route\" or \"/proc/net/ipv6_route\"")?;
    let ip = first_address(&interfaces, named.as_deref().unwrap_or(&device))
        .with_context(|| format!("unable to select an IP from default routes: {device} has no address"))?;
    Ok((ip, named.unwrap_or(device)))
}

fn each_address(interfaces: &serde_json::Value) -> impl Iterator<Item = (&str, IpAddr)> {
    interfaces.as_array().into_iter().flatten().flat_map(|interface| {
        let name = interface["ifname"].as_str().unwrap_or_default();
        interface["addr_info"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|a| a["scope"] == "global")
            .filter_map(move |a| Some((name, a["local"].as_str()?.parse().ok()?)))
    })
}

fn holder(interfaces: &serde_json::Value, ip: IpAddr) -> Option<String> {
    each_address(interfaces).find(|(_, a)| *a == ip).map(|(name, _)| name.to_owned())
}

fn first_address(interfaces: &serde_json::Value, name: &str) -> Option<IpAddr> {
    each_address(interfaces).find(|(n, _)| *n == name).map(|(_, a)| a)
}

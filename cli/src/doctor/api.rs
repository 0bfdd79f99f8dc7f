//! What the API says: whether it answers through the VIP, what time it has, and how its nodes are.

use std::net::IpAddr;

use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::client::Body;
use node::{Context as _, Result};
use serde_json::Value;

use super::finding::Finding;

const API: &str = "api";
const CLOCK: &str = "clock-offset";
const NODES: &str = "nodes";
const NOT_A_NODE: &str = "vip-not-a-node";

/// More than this apart, in milliseconds, and certificates and leases go wrong. HTTP tells whole seconds only.
const CLOCK_LIMIT: i64 = 5000;

/// An answer of the API.
pub struct Answered {
    /// Its status code.
    pub status: u16,
    /// By how many milliseconds the server's clock is ahead of this host's; None when it does not tell.
    pub ahead: Option<i64>,
}

/// Asks for `/readyz`. `now` is this host's clock in milliseconds since 1970.
///
/// # Errors
/// When nobody answers.
pub async fn ask(client: &Client, now: impl Fn() -> i64) -> Result<Answered> {
    let request = http::Request::get("/readyz").body(Body::empty()).context("cannot make a request")?;
    let asked = now();
    let answer = client.send(request).await.map_err(|e| node::Error::failed(innermost(&e)))?;
    let answered = now();
    let date = answer.headers().get("date").and_then(|d| d.to_str().ok()).and_then(|d| jiff::fmt::rfc2822::parse(d).ok());
    // the second it names has been under way for half of one, on average
    let ahead = date.map(|d| d.timestamp().as_millisecond() + 500 - i64::midpoint(asked, answered));
    Ok(Answered { status: answer.status().as_u16(), ahead })
}

/// The client's own words repeat each other.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(next) = deepest.source() {
        deepest = next;
    }
    deepest.to_string()
}

/// The checks `api` and `clock-offset`.
pub fn judge(answer: &Result<Answered>, url: &str) -> Vec<Finding> {
    let hint = "smartup status shows what holds it up; on the servers: journalctl -u k3s-server";
    match answer {
        Err(e) => vec![
            Finding::fail(API, format!("{url} does not answer: {}", e.chain()), hint),
            Finding::unknown(CLOCK, "the API does not answer", None),
        ],
        Ok(answer) => vec![
            match answer.status {
                200 => Finding::ok(API, format!("{url} answers, and is ready")),
                status => Finding::fail(API, format!("{url} is not ready: it answers {status}"), hint),
            },
            clock(answer.ahead),
        ],
    }
}

fn clock(ahead: Option<i64>) -> Finding {
    match ahead {
        None => Finding::unknown(CLOCK, "the API does not tell its time", None),
        Some(ms) if ms.abs() > CLOCK_LIMIT => {
            let way = if ms > 0 { "behind" } else { "ahead of" };
            Finding::warn(CLOCK, format!("this host's clock is {} s {way} the API's", ms.abs() / 1000), "run chrony on all hosts")
        }
        Some(_) => Finding::ok(CLOCK, "this host's clock agrees with the API's"),
    }
}

/// A node, as far as it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    name: String,
    /// `True`, `False` or `Unknown`, and why.
    ready: (String, Option<String>),
    cordoned: bool,
    /// The addresses that others use to reach it, and where that is said.
    addresses: Vec<(&'static str, String)>,
}

/// All nodes, by name.
///
/// # Errors
/// When the API does not answer or refuses.
pub async fn nodes(client: &Client) -> Result<Vec<Node>> {
    let kind =
        ApiResource { group: String::new(), version: "v1".into(), api_version: "v1".into(), kind: "Node".into(), plural: "nodes".into() };
    let list = Api::<DynamicObject>::all_with(client.clone(), &kind).list(&ListParams::default()).await;
    let list = list.map_err(|e| node::Error::failed(format!("the API does not list its nodes: {}", innermost(&e))))?;
    Ok(list.items.iter().map(Node::of).collect())
}

impl Node {
    fn of(object: &DynamicObject) -> Self {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let of =
            |list: &Value, kind: &str| list.as_array().into_iter().flatten().filter(|c| c["type"] == kind).cloned().collect::<Vec<_>>();
        let ready = of(&object.data["status"]["conditions"], "Ready").into_iter().next().unwrap_or_default();
        let internal =
            of(&object.data["status"]["addresses"], "InternalIP").into_iter().filter_map(|a| Some(("InternalIP", text(&a["address"])?)));
        let mut addresses: Vec<_> = internal.collect();
        let annotations = object.metadata.annotations.as_ref();
        for key in ["flannel.alpha.coreos.com/public-ip", "flannel.alpha.coreos.com/public-ipv6"] {
            addresses.extend(annotations.and_then(|a| a.get(key)).map(|a| (key, a.clone())));
        }
        Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            ready: (text(&ready["status"]).unwrap_or_else(|| "Unknown".to_owned()), text(&ready["message"])),
            cordoned: object.data["spec"]["unschedulable"] == true,
            addresses,
        }
    }
}

/// The checks `nodes` and `vip-not-a-node`. `own` is this host's node.
pub fn judge_nodes(nodes: &[Node], own: &str, vip: IpAddr) -> Vec<Finding> {
    let mut found: Vec<Finding> = nodes.iter().filter(|n| n.ready.0 != "True").map(not_ready).collect();
    found.extend(nodes.iter().filter(|n| n.cordoned && n.ready.0 == "True").map(|n| {
        Finding::warn(
            NODES,
            format!("{} takes no new pods: it is cordoned", n.name),
            format!("if nobody works on it: kubectl uncordon {}", n.name),
        )
    }));
    if !nodes.iter().any(|n| n.name == own) {
        found.push(Finding::fail(NODES, format!("{own} is not among the nodes"), "see journalctl -u k3s-server or k3s-agent on it"));
    }
    if found.is_empty() {
        found.push(Finding::ok(NODES, format!("all {} nodes are Ready", nodes.len())));
    }
    let vip = vip.to_string();
    let wrong: Vec<Finding> = nodes
        .iter()
        .flat_map(|n| n.addresses.iter().filter(|(_, a)| *a == vip).map(move |(place, _)| (n, *place)))
        .map(|(n, place)| {
            let what = format!("the node {} has the VIP {vip} for its own address ({place})", n.name);
            let hint = "the pod network breaks whenever the VIP moves; run smartup init or join there again, which pins --node-ip";
            Finding::fail(NOT_A_NODE, what, hint)
        })
        .collect();
    if wrong.is_empty() {
        found.push(Finding::ok(NOT_A_NODE, format!("no node has {vip} for its own address")));
    }
    found.extend(wrong);
    found
}

fn not_ready(node: &Node) -> Finding {
    let what = match node.ready.0.as_str() {
        "False" => format!("{} is not Ready: {}", node.name, node.ready.1.as_deref().unwrap_or("it does not say why")),
        _ => format!("{} is not Ready: it does not report", node.name),
    };
    Finding::fail(NODES, what, "see journalctl -u k3s-server or k3s-agent on it, and whether it can reach the API through the VIP")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Verdict;
    use super::*;

    fn node(name: &str, ready: &str, internal: &str, flannel: &str) -> Node {
        let object = json!({
            "metadata": { "name": name, "annotations": { "flannel.alpha.coreos.com/public-ip": flannel } },
            "spec": {},
            "status": {
                "addresses": [{ "type": "Hostname", "address": name }, { "type": "InternalIP", "address": internal }],
                "conditions": [{ "type": "DiskPressure", "status": "False" }, { "type": "Ready", "status": ready, "message": "PLEG is not healthy" }],
            },
        });
        Node::of(&serde_json::from_value(object).unwrap())
    }

    fn said(nodes: &[Node]) -> Vec<String> {
        let found = judge_nodes(nodes, "h1", "10.0.0.10".parse().unwrap());
        found.into_iter().filter(|f| f.verdict != Verdict::Ok).map(|f| f.what).collect()
    }

    #[test]
    fn nodes_that_are_whole() {
        assert!(said(&[node("h1", "True", "10.0.0.11", "10.0.0.11"), node("h2", "True", "10.0.0.12", "10.0.0.12")]).is_empty());
    }

    #[test]
    fn nodes_that_are_not_ready_or_have_the_vip() {
        let nodes = [node("h2", "False", "10.0.0.12", "10.0.0.10"), node("h3", "Unknown", "10.0.0.10", "10.0.0.13")];
        assert_eq!(
            said(&nodes),
            [
                "h2 is not Ready: PLEG is not healthy",
                "h3 is not Ready: it does not report",
                "h1 is not among the nodes",
                "the node h2 has the VIP 10.0.0.10 for its own address (flannel.alpha.coreos.com/public-ip)",
                "the node h3 has the VIP 10.0.0.10 for its own address (InternalIP)",
            ]
        );
        let cordoned = Node { cordoned: true, ..node("h1", "True", "10.0.0.11", "10.0.0.11") };
        assert_eq!(said(&[cordoned]), ["h1 takes no new pods: it is cordoned"]);
    }

    #[test]
    fn clocks() {
        assert_eq!(clock(Some(-5000)).verdict, Verdict::Ok);
        assert!(clock(Some(6100)).what.contains("6 s behind"));
        assert!(clock(Some(-60_000)).what.contains("60 s ahead of"));
        assert_eq!(clock(None).verdict, Verdict::Unknown);
    }
}

//! How a node goes out of the cluster: for the commands on a host and for `smartup node` alike.

use std::path::Path;
use std::time::Duration;

use cluster::Role;
use fleet::protocol::Leave;
use k3s::{DrainOptions, DrainRules, Etcd, Holder, Lease, MemberState, NodeInfo, Quorum};
use kube::Client;
use node::{Error, Event, Host, Lock, Result, Undone};

use crate::commands::reset;
use crate::membership::Membership;

/// What a departure may do.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Evict pods that nothing brings back, and give up volumes that are on the host.
    pub force: bool,
    /// How long the drain may take.
    pub timeout: Duration,
}

impl From<Leave> for Options {
    fn from(how: Leave) -> Self {
        Self { force: how.force, timeout: Duration::from_secs(how.timeout_s) }
    }
}

/// Takes another node, called by its name or address, out of the cluster, from a server that stays: drains it if it lives, takes it out of etcd if it is a
/// server, and removes the node with its password. Answers what was done, in words; nothing when it was gone already.
///
/// # Errors
/// Refused when etcd would lose its quorum, when another operation is under way, or when pods may not or cannot go.
pub async fn of_another(host: &Host, called: &[String], options: Options) -> Result<Vec<String>> {
    let client = admin(None).await?;
    let (node, member) = find(&client, called).await?;
    let name = match (&node, &member) {
        (Some(node), _) => node.name.clone(),
        (None, Some(member)) => member.name.clone(),
        (None, None) => return Ok(Vec::new()),
    };
    let name = name.as_str();
    if name == host.facts.hostname {
        return Err(Error::invalid(format!("{name} is this host itself")).hint("smartup leave"));
    }
    let lease = take(host, &client, &format!("removing {name}")).await?;
    let done = async {
        guard(name, member.as_ref()).await?;
        let mut done = Vec::new();
        if let Some(node) = &node {
            stays_behind(&client, name, options).await?;
            if node.ready == "True" {
                done.push(drain(host, &client, name, options).await?);
            } else {
                host.reporter.warn(format!("{name} is not Ready, so its pods are not waited for"), None);
            }
        }
        lease.still_ours().await?;
        if let Some(member) = &member {
            Etcd::here()?.remove(member.id).await?;
            done.push(format!("taken out of etcd: {}", member.name));
        }
        if k3s::forget(&client, name).await? {
            done.push(format!("node {name} removed, with its password"));
        }
        Ok(done)
    };
    let done = done.await;
    lease.end().await;
    done
}

/// Takes this server out of its cluster, and undoes what smartup did here.
///
/// # Errors
/// As [`of_another`]; and on an agent, which may not remove its own node.
pub async fn of_this_server(host: &Host, options: Options, packages: bool) -> Result<(Vec<String>, Vec<Undone>)> {
    let lock = Lock::take(Path::new(Lock::PATH))?;
    let membership = Membership::load()?.ok_or_else(|| Error::failed("smartup has not set up this host"))?;
    let name = host.facts.hostname.clone();
    if membership.role == Role::Agent {
        return Err(Error::refused(format!("{name} is an agent: Kubernetes does not let it remove its own node"))
            .hint(format!("on a server: smartup remove {name}; then here: smartup reset")));
    }
    // through the VIP, which is somebody else's in the end
    let client = admin(Some(&membership.vip.api_url(membership.port))).await?;
    let (node, member) = find(&client, std::slice::from_ref(&name)).await?;
    let lease = take(host, &client, &format!("{name} is leaving")).await?;
    let departed = async {
        guard(&name, member.as_ref()).await?;
        let mut done = Vec::new();
        if node.is_some() {
            stays_behind(&client, &name, options).await?;
            done.push(drain(host, &client, &name, options).await?);
        }
        lease.still_ours().await?;
        hand_over(host, &membership).await?;
        if let Some(member) = &member {
            Etcd::here()?.remove(member.id).await?;
            done.push(format!("taken out of etcd: {}", member.name));
        }
        Ok::<_, Error>(done)
    };
    let mut done = match departed.await {
        Ok(done) => done,
        Err(e) => {
            // where this server stays, it may hold the VIP again
            host.systemd.start(keepalived::paths::UNIT).await?;
            lease.end().await;
            return Err(e);
        }
    };
    host.systemd.stop(&k3s::paths::unit(Role::Server)).await?;
    let forgotten = forget(host, &client, &name).await;
    lease.end().await;
    if forgotten? {
        done.push(format!("node {name} removed, with its password"));
    }
    Ok((done, reset::undo(host, packages, &lock).await?))
}

/// The API as its administrator, on a server.
///
/// # Errors
/// Refused on a host that is no server of a cluster.
pub async fn admin(url: Option<&str>) -> Result<Client> {
    let path = Path::new(k3s::paths::KUBECONFIG);
    if !path.exists() {
        return Err(Error::refused("this host is not a server of a cluster").hint("run it as root on a server, or with -f FILE"));
    }
    k3s::client(path, url).await
}

/// The node and the member of etcd that are called so. k3s names a member after the host, with eight digits more.
async fn find(client: &Client, called: &[String]) -> Result<(Option<NodeInfo>, Option<MemberState>)> {
    let is = |text: &str| called.iter().any(|c| c == text);
    let node = k3s::nodes(client).await?.into_iter().find(|n| is(&n.name) || is(&n.address));
    let members = k3s::members().await?;
    let host_of = |m: &MemberState| m.name.rsplit_once('-').filter(|(_, digits)| digits.len() == 8).map(|(host, _)| host.to_owned());
    let of_name = |m: &&MemberState| host_of(m).is_some_and(|h| is(&h) || node.as_ref().is_some_and(|n| n.name == h)) || is(&m.address);
    let of_address = |m: &&MemberState| node.as_ref().is_some_and(|n| n.role == Role::Server && m.address == n.address);
    let member = members.iter().find(of_name).or_else(|| members.iter().find(of_address)).cloned();
    Ok((node, member))
}

/// Takes the lease that keeps two operations on the cluster apart.
///
/// # Errors
/// Refused when another one is under way.
pub async fn take(host: &Host, client: &Client, doing: &str) -> Result<Lease> {
    let holder = Holder { host: host.facts.hostname.clone(), pid: std::process::id(), doing: doing.to_owned() };
    Lease::take(client, &holder, |what| host.waiting("lease", what)).await
}

/// Whether etcd bears it, by its live state.
async fn guard(name: &str, member: Option<&MemberState>) -> Result<()> {
    match member {
        Some(member) if !member.learner => Quorum::of(&k3s::members().await?).may_remove(name, member.is_healthy()),
        _ => Ok(()),
    }
}

/// Volumes on the host's own disk go with it.
async fn stays_behind(client: &Client, name: &str, options: Options) -> Result<()> {
    let volumes = k3s::volumes_on(client, name).await?;
    if volumes.is_empty() || options.force {
        return Ok(());
    }
    Err(Error::refused(format!("{name} has volumes on its own disk, which are lost when it goes: {}", volumes.join(", ")))
        .hint("move what they hold and delete them, or give --force"))
}

async fn drain(host: &Host, client: &Client, name: &str, options: Options) -> Result<String> {
    let began = std::time::Instant::now();
    let step = format!("drain {name}");
    host.reporter.report(Event::StepStarted { step: step.clone(), index: 1, total: 1 });
    let rules = DrainRules { force: options.force, ..DrainRules::default() };
    let how = DrainOptions { timeout: options.timeout, rules, why: format!("{name} leaves the cluster"), stop: host.stop.clone() };
    let drained = k3s::drain(client, name, &how, |what| host.waiting(&step, what)).await?;
    Ok(format!("{name} drained: {} pods went elsewhere, in {} s", drained.evicted.len(), began.elapsed().as_secs()))
}

/// Gives the VIP to another server: keepalived is stopped here, and the API answers through the VIP all the same.
///
/// # Errors
/// When no other server takes it.
pub async fn hand_over(host: &Host, membership: &Membership) -> Result<()> {
    host.systemd.stop(keepalived::paths::UNIT).await?;
    let (kubeconfig, url) = (k3s::paths::kubeconfig(Role::Server), membership.vip.api_url(membership.port));
    host.wait_for("VIP", "another server at the VIP", async || {
        Ok(match k3s::answers(kubeconfig, &url).await {
            Ok(()) => node::Awaited::Done(()),
            Err(e) => node::Awaited::missing(e.chain()),
        })
    })
    .await
}

/// etcd may have to choose a new leader first.
async fn forget(host: &Host, client: &Client, name: &str) -> Result<bool> {
    host.wait_for("node", "the API to remove the node", async || {
        Ok(match k3s::forget(client, name).await {
            Ok(gone) => node::Awaited::Done(gone),
            Err(e) => node::Awaited::missing(e.chain()),
        })
    })
    .await
}

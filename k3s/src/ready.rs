use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use cluster::Role;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use node::{Awaited, Context as _, Error, Host, Result, State, Step};
use serde::Serialize;

use crate::settings::paths;
use crate::skew::Version;
use crate::watch::Watch;

/// The API is on this host or in its network, where an answer takes a millisecond. A question that was asked just before the VIP
/// came must not hang: the next one is answered.
const CONNECT: Duration = Duration::from_millis(500);

/// A client for the API from a kubeconfig on this host; through another address (the VIP) if one is given.
///
/// # Errors
/// When the kubeconfig is not there or cannot be used.
pub async fn client(kubeconfig: &Path, url: Option<&str>) -> Result<Client> {
    let what = || format!("cannot use {}", kubeconfig.display());
    let mut config = config(kubeconfig).await?;
    if let Some(url) = url {
        config.cluster_url = url.parse().context(what())?;
    }
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(Duration::from_secs(5));
    config.default_retry = false;
    config.proxy_url = None;
    Client::try_from(config).context(what())
}

/// What a kubeconfig on this host says.
pub(crate) async fn config(kubeconfig: &Path) -> Result<Config> {
    let what = || format!("cannot use {}", kubeconfig.display());
    let file = Kubeconfig::read_from(kubeconfig).context(what())?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.context(what())
}

/// A node as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Server or agent.
    pub role: Role,
    /// `True`, `False` or `Unknown`, as its condition says.
    pub ready: String,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The kubelet's version.
    pub version: String,
    /// Its own address.
    pub address: String,
    /// Whether new pods are kept off it.
    pub cordoned: bool,
}

impl NodeInfo {
    fn of(node: &Node) -> Self {
        let labels = node.metadata.labels.as_ref();
        let server = |l: &BTreeMap<String, String>| {
            ["control-plane", "master", "etcd"].iter().any(|r| l.contains_key(&format!("node-role.kubernetes.io/{r}")))
        };
        let status = node.status.as_ref();
        let ready = status.and_then(|s| s.conditions.as_ref()?.iter().find(|c| c.type_ == "Ready"));
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            role: if labels.is_some_and(server) { Role::Server } else { Role::Agent },
            ready: ready.map_or_else(|| "Unknown".into(), |c| c.status.clone()),
            reason: ready.filter(|c| c.status != "True").and_then(|c| c.message.clone()),
            version: status.and_then(|s| s.node_info.as_ref()).map(|i| i.kubelet_version.clone()).unwrap_or_default(),
            address: status
                .and_then(|s| s.addresses.as_ref()?.iter().find(|a| a.type_ == "InternalIP"))
                .map(|a| a.address.clone())
                .unwrap_or_default(),
            cordoned: node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false),
        }
    }
}

/// All nodes, servers first, by name.
///
/// # Errors
/// When the API does not answer or refuses.
pub async fn nodes(client: &Client) -> Result<Vec<NodeInfo>> {
    let list = Api::<Node>::all(client.clone()).list(&ListParams::default()).await;
    let list = list.map_err(|e| Error::failed(format!("cannot list the nodes: {}", in_words(&e))))?;
    let mut nodes: Vec<NodeInfo> = list.items.iter().map(NodeInfo::of).collect();
    nodes.sort_by(|a, b| (a.role == Role::Agent, &a.name).cmp(&(b.role == Role::Agent, &b.name)));
    Ok(nodes)
}

/// What the API server at `url` (the VIP) runs, asked with what this host has in its role.
///
/// # Errors
/// When it does not answer, or not with a version.
pub async fn server_version(role: Role, url: &str) -> Result<Version> {
    let client = client(paths::kubeconfig(role), Some(url)).await?;
    let info = client
        .apiserver_version()
        .await
        .map_err(|e| Error::failed(format!("the API at {url} does not say its version: {}", in_words(&e))))?;
    info.git_version.parse()
}

/// Whether the API answers at `url` (the VIP), with the certificate that names it.
///
/// # Errors
/// Why it does not.
pub async fn answers(kubeconfig: &Path, url: &str) -> Result<()> {
    let client = client(kubeconfig, Some(url)).await?;
    get_ok(&client, "/readyz").await
}

/// Asks one endpoint of the API and takes only 200 for an answer.
async fn get_ok(client: &Client, path: &str) -> Result<()> {
    let request = http::Request::get(path).body(Vec::new()).context("cannot make a request")?;
    client.request_text(request).await.map(|_| ()).map_err(|e| Error::failed(in_words(&e)))
}

/// `/readyz` answers with a list of its checks, `[+]` or `[-]` before each: only the failed ones are worth a line.
fn failed_checks(message: &str) -> String {
    let failed: Vec<&str> = message.lines().filter_map(|l| l.strip_prefix("[-]")).map(|l| l.split(" failed").next().unwrap_or(l)).collect();
    if failed.is_empty() { message.lines().next().unwrap_or_default().to_owned() } else { format!("not yet: {}", failed.join(", ")) }
}

/// What the API says, or else the innermost cause: the client's own words repeat each other.
pub fn in_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => failed_checks(&status.message),
        other => {
            let mut deepest: &dyn std::error::Error = other;
            while let Some(next) = deepest.source() {
                deepest = next;
            }
            deepest.to_string()
        }
    }
}

/// Whether the same request may succeed later: nobody answered, or the API cannot do it now (429, 5xx).
pub fn transient(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 429 || status.code >= 500,
        kube::Error::HyperError(_) | kube::Error::Service(_) => true,
        _ => false,
    }
}

/// A server that has just started is ready, not ready and ready again while etcd elects a leader, on a busy host for a while.
const WAITS: usize = 10;
/// When to ask again after a connection that broke off: the VIP moves within these 3 s, whatever happens to its holder.
const PAUSES: [Duration; 4] = [Duration::from_millis(100), Duration::from_millis(400), Duration::from_secs(1), Duration::from_millis(1500)];

/// Whether a connection was there and broke, as all do when the VIP moves: whoever asks again may be answered at once.
fn broke_off(error: &kube::Error) -> bool {
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(io.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::TimedOut)
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// This server's API is ready, and answers through the VIP.
pub(crate) struct ApiStep {
    /// Where it is to be reached through the VIP.
    pub(crate) url: String,
}

/// This host's node is Ready, in the right version: asked with the administrator's kubeconfig on a server, with the kubelet's on an agent.
pub(crate) struct NodeStep {
    /// Server or agent.
    pub(crate) role: Role,
    /// What it must run; None = anything.
    pub(crate) version: Option<Version>,
}

/// Clients that a wait keeps from one look to the next: a TLS handshake each time would cost more than k3s's own start.
#[derive(Default)]
struct Clients {
    here: Option<Client>,
    through_vip: Option<Client>,
}

/// The client in `kept`, or a new one that is kept from now on.
async fn keep<'a>(kept: &'a mut Option<Client>, kubeconfig: &Path, url: Option<&str>) -> Result<&'a Client> {
    match kept {
        Some(client) => Ok(client),
        None => Ok(kept.insert(client(kubeconfig, url).await?)),
    }
}

/// The kubeconfig of a role, or why there is none yet.
fn kubeconfig(role: Role) -> Result<&'static Path, String> {
    let path = paths::kubeconfig(role);
    if path.exists() { Ok(path) } else { Err(format!("k3s has not written {} yet", path.display())) }
}

impl ApiStep {
    /// What is missing; None when nothing is.
    async fn look(&self, clients: &mut Clients) -> Option<String> {
        let path = match kubeconfig(Role::Server) {
            Ok(path) => path,
            Err(missing) => return Some(missing),
        };
        let Ok(client) = keep(&mut clients.here, path, None).await else {
            return Some(format!("{} is not whole yet", path.display()));
        };
        if let Err(e) = get_ok(client, "/readyz").await {
            // k3s may have been started anew, with other certificates
            clients.here = None;
            return Some(format!("the API on this host is not ready: {e}"));
        }
        let Ok(through) = keep(&mut clients.through_vip, path, Some(&self.url)).await else {
            return Some(format!("{} is not whole yet", path.display()));
        };
        if let Err(e) = get_ok(through, "/readyz").await {
            clients.through_vip = None;
            return Some(format!("the API does not answer through the VIP: {e}"));
        }
        None
    }
}

impl NodeStep {
    /// What is missing; None when nothing is.
    async fn look(&self, host: &Host, kept: &mut Option<Client>) -> Result<Option<String>> {
        let path = match kubeconfig(self.role) {
            Ok(path) => path,
            Err(missing) => return Ok(Some(missing)),
        };
        let name = host.facts.node_name()?;
        let mut pauses = PAUSES.into_iter();
        let node = loop {
            let Ok(client) = keep(kept, path, None).await else {
                return Ok(Some(format!("{} is not whole yet", path.display())));
            };
            match Api::<Node>::all(client.clone()).get_opt(name.as_str()).await {
                Ok(Some(node)) => break NodeInfo::of(&node),
                Ok(None) => return Ok(Some(format!("node {name} is not registered"))),
                Err(e) => {
                    *kept = None;
                    match pauses.next().filter(|_| broke_off(&e)) {
                        Some(pause) => tokio::time::sleep(pause).await,
                        None => return Ok(Some(format!("node {name} cannot be read: {}", in_words(&e)))),
                    }
                }
            }
        };
        if let Some(wanted) = self.version.as_ref().filter(|v| v.as_str() != node.version) {
            return Ok(Some(format!("node {name} runs k3s {}, not {wanted} yet", node.version)));
        }
        let why = || node.reason.unwrap_or_else(|| "it has not said why".into());
        Ok((node.ready != "True").then(|| format!("node {name} is not Ready: {}", why())))
    }
}

#[async_trait(?Send)]
impl Step for ApiStep {
    fn name(&self) -> String {
        "API ready".into()
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        Ok(self.look(&mut Clients::default()).await.map_or(State::Right, |m| State::differs(format!("wait: {m}"))))
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let mut clients = Clients::default();
        Watch::new(host, Role::Server)
            .wait(&self.name(), "the API", async || Ok(self.look(&mut clients).await.map_or(Awaited::Done(()), Awaited::Missing)))
            .await
    }

    fn chances(&self) -> usize {
        WAITS
    }
}

#[async_trait(?Send)]
impl Step for NodeStep {
    fn name(&self) -> String {
        "node Ready".into()
    }

    async fn check(&self, host: &Host) -> Result<State> {
        Ok(self.look(host, &mut None).await?.map_or(State::Right, |m| State::differs(format!("wait: {m}"))))
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let mut kept = None;
        Watch::new(host, self.role)
            .wait(&self.name(), "this host's node", async || {
                Ok(self.look(host, &mut kept).await?.map_or(Awaited::Done(()), Awaited::Missing))
            })
            .await
    }

    fn chances(&self) -> usize {
        WAITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_broke_is_told_from_one_that_was_refused() {
        let error = |kind: ErrorKind| kube::Error::Service(Box::new(std::io::Error::new(kind, "x")));
        assert!(broke_off(&error(ErrorKind::ConnectionReset)) && !broke_off(&error(ErrorKind::ConnectionRefused)));
    }

    #[test]
    fn only_what_fails_is_said() {
        let readyz = "[+]ping ok\n[+]etcd ok\n[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\n[-]etcd failed: reason withheld\nreadyz check failed";
        assert_eq!(failed_checks(readyz), "not yet: poststarthook/rbac/bootstrap-roles, etcd");
        assert_eq!(failed_checks("apiserver not ready"), "apiserver not ready");
    }
}

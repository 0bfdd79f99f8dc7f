//! etcd: its configuration as k3s writes it, its membership through its own API, and the loop
//! that promotes learners.

use crate::client::{go_error, http, tls};
use crate::layout::{Layout, folder, write};
use crate::token::random_hex;
use crate::{error, info, process};
use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// k3s's tick for learners.
const MANAGE: Duration = Duration::from_secs(15);
/// k3s evicts a learner that has not moved for so long.
const STALL: Duration = Duration::from_secs(300);

/// A member as etcd tells of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Member {
    /// Decimal id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Empty as long as it has not been started.
    #[serde(default)]
    pub name: String,
    /// Where its peers reach it.
    #[serde(rename = "peerURLs", default)]
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty as long as it has not been started.
    #[serde(rename = "clientURLs", default)]
    pub client_urls: Vec<String>,
    /// No vote yet.
    #[serde(rename = "isLearner", default)]
    pub learner: bool,
}

/// All members.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Members {
    /// In etcd's order.
    #[serde(default)]
    pub members: Vec<Member>,
}

struct Status {
    own: String,
    leader: String,
    learner: bool,
    applied: u64,
}

/// A client of one member's API (the JSON form of it).
#[derive(Clone)]
pub struct Client {
    endpoint: String,
    http: reqwest::Client,
}

impl Client {
    /// A client with k3s's own certificate.
    ///
    /// # Errors
    /// The certificates under `server/tls/etcd` cannot be used.
    pub fn new(layout: &Layout, endpoint: &str) -> Result<Self> {
        let read = |f: &str| std::fs::read(layout.tls(f)).with_context(|| format!("failed to read {f}"));
        let (ca, crt, key) = (read("etcd/server-ca.crt")?, read("etcd/client.crt")?, read("etcd/client.key")?);
        Ok(Self { endpoint: endpoint.to_owned(), http: http(tls(&ca, Some((&crt, &key)))?)? })
    }

    async fn call(&self, path: &str, body: &Value) -> Result<Value> {
        let response = self
            .http
            .post(format!("{}/v3/{path}", self.endpoint))
            .json(body)
            .timeout(Duration::from_secs(10))
            .send()
            .await
            .map_err(|e| anyhow!("{}", go_error(&e)))?;
        let failed = !response.status().is_success();
        let answer: Value = response.json().await?;
        if failed {
            bail!("{}", answer["error"].as_str().or_else(|| answer["message"].as_str()).unwrap_or("etcd failed"));
        }
        Ok(answer)
    }

    /// The values under a prefix, by key.
    ///
    /// # Errors
    /// etcd's own.
    pub async fn values(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let range = json!({"key": BASE64.encode(prefix), "range_end": BASE64.encode(end)});
        let answer = self.call("kv/range", &range).await?;
        let pairs = answer["kvs"].as_array().cloned().unwrap_or_default();
        let text = |v: &Value| BASE64.decode(v.as_str().unwrap_or_default());
        pairs.iter().map(|kv| Ok((String::from_utf8(text(&kv["key"])?)?, text(&kv["value"])?))).collect()
    }

    /// # Errors
    /// etcd's own.
    pub async fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        self.call("kv/put", &json!({"key": BASE64.encode(key), "value": BASE64.encode(value)})).await.map(|_| ())
    }

    /// # Errors
    /// etcd's own.
    pub async fn members(&self) -> Result<Members> {
        Ok(serde_json::from_value(self.call("cluster/member/list", &json!({})).await?)?)
    }

    async fn status(&self) -> Result<Status> {
        let s = self.call("maintenance/status", &json!({})).await?;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        Ok(Status {
            own: text(&s["header"]["member_id"]),
            leader: text(&s["leader"]),
            learner: s["isLearner"].as_bool().unwrap_or_default(),
            applied: text(&s["raftAppliedIndex"]).parse().unwrap_or_default(),
        })
    }

    async fn add_learner(&self, peer_url: &str) -> Result<()> {
        self.call("cluster/member/add", &json!({"peerURLs": [peer_url], "isLearner": true})).await.map(|_| ())
    }

    /// # Errors
    /// etcd's own, for one that lags behind among others.
    async fn promote(&self, id: &str) -> Result<()> {
        self.call("cluster/member/promote", &json!({"ID": id})).await.map(|_| ())
    }

    /// # Errors
    /// etcd's own.
    pub async fn remove(&self, id: &str) -> Result<()> {
        self.call("cluster/member/remove", &json!({"ID": id})).await.map(|_| ())
    }

    /// # Errors
    /// etcd's own.
    async fn set_peer_url(&self, id: &str, url: &str) -> Result<()> {
        self.call("cluster/member/update", &json!({"ID": id, "peerURLs": [url]})).await.map(|_| ())
    }
}

/// This server's member.
#[derive(Clone)]
pub struct Etcd {
    layout: Layout,
    /// `<node>-<8 hex>`
    pub name: String,
    address: IpAddr,
    node: String,
    client: Client,
    /// Nobody else's business: no cluster, loopback only.
    single: bool,
    extra: Vec<String>,
}

impl Etcd {
    /// Reads or makes up the member's name.
    ///
    /// # Errors
    /// The name file or the certificates.
    pub fn new(layout: &Layout, node: &str, address: IpAddr, single: bool, extra: &[String]) -> Result<Self> {
        let name = if single {
            "default".to_owned()
        } else {
            match std::fs::read_to_string(layout.db("etcd/name")) {
                Ok(name) => name,
                Err(_) => new_name(layout, node)?,
            }
        };
        Ok(Self {
            layout: layout.clone(),
            name,
            address,
            node: node.to_owned(),
            client: Client::new(layout, endpoint(single))?,
            single,
            extra: extra.to_vec(),
        })
    }

    /// Where kube-apiserver reaches it.
    pub fn endpoint(&self) -> &'static str {
        endpoint(self.single)
    }

    /// etcd's data; that of a single server is where nothing looks for a cluster's.
    fn data(&self) -> PathBuf {
        self.layout.db(if self.single { "state" } else { "etcd" })
    }

    /// A client of this member's.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where peers reach us.
    pub fn peer_url(&self) -> String {
        if self.single {
            return "https://127.0.0.1:12380".to_owned();
        }
        format!("https://{}:2380", bracketed(self.address))
    }

    fn client_url(&self) -> String {
        if self.single {
            return self.endpoint().to_owned();
        }
        format!("https://{}:2379", bracketed(self.address))
    }

    /// The member's own address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// What `/db/info` answers: the members, or just this one as long as etcd does not answer.
    pub async fn info(&self) -> Members {
        match tokio::time::timeout(Duration::from_secs(2), self.client.members()).await {
            Ok(Ok(members)) => members,
            _ => Members {
                members: vec![Member {
                    id: "0".to_owned(),
                    name: self.name.clone(),
                    peer_urls: vec![self.peer_url()],
                    client_urls: vec![self.client_url()],
                    learner: false,
                }],
            },
        }
    }

    /// Starts a cluster of one.
    ///
    /// # Errors
    /// etcd cannot be started.
    pub fn start_new(&self) -> Result<()> {
        self.start(&format!("{}={}", self.name, self.peer_url()), "new", false)
    }

    /// Starts again on what is on disk; every cluster flag is ignored.
    ///
    /// # Errors
    /// etcd cannot be started.
    pub fn start_existing(&self) -> Result<()> {
        let old: Value =
            std::fs::read(self.data().join("config")).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        self.start(old["initial-cluster"].as_str().unwrap_or_default(), old["initial-cluster-state"].as_str().unwrap_or("new"), false)
    }

    /// Makes a cluster of one out of what is on disk.
    ///
    /// # Errors
    /// etcd cannot be started.
    pub fn start_reset(&mut self) -> Result<()> {
        self.name = new_name(&self.layout, &self.node)?;
        self.start(&format!("{}={}", self.name, self.peer_url()), "new", true)
    }

    /// Adds us as a learner to the cluster of which `known` tells, and starts.
    ///
    /// # Errors
    /// etcd's own (`too many learner members in cluster`, `unhealthy cluster`); a member of the
    /// same node name.
    pub async fn join(&self, known: &Members) -> Result<()> {
        let mut last = anyhow!("no etcd member to ask");
        for url in known.members.iter().filter(|m| !m.learner).flat_map(|m| &m.client_urls) {
            if *url == self.client_url() {
                continue;
            }
            let client = Client::new(&self.layout, url)?;
            match client.members().await {
                Ok(members) => return self.join_through(&client, members).await,
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    async fn join_through(&self, client: &Client, members: Members) -> Result<()> {
        let mut cluster = Vec::new();
        let mut add = true;
        for mut member in members.members {
            let ours = member.peer_urls.contains(&self.peer_url());
            if ours && member.name.is_empty() {
                // Added but never started: that is us.
                member.name.clone_from(&self.name);
            }
            if ours && member.name == self.name {
                add = false;
            }
            if let Some(url) = member.peer_urls.first() {
                cluster.push(format!("{}={url}", member.name));
            }
            // At our own address it is us before our disk was wiped: etcd itself decides.
            if !ours && node_of(&member.name) == self.node {
                std::fs::remove_file(self.layout.db("etcd/name"))?;
                bail!("duplicate node name found, please use a unique name for this node");
            }
        }
        if add {
            info!("Adding {} to etcd cluster {cluster:?}", self.peer_url());
            client.add_learner(&self.peer_url()).await?;
            cluster.push(format!("{}={}", self.name, self.peer_url()));
        }
        info!("Starting etcd for cluster {cluster:?}");
        self.start(&cluster.join(","), "existing", false)
    }

    fn start(&self, cluster: &str, state: &str, force: bool) -> Result<()> {
        let trust = |crt: &str, ca: &str| {
            json!({
                "cert-file": self.layout.tls(&format!("{crt}.crt")),
                "key-file": self.layout.tls(&format!("{crt}.key")),
                "client-cert-auth": true,
                "trusted-ca-file": self.layout.tls(ca),
            })
        };
        let mut listen = self.client_url();
        if !self.single && !self.address.is_loopback() {
            listen.push(',');
            listen.push_str(self.endpoint());
        }
        let mut config = json!({
            "name": self.name,
            "data-dir": self.data(),
            "initial-advertise-peer-urls": self.peer_url(),
            "initial-cluster": cluster,
            "initial-cluster-state": state,
            "force-new-cluster": force,
            "listen-client-urls": listen,
            "advertise-client-urls": self.client_url(),
            "listen-peer-urls": self.peer_url(),
            "listen-metrics-urls": if self.single { "" } else { "http://127.0.0.1:2381" },
            "client-transport-security": trust("etcd/server-client", "etcd/server-ca.crt"),
            "peer-transport-security": trust("etcd/peer-server-client", "etcd/peer-ca.crt"),
            // For our own client; with a configuration file it is off unless asked for.
            "enable-grpc-gateway": true,
            "election-timeout": 5000,
            "heartbeat-interval": 500,
            "logger": "zap",
            "log-outputs": ["stderr"],
            "log-level": "warn",
        });
        if std::env::var_os("LAB_K3S_UNSAFE_NO_FSYNC").is_some_and(|v| v == "1") {
            config["unsafe-no-fsync"] = true.into();
        }
        for extra in &self.extra {
            if let Some((key, value)) = extra.split_once('=') {
                config[key] = serde_json::from_str(value).unwrap_or_else(|_| value.into());
            }
        }
        folder(&self.data())?;
        if self.single {
            // What tells such a server's data folder from a cluster's.
            write(&self.layout.db("state.db"), b"", 0o600)?;
        }
        let file = self.data().join("config");
        write(&file, &serde_json::to_vec_pretty(&config)?, 0o600)?;
        let mut command = process::command("/usr/bin/etcd");
        command.arg("--config-file").arg(&file);
        process::stopped_first(process::component("etcd", command, None)?);
        Ok(())
    }

    /// Waits until this member has a vote, asking as often as k3s does.
    pub async fn wait_until_voter(&self) {
        loop {
            match self.test().await {
                Ok(()) => break info!("etcd data store connection OK"),
                Err(e) => info!("Failed to test data store connection: {e}"),
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }

    /// One test; it waits up to 10 s for etcd to answer at all.
    async fn test(&self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let status = loop {
            match self.client.status().await {
                Ok(status) if status.leader != "0" => break status,
                Ok(_) if tokio::time::Instant::now() > deadline => bail!("etcdserver: no leader"),
                Err(_) if tokio::time::Instant::now() > deadline => bail!("context deadline exceeded"),
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        if status.learner {
            bail!("this server has not yet been promoted from learner to voting member");
        }
        let members = self.client.members().await?;
        if members.members.iter().any(|m| m.name == self.name && m.peer_urls.contains(&self.peer_url())) {
            return Ok(());
        }
        let found: Vec<String> = members.members.iter().map(|m| format!("{}={}", m.name, m.peer_urls.concat())).collect();
        bail!("this server is a not a member of the etcd cluster. Found {found:?}, expect: {}={}", self.name, self.peer_url())
    }

    /// After a reset: waits until the cluster is one of one, under our own address.
    ///
    /// # Errors
    /// etcd's own, once it answers.
    pub async fn finish_reset(&self) -> Result<()> {
        loop {
            if self.test().await.is_ok() {
                let members = self.client.members().await?;
                if members.members.len() == 1 {
                    return Ok(());
                }
            } else if let Ok(Members { members }) = self.client.members().await
                && let [only] = members.as_slice()
                && let Err(e) = self.client.set_peer_url(&only.id, &self.peer_url()).await
            {
                crate::warning!("failed to update peer url: {e}");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Promotes learners, as long as this member leads.
    pub async fn manage_learners(self) {
        let mut ticker = tokio::time::interval_at(tokio::time::Instant::now() + MANAGE, MANAGE);
        let mut progress: Option<Progress> = None;
        loop {
            ticker.tick().await;
            if let Err(e) = self.manage_once(&mut progress).await {
                error!("Failed to check local etcd status for learner management: {e}");
            }
        }
    }

    async fn manage_once(&self, progress: &mut Option<Progress>) -> Result<()> {
        let status = self.client.status().await?;
        if status.own != status.leader {
            *progress = None;
            return Ok(());
        }
        let Some(learner) = self.client.members().await?.members.into_iter().find(|m| m.learner) else {
            *progress = None;
            return Ok(());
        };
        if self.client.promote(&learner.id).await.is_ok() {
            info!("Promoted learner {}", learner.name);
            *progress = None;
            return Ok(());
        }
        let applied = match learner.client_urls.first() {
            Some(url) => match Client::new(&self.layout, url)?.status().await {
                Ok(s) => s.applied,
                Err(_) => 0,
            },
            None => 0,
        };
        let now = tokio::time::Instant::now();
        let entry = match progress.take() {
            Some(p) if p.id == learner.id && p.applied >= applied => p,
            _ => Progress { id: learner.id.clone(), applied, since: now },
        };
        let stalled = now - entry.since;
        if stalled > Duration::ZERO {
            crate::warning!("Learner {} stalled at RaftAppliedIndex={} for {stalled:?}", learner.name, entry.applied);
        }
        if stalled > STALL {
            self.client.remove(&learner.id).await?;
            crate::warning!("Removed learner {} from etcd cluster", learner.name);
        } else {
            *progress = Some(entry);
        }
        Ok(())
    }

    /// Whether this member leads.
    pub async fn leads(&self) -> bool {
        self.client.status().await.is_ok_and(|s| s.own == s.leader)
    }

    /// Removes the member of a node that is gone; both name and address must be its own.
    ///
    /// # Errors
    /// etcd's own; our own member.
    pub async fn remove_peer(&self, name: &str, address: &str) -> Result<()> {
        for member in self.client.members().await?.members {
            let there = member.peer_urls.iter().any(|u| host_of(u) == Some(address));
            if member.name != name || !there {
                continue;
            }
            if address == self.address.to_string() {
                bail!("not removing self from etcd cluster");
            }
            info!("Removing name={} id={} address={address} from etcd", member.name, member.id);
            return self.client.remove(&member.id).await;
        }
        Ok(())
    }
}

fn endpoint(single: bool) -> &'static str {
    if single { "https://127.0.0.1:12379" } else { "https://127.0.0.1:2379" }
}

struct Progress {
    id: String,
    applied: u64,
    since: tokio::time::Instant,
}

fn new_name(layout: &Layout, node: &str) -> Result<String> {
    let name = format!("{node}-{}", random_hex(4)?);
    write(&layout.db("etcd/name"), name.as_bytes(), 0o600)?;
    Ok(name)
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(a) => a.to_string(),
        IpAddr::V6(a) => format!("[{a}]"),
    }
}

/// The node of a member: its name without the last part.
fn node_of(member: &str) -> &str {
    member.rsplit_once('-').map_or(member, |(node, _)| node)
}

fn host_of(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    Some(rest.rsplit_once(':')?.0.trim_start_matches('[').trim_end_matches(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses() {
        assert_eq!(node_of("my-host-1a2b3c4d"), "my-host");
        assert_eq!(host_of("https://10.0.0.1:2380"), Some("10.0.0.1"));
        assert_eq!(host_of("https://[fd00::1]:2380"), Some("fd00::1"));
        assert_eq!(bracketed("fd00::1".parse().unwrap()), "[fd00::1]");
    }

    #[test]
    fn etcds_answer_is_read() {
        let text = r#"{"header":{},"members":[{"ID":"123","name":"a-1","peerURLs":["https://10.0.0.1:2380"],"clientURLs":["https://10.0.0.1:2379"]},{"ID":"9","peerURLs":["https://10.0.0.2:2380"],"isLearner":true}]}"#;
        let m: Members = serde_json::from_str(text).unwrap();
        assert_eq!(m.members.len(), 2);
        assert!(m.members[1].learner && m.members[1].name.is_empty());
    }
}

//! Thousands of nodes that are objects and nothing else, and what their agents would write. Runs on the lab's wire.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Config, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use updates::names;

/// Requests at once: agents are many, and the machine is small.
const AT_ONCE: usize = 48;
/// Updates that a node lacks, and how many there are in all.
const LACKS: usize = 80;
const KNOWN: usize = 120;
/// How often the `UpdateManager` is read, which is a megabyte.
const LOOK: Duration = Duration::from_millis(250);
const LIMIT: Duration = Duration::from_secs(600);
/// How often something is asked again that got no answer, and after how long.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// What is to be simulated.
#[derive(Debug, Args)]
pub struct Simulate {
    /// An administrator's
    kubeconfig: PathBuf,
    /// How many nodes
    nodes: usize,
}

/// What was seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Simulated {
    /// From the last node's creation until there is a `NodeUpdate` of each.
    pub made: Duration,
    /// For all agents to report.
    pub reported: Duration,
    /// From there until the `UpdateManager` has it.
    pub settled: Duration,
    /// How often it was written in both times.
    pub writes: usize,
    /// From a changed spec, with a window in the place of a halt, until the `UpdateManager` says of all nodes that they wait for it.
    pub window: Duration,
    /// From a ban until every node is told to look for updates.
    pub ban: Duration,
    /// From a node's label until the `UpdateManager` says that it is suspended.
    pub suspended: Duration,
    /// Of the `UpdateManager` as JSON.
    pub bytes: usize,
}

impl Simulate {
    /// Makes the nodes, reports, steers; prints what was seen as JSON.
    pub fn run(self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
        let seen = runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            Crowd::new(&Client::try_from(config)?, self.nodes).all().await
        })?;
        println!("{}", serde_json::to_string(&seen)?);
        Ok(())
    }
}

/// The nodes, and the API.
struct Crowd {
    count: usize,
    nodes: Api<DynamicObject>,
    updates: Api<DynamicObject>,
    managers: Api<DynamicObject>,
    client: Client,
}

/// Of the `UpdateManager`, what is looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Standing {
    observed_generation: i64,
    nodes: Vec<NodeStanding>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeStanding {
    id: String,
    rpm_packages: Items,
}

#[derive(Deserialize)]
struct Items {
    status: String,
    reason: Option<String>,
}

fn kind(group: &str, kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind))
}

fn name(n: usize) -> String {
    format!("node{n:05}.example.local")
}

/// The network of a node's pods, eight addresses of 10.42.0.0/16; the server has the first.
fn pods(n: usize) -> String {
    let first = (n + 1) * 8;
    format!("10.42.{}.{}/29", first / 256, first % 256)
}

fn boot(n: usize) -> String {
    format!("{n:08x}-0000-4000-8000-000000000000")
}

/// Asks again where there was no answer, and not where there was one.
async fn again<T>(ask: impl AsyncFn() -> kube::Result<T>) -> Result<T> {
    let mut tries = 1;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(e) if tries >= TRIES || matches!(e, kube::Error::Api(_)) => return Err(e.into()),
            Err(e) => eprintln!("once more, after {e}"),
        }
        tries += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

fn package(n: usize) -> String {
    format!("library{n:03}-common-{}.{}.{}-{}.el9.x86_64", n % 7, n % 13, n % 5, n % 31)
}

impl Crowd {
    fn new(client: &Client, count: usize) -> Self {
        let ours = |of: &str| Api::namespaced_with(client.clone(), names::NAMESPACE, &kind(names::GROUP, of));
        Self {
            count,
            nodes: Api::all_with(client.clone(), &kind("", "Node")),
            updates: ours("NodeUpdate"),
            managers: ours("UpdateManager"),
            client: client.clone(),
        }
    }

    async fn all(&self) -> Result<Simulated> {
        self.each(|n| self.make(n)).await.context("nodes")?;
        eprintln!("{} nodes are made", self.count);
        let began = Instant::now();
        // the lab's own host is a node as well
        self.until("all NodeUpdates", async || Ok(self.there().await? > self.count)).await?;
        let made = began.elapsed();
        eprintln!("their NodeUpdates are there: {made:.1?}");

        let writes = self.count_writes();
        let check = again(async || self.updates.get(&name(0)).await).await?.data["spec"]["check"].clone();
        let began = Instant::now();
        self.each(|n| self.report(n, &check)).await.context("reports")?;
        let reported = began.elapsed();
        let began = Instant::now();
        self.standing("all reports", |s| s.count("Pending", "Halted") == self.count).await?;
        let settled = began.elapsed();
        let writes = writes.load(Ordering::Relaxed);
        eprintln!("reported: {reported:.1?}; seen: {settled:.1?}; written {writes} times");

        let told = self.follow_generations();
        let began = Instant::now();
        let window = json!([{ "schedule": "0 3 29 2 *", "duration": "1h" }]);
        let generation = self.want(&json!({ "halted": false, "maintenanceWindows": window })).await?;
        let waits = |s: &Standing| s.observed_generation >= generation && s.count("Pending", "WindowClosed") == self.count;
        self.standing("a window", waits).await?;
        let window = began.elapsed();

        let began = Instant::now();
        self.want(&json!({ "bannedPackages": [package(KNOWN / 2)] })).await?;
        self.until("a ban", async || Ok(told.lock().is_ok_and(|told| told.len() > self.count))).await?;
        let ban = began.elapsed();

        let began = Instant::now();
        let label = json!({ "metadata": { "labels": { names::SUSPEND_LABEL: "" } } });
        again(async || self.nodes.patch_metadata(&name(7), &PatchParams::default(), &Patch::Merge(&label)).await).await?;
        let held = |s: &Standing| s.nodes.iter().any(|n| n.id == name(7) && n.rpm_packages.status == "Suspended");
        self.standing("a label", held).await?;
        let suspended = began.elapsed();
        let bytes = serde_json::to_vec(&again(async || self.managers.get(names::INSTANCE).await).await?)?.len();
        Ok(Simulated { made, reported, settled, writes, window, ban, suspended, bytes })
    }

    /// Does it for every node, some at a time.
    async fn each<F: Future<Output = Result<()>>>(&self, act: impl Fn(usize) -> F) -> Result<()> {
        futures::stream::iter((0..self.count).map(act)).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Makes a node, with the labels that k3s gives one.
    async fn make(&self, n: usize) -> Result<()> {
        let name = name(n);
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": name, "labels": {
                "beta.kubernetes.io/arch": "amd64",
                "beta.kubernetes.io/instance-type": "k3s",
                "beta.kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": "k3s",
                "topology.kubernetes.io/zone": format!("zone-{}", n % 3),
            } },
            "spec": { "podCIDR": pods(n), "taints": [{ "key": "simulated", "effect": "NoSchedule" }] },
            "status": { "conditions": [{ "type": "Ready", "status": "True", "reason": "Simulated" }] },
        });
        let node: DynamicObject = serde_json::from_value(node)?;
        let create = async || match self.nodes.create(&PostParams::default(), &node).await {
            // it is there, though nobody said so
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(drop),
        };
        again(create).await
    }

    /// As its agent would.
    async fn report(&self, n: usize, check: &Value) -> Result<()> {
        let lacks = (0..LACKS).map(|at| (n + at) % KNOWN);
        let available: Vec<_> = lacks.map(|p| json!({ "name": package(p), "since": "2026-01-01T00:00:00Z" })).collect();
        let now = jiff::Timestamp::now().to_string();
        let status = json!({ "status": {
            "agentVersion": env!("CARGO_PKG_VERSION"),
            "reportedAt": now,
            "bootId": boot(n),
            "kernel": format!("5.14.0-503.{}.1.el9_5.x86_64", n % 40),
            "check": check,
            "packages": { "checkedAt": now, "available": available },
            "patches": { "checkedAt": now, "available": [] },
        } });
        let how = PatchParams::apply(names::AGENT_MANAGER);
        again(async || self.updates.patch_status(&name(n), &how, &Patch::Merge(&status)).await.map(drop)).await
    }

    /// How many `NodeUpdates` there are. Of a list of metadata, Kubernetes 1.20 does not say how many more there are.
    async fn there(&self) -> Result<usize> {
        let list = self.updates.list(&ListParams::default().limit(1)).await?;
        Ok(list.items.len() + usize::try_from(list.metadata.remaining_item_count.unwrap_or(0))?)
    }

    /// Changes the spec; answers its generation.
    async fn want(&self, spec: &Value) -> Result<i64> {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let after = again(async || self.managers.patch_metadata(names::INSTANCE, &PatchParams::default(), &patch).await).await?;
        after.metadata.generation.context("an UpdateManager without a generation")
    }

    /// Tells of every change of a kind, of which nothing but the metadata is asked for.
    fn follow(&self, of: &str, mut tell: impl FnMut(Event<PartialObjectMeta<DynamicObject>>) + Send + 'static) {
        let api = Api::namespaced_with(self.client.clone(), names::NAMESPACE, &kind(names::GROUP, of));
        tokio::spawn(watcher(api, watcher::Config::default()).default_backoff().for_each(move |event| {
            event.into_iter().for_each(&mut tell);
            std::future::ready(())
        }));
    }

    /// Counts how often the `UpdateManager` is written from now on.
    fn count_writes(&self) -> Arc<AtomicUsize> {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        self.follow("UpdateManager", move |event| {
            if matches!(event, Event::Apply(_)) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        count
    }

    /// The nodes whose `NodeUpdate` asks for something else than at first.
    fn follow_generations(&self) -> Arc<Mutex<BTreeSet<String>>> {
        let told = Arc::new(Mutex::new(BTreeSet::new()));
        let known = told.clone();
        self.follow("NodeUpdate", move |event| {
            if let (Event::Apply(object) | Event::InitApply(object), Ok(mut known)) = (event, known.lock())
                && object.metadata.generation > Some(1)
            {
                known.insert(object.name_any());
            }
        });
        told
    }

    /// Waits until the `UpdateManager` says so.
    async fn standing(&self, what: &str, says: impl Fn(&Standing) -> bool) -> Result<()> {
        self.until(what, async || {
            let manager = self.managers.get(names::INSTANCE).await?;
            Ok(manager.data.get("status").and_then(|s| Standing::deserialize(s).ok()).is_some_and(|s| says(&s)))
        })
        .await
    }

    /// A question that got no answer is asked again: an API server with so much to say may close a connection.
    async fn until(&self, what: &str, mut is: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        loop {
            let said = match is().await {
                Ok(true) => return Ok(()),
                Ok(false) => "it is not so".into(),
                Err(e) => format!("{e:#}"),
            };
            ensure!(began.elapsed() < LIMIT, "not within {LIMIT:?}: {what}: {said}");
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Standing {
    /// Of the simulated nodes.
    fn count(&self, status: &str, reason: &str) -> usize {
        let is = |n: &&NodeStanding| {
            n.id.starts_with("node") && n.rpm_packages.status == status && n.rpm_packages.reason.as_deref() == Some(reason)
        };
        self.nodes.iter().filter(is).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_a_network_of_its_own() {
        assert_eq!([pods(0), pods(31), pods(4999)], ["10.42.0.8/29", "10.42.1.0/29", "10.42.156.64/29"]);
    }

    #[test]
    fn packages_and_boots_are_what_the_api_takes() {
        assert!((0..5000).all(|n| boot(n).parse::<updates::BootId>().is_ok()));
        let names: BTreeSet<updates::PackageName> = (0..KNOWN).map(|n| package(n).parse().unwrap()).collect();
        assert_eq!(names.len(), KNOWN);
    }
}

//! The controller: makes a `NodeUpdate` for each node, gives it a stage, updates the nodes in their turn, and says in the
//! `UpdateManager` how all of them stand.

mod carry;
mod follow;
mod metrics;
mod pace;
mod plan;
mod view;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use k3s::Lease;
use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams, Request};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Resource as _};
use node::{Error, Result};
use serde::Serialize;
use serde::de::IgnoredAny;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use updates::api::{NodeUpdate, UpdateManager, UpdateManagerStatus};
use updates::decide::spec_patch;
use updates::names;

use self::carry::{Acted, Carry, Happening, Slot};
use self::follow::Known;
use self::metrics::Metrics;
use self::pace::{Pace, size};
use self::plan::{Change, Cluster, News, Plan, Standing, plan};
use self::view::{ManagerView, NodeView, SentNode, node_updates};
use crate::client::Clients;
use crate::serve::{BEAT, Pulse, registry};
use crate::{LEASE, Pod, VERSION};

/// What changes within this time is one pass: thousands of agents report at once after an upgrade.
const GATHER: Duration = Duration::from_millis(500);
/// How long to wait after writes that the API did not take.
const RETRY: Duration = Duration::from_secs(5);
/// A watch ends by itself after so many seconds and is begun anew: one whose server died would be silent for ever.
const WATCH: u32 = 60;
/// While nodes are being updated, what is awaited is looked at this often: pods say nothing when they go, and deadlines pass.
const STEP: Duration = Duration::from_secs(1);
/// Writes at once.
const WRITES: usize = 16;

/// Leads when no other does, until it is told to stop.
///
/// # Errors
/// When this is no pod, its port is taken, or the lead is lost: the kubelet starts it anew, with nothing in its memory.
pub async fn controller(pod: &Pod, stop: &CancellationToken) -> Result<()> {
    let clients = Clients::in_cluster()?;
    let mut registry = registry();
    let metrics = Metrics::new(&mut registry);
    let pulse = Pulse::new(registry);
    pulse.serve().await?;
    tracing::info!(pod = pod.name, node = pod.node, version = VERSION, "the controller runs");
    pulse.ready();
    let mut lead = std::pin::pin!(Lease::lead(&clients.asking, &clients.watching, names::NAMESPACE, LEASE, &pod.name));
    let lease = loop {
        tokio::select! {
            lease = &mut lead => break lease,
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(BEAT) => pulse.beat(),
        }
    };
    tracing::info!("this controller leads");
    metrics.leads.set(1);
    let mut carry = Carry::new(&clients)?;
    let leader = Leader::new(&clients, pod, metrics, pulse.clone());
    let ended = tokio::select! {
        () = leader.lead(&lease, &mut carry) => Ok(()),
        () = lease.lost() => Err(Error::failed("another controller leads, or may soon: the lease could not be renewed")),
        () = stop.cancelled() => Ok(()),
    };
    pulse.stops();
    // the next one need not wait until it has expired
    lease.end().await;
    carry.ends().await;
    ended
}

/// The controller that leads.
struct Leader {
    nodes: Known<NodeView>,
    updates: Known<NodeUpdate>,
    managers: Known<ManagerView>,
    slots: Known<Option<Slot>>,
    changed: Arc<Notify>,
    node_updates: Api<NodeUpdate>,
    client: Client,
    pod: Pod,
    metrics: Metrics,
    pulse: Arc<Pulse>,
}

/// Something that is to be written to a node's `NodeUpdate`.
enum Write<'a> {
    Create(&'a NodeUpdate),
    Change(&'a Change),
}

/// The status as it is written: as it is in memory, not copied once more.
#[derive(Debug, Serialize)]
struct StatusPatch<'a> {
    status: &'a UpdateManagerStatus,
}

impl Leader {
    /// Begins to watch.
    fn new(clients: &Clients, pod: &Pod, metrics: Metrics, pulse: Arc<Pulse>) -> Self {
        let watching = &clients.watching;
        let changed = Arc::new(Notify::new());
        let (nodes, updates, managers, slots) = (Known::new(), Known::new(), Known::new(), Known::new());
        let config = || watcher::Config::default().timeout(WATCH);
        let api = Api::<SentNode>::all_with(watching.clone(), &ApiResource::erase::<Node>(&()));
        nodes.follow("nodes", watcher::watcher(api, config()).default_backoff(), NodeView::of, &changed);
        let api = Api::<NodeUpdate>::namespaced(watching.clone(), names::NAMESPACE);
        updates.follow("NodeUpdates", watcher::watcher(api, config()).default_backoff(), node_updates(), &changed);
        let api = Api::<LeaseObject>::namespaced(watching.clone(), names::NAMESPACE);
        slots.follow("leases", watcher::watcher(api, config().labels(carry::LABEL)).default_backoff(), carry::slot, &changed);
        let api = Api::<DynamicObject>::namespaced_with(watching.clone(), names::NAMESPACE, &ApiResource::erase::<UpdateManager>(&()));
        let only = config().fields(&format!("metadata.name={}", names::INSTANCE));
        managers.follow("the UpdateManager", watcher::watcher(api, only).default_backoff(), ManagerView::of, &changed);
        Self {
            nodes,
            updates,
            managers,
            slots,
            changed,
            node_updates: Api::namespaced(clients.asking.clone(), names::NAMESPACE),
            client: clients.asking.clone(),
            pod: pod.clone(),
            metrics,
            pulse,
        }
    }

    /// Compares and writes whenever something has changed; and as time goes by, since windows open and delays pass.
    async fn lead(&self, lease: &Lease, carry: &mut Carry) {
        let (mut pause, mut pace) = (BEAT, Pace::default());
        loop {
            tokio::select! {
                () = self.changed.notified() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(pause) => {}
            }
            self.pulse.beat();
            pause = match self.pass(lease, carry, &mut pace).await {
                Ok(pause) => pause,
                Err(e) => {
                    tracing::warn!("{}", e.chain());
                    RETRY
                }
            };
        }
    }

    /// What is known; None as long as not all of it is.
    fn cluster(&self) -> Option<Cluster> {
        let manager = self.managers.all()?.remove(names::INSTANCE);
        Some(Cluster { manager, nodes: self.nodes.all()?, updates: self.updates.all()? })
    }

    /// Answers after how long the next is due, whether or not something changes.
    async fn pass(&self, lease: &Lease, carry: &mut Carry, pace: &mut Pace) -> Result<Duration> {
        let Some((cluster, slots)) = self.cluster().zip(self.slots.all()) else { return Ok(BEAT) };
        let (began, now, slots) = (Instant::now(), Timestamp::now(), carry::seen(&slots));
        let decided = carry.decide(&cluster, &slots, now).await;
        let mut plan = plan(&cluster, Some(&decided), now);
        self.metrics.passes.observe(began.elapsed().as_secs_f64());
        if let Some(status) = plan.standing.as_ref().map(|s| &s.status).or(cluster.manager.as_ref().map(|m| &m.status)) {
            self.metrics.show(status);
        }
        self.metrics.show_updates(cluster.updates.values().map(AsRef::as_ref));
        let rest = pace.left(Instant::now());
        let waits = !rest.is_zero() && plan.standing.take_if(|s| !s.awaited).is_some();
        if plan.is_empty() && decided.is_idle() {
            return Ok(if waits { rest } else { BEAT });
        }
        lease.still_ours().await?;
        let acted = carry.act(&cluster, &slots, &decided, now, || self.pulse.beat()).await;
        if acted.learnt {
            // the status has the suspects: it is written when those are known here
            plan.standing = None;
        }
        let written = self.write(&cluster, &plan, pace).await;
        self.tell(&cluster, carry, &acted).await;
        written.map_err(|e| Error::failed(format!("the API did not take all: {}", k3s::in_words(&e))))?;
        acted.failed.map_or(Ok(()), Err)?;
        Ok(if decided.is_idle() { if waits { rest } else { BEAT } } else { STEP })
    }

    /// Says what happened to the updates of nodes: in Events, to whom it is notified, and to Prometheus.
    async fn tell(&self, cluster: &Cluster, carry: &mut Carry, acted: &Acted) {
        for happening in &acted.happenings {
            self.pulse.beat();
            self.metrics.happened(happening.reason);
            carry.tell(cluster, happening);
            let Happening { node, reason, note, .. } = happening;
            let warns = !matches!(*reason, "UpdateStarted" | "UpdateDone");
            self.say(cluster, &News { node: Some(node.clone()), reason: (*reason).to_owned(), warns, note: note.clone() }).await;
        }
        if let Some(note) = &acted.banned {
            self.say(cluster, &News { node: None, reason: "ItemsBanned".into(), warns: true, note: note.clone() }).await;
        }
    }

    /// Writes all of it, or as much as there is before the API is away; answers with the first failure.
    async fn write(&self, cluster: &Cluster, plan: &Plan, pace: &mut Pace) -> kube::Result<()> {
        let standing = match &plan.standing {
            Some(standing) => self.write_status(cluster, standing, pace).await,
            None => Ok(()),
        };
        let writes = plan.create.iter().map(Write::Create).chain(plan.change.iter().map(Write::Change));
        let results = futures::stream::iter(writes.map(|write| self.write_one(cluster, write))).buffer_unordered(WRITES);
        let others = results.map(|done| match done {
            Err(e) if k3s::transient(&e) => Err(e),
            done => Ok(done),
        });
        let others = others.try_fold(Ok(()), |first, done| std::future::ready(Ok(first.and(done)))).await;
        standing.and(others.and_then(|done| done))
    }

    async fn write_status(&self, cluster: &Cluster, standing: &Standing, pace: &mut Pace) -> kube::Result<()> {
        let api = Request::new(UpdateManager::url_path(&(), Some(names::NAMESPACE)));
        let (how, patch) = (PatchParams::apply(names::CONTROLLER_MANAGER), Patch::Merge(StatusPatch { status: &standing.status }));
        let request = api.patch_subresource("status", names::INSTANCE, &how, &patch).map_err(kube::Error::BuildRequest)?;
        // the answer is as large as what was written, and the watch says it again
        self.counted(self.client.request::<IgnoredAny>(request).await.map(drop))?;
        pace.wrote(size(&standing.status), Instant::now());
        futures::stream::iter(&standing.news).for_each_concurrent(WRITES, |news| self.say(cluster, news)).await;
        Ok(())
    }

    async fn write_one(&self, cluster: &Cluster, write: Write<'_>) -> kube::Result<()> {
        let done = match write {
            Write::Create(update) => {
                let ours = PostParams { field_manager: Some(names::CONTROLLER_MANAGER.into()), ..PostParams::default() };
                self.node_updates.create(&ours, update).await.map(drop)
            }
            Write::Change(Change { node, spec, .. }) => {
                // what is under way is in both the same, and so not in the patch
                let Some(patch) = cluster.updates.get(node).and_then(|before| spec_patch(&before.spec, spec)) else { return Ok(()) };
                let how = PatchParams::apply(names::CONTROLLER_MANAGER);
                self.node_updates.patch_metadata(node, &how, &Patch::Merge(&patch)).await.map(drop)
            }
        };
        self.pulse.beat();
        self.counted(done)?;
        if let Write::Change(Change { news: Some(news), .. }) = write {
            self.say(cluster, news).await;
        }
        Ok(())
    }

    /// Counts a write. An object that is there already, or gone by now, is no failure: the watch says so.
    fn counted(&self, done: kube::Result<()>) -> kube::Result<()> {
        match done {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Ok(()) => {
                self.metrics.writes.inc();
                Ok(())
            }
            Err(e) => {
                self.metrics.failures.inc();
                Err(e)
            }
        }
    }

    /// An Event on a node or on the `UpdateManager`. Nobody's work depends on it.
    async fn say(&self, cluster: &Cluster, news: &News) {
        tracing::info!(node = news.node, reason = news.reason, "{}", news.note);
        let event = event(news, cluster, &self.pod, Timestamp::now());
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api = Api::namespaced(self.client.clone(), &namespace);
        if let Err(e) = api.create(&PostParams::default(), &event).await {
            tracing::warn!("the API did not take an event: {}", k3s::in_words(&e));
        }
    }
}

/// The Event that tells of it; of the core API, as the kubelet's own are: events.k8s.io of Kubernetes 1.20 refuses those on nodes.
fn event(news: &News, cluster: &Cluster, pod: &Pod, now: Timestamp) -> Event {
    let involved_object = match &news.node {
        // kubectl describe looks for a node's events by its name in the place of its UID
        Some(node) => ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(node.clone()),
            uid: Some(node.clone()),
            ..ObjectReference::default()
        },
        None => ObjectReference {
            api_version: Some(format!("{}/{}", names::GROUP, names::VERSION)),
            kind: Some("UpdateManager".into()),
            name: Some(names::INSTANCE.into()),
            namespace: Some(names::NAMESPACE.into()),
            uid: cluster.manager.as_ref().and_then(|m| m.uid.clone()),
            ..ObjectReference::default()
        },
    };
    let name = involved_object.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            // those on nodes are in this one
            namespace: Some(involved_object.namespace.clone().unwrap_or_else(|| "default".into())),
            ..ObjectMeta::default()
        },
        involved_object,
        type_: Some(if news.warns { "Warning" } else { "Normal" }.into()),
        reason: Some(news.reason.clone()),
        message: Some(news.note.chars().take(1000).collect()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource { component: Some("smartup-controller".into()), host: Some(pod.node.clone()) }),
        ..Event::default()
    }
}

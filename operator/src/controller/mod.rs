//! The controller: makes a `NodeUpdate` for each node, gives it a stage, and says in the `UpdateManager` how all nodes stand.

mod follow;
mod metrics;
mod plan;
mod view;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use jiff::Timestamp;
use k3s::Lease;
use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use node::{Error, Result};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use updates::api::{NodeUpdate, UpdateManager};
use updates::names;

use self::follow::Known;
use self::metrics::Metrics;
use self::plan::{Cluster, News, Plan, plan};
use self::view::{ManagerView, NodeView, node_update};
use crate::client::Clients;
use crate::serve::{BEAT, Pulse, registry};
use crate::{LEASE, Pod, VERSION};

/// What changes within this time is one pass: thousands of agents report at once after an upgrade.
const GATHER: Duration = Duration::from_millis(500);
/// How long to wait after writes that the API did not take.
const RETRY: Duration = Duration::from_secs(5);
/// A watch ends by itself after so many seconds and is begun anew: one whose server died would be silent for ever.
const WATCH: u32 = 60;
/// Writes at once.
const WRITES: usize = 8;

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
    let mut lead = std::pin::pin!(Lease::lead(&clients.asking, names::NAMESPACE, LEASE, &pod.name));
    let lease = loop {
        tokio::select! {
            lease = &mut lead => break lease,
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(BEAT) => pulse.beat(),
        }
    };
    tracing::info!("this controller leads");
    metrics.leads.set(1);
    let leader = Leader::new(&clients, pod, metrics);
    let ended = tokio::select! {
        () = leader.lead(&lease, &pulse) => Ok(()),
        () = lease.lost() => Err(Error::failed("another controller leads, or may soon: the lease could not be renewed")),
        () = stop.cancelled() => Ok(()),
    };
    // the next one need not wait until it has expired
    lease.end().await;
    ended
}

/// The controller that leads.
struct Leader {
    nodes: Known<NodeView>,
    updates: Known<NodeUpdate>,
    managers: Known<ManagerView>,
    changed: Arc<Notify>,
    node_updates: Api<NodeUpdate>,
    statuses: Api<UpdateManager>,
    client: Client,
    pod: Pod,
    metrics: Metrics,
}

impl Leader {
    /// Begins to watch.
    fn new(clients: &Clients, pod: &Pod, metrics: Metrics) -> Self {
        let watching = &clients.watching;
        let changed = Arc::new(Notify::new());
        let (nodes, updates, managers) = (Known::new(), Known::new(), Known::new());
        let config = || watcher::Config::default().timeout(WATCH);
        let api = Api::<PartialObjectMeta<Node>>::all(watching.clone());
        nodes.follow("nodes", watcher::watcher(api, config()).default_backoff(), NodeView::of, &changed);
        let api = Api::<NodeUpdate>::namespaced(watching.clone(), names::NAMESPACE);
        updates.follow("NodeUpdates", watcher::watcher(api, config()).default_backoff(), node_update, &changed);
        let api = Api::<DynamicObject>::namespaced_with(watching.clone(), names::NAMESPACE, &ApiResource::erase::<UpdateManager>(&()));
        let only = config().fields(&format!("metadata.name={}", names::INSTANCE));
        managers.follow("the UpdateManager", watcher::watcher(api, only).default_backoff(), ManagerView::of, &changed);
        Self {
            nodes,
            updates,
            managers,
            changed,
            node_updates: Api::namespaced(clients.asking.clone(), names::NAMESPACE),
            statuses: Api::namespaced(clients.asking.clone(), names::NAMESPACE),
            client: clients.asking.clone(),
            pod: pod.clone(),
            metrics,
        }
    }

    /// Compares and writes whenever something has changed; and as time goes by, since windows open and delays pass.
    async fn lead(&self, lease: &Lease, pulse: &Pulse) {
        let mut pause = BEAT;
        loop {
            tokio::select! {
                () = self.changed.notified() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(pause) => {}
            }
            pulse.beat();
            pause = match self.pass(lease).await {
                Ok(()) => BEAT,
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

    async fn pass(&self, lease: &Lease) -> Result<()> {
        let Some(cluster) = self.cluster() else { return Ok(()) };
        let began = Instant::now();
        let plan = plan(&cluster, Timestamp::now());
        self.metrics.passes.observe(began.elapsed().as_secs_f64());
        if let Some(status) = plan.status.as_ref().or(cluster.manager.as_ref().map(|m| &m.status)) {
            self.metrics.show(status);
        }
        if plan.is_empty() {
            return Ok(());
        }
        lease.still_ours().await?;
        let failed = self.write(&plan).await;
        for news in &plan.news {
            self.say(&cluster, news).await;
        }
        match failed {
            None => Ok(()),
            Some(e) => Err(Error::failed(format!("the API did not take all: {}", k3s::in_words(&e)))),
        }
    }

    /// Writes all of it; answers with the first failure.
    async fn write(&self, plan: &Plan) -> Option<kube::Error> {
        let ours = PostParams { field_manager: Some(names::CONTROLLER_MANAGER.into()), ..PostParams::default() };
        let create = |update: &NodeUpdate| {
            let (api, ours, update) = (&self.node_updates, &ours, update.clone());
            async move { api.create(ours, &update).await.map(drop) }
        };
        let change = |(name, spec): &(String, updates::api::NodeUpdateSpec)| {
            let (api, name, patch) = (&self.node_updates, name.clone(), json!({ "spec": spec }));
            async move { api.patch(&name, &PatchParams::apply(names::CONTROLLER_MANAGER), &Patch::Merge(&patch)).await.map(drop) }
        };
        let created = futures::stream::iter(plan.create.iter().map(create)).buffer_unordered(WRITES).collect::<Vec<_>>().await;
        let changed = futures::stream::iter(plan.change.iter().map(change)).buffer_unordered(WRITES).collect::<Vec<_>>().await;
        let mut results: Vec<_> = created.into_iter().chain(changed).collect();
        if let Some(status) = &plan.status {
            let patch = Patch::Merge(json!({ "status": status }));
            let done = self.statuses.patch_status(names::INSTANCE, &PatchParams::apply(names::CONTROLLER_MANAGER), &patch).await;
            results.push(done.map(drop));
        }
        let mut first = None;
        for result in results {
            match result {
                Ok(()) => {
                    self.metrics.writes.inc();
                }
                // it is there, or gone, by now: the watch says so
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(e) => {
                    self.metrics.failures.inc();
                    first = first.or(Some(e));
                }
            }
        }
        first
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

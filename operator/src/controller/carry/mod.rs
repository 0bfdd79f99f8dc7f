//! What `updates::decide` decides is carried out: it is given what is seen, and each step that it answers is done.
//!
//! Nothing is remembered that a restart must not lose. Looks at pods, and drains that are under way, are begun anew.

mod act;
mod alerts;
mod ban;
mod etcd;
mod explain;
mod look;
mod notify;
mod quiet;
mod slots;
mod story;
mod web;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use jiff::Timestamp;
use k3s::Emptying;
use k8s_openapi::api::coordination::v1::Lease;
use node::{Error, Result};
use tokio::task::JoinSet;
use updates::api::{Marks, NodeUpdate, NodeUpdateSpec, Notify, Phase, Retry, Transaction, UpdateManagerSpec};
use updates::decide::{Action, Alerts, Attribution, Decision, Etcd, FailedStage, Input, Look, Next, decide};
use updates::{TransactionId, judge};

pub(super) use self::explain::explain;
pub(super) use self::slots::{LABEL, Slot};
pub(super) use self::story::Happening;

use self::act::Done;
use self::quiet::Quiet;
use super::plan::Cluster;
use crate::CORDONED_FOR;
use crate::client::Clients;

/// What was found out about others holds for so long.
const HOLDS: Duration = Duration::from_secs(5);
/// So long a controller that ends waits for its notifications. The kubelet gives it 10 s in all.
const LAST: Duration = Duration::from_secs(4);
/// Nodes at once.
const NODES: usize = 8;
/// As many leases are taken in a pass; what is under way does not wait for more.
const STARTS: usize = 16;

/// Carries out.
pub(super) struct Carry {
    clients: Clients,
    http: reqwest::Client,
    looks: BTreeMap<String, Look>,
    quiet: Quiet,
    drains: BTreeMap<String, (TransactionId, Emptying)>,
    etcd: Option<(Instant, Etcd)>,
    alerts: Option<(Instant, Alerts)>,
    /// Notifications that are on their way.
    telling: JoinSet<()>,
}

/// What was decided.
#[derive(Debug)]
pub(super) struct Decided {
    /// What comes next for each node.
    pub(super) nodes: BTreeMap<String, Next>,
    /// Stages that keep those after them from starting.
    pub(super) failed: Vec<FailedStage>,
    unlock: Vec<u32>,
    attribution: Option<Attribution>,
}

impl Decided {
    fn of(decision: Decision<'_>) -> Self {
        let Decision { nodes, unlock, attribution, failed } = decision;
        Self { nodes: nodes.into_iter().map(|(name, next)| (name.to_owned(), next)).collect(), failed, unlock, attribution }
    }

    /// Whether there is nothing to be done.
    pub(super) fn is_idle(&self) -> bool {
        self.unlock.is_empty() && self.attribution.is_none() && !self.nodes.values().any(|next| matches!(next, Next::Act(_)))
    }
}

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Acted {
    pub(super) happenings: Vec<Happening>,
    /// What a crash has taught was written: the `UpdateManager` is another one now than the one that was decided on.
    pub(super) learnt: bool,
    /// What was banned, in words.
    pub(super) banned: Option<String>,
    /// The first failure.
    pub(super) failed: Option<Error>,
}

impl Acted {
    /// Keeps the first failure; one node's is no reason not to go on with the others.
    fn fails<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(e) => {
                if self.failed.is_some() {
                    tracing::warn!("{}", e.chain());
                } else {
                    self.failed = Some(e);
                }
                None
            }
        }
    }
}

/// Of a lease what is kept in memory.
pub(super) fn slot(lease: &Lease) -> Option<Slot> {
    Slot::of(lease)
}

/// The slots that watches saw, by their numbers.
pub(super) fn seen(slots: &BTreeMap<String, Arc<Option<Slot>>>) -> Vec<Slot> {
    let mut slots: Vec<_> = slots.values().filter_map(|slot| slot.as_ref().clone()).collect();
    slots.sort();
    slots
}

/// A node as it was seen, with its `NodeUpdate` unless that is a namesake's.
fn of_node<'c>(cluster: &'c Cluster, name: &'c str, uid: &str) -> Option<&'c NodeUpdate> {
    let update = cluster.updates.get(name)?;
    update.metadata.owner_references.iter().flatten().any(|o| o.uid == uid).then_some(update.as_ref())
}

fn input_nodes<'c>(
    cluster: &'c Cluster,
    looks: &'c BTreeMap<String, Look>,
    quiet: &Quiet,
    now: Timestamp,
) -> Vec<updates::decide::Node<'c>> {
    let instant = Instant::now();
    let node = |(name, node): (&'c String, &'c Arc<super::view::NodeView>)| updates::decide::Node {
        node: judge::Node { name, labels: &node.labels, update: of_node(cluster, name, &node.uid) },
        uid: &node.uid,
        ready: node.ready,
        server: node.server,
        cordon: node.cordon,
        run_requested: node.run_requested,
        look: looks.get(name),
        quiet_since: quiet.since(name, instant, now),
    };
    cluster.nodes.iter().map(node).collect()
}

fn spec_of(cluster: &Cluster) -> Option<&UpdateManagerSpec> {
    cluster.manager.as_ref()?.spec.as_ref().ok()
}

/// The slot whose lease comes first of all.
fn wanted_slot(action: &Action) -> Option<u32> {
    match action {
        Action::Start { slot, .. } | Action::Lock { slot } => Some(*slot),
        _ => None,
    }
}

fn transaction_of<'c>(cluster: &'c Cluster, name: &str) -> Option<&'c Transaction> {
    cluster.updates.get(name)?.spec.transaction.as_ref()
}

impl Carry {
    /// Nothing is known yet.
    ///
    /// # Errors
    /// Only by a mistake of smartup's own.
    pub(super) fn new(clients: &Clients) -> Result<Self> {
        let http = web::client()?;
        Ok(Self {
            clients: clients.clone(),
            http,
            looks: BTreeMap::new(),
            quiet: Quiet::default(),
            drains: BTreeMap::new(),
            etcd: None,
            alerts: None,
            telling: JoinSet::new(),
        })
    }

    /// Decides. Prometheus and the API servers are asked only where something depends on it: an idle cluster is left in peace.
    pub(super) async fn decide(&mut self, cluster: &Cluster, slots: &[Slot], now: Timestamp) -> Decided {
        self.looks.retain(|name, _| transaction_of(cluster, name).is_some());
        self.drains.retain(|name, (id, _)| transaction_of(cluster, name).is_some_and(|t| t.id == *id && t.phase == Phase::Draining));
        self.quiet.look(cluster, Instant::now());
        let spec = spec_of(cluster);
        let without = self.judged(cluster, slots, (&Etcd::Elsewhere, &Alerts::Quiet), now);
        let phase = |name: &str| transaction_of(cluster, name).map(|t| t.phase);
        let starts = |next: &Next| matches!(next, Next::Act(Action::Start { .. }));
        // what is under way is not stopped by alerts: they are asked for where it has done nothing yet, and at its end
        let heeds = |name: &str| matches!(phase(name), Some(Phase::Checking | Phase::Downloading | Phase::Verifying | Phase::Broken));
        let heeded = without.nodes.iter().any(|(name, next)| starts(next) || heeds(name));
        let rules = spec.and_then(|s| s.blocking_alerts.as_ref()).filter(|_| heeded);
        let moves = |name: &str, next: &Next| starts(next) || phase(name).is_some_and(|phase| phase != Phase::Releasing);
        let is_server = |name: &str| cluster.nodes.get(name).is_some_and(|n| n.server);
        let servers = without.nodes.iter().any(|(name, next)| is_server(name) && moves(name, next));
        if rules.is_none() && !servers {
            return without;
        }
        // what was found out holds for a moment; then it is asked for anew
        self.etcd = self.etcd.take().filter(|(at, _)| servers && at.elapsed() < HOLDS);
        if servers && self.etcd.is_none() {
            let nodes = cluster.nodes.iter().map(|(name, node)| (name.as_str(), node.as_ref()));
            self.etcd = Some((Instant::now(), etcd::members(&self.clients, nodes).await));
        }
        self.alerts = self.alerts.take().filter(|(at, _)| rules.is_some() && at.elapsed() < HOLDS);
        if let (Some(rules), None) = (rules, &self.alerts) {
            self.alerts = Some((Instant::now(), alerts::firing(&self.http, rules).await));
        }
        let etcd = self.etcd.as_ref().map_or(&Etcd::Elsewhere, |(_, etcd)| etcd);
        let alerts = self.alerts.as_ref().map_or(&Alerts::Quiet, |(_, alerts)| alerts);
        self.judged(cluster, slots, (etcd, alerts), now)
    }

    fn judged(&self, cluster: &Cluster, slots: &[Slot], (etcd, alerts): (&Etcd, &Alerts), now: Timestamp) -> Decided {
        let suspects = cluster.manager.as_ref().map(|m| m.status.suspects.as_slice()).unwrap_or_default();
        let nodes = input_nodes(cluster, &self.looks, &self.quiet, now);
        let locks: Vec<_> = slots.iter().map(Slot::lock).collect();
        Decided::of(decide(&Input { spec: spec_of(cluster), suspects, nodes: &nodes, locks: &locks, etcd, alerts }, now))
    }

    /// Does what was decided. What has changed since is left for the next time.
    ///
    /// `beat` is called after each step: thousands of them may take minutes.
    pub(super) async fn act(&mut self, cluster: &Cluster, slots: &[Slot], decided: &Decided, now: Timestamp, beat: impl Fn()) -> Acted {
        let client = &self.clients.asking.clone();
        let mut acted = Acted::default();
        if let Some(learnt) = &decided.attribution
            && acted.fails(ban::write(client, learnt, now).await).is_some()
        {
            acted.learnt = true;
            acted.banned = story::banned(learnt);
            return acted;
        }
        // where it could not be written, nothing starts, and what is under way on other nodes goes on
        for number in &decided.unlock {
            acted.fails(act::unlock(client, *number).await);
            beat();
        }
        let taken = self.take_slots(cluster, slots, decided, now, &mut acted).await;
        let empty = UpdateManagerSpec::default();
        let spec = spec_of(cluster).unwrap_or(&empty);
        let mut steps = Vec::new();
        for (name, next) in &decided.nodes {
            let (Next::Act(action), Some(node)) = (next, cluster.nodes.get(name)) else { continue };
            let Some(update) = of_node(cluster, name, &node.uid) else { continue };
            if wanted_slot(action).is_some() && !taken.contains(name.as_str()) {
                continue;
            }
            let step = Step { node: act::Decided { node: name, uid: &node.uid, spec: &update.spec }, action, spec, now };
            steps.push((step, self.drains.remove(name)));
        }
        let work = steps.into_iter().map(|(step, drain)| step.done(client, drain));
        let mut work = futures::stream::iter(work).buffer_unordered(NODES);
        while let Some(Outcome { node, result, look, drain }) = work.next().await {
            beat();
            let happening = acted.fails(result).flatten();
            acted.happenings.extend(happening);
            self.looks.extend(look.map(|look| (node.clone(), look)));
            self.drains.extend(drain.map(|drain| (node, drain)));
        }
        acted
    }

    /// Takes the leases that are to be taken, the lowest first, as long as all are as they were when that was decided: two
    /// controllers get in each other's way at the first of them. Answers the nodes that have theirs.
    async fn take_slots<'d>(
        &self,
        cluster: &Cluster,
        seen: &[Slot],
        decided: &'d Decided,
        now: Timestamp,
        acted: &mut Acted,
    ) -> BTreeSet<&'d str> {
        let wanted = |(name, next): (&'d String, &Next)| {
            let (Next::Act(action), Some(node)) = (next, cluster.nodes.get(name)) else { return None };
            of_node(cluster, name, &node.uid)?;
            Some((Slot { number: wanted_slot(action)?, node: name.clone(), uid: node.uid.clone() }, name.as_str()))
        };
        let mut wanted: Vec<_> = decided.nodes.iter().filter_map(wanted).collect();
        wanted.sort_unstable();
        let mut taken = BTreeSet::new();
        let client = &self.clients.asking;
        if wanted.is_empty() || acted.fails(act::are_as_seen(client, seen).await) != Some(true) {
            return taken;
        }
        for (slot, name) in wanted.iter().take(STARTS) {
            if acted.fails(act::take(client, slot, now).await) != Some(Done::Yes) {
                break;
            }
            taken.insert(*name);
        }
        taken
    }

    /// Notifies somebody, in the background.
    pub(super) fn tell(&mut self, cluster: &Cluster, happening: &Happening) {
        let notify: Option<&Notify> = spec_of(cluster).and_then(|s| s.notify.as_ref());
        let Happening { node, transaction, note, tells, .. } = happening.clone();
        while self.telling.try_join_next().is_some() {}
        if let (Some(what), Some(notify)) = (tells, notify) {
            let told = notify::Told { what, node, message: note, transaction };
            self.telling.spawn(notify::tell(self.clients.asking.clone(), self.http.clone(), notify.clone(), told));
        }
    }

    /// Lets notifications that are on their way arrive, for a while: this process ends.
    pub(super) async fn ends(mut self) {
        let all = async { while self.telling.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST, all).await.is_err() {
            tracing::warn!("this controller ends before {} notifications were delivered", self.telling.len());
        }
    }
}

/// A step of a node.
struct Step<'a> {
    node: act::Decided<'a>,
    action: &'a Action,
    spec: &'a UpdateManagerSpec,
    now: Timestamp,
}

/// What a step has come to.
struct Outcome {
    node: String,
    result: Result<Option<Happening>>,
    look: Option<Look>,
    drain: Option<(TransactionId, Emptying)>,
}

impl Step<'_> {
    /// The node's spec with another transaction.
    fn with(&self, transaction: Option<Transaction>) -> NodeUpdateSpec {
        NodeUpdateSpec { transaction, ..self.node.spec.clone() }
    }

    /// It has its lease, so that of two controllers one starts.
    async fn starts(&self, client: &kube::Client, transaction: &Transaction) -> Result<Option<Happening>> {
        let refused = act::mark(client, self.node, &self.spec.marks_before).await?;
        let done = act::write(client, self.node, &self.with(Some(transaction.clone()))).await?;
        Ok((done == Done::Yes).then(|| story::started(self.node.node, transaction).although(refused)))
    }

    async fn done(self, client: &kube::Client, drain: Option<(TransactionId, Emptying)>) -> Outcome {
        // a namesake is left alone
        let (node, uid) = (self.node.node.to_owned(), Some(self.node.uid));
        let (mut look, mut kept) = (None, None);
        let result = match (self.action, &self.node.spec.transaction) {
            (Action::Look, _) => match look::look(client, &node, self.spec).await {
                Ok(found) => {
                    look = Some(found);
                    Ok(None)
                }
                Err(e) => Err(Error::failed(format!("cannot look at the pods of {node}: {}", k3s::in_words(&e)))),
            },
            (Action::Evict, Some(transaction)) => {
                let begin = || (transaction.id.clone(), Emptying::new(client, &node, &look::rules(&self.spec.drain)));
                let (id, mut emptying) = drain.filter(|(id, _)| *id == transaction.id).unwrap_or_else(begin);
                let at = Timestamp::now();
                let round = emptying.look().await;
                look = Some(look::after(round, at));
                kept = Some((id, emptying));
                Ok(None)
            }
            (Action::Start { transaction, .. }, _) => self.starts(client, transaction).await,
            (Action::Cordon, _) => k3s::cordon(client, &node, uid, CORDONED_FOR).await.map(|_| None),
            (Action::Uncordon, _) => k3s::uncordon_for(client, &node, uid, CORDONED_FOR).await.map(|_| None),
            (Action::Move(after), Some(before)) => self.moved(client, before, after).await,
            (Action::Finish { retry }, Some(transaction)) => self.finished(client, transaction, retry.clone()).await,
            // the lease is all that a lock is
            (Action::Lock { .. }, _) | (Action::Evict | Action::Move(_) | Action::Finish { .. }, None) => Ok(None),
        };
        Outcome { node, result, look, drain: kept }
    }

    async fn moved(&self, client: &kube::Client, before: &Transaction, after: &Transaction) -> Result<Option<Happening>> {
        let done = act::write(client, self.node, &self.with(Some(after.clone()))).await?;
        tracing::info!(node = self.node.node, transaction = %after.id, from = %before.phase, to = %after.phase, ?done, "the next phase");
        Ok(if done == Done::Yes { story::failed(self.node.node, before, after) } else { None })
    }

    async fn finished(&self, client: &kube::Client, transaction: &Transaction, retry: Option<Retry>) -> Result<Option<Happening>> {
        // somebody may have taken the cordon off, and left the annotation
        k3s::uncordon_for(client, self.node.node, Some(self.node.uid), CORDONED_FOR).await?;
        let marks = if transaction.failure.is_none() { &self.spec.marks_after } else { &Marks::default() };
        let refused = act::mark(client, self.node, marks).await?;
        let after = NodeUpdateSpec { retry, ..self.with(None) };
        let done = act::write(client, self.node, &after).await?;
        let over = if done == Done::Yes { story::over(self.node.node, transaction, self.now) } else { None };
        Ok(over.map(|over| over.although(refused)))
    }
}

#[cfg(test)]
mod tests;

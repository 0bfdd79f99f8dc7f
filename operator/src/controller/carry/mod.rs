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

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use jiff::Timestamp;
use k3s::Emptying;
use k8s_openapi::api::coordination::v1::Lease;
use node::{Error, Result};
use updates::api::{NodeUpdate, NodeUpdateSpec, Notify, Phase, Retry, Transaction, UpdateManagerSpec};
use updates::decide::{Action, Alerts, Attribution, Decision, Etcd, FailedStage, Input, Look, Next, decide};
use updates::{TransactionId, judge};

pub(super) use self::act::WHY;
pub(super) use self::explain::explain;
pub(super) use self::slots::{LABEL, Slot};
pub(super) use self::story::Happening;

use self::act::Done;
use self::quiet::Quiet;
use super::plan::Cluster;
use crate::client::Clients;

/// What was found out about others holds for so long.
const HOLDS: Duration = Duration::from_secs(5);
/// Nodes at once.
const NODES: usize = 8;

/// Carries out.
pub(super) struct Carry {
    clients: Clients,
    http: reqwest::Client,
    looks: BTreeMap<String, Look>,
    quiet: Quiet,
    drains: BTreeMap<String, (TransactionId, Emptying)>,
    etcd: Option<(Instant, Etcd)>,
    alerts: Option<(Instant, Alerts)>,
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

    /// What is known of crashes is not written yet: all else waits for that.
    pub(super) fn has_learnt(&self) -> bool {
        self.attribution.is_some()
    }
}

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Acted {
    pub(super) happenings: Vec<Happening>,
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
                self.failed = self.failed.take().or(Some(e));
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
        })
    }

    /// Decides. Prometheus and the API servers are asked only where something depends on it: an idle cluster is left in peace.
    pub(super) async fn decide(&mut self, cluster: &Cluster, slots: &[Slot], now: Timestamp) -> Decided {
        self.looks.retain(|name, _| transaction_of(cluster, name).is_some());
        self.drains.retain(|name, (id, _)| transaction_of(cluster, name).is_some_and(|t| t.id == *id && t.phase == Phase::Draining));
        self.quiet.look(cluster, Instant::now());
        let spec = spec_of(cluster);
        let without = self.judged(cluster, slots, (&Etcd::Elsewhere, &Alerts::Quiet), now);
        let is_moving = |name: &String, next: &Next| {
            matches!(next, Next::Act(Action::Start { .. })) || transaction_of(cluster, name).is_some_and(|t| t.phase != Phase::Releasing)
        };
        let moving: Vec<&String> = without.nodes.iter().filter(|(name, next)| is_moving(name, next)).map(|(name, _)| name).collect();
        let rules = spec.and_then(|s| s.blocking_alerts.as_ref()).filter(|_| !moving.is_empty());
        let servers = moving.iter().any(|name| cluster.nodes.get(*name).is_some_and(|n| n.server));
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
    pub(super) async fn act(&mut self, cluster: &Cluster, slots: &[Slot], decided: &Decided, now: Timestamp) -> Acted {
        let client = &self.clients.asking.clone();
        let mut acted = Acted::default();
        if let Some(learnt) = &decided.attribution {
            match ban::write(client, learnt, now).await {
                Ok(()) if learnt.bans.is_empty() => {}
                Ok(()) => {
                    let bans: Vec<_> = learnt.bans.iter().map(ToString::to_string).collect();
                    acted.banned = Some(format!("banned after {}: {} ({})", learnt.node, bans.join(", "), learnt.because));
                }
                Err(e) => acted.failed = Some(e),
            }
            return acted;
        }
        for number in &decided.unlock {
            acted.fails(act::unlock(client, *number).await);
        }
        let empty = UpdateManagerSpec::default();
        let spec = spec_of(cluster).unwrap_or(&empty);
        let mut seen = slots.to_vec();
        let mut steps = Vec::new();
        for (name, next) in &decided.nodes {
            let (Next::Act(action), Some(node)) = (next, cluster.nodes.get(name)) else { continue };
            let Some(update) = of_node(cluster, name, &node.uid) else { continue };
            let step = Step { node: act::Decided { node: name, uid: &node.uid, spec: &update.spec }, action, spec, now };
            // those that take a slot, one by one: each sees what the one before has taken
            let (Action::Start { slot, .. } | Action::Lock { slot }) = action else {
                steps.push((step, self.drains.remove(name)));
                continue;
            };
            let slot = Slot { number: *slot, node: name.clone(), uid: node.uid.clone() };
            let happening = acted.fails(step.takes(client, &mut seen, slot).await).flatten();
            acted.happenings.extend(happening);
        }
        let work = steps.into_iter().map(|(step, drain)| step.done(client, drain));
        let done: Vec<_> = futures::stream::iter(work).buffer_unordered(NODES).collect().await;
        for Outcome { node, result, look, drain } in done {
            let happening = acted.fails(result).flatten();
            acted.happenings.extend(happening);
            self.looks.extend(look.map(|look| (node.clone(), look)));
            self.drains.extend(drain.map(|drain| (node, drain)));
        }
        acted
    }

    /// Notifies somebody, in the background.
    pub(super) fn tell(&self, cluster: &Cluster, happening: &Happening) {
        let notify: Option<&Notify> = spec_of(cluster).and_then(|s| s.notify.as_ref());
        let Happening { node, transaction, note, tells, .. } = happening.clone();
        if let Some(what) = tells {
            notify::tell(&self.clients.asking, &self.http, notify, notify::Told { what, node, message: note, transaction });
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

    /// A lease first, so that of two controllers one starts; then the rest.
    async fn takes(&self, client: &kube::Client, seen: &mut Vec<Slot>, slot: Slot) -> Result<Option<Happening>> {
        if act::lock(client, seen, &slot, self.now).await? == Done::NotAnyMore {
            return Ok(None);
        }
        seen.push(slot);
        seen.sort();
        let Action::Start { transaction, .. } = self.action else { return Ok(None) };
        let marked = act::mark(client, self.node, &self.spec.marks_before).await? == Done::Yes;
        let transaction = transaction.as_ref();
        let done = marked && act::write(client, self.node, &self.with(Some(transaction.clone()))).await? == Done::Yes;
        Ok(done.then(|| story::started(self.node.node, transaction)))
    }

    async fn done(self, client: &kube::Client, drain: Option<(TransactionId, Emptying)>) -> Outcome {
        let node = self.node.node.to_owned();
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
            (Action::Cordon, _) => k3s::cordon(client, &node, WHY).await.map(|_| None),
            (Action::Uncordon, _) => k3s::uncordon_for(client, &node, WHY).await.map(|_| None),
            (Action::Move(after), Some(before)) => self.moved(client, before, after).await,
            (Action::Finish { retry }, Some(transaction)) => self.finished(client, transaction, retry.clone()).await,
            (Action::Evict | Action::Move(_) | Action::Finish { .. } | Action::Start { .. } | Action::Lock { .. }, _) => Ok(None),
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
        k3s::uncordon_for(client, self.node.node, WHY).await?;
        if transaction.failure.is_none() && act::mark(client, self.node, &self.spec.marks_after).await? == Done::NotAnyMore {
            return Ok(None);
        }
        let after = NodeUpdateSpec { retry, ..self.with(None) };
        let done = act::write(client, self.node, &after).await?;
        Ok(if done == Done::Yes { story::over(self.node.node, transaction, self.now) } else { None })
    }
}

//! Who is updated next, and what is done next to those that are being updated. Pure: the time is an argument.
//!
//! docs/development/updates.md has the phases, and what restarts lead to.

mod due;
mod estimate;
mod queue;
mod quorum;
mod retry;
mod rules;
mod stages;
mod trials;
mod way;
mod writes;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

pub use self::estimate::estimate;
pub use self::quorum::{Etcd, Voter};
pub use self::stages::FailedStage;
pub use self::writes::{bans, spec_patch};
use crate::api::{NodeUpdateSpec, NodeUpdateStatus, Phase, Reason, Retry, Transaction, UpdateManagerSpec};
use crate::{Item, Suspects, judge};

/// All that is looked at.
#[derive(Debug)]
pub struct Input<'a> {
    /// What is wanted; None where that is not understood: nothing starts then, and what is under way ends as by an empty one.
    pub spec: Option<&'a UpdateManagerSpec>,
    /// The status' suspects.
    pub suspects: &'a [Suspects],
    /// All nodes.
    pub nodes: &'a [Node<'a>],
    /// All leases of [`crate::names::LOCK_PREFIX`].
    pub locks: &'a [Lock<'a>],
    /// Of this moment, where a server may be next.
    pub etcd: &'a Etcd,
    /// Of this moment, where the spec has blocking alerts.
    pub alerts: &'a Alerts,
}

/// A node of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// Its name, its labels and its `NodeUpdate`; one of a namesake that is gone is none.
    pub node: judge::Node<'a>,
    /// Its UID.
    pub uid: &'a str,
    /// Whether its condition Ready is True.
    pub ready: bool,
    /// Whether it is a server (k3s's word for a control plane node).
    pub server: bool,
    /// Whether it takes pods.
    pub cordon: Cordon,
    /// Its [`crate::names::RUN_ANNOTATION`].
    pub run_requested: Option<Timestamp>,
    /// What the controller saw when it last looked at its pods.
    pub look: Option<&'a Look>,
    /// Since when the controller has seen neither its `progress` nor its `ready` change, by its own clock; not before it began to
    /// see all of the cluster. None: it sees it for the first time.
    pub quiet_since: Option<Timestamp>,
}

impl<'a> Node<'a> {
    fn name(&self) -> &'a str {
        self.node.name
    }

    fn spec(&self) -> Option<&'a NodeUpdateSpec> {
        self.node.update.map(|u| &u.spec)
    }

    fn status(&self) -> Option<&'a NodeUpdateStatus> {
        self.node.update?.status.as_ref()
    }

    fn transaction(&self) -> Option<&'a Transaction> {
        self.spec()?.transaction.as_ref()
    }
}

/// Who keeps pods off a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cordon {
    /// It takes pods.
    No,
    /// Smartup, for an update.
    Ours,
    /// Somebody else, who alone takes that back.
    Theirs,
}

/// A lease that is held for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock<'a> {
    /// The number in its name.
    pub slot: u32,
    /// Whose it is.
    pub node: &'a str,
    /// That node's UID: a namesake's is nobody's.
    pub uid: &'a str,
}

/// Whether alerts are firing that block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alerts {
    /// None is.
    Quiet,
    /// These are.
    Firing(Vec<String>),
    /// Prometheus cannot be asked, and why.
    Unknown(String),
}

/// What the controller saw of a node's pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// When.
    pub at: Timestamp,
    /// What keeps it from being updated.
    pub blockers: Vec<Blocker>,
    /// How many pods have to go and are still there.
    pub left: usize,
}

/// What keeps a node from being updated, named so that it can be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocker {
    /// A disruption budget that lets no pod go, and the pod.
    Budget(String),
    /// A pod that must not be disturbed.
    Pod(String),
    /// A pod that cannot be taken off with the spec's drain options, and why.
    Stays(String),
}

/// What is to be done, and why the rest waits.
#[derive(Debug, Default, PartialEq)]
pub struct Decision<'a> {
    /// Each node, in the input's order.
    pub nodes: Vec<(&'a str, Next)>,
    /// Slots whose lease is nobody's: it is deleted, where it still is by a fresh look.
    pub unlock: Vec<u32>,
    /// What is known of a crash now; it is written before anything else.
    pub attribution: Option<Attribution>,
    /// Stages whose failures keep those after them from starting.
    pub failed: Vec<FailedStage>,
}

/// What comes next for a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// This.
    Act(Action),
    /// Nothing, for this reason.
    Wait(Wait),
    /// Nothing: it is up to date.
    Rest,
}

/// Why nothing is done to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// In one word.
    pub reason: Reason,
    /// Until when, where that is known.
    pub until: Option<Timestamp>,
    /// Its place among those that wait for their turn, from 1.
    pub place: Option<usize>,
}

impl Wait {
    fn on(reason: Reason) -> Self {
        Self { reason, until: None, place: None }
    }
}

/// One step. Each can be done twice, and is done only where a fresh read finds what was decided on.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Its update starts: the lease of the slot is made, the spec's `marksBefore` are put on the node, the transaction is written.
    Start {
        /// The slot of the lease.
        slot: u32,
        /// What is to be done.
        transaction: Box<Transaction>,
    },
    /// Its lease is gone: it takes this one, before anything else happens to it.
    Lock {
        /// The slot of the lease.
        slot: u32,
    },
    /// The transaction is written in the place of the one that is there: it is in another phase.
    Move(Box<Transaction>),
    /// The controller looks at its pods.
    Look,
    /// It takes no more pods, and that is noted as ours.
    Cordon,
    /// Pods that have to go are asked to, and looked at again.
    Evict,
    /// It takes pods again, and the note is gone.
    Uncordon,
    /// Its update is over: the transaction is deleted and `retry` written, at once; after a good end `marksAfter` are put on the node.
    Finish {
        /// Why and until when it is left alone.
        retry: Option<Retry>,
    },
}

/// What crashes have taught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribution {
    /// To be banned from now on.
    pub bans: Vec<Item>,
    /// The status' suspects from now on.
    pub suspects: Vec<Suspects>,
    /// The node that taught it.
    pub node: String,
    /// For people.
    pub because: String,
}

/// What is known beside the nodes.
struct Surroundings<'a, 'i> {
    input: &'i Input<'a>,
    spec: &'i UpdateManagerSpec,
    rules: &'i rules::Rules<'i>,
    nodes: BTreeMap<&'a str, &'a Node<'a>>,
    /// The slots of those that hold one.
    slots: BTreeMap<&'a str, u32>,
    now: Timestamp,
}

impl Surroundings<'_, '_> {
    /// Whether nobody holds a node.
    fn is_free(&self, node: &Node<'_>) -> bool {
        judge::held_by(self.input.spec, &node.node).is_empty()
    }

    fn free_slots(&self) -> Slots {
        let taken = self.input.locks.iter().map(|lock| lock.slot).collect();
        let left = self.spec.max_unavailable.of(self.nodes.len()).saturating_sub(self.slots.len());
        let server = self.slots.keys().any(|name| self.nodes.get(name).is_some_and(|node| node.server));
        Slots { taken, left, server }
    }

    /// Why no update may start or go on, for the alerts' sake.
    fn alarmed(&self) -> Option<(Reason, String)> {
        self.spec.blocking_alerts.as_ref()?;
        let message = match self.input.alerts {
            Alerts::Quiet => return None,
            Alerts::Firing(alerts) => format!("alerts are firing: {}", alerts.join(", ")),
            Alerts::Unknown(why) => format!("nobody can say whether alerts are firing: {why}"),
        };
        Some((Reason::AlertsFiring, message))
    }

    /// Why this server may not be taken down. Of servers never more than one is away, wherever the cluster keeps its data.
    fn quorum(&self, node: &Node<'_>) -> Option<(Reason, String)> {
        let away = || self.input.nodes.iter().find(|other| other.server && !other.ready && other.name() != node.name());
        let said = |other: &Node<'_>| (Reason::TooManyUnavailable, format!("another server is not ready: {}", other.name()));
        let keeps = || self.input.etcd.keeps(node.name()).or_else(|| away().map(said));
        node.server.then(keeps).flatten()
    }
}

/// Leases that can be taken in this pass.
struct Slots {
    /// Their numbers are taken.
    taken: BTreeSet<u32>,
    /// So many more may be held.
    left: usize,
    /// Whether a server holds one.
    server: bool,
}

impl Slots {
    /// The lowest number that no lease has, for a node whose turn it is.
    fn take(&mut self) -> Option<u32> {
        let free = (0..u32::MAX).find(|slot| !self.taken.contains(slot))?;
        self.taken.insert(free);
        Some(free)
    }

    /// One for a node that has lost its own: others may hold as many as may be by now.
    fn take_again(&mut self, node: &Node<'_>) -> Option<u32> {
        if node.server && self.server {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        self.server |= node.server;
        self.take()
    }
}

/// Whether a node in this phase is, or may be, missing something that the cluster needs of it.
fn is_down(phase: Phase) -> bool {
    matches!(phase, Phase::HandingOver | Phase::Draining | Phase::Installing | Phase::Rebooting)
}

/// What is to be done now. Asked again after that, it says what comes then; it remembers nothing.
pub fn decide<'a>(input: &Input<'a>, now: Timestamp) -> Decision<'a> {
    let empty = UpdateManagerSpec::default();
    let spec = input.spec.unwrap_or(&empty);
    let rules = rules::Rules::new(spec, input.suspects, now);
    let nodes: BTreeMap<_, _> = input.nodes.iter().map(|n| (n.name(), n)).collect();
    let owned = |lock: &&Lock<'a>| nodes.get(lock.node).is_some_and(|n| n.uid == lock.uid);
    let slots = input.locks.iter().filter(owned).map(|lock| (lock.node, lock.slot)).collect();
    let around = Surroundings { input, spec, rules: &rules, nodes, slots, now };

    let mut decision = Decision { unlock: way::nobodys(&around), ..Decision::default() };
    let mut slots = around.free_slots();
    // of servers one at a time goes further down, whatever has come about
    let down = |node: &&Node<'a>| node.server && node.transaction().is_some_and(|t| is_down(t.phase));
    let mut server = input.nodes.iter().find(down).map(Node::name);
    let mut under_way = BTreeMap::new();
    for node in input.nodes {
        let Some(transaction) = node.transaction() else {
            // its NodeUpdate was deleted in the middle
            if node.cordon == Cordon::Ours {
                under_way.insert(node.name(), Next::Act(Action::Uncordon));
            }
            continue;
        };
        let (mut next, attribution) = way::next(node, transaction, &around, &mut slots);
        decision.attribution = decision.attribution.or(attribution);
        if node.server && matches!(&next, Next::Act(Action::Move(to)) if is_down(to.phase)) {
            let first = *server.get_or_insert(node.name());
            if first != node.name() {
                next = Next::Wait(Wait::on(Reason::TooManyUnavailable));
            }
        }
        under_way.insert(node.name(), next);
    }
    decision.attribution = decision.attribution.or_else(|| way::tidy(&around));
    // nothing starts on what is about to be banned
    let starts = decision.attribution.is_none();
    let queue = queue::queue(&around, &under_way, starts, &mut slots);
    decision.failed = queue.failed;
    decision.nodes = input.nodes.iter().zip(queue.nodes).map(|(node, next)| (node.name(), next)).collect();
    decision
}

#[cfg(test)]
mod tests;

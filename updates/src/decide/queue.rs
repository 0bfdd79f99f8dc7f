//! Who starts, and why the others do not.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::due::{self, Standing};
use super::stages::{self, FailedStage};
use super::{Action, Next, Node, Slots, Surroundings, Wait, estimate, retry, trials, way};
use crate::api::{NodeUpdateStatus, Phase, Reason};
use crate::judge::{SILENT_AFTER, held_by};
use crate::{Gate, PackageName, Stage, Suspects};

/// A request for an update now is good for so long.
const REQUEST: SignedDuration = SignedDuration::from_hours(1);

/// What comes next for each node, in the input's order.
pub(super) struct Queue {
    pub(super) nodes: Vec<Next>,
    pub(super) failed: Vec<FailedStage>,
}

/// A node that could start, if it were its turn.
struct Candidate<'a, 'i> {
    at: usize,
    node: &'i Node<'a>,
    status: &'a NodeUpdateStatus,
    stage: Stage,
    trial: Option<&'i [PackageName]>,
    requested: bool,
}

impl<'a> Candidate<'a, '_> {
    /// Those that were asked for, then those that have not been updated for the longest time, then by name.
    fn order(&self) -> (Reverse<bool>, Option<Timestamp>, &'a str) {
        (Reverse(self.requested), self.status.last_update.as_ref().map(|t| t.0), self.node.name())
    }
}

/// Whether somebody asked for this node's update, and nothing came of it yet.
fn is_requested(node: &Node<'_>, status: &NodeUpdateStatus, now: Timestamp) -> bool {
    node.run_requested.is_some_and(|at| {
        let fresh = at <= now && now.duration_since(at) <= REQUEST;
        let tried = status.history.first().is_some_and(|run| run.started_at.0 >= at);
        let failed = node.spec().and_then(|s| s.retry.as_ref()).is_some_and(|r| r.failure.at.0 >= at);
        fresh && !tried && !failed
    })
}

/// Nodes without a transaction; `under_way` says what comes next for the others.
pub(super) fn queue<'a>(around: &Surroundings<'a, '_>, under_way: &BTreeMap<&'a str, Next>, starts: bool, slots: &mut Slots) -> Queue {
    let nodes = around.input.nodes;
    let trials = trials::trials(around);
    let trial = |node: &Node<'_>| trials.get(node.name()).map(Vec::as_slice);
    let stage = |node: &Node<'_>| node.spec().map_or(Stage::Stable, |spec| spec.stage);
    let standings: Vec<_> = nodes
        .iter()
        .map(|node| {
            let status = node.status().filter(|_| !under_way.contains_key(node.name()));
            status.map(|status| due::standing(status, stage(node), trial(node), around.rules))
        })
        .collect();
    // what was tried in vain waits for others, maybe for ever, and is installed nowhere
    let in_vain: HashSet<_> = around.input.suspects.iter().flat_map(Suspects::in_vain).collect();
    let undecided = |node: &Node<'_>| {
        let all = due::found(node.status().and_then(|s| s.packages.as_ref()));
        all.iter().any(|item| around.rules.suspects(&item.name) && !in_vain.contains(&item.name))
    };
    let needs = |node: &Node<'_>, standing: &Option<Standing>| match standing {
        None | Some(Standing::Due | Standing::Reboot) => true,
        Some(Standing::NotYet(wait)) => wait.reason == Reason::Suspected && undecided(node),
        Some(Standing::Current) => false,
    };
    let harmed = nodes.iter().zip(&standings).filter_map(|(node, standing)| {
        let spec = node.spec()?;
        Some((spec.stage, stages::is_harmed(spec, || needs(node, standing))))
    });
    let failed = stages::failed(around, harmed);
    let fleet = around.spec.fit_window.then(|| estimate::of_fleet(nodes));

    let mut next = Vec::with_capacity(nodes.len());
    let mut candidates = Vec::new();
    for (at, (node, standing)) in nodes.iter().zip(standings).enumerate() {
        if let Some(done) = under_way.get(node.name()) {
            next.push(done.clone());
            continue;
        }
        // a trial is how a failed stage is mended
        let halted = stages::is_halted(&failed, stage(node)) && trial(node).is_none();
        match obstacle(node, standing, halted, around, fleet) {
            Err(obstacle) => next.push(obstacle),
            Ok(status) => {
                let requested = is_requested(node, status, around.now);
                candidates.push(Candidate { at, node, status, stage: stage(node), trial: trial(node), requested });
                next.push(Next::Wait(Wait::on(Reason::WaitingForTurn)));
            }
        }
    }
    candidates.sort_unstable_by(|a, b| a.order().cmp(&b.order()));
    let mut turns = Turns::new(around, under_way);
    for (at, now) in turns.take(&candidates, starts, around, slots) {
        if let Some(slot) = next.get_mut(at) {
            *slot = now;
        }
    }
    Queue { nodes: next, failed }
}

/// What its agent says of a node that nothing keeps from starting but its turn; or else what does.
fn obstacle<'a>(
    node: &Node<'a>,
    standing: Option<Standing>,
    stage_failed: bool,
    around: &Surroundings<'_, '_>,
    fleet: Option<SignedDuration>,
) -> Result<&'a NodeUpdateStatus, Next> {
    let until = |reason, until| Err(Next::Wait(Wait { until, ..Wait::on(reason) }));
    let wait = |reason| until(reason, None);
    let halted = around.spec.halted.then_some(Reason::Halted);
    if let Some(reason) = held_by(around.input.spec, &node.node).into_iter().next().or(halted) {
        return wait(reason);
    }
    let Some(status) = node.status() else { return wait(Reason::NotReported) };
    if around.now.duration_since(status.reported_at.0) > SILENT_AFTER {
        return wait(Reason::AgentSilent);
    }
    let only_reboot = standing == Some(Standing::Reboot);
    match standing {
        Some(Standing::Due | Standing::Reboot) => {}
        Some(Standing::NotYet(why)) => return Err(Next::Wait(why)),
        Some(Standing::Current) => return Err(Next::Rest),
        None => return wait(Reason::NotReported),
    }
    // the boot tells a crash from a success
    if status.boot_id.is_none() {
        return wait(Reason::NotReported);
    }
    if !node.ready {
        return wait(Reason::NodeNotReady);
    }
    let requested = is_requested(node, status, around.now);
    let retry = node.spec().and_then(|s| s.retry.as_ref()).filter(|r| r.not_before.0 > around.now && !requested);
    if let Some(retry) = retry {
        let reason = &retry.failure.reason;
        let reason = if retry::is_failure(reason) && *reason != Reason::LeftOut { Reason::RetryLater } else { reason.clone() };
        return until(reason, Some(retry.not_before.0));
    }
    let again = retry::reboot_again(&status.history, &around.spec.timeouts).filter(|at| only_reboot && !requested && *at > around.now);
    if again.is_some() {
        return until(Reason::RebootInVain, again);
    }
    if stage_failed {
        return wait(Reason::StageFailed);
    }
    match around.rules.gate {
        _ if requested => {}
        Gate::Closed(opens) => return until(Reason::WindowClosed, opens),
        Gate::Open(end) => {
            let fits =
                |fleet| estimate::fits(estimate::of_node(node, fleet), end.duration_since(around.now), &around.spec.maintenance_windows);
            if !fleet.is_none_or(fits) {
                return wait(Reason::DoesNotFit);
            }
        }
        Gate::Always => {}
    }
    match around.alarmed().or_else(|| around.quorum(node)).map(|(reason, _)| reason) {
        Some(reason) => wait(reason),
        None => Ok(status),
    }
}

/// Who may start beside those that are under way.
struct Turns<'i> {
    /// Places that nobody has.
    free: usize,
    /// Whether nodes that are not ready have the places that those under way leave.
    crowded: bool,
    /// Whether a server is under way.
    server: bool,
    /// What is tried, on each node that tries something.
    tried: Vec<&'i [PackageName]>,
}

impl<'i> Turns<'i> {
    fn new<'a: 'i>(around: &Surroundings<'a, 'i>, under_way: &BTreeMap<&'a str, Next>) -> Self {
        let nodes = around.input.nodes;
        let busy = |node: &&Node<'_>| under_way.contains_key(node.name()) || around.slots.contains_key(node.name());
        let allowed = around.spec.max_unavailable.of(nodes.len());
        let taken = nodes.iter().filter(busy).count();
        let away = nodes.iter().filter(|node| !node.ready && !busy(node)).count();
        Self {
            free: allowed.saturating_sub(taken + away),
            crowded: taken < allowed && taken + away >= allowed,
            server: nodes.iter().filter(busy).any(|node| node.server),
            tried: nodes.iter().filter_map(Node::transaction).filter(|t| t.trial).map(|t| t.packages.as_slice()).collect(),
        }
    }

    /// Whether another node tries some of what a candidate would try, or of what is suspected with it: a crash must be one node's.
    fn is_tried(&self, candidate: &Candidate<'_, '_>, suspects: &[Suspects]) -> bool {
        let Some(trial) = candidate.trial else { return false };
        let groups: Vec<_> = suspects.iter().filter(|group| group.share_any(trial)).collect();
        let same = |other: &[PackageName]| trial.iter().any(|p| other.contains(p)) || groups.iter().any(|group| group.share_any(other));
        self.tried.iter().any(|other| same(other))
    }

    /// What comes next for each candidate; they come in their order.
    fn take<'a>(
        &mut self,
        candidates: &[Candidate<'a, 'i>],
        starts: bool,
        around: &Surroundings<'a, '_>,
        slots: &mut Slots,
    ) -> Vec<(usize, Next)> {
        if !starts {
            self.free = 0;
        }
        let has_vip = |c: &Candidate<'_, '_>| c.node.server && c.status.has_vip;
        // in the turn of the server that has the floating address another one goes, so that the address moves but once
        let stand_in = candidates.iter().position(|c| c.node.server && !has_vip(c));
        let mut started = BTreeSet::new();
        let mut passed_over = None;
        for (turn, candidate) in candidates.iter().enumerate() {
            if started.len() >= self.free {
                break;
            }
            let turn = match stand_in.filter(|_| has_vip(candidate) && !self.server) {
                Some(other) if !started.contains(&other) => {
                    passed_over = Some(turn);
                    other
                }
                _ => turn,
            };
            let Some(candidate) = candidates.get(turn) else { continue };
            if started.contains(&turn) || (candidate.node.server && self.server) || self.is_tried(candidate, around.input.suspects) {
                continue;
            }
            self.server |= candidate.node.server;
            self.tried.extend(candidate.trial);
            started.insert(turn);
        }
        let mut place = 0;
        let mut next = Vec::with_capacity(candidates.len());
        for (turn, candidate) in candidates.iter().enumerate() {
            let start = started.contains(&turn).then(|| slots.take()).flatten();
            let then = if let Some(slot) = start {
                let Candidate { node, status, stage, trial, .. } = candidate;
                let transaction = due::transaction(node, status, *stage, *trial, around.rules, around.now);
                Next::Act(Action::Start { slot, transaction: Box::new(way::entered(transaction, Phase::Checking, around)) })
            } else {
                place += 1;
                let reason = match () {
                    () if self.crowded => Reason::TooManyUnavailable,
                    () if passed_over == Some(turn) => Reason::HasFloatingAddress,
                    () if self.is_tried(candidate, around.input.suspects) => Reason::Suspected,
                    () => Reason::WaitingForTurn,
                };
                Next::Wait(Wait { place: Some(place), ..Wait::on(reason) })
            };
            next.push((candidate.at, then));
        }
        next
    }
}

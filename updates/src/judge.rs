//! What the controller writes: to each `NodeUpdate`'s spec, and to the status of the `UpdateManager`.

use std::collections::{BTreeMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use sha2::{Digest as _, Sha256};

use crate::api::{
    AGENTS_REPORTING, Available, ItemsStatus, Listing, NodeStatus, NodeUpdate, NodeUpdateSpec, NodeUpdateStatus, Reason, SPEC_VALID,
    StageDelays, State, Summary, UpdateManagerSpec, condition,
};
use crate::names::{POLICY_LABEL, SUSPEND_LABEL};
use crate::{Asked, Bans, Gate, PatchName, Policy, Stage, assign, gate};

/// An agent that says nothing for so long is silent: it looks for updates every 24 hours (7.4), and has an hour for it.
pub const SILENT_AFTER: SignedDuration = SignedDuration::from_hours(25);

/// A node of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// What is known of it so far.
    pub update: Option<&'a NodeUpdate>,
}

impl<'a> Node<'a> {
    /// None: the label is nonsense.
    fn policy(&self) -> Option<Policy> {
        self.labels.get(POLICY_LABEL).map_or(Some(Policy::Auto), |label| label.parse().ok())
    }

    fn kept(&self) -> Option<Stage> {
        self.update.map(|u| &u.spec).filter(|spec| spec.policy == Policy::Auto).map(|spec| spec.stage)
    }

    fn report(&self) -> Option<&'a NodeUpdateStatus> {
        self.update?.status.as_ref()
    }
}

/// What each node's `NodeUpdate` asks of it. `check_requested` is the `UpdateManager`'s [`crate::names::CHECK_ANNOTATION`]; without
/// a `spec` that can be understood, nothing is looked for again.
pub fn wanted<'a>(
    spec: Option<&UpdateManagerSpec>,
    check_requested: Option<&str>,
    nodes: &[Node<'a>],
) -> BTreeMap<&'a str, NodeUpdateSpec> {
    let asked = |node: &Node<'a>| (node.name, Asked { policy: node.policy().unwrap_or_default(), kept: node.kept() });
    let asked: BTreeMap<_, _> = nodes.iter().map(asked).collect();
    let stages = assign(&asked);
    let check = spec.map(|spec| check(spec, check_requested));
    let wanted = |node: &Node<'a>| {
        let before = || node.update.map(|u| u.spec.check.clone());
        let check = check.clone().or_else(before).unwrap_or_else(|| NEVER_ASKED.into());
        let (before, stage, policy) = (node.update.map(|u| &u.spec), *stages.get(node.name)?, asked.get(node.name)?.policy);
        // what is under way is for `decide` to say; nothing is asked of hosts by a spec that is not understood
        let host = spec.map(|s| &s.host).or(before.map(|b| &b.host)).cloned().unwrap_or_default();
        let (transaction, retry) = before.map(|b| (b.transaction.clone(), b.retry.clone())).unwrap_or_default();
        Some((node.name, NodeUpdateSpec { stage, policy, check, host, transaction, retry }))
    };
    nodes.iter().filter_map(wanted).collect()
}

/// What nodes are told before there is an `UpdateManager`. No text in the API is ever empty: a 1.20 server built with a newer Go
/// takes that for null (seen in the lab).
const NEVER_ASKED: &str = "none";

/// Changes whenever something changes that makes nodes look for updates at once (7.4: either list of bans).
fn check(spec: &UpdateManagerSpec, requested: Option<&str>) -> String {
    let mut digest = Sha256::new();
    let mut add = |text: &str| {
        digest.update(text);
        digest.update([0]);
    };
    spec.banned_packages.iter().for_each(|p| add(&p.to_string()));
    add("");
    spec.banned_patches.iter().for_each(|p| add(&p.to_string()));
    add("");
    add(requested.unwrap_or_default());
    digest.finalize().iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Every reason for which nothing starts on a node by itself; the first is the one in its status.
pub fn held_by(spec: Option<&UpdateManagerSpec>, node: &Node<'_>) -> Vec<Reason> {
    let is = |spec: &UpdateManagerSpec, storage: bool| [(spec.suspend, Reason::ClusterSuspended), (storage, Reason::StorageNode)];
    let by_label = [(node.labels.contains_key(SUSPEND_LABEL), Reason::ManuallySuspended), (node.policy().is_none(), Reason::InvalidPolicy)];
    let by_spec = match spec {
        Some(spec) => is(spec, spec.suspend_storage_nodes && serves_storage(spec, node)).to_vec(),
        None => vec![(true, Reason::InvalidSpec)],
    };
    by_label.into_iter().chain(by_spec).filter(|(holds, _)| *holds).map(|(_, reason)| reason).collect()
}

fn serves_storage(spec: &UpdateManagerSpec, node: &Node<'_>) -> bool {
    if spec.storage_node_selector.is_empty() {
        node.report().is_some_and(|report| !report.storage_services.is_empty())
    } else {
        spec.storage_node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
    }
}

/// How each node stands, by name. `wanted` is what [`wanted`] gave; without a `spec` that can be understood, all are suspended.
pub fn statuses(
    spec: Option<&UpdateManagerSpec>,
    nodes: &[Node<'_>],
    wanted: &BTreeMap<&str, NodeUpdateSpec>,
    now: Timestamp,
) -> Vec<NodeStatus> {
    let judge = Judge {
        bans: spec.map(|s| s.banned_packages.iter().collect()).unwrap_or_default(),
        banned_patches: spec.map(|s| s.banned_patches.iter().copied().collect()).unwrap_or_default(),
        closed: spec.is_some_and(|s| matches!(gate(&s.maintenance_windows, now), Gate::Closed(_))),
        delays: spec.map(|s| s.stage_delays).unwrap_or_default(),
        now,
    };
    let status = |node: &Node<'_>| judge.node(node, held_by(spec, node).into_iter().next(), wanted.get(node.name).map(|w| w.stage));
    let mut statuses: Vec<_> = nodes.iter().map(status).collect();
    statuses.sort_by(|a, b| a.id.cmp(&b.id));
    statuses
}

struct Judge<'a> {
    bans: Bans<'a>,
    banned_patches: HashSet<PatchName>,
    closed: bool,
    delays: StageDelays,
    now: Timestamp,
}

/// What is there to be installed, or why that is not known.
type Found = Result<Count, Reason>;

#[derive(Default)]
struct Count {
    all: u32,
    due: u32,
}

impl Judge<'_> {
    fn node(&self, node: &Node<'_>, held: Option<Reason>, stage: Option<Stage>) -> NodeStatus {
        let report = node.report().ok_or(Reason::NotReported).and_then(|report| {
            let late = self.now.duration_since(report.reported_at.0) > SILENT_AFTER;
            if late { Err(Reason::AgentSilent) } else { Ok(report) }
        });
        // where nothing can install live patches, none is due; but every host has packages
        let without = report.as_ref().ok().filter(|r| r.patches.is_none()).map(|_| Reason::NotSupported);
        let patches = report.clone().and_then(|r| match &r.patches {
            Some(listing) => self.count(listing, stage, |patch| self.banned_patches.contains(patch)),
            None => Ok(Count::default()),
        });
        let packages = report.and_then(|r| match &r.packages {
            Some(listing) => self.count(listing, stage, |package| self.bans.include(package)),
            None => Err(Reason::NotSupported),
        });
        let number = packages.as_ref().ok().map(|found| found.all).filter(|n| *n > 0);
        let mut ready_kernel = self.items(&patches, held.clone());
        ready_kernel.reason = ready_kernel.reason.or(without);
        NodeStatus {
            id: node.name.to_owned(),
            kernel: node.report().map(|r| r.kernel.clone()),
            ready_kernel,
            rpm_packages: ItemsStatus { number_of_packages_to_update: number, ..self.items(&packages, held) },
            stage_name: stage,
        }
    }

    fn count<T>(&self, listing: &Listing<T>, stage: Option<Stage>, banned: impl Fn(&T) -> bool) -> Found {
        if listing.error.is_some() {
            return Err(Reason::CheckFailed);
        }
        if listing.checked_at.is_none() {
            return Err(Reason::NotReported);
        }
        let delay = self.delays.of(stage.unwrap_or(Stage::Stable));
        let due = |item: &&Available<T>| self.now.duration_since(item.since.0) >= delay;
        let left: Vec<_> = listing.available.iter().filter(|item| !banned(&item.name)).collect();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Count { all: number(left.len()), due: number(left.iter().filter(|item| due(item)).count()) })
    }

    fn items(&self, found: &Found, held: Option<Reason>) -> ItemsStatus {
        let (status, reason) = match (held, found) {
            (Some(reason), _) => (State::Suspended, Some(reason)),
            (None, Err(reason)) => (State::Unknown, Some(reason.clone())),
            (None, Ok(Count { due: 0, .. })) => (State::UpToDate, None),
            (None, Ok(_)) => (State::Pending, self.closed.then_some(Reason::WindowClosed)),
        };
        ItemsStatus { status, reason, number_of_packages_to_update: None }
    }
}

/// How many nodes stand how.
pub fn summary(nodes: &[NodeStatus]) -> Summary {
    let mut summary = Summary::default();
    for node in nodes {
        let is = |state: &State| node.ready_kernel.status == *state || node.rpm_packages.status == *state;
        summary.nodes += 1;
        *if is(&State::Suspended) {
            &mut summary.suspended
        } else if is(&State::Pending) && !is(&State::Unknown) {
            &mut summary.pending
        } else if node.ready_kernel.status == State::UpToDate && node.rpm_packages.status == State::UpToDate {
            &mut summary.up_to_date
        } else {
            &mut summary.unknown
        } += 1;
    }
    summary
}

/// The conditions of the `UpdateManager`: `before` are those it has, `spec_error` says why its spec cannot be understood.
pub fn conditions(
    before: &[Condition],
    spec_error: Option<&str>,
    nodes: &[Node<'_>],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let silent = |node: &&Node<'_>| node.report().is_none_or(|r| now.duration_since(r.reported_at.0) > SILENT_AFTER);
    let silent: Vec<_> = nodes.iter().filter(silent).map(|n| n.name).collect();
    let valid = match spec_error {
        None => ("Understood", "the spec is understood".to_owned()),
        Some(why) => ("NotUnderstood", format!("{why}; nothing is started until that is mended")),
    };
    let reporting = match silent.split_at_checked(SHOWN) {
        _ if silent.is_empty() => ("AllReported", "the agents of all nodes have reported".to_owned()),
        Some((first, rest)) if !rest.is_empty() => ("SomeSilent", format!("no report from {} and {} more", first.join(", "), rest.len())),
        _ => ("SomeSilent", format!("no report from {}", silent.join(", "))),
    };
    vec![
        condition(before, (SPEC_VALID, spec_error.is_none()), valid, generation, now),
        condition(before, (AGENTS_REPORTING, silent.is_empty()), reporting, generation, now),
    ]
}

/// How many nodes a message names.
const SHOWN: usize = 10;

#[cfg(test)]
mod tests;

//! What would happen: the controller's own decisions, carried out in memory, with hosts on which all goes well. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use updates::api::{Answer, NodeUpdate, Outcome, Phase, Progress, Reboots, Run, Transaction, UpdateManagerSpec};
use updates::decide::{Action, Alerts, Cordon, Decision, Etcd, Input, Lock, Look, Next, Node, Wait, decide, estimate};
use updates::{BootId, PackageName, PatchName, Stage, Suspects, Window, judge};

/// A node as it is now.
#[derive(Debug, Clone)]
pub struct NodeNow {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it is a server.
    pub server: bool,
    /// Who keeps pods off it.
    pub cordon: Cordon,
    /// When somebody asked for its update.
    pub run_requested: Option<Timestamp>,
    /// What is known of it.
    pub update: Option<NodeUpdate>,
}

/// A slot that is taken.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Its number.
    pub slot: u32,
    /// Whose it is.
    pub node: String,
    /// That node's UID.
    pub uid: String,
}

/// An update that would happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Planned {
    /// The node.
    pub node: String,
    /// Its stage.
    pub stage: Stage,
    /// When it would start.
    pub starts: Timestamp,
    /// When it would be over, by what updates took so far.
    pub ends: Timestamp,
    /// Packages that are installed.
    pub packages: Vec<PackageName>,
    /// Live patches that are installed.
    pub patches: Vec<PatchName>,
    /// Whether pods leave the node before anything is installed.
    pub drain_first: bool,
    /// Whether the host is rebooted.
    pub reboot: Reboot,
    /// The boot that a reboot alone would end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootId>,
}

/// Whether a host is rebooted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reboot {
    /// It is not.
    No,
    /// If it needs one then.
    IfNeeded,
    /// It is.
    Yes,
}

/// What would happen.
#[derive(Debug)]
pub struct Forecast {
    /// The updates, in their order.
    pub planned: Vec<Planned>,
    /// Why each node that is not among them is not updated now.
    pub waiting: Vec<(String, Wait)>,
    /// Whether there are more than were looked for.
    pub more: bool,
}

/// Updates are looked for so many nodes at most, and started so far ahead.
const NODES: usize = 100;
const AHEAD: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Of which nobody knows how long they take.
const AT_FIRST: SignedDuration = SignedDuration::from_hours(1);
/// However long a phase lasts, time goes on by this at least.
const STEP: SignedDuration = SignedDuration::from_mins(1);
/// Nothing goes on for ever.
const ROUNDS: usize = 200_000;

struct World<'a> {
    spec: &'a UpdateManagerSpec,
    suspects: Vec<Suspects>,
    nodes: Vec<NodeNow>,
    locks: Vec<Taken>,
    looks: BTreeMap<String, Look>,
    usual: SignedDuration,
    now: Timestamp,
    planned: Vec<Planned>,
}

/// Runs forward from `now`.
pub fn forecast(spec: &UpdateManagerSpec, suspects: Vec<Suspects>, nodes: Vec<NodeNow>, locks: Vec<Taken>, now: Timestamp) -> Forecast {
    let histories = nodes.iter().filter_map(|n| n.update.as_ref()?.status.as_ref()).map(|s| s.history.as_slice());
    let usual = histories.filter_map(estimate).max().unwrap_or(AT_FIRST);
    let mut world = World { spec, suspects, nodes, locks, looks: BTreeMap::new(), usual, now, planned: Vec::new() };
    let horizon = now.saturating_add(AHEAD).unwrap_or(Timestamp::MAX);
    let mut first = None;
    let mut more = false;
    for _ in 0..ROUNDS {
        let decided = world.decided();
        first.get_or_insert_with(|| decided.waiting.clone());
        if world.planned.len() >= NODES && decided.starts() {
            more = true;
            break;
        }
        let acted = world.act(&decided) | world.hosts();
        if acted {
            continue;
        }
        match world.next_time(&decided).filter(|at| *at <= horizon) {
            Some(at) => world.goes_on(at),
            None => break,
        }
    }
    let planned = |name: &str| world.planned.iter().any(|p| p.node == name);
    let waiting = first.unwrap_or_default().into_iter().filter(|(name, _)| !planned(name)).collect();
    Forecast { planned: world.planned, waiting, more }
}

/// A decision of its own, so that the world may change.
struct Decided {
    acts: Vec<(usize, Action)>,
    waiting: Vec<(String, Wait)>,
    unlock: Vec<u32>,
    suspects: Option<Vec<Suspects>>,
}

impl Decided {
    fn of(decision: Decision<'_>) -> Self {
        let (mut acts, mut waiting) = (Vec::new(), Vec::new());
        for (at, (name, next)) in decision.nodes.into_iter().enumerate() {
            match next {
                Next::Act(action) => acts.push((at, action)),
                Next::Wait(wait) => waiting.push((name.to_owned(), wait)),
                Next::Rest => {}
            }
        }
        Self { acts, waiting, unlock: decision.unlock, suspects: decision.attribution.map(|a| a.suspects) }
    }

    fn starts(&self) -> bool {
        self.acts.iter().any(|(_, action)| matches!(action, Action::Start { .. }))
    }
}

impl World<'_> {
    fn decided(&self) -> Decided {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|n| Node {
                node: judge::Node { name: &n.name, labels: &n.labels, update: n.update.as_ref() },
                uid: &n.uid,
                ready: n.ready,
                server: n.server,
                cordon: n.cordon,
                run_requested: n.run_requested,
                look: self.looks.get(&n.name),
                quiet_since: None,
            })
            .collect();
        let locks: Vec<_> = self.locks.iter().map(|l| Lock { slot: l.slot, node: &l.node, uid: &l.uid }).collect();
        let (etcd, alerts) = (Etcd::Elsewhere, Alerts::Quiet);
        let input = Input { spec: Some(self.spec), suspects: &self.suspects, nodes: &nodes, locks: &locks, etcd: &etcd, alerts: &alerts };
        Decided::of(decide(&input, self.now))
    }

    /// Does what the controller would; answers whether it was anything.
    fn act(&mut self, decided: &Decided) -> bool {
        self.locks.retain(|lock| !decided.unlock.contains(&lock.slot));
        if let Some(suspects) = &decided.suspects {
            // what a crash has taught is nothing that a plan can foresee: it is as good as written
            if self.suspects == *suspects {
                return false;
            }
            self.suspects.clone_from(suspects);
            return true;
        }
        for (at, action) in &decided.acts {
            self.step(*at, action);
        }
        !decided.acts.is_empty() || !decided.unlock.is_empty()
    }

    fn step(&mut self, at: usize, action: &Action) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        let Some(update) = &mut node.update else { return };
        let look = Look { at: self.now, blockers: Vec::new(), left: 0 };
        match action {
            Action::Start { slot, .. } | Action::Lock { slot } => {
                self.locks.push(Taken { slot: *slot, node: node.name.clone(), uid: node.uid.clone() });
                if let Action::Start { transaction, .. } = action {
                    update.spec.transaction = Some(transaction.as_ref().clone());
                    self.planned.push(planned(&node.name, update, transaction, self.now));
                }
            }
            Action::Move(transaction) => update.spec.transaction = Some(transaction.as_ref().clone()),
            Action::Look | Action::Evict => drop(self.looks.insert(node.name.clone(), look)),
            Action::Cordon => node.cordon = Cordon::Ours,
            Action::Uncordon => node.cordon = Cordon::No,
            Action::Finish { retry } => {
                update.spec.transaction = None;
                update.spec.retry.clone_from(retry);
                self.looks.remove(&node.name);
                let (name, now) = (&node.name, self.now);
                if let Some(planned) = self.planned.iter_mut().rfind(|p| p.node == *name) {
                    planned.ends = now;
                }
            }
        }
    }

    /// Does what the hosts would; answers whether it was anything.
    fn hosts(&mut self) -> bool {
        let (now, usual) = (self.now, self.usual);
        self.nodes.iter_mut().filter_map(|n| n.update.as_mut()).fold(false, |did, update| host(update, now, usual) | did)
    }

    /// Time passes; agents that were not silent go on reporting.
    fn goes_on(&mut self, at: Timestamp) {
        let before = std::mem::replace(&mut self.now, at);
        for status in self.nodes.iter_mut().filter_map(|n| n.update.as_mut()?.status.as_mut()) {
            if before.duration_since(status.reported_at.0) <= judge::SILENT_AFTER {
                status.reported_at = Time(at);
            }
        }
    }

    /// When something may be different.
    fn next_time(&self, decided: &Decided) -> Option<Timestamp> {
        let later = |at: &Timestamp| *at > self.now;
        let mut transactions = self.nodes.iter().filter_map(|n| n.update.as_ref()?.spec.transaction.as_ref());
        // in these phases the time that passes is enough; in all others the host has done what it can, and something is awaited
        if transactions.any(|t| matches!(t.phase, Phase::Installing | Phase::Rebooting | Phase::Releasing)) {
            return self.now.checked_add(STEP).ok();
        }
        let waits = decided.waiting.iter().filter_map(|(_, wait)| wait.until);
        let openings = self.spec.maintenance_windows.iter().flat_map(|w: &Window| w.openings(self.now, 1)).map(|o| o.from);
        waits.chain(openings).filter(later).min()
    }
}

fn planned(node: &str, update: &NodeUpdate, transaction: &Transaction, now: Timestamp) -> Planned {
    let alone = transaction.packages.is_empty() && transaction.patches.is_empty();
    let needed = update.status.as_ref().is_some_and(|s| s.reboot.needed == Answer::Yes);
    let reboot = match transaction.reboot {
        Reboots::Never => Reboot::No,
        _ if alone || needed => Reboot::Yes,
        Reboots::Always if !transaction.packages.is_empty() => Reboot::Yes,
        Reboots::WhenNeeded if !transaction.packages.is_empty() => Reboot::IfNeeded,
        Reboots::Always | Reboots::WhenNeeded => Reboot::No,
    };
    Planned {
        node: node.to_owned(),
        stage: update.spec.stage,
        starts: now,
        ends: now,
        packages: transaction.packages.clone(),
        patches: transaction.patches.clone(),
        drain_first: transaction.drain_first,
        reboot,
        boot: if alone { transaction.boot_id.clone() } else { None },
    }
}

/// What an agent would do, and say; answers whether that is anything new.
fn host(update: &mut NodeUpdate, now: Timestamp, usual: SignedDuration) -> bool {
    let (Some(transaction), Some(status)) = (&update.spec.transaction, &mut update.status) else { return false };
    let takes = estimate(&status.history).unwrap_or(usual);
    let said = |p: &Progress| p.transaction == transaction.id && p.phase == transaction.phase && p.outcome == Outcome::Done;
    if status.progress.as_ref().is_some_and(said) || matches!(transaction.phase, Phase::Checking | Phase::Draining) {
        return false;
    }
    let progress = |outcome| Progress {
        transaction: transaction.id.clone(),
        phase: transaction.phase,
        outcome,
        at: Time(now),
        message: None,
        part: None,
        left_out: Vec::new(),
        patches_refused: false,
        drain_first: false,
    };
    // all the time that it takes is spent where nothing but the time passes
    let busy = now.duration_since(transaction.started_at.0) < takes;
    let soon_late = transaction.deadline.as_ref().is_some_and(|deadline| deadline.0.duration_since(now) <= STEP);
    match transaction.phase {
        Phase::Installing if busy => {
            status.progress = Some(progress(Outcome::Running));
            return false;
        }
        Phase::Rebooting if busy && !transaction.touched && !soon_late => return false,
        _ => {}
    }
    match transaction.phase {
        Phase::HandingOver => status.has_vip = false,
        Phase::Installing => {
            if let Some(listing) = &mut status.packages {
                listing.available.retain(|item| !transaction.packages.contains(&item.name));
            }
            if let Some(listing) = &mut status.patches {
                listing.available.retain(|item| !transaction.patches.contains(&item.name));
            }
        }
        Phase::Rebooting => {
            status.boot_id = OTHER_BOOTS.iter().filter_map(|b| b.parse().ok()).find(|b| Some(b) != status.boot_id.as_ref());
            status.reboot.needed = Answer::No;
        }
        Phase::Releasing => {
            let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let run = Run {
                transaction: transaction.id.clone(),
                started_at: transaction.started_at.clone(),
                finished_at: Time(now),
                packages: number(transaction.packages.len()),
                patches: number(transaction.patches.len()),
                rebooted: transaction.rebooted,
                failure: transaction.failure.clone(),
            };
            status.history.insert(0, run);
            status.last_update = Some(Time(now));
        }
        _ => {}
    }
    status.reported_at = Time(now);
    status.progress = Some(progress(Outcome::Done));
    true
}

/// Boots that are not the one that is.
const OTHER_BOOTS: [&str; 2] = ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, server: bool, status: &Value) -> NodeNow {
        let mut all = json!({
            "agentVersion": "1", "reportedAt": "2026-11-21T11:00:00Z", "kernel": "6.1", "check": "a",
            "bootId": "6a8e1b6c-0b0e-4b0e-9d3b-0123456789ab",
            "packages": { "checkedAt": "2026-11-21T11:00:00Z", "available": [{ "name": "bash-5-1.noarch", "since": "2026-11-01T00:00:00Z" }] },
        });
        all.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
        let spec = json!({ "stage": "fast", "policy": "fast", "check": "a" });
        let update = json!({ "apiVersion": "maintenance.virtuozzo.io/v1", "kind": "NodeUpdate", "metadata": { "name": name }, "spec": spec, "status": all });
        NodeNow {
            name: name.into(),
            uid: format!("uid-{name}"),
            labels: BTreeMap::new(),
            ready: true,
            server,
            cordon: Cordon::No,
            run_requested: None,
            update: serde_json::from_value(update).unwrap(),
        }
    }

    fn said(spec: Value, nodes: Vec<NodeNow>) -> (Vec<String>, Vec<String>) {
        let spec: UpdateManagerSpec = serde_json::from_value(spec).unwrap();
        let found = forecast(&spec, Vec::new(), nodes, Vec::new(), "2026-11-21T12:00:00Z".parse().unwrap());
        let planned = |p: &Planned| {
            let items = p.packages.len() + p.patches.len();
            format!("{} {}-{} {items} {:?}", p.node, p.starts.strftime("%d %H:%M"), p.ends.strftime("%d %H:%M"), p.reboot)
        };
        let waiting = |(name, wait): &(String, Wait)| format!("{name} {}", wait.reason);
        (found.planned.iter().map(planned).collect(), found.waiting.iter().map(waiting).collect())
    }

    #[test]
    fn one_after_the_other_in_their_windows() {
        let run = |minutes: &str| json!({ "transaction": "0123456789abcdef", "startedAt": "2026-10-01T01:00:00Z", "finishedAt": format!("2026-10-01T01:{minutes}:00Z"), "packages": 1, "patches": 0, "rebooted": false });
        let nodes = || {
            vec![
                node("h1", true, &json!({ "hasVip": true })),
                node("h2", true, &json!({ "history": [run("20")], "lastUpdate": "2026-10-01T01:20:00Z" })),
                node("h4", false, &json!({ "reboot": { "needed": "yes" }, "packages": null })),
                node("h5", false, &json!({ "packages": null })),
                node(
                    "h6",
                    false,
                    &json!({ "packages": { "checkedAt": "2026-11-21T11:00:00Z", "available": [{ "name": "old-1-1.noarch", "since": "2026-11-01T00:00:00Z" }] } }),
                ),
            ]
        };
        let (at_once, waiting) = said(json!({ "bannedPackages": ["old-1-1.noarch"] }), nodes());
        assert_eq!(waiting, ["h5 NotSupported", "h6 Banned"]);
        let window = json!([{ "schedule": "0 1 * * *", "duration": "30m" }]);
        let (later, _) = said(json!({ "maintenanceWindows": window, "bannedPackages": ["old-1-1.noarch"] }), nodes());
        insta::assert_snapshot!(format!("{}\n--\n{}", at_once.join("\n"), later.join("\n")), @r#"
        h2 21 12:00-21 12:20 1 IfNeeded
        h1 21 12:20-21 12:40 1 IfNeeded
        h4 21 12:40-21 12:59 0 Yes
        --
        h2 22 01:00-22 01:20 1 IfNeeded
        h1 22 01:20-22 01:40 1 IfNeeded
        h4 23 01:00-23 01:19 0 Yes
        "#);
        let (planned, waiting) = said(json!({ "halted": true }), nodes());
        assert_eq!((planned, waiting.first().map(String::as_str)), (vec![], Some("h1 Halted")));
    }

    #[test]
    fn many_nodes_are_cut() {
        let nodes = (0..120).map(|n| node(&format!("n{n:03}"), false, &json!({}))).collect();
        let spec: UpdateManagerSpec = serde_json::from_value(json!({ "maxUnavailable": "10%" })).unwrap();
        let found = forecast(&spec, Vec::new(), nodes, Vec::new(), "2026-11-21T12:00:00Z".parse().unwrap());
        assert!(found.more && (NODES..120).contains(&found.planned.len()), "{}", found.planned.len());
    }

    #[test]
    fn a_node_that_does_not_come_back_is_not_followed_minute_by_minute() {
        for (phase, steps) in [("Verifying", 2), ("Broken", 1)] {
            let mut away = node("h1", false, &json!({}));
            away.ready = false;
            let transaction = json!({
                "id": "0123456789abcdef", "packages": ["bash-5-1.noarch"], "reboot": "never", "startedAt": "2026-11-21T11:00:00Z",
                "phase": phase, "since": "2026-11-21T11:50:00Z", "touched": true,
                "deadline": if phase == "Verifying" { json!("2026-11-21T12:10:00Z") } else { Value::Null },
            });
            away.update.as_mut().unwrap().spec.transaction = serde_json::from_value(transaction).unwrap();
            let spec = UpdateManagerSpec::default();
            let mut world = World {
                spec: &spec,
                suspects: Vec::new(),
                nodes: vec![away, node("h2", false, &json!({}))],
                locks: vec![Taken { slot: 0, node: "h1".into(), uid: "uid-h1".into() }],
                looks: BTreeMap::new(),
                usual: AT_FIRST,
                now: "2026-11-21T12:00:00Z".parse().unwrap(),
                planned: Vec::new(),
            };
            let mut waits = 0;
            loop {
                let decided = world.decided();
                if world.act(&decided) | world.hosts() {
                    continue;
                }
                waits += 1;
                match world.next_time(&decided) {
                    Some(at) if waits < 100 => world.goes_on(at),
                    _ => break,
                }
            }
            assert_eq!((waits, world.planned.len()), (steps, 0), "{phase}");
        }
    }
}

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{
    Answer, Approval, Available, HISTORY, Listing, NodeUpdate, NodeUpdateStatus, Outcome, Part, Phase, Progress, Reason, Reboots, Run,
    Transaction, UpdateManagerSpec,
};
use crate::decide::{Action, Alerts, Attribution, Blocker, Cordon, Decision, Etcd, Input, Lock, Look, Next, Node, Voter, Wait, decide};
use crate::judge::{self, wanted};
use crate::{Gate, PackageName, Share, Suspects, Window, gate};

/// What kind of life.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kind {
    pub bisect: bool,
    pub manual: bool,
}

/// Numbers by chance, the same for the same seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % sides
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.roll(n) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        let n = u64::try_from(of.len()).unwrap();
        (n > 0).then(|| of[usize::try_from(self.roll(n)).unwrap()].clone())
    }
}

struct Host {
    uid: String,
    labels: BTreeMap<String, String>,
    update: Option<NodeUpdate>,
    installed: BTreeMap<String, u32>,
    ready: bool,
    /// Hung, or without power, until then.
    dead_until: Option<Timestamp>,
    server: bool,
    cordon: Cordon,
    look: Option<Look>,
    boot: u64,
    needs_reboot: bool,
}

/// A version of a package.
struct Build {
    version: u32,
    since: Timestamp,
    crashes: bool,
}

pub struct Fleet {
    dice: Dice,
    now: Timestamp,
    spec: UpdateManagerSpec,
    suspects: Vec<Suspects>,
    hosts: BTreeMap<String, Host>,
    locks: BTreeMap<u32, (String, String)>,
    repository: BTreeMap<String, Build>,
    culprits: BTreeSet<PackageName>,
    vip: Option<String>,
    alerts: Alerts,
    requested: Option<(String, Timestamp)>,
    understood: bool,
    born: u64,
    peace: bool,
    kind: Kind,
    log: Vec<String>,
}

fn named(package: &str, version: u32) -> PackageName {
    format!("{package}-{version}-1.noarch").parse().unwrap()
}

fn boot_id(host: &Host) -> crate::BootId {
    let uid = u64::from_str_radix(&host.uid, 16).unwrap();
    format!("{:08x}-0000-0000-0000-{:012x}", uid, host.boot).parse().unwrap()
}

fn minutes(n: u64) -> SignedDuration {
    SignedDuration::from_mins(i64::try_from(n).unwrap())
}

impl Fleet {
    pub fn new(seed: u64, kind: Kind) -> Self {
        let mut fleet = Self {
            dice: Dice(seed | 1),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            spec: UpdateManagerSpec { crash_bisect: kind.bisect, ..UpdateManagerSpec::default() },
            suspects: vec![],
            hosts: BTreeMap::new(),
            locks: BTreeMap::new(),
            repository: BTreeMap::new(),
            culprits: BTreeSet::new(),
            vip: None,
            alerts: Alerts::Quiet,
            requested: None,
            understood: true,
            born: 0,
            peace: false,
            kind,
            log: vec![],
        };
        if kind.manual {
            fleet.spec.approval = Approval::Manual;
        }
        let servers = [1, 3, 3, 5][usize::try_from(fleet.dice.roll(4)).unwrap()];
        for n in 0..servers + fleet.dice.roll(8) {
            fleet.join(n < servers);
        }
        for package in ["kernel", "k3s", "bash", "vim", "zsh", "glibc", "sed"] {
            fleet.publish(package);
        }
        fleet
    }

    /// So many nodes with so many packages each.
    pub fn large(nodes: usize, packages: usize, young: bool) -> Self {
        let mut fleet = Self::new(7, Kind::default());
        fleet.hosts.clear();
        fleet.repository.clear();
        (0..nodes).for_each(|n| fleet.join_as(format!("{}{n}", if n < 5 { "s" } else { "a" }), n < 5));
        for n in 0..packages {
            let since = if young { fleet.now } else { fleet.now - SignedDuration::from_hours(24 * 100) };
            fleet.repository.insert(format!("package-{n}"), Build { version: 1, since, crashes: false });
        }
        fleet.spec.stage_delays.fast = 1;
        fleet.spec.maintenance_windows = vec![serde_json::from_str(r#"{"schedule":"0 0 * * *","duration":"5h"}"#).unwrap()];
        fleet.spec.banned_packages = (0..100).map(|n| named(&format!("banned-{n}"), 1)).collect();
        fleet.prepare();
        let names: Vec<_> = fleet.hosts.keys().cloned().collect();
        for name in &names {
            fleet.report(name);
        }
        fleet
    }

    /// Of one decision: who starts, how many wait for what.
    pub fn decided(&self) -> String {
        self.with_input(|input| {
            let mut waits = BTreeMap::<String, usize>::new();
            let mut said = Vec::new();
            for (name, next) in decide(input, self.now).nodes {
                match next {
                    Next::Act(action) => said.push(format!("{name} {}", short(&action).split(':').next().unwrap_or_default())),
                    Next::Wait(wait) => *waits.entry(wait.reason.as_str().to_owned()).or_default() += 1,
                    Next::Rest => *waits.entry("Rest".into()).or_default() += 1,
                }
            }
            said.into_iter().chain(waits.into_iter().map(|(why, n)| format!("{n} {why}"))).collect::<Vec<_>>().join(", ")
        })
    }

    pub fn edit(&mut self, edit: impl FnOnce(&mut UpdateManagerSpec)) {
        edit(&mut self.spec);
    }

    pub fn misunderstand(&mut self) {
        self.understood = false;
    }

    pub fn request(&mut self, name: &str) {
        self.requested = Some((name.to_owned(), self.now));
    }

    pub fn give_the_vip_to(&mut self, name: &str) {
        self.vip = Some(name.to_owned());
        let names: Vec<_> = self.hosts.keys().cloned().collect();
        for name in &names {
            self.report(name);
        }
    }

    pub fn time_of_a_decision(&self) -> Duration {
        self.with_input(|input| {
            let began = Instant::now();
            let decision = decide(input, self.now);
            let took = began.elapsed();
            assert_eq!(decision.nodes.len(), self.hosts.len());
            took
        })
    }

    fn join(&mut self, server: bool) {
        // now and then one has the name of one that is gone
        let name = format!("{}{}", if server { "s" } else { "a" }, self.born % 16);
        let name = if self.hosts.contains_key(&name) { format!("{name}-{}", self.born) } else { name };
        self.join_as(name, server);
    }

    fn join_as(&mut self, name: String, server: bool) {
        self.born += 1;
        let host = Host {
            uid: format!("{:x}", self.born),
            labels: BTreeMap::new(),
            update: None,
            installed: BTreeMap::new(),
            ready: true,
            dead_until: None,
            server,
            cordon: Cordon::No,
            look: None,
            boot: 1,
            needs_reboot: false,
        };
        self.hosts.insert(name, host);
    }

    fn publish(&mut self, package: &str) {
        let crashes = !self.peace && package != "k3s" && self.dice.one_in(12);
        let version = self.repository.get(package).map_or(1, |b| b.version + 1);
        if crashes {
            self.culprits.insert(named(package, version));
        }
        self.repository.insert(package.to_owned(), Build { version, since: self.now, crashes });
    }

    /// Something that nobody asked for.
    pub fn disturb(&mut self) {
        let names: Vec<_> = self.hosts.keys().cloned().collect();
        let Some(name) = self.dice.pick(&names) else { return };
        match self.dice.roll(60) {
            0..=3 => {
                let packages: Vec<_> = self.repository.keys().cloned().collect();
                let package = self.dice.pick(&packages).unwrap();
                self.publish(&package);
            }
            4 => self.join(false),
            5 if !self.hosts[&name].server => {
                self.hosts.remove(&name);
            }
            6 => self.hosts.get_mut(&name).unwrap().ready = false,
            7 => self.hosts.get_mut(&name).unwrap().needs_reboot = true,
            8 => {
                let windows = ["0 1 * * *", "30 22 * * 6", "0 */6 * * *"];
                let schedule = self.dice.pick(&windows).unwrap();
                let window: Window = serde_json::from_str(&format!(r#"{{"schedule":"{schedule}","duration":"2h"}}"#)).unwrap();
                self.spec.maintenance_windows = if self.dice.one_in(3) { vec![] } else { vec![window] };
            }
            9 => self.spec.max_unavailable = self.dice.pick(&[Share::ONE, Share::Nodes(2), Share::Percent(30)]).unwrap(),
            10 => self.spec.suspend = self.dice.one_in(2),
            11 => self.spec.halted = self.dice.one_in(2),
            12 => {
                let label = crate::names::SUSPEND_LABEL.to_owned();
                let labels = &mut self.hosts.get_mut(&name).unwrap().labels;
                if labels.remove(&label).is_none() {
                    labels.insert(label, String::new());
                }
            }
            13 => {
                let policy = self.dice.pick(&["fast", "slow", "stable", "auto"]).unwrap();
                self.hosts.get_mut(&name).unwrap().labels.insert(crate::names::POLICY_LABEL.into(), policy.into());
            }
            14 => {
                // by hand, and taken back by hand
                let packages: Vec<_> = self.repository.iter().map(|(p, b)| named(p, b.version)).collect();
                let package = self.dice.pick(&packages).unwrap();
                let before = self.spec.banned_packages.len();
                self.spec.banned_packages.retain(|p| *p != package || self.culprits.contains(p));
                if self.spec.banned_packages.len() == before && self.dice.one_in(4) {
                    self.spec.banned_packages.push(package);
                }
            }
            15 => {
                self.alerts =
                    self.dice.pick(&[Alerts::Quiet, Alerts::Firing(vec!["Down".into()]), Alerts::Unknown("refused".into())]).unwrap();
            }
            16 => {
                let alerts = serde_json::from_str(r#"{"prometheusUrl":"http://p:9090"}"#).unwrap();
                self.spec.blocking_alerts = self.dice.one_in(2).then_some(alerts);
            }
            17 => self.spec.reboot = self.dice.pick(&[Reboots::Never, Reboots::WhenNeeded, Reboots::Always]).unwrap(),
            18 => self.hosts.get_mut(&name).unwrap().cordon = Cordon::Theirs,
            19 => {
                self.locks.pop_first();
            }
            20 => self.spec.fit_window = self.dice.one_in(2),
            21 => self.spec.settle_time = self.dice.one_in(2).then(|| "10m".parse().unwrap()),
            _ => {}
        }
        if self.kind.manual && self.dice.one_in(20) {
            self.approve();
        }
    }

    fn approve(&mut self) {
        self.spec.approved_packages = self.repository.iter().map(|(p, b)| named(p, b.version)).collect();
        self.spec.approved_reboots = self.hosts.values().map(boot_id).collect();
    }

    /// Nothing is published, edited or broken any more.
    pub fn leave_in_peace(&mut self) {
        self.peace = true;
        self.alerts = Alerts::Quiet;
        self.spec = UpdateManagerSpec {
            banned_packages: self.spec.banned_packages.iter().filter(|p| self.culprits.contains(p)).cloned().collect(),
            max_unavailable: self.spec.max_unavailable,
            crash_bisect: self.spec.crash_bisect,
            approval: self.spec.approval,
            ..UpdateManagerSpec::default()
        };
        for host in self.hosts.values_mut() {
            host.labels.remove(crate::names::SUSPEND_LABEL);
            host.ready = true;
        }
    }

    /// `NodeUpdates`, as the controller's other half makes them; those of nodes that are gone go with them, and so do leases.
    fn prepare(&mut self) {
        let nodes: Vec<_> = self.hosts.iter().map(|(name, h)| judge::Node { name, labels: &h.labels, update: h.update.as_ref() }).collect();
        let specs: BTreeMap<_, _> = wanted(Some(&self.spec), None, &nodes).into_iter().map(|(n, s)| (n.to_owned(), s)).collect();
        for (name, spec) in specs {
            let host = self.hosts.get_mut(&name).unwrap();
            match &mut host.update {
                Some(update) => update.spec = spec,
                None => host.update = Some(NodeUpdate::new(&name, spec)),
            }
        }
        if self.peace || !self.dice.one_in(3) {
            self.locks.retain(|_, (node, uid)| self.hosts.get(node).is_some_and(|h| h.uid == *uid));
        }
        let servers: Vec<_> = self.hosts.iter().filter(|(_, h)| h.server && h.ready).map(|(n, _)| n.clone()).collect();
        if !self.vip.as_ref().is_some_and(|vip| servers.contains(vip)) {
            self.vip = self.dice.pick(&servers);
        }
    }

    fn with_input<T>(&self, f: impl FnOnce(&Input<'_>) -> T) -> T {
        let nodes: Vec<_> = self
            .hosts
            .iter()
            .map(|(name, h)| Node {
                node: judge::Node { name, labels: &h.labels, update: h.update.as_ref() },
                uid: &h.uid,
                ready: h.ready,
                server: h.server,
                cordon: h.cordon,
                run_requested: self.requested.as_ref().filter(|(n, _)| n == name).map(|(_, at)| *at),
                look: h.look.as_ref(),
            })
            .collect();
        let locks: Vec<_> = self.locks.iter().map(|(slot, (node, uid))| Lock { slot: *slot, node, uid }).collect();
        let voters = self.hosts.iter().filter(|(_, h)| h.server).map(|(n, h)| Voter { node: n.clone(), healthy: h.ready });
        let etcd = Etcd::Voters(voters.collect());
        let spec = Some(&self.spec).filter(|_| self.understood);
        f(&Input { spec, suspects: &self.suspects, nodes: &nodes, locks: &locks, etcd: &etcd, alerts: &self.alerts })
    }

    pub fn step(&mut self) {
        let busy = self.hosts.values().any(|h| h.update.as_ref().is_some_and(|u| u.spec.transaction.is_some()));
        let pause = if busy { 1 + self.dice.roll(3) } else { 10 + self.dice.roll(60 * 20) };
        self.now += minutes(pause);
        self.prepare();
        let names: Vec<_> = self.hosts.keys().cloned().collect();
        for name in &names {
            self.host(name);
        }
        if self.kind.manual && self.peace {
            self.approve();
        }
        let (nodes, unlock, attribution, failed) = self.with_input(|input| {
            let decision = decide(input, self.now);
            self.check(&decision);
            let nodes: Vec<_> = decision.nodes.iter().map(|(n, next)| ((*n).to_owned(), next.clone())).collect();
            (nodes, decision.unlock, decision.attribution, decision.failed)
        });
        assert!(failed.iter().all(|f| f.failed > 0 && f.failed <= f.nodes), "{failed:?}");
        for slot in unlock {
            self.locks.remove(&slot);
        }
        if let Some(attribution) = attribution {
            self.learn(&attribution);
        }
        for (name, next) in nodes {
            if let Next::Act(action) = next {
                self.log.push(format!("{} {name} {}", self.now, short(&action)));
                // now and then the controller dies before it has done so
                if !self.dice.one_in(25) {
                    self.act(&name, action);
                }
            }
        }
    }

    fn learn(&mut self, attribution: &Attribution) {
        self.log.push(format!("{} learnt {attribution:?}", self.now));
        let bans: Vec<_> = attribution.bans.iter().map(|i| i.to_string().parse::<PackageName>().unwrap()).collect();
        assert!(!bans.iter().any(|b| self.spec.banned_packages.contains(b)), "banned twice: {attribution:?}");
        if self.kind.bisect {
            assert!(bans.iter().all(|b| self.culprits.contains(b)), "an innocent is banned: {attribution:?}");
        }
        self.spec.banned_packages.extend(bans);
        if !self.dice.one_in(10) {
            self.suspects.clone_from(&attribution.suspects);
        }
    }

    fn act(&mut self, name: &str, action: Action) {
        let host = self.hosts.get_mut(name).unwrap();
        let spec = &mut host.update.as_mut().unwrap().spec;
        match action {
            Action::Start { slot, transaction } => {
                assert!(self.locks.insert(slot, (name.to_owned(), host.uid.clone())).is_none(), "slot {slot} was taken");
                // died in between
                if !self.dice.one_in(10) {
                    host.look = None;
                    spec.transaction = Some(*transaction);
                }
            }
            Action::Lock { slot } => {
                assert!(self.locks.insert(slot, (name.to_owned(), host.uid.clone())).is_none(), "slot {slot} was taken");
            }
            Action::Move(transaction) => spec.transaction = Some(*transaction),
            Action::Look | Action::Evict => {
                let budget = !self.peace && self.dice.one_in(6);
                let blockers = if budget { vec![Blocker::Budget("PodDisruptionBudget web".into())] } else { vec![] };
                let left = if budget || self.dice.one_in(3) { 2 } else { 0 };
                host.look = Some(Look { at: self.now, blockers, left });
            }
            Action::Cordon => host.cordon = Cordon::Ours,
            Action::Uncordon => host.cordon = Cordon::No,
            Action::Finish { retry } => {
                spec.transaction = None;
                spec.retry = retry;
                if !self.dice.one_in(10) {
                    self.locks.retain(|_, (node, _)| node != name);
                }
            }
        }
    }

    /// What host and agent do meanwhile.
    fn host(&mut self, name: &str) {
        let peace = self.peace;
        let host = self.hosts.get_mut(name).unwrap();
        if host.dead_until.is_some_and(|until| until > self.now) {
            host.ready = false;
            return;
        }
        if host.dead_until.take().is_some() {
            host.boot += 1;
        }
        if !host.ready && (peace || self.dice.one_in(3)) {
            host.ready = true;
        }
        if host.cordon == Cordon::Theirs && self.dice.one_in(30) {
            host.cordon = Cordon::No;
        }
        // silent for a while
        if self.dice.one_in(8) {
            return;
        }
        self.report(name);
        self.work(name);
    }

    fn report(&mut self, name: &str) {
        let host = self.hosts.get_mut(name).unwrap();
        let boot = boot_id(host);
        let update = host.update.as_mut().unwrap();
        let available = self.repository.iter().filter(|(p, b)| host.installed.get(*p).is_none_or(|v| *v < b.version));
        let available = available.map(|(p, b)| Available { name: named(p, b.version), since: Time(b.since) }).collect();
        let status = update.status.get_or_insert_with(|| NodeUpdateStatus::new(Time(self.now)));
        status.reported_at = Time(self.now);
        status.packages = Some(Listing { checked_at: Some(Time(self.now)), error: None, available });
        status.boot_id = Some(boot);
        status.has_vip = self.vip.as_deref() == Some(name);
        status.reboot.needed = if host.needs_reboot { Answer::Yes } else { Answer::No };
    }

    fn work(&mut self, name: &str) {
        let servers: Vec<_> = self.hosts.iter().filter(|(n, h)| h.server && h.ready && *n != name).map(|(n, _)| n.clone()).collect();
        let (dice, peace) = (&mut self.dice, self.peace);
        let host = self.hosts.get_mut(name).unwrap();
        let update = host.update.as_mut().unwrap();
        let Some(transaction) = update.spec.transaction.clone() else { return };
        let status = update.status.as_mut().unwrap();
        let before = status.progress.as_ref().filter(|p| p.transaction == transaction.id && p.phase == transaction.phase);
        if before.is_some_and(|p| p.outcome != Outcome::Running) {
            return;
        }
        let mut progress = Progress {
            transaction: transaction.id.clone(),
            phase: transaction.phase,
            outcome: Outcome::Running,
            at: Time(self.now),
            message: None,
            part: None,
            left_out: vec![],
            drain_first: false,
        };
        let slow = !peace && dice.one_in(2);
        let fails = !peace && dice.one_in(15);
        match transaction.phase {
            _ if slow => {}
            Phase::Checking | Phase::Draining => return,
            Phase::Downloading if fails => progress.outcome = Outcome::Failed,
            Phase::Downloading | Phase::Verifying | Phase::Broken => progress.outcome = Outcome::Done,
            Phase::HandingOver => {
                self.vip = dice.pick(&servers).or(self.vip.take());
                progress.outcome = Outcome::Done;
            }
            Phase::Installing => {
                let crash = transaction.packages.iter().any(|p| self.culprits.contains(p));
                progress.part = Some(Part::Packages);
                if crash && dice.one_in(3) {
                    // hangs, and is switched off and on by somebody
                    host.dead_until = Some(self.now + minutes(40 + dice.roll(600)));
                } else if crash {
                    host.boot += 1;
                    progress.outcome = Outcome::Crashed;
                } else if fails {
                    progress.outcome = Outcome::Failed;
                } else {
                    progress.outcome = Outcome::Done;
                    // what needs another package that is not in the transaction is left out
                    for package in &transaction.packages {
                        let build = self.repository.get(package.name()).filter(|b| named(package.name(), b.version) == *package);
                        match build {
                            Some(build) => {
                                assert!(!build.crashes);
                                host.installed.insert(package.name().to_owned(), build.version);
                                host.needs_reboot |= package.name() == "kernel";
                            }
                            None => progress.left_out.push(package.clone()),
                        }
                    }
                    status.reboot.needed = if host.needs_reboot { Answer::Yes } else { Answer::No };
                }
            }
            Phase::Rebooting => {
                if transaction.boot_id == status.boot_id {
                    host.boot += 1;
                    host.needs_reboot = false;
                    host.ready = false;
                    host.dead_until = (!peace && dice.one_in(10)).then(|| self.now + minutes(60));
                }
                return;
            }
            Phase::Releasing => {
                if transaction.failure.is_none() {
                    status.last_update = Some(Time(self.now));
                }
                status.history.insert(
                    0,
                    Run {
                        transaction: transaction.id.clone(),
                        started_at: transaction.started_at.clone(),
                        finished_at: Time(self.now),
                        packages: 0,
                        patches: 0,
                        rebooted: transaction.rebooted,
                        failure: transaction.failure.clone(),
                    },
                );
                status.history.truncate(HISTORY);
                progress.outcome = Outcome::Done;
            }
        }
        status.progress = Some(progress);
    }

    /// What must never be.
    fn check(&self, decision: &Decision<'_>) {
        assert!(decision.nodes.iter().map(|(n, _)| *n).eq(self.hosts.keys().map(String::as_str)), "each node once");
        let transaction = |host: &Host| host.update.as_ref().and_then(|u| u.spec.transaction.clone());
        let holds = |name: &str| self.locks.values().any(|(n, uid)| n == name && self.hosts[n].uid == *uid);
        let mut starts = Vec::new();
        let mut waits = Vec::new();
        for (name, next) in &decision.nodes {
            let host = &self.hosts[*name];
            let status = host.update.as_ref().and_then(|u| u.status.as_ref());
            match next {
                Next::Act(Action::Start { transaction, .. }) => starts.push((*name, host, transaction.as_ref())),
                Next::Act(Action::Move(to)) => {
                    let from = transaction(host).unwrap();
                    assert_ne!(from.phase, to.phase);
                    assert_eq!((&from.id, &from.packages), (&to.id, &to.packages), "what was decided stays");
                    if matches!(to.phase, Phase::Installing) {
                        let banned = to.packages.iter().find(|p| self.spec.banned_packages.contains(p));
                        assert_eq!(banned, None, "banned in the meantime\n{}", self.shown());
                        assert!(!self.spec.halted);
                    }
                    if matches!(to.phase, Phase::Installing | Phase::Rebooting | Phase::Draining) {
                        assert!(holds(name), "disturbed without its lock");
                        assert!(!host.server || self.bears_loss_of(name), "{name} would cost the quorum");
                    }
                    if to.phase == Phase::Rebooting {
                        assert!(host.cordon != Cordon::No, "rebooted with its pods on it");
                    }
                }
                Next::Act(Action::Uncordon) => assert_eq!(host.cordon, Cordon::Ours, "somebody else's cordon"),
                Next::Act(Action::Finish { .. }) => assert_ne!(host.cordon, Cordon::Ours, "left cordoned"),
                Next::Act(_) => {}
                Next::Wait(wait) => waits.push((*name, host, wait)),
                Next::Rest => {
                    let lists = status.and_then(|s| s.packages.as_ref()).is_none_or(|l| !l.available.is_empty());
                    assert!(!lists, "{name} rests, though something is available");
                }
            }
        }
        let busy: BTreeSet<_> = self.hosts.iter().filter(|(n, h)| transaction(h).is_some() || holds(n)).map(|(n, _)| n.as_str()).collect();
        let away = self.hosts.iter().filter(|(n, h)| !h.ready && !busy.contains(n.as_str())).count();
        let allowed = match self.spec.max_unavailable {
            Share::Nodes(n) => usize::try_from(n).unwrap(),
            Share::Percent(p) => (self.hosts.len() * usize::from(p) / 100).max(1),
        };
        assert!(starts.is_empty() || busy.len() + away + starts.len() <= allowed, "too many at once\n{}", self.shown());
        let servers = busy.iter().filter(|n| self.hosts[**n].server).count() + starts.iter().filter(|(_, h, _)| h.server).count();
        assert!(servers <= 1 || starts.iter().all(|(_, h, _)| !h.server), "two servers at once");
        for (name, host, transaction) in &starts {
            self.check_start(name, host, transaction);
        }
        self.check_order(&starts, &waits);
    }

    fn check_start(&self, name: &str, host: &Host, transaction: &Transaction) {
        assert!(!matches!(gate(&self.spec.maintenance_windows, self.now), Gate::Closed(_)), "outside of any window");
        assert!(!self.spec.suspend && !self.spec.halted && !host.labels.contains_key(crate::names::SUSPEND_LABEL) && host.ready);
        assert!(self.spec.blocking_alerts.is_none() || self.alerts == Alerts::Quiet);
        assert!(!host.server || self.bears_loss_of(name), "{name} would cost the quorum");
        let update = host.update.as_ref().unwrap();
        assert!(update.spec.retry.as_ref().is_none_or(|r| r.not_before.0 <= self.now), "too early after a failure");
        let delay = 24
            * match update.spec.stage {
                crate::Stage::Fast => 0,
                crate::Stage::Slow => 14,
                crate::Stage::Stable => 42,
            };
        let listed = &update.status.as_ref().unwrap().packages.as_ref().unwrap().available;
        for package in &transaction.packages {
            let item = listed.iter().find(|i| i.name == *package).expect("only what is there");
            assert!(
                self.now.duration_since(item.since.0) >= SignedDuration::from_hours(delay) || transaction.trial,
                "too young: {package}"
            );
            assert!(!self.spec.banned_packages.contains(package), "banned: {package}");
            assert!(!self.kind.manual || self.spec.approved_packages.contains(package), "not approved: {package}");
            let suspected = self.suspects.iter().any(|s| s.packages.contains(package));
            assert_eq!(suspected, transaction.trial, "{package}");
        }
        assert!(!transaction.packages.is_empty() || host.needs_reboot, "for nothing");
    }

    fn bears_loss_of(&self, name: &str) -> bool {
        let servers = self.hosts.iter().filter(|(_, h)| h.server);
        let others = servers.clone().filter(|(n, h)| *n != name && h.ready).count();
        let all = servers.count();
        all < 3 || 2 * others > all
    }

    /// The longest-not-updated first; but another server in the turn of the one with the floating address.
    fn check_order(&self, starts: &[(&str, &Host, &Transaction)], waits: &[(&str, &Host, &Wait)]) {
        let last = |h: &Host| h.update.as_ref().and_then(|u| u.status.as_ref()).and_then(|s| s.last_update.as_ref().map(|t| t.0));
        for (name, host, _) in starts {
            for (other, waiting, _) in waits.iter().filter(|(_, _, w)| w.reason == Reason::WaitingForTurn) {
                let older = (last(waiting), *other) < (last(host), *name);
                // another server is in its way; or this one goes in the turn of the one that has the address
                let has_vip = |h: &Host| h.update.as_ref().and_then(|u| u.status.as_ref()).is_some_and(|s| s.has_vip);
                let turn = waits.iter().filter(|(_, h, _)| h.server && has_vip(h)).any(|(n, h, _)| (last(h), *n) < (last(waiting), *other));
                assert!(!older || waiting.server || (host.server && turn), "{other} should be before {name}\n{}", self.shown());
            }
            if self.vip.as_deref() == Some(name) {
                let others = waits.iter().filter(|(_, h, w)| h.server && w.reason == Reason::WaitingForTurn);
                assert_eq!(others.count(), 0, "the server with the floating address goes last");
            }
        }
        let mut places: Vec<_> = waits.iter().filter_map(|(_, _, w)| w.place).collect();
        places.sort_unstable();
        assert!(places.iter().copied().eq(1..=places.len()), "{places:?}");
    }

    pub fn is_done(&self) -> bool {
        let done = |h: &Host| {
            let listed = h.update.as_ref().and_then(|u| u.status.as_ref()).and_then(|s| s.packages.as_ref());
            h.update.as_ref().is_some_and(|u| u.spec.transaction.is_none())
                && listed.is_some_and(|l| l.available.iter().all(|i| self.spec.banned_packages.contains(&i.name)))
        };
        self.hosts.values().all(|h| done(h) && !h.needs_reboot) && self.locks.is_empty() && self.suspects.is_empty()
    }

    pub fn check_the_end(&self) {
        assert!(self.hosts.values().all(|h| h.cordon != Cordon::Ours), "{}", self.shown());
    }

    pub fn shown(&self) -> String {
        let (nodes, failed) = self.with_input(|input| {
            let decision = decide(input, self.now);
            (decision.nodes.iter().map(|(n, next)| format!("{n}: {next:?}")).collect::<Vec<_>>().join("\n"), decision.failed)
        });
        let log = self.log.iter().rev().take(40).rev().cloned().collect::<Vec<_>>().join("\n");
        format!(
            "{}\nlocks {:?} suspects {:?} failed {failed:?} bans {:?}\n{nodes}\n{log}",
            self.now, self.locks, self.suspects, self.spec.banned_packages
        )
    }
}

fn short(action: &Action) -> String {
    match action {
        Action::Start { slot, transaction } => {
            format!("starts in {slot}: {:?}", transaction.packages.iter().map(ToString::to_string).collect::<Vec<_>>())
        }
        Action::Move(t) => format!("goes to {} {:?}", t.phase, t.failure.as_ref().map(|f| &f.reason)),
        Action::Finish { retry } => format!("ends {:?}", retry.as_ref().map(|r| &r.failure.reason)),
        other => format!("{other:?}"),
    }
}

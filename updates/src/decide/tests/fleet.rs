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
use crate::{Builds, Gate, PackageName, Share, Suspects, TransactionId, Window, gate};

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

#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Host {
    uid: String,
    labels: BTreeMap<String, String>,
    update: Option<NodeUpdate>,
    installed: BTreeMap<String, u32>,
    ready: bool,
    /// Hung, or without power, until then.
    dead_until: Option<Timestamp>,
    /// Without network until then.
    cut_until: Option<Timestamp>,
    /// Its agent can neither do nor say anything until then.
    mute_until: Option<Timestamp>,
    server: bool,
    cordon: Cordon,
    look: Option<Look>,
    boot: u64,
    needs_reboot: bool,
    /// No reboot is a cure.
    stubborn: bool,
    /// This one's installation was begun.
    begun: Option<TransactionId>,
    /// In the middle of this one's installation it crashed.
    died: Option<TransactionId>,
    born: Timestamp,
    /// By so much its clock is ahead.
    clock: SignedDuration,
}

/// A version of a package.
struct Build {
    version: u32,
    since: Timestamp,
    crashes: bool,
}

/// What the controller saw of a node last, and since when.
struct Seen {
    ready: bool,
    progress: Option<Progress>,
    since: Timestamp,
}

pub struct Fleet {
    dice: Dice,
    now: Timestamp,
    /// The API cannot be reached until then.
    away_until: Option<Timestamp>,
    seen: BTreeMap<String, Seen>,
    builds: Builds,
    /// The cluster keeps its data elsewhere.
    external: bool,
    /// In so many passes on end something was learnt.
    lessons: usize,
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

/// Whose newest build each needs, of the packages that need any.
fn needs(package: &str) -> Option<&'static str> {
    match package {
        "vim" => Some("zsh"),
        "zsh" => Some("vim"),
        "sed" => Some("glibc"),
        _ => None,
    }
}

/// Whose repository says when they were published.
fn is_dated(package: &str) -> bool {
    !matches!(package, "bash" | "sed" | "k3s")
}

fn minutes(n: u64) -> SignedDuration {
    SignedDuration::from_mins(i64::try_from(n).unwrap())
}

impl Fleet {
    pub fn new(seed: u64, kind: Kind) -> Self {
        let mut fleet = Self {
            dice: Dice(seed | 1),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            away_until: None,
            seen: BTreeMap::new(),
            builds: Builds::default(),
            external: false,
            lessons: 0,
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
        fleet.external = fleet.dice.one_in(5);
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
            cut_until: None,
            mute_until: None,
            server,
            cordon: Cordon::No,
            look: None,
            boot: 1,
            needs_reboot: false,
            stubborn: false,
            begun: None,
            died: None,
            born: self.now,
            clock: SignedDuration::ZERO,
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
        match self.dice.roll(70) {
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
            22 | 23 => self.away_until = Some(self.now + minutes(5 + self.dice.roll(200))),
            24 | 25 => self.hosts.get_mut(&name).unwrap().cut_until = Some(self.now + minutes(5 + self.dice.roll(200))),
            26 => {
                let (ahead, by) = (self.dice.one_in(2), minutes(self.dice.roll(600)));
                self.hosts.get_mut(&name).unwrap().clock = if ahead { by } else { -by };
            }
            27 => {
                let stubborn = self.dice.one_in(2);
                let host = self.hosts.get_mut(&name).unwrap();
                host.stubborn = stubborn;
                host.needs_reboot |= stubborn;
            }
            28 => {
                // somebody installs what can be installed
                let host = self.hosts.get_mut(&name).unwrap();
                let all: Vec<_> = self.repository.iter().filter(|(_, b)| !b.crashes).map(|(p, b)| named(p, b.version)).collect();
                let package = self.dice.pick(&all).into_iter().collect::<Vec<_>>();
                host.needs_reboot |= install(&mut host.installed, &self.repository, &package);
            }
            // kubectl delete nodeupdate
            29 => self.hosts.get_mut(&name).unwrap().update = None,
            30 if self.dice.one_in(4) => self.hosts.get_mut(&name).unwrap().server = true,
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
            host.stubborn = false;
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
                quiet_since: self.seen.get(name).map(|seen| seen.since),
            })
            .collect();
        let locks: Vec<_> = self.locks.iter().map(|(slot, (node, uid))| Lock { slot: *slot, node, uid }).collect();
        let voters = self.hosts.iter().filter(|(_, h)| h.server).map(|(n, h)| Voter { node: n.clone(), healthy: h.ready });
        let etcd = if self.external { Etcd::Elsewhere } else { Etcd::Voters(voters.collect()) };
        let spec = Some(&self.spec).filter(|_| self.understood);
        f(&Input { spec, suspects: &self.suspects, nodes: &nodes, locks: &locks, etcd: &etcd, alerts: &self.alerts })
    }

    pub fn step(&mut self) {
        let busy = self.hosts.values().any(|h| h.update.as_ref().is_some_and(|u| u.spec.transaction.is_some()));
        let pause = if busy { 1 + self.dice.roll(3) } else { 10 + self.dice.roll(60 * 20) };
        self.now += minutes(pause);
        if self.away_until.is_some_and(|until| self.now < until) {
            return;
        }
        // the controller that leads then is another one
        if self.away_until.take().is_some() || self.dice.one_in(60) {
            self.seen.clear();
        }
        self.prepare();
        let names: Vec<_> = self.hosts.keys().cloned().collect();
        for name in &names {
            self.host(name);
        }
        if self.kind.manual && self.peace {
            self.approve();
        }
        self.watch();
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
        self.lessons = if attribution.is_some() { self.lessons + 1 } else { 0 };
        assert!(self.lessons < 40, "it never stops learning: {attribution:?}\n{}", self.shown());
        if let Some(attribution) = attribution {
            return self.learn(&attribution);
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

    fn watch(&mut self) {
        let seen = self.hosts.iter().filter_map(|(name, host)| {
            let update = host.update.as_ref().filter(|u| u.spec.transaction.is_some())?;
            let (ready, progress) = (host.ready, update.status.as_ref().and_then(|s| s.progress.clone()));
            let before = self.seen.get(name).filter(|b| b.ready == ready && b.progress == progress);
            Some((name.clone(), Seen { ready, progress, since: before.map_or(self.now, |b| b.since) }))
        });
        self.seen = seen.collect();
    }

    fn learn(&mut self, attribution: &Attribution) {
        self.log.push(format!("{} learnt {attribution:?}", self.now));
        let bans: Vec<_> = attribution.bans.iter().map(|i| i.to_string().parse::<PackageName>().unwrap()).collect();
        assert!(!bans.iter().any(|b| self.spec.banned_packages.contains(b)), "banned twice: {attribution:?}");
        let guilty = |b: &PackageName| self.culprits.contains(b);
        // what needs each other cannot be told apart
        let beside = |b: &PackageName| needs(b.name()).is_some() && bans.iter().any(guilty);
        let transaction = |name: &String| self.hosts.get(name)?.update.as_ref()?.spec.transaction.as_ref();
        let crashed = transaction(&attribution.node).map(|t| t.packages.as_slice()).unwrap_or_default();
        let fair = if self.kind.bisect { bans.iter().all(|b| guilty(b) || beside(b)) } else { crashed.iter().any(guilty) };
        let fair = fair || bans.is_empty();
        assert!(fair, "innocents are banned: {attribution:?}\n{}", self.shown());
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
        if host.cut_until.is_some_and(|until| until > self.now) {
            host.ready = false;
            return;
        }
        host.cut_until = None;
        if !host.ready && (peace || self.dice.one_in(3)) {
            host.ready = true;
        }
        if host.cordon == Cordon::Theirs && self.dice.one_in(30) {
            host.cordon = Cordon::No;
        }
        // silent for a while
        if host.mute_until.is_some_and(|until| until > self.now) || self.dice.one_in(8) {
            return;
        }
        host.mute_until = None;
        self.report(name);
        self.work(name);
    }

    fn report(&mut self, name: &str) {
        let host = self.hosts.get_mut(name).unwrap();
        let boot = boot_id(host);
        let update = host.update.as_mut().unwrap();
        let since = |package: &str, build: &Build| if is_dated(package) { build.since } else { build.since.max(host.born) };
        let available = self.repository.iter().filter(|(p, b)| host.installed.get(*p).is_none_or(|v| *v < b.version));
        let available = available.map(|(p, b)| Available { name: named(p, b.version), since: Time(since(p, b)) }).collect();
        let now = Time(self.now + host.clock);
        let status = update.status.get_or_insert_with(|| NodeUpdateStatus::new(now.clone()));
        status.reported_at = now.clone();
        status.packages = Some(Listing { checked_at: Some(now), error: None, available });
        self.builds.settle(status, Some(host.born));
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
        let begun = host.begun.as_ref() == Some(&transaction.id);
        let mut progress = Progress {
            transaction: transaction.id.clone(),
            phase: transaction.phase,
            outcome: Outcome::Running,
            at: Time(self.now + host.clock),
            message: None,
            part: None,
            left_out: vec![],
            patches_refused: false,
            drain_first: false,
        };
        let slow = !peace && dice.one_in(2);
        let fails = !peace && dice.one_in(15);
        match transaction.phase {
            Phase::Installing if host.died.as_ref() == Some(&transaction.id) => {
                progress.part = Some(Part::Packages);
                progress.outcome = Outcome::Crashed;
            }
            Phase::Installing if !begun && !peace && dice.one_in(12) => {
                host.mute_until = Some(self.now + minutes(5 + dice.roll(100)));
                return;
            }
            // it could not be started
            Phase::Installing if !begun && fails => progress.outcome = Outcome::Failed,
            Phase::Installing if !begun => {
                host.begun = Some(transaction.id.clone());
                progress.part = Some(Part::Packages);
            }
            Phase::Installing if slow => progress.part = Some(Part::Packages),
            _ if slow => {}
            Phase::Checking | Phase::Draining => return,
            Phase::Downloading if fails => progress.outcome = Outcome::Failed,
            Phase::Downloading => {
                progress.left_out = left_out(&host.installed, &self.repository, &transaction.packages);
                progress.outcome = Outcome::Done;
            }
            Phase::Verifying | Phase::Broken => progress.outcome = Outcome::Done,
            Phase::HandingOver => {
                self.vip = dice.pick(&servers).or(self.vip.take());
                progress.outcome = Outcome::Done;
            }
            Phase::Installing => {
                progress.part = Some(Part::Packages);
                progress.left_out = left_out(&host.installed, &self.repository, &transaction.packages);
                let installs = || transaction.packages.iter().filter(|p| !progress.left_out.contains(p));
                // a power cut may be anybody's; where only one is installed, it would be laid to its account
                let chance = self.kind.bisect && !peace && !transaction.trial && installs().count() > 1;
                let crash = installs().any(|p| self.culprits.contains(p)) || (chance && dice.one_in(20));
                if crash {
                    host.died = Some(transaction.id.clone());
                    host.boot += 1;
                }
                if crash {
                    match dice.roll(5) {
                        // hangs, and is switched off and on by somebody
                        0 | 1 => host.dead_until = Some(self.now + minutes(10 + dice.roll(if peace { 90 } else { 600 }))),
                        // only what installs hangs
                        2 => host.mute_until = Some(self.now + minutes(10 + dice.roll(100))),
                        _ => progress.outcome = Outcome::Crashed,
                    }
                    if progress.outcome == Outcome::Running {
                        return;
                    }
                } else if fails {
                    progress.outcome = Outcome::Failed;
                } else {
                    progress.outcome = Outcome::Done;
                    host.needs_reboot |= install(&mut host.installed, &self.repository, &transaction.packages);
                    status.reboot.needed = if host.needs_reboot { Answer::Yes } else { Answer::No };
                }
            }
            Phase::Rebooting => {
                if transaction.boot_id == status.boot_id {
                    host.boot += 1;
                    host.needs_reboot = host.stubborn;
                    host.ready = false;
                    host.dead_until = (!peace && dice.one_in(10)).then(|| self.now + minutes(60));
                }
                return;
            }
            Phase::Releasing => {
                if transaction.failure.is_none() {
                    status.last_update = Some(Time(self.now + host.clock));
                }
                status.history.insert(0, run(&transaction, self.now + host.clock));
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
        let held = |server: bool| {
            self.locks.values().filter(move |(n, uid)| self.hosts.get(n).is_some_and(|h| h.uid == *uid && (h.server || !server)))
        };
        let held = |server: bool| held(server).map(|(n, _)| n).collect::<BTreeSet<_>>().len();
        let locks = |n: &&(&str, Next)| matches!(n.1, Next::Act(Action::Lock { .. }));
        let is_server = |n: &&(&str, Next)| self.hosts[n.0].server;
        let locked = decision.nodes.iter().filter(locks).count();
        assert!(locked == 0 || held(false) + locked <= self.allowed(), "too many leases\n{}", self.shown());
        let locked = decision.nodes.iter().filter(locks).filter(is_server).count();
        assert!(locked == 0 || held(true) + locked <= 1, "two servers hold a lease\n{}", self.shown());
        let down = |phase: Phase| matches!(phase, Phase::HandingOver | Phase::Draining | Phase::Installing | Phase::Rebooting);
        let servers_down: Vec<_> = self.hosts.iter().filter(|(_, h)| h.server && transaction(h).is_some_and(|t| down(t.phase))).collect();
        let goes_down = |n: &&(&str, Next)| is_server(n) && matches!(&n.1, Next::Act(Action::Move(to)) if down(to.phase));
        let go_down: Vec<_> = decision.nodes.iter().filter(goes_down).map(|(n, _)| *n).collect();
        assert!(go_down.len() <= 1, "{go_down:?} at once");
        let enters = go_down.iter().find(|n| servers_down.iter().all(|(other, _)| other != *n));
        assert!(enters.is_none() || servers_down.is_empty(), "{enters:?} though another server is down\n{}", self.shown());
        for (name, next) in &decision.nodes {
            let host = &self.hosts[*name];
            let status = host.update.as_ref().and_then(|u| u.status.as_ref());
            match next {
                Next::Act(Action::Start { transaction, .. }) => starts.push((*name, host, transaction.as_ref())),
                Next::Act(Action::Move(to)) => {
                    let from = transaction(host).unwrap();
                    assert_ne!(from.phase, to.phase);
                    assert_eq!((&from.id, &from.packages), (&to.id, &to.packages), "what was decided stays");
                    // what was lost in the middle is brought to its end
                    if to.phase == Phase::Installing && from.phase != Phase::Broken {
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
        assert!(starts.is_empty() || busy.len() + away + starts.len() <= self.allowed(), "too many at once\n{}", self.shown());
        let servers = busy.iter().filter(|n| self.hosts[**n].server).count() + starts.iter().filter(|(_, h, _)| h.server).count();
        assert!(servers <= 1 || starts.iter().all(|(_, h, _)| !h.server), "two servers at once");
        for (name, host, transaction) in &starts {
            self.check_start(name, host, transaction);
        }
        let under_way = self.hosts.values().filter_map(transaction);
        let tried = under_way.chain(starts.iter().map(|(_, _, t)| (*t).clone())).filter(|t| t.trial).collect::<Vec<_>>();
        let together =
            |p: &PackageName, q: &PackageName| p == q || self.suspects.iter().any(|s| s.packages.contains(p) && s.packages.contains(q));
        let share = |t: &Transaction, other: &Transaction| t.packages.iter().any(|p| other.packages.iter().any(|q| together(p, q)));
        let twice = |t: &Transaction| tried.iter().any(|other| other.id != t.id && share(t, other));
        assert!(!starts.iter().any(|(_, _, t)| t.trial && twice(t)), "tried by two at once\n{}", self.shown());
        self.check_order(&starts, &waits);
    }

    fn allowed(&self) -> usize {
        match self.spec.max_unavailable {
            Share::Nodes(n) => usize::try_from(n).unwrap(),
            Share::Percent(p) => (self.hosts.len() * usize::from(p) / 100).max(1),
        }
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
            let published = self.repository.get(package.name()).filter(|b| named(package.name(), b.version) == *package).map(|b| b.since);
            for since in [Some(item.since.0), published].into_iter().flatten() {
                let old = self.now.duration_since(since) >= SignedDuration::from_hours(delay);
                assert!(old || transaction.trial, "too young: {package}");
            }
            assert!(!self.spec.banned_packages.contains(package), "banned: {package}");
            assert!(!self.kind.manual || self.spec.approved_packages.contains(package), "not approved: {package}");
        }
        let suspected = |p: &PackageName| self.suspects.iter().any(|s| s.packages.contains(p));
        assert_eq!(transaction.packages.iter().any(suspected), transaction.trial, "{transaction:?}");
        if transaction.packages.is_empty() {
            assert!(host.needs_reboot, "for nothing");
            let last = update.status.as_ref().unwrap().history.iter().find(|run| run.failure.is_none() || run.rebooted);
            let last = last.filter(|run| run.rebooted).map(|run| self.now.duration_since(run.started_at.0));
            assert!(last.is_none_or(|ago| ago >= SignedDuration::from_hours(4)), "rebooted again {last:?} after the last time");
        }
    }

    fn bears_loss_of(&self, name: &str) -> bool {
        self.hosts.iter().filter(|(n, h)| h.server && *n != name).all(|(_, h)| h.ready)
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
            let has_vip = |h: &Host| h.update.as_ref().and_then(|u| u.status.as_ref()).is_some_and(|s| s.has_vip);
            if has_vip(host) {
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
                && listed.is_some_and(|l| l.available.iter().all(|i| self.is_barred(&i.name)))
        };
        let suspected = self.suspects.iter().flat_map(|group| &group.packages).any(|p| !self.is_barred(p));
        self.hosts.values().all(|h| done(h) && !h.needs_reboot) && self.locks.is_empty() && !suspected
    }

    /// Whether it, or what it needs, is banned.
    fn is_barred(&self, package: &PackageName) -> bool {
        let banned = |name: &str| self.repository.get(name).is_some_and(|b| self.spec.banned_packages.contains(&named(name, b.version)));
        self.spec.banned_packages.contains(package) || needs(package.name()).is_some_and(banned)
    }

    pub fn check_the_end(&self) {
        assert!(self.hosts.values().all(|h| h.cordon != Cordon::Ours), "{}", self.shown());
    }

    pub fn shown(&self) -> String {
        let (nodes, failed) = self.with_input(|input| {
            let decision = decide(input, self.now);
            (decision.nodes.iter().map(|(n, next)| format!("{n}: {next:?}")).collect::<Vec<_>>().join("\n"), decision.failed)
        });
        let reboots: Vec<_> = self.hosts.iter().filter(|(_, h)| h.needs_reboot).map(|(n, _)| n).collect();
        let log = self.log.iter().rev().take(40).rev().cloned().collect::<Vec<_>>().join("\n");
        format!(
            "{}\nreboots {reboots:?} locks {:?} suspects {:?} failed {failed:?} bans {:?}\n{nodes}\n{log}",
            self.now, self.locks, self.suspects, self.spec.banned_packages
        )
    }
}

/// What of these cannot be installed: it is not in the repository any more, or needs what is neither there nor among them.
fn left_out(installed: &BTreeMap<String, u32>, repository: &BTreeMap<String, Build>, packages: &[PackageName]) -> Vec<PackageName> {
    let newest = |name: &str| repository.get(name).map(|b| named(name, b.version));
    let has = |name: &str| repository.get(name).is_none_or(|b| installed.get(name) == Some(&b.version));
    let mut installs: Vec<_> = packages.iter().filter(|p| newest(p.name()).as_ref() == Some(p)).collect();
    loop {
        let there = |name: &str| has(name) || installs.iter().any(|p| p.name() == name);
        let (can, cannot): (Vec<_>, Vec<_>) = installs.iter().partition(|p| needs(p.name()).is_none_or(there));
        if cannot.is_empty() {
            return packages.iter().filter(|p| !can.contains(p)).cloned().collect();
        }
        installs = can;
    }
}

/// An update that is over at `now`, as its agent notes it.
fn run(transaction: &Transaction, now: Timestamp) -> Run {
    Run {
        transaction: transaction.id.clone(),
        started_at: transaction.started_at.clone(),
        finished_at: Time(now),
        packages: u32::try_from(transaction.packages.len()).unwrap(),
        patches: 0,
        rebooted: transaction.rebooted,
        failure: transaction.failure.clone(),
    }
}

/// Installs what can be; answers whether the host needs a reboot then.
fn install(installed: &mut BTreeMap<String, u32>, repository: &BTreeMap<String, Build>, packages: &[PackageName]) -> bool {
    let left_out = left_out(installed, repository, packages);
    let installs: Vec<_> = packages.iter().filter(|p| !left_out.contains(p)).collect();
    for package in &installs {
        let build = &repository[package.name()];
        assert!(!build.crashes);
        installed.insert(package.name().to_owned(), build.version);
    }
    installs.iter().any(|p| p.name() == "kernel")
}

pub fn short(action: &Action) -> String {
    match action {
        Action::Start { slot, transaction } => {
            let packages = transaction.packages.iter().map(ToString::to_string);
            let items: Vec<_> = packages.chain(transaction.patches.iter().map(ToString::to_string)).collect();
            format!("starts in {slot}: {items:?}{}", if transaction.trial { " on trial" } else { "" })
        }
        Action::Move(t) => format!("goes to {} {:?}", t.phase, t.failure.as_ref().map(|f| &f.reason)),
        Action::Finish { retry } => format!("ends {:?}", retry.as_ref().map(|r| &r.failure.reason)),
        other => format!("{other:?}"),
    }
}

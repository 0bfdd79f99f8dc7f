use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use node::{Awaited, Change, Error, Host, PackageStep, Plan, Result, State, Step, Undo, UnitState};

use crate::firewalld::{Do, Firewalld, In, UNIT};
use crate::state::{RuleState, subnets};
use crate::undo::Did;
use crate::{Ports, Protocol, Rule, Rules, mask, offline, ssh, zone_file};

const PACKAGE: &str = "firewalld";
/// Where firewalld writes why it does not work; its unit keeps that out of the journal.
const LOG: &str = "/var/log/firewalld";

/// systemd takes a unit for inactive until its start has come to the front of the queue.
const QUEUED: Duration = Duration::from_secs(5);

/// The steps that install firewalld where it is missing, start it with ssh let in, and let in what the role needs.
///
/// A firewalld that the administrator disabled blocks nothing: it is left alone, and so are its rules. No reload anywhere:
/// it would wipe what k3s added by itself.
pub fn plan(rules: &Rules) -> Plan {
    let mut plan = Plan::default();
    plan.push(Install(PackageStep { package: PACKAGE, program: "firewalld", unit: None }));
    plan.push(Start { rules: rules.clone() });
    plan.push(Open { rules: rules.clone() });
    plan
}

/// What becomes of firewalld on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Situation {
    /// It will be installed.
    Absent,
    /// It runs, or is on its way.
    Runs,
    /// It is enabled, or smartup installed it: it will be started.
    WillStart,
    /// The administrator does not want it.
    LeftAlone,
}

pub(crate) async fn situation(host: &Host) -> Result<Situation> {
    Ok(judge(host, &host.systemd.unit(UNIT).await?))
}

fn judge(host: &Host, unit: &UnitState) -> Situation {
    let ours = is_ours(host);
    if unit.running() {
        Situation::Runs
    } else if !offline::installed() {
        Situation::Absent
    } else if (unit.load == "masked" && !mask::is_ours(host)) || !(ours || unit.enabled()) {
        Situation::LeftAlone
    } else {
        Situation::WillStart
    }
}

/// Whether smartup installed firewalld.
fn is_ours(host: &Host) -> bool {
    host.journal.entries().iter().any(|e| matches!(&e.undo, Undo::Package { package } if package == PACKAGE))
}

/// The package, which must not start by itself.
struct Install(PackageStep);

#[async_trait(?Send)]
impl Step for Install {
    fn name(&self) -> String {
        self.0.name()
    }

    async fn check(&self, host: &Host) -> Result<State> {
        self.0.check(host).await
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        mask::mask(host).await?;
        let done = self.0.apply(host).await;
        if done.is_err() && !offline::installed() {
            // whoever installs it by hand must be able to start it
            host.systemd.unmask(UNIT).await?;
        }
        done
    }
}

/// firewalld runs, with ssh let in from its first moment on.
struct Start {
    rules: Rules,
}

impl Start {
    /// Lets ssh in in firewalld's files, while it does not run.
    async fn let_ssh_in(&self, host: &Host, ports: &BTreeSet<u16>) -> Result<()> {
        let (own, other) = tokio::join!(offline::zone_of(self.rules.interface.as_str()), offline::default_zone());
        let zones = BTreeSet::from([own?, other?]);
        for zone in &zones {
            for port in ports {
                if !offline::lets_ssh_in(zone, *port).await? {
                    let rule = ssh_rule(*port);
                    // not in the runtime: there it goes with firewalld itself
                    let did = Did::Add { zone: zone.clone(), rule: rule.clone(), runtime: false, permanent: true };
                    zone_file::remember(host, zone)?;
                    host.journal.record(did.undo()?)?;
                    offline::change(Do::Add, &rule, zone).await?;
                }
            }
        }
        Ok(())
    }

    async fn wait(&self, host: &Host) -> Result<()> {
        let began = Instant::now();
        host.wait_for(&self.name(), UNIT, async || {
            let unit = host.systemd.unit(UNIT).await?;
            match unit.active.as_str() {
                // systemctl says that it started, and then it dies: only its own word counts
                "active" => match Firewalld::connect(host).await?.state().await?.as_str() {
                    "RUNNING" => Ok(Awaited::Done(())),
                    "FAILED" => Err(broken("firewalld could not put its rules into the kernel")),
                    other => Ok(Awaited::missing(other)),
                },
                "failed" => Err(broken("firewalld does not stay up")),
                "inactive" if began.elapsed() > QUEUED => Err(broken("firewalld does not stay up")),
                other => Ok(Awaited::missing(other)),
            }
        })
        .await
    }
}

fn ssh_rule(port: u16) -> Rule {
    Rule::Port { ports: Ports::one(port), protocol: Protocol::Tcp }
}

fn broken(what: &str) -> Error {
    let log = std::fs::read_to_string(LOG).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let last = lines[lines.len().saturating_sub(4)..].join("\n");
    let what = if last.is_empty() { what.to_owned() } else { format!("{what}:\n{last}") };
    Error::failed(what).hint(format!("see {LOG} and journalctl -u {UNIT}; without a firewall: --no-firewall"))
}

#[async_trait(?Send)]
impl Step for Start {
    fn name(&self) -> String {
        format!("unit {UNIT}")
    }

    async fn check(&self, host: &Host) -> Result<State> {
        let unit = host.systemd.unit(UNIT).await?;
        Ok(match judge(host, &unit) {
            Situation::LeftAlone => State::Right,
            Situation::Absent | Situation::WillStart => State::differs(format!("start {UNIT}, with ssh let in")),
            Situation::Runs => match unit.active.as_str() {
                "active" => match Firewalld::connect(host).await?.state().await?.as_str() {
                    "RUNNING" => State::Right,
                    "FAILED" => return Err(broken("firewalld could not put its rules into the kernel")),
                    _ => State::differs(format!("wait for {UNIT}")),
                },
                _ => State::differs(format!("wait for {UNIT}")),
            },
        })
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        if situation(host).await? == Situation::Runs {
            return self.wait(host).await;
        }
        let ports = ssh::ports().await;
        self.let_ssh_in(host, &ports).await?;
        let unit = host.systemd.unit(UNIT).await?;
        if !host.journal.entries().iter().any(|e| matches!(&e.undo, Undo::Unit { unit, .. } if unit == UNIT)) {
            let enabled = unit.enabled() && !is_ours(host);
            host.journal.record(Undo::Unit { unit: UNIT.into(), enabled, active: false })?;
        }
        if unit.load == "masked" {
            host.systemd.unmask(UNIT).await?;
        }
        host.systemd.enable(UNIT).await?;
        host.systemd.start(UNIT).await?;
        self.wait(host).await?;
        // the zone may be another one than its files say: NetworkManager has a word in it
        let firewalld = Firewalld::connect(host).await?;
        let zone = firewalld.zone_of(self.rules.interface.as_str()).await?;
        let ssh: Vec<Rule> = ports.into_iter().map(ssh_rule).collect();
        add(host, &firewalld, firewalld.compare(&ssh, &BTreeSet::from([zone])).await?).await
    }
}

/// What the role needs is let in.
struct Open {
    rules: Rules,
}

#[async_trait(?Send)]
impl Step for Open {
    fn name(&self) -> String {
        "firewall rules".into()
    }

    async fn check(&self, host: &Host) -> Result<State> {
        match situation(host).await? {
            Situation::LeftAlone => Ok(State::Right),
            Situation::Absent | Situation::WillStart => {
                let interface = &self.rules.interface;
                let each = self.rules.required().into_iter().map(|rule| match rule {
                    Rule::Source { .. } => Change::new(format!("let in {rule}")),
                    _ => Change::new(format!("let in {rule} through {interface}")),
                });
                Ok(State::of(each.collect()))
            }
            Situation::Runs => {
                let firewalld = Firewalld::connect(host).await?;
                let missing = missing(&firewalld, host, &self.rules).await?;
                for state in &missing {
                    refuse_conflict(&firewalld, state).await?;
                }
                Ok(State::of(missing.iter().map(change).collect()))
            }
        }
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let firewalld = Firewalld::connect(host).await?;
        let missing = missing(&firewalld, host, &self.rules).await?;
        add(host, &firewalld, missing).await
    }
}

async fn missing(firewalld: &Firewalld<'_>, host: &Host, rules: &Rules) -> Result<Vec<RuleState>> {
    let mut states = firewalld.rules(rules, &subnets(host, rules)).await?;
    states.retain(RuleState::is_missing);
    Ok(states)
}

fn change(state: &RuleState) -> Change {
    let zone = state.zone.as_deref().unwrap_or_default();
    let when = match (state.runtime, state.permanent) {
        (Some(true), _) => ", after a reload too",
        (_, Some(true)) => ", now too",
        _ => "",
    };
    Change::new(format!("let in {} in zone {zone}{when}", state.rule))
}

/// A network can be in one zone only; another one's must be taken out by whoever put it there.
async fn refuse_conflict(firewalld: &Firewalld<'_>, state: &RuleState) -> Result<()> {
    let (Rule::Source { net }, Some(false), Some(zone)) = (&state.rule, state.runtime, &state.zone) else { return Ok(()) };
    match firewalld.zone_of_source(net).await? {
        Some(other) if &other != zone => Err(Error::refused(format!("{net} is in firewalld's zone {other}, not {zone}"))
            .hint(format!("if nothing else needs it there: firewall-cmd --permanent --zone={other} --remove-source={net}, the same without --permanent, and run again"))),
        _ => Ok(()),
    }
}

/// Adds what is missing where it is missing, each written to the journal first.
async fn add(host: &Host, firewalld: &Firewalld<'_>, missing: Vec<RuleState>) -> Result<()> {
    for state in missing.into_iter().filter(RuleState::is_missing) {
        let RuleState { zone: Some(zone), rule, runtime, permanent } = state else { continue };
        let (runtime, permanent) = (runtime == Some(false), permanent == Some(false));
        if permanent {
            zone_file::remember(host, &zone)?;
        }
        host.journal.record(Did::Add { zone: zone.clone(), rule: rule.clone(), runtime, permanent }.undo()?)?;
        if runtime {
            firewalld.change(Do::Add, &rule, &zone, In::Runtime).await?;
        }
        if permanent {
            firewalld.change(Do::Add, &rule, &zone, In::Permanent).await?;
        }
    }
    Ok(())
}

//! A host that takes part: it watches its own addresses, asks the API, looks at itself and the cluster, and is disturbed.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::Role;
use fleet::drill::{Fault, Here, Job, Looked, Order, Question, Said};
use fleet::protocol::{ToNode, VrrpWire};
use k3s::{Holder, Lease, Probe};
use node::{Context as _, Error, Guard, Host, Lock, Reporter, Result, has_address};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::fault::{self, GUARD};
use crate::membership::Membership;

/// Between two questions to the API.
const GAP: Duration = Duration::from_millis(20);
/// Of so many questions one is about its readiness too, which etcd has to answer.
const READYZ: u32 = 5;
/// A question that has no answer after this has none. Less than the second after which TCP tries again to connect (RFC 6298, 2.1).
const ANSWER: Duration = Duration::from_millis(900);
/// Between two looks at the host's addresses.
pub const TICK: Duration = Duration::from_millis(5);

/// Says something to the control side.
type Say = Arc<dyn Fn(Said) + Send + Sync>;

/// Takes part until the orders end; then what was done to this host is undone.
///
/// # Errors
/// When this host is no member of the cluster, another run of smartup is under way on it, or an order cannot be followed.
pub async fn take_part(
    job: Job,
    heard: &mut UnboundedReceiver<ToNode>,
    stop: &CancellationToken,
    reporter: Reporter,
    say: impl Fn(Said) + Send + Sync + 'static,
) -> Result<Value> {
    let _lock = Lock::take(Path::new(Lock::PATH))?;
    let member = Membership::load()?.ok_or_else(|| Error::failed("smartup has not set up this host").hint("smartup apply"))?;
    if member.vip.addr() != job.vip.addr() {
        return Err(Error::invalid(format!("its cluster has the VIP {}, and the file {}", member.vip.addr(), job.vip.addr())));
    }
    let host = Host::open(reporter, stop.clone(), Duration::from_secs(60)).await?;
    let say: Say = Arc::new(say);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot tell which boot this is")?;
    say(Said::Here(Here {
        name: host.facts.hostname.clone(),
        role: member.role,
        address: member.node_ip,
        boot: boot.trim().to_owned(),
        us: now(),
    }));
    let _watch = (member.role == Role::Server).then(|| Watch::start(member.vip.addr(), say.clone()));
    let mut part = Part { host, member, say, lease: None, asking: None, disturbed: false };
    let done = tokio::select! {
        done = part.obey(heard) => done,
        () = stop.cancelled() => Ok(()),
    };
    let undone = part.end().await;
    done.and(undone).map(|()| Value::Null)
}

/// This host's monotonic clock, in microseconds.
fn now() -> i64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec.saturating_mul(1_000_000).saturating_add(t.tv_nsec / 1000)
}

/// What this host has to do with the drill.
struct Part {
    host: Host,
    member: Membership,
    say: Say,
    lease: Option<Lease>,
    asking: Option<JoinSet<()>>,
    /// Whether there may be something to undo.
    disturbed: bool,
}

impl Part {
    async fn obey(&mut self, heard: &mut UnboundedReceiver<ToNode>) -> Result<()> {
        while let Some(ToNode::Drill(order)) = heard.recv().await {
            if let Some(said) = self.follow(order).await? {
                (self.say)(said);
            }
        }
        Ok(())
    }

    async fn follow(&mut self, order: Order) -> Result<Option<Said>> {
        Ok(Some(match order {
            Order::Time => Said::Time { us: now() },
            Order::Look => Said::Looked(self.look().await?),
            Order::Survey => Said::Surveyed(self.survey().await?),
            Order::Take { fault } => {
                self.lease = Some(self.take(fault).await?);
                Said::Taken
            }
            Order::Keep => match &self.lease {
                Some(lease) => {
                    lease.still_ours().await?;
                    Said::Taken
                }
                None => return Err(Error::failed("this host has not taken the lease")),
            },
            Order::Give => {
                self.give().await;
                Said::Given
            }
            Order::Ask { on } => {
                self.asking = if on { Some(self.ask().await?) } else { None };
                return Ok(None);
            }
            Order::Disturb { fault } => {
                self.disturbed = true;
                Said::Disturbed { us: fault::disturb(&self.host, fault, &self.member.interface, self.member.vip, now).await? }
            }
            Order::Restore => {
                self.restore().await?;
                Said::Restored
            }
        }))
    }

    /// How this host is.
    async fn look(&self) -> Result<Looked> {
        let mut troubles = Vec::new();
        let holds = has_address(self.member.vip.addr()).context("cannot tell which addresses this host has")?;
        if !self.disturbed && Guard::named(&self.host.systemd, GUARD).is_there().await? {
            troubles.push(format!("an earlier drill is still to be undone there ({GUARD})"));
        }
        let server = self.member.role == Role::Server;
        for unit in [Some(k3s::paths::unit(self.member.role)), server.then(|| keepalived::paths::UNIT.to_owned())].into_iter().flatten() {
            let state = self.host.systemd.unit(&unit).await?;
            if state.active != "active" {
                troubles.push(format!("{unit} is {} ({})", state.active, state.sub));
            }
        }
        if server {
            // keepalived would not let it have the VIP
            if !std::fs::read_to_string(keepalived::paths::STATE).is_ok_and(|state| state.trim() == "0") {
                troubles.push("keepalived takes its API for down".to_owned());
            }
            let own = format!("https://{}", SocketAddr::from((self.member.node_ip, self.member.port.get())));
            if let Err(e) = k3s::answers(k3s::paths::kubeconfig(Role::Server), &own).await {
                troubles.push(format!("its API is not ready: {}", e.chain()));
            }
        }
        Ok(Looked { holds, troubles })
    }

    /// How the cluster is.
    async fn survey(&self) -> Result<fleet::drill::Survey> {
        let member = &self.member;
        let vip = member.vip.addr();
        let kubeconfig = k3s::paths::kubeconfig(Role::Server);
        let url = member.vip.api_url(member.port);
        let vrrp = member.vrrp.as_ref().map(VrrpWire::vrrp).transpose()?;
        let (nodes, members, api, wire) = tokio::join!(
            async { k3s::nodes(&k3s::client(kubeconfig, None).await?).await },
            k3s::members(),
            k3s::answers(kubeconfig, &url),
            keepalived::holders(&member.interface, vip, vrrp.as_ref()),
        );
        // asked last: it may just have moved
        let here = has_address(vip).context("cannot tell which addresses this host has")?;
        let mut survey = super::judge::survey(nodes, members, wire, here);
        survey.troubles.extend(api.err().map(|e| format!("the API does not answer through the VIP: {}", e.chain())));
        Ok(survey)
    }

    async fn take(&self, fault: Fault) -> Result<Lease> {
        // its own API: the one behind the VIP is about to go away
        let client = k3s::client(k3s::paths::kubeconfig(Role::Server), None).await?;
        let holder = Holder { host: self.host.facts.hostname.clone(), pid: std::process::id(), doing: format!("drill {fault}") };
        Lease::take(&client, &holder, |what| self.host.waiting("lease", what)).await
    }

    async fn give(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.end().await;
        }
    }

    /// Asks the API through the VIP until it is dropped.
    async fn ask(&self) -> Result<JoinSet<()>> {
        let base = self.member.vip.api_url(self.member.port);
        let probe = Probe::new(k3s::paths::kubeconfig(self.member.role), base, ANSWER).await?;
        let say = self.say.clone();
        let mut asking = JoinSet::new();
        asking.spawn(async move {
            let mut tick = tokio::time::interval(GAP);
            tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut questions = JoinSet::new();
            for n in 0_u32.. {
                tick.tick().await;
                questions.spawn(put(probe.clone(), Question::Version, say.clone()));
                if n.is_multiple_of(READYZ) {
                    questions.spawn(put(probe.clone(), Question::Readyz, say.clone()));
                }
                while questions.try_join_next().is_some() {}
            }
        });
        Ok(asking)
    }

    /// Undoes the fault: the guard does it, now.
    async fn restore(&mut self) -> Result<()> {
        Guard::named(&self.host.systemd, GUARD).end().await?;
        self.disturbed = false;
        Ok(())
    }

    /// Undoes and gives back all there is.
    async fn end(mut self) -> Result<()> {
        self.asking = None;
        let restored = if self.disturbed { self.restore().await } else { Ok(()) };
        self.give().await;
        restored
    }
}

async fn put(probe: Probe, question: Question, say: Say) {
    let path = match question {
        Question::Version => "/version",
        Question::Readyz => "/readyz",
    };
    let asked = now();
    let answered = probe.answers(path).await.then(now);
    say(Said::Asked { question, asked, answered });
}

/// Looks for the VIP on this host until it is dropped.
struct Watch {
    over: Arc<AtomicBool>,
}

impl Watch {
    /// On a thread of its own, so that nothing holds it up.
    fn start(vip: IpAddr, say: Say) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ends = over.clone();
        std::thread::spawn(move || {
            let mut held = has_address(vip).unwrap_or(false);
            while !ends.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                // a look that fails tells nothing
                if let Ok(holds) = has_address(vip)
                    && holds != held
                {
                    held = holds;
                    say(Said::Held { us: now(), holds });
                }
            }
        });
        Self { over }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

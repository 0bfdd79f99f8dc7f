//! How k3s is upgraded on a host: for the command on it and for `smartup node` alike.

use std::time::{Duration, Instant};

use cluster::Role;
use k3s::{Source, Version};
use node::{Error, Facts, Host, Mode, OnChange, Plan, Result, Run, Summary, UnitStep};
use tokio_util::sync::CancellationToken;

use crate::depart;
use crate::membership::Membership;

/// An upgrade of this host.
pub struct Upgrade {
    /// What the host is.
    pub membership: Membership,
    k3s: k3s::Upgrade,
}

/// How long the VIP may be with nobody when it is given away: several times what a failover takes.
const HAND_OVER: Duration = Duration::from_secs(15);

/// How far one may go that fails.
enum Failed {
    /// Nothing was replaced.
    Before(Error),
    /// The new k3s is, or may be, in its place.
    After(Error),
}

impl Upgrade {
    /// Decides whether this host may be upgraded to that version. `ordered`: servers change before agents.
    ///
    /// # Errors
    /// Refused when the versions do not go together, or k3s here is not smartup's to replace; failed when that cannot be told.
    pub async fn here(host: &Host, source: Source, version: Version, ordered: bool) -> Result<Self> {
        if !host.facts.root {
            return Err(Error::failed("smartup does not run as root").hint("run it with sudo"));
        }
        let membership = Membership::load()?.ok_or_else(|| {
            Error::refused("smartup has not set up this host").hint("a cluster that was made by hand is taken over first: smartup apply")
        })?;
        let url = membership.vip.api_url(membership.port);
        let k3s = k3s::Upgrade { role: membership.role, node_ip: membership.node_ip, url, source, version };
        k3s.may(host, ordered).await?;
        Ok(Self { membership, k3s })
    }

    /// Whether the new k3s is not at its place yet.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub async fn replaces(&self, host: &Host) -> Result<bool> {
        self.k3s.replaces(host).await
    }

    /// What would be changed.
    ///
    /// # Errors
    /// When a step cannot be compared.
    pub async fn survey(&self, host: &Host) -> Result<Summary> {
        let plans = [self.k3s.replace(), self.k3s.works(), self.vip(), self.k3s.end()];
        let mut run = Run::new(host, Mode::DryRun, steps(&plans));
        for plan in &plans {
            run.part(plan).await?;
        }
        Ok(run.summary())
    }

    /// Makes it so, and waits `timeout` at most until k3s works in its new version. Where it does not, the one before is put back.
    ///
    /// # Errors
    /// Refused when etcd does not bear it or another operation is under way; failed with the cause, and how the host was left.
    pub async fn carry_out(mut self, host: &mut Host, timeout: Duration) -> Result<Summary> {
        host.deadline = Instant::now() + timeout;
        let lease = match self.lease(host).await {
            Ok(lease) => lease,
            // where this server is broken half-way, the API may be away because of that: the repair goes on
            Err(e) if e.kind == node::Kind::Failed && self.k3s.is_under_way() => {
                host.reporter.warn(format!("going on with what was begun, although others cannot be kept away: {}", e.chain()), None);
                None
            }
            Err(e) => return Err(e),
        };
        let mut handed_over = false;
        let done = match self.change(host, lease.as_ref(), &mut handed_over).await {
            Err(Failed::After(e)) if !host.stop.is_cancelled() => Err(self.put_back(host, timeout, e).await),
            other => other.map_err(|(Failed::Before(e) | Failed::After(e))| e),
        };
        if handed_over {
            host.systemd.start(keepalived::paths::UNIT).await?;
        }
        if let Some(lease) = lease {
            lease.end().await;
        }
        done
    }

    async fn lease(&self, host: &Host) -> Result<Option<k3s::Lease>> {
        if self.membership.role == Role::Agent {
            return Ok(None);
        }
        let client = depart::admin(Some(&self.k3s.url)).await?;
        let doing = format!("upgrading {} to k3s {}", host.facts.hostname, self.k3s.version);
        depart::take(host, &client, &doing).await.map(Some)
    }

    async fn change(&mut self, host: &Host, lease: Option<&k3s::Lease>, handed_over: &mut bool) -> Result<Summary, Failed> {
        self.ready(host, lease, handed_over).await.map_err(Failed::Before)?;
        let plans = [self.k3s.replace(), self.k3s.works(), self.vip(), self.k3s.end()];
        let mut run = Run::new(host, Mode::Apply, steps(&plans));
        let work = async {
            for plan in &plans {
                run.part(plan).await?;
            }
            Ok(run.summary())
        };
        self.unless_it_keeps_ending(host, work).await.map_err(Failed::After)
    }

    /// All that can be done, and go wrong, before anything is replaced.
    async fn ready(&mut self, host: &Host, lease: Option<&k3s::Lease>, handed_over: &mut bool) -> Result<()> {
        // the cluster may have changed while this host waited for its turn
        self.k3s.may(host, false).await?;
        host.waiting("k3s binary", format!("k3s {}", self.k3s.version));
        self.k3s.fetch(host).await?;
        if self.membership.role == Role::Server && self.k3s.restarts(host).await? {
            k3s::may_stop_here(host, self.membership.node_ip).await?;
            if let Some(lease) = lease {
                lease.still_ours().await?;
            }
            let others = k3s::members().await.is_ok_and(|m| m.iter().filter(|m| !m.learner && m.is_healthy()).count() > 1);
            if others && Facts::gather().await?.has(self.membership.vip.addr()) {
                *handed_over = true;
                let given = tokio::time::timeout(HAND_OVER, depart::hand_over(host, &self.membership)).await;
                given.unwrap_or_else(|_| {
                    Err(Error::failed("no other server has taken the VIP within 15 s, so this one keeps it")
                        .hint("see why with smartup doctor on the other servers: keepalived, or their API"))
                })?;
            }
        }
        Ok(())
    }

    /// What went wrong, and how the host was left.
    async fn put_back(&self, host: &mut Host, timeout: Duration, why: Error) -> Error {
        if !self.k3s.is_under_way() {
            return why;
        }
        host.deadline = Instant::now() + timeout;
        // what was begun is not left half-way, whoever goes away
        host.stop = CancellationToken::new();
        let plan = self.k3s.back().await;
        let mut run = Run::new(host, Mode::Apply, plan.0.len());
        let back = self.unless_it_keeps_ending(host, run.part(&plan)).await;
        let what = match back {
            Ok(()) => format!("{}\n  the k3s before it was put back, and works", why.chain()),
            Err(e) => format!("{}\n  the k3s before it was put back, and does not work either: {}", why.chain(), e.chain()),
        };
        let mut error = Error::failed(what);
        (error.kind, error.hint) = (why.kind, why.hint);
        error
    }

    async fn unless_it_keeps_ending<T>(&self, host: &Host, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            ended = self.k3s.keeps_ending(host) => Err(ended?),
        }
    }

    /// keepalived runs again, also where a run was killed after it had given the VIP away.
    fn vip(&self) -> Plan {
        let mut plan = Plan::default();
        if self.membership.role == Role::Server {
            plan.push(UnitStep { unit: keepalived::paths::UNIT.into(), on_change: OnChange::Reload, wait: true });
        }
        plan
    }
}

fn steps(plans: &[Plan]) -> usize {
    plans.iter().map(|p| p.0.len()).sum()
}

//! What carries an order out: the same program as the agent, but on the host itself, in a unit of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use node::{Context as _, Error, Kind, Result, Systemd, run};
use packages::{Manager, OnHost, ReadyKernel, Resolved, Sentinel, needs_reboot};
use updates::api::{Command, HostRules, RebootNeed};
use updates::{Bans, PackageName, PatchName};

use super::order::{End, Found, Items, Journal, Looked, Order, Seat, Work, Yield, need, short, up};
use super::shelf::Shelf;

/// How often it looks whether there is progress.
const SIGN: Duration = Duration::from_secs(5);
/// A gate command may take so long.
const GATE: Duration = Duration::from_secs(300);
/// Whether a reboot is needed is asked at the end of an installation, too, which has not ended until then.
const NEED: Duration = Duration::from_secs(60);
/// Within this time systemd takes processes out of our unit.
const TAKEN_OUT: Duration = Duration::from_secs(5);
/// dpkg reads its database only.
const AUDIT: Duration = Duration::from_secs(60);
/// A reboot command may take so long; systemd would have ended us by then.
const REBOOT: Duration = Duration::from_secs(600);

/// Carries out what the agent on this host has ordered, and writes down how it ended.
///
/// # Errors
/// When there is no order, it was begun before, or nothing can be written down. What the order itself leads to is no error here.
pub async fn work(seat: Seat) -> Result<()> {
    let shelf = Shelf::below(Path::new("/"));
    shelf.make()?;
    let order = shelf.order(seat)?.ok_or_else(|| Error::failed("nothing was ordered"))?;
    if shelf.journal(seat)?.is_some_and(|j| j.order == order.at) {
        return Err(Error::refused("what was ordered was begun before"));
    }
    let worker = Worker { host: OnHost::here(), shelf: shelf.clone(), seat, at: order.at };
    let ended = tokio::select! {
        ended = worker.carry_out(&order) => ended,
        never = worker.signs() => match never {},
    };
    let begun = shelf.journal(seat)?.filter(|j| j.order == order.at);
    let installs = matches!(order.work, Work::Install { .. });
    let end = match ended {
        Ok(found) => End::Done(found),
        Err(e) => {
            tracing::error!("{}", e.chain());
            let why = short(&e.chain());
            if installs && (begun.is_none() || e.kind == Kind::Refused) { End::Refused(why) } else { End::Failed(why) }
        }
    };
    if installs && !matches!(end, End::Refused(_)) && shuts_down().await {
        // who asked for that was most likely what was installed: it did not come to an end in this boot
        return Err(Error::failed("the host is shutting down"));
    }
    let journal = |transaction| Journal { order: order.at, transaction, end: Some(end) };
    match begun {
        Some(begun) => shelf.note_end(seat, &journal(begun.transaction))?,
        None => shelf.note(seat, &journal(None))?,
    }
    if matches!(order.work, Work::Install { .. } | Work::Recover { .. } | Work::Reboot { .. })
        && let Err(e) = keep_daemons().await
    {
        tracing::warn!("what packages have started ends now: {}", e.chain());
    }
    Ok(())
}

/// Daemons that scripts of packages have started, other than by systemd, outlive this unit.
async fn keep_daemons() -> Result<()> {
    let (own, began) = (std::process::id(), Instant::now());
    let scope = format!("smartup-left-{own}.scope");
    let mut moved = Ok(());
    loop {
        let all = beside(own)?;
        if all.is_empty() {
            return Ok(());
        }
        if began.elapsed() > TAKEN_OUT {
            return moved;
        }
        // again, where one of them has ended meanwhile; once there is the scope, that is refused
        tracing::info!(scope, "what packages have started goes on: {all:?}");
        moved = Systemd::connect().await?.into_scope(&scope, "started by packages that smartup installed", &all).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The other processes in a process's control groups.
fn beside(own: u32) -> Result<Vec<u32>> {
    let groups = |id: u32| fs::read(format!("/proc/{id}/cgroup"));
    let ours = groups(own).context("cannot read our control group")?;
    let ids = fs::read_dir("/proc").context("cannot list processes")?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    Ok(ids.filter(|id| *id != own && groups(*id).is_ok_and(|theirs| theirs == ours)).collect())
}

/// A bus that cannot be asked is no sign: what was installed may just have started it anew.
async fn shuts_down() -> bool {
    match Systemd::connect().await {
        Ok(systemd) => systemd.is_stopping().await.unwrap_or(false),
        Err(_) => false,
    }
}

struct Worker {
    host: OnHost,
    shelf: Shelf,
    seat: Seat,
    at: Timestamp,
}

impl Worker {
    /// Writes down that the order begins.
    fn begins(&self, transaction: Option<packages::Transaction>) -> Result<()> {
        self.shelf.note(self.seat, &Journal { order: self.at, transaction, end: None })
    }

    /// Says that there is progress whenever there is.
    async fn signs(&self) -> std::convert::Infallible {
        let mut before = self.host.mark();
        loop {
            let mark = self.host.mark();
            if mark.is_beyond(&before)
                && let Err(e) = self.shelf.give_sign(self.seat, up())
            {
                tracing::warn!("{}", e.chain());
            }
            before = mark;
            tokio::time::sleep(SIGN).await;
        }
    }

    async fn carry_out(&self, order: &Order) -> Result<Yield> {
        match &order.work {
            Work::Look { listing, rules } => {
                self.begins(None)?;
                Ok(Yield::Looked(self.look(*listing, rules).await))
            }
            Work::Gate { command } => {
                self.begins(None)?;
                self.command(command, GATE).await
            }
            Work::Download { packages } => {
                self.begins(None)?;
                self.download(packages).await
            }
            Work::Install { items: Items::Patches(patches), rules } => self.install_patches(patches, rules).await,
            Work::Install { items: Items::Packages(packages), rules } => self.install_packages(packages, rules).await,
            Work::Recover { interrupted } => {
                self.begins(interrupted.clone())?;
                Manager::detect(&self.host)?.recover(&self.host, interrupted.as_ref()).await?;
                Ok(Yield::Nothing {})
            }
            Work::Reboot { command } => {
                self.begins(None)?;
                rustix::fs::sync();
                match command {
                    Some(command) => self.command(command, REBOOT).await,
                    None => Systemd::connect().await?.reboot().await.map(|()| Yield::Nothing {}),
                }
            }
        }
    }

    async fn command(&self, command: &Command, limit: Duration) -> Result<Yield> {
        let Some((program, args)) = command.words().split_first() else { return Ok(Yield::Nothing {}) };
        let out = run(program, args, limit).await?;
        if out.success() {
            return Ok(Yield::Nothing {});
        }
        let how = out.code.map_or_else(|| "was killed".to_owned(), |code| format!("ended with {code}"));
        Err(Error::failed(format!("{program} {how}: {}", out.tail(3))))
    }

    async fn look(&self, listing: bool, rules: &HostRules) -> Looked {
        let (packages, patches) = if listing {
            let packages = match Manager::detect(&self.host) {
                Ok(manager) => Some(self.available(manager).await.map_err(|e| short(&e.chain()))),
                Err(_) => None,
            };
            let patches = match ReadyKernel::detect(&self.host) {
                Some(live) => Some(live.available(&self.host).await.map_err(|e| short(&e.chain()))),
                None => None,
            };
            (packages, patches)
        } else {
            (None, None)
        };
        Looked { packages, patches, reboot: self.reboot(rules).await }
    }

    /// The upgrades, and what would come along anew.
    async fn available(&self, manager: Manager) -> Result<Vec<Found>> {
        let upgrades = manager.available(&self.host).await?;
        let names: BTreeSet<_> = upgrades.iter().map(|u| u.package.clone()).collect();
        let all = manager.resolve(&self.host, &names, &Bans::default()).await?;
        let anew: Vec<_> = all.transaction.packages().filter(|p| !names.contains(p)).map(|p| (p.clone(), None)).collect();
        Ok(upgrades.into_iter().map(|u| (u.package, u.published)).chain(anew).collect())
    }

    async fn reboot(&self, rules: &HostRules) -> RebootNeed {
        let command = rules.sentinel_command.as_ref().map(|c| Sentinel::Command(c.words().to_vec()));
        let file = || rules.sentinel_file.as_ref().map(|f| Sentinel::File(f.as_str().into()));
        let sentinel = command.or_else(file);
        let manager = Manager::detect(&self.host).ok();
        need(match tokio::time::timeout(NEED, needs_reboot(&self.host, manager, sentinel.as_ref())).await {
            Ok(Ok(reboot)) => reboot,
            Ok(Err(e)) => packages::Reboot::Unknown(e.chain()),
            Err(_) => packages::Reboot::Unknown(format!("it could not be found out within {} s", NEED.as_secs())),
        })
    }

    async fn download(&self, wanted: &BTreeSet<PackageName>) -> Result<Yield> {
        if wanted.is_empty() {
            return Ok(Yield::Downloaded { left_out: Vec::new(), drain_first: false });
        }
        let manager = Manager::detect(&self.host)?;
        self.in_order(manager, wanted).await?;
        let there = manager.installed(&self.host).await?;
        let resolved = self.resolve(manager, wanted, &there).await?;
        if !resolved.transaction.is_empty() {
            manager.download(&self.host, &resolved.transaction).await?;
        }
        let installs: BTreeSet<_> = resolved.transaction.packages().collect();
        let left_out = left_out(wanted, &installs, &there);
        Ok(Yield::Downloaded { left_out, drain_first: !resolved.transaction.impact().is_empty() })
    }

    /// That no other package is half installed: apt would set it up again together with these, and what it did then would be laid to
    /// their account.
    async fn in_order(&self, manager: Manager, wanted: &BTreeSet<PackageName>) -> Result<()> {
        if manager != Manager::Apt {
            return manager.recover(&self.host, None).await;
        }
        let out = run("dpkg", &["--audit"], AUDIT).await?;
        let wanted: BTreeSet<_> = wanted.iter().map(PackageName::name).collect();
        let half: Vec<_> = half_installed(&out.stdout).filter(|name| !wanted.contains(name)).collect();
        if half.is_empty() {
            return Ok(());
        }
        Err(Error::refused(format!("packages are half installed, and have to be mended by hand: {}", half.join(", ")))
            .hint("see dpkg --audit; dpkg --configure -a; apt-get -f install"))
    }

    /// The transaction of as much of `allowed` as needs nothing else, where `there` is installed; with Arch, of all that is available,
    /// or nothing.
    async fn resolve(&self, manager: Manager, allowed: &BTreeSet<PackageName>, there: &BTreeSet<PackageName>) -> Result<Resolved> {
        let left = manager.left_behind(&self.host, allowed).await?;
        if !left.is_empty() {
            tracing::warn!("all is left out: an upgrade without these would be a partial one: {}", left.join(", "));
            return Ok(Resolved::default());
        }
        let names: BTreeSet<_> = there.iter().map(PackageName::name).collect();
        // what is new comes along with what needs it
        let wanted = allowed.iter().filter(|p| names.contains(p.name()) && !there.contains(p)).cloned().collect();
        let mut others: BTreeSet<PackageName> = BTreeSet::new();
        loop {
            let resolved = manager.resolve(&self.host, &wanted, &others.iter().collect()).await?;
            let more: Vec<_> = resolved.transaction.packages().filter(|p| !allowed.contains(p)).cloned().collect();
            if more.is_empty() {
                for left in &resolved.excluded {
                    tracing::warn!(package = %left.package, "left out: {}", left.why);
                }
                let partial = manager == Manager::Pacman && !resolved.excluded.is_empty();
                return Ok(if partial { Resolved::default() } else { resolved });
            }
            others.extend(more);
        }
    }

    async fn install_packages(&self, allowed: &BTreeSet<PackageName>, rules: &HostRules) -> Result<Yield> {
        let manager = Manager::detect(&self.host)?;
        let there = manager.installed(&self.host).await?;
        let transaction = self.resolve(manager, allowed, &there).await?.transaction;
        self.begins(Some(transaction.clone()))?;
        if let Err(e) = manager.install(&self.host, &transaction).await {
            if e.kind != Kind::Refused
                && let Err(also) = manager.recover(&self.host, Some(&transaction)).await
            {
                tracing::error!("{}", also.chain());
            }
            return Err(e);
        }
        Ok(Yield::Installed { reboot: self.reboot(rules).await })
    }

    async fn install_patches(&self, patches: &BTreeSet<PatchName>, rules: &HostRules) -> Result<Yield> {
        let live = ReadyKernel::detect(&self.host).ok_or_else(|| Error::failed("nothing on this host installs live patches"))?;
        self.begins(None)?;
        // each holds all before it
        if let Some(newest) = patches.last() {
            live.install(&self.host, *newest).await?;
        }
        Ok(Yield::Installed { reboot: self.reboot(rules).await })
    }
}

/// What is not on the host when `installs` are. What is `there` already was asked for by a list that is older than its installation.
fn left_out(wanted: &BTreeSet<PackageName>, installs: &BTreeSet<&PackageName>, there: &BTreeSet<PackageName>) -> Vec<PackageName> {
    wanted.iter().filter(|p| !installs.contains(p) && !there.contains(p)).cloned().collect()
}

/// What `dpkg --audit` names: a line for each, which begins with a space and the name.
fn half_installed(audit: &str) -> impl Iterator<Item = &str> {
    let lines = audit.lines().filter(|line| line.starts_with(' '));
    lines.filter_map(|line| line.split_whitespace().next()?.split(':').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_already_is_not_left_out() {
        let set = |names: &[&str]| names.iter().map(|n| n.parse().unwrap()).collect::<BTreeSet<PackageName>>();
        let (wanted, installs, there) = (set(&["bash=5", "vim=9", "zsh=6"]), set(&["bash=5"]), set(&["vim=9", "zsh=5"]));
        assert_eq!(left_out(&wanted, &installs.iter().collect(), &there), ["zsh=6".parse().unwrap()]);
    }

    #[test]
    fn what_dpkg_names() {
        let audit = "The following packages are only half configured, probably due to problems\nconfiguring them the first time.  The \
                     configuration should be retried using\ndpkg --configure <package> or the configure menu option in dselect:\n bad\n \
                     libc6:i386           GNU C Library\n\n";
        assert_eq!(half_installed(audit).collect::<Vec<_>>(), ["bad", "libc6"]);
        assert_eq!(half_installed("").count(), 0);
    }
}

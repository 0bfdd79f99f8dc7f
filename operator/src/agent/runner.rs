//! The host, as the agent reaches it from its pod: its files below the root of its first process, and its systemd.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::SignedDuration;
use node::{Context as _, Kind, Result, Systemd, same_content};
use updates::{BootId, ServiceName, TransactionId};

use super::decide::{Held, Stand, Unit};
use super::floating::Vrrp;
use super::order::{Journal, Order, Seat};
use super::services::Service;
use super::shelf::{Before, Shelf};

/// The host's first process, as a pod with `hostPID` sees it.
const FIRST: &str = "/proc/1";

/// What a seat holds.
#[derive(Debug)]
pub(super) struct Kept {
    order: Option<Order>,
    journal: Option<Journal>,
    unit: Unit,
    sign: Option<SignedDuration>,
    damaged: bool,
}

impl Kept {
    pub(super) fn held(&self) -> Held<'_> {
        let (order, journal) = (self.order.as_ref(), self.journal.as_ref());
        Held { order, journal, unit: self.unit, sign: self.sign, damaged: self.damaged }
    }
}

/// What may be done to the host.
pub(super) struct Runner {
    pub shelf: Shelf,
    systemd: Systemd,
}

impl Runner {
    /// Reaches the host.
    ///
    /// # Errors
    /// When its system bus cannot be reached.
    pub(super) async fn reach() -> Result<Self> {
        Ok(Self { shelf: Shelf::below(&Self::root()), systemd: Systemd::of(&Self::root()).await? })
    }

    /// The host's root.
    pub(super) fn root() -> PathBuf {
        Path::new(FIRST).join("root")
    }

    /// The network of the host.
    pub(super) fn net() -> PathBuf {
        Path::new(FIRST).join("net")
    }

    /// The host's boot. A pod's own /proc may show another one.
    ///
    /// # Errors
    /// When the host does not say it.
    pub(super) fn boot() -> Result<BootId> {
        let path = Self::root().join("proc/sys/kernel/random/boot_id");
        let text = fs::read_to_string(&path).context(format!("cannot read {}", path.display()))?;
        text.trim().parse().context("the host's boot id is not understood")
    }

    /// What an agent does before it ends for good: the host takes part in the floating address again, and nothing is kept of what
    /// was ordered. What changes the host by now goes on, and is kept.
    ///
    /// # Errors
    /// When systemd refuses, or the folder cannot be removed.
    pub(super) async fn leave(&self) -> Result<()> {
        if self.shelf.away() {
            self.take_back().await?;
        }
        for (seat, active) in Seat::ALL.into_iter().zip(self.systemd.active(&Seat::ALL.map(Seat::unit)).await?) {
            match seat {
                _ if unit(Some(&active)) != Unit::Runs => {}
                Seat::Look => self.stop(seat).await?,
                Seat::Update => {
                    tracing::warn!("what was ordered goes on: {}", seat.unit());
                    return Ok(());
                }
            }
        }
        self.shelf.clear()
    }

    /// Both seats, and how these services are.
    ///
    /// # Errors
    /// When systemd does not answer, or what is written down cannot be read. That it cannot be understood is no error.
    pub(super) async fn look(&self, critical: &[ServiceName]) -> Result<([Kept; 2], Vec<Service>)> {
        let seats = Seat::ALL.map(Seat::unit);
        let names: Vec<&str> = seats.into_iter().chain(critical.iter().map(ServiceName::as_str)).collect();
        let mut active = self.systemd.active(&names).await?.into_iter();
        // the units come first: what has ended since then has written its journal
        let units = [active.next(), active.next()];
        let [update, look] = units.map(|active| unit(active.as_deref()));
        let kept = |seat, unit| -> Result<Kept> {
            let (order, journal) = (understood(self.shelf.order(seat))?, understood(self.shelf.journal(seat))?);
            let (order, journal, damaged) = match (order, journal) {
                (Some(order), Some(journal)) => (order, journal, false),
                _ => (None, None, true),
            };
            Ok(Kept { order, journal, unit, sign: self.shelf.sign(seat), damaged })
        };
        let (mut update, look) = (kept(Seat::Update, update)?, kept(Seat::Look, look)?);
        let died = matches!(update.held().stand(), Some((_, Stand::Died)));
        if died && self.systemd.is_stopping().await? {
            // the host goes down, and takes all with it: the next boot tells what became of it
            update.unit = Unit::Runs;
        }
        Ok(([update, look], critical.iter().cloned().zip(active).map(|(name, active)| Service { name, active }).collect()))
    }

    /// Writes an order down, then starts what carries it out.
    ///
    /// # Errors
    /// When it is not on the disk, or systemd refuses; then it has not begun.
    pub(super) async fn give(&self, seat: Seat, order: Order) -> Result<()> {
        // what failed before must not be taken for what is ordered now
        self.systemd.forget_failure(seat.unit()).await?;
        self.shelf.make()?;
        let (seen, there) = self.shelf.program();
        let own = std::env::current_exe().context("cannot tell where smartup itself is")?;
        if !same_content(&own, &seen)? {
            let copied = node::replace(&seen, 0o700, |file| std::io::copy(&mut fs::File::open(&own)?, file).map(drop));
            copied.context(format!("cannot put smartup on the host as {}", there.display()))?;
        }
        self.shelf.give(seat, &order)?;
        let there = there.display().to_string();
        // not by itself: SELinux lets systemd start programs of the system's folders only
        let words = ["/usr/bin/env", &there, "--verbose", "operator", "work", seat.as_str()];
        let description = match seat {
            Seat::Update => "smartup updates this host",
            Seat::Look => "smartup looks for updates",
        };
        self.systemd.run_alone(seat.unit(), description, &words).await
    }

    /// Ends what a seat does, with all its processes.
    ///
    /// # Errors
    /// When systemd refuses, or it still runs after 100 s.
    pub(super) async fn stop(&self, seat: Seat) -> Result<()> {
        self.systemd.stop(seat.unit()).await
    }

    /// Writes down which services run. One that does not, since it gave the floating address away, counts as running.
    ///
    /// # Errors
    /// When it is not on the disk then.
    pub(super) fn note_services(&self, transaction: &TransactionId, services: &[Service]) -> Result<()> {
        let away = self.shelf.away();
        let runs = |s: &&Service| s.runs() || (away && s.name.as_str() == keepalived::paths::UNIT);
        let services = services.iter().filter(runs).map(|s| s.name.clone()).collect();
        self.shelf.note_services(&Before { transaction: transaction.clone(), services })
    }

    /// Stops keepalived: the address goes to another server that is healthy.
    ///
    /// # Errors
    /// When systemd refuses.
    pub(super) async fn let_go(&self) -> Result<()> {
        self.shelf.set_away(true)?;
        self.systemd.stop(keepalived::paths::UNIT).await
    }

    /// Starts keepalived again.
    ///
    /// # Errors
    /// When systemd refuses.
    pub(super) async fn take_back(&self) -> Result<()> {
        self.systemd.start(keepalived::paths::UNIT).await?;
        self.shelf.set_away(false)
    }

    /// The floating address; None where smartup made the host no server.
    ///
    /// # Errors
    /// When what is written down cannot be read.
    pub(super) fn vrrp() -> Result<Option<Vrrp>> {
        Vrrp::of(&Self::root())
    }
}

/// None: it cannot be understood.
fn understood<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(e) if e.kind == Kind::Invalid => Ok(None),
        other => other.map(Some),
    }
}

/// What systemd's word for it says about a seat's unit.
fn unit(active: Option<&str>) -> Unit {
    match active {
        None | Some("inactive") => Unit::Gone,
        Some("failed") => Unit::Failed,
        Some(_) => Unit::Runs,
    }
}

/// Virtuozzo Storage's services that are enabled: they are in some `.wants` folder of systemd's (systemd.unit(5)).
pub(super) fn storage_services(root: &Path) -> Vec<String> {
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let wants = list(&root.join("etc/systemd/system")).filter(|e| e.path().extension().is_some_and(|x| x == "wants"));
    let names = wants.flat_map(|e| list(&e.path()).collect::<Vec<_>>()).filter_map(|e| e.file_name().into_string().ok());
    let found: BTreeSet<String> = names.filter(|n| n.starts_with("vstorage") && n.ends_with(".service")).collect();
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_storage_services_that_are_enabled() {
        let root = tempfile::tempdir().unwrap();
        let units = root.path().join("etc/systemd/system");
        for (folder, unit) in [
            ("multi-user.target.wants", "vstorage-mdsd.service"),
            ("multi-user.target.wants", "sshd.service"),
            ("a.target.wants", "vstorage-csd.c.1025.service"),
            ("b.target.wants", "vstorage-mdsd.service"),
            ("vstorage-x.service.d", "vstorage-no.service"),
        ] {
            fs::create_dir_all(units.join(folder)).unwrap();
            fs::write(units.join(folder).join(unit), "").unwrap();
        }
        assert_eq!(storage_services(root.path()), ["vstorage-csd.c.1025.service", "vstorage-mdsd.service"]);
    }
}

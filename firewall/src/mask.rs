//! Keeps a freshly installed firewalld from starting before ssh is let in.
//!
//! Some packages start firewalld as they are installed (Debian's), all of them at the next boot at the latest, with nothing
//! but ssh's own port let in. Where sshd listens elsewhere, that locks the user out, for good if smartup is killed in
//! between. So the unit is masked until the permanent configuration lets ssh in; and not only for this boot, since the
//! power may fail.

use node::{Context as _, Error, Host, Result, Undone};
use zbus::proxy;

use crate::firewalld::UNIT;
use crate::undo::Did;

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn mask_unit_files(&self, files: &[&str], runtime: bool, force: bool) -> zbus::Result<Vec<(String, String, String)>>;
    fn unmask_unit_files(&self, files: &[&str], runtime: bool) -> zbus::Result<Vec<(String, String, String)>>;
}

async fn manager(host: &Host) -> Result<ManagerProxy<'_>> {
    ManagerProxy::new(host.systemd.bus()).await.context("cannot reach systemd over D-Bus")
}

/// Masks the unit, written to the journal first.
pub(crate) async fn mask(host: &Host) -> Result<()> {
    host.journal.record(Did::Mask.undo()?)?;
    manager(host).await?.mask_unit_files(&[UNIT], false, false).await.context(format!("cannot mask {UNIT}"))?;
    host.systemd.daemon_reload().await
}

/// Unmasks the unit.
pub(crate) async fn unmask(host: &Host) -> Result<()> {
    manager(host).await?.unmask_unit_files(&[UNIT], false).await.context(format!("cannot unmask {UNIT}"))?;
    host.systemd.daemon_reload().await
}

/// Whether it was masked by us: what an administrator masked is left alone.
pub(crate) fn is_ours(host: &Host) -> bool {
    host.journal.entries().iter().any(|e| Did::of(&e.undo) == Some(Did::Mask))
}

/// Unmasks the unit again. It was masked only where there was no firewalld, so it must not start at boot either.
pub(crate) async fn undo(host: &Host) -> Result<Undone> {
    let what = format!("{UNIT} unmasked");
    if host.systemd.unit(UNIT).await?.load != "masked" {
        return Ok(Undone::gone(what));
    }
    // the links first: it must at no time be able to start with nothing but its own defaults
    host.systemd.disable(UNIT).await.map_err(|e| Error::failed(format!("cannot disable {UNIT} before it is unmasked")).because(e))?;
    unmask(host).await?;
    Ok(Undone::back(what))
}

//! Keeps a freshly installed firewalld from starting before ssh is let in.
//!
//! Some packages start firewalld as they are installed (Debian's), all of them at the next boot at the latest, with nothing
//! but ssh's own port let in. Where sshd listens elsewhere, that locks the user out, for good if smartup is killed in
//! between. So the unit is masked until the permanent configuration lets ssh in; and not only for this boot, since the
//! power may fail.

use node::{Error, Host, Result, Undone};

use crate::firewalld::UNIT;
use crate::undo::Did;

/// Masks the unit, written to the journal first.
pub(crate) async fn mask(host: &Host) -> Result<()> {
    host.journal.record(Did::Mask.undo()?)?;
    host.systemd.mask(UNIT).await
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
    host.systemd.unmask(UNIT).await?;
    Ok(Undone::back(what))
}

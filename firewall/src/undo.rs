use node::{Context as _, Host, Result, Undo, Undone};
use serde::{Deserialize, Serialize};

use crate::firewalld::{Do, Firewalld, In, UNIT};
use crate::zone_file::ZoneFiles;
use crate::{Rule, mask, offline, zone_file};

/// The name under which this crate's entries are in the journal ([`Undo::Other`]).
pub const BY: &str = "firewall";

/// What was done, and so is to be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "snake_case")]
pub(crate) enum Did {
    /// A rule was added to a zone.
    Add {
        zone: String,
        rule: Rule,
        /// Where it was missing.
        runtime: bool,
        permanent: bool,
    },
    /// The unit was masked until ssh is let in.
    Mask,
    /// A zone's files are about to be written by firewalld.
    Zone(ZoneFiles),
}

impl Did {
    pub fn undo(&self) -> Result<Undo> {
        let data = serde_json::to_value(self).context("cannot write down a change of the firewall")?;
        Ok(Undo::Other { by: BY.to_owned(), data })
    }

    /// This crate's own among the journal's entries.
    pub fn of(undo: &Undo) -> Option<Self> {
        match undo {
            Undo::Other { by, data } if by == BY => Self::deserialize(data).ok(),
            _ => None,
        }
    }
}

/// Takes back one entry of the journal: a rule out of the configuration that it was added to, and no other.
///
/// # Errors
/// When the entry is not this crate's, or firewalld does not do it.
pub async fn undo(host: &Host, data: &serde_json::Value) -> Result<Undone> {
    let did = Did::deserialize(data).context("the journal holds a change of the firewall that this version does not know")?;
    match did {
        Did::Add { zone, rule, runtime, permanent } => {
            let what = format!("firewall: {rule} in zone {zone}");
            let gone = if host.systemd.unit(UNIT).await?.active == "active" {
                let firewalld = Firewalld::connect(host).await?;
                let now = runtime && firewalld.change(Do::Remove, &rule, &zone, In::Runtime).await?;
                let later = permanent && firewalld.change(Do::Remove, &rule, &zone, In::Permanent).await?;
                now || later
            } else if permanent && offline::installed() && offline::has(&rule, &zone).await? {
                offline::change(Do::Remove, &rule, &zone).await?;
                true
            } else {
                false
            };
            Ok(if gone { Undone::back(format!("{what} removed")) } else { Undone::gone(what) })
        }
        Did::Mask => mask::undo(host).await,
        Did::Zone(files) => zone_file::undo(&files),
    }
}

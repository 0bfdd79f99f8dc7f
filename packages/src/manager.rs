use std::collections::{BTreeMap, BTreeSet};

use node::{Error, Output, Result};
use serde::{Deserialize, Serialize};
use updates::{Bans, PackageName};

use crate::resolve::{DryRun, Resolved, resolve};
use crate::{OnHost, Transaction, Upgrade, apt, detect, dnf, pacman, rpm, zypper};

/// A host's own package manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Manager {
    /// Debian, Ubuntu.
    Apt,
    /// RHEL 8 and later.
    Dnf4,
    /// Fedora 41 and later.
    Dnf5,
    /// RHEL 7, Virtuozzo 7; it needs yum-utils.
    Yum,
    /// SUSE.
    Zypper,
    /// Arch. It knows only the newest build of each package, and its packages seldom say which versions they need of one another:
    /// there, all that is available belongs together.
    Pacman,
}

impl Manager {
    /// The host's own.
    ///
    /// # Errors
    /// When it has none that is known.
    pub fn detect(host: &OnHost) -> Result<Self> {
        detect::detect(host)
    }

    /// The upgrades that there are, after asking the repositories anew. What the host's own configuration holds back is left out.
    ///
    /// # Errors
    /// When the package manager or a repository fails.
    pub async fn available(self, host: &OnHost) -> Result<Vec<Upgrade>> {
        let mut upgrades = match self {
            Self::Apt => apt::available(host).await,
            Self::Dnf4 | Self::Dnf5 | Self::Yum => dnf::available(self, host).await,
            Self::Zypper => zypper::available(host).await,
            Self::Pacman => pacman::available(host).await,
        }?;
        upgrades.sort_by(|a, b| a.package.cmp(&b.package));
        upgrades.dedup_by(|a, b| a.package == b.package);
        Ok(upgrades)
    }

    /// What there is besides `wanted`, as the repositories were asked last, where all that is available belongs together, as with
    /// Arch: without it the upgrade would be a partial one. Empty with any other.
    ///
    /// # Errors
    /// When the package manager fails.
    pub async fn left_behind(self, host: &OnHost, wanted: &BTreeSet<PackageName>) -> Result<Vec<String>> {
        if self == Self::Pacman { pacman::left_behind(host, wanted).await } else { Ok(Vec::new()) }
    }

    /// The exact transaction for as much of `wanted` as can be installed without anything that `bans` include. Changes nothing, and
    /// asks no repository.
    ///
    /// # Errors
    /// When the package manager fails; what cannot be installed is no error, but excluded.
    pub async fn resolve(self, host: &OnHost, wanted: &BTreeSet<PackageName>, bans: &Bans<'_>) -> Result<Resolved> {
        resolve(wanted, bans, async |some| self.dry_run(host, some).await).await
    }

    async fn dry_run(self, host: &OnHost, wanted: &BTreeSet<PackageName>) -> Result<DryRun> {
        match self {
            Self::Apt => apt::dry_run(host, wanted).await,
            Self::Dnf4 | Self::Dnf5 | Self::Yum => dnf::dry_run(self, host, wanted).await,
            Self::Zypper => zypper::dry_run(host, wanted).await,
            Self::Pacman => pacman::dry_run(host, wanted).await,
        }
    }

    /// Downloads all that a transaction installs, into the package manager's own cache.
    ///
    /// # Errors
    /// When the package manager or a repository fails, or there is no space.
    pub async fn download(self, host: &OnHost, transaction: &Transaction) -> Result<()> {
        let wanted = &transaction.wanted;
        let argv = match self {
            Self::Apt => apt::download(wanted),
            Self::Dnf4 | Self::Dnf5 | Self::Yum => dnf::download(self, wanted),
            Self::Zypper => zypper::download(wanted),
            Self::Pacman => pacman::download(wanted),
        };
        done("download packages", &host.run(&argv).await?)
    }

    /// Installs exactly this transaction, from what was downloaded.
    ///
    /// # Errors
    /// Kind Refused, with nothing changed, when the package manager would do anything else by now, or does not say; Failed when it
    /// fails, when a script of a package does, or when not all of it is installed then.
    pub async fn install(self, host: &OnHost, transaction: &Transaction) -> Result<()> {
        if transaction.is_empty() {
            return Ok(());
        }
        let unclear = |e| Error::refused("it is not known what would be installed").because(e);
        match self.dry_run(host, &transaction.wanted).await.map_err(unclear)? {
            Ok(now) if now == *transaction => {}
            Ok(now) => return Err(Error::refused(difference(transaction, &now)).hint("it has to be decided anew")),
            Err(why) => return Err(Error::refused(format!("the transaction is not possible any more: {why}"))),
        }
        match self {
            Self::Apt => apt::install(host, transaction).await,
            Self::Dnf4 | Self::Dnf5 | Self::Yum => dnf::install(self, host, transaction).await,
            Self::Zypper => zypper::install(host, transaction).await,
            Self::Pacman => pacman::install(host, transaction).await,
        }?;
        let there = self.installed(host).await?;
        let missing: Vec<_> = transaction.packages().filter(|p| !there.contains(p)).map(ToString::to_string).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::failed(format!("the package manager reports success, but these are not installed: {}", missing.join(", "))))
    }

    /// Mends what a package manager that was killed, or a host that crashed, has left behind: locks that nobody holds, packages that
    /// are there twice, not at all, or not configured. Does nothing when all is well, and does not finish the `interrupted`
    /// transaction: what is left of it can be resolved again.
    ///
    /// # Errors
    /// What cannot be mended.
    pub async fn recover(self, host: &OnHost, interrupted: Option<&Transaction>) -> Result<()> {
        match self {
            Self::Apt => apt::recover(host, interrupted).await,
            Self::Dnf4 | Self::Dnf5 | Self::Yum => dnf::recover(self, host, interrupted).await,
            Self::Zypper => zypper::recover(host, interrupted).await,
            Self::Pacman => pacman::recover(host, interrupted).await,
        }
    }

    /// All that is installed, as far as its names can be bans.
    ///
    /// # Errors
    /// When the package manager fails.
    pub async fn installed(self, host: &OnHost) -> Result<BTreeSet<PackageName>> {
        match self {
            Self::Apt => apt::installed(host).await,
            Self::Dnf4 | Self::Dnf5 | Self::Yum | Self::Zypper => rpm::installed(host).await,
            Self::Pacman => pacman::installed(host).await,
        }
    }
}

/// What the last lines of a package manager say counts; its whole output does not fit into an error.
const TAIL: usize = 6;

/// That a command has worked.
pub(crate) fn done(what: &str, out: &Output) -> Result<()> {
    if out.success() { Ok(()) } else { Err(failure(what, out)) }
}

pub(crate) fn failure(what: &str, out: &Output) -> Error {
    let how = out.code.map_or_else(|| "killed by a signal".to_owned(), |code| format!("exit code {code}"));
    Error::failed(format!("could not {what} ({how}): {}", out.tail(TAIL)))
}

/// What a package manager printed, which is not what we know of it.
pub(crate) fn strange(what: &str, line: &str) -> Error {
    Error::failed(format!("{what} is not understood: '{line}'"))
}

/// What is installed, by name.
pub(crate) fn by_name(installed: &BTreeSet<PackageName>) -> BTreeMap<&str, Vec<&PackageName>> {
    let mut names: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for package in installed {
        names.entry(package.name()).or_default().push(package);
    }
    names
}

fn difference(decided: &Transaction, now: &Transaction) -> String {
    let texts = |t: &Transaction| {
        let change = |c: &crate::Change| c.from.as_ref().map_or(format!("install {}", c.to), |from| format!("{from} → {}", c.to));
        let removed = t.removed.iter().map(|r| format!("remove {r}"));
        t.changes.iter().map(change).chain(removed).collect::<BTreeSet<_>>()
    };
    let (was, is) = (texts(decided), texts(now));
    let only = |what: &str, a: &BTreeSet<String>, b: &BTreeSet<String>| {
        let all: Vec<_> = a.difference(b).cloned().collect();
        (!all.is_empty()).then(|| format!("{what} {}", all.join(", ")))
    };
    let parts: Vec<String> = [only("also", &is, &was), only("not", &was, &is)].into_iter().flatten().collect();
    format!("the package manager would not do by now what was decided, but {}", parts.join("; and "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Change;

    #[test]
    fn says_what_is_different() {
        let name = |text: &str| text.parse::<PackageName>().unwrap();
        let mut decided = Transaction { wanted: [name("bash=2-1")].into(), ..Transaction::default() };
        decided.changes.insert(Change { from: Some(name("bash=1-1")), to: name("bash=2-1") });
        let mut now = decided.clone();
        now.changes.insert(Change { from: None, to: name("more=1-1") });
        now.removed.insert(name("less=1-1"));
        insta::assert_snapshot!(difference(&decided, &now), @r"the package manager would not do by now what was decided, but also install more=1-1, remove less=1-1");
    }
}

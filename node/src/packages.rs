use std::time::Duration;

use async_trait::async_trait;

use crate::{Error, Host, Result, State, Step, Undo, run};

/// A host's own package manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Debian, Ubuntu.
    Apt,
    /// RHEL 8 and later, Fedora.
    Dnf,
    /// RHEL 7, Virtuozzo 7.
    Yum,
    /// SUSE.
    Zypper,
    /// Arch.
    Pacman,
}

impl Manager {
    /// The first one that this host has.
    pub fn detect() -> Option<Self> {
        [Self::Apt, Self::Dnf, Self::Yum, Self::Zypper, Self::Pacman].into_iter().find(|m| which::which(m.program()).is_ok())
    }

    /// Its command.
    pub fn program(self) -> &'static str {
        match self {
            Self::Apt => "apt-get",
            Self::Dnf => "dnf",
            Self::Yum => "yum",
            Self::Zypper => "zypper",
            Self::Pacman => "pacman",
        }
    }

    /// The arguments that install a package without asking.
    fn install(self, package: &str) -> Vec<&str> {
        match self {
            // conffiles that someone put there are kept; a running dpkg is waited for
            Self::Apt => {
                let mut args = vec!["-q", "-y", "--no-install-recommends"];
                args.extend([
                    "-o",
                    "Dpkg::Options::=--force-confdef",
                    "-o",
                    "Dpkg::Options::=--force-confold",
                    "-o",
                    "DPkg::Lock::Timeout=120",
                ]);
                args.extend(["install", package]);
                args
            }
            Self::Dnf | Self::Yum => vec!["-y", "install", package],
            Self::Zypper => vec!["--non-interactive", "install", "--no-recommends", package],
            Self::Pacman => vec!["-S", "--noconfirm", "--needed", package],
        }
    }

    fn remove(self, package: &str) -> Vec<&str> {
        match self {
            Self::Apt => vec!["-q", "-y", "purge", package],
            Self::Dnf | Self::Yum => vec!["-y", "remove", package],
            Self::Zypper => vec!["--non-interactive", "remove", package],
            Self::Pacman => vec!["-R", "--noconfirm", package],
        }
    }

    /// Removes a package.
    ///
    /// # Errors
    /// What the package manager says.
    pub(crate) async fn remove_package(self, package: &str) -> Result<()> {
        let out = run(self.program(), &self.remove(package), LIMIT).await?;
        if out.success() { Ok(()) } else { Err(Error::failed(format!("cannot remove the package {package}: {}", out.tail(5)))) }
    }
}

/// A slow mirror over a slow line; a package manager that hangs longer will not come back.
const LIMIT: Duration = Duration::from_secs(900);

/// A package that should be installed; recognised by a program of its, so that a hand-made installation counts.
#[derive(Debug, Clone)]
pub struct PackageStep {
    /// Its name, the same with every manager.
    pub package: &'static str,
    /// A program that it brings.
    pub program: &'static str,
    /// The unit that it brings, which some distributions start at once; reset puts that back too.
    pub unit: Option<&'static str>,
}

#[async_trait(?Send)]
impl Step for PackageStep {
    fn name(&self) -> String {
        format!("package {}", self.package)
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        Ok(if installed(self.program) { State::Right } else { State::differs(format!("install {}", self.package)) })
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let hint = format!("install {} by hand, then run again", self.package);
        let manager = host.facts.manager.ok_or_else(|| {
            Error::failed("no package manager is known on this host (apt-get, dnf, yum, zypper, pacman)").hint(hint.clone())
        })?;
        host.journal.record(Undo::Package { package: self.package.into() })?;
        if let Some(unit) = self.unit {
            host.journal.record(Undo::Unit { unit: unit.into(), enabled: false, active: false })?;
        }
        let install = || async { run(manager.program(), &manager.install(self.package), LIMIT).await };
        let mut out = install().await?;
        if out.stderr.contains("dpkg was interrupted") {
            // a run that was killed in the middle of an installation leaves it half done
            run("dpkg", &["--configure", "-a"], LIMIT).await?;
            out = install().await?;
        }
        if !out.success() && manager == Manager::Apt {
            // apt does not fetch its lists by itself
            let lists = run("apt-get", &["-q", "-o", "DPkg::Lock::Timeout=120", "update"], LIMIT).await?;
            if !lists.success() {
                return Err(Error::failed(format!("apt-get update failed: {}", lists.tail(5))).hint(hint));
            }
            out = install().await?;
        }
        if !out.success() {
            return Err(Error::failed(format!("{} could not install {}: {}", manager.program(), self.package, out.tail(5))).hint(hint));
        }
        Ok(())
    }
}

/// Programs of daemons are in folders that a user's PATH may not have.
pub(crate) fn installed(program: &str) -> bool {
    which::which(program).is_ok()
        || ["/usr/sbin", "/sbin", "/usr/local/sbin"].iter().any(|d| std::path::Path::new(d).join(program).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installs_without_asking() {
        for m in [Manager::Apt, Manager::Dnf, Manager::Yum, Manager::Zypper, Manager::Pacman] {
            let args = m.install("keepalived").join(" ");
            assert!(["-y", "--non-interactive", "--noconfirm"].iter().any(|a| args.contains(a)), "{args}");
            assert!(args.ends_with("keepalived"));
        }
    }
}

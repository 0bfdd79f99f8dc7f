use std::path::{Path, PathBuf};

use cluster::Role;
use node::{Context as _, Host, Result};

use crate::Flags;
use crate::settings::paths;

/// A unit that a package ships: used as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vendor {
    /// Where it is.
    pub path: PathBuf,
    /// The flags on its command line.
    pub flags: Flags,
}

/// The unit that a package ships for a role, if one does. smartup's own is in `/etc/systemd/system`.
pub async fn vendor(host: &Host, role: Role) -> Result<Option<Vendor>> {
    let state = host.systemd.unit(&paths::unit(role)).await?;
    match state.fragment {
        Some(path) if !path.starts_with("/etc/systemd/system") => {
            let text = std::fs::read_to_string(&path).context(format!("cannot read {}", path.display()))?;
            Ok(Some(Vendor { flags: exec_flags(&text), path }))
        }
        _ => Ok(None),
    }
}

/// Whether a unit in `/etc/systemd/system` is somebody else's.
pub fn is_foreign(host: &Host, path: &Path) -> bool {
    path.exists() && !host.journal.wrote(path)
}

/// The program that a role's unit runs; None when there is no unit.
///
/// # Errors
/// When systemd does not answer, or the unit cannot be read.
pub async fn program(host: &Host, role: Role) -> Result<Option<PathBuf>> {
    let Some(path) = host.systemd.unit(&paths::unit(role)).await?.fragment else { return Ok(None) };
    let text = std::fs::read_to_string(&path).context(format!("cannot read {}", path.display()))?;
    Ok(exec_program(&text))
}

/// The program in a unit's `ExecStart`, without the signs that systemd allows before it (systemd.service(5)).
fn exec_program(unit: &str) -> Option<PathBuf> {
    let line = unit.lines().rev().find_map(|l| l.trim().strip_prefix("ExecStart="))?;
    line.trim_start_matches(['-', '@', ':', '+', '!']).split_whitespace().next().map(PathBuf::from)
}

/// The flags in a unit's `ExecStart`, continued lines joined, variables left out.
fn exec_flags(unit: &str) -> Flags {
    let joined = unit.replace("\\\n", " ");
    let line = joined.lines().rev().find_map(|l| l.trim().strip_prefix("ExecStart=")).unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().skip_while(|w| !w.starts_with("--")).filter(|w| !w.starts_with('$')).collect();
    Flags::parse(&words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_units_program() {
        assert_eq!(exec_program("[Service]\nExecStart=-/usr/bin/k3s server \\\n --docker\n"), Some("/usr/bin/k3s".into()));
        assert_eq!(exec_program("[Service]\nType=notify\n"), None);
    }

    #[test]
    fn reads_a_vendors_flags() {
        let unit = "[Service]\nEnvironmentFile=-/etc/k3s/k3s-server.env\nExecStart=/usr/bin/k3s server \\\n  --https-listen-port 9443 --docker \\\n  $K3S_EXTRA_FLAGS\n";
        assert_eq!(exec_flags(unit).to_string(), "--https-listen-port=9443 --docker");
        assert_eq!(exec_flags("[Service]\nExecStart=/usr/local/bin/k3s server $K3S_EXTRA_FLAGS\n").to_string(), "");
    }
}

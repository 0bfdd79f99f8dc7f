use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::files::temporary;
use crate::install::{copy, hash, keeps};
use crate::journal::sha256;
use crate::kernel::sysctl_path;
use crate::{Context as _, FileState, Host, Result, Undo, read_optional, remove_file, run, selinux, write_atomically};

/// How a change was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UndoneHow {
    /// It was taken back.
    Undone,
    /// It had been taken back already, or never happened.
    AlreadyGone,
    /// It was left as it is, for the reason given.
    Kept,
}

/// What became of one change.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Undone {
    /// What was done: `file /etc/keepalived/keepalived.conf removed`.
    pub what: String,
    /// How.
    pub how: UndoneHow,
}

impl Undone {
    /// It was taken back.
    pub fn back(what: impl Into<String>) -> Self {
        Self { what: what.into(), how: UndoneHow::Undone }
    }

    /// There was nothing to take back.
    pub fn gone(what: impl Into<String>) -> Self {
        Self { what: what.into(), how: UndoneHow::AlreadyGone }
    }

    /// It was left.
    pub fn kept(what: impl Into<String>) -> Self {
        Self { what: what.into(), how: UndoneHow::Kept }
    }
}

/// Takes back everything in the journal, newest first, and then forgets it. `other` takes back what belongs to other
/// crates ([`Undo::Other`]). Can be run again after a crash. With `packages`, installed packages are removed as well.
///
/// # Errors
/// When something cannot be taken back; the journal is then still there.
pub async fn undo<F>(host: &Host, packages: bool, mut other: F) -> Result<Vec<Undone>>
where
    F: AsyncFnMut(&Host, &str, &serde_json::Value) -> Result<Undone>,
{
    let mut edited = BTreeSet::new();
    let mut done = Vec::new();
    let entries = host.journal.entries();
    for entry in entries.iter().rev() {
        let one = match &entry.undo {
            Undo::File { path, before, after } => {
                if edited.contains(path) {
                    continue;
                }
                let one = undo_file(host, path, before.as_ref(), after).await?;
                if one.how == UndoneHow::Kept {
                    edited.insert(path.clone());
                }
                one
            }
            Undo::Installed { path, kept, .. } => {
                let ours = |sum: &str| {
                    entries.iter().any(|e| matches!(&e.undo, Undo::Installed { path: p, after, .. } if p == path && after == sum))
                };
                undo_installed(host, path, kept.as_deref(), ours).await?
            }
            Undo::Folder { path } => undo_folder(path)?,
            Undo::Unit { unit, enabled, active } => undo_unit(host, unit, *enabled, *active).await?,
            Undo::Sysctl { key, before } => undo_sysctl(key, before)?,
            Undo::Module { module } => undo_module(module).await?,
            Undo::Package { package } if packages => match host.facts.manager {
                Some(manager) => {
                    manager.remove_package(package).await?;
                    Undone::back(format!("package {package} removed"))
                }
                None => Undone::kept(format!("package {package}: no package manager is known")),
            },
            Undo::Package { package } => Undone::kept(format!("package {package} stays installed (--packages removes it)")),
            Undo::Other { by, data } => other(host, by, data).await?,
        };
        done.push(one);
    }
    host.systemd.daemon_reload().await?;
    remove_file(&Path::new(Host::STATE).join(Host::DOWNLOAD))?;
    for folder in [keeps(""), Path::new(Host::STATE).join(Host::UPDATES)] {
        if folder.exists() {
            fs::remove_dir_all(&folder).context(format!("cannot remove {}", folder.display()))?;
        }
    }
    host.journal.clear()?;
    Ok(done)
}

async fn undo_file(host: &Host, path: &Path, before: Option<&FileState>, after: &str) -> Result<Undone> {
    let shown = path.display();
    remove_file(&temporary(path))?;
    let now = read_optional(path)?;
    if now.as_ref() == before {
        return Ok(Undone::gone(format!("file {shown}")));
    }
    if now.as_ref().is_some_and(|f| sha256(&f.content) != after) {
        return Ok(Undone::kept(format!("file {shown} was edited since and is kept")));
    }
    match before {
        None => {
            remove_file(path)?;
            Ok(Undone::back(format!("file {shown} removed")))
        }
        Some(f) => {
            write_atomically(path, &f.content, f.mode)?;
            chown(path, Some(f.uid), Some(f.gid)).context(format!("cannot give {shown} back to its owner"))?;
            selinux::restore(host.selinux(), path).await?;
            Ok(Undone::back(format!("file {shown} restored")))
        }
    }
}

/// `ours`: whether smartup installed a file with this SHA-256 there.
async fn undo_installed(host: &Host, path: &Path, kept: Option<&Path>, ours: impl Fn(&str) -> bool) -> Result<Undone> {
    let shown = path.display();
    remove_file(&temporary(path))?;
    match hash(path) {
        Ok(now) if ours(&now) => {}
        Ok(_) if kept.is_none_or(|k| !k.exists()) => return Ok(Undone::kept(format!("file {shown} was replaced since and is kept"))),
        Ok(_) => return Ok(Undone::gone(format!("file {shown}"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Undone::gone(format!("file {shown}"))),
        Err(e) => return Err(e).context(format!("cannot read {shown}")),
    }
    let Some(kept) = kept else {
        remove_file(path)?;
        return Ok(Undone::back(format!("file {shown} removed")));
    };
    let mode = fs::metadata(kept).context(format!("cannot read {}", kept.display()))?.permissions().mode();
    copy(kept, path, mode & 0o7777).context(format!("cannot restore {shown}"))?;
    selinux::restore(host.selinux(), path).await?;
    Ok(Undone::back(format!("file {shown} restored")))
}

fn undo_folder(path: &PathBuf) -> Result<Undone> {
    let shown = path.display();
    match fs::remove_dir(path) {
        Ok(()) => Ok(Undone::back(format!("folder {shown} removed"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Undone::gone(format!("folder {shown}"))),
        Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(Undone::kept(format!("folder {shown} is not empty and is kept"))),
        Err(e) => Err(e).context(format!("cannot remove the folder {shown}")),
    }
}

async fn undo_unit(host: &Host, unit: &str, enabled: bool, active: bool) -> Result<Undone> {
    let state = host.systemd.unit(unit).await?;
    if !state.exists() {
        return Ok(Undone::gone(format!("unit {unit}")));
    }
    let mut did = Vec::new();
    if state.enabled() && !enabled && state.file != "static" {
        host.systemd.disable(unit).await?;
        did.push("disabled");
    }
    if state.active != "inactive" && !active {
        host.systemd.stop(unit).await?;
        did.push("stopped");
    }
    Ok(if did.is_empty() { Undone::gone(format!("unit {unit}")) } else { Undone::back(format!("unit {unit} {}", did.join(" and "))) })
}

fn undo_sysctl(key: &str, before: &str) -> Result<Undone> {
    let path = sysctl_path(key);
    // gone with its module, or was not there before it
    if before.is_empty() || !path.exists() {
        return Ok(Undone::gone(format!("setting {key}")));
    }
    fs::write(&path, before).context(format!("cannot set {key} back to {before}"))?;
    Ok(Undone::back(format!("setting {key} back to {before}")))
}

/// A module that somebody else uses by now stays.
async fn undo_module(module: &str) -> Result<Undone> {
    let out = run("modprobe", &["-r", module], Duration::from_secs(30)).await?;
    Ok(if out.success() {
        Undone::back(format!("module {module} unloaded"))
    } else {
        Undone::kept(format!("module {module} stays loaded until the next boot: {}", out.tail(1)))
    })
}

//! The host's own automatic updates, held back while smart updates are there: two updaters on one host would be in each other's way.
//!
//! A drop-in gives their services a condition that never holds (systemd.unit(5), `ConditionPathExists=`): timers go on as they were,
//! and start nothing, also after a boot. Of what the host had, nothing is changed, so that all is exactly as it was when the drop-in
//! is gone. An update that runs already is not interrupted.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use node::{Context as _, Host, Journal, Lock, Result, Systemd, Undo, Undone, remove_file, write_atomically};
use serde::{Deserialize, Serialize};

/// Whose entries in the journal [`undo`] takes back.
pub const BY: &str = "automatic updates";

/// Debian's apt (unattended-upgrades), dnf 4 and 5, Virtuozzo. Services that only look for updates or download them are left alone.
const SERVICES: [&str; 5] = [
    "apt-daily-upgrade.service",
    "dnf-automatic.service",
    "dnf-automatic-install.service",
    "dnf5-automatic.service",
    "vzautoupdate.service",
];
/// Where units are (systemd.unit(5)).
const UNITS: [&str; 4] = ["etc/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
const DROP_IN: &str = "90-smartup.conf";
const TEXT: &str = "# Written by smartup: smart updates install this host's updates. `smartup disable` takes this away again.
[Unit]
ConditionPathExists=!/
";

/// What the journal has of it.
#[derive(Debug, Serialize, Deserialize)]
struct Held {
    service: String,
}

/// The services that the host below `root` has.
fn present(root: &Path) -> impl Iterator<Item = &'static str> {
    // not followed: a link's target is meant from the host's root
    SERVICES.into_iter().filter(move |s| UNITS.iter().any(|folder| root.join(folder).join(s).symlink_metadata().is_ok()))
}

fn folder(root: &Path, service: &str) -> PathBuf {
    root.join(UNITS[0]).join(format!("{service}.d"))
}

/// The hold on a host's updaters, for as long as an agent lives.
pub(crate) struct Hold<'a> {
    root: &'a Path,
    /// Whether systemd has read all drop-ins.
    read: bool,
}

impl<'a> Hold<'a> {
    /// On the host below `root`. What an agent before this one has written, systemd may not have read.
    pub(crate) fn on(root: &'a Path) -> Self {
        Self { root, read: present(root).next().is_none() }
    }

    /// Holds back what is there and is not held yet; answers that.
    ///
    /// # Errors
    /// As [`hold`]; or when systemd does not read its files.
    pub(crate) async fn keep(&mut self) -> Result<Vec<&'static str>> {
        let new = hold(self.root)?;
        self.read &= new.is_empty();
        if !self.read {
            Systemd::of(self.root).await?.daemon_reload().await?;
            self.read = true;
        }
        Ok(new)
    }
}

/// Holds back what is there on the host below `root`; answers what was not held before. systemd must read its files then.
///
/// # Errors
/// Refused while another run of smartup works on the host; failed when something cannot be written.
fn hold(root: &Path) -> Result<Vec<&'static str>> {
    let free: Vec<&str> = present(root).filter(|s| !folder(root, s).join(DROP_IN).exists()).collect();
    if free.is_empty() {
        return Ok(free);
    }
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    let _lock = Lock::take(&inside(Lock::PATH))?;
    let journal = Journal::open(inside(Host::STATE).join("journal.jsonl"))?;
    for service in &free {
        let data = serde_json::to_value(Held { service: (*service).to_owned() }).context("cannot write JSON")?;
        journal.record(Undo::Other { by: BY.into(), data })?;
        let folder = folder(root, service);
        fs::create_dir_all(&folder).context(format!("cannot make the folder {}", folder.display()))?;
        write_atomically(&folder.join(DROP_IN), TEXT.as_bytes(), 0o644)?;
    }
    Ok(free)
}

/// Whether one was held until now.
fn let_go(root: &Path, service: &str) -> Result<bool> {
    let folder = folder(root, service);
    let file = folder.join(DROP_IN);
    let held = file.exists();
    remove_file(&file)?;
    match fs::remove_dir(&folder) {
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(e).context(format!("cannot remove {}", folder.display()))
        }
        _ => Ok(held),
    }
}

/// Lets the host below `root` update itself as it did before; answers what was held until now.
///
/// # Errors
/// When a file cannot be removed, or systemd does not read its files.
pub async fn release(root: &Path) -> Result<Vec<&'static str>> {
    let mut released = Vec::new();
    for service in SERVICES {
        if let_go(root, service)? {
            released.push(service);
        }
    }
    if !released.is_empty() {
        Systemd::of(root).await?.daemon_reload().await?;
    }
    Ok(released)
}

/// Takes back a hold.
///
/// # Errors
/// When its file cannot be removed.
pub fn undo(data: &serde_json::Value) -> Result<Undone> {
    let held: Held = serde_json::from_value(data.clone()).context("the journal has an automatic update that is not understood")?;
    let what = format!("{} held back", held.service);
    // the end of a reset makes systemd read its files
    Ok(if let_go(Path::new("/"), &held.service)? { Undone::back(format!("{what} no more")) } else { Undone::gone(what) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_is_there_and_leaves_nothing_but_the_journal() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for folder in ["run", "etc/systemd/system/vzautoupdate.service.d", "usr/lib/systemd/system"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("usr/lib/systemd/system/apt-daily-upgrade.service"), "").unwrap();
        fs::write(at("etc/systemd/system/vzautoupdate.service.d/mine.conf"), "").unwrap();
        std::os::unix::fs::symlink("/usr/lib/systemd/system/x.service", at("etc/systemd/system/vzautoupdate.service")).unwrap();
        let all = ["apt-daily-upgrade.service", "vzautoupdate.service"];
        assert_eq!(hold(root.path()).unwrap(), all);
        assert!(hold(root.path()).unwrap().is_empty());
        let written = at("etc/systemd/system/apt-daily-upgrade.service.d/90-smartup.conf");
        assert_eq!(fs::read_to_string(&written).unwrap(), TEXT);
        let journal = || Journal::open(at("var/lib/smartup/journal.jsonl")).unwrap().entries();
        assert_eq!(journal().len(), 2);
        assert!(all.iter().all(|s| let_go(root.path(), s).unwrap()));
        assert!(!written.parent().unwrap().exists() && at("etc/systemd/system/vzautoupdate.service.d/mine.conf").exists());
        assert!(!let_go(root.path(), all[0]).unwrap());
        // a second time is the same change
        hold(root.path()).unwrap();
        assert_eq!(journal().len(), 2);
    }

    #[test]
    fn waits_its_turn() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["run", "lib/systemd/system"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join("lib/systemd/system/dnf-automatic.service"), "").unwrap();
        let other = Lock::take(&root.path().join("run/smartup.lock")).unwrap();
        assert_eq!(hold(root.path()).unwrap_err().kind, node::Kind::Refused);
        drop(other);
        assert_eq!(hold(root.path()).unwrap(), ["dnf-automatic.service"]);
    }
}

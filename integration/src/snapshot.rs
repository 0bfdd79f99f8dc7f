//! A host as it is at one moment, to be compared with how it is at another: its files, its units, its firewall.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use sha2::{Digest as _, Sha256};

use crate::disk;
use crate::host::Host;
use crate::random::in_hex;

/// What is left out of [`Host::tree_snapshot`], each with all below it: what the kernel makes up, what lasts no longer than a boot, and
/// what an idle host's own housekeeping writes.
pub const EXCLUDED: [&str; 13] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/tmp",
    "/var/tmp",
    "/var/log",
    "/var/cache",
    "/var/lib/systemd",
    "/var/lib/apt/lists",
    "/var/lib/sudo",
    "/root/.ssh/known_hosts",
    "/etc/.pwd.lock",
];

/// Named parts of a host, each with its state in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, String>);

impl Snapshot {
    /// The state of one part.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All parts, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, state)| (name.as_str(), state.as_str()))
    }

    /// Only the parts that `keep` wants.
    #[must_use]
    pub fn filter(mut self, keep: impl Fn(&str) -> bool) -> Self {
        self.0.retain(|name, _| keep(name));
        self
    }

    /// What is different later.
    pub fn diff(&self, later: &Snapshot) -> Diff {
        let names: BTreeSet<&String> = self.0.keys().chain(later.0.keys()).collect();
        let change = |name: &String| {
            let (before, after) = (self.0.get(name).cloned(), later.0.get(name).cloned());
            (before != after).then(|| Change { name: name.clone(), before, after })
        };
        Diff(names.into_iter().filter_map(change).collect())
    }
}

/// One part that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// A path, a unit, or a zone of the firewall.
    pub name: String,
    /// How it was; `None` if it was not there.
    pub before: Option<String>,
    /// How it is; `None` if it is gone.
    pub after: Option<String>,
}

/// All that is not as it was; as text a line each, with `+`, `-` or `~`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff(Vec<Change>);

impl Diff {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each change.
    pub fn changes(&self) -> &[Change] {
        &self.0
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Change { name, before, after } in &self.0 {
            match (before, after) {
                (None, Some(after)) => writeln!(f, "+ {name}: {after}")?,
                (Some(before), None) => writeln!(f, "- {name}: {before}")?,
                (before, after) => {
                    writeln!(f, "~ {name}: {} -> {}", before.as_deref().unwrap_or(""), after.as_deref().unwrap_or(""))?;
                }
            }
        }
        Ok(())
    }
}

impl Host {
    /// Every path of the host (up or down) but [`EXCLUDED`], with type, mode, owner and content: a link's target, a file's hash. Times are
    /// left out.
    ///
    /// A file that is as in the base that hosts share has `base` in its hash's place.
    pub fn tree_snapshot(&self) -> Result<Snapshot> {
        let (site, plan) = self.disk();
        disk::mount(site, plan)?;
        let walk = Walk { upper: disk::upper(site, self.name()), layers: &plan.layers, found: BTreeMap::new() };
        let found = walk.all(&disk::root(site, self.name()), &disk::DIRECT.map(|name| (name, disk::direct(site, self.name(), name))));
        Ok(Snapshot(found.with_context(|| format!("cannot take a snapshot of {}'s files", self.name()))?))
    }

    /// Every unit of the host's systemd but scopes, slices and devices, with what is enabled, what is active, the main process and how
    /// often it was restarted. Services that only the bus starts, when somebody asks for them (polkit, hostnamed), count as idle:
    /// they come and go without anybody's doing.
    pub fn unit_snapshot(&self) -> Result<Snapshot> {
        let files = self.run(["systemctl", "list-unit-files", "--no-legend", "--no-pager", "--full"])?;
        let properties = "--property=Id,Type,ActiveState,SubState,MainPID,NRestarts";
        let shown = self.run(["systemctl", "show", "--all", "--no-pager", properties, "*"])?;
        Ok(Snapshot(units(&files, &shown)))
    }

    /// firewalld's default zone, zones, policies and direct rules, at run time and permanently; only its `state` when it is not active.
    pub fn firewall_snapshot(&self) -> Result<Snapshot> {
        let state = self.exec(["systemctl", "is-active", "firewalld"])?.stdout.trim().to_owned();
        if state != "active" {
            return Ok(Snapshot(BTreeMap::from([("state".to_owned(), state)])));
        }
        let asked = self.exec_with(["python3", "-"], include_bytes!("firewall.py"))?.checked();
        let text = asked.with_context(|| format!("cannot ask {}'s firewalld", self.name()))?;
        Ok(Snapshot(serde_json::from_str(&text).context("firewalld's answer")?))
    }
}

/// What a unit is that systemd has not loaded.
const IDLE: &str = ", inactive (dead)";

fn units(files: &str, shown: &str) -> BTreeMap<String, String> {
    let passing = |name: &str| {
        let kinds = ["scope", "slice", "device", "mount", "automount", "swap"];
        // Templates' instances and units of a moment come and go with logins.
        name.rsplit_once('.').is_none_or(|(_, kind)| kinds.contains(&kind)) || name.starts_with("user") || name.starts_with("run-")
    };
    let mut units = BTreeMap::new();
    for line in files.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(state)) = (words.next(), words.next())
            && !passing(name)
        {
            units.insert(name.to_owned(), format!("{state}{IDLE}"));
        }
    }
    for block in shown.split("\n\n") {
        let property = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let Some(name) = property("Id").filter(|name| !passing(name)) else { continue };
        // systemd loads and unloads what does nothing as it likes, also what is only referred to.
        let Some(state) = units.get_mut(name) else { continue };
        if state.starts_with("static") && property("Type") == Some("dbus") {
            continue;
        }
        let value = |name: &str| property(name).filter(|value| *value != "0");
        state.truncate(state.len() - IDLE.len());
        state.extend([", ", property("ActiveState").unwrap_or("?"), " (", property("SubState").unwrap_or("?"), ")"]);
        for (label, value) in [("pid", value("MainPID")), ("restarts", value("NRestarts"))] {
            if let Some(value) = value {
                state.extend([", ", label, " ", value]);
            }
        }
    }
    units
}

struct Walk<'a> {
    upper: PathBuf,
    layers: &'a [PathBuf],
    found: BTreeMap<String, String>,
}

impl Walk<'_> {
    fn all(mut self, root: &Path, direct: &[(&str, PathBuf)]) -> Result<BTreeMap<String, String>> {
        self.folder(root, Path::new("/"))?;
        for (name, folder) in direct {
            self.folder(folder, &Path::new("/var/lib").join(name))?;
        }
        Ok(self.found)
    }

    /// Notes all in `folder`, which the host sees at `path`.
    fn folder(&mut self, folder: &Path, path: &Path) -> Result<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot list {}", path.display())),
        };
        for entry in entries {
            let entry = entry?;
            let path = path.join(entry.file_name());
            if EXCLUDED.iter().any(|excluded| path == Path::new(excluded)) {
                continue;
            }
            match self.entry(&entry.path(), &path) {
                Err(error) if error.downcast_ref().is_some_and(gone) => {}
                result => result.with_context(|| format!("cannot read {}", path.display()))?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, file: &Path, path: &Path) -> Result<()> {
        let meta = fs::symlink_metadata(file)?;
        let kind = meta.file_type();
        let state = if kind.is_dir() {
            self.folder(file, path)?;
            "folder".to_owned()
        } else if kind.is_symlink() {
            format!("link to {}", fs::read_link(file)?.display())
        } else if kind.is_file() {
            format!("file {} bytes {}", meta.len(), self.content(file, path, meta.len())?)
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else if kind.is_socket() {
            "socket".to_owned()
        } else {
            format!("device {:x}", meta.rdev())
        };
        let owner = format!("mode {:o} owner {}:{}", meta.mode() & 0o7777, meta.uid(), meta.gid());
        self.found.insert(path.display().to_string(), format!("{state} {owner}"));
        Ok(())
    }

    /// A hash, or `base` if it is as below: only what the host wrote needs to be read.
    fn content(&self, file: &Path, path: &Path, len: u64) -> Result<String> {
        let inside = path.strip_prefix("/")?;
        let below = || self.layers.iter().map(|layer| layer.join(inside)).find(|below| below.symlink_metadata().is_ok());
        let written = self.upper.join(inside).symlink_metadata().is_ok();
        let below = below().filter(|below| below.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == len));
        match below {
            Some(_) if !written => Ok("base".to_owned()),
            Some(below) if hash(&below)? == hash(file)? => Ok("base".to_owned()),
            _ => hash(file),
        }
    }
}

/// A file may go away while the host runs.
fn gone(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}

fn hash(file: &Path) -> Result<String> {
    let mut content = fs::File::open(file)?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 16];
    loop {
        let read = content.read(&mut block)?;
        let read = block.get(..read).ok_or_else(|| anyhow!("read more than there is room for"))?;
        if read.is_empty() {
            return Ok(in_hex(&hash.finalize()));
        }
        hash.update(read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(parts: &[(&str, &str)]) -> Snapshot {
        Snapshot(parts.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect())
    }

    #[test]
    fn a_diff_names_what_came_went_and_changed() {
        let before = snapshot(&[("/a", "1"), ("/b", "1"), ("/c", "1")]);
        let after = snapshot(&[("/b", "2"), ("/c", "1"), ("/d", "1")]);
        assert_eq!(before.diff(&after).to_string(), "- /a: 1\n~ /b: 1 -> 2\n+ /d: 1\n");
        assert!(before.diff(&before).is_empty());
    }

    #[test]
    fn units_have_both_states() {
        let files = "ssh.service enabled enabled\nkeepalived.service disabled enabled\nsession-1.scope transient -\n\
                     polkit.service static -\nsystemd-logind.service static -\n";
        let shown = "Id=ssh.service\nActiveState=active\nSubState=running\nMainPID=7\nNRestarts=0\n\nId=init.scope\nActiveState=active\n\n\
                     Type=dbus\nId=polkit.service\nActiveState=active\nSubState=running\nMainPID=8\n\n\
                     Type=notify\nId=systemd-logind.service\nActiveState=active\nSubState=running\nMainPID=9\n";
        let units = units(files, shown);
        assert_eq!(units["ssh.service"], "enabled, active (running), pid 7");
        assert_eq!(units["keepalived.service"], "disabled, inactive (dead)");
        assert_eq!(units["polkit.service"], "static, inactive (dead)");
        assert_eq!(units["systemd-logind.service"], "static, active (running), pid 9");
        assert_eq!(units.len(), 4);
    }
}

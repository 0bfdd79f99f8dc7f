//! k3s's snapshots of etcd on this server: how one is taken, and which there are.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use cluster::{Port, Role};
use jiff::Timestamp;
use node::{Context as _, Error, Result, run};
use serde::{Deserialize, Serialize};

use crate::settings::paths;
use crate::{EnvFile, Flags, Source};

/// What the name of a snapshot begins with; k3s adds the node and the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

impl FromStr for SnapshotName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        match text.chars().next() {
            Some(first) if first.is_ascii_alphanumeric() && text.chars().all(fine) && text.len() <= 64 => Ok(Self(text.to_owned())),
            _ => Err("may have letters, digits, '.', '_' and '-', begins with a letter or digit, and has 64 characters at most".into()),
        }
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> Self {
        name.0
    }
}

/// A file in the folder of the snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written.
    pub created: Timestamp,
}

impl Snapshot {
    /// The one at a path; None where there is no file.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn at(path: &Path) -> Result<Option<Self>> {
        let what = || format!("cannot look at {}", path.display());
        let meta = match fs::metadata(path) {
            Ok(meta) if meta.is_file() => meta,
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).context(what()),
        };
        let created = Timestamp::try_from(meta.modified().context(what())?).context(what())?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Some(Self { name, path: path.to_owned(), size: meta.len(), created }))
    }

    /// The one that is called so: a name in k3s's folder, or a path.
    ///
    /// # Errors
    /// Invalid when there is none.
    pub fn find(called: &str) -> Result<Self> {
        let path = if called.contains('/') { PathBuf::from(called) } else { folder().join(called) };
        Self::at(&path)?.ok_or_else(|| {
            Error::invalid(format!("there is no snapshot {} on this host", path.display()))
                .hint("smartup snapshot list shows those that are")
        })
    }
}

/// Where this server's k3s keeps its snapshots: `--etcd-snapshot-dir`, or `server/db/snapshots` in its data.
pub fn folder() -> PathBuf {
    let text = fs::read_to_string(paths::env(Role::Server)).unwrap_or_default();
    let flags = EnvFile::parse(&text).get("K3S_EXTRA_FLAGS").map(|f| Flags::parse(&f)).unwrap_or_default();
    flags.value("--etcd-snapshot-dir").map_or_else(|| Path::new(paths::DATA).join("server/db/snapshots"), PathBuf::from)
}

/// The snapshots on this server, the oldest first. Needs no k3s that runs.
///
/// # Errors
/// When the folder cannot be read.
pub fn snapshots() -> Result<Vec<Snapshot>> {
    let folder = folder();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).context(format!("cannot read {}", folder.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.context(format!("cannot read {}", folder.display()))?.path();
        // one that is being written
        if path.extension().is_none_or(|e| e != "part") {
            found.extend(Snapshot::at(&path)?);
        }
    }
    found.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    Ok(found)
}

/// As long as a big database on a slow disk takes.
const LIMIT: Duration = Duration::from_secs(600);

/// Has k3s take a snapshot of this server's etcd.
///
/// # Errors
/// When k3s does not run here, or cannot do it.
pub async fn save(name: &SnapshotName, port: Port) -> Result<Snapshot> {
    let binary = Source::Host.path()?;
    let binary = binary.to_string_lossy();
    let help = run(&binary, &["etcd-snapshot", "save", "--help"], Duration::from_secs(20)).await?;
    let args = arguments(&format!("{}{}", help.stdout, help.stderr), name, port);
    let before = snapshots()?;
    let out = run(&binary, &args, LIMIT).await?;
    if !out.success() {
        return Err(Error::failed(format!("k3s cannot take a snapshot: {}", out.tail(3))).hint("is k3s up here? smartup status"));
    }
    let new = snapshots()?.into_iter().rev().find(|s| !before.contains(s) && s.name.starts_with(name.0.as_str()));
    new.ok_or_else(|| Error::failed(format!("k3s says that it took a snapshot, but there is no new one in {}", folder().display())))
}

/// k3s's words for it. Its help tells which: the oldest releases (1.20) know no `save`, and the newer ones (from 1.28) ask the server
/// itself, which they look for at port 6443.
fn arguments(help: &str, name: &SnapshotName, port: Port) -> Vec<String> {
    let mut args = vec!["etcd-snapshot".to_owned()];
    if !help.contains("does not take any arguments") {
        args.push("save".into());
    }
    args.push(format!("--name={}", name.0));
    if help.contains("--etcd-server") {
        args.push(format!("--etcd-server=https://127.0.0.1:{port}"));
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_paths_and_no_flags() {
        for bad in ["", "-x", ".x", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<SnapshotName>("\"../x\"").is_err());
        assert_eq!(String::from("before-1.30_x".parse::<SnapshotName>().unwrap()), "before-1.30_x");
    }

    #[test]
    fn each_release_is_asked_in_its_own_words() {
        let name = "n".parse().unwrap();
        let args = |help: &str| arguments(help, &name, Port::API).join(" ");
        assert_eq!(args("level=fatal msg=\"this command does not take any arguments\""), "etcd-snapshot --name=n");
        assert_eq!(args("OPTIONS:\n --name value"), "etcd-snapshot save --name=n");
        assert_eq!(args("--etcd-server value, -s value"), "etcd-snapshot save --name=n --etcd-server=https://127.0.0.1:9443");
    }
}

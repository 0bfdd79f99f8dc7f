use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::files::sync_dir;
use crate::{Context as _, Error, Result};

/// A file's content and who may read it, as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// The content, base64 in the journal.
    #[serde(with = "base64_bytes")]
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// How to take back one change. Tolerant by meaning: the change may not have happened after all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Undo {
    /// A file was written.
    File {
        /// Where.
        path: PathBuf,
        /// What was there; None = nothing.
        before: Option<FileState>,
        /// SHA-256 of what was written: anything else found there later is somebody's edit.
        after: String,
    },
    /// A large file was installed.
    Installed {
        /// Where.
        path: PathBuf,
        /// Where the one before is kept; None = there was none.
        kept: Option<PathBuf>,
        /// SHA-256 of what was installed.
        after: String,
    },
    /// A folder was made.
    Folder {
        /// Where.
        path: PathBuf,
    },
    /// A unit was enabled or started.
    Unit {
        /// Its name.
        unit: String,
        /// Whether it was enabled before.
        enabled: bool,
        /// Whether it ran before.
        active: bool,
    },
    /// A kernel setting was changed until the next boot (the file for after it is a `File`).
    Sysctl {
        /// As in `net.ipv4.ip_forward`.
        key: String,
        /// Its value before.
        before: String,
    },
    /// A kernel module was loaded.
    Module {
        /// Its name.
        module: String,
    },
    /// A package was installed.
    Package {
        /// Its name.
        package: String,
    },
    /// Something that another crate knows how to take back.
    Other {
        /// Which: `firewall`, `k3s`.
        by: String,
        /// Its own data.
        data: serde_json::Value,
    },
}

impl Undo {
    /// The file that was written or installed.
    fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } | Self::Installed { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in UTC.
    pub time: jiff::Timestamp,
    /// How to take it back.
    #[serde(flatten)]
    pub undo: Undo,
}

/// What smartup changed on this host, oldest first: one JSON object a line, synced to disk before the change is made.
///
/// Mode 0600: it holds what files contained before, secrets included.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    entries: Mutex<Vec<Entry>>,
}

impl Journal {
    /// Reads the journal; one that does not exist is empty. A last line that a crash cut off is left out: its change
    /// was never made.
    ///
    /// # Errors
    /// When it cannot be read, or a line other than the last is damaged.
    pub fn open(path: PathBuf) -> Result<Self> {
        let text = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e).context(format!("cannot read the journal {}", path.display())),
        };
        Ok(Self { entries: Mutex::new(parse(&text, &path)?), path })
    }

    /// What was changed, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether smartup wrote this file.
    pub fn wrote(&self, path: &Path) -> bool {
        self.entries().iter().any(|e| matches!(&e.undo, Undo::File { path: p, .. } | Undo::Installed { path: p, .. } if p == path))
    }

    /// Writes down a change that is about to be made, and returns when it is on the disk. What is already there word for
    /// word is not written again: a run that was killed and repeated leaves one entry. Of a file the last entry counts: it may be
    /// changed there and back.
    ///
    /// # Errors
    /// When it cannot be written; the change must then not be made.
    pub fn record(&self, undo: Undo) -> Result<()> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let about_it = |e: &&Entry| match (e.undo.path(), undo.path()) {
            (Some(a), Some(b)) => a == b,
            _ => e.undo == undo,
        };
        if entries.iter().rev().find(about_it).is_some_and(|e| e.undo == undo) {
            return Ok(());
        }
        let entry = Entry { time: jiff::Timestamp::now(), undo };
        self.append(&entry).context(format!("cannot write the journal {}", self.path.display()))?;
        entries.push(entry);
        Ok(())
    }

    fn append(&self, entry: &Entry) -> std::io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        if !dir.exists() {
            fs::create_dir_all(dir)?;
            fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
            sync_dir(dir.parent().unwrap_or(dir))?;
        }
        let mut file = File::options().create(true).read(true).append(true).mode(0o600).open(&self.path)?;
        // a torn last line is cut off, so that the next one is not glued to it; what another run wrote meanwhile stays
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        file.set_len(u64::try_from(whole).map_err(std::io::Error::other)?)?;
        file.write_all(&line(entry)?)?;
        file.sync_all()?;
        sync_dir(dir)
    }

    /// Forgets everything: all was taken back.
    ///
    /// # Errors
    /// When the file or its folder cannot be removed.
    pub fn clear(&self) -> Result<()> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if self.path.exists() {
            fs::remove_file(&self.path).context(format!("cannot remove the journal {}", self.path.display()))?;
        }
        if let Some(dir) = self.path.parent()
            && dir.read_dir().is_ok_and(|mut d| d.next().is_none())
        {
            fs::remove_dir(dir).context(format!("cannot remove {}", dir.display()))?;
        }
        entries.clear();
        Ok(())
    }
}

fn line(entry: &Entry) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    Ok(line)
}

fn parse(text: &[u8], path: &Path) -> Result<Vec<Entry>> {
    let Some(end) = text.iter().rposition(|b| *b == b'\n') else { return Ok(Vec::new()) };
    text[..end]
        .split(|b| *b == b'\n')
        .enumerate()
        .map(|(n, line)| {
            serde_json::from_slice(line).map_err(|_| {
                Error::failed(format!("the journal {} is damaged in line {}", path.display(), n + 1))
                    .hint("reset cannot tell what that change was; correct or remove the line by hand, then run again")
            })
        })
        .collect()
}

/// SHA-256 as the journal writes it.
pub(crate) fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// Bytes in hexadecimal, lower case: how checksums are written.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str) -> Undo {
        Undo::Module { module: name.into() }
    }

    #[test]
    fn remembers_across_runs_and_says_each_thing_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s/journal.jsonl");
        let file = Undo::File {
            path: "/etc/x".into(),
            before: Some(FileState { content: vec![0, 255, 10], mode: 0o644, uid: 0, gid: 0 }),
            after: sha256(b"x"),
        };
        let j = Journal::open(path.clone()).unwrap();
        for u in [module("a"), file.clone(), module("a")] {
            j.record(u).unwrap();
        }
        let j = Journal::open(path.clone()).unwrap();
        assert_eq!(j.entries().into_iter().map(|e| e.undo).collect::<Vec<_>>(), [module("a"), file]);
        assert!(j.wrote(Path::new("/etc/x")));
        j.clear().unwrap();
        assert!(!path.parent().unwrap().exists());
    }

    #[test]
    fn a_file_may_go_there_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let j = Journal::open(dir.path().join("journal.jsonl")).unwrap();
        let installed = |after: &str| Undo::Installed { path: "/usr/local/bin/k3s".into(), kept: None, after: after.into() };
        for after in ["one", "two", "two", "one", "one"] {
            j.record(installed(after)).unwrap();
        }
        assert_eq!(j.entries().into_iter().map(|e| e.undo).collect::<Vec<_>>(), ["one", "two", "one"].map(installed));
    }

    #[test]
    fn a_torn_last_line_is_a_change_that_never_happened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let j = Journal::open(path.clone()).unwrap();
        j.record(module("a")).unwrap();
        j.record(module("b")).unwrap();
        let whole = fs::read(&path).unwrap();
        let first = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
        for cut in first..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let j = Journal::open(path.clone()).unwrap();
            assert_eq!(j.entries().len(), 1, "cut at {cut}");
            j.record(module("c")).unwrap();
            let again = Journal::open(path.clone()).unwrap().entries();
            assert_eq!(again[1].undo, module("c"), "cut at {cut}");
        }
    }

    #[test]
    fn what_another_run_wrote_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let (one, other) = (Journal::open(path.clone()).unwrap(), Journal::open(path.clone()).unwrap());
        one.record(module("a")).unwrap();
        other.record(module("b")).unwrap();
        let all: Vec<_> = Journal::open(path).unwrap().entries().into_iter().map(|e| e.undo).collect();
        assert_eq!(all, [module("a"), module("b")]);
    }

    #[test]
    fn damage_in_the_middle_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        fs::write(&path, "nonsense\n{}\n").unwrap();
        assert!(Journal::open(path).unwrap_err().what.contains("line 1"));
    }
}

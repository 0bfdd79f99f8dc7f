use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use similar::TextDiff;

use crate::journal::sha256;
use crate::{Change, Context as _, Error, FileState, Host, Journal, Result, State, Step, Undo, selinux, systemd};

/// Turns what a file holds into what it should hold; None = there is no file yet.
pub type Edit = Box<dyn Fn(Option<&str>) -> Result<String>>;

/// What a file should hold.
pub enum Content {
    /// Exactly this.
    Exactly(Vec<u8>),
    /// What it holds now, edited: lines that are not ours are kept.
    Edited(Edit),
}

/// A file with its content and mode.
pub struct FileStep {
    /// Where.
    pub path: PathBuf,
    /// What it should hold.
    pub content: Content,
    /// Permission bits; the owner is root.
    pub mode: u32,
    /// Hides secrets, line by line, before a diff is shown.
    pub mask: fn(&str) -> String,
    /// The unit that must be told when the file changes.
    pub read_by: Option<String>,
}

impl FileStep {
    /// A file without secrets, mode 0644, that no unit reads.
    pub fn new(path: impl Into<PathBuf>, content: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), content: Content::Exactly(content.into()), mode: 0o644, mask: str::to_owned, read_by: None }
    }

    /// With other permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// With a unit that must be told when the file changes.
    #[must_use]
    pub fn read_by(mut self, unit: impl Into<String>) -> Self {
        self.read_by = Some(unit.into());
        self
    }

    /// With secrets, which `mask` hides in a line.
    #[must_use]
    pub fn mask(mut self, mask: fn(&str) -> String) -> Self {
        self.mask = mask;
        self
    }

    fn wanted(&self, now: Option<&FileState>) -> Result<Vec<u8>> {
        match &self.content {
            Content::Exactly(bytes) => Ok(bytes.clone()),
            Content::Edited(edit) => {
                let text = match now {
                    None => None,
                    Some(f) => Some(std::str::from_utf8(&f.content).map_err(|_| {
                        Error::refused(format!("{} is not text", self.path.display())).hint("move it away, then run again")
                    })?),
                };
                Ok(edit(text)?.into_bytes())
            }
        }
    }

    fn diff(&self, before: &[u8], after: &[u8]) -> Option<String> {
        let text = |b: &[u8]| {
            let t = std::str::from_utf8(b).ok()?;
            Some(t.lines().fold(String::new(), |s, l| s + &(self.mask)(l) + "\n"))
        };
        let (before, after) = (text(before)?, text(after)?);
        let path = self.path.display().to_string();
        let diff = TextDiff::from_lines(before.as_str(), after.as_str());
        let shown = diff.unified_diff().context_radius(2).header(&path, &path).to_string();
        (!shown.is_empty()).then_some(shown)
    }
}

#[async_trait(?Send)]
impl Step for FileStep {
    fn name(&self) -> String {
        format!("file {}", self.path.display())
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        let now = read_optional(&self.path)?;
        let wanted = self.wanted(now.as_ref())?;
        let path = self.path.display();
        let mut changes = Vec::new();
        match &now {
            None => changes.push(Change { what: format!("write {path}"), diff: self.diff(b"", &wanted) }),
            Some(f) if f.content != wanted => {
                changes.push(Change { what: format!("change {path}"), diff: self.diff(&f.content, &wanted) });
            }
            Some(f) if f.mode != self.mode => changes.push(Change::new(format!("set the mode of {path} to {:04o}", self.mode))),
            Some(_) => {}
        }
        Ok(State::of(changes))
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let now = read_optional(&self.path)?;
        let wanted = self.wanted(now.as_ref())?;
        make_folders(self.path.parent().unwrap_or(Path::new("/")), &host.journal)?;
        host.journal.record(Undo::File { path: self.path.clone(), before: now, after: sha256(&wanted) })?;
        if let Some(unit) = &self.read_by {
            systemd::mark_changed(unit)?;
        }
        write_atomically(&self.path, &wanted, self.mode)?;
        selinux::restore(host.selinux(), &self.path).await
    }
}

/// Reads a file with its mode and owner; None when there is none.
///
/// # Errors
/// When it is there but cannot be read, or is a folder.
pub fn read_optional(path: &Path) -> Result<Option<FileState>> {
    let meta = match fs::metadata(path) {
        Ok(m) => m,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(e).context(format!("cannot look at {}", path.display())),
    };
    let content = fs::read(path).context(format!("cannot read {}", path.display()))?;
    Ok(Some(FileState { content, mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid() }))
}

/// Writes a file so that a reader, and a crash, see the old one or the new one whole: a temporary file beside it, synced,
/// renamed over it, and the folder synced. The owner becomes root.
///
/// # Errors
/// When any of that fails; the old file is then still there.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    replace(path, mode, |file| file.write_all(content)).map_err(|e| {
        let hint = match e.kind() {
            ErrorKind::StorageFull => Some("free some space on that disk, then run again".to_owned()),
            ErrorKind::ReadOnlyFilesystem => Some("the file system is read-only; remount it or repair the disk".to_owned()),
            _ => None,
        };
        let mut err = Error::failed(format!("cannot write {}", path.display())).because(e);
        err.hint = hint;
        err
    })
}

/// The temporary file beside a file. Its name is always the same (one run at a time writes), so that what a killed run left
/// is overwritten by the next one, and found by a reset.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".smartup-{name}.tmp"))
}

/// Puts a file in place as [`write_atomically`] does; `content` writes it, so that it need not be in memory.
///
/// # Errors
/// As that does.
pub fn replace(path: &Path, mode: u32, content: impl FnOnce(&mut File) -> std::io::Result<()>) -> std::io::Result<()> {
    let tmp = temporary(path);
    match fs::remove_file(&tmp) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&tmp)?;
        content(&mut file)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&tmp, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&tmp);
    }
    written?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Removes a file if it is there, and makes that last.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(path.parent().unwrap_or(Path::new("/"))).context(format!("cannot sync after removing {}", path.display())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).context(format!("cannot remove {}", path.display())),
    }
}

/// Makes a folder and those above it, each written to the journal first.
fn make_folders(dir: &Path, journal: &Journal) -> Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|d| !d.exists()).collect();
    for d in missing.into_iter().rev() {
        journal.record(Undo::Folder { path: d.to_owned() })?;
        fs::create_dir(d).context(format!("cannot make the folder {}", d.display()))?;
        fs::set_permissions(d, fs::Permissions::from_mode(0o755)).context(format!("cannot set the mode of {}", d.display()))?;
    }
    Ok(())
}

/// Makes names in a folder last.
pub(crate) fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_whole_files_with_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomically(&path, b"one", 0o600).unwrap();
        write_atomically(&path, b"two", 0o640).unwrap();
        let f = read_optional(&path).unwrap().unwrap();
        assert_eq!((f.content.as_slice(), f.mode), (b"two".as_slice(), 0o640));
        assert_eq!(dir.path().read_dir().unwrap().count(), 1, "no temporary file is left");
        fs::write(temporary(&path), "what a killed run left").unwrap();
        write_atomically(&path, b"two", 0o640).unwrap();
        assert_eq!(dir.path().read_dir().unwrap().count(), 1, "nor one of a run before");
        let nowhere = dir.path().join("none/f");
        assert!(write_atomically(&nowhere, b"", 0o600).is_err());
        remove_file(&path).unwrap();
        remove_file(&path).unwrap();
        assert_eq!(read_optional(&path).unwrap(), None);
    }

    #[test]
    fn folders_are_journaled_from_the_outermost() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path().join("j/journal.jsonl")).unwrap();
        make_folders(&dir.path().join("a/b"), &journal).unwrap();
        let paths: Vec<_> = journal.entries().into_iter().map(|e| e.undo).collect();
        assert_eq!(paths, [Undo::Folder { path: dir.path().join("a") }, Undo::Folder { path: dir.path().join("a/b") }]);
    }

    #[test]
    fn diffs_hide_secrets() {
        let step = FileStep::new("/etc/k3s/k3s-server.env", "")
            .mask(|l| if l.starts_with("K3S_TOKEN=") { "K3S_TOKEN=…".into() } else { l.into() });
        let diff = step.diff(b"K3S_TOKEN=old\nA=1\n", b"K3S_TOKEN=new\nA=2\n").unwrap();
        assert!(!diff.contains("old") && !diff.contains("new") && diff.contains("+A=2"), "{diff}");
    }
}

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::files::replace;
use crate::{Context as _, Entry, Host, Result, Undo, selinux, systemd};

/// Puts a large file in place: copied beside its target, synced (a database's fsync soon after would pay for it
/// otherwise), renamed. What was there before smartup came is kept in its own folder until a reset; what smartup itself put there
/// is not.
///
/// # Errors
/// When the source cannot be read or the target not be written; the old one is then still there.
pub async fn install(host: &Host, source: &Path, target: &Path, mode: u32, read_by: &str) -> Result<()> {
    let what = || format!("cannot install {} as {}", source.display(), target.display());
    let after = hash(source).context(what())?;
    let before = match hash(target) {
        Ok(sum) => Some(sum),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(e).context(what()),
    };
    let (kept, ours) = original(&host.journal.entries(), target, before);
    host.journal.record(Undo::Installed { path: target.to_owned(), kept: kept.clone(), after })?;
    if let Some(kept) = kept
        && !ours
    {
        keep(target, &kept)?;
    }
    systemd::mark_changed(read_by)?;
    copy(source, target, mode).context(what())?;
    selinux::restore(host.selinux(), target).await
}

/// Where smartup keeps the files that it may have to put back: gone after a reset.
pub fn keeps(name: &str) -> PathBuf {
    Path::new(Host::STATE).join("kept").join(name)
}

/// Where the file is, or will be, kept that a reset puts in the place of `path`, which holds `before` now; and whether it is smartup
/// itself that put that there.
fn original(journal: &[Entry], path: &Path, before: Option<String>) -> (Option<PathBuf>, bool) {
    let Some(before) = before else { return (None, false) };
    let ours = journal.iter().rev().find_map(|e| match &e.undo {
        Undo::Installed { path: p, kept, after } if p == path && *after == before => Some(kept.clone()),
        _ => None,
    });
    match ours {
        Some(kept) => (kept, true),
        None => (Some(keeps(&before)), false),
    }
}

/// Keeps a copy of a file, unless there is one.
///
/// # Errors
/// When it cannot be read, or the copy not be written.
pub fn keep(file: &Path, kept: &Path) -> Result<()> {
    if kept.exists() {
        return Ok(());
    }
    let what = || format!("cannot keep {} as {}", file.display(), kept.display());
    fs::create_dir_all(kept.parent().unwrap_or(Path::new(Host::STATE))).context(what())?;
    copy(file, kept, fs::metadata(file).context(what())?.permissions().mode() & 0o7777).context(what())
}

/// Whether two files hold the same bytes; one that does not exist is like nothing.
///
/// # Errors
/// When one is there and cannot be read.
pub fn same_content(a: &Path, b: &Path) -> Result<bool> {
    let what = || format!("cannot compare {} with {}", a.display(), b.display());
    let size = |p: &Path| match fs::metadata(p) {
        Ok(m) => Ok(Some(m.len())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    };
    match (size(a).context(what())?, size(b).context(what())?) {
        (Some(m), Some(n)) if m == n => same_bytes(File::open(a).context(what())?, File::open(b).context(what())?).context(what()),
        _ => Ok(false),
    }
}

/// Whether a file has this size in bytes and this SHA-256, in hexadecimal; the size is compared first, since it costs nothing.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn has_content(path: &Path, sha256: &str, size: u64) -> Result<bool> {
    let what = || format!("cannot read {}", path.display());
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).context(what()),
        Ok(meta) if meta.len() != size => Ok(false),
        Ok(_) => Ok(hash(path).context(what())? == sha256),
    }
}

fn same_bytes(mut a: File, mut b: File) -> std::io::Result<bool> {
    let (mut of_a, mut of_b) = (vec![0; 1 << 18], vec![0; 1 << 18]);
    loop {
        let n = fill(&mut a, &mut of_a)?;
        if n != fill(&mut b, &mut of_b)? || of_a[..n] != of_b[..n] {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match file.read(&mut buffer[n..])? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

/// SHA-256 of a file of any size, in hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn hash(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(crate::journal::hex(&sum.finalize())),
            n => sum.update(&buffer[..n]),
        }
    }
}

/// Copies a file atomically.
pub(crate) fn copy(source: &Path, target: &Path, mode: u32) -> std::io::Result<()> {
    replace(target, mode, |file| std::io::copy(&mut File::open(source)?, file).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_goes_back_to_what_was_there_before_smartup() {
        let path = Path::new("/usr/local/bin/k3s");
        let installed = |kept: Option<PathBuf>, after: &str| Entry {
            time: jiff::Timestamp::UNIX_EPOCH,
            undo: Undo::Installed { path: path.to_owned(), kept, after: after.into() },
        };
        let of = |journal: &[Entry], before: &str| original(journal, path, Some(before.into()));
        assert_eq!(original(&[], path, None), (None, false));
        assert_eq!(of(&[], "theirs"), (Some(keeps("theirs")), false));
        let over_theirs = [installed(Some(keeps("theirs")), "one")];
        assert_eq!(of(&over_theirs, "one"), (Some(keeps("theirs")), true));
        let into_nothing = [installed(None, "one"), installed(None, "two")];
        assert_eq!(of(&into_nothing, "two"), (None, true));
        assert_eq!(of(&into_nothing, "what somebody put there since"), (Some(keeps("what somebody put there since")), false));
        assert_eq!(original(&over_theirs, Path::new("/other"), Some("one".into())), (Some(keeps("one")), false));
    }

    #[test]
    fn compares_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, vec![7; 600_000]).unwrap();
        assert!(!same_content(&a, &b).unwrap());
        copy(&a, &b, 0o755).unwrap();
        assert!(same_content(&a, &b).unwrap());
        let sum = hash(&a).unwrap();
        assert!(has_content(&b, &sum, 600_000).unwrap());
        assert!(!has_content(&b, &sum, 600_001).unwrap() && !has_content(&dir.path().join("c"), &sum, 600_000).unwrap());
        let mut other = vec![7; 600_000];
        other[599_999] = 8;
        fs::write(&b, other).unwrap();
        assert!(!same_content(&a, &b).unwrap());
        assert!(!has_content(&b, &sum, 600_000).unwrap());
    }
}

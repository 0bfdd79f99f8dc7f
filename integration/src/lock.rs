//! Locks that the kernel releases when their holder ends, however it ends.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// An exclusive lock on a file, held until dropped or until this process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the file, which must not be there, and locks it.
    pub(crate) fn on_new(path: &Path) -> Result<Self> {
        let opened = File::options().create_new(true).write(true).open(path);
        let file = opened.with_context(|| format!("cannot make the lock {}", path.display()))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _file: file })
    }

    /// Waits for the lock; the file is made if it is missing.
    pub(crate) fn wait(path: &Path) -> Result<Self> {
        let opened = File::options().create(true).truncate(false).write(true).open(path);
        let file = opened.with_context(|| format!("cannot open the lock {}", path.display()))?;
        block(&file, path)?;
        Ok(Self { _file: file })
    }

    /// Waits for the lock on a file that is there; `None` if it is not, or was removed or replaced meanwhile.
    pub(crate) fn wait_existing(path: &Path) -> Result<Option<Self>> {
        let Some(file) = existing(path)? else { return Ok(None) };
        block(&file, path)?;
        Ok(is_still(&file, path)?.then_some(Self { _file: file }))
    }

    /// The same without waiting: `None` also when somebody holds the lock.
    pub(crate) fn attempt_existing(path: &Path) -> Result<Option<Self>> {
        let Some(file) = existing(path)? else { return Ok(None) };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(is_still(&file, path)?.then_some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

fn existing(path: &Path) -> Result<Option<File>> {
    match File::options().write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot open the lock {}", path.display())),
    }
}

fn block(file: &File, path: &Path) -> Result<()> {
    loop {
        match flock(file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            result => return result.with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// Whether the path still leads to this file: another one may have its name by now.
fn is_still(file: &File, path: &Path) -> Result<bool> {
    let own = file.metadata()?;
    match path.metadata() {
        Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_one_holders_and_ends_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert!(Lock::attempt_existing(&path).unwrap().is_none(), "no file yet");
        let held = Lock::on_new(&path).unwrap();
        assert!(Lock::on_new(&path).is_err());
        assert!(Lock::attempt_existing(&path).unwrap().is_none(), "held");
        drop(held);
        assert!(Lock::attempt_existing(&path).unwrap().is_some());
    }

    #[test]
    fn who_waited_for_a_lock_does_not_get_its_successor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = Lock::on_new(&path).unwrap();
        let waiting = existing(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        let _next = Lock::on_new(&path).unwrap();
        drop(held);
        block(&waiting, &path).unwrap();
        assert!(!is_still(&waiting, &path).unwrap());
    }
}

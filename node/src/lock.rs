use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::{Context as _, Error, Result};

/// One run at a time on a host. The kernel gives it back when the process ends, however it ends, so it is never stale.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] File);

impl Lock {
    /// Where the lock is: on a tmpfs, so that a dry run leaves nothing behind.
    pub const PATH: &'static str = "/run/smartup.lock";

    /// Takes the lock, or fails at once.
    ///
    /// # Errors
    /// Refused when another run holds it; failed when the file cannot be opened.
    pub fn take(path: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .context(format!("cannot open the lock {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::refused("another smartup run is under way on this host")
                .hint("wait until it has ended; a lock that is left behind does not exist, the kernel releases it")),
            Err(e) => Err(e).context(format!("cannot lock {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn the_second_is_refused_until_the_first_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path).unwrap();
        assert_eq!(Lock::take(&path).unwrap_err().kind, Kind::Refused);
        drop(first);
        Lock::take(&path).unwrap();
    }
}

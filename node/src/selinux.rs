use std::path::Path;
use std::time::Duration;

use crate::{Error, Result, SeLinux, run};

/// Gives a file the security context that the policy has for its path. A file made as a temporary one and renamed would
/// keep the context of where it was made.
pub(crate) async fn restore(selinux: SeLinux, path: &Path) -> Result<()> {
    if selinux == SeLinux::Disabled {
        return Ok(());
    }
    let out = run("restorecon", &[path], Duration::from_secs(30)).await?;
    if out.success() {
        Ok(())
    } else {
        Err(Error::failed(format!("cannot restore the SELinux context of {}: {}", path.display(), out.tail(3))))
    }
}

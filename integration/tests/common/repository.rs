//! Packages for any package manager, and their repository on the host that has it.

use anyhow::{Context as _, Result};
use integration::Host;

/// Makes packages for `apt`, `dnf`, `zypper` or `pacman`, as `repository.sh` says: version 1 is installed, others are in the repository.
pub fn packages(host: &Host, manager: &str, table: &str) -> Result<()> {
    host.write("/usr/local/bin/repository.sh", 0o755, include_str!("repository.sh"))?;
    let made = host.exec_with(["repository.sh", manager], table.as_bytes())?;
    made.checked().map(drop).with_context(|| format!("{}: packages for {manager}", host.name()))
}

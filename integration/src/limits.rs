//! Limits of the machine that its hosts share, since they are all root's.

use std::fs;

use anyhow::{Context as _, Result};

/// Each systemd, kubelet and keepalived has inotify instances of its own; the kernel's default (128 for each user) ends a
/// kubelet on the fourth host: `inotify_init: too many open files`.
const LIMITS: [(&str, u64); 2] = [("/proc/sys/fs/inotify/max_user_instances", 8192), ("/proc/sys/fs/inotify/max_user_watches", 1 << 20)];

/// Raises what is too low for a lab; never lowers anything.
pub(crate) fn raise() -> Result<()> {
    for (path, least) in LIMITS {
        let now: u64 = fs::read_to_string(path)?.trim().parse().with_context(|| format!("{path} is no number"))?;
        if now < least {
            fs::write(path, least.to_string()).with_context(|| format!("cannot raise {path}"))?;
        }
    }
    Ok(())
}

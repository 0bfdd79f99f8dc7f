//! One boot of a host: systemd-nspawn, with the freedom that Kubernetes needs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cgroup::Hierarchies;
use crate::disk;
use crate::site::Site;

/// What systemd-nspawn exits with when the host reboots itself.
pub(crate) const REBOOT: i32 = 133;

/// Writes its process id to the files in its first argument, then becomes the command in the others.
const ENTER: &str = r#"files=$1; shift; for file in $files; do echo $$ > "$file" || exit 125; done; exec "$@""#;

/// A command that starts in the host's control groups; `part` as in [`crate::cgroup`].
pub(crate) fn in_groups(site: &Site, groups: &Hierarchies, host: &str, part: &str) -> Command {
    let files: Vec<String> = groups.entrances(&site.id, host, part).iter().map(|file| file.display().to_string()).collect();
    entering(&files.join(" "))
}

/// A command that first writes its process id to these files, separated by blanks.
pub(crate) fn entering(files: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", ENTER, "sh", files]);
    command
}

/// systemd-nspawn's name for the host; unlike the host's own it is the only one on this machine.
fn machine(site: &Site, host: &str) -> String {
    format!("lab.{}.{host}", site.id)
}

/// Removes what systemd-nspawn leaves of the lab's hosts when it is killed.
pub(crate) fn remove(site: &Site) -> Result<()> {
    let prefix = machine(site, "");
    let Ok(entries) = fs::read_dir("/run/systemd/nspawn/propagate") else { return Ok(()) };
    for entry in entries {
        let entry = entry.context("cannot list systemd-nspawn's folders")?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            disk::remove(&entry.path())?;
        }
    }
    Ok(())
}

/// The command that boots the host and lasts until it is down.
pub(crate) fn boot(site: &Site, groups: &Hierarchies, host: &str) -> Command {
    let mut command = in_groups(site, groups, host, "boot");
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        // v1 controllers, for Kubernetes; /proc/sys and /sys writable; any system call.
        .envs([
            ("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "0"),
            ("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1"),
            ("SYSTEMD_SECCOMP", "0"),
            // It would leave a file for each host; the lab sees to it that no host runs twice.
            ("SYSTEMD_NSPAWN_LOCK", "0"),
        ])
        .args(["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--console=pipe"])
        .arg(format!("--directory={}", disk::root(site, host).display()))
        .arg(format!("--machine={}", machine(site, host)))
        .arg(format!("--hostname={host}"))
        .arg(format!("--network-namespace-path={}", site.namespace_file(host).display()))
        // The clock and the kernel are the machine's.
        .args(["--capability=all", "--drop-capability=CAP_SYS_TIME,CAP_SYS_MODULE,CAP_SYS_RAWIO"])
        .args(["--resolv-conf=off", "--timezone=off", "--link-journal=no", "--kill-signal=SIGRTMIN+4"]);
    for name in disk::DIRECT {
        command.arg(format!("--bind={}:/var/lib/{name}", disk::direct(site, host, name).display()));
    }
    if Path::new("/lib/modules").exists() {
        command.arg("--bind-ro=/lib/modules"); // so that modprobe knows what is built in
    }
    command.arg("/usr/lib/lab/init");
    command
}

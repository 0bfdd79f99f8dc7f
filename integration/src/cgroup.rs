//! The control groups of a lab: what a host runs is found, frozen and killed through them, and through nothing else.
//!
//! Each host has a group in the unified hierarchy, and one in every v1 controller:
//!
//! ```text
//! smartup-lab.ID/h1/keeper   the process that boots the host again when it reboots itself
//!                  /boot     systemd-nspawn makes payload/ (the host) and supervisor/ (itself) here
//!                  /exec     commands that the lab runs in the host
//!                  /look     the same while the host is frozen
//!               /probe       what runs in the probe
//! ```
//!
//! Kubernetes 1.20 needs the v1 controllers, so the machine must have both ("hybrid").

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::run::until;

const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How much of each second's 950 ms (`sched_rt_runtime_us`) a host may run with real-time priority, in microseconds. The v1 controller gives
/// none unless it is asked, at each level; keepalived wants it, and needs a tenth of this.
pub(crate) const REAL_TIME: u32 = 20_000;

/// Where the machine mounts its hierarchies.
#[derive(Debug, Clone)]
pub(crate) struct Hierarchies {
    unified: PathBuf,
    v1: Vec<PathBuf>,
}

impl Hierarchies {
    pub(crate) fn of_machine() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the machine's mounts")?;
        let (unified, v1) = parse_mounts(&mounts);
        let unified = unified.ok_or_else(|| anyhow!("no cgroup2 is mounted on this machine; the lab needs it"))?;
        ensure!(
            v1.iter().any(|mount| mount.ends_with("memory")),
            "this machine has no cgroup v1 controllers, which Kubernetes 1.20 needs; \
             hint: boot it with systemd.unified_cgroup_hierarchy=0"
        );
        Ok(Self { unified, v1 })
    }

    /// All groups of a lab, unified first.
    fn of_lab(&self, id: &str) -> Vec<PathBuf> {
        std::iter::once(&self.unified).chain(&self.v1).map(|mount| mount.join(group(id))).collect()
    }

    /// The lab's group in the unified hierarchy.
    pub(crate) fn lab(&self, id: &str) -> PathBuf {
        self.unified.join(group(id))
    }

    /// The host's group in the unified hierarchy.
    pub(crate) fn host(&self, id: &str, host: &str) -> PathBuf {
        self.lab(id).join(host)
    }

    /// Makes the groups of a lab.
    pub(crate) fn make_lab(&self, id: &str) -> Result<()> {
        make(&self.lab(id).join("probe"))?;
        for mount in &self.v1 {
            let lab = mount.join(group(id));
            make(&lab)?;
            if mount.ends_with("cpuset") {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let all = fs::read_to_string(mount.join(file))?;
                    write(&lab.join(file), all.trim())?;
                }
                write(&lab.join("cgroup.clone_children"), "1")?;
            }
            if mount.ends_with("devices") {
                // A host has all capabilities: without this a privileged pod could write to the machine's disk. `m`
                // (mknod) stays, since runc gives it to every container and would fail.
                write(&lab.join("devices.deny"), "b *:* rw")?;
            }
        }
        Ok(())
    }

    /// Makes the groups of a host.
    pub(crate) fn make_host(&self, id: &str, host: &str) -> Result<()> {
        for part in ["keeper", "boot", "exec", "look"] {
            make(&self.host(id, host).join(part))?;
        }
        for mount in &self.v1 {
            let lab = mount.join(group(id));
            make(&lab.join(host))?;
            give_real_time(&lab, host)?;
        }
        Ok(())
    }

    /// The files a process writes its id to, to be in the host's v1 groups and in `part` of its unified group.
    pub(crate) fn entrances(&self, id: &str, host: &str, part: &str) -> Vec<PathBuf> {
        let unified = self.host(id, host).join(part);
        let v1 = self.v1.iter().map(|mount| mount.join(group(id)).join(host));
        std::iter::once(unified).chain(v1).map(|group| group.join("cgroup.procs")).collect()
    }

    /// Removes the host's groups, which must be empty of processes.
    pub(crate) fn remove_host(&self, id: &str, host: &str) -> Result<()> {
        self.of_lab(id).iter().try_for_each(|lab| remove(&lab.join(host)))
    }

    /// Removes what the host's last boot made, for the next one.
    pub(crate) fn clear_boot(&self, id: &str, host: &str) -> Result<()> {
        let boot = self.host(id, host).join("boot");
        await_empty(&boot)?;
        remove_below(&boot)?;
        for mount in &self.v1 {
            remove_below(&mount.join(group(id)).join(host))?;
        }
        Ok(())
    }

    /// Kills all that the lab runs, and removes its groups.
    pub(crate) fn remove_lab(&self, id: &str) -> Result<()> {
        kill(&self.lab(id))?;
        self.of_lab(id).iter().try_for_each(|lab| remove(lab))
    }
}

/// As far as the kernel has such shares, and some of it left: a crowd of hosts does without.
fn give_real_time(lab: &Path, host: &str) -> Result<()> {
    let file = |group: &Path| group.join("cpu.rt_runtime_us");
    if file(lab).exists() {
        let hosts = u32::try_from(groups_in(lab)?.len())?;
        let given = fs::write(file(lab), (hosts * REAL_TIME).to_string());
        let _ = given.and_then(|()| fs::write(file(&lab.join(host)), REAL_TIME.to_string()));
    }
    Ok(())
}

fn group(id: &str) -> String {
    format!("smartup-lab.{id}")
}

fn parse_mounts(mountinfo: &str) -> (Option<PathBuf>, Vec<PathBuf>) {
    let mut unified = None;
    let mut v1 = Vec::new();
    for line in mountinfo.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        // systemd-nspawn has the hierarchy in /tmp too for a moment, while it starts a container of another lab
        let Some(mount) = front.split(' ').nth(4).filter(|mount| mount.starts_with("/sys/fs/cgroup")) else { continue };
        match back.split(' ').next() {
            Some("cgroup2") => unified = unified.or_else(|| Some(PathBuf::from(mount))),
            Some("cgroup") => v1.push(PathBuf::from(mount)),
            _ => {}
        }
    }
    (unified, v1)
}

/// Kills every process of a group and of those below it, and waits until none is left.
pub(crate) fn kill(group: &Path) -> Result<()> {
    if !group.exists() {
        return Ok(());
    }
    write(&group.join("cgroup.kill"), "1")?;
    await_empty(group)
}

fn await_empty(group: &Path) -> Result<()> {
    until(&format!("no process left in {}", group.display()), KILL_LIMIT, || Ok((!populated(group)?).then_some(())))
}

/// Whether a process runs in the group or below it.
pub(crate) fn populated(group: &Path) -> Result<bool> {
    event(group, "populated")
}

fn event(group: &Path, name: &str) -> Result<bool> {
    let events = match fs::read_to_string(group.join("cgroup.events")) {
        Ok(events) => events,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot ask the group {}", group.display())),
    };
    Ok(events.lines().any(|line| line.split_once(' ') == Some((name, "1"))))
}

/// Stops or continues every process of a group, and waits until that is so.
pub(crate) fn freeze(group: &Path, frozen: bool) -> Result<()> {
    write(&group.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    let what = format!("{} {}", group.display(), if frozen { "frozen" } else { "thawed" });
    until(&what, KILL_LIMIT, || Ok((event(group, "frozen")? == frozen).then_some(())))
}

/// Whether the group was told to freeze.
pub(crate) fn is_frozen(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
}

/// The processes of a group itself; none if there is no such group.
pub(crate) fn processes(group: &Path) -> Vec<u32> {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    listed.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The processes of a group and of those below it.
pub(crate) fn processes_below(group: &Path) -> Result<Vec<u32>> {
    let mut found = processes(group);
    for below in groups_in(group)? {
        found.extend(processes_below(&below)?);
    }
    Ok(found)
}

/// Removes a group and those below it.
pub(crate) fn remove(group: &Path) -> Result<()> {
    remove_below(group)?;
    // The kernel may take a moment to notice that the last process is gone.
    until(&format!("the group {} removed", group.display()), KILL_LIMIT, || match fs::remove_dir(group) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Some(())),
        Err(error) => Err(error.into()),
    })
}

fn remove_below(group: &Path) -> Result<()> {
    groups_in(group)?.iter().try_for_each(|below| remove(below))
}

/// The groups right below a group; none if there is no such group.
fn groups_in(group: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list the group {}", group.display())),
    };
    let mut groups = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            groups.push(entry.path());
        }
    }
    Ok(groups)
}

pub(crate) fn make(group: &Path) -> Result<()> {
    fs::create_dir_all(group).with_context(|| format!("cannot make the group {}", group.display()))
}

pub(crate) fn write(file: &Path, value: &str) -> Result<()> {
    fs::write(file, value).with_context(|| format!("cannot write {value:?} to {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_hierarchy_are_found() {
        let mounts = "\
25 24 0:22 / /proc rw,relatime - proc proc rw
30 26 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:3 - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
50 24 0:29 / /tmp/unifiedhaBgdf rw,relatime - cgroup2 cgroup rw
33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        let (unified, v1) = parse_mounts(mounts);
        assert_eq!(unified.unwrap(), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(v1, [Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup/memory")]);
    }
}

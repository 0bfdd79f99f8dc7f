//! A host's disk: an overlay over the trees that all hosts share, and folders for what cannot lie on an overlay.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run::run;
use crate::site::{Address, HostPlan, MOST_HOSTS, Site};
use crate::{cgroup, random};

/// Containers have overlays as well, and an overlay's upper folder cannot lie on an overlay: these folders of a host
/// are the machine's file system.
pub(crate) const DIRECT: [&str; 4] = ["containerd", "kubelet", "etcd", "rancher"];

/// Where the host's root is mounted on the machine.
pub(crate) fn root(site: &Site, host: &str) -> PathBuf {
    site.host(host).join("root")
}

/// The machine's folder behind the host's `/var/lib/NAME`.
pub(crate) fn direct(site: &Site, host: &str, name: &str) -> PathBuf {
    site.host(host).join("direct").join(name)
}

/// The folder with all that differs from the shared trees.
pub(crate) fn upper(site: &Site, host: &str) -> PathBuf {
    site.host(host).join("upper")
}

/// Makes the host's disk if it has none, and mounts it if it is not.
pub(crate) fn mount(site: &Site, host: &HostPlan) -> Result<()> {
    let name = host.name();
    let root = root(site, &name);
    if !root.exists() {
        make(site, host).with_context(|| format!("cannot make the disk of {name}"))?;
    }
    if mounts_below(&root)?.is_empty() {
        let layers: Vec<String> = host.layers.iter().map(|layer| layer.display().to_string()).collect();
        let (upper, work) = (upper(site, &name), site.host(&name).join("work"));
        let options = format!("lowerdir={},upperdir={},workdir={}", layers.join(":"), upper.display(), work.display());
        run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&root))?;
    }
    let k3s = direct(site, &name, "rancher");
    if let Some(size) = host.k3s_disk.filter(|_| mounts_below(&k3s).is_ok_and(|mounts| mounts.is_empty())) {
        run(Command::new("mount").args(["-t", "tmpfs", "rancher", "-o", &format!("size={size}m,mode=755")]).arg(&k3s))?;
    }
    Ok(())
}

/// Unmounts and removes the host's disk.
pub(crate) fn wipe(site: &Site, host: &str) -> Result<()> {
    unmount(&site.host(host))?;
    remove(&site.host(host))
}

/// Unmounts all that is mounted at or below `folder`.
pub(crate) fn unmount(folder: &Path) -> Result<()> {
    let mut mounts = mounts_below(folder)?;
    mounts.reverse();
    mounts.iter().try_for_each(|mount| run(Command::new("umount").arg(mount)).map(drop))
}

/// Removes a folder with all in it; a missing one is fine.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the machine's mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(folder)).collect())
}

fn make(site: &Site, host: &HostPlan) -> Result<()> {
    let name = host.name();
    let folder = site.host(&name);
    let upper = upper(site, &name);
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(folder.join("work"))?;
    for part in DIRECT {
        fs::create_dir_all(direct(site, &name, part))?;
    }
    put(&upper, "etc/hostname", 0o644, &format!("{name}\n"))?;
    put(&upper, "etc/machine-id", 0o444, &format!("{}\n", random::hex::<16>()?))?;
    ssh_key(&upper.join("etc/ssh/ssh_host_ed25519_key"), &name)?;
    // Last, since its presence says that the disk is whole.
    fs::create_dir(folder.join("root"))?;
    Ok(())
}

/// Fills the layer that the lab's hosts share: the programs under test, and what makes a tree a lab's host.
pub(crate) fn make_layer(site: &Site, programs: &[(String, PathBuf)]) -> Result<()> {
    let layer = site.layer();
    fs::create_dir_all(&layer)?;
    ssh_key(&site.key(), "lab")?;
    let (private, public) = (fs::read_to_string(site.key())?, fs::read_to_string(site.key().with_extension("pub"))?);
    fs::create_dir_all(layer.join("root/.ssh"))?;
    put(&layer, "root/.ssh/authorized_keys", 0o600, &public)?;
    put(&layer, "root/.ssh/id_ed25519", 0o600, &private)?;
    put(&layer, "root/.ssh/id_ed25519.pub", 0o644, &public)?;
    put(&layer, "root/.ssh/config", 0o600, "StrictHostKeyChecking accept-new\n")?;
    for folder in ["root", "root/.ssh"] {
        fs::set_permissions(layer.join(folder), fs::Permissions::from_mode(0o700))?;
    }
    put(&layer, "etc/ssh/sshd_config.d/lab.conf", 0o644, "UseDNS no\n")?;
    // A container's first process ignores SIGTERM: each reboot would wait 90 s for it.
    put(&layer, "etc/systemd/system.conf.d/lab.conf", 0o644, "[Manager]\nDefaultTimeoutStopSec=5s\n")?;
    put(&layer, "usr/lib/systemd/system/keepalived.service.d/lab.conf", 0o644, &real_time())?;
    put(&layer, "etc/hosts", 0o644, &hosts_file())?;
    put(&layer, "usr/lib/lab/init", 0o755, include_str!("init.sh"))?;
    fs::create_dir_all(layer.join("usr/local/bin"))?;
    for (name, program) in programs {
        let target = layer.join("usr/local/bin").join(name);
        // The same file where that is possible: a debug build is large.
        if fs::hard_link(program, &target).is_err() {
            fs::copy(program, &target).with_context(|| format!("cannot copy {}", program.display()))?;
        }
    }
    for part in DIRECT {
        fs::create_dir_all(layer.join("var/lib").join(part))?;
    }
    Ok(())
}

/// Hands the host's real-time share on to keepalived, which no systemd does where control groups are v1 and the kernel divides it.
fn real_time() -> String {
    let groups = "for g in system.slice system.slice/%n";
    let give = format!("echo {} 2>/dev/null >/sys/fs/cgroup/cpu/$$g/cpu.rt_runtime_us", cgroup::REAL_TIME);
    format!("[Service]\nExecStartPre=+-/bin/sh -c '{groups}; do {give}; done 2>/dev/null'\n")
}

fn hosts_file() -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    for number in 1..=MOST_HOSTS {
        let address = Address::host(number);
        text.extend([format!("{} h{number}\n", address.v4), format!("{} h{number}\n", address.v6)]);
    }
    text
}

fn ssh_key(file: &Path, comment: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"]).arg(file)).map(drop)
}

fn put(tree: &Path, path: &str, mode: u32, content: &str) -> Result<()> {
    let file = tree.join(path);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
    Ok(())
}

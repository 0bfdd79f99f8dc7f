use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use node::{Context as _, Host, Result, Undone, run};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::steps::KUBELET;

/// Where k3s and its pods mount.
const MOUNTS: [&str; 5] = ["/run/k3s", "/var/lib/rancher/k3s", "/var/lib/kubelet", "/run/netns/cni-", "/run/flannel"];

/// Interfaces that k3s makes.
const LINKS: [&str; 5] = ["cni0", "flannel.1", "flannel-v6.1", "flannel-wg", "kube-ipvs0"];

/// Takes away what k3s made on this host: pods, mounts, interfaces, packet filter rules, and then the folders that were not
/// there before it. The unit must have been stopped: that leaves the pods running.
///
/// # Errors
/// When something cannot be taken away.
pub async fn undo(_host: &Host, data: &serde_json::Value) -> Result<Undone> {
    kill_pods().await?;
    unmount_all()?;
    remove_links().await?;
    clean_rules().await?;
    let words = |key: &str| -> Vec<&str> { data[key].as_array().into_iter().flatten().filter_map(|v| v.as_str()).collect() };
    let mut paths: Vec<PathBuf> = words("absent").into_iter().map(PathBuf::from).collect();
    let kept = words("kubelet");
    if let Ok(entries) = fs::read_dir(KUBELET) {
        paths.extend(entries.flatten().filter(|e| !kept.iter().any(|k| e.file_name() == *k)).map(|e| e.path()));
    }
    let mut removed = 0;
    for path in paths {
        let gone = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match gone {
            Ok(()) => removed += 1,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).context(format!("cannot remove {}", path.display())),
        }
    }
    Ok(if removed == 0 {
        Undone::gone("k3s's pods and data")
    } else {
        Undone::back("k3s's pods, mounts, interfaces, rules and data removed")
    })
}

/// Kills the shims of k3s's containerd and all that runs below them; and docker's containers of the kubelet.
async fn kill_pods() -> Result<()> {
    for _ in 0..50 {
        let pods = pods(&processes());
        if pods.is_empty() {
            break;
        }
        for pid in pods.into_iter().filter_map(Pid::from_raw) {
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(e) => return Err(e).context("cannot end the pods of k3s"),
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if which::which("docker").is_ok() && Path::new("/run/docker.sock").exists() {
        let list = run("docker", &["ps", "--all", "--quiet", "--filter", "name=^k8s_"], Duration::from_secs(30)).await?;
        let ids: Vec<&str> = list.stdout.split_whitespace().collect();
        if !ids.is_empty() {
            run("docker", &[&["rm", "--force"], ids.as_slice()].concat(), Duration::from_secs(120)).await?;
        }
    }
    Ok(())
}

#[derive(Debug, Clone)]
struct Process {
    pid: i32,
    parent: i32,
    command: String,
}

fn processes() -> Vec<Process> {
    let of = |dir: &Path| -> Option<Process> {
        let stat = fs::read_to_string(dir.join("stat")).ok()?;
        // the name in parentheses may hold anything, also parentheses
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let command = String::from_utf8_lossy(&fs::read(dir.join("cmdline")).ok()?).replace('\0', " ");
        Some(Process { pid: dir.file_name()?.to_str()?.parse().ok()?, parent, command })
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|d| of(&d.path())).collect()
}

/// The shims of k3s's own containerd (told by its socket) and their descendants.
fn pods(all: &[Process]) -> Vec<i32> {
    let shim = |p: &&Process| p.command.contains("containerd-shim") && p.command.contains("/run/k3s/");
    let mut found: Vec<i32> = all.iter().filter(shim).map(|p| p.pid).collect();
    let mut n = 0;
    while n < found.len() {
        let parent = found[n];
        found.extend(all.iter().filter(|p| p.parent == parent).map(|p| p.pid));
        n += 1;
    }
    found
}

fn unmount_all() -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let mut mounts: Vec<String> = table.lines().filter_map(|l| l.split_whitespace().nth(4)).map(unescape).collect();
    mounts.retain(|m| MOUNTS.iter().any(|p| m.starts_with(p) && m != p || m.starts_with("/run/netns/cni-")));
    // the innermost first; what is a mount of the host's own (a disk at /var/lib/rancher/k3s) stays
    for mount in mounts.iter().rev() {
        match unmount(mount.as_str(), UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e).context(format!("cannot unmount {mount}")),
        }
        if mount.starts_with("/run/netns/cni-") {
            let _ = fs::remove_file(mount);
        }
    }
    Ok(())
}

/// mountinfo writes white space and backslashes in octal (proc(5)).
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

async fn remove_links() -> Result<()> {
    for link in LINKS.iter().filter(|l| Path::new("/sys/class/net").join(l).exists()) {
        let out = run("ip", &["link", "delete", link], Duration::from_secs(10)).await?;
        if !out.success() {
            tracing::warn!(link, "cannot delete the interface: {}", out.tail(1));
        }
    }
    Ok(())
}

/// Takes k3s's chains out of the packet filter and leaves all others.
async fn clean_rules() -> Result<()> {
    for (save, restore) in [("iptables-save", "iptables-restore"), ("ip6tables-save", "ip6tables-restore")] {
        if which::which(save).is_err() {
            continue;
        }
        let all = run(save, &[] as &[&str], Duration::from_secs(30)).await?;
        let kept = without_k3s(&all.stdout);
        if !all.success() || kept == all.stdout {
            continue;
        }
        let file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
        fs::write(file.path(), kept).context("cannot write a temporary file")?;
        let path = file.path().to_string_lossy().into_owned();
        let out = run(restore, &[path.as_str()], Duration::from_secs(30)).await?;
        if !out.success() {
            return Err(node::Error::failed(format!("cannot take k3s's rules out of the packet filter: {}", out.tail(2))));
        }
    }
    Ok(())
}

/// The rules and chains that kube-proxy, the CNI plugins and flannel make carry their names.
fn without_k3s(rules: &str) -> String {
    rules
        .lines()
        .filter(|l| !["KUBE-", "CNI-", "FLANNEL-", "flannel"].iter().any(|n| l.contains(n)))
        .fold(String::new(), |s, l| s + l + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_pods_and_nothing_else() {
        let p = |pid, parent, command: &str| Process { pid, parent, command: command.into() };
        let all = [
            p(1, 0, "/sbin/init"),
            p(10, 1, "/usr/bin/containerd-shim-runc-v2 -namespace k8s.io -address /run/k3s/containerd/containerd.sock"),
            p(11, 10, "/pause"),
            p(12, 10, "nginx"),
            p(13, 12, "nginx: worker"),
            p(20, 1, "/usr/bin/containerd-shim-runc-v2 -namespace moby -address /run/containerd/containerd.sock"),
            p(21, 20, "postgres"),
        ];
        let mut found = pods(&all);
        found.sort_unstable();
        assert_eq!(found, [10, 11, 12, 13]);
    }

    #[test]
    fn leaves_other_peoples_rules() {
        let rules = "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE\nCOMMIT\n";
        assert_eq!(without_k3s(rules), "*nat\n-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE\nCOMMIT\n");
    }
}

//! What an update of a package disturbs, by its name.

use serde::{Deserialize, Serialize};

/// What an update of a package disturbs on a node, which had better be drained before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Impact {
    /// The kernel: a reboot.
    Kernel,
    /// k3s: the node's Kubernetes, and on a server the API and etcd.
    K3s,
    /// containerd or runc: what pods run in.
    Containerd,
    /// Docker: what pods run in with `--runtime docker`.
    Docker,
}

impl Impact {
    /// What an update of the package of this name disturbs; None: nothing of the node's.
    pub fn of(package: &str) -> Option<Self> {
        let is = |names: &[&str]| names.contains(&package);
        // the kernel itself in its flavours, but not what is only named after it (headers, tools, macros)
        let begins = |starts: &[&str]| starts.iter().any(|start| package.strip_prefix(start).is_some_and(edge));
        let kernel = begins(&[
            "linux-image",
            "linux-modules",
            "kernel-core",
            "kernel-modules",
            "kernel-rt-core",
            "kernel-rt-modules",
            "kernel-default",
            "kernel-uek",
        ]) || is(&["kernel", "kernel-rt", "kernel-azure", "kernel-64k", "vzkernel", "raspberrypi-kernel"])
            || is(&["linux", "linux-lts", "linux-zen", "linux-hardened", "linux-rt", "linux-rt-lts"])
            || (package.starts_with("linux-generic") || package.starts_with("linux-virtual"));
        if kernel {
            Some(Self::Kernel)
        } else if begins(&["k3s"]) {
            Some(Self::K3s)
        } else if is(&["containerd", "containerd.io", "runc", "crun"]) {
            Some(Self::Containerd)
        } else if is(&["docker", "docker.io", "docker-ce", "docker-engine", "docker-latest", "moby-engine"]) {
            Some(Self::Docker)
        } else {
            None
        }
    }
}

/// Whether a name may end or go on like this after a whole word of it.
fn edge(rest: &str) -> bool {
    let after = ["-devel", "-headers", "-doc", "-dbg", "-dbgsym", "-debuginfo"];
    (rest.is_empty() || rest.starts_with('-')) && !after.iter().any(|end| rest.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_disturbs_a_node() {
        for (names, impact) in [
            ("kernel kernel-core kernel-rt-core kernel-modules-extra kernel-default vzkernel linux linux-lts", Some(Impact::Kernel)),
            ("linux-image-amd64 linux-image-6.1.0-30-amd64 linux-modules-6.8.0-31-generic linux-generic-hwe-24.04", Some(Impact::Kernel)),
            ("k3s k3s-selinux", Some(Impact::K3s)),
            ("containerd containerd.io runc", Some(Impact::Containerd)),
            ("docker docker.io docker-ce moby-engine", Some(Impact::Docker)),
            ("kernel-headers kernel-tools kernel-srpm-macros kernel-default-devel linux-libc-dev linux-firmware linux-image-6.1-dbg", None),
            ("util-linux bash docker-cli k3sup python3-docker kernelcare", None),
        ] {
            for name in names.split(' ') {
                assert_eq!(Impact::of(name), impact, "{name}");
            }
        }
    }
}

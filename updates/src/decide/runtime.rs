//! Whether pods have to go before a package is installed.

use crate::PackageName;

/// What pods run on: a new build of it stops them, or its scripts do.
const RUNTIME: [&str; 16] = [
    "containerd",
    "containerd.io",
    "cri-o",
    "docker",
    "docker-ce",
    "docker-engine",
    "docker.io",
    "k3s",
    "kernel",
    "linux",
    "moby-engine",
    "podman",
    "runc",
    "crun",
    "smart-updates",
    "vzkernel",
];
/// Kernels that have their version, or what they are for, in their name.
const KERNELS: [&str; 6] = ["kernel-core", "kernel-default", "kernel-modules", "linux-image", "linux-lts", "kernel-rt"];

/// Whether pods have to go before it is installed: it is the kernel, or something that runs pods.
pub(super) fn stops_pods(package: &PackageName) -> bool {
    let name = package.name();
    let kernel = |k: &str| name.strip_prefix(k).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    RUNTIME.contains(&name) || name.starts_with("k3s-") || KERNELS.iter().any(|k| kernel(k))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_what_runs_pods() {
        let stops = |names: &[&str]| names.iter().filter(|n| stops_pods(&n.parse().unwrap())).copied().collect::<Vec<_>>().join(" ");
        let names = [
            "kernel-6.1-1.x86_64",
            "kernel-core-6.1-1.x86_64",
            "kernel-headers-6.1-1.x86_64",
            "kernel-tools-6.1-1.x86_64",
            "kernel-default-6.4-1.x86_64",
            "linux-image-amd64=6.1",
            "linux-image-6.1.0-40-amd64=6.1",
            "linux-libc-dev=6.1",
            "k3s-selinux-1.2-2.noarch",
            "k3s-1.33.1-1.x86_64",
            "containerd.io=1.7",
            "docker-ce-cli=27",
            "docker-ce=27",
            "runc=1.1",
            "vzkernel-3.10-1.x86_64",
            "bash=5.2",
        ];
        insta::assert_snapshot!(stops(&names), @"kernel-6.1-1.x86_64 kernel-core-6.1-1.x86_64 kernel-default-6.4-1.x86_64 linux-image-amd64=6.1 linux-image-6.1.0-40-amd64=6.1 k3s-selinux-1.2-2.noarch k3s-1.33.1-1.x86_64 containerd.io=1.7 docker-ce=27 runc=1.1 vzkernel-3.10-1.x86_64");
    }
}

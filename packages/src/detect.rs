//! Which package manager is the host's own.

use std::fs;

use node::{Error, Result};

use crate::{Manager, OnHost};

/// Where programs are.
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/usr/local/bin"];

fn has(host: &OnHost, program: &str) -> bool {
    // a link may lead to another root than ours: that it is there is enough
    FOLDERS.iter().any(|folder| fs::symlink_metadata(host.file(folder).join(program)).is_ok())
}

/// What the names in os-release(5), its own and those that it is like, say that the host's packages are made for.
fn family(os_release: &str) -> Option<Family> {
    let value = |key: &str| os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let names = [value("ID"), value("ID_LIKE")].into_iter().flatten().flat_map(|v| v.trim_matches(['"', '\'']).split(' '));
    names.into_iter().find_map(|name| match name {
        "debian" | "ubuntu" => Some(Family::Debian),
        "rhel" | "fedora" | "centos" | "virtuozzo" => Some(Family::RedHat),
        "suse" | "opensuse" | "sles" => Some(Family::Suse),
        "arch" => Some(Family::Arch),
        _ => None,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Debian,
    RedHat,
    Suse,
    Arch,
}

/// Some distributions carry the package managers of others; os-release(5) says which one is at home.
pub(crate) fn detect(host: &OnHost) -> Result<Manager> {
    let os_release = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| fs::read_to_string(host.file(path)).ok());
    let families = [Family::Debian, Family::RedHat, Family::Suse, Family::Arch];
    let known = os_release.as_deref().and_then(family);
    let found = known.into_iter().chain(families).find_map(|family| match family {
        Family::Debian => has(host, "apt-get").then_some(Manager::Apt),
        // `dnf` is one of the two, and `yum` may be a link to either
        Family::RedHat if has(host, "dnf5") => Some(Manager::Dnf5),
        Family::RedHat if has(host, "dnf") || has(host, "dnf-3") => Some(Manager::Dnf4),
        Family::RedHat => has(host, "yum").then_some(Manager::Yum),
        Family::Suse => has(host, "zypper").then_some(Manager::Zypper),
        Family::Arch => has(host, "pacman").then_some(Manager::Pacman),
    });
    found.ok_or_else(|| Error::failed("no package manager is known on this host (apt-get, dnf, yum, zypper, pacman)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detected(os_release: &str, programs: &[&str]) -> Option<Manager> {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        if !os_release.is_empty() {
            fs::write(root.path().join("etc/os-release"), os_release).unwrap();
        }
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        fs::write(root.path().join("usr/lib/os-release"), "ID=opensuse-tumbleweed\nID_LIKE=\"opensuse suse\"\n").unwrap();
        for program in programs {
            std::os::unix::fs::symlink("/nowhere", root.path().join("usr/bin").join(program)).unwrap();
        }
        detect(&OnHost::through([], root.path())).ok()
    }

    #[test]
    fn the_hosts_own_manager() {
        let all = ["apt-get", "dnf", "yum", "zypper", "pacman"];
        for (os_release, programs, manager) in [
            ("ID=debian\n", &all[..], Some(Manager::Apt)),
            ("NAME=x\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", &all, Some(Manager::Apt)),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", &all, Some(Manager::Dnf4)),
            ("ID=fedora\n", &["dnf", "dnf5", "yum", "apt-get"], Some(Manager::Dnf5)),
            ("ID=\"virtuozzo\"\nID_LIKE=\"rhel fedora\"\n", &["yum"], Some(Manager::Yum)),
            ("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", &all, Some(Manager::Zypper)),
            ("ID=arch\n", &all, Some(Manager::Pacman)),
            ("ID=mine\n", &["zypper"], Some(Manager::Zypper)),
            ("ID=debian\n", &["zypper"], Some(Manager::Zypper)),
            ("ID=alpine\n", &[], None),
            ("ID=ol\nID_LIKE=fedora\n", &["dnf-3", "yum"], Some(Manager::Dnf4)),
            // the vendor's, where there is no other (os-release(5))
            ("", &all, Some(Manager::Zypper)),
        ] {
            assert_eq!(detected(os_release, programs), manager, "{os_release}");
        }
    }
}

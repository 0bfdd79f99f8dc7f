//! What smartup set up on this host, and what others left behind on it.

use std::path::{Path, PathBuf};

use firewall::RuleState;
use node::{FileStands, UnitState, WrittenFile};

use super::finding::Finding;

const UNITS: &str = "units";
const FILES: &str = "files";
const RULES: &str = "firewall-rules";
const LEFTOVERS: &str = "leftovers";

/// The check `units`: they run, start at boot, and systemd knows their files as they are.
pub fn units(units: &[(String, UnitState)]) -> Vec<Finding> {
    let mut found = Vec::new();
    for (unit, state) in units {
        let log = format!("see journalctl -u {unit}; to start it: systemctl start {unit}");
        let now = format!("{} ({})", state.active, state.sub);
        match state.active.as_str() {
            "active" => {}
            "activating" | "reloading" => found.push(Finding::warn(UNITS, format!("{unit} is on its way: {now}"), log)),
            _ if !state.exists() => found.push(Finding::fail(UNITS, format!("there is no {unit}"), "run smartup init or join here again")),
            _ => found.push(Finding::fail(UNITS, format!("{unit} does not run: {now}"), log)),
        }
        if state.exists() && !state.enabled() {
            found.push(Finding::warn(UNITS, format!("{unit} does not start at boot"), format!("systemctl enable {unit}")));
        }
        if state.stale {
            let what = format!("systemd has not read the changed files of {unit} yet");
            found.push(Finding::warn(UNITS, what, "systemctl daemon-reload, then restart the unit when it suits"));
        }
    }
    if found.is_empty() {
        let names: Vec<&str> = units.iter().map(|(unit, _)| unit.as_str()).collect();
        found.push(Finding::ok(UNITS, format!("{} run, and start at boot", names.join(" and "))));
    }
    found
}

/// The check `files`: what smartup wrote is as it wrote it.
pub fn files(files: &[WrittenFile]) -> Vec<Finding> {
    let again = "run smartup init, join or apply again: it puts it back as it should be";
    let found: Vec<Finding> = files
        .iter()
        .filter_map(|f| match f.stands {
            FileStands::AsExpected => None,
            FileStands::Edited => Some(Finding::warn(FILES, format!("{} was edited since smartup wrote it", f.path.display()), again)),
            FileStands::Missing => Some(Finding::fail(FILES, format!("{} was removed since smartup wrote it", f.path.display()), again)),
        })
        .collect();
    if found.is_empty() { vec![Finding::ok(FILES, format!("{} files are as smartup wrote them", files.len()))] } else { found }
}

/// The check `firewall-rules`: what the role needs is let in, now and after a reload.
pub fn rules(rules: &[RuleState]) -> Vec<Finding> {
    if rules.iter().any(|r| r.runtime.is_none() || r.permanent.is_none()) {
        let hint = "if it should run: systemctl start firewalld; if it is not wanted: smartup init or join again with --no-firewall";
        return vec![Finding::unknown(
            RULES,
            "firewalld does not run: nothing may be blocked, or something else may do it",
            Some(hint.into()),
        )];
    }
    let found: Vec<Finding> = rules
        .iter()
        .filter_map(|r| {
            let zone = r.zone.as_deref().unwrap_or_default();
            let again = "run smartup init, join or apply again: it adds what is missing";
            match (r.runtime, r.permanent) {
                (Some(false), Some(false)) => Some(Finding::fail(RULES, format!("{} is not let in (zone {zone})", r.rule), again)),
                (Some(false), _) => {
                    Some(Finding::fail(RULES, format!("{} is not let in now, but would be after a reload (zone {zone})", r.rule), again))
                }
                (_, Some(false)) => {
                    Some(Finding::warn(RULES, format!("{} is let in now, but not after a reload or boot (zone {zone})", r.rule), again))
                }
                _ => None,
            }
        })
        .collect();
    if found.is_empty() { vec![Finding::ok(RULES, format!("all {} rules are there, now and after a reload", rules.len()))] } else { found }
}

/// Units of k3s's.
pub const UNIT_NAMES: [&str; 3] = ["k3s-server.service", "k3s-agent.service", "k3s.service"];

/// Folders that k3s and its pods fill; an empty one is nothing.
const FOLDERS: [&str; 7] = ["/var/lib/rancher", "/etc/rancher", "/etc/k3s", "/var/lib/kubelet", "/var/lib/cni", "/run/k3s", "/run/flannel"];

/// Interfaces of the pod network: flannel's bridge and its tunnels, kube-proxy's.
const INTERFACES: [&str; 5] = ["cni0", "flannel.1", "flannel-v6.1", "flannel-wg", "kube-ipvs0"];

/// What is left on a host that is no member of a cluster.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Of [`UNIT_NAMES`].
    pub units: Vec<String>,
    /// Of the folders that k3s fills.
    pub folders: Vec<PathBuf>,
    /// Of the pod network.
    pub interfaces: Vec<String>,
    /// Changes of smartup's own that were not undone.
    pub changes: usize,
}

/// Those of k3s's folders that hold something, on a disk that begins at `root`.
pub fn folders(root: &Path) -> Vec<PathBuf> {
    let holds =
        |p: &PathBuf| std::fs::read_dir(root.join(p.strip_prefix("/").unwrap_or(p))).is_ok_and(|mut entries| entries.next().is_some());
    FOLDERS.iter().map(PathBuf::from).filter(holds).collect()
}

/// Those of the interfaces that are the pod network's.
pub fn interfaces<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    names.filter(|n| INTERFACES.contains(n)).map(str::to_owned).collect()
}

/// The check `leftovers`.
pub fn leftovers(left: &Leftovers) -> Finding {
    let folders: Vec<String> = left.folders.iter().map(|f| f.display().to_string()).collect();
    let parts: Vec<String> = [("unit", &left.units), ("folder", &folders), ("interface", &left.interfaces)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(kind, names)| format!("{kind}{} {}", if names.len() == 1 { "" } else { "s" }, names.join(", ")))
        .chain((left.changes > 0).then(|| format!("{} changes of smartup's own that were not undone", left.changes)))
        .collect();
    if parts.is_empty() {
        return Finding::ok(LEFTOVERS, "nothing of an earlier k3s is on this host");
    }
    let hint = if left.changes > 0 {
        "smartup reset undoes them"
    } else {
        "if nobody needs it any more: k3s-uninstall.sh or k3s-agent-uninstall.sh where they are, then remove the rest by hand"
    };
    Finding::warn(LEFTOVERS, format!("an earlier k3s left {}", parts.join("; ")), hint)
}

#[cfg(test)]
mod tests {
    use cluster::{Port, Role};

    use super::super::finding::Verdict;
    use super::*;

    fn unit(active: &str, file: &str) -> UnitState {
        UnitState {
            load: "loaded".into(),
            active: active.into(),
            sub: "x".into(),
            file: file.into(),
            fragment: None,
            drop_ins: Vec::new(),
            stale: false,
            restarts: 0,
            pid: 1,
        }
    }

    fn said(found: &[Finding]) -> Vec<(Verdict, &str)> {
        found.iter().map(|f| (f.verdict, f.what.as_str())).collect()
    }

    #[test]
    fn units_that_run_and_that_do_not() {
        let fine = [("a.service".to_owned(), unit("active", "enabled"))];
        assert_eq!(said(&units(&fine)), [(Verdict::Ok, "a.service run, and start at boot")]);
        let ill = [
            ("a.service".to_owned(), unit("inactive", "disabled")),
            ("b.service".to_owned(), unit("activating", "enabled")),
            ("c.service".to_owned(), UnitState { load: "not-found".into(), ..unit("inactive", "") }),
            ("d.service".to_owned(), UnitState { stale: true, ..unit("active", "enabled") }),
        ];
        assert_eq!(
            said(&units(&ill)),
            [
                (Verdict::Fail, "a.service does not run: inactive (x)"),
                (Verdict::Warn, "a.service does not start at boot"),
                (Verdict::Warn, "b.service is on its way: activating (x)"),
                (Verdict::Fail, "there is no c.service"),
                (Verdict::Warn, "systemd has not read the changed files of d.service yet"),
            ]
        );
    }

    #[test]
    fn files_that_changed() {
        let file = |path: &str, stands| WrittenFile { path: path.into(), stands };
        assert_eq!(files(&[file("/a", FileStands::AsExpected)])[0].verdict, Verdict::Ok);
        assert_eq!(
            said(&files(&[file("/a", FileStands::Edited), file("/b", FileStands::Missing), file("/c", FileStands::AsExpected)])),
            [(Verdict::Warn, "/a was edited since smartup wrote it"), (Verdict::Fail, "/b was removed since smartup wrote it")]
        );
    }

    #[test]
    fn rules_that_hold_now_later_or_not_at_all() {
        let needed =
            firewall::Rules { role: Role::Server, port: Port::API, interface: "eth0".parse().unwrap(), trusted: vec![] }.required();
        let state = |n: usize, runtime, permanent| RuleState { zone: Some("public".into()), rule: needed[n].clone(), runtime, permanent };
        let yes = Some(true);
        assert_eq!(rules(&[state(0, yes, yes)])[0].verdict, Verdict::Ok);
        let found =
            rules(&[state(0, Some(false), Some(false)), state(1, Some(false), yes), state(2, yes, Some(false)), state(3, yes, yes)]);
        assert_eq!(
            said(&found),
            [
                (Verdict::Fail, "VRRP is not let in (zone public)"),
                (Verdict::Fail, "9443/tcp is not let in now, but would be after a reload (zone public)"),
                (Verdict::Warn, "2379-2380/tcp is let in now, but not after a reload or boot (zone public)"),
            ]
        );
        assert_eq!(rules(&[state(0, None, None)])[0].verdict, Verdict::Unknown);
    }

    #[test]
    fn what_is_left_is_named() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["var/lib/rancher/k3s", "var/lib/kubelet", "etc/k3s"] {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        std::fs::write(root.path().join("etc/k3s/k3s-agent.env"), "").unwrap();
        let left = Leftovers {
            units: vec!["k3s.service".into()],
            folders: folders(root.path()),
            interfaces: interfaces(["lo", "eth0", "cni0", "flannel.1"].into_iter()),
            changes: 0,
        };
        let found = leftovers(&left);
        assert_eq!(found.what, "an earlier k3s left unit k3s.service; folders /var/lib/rancher, /etc/k3s; interfaces cni0, flannel.1");
        assert_eq!(leftovers(&Leftovers::default()).verdict, Verdict::Ok);
        assert!(leftovers(&Leftovers { changes: 3, ..Leftovers::default() }).hint.unwrap().contains("smartup reset"));
    }
}

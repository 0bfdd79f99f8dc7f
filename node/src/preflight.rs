use std::fs;
use std::net::IpAddr;
use std::path::Path;

use rustix::fs::statvfs;

use crate::{Error, Host, Kind, SeLinux};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Fine.
    Ok,
    /// Worth knowing; it stops nothing.
    Warn,
    /// It stops the run, unless it is ignored by name.
    Fail,
}

/// What a named check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The name that `--ignore` takes.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What it means when it fails.
    pub kind: Kind,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Finding {
    /// Fine.
    pub fn ok(name: &'static str, what: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, kind: Kind::Failed, what: what.into(), hint: None }
    }

    /// Worth knowing.
    pub fn warn(name: &'static str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, kind: Kind::Failed, what: what.into(), hint: Some(hint.into()) }
    }

    /// It stops the run.
    pub fn fail(name: &'static str, error: &Error) -> Self {
        Self { name, verdict: Verdict::Fail, kind: error.kind, what: error.chain(), hint: error.hint.clone() }
    }
}

/// All findings, in one report.
#[derive(Debug, Clone, Default)]
pub struct Preflight(pub Vec<Finding>);

impl Preflight {
    /// The failures that are not ignored, as one error: refused if one of them is, else invalid if one is.
    ///
    /// # Errors
    /// When there is one.
    pub fn verdict(&self, ignore: &[String]) -> Result<(), Error> {
        let failed: Vec<&Finding> = self.0.iter().filter(|f| f.verdict == Verdict::Fail && !ignore.iter().any(|i| i == f.name)).collect();
        if failed.is_empty() {
            return Ok(());
        }
        let kind = [Kind::Refused, Kind::Invalid, Kind::Failed].into_iter().find(|k| failed.iter().any(|f| f.kind == *k));
        let lines: Vec<String> = failed
            .iter()
            .map(|f| match &f.hint {
                Some(h) => format!("  {}: {}\n    hint: {h}", f.name, f.what),
                None => format!("  {}: {}", f.name, f.what),
            })
            .collect();
        let n = failed.len();
        let s = if n == 1 { "" } else { "s" };
        let mut e = Error::failed(format!("{n} check{s} failed; nothing was changed on this host:\n{}", lines.join("\n")));
        e.kind = kind.unwrap_or(Kind::Failed);
        let names: Vec<&str> = failed.iter().map(|f| f.name).collect();
        Err(e.hint(format!("mend this and run again; what you know to be harmless: --ignore {}", names.join(","))))
    }
}

const MIB: u64 = 1024 * 1024;

/// The checks of the host itself; `family` is an address of the family that the cluster uses.
pub fn host_checks(host: &Host, family: IpAddr) -> Vec<Finding> {
    let facts = &host.facts;
    let mut found = vec![
        if facts.root {
            Finding::ok("root", "runs as root")
        } else {
            Finding::fail("root", &Error::failed("smartup does not run as root").hint("run it with sudo"))
        },
        if facts.systemd {
            Finding::ok("systemd", "systemd runs this host")
        } else {
            Finding::fail("systemd", &Error::failed("systemd does not run this host"))
        },
        match facts.node_name() {
            Ok(name) => Finding::ok("hostname", format!("the node's name will be {name}")),
            Err(e) => Finding::fail("hostname", &e),
        },
        if facts.has_default_route(family) {
            Finding::ok("default-route", "there is a default route")
        } else {
            let hint = "k3s needs one even if it leads nowhere: ip route add default via GATEWAY";
            Finding::fail("default-route", &Error::failed("there is no default route").hint(hint))
        },
        memory(facts.memory),
    ];
    found.push(disk(Path::new("/var/lib")));
    found.push(clock());
    if facts.selinux == SeLinux::Enforcing && !Path::new("/usr/share/selinux/packages/k3s.pp").exists() {
        found.push(Finding::warn("selinux", "SELinux enforces, and k3s's policy is not installed", "install the package k3s-selinux"));
    }
    found
}

/// k3s asks for 512 MB on an agent and 2 GB on a server (k3s's requirements page); below the former nothing works.
fn memory(bytes: u64) -> Finding {
    let mib = bytes / MIB;
    if mib < 480 {
        Finding::fail("memory", &Error::failed(format!("{mib} MiB of memory; k3s needs 512")))
    } else if mib < 1900 {
        Finding::warn("memory", format!("{mib} MiB of memory"), "k3s asks for 2 GiB on a server, 512 MiB on an agent")
    } else {
        Finding::ok("memory", format!("{mib} MiB of memory"))
    }
}

fn disk(path: &Path) -> Finding {
    match statvfs(path) {
        Err(e) => Finding::warn("disk", format!("cannot tell how much space {} has: {e}", path.display()), "look with df"),
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize) / MIB;
            if free < 1024 {
                Finding::fail("disk", &Error::failed(format!("{free} MiB free in {}; images and etcd need 1024 at least", path.display())))
            } else if free < 5120 {
                Finding::warn("disk", format!("{free} MiB free in {}", path.display()), "images soon need more: 5 GiB is a start")
            } else {
                Finding::ok("disk", format!("{free} MiB free in {}", path.display()))
            }
        }
    }
}

/// Whether something keeps the clock right: systemd-timesyncd's flag file, chrony's or ntpd's process.
fn clock() -> Finding {
    let synced = Path::new("/run/systemd/timesync/synchronized").exists();
    let daemon = || {
        let names = ["chronyd", "ntpd", "ptp4l", "systemd-timesyn"];
        fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .any(|p| fs::read_to_string(p.path().join("comm")).is_ok_and(|c| names.contains(&c.trim())))
    };
    if synced || daemon() {
        Finding::ok("clock", "the clock is kept right")
    } else {
        Finding::warn("clock", "nothing seems to keep this host's clock right", "install chrony, or enable systemd-timesyncd")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_failures_are_in_one_report_and_can_be_ignored_by_name() {
        let report = Preflight(vec![
            Finding::ok("root", "yes"),
            Finding::fail("ports", &Error::refused("port 9443 is used by nginx").hint("stop it")),
            Finding::fail("disk", &Error::failed("full")),
            Finding::warn("clock", "unknown", "chrony"),
        ]);
        let e = report.verdict(&[]).unwrap_err();
        assert_eq!(e.kind, Kind::Refused);
        assert!(
            e.what.contains("2 checks") && e.what.contains("nginx") && e.what.contains("full") && !e.what.contains("clock"),
            "{}",
            e.what
        );
        let e = report.verdict(&["ports".into()]).unwrap_err();
        assert_eq!(e.kind, Kind::Failed);
        assert!(report.verdict(&["ports".into(), "disk".into()]).is_ok());
    }
}

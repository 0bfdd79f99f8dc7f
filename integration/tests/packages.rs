//! A host that has neither keepalived nor firewalld gets them, from a package repository inside the lab.

mod common;

use anyhow::{Result, ensure};
use common::{VIP, done, init, status};
use integration::{Lab, LabSpec};

#[test]
fn missing_packages_are_installed_and_kept_by_a_reset() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(0).plain_hosts(1))?;
    let h1 = lab.host("h1")?;
    ensure!(!h1.exec(["which", "keepalived"])?.ok() && !h1.exec(["which", "firewalld"])?.ok(), "the host is plain");
    init(h1)?;
    let report = status(h1)?;
    ensure!(report["api"]["answers"] == true && report["vip"]["here"] == true, "{report:#}");
    // the firewall that was started with it does not shut anybody out
    ensure!(h1.ssh("true")?.ok(), "ssh still works");
    let zones = h1.run(["firewall-cmd", "--list-all"])?;
    ensure!(zones.contains("9443/tcp") && zones.contains("vrrp"), "{zones}");

    let said = done(h1, &["reset", "--yes"])?;
    ensure!(said.contains("package keepalived stays installed"), "{said}");
    for unit in ["keepalived", "firewalld"] {
        let state = h1.exec(["systemctl", "is-active", unit])?.stdout;
        ensure!(state.trim() == "inactive", "{unit} did not run before: {state}");
        ensure!(h1.exec(["systemctl", "is-enabled", unit])?.stdout.trim() != "enabled", "{unit} was not enabled before");
    }

    init(h1)?;
    ensure!(status(h1)?["api"]["answers"] == true);
    ensure!(!h1.addresses()?.is_empty() && h1.addresses()?.iter().any(|a| a.starts_with(VIP)));
    Ok(())
}

#[test]
fn a_reset_with_packages_removes_them() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(0).plain_hosts(1))?;
    let h1 = lab.host("h1")?;
    init(h1)?;
    done(h1, &["reset", "--yes", "--packages"])?;
    ensure!(!h1.exec(["which", "keepalived"])?.ok() && !h1.exec(["which", "firewalld"])?.ok(), "both are gone");
    ensure!(h1.ssh("true")?.ok(), "ssh still works");
    Ok(())
}

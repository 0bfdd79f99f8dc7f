//! A host that has neither keepalived nor firewalld gets them, from a package repository inside the lab.

mod common;

use anyhow::{Result, ensure};
use common::{LONG, VIP, done, init, smartup, status};
use integration::{Lab, LabSpec, until};

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

#[test]
fn a_release_is_downloaded_and_its_checksum_compared() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    let version = h1.run(["k3s", "--version"])?.split_whitespace().nth(2).unwrap_or_default().to_owned();
    ensure!(version.starts_with('v'), "{version}");
    // h2 is the mirror; h1 has no k3s yet
    h2.sh(&format!("mkdir -p /srv/{version} && ln /usr/local/bin/k3s /srv/{version}/k3s || cp /usr/local/bin/k3s /srv/{version}/k3s"))?;
    h2.sh(&format!("echo '{}  k3s' > /srv/{version}/sha256sum-amd64.txt; firewall-cmd -q --add-port=8000/tcp", "0".repeat(64)))?;
    h2.run(["systemd-run", "--unit", "mirror", "--working-directory=/srv", "python3", "-m", "http.server", "8000"])?;
    h1.run(["rm", "/usr/local/bin/k3s"])?;
    until("the mirror answers", LONG, || Ok(h1.exec(["curl", "-sf", "http://10.79.0.12:8000/"])?.ok().then_some(())))?;
    let args = ["init", "--vip", VIP, "--k3s-version", &version, "--k3s-mirror", "http://10.79.0.12:8000"];

    let nowhere = smartup(h1, &["init", "--vip", VIP])?;
    ensure!(nowhere.code == 2 && nowhere.stderr.contains("--k3s-version"), "{}", nowhere.stderr);
    let damaged = smartup(h1, &args)?;
    ensure!(damaged.code == 1 && damaged.stderr.contains("SHA-256"), "{}", damaged.stderr);
    ensure!(!h1.exec(["test", "-e", "/usr/local/bin/k3s"])?.ok(), "what is damaged is not installed");
    h2.sh(&format!("cd /srv/{version} && sha256sum k3s > sha256sum-amd64.txt"))?;
    done(h1, &args)?;
    ensure!(status(h1)?["api"]["answers"] == true);
    // the version is there: nothing is downloaded again, also when the mirror is gone
    h2.run(["systemctl", "stop", "mirror"])?;
    let again = smartup(h1, &[args.as_slice(), &["--dry-run", "--exit-code"]].concat())?;
    ensure!(again.code == 0, "{}{}", again.stdout, again.stderr);
    done(h1, &["reset", "--yes"])?;
    ensure!(!h1.exec(["test", "-e", "/usr/local/bin/k3s"])?.ok(), "reset removes what was installed");
    Ok(())
}

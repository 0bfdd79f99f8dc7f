//! `smartup updates …` and the reference's kubectl lines, beside each other, on one server. No operator runs: the test writes what
//! one would.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::{Host, Lab, LabSpec, until};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(180);
const OPERATOR: &str = "-n vz-maintenance-operator";

fn server(lab: &Lab) -> Result<&Host> {
    let host = lab.host("h1")?;
    let flags = "server --cluster-init --https-listen-port 9443 --node-ip 10.79.0.11 --flannel-iface eth0 --token a-lab-secret";
    let unit = format!("[Service]\nType=notify\nKillMode=process\nDelegate=yes\nTimeoutStartSec=0\nExecStart=/usr/local/bin/k3s {flags}\n");
    host.write("/etc/systemd/system/k3s-server.service", 0o644, unit)?;
    host.sh("systemctl daemon-reload; timeout 120 systemctl start k3s-server")?;
    until("the node is there", LONG, || Ok((host.sh("k3s kubectl get node h1 -o name")?.trim() == "node/h1").then_some(())))?;
    // the reference's lines are typed as they are
    host.sh("printf '#!/bin/sh\\nexec k3s kubectl \"$@\"\\n' > /usr/local/bin/kubectl; chmod 755 /usr/local/bin/kubectl")?;
    Ok(host)
}

fn apply(host: &Host, object: &Value) -> Result<()> {
    host.exec_with(["kubectl", "apply", "--server-side", "--force-conflicts", "-f", "-"], object.to_string().as_bytes())?
        .checked()
        .map(drop)
}

/// All that the command says, whatever becomes of it.
fn said(host: &Host, line: &str) -> Result<String> {
    let outcome = host.exec(["sh", "-c", &format!("TZ=Europe/Berlin smartup updates {line}")])?;
    ensure!(outcome.stdout.is_empty() || outcome.stderr.is_empty() || !outcome.ok(), "{line}: {outcome:?}");
    Ok(format!("[{}] {}{}", outcome.code, outcome.stdout, outcome.stderr).trim_end().to_owned())
}

fn spec(host: &Host) -> Result<Value> {
    let object: Value = serde_json::from_str(&host.sh(&format!("kubectl {OPERATOR} get updatemanagers default -o json"))?)?;
    Ok(object["spec"].clone())
}

fn label(host: &Host, key: &str) -> Result<Value> {
    let node: Value = serde_json::from_str(&host.sh("kubectl get node h1 -o json")?)?;
    Ok(node["metadata"]["labels"][key].clone())
}

/// As the operator would write it.
fn write_status(host: &Host, path: &str, status: &Value) -> Result<()> {
    let path = format!("/apis/maintenance.virtuozzo.io/v1/namespaces/vz-maintenance-operator/{path}");
    let mut object: Value = serde_json::from_str(&host.sh(&format!("kubectl get --raw {path}"))?)?;
    object["status"] = status.clone();
    let put = ["kubectl", "replace", "--raw", &format!("{path}/status"), "-f", "-"];
    host.exec_with(put, object.to_string().as_bytes())?.checked().map(drop)
}

#[test]
fn every_command_and_every_line_of_the_reference() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1))?;
    let host = server(&lab)?;
    before_there_is_anything(host)?;
    windows(host)?;
    bans(host)?;
    policies(host)?;
    suspended_and_asked(host)?;
    looked_at(host)?;
    two_writers(host)?;
    a_vendors(host)?;
    lab.down()
}

/// Commands, and what they said.
struct Told<'a> {
    host: &'a Host,
    lines: Vec<String>,
}

impl<'a> Told<'a> {
    fn of(host: &'a Host) -> Self {
        Self { host, lines: Vec::new() }
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        self.lines.push(format!("$ {line}\n{}", said(self.host, line)?));
        Ok(())
    }

    fn said(&self) -> String {
        self.lines.join("\n")
    }
}

fn metadata(name: &str) -> Value {
    json!({ "name": name, "namespace": "vz-maintenance-operator" })
}

/// Nothing to be changed: the commands say what to do.
fn before_there_is_anything(host: &Host) -> Result<()> {
    let mut told = Told::of(host);
    told.tell("status")?;
    for crd in updates::api::crds() {
        apply(host, &serde_json::to_value(crd)?)?;
    }
    host.sh("kubectl wait --for=condition=Established --timeout=60s crd/updatemanagers.maintenance.virtuozzo.io crd/nodeupdates.maintenance.virtuozzo.io; kubectl create namespace vz-maintenance-operator")?;
    told.tell("ban 123-4-r5")?;
    apply(
        host,
        &json!({ "apiVersion": "maintenance.virtuozzo.io/v1", "kind": "UpdateManager", "metadata": metadata("default"), "spec": {} }),
    )?;
    insta::assert_snapshot!(told.said(), @r"
    $ status
    [1] error: this cluster has no smart updates: it has no UpdateManager

    hint: smartup enable-updates
    $ ban 123-4-r5
    [1] error: this cluster has no smart updates: it has no UpdateManager

    hint: smartup enable-updates
    ");
    Ok(())
}

/// 7.4.3
fn windows(host: &Host) -> Result<()> {
    let mut told = Told::of(host);
    told.tell("window list")?;
    told.tell("window add '0 1 * * 1-5' 1h30m")?;
    told.tell("window add '0 22 * * 6' 8h --time-zone Europe/Berlin")?;
    told.tell("window add '0  1 * * 1-5' 90m")?;
    told.tell("window add '0 25 * * *' 1h")?;
    told.tell("window add '0 1 * * *' 1h --time-zone Europe/Berlni")?;
    told.tell("window remove '0 2 * * *'")?;
    let theirs = r#"kubectl -n vz-maintenance-operator patch updatemanagers default --type=merge -p '{"spec":{"maintenanceWindows":[{"duration":"1h30m","schedule":"0 1 * * 1-5"}]}}'"#;
    let listed = said(host, "window list")?;
    ensure!(listed.matches(" UTC").count() >= 6 && listed.contains("Europe/Berlin") && listed.contains(" CE"), "{listed}");
    told.tell("window remove '0 22 * * 6' 8h --time-zone Europe/Berlin")?;
    let ours = spec(host)?;
    host.sh(theirs)?;
    assert_eq!(ours["maintenanceWindows"], json!([{ "schedule": "0 1 * * 1-5", "duration": "1h30m" }]));
    assert_eq!(spec(host)?, ours);
    insta::assert_snapshot!(told.said(), @r"
    $ window list
    [0] There are no windows: updates may start at any time.
    $ window add '0 1 * * 1-5' 1h30m
    [0] window '0 1 * * 1-5' 1h30m UTC added
    $ window add '0 22 * * 6' 8h --time-zone Europe/Berlin
    [0] window '0 22 * * 6' 8h00m Europe/Berlin added
    $ window add '0  1 * * 1-5' 90m
    [0] window '0 1 * * 1-5' 1h30m UTC was already there
    $ window add '0 25 * * *' 1h
    [2] error: invalid value '0 25 * * *' for '<SCHEDULE>': has the hour '25', which is not from 0 to 23

    For more information, try '--help'.
    $ window add '0 1 * * *' 1h --time-zone Europe/Berlni
    [2] error: invalid value 'Europe/Berlni' for '--time-zone <ZONE>': is not in the time zone database; did you mean Europe/Berlin?

    For more information, try '--help'.
    $ window remove '0 2 * * *'
    [2] error: no such window: '0 2 * * *'

    hint: there are '0 1 * * 1-5' 1h30m UTC, '0 22 * * 6' 8h00m Europe/Berlin
    $ window remove '0 22 * * 6' 8h --time-zone Europe/Berlin
    [0] window '0 22 * * 6' 8h00m Europe/Berlin removed
    ");
    Ok(())
}

/// 7.4.4
fn bans(host: &Host) -> Result<()> {
    let mut told = Told::of(host);
    // no node lists anything yet, so all that has the form is taken
    told.tell("ban bash-4.2.46-34.vl7.x86_64 123-4-r5")?;
    let ours = spec(host)?;
    host.sh(r#"kubectl -n vz-maintenance-operator patch updatemanagers default --type=merge -p '{"spec":{"bannedPackages":["bash-4.2.46-34.vl7.x86_64"],"bannedPatches":["123-4-r5"]}}'"#)?;
    assert_eq!(spec(host)?, ours);
    let update = json!({
        "apiVersion": "maintenance.virtuozzo.io/v1", "kind": "NodeUpdate", "metadata": metadata("h1"),
        "spec": { "stage": "slow", "policy": "auto", "check": "none" },
    });
    apply(host, &update)?;
    let available = |names: &[&str]| json!(names.iter().map(|n| json!({ "name": n, "since": "2026-01-01T00:00:00Z" })).collect::<Vec<_>>());
    let report = json!({
        "agentVersion": "0.1.0", "reportedAt": "2026-01-02T03:04:05Z", "kernel": "6.1.0-40-amd64", "check": "none",
        "packages": { "checkedAt": "2026-01-02T03:04:05Z", "available": available(&["bash-4.2.46-35.vl7.x86_64", "vim-minimal-2:8.0.1763-19.el8_6.4.x86_64"]) },
        "patches": { "checkedAt": "2026-01-02T03:04:05Z", "error": "no route to host", "available": available(&["124-1-r1"]) },
    });
    write_status(host, "nodeupdates/h1", &report)?;
    told.tell("ban bash-4.2.46-36.vl7.x86_64")?;
    told.tell("ban 124-1-r1 bash-4.2.46")?;
    told.tell("ban 124-1-r1 bash-4.2.46-34.vl7.x86_64 vim-minimal-8.0.1763-19.el8_6.4.x86_64")?;
    told.tell("unban 124-1-r2")?;
    told.tell("unban 124-1-r1 123-4-r5")?;
    told.tell("bans")?;
    insta::assert_snapshot!(told.said(), @r"
    $ ban bash-4.2.46-34.vl7.x86_64 123-4-r5
    [0] bash-4.2.46-34.vl7.x86_64 banned
    123-4-r5 banned
    $ ban bash-4.2.46-36.vl7.x86_64
    [2] error: bash-4.2.46-36.vl7.x86_64 is available on no node; nothing was changed

    hint: did you mean bash-4.2.46-35.vl7.x86_64?
    $ ban 124-1-r1 bash-4.2.46
    [2] error: package 'bash-4.2.46': is not of the form <name>-<version>-<release>.<arch>, as in bash-4.2.46-34.vl7.x86_64, nor <name>=<version>, as in bash=5.2.15-2+b8

    hint: did you mean bash-4.2.46-35.vl7.x86_64?
    $ ban 124-1-r1 bash-4.2.46-34.vl7.x86_64 vim-minimal-8.0.1763-19.el8_6.4.x86_64
    [0] 124-1-r1 banned
    bash-4.2.46-34.vl7.x86_64 was already banned
    vim-minimal-8.0.1763-19.el8_6.4.x86_64 banned
    $ unban 124-1-r2
    [2] error: 124-1-r2 is not banned

    hint: did you mean 124-1-r1?
    $ unban 124-1-r1 123-4-r5
    [0] 124-1-r1 is no longer banned
    123-4-r5 is no longer banned
    $ bans
    [0] ITEM                                     KIND      SINCE   WHY
    bash-4.2.46-34.vl7.x86_64                package   -       -
    vim-minimal-8.0.1763-19.el8_6.4.x86_64   package   -       -
    ");
    Ok(())
}

/// 7.4.5
fn policies(host: &Host) -> Result<()> {
    let mut told = Told::of(host);
    told.tell("policy h1 fast")?;
    told.tell("policy h1 fast")?;
    assert_eq!(label(host, updates::names::POLICY_LABEL)?, "fast");
    host.sh("kubectl label node h1 maintenance.virtuozzo.io/auto-updates-policy=slow --overwrite")?;
    told.tell("policy h1 h11 stable")?;
    assert_eq!(label(host, updates::names::POLICY_LABEL)?, "slow");
    told.tell("policy h1 quick")?;
    told.tell("policy h1 auto")?;
    insta::assert_snapshot!(told.said(), @r"
    $ policy h1 fast
    [0] h1 has policy fast
    $ policy h1 fast
    [0] h1 had that policy already
    $ policy h1 h11 stable
    [2] error: there is no node h11; nothing was changed

    hint: did you mean h1?
    $ policy h1 quick
    [2] error: invalid value 'quick' for '<fast|slow|stable|auto>': is none of fast, slow, stable and auto

    For more information, try '--help'.
    $ policy h1 auto
    [0] h1 has policy auto
    ");
    Ok(())
}

/// 7.4.6, and what the reference has not.
fn suspended_and_asked(host: &Host) -> Result<()> {
    let mut told = Told::of(host);
    told.tell("suspend h1")?;
    assert_eq!(label(host, updates::names::SUSPEND_LABEL)?, "");
    host.sh("kubectl label nodes h1 maintenance.virtuozzo.io/suspend-")?;
    told.tell("resume h1")?;
    host.sh("kubectl label nodes h1 maintenance.virtuozzo.io/suspend=\"\"")?;
    told.tell("suspend h1")?;
    told.tell("resume h1")?;
    assert_eq!(label(host, updates::names::SUSPEND_LABEL)?, Value::Null);
    told.tell("suspend")?;
    assert_eq!(spec(host)?["suspend"], true);
    host.sh(r#"kubectl -n vz-maintenance-operator patch updatemanagers default --type=merge -p '{"spec":{"suspend":false}}'"#)?;
    told.tell("resume")?;

    told.tell("check")?;
    let asked = host.sh(r"kubectl -n vz-maintenance-operator get updatemanager default -o 'jsonpath={.metadata.annotations.maintenance\.virtuozzo\.io/check-requested-at}'")?;
    ensure!(asked.parse::<jiff::Timestamp>().is_ok(), "{asked}");
    insta::assert_snapshot!(told.said(), @r"
    $ suspend h1
    [0] h1 suspended
    $ resume h1
    [0] h1 was not suspended by its label
    $ suspend h1
    [0] h1 was already suspended
    $ resume h1
    [0] h1 resumed
    $ suspend
    [0] updates suspended on all nodes
    $ resume
    [0] updates were not suspended
    $ check
    [0] all nodes were asked to look for updates now; smartup updates status --watch shows what they find
    ");
    Ok(())
}

/// 7.4.2
fn looked_at(host: &Host) -> Result<()> {
    let standing = |status: &str| json!({ "status": status });
    let node = json!({ "id": "h1", "kernel": "6.1.0-40-amd64", "stageName": "slow", "readyKernel": { "status": "Unknown", "reason": "CheckFailed" }, "rpmPackages": standing("UpToDate") });
    write_status(host, "updatemanagers/default", &json!({ "nodes": [node] }))?;
    let table = said(host, "status")?;
    let row: Vec<_> = table.lines().nth(1).unwrap_or_default().split("   ").map(str::trim).filter(|c| !c.is_empty()).collect();
    ensure!(row.starts_with(&["h1", "slow", "6.1.0-40-amd64", "unknown", "up to date"]), "{table}");
    ensure!(row.get(5).is_some_and(|c| c.ends_with(" d ago")), "{table}");
    ensure!(row.last() == Some(&"looking for updates failed: no route to host"), "{table}");
    ensure!(table.contains("The next window opens on ") || table.contains("A window is open until "), "{table}");

    let theirs: Value = serde_json::from_str(&host.sh("kubectl -n vz-maintenance-operator get updatemanager default -o json")?)?;
    let ours: Value = serde_json::from_str(&host.sh("smartup updates status -o json")?)?;
    for part in ["apiVersion", "kind", "spec", "status"] {
        assert_eq!(ours[part], theirs[part]);
    }
    let theirs = host.sh("kubectl -n vz-maintenance-operator get updatemanager -o yaml")?;
    let ours = host.sh("smartup updates status -o yaml --kubeconfig /etc/rancher/k3s/k3s.yaml")?;
    ensure!(theirs.contains("stageName: slow") && ours.contains("stageName: slow"), "{theirs}\n{ours}");

    // a change is seen as it comes
    let mut watch = host.spawn(["smartup", "updates", "status", "--watch"])?;
    let mut follow = |row: &str| -> Result<()> {
        while let Some(line) = watch.line()? {
            if line.starts_with("h1 ") && line.contains(row) {
                return Ok(());
            }
        }
        anyhow::bail!("the watch ended before it said {row}")
    };
    follow("looking for updates failed")?;
    let node =
        json!({ "id": "h1", "readyKernel": standing("UpToDate"), "rpmPackages": { "status": "Pending", "numberOfPackagesToUpdate": 2 } });
    write_status(host, "updatemanagers/default", &json!({ "nodes": [node] }))?;
    follow("due, 2 available")?;
    watch.kill()
}

/// Nobody's edit is lost.
fn two_writers(host: &Host) -> Result<()> {
    let writer = |which: u8| {
        let line = format!("for n in 1 2 3 4 5 6 7 8; do smartup updates ban {which}-$n-r1 || exit 1; done");
        host.spawn(["sh", "-c", &line])
    };
    // no list of patches: any is taken
    let report = json!({ "agentVersion": "0.1.0", "reportedAt": "2026-01-02T03:04:05Z", "kernel": "6", "check": "none" });
    write_status(host, "nodeupdates/h1", &report)?;
    for mut writer in [writer(1)?, writer(2)?] {
        while writer.line()?.is_some() {}
        assert_eq!(writer.wait()?, 0);
    }
    let mut banned: Vec<_> = spec(host)?["bannedPatches"].as_array().into_iter().flatten().map(ToString::to_string).collect();
    banned.sort();
    let all: Vec<_> = (1..=2).flat_map(|w| (1..=8).map(move |n| format!("\"{w}-{n}-r1\""))).collect();
    assert_eq!(banned, all);
    Ok(())
}

/// An operator that serves another version, without time zones and without `NodeUpdates`.
fn a_vendors(host: &Host) -> Result<()> {
    let crds = "crd/updatemanagers.maintenance.virtuozzo.io crd/nodeupdates.maintenance.virtuozzo.io";
    host.sh(&format!("kubectl delete --wait {crds}"))?;
    let fields = json!({ "type": "object", "properties": { "schedule": { "type": "string" }, "duration": { "type": "string" } } });
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "updatemanagers.maintenance.virtuozzo.io" },
        "spec": {
            "group": "maintenance.virtuozzo.io", "scope": "Namespaced",
            "names": { "kind": "UpdateManager", "plural": "updatemanagers", "singular": "updatemanager" },
            "versions": [{ "name": "v1beta2", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                "type": "object",
                "properties": { "spec": { "type": "object", "properties": { "maintenanceWindows": { "type": "array", "items": fields } } } },
            } } }],
        },
    });
    apply(host, &crd)?;
    host.sh("kubectl wait --for=condition=Established --timeout=60s crd/updatemanagers.maintenance.virtuozzo.io")?;
    let manager = json!({
        "apiVersion": "maintenance.virtuozzo.io/v1beta2", "kind": "UpdateManager",
        "metadata": { "name": "default", "namespace": "vz-maintenance-operator" }, "spec": {},
    });
    until("the new version is served", LONG, || apply(host, &manager).map(Some))?;
    let lines = ["window add '0 1 * * 1-5' 1h30m", "window add '0 2 * * *' 1h --time-zone Europe/Berlin", "check"];
    let told = lines.map(|line| said(host, line).unwrap_or_else(|e| format!("{e:#}"))).join("\n");
    insta::assert_snapshot!(told, @r#"
    [0] window '0 1 * * 1-5' 1h30m UTC added
    [1] window '0 2 * * *' 1h00m Europe/Berlin added
    error: the UpdateManager of this cluster's operator did not keep spec.maintenanceWindows[1].timeZone: "Europe/Berlin"

    hint: the window now opens by the operator's own clock, mostly UTC: remove it (smartup updates window list, remove), and write it in UTC
    [1] error: this cluster's operator is not smartup's: it looks for updates when it wants to
    "#);
    Ok(())
}

//! Smart updates brought into a cluster that `smartup apply` made, with smartup's operator and with a vendor's; and taken out again.

mod common;

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Result, ensure};
use common::{Control, LONG, done, is_one_cluster, smartup, yaml};
use integration::{Host, Lab, LabSpec, until};
use serde_json::Value;

const NAMESPACE: &str = "vz-maintenance-operator";
const VENDORS: &str = "/usr/share/smart-updates/maintenance-operator.yaml";

/// A vendor's operator that is nothing but its Job.
fn vendors(image: &str, args: &str) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {NAMESPACE}}}
---
apiVersion: batch/v1
kind: Job
metadata: {{name: vz-maintenance-deployment-job-v9.9.9, namespace: {NAMESPACE}}}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - {{name: deploy, image: '{image}', imagePullPolicy: IfNotPresent, args: {args}}}
"
    )
}

/// Everything in the API, but what comes and goes by itself: events, and leases, pods and endpoints of others.
fn objects(host: &Host) -> Result<BTreeSet<String>> {
    let kinds =
        "k3s kubectl api-resources --verbs=list -o name | grep -vE '^(events|leases|pods|endpoints|endpointslices|componentstatuses)'";
    let columns = "custom-columns=K:.kind,NS:.metadata.namespace,N:.metadata.name";
    let listed = host.sh(&format!("k3s kubectl get -A --no-headers -o {columns} $({kinds} | paste -sd,)"))?;
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(listed.lines().map(words).collect())
}

fn get(host: &Host, what: &str) -> Result<Value> {
    Ok(serde_json::from_str(
        &host.run([&["k3s", "kubectl", "-n", NAMESPACE, "get", "-o", "json"], &what.split(' ').collect::<Vec<_>>()[..]].concat())?,
    )?)
}

/// What stays when smart updates are disabled is what there was before they were enabled.
fn is_as_before(host: &Host, before: &BTreeSet<String>) -> Result<()> {
    let now = objects(host)?;
    ensure!(now == *before, "new: {:?}\nlost: {:?}", now.difference(before), before.difference(&now));
    Ok(())
}

#[test]
fn enabled_unchanged_failing_with_a_vendors_and_disabled_without_a_trace() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h).expect("there are five hosts"));
    let listed = ["h1, role: server", "h2, role: server", "h3, role: server", "h4, role: agent"];
    let control = Control::on(&lab, "h5", &yaml("", &listed))?;
    control.applied(&[])?;
    is_one_cluster(&[h1, h2, h3], &[h4])?;
    h1.run(["k3s", "kubectl", "label", "node", "h4", "mine=1"])?;
    let before = objects(h1)?;
    ensure!(before.len() > 50 && before.iter().any(|o| o.starts_with("ClusterRole ")), "{before:?}");

    // ours, from a host that is none of the cluster's
    let said = control.run("enable-updates", &["--timeout", "5m"])?.checked()?;
    ensure!(said.contains("is Complete, all 4 nodes have their status."), "{said}");
    let nodes = get(h2, "updatemanager default")?["status"]["nodes"].as_array().cloned().unwrap_or_default();
    ensure!(nodes.iter().map(|n| n["id"].as_str()).eq(["h1", "h2", "h3", "h4"].map(Some)), "{nodes:?}");

    // what somebody wants is left as it is, and nothing else is to be done: also by another server
    h2.run(["k3s", "kubectl", "-n", NAMESPACE, "patch", "updatemanager", "default", "--type=merge", "-p", r#"{"spec":{"suspend":true}}"#])?;
    let said = done(h2, &["enable-updates"])?;
    ensure!(said.starts_with("Smart updates are enabled, and were so already:"), "{said}");
    ensure!(get(h2, "updatemanager default")?["spec"]["suspend"] == true);

    // a file of the user's own changes it; one that cannot be is refused before anything is
    h2.write("/root/um.yaml", 0o600, "apiVersion: maintenance.virtuozzo.io/v1\nkind: UpdateManager\nmetadata: {name: default, namespace: vz-maintenance-operator}\nspec: {suspend: false}\n")?;
    done(h2, &["enable-updates", "--update-manager", "/root/um.yaml"])?;
    ensure!(get(h2, "updatemanager default")?["spec"]["suspend"] == false);
    let wrong = smartup(h2, &["enable-updates", "--manifest", "/root/um.yaml"])?;
    ensure!(wrong.code == 2 && wrong.stderr.contains("has no Job vz-maintenance-deployment-job-v"), "{wrong:?}");

    // labels: ours go, somebody's stay and are named
    h2.run(["k3s", "kubectl", "label", "--field-manager=smartup", "node", "h4", "maintenance.virtuozzo.io/auto-updates-policy=fast"])?;
    h2.run(["k3s", "kubectl", "label", "node", "h3", "maintenance.virtuozzo.io/suspend="])?;
    // so does the namespace, while somebody keeps something in it
    h2.run(["k3s", "kubectl", "-n", NAMESPACE, "create", "configmap", "mine"])?;
    let said = done(h3, &["disable"])?;
    ensure!(said.contains("kept: Namespace vz-maintenance-operator, which holds ConfigMap mine\n"), "{said}");
    ensure!(said.contains("gone: label maintenance.virtuozzo.io/auto-updates-policy of node h4"), "{said}");
    ensure!(said.contains("kept: label maintenance.virtuozzo.io/suspend of node h3, set by kubectl"), "{said}");
    ensure!(said.ends_with("Smart updates are disabled.\n"), "{said}");
    let labels = get(h1, "node h4")?["metadata"]["labels"].clone();
    ensure!(labels["mine"] == "1" && labels["maintenance.virtuozzo.io/auto-updates-policy"].is_null(), "{labels}");
    h2.run(["k3s", "kubectl", "-n", NAMESPACE, "delete", "configmap", "mine"])?;
    let said = done(h1, &["disable"])?;
    ensure!(said.starts_with("gone: Namespace vz-maintenance-operator\n"), "{said}");
    is_as_before(h1, &before)?;
    let said = done(h1, &["disable"])?;
    ensure!(said.ends_with("Smart updates were disabled already.\n"), "{said}");

    a_vendors_own(h1, &before)?;

    // a cluster that is not well
    h4.run(["systemctl", "stop", "k3s-agent"])?;
    until("h4 is not Ready", LONG, || {
        let conditions = get(h1, "node h4")?["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.iter().any(|c| c["type"] == "Ready" && c["status"] != "True").then_some(()))
    })?;
    let refused = smartup(h1, &["enable-updates"])?;
    ensure!(refused.code == 4 && refused.stderr.contains("node h4 is not Ready"), "{refused:?}");
    is_as_before(h1, &before)?;

    // and k3s too, everywhere
    control.run("disable", &["--k3s"])?.checked()?;
    for (host, unit) in [(h1, "k3s-server"), (h2, "k3s-server"), (h3, "k3s-server"), (h4, "k3s-agent")] {
        let state = host.sh(&format!("systemctl is-active {unit} || true; systemctl is-enabled {unit} || true"))?;
        ensure!(!state.lines().any(|l| ["active", "enabled"].contains(&l)), "{}: {state}", host.name());
    }
    lab.down()
}

/// Its Job fails, or its image is nowhere: both are said at once, with why.
fn a_vendors_own(h1: &Host, before: &BTreeSet<String>) -> Result<()> {
    // an image that every host has, whose program fails
    let file = h1.sh("ls /var/lib/rancher/k3s/agent/images/")?;
    let tag = file.trim().trim_start_matches("smartup-operator-").trim_end_matches(".tar");
    h1.run(["mkdir", "-p", "/usr/share/smart-updates"])?;
    let fails = |manifest: &str, why: &[&str]| -> Result<()> {
        h1.write(VENDORS, 0o644, manifest)?;
        let began = Instant::now();
        let failed = smartup(h1, &["enable-updates", "--timeout", "20m"])?;
        ensure!(failed.code == 1 && why.iter().all(|w| failed.stderr.contains(w)), "{failed:?}");
        ensure!(began.elapsed() < LONG, "at once, not after {:?}", began.elapsed());
        Ok(())
    };
    let broken = vendors(&format!("smartup.local/operator:{tag}"), "[operator, nonsense]");
    fails(
        &broken,
        &["vz-maintenance-deployment-job-v9.9.9 will not be Complete: it has failed: BackoffLimitExceeded", "unrecognized subcommand"],
    )?;
    // the Job that failed is in the way, and its pods cannot be changed
    fails(&vendors("127.0.0.1:1/nobody/has:it", "[]"), &["for 127.0.0.1:1/nobody/has:it", "ErrImagePull"])?;
    done(h1, &["disable"])?;
    h1.run(["rm", "-r", "/usr/share/smart-updates"])?;
    is_as_before(h1, before)
}

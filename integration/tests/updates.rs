//! Smart updates brought into a cluster that `smartup apply` made, with smartup's operator and with a vendor's; and taken out again.

mod common;

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use common::{Control, FILE, LONG, Updater, answered, done, follow, holders, is_one_cluster, smartup, yaml};
use integration::{Host, Lab, LabSpec, until};
use serde_json::Value;

const NAMESPACE: &str = "vz-maintenance-operator";
const VENDORS: &str = "/usr/share/smart-updates/maintenance-operator.yaml";
const OLD_JOB: &str = "vz-maintenance-deployment-job-v0.0.1";
const LISTED: [&str; 4] = ["h1, role: server", "h2, role: server", "h3, role: server", "h4, role: agent"];

/// A vendor's operator: the definition of its kind, without a status of its own, and its Job with this in its pod.
fn vendors(pod: &str) -> String {
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
    spec: {{restartPolicy: Never, {pod}}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: updatemanagers.maintenance.virtuozzo.io}}
spec:
  group: maintenance.virtuozzo.io
  scope: Namespaced
  names: {{kind: UpdateManager, plural: updatemanagers, singular: updatemanager}}
  versions:
  - {{name: v1beta2, served: true, storage: true, schema: {{openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}}}}}
"
    )
}

/// A container of this image that does this.
fn container(image: &str, does: &str) -> String {
    format!("containers: [{{name: deploy, image: '{image}', imagePullPolicy: IfNotPresent, {does}}}]")
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

/// The deployment Job of an older version, which has done its work.
fn an_older_job(host: &Host) -> Result<()> {
    let kubectl = format!("k3s kubectl -n {NAMESPACE}");
    let pod = format!("restartPolicy: Never, {}", container("docker.io/library/busybox:test", "args: [/bin/true]"));
    let job = format!("apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {OLD_JOB}}}\nspec: {{template: {{spec: {{{pod}}}}}}}\n");
    host.exec_with(["k3s", "kubectl", "-n", NAMESPACE, "apply", "-f", "-"], job.as_bytes())?.checked()?;
    host.sh(&format!("{kubectl} wait --for=condition=Complete --timeout=120s job {OLD_JOB}")).map(drop)
}

#[test]
fn enabled_unchanged_failing_with_a_vendors_and_disabled_without_a_trace() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h).expect("there are five hosts"));
    let control = Control::on(&lab, "h5", &yaml("", &LISTED))?;
    control.applied(&[])?;
    is_one_cluster(&[h1, h2, h3], &[h4])?;
    h1.run(["k3s", "kubectl", "label", "node", "h4", "mine=1"])?;
    let before = objects(h1)?;
    ensure!(before.len() > 50 && before.iter().any(|o| o.starts_with("ClusterRole ")), "{before:?}");
    let updaters = [h1, h4].map(Updater::on).into_iter().collect::<Result<Vec<_>>>()?;

    // ours, from a host that is none of the cluster's
    let said = control.run("enable-updates", &["--timeout", "5m"])?.checked()?;
    ensure!(said.contains("is Complete, all 4 nodes have their status."), "{said}");
    let nodes = get(h2, "updatemanager default")?["status"]["nodes"].as_array().cloned().unwrap_or_default();
    ensure!(nodes.iter().map(|n| n["id"].as_str()).eq(["h1", "h2", "h3", "h4"].map(Some)), "{nodes:?}");
    let held = updaters.iter().map(Updater::held).collect::<Result<Vec<_>>>()?;

    // what somebody wants is left as it is, and nothing else is to be done: also by another server
    h2.run(["k3s", "kubectl", "-n", NAMESPACE, "patch", "updatemanager", "default", "--type=merge", "-p", r#"{"spec":{"suspend":true}}"#])?;
    let said = done(h2, &["enable-updates"])?;
    ensure!(said.starts_with("Smart updates are enabled, and were so already:"), "{said}");
    ensure!(get(h2, "updatemanager default")?["spec"]["suspend"] == true);

    // a file of the user's own changes it; one that cannot be is refused before anything is; an older Job does not stay behind
    an_older_job(h2)?;
    h2.write("/root/um.yaml", 0o600, "apiVersion: maintenance.virtuozzo.io/v1\nkind: UpdateManager\nmetadata: {name: default, namespace: vz-maintenance-operator}\nspec: {suspend: false}\n")?;
    let said = done(h2, &["enable-updates", "--update-manager", "/root/um.yaml"])?;
    ensure!(said.contains(&format!("gone: Job {OLD_JOB}\n")), "{said}");
    ensure!(get(h2, "updatemanager default")?["spec"]["suspend"] == false);
    let wrong = smartup(h2, &["enable-updates", "--manifest", "/root/um.yaml"])?;
    ensure!(wrong.code == 2 && wrong.stderr.contains("has no Job vz-maintenance-deployment-job-v"), "{wrong:?}");

    // seen and steered from where nothing of the cluster is but its file
    let steer = |args: &[&str]| smartup(control.host, &[&["updates"], args, &["-f", FILE]].concat())?.checked();
    let table = steer(&["status"])?;
    ensure!(["h1 ", "h2 ", "h3 ", "h4 "].iter().all(|h| table.lines().any(|l| l.starts_with(h))), "{table}");
    ensure!(table.contains("at any time") && steer(&["suspend", "h4"])? == "h4 suspended\n", "{table}");
    steer(&["policy", "h4", "fast"])?;

    // labels: ours go, somebody's stay and are named
    h2.run(["k3s", "kubectl", "label", "node", "h3", "maintenance.virtuozzo.io/suspend="])?;
    // so does the namespace, while somebody keeps something in it
    h2.run(["k3s", "kubectl", "-n", NAMESPACE, "create", "configmap", "mine"])?;
    an_older_job(h2)?;
    for (updater, count) in updaters.iter().zip(held) {
        updater.still_held(count)?;
    }
    let said = done(h3, &["disable"])?;
    ensure!(said.contains("kept: Namespace vz-maintenance-operator, which holds ConfigMap mine\n"), "{said}");
    ensure!(said.contains("gone: label maintenance.virtuozzo.io/auto-updates-policy of node h4"), "{said}");
    ensure!(said.contains("kept: label maintenance.virtuozzo.io/suspend of node h3, set by kubectl"), "{said}");
    ensure!(said.contains(&format!("gone: Job {OLD_JOB}\n")) && said.ends_with("Smart updates are disabled.\n"), "{said}");
    let labels = get(h1, "node h4")?["metadata"]["labels"].clone();
    ensure!(labels["mine"] == "1" && labels["maintenance.virtuozzo.io/auto-updates-policy"].is_null(), "{labels}");
    updaters.iter().try_for_each(Updater::as_before)?;
    h2.run(["k3s", "kubectl", "-n", NAMESPACE, "delete", "configmap", "mine"])?;
    let said = done(h1, &["disable"])?;
    ensure!(said.starts_with("gone: Namespace vz-maintenance-operator\n"), "{said}");
    is_as_before(h1, &before)?;
    let said = done(h1, &["disable"])?;
    ensure!(said.ends_with("Smart updates were disabled already.\n"), "{said}");

    a_vendors_own(h1, &before)?;

    through_a_power_cut(&lab, &control, &[h1, h2, h3])?;
    let held = updaters.iter().map(Updater::held).collect::<Result<Vec<_>>>()?;
    // the reference's own way out (7.4.7)
    h2.run(["mkdir", "-p", "/usr/share/smart-updates"])?;
    h2.sh(&format!("smartup operator manifest > {VENDORS}"))?;
    for (updater, count) in updaters.iter().zip(held) {
        updater.still_held(count)?;
    }
    // what goes with the namespace may be gone before it is asked for
    h2.run(["k3s", "kubectl", "delete", "--ignore-not-found", "-f", VENDORS])?;
    h2.run(["rm", "-r", "/usr/share/smart-updates"])?;
    updaters.iter().try_for_each(Updater::as_before)?;
    is_as_before(h1, &before)?;

    // and k3s too, everywhere
    control.run("disable", &["--k3s"])?.checked()?;
    for (host, unit) in [(h1, "k3s-server"), (h2, "k3s-server"), (h3, "k3s-server"), (h4, "k3s-agent")] {
        let state = host.sh(&format!("systemctl is-active {unit} || true; systemctl is-enabled {unit} || true"))?;
        ensure!(!state.lines().any(|l| ["active", "enabled"].contains(&l)), "{}: {state}", host.name());
    }
    lab.down()
}

/// The server that enables, which has the VIP as well, loses its power: another one goes on. It is done by another build of smartup,
/// whose image is on no host yet.
fn through_a_power_cut(lab: &Lab, control: &Control<'_>, servers: &[&Host]) -> Result<()> {
    control.host.sh("cp $(command -v smartup) /root/newer; printf newer >> /root/newer")?;
    let holder = holders(servers)?.pop().context("nobody has the VIP")?;
    let mut listed = LISTED;
    listed.sort_by_key(|l| !l.starts_with(&holder));
    control.says(&yaml("", &listed))?;
    let (holder, other) = (lab.host(&holder)?, servers.iter().find(|s| s.name() != holder).context("there is one server")?);
    let images = |host: &Host| host.sh("ls /var/lib/rancher/k3s/agent/images/");
    let before = images(other)?;
    let mut run = control.host.spawn(["/root/newer", "enable-updates", "-f", FILE, "--timeout", "5m", "--events", "json"])?;
    follow(&mut run, |e| e["event"] == "waiting" && e["step"] == "operator")?;
    holder.power_cut()?;
    answered(lab)?;
    holder.power_on()?;
    let mut said = Vec::new();
    while let Some(line) = run.line()? {
        said.push(line);
    }
    ensure!(run.wait()? == 0 && said.iter().any(|l| l.contains("all 4 nodes have their status")), "{}", said.join("\n"));
    ensure!(said.iter().any(|l| l.contains("the next server goes on")), "{}", said.join("\n"));
    let now = images(other)?;
    ensure!(now != before && now.lines().count() == 1, "{before} {now}");
    let runs = other.sh(&format!("k3s kubectl -n {NAMESPACE} get daemonset smartup-agent -o yaml"))?;
    ensure!(runs.contains(now.trim().trim_start_matches("smartup-operator-").trim_end_matches(".tar")), "{now}: {runs}");
    Ok(())
}

/// Its Job fails, its image is nowhere, no node takes its pod: all is said at once, with why. Then one that takes its time.
fn a_vendors_own(h1: &Host, before: &BTreeSet<String>) -> Result<()> {
    // an image that every host has, whose program fails
    let file = h1.sh("ls /var/lib/rancher/k3s/agent/images/")?;
    let tag = file.trim().trim_start_matches("smartup-operator-").trim_end_matches(".tar");
    h1.run(["mkdir", "-p", "/usr/share/smart-updates"])?;
    let fails = |pod: &str, why: &[&str]| -> Result<()> {
        h1.write(VENDORS, 0o644, vendors(pod))?;
        let began = Instant::now();
        let failed = smartup(h1, &["enable-updates", "--timeout", "20m"])?;
        ensure!(failed.code == 1 && why.iter().all(|w| failed.stderr.contains(w)), "{failed:?}");
        ensure!(began.elapsed() < LONG, "at once, not after {:?}", began.elapsed());
        Ok(())
    };
    let broken = container(&format!("smartup.local/operator:{tag}"), "args: [operator, nonsense]");
    fails(
        &broken,
        &["vz-maintenance-deployment-job-v9.9.9 will not be Complete: it has failed: BackoffLimitExceeded", "unrecognized subcommand"],
    )?;
    // the Job that failed is in the way, and its pods cannot be changed
    fails(&container("127.0.0.1:1/nobody/has:it", "args: []"), &["for 127.0.0.1:1/nobody/has:it", "ErrImagePull"])?;
    let busybox = |does: &str| container("docker.io/library/busybox:test", does);
    let nowhere = format!("nodeSelector: {{nowhere: there}}, {}", busybox("args: [/bin/true]"));
    fails(&nowhere, &["no node takes its pod vz-maintenance-deployment-job-v9.9.9-", "0/4 nodes are available"])?;

    h1.write(VENDORS, 0o644, vendors(&busybox("args: [/bin/sleep, '8']")))?;
    let began = Instant::now();
    let mut run = h1.spawn(["sh", "-c", "exec smartup enable-updates --timeout 5m 2>&1"])?;
    let manager = ["k3s", "kubectl", "-n", NAMESPACE, "get", "updatemanager", "default"];
    until("the vendor's UpdateManager is there", LONG, || Ok(h1.exec(manager)?.ok().then_some(())))?;
    ensure!(began.elapsed().as_secs() >= 8, "only when the Job is Complete, not after {:?}", began.elapsed());
    // as the vendor's operator would
    let status = r#"{"status":{"nodes":[{"id":"h1"},{"id":"h2"},{"id":"h3"},{"id":"h4"}]}}"#;
    h1.run(["k3s", "kubectl", "-n", NAMESPACE, "patch", "updatemanager", "default", "--type=merge", "-p", status])?;
    let mut said = String::new();
    while let Some(line) = run.line()? {
        said = said + &line + "\n";
    }
    ensure!(run.wait()? == 0 && said.contains("vz-maintenance-deployment-job-v9.9.9 is Complete, all 4 nodes have their status"), "{said}");
    done(h1, &["disable"])?;
    h1.run(["rm", "-r", "/usr/share/smart-updates"])?;
    is_as_before(h1, before)
}

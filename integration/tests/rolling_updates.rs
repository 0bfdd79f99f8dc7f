//! Nodes are updated one after the other, as the controller carries it out in a cluster that `smartup apply` made. The hosts' part is
//! played here: what an agent would say is written into the status of its `NodeUpdate`.

mod common;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use common::{Control, LONG, done, follow, holders, is_one_cluster, smartup, yaml};
use integration::{Host, Lab, LabSpec, until};
use serde_json::{Value, json};

const NAMESPACE: &str = "vz-maintenance-operator";
/// A package for which pods leave the node.
const PACKAGE: &str = "kernel-6.2-1.x86_64";

/// Pods that may go anywhere; one that is kept on h4 by a budget.
const WORKLOAD: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: 'docker.io/library/busybox:test', imagePullPolicy: Never, command: [sleep, '36000']}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: kept}
spec:
  replicas: 1
  selector: {matchLabels: {app: kept}}
  template:
    metadata: {labels: {app: kept}}
    spec:
      nodeSelector: {kubernetes.io/hostname: h4}
      terminationGracePeriodSeconds: 1
      containers:
      - {name: kept, image: 'docker.io/library/busybox:test', imagePullPolicy: Never, command: [sleep, '36000']}
---
apiVersion: policy/v1beta1
kind: PodDisruptionBudget
metadata: {name: kept}
spec: {minAvailable: 1, selector: {matchLabels: {app: kept}}}
";

fn kubectl(host: &Host, args: &str) -> Result<String> {
    host.sh(&format!("k3s kubectl -n {NAMESPACE} {args}"))
}

fn items(host: &Host, what: &str) -> Result<Vec<Value>> {
    let list: Value = serde_json::from_str(&kubectl(host, &format!("get {what} -o json"))?)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

fn now(host: &Host) -> Result<String> {
    Ok(host.run(["date", "-u", "+%Y-%m-%dT%H:%M:%SZ"])?.trim().to_owned())
}

fn spec(host: &Host, patch: &Value) -> Result<()> {
    kubectl(host, &format!("patch updatemanager default --type=merge -p '{}'", json!({ "spec": patch }))).map(drop)
}

/// Writes a node's status as its agent would; false: somebody was faster.
fn says(h1: &Host, update: &Value, status: &Value) -> Result<bool> {
    let mut update = update.clone();
    update["status"] = status.clone();
    let path = format!("/apis/maintenance.virtuozzo.io/v1/namespaces/{NAMESPACE}/nodeupdates/{}/status", name(&update));
    let outcome = h1.exec_with(["k3s", "kubectl", "replace", "--raw", &path, "-f", "-"], update.to_string().as_bytes())?;
    ensure!(outcome.ok() || outcome.stderr.contains("Conflict") || outcome.stderr.contains("modified"), "{outcome:?}");
    Ok(outcome.ok())
}

/// What the hosts of the nodes would do next.
fn hosts(h1: &Host, updates: &[Value]) -> Result<()> {
    for update in updates {
        let (transaction, mut status) = (&update["spec"]["transaction"], update["status"].clone());
        let (phase, progress) = (text(&transaction["phase"]), &status["progress"]);
        let said =
            progress["transaction"] == transaction["id"] && progress["phase"] == transaction["phase"] && progress["outcome"] == "Done";
        if said || ["", "Checking", "Draining"].contains(&phase) {
            continue;
        }
        let at = now(h1)?;
        match phase {
            "HandingOver" => status["hasVip"] = json!(false),
            "Installing" => status["packages"]["available"] = json!([]),
            "Releasing" => {
                let run = json!({
                    "transaction": transaction["id"], "startedAt": transaction["startedAt"], "finishedAt": at, "packages": 1, "patches": 0,
                    "rebooted": false, "failure": transaction["failure"],
                });
                let run = without_nulls(run);
                match status["history"].as_array_mut() {
                    Some(history) => history.insert(0, run),
                    None => status["history"] = json!([run]),
                }
                if transaction["failure"].is_null() {
                    status["lastUpdate"] = json!(at);
                }
            }
            _ => {}
        }
        status["progress"] = json!({ "transaction": transaction["id"], "phase": phase, "outcome": "Done", "at": at });
        says(h1, update, &status)?;
    }
    Ok(())
}

fn without_nulls(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, v| !v.is_null());
    }
    value
}

/// The nodes that are cordoned, and the annotation that says what for.
fn cordoned(h1: &Host) -> Result<Vec<(String, String)>> {
    let nodes = items(h1, "nodes")?;
    let cordoned = nodes.iter().filter(|n| n["spec"]["unschedulable"] == true);
    Ok(cordoned.map(|n| (name(n).to_owned(), text(&n["metadata"]["annotations"]["smartup/cordoned"]).to_owned())).collect())
}

/// What was seen on the way.
#[derive(Default)]
struct Seen {
    /// The nodes on which something was installed, in their order.
    installed: Vec<String>,
    /// Their transactions: a node may be updated twice in a row.
    transactions: BTreeSet<String>,
    /// Nodes that were given back, and why.
    put_off: BTreeSet<(String, String)>,
    killed: bool,
    /// What must never be.
    wrong: Vec<String>,
}

impl Seen {
    fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(what());
        }
    }
}

/// Looks once, checks what must always hold, and plays the hosts.
fn look(h1: &Host, seen: &mut Seen) -> Result<Vec<Value>> {
    let updates = items(h1, "nodeupdates")?;
    let busy: Vec<&Value> = updates.iter().filter(|u| !u["spec"]["transaction"].is_null()).collect();
    seen.must(busy.len() <= 1, || format!("more than one at a time: {busy:#?}"));
    for update in &busy {
        let (node, phase) = (name(update).to_owned(), text(&update["spec"]["transaction"]["phase"]));
        if phase == "Installing" && seen.transactions.insert(text(&update["spec"]["transaction"]["id"]).to_owned()) {
            // h2 is cordoned by somebody else
            let cordoned = cordoned(h1)?;
            let off = cordoned.iter().any(|(n, why)| *n == node && (why == "update" || n == "h2"));
            seen.must(off, || format!("{node} takes pods while the kernel is installed: {cordoned:?}"));
            let here = format!("k3s kubectl get pods -n default --field-selector spec.nodeName={node},status.phase=Running -o name");
            let pods = h1.sh(&here)?;
            seen.must(pods.trim().is_empty(), || format!("left on {node}: {pods}"));
            let mut locks = items(h1, "leases")?;
            locks.retain(|l| name(l).starts_with("smartup-update-"));
            let its = |l: &Value| l["spec"]["holderIdentity"] == node.as_str() && l["metadata"]["ownerReferences"][0]["kind"] == "Node";
            seen.must(locks.len() == 1 && locks.iter().all(its), || format!("the lock of {node}: {locks:#?}"));
            seen.installed.push(node);
        }
    }
    for update in &updates {
        let reason = text(&update["spec"]["retry"]["failure"]["reason"]);
        if !reason.is_empty() {
            seen.put_off.insert((name(update).to_owned(), reason.to_owned()));
        }
    }
    hosts(h1, &updates)?;
    Ok(updates)
}

fn updated(updates: &[Value]) -> BTreeSet<String> {
    let is = |u: &&Value| u["spec"]["transaction"].is_null() && !u["status"]["lastUpdate"].is_null();
    updates.iter().filter(is).map(|u| name(u).to_owned()).collect()
}

#[test]
fn one_after_the_other_past_a_budget_an_admins_cordon_and_a_killed_controller() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h).expect("there are five hosts"));
    let listed = ["h1, role: server", "h2, role: server", "h3, role: server", "h4, role: agent"];
    let control = Control::on(&lab, "h5", &yaml("", &listed))?;
    control.applied(&[])?;
    is_one_cluster(&[h1, h2, h3], &[h4])?;
    control.run("enable-updates", &["--timeout", "5m"])?.checked()?;
    spec(h1, &json!({ "approval": "manual", "reboot": "never", "marksAfter": { "labels": { "patched": "yes" } } }))?;

    // from here on the test is the agents
    let nobody = r#"{"spec":{"template":{"spec":{"nodeSelector":{"nobody":"here"}}}}}"#;
    kubectl(h1, &format!("patch daemonset smartup-agent --type=merge -p '{nobody}'"))?;
    until("the agents are gone", LONG, || Ok(items(h1, "pods -l app.kubernetes.io/component=agent")?.is_empty().then_some(())))?;
    h1.run(["k3s", "kubectl", "label", "nodes", "--all", "maintenance.virtuozzo.io/auto-updates-policy=fast"])?;
    h1.write("/root/workload.yaml", 0o600, WORKLOAD)?;
    h1.run(["k3s", "kubectl", "apply", "-n", "default", "-f", "/root/workload.yaml"])?;
    let healthy = "k3s kubectl -n default get pdb kept -o jsonpath='{.status.currentHealthy}'";
    until("the budget counts its pod", LONG, || Ok((h1.sh(healthy)? == "1").then_some(())))?;
    h1.run(["k3s", "kubectl", "cordon", "h2"])?;
    let holder = holders(&[h1, h2, h3])?.pop().context("nobody has the floating address")?;
    for (number, node) in ["h1", "h2", "h3", "h4"].iter().enumerate() {
        until("a node's status is taken", LONG, || {
            let update = items(h1, "nodeupdates")?.into_iter().find(|u| name(u) == *node).context("no NodeUpdate")?;
            let mut status = update["status"].clone();
            let at = now(h1)?;
            status["bootId"] = json!(format!("6a8e1b6c-0b0e-4b0e-9d3b-00000000000{number}"));
            status["hasVip"] = json!(*node == holder);
            status["reportedAt"] = json!(at);
            status["packages"] = json!({ "checkedAt": at, "available": [{ "name": PACKAGE, "since": "2026-01-01T00:00:00Z" }] });
            Ok(says(h1, &update, &status)?.then_some(()))
        })?;
    }

    // nothing starts that is not approved, and what is approved is what was shown
    until("all wait for an approval", LONG, || {
        let shown = done(h1, &["updates", "status"])?;
        Ok((shown.matches("not approved").count() == 4).then_some(()))
    })?;
    let plan: Value = serde_json::from_str(&done(h1, &["updates", "plan", "-o", "json"])?)?;
    ensure!(plan["needsApproval"] == true && plan["updates"].as_array().map(Vec::len) == Some(4), "{plan:#}");
    let last = plan["updates"].as_array().and_then(|u| u.iter().rfind(|u| u["node"] != "h4")).context("no updates")?;
    ensure!(text(&last["node"]) == holder, "the server with the floating address is the last one: {plan:#}");
    let other = smartup(h1, &["updates", "approve", "000000000000"])?;
    ensure!(other.code == 4 && other.stderr.contains("nothing was approved"), "{other:?}");
    let said = done(h1, &["updates", "approve", text(&plan["plan"])])?;
    ensure!(said.contains(&format!("{PACKAGE} approved")), "{said}");

    // all but the one that a budget keeps; the leader is killed in the middle of the second one
    let mut seen = Seen::default();
    until("three nodes are updated, and one is put off", LONG * 3, || {
        let updates = look(h1, &mut seen)?;
        let draining = updates.iter().any(|u| u["spec"]["transaction"]["phase"] == "Draining");
        if draining && seen.installed.len() == 1 && !seen.killed {
            let leader = kubectl(h1, "get lease smartup-controller -o jsonpath='{.spec.holderIdentity}'")?;
            kubectl(h1, &format!("delete pod {leader} --grace-period=0 --force"))?;
            seen.killed = true;
        }
        Ok((updated(&updates).len() == 3 && !seen.put_off.is_empty()).then_some(()))
    })
    .with_context(|| state(h1).unwrap_or_default())?;
    ensure!(seen.killed && seen.wrong.is_empty(), "{:#?}", seen.wrong);
    ensure!(seen.put_off == BTreeSet::from([("h4".to_owned(), "PodDisruptionBudget".to_owned())]), "{:?}", seen.put_off);
    let servers: BTreeSet<&str> = seen.installed.iter().map(String::as_str).collect();
    ensure!(servers == BTreeSet::from(["h1", "h2", "h3"]) && seen.installed.len() == 3, "each once: {:?}", seen.installed);
    ensure!(seen.installed.last() == Some(&holder), "{:?}, and {holder} has the floating address", seen.installed);
    let events = h1.sh("k3s kubectl describe node h4")?;
    ensure!(events.contains("UpdatePutOff") && events.contains("PodDisruptionBudget default/kept"), "{events}");

    // the budget gives way, and somebody does not want to wait until it is tried again
    h1.run(["k3s", "kubectl", "-n", "default", "delete", "pdb", "kept"])?;
    done(h1, &["updates", "run", "h4", "--now"])?;
    until("h4 is updated", LONG * 2, || Ok((updated(&look(h1, &mut seen)?).len() == 4).then_some(())))
        .with_context(|| state(h1).unwrap_or_default())?;
    ensure!(seen.wrong.is_empty(), "{:#?}", seen.wrong);
    all_is_left_as_it_was(h1)?;

    // halted: what is due waits, and goes on when that is over
    done(h1, &["updates", "halt"])?;
    let update = items(h1, "nodeupdates")?.into_iter().find(|u| name(u) == "h4").context("no NodeUpdate")?;
    let mut status = update["status"].clone();
    status["packages"]["available"] = json!([{ "name": PACKAGE, "since": "2026-01-01T00:00:00Z" }]);
    ensure!(says(h1, &update, &status)?, "nobody else writes it");
    until("it is said why", LONG, || {
        Ok(done(h1, &["updates", "status"])?.contains("Updates are halted: the spec has halted: true").then_some(()))
    })?;
    ensure!(items(h1, "nodeupdates")?.iter().all(|u| u["spec"]["transaction"].is_null()), "nothing started");
    let before = seen.installed.len();
    done(h1, &["updates", "continue"])?;
    until("it goes on", LONG * 2, || {
        look(h1, &mut seen)?;
        Ok((seen.installed.len() == before + 1).then_some(()))
    })?;
    disabled_in_the_middle(h1)?;
    lab.down()
}

/// h4 is in the middle of an update: it is let finish. What a controller that died would leave on h3 is taken off, and h2's cordon is
/// the admin's.
fn disabled_in_the_middle(h1: &Host) -> Result<()> {
    let mut run = h1.spawn(["smartup", "disable", "--events", "json"])?;
    let waits = follow(&mut run, |e| e["event"] == "waiting" && e["step"] == "updates")?;
    ensure!(waits.to_string().contains("h4 is being updated ("), "{waits:?}");
    until("h4 is let finish", LONG, || match items(h1, "nodeupdates") {
        Ok(updates) if updates.iter().any(|u| !u["spec"]["transaction"].is_null()) => {
            // it may be gone by now
            hosts(h1, &updates).ok();
            Ok(None)
        }
        _ => Ok(Some(())),
    })?;
    let mut said = String::new();
    while let Some(line) = run.line()? {
        said = said + &line + "\n";
    }
    ensure!(run.wait()? == 0 && !said.contains("cordon of node"), "its own end uncordoned h4: {said}");
    h1.sh("k3s kubectl cordon h3 && k3s kubectl annotate node h3 smartup/cordoned=update")?;
    let said = done(h1, &["disable"])?;
    ensure!(said.starts_with("gone: cordon of node h3\n") && !said.contains("cordon of node h2"), "{said}");
    ensure!(cordoned(h1)? == [("h2".to_owned(), String::new())], "{:?}", cordoned(h1)?);
    Ok(())
}

/// No lock, no cordon but the admin's own, and a history.
fn all_is_left_as_it_was(h1: &Host) -> Result<()> {
    until("the last lock is gone", LONG, || {
        Ok((!items(h1, "leases")?.iter().any(|l| name(l).starts_with("smartup-update-"))).then_some(()))
    })?;
    ensure!(cordoned(h1)? == [("h2".to_owned(), String::new())], "{:?}", cordoned(h1)?);
    let marked = h1.sh("k3s kubectl get nodes -l patched=yes -o name")?;
    ensure!(marked.lines().count() == 4, "{marked}");
    let history: Value = serde_json::from_str(&done(h1, &["updates", "history", "-o", "json"])?)?;
    let history = history.as_array().cloned().unwrap_or_default();
    let good: BTreeSet<&str> = history.iter().filter(|r| r["failure"].is_null()).map(|r| text(&r["node"])).collect();
    ensure!(good.len() == 4, "{history:#?}");
    ensure!(history.iter().any(|r| r["failure"]["reason"] == "PodDisruptionBudget"), "{history:#?}");
    for node in items(h1, "nodeupdates")? {
        ensure!(node["spec"]["transaction"].is_null() && node["spec"]["retry"].is_null(), "{node:#}");
    }
    Ok(())
}

/// For a test that failed.
fn state(h1: &Host) -> Result<String> {
    let logs = "for p in $(k3s kubectl -n vz-maintenance-operator get pods -l app.kubernetes.io/component=controller -o name); do k3s kubectl -n vz-maintenance-operator logs --tail 40 $p; done";
    h1.sh(&format!("k3s kubectl -n {NAMESPACE} get nodeupdates -o yaml; k3s kubectl -n {NAMESPACE} get leases; k3s kubectl get nodes,pods -A -o wide; {logs} 2>&1"))
}

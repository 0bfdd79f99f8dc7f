//! Another version of k3s: one host at a time, never the wrong way round, and back where it does not work.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use common::{Control, LONG, events, holders, host_at, is_one_cluster, longest_silence, processes, smartup, status, yaml};
use integration::{Host, Lab, LabSpec, Outcome, Running, until};
use serde_json::Value;

const HOSTS: [&str; 4] = ["h1, role: server", "h2, role: server", "h3, role: server", "h4, role: agent"];
const OLD: &str = "v1.20.2+k3s1";
const NEW: &str = "v1.20.3+k3s1";
const MINOR: &str = "v1.21.0+k3s1";
const INSTALLED: &str = "/usr/local/bin/k3s";

/// The lab's k3s as another release of it, on this host; its path there.
fn release(host: &Host, version: &str) -> Result<String> {
    let path = format!("/root/k3s-{version}");
    host.sh(&format!("test -e {INSTALLED}.lab || cp {INSTALLED} {INSTALLED}.lab; cp {INSTALLED}.lab {path}"))?;
    host.sh(&format!("printf '\\nlab-k3s-release={version}\\n' >> {path}"))?;
    Ok(path)
}

/// What says that it is a release of k3s, and does something else when it is started.
fn impostor(host: &Host, version: &str, does: &str) -> Result<String> {
    let path = format!("/root/no-{version}");
    let script = format!("#!/bin/sh\ncase $1 in\n--version) echo 'k3s version {version} (00000000)' ;;\n*) {does} ;;\nesac\n");
    host.write(&path, 0o755, script)?;
    Ok(path)
}

/// What each node says that it runs.
fn versions(server: &Host) -> Result<BTreeMap<String, String>> {
    let all = status(server)?;
    let nodes = all["nodes"].as_array().with_context(|| format!("no nodes in {all}"))?;
    Ok(nodes.iter().filter_map(|n| Some((n["name"].as_str()?.to_owned(), n["version"].as_str()?.to_owned()))).collect())
}

fn all_run(server: &Host, version: &str) -> Result<()> {
    let versions = versions(server)?;
    ensure!(versions.len() == 4 && versions.values().all(|v| v == version), "all should run {version}: {versions:?}");
    Ok(())
}

/// All of a host that an upgrade changes.
fn traces(host: &Host) -> Result<(BTreeMap<String, String>, String)> {
    let files = host.sh(&format!("sha256sum {INSTALLED} /var/lib/smartup/journal.jsonl; find /var/lib/smartup -newer /root/mark"))?;
    Ok((processes(host)?, files))
}

/// `smartup upgrade -f` from the control host.
fn upgrade(control: &Control<'_>, k3s: &str, args: &[&str]) -> Result<Outcome> {
    control.run("upgrade", &[&["--k3s", k3s], args].concat())
}

/// Fails unless it ends with this exit code and says these words.
fn says(outcome: &Outcome, code: i32, words: &[&str]) -> Result<()> {
    let Outcome { code: was, stdout, stderr } = outcome;
    let missing: Vec<_> = words.iter().filter(|w| !stdout.contains(**w) && !stderr.contains(**w)).collect();
    ensure!(*was == code && missing.is_empty(), "wanted {code} and {missing:?}, got {was}:\n{stdout}\n{stderr}");
    Ok(())
}

#[test]
fn one_by_one_the_holder_last() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4, h5] = lab.hosts() else { bail!("there are five hosts") };
    let (servers, all) = ([h1, h2, h3], [h1, h2, h3, h4]);
    let control = Control::on(&lab, "h5", &yaml("", &HOSTS))?;
    control.applied(&[])?;
    is_one_cluster(&servers, &[h4])?;
    all_run(h1, OLD)?;
    let original = h1.run(["sha256sum", INSTALLED])?;
    for host in all {
        host.run(["touch", "/root/mark"])?;
    }

    // what does not go together is refused, and nothing is touched
    let was: Vec<_> = all.iter().map(|h| traces(h)).collect::<Result<_>>()?;
    let (older, skips, new) = (release(h5, "v1.20.1+k3s1")?, release(h5, "v1.22.0+k3s1")?, release(h5, NEW)?);
    says(&upgrade(&control, &older, &["--yes"])?, 4, &["h1 runs k3s v1.20.2+k3s1, and v1.20.1+k3s1 is older: k3s does not go back"])?;
    says(
        &upgrade(&control, &skips, &["--yes"])?,
        4,
        &["v1.22.0+k3s1 leaves out a minor version", "hint: upgrade all servers to a v1.21 first"],
    )?;
    says(&upgrade(&control, &skips, &["--dry-run"])?, 4, &["leaves out a minor version"])?;
    says(&upgrade(&control, &new, &[])?, 2, &["give --yes"])?;
    says(&upgrade(&control, "v1.20", &["--yes"])?, 2, &["not a version"])?;
    let [holder] = &holders(&servers)?[..] else { bail!("one server holds the VIP") };
    let planned = upgrade(&control, &new, &["--dry-run", "--exit-code"])?;
    says(&planned, 3, &["replace k3s v1.20.2+k3s1 with v1.20.3+k3s1", &format!("{holder} (gives the VIP away first), h4.")])?;
    for (host, was) in all.iter().zip(was) {
        ensure!(traces(host)? == was, "{} was changed: {was:?}, {:?}", host.name(), traces(host)?);
    }
    let own = release(h4, NEW)?;
    says(
        &smartup(h4, &["upgrade", "--yes", "--k3s", &own])?,
        4,
        &["the servers run k3s v1.20.2+k3s1: with v1.20.3+k3s1, h4 would be newer"],
    )?;

    // nor does it begin while somebody else works on the cluster
    let own = release(h2, NEW)?;
    let lease = serde_json::json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "smartup", "namespace": "kube-system"},
        "spec": {"holderIdentity": "somebody on h9 (pid 1)", "leaseDurationSeconds": 15},
    });
    h1.exec_with(["k3s", "kubectl", "create", "-f", "-"], lease.to_string().as_bytes())?.checked()?;
    let renew = "n=0; while :; do n=$((n+1)); k3s kubectl -n kube-system patch lease smartup --type merge -p '{\"spec\":{\"leaseTransitions\":'$n'}}'; done";
    let mut other = h1.spawn(["sh", "-c", renew])?;
    says(
        &smartup(h2, &["upgrade", "--yes", "--k3s", &own])?,
        4,
        &["another operation is under way on this cluster: somebody on h9 (pid 1)"],
    )?;
    other.kill()?;
    h1.run(["k3s", "kubectl", "-n", "kube-system", "delete", "lease", "smartup"])?;
    all_run(h1, OLD)?;

    // one at a time; the API is away no longer than a failover takes
    let (done, away) = longest_silence(&lab, || upgrade(&control, &new, &["--yes", "--events", "json"]))?;
    says(&done, 0, &[])?;
    ensure!(away < Duration::from_secs(3), "the API was away for {away:?}");
    println!("the API was away for {away:?}");
    let said = events(&done.stdout)?;
    let turns: Vec<&str> =
        said.iter().filter_map(|e| host_at(e, "step_done", "node Ready").filter(|_| e["outcome"] != "would_change")).collect();
    ensure!(turns.len() == 4 && turns[2] == holder && turns[3] == "h4", "the order of hosts: {turns:?}");
    let begins = |host: &str| said.iter().position(|e| host_at(e, "step_started", "k3s binary") == Some(host) && e["total"] != Value::Null);
    let whole = |host: &str| said.iter().position(|e| e["event"] == "host_done" && e["host"] == host);
    for pair in turns.windows(2) {
        let replaced = said.iter().position(|e| host_at(e, "step_done", "k3s binary") == Some(pair[1]) && e["outcome"] == "changed");
        ensure!(whole(pair[0]) < replaced && begins(pair[1]).is_some(), "{} before {}", pair[0], pair[1]);
    }
    all_run(h1, NEW)?;
    is_one_cluster(&servers, &[h4])?;
    let now = holders(&servers)?;
    ensure!(now.len() == 1 && now[0] != *holder, "it gave the VIP away: {now:?}");

    // again: nothing to do
    let was: Vec<_> = all.iter().map(|h| processes(h)).collect::<Result<_>>()?;
    says(&upgrade(&control, &new, &["--yes"])?, 0, &["4 as wanted already"])?;
    for (host, was) in all.iter().zip(was) {
        ensure!(processes(host)? == was, "{} was restarted", host.name());
        ensure!(host.sh("ls /var/lib/smartup/kept | wc -l")?.trim() == "1", "only what a reset needs is kept");
    }

    // apply does not bring another version, neither back nor forward
    let other = release(h5, MINOR)?;
    for (path, version) in [(format!("{INSTALLED}.lab"), OLD), (other, MINOR)] {
        control.says(&yaml(&format!("k3s: {{path: {path}}}"), &HOSTS))?;
        let wanted = format!("k3s is {NEW} here, and {version} is asked for");
        says(&control.apply(&[])?, 4, &[&wanted, "smartup upgrade --k3s"])?;
    }
    all_run(h1, NEW)?;

    // reset gives back what was there before smartup came
    control.says(&yaml("", &HOSTS))?;
    control.run("reset", &["--yes"])?.checked()?;
    for host in all {
        ensure!(host.run(["sha256sum", INSTALLED])? == original, "{}: the k3s of before", host.name());
        ensure!(host.sh("ls -A /var/lib/smartup 2>/dev/null || true")?.is_empty(), "{}: nothing is left", host.name());
    }
    Ok(())
}

/// `smartup upgrade -f` in the background, its events line by line.
fn start(control: &Control<'_>, k3s: &str) -> Result<Running> {
    control.host.spawn(["smartup", "upgrade", "--yes", "-f", "/root/cluster.yaml", "--events", "json", "--k3s", k3s])
}

/// Kills smartup on a host in the middle of a step of its.
fn killed_at(lab: &Lab, control: &Control<'_>, k3s: &str, step: &str) -> Result<()> {
    let mut run = start(control, k3s)?;
    // the survey starts each step too, and ends it at once
    let (mut surveyed, mut killed) = (Vec::new(), None);
    while let Some(line) = run.line()? {
        let event: Value = serde_json::from_str(&line)?;
        if event["event"] == "step_done" && event["step"] == step {
            surveyed.push(event["host"].clone());
        }
        if killed.is_none() && host_at(&event, "step_started", step).is_some() && surveyed.contains(&event["host"]) {
            let host = lab.host(event["host"].as_str().unwrap_or_default())?;
            host.sh("kill -9 $(pgrep -f 'smartup-[0-9a-f]* node')")?;
            killed = Some(event["host"].clone());
        }
        if event["event"] == "host_done" && Some(&event["host"]) == killed.as_ref() {
            ensure!(event["outcome"] == "unknown", "{event}");
        }
    }
    ensure!(run.wait()? == 1 && killed.is_some(), "it was killed in '{step}'");
    Ok(())
}

#[test]
fn what_does_not_work_is_put_back() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4, h5] = lab.hosts() else { bail!("there are five hosts") };
    let servers = [h1, h2, h3];
    let control = Control::on(&lab, "h5", &yaml("", &HOSTS))?;
    control.applied(&[])?;
    is_one_cluster(&servers, &[h4])?;
    let original = h1.run(["sha256sum", INSTALLED])?;
    for host in [h1, h2, h3, h4] {
        host.run(["touch", "/root/mark"])?;
    }
    let back = |rest: &[&Host]| -> Result<()> {
        all_run(h1, OLD)?;
        is_one_cluster(&servers, &[h4])?;
        for host in rest {
            ensure!(host.run(["sha256sum", INSTALLED])? == original, "{}: the old k3s", host.name());
        }
        Ok(())
    };

    // it cannot even be asked for its version; it ends at once; it says that it runs, and never does anything
    let wrong = impostor(h5, "v1.20.9+k3s1", "exit 1")?;
    h5.sh(&format!("sed -i 's/k3s version/k4s/; s/v1.20.9/1/' {wrong}"))?;
    says(&upgrade(&control, &wrong, &["--yes"])?, 2, &["it cannot be run here to ask for its version"])?;
    let was = [h3, h4].map(traces);
    let ends = impostor(h5, NEW, "echo 'level=fatal msg=\"no such thing\"' >&2; exit 1")?;
    let (outcome, away) = longest_silence(&lab, || upgrade(&control, &ends, &["--yes"]))?;
    says(
        &outcome,
        1,
        &[
            "k3s-server.service has ended 3 times in a row",
            "the k3s before it was put back, and works",
            "failed, which ends the roll-out",
            "4 hosts: 1 failed, 3 not started.",
        ],
    )?;
    ensure!(away < Duration::from_secs(3), "the API was away for {away:?}");
    back(&[h1, h2, h3, h4])?;
    let hangs = impostor(h5, NEW, "systemd-notify --ready; exec sleep 600")?;
    says(&upgrade(&control, &hangs, &["--yes", "--timeout", "15s"])?, 1, &["gave up after", "the k3s before it was put back, and works"])?;
    back(&[h1, h2, h3, h4])?;
    let [holder] = &holders(&servers)?[..] else { bail!("one server holds the VIP") };
    for (host, was) in [h3, h4].into_iter().zip(was) {
        // those whose turn did not come; the first server in the file that does not hold the VIP came first
        let tried = if holder == "h1" { "h2" } else { "h1" };
        ensure!(host.name() == tried || traces(host)?.0 == was?.0, "{} was restarted", host.name());
    }

    // killed in the middle, and run again: it goes on
    let new = release(h5, NEW)?;
    for step in ["k3s binary", "unit k3s-server.service", "etcd whole"] {
        killed_at(&lab, &control, &new, step)?;
        until("smartup has ended everywhere", LONG, || {
            Ok(servers.iter().all(|h| h.exec(["flock", "-n", "/run/smartup.lock", "true"]).is_ok_and(|o| o.ok())).then_some(()))
        })?;
    }
    says(&upgrade(&control, &new, &["--yes"])?, 0, &[])?;
    all_run(h1, NEW)?;
    is_one_cluster(&servers, &[h4])?;
    ensure!(h1.run(["systemctl", "is-active", "keepalived"])?.trim() == "active");

    // host by host: each server by itself, and an agent whose new k3s does not work
    for host in servers {
        let path = release(host, MINOR)?;
        let (done, away) = longest_silence(&lab, || smartup(host, &["upgrade", "--yes", "--k3s", &path]))?;
        says(&done, 0, &[&format!("{} runs k3s {MINOR}.", host.name())])?;
        ensure!(away < Duration::from_secs(3), "{}: the API was away for {away:?}", host.name());
    }
    let ends = impostor(h4, MINOR, "exit 1")?;
    says(
        &smartup(h4, &["upgrade", "--yes", "--k3s", &ends])?,
        1,
        &["k3s-agent.service has ended 3 times in a row", "was put back, and works"],
    )?;
    ensure!(versions(h1)?["h4"] == NEW);
    let good = release(h4, MINOR)?;
    says(&smartup(h4, &["upgrade", "--yes", "--k3s", &good])?, 0, &[])?;
    all_run(h1, MINOR)?;

    // with one of three servers gone no other may stop, with -f nothing begins, and smart updates are not enabled
    h3.power_cut()?;
    until("etcd misses h3", LONG, || Ok(status(h1)?["etcd"].to_string().contains("does not answer").then_some(())))?;
    says(&smartup(h1, &["enable-updates"])?, 4, &["etcd's member h3"])?;
    let namespaces = until("the API answers", LONG, || h1.run(["k3s", "kubectl", "get", "namespaces", "-o", "name"]).map(Some))?;
    ensure!(!namespaces.contains("vz-maintenance-operator"), "nothing was changed: {namespaces}");
    let was = traces(h2)?;
    let next = release(h2, "v1.21.1+k3s1")?;
    says(&smartup(h2, &["upgrade", "--yes", "--k3s", &next])?, 4, &["3 members, 2 healthy, 2 needed: stopping h2 would lose quorum"])?;
    let next = release(h5, "v1.21.1+k3s1")?;
    says(&upgrade(&control, &next, &["--yes"])?, 1, &["not started: h1, h2, h4: h3 cannot be changed, and so nothing begins"])?;
    ensure!(traces(h2)?.0 == was.0, "h2 was restarted");
    Ok(())
}

//! The whole cluster from one file: made, looked at, changed and taken down from a host that is none of its own.

mod common;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::{Before, Control, VIP, arguments, events, holders, host_at, is_one_cluster, longest_silence, outcomes, processes, yaml};
use integration::{Host, Lab, LabSpec};
use serde_json::Value;

/// A holder that is restarted hands the VIP over at once; what is allowed is an advert's time and a busy machine's.
const FAILOVER: Duration = Duration::from_secs(3);

/// Whatever was written since the mark, but for what the host's own login writes: its log.
fn written_since_mark(host: &Host) -> Result<String> {
    host.sh("find / -xdev -newercm /run/mark ! -path '/var/log/*' ! -path /run")
}

/// Fails when one of the secrets is anywhere where it must not be.
fn keeps(secrets: &[String], place: &str, text: &str) -> Result<()> {
    ensure!(!secrets.iter().any(|s| text.contains(s.as_str())), "a secret in {place}: {text}");
    Ok(())
}

/// What anybody on the host can read, and its log.
fn keeps_on_disk(secrets: &[String], host: &Host) -> Result<()> {
    host.write("/root/secrets", 0o600, secrets.join("\n"))?;
    // one that must be found, or the search is none
    host.write("/tmp/canary", 0o644, &secrets[0])?;
    let readable = "cd /; grep -rlF -f - etc home opt root run tmp usr/local var 2> /dev/null";
    let found = host.sh(&format!("su -s /bin/sh nobody -c '{readable}' < /root/secrets || true"))?;
    ensure!(found.trim() == "tmp/canary", "{}: anybody can read a secret in {found}", host.name());
    let logged = host.sh("journalctl --no-pager -o cat | grep -F -f /root/secrets || true")?;
    ensure!(logged.is_empty(), "{}: a secret in the journal: {logged}", host.name());
    host.run(["rm", "/root/secrets", "/tmp/canary"]).map(drop)
}

#[test]
fn from_nothing_to_nothing() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h).expect("there are five hosts"));
    let (servers, all) = ([h1, h2, h3], [h1, h2, h3, h4]);
    let top = "tokenFile: token\nvrrp: {authPassFile: pass}";
    let listed = ["h1, role: server", "h2, role: server", "h3, role: server", "h4, role: agent"];
    let control = Control::on(&lab, "h5", &yaml(top, &listed))?;
    control.host.write("/root/token", 0o600, "s3cret-t0ken-of-the-lab\n")?;
    control.host.write("/root/pass", 0o600, "Pa5sW0rd\n")?;
    let mut secrets = vec!["s3cret-t0ken-of-the-lab".to_owned(), "Pa5sW0rd".to_owned()];

    // a plan says what would be changed, and changes nothing: not even what it sent stays
    let before: Vec<Before> = all.iter().map(|h| Before::of(h)).collect::<Result<_>>()?;
    let plan = control.plan(&[])?;
    ensure!(plan.code == 3 && plan.stdout.contains("4 hosts: 4 would be changed."), "{}: {}{}", plan.code, plan.stdout, plan.stderr);
    ensure!(plan.stdout.contains("+++ /etc/keepalived/keepalived.conf"), "files are shown as diffs: {}", plan.stdout);
    keeps(&secrets, "the plan", &(plan.stdout + &plan.stderr))?;
    for (host, before) in all.iter().zip(&before) {
        before.unchanged(host)?;
    }
    let asks = control.run("apply", &[])?;
    ensure!(asks.code == 2 && asks.stderr.contains("--yes"), "without a terminal to ask on: {}", asks.stderr);

    // all of it at once, with somebody looking at every process's arguments
    let (done, seen) = arguments(|| control.apply(&["--events", "json"]))?;
    ensure!(done.code == 0, "{}\n{}", done.stdout, done.stderr);
    secrets.push(h1.read("/var/lib/rancher/k3s/server/node-token")?.trim().to_owned());
    for role in ["server", "agent"] {
        secrets.push(common::ticket(h1, role)?);
    }
    keeps(&secrets, "the events", &(done.stdout.clone() + &done.stderr))?;
    ensure!(seen.iter().any(|a| a.contains("smartup") && a.ends_with(" node ")), "the arguments of what runs on the hosts were seen");
    for arguments in &seen {
        keeps(&secrets, "arguments", arguments)?;
    }
    let said = events(&done.stdout)?;
    ensure!(said.iter().all(|e| e["host"].as_str().is_some_and(|h| listed.iter().any(|l| l.starts_with(h)))), "{}", done.stdout);
    let ends: Vec<&Value> = said.iter().filter(|e| e["event"] == "host_done").collect();
    ensure!(ends.len() == 4 && ends.iter().all(|e| e["outcome"] == "changed"), "{ends:?}");
    is_one_cluster(&servers, &[h4])?;
    for host in lab.hosts().iter().filter(|h| h.name() != "h5") {
        keeps_on_disk(&secrets, host)?;
    }

    again_changes_nothing(&control, &all)?;
    is_shown(&control, &secrets)?;
    flags_change(&lab, &control, top, &listed, &servers)?;
    is_one_cluster(&servers, &[h4])?;

    // who is not in the file any more is named and left alone
    let was = processes(h4)?;
    control.says(&yaml(top, &listed[..3]))?;
    let said = control.applied(&[])?;
    ensure!(said.contains("h4 (agent, 10.79.0.14) is in the cluster and not in the file"), "{said}");
    ensure!(said.contains("smartup remove -f /root/cluster.yaml h4") && processes(h4)? == was, "{said}");
    is_one_cluster(&servers, &[h4])?;

    // and all is taken down again
    control.says(&yaml(top, &listed))?;
    let asks = control.run("reset", &[])?;
    ensure!(asks.code == 2 && asks.stderr.contains("--yes"), "{}", asks.stderr);
    control.run("reset", &["--yes"])?.checked()?;
    for (host, before) in all.iter().zip(&before) {
        before.unchanged(host)?;
    }
    Ok(())
}

/// A plan and another run find nothing to do, and write nothing.
fn again_changes_nothing(control: &Control<'_>, all: &[&Host]) -> Result<()> {
    control.is_settled()?;
    for host in all {
        host.run(["touch", "/run/mark"])?;
    }
    let was = all.iter().map(|h| processes(h)).collect::<Result<Vec<_>>>()?;
    let said = control.applied(&[])?;
    ensure!(said.contains("4 hosts: 4 as wanted already."), "{said}");
    for (host, was) in all.iter().zip(was) {
        ensure!(processes(host)? == was, "{}: something was restarted", host.name());
        let written = written_since_mark(host)?;
        ensure!(written.is_empty(), "{}: written by a run that had nothing to do: {written}", host.name());
    }
    let said = outcomes(&control.apply(&["-o", "json"])?.checked()?)?;
    ensure!(said.len() == 4 && said.values().all(|o| o == "unchanged"), "{said:?}");
    Ok(())
}

/// The cluster as `status -f` shows it.
fn is_shown(control: &Control<'_>, secrets: &[String]) -> Result<()> {
    let text = control.run("status", &[])?.checked()?;
    for words in ["10.79.0.200:9443 answers", "is held by h1", "HOST   h4 (agent", "h3"] {
        ensure!(text.contains(words), "{words} in:\n{text}");
    }
    let json = control.run("status", &["-o", "json"])?.checked()?;
    let hosts: Value = serde_json::from_str(&json)?;
    let of = |n: usize| &hosts[n]["report"]["host"];
    ensure!(hosts.as_array().is_some_and(|h| h.len() == 4) && of(0)["role"] == "server" && of(3)["name"] == "h4", "{json}");
    keeps(secrets, "the status", &(text + &json))
}

/// A flag of k3s's changes on all hosts: one server after the other is restarted, the holder last.
fn flags_change(lab: &Lab, control: &Control<'_>, top: &str, listed: &[&str], servers: &[&Host]) -> Result<()> {
    let holder = holders(servers)?.pop().context("somebody has the VIP")?;
    control.says(&yaml(&format!("{top}\nk3sArgs: [--node-label=lab=yes]"), listed))?;
    // one host alone, first
    let said = outcomes(&control.apply(&["--only", "h4", "-o", "json"])?.checked()?)?;
    ensure!(said.len() == 1 && said["h4"] == "changed", "{said:?}");
    let unknown = control.apply(&["--only", "h9"])?;
    ensure!(unknown.code == 2 && unknown.stderr.contains("h1, h2, h3, h4"), "{}", unknown.stderr);

    let (done, away) = longest_silence(lab, || control.apply(&["--events", "json"])?.checked())?;
    let said = events(&done)?;
    let mut order: Vec<String> = Vec::new();
    let mut ended = 0;
    for event in &said {
        if let Some(host) = host_at(event, "step_done", "unit k3s-server.service").filter(|_| event["outcome"] == "changed") {
            ensure!(ended == order.len(), "{host} was restarted before {order:?} were done");
            order.push(host.to_owned());
        }
        if event["event"] == "host_done" && event["outcome"] == "changed" {
            ended += 1;
        }
    }
    ensure!(order.len() == 3 && order.last() == Some(&holder), "{holder} had the VIP, and they were restarted like this: {order:?}");
    ensure!(away < FAILOVER, "the API did not answer through {VIP} for {away:?}");
    for server in servers {
        let args = server.sh("tr '\\0' ' ' < /proc/$(systemctl show k3s-server -p MainPID --value)/cmdline")?;
        ensure!(args.contains("--node-label=lab=yes"), "{}: {args}", server.name());
    }
    control.is_settled()
}

/// Hosts that are reached in other ways: as somebody who is not root, through another host, without k3s, of another processor.
#[test]
fn one_server_grows_to_three() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h).expect("there are five hosts"));
    let first = "h1, role: server, ssh: {user: admin}";
    let control = Control::on(&lab, "h5", &yaml("", &[first]))?;

    // not root: sudo, and without a password
    h1.sh("useradd -m admin; install -D -o admin -m 600 /root/.ssh/authorized_keys ~admin/.ssh/authorized_keys; chown -R admin ~admin")?;
    let said = control.apply(&[])?;
    ensure!(said.code == 1 && said.stdout.starts_with("h1: admin may not use sudo without a password"), "{}{}", said.stdout, said.stderr);
    ensure!(said.stdout.contains("hint: let admin do so (`admin ALL=(ALL) NOPASSWD: ALL` in sudoers)"), "{}", said.stdout);
    h1.write("/etc/sudoers.d/admin", 0o440, "admin ALL=(ALL) NOPASSWD: ALL\n")?;
    control.applied(&[])?;
    is_one_cluster(&[h1], &[])?;
    ensure!(h1.run(["stat", "-c", "%U", "/var/lib/smartup/membership.json"])?.trim() == "root");

    // two servers and an agent at once. h2 is reached through h1 alone
    control.host.cut(h2)?;
    // h3 has a second address, which is to be its own
    h3.run(["ip", "addr", "add", "10.79.0.113/24", "dev", "eth0"])?;
    // h4 has no k3s, and looks like another processor; nothing may be run from its /tmp
    h4.run(["rm", "/usr/local/bin/k3s"])?;
    h4.run(["mount", "-t", "tmpfs", "-o", "noexec", "tmp", "/tmp"])?;
    h4.write("/usr/local/bin/uname", 0o755, "#!/bin/sh\necho aarch64\n")?;
    let listed = |agent: &str| {
        let third = "h3, role: server, nodeIp: 10.79.0.113, interface: eth0";
        yaml("", &[first, "h2, role: server, ssh: {jump: h1}", third, agent])
    };
    control.says(&listed("h4, role: agent, interface: eth7, k3s: {path: /usr/local/bin/k3s}"))?;
    let foreign = control.plan(&["--only", "h4"])?;
    ensure!(foreign.code == 2 && foreign.stdout.contains("the host's processor is aarch64"), "{}", foreign.stdout);
    ensure!(foreign.stdout.contains("--binary aarch64=PATH"), "{}", foreign.stdout);
    let binary = ["--binary", "aarch64=/usr/local/bin/smartup"];
    let nowhere = control.plan(&[&["--only", "h4"], binary.as_slice()].concat())?;
    ensure!(nowhere.code == 2 && nowhere.stdout.contains("this host has no interface eth7"), "{}", nowhere.stdout);

    control.says(&listed("h4, role: agent, k3s: {path: /usr/local/bin/k3s}"))?;
    let said = outcomes(&control.apply(&[binary.as_slice(), &["-o", "json"]].concat())?.checked()?)?;
    ensure!(said["h1"] == "unchanged" && ["h2", "h3", "h4"].iter().all(|h| said[*h] == "changed"), "{said:?}");
    is_one_cluster(&[h1, h2, h3], &[h4])?;
    let report = common::status(h1)?;
    let address = |name: &str| report["nodes"].as_array().into_iter().flatten().find(|n| n["name"] == name).map(|n| n["address"].clone());
    ensure!(address("h3") == Some("10.79.0.113".into()), "{report:#}");
    let sums = [h1, h4].map(|h| h.run(["sha256sum", "/usr/local/bin/k3s"]));
    let [ours, sent] = sums;
    ensure!(ours? == sent?, "k3s was sent as it is");
    control.is_settled()
}

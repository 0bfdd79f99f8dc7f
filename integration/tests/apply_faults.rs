//! Hosts that cannot, and runs that break off: what can be done is done, the cause comes first, and the same command goes on.

mod common;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::{Before, Control, LONG, follow, host_at, is_away, is_one_cluster, longest_silence, processes, rest, yaml};
use integration::{Host, Lab, LabSpec, until};
use serde_json::Value;

const SERVERS: [&str; 3] = ["h1, role: server", "h2, role: server", "h3, role: server"];

#[test]
fn hosts_that_cannot() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5).plain_hosts(1))?;
    let [h1, h2, h3, h4, h6] = ["h1", "h2", "h3", "h4", "h6"].map(|h| lab.host(h).expect("there are six hosts"));
    let agents = ["h4, role: agent", "h6, role: agent"];
    let all = yaml("", &[SERVERS.as_slice(), &agents].concat());
    let control = Control::on(&lab, "h5", &yaml("", &SERVERS[..1]))?;

    // a server that cannot be asked may have a cluster: none is started
    let before = Before::of(h1)?;
    h3.power_cut()?;
    control.says(&all)?;
    let said = control.fails(4, "h3: ")?;
    ensure!(is_away(&said, "h3") && said.contains("\nh1: a new cluster would be started, but h3 cannot be asked"), "{said}");
    // what was sent stays for the next run
    h1.sh("rm -r /var/lib/smartup/bin; rmdir /var/lib/smartup")?;
    before.unchanged(h1)?;
    h3.power_on()?;

    // a full disk: the other server joins all the same, agents wait until all servers are there
    control.says(&yaml("", &SERVERS[..1]))?;
    control.applied(&[])?;
    control.says(&all)?;
    h2.sh(
        "mkdir -p /var/lib/smartup; mount -t tmpfs -o size=64k full /var/lib/smartup; head -c 1M /dev/zero > /var/lib/smartup/full || true",
    )?;
    let said = control.fails(1, "h2: cannot send")?;
    ensure!(said.contains("No space left on device") && said.contains("not started: h4, h6: h2 failed"), "{said}");
    ensure!(said.contains("5 hosts: 1 failed, 2 not started, 1 changed, 1 as wanted already."), "{said}");
    h2.run(["umount", "/var/lib/smartup"])?;

    // a read-only /etc, and a broken package manager
    h4.sh("mount --bind /etc /etc; mount -o remount,bind,ro /etc")?;
    h6.write("/etc/apt/apt.conf.d/99-broken", 0o644, "this is none {\n")?;
    let said = control.fails(1, "h4: ")?;
    ensure!(said.contains("Read-only file system") && said.contains("h6: ") && said.contains("99-broken"), "{said}");
    ensure!(said.contains("5 hosts: 2 failed, 1 changed, 2 as wanted already."), "{said}");
    is_one_cluster(&[h1, h2, h3], &[])?;
    h4.run(["umount", "/etc"])?;
    h6.run(["rm", "/etc/apt/apt.conf.d/99-broken"])?;

    // an agent that is down holds up nobody
    h4.power_cut()?;
    let said = control.fails(1, "h4: ")?;
    ensure!(is_away(&said, "h4") && said.contains("5 hosts: 1 failed, 1 changed, 3 as wanted already."), "{said}");
    is_one_cluster(&[h1, h2, h3], &[h6])?;
    h4.power_on()?;
    control.applied(&[])?;
    is_one_cluster(&[h1, h2, h3], &[h4, h6])?;
    control.is_settled()?;

    // with one of three servers down, restarting another would take the quorum away
    h3.power_cut()?;
    let was = [h1, h2, h4].map(processes);
    control.says(&yaml("k3sArgs: [--node-label=lab=yes]", &[SERVERS.as_slice(), &agents].concat()))?;
    let (said, away) = longest_silence(&lab, || control.fails(4, "h3: "))?;
    ensure!(is_away(&said, "h3") && said.contains("3 members, 2 healthy, 2 needed: stopping h"), "{said}");
    ensure!(said.contains("5 hosts: 2 failed, 3 not started."), "{said}");
    ensure!(away < Duration::from_secs(5), "the API was away for {away:?}");
    for (host, was) in [h1, h2, h4].into_iter().zip(was) {
        ensure!(processes(host)? == was?, "{} was restarted", host.name());
    }
    h3.power_on()?;
    is_one_cluster(&[h1, h2, h3], &[h4, h6])?;
    control.applied(&[])?;
    is_one_cluster(&[h1, h2, h3], &[h4, h6])?;
    control.is_settled()
}

/// Waits until nothing of smartup is at work on the host.
fn released(host: &Host) -> Result<()> {
    until("the lock is free", LONG, || Ok(host.exec(["flock", "-n", "/run/smartup.lock", "true"])?.ok().then_some(())))
}

#[test]
fn runs_that_break_off() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h).expect("there are five hosts"));
    let file = yaml("", &[SERVERS[0], SERVERS[1], "h3, role: agent"]);
    let (control, other) = (Control::on(&lab, "h5", &file)?, Control::on(&lab, "h4", &file)?);

    // Ctrl-C: the step under way ends, nothing new starts
    let mut run = control.start(&[])?;
    follow(&mut run, |e| host_at(e, "step_started", "API ready") == Some("h1"))?;
    control.signal("INT")?;
    let said = rest(&mut run)?;
    ensure!(run.wait()? == 1);
    let joined = said.iter().any(|e| host_at(e, "step_started", "unit k3s-server.service") == Some("h2"));
    ensure!(!joined, "h2 did not start: {said:?}");
    let ends: Vec<&Value> = said.iter().filter(|e| e["event"] == "host_done").collect();
    ensure!(ends.len() == 3, "each host's end is told: {said:?}");
    for host in [h1, h2, h3] {
        released(host)?;
    }

    // two at once from two places: the second one is refused where the first one works, and harms nothing
    let mut run = control.start(&[])?;
    follow(&mut run, |e| host_at(e, "step_started", "unit k3s-server.service") == Some("h2"))?;
    let second = other.apply(&[])?;
    ensure!(second.code == 4 && second.stdout.contains("another smartup run is under way"), "{}{}", second.stdout, second.stderr);
    rest(&mut run)?;
    ensure!(run.wait()? == 0);
    is_one_cluster(&[h1, h2], &[h3])?;
    other.is_settled()?;

    // the control side is gone: the hosts end their step, and let go
    let labelled = |n: usize| yaml(&format!("k3sArgs: [--node-label=run=n{n}]"), &[SERVERS[0], SERVERS[1], "h3, role: agent"]);
    control.says(&labelled(1))?;
    let mut run = control.start(&[])?;
    let event = follow(&mut run, |e| host_at(e, "step_started", "API ready").is_some() && e["index"].is_number())?;
    run.kill()?;
    released(lab.host(event["host"].as_str().unwrap_or_default())?)?;
    control.applied(&[])?;

    // the connection breaks: how far it came is unknown
    control.says(&labelled(2))?;
    let mut run = control.start(&[])?;
    let restarted = |e: &Value| (e["outcome"] == "changed").then(|| host_at(e, "step_done", "unit k3s-server.service")).flatten().is_some();
    let event = follow(&mut run, restarted)?;
    let host = lab.host(event["host"].as_str().unwrap_or_default())?;
    // the parent of what runs there is the connection's own sshd
    host.sh("kill -9 $(ps -o ppid= -p $(pgrep -of 'smartup-[0-9a-f]* node'))")?;
    let said = rest(&mut run)?;
    ensure!(run.wait()? == 1);
    let end = said.iter().find(|e| e["event"] == "host_done" && e["host"] == host.name()).context("its end is told")?;
    ensure!(end["outcome"] == "unknown" && end["error"].as_str().is_some_and(|e| e.contains("unknown")), "{end}");
    released(host)?;
    control.applied(&[])?;

    // the network is cut, and nobody says so: both sides find out by the other's silence
    control.says(&labelled(3))?;
    let mut run = control.start(&[])?;
    let event = follow(&mut run, restarted)?;
    let host = lab.host(event["host"].as_str().unwrap_or_default())?;
    host.cut(control.host)?;
    let said = rest(&mut run)?;
    ensure!(run.wait()? == 1);
    let end = said.iter().find(|e| e["event"] == "host_done" && e["host"] == host.name()).context("its end is told")?;
    ensure!(end["outcome"] == "unknown", "{end}");
    released(host)?;
    host.mend(control.host)?;
    control.applied(&[])?;
    is_one_cluster(&[h1, h2], &[h3])?;
    control.is_settled()
}

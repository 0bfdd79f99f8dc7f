//! smartup on its way to a host, and the way breaks: nothing half is taken for whole, and nothing of it stays.

mod common;

use anyhow::{Context as _, Result, ensure};
use common::{Control, LONG, is_one_cluster, rest, yaml};
use integration::{Host, Lab, LabSpec, until};

const FOLDER: &str = "/var/lib/smartup/bin";

/// What is in the folder for programs.
fn sent(host: &Host) -> Result<Vec<String>> {
    Ok(host.sh(&format!("ls -A {FOLDER} 2> /dev/null || true"))?.lines().map(str::to_owned).collect())
}

#[test]
fn an_upload_that_is_cut_off_leaves_nothing() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h).expect("there are five hosts"));
    let agents = ["h2, role: agent", "h3, role: agent", "h4, role: agent"];
    let control = Control::on(&lab, "h5", &yaml("", &[&["h1, role: server"], agents.as_slice()].concat()))?;

    // in the middle of it: the connection is gone, the network is cut, the power is off
    let mut run = control.start(&[])?;
    let (mut cut, mut said): (Vec<String>, Vec<serde_json::Value>) = (Vec::new(), Vec::new());
    while cut.len() < 3 {
        let line = run.line()?.context("the run ended before everything was cut")?;
        let event: serde_json::Value = serde_json::from_str(&line)?;
        let name = event["host"].as_str().unwrap_or_default().to_owned();
        let percent = event["percent"].as_u64().unwrap_or(0);
        said.push(event);
        // what was sent first may still be on its way: ssh's window of 2 MiB is less than a tenth
        if percent < 10 || name == "h1" || cut.contains(&name) {
            continue;
        }
        ensure!(percent < 90, "{name} has {percent} % already: {line}");
        match name.as_str() {
            "h2" => h2.sh("kill -9 $(pgrep -f 'sshd: root@[n]otty')").map(drop)?,
            "h3" => h3.cut(control.host)?,
            _ => h4.power_cut()?,
        }
        cut.push(name);
    }
    said.extend(rest(&mut run)?);
    ensure!(run.wait()? == 1, "{said:?}");
    let end = |name: &str| said.iter().find(|e| e["event"] == "host_done" && e["host"] == name).with_context(|| format!("{name}'s end"));
    ensure!(end("h1")?["outcome"] == "changed", "who was not cut off is done: {}", end("h1")?);
    for name in ["h2", "h3", "h4"] {
        let end = end(name)?;
        let error = end["error"].as_str().unwrap_or_default();
        ensure!(end["outcome"] == "failed" && error.starts_with("cannot send /usr/local/bin/smartup: the connection was lost"), "{end}");
        ensure!(end["hint"].as_str().is_some_and(|h| h.contains("run again")), "{end}");
    }

    // where somebody was there to notice, it is gone; elsewhere there is a part, and nothing that looks whole
    h4.power_on()?;
    until("h2 removes the part", LONG, || Ok(sent(h2)?.is_empty().then_some(())))?;
    let parts = sent(h4)?;
    ensure!(parts.len() == 1 && parts[0].starts_with(".part."), "{parts:?}");
    ensure!(sent(h3)?.iter().all(|name| name.starts_with(".part.")), "{:?}", sent(h3)?);
    h3.mend(control.host)?;
    for host in [h3, h4] {
        host.sh(&format!("find {FOLDER} -name '.part.*' -exec touch -d '3 minutes ago' {{}} +"))?;
    }
    control.applied(&[])?;
    is_one_cluster(&[h1], &[h2, h3, h4])?;
    for host in [h1, h2, h3, h4] {
        let programs = sent(host)?;
        ensure!(programs.len() == 1 && programs[0].starts_with("smartup-"), "{}: {programs:?}", host.name());
        host.sh(&format!("cd {FOLDER}; for f in *; do test $(sha256sum < $f | cut -d' ' -f1) = ${{f#smartup-}}; done"))?;
    }
    control.is_settled()
}

//! kill -9 at every step: the next run converges, and reset still knows what there is to undo.

mod common;

use anyhow::{Context as _, Result, ensure};
use common::{Before, VIP, done, init, smartup, status};
use integration::{Host, Lab, LabSpec};
use serde_json::Value;

/// Runs init and kills it when `enough` says so of an event; answers whether it came to that.
fn killed_at(host: &Host, enough: impl Fn(&Value) -> bool) -> Result<bool> {
    let mut run = host.spawn(["smartup", "init", "--vip", VIP, "--events", "json"])?;
    while let Some(line) = run.line()? {
        let event: Value = serde_json::from_str(&line).with_context(|| format!("not an event: {line}"))?;
        if enough(&event) {
            run.kill()?;
            run.wait()?;
            return Ok(true);
        }
    }
    let code = run.wait()?;
    ensure!(code == 0, "init ended with {code}");
    Ok(false)
}

#[test]
fn killed_at_every_step_it_converges() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1))?;
    let h1 = lab.host("h1")?;
    let before = Before::of(h1)?;
    let dry = done(h1, &["init", "--vip", VIP, "--dry-run", "--events", "json"])?;
    let steps: Vec<String> = dry
        .lines()
        .map(serde_json::from_str::<Value>)
        .filter_map(|e| e.ok().filter(|e| e["event"] == "step_started").and_then(|e| Some(e["step"].as_str()?.to_owned())))
        .collect();
    ensure!(steps.len() > 10, "{steps:?}");
    // each run gets as far as the one before, and one boundary further: it dies as the step begins, and as it ends
    for step in &steps {
        for boundary in ["step_started", "step_done"] {
            ensure!(killed_at(h1, |e| e["event"] == boundary && e["step"] == step.as_str())?, "{step} was never {boundary}");
        }
    }
    init(h1)?;
    let report = status(h1)?;
    ensure!(report["api"]["answers"] == true, "{report:#}");
    let dry = smartup(h1, &["init", "--vip", VIP, "--dry-run", "--exit-code"])?;
    ensure!(dry.code == 0, "{}{}", dry.stdout, dry.stderr);
    done(h1, &["reset", "--yes"])?;
    before.unchanged(h1)
}

#[test]
fn a_change_to_what_a_unit_reads_reaches_it_also_after_a_kill() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1))?;
    let h1 = lab.host("h1")?;
    init(h1)?;
    let pid = || h1.run(["systemctl", "show", "k3s-server", "-p", "MainPID"]);
    let was = pid()?;
    // killed after the environment was written, before k3s was restarted
    let mut run = h1.spawn(["smartup", "init", "--vip", VIP, "--k3s-arg=--node-label=test=yes", "--events", "json"])?;
    while let Some(line) = run.line()? {
        let event: Value = serde_json::from_str(&line)?;
        if event["event"] == "step_done" && event["step"] == "file /etc/k3s/k3s-server.env" {
            run.kill()?;
        }
    }
    run.wait()?;
    ensure!(pid()? == was, "k3s still runs as before");
    init(h1)?;
    ensure!(pid()? != was, "k3s was restarted");
    let args = h1.sh("tr '\\0' ' ' < /proc/$(systemctl show k3s-server -p MainPID --value)/cmdline")?;
    ensure!(args.contains("--node-label=test=yes"), "{args}");
    Ok(())
}

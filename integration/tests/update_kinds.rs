//! Updates that are not just a package with a reboot, all the way: by real agents and controllers, on a small cluster.

mod common;

use anyhow::{Context as _, Result, ensure};
use common::updating::{Admin, KERNEL, WANTS_REBOOT, release, release_that_waits_for, repository, text, version};
use common::{Control, LONG, is_one_cluster, yaml};
use integration::{Host, Lab, LabSpec, until};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// Says, as scripts for kured do, with 0 that a reboot is needed: here while there is a file that does not outlive one.
const SENTINEL: &str = "#!/bin/sh
test -e /run/kernel-was-replaced
";
/// What k3s on an agent needs, and goes down with.
const NEEDED_UNIT: &str = "[Unit]
Description=something that k3s needs
[Service]
ExecStart=/bin/sleep infinity
";
const NEEDS: &str = "[Unit]
Requires=needed.service
After=needed.service
";

fn never() -> Value {
    json!([{ "schedule": "0 3 29 2 *", "duration": "0h01m" }])
}

fn always() -> Value {
    json!([{ "schedule": "0 0 * * *", "duration": "24h" }])
}

#[test]
fn reboots_alone_hangs_failures_and_what_k3s_needs() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(4))?;
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h).expect("there are four hosts"));
    let control = Control::on(&lab, "h4", &yaml("", &["h1, role: server", "h2, role: agent", "h3, role: agent"]))?;
    control.applied(&[])?;
    is_one_cluster(&[h1], &[h2, h3])?;
    [h1, h2, h3].into_iter().try_for_each(repository)?;
    let admin = Admin::enables(control)?;
    let story = || {
        rebooted_as_others_say(&admin, h2, h3)?;
        rebooted_after_it_was_installed(&admin, h2)?;
        what_k3s_needs_is_replaced(&admin, h2)?;
        what_hangs_is_banned(&admin, h3)?;
        tried_again_after_four_hours(&admin, h1, h2)?;
        disabled_at_once(&admin, h2)
    };
    story().with_context(|| admin.state())?;
    lab.down()
}

/// Others have updated these hosts: one has the usual sentinel, of the other one a command says it. They are rebooted one after the
/// other, in the window and no sooner; somebody's own cordon stays.
fn rebooted_as_others_say(admin: &Admin<'_>, h2: &Host, h3: &Host) -> Result<()> {
    let both = [h2, h3];
    let before = [h2.boot_id()?, h3.boot_id()?];
    both.into_iter().try_for_each(|host| host.write("/root/sentinel", 0o755, SENTINEL))?;
    admin.spec(&json!({ "maintenanceWindows": never(), "host": { "sentinelCommand": ["/root/sentinel"] } }))?;
    admin.kubectl(&format!("cordon {}", h3.name()))?;
    h2.write("/run/reboot-required", 0o644, "")?;
    h3.write("/run/kernel-was-replaced", 0o644, "")?;
    admin.updates(&["check"])?;
    until("both wait for the window", LONG, || {
        let closed = |host: &Host| -> Result<bool> {
            let update = admin.update_of(host)?;
            ensure!(update["spec"]["transaction"].is_null(), "{update:#}");
            Ok(update["status"]["reboot"]["needed"] == "yes")
        };
        let shown = admin.updates(&["status"])?;
        Ok((closed(h2)? && closed(h3)? && shown.matches("window").count() >= 2).then_some(()))
    })?;
    ensure!([h2.boot_id()?, h3.boot_id()?] == before, "no sooner");
    admin.spec(&json!({ "maintenanceWindows": always() }))?;
    until("both were rebooted", LONG * 2, || {
        let updates = admin.items("nodeupdates")?;
        let busy = updates.iter().filter(|u| !u["spec"]["transaction"].is_null()).count();
        ensure!(busy <= 1, "{updates:#?}");
        let done =
            |host: &Host| updates.iter().any(|u| common::updating::name(u) == host.name() && u["status"]["history"][0]["rebooted"] == true);
        Ok((busy == 0 && done(h2) && done(h3)).then_some(()))
    })?;
    let after = [h2.boot_id()?, h3.boot_id()?];
    ensure!(before[0] != after[0] && before[1] != after[1], "{before:?} {after:?}");
    ensure!(admin.get("node h3")?["spec"]["unschedulable"] == true, "it was somebody else's");
    admin.kubectl("uncordon h3")?;
    admin.spec(&json!({ "maintenanceWindows": null, "host": null }))?;
    admin.is_at_rest()
}

/// By its name it stops no pods, and so they stay while it is installed; they leave before the reboot that it wants.
fn rebooted_after_it_was_installed(admin: &Admin<'_>, host: &Host) -> Result<()> {
    let (before, boot) = (admin.last_run(host)?, host.boot_id()?);
    release(host, "other", 2, WANTS_REBOOT)?;
    admin.updates(&["check"])?;
    let (phases, run) = admin.course(host, &before)?;
    ensure!(run["failure"].is_null() && run["rebooted"] == true && run["packages"] == 1, "{run:#}");
    let at = |phase: &str| phases.iter().position(|p| p == phase).with_context(|| format!("{phase} was not seen: {phases:?}"));
    ensure!(at("Installing")? < at("Draining")? && at("Draining")? < at("Rebooting")?, "{phases:?}");
    ensure!(host.boot_id()? != boot && version(host, "other")? == "2 installed");
    admin.is_at_rest()
}

/// A package restarts what k3s needs, so that k3s ends, and with it all that watches the installation from inside of the cluster.
fn what_k3s_needs_is_replaced(admin: &Admin<'_>, host: &Host) -> Result<()> {
    host.write("/etc/systemd/system/needed.service", 0o644, NEEDED_UNIT)?;
    host.write("/etc/systemd/system/k3s-agent.service.d/needs.conf", 0o644, NEEDS)?;
    host.run(["systemctl", "daemon-reload"])?;
    host.run(["systemctl", "start", "needed"])?;
    let since = || host.run(["systemctl", "show", "-P", "ActiveEnterTimestampMonotonic", "k3s-agent"]);
    let (before, ran) = (admin.last_run(host)?, since()?);
    release(host, "other", 3, "echo >> /root/replaced; systemctl stop needed; sleep 3; systemctl start needed k3s-agent")?;
    admin.updates(&["check"])?;
    let run = admin.ended(host, &before)?;
    ensure!(run["failure"].is_null() && run["packages"] == 1, "{run:#}");
    ensure!(since()? != ran, "k3s went on");
    ensure!(host.read("/root/replaced")?.lines().count() == 1, "once");
    ensure!(version(host, "other")? == "3 installed");
    admin.is_at_rest()
}

/// No sign of progress for as long as an installation may be silent.
fn what_hangs_is_banned(admin: &Admin<'_>, host: &Host) -> Result<()> {
    admin.spec(&json!({ "timeouts": { "install": "0h01m" } }))?;
    let before = admin.last_run(host)?;
    // mending it takes no second minute
    release(host, "risky", 2, "[ -e /root/hung ] || { touch /root/hung; sleep infinity; }")?;
    admin.updates(&["check"])?;
    let run = admin.ended(host, &before)?;
    ensure!(["Crashed", "Hung"].contains(&text(&run["failure"]["reason"])), "{run:#}");
    ensure!(admin.get("updatemanager default")?["spec"]["bannedPackages"] == json!(["risky=2"]));
    ensure!(!host.exec(["pgrep", "-x", "dpkg"])?.ok(), "nothing of it is left");
    admin.spec(&json!({ "timeouts": null }))?;
    admin.is_free()
}

/// What failed is left alone for four hours, by the controller's clock.
fn tried_again_after_four_hours(admin: &Admin<'_>, server: &Host, host: &Host) -> Result<()> {
    let before = admin.last_run(host)?;
    release_that_waits_for(host, "other", 4, "test -e /root/may-be-unpacked")?;
    admin.updates(&["check"])?;
    let run = admin.ended(host, &before)?;
    ensure!(run["failure"]["reason"] == "InstallFailed", "{run:#}");
    let retry = admin.update_of(host)?["spec"]["retry"].clone();
    let [failed, again] = [&retry["failure"]["at"], &retry["notBefore"]].map(|at| text(at).parse::<Timestamp>());
    let pause = again?.duration_since(failed?);
    let four = SignedDuration::from_hours(4);
    ensure!(pause >= four && pause < four + SignedDuration::from_mins(5), "{retry:#}");
    host.write("/root/may-be-unpacked", 0o600, "")?;

    // not yet: the controller has seen a new report by the shifted clock, and does nothing
    let (minute, hour) = (60, 3600);
    server.shift_clock(4 * hour - 5 * minute)?;
    admin.updates(&["check"])?;
    admin.lists(host, &["other=4"])?;
    let shown = admin.updates(&["plan", "-o", "json"])?;
    let update = admin.update_of(host)?;
    ensure!(update["spec"]["transaction"].is_null() && update["spec"]["retry"] == retry, "{shown}\n{update:#}");
    server.shift_clock(4 * hour + 5 * minute)?;
    let run = admin.ended(host, &run)?;
    ensure!(run["failure"].is_null() && version(host, "other")? == "4 installed", "{run:#}");
    server.shift_clock(0)?;
    ensure!(admin.update_of(host)?["spec"]["retry"].is_null(), "it came to a good end");
    admin.is_free()
}

/// Nobody waits for an update that is under way: it goes on by itself on a node that takes pods again, of a cluster without an operator.
fn disabled_at_once(admin: &Admin<'_>, host: &Host) -> Result<()> {
    release(host, KERNEL, 2, "touch /root/kernel-began; while [ ! -e /root/kernel-may-end ]; do echo at work; sleep 1; done")?;
    admin.updates(&["check"])?;
    until("it is being installed", LONG, || Ok(host.exec(["test", "-e", "/root/kernel-began"])?.ok().then_some(())))?;
    ensure!(admin.get("node h2")?["spec"]["unschedulable"] == true, "pods left before");
    let said = admin.control.run("disable", &["--now"])?.checked()?;
    ensure!(said.contains("gone: cordon of node h2"), "{said}");
    ensure!(admin.get("node h2")?["spec"]["unschedulable"] != true);
    until("the operator is gone", LONG, || Ok(admin.kubectl("get namespace vz-maintenance-operator").is_err().then_some(())))?;
    ensure!(version(host, KERNEL)? != "2 installed", "it is not over");
    host.write("/root/kernel-may-end", 0o600, "")?;
    until("it goes on to its end", LONG, || Ok((version(host, KERNEL)? == "2 installed").then_some(())))
}

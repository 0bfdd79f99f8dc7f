//! Nodes are updated by their own agents and the controller, and nothing of it is played: a cluster that `smartup apply` made gets a
//! package that wants a reboot, while somebody writes through the floating address; then one that makes its host crash.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use common::updating::{Admin, KERNEL, WANTS_REBOOT, is_ready, name, release, repository, text, version};
use common::{Control, LONG, VIP, is_one_cluster, yaml};
use integration::clock::now;
use integration::outage::{longest, taken};
use integration::watch::Watch;
use integration::writes::{GAP, Writes};
use integration::{Host, Lab, LabSpec, until};
use serde_json::{Value, json};

/// All four nodes, one after the other, on a busy machine.
const ROLLING: Duration = Duration::from_secs(600);
/// The floating address moves when three adverts, a second apart, are missing; twice that where others keep the machine busy.
const FAILOVER: Duration = Duration::from_secs(6);
/// k3s's etcd waits for 5 s until it elects a leader, and for a random time of up to as much again; when two ask for votes at once, a
/// second time.
const ELECTION: Duration = Duration::from_secs(20);

/// The update of a node.
#[derive(Debug)]
struct Course {
    node: String,
    /// Whether it had the floating address when that began, as its agent said; None: that was not seen in time.
    had_vip: Option<bool>,
    phases: Vec<String>,
}

/// What was seen on the way.
#[derive(Default)]
struct Seen {
    courses: Vec<Course>,
    /// What must never be.
    wrong: Vec<String>,
}

impl Seen {
    fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(what());
        }
    }

    /// Whether a node is in another phase than before.
    fn enters(&mut self, update: &Value) -> bool {
        let (node, phase) = (name(update), text(&update["spec"]["transaction"]["phase"]));
        if self.courses.last().is_none_or(|c| c.node != node) {
            let had_vip = ["Checking", "Downloading"].contains(&phase).then(|| update["status"]["hasVip"] == true);
            self.courses.push(Course { node: node.to_owned(), had_vip, phases: Vec::new() });
        }
        let Some(Course { phases, .. }) = self.courses.last_mut() else { return false };
        let new = phases.last().is_none_or(|last| last != phase);
        if new {
            phases.push(phase.to_owned());
        }
        new
    }

    fn order(&self) -> Vec<&str> {
        self.courses.iter().map(|c| c.node.as_str()).collect()
    }
}

/// Looks once, and checks what must always hold; answers the `NodeUpdates`.
fn look(admin: &Admin<'_>, watch: &Watch, seen: &mut Seen) -> Result<Vec<Value>> {
    // what is under way comes first: it takes longer than this question until the next node has anything of the kind
    let all = admin.items("nodeupdates,leases,nodes")?;
    let (mut taken, mut locks) = (BTreeMap::<&str, Vec<&str>>::new(), Vec::new());
    for object in &all {
        let what = match text(&object["kind"]) {
            "NodeUpdate" if !object["spec"]["transaction"].is_null() => text(&object["spec"]["transaction"]["phase"]),
            "Node" if object["spec"]["unschedulable"] == true => "cordoned",
            "Node" if !is_ready(object) => "not Ready",
            "Lease" if name(object).starts_with("smartup-update-") => {
                locks.push(text(&object["spec"]["holderIdentity"]));
                continue;
            }
            _ => continue,
        };
        taken.entry(name(object)).or_default().push(what);
    }
    seen.must(taken.len() <= 1 && locks.len() <= 1, || format!("more than one at a time: {taken:?}, locks {locks:?}"));
    for update in all.iter().filter(|o| o["kind"] == "NodeUpdate" && !o["spec"]["transaction"].is_null()) {
        let (node, phase) = (name(update), text(&update["spec"]["transaction"]["phase"]));
        let entered = seen.enters(update);
        if ["Draining", "Installing", "Rebooting"].contains(&phase) {
            let holders = watch.holders();
            seen.must(!holders.iter().any(|h| h == node), || format!("{node} has the floating address in {phase}"));
        }
        if entered && phase == "Installing" {
            let pods = admin.kubectl(&format!("get pods -n default --field-selector spec.nodeName={node},status.phase=Running -o name"))?;
            seen.must(pods.trim().is_empty(), || format!("left on {node}: {pods}"));
        }
    }
    Ok(all.into_iter().filter(|o| o["kind"] == "NodeUpdate").collect())
}

#[test]
fn a_rolling_update_with_reboots_and_a_crash_that_is_banned_until_somebody_takes_that_back() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h).expect("there are five hosts"));
    let (servers, all) = ([h1, h2, h3], [h1, h2, h3, h4]);
    let listed = ["h1, role: server", "h2, role: server", "h3, role: server", "h4, role: agent"];
    let control = Control::on(&lab, "h5", &yaml("", &listed))?;
    control.applied(&[])?;
    is_one_cluster(&servers, &[h4])?;
    std::thread::scope(|s| {
        let made: Vec<_> = all.map(|host| s.spawn(move || repository(host))).into_iter().collect();
        made.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    let admin = Admin::enables(control)?;

    let writes = Writes::start(lab.probe(), h1, SocketAddr::new(VIP.parse()?, 9443))?;
    let watch = Watch::start(&servers.map(Clone::clone), VIP.parse::<IpAddr>()?);
    one_after_the_other(&admin, &all, &writes, &watch).with_context(|| admin.state())?;
    writes.are_kept(h1)?;
    is_one_cluster(&servers, &[h4])?;
    admin.control.is_settled()?;
    drop((writes, watch));

    banned(&admin, h4).with_context(|| admin.state())?;
    goes_on(&admin, h4).with_context(|| admin.state())?;
    installed_after_all(&admin, h4).with_context(|| admin.state())?;
    lab.down()
}

/// A kernel comes out. All have it in the end, each after one reboot, and nobody who reads or writes meanwhile notices more than a failover.
fn one_after_the_other(admin: &Admin<'_>, all: &[&Host], writes: &Writes, watch: &Watch) -> Result<()> {
    let before = all.iter().map(|h| h.boot_id()).collect::<Result<Vec<_>>>()?;
    until("writes go well", LONG, || Ok(writes.go_well_for(Duration::from_secs(1), Duration::ZERO).then_some(())))?;
    let begun = now();
    for host in all {
        release(host, KERNEL, 2, &format!("{WANTS_REBOOT}; echo >> /root/{KERNEL}"))?;
    }
    // all know of it before anything starts: one that alone knows would go first, also with the floating address
    admin.updates(&["suspend"])?;
    admin.updates(&["check"])?;
    all.iter().try_for_each(|host| admin.lists(host, &[&format!("{KERNEL}=2")]))?;
    admin.updates(&["resume"])?;
    let mut seen = Seen::default();
    until("all nodes are updated, or something is wrong", ROLLING, || {
        let updates = look(admin, watch, &mut seen)?;
        let is_done = |u: &Value| u["spec"]["transaction"].is_null() && !u["status"]["lastUpdate"].is_null();
        let put_off: Vec<_> = updates.iter().filter(|u| !u["spec"]["retry"].is_null()).collect();
        seen.must(put_off.is_empty(), || format!("put off: {put_off:#?}"));
        Ok((!seen.wrong.is_empty() || updates.len() == 4 && updates.iter().all(is_done)).then_some(()))
    })
    .with_context(|| format!("{:#?}", seen.courses))?;
    let took = now().saturating_sub(begun);
    ensure!(seen.wrong.is_empty(), "{:#?}\n{:#?}", seen.wrong, seen.courses);
    until("writes go well", LONG, || Ok(writes.go_well_for(Duration::from_secs(1), begun + took).then_some(())))?;

    let (order, moves) = (seen.order(), taken(&watch.changes(), begun, now()));
    let [away, no_writes] = [writes.questions(), writes.gets()].map(|asked| longest(&asked, GAP, begun, now()));
    eprintln!("{order:?} in {took:.0?}; the floating address moved {moves} times; the API was away for {away:.1?} at most,");
    eprintln!("{no_writes:.1?} without a write; of {} writes these were not acknowledged: {:?}", writes.all().len(), writes.why_not(begun));
    ensure!(away < FAILOVER && no_writes < ELECTION, "the API was away for {away:?}, {no_writes:?} without a write");

    // each once, and of the servers the one with the floating address as the last one: on a starved machine that may be another by then
    ensure!(order.len() == 4 && order.iter().collect::<BTreeSet<_>>().len() == 4, "each once: {:#?}", seen.courses);
    let [first @ .., last] = &seen.courses.iter().filter(|c| c.node != "h4").collect::<Vec<_>>()[..] else { bail!("no servers") };
    let holder_is_last = first.iter().all(|c| c.had_vip != Some(true)) && (last.had_vip != Some(false) || moves > 1);
    ensure!(holder_is_last, "{moves} moves: {:#?}", seen.courses);
    for (host, before) in all.iter().zip(before) {
        ensure!(version(host, KERNEL)? == "2 installed", "{}: {}", host.name(), version(host, KERNEL)?);
        ensure!(host.read(&format!("/root/{KERNEL}"))?.lines().count() == 1, "{}: once", host.name());
        ensure!(host.boot_id()? != before, "{} did not reboot", host.name());
    }
    admin.is_at_rest()?;
    let history: Value = serde_json::from_str(&admin.updates(&["history", "-o", "json"])?)?;
    let runs = history.as_array().map(Vec::as_slice).unwrap_or_default();
    let good = runs.iter().filter(|r| r["failure"].is_null() && r["rebooted"] == true && r["packages"] == 1);
    ensure!(runs.len() == 4 && good.map(|r| text(&r["node"])).collect::<BTreeSet<_>>().len() == 4, "{history:#}");
    Ok(())
}

/// A package whose script reboots the host, unless it may not: it is banned, and the node is given back.
fn banned(admin: &Admin<'_>, host: &Host) -> Result<()> {
    let before = admin.last_run(host)?;
    let script = "[ -e /root/risky-may ] || { echo >> /root/crashed; systemctl --no-block reboot; sleep infinity; }";
    release(host, "risky", 2, script)?;
    admin.updates(&["check"])?;
    let run = admin.ended(host, &before)?;
    ensure!(run["failure"]["reason"] == "Crashed", "{run:#}");

    // what, who, where, when and why
    let manager = admin.get("updatemanager default")?;
    ensure!(manager["spec"]["bannedPackages"] == json!(["risky=2"]), "{manager:#}");
    let notes: Value = serde_json::from_str(text(&manager["metadata"]["annotations"]["maintenance.virtuozzo.io/bans"]))?;
    let note = &notes["risky=2"];
    let at: jiff::Timestamp = text(&note["at"]).parse()?;
    ensure!(note["by"] == "smartup" && note["node"] == host.name() && text(&note["why"]).contains("rebooted"), "{note:#}");
    ensure!(text(&run["startedAt"]).parse::<jiff::Timestamp>()? <= at, "{note:#} {run:#}");
    let events = admin.items("events --field-selector reason=ItemsBanned")?;
    let [event] = &events[..] else { bail!("one event: {events:#?}") };
    ensure!(text(&event["message"]).contains(&format!("banned after {}: risky=2", host.name())), "{event:#}");
    let shown = admin.updates(&["bans"])?;
    ensure!(shown.lines().any(|l| l.starts_with("risky=2 ") && l.contains(&format!("{}: the host rebooted", host.name()))), "{shown}");

    // mending it has rebooted the host once more, and no more than that; now it is as it was, but for the package
    ensure!(host.read("/root/crashed")?.lines().count() == 2, "{}", host.read("/root/crashed")?);
    ensure!(admin.locks()?.is_empty() && admin.get(&format!("node {}", host.name()))?["spec"]["unschedulable"] != true);
    ensure!(version(host, "risky")? == "2 half-configured", "{}", version(host, "risky")?);
    Ok(())
}

/// Somebody has mended the package. Another one is installed, and the banned one is not.
fn goes_on(admin: &Admin<'_>, host: &Host) -> Result<()> {
    host.run(["dpkg", "-i", "/root/risky_1.deb"])?;
    // nothing starts but what is asked for
    admin.spec(&json!({ "maintenanceWindows": [{ "schedule": "0 3 29 2 *", "duration": "0h01m" }] }))?;
    release(host, "other", 2, "echo >> /root/other-began")?;
    admin.updates(&["check"])?;
    admin.lists(host, &["other=2", "risky=2"])?;
    let before = admin.last_run(host)?;
    admin.updates(&["run", host.name(), "--now"])?;
    let run = admin.ended(host, &before)?;
    ensure!(run["failure"].is_null() && run["packages"] == 1, "{run:#}");
    ensure!(host.read("/root/other-began")?.lines().count() == 1, "once");
    ensure!(version(host, "other")? == "2 installed" && version(host, "risky")? == "1 installed");
    admin.is_at_rest()
}

/// Somebody takes the ban back.
fn installed_after_all(admin: &Admin<'_>, host: &Host) -> Result<()> {
    admin.lists(host, &["risky=2"])?;
    host.write("/root/risky-may", 0o600, "")?;
    let before = admin.last_run(host)?;
    admin.updates(&["unban", "risky=2"])?;
    admin.updates(&["run", host.name(), "--now"])?;
    let run = admin.ended(host, &before)?;
    ensure!(run["failure"].is_null() && run["packages"] == 1, "{run:#}");
    ensure!(version(host, "risky")? == "2 installed", "{}", version(host, "risky")?);
    ensure!(host.read("/root/crashed")?.lines().count() == 2);
    ensure!(admin.updates(&["bans"])?.trim() == "Nothing is banned.");
    admin.is_at_rest()
}

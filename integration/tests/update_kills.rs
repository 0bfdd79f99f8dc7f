//! In the phases of an update the agent, the controller and the API server beside them are killed, or the host itself; each time the node is updated
//! in the end, once, and no lock and no cordon is left.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use common::updating::{Admin, KERNEL, WANTS_REBOOT, release, repository, text, version};
use common::{Control, LONG, holders, is_one_cluster, yaml};
use integration::{Host, Lab, LabSpec, until};
use serde_json::{Value, json};

/// Who is killed in which phase of an update, with Idle for none.
type Kills = BTreeMap<&'static str, &'static [Victim]>;
const PROGRAMS: &[Victim] = &[Victim::Agent, Victim::Controller, Victim::ApiServer];
const HOST: &[Victim] = &[Victim::Host];
/// Whose API server dies loses the floating address, and has none to hand over.
const FIRST: [(&str, &[Victim]); 6] = [
    ("HandingOver", PROGRAMS),
    ("Draining", PROGRAMS),
    ("Installing", PROGRAMS),
    ("Rebooting", PROGRAMS),
    ("Verifying", PROGRAMS),
    ("Releasing", PROGRAMS),
];
/// Before, while and after its pods are somewhere else; what it installs is another story.
const SECOND: [(&str, &[Victim]); 5] =
    [("Idle", PROGRAMS), ("Checking", PROGRAMS), ("Downloading", HOST), ("Draining", HOST), ("Verifying", HOST)];
/// A phase may be over before the kill; so many updates are tried until each was hit.
const UPDATES: u32 = 8;
/// One update in which something is killed again and again.
const UPDATE: Duration = Duration::from_secs(900);
/// Controllers and agents are asked for by their processes: kubelets wait for longer and longer until they start again what dies.
const CONTROLLER: &str = "pgrep -f '[o]perator controller'";
const AGENT: &str = "pgrep -f '[o]perator agent'";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Agent,
    Controller,
    /// With all of k3s, on the host that is updated.
    ApiServer,
    Host,
}

struct Scene<'a> {
    admin: Admin<'a>,
    servers: [&'a Host; 3],
    /// The newest version of the package, anywhere.
    version: u32,
}

/// The controller that leads.
struct Leader<'a> {
    pod: String,
    host: &'a Host,
    since: Value,
}

impl Leader<'_> {
    /// Stops it, or lets it go on. It may be gone.
    fn signal(&self, signal: &str) {
        let _ = self.host.sh(&format!("kill -{signal} $({CONTROLLER})"));
    }
}

fn phase(update: &Value) -> &str {
    let phase = text(&update["spec"]["transaction"]["phase"]);
    if phase.is_empty() { "Idle" } else { phase }
}

impl<'a> Scene<'a> {
    fn server(&self, name: &str) -> Result<&'a Host> {
        self.servers.into_iter().find(|h| h.name() == name).with_context(|| format!("{name} is no server"))
    }

    /// Waits until the cluster is whole; answers the server that has the floating address.
    fn holder(&self) -> Result<&'a Host> {
        is_one_cluster(&self.servers, &[])?;
        let holder = until("one has the floating address", LONG, || match &holders(&self.servers)?[..] {
            [holder] => Ok(Some(holder.clone())),
            _ => Ok(None),
        })?;
        self.server(&holder)
    }

    fn leader(&self) -> Result<Leader<'a>> {
        until("a controller leads", LONG, || {
            let lease = self.admin.get("lease smartup-controller")?["spec"].clone();
            let pod = text(&lease["holderIdentity"]).to_owned();
            let node = self.admin.get(&format!("pod {pod}"))?["spec"]["nodeName"].clone();
            let host = self.server(text(&node))?;
            host.sh(CONTROLLER)?;
            Ok(Some(Leader { pod, host, since: lease["acquireTime"].clone() }))
        })
    }

    /// Kills it, and waits until there is another one.
    fn kill(&self, victim: Victim, target: &Host, leader: &Leader<'_>) -> Result<()> {
        match victim {
            Victim::Agent => {
                target.sh(&format!("kill -9 $({AGENT})"))?;
                let pods = format!("pod --force -l app.kubernetes.io/component=agent --field-selector spec.nodeName={}", target.name());
                self.admin.kubectl(&format!("delete {pods}")).map(drop)
            }
            Victim::Controller => {
                leader.host.sh(&format!("kill -9 $({CONTROLLER})"))?;
                self.admin.kubectl(&format!("delete pod {} --force", leader.pod))?;
                until("another controller leads", LONG, || {
                    let acquired = self.admin.get("lease smartup-controller")?["spec"]["acquireTime"].clone();
                    Ok((acquired.is_string() && acquired != leader.since).then_some(()))
                })
            }
            Victim::ApiServer => target.run(["systemctl", "kill", "-s", "KILL", "k3s-server"]).map(drop),
            Victim::Host => {
                target.power_cut()?;
                target.power_on()
            }
        }
    }

    /// Kills them one after the other, while no controller does anything.
    fn kill_all(&self, victims: &[Victim], target: &Host, leader: &Leader<'_>) -> Result<()> {
        victims.iter().try_for_each(|victim| self.kill(*victim, target, leader))
    }

    /// Updates the server that has the floating address, and kills in each phase of `left` that is seen; what was hit is taken from
    /// there.
    fn update(&mut self, left: &mut Kills) -> Result<()> {
        let target = self.holder()?;
        let mut leader = self.leader()?;
        if let Some(victims) = left.remove("Idle") {
            self.kill_all(victims, target, &leader)?;
            is_one_cluster(&self.servers, &[])?;
            leader = self.leader()?;
        }
        self.version += 1;
        let (number, name) = (self.version, target.name());
        let script =
            format!("{WANTS_REBOOT}; echo >> /root/began-{number}; while [ ! -e /root/may-end-{number} ]; do echo at work; sleep 1; done");
        release(target, KERNEL, number, &script)?;
        until("it is looked for", LONG, || self.admin.updates(&["check"]).map(Some))?;
        let mut runs = BTreeSet::new();
        until(&format!("{name} has version {number}, and is left alone"), UPDATE, || {
            let update = self.admin.update_of(target)?;
            let (now, run) = (phase(&update), &update["status"]["history"][0]);
            if now == "Idle" {
                let installed = version(target, KERNEL)? == format!("{number} installed");
                if installed && update["status"]["packages"]["available"] == json!([]) {
                    return Ok(Some(()));
                }
                // it was given back, and nobody waits for a quarter of an hour here
                if !update["spec"]["retry"].is_null() && runs.insert(text(&run["transaction"]).to_owned()) {
                    eprintln!("{name} was given back: {}", update["spec"]["retry"]["failure"]);
                    until("it is asked for", LONG, || self.admin.updates(&["run", name, "--now"]).map(Some))?;
                }
                return Ok(None);
            }
            let now = now.to_owned();
            if now == "Installing" && target.exec(["test", "-e", &format!("/root/began-{number}")])?.code != 0 {
                return Ok(None);
            }
            if let Some(victims) = left.get(now.as_str()).copied() {
                leader.signal("STOP");
                let still = self.admin.update_of(target).is_ok_and(|update| phase(&update) == now);
                let killed = if still { self.kill_all(victims, target, &leader) } else { Err(anyhow!("it was over")) };
                leader.signal("CONT");
                match killed {
                    Ok(()) => {
                        eprintln!("{victims:?} of {name} were killed in {now}");
                        left.remove(now.as_str());
                    }
                    Err(e) => eprintln!("{victims:?} of {name} were not killed in {now}: {e:#}"),
                }
                leader = self.leader()?;
            }
            if now == "Installing" {
                target.write(&format!("/root/may-end-{number}"), 0o600, "")?;
            }
            Ok(None)
        })?;
        ensure!(target.read(&format!("/root/began-{number}"))?.lines().count() == 1, "it was installed once");
        self.admin.is_at_rest()
    }

    /// All of these, in one update or several.
    fn every_phase(&mut self, mut left: Kills) -> Result<()> {
        for _ in 0..UPDATES {
            self.update(&mut left)?;
            if left.is_empty() {
                return Ok(());
            }
        }
        Err(anyhow!("they could not be killed: {left:?}"))
    }
}

#[test]
#[ignore = "a quarter of an hour: make long-test"]
fn whoever_dies_in_whichever_phase_the_node_is_updated_and_nothing_is_left() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(4))?;
    let servers = ["h1", "h2", "h3"].map(|h| lab.host(h).expect("there are four hosts"));
    let control = Control::on(&lab, "h4", &yaml("", &["h1, role: server", "h2, role: server", "h3, role: server"]))?;
    control.applied(&[])?;
    is_one_cluster(&servers, &[])?;
    servers.iter().try_for_each(|host| repository(host))?;
    let mut scene = Scene { admin: Admin::enables(control)?, servers, version: 1 };
    let story = |scene: &mut Scene<'_>| {
        scene.every_phase(FIRST.into())?;
        scene.every_phase(SECOND.into())?;
        broken(scene)?;
        cut_while_it_installs(scene)
    };
    story(&mut scene).with_context(|| scene.admin.state())?;
    lab.down()
}

/// A node that does not become well stays as it is, whoever dies, until it is well.
fn broken(scene: &mut Scene<'_>) -> Result<()> {
    let gate = json!(["/usr/bin/test", "-e", "/root/gate-is-open"]);
    scene.admin.spec(&json!({ "host": { "gateCommand": gate }, "timeouts": { "verify": "0h01m" }, "reboot": "never" }))?;
    let target = scene.holder()?;
    scene.version += 1;
    let before = scene.admin.last_run(target)?;
    release(target, KERNEL, scene.version, "true")?;
    scene.admin.updates(&["check"])?;
    let is_broken = || until("it is Broken", LONG, || Ok((phase(&scene.admin.update_of(target)?) == "Broken").then_some(())));
    is_broken()?;
    for victims in [PROGRAMS, HOST] {
        let boot = target.boot_id()?;
        scene.kill_all(victims, target, &scene.leader()?)?;
        is_one_cluster(&scene.servers, &[])?;
        let (boot, leader) = (boot != target.boot_id()?, scene.leader()?);
        ensure!(boot == (victims == HOST));
        until(&format!("{} says anew how it stands", target.name()), LONG, || {
            let update = scene.admin.update_of(target)?;
            let progress = &update["status"]["progress"];
            let closed = text(&progress["message"]).contains("the gate command");
            Ok((update["status"]["bootId"] == target.boot_id()?.as_str() && progress["phase"] == "Broken" && closed).then_some(()))
        })?;
        is_broken().with_context(|| format!("after {victims:?}, with {} leading", leader.pod))?;
    }
    target.write("/root/gate-is-open", 0o600, "")?;
    let run = scene.admin.ended(target, &before)?;
    ensure!(run["failure"].is_null(), "it took its time, and that is all: {run:#}");
    scene.admin.spec(&json!({ "host": null, "timeouts": null, "reboot": null }))?;
    scene.admin.is_at_rest()
}

/// The power is cut while a package is being installed: that was a crash, and the package is banned.
fn cut_while_it_installs(scene: &mut Scene<'_>) -> Result<()> {
    let target = scene.holder()?;
    scene.version += 1;
    let before = scene.admin.last_run(target)?;
    release(target, KERNEL, scene.version, "echo >> /root/began; [ $(wc -l < /root/began) -gt 1 ] || sleep infinity")?;
    scene.admin.updates(&["check"])?;
    until("it is being installed", LONG, || Ok(target.exec(["test", "-e", "/root/began"])?.ok().then_some(())))?;
    scene.kill(Victim::Host, target, &scene.leader()?)?;
    let run = scene.admin.ended(target, &before)?;
    ensure!(run["failure"]["reason"] == "Crashed", "{run:#}");
    let banned = format!("{KERNEL}={}", scene.version);
    ensure!(scene.admin.get("updatemanager default")?["spec"]["bannedPackages"] == json!([banned]));
    // it was begun once, and mended once
    ensure!(target.read("/root/began")?.lines().count() == 2, "{}", target.read("/root/began")?);
    ensure!(version(target, KERNEL)? == format!("{} installed", scene.version));
    scene.admin.is_free()
}

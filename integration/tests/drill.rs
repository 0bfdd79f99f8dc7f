//! `smartup drill` on a live cluster: what it measures, when it refuses, and that nothing stays behind, whoever dies in it.

mod common;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use common::{Control, LONG, answered, holders, is_one_cluster, yaml};
use integration::{Host, Lab, LabSpec, Outcome, Running, until};
use serde_json::Value;

/// Soon after this the host itself has undone what was done to it, whoever is gone.
const BOUND: Duration = Duration::from_secs(30);

/// Three servers, an agent, and on a fifth host the control side.
struct Scene<'a> {
    servers: [&'a Host; 3],
    agent: &'a Host,
    control: Control<'a>,
}

impl<'a> Scene<'a> {
    fn on(lab: &'a Lab) -> Result<Self> {
        let listed = ["h1, role: server", "h2, role: server", "h3, role: server", "h4, role: agent"];
        let control = Control::on(lab, "h5", &yaml("", &listed))?;
        control.applied(&[])?;
        answered(lab)?;
        let scene = Self { servers: [lab.host("h1")?, lab.host("h2")?, lab.host("h3")?], agent: lab.host("h4")?, control };
        scene.is_whole()?;
        Ok(scene)
    }

    /// Waits until all of the cluster is there, each node has said anew that it lives (its condition alone may turn when a drill has just
    /// begun), and each server could take the VIP.
    fn is_whole(&self) -> Result<()> {
        let began: u64 = self.servers[0].sh("date +%s")?.trim().parse()?;
        until("every node renews its lease", LONG, || self.renewed_since(began).map(Some))?;
        let could =
            "systemctl is-active k3s-server keepalived && grep -qx 0 /run/keepalived-smartup/api-down && k3s kubectl get --raw /readyz";
        until("the cluster is whole", LONG, || {
            self.servers.iter().try_for_each(|h| h.sh(could).map(drop))?;
            is_one_cluster(&self.servers, &[self.agent]).map(Some)
        })
    }

    fn renewed_since(&self, began: u64) -> Result<()> {
        for host in self.servers.iter().chain([&self.agent]) {
            let at = self.servers[0].lease_renewed(host.name())?;
            ensure!(at > began, "{} said at {at} that it lives, and not since {began}", host.name());
        }
        Ok(())
    }

    /// The server that has the VIP.
    fn holder(&self) -> Result<&'a Host> {
        let found = holders(&self.servers)?;
        ensure!(found.len() == 1, "one holder: {found:?}");
        self.servers.into_iter().find(|h| h.name() == found[0]).context("it is a server")
    }

    /// A whole drill, which must work; what `-o json` prints.
    fn drilled(&self, faults: &str) -> Result<Vec<Value>> {
        let said = self.control.run("drill", &["--yes", "-o", "json", "--timeout", "3m", "--only", faults])?;
        ensure!(said.code == 0, "exit code {}: {}{}", said.code, said.stdout, said.stderr);
        let all: Vec<Value> = serde_json::from_str(&said.stdout).with_context(|| said.stdout.clone())?;
        eprintln!("{}", serde_json::to_string(&all)?);
        Ok(all)
    }

    /// A drill that is refused, and changes nothing.
    fn refused(&self, words: &str) -> Result<()> {
        let before = holders(&self.servers)?;
        let Outcome { code, stdout, stderr } = self.control.run("drill", &["--yes"])?;
        ensure!(code == 4 && stdout.is_empty() && stderr.contains(words), "wanted {words:?}, exit code {code}: {stdout}{stderr}");
        ensure!(holders(&self.servers)? == before, "the VIP moved");
        Ok(())
    }

    /// Begins a drill and goes on.
    fn begin(&self, fault: &str) -> Result<Running> {
        let script = "echo $$ > /run/drill.pid; exec smartup drill --yes -f /root/cluster.yaml --only \"$1\"";
        self.control.host.spawn(["sh", "-c", script, "sh", fault])
    }
}

/// How a server is that a fault may happen to: what of it must come back.
fn state(host: &Host) -> Result<String> {
    host.sh("systemctl is-active keepalived || true
         cut -d' ' -f3 /proc/$(systemctl show -P MainPID k3s-server)/stat
         ip -o link show eth0 | grep -o 'state [A-Z]*'
         ip -6 addr show dev eth0 scope global | grep inet6 || true
         ip route show default; ip -6 route show default")
}

/// Fails when something of a drill is still on a host.
fn is_clean(host: &Host) -> Result<()> {
    let left = host.sh("systemctl list-units --all --no-legend 'smartup*'; find /run/systemd/transient -name 'smartup*'; \
         pgrep -af '[s]martup-.* node' || true")?;
    ensure!(left.trim().is_empty(), "{}: {left}", host.name());
    Ok(())
}

/// Waits until a host is as it was, with nothing left of a drill.
fn healed(host: &Host, was: &str, limit: Duration) -> Result<Duration> {
    let began = Instant::now();
    let mut last = String::new();
    let done = until("what was done is undone", limit, || {
        let (is, clean) = (state(host)?, is_clean(host));
        last = format!("{is}\n{clean:?}");
        // k3s sleeps or runs
        let same = |s: &str| s.replace("\nR\n", "\nS\n");
        Ok((same(&is) == same(was) && clean.is_ok()).then_some(()))
    });
    done.with_context(|| format!("{}: it was\n{was}\nand is\n{last}", host.name()))?;
    Ok(began.elapsed())
}

#[test]
fn faults_are_measured() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let scene = Scene::on(&lab)?;

    // what is not meant, or not whole, is left alone
    let said = scene.control.run("drill", &[])?;
    ensure!(said.code == 2 && said.stderr.contains("give --yes"), "{}: {}", said.code, said.stderr);
    let holder = scene.holder()?;
    let backup = scene.servers.into_iter().find(|h| h.name() != holder.name()).context("there is another")?;
    backup.run(["systemctl", "stop", "keepalived"])?;
    scene.refused(&format!("{}: keepalived.service is inactive", backup.name()))?;
    backup.run(["systemctl", "start", "keepalived"])?;
    backup.run(["systemctl", "stop", "k3s-server"])?;
    scene.refused("3 members, 2 healthy, 2 needed: without")?;
    backup.run(["systemctl", "start", "k3s-server"])?;
    scene.agent.run(["systemctl", "stop", "k3s-agent"])?;
    scene.refused(&format!("{}: k3s-agent.service is inactive", scene.agent.name()))?;
    scene.agent.run(["systemctl", "start", "k3s-agent"])?;
    scene.is_whole()?;

    // the usual ones, from an agent's place
    let before: Vec<(&Host, String)> = scene.servers.iter().map(|h| Ok((*h, state(h)?))).collect::<Result<_>>()?;
    let first = scene.holder()?.name().to_owned();
    let all = [scene.drilled("keepalived,kill,freeze")?, scene.drilled("link,reboot")?].concat();
    ensure!(all.iter().map(|r| r["fault"].as_str().unwrap_or_default()).eq(["keepalived", "kill", "freeze", "link", "reboot"]), "{all:?}");
    for r in &all {
        let number = |of: &Value| of.as_i64().with_context(|| format!("not a number: {of} in {r:#}"));
        let holder = r["holder"].as_str().context("a name")?;
        ensure!(r["asked_from"] == "h4", "{r:#}");
        let away = &r["away"];
        let (longest, total, error) = (number(&away["longest_ms"])?, number(&away["total_ms"])?, number(&away["error_ms"])?);
        ensure!(away["back"] == true && r["not_ready"]["back"] == true && longest <= total && error > 0, "{r:#}");
        // a quarter of a minute is much more than any of them takes, on a busy machine too
        ensure!(longest > 0 && longest < 15_000, "{r:#}");
        ensure!(number(&r["whole_after_ms"])? > longest, "{r:#}");
        let moves = r["transitions"].as_array().context("a list")?;
        ensure!(moves.iter().any(|m| m["holds"] == true && m["host"] != holder), "somebody else took it: {r:#}");
        if r["fault"] != "reboot" {
            ensure!(moves.iter().any(|m| m["holds"] == false && m["host"] == holder), "it let it go: {r:#}");
            number(&r["two_holders_ms"])?;
        }
    }
    ensure!(all[0]["holder"] == first.as_str(), "{first}: {all:?}");
    // frozen, it hangs until the health check has noticed: seconds, where the others take tenths
    let longest = |n: usize| all[n]["away"]["longest_ms"].as_i64().unwrap_or_default();
    ensure!(longest(2) > longest(0) && longest(2) > 1000, "{all:?}");

    for (host, was) in before {
        healed(host, &was, BOUND)?;
    }

    // two at once
    let holder = scene.holder()?;
    let mut first = scene.begin("keepalived")?;
    until("keepalived is stopped", LONG, || Ok(state(holder)?.contains("inactive").then_some(())))?;
    let second = scene.control.run("drill", &["--yes"])?;
    ensure!(second.code == 4 && second.stderr.contains("another smartup run is under way"), "{}: {}", second.code, second.stderr);
    ensure!(first.wait()? == 0, "the first one is not disturbed");
    scene.is_whole()
}

#[test]
fn what_was_done_is_undone_whoever_dies() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let scene = Scene::on(&lab)?;
    // the control side alone; then, too, what it has started on the host before it, so that only systemd is left
    let faults = [("freeze", "\nT\n", false), ("freeze", "\nT\n", true), ("keepalived", "inactive", true), ("link", "state DOWN", true)];
    for (fault, sign, all) in faults {
        let holder = scene.holder()?;
        let was = state(holder)?;
        let mut drill = scene.begin(fault)?;
        until(&format!("{fault} happens"), LONG, || Ok(state(holder)?.contains(sign).then_some(())))?;
        if all {
            holder.sh("pkill -KILL -f '[s]martup-.* node'")?;
        }
        scene.control.host.sh("kill -KILL $(cat /run/drill.pid)")?;
        ensure!(drill.wait()? == 137, "it was killed");
        let took = healed(holder, &was, BOUND + Duration::from_secs(15))?;
        eprintln!("{fault}, {}: healed after {:.1} s", if all { "all killed" } else { "control killed" }, took.as_secs_f32());
        scene.is_whole()?;
        // the others have noticed as well; a lease that was left ends by itself
        for host in scene.servers.iter().chain([&scene.agent]) {
            until("nothing is left", LONG, || Ok(is_clean(host).ok()))?;
        }
    }
    // and the next one can begin
    ensure!(scene.drilled("keepalived")?.len() == 1);
    Ok(())
}

//! A host that smartup is run on against the others, as on somebody's laptop.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use integration::{Host, Lab, Outcome, Running, until};
use serde_json::Value;

use super::{LONG, VIP, holders, smartup, status};

/// Where its cluster.yaml is.
pub const FILE: &str = "/root/cluster.yaml";
/// Where a run that goes on in the background says which process it is.
const PID: &str = "/run/apply.pid";

/// The host, which has the lab's ssh key and knows the keys of the others.
pub struct Control<'a> {
    pub host: &'a Host,
}

impl<'a> Control<'a> {
    /// On this host of the lab, with this cluster.yaml.
    pub fn on(lab: &'a Lab, name: &str, yaml: &str) -> Result<Self> {
        let mut known = String::new();
        for host in lab.hosts().iter().filter(|h| h.is_up()) {
            let key = host.read("/etc/ssh/ssh_host_ed25519_key.pub")?;
            known.extend([host.name(), ",", &host.ipv4().to_string(), " ", &key]);
        }
        let control = Self { host: lab.host(name)? };
        control.host.write("/root/.ssh/known_hosts", 0o600, known)?;
        control.says(yaml)?;
        Ok(control)
    }

    /// Changes its cluster.yaml.
    pub fn says(&self, yaml: &str) -> Result<()> {
        self.host.write(FILE, 0o644, yaml)
    }

    /// `smartup apply`, which is not asked whether it may.
    pub fn apply(&self, args: &[&str]) -> Result<Outcome> {
        smartup(self.host, &[&["apply", "--yes", "-f", FILE], args].concat())
    }

    /// The same, and it must work; answers all that it said.
    pub fn applied(&self, args: &[&str]) -> Result<String> {
        let Outcome { code, stdout, stderr } = self.apply(args)?;
        ensure!(code == 0, "smartup apply {}: exit code {code}\n{stdout}\n{stderr}", args.join(" "));
        Ok(stdout + &stderr)
    }

    /// One that does not succeed: with this exit code, and with these words as the first of its report.
    pub fn fails(&self, code: i32, first: &str) -> Result<String> {
        let Outcome { code: was, stdout, stderr } = self.apply(&[])?;
        ensure!(was == code && stdout.starts_with(first), "wanted {code} and '{first}', got {was}:\n{stdout}\n{stderr}");
        ensure!(stdout.contains("Running it again goes on from here."), "{stdout}");
        Ok(stdout)
    }

    /// `smartup plan --exit-code`.
    pub fn plan(&self, args: &[&str]) -> Result<Outcome> {
        smartup(self.host, &[&["plan", "--exit-code", "-f", FILE], args].concat())
    }

    /// Another of its commands that take the file.
    pub fn run(&self, command: &str, args: &[&str]) -> Result<Outcome> {
        smartup(self.host, &[&[command, "-f", FILE], args].concat())
    }

    /// `smartup apply` in the background, its events line by line.
    pub fn start(&self, args: &[&str]) -> Result<Running> {
        let script = format!("echo $$ > {PID}; exec \"$@\"");
        let command = ["sh", "-c", &script, "sh", "smartup", "apply", "--yes", "-f", FILE, "--events", "json"];
        self.host.spawn([&command, args].concat())
    }

    /// Sends a signal to what was started last.
    pub fn signal(&self, name: &str) -> Result<()> {
        self.host.sh(&format!("kill -{name} $(cat {PID})")).map(drop)
    }

    /// Fails unless a plan finds nothing to do.
    pub fn is_settled(&self) -> Result<()> {
        let Outcome { code, stdout, stderr } = self.plan(&[])?;
        ensure!(code == 0, "exit code {code} of a plan that should find nothing to do:\n{stdout}\n{stderr}");
        Ok(())
    }
}

/// A cluster.yaml for the tests' VIP: what stands at its top, and what stands in each host's braces.
pub fn yaml(top: &str, hosts: &[&str]) -> String {
    let hosts: Vec<String> = hosts.iter().map(|h| format!("  - {{host: {h}}}\n")).collect();
    format!("vip: {VIP}\nssh: {{user: root}}\n{top}\nhosts:\n{}", hosts.concat())
}

/// What the lines of `--events json` say.
pub fn events(lines: &str) -> Result<Vec<Value>> {
    lines.lines().map(|l| serde_json::from_str(l).with_context(|| format!("not an event: {l}"))).collect()
}

/// Follows a run until an event is there that `wanted` says yes to.
pub fn follow(run: &mut Running, mut wanted: impl FnMut(&Value) -> bool) -> Result<Value> {
    while let Some(line) = run.line()? {
        let event: Value = serde_json::from_str(&line).with_context(|| format!("not an event: {line}"))?;
        if wanted(&event) {
            return Ok(event);
        }
    }
    anyhow::bail!("the run ended before that")
}

/// What is left of a run's events.
pub fn rest(run: &mut Running) -> Result<Vec<Value>> {
    let mut events = Vec::new();
    while let Some(line) = run.line()? {
        events.push(serde_json::from_str(&line)?);
    }
    Ok(events)
}

/// Whether it is said that a host is not there: nobody answers for its address, or at it.
pub fn is_away(said: &str, host: &str) -> bool {
    said.contains(&format!("{host}: cannot connect to {host}")) || said.contains(&format!("{host}: {host} ({host}:22) does not answer"))
}

/// How each host ended, from a report with `-o json`: its name and its outcome.
pub fn outcomes(report: &str) -> Result<BTreeMap<String, String>> {
    let report: Value = serde_json::from_str(report).with_context(|| format!("not a report: {report}"))?;
    let of = |host: &Value| Some((host["host"].as_str()?.to_owned(), host["outcome"].as_str()?.to_owned()));
    report.as_array().into_iter().flatten().map(|h| of(h).with_context(|| format!("not a host: {h}"))).collect()
}

/// The name of the event's host, when it is that event of that step.
pub fn host_at<'a>(event: &'a Value, kind: &str, step: &str) -> Option<&'a str> {
    (event["event"] == kind && event["step"] == step).then(|| event["host"].as_str()).flatten()
}

/// Waits until these hosts are one cluster, whole and healthy, started by one of them: on a busy machine a kubelet may miss its turn.
pub fn is_one_cluster(servers: &[&Host], agents: &[&Host]) -> Result<()> {
    until("one whole cluster", LONG, || whole(servers, agents).map(Some))
}

fn whole(servers: &[&Host], agents: &[&Host]) -> Result<()> {
    let report = status(servers[0])?;
    let nodes = report["nodes"].as_array().cloned().unwrap_or_default();
    let names: BTreeSet<&str> = nodes.iter().filter_map(|n| n["name"].as_str()).collect();
    let wanted: BTreeSet<&str> = servers.iter().chain(agents).map(|h| h.name()).collect();
    ensure!(names == wanted && nodes.iter().all(|n| n["ready"] == "True"), "all nodes are Ready: {report:#}");
    ensure!(report["api"]["answers"] == true, "{report:#}");
    let members = report["etcd"].as_array().cloned().unwrap_or_default();
    let names: BTreeSet<&str> = members.iter().filter_map(|m| m["name"].as_str()).collect();
    let healthy = members.iter().all(|m| m["learner"] == false && m["trouble"].is_null());
    ensure!(members.len() == servers.len() && names.len() == servers.len() && healthy, "one voter for each server: {report:#}");
    let mut authorities = BTreeSet::new();
    let mut first = 0;
    for server in servers {
        authorities.insert(server.read("/var/lib/rancher/k3s/server/tls/server-ca.crt")?);
        let membership: Value = serde_json::from_str(&server.read("/var/lib/smartup/membership.json")?)?;
        first += usize::from(membership["first"] == true);
    }
    ensure!(authorities.len() == 1, "{} authorities", authorities.len());
    ensure!(first == 1, "{first} hosts say that they started the cluster");
    let holders = holders(servers)?;
    ensure!(holders.len() == 1, "one holder: {holders:?}");
    Ok(())
}

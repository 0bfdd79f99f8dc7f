//! A cluster of three servers, made with smartup's own commands and timed on the way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use integration::{Host, Lab, LabSpec, NETWORK, until};

use crate::clock::now;
use crate::program::Program;

const READY_LIMIT: Duration = Duration::from_secs(240);
const PORT: u16 = 9443;

/// The floating address.
pub fn vip() -> Ipv4Addr {
    let [a, b, c, _] = NETWORK.octets();
    Ipv4Addr::new(a, b, c, 200)
}

/// The API behind it.
pub fn api() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(vip()), PORT)
}

/// Where the time of one `init` or `join` went.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From the command's start until systemd starts k3s.
    pub before: Duration,
    /// From there until k3s says that it is ready.
    pub k3s: Duration,
    /// From there until the node is Ready, which is k3s's doing too; Kubernetes tells whole seconds only, rounded down.
    pub node: Duration,
    /// From there until the command's end.
    pub rest: Duration,
}

impl Timing {
    /// What smartup adds to the unit's own start.
    pub fn beside_unit(&self) -> Duration {
        self.before + self.node + self.rest
    }

    /// What smartup adds to the time until the node is Ready.
    pub fn own(&self) -> Duration {
        self.before + self.rest
    }
}

/// What was measured while the cluster was made.
#[derive(Debug, Clone)]
pub struct Timings {
    /// `init` on the first server.
    pub init: Timing,
    /// `join` of the second and the third.
    pub joins: [Timing; 2],
    /// `init` again.
    pub again: Duration,
    /// `init --dry-run` again.
    pub dry: Duration,
    /// Most memory that `init` had resident, KiB.
    pub memory: u64,
}

/// Boots three hosts and makes a cluster of them.
pub fn make(program: &Program) -> Result<(Lab, Timings)> {
    let lab = Lab::up(&LabSpec::hosts(3).without_smartup())?;
    for host in lab.hosts() {
        host.write("/usr/local/bin/smartup", 0o755, &program.content)?;
        host.run(["sync"])?; // what is not on the disk yet would come under etcd's fsync
    }
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|name| lab.host(name));
    let (h1, h2, h3) = (h1?, h2?, h3?);
    let address = vip().to_string();
    let arguments = ["smartup", "init", "--vip", &address];
    let over = AtomicBool::new(false);
    let (init, memory) = std::thread::scope(|scope| {
        let memory = scope.spawn(|| peak_memory(h1, &over));
        let init = timed(h1, &arguments, "");
        over.store(true, Ordering::Relaxed);
        (init, memory.join().unwrap_or(0))
    });
    let ticket = h1.run(["smartup", "ticket", "--role", "server"])?;
    let join = |host| timed(host, &["smartup", "join", "--role", "server", "--ticket", "-"], &ticket);
    let joins = [join(h2)?, join(h3)?];
    settle(&lab)?;
    let again = median_of(5, || run(h1, &arguments, ""))?;
    let dry = median_of(5, || run(h1, &[&arguments[..], &["--dry-run"]].concat(), ""))?;
    Ok((lab, Timings { init: init?, joins, again, dry, memory }))
}

/// Waits until k3s is ready on every host.
pub fn settle(lab: &Lab) -> Result<()> {
    for host in lab.hosts() {
        until(&format!("k3s ready on {}", host.name()), READY_LIMIT, || {
            std::thread::sleep(Duration::from_millis(250)); // each question is a process on a busy machine
            let active = host.exec(["systemctl", "is-active", "k3s-server"])?.ok();
            Ok((active && host.exec(["k3s", "kubectl", "get", "--raw", "/readyz"])?.ok()).then_some(()))
        })?;
    }
    Ok(())
}

fn run(host: &Host, arguments: &[&str], input: &str) -> Result<Duration> {
    let start = now();
    let outcome = host.exec_with(arguments, input.as_bytes())?;
    let took = now().saturating_sub(start);
    outcome.checked().with_context(|| format!("{}: {}", host.name(), arguments.join(" ")))?;
    Ok(took)
}

fn timed(host: &Host, arguments: &[&str], input: &str) -> Result<Timing> {
    let start = now();
    let took = run(host, arguments, input)?;
    let [left, ready] = ["InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic"].map(|stamp| timestamp(host, stamp));
    let (left, ready) = (left?, ready?);
    ensure!(start <= left && left <= ready && ready <= start + took, "{}: k3s did not start within {arguments:?}", host.name());
    let end = start + took;
    let node = node_ready(host)?.clamp(ready, end);
    Ok(Timing {
        before: left.saturating_sub(start),
        k3s: ready.saturating_sub(left),
        node: node.saturating_sub(ready),
        rest: end.saturating_sub(node),
    })
}

/// Since when the host's node is Ready, as Kubernetes tells it.
fn node_ready(host: &Host) -> Result<Duration> {
    let line = "date +%s -d \"$(k3s kubectl get node $0 -o 'jsonpath={.status.conditions[?(@.type==\"Ready\")].lastTransitionTime}')\"";
    let said = host.run(["sh", "-ec", line, host.name()])?;
    let since = UNIX_EPOCH + Duration::from_secs(said.trim().parse().with_context(|| format!("the node is Ready since {said:?}"))?);
    Ok(now().saturating_sub(since.elapsed().unwrap_or_default()))
}

fn timestamp(host: &Host, name: &str) -> Result<Duration> {
    let said = host.run(["systemctl", "show", "k3s-server", "--value", "-p", name])?;
    Ok(Duration::from_micros(said.trim().parse().with_context(|| format!("systemd's {name} is {said:?}"))?))
}

/// The most memory that smartup on this host had resident, asked until it has ended; KiB.
fn peak_memory(host: &Host, over: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !over.load(Ordering::Relaxed) {
        peak = peak.max(resident(host).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(50));
    }
    peak
}

/// Read from the machine's side, since processes in the host would cost the time that is being measured.
fn resident(host: &Host) -> Option<u64> {
    let network = |process: &Path| std::fs::read_link(process.join("ns/net")).ok();
    let own = network(Path::new(&format!("/proc/{}", host.leader()?)))?;
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_smartup = |process: &PathBuf| std::fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == "smartup");
    let smartup = processes.filter(is_smartup).find(|process| network(process).as_ref() == Some(&own))?;
    peak_of(&std::fs::read_to_string(smartup.join("status")).ok()?)
}

fn peak_of(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
}

fn median_of(count: usize, mut measure: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut all = (0..count).map(|_| measure()).collect::<Result<Vec<_>>>()?;
    all.sort();
    all.get(count / 2).copied().context("nothing was measured")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_found_in_a_status() {
        assert_eq!(peak_of("Name:\tsmartup\nVmPeak:\t  99 kB\nVmHWM:\t    4096 kB\nVmRSS:\t 10 kB\n"), Some(4096));
        assert_eq!(peak_of("Name:\tkthreadd\n"), None);
    }
}

//! A cluster of three servers, made with smartup's own commands and timed on the way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use integration::clock::now;
use integration::{Host, Lab, LabSpec, NETWORK, until};

use crate::memory;
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

/// The hosts of a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Crew<'a> {
    /// The first one starts it.
    pub servers: &'a [Host],
    /// The others.
    pub agents: &'a [Host],
}

impl<'a> Crew<'a> {
    /// Three servers, and all others agents.
    pub fn of(lab: &'a Lab) -> Self {
        let (servers, agents) = lab.hosts().split_at(lab.hosts().len().min(3));
        Self { servers, agents }
    }

    /// The server that starts the cluster.
    pub fn first(&self) -> Result<&'a Host> {
        self.servers.first().context("a cluster has a server")
    }

    /// All, with their roles, in the order in which they start.
    pub fn roles(&self) -> impl Iterator<Item = (&'a Host, &'static str)> {
        let servers = self.servers.iter().map(|host| (host, "server"));
        servers.chain(self.agents.iter().map(|host| (host, "agent")))
    }
}

/// k3s's flags, as smartup sets them.
pub fn flags(host: &Host, role: &str, first: bool) -> String {
    let init = if first { "--cluster-init " } else { "" };
    let server = format!("{init}--tls-san={} --https-listen-port={PORT} ", vip());
    format!("{}--node-ip={} --flannel-iface=eth0", if role == "server" { &server } else { "" }, host.ipv4())
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
        let memory = scope.spawn(|| {
            let network = memory::network(Path::new(&format!("/proc/{}", h1.leader()?)))?;
            Some(memory::peak(&network, Some("smartup"), &over).largest)
        });
        let init = timed(h1, &arguments, "");
        over.store(true, Ordering::Relaxed);
        (init, memory.join().ok().flatten().unwrap_or(0))
    });
    let ticket = h1.run(["smartup", "ticket", "--role", "server"])?;
    let join = |host| timed(host, &["smartup", "join", "--role", "server", "--ticket", "-"], &ticket);
    let joins = [join(h2)?, join(h3)?];
    settle(lab.hosts())?;
    let again = median_of(5, || run(h1, &arguments, ""))?;
    let dry = median_of(5, || run(h1, &[&arguments[..], &["--dry-run"]].concat(), ""))?;
    Ok((lab, Timings { init: init?, joins, again, dry, memory }))
}

/// Waits until k3s is ready on every server.
pub fn settle(servers: &[Host]) -> Result<()> {
    for host in servers {
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
    let Range { start: left, end: ready } = unit_start(host, "server")?;
    ensure!(start <= left && left <= ready && ready <= start + took, "{}: k3s did not start within {arguments:?}", host.name());
    let end = start + took;
    let node = node_ready(host, host)?.clamp(ready, end);
    Ok(Timing {
        before: left.saturating_sub(start),
        k3s: ready.saturating_sub(left),
        node: node.saturating_sub(ready),
        rest: end.saturating_sub(node),
    })
}

/// Since when a host's node is Ready, as Kubernetes tells a server; waits until it is.
pub fn node_ready(server: &Host, host: &Host) -> Result<Duration> {
    let line = "k3s kubectl wait --for=condition=Ready --timeout=0 node/$0 >&2
        date +%s -d \"$(k3s kubectl get node $0 -o 'jsonpath={.status.conditions[?(@.type==\"Ready\")].lastTransitionTime}')\"";
    let said = until(&format!("{}'s node Ready", host.name()), READY_LIMIT, || {
        std::thread::sleep(Duration::from_millis(250));
        server.run(["sh", "-ec", line, host.name()]).map(Some)
    })?;
    let since = UNIX_EPOCH + Duration::from_secs(said.trim().parse().with_context(|| format!("the node is Ready since {said:?}"))?);
    Ok(now().saturating_sub(since.elapsed().unwrap_or_default()))
}

/// When systemd last began to start k3s in this role, and when k3s said that it was ready.
pub fn unit_start(host: &Host, role: &str) -> Result<Range<Duration>> {
    let timestamp = |name: &str| {
        let said = host.run(["systemctl", "show", &format!("k3s-{role}"), "--value", "-p", name])?;
        let microseconds = said.trim().parse().with_context(|| format!("systemd's {name} is {said:?}"))?;
        Ok::<_, anyhow::Error>(Duration::from_micros(microseconds))
    };
    Ok(timestamp("InactiveExitTimestampMonotonic")?..timestamp("ActiveEnterTimestampMonotonic")?)
}

/// The median of so many measurements.
pub fn median_of(count: usize, mut measure: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut all = (0..count).map(|_| measure()).collect::<Result<Vec<_>>>()?;
    all.sort();
    all.get(count / 2).copied().context("nothing was measured")
}

//! The cluster, what it is looked at with, and what must hold of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use integration::snapshot::Snapshot;
use integration::watch::Watch;
use integration::writes::Writes;
use integration::{Host, Lab, LabSpec, NETWORK, until};
use serde_json::Value;

/// Room enough for etcd, MiB.
const K3S_DISK: u32 = 768;
const SETTLED_LIMIT: Duration = Duration::from_secs(30);
const FILE: &str = "/root/cluster.yaml";

/// Three servers and an agent.
#[derive(Debug)]
pub struct Cluster {
    /// Those with etcd, the API, and the VIP.
    pub servers: Vec<Host>,
    /// The other one.
    pub agent: Host,
}

impl Cluster {
    /// All of them.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.servers.iter().chain([&self.agent])
    }

    fn first(&self) -> Result<&Host> {
        self.servers.first().context("there is a server")
    }
}

/// The lab with a cluster in it that is written to.
#[derive(Debug)]
pub struct Site {
    // in this order they end
    /// The stream of writes through the VIP.
    pub writes: Writes,
    /// Who holds the VIP.
    pub watch: Watch,
    cluster: Cluster,
    /// Where smartup is run, with the file.
    control: Host,
    /// How the hosts were when all was well.
    before: Vec<State>,
    _lab: Lab,
}

/// What no fault may change for good.
#[derive(Debug, PartialEq, Eq)]
struct State {
    files: Snapshot,
    firewall: Snapshot,
}

impl State {
    fn of(host: &Host) -> Result<Self> {
        // elsewhere k3s, pods and the system itself write all the time
        let files = host.tree_snapshot()?.filter(|path| path.starts_with("/etc/") || path.starts_with("/usr/local/"));
        Ok(Self { files, firewall: host.firewall_snapshot()? })
    }
}

impl Site {
    /// Boots the hosts, makes a cluster of them with `smartup apply`, and begins to write.
    pub fn make() -> Result<Self> {
        let lab = Lab::up(&LabSpec::hosts(5).k3s_disk(K3S_DISK))?;
        let [servers @ .., agent, control] = lab.hosts() else { bail!("there are five hosts") };
        let (cluster, control) = (Cluster { servers: servers.to_vec(), agent: agent.clone() }, control.clone());
        let first = cluster.first()?;
        let vip = Ipv4Addr::from(u32::from(NETWORK) + 200);
        let mut known = String::new();
        let mut file = format!("vip: {vip}\nssh: {{user: root}}\nhosts:\n");
        for host in cluster.hosts() {
            let name = host.name();
            known.extend([name, " ", &host.read("/etc/ssh/ssh_host_ed25519_key.pub")?]);
            let role = if name == cluster.agent.name() { "agent" } else { "server" };
            file.extend(["  - {host: ", name, ", role: ", role, "}\n"]);
        }
        control.write("/root/.ssh/known_hosts", 0o600, known)?;
        control.write(FILE, 0o644, file)?;
        control.run(["smartup", "apply", "--yes", "-f", FILE])?;
        let writes = Writes::start(lab.probe(), first, SocketAddr::new(IpAddr::V4(vip), 9443))?;
        let watch = Watch::start(&cluster.servers, IpAddr::V4(vip));
        let mut site = Self { writes, watch, cluster, control, before: Vec::new(), _lab: lab };
        site.is_whole(crate::WHOLE_LIMIT)?;
        site.is_settled()?;
        site.before = site.states()?;
        Ok(site)
    }

    /// The cluster's hosts.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn states(&self) -> Result<Vec<State>> {
        self.cluster.hosts().map(State::of).collect()
    }

    /// Waits until exactly one host has the VIP.
    pub fn has_one_holder(&self, limit: Duration) -> Result<()> {
        until("one host has the VIP", limit, || {
            let holders = self.watch.holders();
            ensure!(holders.len() == 1, "holders: {holders:?}");
            Ok(Some(()))
        })
    }

    /// Waits until every member of etcd is healthy, every API server ready, and every node has said lately that it is; and no
    /// unit has failed.
    pub fn is_whole(&self, limit: Duration) -> Result<()> {
        let since = unix_now();
        until("the cluster is whole", limit, || {
            for host in self.cluster.hosts() {
                let failed = host.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"])?;
                ensure!(failed.trim().is_empty(), "{}: failed: {failed}", host.name());
            }
            for server in &self.cluster.servers {
                server.run(["k3s", "kubectl", "get", "--raw", "/readyz"])?;
            }
            self.nodes_are_ready(since)?;
            self.etcd_is_whole()?;
            Ok(Some(()))
        })
    }

    /// A node says that it lives through its Lease; its condition alone may be a minute old.
    fn nodes_are_ready(&self, since: u64) -> Result<()> {
        let first = self.cluster.first()?;
        for host in self.cluster.hosts() {
            first.run(["k3s", "kubectl", "wait", "--for=condition=Ready", "--timeout=0", &format!("node/{}", host.name())])?;
            let renewed = first.lease_renewed(host.name())?;
            ensure!((since..=unix_now() + 1).contains(&renewed), "{} said at {renewed} that it lives, and not since {since}", host.name());
        }
        Ok(())
    }

    fn etcd_is_whole(&self) -> Result<()> {
        let first = self.cluster.first()?;
        let status: Value = serde_json::from_str(&first.run(["smartup", "status", "-o", "json"])?)?;
        let members = status["etcd"].as_array().context("no members of etcd")?;
        let healthy = members.iter().filter(|m| m["learner"] == false && m["trouble"].is_null()).count();
        ensure!(members.len() == self.cluster.servers.len() && healthy == members.len(), "etcd: {members:?}");
        Ok(())
    }

    /// Fails unless every write that was acknowledged is there.
    pub fn keeps_what_it_acknowledged(&self) -> Result<()> {
        self.writes.are_kept(self.cluster.first()?)
    }

    /// Waits until smartup finds nothing to do. It waits for an API that answers, too, which a busy machine may be late with.
    pub fn is_settled(&self) -> Result<()> {
        let plan = ["smartup", "plan", "--exit-code", "-f", FILE];
        until("smartup finds nothing to do", SETTLED_LIMIT, || self.control.run(plan).map(|_| Some(())))
    }

    /// Fails when a file of the system or a firewall's rule is not as it was before all faults.
    pub fn is_as_it_was(&self) -> Result<()> {
        for ((was, is), host) in self.before.iter().zip(self.states()?).zip(self.cluster.hosts()) {
            let (files, firewall) = (was.files.diff(&is.files), was.firewall.diff(&is.firewall));
            ensure!(files.is_empty() && firewall.is_empty(), "{} is not as it was:\n{files}{firewall}", host.name());
        }
        Ok(())
    }

    /// Prints who took the VIP (`+h2`) or gave it away (`-h1`), how many seconds later, and why writes were not acknowledged.
    pub fn tell_what_was_seen(&self, since: Duration) {
        let moves = self.watch.changes().into_iter().filter(|change| change.at >= since).map(|change| {
            let sign = if change.holds { '+' } else { '-' };
            format!(" {sign}{} {:.2}", change.host, change.at.saturating_sub(since).as_secs_f64())
        });
        let reasons = self.writes.why_not(since).into_iter().map(|(why, count)| format!("; {count} writes: {why}"));
        let seen: String = moves.chain(reasons).collect();
        if !seen.is_empty() {
            eprintln!("        {seen}");
        }
    }

    /// Prints what the hosts said last.
    pub fn tell_logs(&self) {
        for host in self.cluster.hosts().filter(|host| host.is_up()) {
            let log = host.run(["journalctl", "--no-pager", "-o", "short-precise", "-n", "80", "-u", "k3s-*", "-u", "keepalived"]);
            eprintln!("--- {}\n{}", host.name(), log.unwrap_or_else(|error| format!("{error:#}")));
        }
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

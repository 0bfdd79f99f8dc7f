//! What the tests that drive smartup share.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

mod control;
pub mod driven;
pub mod repository;
mod updaters;
pub mod updating;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration::{Host, Lab, Outcome, until};
use serde_json::Value;

pub use control::{Control, FILE, events, follow, host_at, is_away, is_one_cluster, outcomes, rest, yaml};
pub use updaters::Updater;
pub use watch::{arguments, longest_silence};

/// The floating address that the tests use.
pub const VIP: &str = "10.79.0.200";
/// For what takes seconds on a quiet machine.
pub const LONG: Duration = Duration::from_secs(180);

/// Runs smartup on a host.
pub fn smartup(host: &Host, args: &[&str]) -> Result<Outcome> {
    host.exec([&["smartup"], args].concat())
}

/// Runs smartup on a host, which must work; answers its standard output.
pub fn done(host: &Host, args: &[&str]) -> Result<String> {
    smartup(host, args)?.checked().with_context(|| format!("{}: smartup {}", host.name(), args.join(" ")))
}

/// Makes a host the first server.
pub fn init(host: &Host) -> Result<String> {
    done(host, &["init", "--vip", VIP])
}

/// A ticket from a server.
pub fn ticket(server: &Host, role: &str) -> Result<String> {
    Ok(done(server, &["ticket", "--role", role])?.trim().to_owned())
}

/// Joins with a ticket on standard input.
pub fn join(host: &Host, role: &str, ticket: &str) -> Result<Outcome> {
    host.exec_with(["smartup", "join", "--role", role, "--ticket", "-"], ticket.as_bytes())
}

/// `smartup status` as data.
pub fn status(host: &Host) -> Result<Value> {
    Ok(serde_json::from_str(&done(host, &["status", "-o", "json"])?)?)
}

/// The hosts that have the VIP now.
pub fn holders(hosts: &[&Host]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for host in hosts.iter().filter(|h| h.is_up()) {
        if host.addresses()?.iter().any(|a| a.starts_with(&format!("{VIP}/"))) {
            found.push(host.name().to_owned());
        }
    }
    Ok(found)
}

/// Whether the API answers through the VIP, asked from a machine that is none of the hosts.
pub fn answers(lab: &Lab) -> Result<bool> {
    let url = format!("https://{VIP}:9443/ping");
    Ok(lab.probe().exec(["curl", "-sk", "--max-time", "1", "-o", "/dev/null", "-w", "%{http_code}", &url])?.stdout.trim() == "200")
}

/// Waits until the API answers through the VIP.
pub fn answered(lab: &Lab) -> Result<()> {
    until("the API answers through the VIP", LONG, || Ok(answers(lab)?.then_some(())))
}

/// PIDs and restart counters of what smartup runs.
pub fn processes(host: &Host) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for unit in ["k3s-server", "k3s-agent", "keepalived", "firewalld"] {
        found.insert(unit.to_owned(), host.run(["systemctl", "show", unit, "-p", "MainPID,NRestarts,ActiveEnterTimestampMonotonic"])?);
    }
    Ok(found)
}

/// A host's files, units and firewall, to be compared with later.
pub struct Before {
    tree: integration::snapshot::Snapshot,
    units: integration::snapshot::Snapshot,
    firewall: integration::snapshot::Snapshot,
    left_out: Vec<&'static str>,
}

impl Before {
    /// How a host is now.
    pub fn of(host: &Host) -> Result<Self> {
        let (tree, units, firewall) = (host.tree_snapshot()?, host.unit_snapshot()?, host.firewall_snapshot()?);
        Ok(Self { tree, units, firewall, left_out: Vec::new() })
    }

    /// Leaves out these folders, in which others work.
    #[must_use]
    pub fn but(self, folders: &[&'static str]) -> Self {
        Self { left_out: folders.to_vec(), ..self }
    }

    /// Fails, naming each difference, when the host is not as it was.
    pub fn unchanged(&self, host: &Host) -> Result<()> {
        let now = Self::of(host)?;
        let counts = |name: &str| !self.left_out.iter().any(|folder| name.starts_with(folder));
        let (was, is) = (self.tree.clone().filter(counts), now.tree.filter(counts));
        for (what, diff) in
            [("files", was.diff(&is)), ("units", self.units.diff(&now.units)), ("firewall", self.firewall.diff(&now.firewall))]
        {
            // of a unit that ended by itself its own words tell why
            let said = || diff.changes().iter().filter(|c| what == "units" && c.name.ends_with(".service")).map(|c| journal(host, &c.name));
            ensure!(diff.is_empty(), "{}: {what} differ:\n{diff}{}", host.name(), said().collect::<String>());
        }
        Ok(())
    }
}

/// What a unit, the bus and systemd of it said last.
fn journal(host: &Host, unit: &str) -> String {
    let word = unit.strip_suffix(".service").unwrap_or(unit);
    let script = "journalctl --no-pager -o short-precise | grep -i -e \"$0\" -e dbus -e Reloading | tail -n 40";
    host.run(["sh", "-c", script, word]).unwrap_or_else(|e| format!("{e:#}"))
}

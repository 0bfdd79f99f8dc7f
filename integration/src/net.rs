//! The wire: a bridge in a namespace of its own, one port per host, and the faults that can be put on it.
//!
//! Partitions, cuts and losses are kept by the bridge under the port's name, so they outlast a host's reboot as a
//! broken network does.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::run::{run, run_with};
use crate::site::{Address, HostPlan, PREFIX, PREFIX6, Site};

const SWITCH: &str = "switch";
const PROBE: &str = "probe";

/// A command in one of the lab's network namespaces. `nsenter` rather than `ip netns exec`, which would mount /sys anew
/// and hide the control groups.
pub(crate) fn inside(site: &Site, part: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", site.namespace_file(part).display())).arg("--");
    command
}

/// The same for the probe.
pub(crate) fn inside_probe(site: &Site) -> Command {
    inside(site, PROBE)
}

/// Brings this thread, and no other, into the network of that namespace file.
pub(crate) fn enter(file: &Path) -> Result<()> {
    let network = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).context("cannot enter the network")
}

/// The same for the probe's.
pub(crate) fn enter_probe(site: &Site) -> Result<()> {
    enter(&site.namespace_file(PROBE))
}

/// Lays the bridge and the probe's cable.
pub(crate) fn lay(site: &Site, hosts: &[HostPlan]) -> Result<()> {
    let (gateway, probe) = (Address::gateway(), Address::probe());
    run(Command::new("ip").args(["netns", "add", &site.namespace(SWITCH)]))?;
    batch(
        &site.namespace(SWITCH),
        &format!(
            "link set lo up
             link add br0 type bridge mcast_snooping 0 forward_delay 0
             addr add {}/{PREFIX} dev br0
             addr add {}/{PREFIX6} dev br0 nodad
             link set br0 up",
            gateway.v4, gateway.v6
        ),
    )?;
    run_with(inside(site, SWITCH).args(["nft", "-f", "-"]), rules(hosts).as_bytes())?;
    run(Command::new("ip").args(["netns", "add", &site.namespace(PROBE)]))?;
    batch(
        &site.namespace(PROBE),
        &format!(
            "link set lo up
             link add eth0 type veth peer name probe netns {}
             addr add {}/{PREFIX} dev eth0
             addr add {}/{PREFIX6} dev eth0 nodad
             link set eth0 up",
            site.namespace(SWITCH),
            probe.v4,
            probe.v6
        ),
    )?;
    batch(&site.namespace(SWITCH), "link set probe master br0 up")
}

/// Gives the host a fresh namespace and a port: nothing of an earlier boot's addresses can be left.
pub(crate) fn attach(site: &Site, host: &HostPlan) -> Result<()> {
    let name = host.name();
    detach(site, &name)?;
    let (own, gateway) = (host.address(), Address::gateway());
    run(Command::new("ip").args(["netns", "add", &site.namespace(&name)]))?;
    // The unreachable route is for a cloud's metadata service, which kubelet asks for at its start.
    batch(
        &site.namespace(&name),
        &format!(
            "link set lo up
             link add eth0 address 02:79:00:00:00:{:02x} type veth peer name {name} netns {}
             addr add {}/{PREFIX} brd + dev eth0
             addr add {}/{PREFIX6} dev eth0 nodad
             link set eth0 up
             route add default via {}
             route add default via {} dev eth0
             route add unreachable 169.254.169.254/32",
            host.number,
            site.namespace(SWITCH),
            own.v4,
            own.v6,
            gateway.v4,
            gateway.v6
        ),
    )?;
    let state = if site.unplugged(&name).exists() { "down" } else { "up" };
    batch(&site.namespace(SWITCH), &format!("link set {name} master br0 {state}"))
}

/// Takes the host off the wire, at once, with all its addresses.
pub(crate) fn detach(site: &Site, host: &str) -> Result<()> {
    if !site.namespace_file(host).exists() {
        return Ok(());
    }
    // The port first: an abandoned namespace still answers ARP and ping for as long as it is there. It may be gone
    // already, when the host broke its own interface.
    let _ = unlink(site, host);
    run(Command::new("ip").args(["netns", "del", &site.namespace(host)])).map(drop)
}

/// Takes the host's port away, and with it the host's interface.
pub(crate) fn unlink(site: &Site, host: &str) -> Result<()> {
    batch(&site.namespace(SWITCH), &format!("link del {host}"))
}

/// Removes all of the lab's namespaces.
pub(crate) fn remove(site: &Site) -> Result<()> {
    let prefix = site.namespace("");
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Ok(()) };
    for entry in entries {
        let name = entry.context("cannot list the network namespaces")?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.starts_with(&prefix)) {
            run(Command::new("ip").args(["netns", "del", name]))?;
        }
    }
    Ok(())
}

/// Whether a lab of this name has left namespaces, or another state folder's lab uses them.
pub(crate) fn exists(site: &Site) -> bool {
    Path::new(&site.namespace_file(SWITCH)).exists()
}

/// Pulls the host's cable or plugs it in: its interface loses its carrier.
pub(crate) fn plug(site: &Site, host: &str, plugged: bool) -> Result<()> {
    let marker = site.unplugged(host);
    if plugged {
        if marker.exists() {
            std::fs::remove_file(&marker).with_context(|| format!("cannot remove {}", marker.display()))?;
        }
    } else {
        std::fs::write(&marker, "").with_context(|| format!("cannot write {}", marker.display()))?;
    }
    let state = if plugged { "up" } else { "down" };
    if site.namespace_file(host).exists() {
        batch(&site.namespace(SWITCH), &format!("link set {host} {state}"))?;
    }
    Ok(())
}

/// Silently drops all that the host sends and would receive, or no longer does.
pub(crate) fn silence(site: &Site, host: &str, silent: bool) -> Result<()> {
    set(site, "silent", &format!("\"{host}\""), silent)
}

/// Silently drops all between two hosts, or no longer does.
pub(crate) fn cut(site: &Site, a: &str, b: &str, cut: bool) -> Result<()> {
    set(site, "cuts", &format!("\"{a}\" . \"{b}\", \"{b}\" . \"{a}\""), cut)
}

/// Loses this share of the host's packets, in both directions.
pub(crate) fn lose(site: &Site, host: &str, percent: u8) -> Result<()> {
    let rule = match percent {
        0 => String::new(),
        // nft refuses a comparison that is always true.
        100.. => format!("add rule bridge lab loss_{host} drop"),
        percent => format!("add rule bridge lab loss_{host} numgen random mod 100 < {percent} drop"),
    };
    nft(site, &format!("flush chain bridge lab loss_{host}\n{rule}\n"))
}

fn set(site: &Site, name: &str, elements: &str, present: bool) -> Result<()> {
    // Deleting what is not there is an error, adding what is there is not: add first.
    let verbs: &[&str] = if present { &["add"] } else { &["add", "delete"] };
    let commands = verbs.iter().map(|verb| format!("{verb} element bridge lab {name} {{ {elements} }}\n"));
    nft(site, &commands.collect::<String>())
}

fn rules(hosts: &[HostPlan]) -> String {
    let each = |line: fn(&str) -> String| hosts.iter().map(|host| line(&host.name())).collect::<String>();
    let losses = each(|name| {
        format!(
            "chain loss_{name} {{ }}
"
        )
    });
    let arriving = each(|name| {
        format!(
            "iifname \"{name}\" jump loss_{name}
"
        )
    });
    let leaving = each(|name| {
        format!(
            "oifname \"{name}\" jump loss_{name}
"
        )
    });
    format!(
        "table bridge lab {{
            set cuts {{ type ifname . ifname; }}
            set silent {{ type ifname; }}
            {losses}
            chain passing {{
                type filter hook forward priority 0
                iifname . oifname @cuts drop
                iifname @silent drop
                oifname @silent drop
                {arriving}
                {leaving}
            }}
            chain arriving {{
                type filter hook input priority 0
                iifname @silent drop
                {arriving}
            }}
            chain leaving {{
                type filter hook output priority 0
                oifname @silent drop
                {leaving}
            }}
        }}\n"
    )
}

fn nft(site: &Site, commands: &str) -> Result<()> {
    run_with(inside(site, SWITCH).args(["nft", "-f", "-"]), commands.as_bytes()).map(drop)
}

fn batch(namespace: &str, lines: &str) -> Result<()> {
    run_with(Command::new("ip").args(["-n", namespace, "-batch", "-"]), lines.as_bytes())
        .map(drop)
        .with_context(|| format!("cannot set up the network namespace {namespace}"))
}

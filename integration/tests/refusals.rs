//! What must not be: each has its own message and exit code, and nothing on the host is changed.

mod common;

use anyhow::{Result, ensure};
use common::{Before, LONG, VIP, init, join, smartup, ticket};
use integration::{Host, Lab, LabSpec, Outcome, until};

/// A free address of the lab's network.
const FREE: &str = "10.79.0.210";

fn refused(outcome: &Outcome, code: i32, words: &str) -> Result<()> {
    let said = &outcome.stderr;
    ensure!(outcome.code == code && said.contains(words), "wanted exit code {code} and '{words}', got {}: {said}", outcome.code);
    ensure!(said.contains("error:"), "{said}");
    Ok(())
}

fn init_refused(host: &Host, args: &[&str], code: i32, words: &str) -> Result<()> {
    refused(&smartup(host, &[&["init", "--vip"], args].concat())?, code, words)
}

#[test]
fn a_vip_that_cannot_be() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    let before = Before::of(h1)?;
    init_refused(h1, &["192.168.77.1"], 2, "outside")?;
    init_refused(h1, &["10.79.0.11"], 2, "own address")?;
    init_refused(h1, &["10.79.0.255"], 2, "broadcast")?;
    init_refused(h1, &["10.79.0"], 2, "not an IPv4 or IPv6 address")?;
    init_refused(h1, &[FREE, "--interface", "eth7"], 2, "no interface eth7")?;
    init_refused(h1, &[FREE, "--node-ip", "10.79.0.99"], 2, "not an address of this host")?;
    // another host has it, though nothing listens there
    h2.run(["ip", "addr", "add", &format!("{FREE}/24"), "dev", "eth0"])?;
    init_refused(h1, &[FREE], 4, FREE)?;
    h2.run(["ip", "addr", "add", "fd79::210/64", "dev", "eth0", "nodad"])?;
    init_refused(h1, &["fd79::210"], 4, "fd79::210")?;
    before.unchanged(h1)
}

#[test]
fn a_vrrp_id_that_somebody_else_uses() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    let conf = "vrrp_instance other {\n state MASTER\n interface eth0\n virtual_router_id 210\n priority 100\n advert_int 1\n virtual_ipaddress {\n 10.79.0.99/24\n }\n}\n";
    h2.write("/etc/keepalived/keepalived.conf", 0o644, conf)?;
    h2.run(["systemctl", "start", "keepalived"])?;
    until("the other router is master", LONG, || Ok(h2.addresses()?.iter().any(|a| a.starts_with("10.79.0.99/")).then_some(())))?;
    let before = Before::of(h1)?;
    init_refused(h1, &[FREE], 4, "210")?;
    before.unchanged(h1)?;
    // with another id there is no conflict
    let dry = smartup(h1, &["init", "--vip", "10.79.0.211", "--dry-run"])?;
    ensure!(dry.ok(), "{}", dry.stderr);
    Ok(())
}

#[test]
fn a_host_that_is_not_free() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1))?;
    let h1 = lab.host("h1")?;
    // a port that somebody else listens on
    h1.run(["systemd-run", "--unit", "busy", "nc", "-lk", "9443"])?;
    until("the port is in use", LONG, || Ok(h1.exec(["nc", "-z", "127.0.0.1", "9443"])?.ok().then_some(())))?;
    init_refused(h1, &[FREE], 4, "9443")?;
    let other_port = smartup(h1, &["init", "--vip", FREE, "--port", "9444", "--dry-run"])?;
    ensure!(other_port.ok(), "{}", other_port.stderr);
    h1.run(["systemctl", "stop", "busy"])?;
    // somebody else's k3s
    h1.sh("mkdir -p /etc/rancher/k3s && echo 'node-name: other' > /etc/rancher/k3s/config.yaml")?;
    let before = Before::of(h1)?;
    init_refused(h1, &[FREE], 4, "/etc/rancher/k3s/config.yaml")?;
    h1.sh("rm -r /etc/rancher")?;
    h1.write("/etc/systemd/system/k3s.service", 0o644, "[Service]\nExecStart=/bin/sleep 1000\n[Install]\nWantedBy=multi-user.target\n")?;
    h1.run(["systemctl", "enable", "--now", "k3s"])?;
    init_refused(h1, &[FREE], 4, "k3s.service")?;
    h1.sh("systemctl disable --now k3s; rm /etc/systemd/system/k3s.service; systemctl daemon-reload")?;
    h1.sh("mkdir -p /etc/rancher/k3s && echo 'node-name: other' > /etc/rancher/k3s/config.yaml")?;
    before.unchanged(h1)?;
    h1.sh("rm -r /etc/rancher")?;
    // somebody else's keepalived
    h1.write("/etc/keepalived/keepalived.conf", 0o644, "vrrp_instance gateway {\n interface eth0\n virtual_router_id 7\n}\n")?;
    init_refused(h1, &[FREE], 4, "gateway")?;
    // a check that is ignored by name does not stop the dry run
    let ignored = smartup(h1, &["init", "--vip", FREE, "--dry-run", "--ignore", "keepalived-config"])?;
    ensure!(ignored.stderr.contains("ignored"), "{}", ignored.stderr);
    // a name that all hosts have
    h1.run(["hostname", "localhost"])?;
    init_refused(h1, &[FREE], 4, "hostname")
}

#[test]
fn a_join_that_cannot_be() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    let before = Before::of(h2)?;
    // nobody is there yet
    h2.write("/root/token", 0o600, "abc\n")?;
    refused(&smartup(h2, &["join", "--role", "agent", "--vip", VIP, "--token-file", "/root/token"])?, 1, "no server answers")?;
    init(h1)?;
    let good = h1.read("/var/lib/rancher/k3s/server/node-token")?;
    let by_hand = |role: &str, token: &str| -> Result<Outcome> {
        h2.write("/root/token", 0o600, token)?;
        smartup(h2, &["join", "--role", role, "--vip", VIP, "--token-file", "/root/token"])
    };
    let (pin, _) = good.split_once("::").unwrap_or_default();
    for role in ["server", "agent"] {
        refused(&by_hand(role, "")?, 2, "empty")?;
        refused(&by_hand(role, "wrong")?, 2, "refuses the token")?;
        refused(&by_hand(role, &format!("{pin}::server:wrong"))?, 2, "refuses the token")?;
        refused(&by_hand(role, &format!("K10{}::server:wrong", "0".repeat(64)))?, 2, "another cluster's CA")?;
    }
    refused(&smartup(h2, &["join", "--role", "server", "--vip", VIP, "--token-file", "/root/none"])?, 2, "/root/none")?;
    refused(&join(h2, "server", &ticket(h1, "agent")?)?, 2, "ticket for the role agent")?;
    let server = ticket(h1, "server")?;
    refused(&join(h2, "server", &server[..server.len() - 6])?, 2, "damaged or cut off")?;
    let shown = join(h2, "server", &server[..server.len() - 6])?.stderr;
    ensure!(!shown.contains(&server[20..40]), "a ticket is a secret: {shown}");
    // data of another cluster
    h2.sh("mkdir -p /var/lib/rancher/k3s/server/tls && echo other > /var/lib/rancher/k3s/server/tls/server-ca.crt")?;
    refused(&join(h2, "server", &server)?, 4, "another cluster")?;
    h2.sh("rm -r /var/lib/rancher/k3s")?;
    // the VIP of a cluster is no free address for another
    refused(&smartup(h2, &["init", "--vip", VIP])?, 4, VIP)?;
    h2.sh("rm /root/token")?;
    before.unchanged(h2)?;
    // the host that started the cluster does not join it
    refused(&join(h1, "server", &server)?, 4, "started its cluster")?;
    refused(&smartup(h1, &["init", "--vip", FREE])?, 4, VIP)?;
    refused(&smartup(h1, &["init", "--vip", VIP, "--port", "9444"])?, 4, "9443")
}

#[test]
fn two_runs_at_once() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1))?;
    let h1 = lab.host("h1")?;
    let mut first = h1.spawn(["smartup", "init", "--vip", VIP, "--events", "json"])?;
    while let Some(line) = first.line()? {
        if line.contains("step_started") {
            break;
        }
    }
    refused(&smartup(h1, &["init", "--vip", VIP])?, 4, "another smartup run")?;
    refused(&smartup(h1, &["reset", "--yes"])?, 4, "another smartup run")?;
    first.kill()?;
    first.wait()?;
    // the kernel has released the lock
    init(h1)?;
    Ok(())
}

//! The firewall: what is let in, that nobody is locked out, and that all of it can be taken back.

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context as _, Result, ensure};
use common::{Before, LONG, VIP, done, holders, init, join, smartup, ticket};
use integration::{Host, Lab, LabSpec, until};
use serde_json::Value;

/// The port that ssh has been moved to.
const SSH: &str = "2222";

/// Runs `smartup init` until a step has ended, kills it there (SIGKILL), and gives the step's event.
fn init_until(host: &Host, step: &str) -> Result<Value> {
    let mut run = host.spawn(["smartup", "init", "--vip", VIP, "--events", "json"])?;
    while let Some(line) = run.line()? {
        let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        if event["event"] == "step_done" && event["step"] == step {
            ensure!(event["outcome"] != "failed", "{event}");
            run.kill()?;
            return Ok(event);
        }
    }
    anyhow::bail!("{}: smartup ended with {} before the step {step}", host.name(), run.wait()?)
}

/// A firewall of the host's own, whether it is loaded and what it is called in the refusal.
const OWN_FIREWALLS: [(&str, &str, &str); 4] = [
    (
        "nft add table inet mine; nft add chain inet mine in '{ type filter hook input priority 0; policy drop; }'",
        "nft delete table inet mine",
        "inet mine",
    ),
    ("iptables -A INPUT -p tcp --dport 25 -j REJECT", "iptables -D INPUT -p tcp --dport 25 -j REJECT", "ip filter"),
    ("iptables-legacy -A INPUT -p tcp --dport 25 -j DROP", "iptables-legacy -F", "iptables-legacy"),
    ("mkdir -p /etc/ufw; echo ENABLED=yes > /etc/ufw/ufw.conf", "rm /etc/ufw/ufw.conf", "ufw"),
];

#[test]
fn another_firewall_is_refused_and_what_others_made_is_not() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1))?;
    let h1 = lab.host("h1")?;
    h1.sh("systemctl -q disable --now firewalld")?;
    for (make, unmake, name) in OWN_FIREWALLS {
        h1.sh(make)?;
        let before = Before::of(h1)?;
        let said = smartup(h1, &["init", "--vip", VIP])?;
        ensure!(said.code == 4, "exit code {}: {}", said.code, said.stderr);
        for part in [name, "VRRP, 9443/tcp, 2379-2380/tcp, 10250/tcp, 8472/udp", "--no-firewall"] {
            ensure!(said.stderr.contains(part), "{part} is not in: {}", said.stderr);
        }
        before.unchanged(h1)?;
        // with --no-firewall it goes on, and says what that firewall must let in
        let said = smartup(h1, &["init", "--vip", VIP, "--no-firewall", "--dry-run", "--events", "json"])?;
        ensure!(said.code == 0 && !said.stdout.contains("firewall rules"), "{}{}", said.stdout, said.stderr);
        h1.sh(unmake)?;
    }
    // what containers, kube-proxy and virtual machines bring along is no firewall of the host's
    h1.sh("iptables -N KUBE-FIREWALL; iptables -A KUBE-FIREWALL -m mark --mark 0x8000 -j DROP; iptables -A INPUT -j KUBE-FIREWALL
         iptables -P FORWARD DROP; nft add table ip docker-bridges; nft add table ip libvirt_network
         nft add chain ip libvirt_network in '{ type filter hook input priority 0; policy drop; }'")?;
    let said = smartup(h1, &["init", "--vip", VIP, "--dry-run"])?;
    ensure!(said.code == 0, "{}", said.stderr);
    ensure!(said.stderr.contains("firewalld is installed but disabled"), "it stays as its administrator wants it: {}", said.stderr);
    Ok(())
}

/// Moves ssh away from its own port; and lets packages be installed without an fsync for each of their files.
fn move_ssh(host: &Host) -> Result<()> {
    host.write("/etc/dpkg/dpkg.cfg.d/lab", 0o644, "force-unsafe-io\n")?;
    host.write("/etc/ssh/sshd_config.d/port.conf", 0o644, format!("Port {SSH}\n"))?;
    host.run(["systemctl", "restart", "ssh"]).map(drop)
}

/// A connection over ssh that stays open: what goes in comes back.
struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    fn open(host: &Host) -> Result<Self> {
        let mut child = host.ssh_command(["-p", SSH, "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (child.stdin.take().context("no pipe")?, BufReader::new(child.stdout.take().context("no pipe")?));
        Ok(Self { child, input, output })
    }

    fn echoes(&mut self) -> Result<()> {
        self.input.write_all(b"still here\n")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line == "still here\n", "the connection said {line:?}");
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_new_firewall_shuts_nobody_out() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(0).plain_hosts(1))?;
    let h1 = lab.host("h1")?;
    move_ssh(h1)?;
    let mut session = Session::open(h1)?;
    session.echoes()?;

    // from the first moment to the last, whoever connects is let in
    let door = format!("exec 3<>/dev/tcp/{}/{SSH}", h1.ipv4());
    let knock = format!("while timeout 5 bash -c '{door}'; do echo in; sleep 0.05; done; echo shut out");
    let mut knocking = lab.probe().spawn(["bash", "-c", &knock])?;
    init_until(h1, "firewall rules")?;
    knocking.kill()?;
    let mut knocks = Vec::new();
    while let Some(line) = knocking.line()? {
        knocks.push(line);
    }
    ensure!(knocks.len() > 10 && knocks.iter().all(|k| k == "in"), "{} knocks, the last: {:?}", knocks.len(), knocks.last());
    session.echoes()?;
    h1.run(["systemctl", "is-active", "firewalld"])?;

    // it is a firewall, and it lets ssh in after a reload and after a reboot as well
    let blocked = format!("exec 3<>/dev/tcp/{}/7", h1.ipv4());
    let said = lab.probe().exec(["timeout", "5", "bash", "-c", &blocked])?;
    ensure!(!said.ok() && said.stderr.contains("No route to host"), "{said:?}");
    h1.run(["firewall-cmd", "--reload"])?;
    ensure!(h1.ssh_command(["-p", SSH, "true"]).status()?.success());
    h1.reboot()?;
    h1.run(["systemctl", "is-active", "firewalld"])?;
    ensure!(h1.ssh_command(["-p", SSH, "true"]).status()?.success());

    // and it goes as it came
    let said = done(h1, &["reset", "--yes", "--packages"])?;
    ensure!(said.contains("package firewalld removed"), "{said}");
    ensure!(h1.ssh_command(["-p", SSH, "true"]).status()?.success());
    ensure!(!h1.exec(["sh", "-c", "ls -d /etc/firewalld /etc/systemd/system/*fire* /etc/systemd/system/*/*fire*"])?.stdout.contains('/'));
    Ok(())
}

#[test]
fn the_power_may_fail_while_a_new_firewall_is_set_up() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(0).plain_hosts(1))?;
    let h1 = lab.host("h1")?;
    move_ssh(h1)?;
    // the package's own start at installation, and at the next boot, are what would shut the user out
    init_until(h1, "package firewalld")?;
    ensure!(!h1.exec(["systemctl", "is-active", "firewalld"])?.ok(), "it must wait until ssh is let in");
    h1.power_cut()?;
    h1.power_on()?;
    ensure!(!h1.exec(["systemctl", "is-active", "firewalld"])?.ok(), "also after the power came back");
    ensure!(h1.ssh_command(["-p", SSH, "true"]).status()?.success());
    init_until(h1, "firewall rules")?;
    h1.run(["systemctl", "is-active", "firewalld"])?;
    ensure!(h1.ssh_command(["-p", SSH, "true"]).status()?.success());
    Ok(())
}

#[test]
fn what_is_there_is_left_and_what_was_added_is_taken_back() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1))?;
    let h1 = lab.host("h1")?;
    // the administrator's: a zone for the interface, a wide range, a service, a rule that holds until the next reload only
    h1.sh("for p in '' --permanent; do firewall-cmd -q $p --zone=internal --add-interface=eth0
           firewall-cmd -q $p --zone=internal --add-port=10000-11000/tcp; firewall-cmd -q $p --zone=internal --add-service=etcd-server
           firewall-cmd -q $p --zone=internal --add-service=etcd-client; done
         firewall-cmd -q --zone=internal --add-port=8472/udp")?;
    let before = Before::of(h1)?;
    let changes = init_until(h1, "firewall rules")?["changes"].clone();
    let said: Vec<&str> = changes.as_array().into_iter().flatten().filter_map(|c| c["what"].as_str()).collect();
    let wanted = [
        "let in VRRP in zone internal",
        "let in 9443/tcp in zone internal",
        "let in 8472/udp in zone internal, after a reload too",
        "let in all from 10.42.0.0/16 in zone trusted",
        "let in all from 10.43.0.0/16 in zone trusted",
    ];
    ensure!(said == wanted, "{said:#?}");

    // now and after a reload, and none of it in another zone
    for _ in 0..2 {
        let now = h1.run(["firewall-cmd", "--zone=internal", "--list-all"])?;
        for part in ["9443/tcp", "8472/udp", "10000-11000/tcp", "rule protocol value=\"vrrp\" accept"] {
            ensure!(now.contains(part), "{part}: {now}");
        }
        ensure!(h1.run(["firewall-cmd", "--zone=trusted", "--list-sources"])?.trim() == "10.42.0.0/16 10.43.0.0/16");
        ensure!(h1.run(["firewall-cmd", "--zone=public", "--list-ports"])?.trim().is_empty());
        h1.run(["firewall-cmd", "--reload"])?;
    }
    ensure!(init_until(h1, "firewall rules")?["outcome"] == "unchanged", "the second time nothing is missing");

    h1.run(["firewall-cmd", "-q", "--zone=internal", "--add-port=8472/udp"])?;
    done(h1, &["reset", "--yes"])?;
    // what held until the next reload went with the reload
    h1.run(["firewall-cmd", "-q", "--zone=internal", "--add-port=8472/udp"])?;
    before.unchanged(h1)
}

#[test]
fn without_the_rule_there_are_two_holders_and_with_it_one() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    init(h1)?;
    join(h2, "server", &ticket(h1, "server")?)?.checked()?;
    ensure!(holders(&[h1, h2])?.len() == 1);
    for host in [h1, h2] {
        host.run(["firewall-cmd", "-q", "--remove-rich-rule=rule protocol value=\"vrrp\" accept"])?;
    }
    // who hears no adverts takes the VIP for free
    until("both hold the VIP", LONG, || Ok((holders(&[h1, h2])?.len() == 2).then_some(())))?;
    for host in [h1, h2] {
        let again = match host.name() {
            "h1" => smartup(host, &["init", "--vip", VIP, "--ignore", "vip", "-o", "json"])?,
            _ => join(host, "server", &ticket(h2, "server")?)?,
        };
        again.checked()?;
    }
    until("one holds the VIP", LONG, || Ok((holders(&[h1, h2])?.len() == 1).then_some(())))
}

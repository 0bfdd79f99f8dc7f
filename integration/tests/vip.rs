//! The floating address: one holder whatever breaks, and nobody who would make two of them.

mod common;

use anyhow::{Context as _, Result, ensure};
use common::{Before, LONG, VIP, answered, done, holders, init, join, smartup, status, ticket};
use integration::{Host, Lab, LabSpec, Outcome, until};

const CONFIG: &str = "/etc/keepalived/keepalived.conf";
const VRRP_RULE: &str = "rule protocol value=\"vrrp\" accept";

fn refused(outcome: &Outcome, words: &str) -> Result<()> {
    ensure!(
        outcome.code == 4 && outcome.stderr.contains(words),
        "wanted exit code 4 and '{words}', got {}: {}",
        outcome.code,
        outcome.stderr
    );
    Ok(())
}

/// Waits until one host alone has the VIP, other than `not`, and the API answers there.
fn one_holder<'a>(lab: &Lab, hosts: &[&'a Host], not: Option<&Host>) -> Result<&'a Host> {
    let name = until("one holder", LONG, || match holders(hosts)?.as_slice() {
        [one] if not.is_none_or(|n| n.name() != one) => Ok(Some(one.clone())),
        _ => Ok(None),
    })?;
    answered(lab)?;
    hosts.iter().copied().find(|h| h.name() == name).context("the holder is one of the hosts")
}

fn pid(host: &Host, unit: &str) -> Result<String> {
    Ok(host.run(["systemctl", "show", unit, "-p", "MainPID", "--value"])?.trim().to_owned())
}

/// What keepalived said on all hosts, for whoever has to find out what happened.
fn story(hosts: &[&Host]) -> Result<String> {
    let mut lines = Vec::new();
    for host in hosts {
        let said = host.run(["journalctl", "-u", "keepalived", "-o", "short-precise", "--no-hostname"])?;
        lines.extend(
            said.lines()
                .filter(|l| ["STATE", "api_", "advert", "Main process"].iter().any(|w| l.contains(w)))
                .map(|l| format!("{l}   ({})", host.name())),
        );
    }
    lines.sort();
    Ok(lines.join("\n"))
}

fn api_ready(host: &Host) -> Result<bool> {
    Ok(host.exec(["/etc/keepalived/check_apiserver.sh"])?.ok())
}

/// Three servers, each thing that can happen to a holder, and one holder after each.
#[test]
fn one_holder_whatever_breaks() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(3))?;
    let hosts = ["h1", "h2", "h3"].map(|h| lab.host(h).expect("there are three hosts"));
    init(hosts[0])?;
    let server = ticket(hosts[0], "server")?;
    for host in &hosts[1..] {
        join(host, "server", &server)?.checked()?;
    }
    let mut holder = one_holder(&lab, &hosts, None)?;
    ensure!(holder.name() == "h1", "who joins does not take the VIP, but {} has it", holder.name());

    // an edited configuration is put back under the running daemon: same process, same holder
    let was = pid(holder, "keepalived")?;
    holder.run(["sed", "-i", "s/fall 2/fall 9/", CONFIG])?;
    holder.run(["systemctl", "reload", "keepalived"])?;
    init(holder)?;
    ensure!(holder.read(CONFIG)?.contains("fall 2") && pid(holder, "keepalived")? == was);
    ensure!(holders(&hosts)? == ["h1"], "a reload moves nothing");

    // k3s dies: its unit says so at once, and when it is back it does not take the VIP from the new holder
    let before = holder;
    before.run(["systemctl", "kill", "--kill-who=main", "-s", "KILL", "k3s-server"])?;
    holder = one_holder(&lab, &hosts, Some(before))?;
    until("k3s is back", LONG, || Ok(api_ready(before)?.then_some(())))?;
    until("keepalived has seen that k3s is back", LONG, || {
        let said = before.run(["journalctl", "-u", "keepalived", "-o", "cat"])?;
        Ok((said.trim_end().lines().rfind(|l| l.contains("STATE")).is_some_and(|l| l.contains("BACKUP"))).then_some(()))
    })?;
    let now = holders(&hosts)?;
    ensure!(now == [holder.name()], "a server that is back takes nothing from a healthy holder, but {now:?} has it:\n{}", story(&hosts)?);

    // the API hangs, though its processes live
    let before = holder;
    before.run(["systemctl", "kill", "-s", "STOP", "k3s-server"])?;
    holder = one_holder(&lab, &hosts, Some(before))?;
    before.run(["systemctl", "kill", "-s", "CONT", "k3s-server"])?;

    // keepalived itself is killed: it leaves the VIP behind, and must come back and clean up
    let was = pid(holder, "keepalived")?;
    holder.run(["systemctl", "kill", "-s", "KILL", "keepalived"])?;
    until("keepalived runs again", LONG, || {
        let now = pid(holder, "keepalived")?;
        Ok((now != was && now != "0").then_some(()))
    })?;
    holder = one_holder(&lab, &hosts, None)?;

    // nobody hears the others: all healthy servers take the VIP; with the rule there is one again
    for host in &hosts {
        until("all APIs are ready", LONG, || Ok(api_ready(host)?.then_some(())))?;
    }
    for host in &hosts {
        host.run(["firewall-cmd", "-q", &format!("--remove-rich-rule={VRRP_RULE}")])?;
    }
    until("without the rule every server takes the VIP", LONG, || Ok((holders(&hosts)?.len() == 3).then_some(())))?;
    for host in &hosts {
        host.run(["firewall-cmd", "-q", &format!("--add-rich-rule={VRRP_RULE}")])?;
    }
    one_holder(&lab, &hosts, None)?;
    let report = status(holder)?;
    ensure!(report["vip"]["holder"].is_string(), "{report:#}");
    Ok(())
}

/// Version 2 with a password, as in the reference; who speaks otherwise is kept out.
#[test]
fn who_speaks_otherwise_does_not_join() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    h1.write("/root/pass", 0o600, "mypasswd\n")?;
    let said = smartup(h1, &["init", "--vip", VIP, "--auth-pass-file", "/root/pass", "-v"])?;
    ensure!(!said.stderr.contains("mypasswd") && !said.stdout.contains("mypasswd"), "the password is not shown");
    said.checked()?;
    ensure!(h1.run(["stat", "-c", "%a", CONFIG])?.trim() == "600");
    one_holder(&lab, &[h1, h2], None)?;

    h2.write("/root/token", 0o600, h1.read("/var/lib/rancher/k3s/server/node-token")?)?;
    let before = Before::of(h2)?;
    let by_hand = |more: &[&str]| smartup(h2, &[&["join", "--role", "server", "--vip", VIP, "--token-file", "/root/token"], more].concat());
    refused(&by_hand(&[])?, "speak VRRP version 3")?;
    before.unchanged(h2)?;
    h2.write("/root/pass", 0o600, "another\n")?;
    let other = by_hand(&["--auth-pass-file", "/root/pass"])?;
    refused(&other, "password is another one")?;
    ensure!(!other.stderr.contains("mypasswd") && !other.stderr.contains("another\n"), "{}", other.stderr);
    h2.sh("rm /root/pass /root/token")?;
    // the ticket has it right, and its second server keeps quiet
    join(h2, "server", &ticket(h1, "server")?)?.checked()?;
    ensure!(holders(&[h1, h2])? == ["h1"]);
    h1.run(["systemctl", "stop", "keepalived"])?;
    let now = one_holder(&lab, &[h1, h2], None)?;
    ensure!(now.name() == "h2");
    Ok(())
}

/// Where the network drops multicast, the servers speak to each other alone.
#[test]
fn without_multicast() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    for host in [h1, h2] {
        host.sh("nft add table ip lost && nft 'add chain ip lost out { type filter hook output priority 0; }' && nft add rule ip lost out ip daddr 224.0.0.18 drop")?;
    }
    let peers = [h1.ipv4().to_string(), h2.ipv4().to_string()];
    done(h1, &["init", "--vip", VIP, "--unicast-peer", &peers[0], &peers[1]])?;
    join(h2, "server", &ticket(h1, "server")?)?.checked()?;
    until("the second server listens", LONG, || {
        Ok(h2.run(["journalctl", "-u", "keepalived", "-o", "cat"])?.contains("BACKUP STATE").then_some(()))
    })?;
    ensure!(holders(&[h1, h2])? == ["h1"]);
    h1.run(["systemctl", "stop", "keepalived"])?;
    ensure!(one_holder(&lab, &[h1, h2], None)?.name() == "h2");
    h1.run(["systemctl", "start", "keepalived"])?;
    until("the first server listens", LONG, || {
        let said = h1.run(["journalctl", "-u", "keepalived", "-o", "cat"])?;
        Ok((said.trim_end().lines().rfind(|l| l.contains("STATE")).is_some_and(|l| l.contains("BACKUP"))).then_some(()))
    })?;
    ensure!(holders(&[h1, h2])? == ["h2"]);
    Ok(())
}

/// Neighbour discovery in ARP's place; the VIP is no source of the host's own connections.
#[test]
fn over_ipv6() -> Result<()> {
    const VIP6: &str = "fd79::200";
    let lab = Lab::up(&LabSpec::hosts(2))?;
    let (h1, h2) = (lab.host("h1")?, lab.host("h2")?);
    // the run goes on until the node is Ready, which needs a pod network; the VIP needs the API only
    let mut run = h1.spawn(["smartup", "init", "--vip", VIP6])?;
    until("the VIP is up", LONG, || Ok(h1.addresses()?.iter().any(|a| a.starts_with(&format!("{VIP6}/"))).then_some(())))?;
    ensure!(h1.run(["ip", "-6", "address", "show", "to", VIP6])?.contains("deprecated"));
    ensure!(h1.run(["ip", "-6", "route", "get", &h2.ipv6().to_string()])?.contains(&format!("src {}", h1.ipv6())));
    let asked = h2.run(["curl", "-sk", "--max-time", "5", &format!("https://[{VIP6}]:9443/ping")])?;
    ensure!(asked == "pong", "{asked}");
    let report = status(h1)?;
    ensure!(report["vip"]["here"] == true, "{report:#}");

    let before = Before::of(h2)?;
    refused(&smartup(h2, &["init", "--vip", VIP6])?, &format!("{} (", h1.ipv6()))?;
    h2.write("/root/token", 0o600, h1.read("/var/lib/rancher/k3s/server/node-token")?)?;
    smartup(h2, &["join", "--role", "server", "--vip", VIP6, "--token-file", "/root/token", "--dry-run"])?.checked()?;
    h2.run(["rm", "/root/token"])?;
    before.unchanged(h2)?;
    run.kill()
}

/// What was in keepalived's configuration before.
#[test]
fn a_configuration_that_is_there_already() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1))?;
    let h1 = lab.host("h1")?;
    // the distribution's own sample serves nobody
    h1.run(["cp", "/etc/keepalived/keepalived.conf.sample", CONFIG])?;
    smartup(h1, &["init", "--vip", VIP, "--dry-run"])?.checked()?;
    // the reference's sample for this very VIP, filled in by hand: taken over as it is on the wire
    let by_hand = format!(
        "global_defs {{\n router_id LVS_DEVEL\n}}\nvrrp_script check_apiserver {{\n script \"/etc/keepalived/check_apiserver.sh\"\n}}\nvrrp_instance VI_1 {{\n \
         state MASTER\n interface eth0\n virtual_router_id 51\n priority 101\n authentication {{\n auth_type PASS\n auth_pass mypasswd\n }}\n \
         virtual_ipaddress {{\n {VIP}\n }}\n track_script {{\n check_apiserver\n }}\n}}\n"
    );
    h1.write(CONFIG, 0o644, &by_hand)?;
    h1.write("/root/other", 0o600, "another")?;
    let before = Before::of(h1)?;
    let dry = smartup(h1, &["init", "--vip", VIP, "--dry-run"])?;
    let said = format!("{}{}", dry.stdout, dry.stderr);
    dry.checked()?;
    ensure!(said.contains("+    version 2") && !said.contains("mypasswd"), "{said}");
    ensure!(said.lines().any(|l| l.trim_start().starts_with(['+', ' ']) && l.contains("virtual_router_id 51")), "{said}");
    refused(&smartup(h1, &["init", "--vip", VIP, "--auth-pass-file", "/root/other"])?, "another VRRP password")?;
    // one that says what smartup cannot say is not replaced by something else
    h1.write(CONFIG, 0o644, by_hand.replace("auth_type PASS", "auth_type AH"))?;
    refused(&smartup(h1, &["init", "--vip", VIP])?, "made by hand for this VIP: vrrp_instance VI_1")?;
    h1.write(CONFIG, 0o644, &by_hand)?;
    // with the VIP on the interface and no keepalived, nobody knows who put it there
    h1.sh(&format!("ip address add {VIP}/32 dev eth0"))?;
    refused(&smartup(h1, &["init", "--vip", VIP])?, "is an address of this host already")?;
    h1.sh(&format!("ip address del {VIP}/32 dev eth0"))?;
    before.unchanged(h1)
}

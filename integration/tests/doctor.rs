//! `smartup doctor`: a whole cluster is fine, and each fault is found by the check that is there for it and by no other.

mod common;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use common::{Before, Control, LONG, VIP, answered, done, holders, smartup, yaml};
use integration::{Host, Lab, LabSpec, Outcome, until};
use serde_json::Value;

/// What the lab's hosts are like: nothing keeps their clocks, which are the machine's; they have little memory, and a disk that
/// they share with others.
const OF_THE_LAB: [&str; 4] = ["clock", "memory", "disk", "fsync"];

/// A finding that is not fine: its verdict, its check, the host of several, and what was found.
type Found = (String, String, String, String);

/// Whatever is not fine, but for what the lab itself is like; and that the exit code says whether something failed.
fn wrong(said: &Outcome) -> Result<Vec<Found>> {
    let list: Vec<Value> = serde_json::from_str(&said.stdout).with_context(|| format!("{}{}", said.stdout, said.stderr))?;
    ensure!(list.len() > 1, "it looked at something: {}", said.stdout);
    let failed = list.iter().any(|f| f["verdict"] == "fail");
    ensure!(said.code == i32::from(failed), "exit code {}: {}", said.code, said.stdout);
    let text = |f: &Value, key: &str| f[key].as_str().unwrap_or_default().to_owned();
    let found = list.iter().filter(|f| f["verdict"] != "ok" && !OF_THE_LAB.contains(&text(f, "check").as_str()));
    Ok(found.map(|f| (text(f, "verdict"), text(f, "check"), text(f, "host"), text(f, "what"))).collect())
}

/// The same on one host.
fn on(host: &Host) -> Result<Vec<Found>> {
    wrong(&smartup(host, &["doctor", "-o", "json"])?)
}

/// Of all hosts of the control's file.
fn of_all(control: &Control<'_>) -> Result<Vec<Found>> {
    wrong(&control.run("doctor", &["-o", "json"])?)
}

/// Fails unless just this check found just this.
fn only(found: &[Found], verdict: &str, check: &str, words: &str) -> Result<()> {
    let right = |(v, c, _, what): &Found| v == verdict && c == check && what.contains(words);
    ensure!(!found.is_empty() && found.iter().all(right), "wanted {verdict} of {check} with {words:?}, got {found:#?}");
    Ok(())
}

/// Waits until a cluster that was made whole again is found to be so.
fn well_again(what: &str, mut look: impl FnMut() -> Result<Vec<Found>>) -> Result<()> {
    let mut last = Vec::new();
    let done = until(what, LONG, || {
        last = look()?;
        Ok(last.is_empty().then_some(()))
    });
    done.with_context(|| format!("{last:#?}"))
}

#[test]
fn each_fault_is_found_by_its_check() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h).expect("there are five hosts"));
    let servers = [h1, h2, h3];
    let listed = ["h1, role: server", "h2, role: server", "h3, role: server", "h4, role: agent"];
    let control = Control::on(&lab, "h5", &yaml("", &listed))?;

    // before anything is there: doors of smartup's own on every port, behind firewalls that are still shut
    let before = Before::of(h1)?;
    only(&of_all(&control)?, "unknown", "reach", "that host's firewall does not let it in yet")?;
    h1.sh("firewall-cmd -q --add-port=9443/tcp --add-port=2379-2380/tcp --add-port=10250/tcp --add-port=8472/udp")?;
    h2.run(["systemctl", "stop", "firewalld"])?;
    let found = of_all(&control)?;
    only(&found, "unknown", "reach", "that host's firewall does not let it in yet")?;
    ensure!(found.iter().all(|(_, _, _, what)| !what.contains("to h1 ") && !what.contains("to h2 ")), "{found:#?}");
    // what is between the hosts, not on them
    h1.cut(h2)?;
    let found: Vec<Found> = of_all(&control)?.into_iter().filter(|(v, ..)| v == "fail").collect();
    only(&found, "fail", "reach", ": no ")?;
    let ends: BTreeSet<(&str, bool)> = found.iter().map(|(_, _, host, what)| (host.as_str(), what.contains("to h2 "))).collect();
    ensure!(ends == BTreeSet::from([("h1", true), ("h2", false)]), "{found:#?}");
    for port in ["9443/tcp", "2379/tcp", "2380/tcp", "10250/tcp", "8472/udp"] {
        ensure!(found.iter().filter(|(_, _, _, what)| what.contains(port)).count() == 2, "{port}: {found:#?}");
    }
    h1.mend(h2)?;
    h2.run(["systemctl", "start", "firewalld"])?;
    h1.sh("firewall-cmd -q --reload")?;
    ensure!(listening(h1)?.is_empty(), "the doors are closed again: {}", listening(h1)?);
    before.unchanged(h1)?;

    // also when the control side ends without a word
    let mut run = control.host.spawn(["smartup", "doctor", "-f", "/root/cluster.yaml"])?;
    until("h1's doors are open", LONG, || Ok((listening(h1)?.lines().count() == 5).then_some(())))?;
    run.kill()?;
    until("h1's doors are closed", LONG, || Ok(listening(h1)?.is_empty().then_some(())))?;

    // a whole cluster, from one host and from all
    control.applied(&[])?;
    answered(&lab)?;
    well_again("the new cluster is fine", || of_all(&control))?;
    let told = control.run("doctor", &[])?.checked()?;
    ensure!(told.contains("4 hosts: ") && told.contains(" 0 failed, 0 unknown."), "{told}");
    for host in [h1, h4] {
        ensure!(on(host)?.is_empty(), "{}: {:#?}", host.name(), on(host)?);
    }
    let one = done(h1, &["doctor", "--only", "vip,etcd-members"])?;
    ensure!(one.lines().filter(|l| l.starts_with("ok ")).count() == 2 && one.ends_with("\n2 ok, 0 warn, 0 failed, 0 unknown.\n"), "{one}");

    // a rule that is gone at runtime only
    h4.run(["firewall-cmd", "-q", "--remove-port=10250/tcp"])?;
    only(&on(h4)?, "fail", "firewall-rules", "10250/tcp is not let in now, but would be after a reload")?;
    let found = of_all(&control)?;
    let reach: Vec<Found> = found.iter().filter(|(_, check, ..)| check == "reach").cloned().collect();
    only(&reach, "fail", "reach", "to h4 (10.79.0.14), 10250/tcp: no way there")?;
    // the pods' network ends where the kubelet is, but is let in as a whole
    ensure!(reach.len() == 3 && found.len() == 4, "{found:#?}");
    h4.run(["firewall-cmd", "-q", "--add-port=10250/tcp"])?;

    // one path between two hosts
    h1.sh("nft add table inet fault; nft add chain inet fault in '{ type filter hook input priority -300; }'
         nft add rule inet fault in ip saddr 10.79.0.14 udp dport 8472 drop")?;
    let found = of_all(&control)?;
    only(&found, "fail", "reach", "8472/udp: no answer: a firewall drops it, or the host is down (tried through the pod network")?;
    // no answer comes back either
    let ends: BTreeSet<(&str, bool)> = found.iter().map(|(_, _, host, what)| (host.as_str(), what.contains("to h4 "))).collect();
    ensure!(ends == BTreeSet::from([("h1", true), ("h4", false)]), "{found:#?}");
    h1.run(["nft", "delete", "table", "inet", "fault"])?;

    // a file that was edited
    h2.sh("echo '# mine' >> /etc/sysctl.d/90-smartup.conf")?;
    only(&on(h2)?, "warn", "files", "/etc/sysctl.d/90-smartup.conf was edited")?;
    h2.sh("sed -i '/^# mine$/d' /etc/sysctl.d/90-smartup.conf")?;

    // a certificate that has expired, and one that soon will
    let old = "/var/lib/rancher/k3s/server/tls/client-scheduler.crt";
    let kept = h2.read(old)?;
    for (certificate, verdict, words) in [(EXPIRED.to_owned(), "fail", "expired"), (soon_expired()?, "warn", "expires in 11 days")] {
        h2.write(old, 0o644, certificate)?;
        only(&on(h2)?, verdict, "certificates", &format!("{old} {words}"))?;
    }
    h2.write(old, 0o644, kept)?;

    // keepalived is down where the VIP is not
    let holder = holders(&servers)?.pop().context("somebody has the VIP")?;
    let backup = servers.into_iter().find(|h| h.name() != holder).context("somebody has not")?;
    backup.run(["systemctl", "stop", "keepalived"])?;
    only(&on(backup)?, "fail", "units", "keepalived.service does not run: inactive")?;
    backup.run(["systemctl", "start", "keepalived"])?;

    // somebody else answers for the VIP
    let probe = lab.probe();
    probe.exec(["ip", "addr", "add", &format!("{VIP}/32"), "dev", &probe_link(&lab)?])?.checked()?;
    let found = on(lab.host(&holder)?)?;
    probe.exec(["ip", "addr", "del", &format!("{VIP}/32"), "dev", &probe_link(&lab)?])?.checked()?;
    only(&found, "fail", "vip-duplicate", &format!("another host answers for {VIP} too"))?;
    well_again("all is fine again", || of_all(&control))?;

    // a server is down: its own unit, its member, and after a while its node
    let down = servers.into_iter().find(|h| h.name() != holder && h.name() != "h1").context("there is one")?;
    down.run(["systemctl", "stop", "k3s-server"])?;
    let found = on(lab.host(&holder)?)?;
    let checks: BTreeSet<&str> = found.iter().map(|(_, check, ..)| check.as_str()).collect();
    ensure!(checks.contains("etcd-members") && checks.is_subset(&BTreeSet::from(["etcd-members", "nodes"])), "{found:#?}");
    ensure!(found.iter().any(|(v, _, _, what)| v == "fail" && what.starts_with("3 members, 2 healthy, 2 needed; ")), "{found:#?}");
    let found = on(down)?;
    let failed: BTreeSet<&str> = found.iter().filter(|(v, ..)| v == "fail").map(|(_, check, ..)| check.as_str()).collect();
    ensure!(failed.contains("units") && failed.is_subset(&BTreeSet::from(["units", "etcd-members"])), "{found:#?}");
    down.run(["systemctl", "start", "k3s-server"])?;
    well_again("the server is back", || of_all(&control))?;

    // a host that cannot be reached at all
    h4.power_cut()?;
    let found = of_all(&control)?;
    ensure!(found.iter().any(|(v, check, host, _)| v == "fail" && check == "ssh" && host == "h4"), "{found:#?}");
    Ok(())
}

/// Who listens on the ports that smartup opens doors on.
fn listening(host: &Host) -> Result<String> {
    host.sh("ss -Hltun | awk '{print $5}' | grep -E ':(9443|2379|2380|10250|8472)$' || true")
}

/// The probe's interface.
fn probe_link(lab: &Lab) -> Result<String> {
    let links = lab.probe().exec(["ip", "-br", "-4", "addr"])?.checked()?;
    let line = links.lines().find(|l| l.contains("10.79.0.100/")).context("the probe has an address")?;
    Ok(line.split_whitespace().next().unwrap_or_default().split('@').next().unwrap_or_default().to_owned())
}

/// A certificate that was good for the first of January 2025.
const EXPIRED: &str = "\
-----BEGIN CERTIFICATE-----
MIG+MHICAQEwBQYDK2VwMAwxCjAIBgNVBAMMAXgwHhcNMjUwMTAxMDAwMDAwWhcN
MjUwMTAyMDAwMDAwWjAMMQowCAYDVQQDDAF4MCowBQYDK2VwAyEAJBXdzHgu8rcL
YPJEaHZSpM8uMlmcCeUrWvFIN3/VIakwBQYDK2VwA0EAV15yU8G0GKoyjVKEQlG5
TZBwStE7dlnpTfkilP28Zu5C4p/ZHm7dvDP8TDuqkhDT0KX50kghtnzAx4IxvQq+
Cw==
-----END CERTIFICATE-----
";

/// A certificate that is good for twelve days.
fn soon_expired() -> Result<String> {
    let args = ["req", "-x509", "-newkey", "ed25519", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=x", "-days", "12"];
    let made = std::process::Command::new("openssl").args(args).output()?;
    Ok(String::from_utf8(made.stdout)?)
}

#[test]
fn what_an_earlier_k3s_left_is_found() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1))?;
    let h1 = lab.host("h1")?;
    let before = Before::of(h1)?;
    ensure!(on(h1)?.is_empty(), "{:#?}", on(h1)?);
    // who asks by name gets an answer
    let asked = done(h1, &["doctor", "--only", "etcd-members,docker,reach"])?;
    for words in
        ["etcd-members       smartup has not set up", "docker             there is nothing", "reach              it is made with -f"]
    {
        ensure!(asked.contains(&format!("unknown  {words}")), "{asked}");
    }
    before.unchanged(h1)?;
    h1.sh("ip link add cni0 type bridge; mkdir -p /var/lib/rancher/k3s/agent; touch /var/lib/rancher/k3s/agent/x")?;
    only(&on(h1)?, "warn", "leftovers", "an earlier k3s left folder /var/lib/rancher; interface cni0")?;
    h1.sh("ip link del cni0; rm -r /var/lib/rancher/k3s/agent")?;
    h1.write("/etc/rancher/k3s/config.yaml", 0o600, "token: x\n")?;
    let found = on(h1)?;
    ensure!(found.iter().any(|(v, check, ..)| v == "fail" && check == "foreign-k3s"), "{found:#?}");
    Ok(())
}

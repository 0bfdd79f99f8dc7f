//! Snapshots, and the way back to one: on a healthy cluster, by hand, with kills in the middle, and when hosts were lost.

mod common;

use anyhow::{Context as _, Result, ensure};
use common::{Control, VIP, answered, done, init, is_one_cluster, processes, smartup};
use integration::{Host, Lab, LabSpec, Outcome, until};
use serde_json::Value;

const FILE: &str = "/root/cluster.yaml";
/// A key of age's, made for this test, and whom it belongs to.
const IDENTITY: &str = "AGE-SECRET-KEY-1DCJ590GLGFXSAETWN2CYCTV4JH5SKSLD0VELS8R6ZS0AZQJHGFDQEKLH00";
const RECIPIENT: &str = "age1dwzg8vr3px0f00e0t4jnylp9lqu46l8lfw6938xj45d9q39pn4nqw7dt8y";

fn yaml() -> String {
    let host = |n: u8, role: &str| format!("  - {{host: h{n}, role: {role}}}\n");
    let hosts: String = [host(1, "server"), host(2, "server"), host(3, "server"), host(4, "agent")].concat();
    format!("vip: {VIP}\nignore: [clock]\nssh: {{user: root}}\nhosts:\n{hosts}")
}

fn write(server: &Host, name: &str) -> Result<()> {
    server.run(["k3s", "kubectl", "create", "configmap", name, "--from-literal=a=b"]).map(drop)
}

fn erase(server: &Host, name: &str) -> Result<()> {
    server.run(["k3s", "kubectl", "delete", "configmap", name]).map(drop)
}

/// The configmaps that the tests made.
fn written(server: &Host) -> Result<Vec<String>> {
    let all = server.run(["k3s", "kubectl", "get", "configmaps", "-o", "name"])?;
    Ok(all.lines().filter_map(|l| l.strip_prefix("configmap/")).filter(|n| n.starts_with("t-")).map(str::to_owned).collect())
}

/// Names of the snapshots by host, from `save` or `list` with `-o json`.
fn names(json: &str, host: &str) -> Result<Vec<String>> {
    let rows: Value = serde_json::from_str(json).with_context(|| json.to_owned())?;
    let of = |row: &&Value| row["host"].as_str().is_none_or(|h| h == host);
    Ok(rows.as_array().into_iter().flatten().filter(of).filter_map(|r| Some(r["name"].as_str()?.to_owned())).collect())
}

fn snapshot(control: &Control<'_>, verb: &str, args: &[&str]) -> Result<Outcome> {
    smartup(control.host, &[&["snapshot", verb, "-f", FILE], args].concat())
}

fn says(outcome: &Outcome, code: i32, text: &str) -> Result<()> {
    let Outcome { code: is, stdout, stderr } = outcome;
    ensure!(
        *is == code && (stdout.contains(text) || stderr.contains(text)),
        "exit code {is}, not {code} with '{text}':\n{stdout}\n{stderr}"
    );
    Ok(())
}

/// Waits until the cluster is whole, and its API answers through the VIP.
fn is_whole(lab: &Lab, servers: &[&Host], agents: &[&Host]) -> Result<()> {
    answered(lab)?;
    let mut why = String::new();
    let whole =
        until("the cluster is whole", common::LONG, || Ok(is_one_cluster(servers, agents).map_err(|e| why = format!("{e:#}")).ok()));
    whole.with_context(|| why)
}

#[test]
fn back_to_what_was_saved() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4, h5] = ["h1", "h2", "h3", "h4", "h5"].map(|name| lab.host(name));
    let (h1, h2, h3, h4) = (h1?, h2?, h3?, h4?);
    let servers = [h1, h2, h3];
    let control = Control::on(&lab, h5?.name(), &yaml())?;
    control.applied(&[])?;

    write(h1, "t-kept")?;
    write(h1, "t-deleted")?;
    let saved = snapshot(&control, "save", &["--name", "before", "-o", "json"])?.checked()?;
    let name = names(&saved, "h2")?.pop().context("h2 has taken a snapshot")?;
    ensure!(name.starts_with("before-h2-") && saved.matches("\"plain\"").count() == 3, "{saved}");
    let modes = h2.sh("stat -c '%a' /var/lib/rancher/k3s/server/db/snapshot-tokens /var/lib/rancher/k3s/server/db/snapshot-tokens/*")?;
    ensure!(modes == "700\n600\n", "{modes}");
    let listed = snapshot(&control, "list", &["-o", "json"])?.checked()?;
    ensure!(names(&listed, "h2")? == [name.clone()] && names(&listed, "h1")?.len() == 1, "{listed}");
    let table = done(h2, &["snapshot", "list"])?;
    ensure!(table.contains(&name) && table.contains("kept"), "{table}");
    erase(h1, "t-deleted")?;
    write(h1, "t-later")?;

    // nothing is done by a plan, nor where it must not be
    let before = servers.map(processes).into_iter().collect::<Result<Vec<_>>>()?;
    let planned = snapshot(&control, "restore", &["--dry-run", &name])?;
    says(&planned, 0, "h1: set etcd's old data aside, start k3s, join h2")?;
    says(&planned, 0, "Nothing was changed.")?;
    let refused = snapshot(&control, "restore", &[&name])?;
    says(&refused, 4, "The cluster is healthy (3 members, 3 healthy, 2 needed). A restore loses everything written to the cluster since")?;
    h1.sh("head -c 100000 /dev/urandom > /root/noise; cp /var/lib/rancher/k3s/server/db/etcd/member/snap/db /root/raw")?;
    says(&snapshot(&control, "restore", &["--yes", "/root/noise"])?, 2, "/root/noise is not a snapshot of etcd")?;
    says(&snapshot(&control, "restore", &["--yes", "/root/raw"])?, 2, "it does not end with its checksum")?;
    says(&snapshot(&control, "restore", &["--yes", "none"])?, 2, "no server has a snapshot none")?;
    control.host.write("/root/wrong", 0o600, "another-token")?;
    says(&snapshot(&control, "restore", &["--yes", "--token-file", "/root/wrong", &name])?, 4, "was taken with another token")?;
    says(&smartup(h2, &["snapshot", "restore", "--yes", &name])?, 4, "on each other server, first: smartup snapshot stop")?;
    says(&smartup(h4, &["snapshot", "save"])?, 4, "this host is an agent")?;
    ensure!(servers.map(processes).into_iter().collect::<Result<Vec<_>>>()? == before, "nothing was touched");

    // the whole cluster from elsewhere: h2, which joined once, becomes the first
    let restored = snapshot(&control, "restore", &["--yes", &name])?.checked()?;
    ensure!(restored.contains("h2: its old data is in /var/lib/rancher/k3s/server/db/etcd-old-"), "{restored}");
    ensure!(written(h1)? == ["t-deleted", "t-kept"]);
    is_whole(&lab, &servers, &[h4])?;
    for host in [h1, h3] {
        host.sh("test -d /var/lib/rancher/k3s/server/before-restore-*/etcd/member")?;
    }
    for host in servers {
        ensure!(host.exec(["test", "-e", "/var/lib/smartup/restore.json"])?.code != 0);
        ensure!(host.run(["systemctl", "is-enabled", "k3s-server"])?.trim() == "enabled");
    }
    control.is_settled()?;

    // by hand, with the commands that it names
    write(h3, "t-again")?;
    let name = names(&done(h1, &["snapshot", "list", "-o", "json"])?, "h1")?.pop().context("h1 has a snapshot")?;
    let planned = done(h1, &["snapshot", "restore", "--dry-run", &name])?;
    ensure!(planned.contains("smartup snapshot stop") && planned.contains("smartup snapshot rejoin"), "{planned}");
    says(&smartup(h3, &["snapshot", "rejoin"])?, 4, "was not stopped for a restore")?;
    done(h2, &["snapshot", "stop", "--yes"])?;
    done(h3, &["snapshot", "stop", "--yes"])?;
    let refused = control.plan(&[])?;
    ensure!(refused.code != 0 && (refused.stdout + &refused.stderr).contains("a restore is under way on this host"));
    let said = done(h1, &["snapshot", "restore", "--yes", &name])?;
    ensure!(said.contains("smartup snapshot rejoin"), "{said}");
    for host in [h2, h3, h4] {
        done(host, &["snapshot", "rejoin"])?;
    }
    ensure!(written(h2)? == ["t-deleted", "t-kept"]);
    is_whole(&lab, &servers, &[h4])?;
    control.is_settled()
}

/// Starts a restore, and kills it and all that it began on the hosts, as soon as `when` is so.
fn killed(control: &Control<'_>, name: &str, servers: &[&Host], when: impl Fn() -> Result<bool>) -> Result<()> {
    let script = "echo $$ > /run/restore.pid; exec \"$@\"";
    let running = control.host.spawn(["sh", "-c", script, "sh", "smartup", "snapshot", "restore", "-f", FILE, "--yes", name])?;
    until("it is time", common::LONG, || Ok(when()?.then_some(())))?;
    control.host.sh("kill -9 $(cat /run/restore.pid)")?;
    for server in servers {
        server.sh("for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline) in */smartup-*' node ') kill -9 ${p#/proc/};; esac; done 2>/dev/null; true")?;
    }
    drop(running);
    Ok(())
}

#[test]
fn a_restore_that_was_killed_goes_on_and_lost_servers_are_made_anew() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4, h5] = ["h1", "h2", "h3", "h4", "h5"].map(|name| lab.host(name));
    let (h1, h2, h3, h4) = (h1?, h2?, h3?, h4?);
    let servers = [h1, h2, h3];
    let control = Control::on(&lab, h5?.name(), &yaml())?;
    control.applied(&[])?;
    write(h1, "t-kept")?;
    let saved = snapshot(&control, "save", &["-o", "json"])?.checked()?;
    let name = names(&saved, "h1")?.pop().context("h1 has taken a snapshot")?;
    write(h1, "t-later")?;

    let stage = |host: &Host, stage: &str| Ok(host.sh("cat /var/lib/smartup/restore.json 2>/dev/null || true")?.contains(stage));
    killed(&control, &name, &servers, || stage(h3, "stopped"))?;
    killed(&control, &name, &servers, || stage(h1, "begun"))?;
    let restoring = || Ok(!h1.sh("systemctl is-active smartup-restore || true")?.starts_with("inactive"));
    killed(&control, &name, &servers, restoring)?;
    killed(&control, &name, &servers, || stage(h1, "restored"))?;
    killed(&control, &name, &servers, || stage(h2, "aside"))?;
    let said = snapshot(&control, "restore", &[&name])?.checked()?;
    ensure!(said.contains("h3: joined again"), "{said}");
    ensure!(written(h2)? == ["t-kept"]);
    is_whole(&lab, &servers, &[h4])?;

    // two servers are lost: no quorum. As long as nobody says that they are gone, they may be out there
    write(h1, "t-later")?;
    h2.power_cut()?;
    h3.power_cut()?;
    let refused = snapshot(&control, "restore", &["--yes", &name])?;
    says(&refused, 4, "h2 cannot be reached, and may go on with the old cluster")?;
    let planned = snapshot(&control, "restore", &["--dry-run", "--without", "h2", "--without", "h3", &name])?;
    says(&planned, 0, "h3: is left out")?;
    // new ones in their places
    for host in [h2, h3] {
        host.wipe()?;
        host.power_on()?;
        host.wait_ready()?;
        let (name, address, key) = (host.name(), host.ipv4(), host.read("/etc/ssh/ssh_host_ed25519_key.pub")?);
        control.host.sh(&format!(
            "sed -i '/^{name},/d' /root/.ssh/known_hosts; echo '{name},{address} {}' >> /root/.ssh/known_hosts",
            key.trim()
        ))?;
    }
    let said = snapshot(&control, "restore", &["--yes", &name])?.checked()?;
    ensure!(said.contains("node h2 removed") && said.contains("node h3 removed"), "{said}");
    control.applied(&[])?;
    ensure!(written(h3)? == ["t-kept"]);
    is_whole(&lab, &servers, &[h4])?;
    control.is_settled()
}

#[test]
fn all_is_lost_but_the_snapshot_and_its_encrypted_token() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1))?;
    let h1 = lab.host("h1")?;
    init(h1)?;
    write(h1, "t-kept")?;
    let saved = done(h1, &["snapshot", "save", "--recipient", RECIPIENT, "-o", "json"])?;
    let name = names(&saved, "h1")?.pop().context("h1 has taken a snapshot")?;
    let token = h1.read("/var/lib/rancher/k3s/server/node-token")?;
    let db = "/var/lib/rancher/k3s/server/db";
    let sealed = h1.sh(&format!("base64 -w0 {db}/snapshot-tokens/{name}.token.age"))?;
    ensure!(h1.sh(&format!("ls {db}/snapshot-tokens"))?.trim() == format!("{name}.token.age"));
    let password = token.trim().rsplit(':').next().unwrap_or_default();
    ensure!(h1.exec(["grep", "-q", password, &format!("{db}/snapshot-tokens/{name}.token.age")])?.code == 1, "the token is encrypted");
    let data = h1.sh(&format!("gzip -c {db}/snapshots/{name} | base64 -w0"))?;
    let authority = h1.read("/var/lib/rancher/k3s/server/tls/server-ca.crt")?;

    h1.power_cut()?;
    h1.wipe()?;
    h1.power_on()?;
    h1.wait_ready()?;
    init(h1)?;
    ensure!(h1.read("/var/lib/rancher/k3s/server/tls/server-ca.crt")? != authority, "another cluster");
    h1.write("/root/data", 0o600, data)?;
    h1.write("/root/sealed", 0o600, sealed)?;
    h1.sh("base64 -d /root/data | gzip -d > /root/s; base64 -d /root/sealed > /root/s.token.age")?;
    h1.write("/root/identity", 0o600, format!("# a key\n{IDENTITY}\n"))?;
    let refused = smartup(h1, &["snapshot", "restore", "--yes", "/root/s"])?;
    says(&refused, 4, "the token beside it is encrypted: give --identity FILE")?;
    h1.write("/root/other", 0o600, "AGE-SECRET-KEY-1KWW9KHKDYS7CX7J7J8ZA4WNZQMX43MTVZT46WQWMWPKJ4EVX39TQRRFKLC\n")?;
    says(&smartup(h1, &["snapshot", "restore", "--yes", "--identity", "/root/other", "/root/s"])?, 2, "encrypted for others")?;
    done(h1, &["snapshot", "restore", "--yes", "--identity", "/root/identity", "/root/s"])?;
    ensure!(written(h1)? == ["t-kept"]);
    ensure!(h1.read("/var/lib/rancher/k3s/server/tls/server-ca.crt")? == authority, "the keys are the snapshot's too");
    ensure!(h1.read("/var/lib/rancher/k3s/server/node-token")? == token);
    is_whole(&lab, &[h1], &[])
}

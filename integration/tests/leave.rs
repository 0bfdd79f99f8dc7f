//! Hosts go out of a cluster: alive, dead, and one too many.

mod common;

use anyhow::{Context as _, Result, ensure};
use common::{Control, VIP, answered, done, holders, smartup, status};
use integration::{Host, Lab, LabSpec, Outcome, until};

/// The names of the nodes, and of etcd's members without their digits.
fn cluster(server: &Host) -> Result<(Vec<String>, Vec<String>)> {
    let all = status(server)?;
    let names = |list: &str| -> Result<Vec<String>> {
        let list = all[list].as_array().with_context(|| format!("no {list} in {all}"))?;
        let mut names: Vec<String> = list.iter().filter_map(|n| Some(n["name"].as_str()?.split('-').next()?.to_owned())).collect();
        names.sort();
        Ok(names)
    };
    Ok((names("nodes")?, names("etcd")?))
}

#[test]
fn out_of_the_cluster_and_in_again() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(5))?;
    let [h1, h2, h3, h4, h5] = ["h1", "h2", "h3", "h4", "h5"].map(|name| lab.host(name));
    let (h1, h2, h3, h4) = (h1?, h2?, h3?, h4?);
    let yaml = format!(
        "vip: {VIP}\nignore: [clock]\nssh: {{user: root}}\nhosts:\n  - {{host: 10.79.0.11, role: server}}\n  - {{host: 10.79.0.12, role: server}}\n  \
         - {{host: 10.79.0.13, role: server}}\n  - {{host: 10.79.0.14, role: agent}}\n"
    );
    let control = Control::on(&lab, h5?.name(), &yaml)?;
    control.applied(&[])?;

    // an agent that lives: its node goes, what smartup did there is undone, and it may join again
    let said = control.run("remove", &["--yes", "10.79.0.14"])?.checked()?;
    ensure!(said.contains("h4 drained") && said.contains("node h4 removed"), "{said}");
    ensure!(cluster(h1)? == (vec!["h1".into(), "h2".into(), "h3".into()], vec!["h1".into(), "h2".into(), "h3".into()]));
    ensure!(!h4.sh("ls /var/lib/smartup 2>/dev/null || true")?.contains("journal"));
    let again = control.run("remove", &["--yes", "10.79.0.14"])?.checked()?;
    ensure!(again.contains("not in the cluster"), "{again}");
    control.applied(&[])?;

    // an agent cannot remove its own node
    let Outcome { code, stderr, .. } = smartup(h4, &["leave", "--yes"])?;
    ensure!(code == 4 && stderr.contains("smartup remove h4"), "{code}: {stderr}");

    // one is dead: no healthy one may go, with the sum; the dead one may, and its successor joins under its name
    h3.power_cut()?;
    until("etcd misses h3", common::LONG, || Ok((status(h1)?["etcd"].to_string().contains("does not answer")).then_some(())))?;
    let Outcome { code, stderr, .. } = smartup(h2, &["leave", "--yes"])?;
    ensure!(code == 4 && stderr.contains("3 members, 2 healthy, 2 needed: removing h2"), "{code}: {stderr}");
    let Outcome { code, stderr, .. } = smartup(h2, &["reset", "--yes"])?;
    ensure!(code == 4 && stderr.contains("3 members, 2 healthy, 2 needed: stopping h2"), "{code}: {stderr}");
    ensure!(h2.run(["systemctl", "is-active", "keepalived", "k3s-server"])?.lines().all(|l| l == "active"));
    let said = done(h1, &["remove", "--yes", "h3", "--force"])?;
    ensure!(said.contains("taken out of etcd: h3-") && said.contains("node h3 removed"), "{said}");
    ensure!(cluster(h1)?.1 == ["h1", "h2"]);
    h3.wipe()?;
    h3.power_on()?;
    h3.wait_ready()?;
    let key = h3.read("/etc/ssh/ssh_host_ed25519_key.pub")?;
    control.host.sh("sed -i '/^h3,/d' /root/.ssh/known_hosts")?;
    control.host.sh(&format!("echo 'h3,10.79.0.13 {}' >> /root/.ssh/known_hosts", key.trim()))?;
    control.applied(&[])?;
    ensure!(cluster(h1)?.1 == ["h1", "h2", "h3"]);

    // the holder of the VIP leaves: another one has it, and the API answers
    let holder = holders(&[h1, h2, h3])?;
    let [holder] = holder.as_slice() else { anyhow::bail!("holders: {holder:?}") };
    let gone = lab.host(holder)?;
    let said = done(gone, &["leave", "--yes"])?;
    ensure!(said.contains("taken out of etcd") && said.contains("as smartup found it"), "{said}");
    answered(&lab)?;
    let rest: Vec<&Host> = [h1, h2, h3].into_iter().filter(|h| h.name() != gone.name()).collect();
    let (nodes, members) = cluster(rest[0])?;
    ensure!(members.len() == 2 && !members.contains(holder) && nodes.len() == 3 && !nodes.contains(holder), "{nodes:?} {members:?}");
    ensure!(gone.exec(["systemctl", "is-active", "k3s-server"])?.code != 0);
    Ok(())
}

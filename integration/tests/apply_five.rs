//! Five servers: two at once come to three, one of the five dies, and the cluster changes and goes on without it.

mod common;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::{Control, LONG, holders, is_away, is_one_cluster, longest_silence, outcomes, processes, status, yaml};
use integration::{Host, Lab, LabSpec, until};

const SERVERS: [&str; 5] = ["h1, role: server", "h2, role: server", "h3, role: server", "h4, role: server", "h5, role: server"];

#[test]
fn five_servers_bear_the_loss_of_one() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(6))?;
    let servers: Vec<&Host> = lab.hosts().iter().take(5).collect();
    let control = Control::on(&lab, "h6", &yaml("", &SERVERS[..3]))?;
    control.applied(&[])?;

    // two more at once: who is there already is not touched
    let was = servers[..3].iter().map(|h| processes(h)).collect::<Result<Vec<_>>>()?;
    control.says(&yaml("", &SERVERS))?;
    let (done, away) = longest_silence(&lab, || outcomes(&control.apply(&["-o", "json"])?.checked()?))?;
    ensure!(["h1", "h2", "h3"].iter().all(|h| done[*h] == "unchanged") && done["h4"] == "changed" && done["h5"] == "changed", "{done:?}");
    ensure!(away < Duration::from_secs(3), "the API was away for {away:?}");
    for (host, was) in servers.iter().zip(was) {
        ensure!(processes(host)? == was, "{}: something was restarted", host.name());
    }
    is_one_cluster(&servers, &[])?;
    control.is_settled()?;

    // one is dead, not the holder: four of five change, one after the other, since three are enough
    let holder = holders(&servers)?.pop().context("somebody has the VIP")?;
    let (dead, alive): (Vec<&Host>, Vec<&Host>) = {
        let dead = servers.iter().rposition(|h| h.name() != holder).context("a server that is not the holder")?;
        servers.iter().copied().partition(|h| h.name() == servers[dead].name())
    };
    let [dead] = dead.as_slice() else { anyhow::bail!("one is dead") };
    dead.power_cut()?;
    control.says(&yaml("k3sArgs: [--node-label=lab=yes]", &SERVERS))?;
    let first = format!("{}: ", dead.name());
    let (said, away) = longest_silence(&lab, || control.fails(1, &first))?;
    ensure!(is_away(&said, dead.name()) && said.contains("5 hosts: 1 failed, 4 changed."), "{said}");
    ensure!(away < Duration::from_secs(5), "the API was away for {away:?}");
    for server in &alive {
        let args = server.sh("tr '\\0' ' ' < /proc/$(systemctl show k3s-server -p MainPID --value)/cmdline")?;
        ensure!(args.contains("--node-label=lab=yes"), "{}: {args}", server.name());
    }
    ensure!(holders(&alive)?.len() == 1, "one holder: {:?}", holders(&alive)?);

    // two are dead: no third one may be stopped, however it ends for the two
    let second = alive.iter().find(|h| holders(&alive).is_ok_and(|now| now != [h.name()])).context("one that is not the holder")?;
    second.power_cut()?;
    let three: Vec<&Host> = alive.iter().copied().filter(|h| h.name() != second.name()).collect();
    let was = three.iter().map(|h| processes(h)).collect::<Result<Vec<_>>>()?;
    let more = "k3sArgs: [--node-label=lab=yes, --node-label=more=yes]";
    control.says(&yaml(more, &SERVERS))?;
    let said = control.fails(4, "h")?;
    ensure!(is_away(&said, dead.name()) && is_away(&said, second.name()), "{said}");
    ensure!(said.contains("5 members, 3 healthy, 3 needed: stopping h"), "{said}");
    ensure!(said.contains("5 hosts: 3 failed, 2 not started."), "{said}");
    for (host, was) in three.iter().zip(was) {
        ensure!(processes(host)? == was, "{} was restarted", host.name());
    }
    second.power_on()?;
    let members = || Ok::<_, anyhow::Error>(status(three[0])?["etcd"].as_array().cloned().unwrap_or_default());
    until("four of five members answer", LONG, || Ok((members()?.iter().filter(|m| m["trouble"].is_null()).count() == 4).then_some(())))?;

    // the dead one is taken out, and the rest is a cluster of four that changes as it was to
    let removed = control.run("remove", &["--yes", dead.name()])?.checked()?;
    ensure!(removed.contains(&format!("taken out of etcd: {}-", dead.name())), "{removed}");
    ensure!(removed.contains(&format!("node {} removed", dead.name())) && removed.contains("was not touched"), "{removed}");
    let rest: Vec<&str> = SERVERS.into_iter().filter(|s| !s.starts_with(dead.name())).collect();
    control.says(&yaml(more, &rest))?;
    control.applied(&[])?;
    is_one_cluster(&alive, &[])?;
    control.is_settled()
}

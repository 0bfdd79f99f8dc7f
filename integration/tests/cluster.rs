//! The main job: three servers and an agent behind a floating address, made with the commands that a user types.

mod common;

use anyhow::{Result, ensure};
use common::{Before, LONG, VIP, answered, done, holders, init, join, processes, smartup, status, ticket};
use integration::{Host, Lab, LabSpec, until};
use serde_json::Value;

fn ready_nodes(report: &Value) -> usize {
    report["nodes"].as_array().map_or(0, |nodes| nodes.iter().filter(|n| n["ready"] == "True").count())
}

#[test]
fn three_servers_and_an_agent() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(4))?;
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h).expect("there are four hosts"));

    // a dry run says that there is something to do, and changes nothing
    let before = Before::of(h1)?;
    let dry = smartup(h1, &["init", "--vip", VIP, "--dry-run", "--exit-code"])?;
    ensure!(dry.code == 3, "exit code {}: {}{}", dry.code, dry.stdout, dry.stderr);
    before.unchanged(h1)?;

    let said = init(h1)?;
    ensure!(
        said.contains("smartup ticket --role server") && !said.contains("K10"),
        "init says how to get a ticket, and not the token: {said}"
    );

    // now a dry run says that nothing is left to do
    let dry = smartup(h1, &["init", "--vip", VIP, "--dry-run", "--exit-code"])?;
    ensure!(dry.code == 0, "exit code {}: {}{}", dry.code, dry.stdout, dry.stderr);

    // two servers at the same moment: etcd takes one at a time, and both succeed
    let server = ticket(h1, "server")?;
    let joined =
        std::thread::scope(|s| [h2, h3].map(|h| s.spawn(|| join(h, "server", &server))).map(|t| t.join().expect("the thread ends")));
    for outcome in joined {
        outcome?.checked()?;
    }
    join(h4, "agent", &ticket(h2, "agent")?)?.checked()?;

    let report = status(h3)?;
    ensure!(ready_nodes(&report) == 4, "{report:#}");
    ensure!(report["api"]["answers"] == true, "{report:#}");
    let members = report["etcd"].as_array().cloned().unwrap_or_default();
    ensure!(members.len() == 3 && members.iter().all(|m| m["learner"] == false && m["trouble"].is_null()), "{report:#}");
    for host in [h1, h2, h3] {
        let report = status(host)?;
        ensure!(
            report["host"]["files"].as_array().is_some_and(|f| !f.is_empty() && f.iter().all(|f| f["stands"] == "as_expected")),
            "{report:#}"
        );
        let rules = report["host"]["firewall"].as_array().cloned().unwrap_or_default();
        ensure!(!rules.is_empty() && rules.iter().all(|r| r["runtime"] == true && r["permanent"] == true), "{report:#}");
        ensure!(report["vip"]["node"].is_string(), "{report:#}");
    }
    ensure!(holders(&[h1, h2, h3])?.len() == 1, "one holder: {:?}", holders(&[h1, h2, h3])?);

    // the VIP is nobody's own address
    for node in report["nodes"].as_array().into_iter().flatten() {
        ensure!(node["address"] != VIP, "{node}");
    }

    // a second run with the VIP up changes and restarts nothing
    for host in [h1, h2, h3, h4] {
        let was = processes(host)?;
        let again = match host.name() {
            "h1" => smartup(host, &["init", "--vip", VIP, "-o", "json"])?,
            "h4" => {
                host.exec_with(["smartup", "join", "--role", "agent", "--ticket", "-", "-o", "json"], ticket(h1, "agent")?.as_bytes())?
            }
            _ => host.exec_with(["smartup", "join", "--role", "server", "--ticket", "-", "-o", "json"], server.as_bytes())?,
        };
        let said: Value = serde_json::from_str(&again.checked()?)?;
        ensure!(said["changed"] == 0, "{}: {said}", host.name());
        ensure!(processes(host)? == was, "{}: something was restarted", host.name());
    }

    // the power of the holder is cut
    let holder = holders(&[h1, h2, h3])?.pop().expect("there is one");
    lab.host(&holder)?.power_cut()?;
    answered(&lab)?;
    let left: Vec<&Host> = [h1, h2, h3].into_iter().filter(|h| h.name() != holder).collect();
    until("the API takes writes with two of three servers", LONG, || {
        let wrote = left[0].exec(["k3s", "kubectl", "create", "configmap", "after", "--dry-run=client", "-o", "name"])?;
        Ok((wrote.ok() && left[0].exec(["k3s", "kubectl", "create", "configmap", "after"])?.ok()).then_some(()))
    })?;

    // it comes back by itself, and does not take the VIP from the new holder
    let now = until("one of the two holds the VIP", LONG, || Ok(Some(holders(&left)?).filter(|h| h.len() == 1)))?;
    lab.host(&holder)?.power_on()?;
    until("all four nodes are Ready again", LONG, || Ok((ready_nodes(&status(left[0])?) == 4).then_some(())))?;
    let then = holders(&[h1, h2, h3])?;
    if then != now {
        let logs: Vec<String> = [h1, h2, h3]
            .iter()
            .map(|h| h.sh("journalctl -u keepalived -o short-precise --no-pager | tail -n 30"))
            .collect::<Result<_>>()?;
        anyhow::bail!("the VIP moved from {now:?} to {then:?} when {holder} came back:\n{}", logs.join("\n"));
    }
    Ok(())
}

#[test]
fn reset_gives_back_what_was_and_init_works_again() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(1))?;
    let h1 = lab.host("h1")?;
    let before = Before::of(h1)?;
    init(h1)?;
    // what somebody edits since is kept and named
    h1.sh("echo '# mine' >> /etc/sysctl.d/90-smartup.conf")?;
    let said = done(h1, &["reset", "--yes"])?;
    ensure!(said.contains("/etc/sysctl.d/90-smartup.conf was edited since and is kept"), "{said}");
    h1.sh("rm /etc/sysctl.d/90-smartup.conf")?;
    before.unchanged(h1)?;
    init(h1)?;
    ensure!(status(h1)?["api"]["answers"] == true);
    done(h1, &["reset", "--yes"])?;
    before.unchanged(h1)
}

//! What an agent does to its host: packages that upgrade cleanly, fail, hang, and reboot the host; agents that are killed in the
//! middle. The controller is away: the test writes transactions as it would, and reads the answers.

mod common;

use anyhow::{Result, ensure};
use common::driven::{Node, controller_goes, kubectl};
use common::updating::version;
use common::{Control, LONG, is_one_cluster, yaml};
use integration::{Host, Lab, LabSpec, until};
use serde_json::json;

/// Packages of version 1 that are installed, and of version 2 that are not, in a repository on the host. `clean` needs one that is
/// new, and starts a daemon that keeps what it prints to open; `slow` says that it is at work until it may end.
const REPOSITORY: &str = r#"set -e
mkdir -p /srv/repo /tmp/make
cd /tmp/make
make() {
    rm -rf "$1"; mkdir -p "$1/DEBIAN"
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\n%sDescription: for a test\n' "$1" "$2" "$4" > "$1/DEBIAN/control"
    printf '#!/bin/sh\n[ "$1" = configure ] || exit 0\n%s\n' "$3" > "$1/DEBIAN/postinst"
    chmod 755 "$1/DEBIAN/postinst"
    dpkg-deb --root-owner-group --build "$1" "/srv/repo/$1_$2.deb" >&2
}
for name in clean failing hanging rebooting slow; do make $name 1 true ''; done
dpkg -i /srv/repo/*.deb >&2
rm /srv/repo/*.deb
new='Depends: brandnew
'
make brandnew 1 true ''
make clean 2 'date >> /root/clean-installed; sleep 86399 &' "$new"
make failing 2 'exit 1' ''
make hanging 2 'sleep infinity' ''
make rebooting 2 'echo >> /root/rebooted; systemctl --no-block reboot; sleep infinity' ''
make slow 2 'echo >> /root/slow-began; while [ ! -e /root/slow-may-end ]; do echo at work; sleep 1; done' ''
cd /srv/repo
for deb in *.deb; do
    dpkg-deb -f "$deb"
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$deb" "$(stat -c %s "$deb")" "$(sha256sum "$deb" | cut -d ' ' -f 1)"
done > Packages
echo 'deb [trusted=yes] file:/srv/repo ./' > /etc/apt/sources.list
"#;

/// The builds that are installed, and configured, as apt names them.
fn installed(host: &Host) -> Result<Vec<String>> {
    let all = host.run(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}=${Version}\n"])?;
    Ok(all.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned).collect())
}

#[test]
fn an_agent_installs_and_tells_what_fails_hangs_and_crashes() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(3))?;
    let (h1, h3) = (lab.host("h1")?, lab.host("h3")?);
    let control = Control::on(&lab, "h2", &yaml("", &["h1, role: server", "h3, role: agent"]))?;
    control.applied(&[])?;
    is_one_cluster(&[h1], &[h3])?;
    h3.sh(REPOSITORY)?;
    control.run("enable-updates", &["--timeout", "5m"])?.checked()?;
    controller_goes(h1)?;

    let mut node = Node::of(h3, h1, installed);
    node.available(&["brandnew=1", "clean=2", "failing=2", "hanging=2", "rebooting=2", "slow=2"])?;
    ensure!(node.status()?["bootId"] == h3.boot_id()?, "{:#}", node.status()?);

    cleanly(&mut node)?;
    a_killed_agent(&mut node)?;
    failing(&mut node)?;
    hanging(&mut node)?;
    rebooting(&mut node)?;
    asked_to_reboot(&mut node)?;
    lab.down()
}

/// What needs more than it was given is left out; with that, it is installed, and not available any more.
fn cleanly(node: &mut Node<'_>) -> Result<()> {
    let found = node.phase("Downloading", &["clean=2"], 300, "Done")?;
    ensure!(found["leftOut"] == json!(["clean=2"]), "{found:#}");
    node.phase("Installing", &["clean=2"], 300, "Done")?;
    ensure!(version(node.host, "clean")? == "1 installed", "{}", version(node.host, "clean")?);
    node.ends(&["clean=2"])?;

    let packages = ["brandnew=1", "clean=2"];
    let found = node.phase("Downloading", &packages, 300, "Done")?;
    ensure!(found["leftOut"].is_null() && found["drainFirst"] == false, "{found:#}");
    node.phase("Installing", &packages, 300, "Done")?;
    ensure!(version(node.host, "clean")? == "2 installed" && version(node.host, "brandnew")? == "1 installed");
    node.ends(&packages)?;
    let status = node.status()?;
    ensure!(status["history"].as_array().map(Vec::len) == Some(2) && !status["lastUpdate"].is_null(), "{status:#}");
    ensure!(node.host.read("/root/clean-installed")?.lines().count() == 1);
    ensure!(node.host.exec(["pgrep", "-f", "^sleep 86399"])?.ok(), "what a package has started goes on");
    node.available(&["failing=2", "hanging=2", "rebooting=2", "slow=2"])?;

    // once more, as an old list would have it
    let found = node.phase("Downloading", &packages, 300, "Done")?;
    ensure!(found["leftOut"].is_null(), "{found:#}");
    node.phase("Installing", &packages, 300, "Done")?;
    ensure!(node.host.read("/root/clean-installed")?.lines().count() == 1);
    node.ends(&packages).map(drop)
}

/// What is being installed goes on without it, is followed by the next one, and is not begun again.
fn a_killed_agent(node: &mut Node<'_>) -> Result<()> {
    let packages = ["slow=2"];
    node.phase("Downloading", &packages, 300, "Done")?;
    node.enters("Installing", &packages, 300)?;
    until("it is being installed", LONG, || Ok(node.host.exec(["test", "-e", "/root/slow-began"])?.ok().then_some(())))?;
    kubectl(
        node.from,
        &format!("delete pod --field-selector spec.nodeName={} -l app.kubernetes.io/component=agent --force", node.host.name()),
    )?;
    kubectl(node.from, "rollout status daemonset smartup-agent --timeout=120s")?;
    let progress = node.status()?["progress"].clone();
    ensure!(progress["outcome"] == "Running" && progress["part"] == "packages", "{progress:#}");
    node.host.write("/root/slow-may-end", 0o600, "")?;
    let installed = node.answer("Installing")?;
    ensure!(installed["outcome"] == "Done", "{installed:#}");
    ensure!(node.host.read("/root/slow-began")?.lines().count() == 1, "once");
    node.ends(&packages).map(drop)
}

/// A script that fails is told, and nothing more is installed until somebody has mended it.
fn failing(node: &mut Node<'_>) -> Result<()> {
    let packages = ["failing=2"];
    node.phase("Downloading", &packages, 300, "Done")?;
    let failed = node.phase("Installing", &packages, 300, "Failed")?;
    ensure!(failed["message"].as_str().is_some_and(|m| m.contains("failing")), "{failed:#}");
    node.ends(&packages)?;
    let refused = node.phase("Downloading", &["rebooting=2"], 300, "Failed")?;
    ensure!(refused["message"].as_str().is_some_and(|m| m.contains("half installed") && m.contains("failing")), "{refused:#}");
    node.ends(&["rebooting=2"])?;
    node.host.run(["dpkg", "--purge", "failing"]).map(drop)
}

/// What makes no progress is ended, and was a crash.
fn hanging(node: &mut Node<'_>) -> Result<()> {
    let packages = ["hanging=2"];
    node.phase("Downloading", &packages, 300, "Done")?;
    let crashed = node.phase("Installing", &packages, 20, "Crashed")?;
    ensure!(crashed["part"] == "packages" && crashed["message"].as_str().is_some_and(|m| m.contains("hung")), "{crashed:#}");
    // mending it hangs as well
    let verified = node.ends(&packages)?;
    ensure!(verified["message"].as_str().is_some_and(|m| m.contains("could not be mended")), "{verified:#}");
    ensure!(!node.host.exec(["pgrep", "dpkg"])?.ok(), "nothing is left");
    node.host.run(["dpkg", "--purge", "hanging"]).map(drop)
}

/// A host that reboots in the middle is told as well.
fn rebooting(node: &mut Node<'_>) -> Result<()> {
    let packages = ["rebooting=2"];
    let before = node.host.boot_id()?;
    node.phase("Downloading", &packages, 300, "Done")?;
    let crashed = node.phase("Installing", &packages, 300, "Crashed")?;
    ensure!(crashed["message"].as_str().is_some_and(|m| m.contains("rebooted")), "{crashed:#}");
    ensure!(node.host.boot_id()? != before);
    // mending it reboots the host once more, and no more than that
    node.ends(&packages)?;
    ensure!(node.host.read("/root/rebooted")?.lines().count() == 2, "{}", node.host.read("/root/rebooted")?);
    node.host.run(["dpkg", "--purge", "rebooting"]).map(drop)
}

/// Somebody's sentinel says that a reboot is needed; the host reboots once it is asked to, and only then.
fn asked_to_reboot(node: &mut Node<'_>) -> Result<()> {
    node.patch(
        &json!({ "host": { "sentinelFile": "/root/reboot-please", "gateCommand": ["/usr/bin/test", "-e", "/root/gate-is-open"] } }),
    )?;
    node.host.write("/root/reboot-please", 0o600, "")?;
    until("the sentinel is seen", LONG, || Ok((node.status()?["reboot"]["needed"] == "yes").then_some(())))?;
    let before = node.host.boot_id()?;
    node.enters("Rebooting", &[], 300)?;
    let rebooted = node.answer("Rebooting")?;
    ensure!(rebooted["outcome"] == "Done" && node.host.boot_id()? != before, "{rebooted:#}");
    node.host.run(["rm", "/root/reboot-please"])?;
    // the gate is closed until it is open
    node.enters("Verifying", &[], 300)?;
    until("the gate is asked", LONG, || {
        let progress = node.status()?["progress"].clone();
        Ok(progress["message"].as_str().is_some_and(|m| m.contains("the gate command")).then_some(()))
    })?;
    node.host.write("/root/gate-is-open", 0o600, "")?;
    let verified = node.answer("Verifying")?;
    ensure!(verified["outcome"] == "Done", "{verified:#}");
    node.ends(&[])?;
    until("no reboot is needed any more", LONG, || Ok((node.status()?["reboot"]["needed"] != "yes").then_some(())))
}

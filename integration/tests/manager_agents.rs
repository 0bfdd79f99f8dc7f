//! Agents on hosts whose packages are dnf's, zypper's and pacman's: what apt's show in `node_updates`, and where the others differ. Each
//! is driven by itself, all at the same time.

mod common;

use anyhow::{Context as _, Result, anyhow, ensure};
use common::driven::{Node, controller_goes};
use common::repository::packages;
use common::{Control, is_one_cluster, yaml};
use integration::{Host, Lab, LabSpec};
use serde_json::{Value, json};

/// What is installed, and two upgrades. `lab-good` has an epoch from now on, needs a package that is new, and starts a daemon.
const PACKAGES: &str = "\
lab-shell|1||
lab-good|1||
lab-good|1:2|lab-extra|echo >> /root/good-installed; sleep 86399 &
lab-extra|2||
lab-base|1||
lab-needy|1||
lab-failing|1||
lab-hanging|1||
lab-rebooting|1||
lab-refusing|1||
";

/// A node, and the package manager that is its host's own.
struct Managed<'a> {
    node: Node<'a>,
    manager: &'static str,
}

impl Managed<'_> {
    /// How the manager names this version of a package.
    fn named(&self, name: &str, version: &str) -> String {
        let arch = if self.manager == "pacman" { "any" } else { "noarch" };
        format!("{name}-{version}-1.{arch}")
    }

    /// Version 2 of these.
    fn second(&self, names: &[&str]) -> Vec<String> {
        names.iter().map(|name| self.named(name, "2")).collect()
    }

    /// That just this version of a package is installed.
    fn has(&self, name: &str, version: &str) -> Result<()> {
        let mut there = (self.node.installed)(self.node.host)?;
        there.retain(|build| build.starts_with(&format!("{name}-")));
        ensure!(there == [self.named(name, version)], "{version} is not what is installed: {there:?}");
        Ok(())
    }

    /// New packages come into the repository, the node looks for them, and lists these of version 2.
    fn released(&self, table: &str, names: &[&str]) -> Result<()> {
        packages(self.node.host, self.manager, table)?;
        self.node.patch(&json!({ "check": format!("before {}", self.node.transaction) }))?;
        self.lists(&self.second(names))
    }

    fn lists(&self, names: &[String]) -> Result<()> {
        self.node.available(&words(names))
    }

    /// Downloads these, of which some are left out.
    fn downloads(&self, names: &[String], left_out: &Value) -> Result<Value> {
        let found = self.node.phase("Downloading", &words(names), 300, "Done")?;
        ensure!(found["leftOut"] == *left_out, "{found:#}");
        Ok(found)
    }

    /// Installs these, with an outcome that is told in these words.
    fn installs(&self, names: &[String], patience: u32, outcome: &str, told: &str) -> Result<()> {
        let installed = self.node.phase("Installing", &words(names), patience, outcome)?;
        let message = installed["message"].as_str().unwrap_or_default();
        ensure!(installed["part"] == "packages" && message.contains(told), "{installed:#}");
        Ok(())
    }

    fn ends(&mut self, names: &[String]) -> Result<Value> {
        self.node.ends(&words(names))
    }
}

fn with_rpm(host: &Host) -> Result<Vec<String>> {
    Ok(host.sh("rpm -qa --qf '%{NAME}-%{EVR}.%{ARCH}\\n'")?.lines().map(str::to_owned).collect())
}

/// All of the lab's packages are for any architecture.
fn with_pacman(host: &Host) -> Result<Vec<String>> {
    Ok(host.sh("pacman -Q")?.lines().map(|line| line.replace(' ', "-") + ".any").collect())
}

fn words(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

#[test]
fn agents_install_with_dnf_zypper_and_pacman() -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(2).manager_hosts(3))?;
    let (h1, hosts) = (lab.host("h1")?, ["h3", "h4", "h5"].map(|h| lab.host(h).expect("there are five hosts")));
    let managers = [
        ("dnf", "NAME=Rocky\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"9\"\n"),
        ("zypper", "NAME=openSUSE\nID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\nVERSION_ID=\"15.6\"\n"),
        ("pacman", "NAME=Arch\nID=arch\n"),
    ];
    let made = hosts.iter().zip(managers).map(|(host, (manager, os_release))| {
        move || {
            host.write("/etc/os-release", 0o644, os_release)?;
            // pacman itself reads what scripts print to the end, which does not come before the daemon's
            let table = if manager == "pacman" { PACKAGES.replace("86399", "86399 > /dev/null 2>&1") } else { PACKAGES.to_owned() };
            packages(host, manager, &table)
        }
    });
    side_by_side(made)?;
    let control = Control::on(&lab, "h2", &yaml("", &["h1, role: server", "h3, role: agent", "h4, role: agent", "h5, role: agent"]))?;
    control.applied(&[])?;
    is_one_cluster(&[h1], &hosts)?;
    control.run("enable-updates", &["--timeout", "5m"])?.checked()?;
    controller_goes(h1)?;
    side_by_side(hosts.iter().zip(managers).map(|(host, (manager, _))| {
        let installed = if manager == "pacman" { with_pacman } else { with_rpm };
        move || {
            course(&mut Managed { node: Node::of(host, h1, installed), manager }).with_context(|| format!("{manager} on {}", host.name()))
        }
    }))?;
    let others = Node::of(h1, h1, with_rpm).status()?;
    ensure!(others["packages"]["error"].is_null(), "what nobody touched was looked at as well: {others:#}");
    lab.down()
}

/// Does all of it at the same time, to the end of each; fails with all that failed.
fn side_by_side(all: impl Iterator<Item = impl FnOnce() -> Result<()> + Send>) -> Result<()> {
    let failed: Vec<String> = std::thread::scope(|s| {
        let threads: Vec<_> = all.map(|one| s.spawn(one)).collect();
        let ends = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked")).flatten());
        ends.filter_map(Result::err).map(|e| format!("{e:#}")).collect()
    });
    ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
    Ok(())
}

fn course(host: &mut Managed<'_>) -> Result<()> {
    cleanly(host)?;
    what_it_needs(host)?;
    failing(host)?;
    hanging(host)?;
    rebooting(host)?;
    refusing(host)
}

/// What needs more than it was given is left out; with that, it is installed, and not listed any more.
fn cleanly(host: &mut Managed<'_>) -> Result<()> {
    let good = [host.named("lab-good", "1:2")];
    let both = [host.named("lab-extra", "2"), host.named("lab-good", "1:2")];
    host.lists(&both)?;
    host.downloads(&good, &json!(good))?;
    host.installs(&good, 300, "Done", "")?;
    host.has("lab-good", "1")?;
    host.ends(&good)?;

    let found = host.downloads(&both, &Value::Null)?;
    ensure!(found["drainFirst"] == false, "{found:#}");
    host.installs(&both, 300, "Done", "")?;
    host.has("lab-good", "1:2")?;
    host.has("lab-extra", "2")?;
    host.ends(&both)?;
    let status = host.node.status()?;
    ensure!(status["history"].as_array().map(Vec::len) == Some(2) && !status["lastUpdate"].is_null(), "{status:#}");
    ensure!(host.node.host.read("/root/good-installed")?.lines().count() == 1);
    ensure!(host.node.host.exec(["pgrep", "-f", "^sleep 86399"])?.ok(), "what a package has started goes on");
    host.lists(&[])
}

/// A part of what is available is installed by itself, if it can be; with Arch, all or nothing.
fn what_it_needs(host: &mut Managed<'_>) -> Result<()> {
    let (base, needy) = (host.second(&["lab-base"]), host.second(&["lab-needy"]));
    host.released("lab-base|2||\nlab-needy|2|lab-base:2|\n", &["lab-base", "lab-needy"])?;
    host.downloads(&needy, &json!(needy))?;
    host.ends(&needy)?;

    let whole = host.manager == "pacman";
    host.downloads(&base, &if whole { json!(base) } else { Value::Null })?;
    host.installs(&base, 300, "Done", "")?;
    host.has("lab-base", if whole { "1" } else { "2" })?;
    host.has("lab-needy", "1")?;
    host.ends(&base)?;

    let rest = if whole { host.second(&["lab-base", "lab-needy"]) } else { needy };
    host.lists(&rest)?;
    host.downloads(&rest, &Value::Null)?;
    host.installs(&rest, 300, "Done", "")?;
    host.has("lab-base", "2")?;
    host.has("lab-needy", "2")?;
    host.ends(&rest)?;
    host.lists(&[])
}

/// A script that fails after the upgrade is told; the package is installed.
fn failing(host: &mut Managed<'_>) -> Result<()> {
    let names = host.second(&["lab-failing"]);
    host.released("lab-failing|2||exit 3\n", &["lab-failing"])?;
    host.downloads(&names, &Value::Null)?;
    host.installs(&names, 300, "Failed", "a script of a package failed")?;
    host.has("lab-failing", "2")?;
    let verified = host.ends(&names)?;
    ensure!(verified["message"].is_null(), "there is nothing to mend: {verified:#}");
    host.lists(&[])
}

/// What makes no progress is ended with all that it has started, was a crash, and is mended.
fn hanging(host: &mut Managed<'_>) -> Result<()> {
    let names = host.second(&["lab-hanging"]);
    let script = "[ -e /srv/hung ] || { touch /srv/hung; sleep 86398; exit 1; }; touch /srv/hung-no-more";
    host.released(&format!("lab-hanging|2||{script}\n"), &["lab-hanging"])?;
    host.downloads(&names, &Value::Null)?;
    host.installs(&names, 20, "Crashed", "hung")?;
    ensure!(!host.node.host.exec(["pgrep", "-f", "^sleep 86398"])?.ok(), "nothing is left");
    mended(host, &names, "lab-hanging", "/srv/hung-no-more")
}

/// A host that reboots in the middle is told as well.
fn rebooting(host: &mut Managed<'_>) -> Result<()> {
    let names = host.second(&["lab-rebooting"]);
    let script =
        "[ -e /srv/rebooted ] || { touch /srv/rebooted; systemctl --no-block reboot; sleep 86397; exit 1; }; touch /srv/rebooted-once";
    host.released(&format!("lab-rebooting|2||{script}\n"), &["lab-rebooting"])?;
    let before = host.node.host.boot_id()?;
    host.downloads(&names, &Value::Null)?;
    host.installs(&names, 300, "Crashed", "rebooted")?;
    let after = host.node.host.boot_id()?;
    ensure!(after != before);
    mended(host, &names, "lab-rebooting", "/srv/rebooted-once")?;
    ensure!(host.node.host.boot_id()? == after, "once");
    Ok(())
}

/// A package whose script was killed is there once and whole, and another update may come. Where systemd ends the script before rpm, rpm
/// goes on, and what is installed then is not told from what is well; pacman is seen to have been killed, and runs the script once more.
fn mended(host: &mut Managed<'_>, names: &[String], name: &str, sign: &str) -> Result<()> {
    let verified = host.ends(names)?;
    ensure!(verified["message"].is_null(), "it could be mended: {verified:#}");
    host.has(name, "2")?;
    ensure!(host.node.host.read(&format!("/usr/share/{name}/version"))?.trim() == "2");
    ensure!(host.manager != "pacman" || host.node.host.exec(["test", "-e", sign])?.ok(), "its script has run once more");
    host.lists(&[])
}

/// A script that fails before the upgrade: rpm keeps the old package, which is listed again, and pacman does not care.
fn refusing(host: &mut Managed<'_>) -> Result<()> {
    let names = host.second(&["lab-refusing"]);
    host.released("lab-refusing|2||before:exit 3\n", &["lab-refusing"])?;
    host.downloads(&names, &Value::Null)?;
    host.installs(&names, 300, "Failed", "")?;
    let kept = host.manager != "pacman";
    host.has("lab-refusing", if kept { "1" } else { "2" })?;
    host.ends(&names)?;
    host.lists(if kept { &names } else { &[] })
}

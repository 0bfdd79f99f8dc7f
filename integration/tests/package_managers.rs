//! Crate `packages` with real package managers: each on a host that has its repository made in the lab. Packages that upgrade, fail, hang
//! or are banned; exact transactions; a power cut in the middle.

mod common;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use common::LONG;
use common::repository::packages;
use integration::{Host, Lab, LabSpec, Outcome, until};
use serde_json::{Value, json};

/// Of `repository.sh`. What hangs does so while there is a file `/srv/hang`.
const PACKAGES: &str = "\
lab-shell|1||
lab-good|1||
lab-good|1.5||
lab-good|2|lab-extra|
lab-extra|2||
lab-base|1||
lab-base|2||[ ! -e /srv/hang ] || sleep infinity; touch /srv/done
lab-needy|1||
lab-needy|2|lab-base:2|
lab-lost|1||
lab-lost|2|lab-nowhere|
lab-broken|1||
lab-broken|2||exit 3
lab-stuck|1||
lab-stuck|2||[ ! -e /srv/hang ] || sleep infinity; touch /srv/done
";

/// A host, and the package manager that is tried on it.
struct Tried<'a> {
    host: &'a Host,
    manager: &'a str,
}

impl Tried<'_> {
    fn ask(&self, command: &str, input: &Value) -> Result<Outcome> {
        self.host.exec_with(["manager", self.manager, command], input.to_string().as_bytes())
    }

    fn told(&self, command: &str, input: &Value) -> Result<Value> {
        let said = self.ask(command, input)?.checked().with_context(|| format!("{}: {command}", self.manager))?;
        Ok(serde_json::from_str(&said)?)
    }

    /// How the manager names version `version` of a package.
    fn named(&self, name: &str, version: u8) -> String {
        match self.manager {
            "apt" => format!("{name}={version}-1"),
            "pacman" => format!("{name}-{version}-1.any"),
            _ => format!("{name}-{version}-1.noarch"),
        }
    }

    fn resolved(&self, wanted: &[&str], banned: &[&str]) -> Result<Value> {
        let names = |all: &[&str]| all.iter().map(|name| self.named(name, 2)).collect::<Vec<_>>();
        self.told("resolve", &json!({ "wanted": names(wanted), "banned": names(banned) }))
    }

    /// The transaction for all that is wanted.
    fn transaction(&self, wanted: &[&str]) -> Result<Value> {
        let resolved = self.resolved(wanted, &[])?;
        ensure!(resolved["excluded"] == json!([]), "{resolved:#}");
        self.told("download", &resolved["transaction"])?;
        Ok(resolved["transaction"].clone())
    }

    fn installed(&self) -> Result<BTreeSet<String>> {
        let all: Vec<String> = serde_json::from_value(self.told("installed", &Value::Null)?)?;
        Ok(all.into_iter().filter(|name| name.starts_with("lab-")).collect())
    }

    /// Waits until the script of a package hangs.
    fn hangs(&self) -> Result<()> {
        until("a script hangs", LONG, || Ok(self.host.exec(["pgrep", "-x", "sleep"])?.ok().then_some(())))
    }
}

fn course(manager: &str) -> Result<()> {
    let lab = Lab::up(&LabSpec::hosts(0).manager_hosts(1).without_k3s().without_smartup())?;
    let host = lab.host("h1")?;
    host.write("/usr/local/bin/manager", 0o755, std::fs::read(env!("CARGO_BIN_EXE_manager"))?)?;
    packages(host, manager.trim_end_matches(char::is_numeric), PACKAGES)?;
    let tried = Tried { host, manager };
    ensure!(host.run(["manager", manager, "detect"])?.trim() == "\"apt\"", "the host is a Debian, whatever else it has");

    available(&tried)?;
    bans(&tried)?;
    exactly(&tried)?;
    hang(&tried)?;
    power_cut(&tried)?;
    fails(&tried)?;

    let needs = |what: &str| -> Result<()> {
        let answer = tried.told("needs-reboot", &Value::Null)?;
        ensure!(answer.to_string().contains(what), "{answer}");
        Ok(())
    };
    needs("no")?;
    host.run(["touch", "/run/reboot-required"])?;
    needs("/run/reboot-required is there")?;
    // nothing of the lab's own packages is left to do but what cannot be
    let left: Vec<Value> = serde_json::from_value(tried.told("available", &Value::Null)?)?;
    let left: Vec<_> = left.iter().filter_map(|u| u["package"].as_str()).collect();
    ensure!(left.iter().all(|name| *name == tried.named("lab-lost", 2)), "{left:?}");
    Ok(())
}

fn available(tried: &Tried<'_>) -> Result<()> {
    let all: Vec<Value> = serde_json::from_value(tried.told("available", &Value::Null)?)?;
    let mut expected: Vec<_> = ["lab-base", "lab-broken", "lab-good", "lab-lost", "lab-needy", "lab-stuck"]
        .map(|name| (json!(tried.named(name, 2)), json!(tried.named(name, 1))))
        .into();
    if ["apt", "zypper"].contains(&tried.manager) {
        expected.retain(|(name, _)| *name != tried.named("lab-lost", 2)); // they hold back what they cannot install
    }
    let found: Vec<_> = all.iter().map(|u| (u["package"].clone(), u["installed"].clone())).collect();
    ensure!(found == expected, "{all:#?}");
    ensure!(all.iter().all(|u| u["download"].as_u64().is_some_and(|bytes| bytes > 100)), "{all:#?}");
    ensure!(all.iter().all(|u| u["published"].is_string() == (tried.manager != "apt")), "{all:#?}");
    Ok(())
}

fn bans(tried: &Tried<'_>) -> Result<()> {
    let resolved = tried.resolved(&["lab-base", "lab-good", "lab-lost", "lab-needy", "lab-stuck"], &["lab-base"])?;
    let why = |name: &str| {
        let all = resolved["excluded"].as_array().into_iter().flatten();
        let found: Vec<_> = all.filter(|e| e["package"] == tried.named(name, 2)).filter_map(|e| e["why"].as_str()).collect();
        found.join(" ")
    };
    ensure!(why("lab-base") == "it is banned", "{resolved:#}");
    ensure!(why("lab-needy").contains("lab-base"), "it depends on what is banned: {resolved:#}");
    ensure!(why("lab-lost").contains("lab-nowhere"), "nothing provides what it needs: {resolved:#}");
    let wanted = json!([tried.named("lab-good", 2), tried.named("lab-stuck", 2)]);
    ensure!(resolved["transaction"]["wanted"] == wanted, "{resolved:#}");
    let changes = resolved["transaction"]["changes"].as_array().context("no changes")?;
    let to: BTreeSet<_> = changes.iter().filter_map(|c| c["to"].as_str().map(str::to_owned)).collect();
    let expected = BTreeSet::from(["lab-extra", "lab-good", "lab-stuck"].map(|name| tried.named(name, 2)));
    ensure!(to == expected, "{resolved:#}");
    Ok(())
}

fn exactly(tried: &Tried<'_>) -> Result<()> {
    let before = tried.installed()?;
    let transaction = tried.transaction(&["lab-good"])?;
    tried.host.sh("echo edited >> /etc/lab-good.conf")?;
    let mut other = transaction.clone();
    other["changes"].as_array_mut().context("no changes")?.remove(0);
    let refused = tried.ask("install", &other)?;
    ensure!(refused.code == 4 && refused.stderr.contains("lab-"), "{refused:?}");
    ensure!(tried.installed()? == before, "a refusal changes nothing");
    tried.told("install", &transaction)?;
    let mut after = before;
    after.remove(&tried.named("lab-good", 1));
    after.extend([tried.named("lab-good", 2), tried.named("lab-extra", 2)]);
    ensure!(tried.installed()? == after, "{:?}", tried.installed()?);
    ensure!(tried.host.read("/etc/lab-good.conf")?.contains("edited"), "an edited configuration is kept");
    let again = tried.ask("install", &transaction)?;
    ensure!(again.code == 4, "it is not what would be done by now: {again:?}");
    tried.told("recover", &transaction)?;
    ensure!(tried.installed()? == after, "there is nothing to mend");
    Ok(())
}

/// Mends what is there, and installs what is left: each package is then there once, as version 2.
fn mended(tried: &Tried<'_>, transaction: &Value, names: &[&str]) -> Result<()> {
    tried.host.run(["rm", "/srv/hang"])?;
    tried.told("recover", transaction)?;
    let there = tried.installed()?;
    let left: Vec<_> = names.iter().copied().filter(|name| !there.contains(&tried.named(name, 2))).collect();
    if !left.is_empty() {
        let rest = tried.transaction(&left)?;
        tried.told("install", &rest)?;
    }
    let there = tried.installed()?;
    ensure!(tried.host.exec(["test", "-e", "/srv/done"])?.ok(), "the script that was killed has run once more");
    for name in names {
        ensure!(there.contains(&tried.named(name, 2)) && !there.contains(&tried.named(name, 1)), "{name}: {there:?}");
        ensure!(tried.host.read(&format!("/usr/share/{name}/version"))?.trim() == "2", "{name}");
    }
    tried.told("recover", &Value::Null)?;
    Ok(())
}

fn hang(tried: &Tried<'_>) -> Result<()> {
    let transaction = tried.transaction(&["lab-stuck"])?;
    tried.host.sh("touch /srv/hang; rm -f /srv/done")?;
    let hung = tried.ask("install", &transaction)?;
    ensure!(hung.code == 1 && hung.stderr.contains("it hangs"), "{hung:?}");
    until("all that it had started is killed", LONG, || Ok((!tried.host.exec(["pgrep", "-x", "sleep"])?.ok()).then_some(())))?;
    mended(tried, &transaction, &["lab-stuck"])
}

fn power_cut(tried: &Tried<'_>) -> Result<()> {
    let transaction = tried.transaction(&["lab-needy"])?;
    tried.host.sh("touch /srv/hang; rm -f /srv/done")?;
    tried.host.write("/srv/transaction", 0o644, transaction.to_string())?;
    let install = format!("manager {} install < /srv/transaction", tried.manager);
    tried.host.run(["systemd-run", "--quiet", "--unit=update", "sh", "-c", &install])?;
    tried.hangs()?;
    if tried.manager == "pacman" {
        let busy = tried.ask("recover", &transaction)?;
        ensure!(busy.code == 1 && busy.stderr.contains("at work"), "its lock is held: {busy:?}");
    }
    tried.host.power_cut()?;
    tried.host.power_on()?;
    mended(tried, &transaction, &["lab-needy", "lab-base"])
}

fn fails(tried: &Tried<'_>) -> Result<()> {
    let transaction = tried.transaction(&["lab-broken"])?;
    let failed = tried.ask("install", &transaction)?;
    ensure!(failed.code == 1 && (failed.stderr.contains("script") || failed.stderr.contains("lab-broken")), "{failed:?}");
    Ok(())
}

#[test]
fn apt() -> Result<()> {
    course("apt")
}

#[test]
fn dnf() -> Result<()> {
    course("dnf4")
}

#[test]
fn zypper() -> Result<()> {
    course("zypper")
}

#[test]
fn pacman() -> Result<()> {
    course("pacman")
}

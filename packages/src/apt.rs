//! apt-get(8), dpkg(1).

use std::collections::{BTreeMap, BTreeSet};

use node::{Error, Result};
use updates::{Impact, PackageName};

use crate::manager::{done, failure, strange};
use crate::resolve::DryRun;
use crate::{Change, OnHost, Transaction, Upgrade};

/// Nothing is removed, and configuration files that somebody changed are kept; another apt is waited for; dpkg stays in our process group.
const OPTIONS: [&str; 14] = [
    "-q",
    "-y",
    "-o",
    "APT::Install-Recommends=false",
    "-o",
    "APT::Get::Remove=false",
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    "DPkg::Lock::Timeout=120",
    "-o",
    "Dpkg::Use-Pty=0",
];

fn apt<'a>(command: &[&'a str], packages: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    ["apt-get"].into_iter().chain(OPTIONS).chain(command.iter().copied()).chain(packages).map(str::to_owned).collect()
}

/// `bash=5.2-1` is what apt takes, too.
fn texts(wanted: &BTreeSet<PackageName>) -> Vec<String> {
    wanted.iter().map(ToString::to_string).collect()
}

pub(crate) async fn available(host: &OnHost) -> Result<Vec<Upgrade>> {
    // else a repository that cannot be reached is only a warning; older ones do not know it
    done("ask the repositories", &host.run(&apt(&["-o", "APT::Update::Error-Mode=any", "update"], [])).await?)?;
    let simulated = host.run(&apt(&["-s", "--with-new-pkgs", "upgrade"], [])).await?;
    done("list upgrades", &simulated)?;
    let uris = host.run(&apt(&["--print-uris", "--with-new-pkgs", "upgrade"], [])).await?;
    done("list upgrades", &uris)?;
    let sizes = sizes(&uris.stdout);
    let upgrades = installations(&simulated.stdout)?.into_iter().filter_map(|change| {
        let installed = change.from?;
        let download = sizes.get(&change.to.to_string()).copied();
        let impact = Impact::of(change.to.name());
        Some(Upgrade { package: change.to, installed: Some(installed), published: None, download, impact })
    });
    Ok(upgrades.collect())
}

/// `Inst bash [5.1-1] (5.2-1 Debian:12.5/stable [amd64])`: each line that a simulation would install.
fn installations(simulated: &str) -> Result<Vec<Change>> {
    let lines = simulated.lines().filter_map(|line| line.strip_prefix("Inst "));
    let parse = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let build = |version: &str| format!("{name}={version}").parse().ok();
        let (from, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once("] ").map(|(old, rest)| (Some(old), rest))?,
            None => (None, rest),
        };
        let version = rest.strip_prefix('(')?.split([' ', ')']).next()?;
        Some(Change { from: from.and_then(build), to: build(version)? })
    };
    lines.map(|line| parse(line).ok_or_else(|| strange("what apt-get simulates", line))).collect()
}

/// `'http://…/bash_5.2-1_amd64.deb' bash_5.2-1_amd64.deb 1490000 MD5Sum:…`: how much there is to download, by name=version.
fn sizes(uris: &str) -> BTreeMap<String, u64> {
    let lines = uris.lines().filter(|line| line.starts_with('\''));
    let parse = |line: &str| {
        let mut words = line.rsplitn(4, ' ');
        let (_, size, file) = (words.next()?, words.next()?, words.next()?);
        let mut parts = file.splitn(3, '_');
        let (name, version) = (parts.next()?, parts.next()?.replace("%3a", ":"));
        Some((format!("{name}={version}"), size.parse().ok()?))
    };
    lines.filter_map(parse).collect()
}

pub(crate) async fn dry_run(host: &OnHost, wanted: &BTreeSet<PackageName>) -> Result<DryRun> {
    let texts = texts(wanted);
    let out = host.run(&apt(&["-s", "install"], texts.iter().map(String::as_str))).await?;
    if out.success() {
        let changes = installations(&out.stdout)?.into_iter().collect();
        return Ok(Ok(Transaction { wanted: wanted.clone(), changes, removed: BTreeSet::new() }));
    }
    // these are not about what is wanted
    if ["dpkg was interrupted", "Could not get lock", "Unable to lock", "could not be opened"].iter().any(|t| out.stderr.contains(t)) {
        return Err(failure("work out what to install", &out));
    }
    Ok(Err(why(&out.stdout, &out.stderr)))
}

/// The sentences of apt's that are about packages.
fn why(stdout: &str, stderr: &str) -> String {
    let unmet = stdout.lines().skip_while(|line| !line.ends_with("unmet dependencies:")).skip(1).map(str::trim);
    let errors = stderr.lines().filter_map(|line| line.strip_prefix("E: "));
    let all: Vec<_> = unmet.filter(|line| !line.is_empty()).take(2).chain(errors.take(2)).collect();
    all.join("; ")
}

pub(crate) fn download(wanted: &BTreeSet<PackageName>) -> Vec<String> {
    apt(&["--download-only", "install"], texts(wanted).iter().map(String::as_str))
}

pub(crate) async fn install(host: &OnHost, transaction: &Transaction) -> Result<()> {
    // what is named counts as wanted by hand from then on, and would never be removed automatically
    let auto = host.run(&["apt-mark", "showauto"]).await?;
    done("list packages that were installed automatically", &auto)?;
    let wanted = texts(&transaction.wanted);
    let out = host.run(&apt(&["install"], wanted.iter().map(String::as_str))).await?;
    let auto: BTreeSet<_> = auto.stdout.lines().collect();
    // Debian's package with an architecture has it in its name there
    let name = |text: &str| text.split_once('=').map_or(text, |(name, _)| name).to_owned();
    let mut mark = vec!["apt-mark".to_owned(), "auto".to_owned()];
    mark.extend(wanted.iter().map(|w| name(w)).filter(|n| auto.contains(n.as_str())));
    if mark.len() > 2 {
        host.run(&mark).await?;
    }
    done("install packages", &out)
}

pub(crate) async fn recover(host: &OnHost, interrupted: Option<&Transaction>) -> Result<()> {
    let audit = host.run(&["dpkg", "--audit"]).await?;
    // what a killed dpkg did not get to merge is no package's state; apt finds it
    let check = host.run(&apt(&["check"], [])).await?;
    if audit.success() && audit.stdout.trim().is_empty() && check.success() {
        return Ok(());
    }
    let configured = host.run(&["dpkg", "--force-confdef", "--force-confold", "--configure", "-a"]).await?;
    let people = |why: &str| {
        let what = format!("packages are not configured, and that cannot be mended: {why}");
        Error::failed(what).hint("see dpkg --audit; dpkg --configure -a; apt-get -f install")
    };
    // what is only half there is fetched again, and what it depends on, but nothing is removed
    let simulated = host.run(&apt(&["-s", "--fix-broken", "install"], [])).await?;
    let more = if simulated.success() { undecided(&installations(&simulated.stdout)?, interrupted) } else { Vec::new() };
    if !more.is_empty() {
        return Err(people(&format!("apt-get -f install would also install {}", more.join(", "))));
    }
    let fixed = if simulated.success() { host.run(&apt(&["--fix-broken", "install"], [])).await? } else { simulated };
    if fixed.success() {
        return Ok(());
    }
    let out = if configured.success() { &fixed } else { &configured };
    Err(people(&out.tail(6)))
}

/// What nobody has decided to install, or what is banned by now.
fn undecided(changes: &[Change], interrupted: Option<&Transaction>) -> Vec<String> {
    let decided: BTreeSet<_> = interrupted.into_iter().flat_map(Transaction::packages).collect();
    changes.iter().map(|change| &change.to).filter(|package| !decided.contains(package)).map(ToString::to_string).collect()
}

pub(crate) async fn installed(host: &OnHost) -> Result<BTreeSet<PackageName>> {
    let out = host.run(&["dpkg-query", "-W", "-f", "${binary:Package}=${Version}\\t${db:Status-Status}\\n"]).await?;
    done("list packages", &out)?;
    Ok(listed(&out.stdout))
}

/// With dpkg, some that apt names without their architecture have it: both are in it then.
fn listed(query: &str) -> BTreeSet<PackageName> {
    let names = query.lines().filter_map(|line| line.strip_suffix("\tinstalled"));
    let both = |name: &str| {
        let (package, version) = name.split_once('=')?;
        let bare = package.split_once(':').map_or(package, |(bare, _)| bare);
        Some([name.to_owned(), format!("{bare}={version}")])
    };
    names.filter_map(both).flatten().filter_map(|name| name.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::tests::shown;

    fn simulated(text: &str) -> String {
        let changes = installations(text).unwrap().into_iter().collect();
        shown(&Transaction { changes, ..Transaction::default() })
    }

    #[test]
    fn what_is_simulated() {
        insta::assert_snapshot!(simulated(include_str!("../fixtures/apt-upgrade.txt")), @r"
        + lab-extra=2-1
        lab-base=1-1 -> lab-base=2-1
        lab-broken=1-1 -> lab-broken=2-1
        lab-good=1-1 -> lab-good=2-1
        lab-needy=1-1 -> lab-needy=2-1
        lab-stuck=1-1 -> lab-stuck=2-1
        ");
        insta::assert_snapshot!(simulated(include_str!("../fixtures/apt-install.txt")), @r"
        + lab-extra=2-1
        lab-base=1-1 -> lab-base=2-1
        lab-good=1-1 -> lab-good=2-1
        lab-needy=1-1 -> lab-needy=2-1
        ");
        insta::assert_snapshot!(simulated(include_str!("../fixtures/apt-debian.txt")), @r"
        iputils-ping=3:20221126-1+deb12u1 -> iputils-ping=3:20221126-1+deb12u1
        libc6=2.36-9+deb12u14 -> libc6=2.36-9+deb12u14
        zlib1g=1:1.2.13.dfsg-1 -> zlib1g=1:1.2.13.dfsg-1
        ");
        assert!(installations("Inst bash").is_err());
    }

    #[test]
    fn what_was_interrupted_is_mended_and_nothing_else_is_installed() {
        let changes = installations(include_str!("../fixtures/apt-install.txt")).unwrap();
        let interrupted = Transaction { changes: changes.iter().cloned().collect(), ..Transaction::default() };
        assert!(undecided(&changes, Some(&interrupted)).is_empty() && undecided(&[], None).is_empty());
        let other = Transaction { changes: changes.iter().skip(1).cloned().collect(), ..Transaction::default() };
        assert_eq!(undecided(&changes, Some(&other)), [changes[0].to.to_string()]);
        assert_eq!(undecided(&changes, None).len(), changes.len());
    }

    #[test]
    fn what_there_is_to_download() {
        let sizes = sizes(include_str!("../fixtures/apt-uris.txt"));
        insta::assert_debug_snapshot!(sizes, @r#"
        {
            "lab-base=2-1": 796,
            "lab-broken=2-1": 840,
            "lab-extra=2-1": 796,
            "lab-good=2-1": 812,
            "lab-needy=2-1": 812,
            "lab-stuck=2-1": 868,
        }
        "#);
    }

    #[test]
    fn why_not() {
        let unmet = why(include_str!("../fixtures/apt-impossible.txt"), include_str!("../fixtures/apt-impossible.err"));
        let unknown = why(include_str!("../fixtures/apt-unknown.txt"), include_str!("../fixtures/apt-unknown.err"));
        insta::assert_snapshot!(format!("{unmet}\n{unknown}"), @r"
        lab-lost : Depends: lab-nowhere but it is not installable; Unable to correct problems, you have held broken packages.
        Version '3-1' for 'lab-good' was not found
        ");
    }

    #[test]
    fn what_is_installed() {
        let listed = listed(include_str!("../fixtures/apt-installed.txt"));
        let listed: Vec<_> = listed.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(listed.join("\n"), @r"
        iputils-ping=3:20221126-1+deb12u1
        lab-base=1-1
        lab-broken=1-1
        lab-good=1-1
        lab-lost=1-1
        lab-needy=1-1
        lab-shell=1-1
        lab-stuck=1-1
        libc6=2.36-9+deb12u14
        libc6:amd64=2.36-9+deb12u14
        ");
        let half = "lab-half=2-1\thalf-configured\n";
        assert!(super::listed(half).is_empty());
    }
}

//! zypper(8), whose output is XML.

use std::collections::BTreeSet;

use node::{Error, Output, Result};
use roxmltree::{Document, Node};
use updates::{Impact, PackageName};

use crate::manager::{done, failure, strange};
use crate::resolve::DryRun;
use crate::rpm::{installed, named, twice};
use crate::{Change, OnHost, Transaction, Upgrade};

/// zypper(8), EXIT CODES: what a solver or an unknown name leads to.
const IMPOSSIBLE: [i32; 2] = [4, 104];
/// There: it worked, and a reboot or a restart of itself is needed.
const FINE: [i32; 3] = [0, 102, 103];
/// There: a script of a package failed.
const SCRIPT: i32 = 107;

fn zypper(more: &[&str]) -> Vec<String> {
    ["zypper", "--non-interactive", "--xmlout"].iter().chain(more).map(|&word| word.to_owned()).collect()
}

/// Without asking a repository, so that a dry run stays true. Licences are agreed to: the older build was installed.
fn install_of(more: &[&str], packages: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut argv = zypper(&["--no-refresh", "install", "--no-recommends", "--auto-agree-with-licenses"]);
    argv.extend(more.iter().map(|&word| word.to_owned()));
    argv.extend(packages);
    argv
}

/// `bash.x86_64=5.2-1`
fn capabilities(packages: &BTreeSet<PackageName>) -> Vec<String> {
    packages.iter().map(capability).collect()
}

fn capability(package: &PackageName) -> String {
    let text = package.to_string();
    let rest = text.strip_prefix(package.name()).and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
    let (evr, arch) = rest.rsplit_once('.').unwrap_or_default();
    format!("{}.{arch}={evr}", package.name())
}

fn parse(xml: &str) -> Result<Document<'_>> {
    Document::parse(xml).map_err(|e| Error::failed("what zypper prints is no XML").because(e))
}

pub(crate) async fn available(host: &OnHost) -> Result<Vec<Upgrade>> {
    done("ask the repositories", &host.run(&zypper(&["refresh"])).await?)?;
    let out = host.run(&zypper(&["--no-refresh", "list-updates", "-t", "package"])).await?;
    done("list upgrades", &out)?;
    let mut upgrades = listed(&out.stdout)?;
    let names = upgrades.iter().map(|u| u.package.name().to_owned());
    let argv: Vec<String> = ["sh", "-c", PRIMARY, "sh"].map(str::to_owned).into_iter().chain(names).collect();
    let primary = host.run(&argv).await?;
    done("read what the repositories say about their packages", &primary)?;
    describe(&mut upgrades, &primary.stdout);
    Ok(upgrades)
}

fn listed(xml: &str) -> Result<Vec<Upgrade>> {
    let document = parse(xml)?;
    let updates = document.descendants().filter(|node| node.has_tag_name("update"));
    let upgrade = |node: Node<'_, '_>| {
        let (name, arch) = (node.attribute("name")?, node.attribute("arch")?);
        let package = named(name, node.attribute("edition")?, arch)?;
        let installed = named(name, node.attribute("edition-old")?, arch);
        Some(Upgrade { package, installed, published: None, download: None, impact: Impact::of(name) })
    };
    let mut all = Vec::new();
    for node in updates {
        if let Some(upgrade) = upgrade(node) {
            all.push(upgrade);
        } else {
            tracing::warn!("a package is left alone, since its name is not understood: {:?}", node.attribute("name"));
        }
    }
    Ok(all)
}

/// zypper itself does not say when a package was built, nor how large it is; what it keeps of its repositories does. Prints
/// `name arch epoch version release built size` of the packages that are its arguments, of every build.
const PRIMARY: &str = r#"
for file in /var/cache/zypp/raw/*/repodata/*primary.xml*; do
  case $file in
    *.gz) zcat "$file" ;; *.zst) zstdcat "$file" ;; *.xz) xzcat "$file" ;; *.bz2) bzcat "$file" ;; *.xml) cat "$file" ;;
  esac
done | awk -v names="$*" '
  function value(key) { return match($0, key "=\"[^\"]*\"") ? substr($0, RSTART + length(key) + 2, RLENGTH - length(key) - 3) : "" }
  function text() { sub(/^[^>]*>/, ""); sub(/<.*/, ""); return $0 }
  BEGIN { n = split(names, list, " "); for (i = 1; i <= n; i++) wanted[list[i]] = 1 }
  /^ *<name>/ { name = text() }
  /^ *<arch>/ { arch = text() }
  /^ *<version / { version = value("epoch") "\t" value("ver") "\t" value("rel") }
  /^ *<time / { built = value("build") }
  /^ *<size / { size = value("package") }
  /^ *<\/package>/ && (name in wanted) { print name "\t" arch "\t" version "\t" built "\t" size }
'"#;

fn describe(upgrades: &mut [Upgrade], primary: &str) {
    for line in primary.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, arch, epoch, version, release, built, size] = fields.as_slice() else { continue };
        let Some(package) = named(name, &format!("{epoch}:{version}-{release}"), arch) else { continue };
        for upgrade in upgrades.iter_mut().filter(|u| u.package == package) {
            upgrade.published = built.parse().ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
            upgrade.download = size.parse().ok();
        }
    }
}

pub(crate) async fn dry_run(host: &OnHost, wanted: &BTreeSet<PackageName>) -> Result<DryRun> {
    let out = host.run(&install_of(&["--dry-run"], capabilities(wanted))).await?;
    match out.code {
        Some(code) if FINE.contains(&code) => summary(&out.stdout, wanted).map(Ok),
        Some(code) if IMPOSSIBLE.contains(&code) => problem(&out).map(Err),
        _ => Err(failure("work out what to install", &out)),
    }
}

fn summary(xml: &str, wanted: &BTreeSet<PackageName>) -> Result<Transaction> {
    let document = parse(xml)?;
    let mut all = Transaction { wanted: wanted.clone(), ..Transaction::default() };
    for node in document.descendants().filter(|n| n.has_tag_name("solvable") && n.attribute("type") == Some("package")) {
        let name = |edition: &str, arch: &str| {
            named(node.attribute("name")?, node.attribute(edition)?, node.attribute(arch).or(node.attribute("arch"))?)
        };
        let unclear = || strange("what zypper would install", node.attribute("name").unwrap_or_default());
        let package = name("edition", "arch").ok_or_else(unclear)?;
        match node.parent().map_or("", |parent| parent.tag_name().name()) {
            "to-remove" => drop(all.removed.insert(package)),
            "to-install" => drop(all.changes.insert(Change { from: None, to: package })),
            "to-upgrade" | "to-downgrade" | "to-change-arch" | "to-reinstall" | "to-change-vendor" | "to-upgrade-change-arch" => {
                all.changes.insert(Change { from: name("edition-old", "arch-old"), to: package });
            }
            _ => return Err(unclear()),
        }
    }
    Ok(all)
}

/// What stands in the way, without the solutions that are offered.
fn problem(out: &Output) -> Result<String> {
    let document = parse(&out.stdout)?;
    let texts = |node: Node<'_, '_>| node.text().unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned();
    let errors = document.descendants().filter(|n| n.has_tag_name("message") && n.attribute("type") == Some("error"));
    let problems = document.descendants().filter(|n| n.has_tag_name("description") && n.parent().is_some_and(|p| p.has_tag_name("prompt")));
    let all: Vec<String> = errors.chain(problems).map(texts).filter(|text| !text.is_empty()).collect();
    // the same code stands for other things that libzypp throws
    if all.is_empty() { Err(failure("work out what to install", out)) } else { Ok(all.join("; ")) }
}

pub(crate) fn download(wanted: &BTreeSet<PackageName>) -> Vec<String> {
    install_of(&["--download-only"], capabilities(wanted))
}

pub(crate) async fn install(host: &OnHost, transaction: &Transaction) -> Result<()> {
    let out = host.run(&install_of(&["--download-in-advance"], capabilities(&transaction.wanted))).await?;
    match out.code {
        Some(code) if FINE.contains(&code) => Ok(()),
        Some(SCRIPT) => {
            let lines: Vec<&str> = out.stdout.lines().filter(|line| line.contains("scriptlet failed")).collect();
            Err(Error::failed(format!("a script of a package failed: {}", lines.join("; "))))
        }
        _ => Err(failure("install packages", &out)),
    }
}

pub(crate) async fn recover(host: &OnHost, interrupted: Option<&Transaction>) -> Result<()> {
    let there = installed(host).await?;
    let twice: Vec<String> = twice(&there, interrupted).into_iter().map(capability).collect();
    if twice.is_empty() {
        return Ok(());
    }
    // the new build once more, with its scripts, and the old one away
    let out = host.run(&install_of(&["--force"], twice)).await?;
    if out.code.is_some_and(|code| FINE.contains(&code)) { Ok(()) } else { Err(failure("remove what is installed twice", &out)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::tests::{listed as upgrades, shown};

    #[test]
    fn what_is_available() {
        let mut all = listed(include_str!("../fixtures/zypper-updates.xml")).unwrap();
        // what the script prints of fixtures/zypper-primary.xml
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("primary.xml"), include_str!("../fixtures/zypper-primary.xml")).unwrap();
        let script = PRIMARY.replace("/var/cache/zypp/raw/*/repodata", &folder.path().to_string_lossy());
        let out = std::process::Command::new("sh").args(["-c", &script, "sh", "lab-base", "lab-good"]).output().unwrap();
        describe(&mut all, &String::from_utf8(out.stdout).unwrap());
        insta::assert_snapshot!(upgrades(&all), @r"
        lab-base-1-1.noarch -> lab-base-2-1.noarch 2026-11-21T15:24:48Z 6333 None
        lab-broken-1-1.noarch -> lab-broken-2-1.noarch ? ? None
        lab-good-1-1.noarch -> lab-good-2-1.noarch 2026-11-21T15:24:48Z 6349 None
        lab-needy-1-1.noarch -> lab-needy-2-1.noarch ? ? None
        lab-stuck-1-1.noarch -> lab-stuck-2-1.noarch ? ? None
        ");
    }

    #[test]
    fn what_would_be_done() {
        let all = summary(include_str!("../fixtures/zypper-install.xml"), &BTreeSet::new()).unwrap();
        insta::assert_snapshot!(shown(&all), @r"
        + lab-extra-2-1.noarch
        lab-base-1-1.noarch -> lab-base-2-1.noarch
        lab-good-1-1.noarch -> lab-good-2-1.noarch
        lab-needy-1-1.noarch -> lab-needy-2-1.noarch
        ");
    }

    #[test]
    fn why_not() {
        let problem = |stdout: &str| problem(&Output { code: Some(4), stdout: stdout.into(), stderr: String::new() });
        let all = [include_str!("../fixtures/zypper-impossible.xml"), include_str!("../fixtures/zypper-unknown.xml")];
        insta::assert_snapshot!(all.map(|xml| problem(xml).unwrap()).join("\n"), @r"
        Problem: nothing provides lab-nowhere needed by lab-lost-2-1.noarch
        No provider of 'lab-good.noarch=3-1' found.
        ");
        assert!(problem("<?xml version='1.0'?>\n<stream>\n</stream>").is_err(), "no answer is no reason");
    }

    #[test]
    fn a_capability_names_one_build() {
        let name = "vim-minimal-2:8.0.1763-19.el8_6.4.x86_64".parse().unwrap();
        assert_eq!(capability(&name), "vim-minimal.x86_64=2:8.0.1763-19.el8_6.4");
    }
}

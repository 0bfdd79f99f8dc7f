//! pacman(8). Its databases of what the repositories have are kept apart from the host's own: `pacman -Sy` alone on the host's would
//! make the next `pacman -S` of anybody's a partial upgrade.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use node::{Context as _, Error, Result};
use updates::{Impact, PackageName};

use crate::manager::{by_name, done, failure, strange};
use crate::resolve::DryRun;
use crate::rpm::named;
use crate::{Change, OnHost, Transaction, Upgrade};

/// Our databases of repositories; `local` in it is the host's own. pacman 7 downloads as another user, who has to get there.
const APART: &str = "/var/cache/smartup/pacman";
/// Held while packages change; pacman makes it and removes it.
const LOCK: &str = "/var/lib/pacman/db.lck";

fn pacman(more: &[&str]) -> Vec<String> {
    ["pacman", "--noconfirm"].iter().chain(more).map(|&word| word.to_owned()).collect()
}

fn apart(more: &[&str], names: impl IntoIterator<Item = String>) -> Vec<String> {
    pacman(&["--dbpath", APART]).into_iter().chain(more.iter().map(|&word| word.to_owned())).chain(names).collect()
}

fn names(packages: &BTreeSet<PackageName>) -> Vec<String> {
    packages.iter().map(|p| p.name().to_owned()).collect()
}

pub(crate) async fn available(host: &OnHost) -> Result<Vec<Upgrade>> {
    let folder = host.file(APART);
    fs::create_dir_all(&folder).context(format!("cannot make the folder {APART}"))?;
    let local = folder.join("local");
    if fs::symlink_metadata(&local).is_err() {
        std::os::unix::fs::symlink("/var/lib/pacman/local", &local).context(format!("cannot make the link {APART}/local"))?;
    }
    unlock(host, &format!("{APART}/db.lck"))?;
    done("ask the repositories", &host.run(&apart(&["-Sy"], [])).await?)?;
    let upgrades = upgrades(host).await?;
    let newer: Vec<(&str, &str, &str)> = upgrades.lines().filter_map(newer).collect();
    if newer.is_empty() {
        return Ok(Vec::new());
    }
    let info = host.run(&apart(&["-Si"], newer.iter().map(|(name, ..)| (*name).to_owned()))).await?;
    done("ask about upgrades", &info)?;
    let there = installed(host).await?;
    let there = by_name(&there);
    let infos = infos(&info.stdout);
    let upgrade = |(name, _, version): (&str, &str, &str)| {
        let info = infos.get(&(name, version))?;
        let package = named(name, version, info.get("Architecture")?)?;
        let installed = there.get(name).and_then(|builds| builds.first()).map(|&p| p.clone());
        let published = info.get("Build Date").and_then(|text| time(text));
        let download = info.get("Download Size").and_then(|text| bytes(text));
        Some(Upgrade { package, installed, published, download, impact: Impact::of(name) })
    };
    let named = newer.into_iter().filter_map(|new| {
        let found = upgrade(new);
        if found.is_none() {
            tracing::warn!("a package is left alone, since it is not understood: {} {}", new.0, new.2);
        }
        found
    });
    Ok(named.collect())
}

async fn upgrades(host: &OnHost) -> Result<String> {
    let out = host.run(&apart(&["-Qu"], [])).await?;
    // 1 without a word: there are none
    if out.code != Some(1) || !out.stdout.trim().is_empty() {
        done("list upgrades", &out)?;
    }
    Ok(out.stdout)
}

pub(crate) async fn left_behind(host: &OnHost, wanted: &BTreeSet<PackageName>) -> Result<Vec<String>> {
    Ok(others(&upgrades(host).await?, wanted))
}

/// The upgrades that are not wanted.
fn others(upgrades: &str, wanted: &BTreeSet<PackageName>) -> Vec<String> {
    let builds: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    // a version has no dot at its end: what follows is the architecture
    let is_wanted = |build: &str| builds.iter().any(|b| b.rsplit_once('.').is_some_and(|(b, _arch)| b == build));
    let all = upgrades.lines().filter_map(newer).map(|(name, _, version)| format!("{name}-{version}"));
    all.filter(|build| !is_wanted(build)).collect()
}

/// `bash 5.1-1 -> 5.2-1`; `[ignored]` at its end: the host's configuration holds it back.
fn newer(line: &str) -> Option<(&str, &str, &str)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [name, old, "->", new] = words.as_slice() else { return None };
    Some((name, old, new))
}

/// What `-Si` says, by name and version.
fn infos(printed: &str) -> BTreeMap<(&str, &str), BTreeMap<&str, &str>> {
    let blocks = printed.split("\n\n").map(|block| {
        let pairs = block.lines().filter_map(|line| line.split_once(" : ")).map(|(key, value)| (key.trim(), value.trim()));
        pairs.collect::<BTreeMap<_, _>>()
    });
    blocks.filter_map(|block| Some(((*block.get("Name")?, *block.get("Version")?), block))).collect()
}

/// `%c` of strftime(3) in the C locale, in UTC.
fn time(text: &str) -> Option<Timestamp> {
    Offset::UTC.to_timestamp(DateTime::strptime("%a %b %d %H:%M:%S %Y", text).ok()?).ok()
}

/// `1225.00 B`, `12.34 KiB`: as exact as it is printed.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = text.split_once(' ')?;
    let (whole, hundredths) = number.split_once('.').unwrap_or((number, "0"));
    let shift = ["B", "KiB", "MiB", "GiB"].iter().position(|u| *u == unit)? * 10;
    let hundredths: u64 = format!("{hundredths:0<2}").parse().ok()?;
    Some((whole.parse::<u64>().ok()? << shift) + ((hundredths << shift) / 100))
}

/// What would be installed, and the names of the files that it is in.
async fn printed(host: &OnHost, wanted: &BTreeSet<PackageName>) -> Result<std::result::Result<Vec<(PackageName, String)>, String>> {
    let out = host.run(&apart(&["-S", "--print", "--print-format", "%n %v %l"], names(wanted))).await?;
    if out.success() {
        let lines = out.stdout.lines().filter(|line| !line.starts_with("::"));
        return lines.map(|line| file(line).ok_or_else(|| strange("what pacman would install", line))).collect::<Result<_>>().map(Ok);
    }
    let impossible = ["target not found", "unable to satisfy", "could not satisfy", "conflict"];
    if !impossible.iter().any(|sign| out.stderr.contains(sign) || out.stdout.contains(sign)) {
        return Err(failure("work out what to install", &out));
    }
    let lines = out.stderr.lines().chain(out.stdout.lines()).map(|line| line.trim_start_matches(":: ").trim_start_matches("error: "));
    let about: Vec<_> = lines.filter(|line| impossible.iter().any(|sign| line.contains(sign))).take(3).collect();
    Ok(Err(about.join("; ")))
}

/// `bash 5.2-1 https://…/bash-5.2-1-x86_64.pkg.tar.zst`
fn file(line: &str) -> Option<(PackageName, String)> {
    let mut words = line.splitn(3, ' ');
    let (name, version, place) = (words.next()?, words.next()?, words.next()?);
    let file = place.rsplit('/').next()?;
    let arch = file.split(".pkg.tar").next()?.rsplit('-').next()?;
    Some((named(name, version, arch)?, file.to_owned()))
}

pub(crate) async fn dry_run(host: &OnHost, wanted: &BTreeSet<PackageName>) -> Result<DryRun> {
    let files = match printed(host, wanted).await? {
        Ok(files) => files,
        Err(why) => return Ok(Err(why)),
    };
    let there = installed(host).await?;
    let there = by_name(&there);
    let from = |to: &PackageName| there.get(to.name()).and_then(|builds| builds.first()).map(|&p| p.clone());
    // what is there already is named as well when it is wanted
    let changes = files.into_iter().map(|(to, _)| Change { from: from(&to), to }).filter(|c| c.from.as_ref() != Some(&c.to)).collect();
    Ok(Ok(Transaction { wanted: wanted.clone(), changes, removed: BTreeSet::new() }))
}

pub(crate) fn download(wanted: &BTreeSet<PackageName>) -> Vec<String> {
    apart(&["-S", "--downloadonly"], names(wanted))
}

/// The files of a transaction in pacman's cache.
async fn files(host: &OnHost, transaction: &Transaction) -> Result<Vec<String>> {
    let all = printed(host, &transaction.wanted).await?;
    let all = all.map_err(|why| Error::failed(format!("the transaction is not possible any more: {why}")))?;
    let conf = host.run(&["pacman-conf", "CacheDir"]).await?;
    let folders: Vec<&str> = conf.stdout.lines().chain(["/var/cache/pacman/pkg/"]).collect();
    let packages: BTreeSet<_> = transaction.packages().collect();
    let mut found = Vec::new();
    for (_, file) in all.into_iter().filter(|(package, _)| packages.contains(package)) {
        let path = folders.iter().map(|folder| Path::new(folder).join(&file)).find(|path| host.file(path).exists());
        let path = path.ok_or_else(|| Error::failed(format!("{file} was not downloaded, or is not there any more")))?;
        found.push(path.to_string_lossy().into_owned());
    }
    Ok(found)
}

pub(crate) async fn install(host: &OnHost, transaction: &Transaction) -> Result<()> {
    install_files(host, &[], files(host, transaction).await?).await?;
    let new = transaction.changes.iter().filter(|c| c.from.is_none() && !transaction.wanted.contains(&c.to));
    let new: Vec<String> = new.map(|c| c.to.name().to_owned()).collect();
    if new.is_empty() {
        return Ok(());
    }
    let argv: Vec<String> = pacman(&["-D", "--asdeps"]).into_iter().chain(new).collect();
    done("mark what is only depended on", &host.run(&argv).await?)
}

async fn install_files(host: &OnHost, more: &[&str], files: Vec<String>) -> Result<()> {
    let argv: Vec<String> = pacman(&["-U"]).into_iter().chain(more.iter().map(|&word| word.to_owned())).chain(files).collect();
    let out = host.run(&argv).await?;
    done("install packages", &out)?;
    // alpm's word for a script that failed; it goes on
    let failed = |line: &&str| line.contains("command failed to execute correctly") || line.contains("scriptlet failed");
    match out.stdout.lines().chain(out.stderr.lines()).find(failed) {
        None => Ok(()),
        Some(line) => Err(Error::failed(format!("a script of a package failed: {}", line.trim_start_matches("error: ")))),
    }
}

/// Removes a lock that no process has open; whether there was one.
fn unlock(host: &OnHost, lock: &str) -> Result<bool> {
    let path = host.file(lock);
    let Ok(file) = fs::metadata(&path) else { return Ok(false) };
    let list = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    // pacman keeps it open as long as it holds it
    let held = list(&host.file("/proc"))
        .flat_map(|process| list(&process.path().join("fd")))
        .any(|open| fs::metadata(open.path()).is_ok_and(|open| (open.dev(), open.ino()) == (file.dev(), file.ino())));
    if held {
        return Err(Error::failed(format!("a package manager is at work: it holds {lock}")));
    }
    fs::remove_file(&path).context(format!("cannot remove {lock}, which nobody holds"))?;
    Ok(true)
}

pub(crate) async fn recover(host: &OnHost, interrupted: Option<&Transaction>) -> Result<()> {
    let killed = unlock(host, LOCK)?;
    let there = installed(host).await?;
    let names = by_name(&there);
    // killed between the removal of a package's old build and the end of its new one, or before the end of its script
    let half = |c: &&Change| (c.from.is_some() && !names.contains_key(c.to.name())) || (killed && there.contains(&c.to));
    let changes: BTreeSet<Change> = interrupted.iter().flat_map(|t| &t.changes).filter(half).cloned().collect();
    if changes.is_empty() {
        return Ok(());
    }
    let wanted = changes.iter().map(|c| c.to.clone()).collect();
    let files = files(host, &Transaction { wanted, changes, removed: BTreeSet::new() }).await?;
    install_files(host, &["--overwrite", "*"], files).await
}

pub(crate) async fn installed(host: &OnHost) -> Result<BTreeSet<PackageName>> {
    // -Q does not say an architecture
    let out = host.run(&pacman(&["-Qi"])).await?;
    done("list packages", &out)?;
    Ok(infos(&out.stdout).into_iter().filter_map(|((name, version), info)| named(name, version, info.get("Architecture")?)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available() {
        let infos = infos(include_str!("../fixtures/pacman-info.txt"));
        let line = |line: &str| {
            let (name, old, new) = newer(line).unwrap();
            let info = &infos[&(name, new)];
            let (time, bytes) = (time(info["Build Date"]).unwrap(), bytes(info["Download Size"]).unwrap());
            format!("{name} {old} {} {time} {bytes}", named(name, new, info["Architecture"]).unwrap())
        };
        let all: Vec<_> = include_str!("../fixtures/pacman-upgrades.txt").lines().map(line).collect();
        insta::assert_snapshot!(all.join("\n"), @r"
        lab-base 1-1 lab-base-2-1.any 2026-11-21T15:25:03Z 1206
        lab-broken 1-1 lab-broken-2-1.any 2026-11-21T15:25:18Z 1338
        lab-good 1-1 lab-good-2-1.any 2026-11-21T15:24:55Z 1224
        lab-lost 1-1 lab-lost-2-1.any 2026-11-21T15:25:12Z 1230
        lab-needy 1-1 lab-needy-2-1.any 2026-11-21T15:25:06Z 1228
        lab-stuck 1-1 lab-stuck-2-1.any 2026-11-21T15:25:24Z 1368
        ");
        assert_eq!(newer("linux 6.6.1-1 -> 6.6.2-1 [ignored]"), None);
    }

    #[test]
    fn what_a_partial_upgrade_would_leave_behind() {
        let wanted = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let upgrades = "bash 5.1-1 -> 5.2.1-1\nlinux 6.6.1-1 -> 6.6.2-1 [ignored]\nvim 9-1 -> 1:9.1-1\n";
        assert_eq!(others(upgrades, &wanted(&["bash-5.2.1-1.x86_64"])), ["vim-1:9.1-1"]);
        assert_eq!(others(upgrades, &wanted(&["bash-5.2-1.x86_64", "vim-1:9.1-1.any"])), ["bash-5.2.1-1"], "another build");
        assert!(others(upgrades, &wanted(&["bash-5.2.1-1.x86_64", "new-1-1.any", "vim-1:9.1-1.x86_64"])).is_empty());
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!(["1225.00 B", "1.50 KiB", "2.00 MiB", "1 XB"].map(bytes), [Some(1225), Some(1536), Some(2 << 20), None]);
        assert_eq!(time("Fri Mar  1 04:05:06 2024").unwrap().to_string(), "2024-03-01T04:05:06Z");
        assert_eq!(time("yesterday"), None);
    }

    #[test]
    fn what_would_be_done() {
        let lines = include_str!("../fixtures/pacman-install.txt").lines().filter(|line| !line.starts_with("::"));
        let all: Vec<_> = lines.map(|line| file(line).unwrap()).map(|(name, file)| format!("{name} {file}")).collect();
        insta::assert_snapshot!(all.join("\n"), @r"
        lab-extra-2-1.any lab-extra-2-1-any.pkg.tar.gz
        lab-good-2-1.any lab-good-2-1-any.pkg.tar.gz
        lab-base-2-1.any lab-base-2-1-any.pkg.tar.gz
        lab-needy-2-1.any lab-needy-2-1-any.pkg.tar.gz
        ");
        let (name, file) = file("gcc-libs 1:13.2.1+r3-4 https://mirror/core/os/x86_64/gcc-libs-1:13.2.1+r3-4-x86_64.pkg.tar.zst").unwrap();
        assert_eq!(
            (name.to_string().as_str(), file.as_str()),
            ("gcc-libs-1:13.2.1+r3-4.x86_64", "gcc-libs-1:13.2.1+r3-4-x86_64.pkg.tar.zst")
        );
    }

    #[test]
    fn a_lock_is_removed_only_when_nobody_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db.lck");
        let text = path.to_string_lossy();
        let host = OnHost::here();
        assert!(!unlock(&host, &text).unwrap());
        let held = fs::File::create(&path).unwrap();
        assert!(unlock(&host, &text).is_err() && path.exists());
        drop(held);
        assert!(unlock(&host, &text).unwrap() && !path.exists());
    }
}

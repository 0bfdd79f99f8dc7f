//! dnf(8) in both its generations, and yum(8) before them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use node::Result;
use updates::{Impact, PackageName};

use crate::manager::{done, failure, strange};
use crate::resolve::DryRun;
use crate::rpm::{before, installed, named, twice, with_epoch};
use crate::{Change, Manager, OnHost, Transaction, Upgrade};

fn program(manager: Manager) -> &'static str {
    match manager {
        Manager::Dnf5 => "dnf5",
        Manager::Yum => "yum",
        _ => "dnf",
    }
}

/// `-C`: nothing but [`available`] and [`download`] asks a repository, so that a dry run stays true.
fn cached(manager: Manager, more: &[&str], packages: &BTreeSet<PackageName>) -> Vec<String> {
    let mut argv: Vec<_> = [program(manager), "-C"].into_iter().chain(more.iter().copied()).map(str::to_owned).collect();
    if manager != Manager::Yum {
        argv.push("--setopt=install_weak_deps=False".into());
    }
    // what is named in an upgrade keeps its reason to be installed
    argv.push(if manager == Manager::Yum { "update" } else { "upgrade" }.into());
    argv.extend(packages.iter().map(|p| if manager == Manager::Yum { p.to_string() } else { with_epoch(p) }));
    argv
}

pub(crate) async fn available(manager: Manager, host: &OnHost) -> Result<Vec<Upgrade>> {
    let size = if manager == Manager::Yum { "packagesize" } else { "downloadsize" };
    let form = format!("%{{name}}\\t%{{epoch}}\\t%{{version}}\\t%{{release}}\\t%{{arch}}\\t%{{buildtime}}\\t%{{{size}}}\\n");
    let program = program(manager);
    let (refresh, query) = if manager == Manager::Yum {
        (vec![program, "-q", "clean", "expire-cache"], vec!["repoquery", "-q", "--all", "--pkgnarrow=updates", "--qf", &form])
    } else {
        (
            vec![program, "-q", "-y", "makecache", "--refresh"],
            vec![program, "-q", "-C", "repoquery", "--upgrades", "--latest-limit=1", "--qf", &form],
        )
    };
    done("ask the repositories", &host.run(&refresh).await?)?;
    let out = host.run(&query).await?;
    done("list upgrades", &out)?;
    let there = installed(host).await?;
    let lines = out.stdout.lines().filter(|line| !line.trim().is_empty());
    lines.filter_map(|line| upgrade(line, &there).transpose()).collect()
}

/// A line of `repoquery`; None: a package whose name could not be banned, which is left alone.
fn upgrade(line: &str, there: &BTreeSet<PackageName>) -> Result<Option<Upgrade>> {
    let fields: Vec<&str> = line.trim_end().split('\t').collect();
    let [name, epoch, version, release, arch, built, size] = fields.as_slice() else {
        return Err(strange("what repoquery lists", line));
    };
    let Some(package) = named(name, &format!("{epoch}:{version}-{release}"), arch) else {
        tracing::warn!("a package is left alone, since its name is not understood: {line}");
        return Ok(None);
    };
    let published = time(built);
    let (installed, impact) = (before(there, &package), Impact::of(name));
    Ok(Some(Upgrade { package, installed, published, download: size.parse().ok(), impact }))
}

/// dnf 4 prints `2024-05-01 12:34`, in UTC; the others the seconds of the epoch.
fn time(text: &str) -> Option<Timestamp> {
    let seconds = || Timestamp::from_second(text.parse().ok()?).ok();
    let date = || Offset::UTC.to_timestamp(DateTime::strptime("%Y-%m-%d %H:%M", text).ok()?).ok();
    seconds().or_else(date)
}

pub(crate) async fn dry_run(manager: Manager, host: &OnHost, wanted: &BTreeSet<PackageName>) -> Result<DryRun> {
    let out = host.run(&cached(manager, &["--assumeno"], wanted)).await?;
    let text = format!("{}\n{}", out.stdout, out.stderr);
    if let Some(table) = table(&out.stdout) {
        let all = transaction(table, &installed(host).await?, wanted)?;
        // an upgrade leaves out what cannot be, and says so beside its table
        let whole = wanted.iter().all(|w| all.packages().any(|p| p == w));
        return Ok(if whole { Ok(all) } else { Err(why(&text)) });
    }
    let impossible = ["Nothing to do", "No match for argument", "Unable to find a match", "Problem", "conflicting requests", "Requires: "];
    if impossible.iter().any(|sign| text.contains(sign)) {
        return Ok(Err(why(&text)));
    }
    Err(failure("work out what to install", &out))
}

/// What a solver says, without what it advises.
fn why(text: &str) -> String {
    let lines = text.lines().map(|line| line.trim().trim_start_matches("- "));
    let about = |line: &&str| {
        let signs = ["Problem", "nothing provides", "requires", "Requires: ", "filtered out", "conflicts", "match", "Nothing to do"];
        signs.iter().any(|sign| line.contains(sign))
    };
    let said = lines.filter(about).take(3).collect::<Vec<_>>().join("; ");
    if said.is_empty() { "not all of it would be installed".into() } else { said }
}

/// The table that is printed before anything is done: what stands between its head and its summary.
fn table(printed: &str) -> Option<&str> {
    let (_, after) =
        printed.split_once("\n Package ").or_else(|| printed.split_once("\nPackage ")).or_else(|| printed.split_once("Package "))?;
    let (_, rows) = after.split_once('\n')?;
    Some(rows.split_once("\nTransaction Summary")?.0)
}

/// A row has five words or six: name, architecture, version, repository, size and its unit. What does not fit into 80 columns goes on
/// in the next line.
fn transaction(table: &str, there: &BTreeSet<PackageName>, wanted: &BTreeSet<PackageName>) -> Result<Transaction> {
    let mut all = Transaction { wanted: wanted.clone(), ..Transaction::default() };
    let mut section = None;
    let mut row: Vec<&str> = Vec::new();
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let heading = !line.starts_with(' ') && line.trim_end().ends_with(':') && row.is_empty();
        if words.is_empty() || line.starts_with(['=', '-']) {
            continue;
        }
        if line.starts_with('(') {
            // advice below a heading, which ends with a colon as well
        } else if heading {
            section = Some(Section::below(line).ok_or_else(|| strange("what would be installed", line))?);
        } else if section == Some(Section::Others) {
            // neither rows of packages, nor changes
        } else if words.first() == Some(&"replacing") {
            replaced(&words, &mut all).ok_or_else(|| strange("what would be replaced", line))?;
        } else {
            row.extend(words);
            if row.len() >= 5 {
                changed(section, &row, there, &mut all).ok_or_else(|| strange("what would be installed", &row.join(" ")))?;
                row.clear();
            }
        }
    }
    if row.is_empty() { Ok(all) } else { Err(strange("what would be installed", &row.join(" "))) }
}

/// What the rows below a heading are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    /// Packages that stay beside what there is.
    New,
    /// Packages that take the place of others.
    Newer,
    /// Packages that go.
    Gone,
    /// Packages that are left alone; modules, their streams and profiles, and groups, of one or two words.
    Others,
}

impl Section {
    /// None: a heading that is not known.
    fn below(heading: &str) -> Option<Self> {
        let heading = heading.trim_end().trim_end_matches(':').to_lowercase();
        let begins = |word| heading.starts_with(word);
        let others = ["modules", "module streams", "module profiles", "groups"];
        if begins("skipp") || begins("changing reason") || others.iter().any(|end| heading.ends_with(end)) {
            Some(Self::Others)
        } else if begins("remov") {
            Some(Self::Gone)
        } else if begins("install") {
            Some(Self::New)
        } else {
            ["upgrad", "updat", "reinstall", "downgrad"].into_iter().any(begins).then_some(Self::Newer)
        }
    }
}

fn changed(section: Option<Section>, row: &[&str], there: &BTreeSet<PackageName>, all: &mut Transaction) -> Option<()> {
    let package = named(row[0], row[2], row[1])?;
    match section? {
        Section::Others => {}
        Section::Gone => drop(all.removed.insert(package)),
        Section::New => drop(all.changes.insert(Change { from: None, to: package })),
        Section::Newer => drop(all.changes.insert(Change { from: before(there, &package), to: package })),
    }
    Some(())
}

/// `replacing  less.noarch 1-1`, or with dnf 5 `replacing less noarch 1-1 fedora 12 KiB`, which also says so of older builds.
fn replaced(words: &[&str], all: &mut Transaction) -> Option<()> {
    let package = match words {
        [_, name_arch, evr] => {
            let (name, arch) = name_arch.rsplit_once('.')?;
            named(name, evr, arch)?
        }
        [_, name, arch, evr, ..] => named(name, evr, arch)?,
        _ => return None,
    };
    if !all.changes.iter().any(|change| change.to.name() == package.name()) {
        all.removed.insert(package);
    }
    Some(())
}

pub(crate) fn download(manager: Manager, wanted: &BTreeSet<PackageName>) -> Vec<String> {
    let mut argv = cached(manager, &["-y", "--downloadonly"], wanted);
    argv.retain(|word| word != "-C");
    argv
}

pub(crate) async fn install(manager: Manager, host: &OnHost, transaction: &Transaction) -> Result<()> {
    let out = host.run(&cached(manager, &["-y"], &transaction.wanted)).await?;
    done("install packages", &out)?;
    // a script that fails after the installation is only a warning
    let failed = |line: &&str| line.contains("scriptlet failed") || line.starts_with("Non-fatal POST");
    let lines = out.stdout.lines().chain(out.stderr.lines()).filter(failed).collect::<Vec<_>>();
    if lines.is_empty() { Ok(()) } else { Err(node::Error::failed(format!("a script of a package failed: {}", lines.join("; ")))) }
}

pub(crate) async fn recover(manager: Manager, host: &OnHost, interrupted: Option<&Transaction>) -> Result<()> {
    let there = installed(host).await?;
    let twice = twice(&there, interrupted);
    if twice.is_empty() {
        return Ok(());
    }
    // the new build once more, with its scripts, and the old one away
    let argv: Vec<String> = match manager {
        Manager::Dnf4 => ["dnf", "-y", "remove", "--duplicates"].map(str::to_owned).into(),
        Manager::Yum => ["package-cleanup", "-y", "--cleandupes"].map(str::to_owned).into(),
        _ => ["dnf5", "-y", "reinstall"].map(str::to_owned).into_iter().chain(twice.iter().map(|p| with_epoch(p))).collect(),
    };
    done("remove what is installed twice", &host.run(&argv).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transaction::tests::{listed, shown};

    fn names(texts: &[&str]) -> BTreeSet<PackageName> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn dry(printed: &str, there: &[&str]) -> String {
        shown(&transaction(table(printed).unwrap(), &names(there), &BTreeSet::new()).unwrap())
    }

    #[test]
    fn what_is_available() {
        let there = names(&["lab-good-1-1.noarch", "lab-base-1-1.noarch"]);
        let lines = include_str!("../fixtures/dnf4-repoquery.txt").lines().filter(|line| !line.is_empty());
        let upgrades: Vec<_> = lines.filter_map(|line| upgrade(line, &there).unwrap()).collect();
        insta::assert_snapshot!(listed(&upgrades), @r"
        lab-base-1-1.noarch -> lab-base-2-1.noarch 2026-11-21T15:24:00Z 6334 None
        ? -> lab-broken-2-1.noarch 2026-11-21T15:24:00Z 6407 None
        lab-good-1-1.noarch -> lab-good-2-1.noarch 2026-11-21T15:24:00Z 6350 None
        ? -> lab-lost-2-1.noarch 2026-11-21T15:24:00Z 6354 None
        ? -> lab-needy-2-1.noarch 2026-11-21T15:24:00Z 6349 None
        ? -> lab-stuck-2-1.noarch 2026-11-21T15:24:00Z 6433 None
        ");
        // seconds, as dnf 5 and yum print them, and an epoch
        let upgrade = upgrade("kernel\t1\t6.1\t2.el9\tx86_64\t1700000000\t123", &BTreeSet::new()).unwrap().unwrap();
        insta::assert_snapshot!(listed(&[upgrade]), @r"? -> kernel-1:6.1-2.el9.x86_64 2023-11-14T22:13:20Z 123 Some(Kernel)");
        assert!(super::upgrade("warning: something", &there).is_err());
    }

    #[test]
    fn the_table_of_dnf_4() {
        let there = ["lab-good-1-1.noarch", "lab-base-1-1.noarch", "lab-needy-1-1.noarch"];
        insta::assert_snapshot!(dry(include_str!("../fixtures/dnf4-upgrade.txt"), &there), @r"
        + lab-extra-2-1.noarch
        lab-base-1-1.noarch -> lab-base-2-1.noarch
        lab-good-1-1.noarch -> lab-good-2-1.noarch
        lab-needy-1-1.noarch -> lab-needy-2-1.noarch
        ");
        assert_eq!(dry(include_str!("../fixtures/dnf4-impossible.txt"), &there), "", "what is skipped is not part of it");
        let conflicts = dry(include_str!("../fixtures/dnf4-conflicts.txt"), &there);
        assert_eq!(conflicts, "lab-good-1-1.noarch -> lab-good-2-1.noarch", "nor what is in conflict with others");
        // put together by hand: long names, a kernel whose oldest goes, and a package that is replaced by one of another name
        insta::assert_snapshot!(dry(include_str!("../fixtures/dnf4-wide.txt"), &["lab-with-a-very-long-name-that-does-not-fit-1-1.noarch"]), @r"
        + kernel-6.1-3.x86_64
        + lab-new-2-1.noarch
        lab-with-a-very-long-name-that-does-not-fit-1-1.noarch -> lab-with-a-very-long-name-that-does-not-fit-2-1.noarch
        - kernel-6.1-1.x86_64
        - lab-old-1-1.noarch
        ");
    }

    /// In the form of `list_transaction` in dnf 4.14's `cli/output.py`.
    #[test]
    fn rows_of_packages_that_stay_and_of_no_packages_are_no_changes() {
        insta::assert_snapshot!(dry(include_str!("../fixtures/dnf4-modules.txt"), &["httpd-1-1.x86_64", "ruby-libs-1-1.x86_64"]), @r"
        + mod_http2-1.11.3-3.x86_64
        httpd-1-1.x86_64 -> httpd-2-1.x86_64
        - old-tool-1-1.noarch
        ");
        assert!(transaction("Exchanging:\n a noarch 1-1 lab 1 k\n", &names(&[]), &names(&[])).is_err(), "a heading that is not known");
    }

    /// Not from a run of ours, but in the form of reports to its developers.
    #[test]
    fn the_table_of_dnf_5() {
        let printed = "Updating and loading repositories:\nRepositories loaded.\n\
            Package                      Arch   Version                 Repository      Size\n\
            Upgrading:\n efi-filesystem              noarch 5-13.fc41               updates      0.0   B\n   \
            replacing efi-filesystem  noarch 5-12.fc41               fedora       0.0   B\n \
            qemu-img                    x86_64 2:9.1.2-1.fc41          updates     22.9 MiB\n   \
            replacing qemu-img        x86_64 2:9.1.1-2.fc41          updates     22.9 MiB\n\
            Installing:\n openh264                    x86_64 0:2.6.0-2.fc43          cisco        1.1 MiB\n   \
            replacing noopenh264      x86_64 0:2.6.0-1.fc43          fedora      39.2 KiB\n\n\
            Transaction Summary:\n Installing:         1 package\n";
        insta::assert_snapshot!(dry(printed, &["efi-filesystem-5-12.fc41.noarch", "qemu-img-2:9.1.1-2.fc41.x86_64"]), @r"
        + openh264-2.6.0-2.fc43.x86_64
        efi-filesystem-5-12.fc41.noarch -> efi-filesystem-5-13.fc41.noarch
        qemu-img-2:9.1.1-2.fc41.x86_64 -> qemu-img-2:9.1.2-1.fc41.x86_64
        - noopenh264-2.6.0-1.fc43.x86_64
        ");
    }

    /// Neither from a run of ours, but in the form of what its users report.
    #[test]
    fn the_table_of_yum() {
        let printed = "Resolving Dependencies\n--> Running transaction check\n---> Package lab.x86_64 0:1-1 will be updated\n\
            --> Finished Dependency Resolution\n\nDependencies Resolved\n\n================================\n \
            Package        Arch       Version             Repository       Size\n================================\n\
            Updating:\n lab            x86_64     2-1                 base             93 k\n\
            Installing for dependencies:\n lab-new        noarch     1.5-11.el7          base            1.1 M\n     \
            replacing  lab-old.noarch 1-1\n\
            Updating for dependencies:\n lab-libs       x86_64     1:1.0.2k-12.el7     base            1.2 M\n\
            Skipped (dependency problems):\n lab-lost       noarch     2-1                 base            6.2 k\n\n\
            Transaction Summary\n================================\nUpgrade  1 Package (+1 Dependent package)\n\nExiting on user command\n";
        insta::assert_snapshot!(dry(printed, &["lab-1-1.x86_64", "lab-libs-1:1.0.1e-60.el7_3.1.x86_64"]), @r"
        + lab-new-1.5-11.el7.noarch
        lab-1-1.x86_64 -> lab-2-1.x86_64
        lab-libs-1:1.0.1e-60.el7_3.1.x86_64 -> lab-libs-1:1.0.2k-12.el7.x86_64
        - lab-old-1-1.noarch
        ");
    }

    #[test]
    fn why_not() {
        let all = [
            include_str!("../fixtures/dnf4-impossible.txt"),
            include_str!("../fixtures/dnf4-unknown.txt"),
            include_str!("../fixtures/dnf4-half.txt"),
        ];
        insta::assert_snapshot!(all.map(why).join("\n"), @r"
        Problem: cannot install the best update candidate for package lab-lost-1-1.noarch; nothing provides lab-nowhere needed by lab-lost-2-1.noarch; Nothing to do.
        No match for argument: lab-good-0:3-1.noarch
        No match for argument: lab-good-0:3-1.noarch
        ");
        assert_eq!(table(all[1]), None);
    }
}

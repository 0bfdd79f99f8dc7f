//! rpm(8): what is installed, and how its packages are named.

use std::collections::BTreeSet;

use node::Result;
use updates::PackageName;

use crate::manager::{by_name, done};
use crate::{OnHost, Transaction};

/// A package's name; `evr` may have an epoch before its version. rpm takes no epoch for 0.
pub(crate) fn named(name: &str, evr: &str, arch: &str) -> Option<PackageName> {
    let evr = evr.strip_prefix("0:").unwrap_or(evr);
    format!("{name}-{evr}.{arch}").parse().ok()
}

/// What rpm, dnf and zypper take in any place: always with the epoch, which is 0 if there is none.
pub(crate) fn with_epoch(package: &PackageName) -> String {
    let text = package.to_string();
    let evr = text.strip_prefix(package.name()).and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
    if evr.contains(':') { text } else { format!("{}-0:{evr}", package.name()) }
}

pub(crate) async fn installed(host: &OnHost) -> Result<BTreeSet<PackageName>> {
    let out = host.run(&["rpm", "-qa", "--qf", "%{NAME}\\t%{EPOCHNUM}:%{VERSION}-%{RELEASE}\\t%{ARCH}\\n"]).await?;
    done("list packages", &out)?;
    // keys of signatures are packages there, without an architecture
    Ok(out.stdout.lines().filter_map(line).collect())
}

fn line(line: &str) -> Option<PackageName> {
    let mut fields = line.split('\t');
    named(fields.next()?, fields.next()?, fields.next()?)
}

/// The installed build of the package that `to` takes the place of: of the same architecture, or the only one.
pub(crate) fn before(installed: &BTreeSet<PackageName>, to: &PackageName) -> Option<PackageName> {
    let names = by_name(installed);
    let builds = names.get(to.name())?;
    let arch = |p: &PackageName| p.to_string().rsplit('.').next().unwrap_or_default().to_owned();
    let same: Vec<_> = builds.iter().filter(|p| arch(p) == arch(to)).collect();
    match (same.as_slice(), builds.as_slice()) {
        ([one], _) => Some((**one).clone()),
        (_, [one]) => Some((*one).clone()),
        _ => None,
    }
}

/// What a transaction that was killed has left twice: the new build was installed, and the old one not yet removed.
pub(crate) fn twice<'a>(installed: &BTreeSet<PackageName>, interrupted: Option<&'a Transaction>) -> Vec<&'a PackageName> {
    let changes = interrupted.into_iter().flat_map(|t| &t.changes);
    let both = changes.filter(|c| installed.contains(&c.to) && c.from.as_ref().is_some_and(|from| installed.contains(from)));
    both.map(|change| &change.to).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Change;

    #[test]
    fn what_is_installed() {
        let all: Vec<_> = include_str!("../fixtures/rpm-installed.txt").lines().filter_map(line).map(|p| p.to_string()).collect();
        insta::assert_snapshot!(all.join(" "), @r"lab-stuck-1-1.noarch lab-shell-1-1.noarch lab-needy-1-1.noarch lab-lost-1-1.noarch lab-good-1-1.noarch lab-broken-1-1.noarch lab-base-1-1.noarch");
        assert_eq!(line("gpg-pubkey\t0:fd431d51-4ae0493b\t(none)"), None);
        assert_eq!(line("vim\t2:8.0-1\tx86_64").unwrap().to_string(), "vim-2:8.0-1.x86_64");
    }

    #[test]
    fn the_build_whose_place_is_taken() {
        let name = |text: &str| text.parse::<PackageName>().unwrap();
        let there = ["glibc-1-1.x86_64", "glibc-1-1.i686", "tz-1-1.noarch", "kernel-1-1.x86_64", "kernel-2-1.x86_64"].map(name).into();
        let before = |text: &str| before(&there, &name(text)).map(|p| p.to_string());
        assert_eq!(before("glibc-2-1.i686").as_deref(), Some("glibc-1-1.i686"));
        assert_eq!(before("tz-2-1.x86_64").as_deref(), Some("tz-1-1.noarch"), "the architecture has changed");
        assert_eq!(before("kernel-3-1.x86_64"), None, "beside the others");
        assert_eq!(before("new-1-1.noarch"), None);
    }

    #[test]
    fn epochs() {
        let name = |text: &str| text.parse::<PackageName>().unwrap();
        assert_eq!(with_epoch(&name("a-b-1-1.noarch")), "a-b-0:1-1.noarch");
        assert_eq!(with_epoch(&name("a-b-3:1-1.noarch")), "a-b-3:1-1.noarch");
        assert_eq!(named("a", "0:1-1", "noarch"), Some(name("a-1-1.noarch")));
    }

    #[test]
    fn only_what_is_there_in_both_builds_is_there_twice() {
        let name = |text: &str| text.parse::<PackageName>().unwrap();
        let change = |from: Option<&str>, to| Change { from: from.map(name), to: name(to) };
        let changes =
            [change(Some("a-1-1.noarch"), "a-2-1.noarch"), change(Some("b-1-1.noarch"), "b-2-1.noarch"), change(None, "kernel-2-1.noarch")];
        let transaction = Transaction { changes: changes.into(), ..Transaction::default() };
        let there = ["a-1-1.noarch", "a-2-1.noarch", "b-1-1.noarch", "kernel-1-1.noarch", "kernel-2-1.noarch"].map(name).into();
        assert_eq!(twice(&there, Some(&transaction)), [&name("a-2-1.noarch")]);
        assert!(twice(&there, None).is_empty());
    }
}

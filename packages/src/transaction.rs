use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use updates::{Bans, Impact, PackageName};

/// A newer build of a package than the one that is installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    /// What would be installed.
    pub package: PackageName,
    /// What is installed now.
    pub installed: Option<PackageName>,
    /// When it was built, where the repository says so; it was published then or a little later.
    pub published: Option<Timestamp>,
    /// What there is to download, in bytes, where the repository says so; what it depends on is not counted.
    pub download: Option<u64>,
    /// What it disturbs on the node.
    pub impact: Option<Impact>,
}

/// One package of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Change {
    /// What is installed before; None: nothing, or what is stays beside it, as kernels do.
    pub from: Option<PackageName>,
    /// What is installed then.
    pub to: PackageName,
}

/// Exactly what a package manager would do, or did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Transaction {
    /// What it is for; the other changes are what this depends on.
    pub wanted: BTreeSet<PackageName>,
    /// All that is installed.
    pub changes: BTreeSet<Change>,
    /// What goes without a successor of its name: what something new replaces, or the oldest kernel.
    pub removed: BTreeSet<PackageName>,
}

impl Transaction {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.removed.is_empty()
    }

    /// Everything that it installs.
    pub fn packages(&self) -> impl Iterator<Item = &PackageName> {
        self.changes.iter().map(|change| &change.to)
    }

    /// What it disturbs on the node.
    pub fn impact(&self) -> BTreeSet<Impact> {
        self.packages().chain(&self.removed).filter_map(|p| Impact::of(p.name())).collect()
    }

    /// Why it must not be, if so: it lacks something that it is for, or has something that is banned.
    pub(crate) fn objection(&self, bans: &Bans<'_>) -> Option<String> {
        let to: BTreeSet<_> = self.packages().collect();
        if let Some(banned) = self.packages().find(|p| bans.include(p)) {
            return Some(format!("would also install {banned}, which is banned"));
        }
        self.wanted.iter().find(|w| !to.contains(w)).map(|missing| format!("{missing} would not be installed"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// For snapshots: a line per change.
    pub(crate) fn shown(transaction: &Transaction) -> String {
        let change = |c: &Change| match &c.from {
            Some(from) => format!("{from} -> {}", c.to),
            None => format!("+ {}", c.to),
        };
        let removed = transaction.removed.iter().map(|r| format!("- {r}"));
        transaction.changes.iter().map(change).chain(removed).collect::<Vec<_>>().join("\n")
    }

    /// The same for upgrades.
    pub(crate) fn listed(upgrades: &[Upgrade]) -> String {
        let line = |u: &Upgrade| {
            let installed = u.installed.as_ref().map_or("?".to_owned(), ToString::to_string);
            let published = u.published.map_or("?".to_owned(), |time| time.to_string());
            let download = u.download.map_or("?".to_owned(), |bytes| bytes.to_string());
            format!("{installed} -> {} {published} {download} {:?}", u.package, u.impact)
        };
        upgrades.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn it_objects_to_bans_and_to_what_is_missing() {
        let name = |text: &str| text.parse::<PackageName>().unwrap();
        let (a, b) = (name("a-2-1.noarch"), name("b-1:2-1.noarch"));
        let mut transaction = Transaction { wanted: [a.clone()].into(), ..Transaction::default() };
        assert_eq!(transaction.objection(&Bans::default()).unwrap(), "a-2-1.noarch would not be installed");
        transaction.changes.extend([Change { from: None, to: a }, Change { from: None, to: b }]);
        assert_eq!(transaction.objection(&Bans::default()), None);
        let ban = [name("b-2-1.noarch")];
        assert_eq!(transaction.objection(&ban.iter().collect()).unwrap(), "would also install b-1:2-1.noarch, which is banned");
    }
}

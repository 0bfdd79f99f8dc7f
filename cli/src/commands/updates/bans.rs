use std::collections::BTreeMap;

use clap::Args;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use node::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use updates::edit::Edit;
use updates::names::BANS_ANNOTATION;
use updates::{Bans, Item, suggestion};

use super::access::{Objects, QUESTION, Reach};
use super::{change, reports, when};
use crate::output;

#[derive(Debug, Args)]
pub struct Ban {
    /// A build, as in bash-4.2.46-34.vl7.x86_64 or bash=5.2.15-2+b8, or a live patch, as in 123-4-r5
    #[arg(value_name = "ITEM", required = true)]
    items: Vec<String>,
}

impl Ban {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        let objects = reach.open(QUESTION).await?;
        let available = reports::available(objects.read_node_updates().await?);
        let banned = banned(&objects).await?;
        let items = self.items.iter().map(|text| to_ban(text, &available, &banned)).collect::<Result<Vec<_>>>()?;
        change::apply(&objects, &items.into_iter().map(Edit::Ban).collect::<Vec<_>>()).await
    }
}

#[derive(Debug, Args)]
pub struct Unban {
    /// What is banned, as `smartup updates bans` shows it
    #[arg(value_name = "ITEM", required = true)]
    items: Vec<String>,
}

impl Unban {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        let objects = reach.open(QUESTION).await?;
        let banned = banned(&objects).await?;
        let items = self.items.iter().map(|text| item(text, &banned)).collect::<Result<Vec<_>>>()?;
        change::apply(&objects, &items.into_iter().map(Edit::Unban).collect::<Vec<_>>()).await
    }
}

#[derive(Debug, Args)]
pub struct List {}

impl List {
    pub async fn run(self, reach: &Reach) -> Result<()> {
        let manager = change::raw(&reach.open(QUESTION).await?.manager().await?)?;
        anstream::println!("{}", in_words(&manager, Zoned::now().time_zone()));
        Ok(())
    }
}

async fn banned(objects: &Objects) -> Result<Vec<Item>> {
    let manager = change::raw(&objects.manager().await?)?;
    Ok(lists(&manager).filter_map(|(_, text)| text.parse().ok()).collect())
}

/// All that is banned, also what smartup does not understand.
fn lists(manager: &Value) -> impl Iterator<Item = (&'static str, &str)> {
    [("package", "bannedPackages"), ("live patch", "bannedPatches")].into_iter().flat_map(|(kind, list)| {
        let entries = manager.get("spec").and_then(|s| s.get(list)?.as_array()).map(Vec::as_slice).unwrap_or_default();
        entries.iter().filter_map(move |e| Some((kind, e.as_str()?)))
    })
}

/// What smartup has noted of a ban of its own.
#[derive(Debug, Deserialize)]
struct Note {
    at: Timestamp,
    node: String,
    why: String,
}

/// The notes that are understood, by item.
fn notes(manager: &Value) -> BTreeMap<String, Note> {
    let text = manager.pointer("/metadata/annotations").and_then(|a| a.get(BANS_ANNOTATION)?.as_str());
    let all: BTreeMap<String, Value> = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    all.into_iter().filter_map(|(item, note)| Some((item, Note::deserialize(note).ok()?))).collect()
}

fn in_words(manager: &Value, zone: &TimeZone) -> String {
    let notes = notes(manager);
    let row = |(kind, text): (&str, &str)| {
        let note = notes.get(text).map(|note| (when::both(note.at, zone), format!("{}: {}", note.node, note.why)));
        let (since, why) = note.unwrap_or_else(|| ("-".into(), "-".into()));
        vec![text.to_owned(), kind.to_owned(), since, why]
    };
    let rows: Vec<_> = lists(manager).map(row).collect();
    if rows.is_empty() { "Nothing is banned.".into() } else { output::table(&["item", "kind", "since", "why"], rows) }
}

fn item(text: &str, known: &[Item]) -> Result<Item> {
    text.parse().map_err(|e: cluster::Invalid| {
        let error = Error::from(e);
        match suggestion(text, known) {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error,
        }
    })
}

/// A slip of the pen would ban nothing, and nobody would see it. Where no node lists any of the kind, all is taken.
fn to_ban(text: &str, available: &[Item], banned: &[Item]) -> Result<Item> {
    let item = item(text, available)?;
    let is_one = |known: &Item| match (&item, known) {
        (Item::Package(ban), Item::Package(known)) => std::iter::once(ban).collect::<Bans<'_>>().include(known),
        (ban, known) => ban == known,
    };
    let of_kind = |known: &Item| std::mem::discriminant(known) == std::mem::discriminant(&item);
    if !available.iter().any(of_kind) || available.iter().any(is_one) || banned.contains(&item) {
        return Ok(item);
    }
    let hint = match suggestion(text, available) {
        Some(near) => format!("did you mean {near}?"),
        None => "to ban it all the same: kubectl -n vz-maintenance-operator edit updatemanagers default".into(),
    };
    Err(Error::invalid(format!("{item} is available on no node; nothing was changed")).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn items(texts: &[&str]) -> Vec<Item> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    fn said(answer: Result<Item>) -> String {
        match answer {
            Ok(item) => format!("{item} is taken"),
            Err(e) => format!("{:?}: {}; hint: {}", e.kind, e.chain(), e.hint.unwrap_or_default()),
        }
    }

    #[test]
    fn what_no_node_lists_is_refused_with_the_nearest() {
        let available = items(&["bash-4.2.46-35.vl7.x86_64", "vim-minimal-2:8.0.1763-19.el8_6.4.x86_64", "bash=5.2.15-2+b8"]);
        let banned = items(&["old-1-1.noarch"]);
        let texts = [
            "bash-4.2.46-35.vl7.x86_64",
            "bash-4.2.46-34.vl7.x86_64",
            "bash-4.2.46",
            "bash",
            "vim-minimal-8.0.1763-19.el8_6.4.x86_64",
            "old-1-1.noarch",
            "postgresql-15.0-1.el9.x86_64",
            "123-4-r5",
            "123-4-5",
        ];
        insta::assert_snapshot!(texts.map(|t| said(to_ban(t, &available, &banned))).join("\n"), @r"
        bash-4.2.46-35.vl7.x86_64 is taken
        Invalid: bash-4.2.46-34.vl7.x86_64 is available on no node; nothing was changed; hint: did you mean bash-4.2.46-35.vl7.x86_64?
        Invalid: package 'bash-4.2.46': is not of the form <name>-<version>-<release>.<arch>, as in bash-4.2.46-34.vl7.x86_64, nor <name>=<version>, as in bash=5.2.15-2+b8; hint: did you mean bash-4.2.46-35.vl7.x86_64?
        Invalid: package 'bash': is not of the form <name>-<version>-<release>.<arch>, as in bash-4.2.46-34.vl7.x86_64, nor <name>=<version>, as in bash=5.2.15-2+b8; hint: did you mean bash=5.2.15-2+b8?
        vim-minimal-8.0.1763-19.el8_6.4.x86_64 is taken
        old-1-1.noarch is taken
        Invalid: postgresql-15.0-1.el9.x86_64 is available on no node; nothing was changed; hint: to ban it all the same: kubectl -n vz-maintenance-operator edit updatemanagers default
        123-4-r5 is taken
        Invalid: patch '123-4-5': is not of the form X-Y-rZ, as in 123-4-r5; hint:
        ");
        assert_eq!(said(to_ban("postgresql-15.0-1.el9.x86_64", &items(&["123-4-r5"]), &[])), "postgresql-15.0-1.el9.x86_64 is taken");
    }

    #[test]
    fn what_is_banned() {
        let said = |manager| in_words(&manager, &TimeZone::UTC);
        assert_eq!(said(json!({ "spec": {} })), "Nothing is banned.");
        let note = json!({ "by": "smartup", "node": "h4", "at": "2026-11-21T12:00:00Z", "why": "the host rebooted" });
        let notes = json!({ "bash-4.2.46-34.vl7.x86_64": note, "gone-1-1.noarch": note, "123-4-r5": "nobody knows" });
        insta::assert_snapshot!(said(json!({
            "metadata": { "annotations": { BANS_ANNOTATION: notes.to_string() } },
            "spec": { "bannedPackages": ["bash-4.2.46-34.vl7.x86_64", "not a package"], "bannedPatches": ["123-4-r5"] },
        })), @r"
        ITEM                        KIND         SINCE                      WHY
        bash-4.2.46-34.vl7.x86_64   package      Sat 2026-11-21 12:00 UTC   h4: the host rebooted
        not a package               package      -                          -
        123-4-r5                    live patch   -                          -
        ");
    }
}

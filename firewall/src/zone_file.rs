//! The files that firewalld writes by itself as soon as a zone is changed: a copy of the zone, and the one before it. They
//! stay when the change is taken back, and would hide what a later firewalld ships.

use std::path::{Path, PathBuf};

use node::{FileState, Host, Result, Undone, read_optional, remove_file, write_atomically};
use serde::{Deserialize, Serialize};

use crate::undo::Did;

/// A zone's files before it was changed; None = there was none, and firewalld's own holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ZoneFiles {
    zone: String,
    now: Option<FileState>,
    old: Option<FileState>,
}

fn written(zone: &str) -> PathBuf {
    Path::new("/etc/firewalld/zones").join(format!("{zone}.xml"))
}

fn backup(zone: &str) -> PathBuf {
    Path::new("/etc/firewalld/zones").join(format!("{zone}.xml.old"))
}

fn shipped(zone: &str) -> PathBuf {
    Path::new("/usr/lib/firewalld/zones").join(format!("{zone}.xml"))
}

/// Writes a zone's files to the journal, unless they are there from an earlier change.
pub(crate) fn remember(host: &Host, zone: &str) -> Result<()> {
    let known = host.journal.entries().iter().filter_map(|e| Did::of(&e.undo)).any(|d| matches!(d, Did::Zone(z) if z.zone == zone));
    if known {
        return Ok(());
    }
    let files = ZoneFiles { zone: zone.to_owned(), now: read_optional(&written(zone))?, old: read_optional(&backup(zone))? };
    host.journal.record(Did::Zone(files).undo()?)
}

/// Puts a zone's files back, if the zone is again what it was; firewalld notices by itself.
pub(crate) fn undo(files: &ZoneFiles) -> Result<Undone> {
    let zone = &files.zone;
    let (path, old) = (written(zone), backup(zone));
    let now = read_optional(&path)?;
    if now == files.now && read_optional(&old)? == files.old {
        return Ok(Undone::gone(format!("file {}", path.display())));
    }
    let before = match &files.now {
        Some(f) => Some(f.clone()),
        None => read_optional(&shipped(zone))?,
    };
    if let (Some(now), Some(before)) = (&now, &before)
        && tags(&now.content) != tags(&before.content)
    {
        return Ok(Undone::kept(format!("file {} was edited since and is kept", path.display())));
    }
    put(&path, files.now.as_ref())?;
    put(&old, files.old.as_ref())?;
    Ok(Undone::back(format!("file {} as before", path.display())))
}

fn put(path: &Path, state: Option<&FileState>) -> Result<()> {
    match state {
        Some(f) => write_atomically(path, &f.content, f.mode),
        None => remove_file(path),
    }
}

/// What an XML file says, whatever its order and its white space: its tags. Texts are left out (a zone's describe it).
fn tags(xml: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(xml);
    let mut rest = text.as_ref();
    let mut tags = Vec::new();
    while let Some(begin) = rest.find('<') {
        rest = &rest[begin..];
        let (skip, end) = if rest.starts_with("<!--") { (true, "-->") } else { (rest.starts_with("<?"), ">") };
        let Some(close) = rest.find(end) else { break };
        if !skip {
            let words: Vec<&str> = rest[1..close].trim_end_matches('/').split_whitespace().collect();
            tags.push(words.join(" "));
        }
        rest = &rest[close + end.len()..];
    }
    tags.sort_unstable();
    tags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_zone_says_whatever_its_form() {
        let one = r#"<?xml version="1.0"?><zone target="default"><!-- <port port="1"/> --><service name="ssh" />
            <port  protocol="tcp"/></zone>"#;
        let two = r#"<zone target="default"><port protocol="tcp"/>  <service name="ssh"/></zone>"#;
        assert_eq!(tags(one.as_bytes()), tags(two.as_bytes()));
        assert_eq!(tags(b"<a/><b c=\"d\"/>"), ["a", "b c=\"d\""]);
        assert_ne!(tags(b"<a/>"), tags(b"<a/><a/>"));
        assert_eq!(tags(b"<unfinished"), Vec::<String>::new());
    }
}

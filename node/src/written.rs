use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::journal::sha256;
use crate::{Journal, Result, Undo, install, read_optional};

/// How a file that smartup wrote stands now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileStands {
    /// As smartup wrote it.
    AsExpected,
    /// Somebody edited it since.
    Edited,
    /// Somebody removed it.
    Missing,
}

/// A file that smartup wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WrittenFile {
    /// Where.
    pub path: PathBuf,
    /// How it stands now.
    pub stands: FileStands,
}

/// All files that smartup wrote on this host, by path, compared with what it wrote last.
///
/// # Errors
/// When one is there and cannot be read.
pub fn written_files(journal: &Journal) -> Result<Vec<WrittenFile>> {
    let mut last = BTreeMap::new();
    for entry in journal.entries() {
        match entry.undo {
            Undo::File { path, after, .. } => last.insert(path, (after, false)),
            Undo::Installed { path, after, .. } => last.insert(path, (after, true)),
            _ => None,
        };
    }
    last.into_iter()
        .map(|(path, (after, large))| {
            let now = if large { install::hash(&path).ok() } else { read_optional(&path)?.map(|f| sha256(&f.content)) };
            let stands = match now {
                None => FileStands::Missing,
                Some(now) if now == after => FileStands::AsExpected,
                Some(_) => FileStands::Edited,
            };
            Ok(WrittenFile { path, stands })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_with_what_was_written_last() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path().join("j/journal.jsonl")).unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, after) in [("a", "one"), ("a", "two"), ("b", "b"), ("c", "c")] {
            journal.record(Undo::File { path: path(name), before: None, after: sha256(after.as_bytes()) }).unwrap();
        }
        std::fs::write(path("a"), "two").unwrap();
        std::fs::write(path("b"), "edited").unwrap();
        let stands: Vec<_> = written_files(&journal).unwrap().into_iter().map(|f| f.stands).collect();
        assert_eq!(stands, [FileStands::AsExpected, FileStands::Edited, FileStands::Missing]);
    }
}

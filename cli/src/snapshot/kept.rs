//! The token that belongs to a snapshot: without it nobody can restore the snapshot, since k3s encrypts the cluster's keys with it.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cluster::Token;
use node::{Context as _, Result, read_optional, write_atomically};

use super::told::Keeping;
use crate::age;

/// Where the token of a snapshot is kept: in a folder beside k3s's. In that one k3s takes every file for a snapshot.
fn place(snapshot: &Path) -> PathBuf {
    let name = snapshot.file_name().unwrap_or_default();
    snapshot.parent().unwrap_or(Path::new("/")).with_file_name("snapshot-tokens").join(name)
}

fn with(path: &Path, end: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(end);
    path.into()
}

/// Keeps the token, for root alone; encrypted if there is somebody to encrypt it for.
///
/// # Errors
/// When it cannot be written.
pub fn keep(snapshot: &Path, token: &Token, recipients: &[age::Recipient]) -> Result<Keeping> {
    let place = place(snapshot);
    let folder = place.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).context(format!("cannot make {}", folder.display()))?;
    let text = format!("{}\n", token.expose());
    if recipients.is_empty() {
        write_atomically(&with(&place, ".token"), text.as_bytes(), 0o600)?;
        return Ok(Keeping::Plain);
    }
    let sealed = age::encrypt(text.as_bytes(), recipients)?;
    write_atomically(&with(&place, ".token.age"), &sealed, 0o600)?;
    Ok(Keeping::Encrypted)
}

/// What is kept with a snapshot.
pub enum Kept {
    /// The token.
    Plain(Token),
    /// The same, encrypted, in base64.
    Sealed(String),
    /// Nothing.
    None,
}

impl Kept {
    /// Looks for it: beside the snapshot, where both were copied to one folder, and where smartup keeps it.
    ///
    /// # Errors
    /// When it is there and cannot be read, or is no token.
    pub fn of(snapshot: &Path) -> Result<Self> {
        for place in [snapshot.to_owned(), place(snapshot)] {
            if let Some(file) = read_optional(&with(&place, ".token"))? {
                return Ok(Self::Plain(Token::parse(&String::from_utf8_lossy(&file.content))?));
            }
            if let Some(file) = read_optional(&with(&place, ".token.age"))? {
                return Ok(Self::Sealed(BASE64_STANDARD.encode(file.content)));
            }
        }
        Ok(Self::None)
    }

    /// How it is kept.
    pub fn keeping(&self) -> Keeping {
        match self {
            Self::Plain(_) => Keeping::Plain,
            Self::Sealed(_) => Keeping::Encrypted,
            Self::None => Keeping::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_found_again_beside_it_and_where_it_was_kept() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let snapshot = dir.path().join("snapshots/s-1");
        fs::create_dir(dir.path().join("snapshots")).unwrap();
        assert_eq!(Kept::of(&snapshot).unwrap().keeping(), Keeping::None);
        let token = Token::parse("s3cret").unwrap();
        assert_eq!(keep(&snapshot, &token, &[]).unwrap(), Keeping::Plain);
        let kept = dir.path().join("snapshot-tokens/s-1.token");
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(matches!(Kept::of(&snapshot).unwrap(), Kept::Plain(t) if t.expose() == "s3cret"));
        let copy = dir.path().join("copy");
        fs::copy(&kept, dir.path().join("copy.token")).unwrap();
        assert!(matches!(Kept::of(&copy).unwrap(), Kept::Plain(t) if t.expose() == "s3cret"));
    }
}

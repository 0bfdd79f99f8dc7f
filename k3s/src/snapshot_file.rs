use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use cluster::Token;
use node::{Context as _, Error, Result, hex};
use sha2::{Digest as _, Sha256};

/// What bbolt's first page has after its 16 bytes of head: its magic number, then the version of its format (bbolt's page.go, db.go).
const MAGIC: [u8; 8] = [0xed, 0xda, 0x0c, 0xed, 2, 0, 0, 0];
/// Where.
const AT: usize = 16;
/// etcd's databases are whole pages, of at least this size in bytes; behind the last one a snapshot has its SHA-256.
const PAGE: u64 = 512;
const HASH: u64 = 32;
/// Under this key k3s keeps the cluster's keys, encrypted with the token, and after it 12 digits of the token's SHA-256
/// (its pkg/cluster/encrypt.go).
const KEY: &[u8] = b"/bootstrap/";
const DIGITS: usize = 12;

/// What is in a snapshot, as far as it matters before it is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFile {
    /// What the tokens were hashed to that encrypt the cluster's keys in it. None in those of k3s before 1.20.8.
    tokens: BTreeSet<String>,
}

impl SnapshotFile {
    /// Reads a file, makes sure that it is a whole snapshot of etcd, and looks for what tells its token.
    ///
    /// # Errors
    /// Invalid when it is none, or damaged.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let what = || format!("cannot read {shown}");
        let mut file = File::open(path).context(what())?;
        let size = file.metadata().context(what())?.len();
        let mut head = [0; AT + MAGIC.len()];
        let n = file.read(&mut head).context(what())?;
        if head.starts_with(b"PK\x03\x04") {
            return Err(
                Error::invalid(format!("{shown} is compressed")).hint("unpack it first: unzip; then give the path of what was in it")
            );
        }
        if n < head.len() || head[AT..] != MAGIC {
            return Err(
                Error::invalid(format!("{shown} is not a snapshot of etcd")).hint("smartup snapshot list shows those that are there")
            );
        }
        if size % PAGE != HASH {
            return Err(Error::invalid(format!("{shown} is not a whole snapshot of etcd: it does not end with its checksum"))
                .hint("was it cut off, or is it a copy of etcd's own database? Take another one"));
        }
        let mut found = Scan::default();
        let mut hash = Sha256::new_with_prefix(head);
        let mut left = size - HASH - u64::try_from(n).unwrap_or(0);
        let mut chunk = vec![0; 1 << 20];
        while left > 0 {
            let most = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
            let n = file.read(&mut chunk[..most]).context(what())?;
            if n == 0 {
                return Err(Error::failed(format!("{shown} became shorter while it was read")));
            }
            hash.update(&chunk[..n]);
            found.look(&chunk[..n]);
            left -= u64::try_from(n).unwrap_or(left);
        }
        let mut said = Vec::new();
        file.read_to_end(&mut said).context(what())?;
        if said != hash.finalize().as_slice() {
            return Err(Error::invalid(format!("{shown} is damaged: its checksum is wrong")).hint("take another one, or copy it again"));
        }
        Ok(Self { tokens: found.tokens })
    }

    /// Whether this token encrypts the cluster's keys in it; None when it has no such keys, so that nobody can tell.
    pub fn takes(&self, token: &Token) -> Option<bool> {
        let short = |text: &str| hex(&Sha256::digest(text.as_bytes())).chars().take(DIGITS).collect::<String>();
        // older releases hashed the long form
        let fits = [token.password(), token.expose()].into_iter().any(|t| self.tokens.contains(&short(t)));
        (!self.tokens.is_empty()).then_some(fits)
    }
}

/// Looks for k3s's key in pieces of a file.
#[derive(Default)]
struct Scan {
    tokens: BTreeSet<String>,
    /// The end of the last piece, in which a key may have begun.
    rest: Vec<u8>,
}

impl Scan {
    fn look(&mut self, piece: &[u8]) {
        let mut text = std::mem::take(&mut self.rest);
        text.extend_from_slice(piece);
        let whole = KEY.len() + DIGITS;
        for (at, _) in text.iter().enumerate().filter(|(_, b)| **b == KEY[0]) {
            let digits = text.get(at..at + whole).filter(|t| t.starts_with(KEY)).map(|t| &t[KEY.len()..]);
            if let Some(digits) = digits.filter(|d| d.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))) {
                self.tokens.insert(String::from_utf8_lossy(digits).into_owned());
            }
        }
        self.rest = text.split_off(text.len().saturating_sub(whole - 1));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshot(with: &[u8]) -> Vec<u8> {
        let mut text = vec![0; AT];
        text.extend(MAGIC);
        text.extend(with);
        text.resize(text.len().next_multiple_of(512), 0);
        let hash = Sha256::digest(&text);
        text.extend(hash.as_slice());
        text
    }

    fn read(content: &[u8]) -> Result<SnapshotFile> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        SnapshotFile::read(file.path()).map_err(|mut e| {
            e.what = e.what.replace(&file.path().display().to_string(), "FILE");
            e
        })
    }

    #[test]
    fn tells_the_token() {
        // sha256("s3cret") begins with 1ec1c26b50d5
        let token = Token::parse("s3cret").unwrap();
        let file = read(&snapshot(b"..../bootstrap/1ec1c26b50d5...")).unwrap();
        assert_eq!(file.takes(&token), Some(true));
        assert_eq!(file.takes(&Token::parse("another").unwrap()), Some(false));
        let long = Token::parse(&format!("K10{}::server:s3cret", "ab".repeat(32))).unwrap();
        assert_eq!(file.takes(&long), Some(true));
        assert_eq!(read(&snapshot(b"")).unwrap().takes(&token), None);
        assert_eq!(read(&snapshot(b"/bootstrap/tokens-are-no")).unwrap().takes(&token), None);
    }

    #[test]
    fn takes_nothing_else_for_a_snapshot() {
        let good = snapshot(b"x");
        let says = |content: &[u8]| read(content).unwrap_err().what;
        assert_eq!(says(b""), "FILE is not a snapshot of etcd");
        assert_eq!(says(&[b'x'; 1000]), "FILE is not a snapshot of etcd");
        assert_eq!(says(&[b"PK\x03\x04".as_slice(), &[0; 100]].concat()), "FILE is compressed");
        assert_eq!(says(&good[..good.len() - 1]), "FILE is not a whole snapshot of etcd: it does not end with its checksum");
        assert_eq!(says(&good[..good.len() - 32]), "FILE is not a whole snapshot of etcd: it does not end with its checksum");
        let mut bad = good.clone();
        bad[100] ^= 1;
        assert_eq!(says(&bad), "FILE is damaged: its checksum is wrong");
    }

    proptest! {
        #[test]
        fn a_key_is_found_however_the_file_is_cut(before in 0_usize..40, cuts in prop::collection::vec(1_usize..20, 0..20)) {
            let text = [&vec![b'/'; before][..], b"/bootstrap/0123456789ab", b"/bootstrap"].concat();
            let mut scan = Scan::default();
            let mut rest = text.as_slice();
            for cut in cuts {
                let (piece, more) = rest.split_at(cut.min(rest.len()));
                scan.look(piece);
                rest = more;
            }
            scan.look(rest);
            prop_assert_eq!(scan.tokens.into_iter().collect::<Vec<_>>(), ["0123456789ab"]);
        }
    }
}

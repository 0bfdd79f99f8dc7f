//! Join tokens: `secret`, or `K10<sha256 of the CA bundle>::<user>:<secret>`.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// A token taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Lower-case hex of the CA bundle's hash; absent in a short token.
    pub ca_hash: Option<String>,
    /// `server` or `node`.
    pub user: String,
    /// The secret itself.
    pub password: String,
}

impl Token {
    /// Takes a token apart; a short one belongs to `user`.
    ///
    /// # Errors
    /// A long form without credentials.
    pub fn parse(text: &str, user: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        let Some(long) = text.strip_prefix("K10") else {
            return Ok(Self { ca_hash: None, user: user.to_owned(), password: text.to_owned() });
        };
        let (hash, credentials) = long.split_once("::").unwrap_or(("", long));
        let Some((user, password)) = credentials.split_once(':') else {
            anyhow::bail!("invalid token CA hash length");
        };
        Ok(Self { ca_hash: (!hash.is_empty()).then(|| hash.to_owned()), user: user.to_owned(), password: password.to_owned() })
    }

    /// The long form.
    pub fn long(user: &str, password: &str, ca_bundle: &[u8]) -> String {
        format!("K10{}::{user}:{password}", hash(ca_bundle))
    }
}

/// Hex of the bundle's SHA-256, as `/cacerts` hands the bundle out.
pub fn hash(ca_bundle: &[u8]) -> String {
    hex(&Sha256::digest(ca_bundle))
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// `n` random bytes as hex.
///
/// # Errors
/// The kernel has no randomness to give.
pub fn random_hex(n: usize) -> anyhow::Result<String> {
    let mut bytes = vec![0; n];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("cannot get randomness: {e}"))?;
    Ok(hex(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let t = Token::parse("secret", "node").unwrap();
        assert_eq!((t.ca_hash, t.user.as_str(), t.password.as_str()), (None, "node", "secret"));
        let long = Token::long("server", "a:b", b"bundle");
        let t = Token::parse(&long, "node").unwrap();
        assert_eq!(t.ca_hash.unwrap(), hash(b"bundle"));
        assert_eq!((t.user.as_str(), t.password.as_str()), ("server", "a:b"));
        assert!(Token::parse("K10abc", "node").is_err());
    }
}

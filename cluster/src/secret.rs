use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::Invalid;

/// k3s's join token: a bare secret, or `K10<sha256 of the CA bundle>::<user>:<secret>`, which pins the CA.
///
/// Debug prints nothing of it, and there is no Display: it leaves only through [`Token::expose`].
#[derive(Debug, Clone)]
pub struct Token(SecretString);

impl Token {
    /// Takes what a file holds: one line, surrounding white space ignored.
    ///
    /// # Errors
    /// When it is empty (k3s would start a cluster of its own), has white space, quotes or control characters within
    /// (which an environment file would take apart), or begins like the long form without being one.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let bad = |why: &str| Err(Invalid::secret("token", why));
        let text = text.trim();
        if text.is_empty() {
            return bad("is empty; without a token k3s would silently start a cluster of its own");
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control() || "\"'\\`$#".contains(c)) {
            return bad("has white space, a quote, '\\', '`', '$' or '#' in it, which an environment file cannot carry safely");
        }
        let token = Self(text.to_owned().into());
        if text.starts_with("K10") {
            if token.ca_hash().is_none() {
                return bad("begins with K10 but is not of the form K10<sha256>::<user>:<secret>; was it cut off?");
            }
        } else if text.contains("::") {
            return bad("holds '::' but does not begin with K10; was it cut off?");
        }
        Ok(token)
    }

    /// A new secret of 128 bits, as 32 hexadecimal digits.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0_u8; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(hex(&bytes).into()))
    }

    /// The token itself. Goes into files of mode 0600 and requests, nowhere else.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The CA's hash that the long form pins, in lower case.
    pub fn ca_hash(&self) -> Option<String> {
        let (hash, rest) = self.expose().strip_prefix("K10")?.split_once("::")?;
        let (user, secret) = rest.split_once(':')?;
        let whole = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()) && !user.is_empty() && !secret.is_empty();
        whole.then(|| hash.to_ascii_lowercase())
    }

    /// The part that k3s checks as a password.
    pub fn password(&self) -> &str {
        match self.ca_hash() {
            Some(_) => self.expose().split_once("::").and_then(|(_, r)| r.split_once(':')).map_or("", |(_, s)| s),
            None => self.expose(),
        }
    }

    /// Whether `ca_bundle` (what `/cacerts` answers, byte for byte) is what the token pins; None for a bare secret.
    pub fn matches_ca(&self, ca_bundle: &[u8]) -> Option<bool> {
        self.ca_hash().map(|pinned| pinned == hex(&Sha256::digest(ca_bundle)))
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|n| char::from(DIGITS[usize::from(n)])).collect()
}

/// VRRP version 2's password: at most 8 characters, since keepalived cuts what is longer, and it travels in clear.
#[derive(Debug, Clone)]
pub struct AuthPass(SecretString);

impl AuthPass {
    /// Takes what a file holds: one line, surrounding white space ignored.
    ///
    /// # Errors
    /// When it is empty, longer than 8 characters, or holds what keepalived's configuration would take apart.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let bad = |why: &str| Err(Invalid::secret("VRRP password", why));
        let text = text.trim();
        if text.is_empty() {
            return bad("is empty");
        }
        if text.len() > 8 {
            return bad("has more than 8 characters; keepalived would use the first 8 only");
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) || text.contains(['"', '#', '!', '{', '}', '$', '@', '\\', '~']) {
            return bad("must be printable ASCII without space and without any of \" # ! { } $ @ \\ ~");
        }
        Ok(Self(text.to_owned().into()))
    }

    /// The password itself.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_long_form_pins_the_ca() {
        let t = Token::parse(&format!("K10{HASH}::server:s3cret\n")).unwrap();
        assert_eq!(t.ca_hash().unwrap(), HASH);
        assert_eq!(t.password(), "s3cret");
        assert_eq!(t.matches_ca(b""), Some(true));
        assert_eq!(t.matches_ca(b"x"), Some(false));
        let t = Token::parse("mysecret").unwrap();
        assert_eq!((t.ca_hash(), t.password(), t.matches_ca(b"")), (None, "mysecret", None));
    }

    #[test]
    fn refuses_what_would_break_quietly() {
        for bad in [
            "",
            "  \n",
            "two words",
            "two\nlines",
            "quo\"te",
            "K10abc",
            &format!("K10{HASH}"),
            &format!("K10{HASH}::server:"),
            "x::server:y",
            "a$b",
        ] {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "123456789", "a b", "a\"b", "pass{", "ä"] {
            assert!(AuthPass::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(AuthPass::parse("mypasswd\n").unwrap().expose(), "mypasswd");
    }

    #[test]
    fn does_not_show_itself() {
        let shown = format!("{:?} {:?}", Token::parse("mysecret").unwrap(), AuthPass::parse("mypasswd").unwrap());
        assert!(!shown.contains("mysecret") && !shown.contains("mypasswd"), "{shown}");
        let e = Token::parse("my secret").unwrap_err().to_string();
        assert!(!e.contains("my secret"), "{e}");
    }

    #[test]
    fn generated_tokens_differ() {
        let (a, b) = (Token::generate().unwrap(), Token::generate().unwrap());
        assert_eq!(a.expose().len(), 32);
        assert_ne!(a.expose(), b.expose());
        assert!(Token::parse(a.expose()).is_ok());
    }
}

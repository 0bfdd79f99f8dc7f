use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::names::string_serde;
use crate::{Invalid, Port};

/// What ssh is told to reach a host: a name, an address, or an alias in `~/.ssh/config`.
///
/// Without what a shell or an option parser would take apart: such names have been used to run commands
/// (CVE-2017-1000117, CVE-2023-51385).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SshHost(String);

impl SshHost {
    /// As it was written, an IPv6 address without brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, where it is one.
    pub fn addr(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }
}

impl FromStr for SshHost {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |why: &str| Err(Invalid::new("host", s, why));
        let name = s.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(s);
        if name.is_empty() {
            return bad("is empty");
        }
        let address = name.split_once('%').map_or(name, |(address, _zone)| address).parse::<Ipv6Addr>().is_ok();
        if name.contains('@') {
            return bad("has a user in it; give that as ssh.user");
        }
        if name.contains(':') && !address {
            return bad("has a port in it, or is not an IPv6 address; give a port as ssh.port");
        }
        if name.contains("://") || !address && name.contains(['%', ':', '[', ']']) || !plain(name) {
            return bad("is not a name or an address");
        }
        Ok(Self(name.to_owned()))
    }
}

/// The user that ssh logs in as.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SshUser(String);

impl SshUser {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SshUser {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        if s.is_empty() || s.contains([':', '%']) || !plain(s) {
            return Err(Invalid::new("user", s, "is not the name of a user"));
        }
        Ok(Self(s.to_owned()))
    }
}

/// Whether neither a shell nor an option parser would take it for more than a word.
fn plain(word: &str) -> bool {
    !word.starts_with('-') && !word.chars().any(|c| c.is_whitespace() || c.is_control() || "'\"`\\$;&<>|(){}*?!#,/~^=".contains(c))
}

/// A host on the way to another one: `[USER@]HOST[:PORT]`, as ssh's `ProxyJump` has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Jump {
    /// The user there.
    pub user: Option<SshUser>,
    /// The host.
    pub host: SshHost,
    /// Its SSH port.
    pub port: Option<Port>,
}

impl FromStr for Jump {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let (user, rest) = match s.rsplit_once('@') {
            Some((user, rest)) => (Some(user.parse()?), rest),
            None => (None, s),
        };
        // the colons of a bare IPv6 address are no port's
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if host.ends_with(']') || !host.contains(':') => (host, Some(port.parse()?)),
            _ => (rest, None),
        };
        Ok(Self { user, host: host.parse()?, port })
    }
}

impl fmt::Display for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.port {
            Some(port) if self.host.0.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => write!(f, "{}", self.host),
        }
    }
}

/// The SHA-256 of a host's public key, as `ssh-keygen -l` prints it: `SHA256:` and base64 without padding.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint(String);

impl Fingerprint {
    /// As `ssh-keygen -l` prints it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Fingerprint {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let hash = s.strip_prefix("SHA256:").and_then(|text| STANDARD_NO_PAD.decode(text).ok());
        match hash {
            Some(hash) if hash.len() == 32 => Ok(Self(s.to_owned())),
            _ => Err(Invalid::new(
                "host key",
                s,
                "is not a fingerprint; on the host, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints it as SHA256:…",
            )),
        }
    }
}

macro_rules! text {
    ($($t:ty),*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

text!(SshHost, SshUser, Fingerprint);
string_serde!(SshHost);
string_serde!(SshUser);
string_serde!(Jump);
string_serde!(Fingerprint);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for ok in ["node1", "node1.example.org", "10.0.0.11", "fd00::11", "fe80::1%eth0", "my_alias", "12e4"] {
            assert_eq!(ok.parse::<SshHost>().unwrap().as_str(), ok);
        }
        assert_eq!("[fd00::11]".parse::<SshHost>().unwrap().addr(), Some("fd00::11".parse().unwrap()));
        for bad in ["", "-oProxyCommand=x", "a b", "a;b", "a$(b)", "root@a", "a:22", "[a", "a/b", "ssh://a", "a%b", "[]", "x\n"] {
            assert!(bad.parse::<SshHost>().is_err(), "{bad}");
        }
    }

    #[test]
    fn users() {
        for ok in ["root", "admin-1", "first.last", "me@REALM"] {
            assert_eq!(ok.parse::<SshUser>().unwrap().as_str(), ok);
        }
        for bad in ["", "-l", "a b", "a`b`", "a:b", "%r"] {
            assert!(bad.parse::<SshUser>().is_err(), "{bad}");
        }
    }

    #[test]
    fn jumps_come_back() {
        for ok in ["bastion", "admin@bastion", "admin@bastion:2222", "10.0.0.1:2222", "fd00::1", "[fd00::1]:2222", "me@REALM@bastion"] {
            assert_eq!(ok.parse::<Jump>().unwrap().to_string(), ok);
        }
        for bad in ["", "@bastion", "bastion:", "bastion:x", "a,b", "a@", "-x"] {
            assert!(bad.parse::<Jump>().is_err(), "{bad}");
        }
    }

    #[test]
    fn fingerprints() {
        let ok = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
        assert_eq!(ok.parse::<Fingerprint>().unwrap().as_str(), ok);
        for bad in ["", "SHA256:", "MD5:00:11", "SHA256:abc", &ok[7..], &format!("{ok}=")] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }
}

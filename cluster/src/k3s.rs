use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Invalid;
use crate::names::string_serde;

/// A release of k3s, as in `v1.31.2+k3s1`. It becomes a part of a URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct K3sVersion(String);

impl FromStr for K3sVersion {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let number = s.strip_prefix('v').unwrap_or_default();
        if number.starts_with(|c: char| c.is_ascii_digit()) && number.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) {
            Ok(Self(s.to_owned()))
        } else {
            Err(Invalid::new("k3s version", s, "is not a release of k3s; write it as v1.31.2+k3s1"))
        }
    }
}

/// Where releases of k3s are, laid out as k3s's own: `URL/VERSION/k3s`. Without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mirror(String);

impl FromStr for Mirror {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let host = s.strip_prefix("https://").or_else(|| s.strip_prefix("http://"));
        match host.map(|h| h.trim_end_matches('/')) {
            Some(h) if !h.is_empty() && !h.contains(|c: char| c.is_whitespace() || c.is_control()) => {
                Ok(Self(s.trim_end_matches('/').to_owned()))
            }
            _ => Err(Invalid::new("mirror", s, "is not an http or https URL")),
        }
    }
}

/// A flag for k3s with its value, as in `--disable=traefik`: one that an environment file carries safely.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct K3sArg(String);

impl FromStr for K3sArg {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |why: &str| Err(Invalid::new("k3s flag", s, why));
        // first of all, since what is not shown must not be shown for another reason either
        if s.starts_with("--token") || s.starts_with("--agent-token") || s.starts_with("-t=") || s == "-t" {
            return Err(Invalid::secret("k3s flag", "would put a secret where everybody on the host can read it; use a token file"));
        }
        if !s.starts_with('-') {
            return bad("must begin with '-', the value in the same argument: --disable=traefik");
        }
        if s.chars().any(|c| c.is_whitespace() || c.is_control() || "\"'\\$#%`".contains(c)) {
            return bad("has white space or one of \" ' \\ $ # % ` in it, which an environment file cannot carry safely");
        }
        Ok(Self(s.to_owned()))
    }
}

macro_rules! text {
    ($($t:ty),*) => {$(
        impl $t {
            /// As it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        string_serde!($t);
    )*};
}

text!(K3sVersion, Mirror, K3sArg);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags() {
        assert_eq!("--disable=traefik".parse::<K3sArg>().unwrap().as_str(), "--disable=traefik");
        for bad in ["", "traefik", "--a b", "--a=$HOME", "--a=\"b\"", "--a\n"] {
            assert!(bad.parse::<K3sArg>().is_err(), "{bad}");
        }
        for secret in ["--token=s3cret", "--token s3cret", "--agent-token=s3cret", "-t=s3cret"] {
            let e = secret.parse::<K3sArg>().unwrap_err().to_string();
            assert!(e.contains("token file") && !e.contains("s3cret"), "{e}");
        }
    }

    #[test]
    fn releases() {
        assert_eq!("v1.31.2+k3s1".parse::<K3sVersion>().unwrap().to_string(), "v1.31.2+k3s1");
        for bad in ["", "v", "1.31", "v1/2", "latest", "v1..\n"] {
            assert!(bad.parse::<K3sVersion>().is_err(), "{bad}");
        }
        assert_eq!("http://h:1/k3s/".parse::<Mirror>().unwrap().as_str(), "http://h:1/k3s");
        for bad in ["", "ftp://x", "https://", "https:///", "http://a b"] {
            assert!(bad.parse::<Mirror>().is_err(), "{bad}");
        }
    }
}

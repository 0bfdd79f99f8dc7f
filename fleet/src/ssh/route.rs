//! Where a host is and how to get there: what the caller says, then `~/.ssh/config`, then the defaults.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use node::{Error, Result};

use super::config::{self, Settings, Tokens};
use super::known_hosts::Name;
use super::{HostKey, Target};

/// How many hosts may stand on the way: more is a loop in the configuration.
const MOST_HOPS: usize = 16;

/// One host on the way, the last of them being the target.
#[derive(Debug, Clone)]
pub(super) struct Hop {
    /// How it is called in messages.
    pub(super) name: String,
    /// Its name in DNS, or its address.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) identities: Identities,
    pub(super) known_as: Name,
    /// Where its key is looked for.
    pub(super) known_hosts: Vec<PathBuf>,
    /// Where a new key goes: a file of the user's.
    pub(super) new_keys: Option<PathBuf>,
    /// Whether names are hashed in new lines.
    pub(super) hash_names: bool,
    pub(super) pinned: Option<HostKey>,
}

/// With which keys to log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identities {
    pub(super) files: Vec<PathBuf>,
    /// Whether somebody named these files: then a missing one is worth a word.
    pub(super) named: bool,
    /// Whether the agent's other keys are not to be tried.
    pub(super) only: bool,
    /// Where the agent listens.
    pub(super) agent: Option<PathBuf>,
}

/// What belongs to whoever runs smartup.
pub(super) struct Local<'a> {
    pub(super) home: &'a Path,
    pub(super) user: &'a str,
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
}

/// The hosts on the way to `target`, it being the last one. `settings` asks the configuration about a name;
/// `known_hosts` are the files to use instead of the configured ones, if any.
///
/// # Errors
/// Invalid when a value cannot be, or when jump hosts lead to each other.
pub(super) fn route(
    target: &Target,
    known_hosts: &[PathBuf],
    local: &Local<'_>,
    settings: &dyn Fn(&str) -> Result<Settings>,
) -> Result<Vec<Hop>> {
    let mut hops = Vec::new();
    extend(&mut hops, target, true, known_hosts, local, settings)?;
    hops.reverse();
    Ok(hops)
}

/// Adds `target`, then what leads to it, backwards.
fn extend(
    hops: &mut Vec<Hop>,
    target: &Target,
    may_jump: bool,
    known_hosts: &[PathBuf],
    local: &Local<'_>,
    settings: &dyn Fn(&str) -> Result<Settings>,
) -> Result<()> {
    if hops.len() >= MOST_HOPS {
        return Err(Error::invalid(format!("more than {MOST_HOPS} jump hosts stand before {}", hops[0].name))
            .hint("does a jump host name itself, or one that leads back to it, as its ProxyJump?"));
    }
    let said = settings(&target.name)?;
    let jumps = match (&target.jump[..], &said.proxy_jump) {
        _ if !may_jump => Vec::new(),
        ([], None) => Vec::new(),
        ([], Some(list)) => jumps(list.split(','))?,
        (list, _) => jumps(list.iter().map(String::as_str))?,
    };
    hops.push(hop(target, said, known_hosts, local)?);
    let count = jumps.len();
    for (n, jump) in jumps.into_iter().rev().enumerate() {
        let jump = Target {
            name: jump.host,
            port: jump.port,
            user: jump.user,
            identity_files: target.identity_files.clone(),
            jump: Vec::new(),
            host_key: None,
        };
        // Only the first of a chain is reached as the configuration says; the others through the one before.
        extend(hops, &jump, n + 1 == count, known_hosts, local, settings)?;
    }
    Ok(())
}

fn hop(target: &Target, said: Settings, known_hosts: &[PathBuf], local: &Local<'_>) -> Result<Hop> {
    let host = said.host_name.as_deref().map_or_else(|| target.name.clone(), |name| config::host_name(name, &target.name));
    let port = target.port.or(said.port).unwrap_or(22);
    let user = target.user.clone().or(said.user).unwrap_or_else(|| local.user.to_owned());
    let tokens = Tokens { home: local.home, local_user: local.user, alias: &target.name, host: &host, port, user: &user, env: local.env };
    let paths = |values: &[String]| values.iter().filter(|v| *v != "none").map(|v| tokens.path(v)).collect::<Result<Vec<_>>>();

    let configured = paths(&said.identity_files)?;
    let (files, named) = if !target.identity_files.is_empty() {
        (target.identity_files.clone(), true)
    } else if !said.identity_files.is_empty() {
        (configured, true)
    } else {
        (["id_ed25519", "id_ecdsa", "id_rsa"].iter().map(|f| local.home.join(".ssh").join(f)).collect(), false)
    };
    let agent = match said.identity_agent.as_deref() {
        None | Some("SSH_AUTH_SOCK") => (local.env)("SSH_AUTH_SOCK").filter(|v| !v.is_empty()).map(PathBuf::from),
        Some("none") => None,
        // `$NAME` without braces is the older way to name a variable.
        Some(value) => match value.strip_prefix('$').filter(|name| !name.starts_with('{')) {
            Some(name) => (local.env)(name).map(PathBuf::from),
            None => Some(tokens.path(value)?),
        },
    };
    let (of_user, of_all) = if known_hosts.is_empty() {
        let of_user = said.user_known_hosts.unwrap_or_else(|| vec!["~/.ssh/known_hosts".into(), "~/.ssh/known_hosts2".into()]);
        let of_all = said.global_known_hosts.unwrap_or_else(|| vec!["/etc/ssh/ssh_known_hosts".into(), "/etc/ssh/ssh_known_hosts2".into()]);
        (paths(&of_user)?, paths(&of_all)?)
    } else {
        (known_hosts.to_vec(), Vec::new())
    };
    Ok(Hop {
        identities: Identities { files, named, only: said.identities_only.unwrap_or(false), agent },
        known_as: said.host_key_alias.map_or_else(|| Name::host(&host, port), Name::Alias),
        new_keys: of_user.first().cloned(),
        known_hosts: [of_user, of_all].concat(),
        hash_names: said.hash_known_hosts.unwrap_or(false),
        pinned: target.host_key.clone(),
        name: target.name.clone(),
        host,
        port,
        user,
    })
}

/// A jump host as `ProxyJump` names it: `[user@]host[:port]`, also as an `ssh://` URI.
#[derive(Debug, PartialEq, Eq)]
struct Jump {
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

fn jumps<'a>(list: impl IntoIterator<Item = &'a str>) -> Result<Vec<Jump>> {
    let list: Vec<&str> = list.into_iter().map(str::trim).collect();
    if list.iter().any(|j| j.eq_ignore_ascii_case("none")) {
        return Ok(Vec::new());
    }
    list.into_iter().map(str::parse).collect()
}

impl FromStr for Jump {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid(format!("the jump host {text:?} is not [user@]host[:port]"));
        let rest = text.strip_prefix("ssh://").unwrap_or(text);
        let (user, rest) = rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user.to_owned()), rest));
        let (host, port) = match rest.strip_prefix('[') {
            Some(bracketed) => {
                let (host, after) = bracketed.split_once(']').ok_or_else(bad)?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or_else(bad)?) })
            }
            // More than one colon: an IPv6 address without a port.
            None => match rest.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (rest, None),
            },
        };
        let port = port.map(|p| p.parse().ok().filter(|p: &u16| *p != 0).ok_or_else(bad)).transpose()?;
        if host.is_empty() || host.contains(char::is_whitespace) || user.as_deref() == Some("") {
            return Err(bad());
        }
        Ok(Self { user, host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Source;
    use super::*;

    fn way(target: &Target, config: &str) -> Result<Vec<Hop>> {
        let env = |name: &str| (name == "SSH_AUTH_SOCK").then(|| "/run/agent".to_owned());
        let local = Local { home: Path::new("/home/u"), user: "u", env: &env };
        let source = Source { path: "config".into(), text: config.to_owned() };
        route(target, &[], &local, &|host| config::settings(&[(source.clone(), &|_| Vec::new())], host))
    }

    fn named(name: &str) -> Target {
        Target { name: name.into(), ..Target::default() }
    }

    fn hosts(target: &Target, config: &str) -> Vec<String> {
        way(target, config).unwrap().iter().map(|h| format!("{}@{}:{}", h.user, h.host, h.port)).collect()
    }

    #[test]
    fn the_caller_then_the_configuration_then_the_defaults() {
        let config = "Host h1\n HostName 10.0.0.1\n Port 2222\n User admin\n IdentityFile ~/.ssh/h1\n";
        assert_eq!(hosts(&named("h1"), config), ["admin@10.0.0.1:2222"]);
        assert_eq!(hosts(&named("h2"), config), ["u@h2:22"]);
        let said = Target { port: Some(1), user: Some("root".into()), identity_files: vec!["/key".into()], ..named("h1") };
        assert_eq!(hosts(&said, config), ["root@10.0.0.1:1"]);

        let files = |target: &Target| way(target, config).unwrap().remove(0).identities;
        let agent = Some(PathBuf::from("/run/agent"));
        assert_eq!(files(&said), Identities { files: vec!["/key".into()], named: true, only: false, agent: agent.clone() });
        assert_eq!(files(&named("h1")).files, [Path::new("/home/u/.ssh/h1")]);
        let default = ["id_ed25519", "id_ecdsa", "id_rsa"].map(|f| Path::new("/home/u/.ssh").join(f)).to_vec();
        assert_eq!(files(&named("h2")), Identities { files: default, named: false, only: false, agent });
    }

    #[test]
    fn known_hosts_are_where_the_configuration_says() {
        let files = |config| way(&named("h1"), config).unwrap().remove(0).known_hosts;
        let system = ["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"].map(PathBuf::from);
        assert_eq!(files(""), [["/home/u/.ssh/known_hosts", "/home/u/.ssh/known_hosts2"].map(PathBuf::from), system.clone()].concat());
        assert_eq!(files("UserKnownHostsFile ~/a /b"), [["/home/u/a", "/b"].map(PathBuf::from), system].concat());
        assert_eq!(files("UserKnownHostsFile none\nGlobalKnownHostsFile /c"), [Path::new("/c")]);

        let new_keys = |config| way(&named("h1"), config).unwrap().remove(0).new_keys;
        assert_eq!(new_keys("UserKnownHostsFile ~/a /b").unwrap(), Path::new("/home/u/a"));
        assert_eq!(new_keys("UserKnownHostsFile none"), None, "those of all users are not ours to write");
    }

    #[test]
    fn the_agent_is_where_the_configuration_says() {
        let agent = |config| way(&named("h1"), config).unwrap().remove(0).identities.agent;
        assert_eq!(agent("IdentityAgent none"), None);
        for config in ["", "IdentityAgent SSH_AUTH_SOCK", "IdentityAgent $SSH_AUTH_SOCK", "IdentityAgent ${SSH_AUTH_SOCK}"] {
            assert_eq!(agent(config).unwrap(), Path::new("/run/agent"), "{config}");
        }
        assert_eq!(agent("IdentityAgent ~/agent").unwrap(), Path::new("/home/u/agent"));
    }

    #[test]
    fn jump_hosts_come_in_their_order_and_the_first_as_the_configuration_reaches_it() {
        let config = "Host outer\n User o\nHost a\n ProxyJump outer\n Port 1\nHost b\n ProxyJump never\nHost h1\n ProxyJump x@a,b:2\n";
        assert_eq!(hosts(&named("h1"), config), ["o@outer:22", "x@a:1", "u@b:2", "u@h1:22"]);
        let other = Target { jump: vec!["ssh://y@c:3".into()], ..named("h1") };
        assert_eq!(hosts(&other, config), ["y@c:3", "u@h1:22"]);
        let direct = Target { jump: vec!["none".into()], ..named("h1") };
        assert_eq!(hosts(&direct, config), ["u@h1:22"]);
        assert_eq!(hosts(&named("h1"), "ProxyJump none"), ["u@h1:22"]);
    }

    #[test]
    fn jump_hosts_that_lead_to_each_other_are_refused() {
        let e = way(&named("h1"), "ProxyJump h1\n").unwrap_err();
        assert!(e.what.contains("jump hosts stand before h1"), "{}", e.what);
    }

    #[test]
    fn jump_hosts_are_read_as_openssh_reads_them() {
        let jump = |user: Option<&str>, host: &str, port| Jump { user: user.map(str::to_owned), host: host.to_owned(), port };
        for (text, parsed) in [
            ("h1", jump(None, "h1", None)),
            ("u@h1:22", jump(Some("u"), "h1", Some(22))),
            ("u@realm@h1", jump(Some("u@realm"), "h1", None)),
            ("ssh://u@h1:2222", jump(Some("u"), "h1", Some(2222))),
            ("[fd00::1]:22", jump(None, "fd00::1", Some(22))),
            ("[fd00::1]", jump(None, "fd00::1", None)),
            ("fd00::1", jump(None, "fd00::1", None)),
        ] {
            assert_eq!(text.parse::<Jump>().unwrap(), parsed, "{text}");
        }
        for bad in ["", "u@", "@h1", "h1:0", "h1:x", "h1:65536", "[fd00::1", "[fd00::1]22", "h 1"] {
            assert!(bad.parse::<Jump>().is_err(), "{bad}");
        }
    }
}

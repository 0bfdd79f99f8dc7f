//! k3s's flags, parsed as its Go library does: one dash or two, `=` or the next word,
//! environment variables as fallback, parsing ends at the first word that is no flag.

use std::collections::BTreeMap;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `--x`, `--x=true`, `--x=false`
    Bool,
    /// The last one wins.
    One,
    /// Each one counts; commas do not separate.
    Many,
}

/// One flag of a command.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The long name, without dashes.
    pub name: &'static str,
    alias: &'static str,
    kind: Kind,
    env: &'static str,
    value: &'static str,
}

const fn flag(name: &'static str, kind: Kind) -> Flag {
    Flag { name, alias: "", kind, env: "", value: "" }
}
const fn env(name: &'static str, kind: Kind, env: &'static str) -> Flag {
    Flag { name, alias: "", kind, env, value: "" }
}
const fn default(name: &'static str, value: &'static str) -> Flag {
    Flag { name, alias: "", kind: Kind::One, env: "", value }
}

/// Flags that `server` and `agent` share.
const NODE: &[Flag] = &[
    Flag { name: "config", alias: "c", kind: Kind::One, env: "K3S_CONFIG_FILE", value: "/etc/rancher/k3s/config.yaml" },
    flag("debug", Kind::Bool),
    Flag { name: "server", alias: "s", kind: Kind::One, env: "K3S_URL", value: "" },
    Flag { name: "data-dir", alias: "d", kind: Kind::One, env: "", value: "/var/lib/rancher/k3s" },
    Flag { name: "token", alias: "t", kind: Kind::One, env: "K3S_TOKEN", value: "" },
    env("token-file", Kind::One, "K3S_TOKEN_FILE"),
    env("node-name", Kind::One, "K3S_NODE_NAME"),
    flag("with-node-id", Kind::Bool),
    Flag { name: "node-ip", alias: "i", kind: Kind::Many, env: "", value: "" },
    flag("flannel-iface", Kind::One),
    flag("node-label", Kind::Many),
    flag("node-taint", Kind::Many),
    flag("kubelet-arg", Kind::Many),
    flag("kube-proxy-arg", Kind::Many),
    flag("docker", Kind::Bool),
    default("snapshotter", "overlayfs"),
    env("selinux", Kind::Bool, "K3S_SELINUX"),
];

const SERVER: &[Flag] = &[
    env("cluster-init", Kind::Bool, "K3S_CLUSTER_INIT"),
    flag("cluster-reset", Kind::Bool),
    flag("cluster-reset-restore-path", Kind::One),
    env("agent-token", Kind::One, "K3S_AGENT_TOKEN"),
    env("agent-token-file", Kind::One, "K3S_AGENT_TOKEN_FILE"),
    flag("tls-san", Kind::Many),
    default("https-listen-port", "6443"),
    flag("bind-address", Kind::One),
    flag("advertise-address", Kind::One),
    default("cluster-cidr", "10.42.0.0/16"),
    default("service-cidr", "10.43.0.0/16"),
    Flag { name: "write-kubeconfig", alias: "o", kind: Kind::One, env: "K3S_KUBECONFIG_OUTPUT", value: "/etc/rancher/k3s/k3s.yaml" },
    Flag { name: "write-kubeconfig-mode", alias: "", kind: Kind::One, env: "K3S_KUBECONFIG_MODE", value: "600" },
    flag("kube-apiserver-arg", Kind::Many),
    flag("kube-controller-manager-arg", Kind::Many),
    flag("kube-scheduler-arg", Kind::Many),
    flag("etcd-arg", Kind::Many),
    flag("disable", Kind::Many),
    flag("disable-agent", Kind::Bool),
    flag("disable-kube-proxy", Kind::Bool),
    flag("disable-scheduler", Kind::Bool),
];

const SNAPSHOT: &[Flag] = &[
    Flag { name: "config", alias: "c", kind: Kind::One, env: "K3S_CONFIG_FILE", value: "/etc/rancher/k3s/config.yaml" },
    Flag { name: "data-dir", alias: "d", kind: Kind::One, env: "", value: "/var/lib/rancher/k3s" },
    env("node-name", Kind::One, "K3S_NODE_NAME"),
    default("name", "on-demand"),
    Flag { name: "dir", alias: "etcd-snapshot-dir", kind: Kind::One, env: "", value: "" },
    Flag { name: "snapshot-retention", alias: "etcd-snapshot-retention", kind: Kind::One, env: "", value: "5" },
];

/// A command whose flags we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `k3s server`
    Server,
    /// `k3s agent`
    Agent,
    /// `k3s etcd-snapshot …`
    Snapshot,
}

impl Command {
    fn flags(self) -> impl Iterator<Item = &'static Flag> {
        let (a, b): (&[Flag], &[Flag]) = match self {
            Self::Server => (NODE, SERVER),
            Self::Agent => (NODE, &[]),
            Self::Snapshot => (SNAPSHOT, &[]),
        };
        a.iter().chain(b)
    }

    /// The flag of that name, without dashes; aliases count.
    pub fn find(self, name: &str) -> Option<&'static Flag> {
        self.flags().find(|f| f.name == name || (!f.alias.is_empty() && f.alias == name))
    }
}

impl Flag {
    /// Whether each use of it counts.
    pub fn repeatable(&self) -> bool {
        self.kind == Kind::Many
    }
}

/// A parsed command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    values: BTreeMap<&'static str, Vec<String>>,
    /// Words after the flags.
    pub rest: Vec<String>,
}

impl Parsed {
    /// Parses `args` (without the program and the command).
    ///
    /// # Errors
    /// The messages of k3s's flag library: an unknown flag, a missing value, a bad boolean.
    pub fn parse(command: Command, args: &[String], environment: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let Some(body) = word.strip_prefix('-').filter(|b| !b.is_empty()) else {
                parsed.rest.push(word.clone());
                break;
            };
            let body = body.strip_prefix('-').unwrap_or(body);
            if body.is_empty() {
                break;
            }
            let (name, inline) = match body.split_once('=') {
                Some((n, v)) => (n, Some(v.to_owned())),
                None => (body, None),
            };
            let Some(flag) = command.find(name) else {
                return Err(format!("flag provided but not defined: -{name}"));
            };
            let value = match (flag.kind, inline) {
                (Kind::Bool, None) => "true".to_owned(),
                (Kind::Bool, Some(v)) => match v.as_str() {
                    "1" | "t" | "T" | "true" | "TRUE" | "True" => "true".to_owned(),
                    "0" | "f" | "F" | "false" | "FALSE" | "False" => "false".to_owned(),
                    _ => return Err(format!("invalid boolean value {v:?} for -{name}: parse error")),
                },
                (_, Some(v)) => v,
                (_, None) => words.next().cloned().ok_or_else(|| format!("flag needs an argument: -{name}"))?,
            };
            let values = parsed.values.entry(flag.name).or_default();
            if !flag.repeatable() {
                values.clear();
            }
            values.push(value);
        }
        parsed.rest.extend(words.cloned());
        for flag in command.flags() {
            if parsed.values.contains_key(flag.name) {
                continue;
            }
            let value = Some(flag.env)
                .filter(|e| !e.is_empty())
                .and_then(&environment)
                .filter(|v| !v.is_empty())
                .or_else(|| (!flag.value.is_empty()).then(|| flag.value.to_owned()));
            if let Some(value) = value {
                parsed.values.insert(flag.name, vec![value]);
            }
        }
        Ok(parsed)
    }

    /// The value of a flag, if it has a non-empty one.
    pub fn one(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.last().map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Whether a boolean flag is set.
    pub fn is(&self, name: &str) -> bool {
        self.one(name).is_some_and(|v| v == "true" || v == "1")
    }

    /// All values of a repeatable flag.
    pub fn many(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// All values of a repeatable flag in which k3s also takes commas.
    pub fn comma_separated(&self, name: &str) -> Vec<String> {
        self.many(name).iter().flat_map(|v| v.split(',')).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Parsed, String> {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        Parsed::parse(Command::Server, &args, |name| (name == "K3S_TOKEN").then(|| "from-env".to_owned()))
    }

    #[test]
    fn forms_of_a_flag() {
        let p = parse(&["--tls-san", "a,b", "-tls-san=c", "-t", "secret", "--docker", "--cluster-init=false"]).unwrap();
        assert_eq!(p.comma_separated("tls-san"), ["a", "b", "c"]);
        assert_eq!(p.one("token"), Some("secret"));
        assert!(p.is("docker"));
        assert!(!p.is("cluster-init"));
        assert_eq!(p.one("https-listen-port"), Some("6443"));
    }

    #[test]
    fn environment_is_the_fallback() {
        assert_eq!(parse(&[]).unwrap().one("token"), Some("from-env"));
        assert_eq!(parse(&["--token=x"]).unwrap().one("token"), Some("x"));
    }

    #[test]
    fn errors_read_as_in_k3s() {
        assert_eq!(parse(&["--nope"]).unwrap_err(), "flag provided but not defined: -nope");
        assert_eq!(parse(&["--token"]).unwrap_err(), "flag needs an argument: -token");
        assert!(parse(&["--docker=maybe"]).unwrap_err().starts_with("invalid boolean value \"maybe\" for -docker"));
    }

    #[test]
    fn an_agent_has_no_server_flags() {
        let args = ["--cluster-init".to_owned()];
        assert!(Parsed::parse(Command::Agent, &args, |_| None).is_err());
    }
}

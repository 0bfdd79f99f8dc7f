/// Why k3s does not start, in a line, and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cause {
    /// What is wrong.
    pub what: &'static str,
    /// What to do; empty when time mends it.
    pub fix: &'static str,
    /// Whether k3s gets over it by itself: systemd starts it again, and then it works.
    pub passes: bool,
}

const fn fatal(what: &'static str, fix: &'static str) -> Cause {
    Cause { what, fix, passes: false }
}

const fn passing(what: &'static str) -> Cause {
    Cause { what, fix: "", passes: true }
}

/// Words in k3s's log and what they mean (facts read in its source and seen on real hosts). The first match counts, so what
/// is more telling stands first.
const CAUSES: &[(&str, Cause)] = &[
    (
        "token CA hash does not match",
        fatal("the token pins another cluster's CA", "take a new ticket from a server of the cluster behind this VIP: smartup ticket"),
    ),
    (
        "server-bootstrap: 401",
        fatal("the server refused the token", "take a new ticket from a server of this cluster: smartup ticket --role server"),
    ),
    ("401 Unauthorized", fatal("the server refused the token", "take a new ticket from a server of this cluster: smartup ticket")),
    ("not authorized", fatal("the server refused the token", "take a new ticket from a server of this cluster: smartup ticket")),
    ("too many learner members", passing("another server is joining; etcd takes one learner at a time")),
    ("unhealthy cluster", passing("etcd takes a new member only when all others have been connected for 5 s")),
    (
        "bootstrap data already found and encrypted with different token",
        fatal("the data on the servers is encrypted with another token", "use the token that the cluster was made with"),
    ),
    (
        "duplicate hostname",
        fatal("another node has this host's name", "give this host a name of its own (hostnamectl set-hostname), or remove the old node"),
    ),
    (
        "duplicate node name",
        fatal("another node has this host's name", "give this host a name of its own (hostnamectl set-hostname), or remove the old node"),
    ),
    (
        "Node password rejected",
        fatal(
            "a node of this host's name is registered with another password",
            "if this host replaces it, remove the old node first: kubectl delete node NAME; otherwise give this host a name of its own",
        ),
    ),
    (
        "node password not set",
        fatal("a node of this host's name is registered", "remove the old node (kubectl delete node NAME) or rename this host"),
    ),
    (
        "is valid for",
        fatal(
            "the server's certificate does not name the address it was asked at (the VIP is missing in it)",
            "on each server, in turn: add --tls-san VIP, stop k3s, k3s certificate rotate, start it",
        ),
    ),
    (
        "certificate has expired or is not yet valid",
        fatal(
            "a certificate is not valid now: is a clock wrong?",
            "compare `date` on this host and the servers; run chrony on all of them",
        ),
    ),
    (
        "certificate signed by unknown authority",
        fatal(
            "the data folder on this host belongs to another cluster",
            "smartup reset, or move /var/lib/rancher/k3s away if it is not smartup's; then join again",
        ),
    ),
    (
        "member has been permanently removed",
        fatal("this server was removed from etcd, but still has its old data", "smartup reset on this host, then join again"),
    ),
    (
        "critical configuration value mismatch",
        fatal("this server's flags differ from those of the cluster", "pass the same --k3s-arg as on the first server"),
    ),
    (
        "critical configuration mismatched",
        fatal("this server's flags differ from those of the cluster", "pass the same --k3s-arg as on the first server"),
    ),
    ("etcdserver: no leader", passing("etcd has no leader: fewer than half of the servers can be reached")),
    ("etcdserver: request timed out", passing("etcd does not answer: fewer than half of the servers can be reached")),
    ("failed to get CA certs", passing("the server behind the VIP is not ready yet")),
    ("address already in use", fatal("a port that k3s needs is in use", "find out by whom: ss -ltnp")),
    ("no space left on device", fatal("the disk is full", "free some space, then run again")),
    ("flag provided but not defined", fatal("k3s does not know one of the flags", "look at --k3s-arg and at K3S_EXTRA_FLAGS in /etc/k3s")),
    ("no default routes found", fatal("the host has no default route", "ip route add default via GATEWAY")),
    (
        "failed to find memory cgroup",
        fatal("the kernel runs without the memory cgroup", "add cgroup_memory=1 cgroup_enable=memory to the kernel's command line"),
    ),
];

/// The cause that the last lines of k3s's log tell, newest first; None when nothing known is in them.
pub fn diagnose(lines: &[String]) -> Option<Cause> {
    let telling =
        |l: &&String| l.contains("level=fatal") || l.contains("level=error") || l.contains("level=warning") || !l.contains("level=");
    lines.iter().rev().filter(telling).find_map(|line| CAUSES.iter().find(|(words, _)| line.contains(words)).map(|(_, cause)| *cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(line: &str) -> Option<Cause> {
        diagnose(&["level=info msg=\"Starting k3s\"".into(), line.into(), "Main process exited".into()])
    }

    #[test]
    fn names_the_cause_in_k3ss_own_words() {
        for (line, what, passes) in [
            (
                r#"level=fatal msg="starting kubernetes: preparing server: https://10.0.0.10:9443/v1-k3s/server-bootstrap: 401 Unauthorized""#,
                "refused the token",
                false,
            ),
            (
                r#"level=fatal msg="starting kubernetes: preparing server: token CA hash does not match the Cluster CA certificate hash: a != b""#,
                "another cluster's CA",
                false,
            ),
            (r#"level=fatal msg="ETCD join failed: etcdserver: too many learner members in cluster""#, "one learner", true),
            (r#"level=fatal msg="ETCD join failed: etcdserver: unhealthy cluster""#, "5 s", true),
            (
                r#"level=fatal msg="failed to get CA certs: Get \"https://10.0.0.10:9443/cacerts\": connect: connection refused""#,
                "not ready yet",
                true,
            ),
            (r#"level=fatal msg="ETCD joining failed: duplicate hostname found, please use a unique hostname""#, "this host's name", false),
            (
                r#"level=error msg="Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match""#,
                "this host's name",
                false,
            ),
            (r#"level=fatal msg="x509: certificate is valid for 10.0.0.11, 127.0.0.1, not 10.0.0.10""#, "VIP is missing", false),
            (r#"level=fatal msg="x509: certificate has expired or is not yet valid: current time 2020""#, "clock", false),
            (r#"level=error msg="x509: certificate signed by unknown authority""#, "another cluster", false),
        ] {
            let found = cause(line).unwrap_or_else(|| panic!("{line}"));
            assert!(found.what.contains(what), "{line}: {}", found.what);
            assert_eq!(found.passes, passes, "{line}");
        }
        assert_eq!(cause("level=info msg=\"too many learner members\""), None);
    }

    #[test]
    fn the_newest_counts() {
        let lines = ["level=fatal msg=\"failed to get CA certs: refused\"".to_owned(), "level=fatal msg=\"401 Unauthorized\"".to_owned()];
        assert!(diagnose(&lines).unwrap().what.contains("token"));
    }
}

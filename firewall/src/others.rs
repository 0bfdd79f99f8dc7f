//! Firewalls that are not firewalld: what they would block is for their owner to open.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use serde_json::Value;

/// Chains that those make who would be there beside any firewall: what they drop is no firewall of the host's.
const OTHERS_CHAINS: [&str; 9] = ["KUBE-", "CNI-", "FLANNEL", "DOCKER", "LIBVIRT_", "NETAVARK", "f2b-", "cali-", "CILIUM"];
/// Their tables, which begin with these names.
const OTHERS_TABLES: [&str; 8] = ["firewalld", "kube-proxy", "flannel", "docker", "libvirt", "netavark", "f2b-", "cali"];

const LIMIT: Duration = Duration::from_secs(10);

/// The firewalls that filter what comes in, in words; empty when there is none.
pub(crate) async fn active() -> Vec<String> {
    if fs::read_to_string("/etc/ufw/ufw.conf").is_ok_and(|conf| ufw_enabled(&conf)) {
        return vec!["ufw is active".into()];
    }
    let mut found = Vec::new();
    if let Some(json) = said("nft", &["-j", "list", "ruleset"]).await {
        found.extend(nft_filters(&json).into_iter().map(|table| format!("the nftables table '{table}' filters what comes in")));
    }
    // where nft is missing, or the rules are in the kernel's older tables
    for program in ["iptables-legacy-save", "iptables-save", "ip6tables-legacy-save", "ip6tables-save"] {
        if found.is_empty() && said(program, &["-t", "filter"]).await.is_some_and(|save| iptables_filters(&save)) {
            let tool = program.trim_end_matches("-save");
            found.push(format!("{tool} filters what comes in"));
        }
    }
    found
}

/// What a program says that may not be there.
async fn said(program: &str, args: &[&str]) -> Option<String> {
    node::run(program, args, LIMIT).await.ok().filter(node::Output::success).map(|out| out.stdout)
}

fn ufw_enabled(conf: &str) -> bool {
    conf.lines().any(|l| l.trim().strip_prefix("ENABLED=").is_some_and(|v| v.trim_matches('"').eq_ignore_ascii_case("yes")))
}

/// A chain: whether it refuses packets itself, and the chains that it hands them to.
#[derive(Debug, Default)]
struct Chain {
    refuses: bool,
    next: BTreeSet<String>,
}

/// Whether a packet that enters a chain may be refused there or further on.
fn may_refuse(chains: &BTreeMap<String, Chain>, from: &str) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(name) = open.pop() {
        if !seen.insert(name) || OTHERS_CHAINS.iter().any(|o| name.starts_with(o)) {
            continue;
        }
        let Some(chain) = chains.get(name) else { continue };
        if chain.refuses {
            return true;
        }
        open.extend(chain.next.iter().map(String::as_str));
    }
    false
}

/// The tables (`inet filter`) that filter what comes in, from `nft -j list ruleset`.
fn nft_filters(json: &str) -> BTreeSet<String> {
    let Ok(all) = serde_json::from_str::<Value>(json) else { return BTreeSet::new() };
    let mut tables: BTreeMap<String, BTreeMap<String, Chain>> = BTreeMap::new();
    let mut entrances: Vec<(String, String)> = Vec::new();
    for object in all["nftables"].as_array().into_iter().flatten() {
        let table = |o: &Value| Some((format!("{} {}", o["family"].as_str()?, o["table"].as_str()?), o["table"].as_str()?.to_owned()));
        let text = |o: &Value, key: &str| o[key].as_str().unwrap_or_default().to_owned();
        let (o, chain) = match (&object["chain"], &object["rule"]) {
            (c @ Value::Object(_), _) => (c, text(c, "name")),
            (_, r @ Value::Object(_)) => (r, text(r, "chain")),
            _ => continue,
        };
        let Some((id, name)) = table(o) else { continue };
        if OTHERS_TABLES.iter().any(|t| name.starts_with(t)) {
            continue;
        }
        let entry = tables.entry(id.clone()).or_default().entry(chain.clone()).or_default();
        if o["hook"] == "input" {
            entrances.push((id, chain));
        }
        entry.refuses |= o["policy"] == "drop";
        verdicts(&o["expr"], entry);
    }
    entrances.into_iter().filter(|(table, chain)| may_refuse(&tables[table], chain)).map(|(table, _)| table).collect()
}

/// Finds verdicts wherever they stand in a rule: by themselves, in maps, as targets of iptables.
fn verdicts(expr: &Value, chain: &mut Chain) {
    match expr {
        Value::Array(all) => all.iter().for_each(|e| verdicts(e, chain)),
        Value::Object(all) => {
            for (key, value) in all {
                match key.as_str() {
                    "drop" | "reject" => chain.refuses = true,
                    "jump" | "goto" => chain.next.extend(value["target"].as_str().map(str::to_owned)),
                    "xt" => chain.refuses |= value["type"] == "target" && (value["name"] == "REJECT" || value["name"] == "DROP"),
                    _ => verdicts(value, chain),
                }
            }
        }
        _ => {}
    }
}

/// Whether the chain INPUT filters what comes in, from `iptables-save`.
fn iptables_filters(save: &str) -> bool {
    let mut chains: BTreeMap<String, Chain> = BTreeMap::new();
    for line in save.lines() {
        if let Some((name, rest)) = line.strip_prefix(':').and_then(|l| l.split_once(' ')) {
            chains.entry(name.into()).or_default().refuses |= rest.starts_with("DROP");
        } else if let Some((name, rule)) = line.strip_prefix("-A ").and_then(|l| l.split_once(' ')) {
            let words: Vec<&str> = rule.split(' ').collect();
            let target = words.windows(2).find(|w| matches!(w[0], "-j" | "-g")).map(|w| w[1]);
            let chain = chains.entry(name.into()).or_default();
            match target {
                Some("DROP" | "REJECT") => chain.refuses = true,
                Some(other) => _ = chain.next.insert(other.to_owned()),
                None => {}
            }
        }
    }
    may_refuse(&chains, "INPUT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ufw() {
        assert!(ufw_enabled("# comment\nENABLED=yes\nLOGLEVEL=low\n"));
        assert!(!ufw_enabled("ENABLED=no\n") && !ufw_enabled("#ENABLED=yes\n") && !ufw_enabled(""));
    }

    fn nft(objects: &str) -> BTreeSet<String> {
        nft_filters(&format!(r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6"}}}}, {objects}]}}"#))
    }

    const ACCEPTING: &str = r#"{"table": {"family": "inet", "name": "filter", "handle": 1}},
        {"chain": {"family": "inet", "table": "filter", "name": "input", "type": "filter", "hook": "input", "prio": 0, "policy": "accept"}}"#;

    #[test]
    fn a_table_with_nothing_but_empty_chains_is_no_firewall() {
        assert!(nft(ACCEPTING).is_empty());
        assert!(nft_filters("").is_empty() && nft_filters("{}").is_empty());
    }

    #[test]
    fn a_policy_a_verdict_a_map_or_a_jump_may_refuse() {
        let dropping = ACCEPTING.replace("accept", "drop");
        let rule = |chain: &str, expr: &str| {
            format!(r#"{{"rule": {{"family": "inet", "table": "filter", "chain": "{chain}", "handle": 9, "expr": [{expr}]}}}}"#)
        };
        let with = |chain: &str, expr: &str| format!("{ACCEPTING}, {}", rule(chain, expr));
        let jump = with("input", r#"{"jump": {"target": "inner"}}"#);
        for closed in [
            dropping,
            with("input", r#"{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}"#),
            with("input", r#"{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["invalid", {"drop": null}]]}}}"#),
            with("input", r#"{"counter": {"packets": 0, "bytes": 0}}, {"xt": {"type": "target", "name": "REJECT"}}"#),
            format!("{jump}, {}", rule("inner", r#"{"drop": null}"#)),
        ] {
            assert_eq!(nft(&closed), BTreeSet::from(["inet filter".to_owned()]), "{closed}");
        }
        for open in [
            jump.clone(),
            with("elsewhere", r#"{"drop": null}"#),
            with("input", r#"{"xt": {"type": "match", "name": "comment"}}, {"accept": null}"#),
            format!("{}, {}", with("input", r#"{"jump": {"target": "KUBE-FIREWALL"}}"#), rule("KUBE-FIREWALL", r#"{"drop": null}"#)),
            // chains may go in circles only by mistake, but they must not hang us
            format!("{jump}, {}", rule("inner", r#"{"goto": {"target": "inner"}}"#)),
            ACCEPTING.replace("\"filter\"", "\"firewalld\"").replace("accept", "drop"),
            ACCEPTING.replace("\"input\", \"prio\"", "\"forward\", \"prio\"").replace("accept", "drop"),
        ] {
            assert!(nft(&open).is_empty(), "{open}");
        }
    }

    /// `iptables-save` of a k3s node: kube-proxy's and flannel's chains, and nothing of the host's own.
    const K3S: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
";

    #[test]
    fn iptables() {
        assert!(!iptables_filters(K3S) && !iptables_filters(""));
        assert!(iptables_filters(&K3S.replace(":INPUT ACCEPT", ":INPUT DROP")));
        assert!(iptables_filters(&K3S.replace("-A INPUT -j KUBE-FIREWALL", "-A INPUT -p tcp -j REJECT --reject-with tcp-reset")));
        assert!(iptables_filters(&format!("{K3S}-A INPUT -j mine\n-A mine -s 10.0.0.1/32 -j DROP\n")));
    }
}

//! The findings in words.

use super::finding::{Finding, OnHost, Verdict};
use crate::output::short;

/// The findings of one host, all of them.
pub fn one(findings: &[Finding]) -> String {
    let mut text: Vec<String> = findings.iter().map(|f| line(f, None)).collect();
    text.extend([String::new(), format!("{}.", counts(findings.iter().map(|f| f.verdict)))]);
    text.join("\n")
}

/// The findings of many hosts: each once, with the hosts that have it; what is fine only when asked for.
pub fn many(findings: &[OnHost], all: bool) -> String {
    let mut groups: Vec<(&Finding, Vec<&str>)> = Vec::new();
    for OnHost { host, finding } in findings.iter().filter(|f| all || f.finding.verdict != Verdict::Ok) {
        match groups.iter_mut().find(|(f, _)| *f == finding) {
            Some((_, hosts)) => hosts.push(host),
            None => groups.push((finding, vec![host])),
        }
    }
    groups.sort_by_key(|(f, _)| f.rank());
    let mut text: Vec<String> = groups.iter().map(|(f, hosts)| line(f, Some(&short(hosts)))).collect();
    if !text.is_empty() {
        text.push(String::new());
    }
    let mut hosts: Vec<&str> = findings.iter().map(|f| f.host.as_str()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let s = if hosts.len() == 1 { "" } else { "s" };
    text.push(format!("{} host{s}: {}.", hosts.len(), counts(findings.iter().map(|f| f.finding.verdict))));
    text.join("\n")
}

/// The width of the columns before the text.
const INDENT: usize = 28;

fn line(finding: &Finding, hosts: Option<&str>) -> String {
    let Finding { check, verdict, what, hint } = finding;
    let what = hosts.map_or_else(|| what.clone(), |h| format!("{h}: {what}"));
    let mut lines = what.lines();
    let mut text = format!("{:<8} {check:<18} {}", verdict.as_str(), lines.next().unwrap_or_default());
    for more in lines.map(str::to_owned).chain(hint.iter().map(|h| format!("hint: {h}"))) {
        text.extend(["\n", &" ".repeat(INDENT), &more]);
    }
    text
}

fn counts(verdicts: impl Iterator<Item = Verdict>) -> String {
    let all: Vec<Verdict> = verdicts.collect();
    let of = |verdict| all.iter().filter(|v| **v == verdict).count();
    let (ok, warn, fail, unknown) = (of(Verdict::Ok), of(Verdict::Warn), of(Verdict::Fail), of(Verdict::Unknown));
    format!("{ok} ok, {warn} warn, {fail} failed, {unknown} unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Vec<Finding> {
        vec![
            Finding::ok("root", "runs as root"),
            Finding::warn("clock", "nothing keeps this host's clock right", "install chrony"),
            Finding::fail("units", "keepalived.service is inactive (dead)\nand says nothing", "systemctl start keepalived.service"),
            Finding::unknown("etcd-members", "no answer within 6 s", None),
        ]
    }

    #[test]
    fn of_one_host() {
        insta::assert_snapshot!(one(&found()), @r"
        ok       root               runs as root
        warn     clock              nothing keeps this host's clock right
                                    hint: install chrony
        FAIL     units              keepalived.service is inactive (dead)
                                    and says nothing
                                    hint: systemctl start keepalived.service
        unknown  etcd-members       no answer within 6 s

        1 ok, 1 warn, 1 failed, 1 unknown.
        ");
    }

    #[test]
    fn a_hundred_hosts_with_the_same_warning_are_one_line() {
        let on = |n: usize, finding: Finding| OnHost { host: format!("h{n}"), finding };
        let mut all: Vec<OnHost> = (1..=100).flat_map(|n| found().into_iter().take(2).map(move |f| on(n, f))).collect();
        all.push(on(2, Finding::fail("disk", "12 MiB free in /var/lib", "make room")));
        insta::assert_snapshot!(many(&all, false), @r"
        FAIL     disk               h2: 12 MiB free in /var/lib
                                    hint: make room
        warn     clock              h1, h2, h3, h4, h5, h6 and 94 more: nothing keeps this host's clock right
                                    hint: install chrony

        100 hosts: 100 ok, 100 warn, 1 failed, 0 unknown.
        ");
        assert!(many(&all, true).starts_with("ok       root               h1, h2, h3, h4, h5, h6 and 94 more: runs as root\n"));
        assert!(many(&all[..1], false).eq("1 host: 1 ok, 0 warn, 0 failed, 0 unknown."));
    }
}

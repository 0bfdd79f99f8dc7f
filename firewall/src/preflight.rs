use node::{Error, Finding, Host, Result};

use crate::firewalld::UNIT;
use crate::steps::{Situation, situation};
use crate::{Rules, others};

const NAME: &str = "firewall";

/// The check `firewall`: whether the host's firewall is one that smartup can open.
///
/// firewalld counts when it runs, will be started, or will be installed; ufw, and rules of nftables or iptables that nobody
/// but the administrator made, are refused where firewalld does not run beside them. With `--no-firewall` nothing is.
pub async fn preflight(host: &Host, rules: &Rules, no_firewall: bool) -> Vec<Finding> {
    let found = async {
        if no_firewall {
            return Ok(left_alone(rules, &others_or_firewalld(host).await?));
        }
        let situation = situation(host).await?;
        let others = if situation == Situation::Runs { Vec::new() } else { others::active().await };
        Ok(judge(situation, &others, rules))
    };
    vec![found.await.unwrap_or_else(|e: Error| Finding::fail(NAME, &e))]
}

async fn others_or_firewalld(host: &Host) -> Result<Vec<String>> {
    let runs = host.systemd.unit(UNIT).await?.running();
    Ok(if runs { vec!["firewalld runs".into()] } else { others::active().await })
}

fn left_alone(rules: &Rules, others: &[String]) -> Finding {
    if others.is_empty() {
        return Finding::ok(NAME, "nothing is blocked, and no firewall is touched (--no-firewall)");
    }
    Finding::warn(
        NAME,
        format!("{}, and is not touched (--no-firewall)", others.join(" and ")),
        format!("it must let in: {}", rules.listed()),
    )
}

fn judge(situation: Situation, others: &[String], rules: &Rules) -> Finding {
    if !others.is_empty() {
        let what = format!("{}, and smartup can only open firewalld", others.join(" and "));
        let hint = format!("let in yourself: {}; then run again with --no-firewall", rules.listed());
        return Finding::fail(NAME, &Error::refused(what).hint(hint));
    }
    match situation {
        Situation::Runs => Finding::ok(NAME, "firewalld runs"),
        Situation::WillStart => Finding::ok(NAME, "firewalld will be started, with ssh let in"),
        Situation::Absent => Finding::ok(NAME, "firewalld will be installed and started, with ssh let in"),
        Situation::LeftAlone => Finding::warn(
            NAME,
            "firewalld is installed but disabled: nothing is blocked, and no rules are added",
            "to have it: systemctl enable --now firewalld, and run again",
        ),
    }
}

#[cfg(test)]
mod tests {
    use cluster::{Port, Role};
    use node::{Kind, Verdict};

    use super::*;

    #[test]
    fn a_firewall_of_the_hosts_own_is_refused_with_what_to_open() {
        let rules = Rules { role: Role::Agent, port: Port::API, interface: "eth0".parse().unwrap(), trusted: vec![] };
        for situation in [Situation::Absent, Situation::LeftAlone, Situation::WillStart] {
            let finding = judge(situation, &["ufw is active".into()], &rules);
            assert_eq!((finding.verdict, finding.kind), (Verdict::Fail, Kind::Refused));
            let hint = finding.hint.unwrap();
            assert!(hint.contains("10250/tcp, 8472/udp") && hint.contains("--no-firewall"), "{hint}");
        }
        assert_eq!(judge(Situation::Absent, &[], &rules).verdict, Verdict::Ok);
        assert_eq!(judge(Situation::LeftAlone, &[], &rules).verdict, Verdict::Warn);
        let warned = left_alone(&rules, &["ufw is active".into()]);
        assert!(warned.verdict == Verdict::Warn && warned.hint.unwrap().contains("8472/udp"));
        assert_eq!(left_alone(&rules, &[]).verdict, Verdict::Ok);
    }
}

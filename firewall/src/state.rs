use node::{Host, Result};

use crate::firewalld::{Firewalld, UNIT};
use crate::{Rule, Rules};

/// A rule in a zone, and whether it is there: by itself or because something wider covers it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RuleState {
    /// The zone; None = unknown, since firewalld does not run.
    pub zone: Option<String>,
    /// The rule.
    pub rule: Rule,
    /// Whether it holds now; None = unknown.
    pub runtime: Option<bool>,
    /// Whether it holds after a reload and after a boot; None = unknown.
    pub permanent: Option<bool>,
}

impl RuleState {
    /// Known to be missing, now or after a reload.
    pub(crate) fn is_missing(&self) -> bool {
        self.runtime == Some(false) || self.permanent == Some(false)
    }
}

/// Each rule, and whether it is there. Where firewalld does not run that is unknown: nothing may be blocked, or something
/// else may do it.
///
/// # Errors
/// When firewalld runs but does not answer.
pub async fn state(host: &Host, rules: &Rules) -> Result<Vec<RuleState>> {
    if host.systemd.unit(UNIT).await?.active == "active" {
        return Firewalld::connect(host).await?.rules(rules, &subnets(host, rules)).await;
    }
    Ok(unknown(rules))
}

pub(crate) fn unknown(rules: &Rules) -> Vec<RuleState> {
    rules.required().into_iter().map(|rule| RuleState { zone: None, rule, runtime: None, permanent: None }).collect()
}

/// The subnets that other nodes are in.
pub(crate) fn subnets(host: &Host, rules: &Rules) -> Vec<cluster::Subnet> {
    let link = host.facts.links.iter().find(|l| l.name == rules.interface);
    link.into_iter().flat_map(|l| l.addrs.iter().map(cluster::Subnet::trunc)).collect()
}

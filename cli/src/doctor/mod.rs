//! What is wrong, on one host or between several.
//!
//! [`examine`] makes the checks of this host, each look with a time-out of its own; what is made of what was seen is pure, and
//! beside it. [`doors`] are what other hosts knock at; [`between`] judges what only shows when several hosts are compared.

mod api;
pub mod between;
mod certificates;
pub mod doors;
mod etcd;
mod finding;
mod local;
mod patient;
pub mod print;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cluster::{Role, Token};
use keepalived::{Settings, preflight as keepalived_preflight};
use node::{Error, Result, written_files};

pub use finding::{CHECKS, Finding, OnHost, Verdict};
pub use patient::Patient;

use crate::membership::present_flags;

/// A question to this host that several checks are answered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Host,
    Fsync,
    K3s,
    Leftovers,
    Units,
    Files,
    Firewall,
    Rules,
    Keepalived,
    Wire,
    Certificates,
    ApiCertificate,
    Api,
    Nodes,
    Etcd,
}

impl Look {
    const ALL: [Self; 15] = [
        Self::Host,
        Self::Fsync,
        Self::K3s,
        Self::Leftovers,
        Self::Units,
        Self::Files,
        Self::Firewall,
        Self::Rules,
        Self::Keepalived,
        Self::Wire,
        Self::Certificates,
        Self::ApiCertificate,
        Self::Api,
        Self::Nodes,
        Self::Etcd,
    ];

    /// The checks that it answers.
    fn checks(self) -> &'static [&'static str] {
        match self {
            Self::Host => &["root", "systemd", "hostname", "default-route", "memory", "disk", "clock", "selinux"],
            Self::Fsync => &["fsync"],
            Self::K3s => &["foreign-k3s", "role", "vendor-unit", "docker", "ports", "data-folder"],
            Self::Leftovers => &["leftovers"],
            Self::Units => &["units"],
            Self::Files => &["files"],
            Self::Firewall => &["firewall"],
            Self::Rules => &["firewall-rules"],
            Self::Keepalived => &["keepalived", "keepalived-config"],
            Self::Wire => &["vip", "vip-duplicate", "router-id", "vrrp-match"],
            Self::Certificates => &["certificates"],
            Self::ApiCertificate => &["api-certificate"],
            Self::Api => &["api", "clock-offset"],
            Self::Nodes => &["nodes", "vip-not-a-node"],
            Self::Etcd => &["etcd-members", "etcd-space", "etcd-defrag"],
        }
    }

    /// How long it may take. Most take milliseconds; the wire is listened to for more than a second, and twice when something
    /// seems wrong; a slow disk is written to for a second; a file of a hundred megabytes is read.
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Wire | Self::Files => 20,
            Self::Firewall | Self::K3s => 15,
            _ => 10,
        })
    }

    /// Whether it makes sense on such a host, or why not.
    fn applies(self, patient: &Patient) -> Result<(), &'static str> {
        let role = patient.role();
        let server = patient.membership.is_some() && role == Some(Role::Server);
        match self {
            Self::Host | Self::K3s | Self::Firewall => Ok(()),
            Self::Leftovers if patient.membership.is_none() => Ok(()),
            Self::Leftovers => Err("this host is a member of a cluster"),
            // whoever knows no role yet may become a server
            Self::Fsync if role != Some(Role::Agent) => Ok(()),
            Self::Keepalived | Self::Wire if patient.keepalived.is_some() => Ok(()),
            Self::Units | Self::Files | Self::Wire | Self::Certificates | Self::Api | Self::Nodes if patient.membership.is_some() => Ok(()),
            Self::Rules if patient.membership.as_ref().is_some_and(|m| m.firewall) => Ok(()),
            Self::Rules if patient.membership.is_some() => Err("the firewall is not smartup's here (--no-firewall)"),
            Self::ApiCertificate | Self::Etcd if server => Ok(()),
            _ if patient.membership.is_some() => Err("it is made on servers only"),
            _ => Err("smartup has not set up this host"),
        }
    }

    async fn look(self, patient: &Patient) -> Result<Vec<Finding>> {
        match self {
            Self::Host => Ok(from(node::host_checks(&patient.host, patient.family()))),
            Self::Fsync => Ok(from([k3s::fsync(Path::new("/var/lib"))])),
            Self::K3s => of_k3s(patient).await,
            Self::Leftovers => leftovers(patient).await,
            Self::Units => units(patient).await,
            Self::Files => Ok(local::files(&written_files(&patient.host.journal)?)),
            Self::Firewall => Ok(from(firewall::preflight(&patient.host, &patient.rules()?, !patient.firewall()).await)),
            Self::Rules => Ok(local::rules(&firewall::state(&patient.host, &patient.rules()?).await?)),
            Self::Keepalived => match &patient.keepalived {
                Some(settings) => Ok(from(keepalived_preflight(&patient.host, settings).await)),
                None => Ok(Vec::new()),
            },
            Self::Wire => of_the_wire(patient).await,
            Self::Certificates => {
                let mut folders = vec![PathBuf::from(certificates::AGENT)];
                if patient.role() == Some(Role::Server) {
                    folders.push(certificates::TLS.into());
                }
                let (found, unread) = certificates::read(&folders);
                Ok(certificates::judge(&found, &unread, jiff::Timestamp::now().as_second()))
            }
            Self::ApiCertificate => {
                let m = patient.member()?;
                let (at, now) = ((m.node_ip, m.port.get()).into(), jiff::Timestamp::now().as_second());
                Ok(vec![certificates::api(Path::new(k3s::paths::SERVER_CA), at, m.vip.addr(), now, Duration::from_secs(3))])
            }
            Self::Api => {
                let url = patient.url()?;
                let client = k3s::client(patient.kubeconfig()?, Some(&url)).await?;
                let answer = api::ask(&client, || jiff::Timestamp::now().as_millisecond()).await;
                Ok(api::judge(&answer, &url))
            }
            Self::Nodes => {
                let client = k3s::client(patient.kubeconfig()?, None).await?;
                let nodes = api::nodes(&client).await?;
                Ok(api::judge_nodes(&nodes, patient.host.facts.node_name()?.as_str(), patient.member()?.vip.addr()))
            }
            Self::Etcd => Ok(etcd::judge(&k3s::members().await?, etcd::quota(&present_flags(Role::Server)))),
        }
    }
}

fn from(found: impl IntoIterator<Item = node::Finding>) -> Vec<Finding> {
    found.into_iter().map(Finding::from).collect()
}

/// The checks of this host, those named in `only` or all that make sense here, in their order.
pub async fn examine(patient: &Arc<Patient>, only: &[String]) -> Vec<Finding> {
    let named = |check: &str| only.iter().any(|o| o == check);
    let mut found = Vec::new();
    let mut looks = Vec::new();
    for look in Look::ALL.into_iter().filter(|l| only.is_empty() || l.checks().iter().any(|c| named(c))) {
        match look.applies(patient) {
            Ok(()) => looks.push(within(look, patient.clone())),
            Err(why) => found.extend(look.checks().iter().filter(|c| named(c)).map(|c| Finding::unknown(c, why, None))),
        }
    }
    found.extend(futures::future::join_all(looks).await.into_iter().flatten());
    found.retain(|f| only.is_empty() || named(&f.check));
    // who asks by name gets an answer
    for check in Look::ALL.iter().flat_map(|l| l.checks()).filter(|c| named(c)) {
        if !found.iter().any(|f| f.check == *check) {
            found.push(Finding::unknown(check, "there is nothing to look at on this host", None));
        }
    }
    found.sort_by_key(Finding::rank);
    found
}

/// Looks, on a thread of its own: a disk that hangs must not hold up the others, nor the end.
async fn within(look: Look, patient: Arc<Patient>) -> Vec<Finding> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    // nobody waits for it when it is too late
    std::thread::spawn(move || answer.send(runtime.block_on(look.look(&patient))));
    let unknown = |why: &str, hint: &Option<String>| look.checks().iter().map(|c| Finding::unknown(c, why, hint.clone())).collect();
    match tokio::time::timeout(look.limit(), answered).await {
        Ok(Ok(Ok(found))) => found,
        Ok(Ok(Err(e))) => unknown(&e.chain(), &e.hint),
        Ok(Err(_)) => unknown("the check broke off; please report this", &None),
        Err(_) => unknown(&format!("no answer within {} s", look.limit().as_secs()), &None),
    }
}

async fn of_k3s(patient: &Patient) -> Result<Vec<Finding>> {
    let token = Token::generate().map_err(|e| Error::failed("no randomness").because(e))?;
    let Some(settings) = patient.k3s(token) else {
        return Err(Error::failed("this host has no address that a node could have"));
    };
    let mut found = from(k3s::preflight(&patient.host, &settings).await?);
    // of a host that is nothing yet there is no part to be confirmed; the disk is looked at elsewhere
    let known = patient.role().is_some();
    found.retain(|f| f.check != "fsync" && (known || f.verdict == Verdict::Fail || !["role", "vendor-unit"].contains(&f.check.as_str())));
    Ok(found)
}

async fn leftovers(patient: &Patient) -> Result<Vec<Finding>> {
    let mut units = Vec::new();
    for unit in local::UNIT_NAMES {
        let state = patient.host.systemd.unit(unit).await?;
        // one that a package ships is nobody's leftover while it rests
        if state.exists() && (state.running() || state.enabled() || state.fragment.is_some_and(|f| f.starts_with("/etc"))) {
            units.push(unit.to_owned());
        }
    }
    Ok(vec![local::leftovers(&local::Leftovers {
        units,
        folders: local::folders(Path::new("/")),
        interfaces: local::interfaces(patient.host.facts.links.iter().map(|l| l.name.as_str())),
        changes: patient.host.journal.entries().len(),
    })])
}

async fn units(patient: &Patient) -> Result<Vec<Finding>> {
    let member = patient.member()?;
    let mut states = Vec::new();
    for unit in [Some(k3s::paths::unit(member.role)), member.vrrp.as_ref().map(|_| keepalived::paths::UNIT.into())].into_iter().flatten() {
        let state = patient.host.systemd.unit(&unit).await?;
        states.push((unit, state));
    }
    Ok(local::units(&states))
}

/// What seems wrong is looked at again: the VIP may have been on its way from one server to another.
async fn of_the_wire(patient: &Patient) -> Result<Vec<Finding>> {
    let found = wire_once(patient).await?;
    if found.iter().all(|f| f.verdict == Verdict::Ok) { Ok(found) } else { wire_once(patient).await }
}

async fn wire_once(patient: &Patient) -> Result<Vec<Finding>> {
    let interval = |s: &Settings| s.vrrp.advert.duration();
    match (&patient.membership, &patient.keepalived) {
        (Some(member), settings) => {
            let vip = member.vip.addr();
            let seen = wire::look(&member.interface, vip, settings.as_ref().map(interval)).await?;
            // asked anew: it may have moved since
            let here = node::Facts::gather().await?.has(vip);
            let mut found = seen.judge(vip, here).to_vec();
            found.extend(settings.iter().flat_map(|s| seen.settings(s, here)));
            Ok(found)
        }
        (None, Some(settings)) => {
            let seen = wire::look(&settings.interface, settings.vip.addr(), Some(interval(settings))).await?;
            Ok(seen.before(settings))
        }
        (None, None) => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_one_place() {
        let mut all: Vec<&str> =
            Look::ALL.iter().flat_map(|l| l.checks()).copied().chain(["ssh", "same-cluster", "clocks", "reach"]).collect();
        let mut listed = CHECKS.to_vec();
        all.sort_unstable();
        listed.sort_unstable();
        assert_eq!(all, listed);
    }

    #[test]
    fn every_check_is_documented() {
        let page = include_str!("../../../docs/usage/doctor.md");
        for check in CHECKS {
            assert!(page.contains(&format!("| `{check}` |")), "{check}");
        }
    }
}

//! Services of the host that have to run after an update as before it.

use updates::ServiceName;
use updates::api::HostRules;

/// k3s and what it needs, what pods run in, the floating address, SSH, the firewall, the clock.
const CRITICAL: [&str; 18] = [
    "k3s-server.service",
    "k3s-agent.service",
    "k3s.service",
    "containerd.service",
    "docker.service",
    "keepalived.service",
    "ssh.service",
    "sshd.service",
    "firewalld.service",
    "ufw.service",
    "nftables.service",
    "iptables.service",
    "chronyd.service",
    "chrony.service",
    "ntpd.service",
    "ntpsec.service",
    "systemd-timesyncd.service",
    "dbus.service",
];

/// All that count: ours, the storage services that are enabled, and those that the user names.
pub(super) fn critical(rules: &HostRules, storage: &[String]) -> Vec<ServiceName> {
    let ours = CRITICAL.iter().copied().chain(storage.iter().map(String::as_str)).filter_map(|name| name.parse().ok());
    let mut all: Vec<ServiceName> = ours.chain(rules.critical_services.iter().cloned()).collect();
    all.sort();
    all.dedup();
    all
}

/// How a service is, in systemd's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub name: ServiceName,
    pub active: String,
}

impl Service {
    pub(super) fn runs(&self) -> bool {
        matches!(self.active.as_str(), "active" | "reloading")
    }
}

/// Those that have failed.
pub(super) fn failed(now: &[Service]) -> Vec<ServiceName> {
    now.iter().filter(|s| s.active == "failed").map(|s| s.name.clone()).collect()
}

/// Those that ran before and do not now, with how they are. What is not critical any more does not count.
pub(super) fn amiss(before: &[ServiceName], now: &[Service]) -> Vec<String> {
    now.iter().filter(|s| !s.runs() && before.contains(&s.name)).map(|s| format!("{} ({})", s.name, s.active)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_before_counts_and_what_did_not_does_not() {
        let service = |name: &str, active: &str| Service { name: name.parse().unwrap(), active: active.into() };
        let before = ["k3s-agent.service", "ssh.service"].map(|name| name.parse().unwrap());
        let now = [service("chrony.service", "inactive"), service("k3s-agent.service", "activating"), service("ssh.service", "active")];
        assert_eq!(amiss(&before, &now), ["k3s-agent.service (activating)"]);
        assert!(failed(&now).is_empty());
        let now = [service("chrony.service", "failed"), service("k3s-agent.service", "reloading"), service("ssh.service", "active")];
        assert!(amiss(&before, &now).is_empty());
        assert_eq!(failed(&now), ["chrony.service".parse().unwrap()], "also one that did not run before");
    }

    #[test]
    fn the_users_and_storage_services_count_too() {
        let rules =
            HostRules { critical_services: vec!["db.service".parse().unwrap(), "ssh.service".parse().unwrap()], ..HostRules::default() };
        let all = critical(&rules, &["vstorage-mdsd.service".into()]);
        assert_eq!(all.len(), CRITICAL.len() + 2, "{all:?}");
    }
}

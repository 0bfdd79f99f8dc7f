use std::net::IpAddr;
use std::path::Path;

use async_trait::async_trait;
use cluster::{Role, Runtime};

use node::{Content, Error, FileStep, Host, OnChange, Plan, Result, State, Step, TellStep, Undo, UnitStep};

use crate::binary::{BinaryStep, Source};
use crate::etcd;
use crate::joined::ServerJoined;
use crate::quorum::Quorum;
use crate::ready::{ApiStep, NodeStep};
use crate::settings::{Settings, paths};
use crate::unit::{Vendor, vendor};
use crate::{EnvFile, Flags};

/// k3s's steps, in parts so that others can come between them.
#[derive(Default)]
pub struct Steps {
    /// What is put in place; nothing of it needs the token.
    pub files: Plan,
    /// The token, and the start, which does not wait. The firewall and the unit's drop-ins must be there by then.
    pub start: Plan,
    /// A joining server gets its vote in etcd.
    pub vote: Plan,
    /// A server's API answers.
    pub api: Plan,
    /// The node is Ready.
    pub node: Plan,
}

/// What makes this host a server or an agent.
///
/// # Errors
/// When k3s is not on the host and was not given, or systemd does not answer.
pub async fn plan(host: &Host, settings: &Settings, source: &Source) -> Result<Steps> {
    let unit = paths::unit(settings.role);
    let vendor = vendor(host, settings.role).await?;
    let binary = source.path()?;
    let mut steps = Steps::default();
    let files = &mut steps.files;
    files.push(BinaryStep { source: source.clone(), unit: unit.clone() });
    if host.systemd.unit(NETWORK_MANAGER).await?.running() {
        let text = templates::k3s::NetworkManager {}.render().map_err(internal)?;
        files.push(FileStep::new("/etc/NetworkManager/conf.d/90-smartup.conf", text).read_by(NETWORK_MANAGER));
        files.push(TellStep { unit: NETWORK_MANAGER.into() });
    }
    if vendor.is_none() {
        let env = paths::env(settings.role);
        let text = templates::k3s::Unit {
            role: settings.role.as_str(),
            binary: &binary.to_string_lossy(),
            env: &env.to_string_lossy(),
            docker: settings.runtime == Runtime::Docker,
        }
        .render()
        .map_err(internal)?;
        files.push(FileStep::new(Path::new("/etc/systemd/system").join(&unit), text).read_by(&unit));
    }

    let start = &mut steps.start;
    start.push(env_step(settings, vendor.as_ref()));
    if settings.runtime == Runtime::Docker {
        start.push(UnitStep { unit: "docker.service".into(), on_change: OnChange::Restart, wait: true });
    }
    start.push(DataStep);
    start.push(StartStep::new(settings.role, settings.node_ip, false));
    if settings.role == Role::Server {
        if !settings.first {
            steps.vote.push(ServerJoined);
        }
        steps.api.push(ApiStep { url: settings.url() });
    }
    steps.node.push(NodeStep { role: settings.role, version: None });
    Ok(steps)
}

const NETWORK_MANAGER: &str = "NetworkManager.service";

fn internal(e: templates::RenderError) -> Error {
    Error::failed("a template of smartup's own cannot be rendered; please report this").because(e)
}

/// The unit's environment, in the reference's form (7.4.1), mode 0600. Other lines, and flags that smartup does not set,
/// stay as they are: running again without a flag of yours does not take it away from a running node.
fn env_step(settings: &Settings, vendor: Option<&Vendor>) -> FileStep {
    let path = paths::env(settings.role);
    let (settings, vendor) = (settings.clone(), vendor.cloned());
    let unit = paths::unit(settings.role);
    let mut step = FileStep::new(path, "").mode(0o600).mask(EnvFile::mask).read_by(unit);
    step.content = Content::Edited(Box::new(move |now| Ok(environment(now, &settings, vendor.as_ref().map(|v| &v.flags)))));
    step
}

fn environment(now: Option<&str>, settings: &Settings, vendor: Option<&Flags>) -> String {
    let mut env = EnvFile::parse(now.unwrap_or_default());
    let mut flags = env.get("K3S_EXTRA_FLAGS").map(|f| Flags::parse(&f)).unwrap_or_default();
    flags.merge(&settings.flags());
    if let Some(vendor) = vendor {
        flags.without(vendor);
    }
    env.set("K3S_TOKEN", settings.token.expose());
    if settings.first {
        // with an address to join, k3s would try to join itself
        env.unset("K3S_URL");
    } else {
        env.set("K3S_URL", &settings.url());
    }
    env.set("K3S_EXTRA_FLAGS", &flags.to_string());
    env.text()
}

/// Whether etcd bears it that this server, with this address, stops for a while.
///
/// # Errors
/// Refused, with the sum.
pub async fn may_stop_here(host: &Host, node_ip: IpAddr) -> Result<()> {
    // where etcd does not answer, this server is no part of a quorum that could be lost
    let Ok(members) = etcd::members().await else { return Ok(()) };
    let healthy = members.iter().any(|m| m.address == node_ip.to_string() && !m.learner && m.is_healthy());
    Quorum::of(&members).may_stop(&host.facts.hostname, healthy)
}

/// k3s's unit. A server is restarted only if etcd bears it.
pub(crate) struct StartStep {
    unit: UnitStep,
    role: Role,
    node_ip: IpAddr,
}

impl StartStep {
    /// `wait`: until k3s says that it runs, which on a joiner may be never.
    pub(crate) fn new(role: Role, node_ip: IpAddr, wait: bool) -> Self {
        Self { unit: UnitStep { unit: paths::unit(role), on_change: OnChange::Restart, wait }, role, node_ip }
    }
}

#[async_trait(?Send)]
impl Step for StartStep {
    fn name(&self) -> String {
        self.unit.name()
    }

    async fn check(&self, host: &Host) -> Result<State> {
        self.unit.check(host).await
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let runs = host.systemd.unit(&self.unit.unit).await?.active == "active";
        if self.role == Role::Server && runs {
            may_stop_here(host, self.node_ip).await?;
        }
        self.unit.apply(host).await
    }
}

/// Writes down what k3s will make on this host, before it is started for the first time.
struct DataStep;

/// The kubelet's own folder, which k3s's kubelet uses as well.
pub(crate) const KUBELET: &str = "/var/lib/kubelet";

/// What k3s and its containers leave behind, from the innermost to the outermost.
const MADE_BY_K3S: [&str; 15] = [
    "/etc/rancher/k3s/k3s.yaml",
    "/etc/rancher/k3s",
    "/etc/rancher/node",
    "/etc/rancher",
    "/etc/cni",
    "/var/lib/rancher/k3s",
    "/var/lib/rancher",
    KUBELET,
    "/var/lib/cni",
    "/var/log/pods",
    "/var/log/containers",
    "/run/k3s",
    "/run/flannel",
    "/opt/cni",
    "/usr/libexec/kubernetes",
];

#[async_trait(?Send)]
impl Step for DataStep {
    fn name(&self) -> String {
        "k3s data".into()
    }

    async fn check(&self, host: &Host) -> Result<State> {
        let known = host.journal.entries().iter().any(|e| matches!(&e.undo, Undo::Other { by, .. } if by == "k3s"));
        // data that was there before smartup is not smartup's to remove
        let theirs = Path::new(paths::DATA).join("server/tls").exists() || Path::new(paths::AGENT_CA).exists();
        Ok(if known || theirs { State::Right } else { State::differs(format!("have k3s make {}", paths::DATA)) })
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let absent: Vec<&str> = MADE_BY_K3S.into_iter().filter(|p| !Path::new(p).exists()).collect();
        // a folder of the kubelet's that is there already, such as a mount point, stays, but not what k3s puts into it
        let kubelet: Vec<String> =
            std::fs::read_dir(KUBELET).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        let data = serde_json::json!({ "absent": absent, "kubelet": kubelet });
        host.journal.record(Undo::Other { by: "k3s".into(), data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::settings as server;

    fn settings(first: bool) -> Settings {
        Settings { runtime: Runtime::Docker, ..server(Role::Server, first) }
    }

    #[test]
    fn the_first_server_in_the_references_form() {
        insta::assert_snapshot!(environment(None, &settings(true), None), @r#"
        K3S_TOKEN=s3cret
        K3S_EXTRA_FLAGS="--cluster-init --tls-san=10.0.0.10 --https-listen-port=9443 --node-ip=10.0.0.11 --flannel-iface=eth0 --docker"
        "#);
    }

    #[test]
    fn a_joiner_with_a_vendors_unit_passes_nothing_twice() {
        let vendor = Flags::parse("--https-listen-port 9443 --docker");
        insta::assert_snapshot!(environment(None, &settings(false), Some(&vendor)), @r#"
        K3S_TOKEN=s3cret
        K3S_URL=https://10.0.0.10:9443
        K3S_EXTRA_FLAGS="--tls-san=10.0.0.10 --node-ip=10.0.0.11 --flannel-iface=eth0"
        "#);
    }

    #[test]
    fn a_file_made_by_hand_keeps_what_is_not_ours() {
        let by_hand = "# proxy\nHTTPS_PROXY=http://p:3128\nK3S_TOKEN=s3cret\nK3S_EXTRA_FLAGS=\"--cluster-init --disable traefik\"\n";
        let once = environment(Some(by_hand), &settings(true), None);
        assert!(once.starts_with("# proxy\nHTTPS_PROXY=http://p:3128\nK3S_TOKEN=s3cret\n") && once.contains("--disable=traefik"), "{once}");
        assert_eq!(environment(Some(&once), &settings(true), None), once);
    }
}

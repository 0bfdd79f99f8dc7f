//! Another version of k3s in the place of the one that runs here, and back if it does not work.
//!
//! The one before is kept in [`previous`] from before it is replaced until the new one works: while that file is there, an upgrade is
//! not through, and however it was cut off, running it again ends it or puts the old one back.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cluster::Role;
use node::{Awaited, Context as _, Error, Finding, Host, Plan, Result, State, Step, install, keep, keeps, last_lines, same_content};

use crate::binary::{BinaryStep, Source, download, version_of};
use crate::etcd;
use crate::ready::{ApiStep, NodeStep, client, nodes, server_version};
use crate::settings::paths;
use crate::skew::{Running, Version, may_change_agent, may_change_server};
use crate::steps::StartStep;
use crate::unit;
use crate::watch::Watch;

/// Which version shall run here, and what must be known of this host for it.
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// Server or agent.
    pub role: Role,
    /// The node's own address.
    pub node_ip: IpAddr,
    /// The API through the VIP.
    pub url: String,
    /// Where the new k3s comes from.
    pub source: Source,
    /// Its version.
    pub version: Version,
}

/// The VIP may be on its way from one server to another when something is asked through it.
const PATIENCE: Duration = Duration::from_secs(15);

/// Asks again while nobody answers.
async fn patiently<T>(mut ask: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match ask().await {
            Err(_) if began.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_secs(1)).await,
            answer => return answer,
        }
    }
}

/// The k3s that was here before an upgrade that is not through.
fn previous() -> PathBuf {
    keeps("k3s-before-upgrade")
}

impl Upgrade {
    fn binary(&self) -> BinaryStep {
        BinaryStep { source: self.source.clone(), unit: paths::unit(self.role) }
    }

    /// Whether the new k3s is not at its place yet.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub async fn replaces(&self, host: &Host) -> Result<bool> {
        Ok(self.binary().check(host).await? != State::Right)
    }

    /// Whether k3s is to be restarted here.
    ///
    /// # Errors
    /// When a file cannot be read, or systemd does not answer.
    pub async fn restarts(&self, host: &Host) -> Result<bool> {
        Ok(self.replaces(host).await? || self.start().check(host).await? != State::Right)
    }

    /// Whether an upgrade was begun here and is not through.
    pub fn is_under_way(&self) -> bool {
        previous().exists()
    }

    /// Whether this host may change to that version, with the cluster as it is now. `ordered`: the servers change before this agent.
    ///
    /// # Errors
    /// Refused with the rule that forbids it; failed when the cluster cannot be asked.
    pub async fn may(&self, host: &Host, ordered: bool) -> Result<()> {
        match unit::program(host, self.role).await? {
            Some(program) if fs::canonicalize(&program).is_ok_and(|p| fs::canonicalize(paths::BINARY).is_ok_and(|ours| ours == p)) => {}
            Some(program) => {
                return Err(Error::refused(format!(
                    "{} runs {}, which smartup does not replace",
                    paths::unit(self.role),
                    program.display()
                ))
                .hint("upgrade the package that it belongs to"));
            }
            None => return Err(Error::refused(format!("there is no {} on this host", paths::unit(self.role)))),
        }
        if !self.replaces(host).await? {
            return Ok(());
        }
        let name = host.facts.node_name()?.to_string();
        match self.role {
            Role::Server => {
                let client = client(paths::kubeconfig(self.role), Some(&self.url)).await?;
                let all = patiently(async || nodes(&client).await).await?;
                let running: Vec<Running> = all.iter().map(Running::try_from).collect::<Result<_>>()?;
                may_change_server(&name, &self.version, &running)
            }
            Role::Agent => {
                let now = version_of(Path::new(paths::BINARY)).await;
                let now: Version = now.ok_or_else(|| Error::failed(format!("{} does not say its version", paths::BINARY)))?.parse()?;
                let server = if ordered { None } else { Some(patiently(async || server_version(self.role, &self.url).await).await?) };
                may_change_agent(&name, &now, &self.version, server.as_ref())
            }
        }
    }

    /// Has the new k3s on this host, beside the one that runs, and makes sure that it can be run and says that version.
    ///
    /// # Errors
    /// When it cannot be downloaded, run, or says another version; nothing is replaced then.
    pub async fn fetch(&mut self, host: &Host) -> Result<()> {
        if !self.replaces(host).await? {
            return Ok(());
        }
        let file = match &self.source {
            Source::Host => return Err(Error::invalid("it is not said where the new k3s comes from")),
            Source::File(path) | Source::Sent { path, .. } => path.clone(),
            Source::Release { version, mirror } => {
                let path = Path::new(Host::STATE).join(Host::DOWNLOAD);
                download(host, version, mirror, &path).await?;
                let what = || format!("cannot read {}", path.display());
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context(what())?;
                let (sha256, size) = (node::hash(&path).context(what())?, fs::metadata(&path).context(what())?.len());
                self.source = Source::Sent { path: path.clone(), sha256, size };
                path
            }
        };
        match version_of(&file).await {
            Some(version) if version == self.version.as_str() => Ok(()),
            Some(version) => Err(Error::refused(format!("the new k3s says here that it is {version}, not {}", self.version))),
            None => Err(Error::failed("the new k3s cannot be run on this host")
                .hint("is it executable, and made for this host's processor? nothing was replaced")),
        }
    }

    fn start(&self) -> StartStep {
        StartStep::new(self.role, self.node_ip, true)
    }

    /// The steps: the new one in its place and started.
    pub fn replace(&self) -> Plan {
        let mut plan = Plan::default();
        plan.push(ReplaceStep { upgrade: self.clone() });
        plan.push(self.start());
        plan
    }

    /// The steps that wait until it works.
    pub fn works(&self) -> Plan {
        self.wait_for(Some(self.version.clone()))
    }

    /// The step after which the one before is not needed any more.
    pub fn end(&self) -> Plan {
        let mut plan = Plan::default();
        plan.push(EndStep);
        plan
    }

    /// The steps that put the one before back, and wait until it works.
    pub async fn back(&self) -> Plan {
        let mut plan = Plan::default();
        plan.push(BackStep { unit: paths::unit(self.role) });
        plan.push(self.start());
        plan.append(self.wait_for(version_of(&previous()).await.and_then(|v| v.parse().ok())));
        plan.push(EndStep);
        plan
    }

    fn wait_for(&self, version: Option<Version>) -> Plan {
        let mut plan = Plan::default();
        if self.role == Role::Server {
            plan.push(WholeStep);
            plan.push(ApiStep { url: self.url.clone() });
        }
        plan.push(NodeStep { role: self.role, version });
        plan
    }

    /// Ends when k3s has ended again and again, and says so: systemd would start it for ever.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn keeps_ending(&self, host: &Host) -> Result<Error> {
        let unit = paths::unit(self.role);
        let mut first = u32::MAX;
        loop {
            let now = host.systemd.unit(&unit).await?.restarts;
            // a restart by hand counts from nothing again
            first = first.min(now);
            if now - first >= ENDED {
                let lines = last_lines(&unit, 10, None).await.join("\n  ");
                return Ok(Error::failed(format!("{unit} has ended {ENDED} times in a row; its last lines:\n  {lines}"))
                    .hint(format!("journalctl -u {unit} has all of it")));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// A k3s that has ended so often since its start, by itself, does not come up. Once may be bad luck.
const ENDED: u32 = 3;

/// The new k3s in the place of the old one, which is kept.
struct ReplaceStep {
    upgrade: Upgrade,
}

#[async_trait(?Send)]
impl Step for ReplaceStep {
    fn name(&self) -> String {
        "k3s binary".into()
    }

    async fn check(&self, host: &Host) -> Result<State> {
        if !self.upgrade.replaces(host).await? {
            return Ok(State::Right);
        }
        let now = version_of(Path::new(paths::BINARY)).await.unwrap_or_else(|| "that does not run".into());
        Ok(State::differs(format!("replace k3s {now} with {}", self.upgrade.version)))
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        // one that is kept already is the last one that worked
        keep(Path::new(paths::BINARY), &previous())?;
        self.upgrade.binary().apply(host).await
    }
}

/// The old k3s in its place again.
struct BackStep {
    unit: String,
}

#[async_trait(?Send)]
impl Step for BackStep {
    fn name(&self) -> String {
        "k3s binary, back".into()
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        let right = same_content(&previous(), Path::new(paths::BINARY))?;
        Ok(if right { State::Right } else { State::differs("put the k3s back that was here before") })
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        install(host, &previous(), Path::new(paths::BINARY), 0o755, &self.unit).await
    }
}

/// Nothing is left of an upgrade.
struct EndStep;

#[async_trait(?Send)]
impl Step for EndStep {
    fn name(&self) -> String {
        "end of the upgrade".into()
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        let kept = previous();
        Ok(if kept.exists() { State::differs(format!("remove {}", kept.display())) } else { State::Right })
    }

    async fn apply(&self, _host: &Host) -> Result<()> {
        node::remove_file(&previous())
    }
}

/// Every voter of etcd is healthy.
struct WholeStep;

impl WholeStep {
    /// What is missing; None when nothing is.
    async fn look() -> Option<String> {
        match etcd::members().await {
            Ok(members) => members.iter().find(|m| !m.learner && !m.is_healthy()).map(|m| format!("{}: {}", m.name, m.health())),
            Err(e) => Some(e.chain()),
        }
    }
}

#[async_trait(?Send)]
impl Step for WholeStep {
    fn name(&self) -> String {
        "etcd whole".into()
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        Ok(Self::look().await.map_or(State::Right, |missing| State::differs(format!("wait: {missing}"))))
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        Watch::new(host, Role::Server)
            .wait(&self.name(), "all members of etcd", async || Ok(Self::look().await.map_or(Awaited::Done(()), Awaited::Missing)))
            .await
    }
}

/// Whether another version of k3s would come to a host that takes part in a cluster: only an upgrade looks at what goes together.
/// None = it would not, or cannot be told.
pub async fn another_version(role: Role, source: &Source) -> Option<Finding> {
    if !paths::ca(role).exists() {
        return None;
    }
    let wanted = match source {
        Source::Host => return None,
        Source::Release { version, .. } => version.clone(),
        // sent only where it is not in its place already
        Source::File(path) | Source::Sent { path, .. } => version_of(path).await?,
    };
    let now = version_of(Path::new(paths::BINARY)).await.filter(|now| *now != wanted)?;
    let error = Error::refused(format!("k3s is {now} here, and {wanted} is asked for: another version comes with an upgrade alone"))
        .hint(format!("smartup upgrade --k3s {wanted}, or -f FILE for all hosts, minds which versions go together; or ask for {now}"));
    Some(Finding::fail("k3s-version", &error))
}

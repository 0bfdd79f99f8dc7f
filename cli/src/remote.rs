//! Other hosts: from cluster.yaml to conversations with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use clap::Args;
use cluster::file::{Cluster, HostSpec, K3sFrom};
use cluster::{AuthPass, Role, Token};
use fleet::apply::Work;
use fleet::order::Listed;
use fleet::protocol::{FromNode, Job, K3s, Secret, Setup};
use fleet::session::{Common, Input, converse};
use fleet::ssh::{self, Passphrases};
use fleet::upload::{LocalFile, Programs};
use node::{Error, Reporter, Result};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::unbounded_channel;

use crate::commands::{config, read_secret};
use crate::output;

/// How other hosts are reached.
#[derive(Debug, Args)]
pub struct Connect {
    /// Take the SSH key of a host of which none is known, and remember it; a changed key is refused all the same
    #[arg(long)]
    pub accept_new_host_keys: bool,
    /// smartup for another processor, as `uname -m` names it, beside those that lie next to this one as smartup-ARCH
    #[arg(long, value_name = "ARCH=PATH", value_parser = binary)]
    pub binary: Vec<(String, PathBuf)>,
    /// How many hosts are worked on at the same time, where the order allows it
    #[arg(long, value_name = "N", default_value_t = PARALLEL, value_parser = clap::value_parser!(u16).range(1..))]
    pub parallel: u16,
}

impl Default for Connect {
    fn default() -> Self {
        Self { accept_new_host_keys: false, binary: Vec::new(), parallel: PARALLEL }
    }
}

/// A laptop's processor and network bear so many at once.
const PARALLEL: u16 = 32;

fn binary(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((arch, path)) if !arch.is_empty() && Path::new(path).is_file() => Ok((arch.to_owned(), path.into())),
        Some((_, path)) if !path.is_empty() => Err(format!("there is no file {path}")),
        _ => Err("write it as ARCH=PATH, for example aarch64=./smartup-arm".into()),
    }
}

/// A k3s that is sent to hosts that have another one.
pub fn sent(file: &LocalFile) -> K3s {
    K3s::Sent { path: file.remote_path("k3s").into(), sha256: file.sha256.clone(), size: file.size }
}

/// What came of asking a host.
enum Asked {
    /// It has done the job, or says why it could not.
    Answered(Result<Value>),
    /// It could not be asked, or was lost before it said how it ended.
    Lost(Error),
}

/// The hosts of a file, and how to talk to them.
pub struct Remote {
    /// What the file says.
    pub cluster: Cluster,
    /// What holds for all conversations.
    pub common: Arc<Common>,
    folder: PathBuf,
    token: Option<Secret>,
    auth_pass: Option<Secret>,
}

impl Remote {
    /// Reads the file, and the files that it names.
    ///
    /// # Errors
    /// When one of them cannot be read or is not valid.
    pub fn load(file: &Path, connect: &Connect, keep: bool) -> Result<Self> {
        let cluster = config::load(file)?;
        let folder = file.parent().map(Path::to_owned).unwrap_or_default();
        let token = cluster.token_file.as_ref().map(|f| read_secret(&folder.join(f), "token")).transpose()?;
        let auth_pass = cluster.auth_pass_file.as_ref().map(|f| read_secret(&folder.join(f), "VRRP password")).transpose()?;
        // what cannot be is said here, not on each host
        let token = token.map(|t| Token::parse(&t).map(|t| Secret(t.expose().to_owned()))).transpose()?;
        let auth_pass = auth_pass.map(|p| AuthPass::parse(&p).map(|p| Secret(p.expose().to_owned()))).transpose()?;
        let mut k3s = BTreeMap::new();
        for host in &cluster.hosts {
            if let Some(K3sFrom::File(path)) = &host.k3s {
                let file = LocalFile::read(&folder.join(path)).map_err(|mut e| {
                    e.kind = node::Kind::Invalid;
                    e
                })?;
                k3s.insert(file.sha256.clone(), file);
            }
        }
        let passphrases = Passphrases::from(|file: &Path| output::quietly(|| ssh::ask_on_terminal(file)));
        let common = Common {
            ssh: ssh::Options { accept_new: connect.accept_new_host_keys, passphrases, ..ssh::Options::default() },
            programs: Programs::find(&connect.binary)?,
            k3s,
            keep,
            permits: Arc::new(Semaphore::new(connect.parallel.into())),
        };
        Ok(Self { cluster, common: Arc::new(common), folder, token, auth_pass })
    }

    /// With one more k3s that hosts may want.
    #[must_use]
    pub fn with_k3s(mut self, file: LocalFile) -> Self {
        let mut common = (*self.common).clone();
        common.k3s.insert(file.sha256.clone(), file);
        self.common = Arc::new(common);
        self
    }

    /// The hosts' own k3s, as the file has them: whether one of them is another than this.
    pub fn asks_for_another(&self, wanted: &K3s) -> bool {
        self.cluster.hosts.iter().filter(|h| h.k3s.is_some()).any(|h| match (self.k3s(h), wanted) {
            (K3s::Release { version: a, .. }, K3s::Release { version: b, .. })
            | (K3s::Sent { sha256: a, .. }, K3s::Sent { sha256: b, .. }) => a != *b,
            _ => true,
        })
    }

    /// The conversations that set up the hosts: those named in `only`, or all. Servers always take part: others join them.
    ///
    /// # Errors
    /// When a host that is named is not in the file.
    pub fn work(&self, only: &[String], timeout: Option<std::time::Duration>, plan: bool) -> Result<Vec<Work>> {
        if let Some(unknown) = only.iter().find(|o| !self.cluster.hosts.iter().any(|h| h.host.as_str() == o.as_str())) {
            let names: Vec<&str> = self.cluster.hosts.iter().map(|h| h.host.as_str()).collect();
            return Err(Error::invalid(format!("--only {unknown}: there is no such host in the file"))
                .hint(format!("its hosts are called {}", names.join(", "))));
        }
        let selected = |h: &HostSpec| only.is_empty() || only.iter().any(|o| o == h.host.as_str());
        let work = self.cluster.hosts.iter().filter(|h| selected(h) || h.role == Role::Server).map(|host| {
            let selected = selected(host);
            let mut setup = self.setup(host, plan || !selected);
            if let Some(timeout) = timeout {
                setup.timeout_s = timeout.as_secs().max(1);
            }
            Work {
                listed: Listed { name: host.host.to_string(), role: host.role, selected },
                target: self.target(host),
                job: Job::Setup(Box::new(setup)),
            }
        });
        Ok(work.collect())
    }

    fn k3s(&self, host: &HostSpec) -> K3s {
        match &host.k3s {
            None => K3s::Host,
            Some(K3sFrom::Release { version, mirror }) => {
                K3s::Release { version: version.to_string(), mirror: mirror.as_ref().map(ToString::to_string) }
            }
            Some(K3sFrom::File(path)) => match self.common.k3s.values().find(|f| f.path == self.folder.join(path)) {
                Some(file) => sent(file),
                None => K3s::Host,
            },
        }
    }

    fn setup(&self, host: &HostSpec, plan: bool) -> Setup {
        Setup {
            plan,
            role: host.role,
            vip: self.cluster.vip,
            port: self.cluster.port,
            token: self.token.clone(),
            auth_pass: self.auth_pass.clone(),
            unicast: self.cluster.unicast.clone(),
            interface: host.interface.clone(),
            node_ip: host.node_ip,
            runtime: host.runtime,
            k3s: self.k3s(host),
            firewall: host.firewall.unwrap_or(true),
            k3s_args: host.k3s_args.iter().map(ToString::to_string).collect(),
            ignore: host.ignore.clone(),
            timeout_s: host.timeout.get().as_secs().max(1),
        }
    }

    /// How a host is reached.
    pub fn target(&self, host: &HostSpec) -> ssh::Target {
        let files = host.ssh.identity_files.iter().flatten();
        let jump = host
            .ssh
            .jump
            .as_ref()
            .map(|hops| if hops.is_empty() { vec!["none".to_owned()] } else { hops.iter().map(ToString::to_string).collect() });
        ssh::Target {
            name: host.host.to_string(),
            port: host.ssh.port.map(cluster::Port::get),
            user: host.ssh.user.as_ref().map(ToString::to_string),
            identity_files: files.map(|f| self.local(f)).collect(),
            jump: jump.unwrap_or_default(),
            host_key: host.host_key.as_ref().and_then(|k| k.as_str().parse().ok()),
        }
    }

    /// A path of the file's: `~` is the user's home, and what is relative is meant from the file's folder.
    fn local(&self, path: &Path) -> PathBuf {
        match (path.strip_prefix("~"), std::env::home_dir()) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => self.folder.join(path),
        }
    }

    /// For a command that works on this host unless it is given a file.
    ///
    /// # Errors
    /// As [`Remote::load`]; or when it is said how to reach hosts, and not which.
    pub fn maybe(file: Option<&Path>, connect: Option<&Connect>, keep: bool) -> Result<Option<Self>> {
        match (file, connect) {
            (Some(file), Some(connect)) => Self::load(file, connect, keep).map(Some),
            (Some(file), None) => Self::load(file, &Connect::default(), keep).map(Some),
            (None, None) => Ok(None),
            (None, Some(_)) => {
                Err(Error::invalid("it is said how other hosts are to be reached, but not which").hint("name them with -f FILE"))
            }
        }
    }

    /// Whether a host can be logged in to.
    ///
    /// # Errors
    /// Why not.
    pub async fn reach(&self, host: &HostSpec) -> Result<()> {
        ssh::connect(&self.target(host), &self.common.ssh).await?.close().await;
        Ok(())
    }

    /// Gives one host a job that needs no conversation, and answers its result.
    ///
    /// # Errors
    /// When the host cannot be reached, or the job fails there.
    pub async fn ask(&self, host: &HostSpec, job: Job) -> Result<Value> {
        match self.ask_and_hear(host, job, &Reporter::default()).await {
            Asked::Answered(answer) => answer,
            Asked::Lost(error) => Err(error),
        }
    }

    /// Gives a job, which may be begun again, to the first server, in the file's order, that can be reached; when that one is lost on
    /// the way, to the next one, and `job` is told that another has begun. Reports what it says on the way, and answers its result.
    ///
    /// # Errors
    /// When no server can be reached, or the job fails there.
    pub async fn ask_a_server(&self, job: impl Fn(bool) -> Job, reporter: &Reporter) -> Result<Value> {
        let (mut silent, mut begun) = (Vec::new(), false);
        for server in self.cluster.servers() {
            if let Err(e) = self.reach(server).await {
                silent.push(format!("{}: {}", server.host, e.chain()));
                continue;
            }
            match self.ask_and_hear(server, job(begun), reporter).await {
                Asked::Answered(answer) => return answer,
                Asked::Lost(e) => {
                    reporter.warn(format!("{} was lost: {}", server.host, e.chain()), Some("the next server goes on".into()));
                    silent.push(format!("{}: {}", server.host, e.chain()));
                    begun = true;
                }
            }
        }
        Err(Error::failed(format!("no server of the file can be reached:\n  {}", silent.join("\n  "))))
    }

    async fn ask_and_hear(&self, host: &HostSpec, job: Job, reporter: &Reporter) -> Asked {
        // kept until the end: the end of the orders means that the work is not wanted any more
        let (_orders, heard) = unbounded_channel();
        let result = std::sync::Mutex::new(Asked::Lost(Error::failed("smartup ended there without an answer")));
        let hand = |input| {
            let answer = match input {
                Input::Said(FromNode::Done { result }) => Asked::Answered(Ok(result)),
                Input::Said(FromNode::Failed(failure)) => Asked::Answered(Err(failure.into())),
                Input::Lost(error) => Asked::Lost(error),
                Input::Said(FromNode::Event { event }) => return reporter.report(event),
                Input::Said(_) | Input::Sending { .. } => return,
            };
            let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
            // it has answered: that the connection breaks then is no matter
            if !matches!(*result, Asked::Answered(_)) {
                *result = answer;
            }
        };
        Box::pin(converse(&self.common, &self.target(host), job, heard, hand)).await;
        result.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same for several hosts at once; the answers with the hosts' names, in their order.
    pub async fn ask_all<'a>(&self, hosts: impl Iterator<Item = &'a HostSpec>, job: &Job) -> Vec<(String, Result<Value>)> {
        let answers = hosts.map(async |host| (host.host.to_string(), self.ask(host, job.clone()).await));
        futures::future::join_all(answers).await
    }
}

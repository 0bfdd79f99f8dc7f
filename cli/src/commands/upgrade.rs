use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use cluster::{K3sVersion, Mirror, Role};
use fleet::apply::Work;
use fleet::order::{Conductor, End, Listed};
use fleet::protocol::{self, Job, K3s};
use fleet::upload::LocalFile;
use k3s::{Source, Version};
use node::{Error, Host, Result, Summary};
use serde_json::json;

use super::reset::agree;
use super::{Format, OutputArgs, apply, checked, duration};
use crate::output::{self, Progress};
use crate::remote::{Connect, Remote, sent};
use crate::run_here::{say_how_it_ended, stop_on_signal};
use crate::{exit, setup, upgrade};

/// Run another version of k3s, on this host or on all
///
/// Servers first, one by one, the holder of the floating address as the last of them, after it has given it away; then the agents.
/// Each must be Ready in the new version, and etcd whole, before the next one. Where the new version does not work, the old one is
/// put back, and the rest is left alone. Which versions go together is looked at before anything. Run again, it goes on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    smartup upgrade -f cluster.yaml --k3s v1.31.2+k3s1 --dry-run\n  \
    smartup upgrade -f cluster.yaml --k3s v1.31.2+k3s1\n  \
    smartup upgrade --k3s ./k3s     (this host alone)")]
pub struct Upgrade {
    /// The new k3s: a release to download, its checksum verified (as in v1.31.2+k3s1), or a binary's path
    #[arg(long, value_name = "PATH|VERSION")]
    k3s: String,
    /// Where releases are, laid out as k3s's own: URL/VERSION/k3s
    #[arg(long, value_name = "URL", value_parser = checked::<Mirror>)]
    k3s_mirror: Option<String>,
    /// All hosts of this file, over SSH
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Only say what would be changed
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: exit with 3 when something would be changed
    #[arg(long, requires = "dry_run")]
    exit_code: bool,
    /// How long to wait for a host to be ready, as in 90s or 10m [default: the file's, or 10m]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    connect: Option<Connect>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What shall run.
enum New {
    Release(Version, Option<String>),
    Binary(Version, LocalFile),
}

impl New {
    /// A binary is asked for its version.
    async fn of(text: &str, mirror: Option<String>) -> Result<Self> {
        if let Ok(release) = text.parse::<K3sVersion>() {
            return Ok(Self::Release(release.to_string().parse()?, mirror));
        }
        let path = Path::new(text);
        if !path.is_file() {
            return Err(Error::invalid(format!("--k3s {text}: there is no such file, and it is no release"))
                .hint("write a release as v1.31.2+k3s1"));
        }
        if mirror.is_some() {
            return Err(Error::invalid("--k3s-mirror is for a release, and --k3s is a file"));
        }
        // a name without a slash would be looked for in PATH
        let path = std::path::absolute(path).map_err(|e| Error::invalid(format!("--k3s {text}")).because(e))?;
        let version = k3s::version_of(&path).await.ok_or_else(|| {
            Error::invalid(format!("--k3s {text}: it cannot be run here to ask for its version"))
                .hint("it must be executable, and for this machine's processor; for hosts of another one give a release (--k3s VERSION)")
        })?;
        Ok(Self::Binary(version.parse()?, LocalFile::read(&path)?))
    }

    fn version(&self) -> &Version {
        match self {
            Self::Release(version, _) | Self::Binary(version, _) => version,
        }
    }

    fn source(self) -> Source {
        match self {
            Self::Release(version, mirror) => {
                Source::Release { version: version.to_string(), mirror: mirror.unwrap_or_else(|| Source::MIRROR.into()) }
            }
            Self::Binary(_, file) => Source::File(file.path),
        }
    }

    fn wire(&self) -> K3s {
        match self {
            Self::Release(version, mirror) => K3s::Release { version: version.to_string(), mirror: mirror.clone() },
            Self::Binary(_, file) => sent(file),
        }
    }
}

impl Upgrade {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        if !self.yes && !self.dry_run && !std::io::stdin().is_terminal() {
            return Err(Error::invalid("upgrade asks before it changes anything, and there is no terminal to ask on").hint("give --yes"));
        }
        let remote = Remote::maybe(self.file.as_deref(), self.connect.as_ref(), !self.dry_run)?;
        let new = New::of(&self.k3s, self.k3s_mirror.clone()).await?;
        match (remote, &self.file) {
            (Some(remote), Some(file)) => self.all(remote, file, new, verbose).await,
            _ => self.here(new, verbose).await,
        }
    }

    async fn here(&self, new: New, verbose: u8) -> Result<ExitCode> {
        let version = new.version().clone();
        if !self.yes && !self.dry_run {
            agree(&format!("This replaces k3s on this host with {version}, and restarts it.\n"))?;
        }
        let progress = Progress::start(self.output.events, verbose > 0, self.dry_run);
        let done = self.this_host(new, &progress).await;
        progress.finish().await;
        if self.output.events.is_some() {
            say_how_it_ended(done.as_ref().map(|(_, summary)| *summary), self.dry_run);
        }
        let (node, Summary { changed, unchanged }) = done?;
        let report = json!({ "node": node, "k3s": version.as_str(), "dry_run": self.dry_run, "changed": changed, "unchanged": unchanged });
        match self.output.output {
            Some(format @ (Format::Json | Format::Yaml)) => output::print(&report, format, |_| String::new())?,
            _ if self.output.events.is_some() => {}
            _ if changed == 0 => anstream::println!("{node} runs k3s {version} already: nothing had to be changed."),
            _ if self.dry_run => anstream::println!("{node} would be upgraded to k3s {version}. Nothing was changed."),
            _ => anstream::println!("{node} runs k3s {version}."),
        }
        Ok(if self.exit_code && changed > 0 { ExitCode::from(exit::CHANGES) } else { ExitCode::SUCCESS })
    }

    async fn this_host(&self, new: New, progress: &Progress) -> Result<(String, Summary)> {
        let timeout = self.timeout.unwrap_or(TIMEOUT);
        let mut host = Host::open(progress.reporter(), stop_on_signal()?, timeout).await?;
        let _lock = setup::lock(&host, self.dry_run)?;
        let version = new.version().clone();
        let upgrade = upgrade::Upgrade::here(&host, new.source(), version, false).await?;
        let found = upgrade.survey(&host).await?;
        let done = if self.dry_run || found.changed == 0 { found } else { upgrade.carry_out(&mut host, timeout).await? };
        Ok((host.facts.hostname.clone(), done))
    }

    async fn all(&self, remote: Remote, file: &Path, new: New, verbose: u8) -> Result<ExitCode> {
        let (version, k3s) = (new.version().clone(), new.wire());
        let another = remote.asks_for_another(&k3s);
        let remote = match new {
            New::Binary(_, file) => remote.with_k3s(file),
            New::Release(..) => remote,
        };
        let work: Vec<Work> = remote
            .cluster
            .hosts
            .iter()
            .map(|host| Work {
                listed: Listed { name: host.host.to_string(), role: host.role, selected: true },
                target: remote.target(host),
                job: Job::Upgrade(Box::new(protocol::Upgrade {
                    plan: self.dry_run,
                    role: host.role,
                    k3s: k3s.clone(),
                    version: version.to_string(),
                    timeout_s: self.timeout.unwrap_or_else(|| host.timeout.get()).as_secs().max(1),
                })),
            })
            .collect();
        let parallel = self.connect.as_ref().map_or_else(|| Connect::default().parallel, |c| c.parallel);
        let conductor = Conductor::new(apply::listed(&work), parallel.into(), self.dry_run).rolling();
        let agreed = (!self.dry_run).then_some(self.yes);
        let (conductor, hosts) =
            apply::conduct(&remote, work, conductor, &self.output, verbose, agreed, "smartup upgrade --dry-run").await?;
        let code = apply::report(&self.output, &conductor, &hosts, self.dry_run, file)?;
        let in_words = self.output.events.is_none() && matches!(self.output.output, None | Some(Format::Table));
        if self.dry_run && in_words {
            anstream::println!("{}", in_order(&conductor));
        }
        if another && code == ExitCode::SUCCESS && in_words {
            anstream::println!("{} asks for another k3s: write k3s {version} there, or apply will refuse to go back.", file.display());
        }
        let changes = conductor.ends().any(|(_, _, e)| matches!(e, Some(End::WouldChange)));
        Ok(if self.exit_code && changes && code == ExitCode::SUCCESS { ExitCode::from(exit::CHANGES) } else { code })
    }
}

/// As apply's.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The hosts that would be changed, in their turn.
fn in_order(conductor: &Conductor) -> String {
    let holds = |host| conductor.state(host).is_some_and(|s| s.holds_vip);
    let mut turns: Vec<_> = conductor.ends().filter(|(_, _, e)| matches!(e, Some(End::WouldChange))).collect();
    turns.sort_by_key(|(host, listed, _)| (listed.role == Role::Agent, holds(*host)));
    let name = |(host, listed, _): &(usize, &Listed, Option<&End>)| {
        let note = if holds(*host) { " (gives the VIP away first)" } else { "" };
        format!("{}{note}", listed.name)
    };
    match turns.iter().map(name).collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "No host's turn would come.".into(),
        turns => format!("In this order: {turns}."),
    }
}

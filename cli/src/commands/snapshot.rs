use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Subcommand};
use cluster::file::HostSpec;
use cluster::{Role, Ticket, Token};
use fleet::protocol::{Job, Secret};
use fleet::snapshot::SnapshotJob;
use k3s::SnapshotName;
use node::{Context as _, Error, Host, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Format, OutputArgs, Reach, duration, read_secret, understood};
use crate::age::{self, Recipient};
use crate::output::{self, Progress};
use crate::remote::Remote;
use crate::run_here::stop_on_signal;
use crate::snapshot::{self, Course, Found, Keeping, Listed, Of, Restored, Seen, at, loses};

/// Save the cluster's data, and bring it back after a disaster
///
/// k3s's own snapshots of etcd, each with the token that it takes to restore it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smartup snapshot save\n  smartup snapshot list -f cluster.yaml\n  \
    smartup snapshot restore -f cluster.yaml --dry-run smartup-h1-1790000000")]
pub struct SnapshotCommand {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Save(Save),
    List(List),
    Restore(Box<Restore>),
    Stop(Stop),
    Rejoin(Rejoin),
}

/// Take a snapshot on this server, or on all servers of a file
#[derive(Debug, Args)]
struct Save {
    /// What its name begins with; k3s adds the node and the time
    #[arg(long, value_name = "NAME", default_value = "smartup")]
    name: SnapshotName,
    /// Encrypt the token that is kept with it for this key of age's, age1… (may be given several times)
    #[arg(long, value_name = "KEY")]
    recipient: Vec<Recipient>,
    /// The same, with a file of such keys, one a line
    #[arg(long, value_name = "FILE")]
    recipients_file: Option<PathBuf>,
    #[command(flatten)]
    reach: Reach,
}

/// List the snapshots on this server, or on all servers of a file
#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    reach: Reach,
}

/// Bring the cluster back to a snapshot: all that was written since is lost
///
/// With a file the whole cluster: k3s is stopped on all servers, the one that has the snapshot is restored, the others join it anew
/// (their old data is set aside, not deleted), and the agents start anew. Without one this server only; then it says what to do on
/// the others. Run again, it goes on where it was cut off.
#[derive(Debug, Args)]
struct Restore {
    /// The snapshot's name, or a path on the server
    snapshot: String,
    /// The token that the cluster had [default: the one that is kept with the snapshot, or the present one]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Open the token that is kept with the snapshot with this file of age's identities
    #[arg(long, value_name = "FILE", conflicts_with = "token_file")]
    identity: Option<PathBuf>,
    /// A server of the file that is gone, and stays off until it has been set up anew (may be given several times)
    #[arg(long, value_name = "HOST", requires = "file")]
    without: Vec<String>,
    /// Do not ask; also where the cluster is healthy
    #[arg(long)]
    yes: bool,
    /// Only say what would be done, and where
    #[arg(long)]
    dry_run: bool,
    /// How long each host may take, as in 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    reach: Reach,
}

/// Stop k3s on this server, until another one has been restored
#[derive(Debug, Args)]
struct Stop {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Bring this host into the cluster that was restored on another one
///
/// A server that was stopped for it (smartup snapshot stop) loses its old data, which is set aside; an agent starts anew.
#[derive(Debug, Args)]
struct Rejoin {
    /// A ticket of the restored cluster, where its token is another one than before (- for standard input)
    #[arg(long, value_name = "FILE")]
    ticket: Option<PathBuf>,
    /// How long it may take, as in 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

impl SnapshotCommand {
    pub async fn run(self, verbose: u8) -> Result<ExitCode> {
        match self.command {
            What::Save(c) => c.run().await,
            What::List(c) => c.run().await,
            What::Restore(c) => Box::pin(c.run(verbose)).await,
            What::Stop(c) => c.run(verbose).await,
            What::Rejoin(c) => c.run(verbose).await,
        }
    }
}

/// A snapshot and the host that has it.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(flatten)]
    listed: Listed,
}

fn print(rows: &[Row], format: Option<Format>) -> Result<()> {
    output::print(&rows, format.unwrap_or(Format::Table), |rows| {
        if rows.is_empty() {
            return "There are no snapshots.".into();
        }
        let cells = |r: &Row| {
            let Listed { snapshot, token } = &r.listed;
            let token = match token {
                Keeping::Plain => "kept",
                Keeping::Encrypted => "kept, encrypted",
                Keeping::None => "-",
            };
            let created = snapshot.created.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
            let mut cells = vec![snapshot.name.clone(), format!("{} KiB", snapshot.size.div_ceil(1024)), created, token.into()];
            cells.extend(r.host.clone());
            cells
        };
        let mut head = vec!["name", "size", "created", "token"];
        head.extend(rows.iter().any(|r| r.host.is_some()).then_some("host"));
        output::table(&head, rows.iter().map(cells).collect())
    })
}

/// What each of several hosts answered; those that did not are told on stderr.
fn collect<T>(answers: Vec<(String, Result<Value>)>, rows: impl Fn(T) -> Vec<Listed>) -> (Vec<Row>, bool)
where
    T: DeserializeOwned,
{
    let (mut all, mut whole) = (Vec::new(), true);
    for (host, answer) in answers {
        match understood(answer) {
            Ok(listed) => all.extend(rows(listed).into_iter().map(|listed| Row { host: Some(host.clone()), listed })),
            Err(e) => {
                anstream::eprintln!("{host}: {}", e.chain());
                whole = false;
            }
        }
    }
    (all, whole)
}

fn ended(whole: bool) -> ExitCode {
    if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Save {
    async fn run(self) -> Result<ExitCode> {
        let mut recipients: Vec<String> = Vec::new();
        if let Some(path) = &self.recipients_file {
            let text = read_secret(path, "recipients")?;
            recipients.extend(text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned));
            if recipients.is_empty() {
                return Err(Error::invalid(format!("{} has no recipients", path.display())));
            }
        }
        recipients.extend(self.recipient.iter().map(ToString::to_string));
        let parsed = snapshot::recipients(&recipients)?;
        let (rows, whole) = match self.reach.remote()? {
            None => (vec![Row { host: None, listed: snapshot::save(&self.name, &parsed).await? }], true),
            Some(remote) => {
                let job = Job::Snapshot(SnapshotJob::Save { name: self.name.into(), recipients });
                collect(remote.ask_all(remote.cluster.servers(), &job).await, |one: Listed| vec![one])
            }
        };
        print(&rows, self.reach.output.output)?;
        Ok(ended(whole))
    }
}

impl List {
    async fn run(self) -> Result<ExitCode> {
        let (rows, whole) = match self.reach.remote()? {
            None => (snapshot::list()?.into_iter().map(|listed| Row { host: None, listed }).collect(), true),
            Some(remote) => {
                collect(remote.ask_all(remote.cluster.servers(), &Job::Snapshot(SnapshotJob::List)).await, |all: Vec<Listed>| all)
            }
        };
        print(&rows, self.reach.output.output)?;
        Ok(ended(whole))
    }
}

/// Asks, with what is lost; where there is nobody to ask, a healthy cluster is left alone.
fn agree(yes: bool, course: &Course, cost: &str) -> Result<()> {
    if yes || course.goes_on {
        return Ok(());
    }
    let healthy = course.healthy.map(|q| format!("The cluster is healthy ({q}). "));
    if !std::io::stdin().is_terminal() {
        return Err(match healthy {
            Some(healthy) => Error::refused(format!("{healthy}A restore loses {cost}")).hint("if that is what you want: --yes"),
            None => Error::invalid(format!("this asks before it restores, and there is no terminal to ask on; lost is {cost}"))
                .hint("give --yes"),
        });
    }
    if output::ask(&format!("{}This loses {cost}.\n", healthy.unwrap_or_default()))? {
        Ok(())
    } else {
        Err(Error::failed("nothing was restored: you did not say yes"))
    }
}

impl Restore {
    async fn run(self, verbose: u8) -> Result<ExitCode> {
        let token = self.token_file.as_ref().map(|f| read_secret(f, "token")).transpose()?;
        let token = token.map(|t| Token::parse(&t)).transpose()?;
        let done = match self.reach.remote()? {
            Some(remote) => self.all(&remote, token).await?,
            None => self.here(token, verbose).await?,
        };
        let data = json!({ "dry_run": self.dry_run, "done": done });
        output::print(&data, self.reach.output.output.unwrap_or(Format::Table), |_| {
            if self.dry_run { format!("{}\nNothing was changed.", done.join("\n")) } else { done.join("\n") }
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// The token, opened with the identity where it is encrypted.
    fn open(&self, found: Option<&Found>) -> Result<Option<Token>> {
        let (Some(path), Some(found)) = (&self.identity, found) else { return Ok(None) };
        let Some(sealed) = &found.sealed else {
            return Err(Error::invalid(format!("there is no encrypted token beside {}", found.snapshot.path.display()))
                .hint("leave --identity away, or put NAME.token.age beside the snapshot"));
        };
        let identities = age::Identity::parse_all(&read_secret(path, "identities")?)?;
        let sealed = BASE64_STANDARD.decode(sealed).context("the encrypted token is not understood")?;
        Ok(Some(Token::parse(&String::from_utf8_lossy(&age::decrypt(&sealed, &identities)?))?))
    }

    async fn here(&self, token: Option<Token>, verbose: u8) -> Result<Vec<String>> {
        let progress = Progress::start(self.reach.output.events, verbose > 0, false);
        let host = Host::open(progress.reporter(), stop_on_signal()?, self.timeout).await?;
        let done = self.on(&host, token).await;
        drop(host);
        progress.finish().await;
        done
    }

    async fn on(&self, host: &Host, token: Option<Token>) -> Result<Vec<String>> {
        snapshot::server()?;
        k3s::Snapshot::find(&self.snapshot)?;
        let mut seen = snapshot::look(host, &self.snapshot, token.as_ref()).await?;
        let opened = self.open(seen.found.as_ref())?;
        let token = token.or(opened);
        if token.is_some() {
            seen = snapshot::look(host, &self.snapshot, token.as_ref()).await?;
        }
        let name = seen.node.clone();
        let (role, others) = (seen.role.unwrap_or(Role::Server), seen.healthy.clone());
        let all = [Of { host: name.clone(), role, seen: Ok(seen) }];
        let course = Course::of(&all, &self.snapshot, &[])?;
        let Some(found) = all.first().and_then(|o| o.seen.as_ref().ok()?.found.as_ref()) else { return Ok(Vec::new()) };
        let after = format!(
            "then, on each other server, one after the other, and after that on each agent: smartup snapshot rejoin{}",
            if token.is_some() {
                " (if the token is not the one that they have: with --ticket FILE, from `smartup ticket` here)"
            } else {
                ""
            }
        );
        if self.dry_run {
            let mut lines = vec![if others.is_empty() {
                "first, on each other server that runs: smartup snapshot stop".to_owned()
            } else {
                format!("first, on each of the other servers ({}): smartup snapshot stop", others.join(", "))
            }];
            lines.extend(course.in_words(&all, found));
            lines.push(after);
            return Ok(lines);
        }
        agree(self.yes, &course, &loses(found, jiff::Timestamp::now()).to_string())?;
        let Restored { mut done, old, .. } = snapshot::restore(host, &self.snapshot, token, true).await?;
        done.extend(old.iter().map(|o| format!("{name}: its old data is in {}", o.display())));
        done.push(after);
        Ok(done)
    }

    /// The whole cluster.
    async fn all(&self, remote: &Remote, token: Option<Token>) -> Result<Vec<String>> {
        let hosts: Vec<&HostSpec> = remote.cluster.hosts.iter().collect();
        let mut all = self.looks(remote, &hosts, token.as_ref()).await?;
        let opened = self.open(all.iter().find_map(|o| o.seen.as_ref().ok()?.found.as_ref()))?;
        let token = token.or(opened);
        if self.identity.is_some() {
            all = self.looks(remote, &hosts, token.as_ref()).await?;
        }
        let course = Course::of(&all, &self.snapshot, &self.without)?;
        let seen = |n: usize| all.get(n).and_then(|o| o.seen.as_ref().ok());
        let Some(found) = seen(course.first).and_then(|s| s.found.as_ref()) else { return Ok(Vec::new()) };
        if self.dry_run {
            return Ok(course.in_words(&all, found));
        }
        agree(self.yes, &course, &loses(found, jiff::Timestamp::now()).to_string())?;
        let part = Part { remote, hosts: &hosts };
        let mut done = Vec::new();
        for n in &course.stop {
            done.extend(part.does::<Vec<String>>(*n, SnapshotJob::Stop, "stopping k3s").await?);
        }
        let token = token.map(|t| Secret(t.expose().to_owned()));
        let restore = SnapshotJob::Restore { snapshot: self.snapshot.clone(), token };
        let Restored { done: restored, old, tickets } = part.does(course.first, restore, "restoring etcd from the snapshot").await?;
        done.extend(restored);
        let first = hosts.get(course.first).map_or("?", |h| h.host.as_str());
        done.extend(old.iter().map(|o| format!("{first}: its old data is in {}", o.display())));
        let rejoin = |role| SnapshotJob::Rejoin { ticket: snapshot::ticket_for(&tickets, role) };
        for n in &course.rejoin {
            done.extend(part.does::<Vec<String>>(*n, rejoin(Role::Server), "joining the restored cluster").await?);
        }
        let agents = course.agents.iter().map(|n| part.does::<Vec<String>>(*n, rejoin(Role::Agent), "starting k3s anew"));
        for agent in futures::future::join_all(agents).await {
            done.extend(agent?);
        }
        for n in &course.rejoin {
            part.does::<Vec<String>>(*n, SnapshotJob::Finish { forget: Vec::new() }, "finishing").await?;
        }
        let forget = course.bare.iter().filter_map(|n| seen(*n)).map(|s| s.node.clone()).collect();
        done.extend(part.does::<Vec<String>>(course.first, SnapshotJob::Finish { forget }, "finishing").await?);
        if !course.bare.is_empty() {
            done.push("hosts that are not set up join with: smartup apply".into());
        }
        let names = course.absent.iter().filter_map(|n| hosts.get(*n)).map(|h| h.host.as_str());
        done.extend(names.map(|h| {
            format!("{h}: was left out; if it is gone for ever: smartup remove {h}; if it comes back: smartup reset there first")
        }));
        Ok(done)
    }

    async fn looks(&self, remote: &Remote, hosts: &[&HostSpec], token: Option<&Token>) -> Result<Vec<Of>> {
        let token = token.map(|t| Secret(t.expose().to_owned()));
        let job = Job::Snapshot(SnapshotJob::Look { snapshot: self.snapshot.clone(), token });
        let answers = remote.ask_all(hosts.iter().copied(), &job).await;
        let of = |(host, answer): (String, Result<Value>), spec: &&HostSpec| Of {
            host,
            role: spec.role,
            seen: understood::<Seen>(answer).map_err(|e| e.chain()),
        };
        Ok(answers.into_iter().zip(hosts).map(|(answer, spec)| of(answer, spec)).collect())
    }
}

/// The hosts at work.
struct Part<'a> {
    remote: &'a Remote,
    hosts: &'a [&'a HostSpec],
}

impl Part<'_> {
    async fn does<T: DeserializeOwned>(&self, n: usize, job: SnapshotJob, what: &str) -> Result<T> {
        let spec = self.hosts.get(n).copied().ok_or_else(|| Error::failed("there is no such host"))?;
        anstream::eprintln!("{}: {what}", spec.host);
        understood(self.remote.ask(spec, Job::Snapshot(job)).await).map_err(|e| {
            let hint = e.hint.clone().unwrap_or_else(|| "run the same command again: it goes on where it was".into());
            at(&spec.host.to_string(), e).hint(hint)
        })
    }
}

impl Stop {
    async fn run(self, verbose: u8) -> Result<ExitCode> {
        if !self.yes {
            super::reset::agree(
                "This stops k3s on this server, also at boot, until it joins a restored cluster (smartup snapshot rejoin).\n",
            )?;
        }
        let progress = Progress::start(self.output.events, verbose > 0, false);
        let host = Host::open(progress.reporter(), stop_on_signal()?, Duration::from_secs(300)).await?;
        let done = snapshot::stop(&host).await;
        drop(host);
        progress.finish().await;
        said(&done?, self.output.output)
    }
}

impl Rejoin {
    async fn run(self, verbose: u8) -> Result<ExitCode> {
        let ticket = self.ticket.as_ref().map(|f| read_secret(f, "ticket")).transpose()?;
        let ticket = ticket.map(|t| Ticket::parse(&t)).transpose()?;
        let progress = Progress::start(self.output.events, verbose > 0, false);
        let host = Host::open(progress.reporter(), stop_on_signal()?, self.timeout).await?;
        let done = snapshot::rejoin(&host, ticket, true).await;
        drop(host);
        progress.finish().await;
        said(&done?, self.output.output)
    }
}

fn said(done: &[String], format: Option<Format>) -> Result<ExitCode> {
    output::print(&json!({ "done": done }), format.unwrap_or(Format::Table), |_| done.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// How long a host may take that is asked from elsewhere.
const LIMIT: Duration = Duration::from_secs(600);

/// The job, on the host that was asked.
pub async fn job(job: SnapshotJob, open: impl AsyncFnOnce(Duration) -> Result<Host>) -> Result<Value> {
    fn to_json(value: impl Serialize) -> Result<Value> {
        serde_json::to_value(value).context("cannot write JSON")
    }
    match job {
        SnapshotJob::Save { name, recipients } => {
            to_json(snapshot::save(&snapshot::name(&name)?, &snapshot::recipients(&recipients)?).await?)
        }
        SnapshotJob::List => to_json(snapshot::list()?),
        SnapshotJob::Look { snapshot: called, token } => {
            let token = snapshot::token(token)?;
            to_json(snapshot::look(&open(LIMIT).await?, &called, token.as_ref()).await?)
        }
        SnapshotJob::Stop => to_json(snapshot::stop(&open(LIMIT).await?).await?),
        SnapshotJob::Restore { snapshot: called, token } => {
            to_json(snapshot::restore(&open(LIMIT).await?, &called, snapshot::token(token)?, false).await?)
        }
        SnapshotJob::Rejoin { ticket } => to_json(snapshot::rejoin(&open(LIMIT).await?, Some(Ticket::parse(&ticket.0)?), false).await?),
        SnapshotJob::Finish { forget } => to_json(snapshot::finish(&open(LIMIT).await?, &forget).await?),
    }
}

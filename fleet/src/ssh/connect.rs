//! From a target to a connection on which we are logged in.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use node::{Context as _, Error, Result};
use russh::{ChannelMsg, ChannelOpenFailure, Disconnect, client};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::carried::Carried;
use super::config::{self, Settings, Source};
use super::host_key::{Failure, Verifier, warn_once};
use super::jump::{self, Jump};
use super::patience::Patience;
use super::process::Process;
use super::route::{Hop, Local, route};
use super::{Options, Target, pattern};
use super::{dial, login};

/// How often a silent host is asked whether it is still there, and how many answers may be missing.
const KEEPALIVE: (Duration, usize) = (Duration::from_secs(15), 3);

/// How long what we send may stay unacknowledged: russh does not ask while it waits for room to write.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// How long a host may take to hear that we leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// A host that let us in.
pub(super) struct Session {
    pub(super) handle: client::Handle<Verifier>,
    /// Says when the connection is over.
    over: CancellationToken,
}

/// A connection to a host, logged in.
pub struct Connection {
    name: String,
    user: String,
    session: Session,
    #[expect(dead_code, reason = "kept alive")]
    through: Option<Arc<Jump>>,
}

/// Connects to `target`, through its jump hosts, and logs in.
///
/// # Errors
/// Refused when a host's key is not known, not the known one, or revoked. Failed when a host cannot be reached, takes
/// too long, or does not let us in. Invalid when `~/.ssh/config` cannot be read as it is. Each says which host.
pub async fn connect(target: &Target, options: &Options) -> Result<Connection> {
    let hops = hops(target, options)?;
    let Some((last, before)) = hops.split_last() else { return Err(Error::invalid("there is no host to connect to")) };
    let through = jump::through(before, options).await?;
    let session = open(last, through.as_deref(), options).await?;
    Ok(Connection { name: last.name.clone(), user: last.user.clone(), session, through })
}

/// Connects to one host, directly or through the one before.
pub(super) async fn open(hop: &Hop, through: Option<&Jump>, options: &Options) -> Result<Session> {
    let patience = Patience::new(options.connect_timeout);
    let verifier = Verifier::new(hop, options.accept_new)?;
    let over = verifier.over();
    let config = Arc::new(client::Config {
        preferred: verifier.preferred(),
        keepalive_interval: Some(KEEPALIVE.0),
        keepalive_max: KEEPALIVE.1,
        ..client::Config::default()
    });
    let work = async {
        let mut handle = match through {
            None => {
                let stream = dial::dial(&hop.host, hop.port, UNACKNOWLEDGED).await.map_err(|e| at(hop, e))?;
                handshake(hop, config, stream, verifier).await?
            }
            Some(jump) => {
                let channel = jump.session.handle.channel_open_direct_tcpip(&hop.host, hop.port.into(), "127.0.0.1", 0).await;
                let channel = channel.map_err(|e| unreachable(hop, e))?;
                handshake(hop, config, Carried::new(channel.into_stream(), jump.session.over.clone()), verifier).await?
            }
        };
        login::login(&mut handle, hop, &options.passphrases, &patience).await?;
        Ok(Session { handle, over })
    };
    patience.with(work).await.unwrap_or_else(|| {
        Err(Error::failed(format!(
            "{} ({}:{}) does not answer within {} s",
            hop.name,
            hop.host,
            hop.port,
            options.connect_timeout.as_secs_f32()
        ))
        .hint("is it up, is the address right, and does a firewall let us through?"))
    })
}

async fn handshake<S>(hop: &Hop, config: Arc<client::Config>, stream: S, verifier: Verifier) -> Result<client::Handle<Verifier>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    client::connect_stream(config, stream, verifier).await.map_err(|e| match e {
        Failure::Refused(e) => e,
        Failure::Ssh(e) => {
            let hint = match e {
                russh::Error::NoCommonAlgo { .. } => "the host's sshd is too old, or configured too narrowly",
                _ => "is that an sshd? Its log says why it hung up (too many connections at once: MaxStartups)",
            };
            at(hop, Error::failed("the connection ended before it was secure").hint(hint).because(e))
        }
    })
}

fn at(hop: &Hop, e: Error) -> Error {
    let hint = e.hint.clone();
    let outer = Error::failed(format!("cannot connect to {}", hop.name)).because(e);
    match hint {
        Some(hint) => outer.hint(hint),
        None => outer,
    }
}

fn unreachable(hop: &Hop, e: russh::Error) -> Error {
    let (why, hint) = match &e {
        russh::Error::ChannelOpenFailure(ChannelOpenFailure::AdministrativelyProhibited) => {
            ("the jump host forbids it", "AllowTcpForwarding and PermitOpen in the jump host's sshd_config decide that")
        }
        russh::Error::ChannelOpenFailure(_) => ("the jump host cannot reach it", "the jump host resolves the name, and connects: can it?"),
        _ => ("the connection to the jump host ended", "its sshd's log may say why"),
    };
    Error::failed(format!("cannot connect to {} ({}:{}): {why}", hop.name, hop.host, hop.port)).hint(hint).because(e)
}

impl Connection {
    /// As whom we are logged in.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Starts a command; the user's shell there reads it.
    ///
    /// # Errors
    /// Failed when the host does not start it, or is gone.
    pub async fn exec(&self, command: &str) -> Result<Process> {
        let failed = || format!("{} does not start a command", self.name);
        let mut channel = self.session.handle.channel_open_session().await.context(failed())?;
        channel.exec(true, command).await.context(failed())?;
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Success) => return Ok(Process::new(channel)),
                Some(ChannelMsg::Failure) => return Err(Error::failed(failed()).hint("a ForceCommand or a restricted shell may forbid it")),
                Some(_) => {}
                None => return Err(Error::failed(format!("{}: the connection ended", failed()))),
            }
        }
    }

    /// Takes leave. A connection that is dropped ends too, but its host hears of it later.
    pub async fn close(mut self) {
        let farewell = async {
            // Nothing is lost when it is gone already.
            let _ = self.session.handle.disconnect(Disconnect::ByApplication, "", "").await;
            let _ = (&mut self.session.handle).await;
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({}@{})", self.user, self.name)
    }
}

fn hops(target: &Target, options: &Options) -> Result<Vec<Hop>> {
    let env = |name: &str| env::var(name).ok();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let (name, home) = account(&passwd, rustix::process::getuid().as_raw()).unzip();
    let home = env("HOME").filter(|h| !h.is_empty()).map(PathBuf::from).or(home);
    let home = home.ok_or_else(|| Error::failed("it is not known where your home is, and so neither ~/.ssh").hint("set HOME"))?;
    let user = name.or_else(|| env("USER")).ok_or_else(|| Error::failed("it is not known who you are").hint("set USER"))?;

    let of_user = |pattern: &str| included(&home.join(".ssh"), &home, pattern);
    let of_system = |pattern: &str| included(Path::new("/etc/ssh"), &home, pattern);
    let files: Vec<(Source, config::Include<'_>)> = if let Some(path) = &options.config {
        vec![(source(path)?.unwrap_or_else(|| Source { path: path.clone(), text: String::new() }), &of_user)]
    } else {
        let own = source(&home.join(".ssh/config"))?.map(|s| (s, &of_user as config::Include<'_>));
        let system = source(Path::new("/etc/ssh/ssh_config"))?.map(|s| (s, &of_system as config::Include<'_>));
        own.into_iter().chain(system).collect()
    };
    let settings = |host: &str| -> Result<Settings> {
        let settings = config::settings(&files, host)?;
        settings.warnings.iter().for_each(|w| warn_once(w));
        Ok(settings)
    };
    route(target, &options.known_hosts, &Local { home: &home, user: &user, env: &env }, &settings)
}

/// Name and home of a user, as /etc/passwd says. Not with the C library, for the reason that names are not resolved with it.
fn account(passwd: &str, uid: u32) -> Option<(String, PathBuf)> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.len() >= 6 && fields[2].parse() == Ok(uid)).then(|| (fields[0].to_owned(), PathBuf::from(fields[5])))
    })
}

fn source(path: &Path) -> Result<Option<Source>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Source { path: path.to_owned(), text })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(format!("cannot read {}", path.display())),
    }
}

/// The files that an `Include` names: `~` and wildcards are replaced, and what is relative is in `folder`.
/// As in OpenSSH, what is not there, or cannot be read, is passed over.
fn included(folder: &Path, home: &Path, pattern: &str) -> Vec<Source> {
    let wanted = folder.join(config::home_of(pattern, home));
    let mut found = vec![PathBuf::new()];
    for part in wanted.components() {
        let part = part.as_os_str().to_string_lossy();
        found = found
            .iter()
            .flat_map(|path| if part.contains(['*', '?']) { entries(path, &part) } else { vec![path.join(part.as_ref())] })
            .collect();
    }
    found.into_iter().filter_map(|path| source(&path).ok().flatten()).collect()
}

/// What matches in a folder, in order; a leading dot must be named (glob(7)).
fn entries(folder: &Path, part: &str) -> Vec<PathBuf> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|n| pattern::matches(part, n) && (part.starts_with('.') || !n.starts_with('.'))).collect();
    names.sort();
    names.into_iter().map(|name| folder.join(name)).collect()
}

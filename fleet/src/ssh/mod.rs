//! Connections to hosts over SSH, with what `~/.ssh/config`, the agent and `known_hosts` say. russh is used nowhere else.

mod carried;
mod config;
mod connect;
mod dial;
mod host_key;
mod jump;
mod known_hosts;
mod login;
mod passphrase;
mod patience;
mod pattern;
mod process;
mod route;

use std::path::PathBuf;
use std::time::Duration;

pub use connect::{Connection, connect};
pub use host_key::HostKey;
pub use jump::Jumps;
pub use passphrase::{Passphrases, ask_on_terminal};
pub use process::{Exit, Process, Stdin, Stdout};

/// A host as cluster.yaml and the command line say it. What they leave out is asked of `~/.ssh/config`.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// How it is called in messages and in `~/.ssh/config`: a name or an address.
    pub name: String,
    /// Default: 22.
    pub port: Option<u16>,
    /// Default: the user who runs smartup.
    pub user: Option<String>,
    /// Key files, beside the keys of the agent; for the jump hosts too. They go before what the configuration names.
    /// Default: `id_ed25519`, `id_ecdsa` and `id_rsa` in `~/.ssh`.
    pub identity_files: Vec<PathBuf>,
    /// The hosts to go through, in this order: `[user@]host[:port]`. `none` switches the configured ones off.
    pub jump: Vec<String>,
    /// The key that it must show, whatever `known_hosts` says (but not one that is marked as revoked there).
    pub host_key: Option<HostKey>,
}

/// What holds for all connections.
#[derive(Debug, Clone)]
pub struct Options {
    /// The only configuration file. Default: `~/.ssh/config`, then `/etc/ssh/ssh_config`.
    pub config: Option<PathBuf>,
    /// Where the keys of hosts are looked for; new ones go into the first. Empty: what the configuration says, or
    /// `known_hosts` and `known_hosts2` in `~/.ssh`, and `ssh_known_hosts` and `ssh_known_hosts2` in `/etc/ssh`.
    pub known_hosts: Vec<PathBuf>,
    /// Whether the key of a host of which nothing is known is accepted, and made known.
    pub accept_new: bool,
    /// How long each host on the way may take until we are logged in; the time in which a human types does not count.
    pub connect_timeout: Duration,
    /// Opens encrypted key files; shared by all connections.
    pub passphrases: Passphrases,
    /// Connections to jump hosts; shared by all that lead through them.
    pub jumps: Jumps,
}

impl Default for Options {
    /// 10 seconds, the terminal for passphrases, and no unknown keys.
    fn default() -> Self {
        Self {
            config: None,
            known_hosts: Vec::new(),
            accept_new: false,
            connect_timeout: Duration::from_secs(10),
            passphrases: Passphrases::default(),
            jumps: Jumps::default(),
        }
    }
}

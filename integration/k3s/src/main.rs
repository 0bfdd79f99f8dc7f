//! The lab's own `k3s`: k3s's command line, files, endpoints and failures, over a real
//! Kubernetes and a real etcd, for hosts that no real k3s can be brought to.

mod agent;
mod bootstrap;
mod cli;
mod client;
mod config;
mod containerd;
mod control_plane;
mod etcd;
mod identity;
mod kubeconfig;
mod layout;
mod loadbalancer;
mod log;
mod manifests;
mod network;
mod no_docker;
mod node_password;
mod nodes;
mod notify;
mod passwd;
mod pki;
mod process;
mod proxy;
mod release;
mod server;
mod settings;
mod snapshot;
mod supervisor;
mod token;

use anyhow::{Context as _, Result, bail};
use cli::{Command, Parsed};
use std::os::unix::process::CommandExt as _;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "NAME:
   k3s - Kubernetes, but small and simple

USAGE:
   k3s [global options] command [command options] [arguments...]

COMMANDS:
   server         Run management server
   agent          Run node agent
   kubectl        Run kubectl
   ctr            Run ctr
   etcd-snapshot  Trigger an immediate etcd snapshot

GLOBAL OPTIONS:
   --help, -h     show help
   --version, -v  print the version
";

fn main() {
    if let Err(e) = dispatch() {
        log::fatal(&format!("{e:#}"));
    }
}

fn dispatch() -> Result<()> {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let mut args: Vec<String> = words.collect();
    match std::path::Path::new(&program).file_name().and_then(|n| n.to_str()) {
        Some("kubectl") => return kubectl(&args),
        Some("ctr") => return ctr(&args),
        _ => {}
    }
    // Before the command it means the same as after it.
    if args.len() > 1 && args[0] == "--debug" {
        args.swap(0, 1);
    }
    let (command, rest) = match args.split_first() {
        Some((c, rest)) => (c.as_str(), rest.to_vec()),
        None => ("help", Vec::new()),
    };
    match command {
        "server" => run(Command::Server, rest),
        "agent" => run(Command::Agent, rest),
        "etcd-snapshot" => run(Command::Snapshot, rest),
        "kubectl" => kubectl(&rest),
        "ctr" => ctr(&rest),
        "--version" | "-v" => {
            println!("k3s version {} (1d4adb03)\ngo version go1.15.5", release::name());
            Ok(())
        }
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        flag if flag.starts_with('-') => {
            print!("Incorrect Usage: flag provided but not defined: {flag}\n\n{USAGE}");
            bail!("flag provided but not defined: -{}", flag.trim_start_matches('-'))
        }
        other => bail!("No help topic for '{other}'"),
    }
}

fn run(command: Command, mut args: Vec<String>) -> Result<()> {
    let verb =
        if command == Command::Snapshot && args.first().is_some_and(|a| !a.starts_with('-')) { args.remove(0) } else { "save".to_owned() };
    let environment = |name: &str| std::env::var(name).ok();
    let file = config::file(&args, environment("K3S_CONFIG_FILE"));
    let args = config::inject(command, args, &file)?;
    let flags = match Parsed::parse(command, &args, environment) {
        Ok(flags) => flags,
        Err(e) => {
            print!("Incorrect Usage: {e}\n\n{USAGE}");
            bail!("{e}");
        }
    };
    if command != Command::Snapshot && !rustix::process::geteuid().is_root() {
        bail!("must run as root unless --disable-agent is specified");
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let work = async move {
        match command {
            Command::Server => {
                let shown: Vec<String> = std::iter::once("server".to_owned()).chain(args).collect();
                server::run(&flags, &shown).await
            }
            Command::Agent => {
                let shown: Vec<String> = std::iter::once("agent".to_owned()).chain(args).collect();
                join(&flags, &shown).await
            }
            Command::Snapshot => snapshot::command(&verb, &flags).await,
        }
    };
    // On a worker: children end with the thread that started them, and workers last.
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            done = tokio::spawn(work) => done?,
            _ = terminate.recv() => process::stop().await,
            _ = interrupt.recv() => process::stop().await,
        }
    })
}

/// `k3s agent`
async fn join(flags: &Parsed, args: &[String]) -> Result<()> {
    let token = settings::token(flags, "token", "token-file")?.context("--token is required")?;
    let url = flags.one("server").context("--server is required")?.trim_end_matches('/').to_owned();
    let node = settings::Node::new(flags).await?;
    info!("Starting k3s agent {} (1d4adb03)", release::name());
    let balancer = loadbalancer::LoadBalancer::start(&node.layout, &url).await?;
    let local = format!("https://{}", loadbalancer::ADDRESS);
    let ready = || {
        info!("k3s agent is up and running");
        if let Err(e) = notify::ready() {
            error!("cannot notify systemd: {e}");
        }
    };
    agent::run(node, &local, Some((balancer, url)), &token, args, ready).await
}

/// The real kubectl, with k3s's kubeconfig unless another one is named.
fn kubectl(args: &[String]) -> Result<()> {
    let mut command = std::process::Command::new(process::kubernetes("kubectl"));
    command.args(args);
    if std::env::var_os("KUBECONFIG").is_none_or(|v| v.is_empty()) {
        command.env("KUBECONFIG", "/etc/rancher/k3s/k3s.yaml");
    }
    bail!("exec kubectl: {}", command.exec())
}

fn ctr(args: &[String]) -> Result<()> {
    let mut command = std::process::Command::new("/usr/bin/ctr");
    command.args(args);
    if std::env::var_os("CONTAINERD_ADDRESS").is_none() {
        command.env("CONTAINERD_ADDRESS", containerd::SOCKET);
    }
    if std::env::var_os("CONTAINERD_NAMESPACE").is_none() {
        command.env("CONTAINERD_NAMESPACE", "k8s.io");
    }
    bail!("exec ctr: {}", command.exec())
}

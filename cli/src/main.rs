//! smartup: a highly available k3s cluster behind a floating address, from the hosts themselves.

mod age;
mod clock;
mod commands;
mod depart;
mod doctor;
mod drill;
mod exit;
mod kubeconfig;
mod membership;
mod output;
mod remote;
mod rollout;
mod run_here;
mod setup;
mod snapshot;
mod upgrade;

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use crate::commands::{Cli, LogFormat};

fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(cli.verbose, cli.log_format);
    // one provider for all of TLS; it can only have been set already
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return exit::report(&node::Error::failed("cannot start").because(e)),
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(code) => code,
        Err(e) => exit::report(&e),
    }
}

/// Diagnostics for those who ask for them; what the user must know is printed by the commands themselves.
fn log_to_stderr(verbose: u8, format: LogFormat) {
    let level = match verbose {
        // a client's own words about an API that is still starting are nothing for the user
        0 => "warn,kube_client=off",
        1 => "info",
        2 => "smartup=debug,node=debug,k3s=debug,keepalived=debug,firewall=debug,info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("SMARTUP_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.without_time().with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

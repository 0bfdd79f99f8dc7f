//! The processes that stand for what a real k3s runs inside its own: they end when we do,
//! however we end, and we end when one of them does.

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::process::{Child, Command};

/// Where the lab keeps Kubernetes.
const KUBERNETES: &str = "/usr/libexec/lab-kubernetes";

/// The path of one of Kubernetes' programs.
pub fn kubernetes(program: &str) -> PathBuf {
    let folder = std::env::var_os("LAB_K3S_KUBERNETES").map_or_else(|| PathBuf::from(KUBERNETES), PathBuf::from);
    folder.join(program)
}

/// A command in a process group of its own that the kernel kills when the starting thread ends.
/// Start it on the runtime's own threads: those last as long as we do.
pub fn command(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program.as_ref());
    // Readiness is ours to tell, not containerd's.
    command.env_remove("NOTIFY_SOCKET");
    command.process_group(0).stdin(Stdio::null()).kill_on_drop(false);
    command
}

/// One of Kubernetes' programs with these flags, then the user's (`key=value`, so that they
/// win). Only its warnings and errors go to our log.
pub async fn kubernetes_component(name: &'static str, flags: &[(&str, String)], extra: &[String]) -> Result<()> {
    let args: Vec<String> = flags.iter().map(|(k, v)| format!("--{k}={v}")).chain(extra.iter().map(|a| format!("--{a}"))).collect();
    crate::info!("Running {name} {}", args.join(" "));
    let mut command = command(crate::release::program(name).await?);
    command.args(["--logtostderr=false", "--stderrthreshold=WARNING", "--log-file=/dev/null"]).args(args);
    // kubelet would ask a cloud's metadata service.
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    component(name, command, None).map(drop)
}

/// Starts a component; its end is ours, as a component's end ends k3s.
///
/// # Errors
/// It cannot be started.
pub fn component(name: &'static str, mut command: Command, log: Option<&Path>) -> Result<Option<Pid>> {
    if let Some(path) = log {
        if let Some(folder) = path.parent() {
            crate::layout::folder(folder)?;
        }
        let file = File::options().create(true).append(true).open(path)?;
        command.stdout(file.try_clone()?).stderr(file);
    } else {
        command.stdout(Stdio::null());
    }
    let mut child: Child = command.spawn().with_context(|| format!("failed to start {name}"))?;
    let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    tokio::spawn(async move {
        let end = match child.wait().await {
            Ok(status) => status.to_string(),
            Err(e) => e.to_string(),
        };
        if !STOPPING.load(Ordering::Relaxed) {
            crate::log::fatal(&format!("{name} exited: {end}"));
        }
    });
    Ok(id)
}

static STOPPING: AtomicBool = AtomicBool::new(false);
static FIRST: OnceLock<Pid> = OnceLock::new();

/// This component is told to end, and waited for, when we are: etcd hands its lead over.
pub fn stopped_first(id: Option<Pid>) {
    if let Some(id) = id {
        // There is only one etcd.
        let _ = FIRST.set(id);
    }
}

/// Ends the process with status 0; the kernel takes the other components along.
pub async fn stop() -> ! {
    STOPPING.store(true, Ordering::Relaxed);
    if let Some(id) = FIRST.get()
        && rustix::process::kill_process(*id, Signal::TERM).is_ok()
    {
        for _ in 0..40 {
            if rustix::process::test_kill_process(*id).is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    std::process::exit(0)
}

/// Runs a command to its end; its standard output.
///
/// # Errors
/// It cannot be started, or fails: with what it wrote to stderr.
pub async fn run(program: impl AsRef<Path>, args: &[&str]) -> Result<String> {
    let name = program.as_ref().display().to_string();
    let out =
        Command::new(program.as_ref()).args(args).stdin(Stdio::null()).output().await.with_context(|| format!("failed to run {name}"))?;
    if !out.status.success() {
        anyhow::bail!("{name} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

//! containerd: its configuration, its start, and the images that come as files.

use crate::layout::{folder, write};
use crate::process::{self, command, kubernetes, run};
use crate::settings::Node;
use crate::{error, info};
use anyhow::{Result, bail};
use std::path::Path;
use std::time::Duration;

/// Where it listens, as in k3s.
pub const SOCKET: &str = "/run/k3s/containerd/containerd.sock";

/// The image of pod sandboxes.
pub const PAUSE: &str = "docker.io/library/pause:test";

/// Starts it, waits for it, and imports the images.
///
/// # Errors
/// It cannot be started, or does not answer within 60 s.
pub async fn start(node: &Node) -> Result<()> {
    let config = node.layout.agent("etc/containerd/config.toml");
    write(&config, toml(node).as_bytes(), 0o600)?;
    // A socket of an earlier life must not pass for ours.
    if Path::new(SOCKET).exists() {
        std::fs::remove_file(SOCKET)?;
    }
    let root = node.layout.agent("containerd");
    folder(&root)?;
    info!("Logging containerd to {}", root.join("containerd.log").display());
    let mut containerd = command("/usr/bin/containerd");
    containerd.arg("--config").arg(&config).args(["--address", SOCKET, "--state", "/run/k3s/containerd", "--root"]).arg(&root);
    process::component("containerd", containerd, Some(&root.join("containerd.log"))).map(drop)?;
    for _ in 0..600 {
        if Path::new(SOCKET).exists() && ctr(&["version"]).await.is_ok() {
            info!("Containerd is now running");
            import(node).await?;
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("containerd does not answer on {SOCKET}")
}

async fn ctr(args: &[&str]) -> Result<String> {
    let mut all = vec!["--address", SOCKET, "--namespace", "k8s.io"];
    all.extend(args);
    run("/usr/bin/ctr", &all).await
}

/// The sandbox image must be there; another file that is broken is only logged, as in k3s.
async fn import(node: &Node) -> Result<()> {
    let known = ctr(&["images", "ls", "-q"]).await?;
    if !known.lines().any(|l| l == PAUSE) {
        ctr(&["images", "import", &kubernetes("pause.tar").display().to_string()]).await?;
    }
    let Ok(entries) = std::fs::read_dir(node.layout.agent("images")) else {
        return Ok(());
    };
    let mut files: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "tar"));
    files.sort();
    for file in files {
        let shown = file.display().to_string();
        match ctr(&["images", "import", &shown]).await {
            Ok(_) => info!("Imported images from {shown}"),
            Err(e) => error!("Unable to import {shown}: {e:#}"),
        }
    }
    Ok(())
}

fn toml(node: &Node) -> String {
    let cni = node.layout.agent("etc/cni/net.d");
    format!(
        r#"version = 2
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]

[plugins."io.containerd.internal.v1.opt"]
  path = "{}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  disable_tcp_service = true
  # The lab's hosts have no CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  enable_selinux = {}
  stream_server_address = "127.0.0.1"
  stream_server_port = "10010"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{}"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{}"
    max_conf_num = 1
"#,
        node.layout.agent("containerd").display(),
        node.selinux,
        node.snapshotter,
        cni.display(),
    )
}

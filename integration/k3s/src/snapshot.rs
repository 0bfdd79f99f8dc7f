//! `k3s etcd-snapshot save|ls|delete|prune`, and the restore that a cluster reset begins with.

use crate::cli::Parsed;
use crate::info;
use crate::layout::{Layout, folder};
use crate::process::run;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};

const ETCDCTL: &str = "/usr/bin/etcdctl";

/// Runs `k3s etcd-snapshot <verb>`.
///
/// # Errors
/// etcd's own; a verb that is none.
pub async fn command(verb: &str, flags: &Parsed) -> Result<()> {
    let layout = Layout::new(flags.one("data-dir").unwrap_or_default());
    let dir = flags.one("dir").map_or_else(|| layout.db("snapshots"), PathBuf::from);
    let node = match flags.one("node-name") {
        Some(n) => n.to_lowercase(),
        None => rustix::system::uname().nodename().to_str()?.to_lowercase(),
    };
    let name = flags.one("name").unwrap_or("on-demand");
    match verb {
        "save" => save(&layout, &dir, &format!("{name}-{node}-{}", jiff::Timestamp::now().as_second())).await,
        "ls" | "list" | "l" => {
            println!("Name\tSize\tCreated");
            for (path, meta) in list(&dir)? {
                let created = jiff::Timestamp::try_from(meta.modified()?)?.strftime("%Y-%m-%dT%H:%M:%SZ");
                println!("{}\t{}\t{created}", file_name(&path), meta.len());
            }
            Ok(())
        }
        "delete" => {
            if flags.rest.is_empty() {
                bail!("no snapshots given for removal");
            }
            for name in &flags.rest {
                let path = dir.join(Path::new(name).file_name().context("no snapshot of that name")?);
                std::fs::remove_file(&path).with_context(|| format!("unable to delete {}", path.display()))?;
                info!("Removed the given locally stored snapshot: {name}");
            }
            Ok(())
        }
        "prune" => {
            let keep: usize = flags.one("snapshot-retention").unwrap_or("5").parse().context("invalid snapshot-retention")?;
            let prefix = format!("{name}-{node}");
            let ours: Vec<_> = list(&dir)?.into_iter().filter(|(p, _)| file_name(p).starts_with(&prefix)).collect();
            for (path, _) in ours.iter().rev().skip(keep) {
                info!("Removing local snapshot {}", path.display());
                std::fs::remove_file(path)?;
            }
            Ok(())
        }
        other => bail!("unknown subcommand: {other}"),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Oldest first.
fn list(dir: &Path) -> Result<Vec<(PathBuf, std::fs::Metadata)>> {
    let mut all = Vec::new();
    if dir.exists() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            all.push((entry.path(), entry.metadata()?));
        }
    }
    all.sort_by_key(|(path, meta)| (meta.modified().ok(), path.clone()));
    Ok(all)
}

async fn save(layout: &Layout, dir: &Path, name: &str) -> Result<()> {
    if !layout.etcd_initialised() {
        bail!("etcd datastore is not started or not used");
    }
    folder(dir)?;
    let path = dir.join(name);
    info!("Saving etcd snapshot to {}", path.display());
    let tls = |f: &str| layout.tls(f).display().to_string();
    run(
        ETCDCTL,
        &[
            "--endpoints=https://127.0.0.1:2379",
            &format!("--cacert={}", tls("etcd/server-ca.crt")),
            &format!("--cert={}", tls("etcd/client.crt")),
            &format!("--key={}", tls("etcd/client.key")),
            "snapshot",
            "save",
            &path.display().to_string(),
        ],
    )
    .await?;
    println!("Snapshot {name} saved.");
    Ok(())
}

/// Puts the snapshot in the place of etcd's data; the old data is kept beside it.
///
/// # Errors
/// `etcd: snapshot path does not exist: …`; etcdctl's own.
pub async fn restore(layout: &Layout, snapshot: &Path, name: &str, peer_url: &str) -> Result<()> {
    if !snapshot.exists() {
        bail!("etcd: snapshot path does not exist: {}", snapshot.display());
    }
    if snapshot.is_dir() {
        bail!("etcd: snapshot path must be a file, not a directory: {}", snapshot.display());
    }
    let data = layout.db("etcd");
    if data.exists() {
        let old = layout.db(&format!("etcd-old-{}", jiff::Timestamp::now().as_second()));
        std::fs::rename(&data, &old)?;
        info!("Pre-restore etcd database moved to {}", old.display());
    }
    run(
        ETCDCTL,
        &[
            "snapshot",
            "restore",
            &snapshot.display().to_string(),
            &format!("--data-dir={}", data.display()),
            &format!("--name={name}"),
            &format!("--initial-cluster={name}={peer_url}"),
            &format!("--initial-advertise-peer-urls={peer_url}"),
        ],
    )
    .await?;
    Ok(())
}

use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use cluster::Role;
use jiff::Timestamp;
use node::{Awaited, Error, Host, Result, State, Step, last_lines, remove_file};

use crate::restore::{Mark, Stage};
use crate::settings::paths;

/// k3s's restore goes on as a unit of its own when smartup is killed, and is found again.
const UNIT: &str = "smartup-restore.service";

/// k3s's mark against a second reset in a row, which a reset that was cut off leaves behind.
const RESET_FLAG: &str = "server/db/reset-flag";

/// k3s makes this server a cluster of one with the snapshot's data (`--cluster-reset`), as its unit would start it otherwise. It
/// moves etcd's old data away itself.
pub struct ResetStep {
    /// The snapshot.
    pub snapshot: PathBuf,
}

impl ResetStep {
    /// Forgets what an earlier run, with another snapshot perhaps, left behind.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn forget(host: &Host) -> Result<()> {
        if host.systemd.unit(UNIT).await?.exists() { host.systemd.stop(UNIT).await } else { Ok(()) }
    }

    async fn is_through(&self, host: &Host, since: Timestamp) -> Result<Awaited<()>> {
        let state = host.systemd.unit(UNIT).await?;
        match (state.active.as_str(), state.sub.as_str()) {
            ("active", "exited") => Ok(Awaited::Done(())),
            ("failed", _) => {
                let said = last_lines(UNIT, 8, Some(since)).await.join("\n");
                Err(Error::failed(format!("k3s cannot restore {}:\n{said}", self.snapshot.display()))
                    .hint(format!("journalctl -u {UNIT} has all of it; etcd's old data is in {}/server/db", paths::DATA)))
            }
            // a moment before it starts it is inactive
            _ => Ok(Awaited::missing("k3s restores etcd from the snapshot")),
        }
    }
}

#[async_trait(?Send)]
impl Step for ResetStep {
    fn name(&self) -> String {
        "restore etcd".into()
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        let through = Mark::load()?.is_some_and(|mark| mark.stage == Stage::Restored { snapshot: self.snapshot.clone() });
        Ok(if through { State::Right } else { State::differs(format!("restore etcd from {}", self.snapshot.display())) })
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let since = Timestamp::now();
        let state = host.systemd.unit(UNIT).await?;
        if !matches!(state.active.as_str(), "active" | "activating") {
            remove_file(&Path::new(paths::DATA).join(RESET_FLAG))?;
            let flags = ["--cluster-reset".to_owned(), format!("--cluster-reset-restore-path={}", self.snapshot.display())];
            host.systemd.run_like(&paths::unit(Role::Server), UNIT, &flags, &["K3S_URL", "NOTIFY_SOCKET"]).await?;
        }
        host.wait_for(&self.name(), "k3s to restore etcd", async || self.is_through(host, since).await).await?;
        let mark = Mark::load()?.ok_or_else(|| Error::failed("the restore's mark is gone").hint("run the same command again"))?;
        mark.advance(Stage::Restored { snapshot: self.snapshot.clone() })?;
        host.systemd.stop(UNIT).await
    }
}

/// etcd's old data that k3s has moved away since then (in seconds since 1970), the oldest first: `etcd-old-TIME` beside the new.
pub fn old_data(since: i64) -> Vec<PathBuf> {
    let time = |path: &Path| path.file_name()?.to_str()?.strip_prefix("etcd-old-")?.parse::<i64>().ok();
    let folder = Path::new(paths::ETCD).with_file_name("");
    let mut found: Vec<(i64, PathBuf)> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| Some((time(&e.path())?, e.path())))
        .filter(|(time, _)| *time >= since)
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

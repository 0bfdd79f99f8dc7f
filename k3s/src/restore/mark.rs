use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use node::{Context as _, Error, Host, Result, State, Step, read_optional, remove_file, write_atomically};
use serde::{Deserialize, Serialize};

/// How far a restore has come on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// When it began here, in seconds since 1970; it names what is set aside.
    pub at: i64,
    /// What has been done.
    #[serde(flatten)]
    pub stage: Stage,
}

/// What has been done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// k3s is stopped, until another server has been restored.
    Stopped,
    /// Its old data is set aside: what is there now is the restored cluster's.
    Aside,
    /// It is back in the cluster.
    Back,
    /// This server is restored; k3s may have begun with it.
    Begun {
        /// From this file.
        snapshot: PathBuf,
    },
    /// Its data is the snapshot's.
    Restored {
        /// This file's.
        snapshot: PathBuf,
    },
}

impl Mark {
    fn path() -> PathBuf {
        Path::new(Host::STATE).join("restore.json")
    }

    /// As it was written; None when no restore is under way.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load() -> Result<Option<Self>> {
        let path = Self::path();
        let Some(file) = read_optional(&path)? else { return Ok(None) };
        let mark = serde_json::from_slice(&file.content).context(format!("{} is damaged", path.display()));
        mark.map(Some).map_err(|e| e.hint("remove it, and begin the restore again"))
    }

    /// A restore that begins now.
    pub fn now(stage: Stage) -> Self {
        Self { at: Timestamp::now().as_second(), stage }
    }

    /// Writes it down.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|e| Error::failed("cannot write JSON").because(e))?;
        write_atomically(&Self::path(), &text, 0o600)
    }

    /// The same restore, further on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn advance(self, stage: Stage) -> Result<()> {
        Self { stage, ..self }.save()
    }

    /// The restore has ended on this host.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn clear() -> Result<()> {
        remove_file(&Self::path())
    }
}

/// Remembers what is about to be done.
pub struct MarkStep(pub Mark);

#[async_trait(?Send)]
impl Step for MarkStep {
    fn name(&self) -> String {
        "restore under way".into()
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        let there = Mark::load()?.is_some_and(|mark| mark == self.0);
        Ok(if there { State::Right } else { State::differs("remember that a restore is under way") })
    }

    async fn apply(&self, _host: &Host) -> Result<()> {
        self.0.save()
    }
}

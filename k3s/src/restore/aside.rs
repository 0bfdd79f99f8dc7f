use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use node::{Context as _, Error, Host, Result, State, Step};

use crate::restore::{Mark, Stage};
use crate::settings::paths;

/// What a server has of a cluster whose keys are not those of the restored one.
const IDENTITY: [&str; 5] = ["tls", "cred", "token", "node-token", "agent-token"];

/// This server's copy of the old data is moved away, not deleted, so that it can join the restored cluster. etcd would go on with
/// the old cluster otherwise.
pub struct AsideStep {
    /// Its keys too: the restored cluster has others.
    pub identity: bool,
}

impl AsideStep {
    /// Where the data goes that a restore found, which began then.
    pub fn folder(at: i64) -> PathBuf {
        Path::new(paths::DATA).join(format!("server/before-restore-{at}"))
    }

    fn mark() -> Result<Mark> {
        Mark::load()?.ok_or_else(|| Error::failed("no restore is under way on this host").hint("smartup snapshot stop"))
    }
}

#[async_trait(?Send)]
impl Step for AsideStep {
    fn name(&self) -> String {
        "set the old data aside".into()
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        let mark = Self::mark()?;
        Ok(match mark.stage {
            Stage::Aside | Stage::Back => State::Right,
            _ => State::differs(format!("move {} to {}", paths::ETCD, Self::folder(mark.at).display())),
        })
    }

    async fn apply(&self, _host: &Host) -> Result<()> {
        let mark = Self::mark()?;
        let folder = Self::folder(mark.at);
        let what = || format!("cannot make {}", folder.display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).context(what())?;
        let server = Path::new(paths::DATA).join("server");
        let identity = IDENTITY.iter().filter(|_| self.identity).map(|name| server.join(name));
        for path in std::iter::once(PathBuf::from(paths::ETCD)).chain(identity) {
            let Some(name) = path.file_name() else { continue };
            match fs::rename(&path, folder.join(name)) {
                Ok(()) => {}
                // a run that was cut off has moved it, or it never was there
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e).context(format!("cannot move {} to {}", path.display(), folder.display())),
            }
        }
        mark.advance(Stage::Aside)
    }
}

//! Connections to jump hosts: one for all that lead through it, or sshd would turn most of a fleet away (`MaxStartups`).

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use node::{Error, Result};
use tokio::sync::OnceCell;

use super::Options;
use super::connect::{Session, open};
use super::route::Hop;

/// Connections to jump hosts. Clones share them; they last as long as the last clone, and the last connection through them.
#[derive(Clone, Default)]
pub struct Jumps(Arc<Mutex<HashMap<Way, Arc<OnceCell<Opened>>>>>);

/// What tells jump hosts apart: who logs in where with which keys, and the same for those before it.
type Way = Vec<(String, String, u16, Vec<PathBuf>)>;

/// All that wait for a jump host share its failure; who comes later tries again.
type Opened = std::result::Result<Arc<Jump>, Arc<Error>>;

pub(super) struct Jump {
    pub(super) session: Session,
    #[expect(dead_code, reason = "kept alive")]
    before: Option<Arc<Jump>>,
}

/// The connection to the last of `hops`, each reached through the one before; None when there are none.
pub(super) async fn through(hops: &[Hop], options: &Options) -> Result<Option<Arc<Jump>>> {
    let mut last = None;
    for (n, hop) in hops.iter().enumerate() {
        let before: Option<Arc<Jump>> = last;
        let cell = options.jumps.cell(&hops[..=n]);
        let opened = cell.get_or_init(async || match open(hop, before.as_deref(), options).await {
            Ok(session) => Ok(Arc::new(Jump { session, before: before.clone() })),
            Err(e) => Err(Arc::new(e)),
        });
        match opened.await {
            Ok(jump) => last = Some(jump.clone()),
            Err(e) => return Err(copy(e)),
        }
    }
    Ok(last)
}

impl Jumps {
    /// Where the connection to the last of `hops` is, or will be. One that failed or ended is forgotten.
    fn cell(&self, hops: &[Hop]) -> Arc<OnceCell<Opened>> {
        let way: Way = hops.iter().map(|h| (h.user.clone(), h.host.clone(), h.port, h.identities.files.clone())).collect();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cell = all.entry(way).or_default();
        if cell.get().is_some_and(|opened| opened.as_ref().map_or(true, |jump| jump.session.handle.is_closed())) {
            *cell = Arc::default();
        }
        cell.clone()
    }
}

fn copy(e: &Error) -> Error {
    let mut copy = Error::failed(e.chain());
    (copy.kind, copy.hint) = (e.kind, e.hint.clone());
    copy
}

impl fmt::Debug for Jumps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Jumps")
    }
}

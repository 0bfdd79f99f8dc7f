use std::time::{Duration, Instant};

use cluster::Role;
use node::{Awaited, Error, Host, Result, last_lines};

use crate::diagnose;
use crate::settings::paths;

/// Watches a unit on its way: what k3s's log tells while it does not come up.
pub(crate) struct Watch<'a> {
    host: &'a Host,
    unit: String,
    since: jiff::Timestamp,
    began: Instant,
}

/// A cause that k3s does not exit for (an agent tries for ever) is believed after this.
const BELIEVED_AFTER: Duration = Duration::from_secs(10);

impl<'a> Watch<'a> {
    pub(crate) fn new(host: &'a Host, role: Role) -> Self {
        Self { host, unit: paths::unit(role), since: jiff::Timestamp::now(), began: Instant::now() }
    }

    /// What to show beside what is awaited.
    ///
    /// # Errors
    /// When k3s has said that it cannot start, or systemd has given up.
    async fn look(&self) -> Result<String> {
        let state = self.host.systemd.unit(&self.unit).await?;
        if state.active == "active" {
            return Ok(String::new());
        }
        let died = state.sub == "auto-restart" || state.active == "failed";
        let late = self.began.elapsed() > BELIEVED_AFTER;
        let cause = if died || late { diagnose(&last_lines(&self.unit, 40, Some(self.since)).await) } else { None };
        match cause {
            Some(cause) if !cause.passes => Err(Error::failed(format!("{} does not start: {}", self.unit, cause.what)).hint(cause.fix)),
            Some(cause) => Ok(format!(" ({}; systemd tries again)", cause.what)),
            None if state.active == "failed" || state.active == "inactive" => {
                let lines = last_lines(&self.unit, 15, None).await.join("\n  ");
                Err(Error::failed(format!("{} has ended; its last lines:\n  {lines}", self.unit))
                    .hint(format!("journalctl -u {} has all of it", self.unit)))
            }
            None => Ok(format!(" ({} {}, {} restarts)", self.unit, state.sub, state.restarts)),
        }
    }

    /// Waits, and says beside what is missing what k3s has to say.
    ///
    /// # Errors
    /// As [`Host::wait_for`]; or when k3s has said that it cannot start. At the deadline with k3s's last lines.
    pub(crate) async fn wait<T>(&self, step: &str, awaited: &str, mut probe: impl AsyncFnMut() -> Result<Awaited<T>>) -> Result<T> {
        let done = self
            .host
            .wait_for(step, awaited, async || match probe().await? {
                Awaited::Missing(what) => Ok(Awaited::Missing(what + &self.look().await?)),
                done @ Awaited::Done(_) => Ok(done),
            })
            .await;
        match done {
            Err(e) if Instant::now() >= self.host.deadline => Err(self.explain(e).await),
            other => other,
        }
    }

    /// Adds k3s's last lines to what a wait gave up with.
    async fn explain(&self, error: Error) -> Error {
        let lines = last_lines(&self.unit, 10, None).await.join("\n  ");
        let (kind, hint) = (error.kind, error.hint.clone());
        let mut e = Error::failed(format!("{}\n  the last lines of {}:\n  {lines}", error.what, self.unit));
        (e.kind, e.hint) = (kind, hint);
        e
    }
}

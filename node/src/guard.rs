//! Undoing that does not depend on whoever is to be undone: a transient unit of systemd's, whose end does it.

use std::time::{Duration, Instant};

use zbus::Variant;

use crate::{Context as _, Error, Result, Systemd};

/// How long systemd may take to start a process.
const START: Duration = Duration::from_secs(10);

/// A unit that does nothing but wait, and runs commands when it ends, however it ends: stopped, killed, by itself after a while, or
/// with the host. Whoever made it may be gone by then. It leaves nothing behind.
///
/// Undoing now and undoing later are so the same thing, and the first one is what happens every day.
#[derive(Debug)]
pub struct Guard<'a> {
    systemd: &'a Systemd,
    unit: &'static str,
}

impl<'a> Guard<'a> {
    /// The guard of this name, whether or not it is there.
    pub fn named(systemd: &'a Systemd, unit: &'static str) -> Self {
        Self { systemd, unit }
    }

    /// Whether it waits, or is at work.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn is_there(&self) -> Result<bool> {
        Ok(!matches!(self.systemd.unit(self.unit).await?.active.as_str(), "inactive" | "failed"))
    }

    /// Sets it up; it waits when this returns. The commands run in their order, and one that fails does not hold up the next.
    ///
    /// # Errors
    /// When it is there already, a program is missing, or systemd refuses.
    pub async fn arm(&self, description: &str, lasts: Duration, at_end: &[Vec<String>]) -> Result<()> {
        let what = || format!("cannot set up {}", self.unit);
        let wait = vec!["sleep".to_owned(), lasts.as_secs().max(1).to_string()];
        let start = vec![exec(&wait, false)?];
        let stop = at_end.iter().map(|command| exec(command, true)).collect::<Result<Vec<_>>>()?;
        let properties = [
            ("Description", Variant::from(description)),
            ("ExecStart", start.into()),
            ("ExecStopPost", stop.into()),
            // one that failed would be kept otherwise (systemd 236)
            ("CollectMode", "inactive-or-failed".into()),
        ];
        let manager = self.systemd.manager().await?;
        manager.start_transient_unit(self.unit, "fail", &properties, &[]).await.context(what())?;
        let began = Instant::now();
        while began.elapsed() < START {
            let state = self.systemd.unit(self.unit).await?;
            match state.active.as_str() {
                "active" if state.pid != 0 => return Ok(()),
                "failed" => break,
                // systemd answers before it begins
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        Err(Error::failed(format!("{}: it does not start", what())))
    }

    /// Ends it, and waits until its commands have run. Nothing where it has ended by itself.
    ///
    /// # Errors
    /// When systemd does not answer, or the commands take longer than 100 s.
    pub async fn end(&self) -> Result<()> {
        if !self.is_there().await? {
            return Ok(());
        }
        match self.systemd.stop(self.unit).await {
            // it has ended by itself just now
            Err(_) if !self.is_there().await? => Ok(()),
            other => other,
        }
    }
}

/// A command as systemd takes it: where it is, what it is called with, and whether it may fail.
fn exec(command: &[String], may_fail: bool) -> Result<(String, Vec<String>, bool)> {
    let program = command.first().map(String::as_str).unwrap_or_default();
    let path = which::which(program).context(format!("there is no {program} on this host"))?;
    Ok((path.to_string_lossy().into_owned(), command.to_vec(), may_fail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_named_with_its_path() {
        let (path, args, may_fail) = exec(&["sleep".to_owned(), "1".to_owned()], true).unwrap();
        assert!(path.ends_with("/sleep") && args == ["sleep", "1"] && may_fail);
        assert!(exec(&["no-such-program".to_owned()], true).is_err());
    }
}

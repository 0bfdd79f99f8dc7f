use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::wait::Awaited;
use crate::{Error, Event, Facts, Journal, Reporter, Result, SeLinux, Systemd};

/// The host that steps work on, and what they need to do so.
#[derive(Debug)]
pub struct Host {
    /// What smartup changed here.
    pub journal: Journal,
    /// systemd over D-Bus.
    pub systemd: Systemd,
    /// What the host was like when the run began.
    pub facts: Facts,
    /// Where events go.
    pub reporter: Reporter,
    /// Set when the user wants to stop: the step under way ends, nothing new starts.
    pub stop: CancellationToken,
    /// When waiting ends.
    pub deadline: Instant,
}

impl Host {
    /// Where smartup keeps what it must not forget.
    pub const STATE: &'static str = "/var/lib/smartup";
    /// Where programs are kept that were sent here, each as `NAME-SHA256`. Not in `/tmp`, which may be mounted noexec; only root can get at
    /// it.
    pub const PROGRAMS: &'static str = "/var/lib/smartup/bin";

    /// The file there that a download goes to before it is installed.
    pub const DOWNLOAD: &'static str = "download";

    /// The folder there in which the operator's agent keeps what it must not forget.
    pub const UPDATES: &'static str = "updates";

    /// Looks at the host and connects to systemd. Changes nothing.
    ///
    /// # Errors
    /// When the system bus does not answer, `ip` cannot be run, or the journal cannot be read.
    pub async fn open(reporter: Reporter, stop: CancellationToken, timeout: Duration) -> Result<Self> {
        Ok(Self {
            journal: Journal::open(PathBuf::from(Self::STATE).join("journal.jsonl"))?,
            systemd: Systemd::connect().await?,
            facts: Facts::gather().await?,
            reporter,
            stop,
            deadline: Instant::now() + timeout,
        })
    }

    /// Whether SELinux enforces, so that contexts of written files must be restored.
    pub fn selinux(&self) -> SeLinux {
        self.facts.selinux
    }

    /// Says what a step waits for.
    pub fn waiting(&self, step: &str, what: impl Into<String>) {
        self.reporter.report(Event::Waiting { step: step.to_owned(), what: what.into() });
    }

    /// Asks `probe` again and again, every 200 ms at most, until it answers, and says on the way what is missing.
    ///
    /// # Errors
    /// What `probe` fails with; or, at the deadline, what was missing last; or that the user stopped it.
    pub async fn wait_for<T, F>(&self, step: &str, awaited: &str, mut probe: F) -> Result<T>
    where
        F: AsyncFnMut() -> Result<Awaited<T>>,
    {
        let began = Instant::now();
        let mut said = String::new();
        loop {
            let missing = match probe().await? {
                Awaited::Done(value) => return Ok(value),
                Awaited::Missing(what) => what,
            };
            if missing != said {
                self.waiting(step, missing.clone());
                said = missing;
            }
            if self.stop.is_cancelled() {
                return Err(Error::failed(format!("stopped while waiting for {awaited}: {said}"))
                    .hint("run the same command again to go on; what is done stays done"));
            }
            if Instant::now() >= self.deadline {
                return Err(Error::failed(format!("gave up after {} s of waiting for {awaited}: {said}", began.elapsed().as_secs()))
                    .hint("run the same command again to go on waiting, or with a longer --timeout"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

use std::time::Instant;

use async_trait::async_trait;

use crate::{Change, Context as _, Error, Event, Host, Outcome, Result};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Right,
    /// What apply would change; never empty.
    Differs(Vec<Change>),
}

impl State {
    /// Right when nothing differs.
    pub fn of(changes: Vec<Change>) -> Self {
        if changes.is_empty() { Self::Right } else { Self::Differs(changes) }
    }

    /// Differs in one thing.
    pub fn differs(what: impl Into<String>) -> Self {
        Self::Differs(vec![Change::new(what)])
    }
}

/// One thing that a host should be like.
#[async_trait(?Send)]
pub trait Step {
    /// A short name, unique within a plan: `file /etc/sysctl.d/90-smartup.conf`.
    fn name(&self) -> String;

    /// Compares the host with how it should be. Changes nothing, and works as well where earlier steps have not been
    /// applied (a dry run).
    async fn check(&self, host: &Host) -> Result<State>;

    /// Makes it so: writes to the journal first, then changes. Must be safe to run again after a crash in its middle.
    async fn apply(&self, host: &Host) -> Result<()>;

    /// How often it is applied at most, if the check after it is not satisfied. What was there a moment ago may be away just then, as the
    /// API is while the VIP moves. A step that only waits may have more chances: each waits anew, for as long as the step waits.
    fn chances(&self) -> usize {
        2
    }
}

/// Steps in their order.
#[derive(Default)]
pub struct Plan(pub Vec<Box<dyn Step>>);

impl Plan {
    /// Adds a step at the end.
    pub fn push(&mut self, step: impl Step + 'static) {
        self.0.push(Box::new(step));
    }

    /// Adds all steps of another plan at the end.
    pub fn append(&mut self, other: Plan) {
        self.0.extend(other.0);
    }
}

/// Whether to change the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Check alone.
    DryRun,
    /// Check, apply, check again.
    Apply,
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Steps that found all as it should be.
    pub unchanged: usize,
    /// Steps that changed something, or would have.
    pub changed: usize,
}

/// A run of steps, in one go or in several parts between which the caller does something else.
pub struct Run<'a> {
    host: &'a Host,
    mode: Mode,
    total: usize,
    begun: usize,
    summary: Summary,
}

impl<'a> Run<'a> {
    /// Begins a run of `total` steps.
    pub fn new(host: &'a Host, mode: Mode, total: usize) -> Self {
        Self { host, mode, total, begun: 0, summary: Summary::default() }
    }

    /// Goes on where another run stopped, after `done`.
    pub fn after(done: Summary, host: &'a Host, mode: Mode, total: usize) -> Self {
        Self { host, mode, total, begun: done.changed + done.unchanged, summary: done }
    }

    /// What has been done so far.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// Runs a part from its beginning to its end, or to the first failure.
    ///
    /// # Errors
    /// What the failing step says, named; or that a step's own second check was not satisfied; or that the user stopped it.
    pub async fn part(&mut self, plan: &Plan) -> Result<()> {
        for step in &plan.0 {
            self.step(step.as_ref()).await?;
        }
        Ok(())
    }

    async fn step(&mut self, step: &dyn Step) -> Result<()> {
        let (host, total) = (self.host, self.total);
        if host.stop.is_cancelled() {
            return Err(Error::failed(format!("stopped after {} of {total} steps", self.begun)).hint("run the same command again to go on"));
        }
        self.begun += 1;
        let name = step.name();
        host.reporter.report(Event::StepStarted { step: name.clone(), index: self.begun, total });
        let began = Instant::now();
        let done = run_step(step, host, self.mode).await;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (outcome, changes) = match &done {
            Ok((outcome, changes)) => (*outcome, changes.clone()),
            Err(_) => (Outcome::Failed, Vec::new()),
        };
        host.reporter.report(Event::StepDone { step: name.clone(), outcome, changes, ms });
        match done {
            Ok((Outcome::Unchanged, _)) => self.summary.unchanged += 1,
            Ok(_) => self.summary.changed += 1,
            Err(e) => {
                let (kind, hint) = (e.kind, e.hint.clone());
                let mut e = Err::<(), _>(e).context(format!("step '{name}'")).err().unwrap_or_else(|| Error::failed(name));
                (e.kind, e.hint) = (kind, hint);
                return Err(e);
            }
        }
        Ok(())
    }
}

async fn run_step(step: &dyn Step, host: &Host, mode: Mode) -> Result<(Outcome, Vec<Change>)> {
    let changes = match step.check(host).await? {
        State::Right => return Ok((Outcome::Unchanged, Vec::new())),
        State::Differs(changes) => changes,
    };
    if mode == Mode::DryRun {
        return Ok((Outcome::WouldChange, changes));
    }
    let mut left = Vec::new();
    for _ in 0..step.chances() {
        step.apply(host).await?;
        match step.check(host).await? {
            State::Right => return Ok((Outcome::Changed, changes)),
            State::Differs(again) => left = again,
        }
    }
    let left: Vec<_> = left.into_iter().map(|c| c.what).collect();
    Err(Error::failed(format!("was applied but is still not as it should be: {}", left.join("; ")))
        .hint("something else on this host changes it back; find out what does, then run again"))
}

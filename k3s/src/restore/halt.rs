use async_trait::async_trait;
use node::{Change, Host, Result, State, Step};

/// A unit neither runs nor starts at boot: a server that comes back in the middle of a restore would bring back the old cluster.
pub struct HaltStep {
    /// Its full name.
    pub unit: String,
}

#[async_trait(?Send)]
impl Step for HaltStep {
    fn name(&self) -> String {
        format!("stop {}", self.unit)
    }

    async fn check(&self, host: &Host) -> Result<State> {
        let state = host.systemd.unit(&self.unit).await?;
        let mut changes = Vec::new();
        if state.enabled() {
            changes.push(Change::new(format!("disable {} until the restore is through", self.unit)));
        }
        if !matches!(state.active.as_str(), "inactive" | "failed") {
            changes.push(Change::new(format!("stop {}", self.unit)));
        }
        Ok(State::of(changes))
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        host.systemd.disable(&self.unit).await?;
        host.systemd.stop(&self.unit).await
    }
}

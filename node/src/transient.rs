use zbus::{Variant, proxy};

use crate::{Context as _, Error, Result, Systemd};

/// A command of a unit as systemd tells it: the program, its words, whether its failure counts for nothing, and when it ran.
type Command = (String, Vec<String>, bool, u64, u64, u64, u64, u32, i32, i32);

#[proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
trait Service {
    #[zbus(property(emits_changed_signal = "false"))]
    fn exec_start(&self) -> zbus::Result<Vec<Command>>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn environment(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn environment_files(&self) -> zbus::Result<Vec<(String, bool)>>;
}

impl Systemd {
    /// Runs a program as a unit of its own: `activating` while it runs, gone when it has ended well, `failed` otherwise. Does not
    /// wait. It goes on when the caller ends; a boot forgets it.
    ///
    /// # Errors
    /// When systemd refuses, or there is such a unit.
    pub async fn run_alone(&self, unit: &str, description: &str, words: &[&str]) -> Result<()> {
        let program = words.first().copied().unwrap_or_default();
        let properties = [
            ("Description", Variant::from(description)),
            ("Type", Variant::from("oneshot")),
            ("ExecStart", Variant::from(vec![(program, words, false)])),
        ];
        let started = self.manager().await?.start_transient_unit(unit, "fail", &properties, &[]).await;
        started.map(|_| ()).context(format!("cannot run {unit}"))
    }

    /// Puts processes into a scope (systemd.scope(5)), which is gone when they have ended. They belong to no other unit any more.
    /// Does not wait.
    ///
    /// # Errors
    /// When systemd refuses, or there is such a unit.
    pub async fn into_scope(&self, scope: &str, description: &str, processes: &[u32]) -> Result<()> {
        let properties = [("Description", Variant::from(description)), ("PIDs", Variant::from(processes))];
        let moved = self.manager().await?.start_transient_unit(scope, "fail", &properties, &[]).await;
        moved.map(|_| ()).context(format!("cannot make {scope}"))
    }

    /// Runs once what another unit runs, as a unit of its own: the same program, words and environment, and `more` words after
    /// them, without the variables in `unset`. Does not wait. It goes on when the caller ends, and stays as `active (exited)` when
    /// it has worked, until it is stopped; a boot forgets it.
    ///
    /// # Errors
    /// When systemd refuses, or the other unit has no single command.
    pub async fn run_like(&self, other: &str, unit: &str, more: &[String], unset: &[&str]) -> Result<()> {
        let what = || format!("cannot run {unit}");
        let manager = self.manager().await?;
        let path = manager.load_unit(other).await.context(what())?;
        let service = ServiceProxy::builder(self.bus()).path(path).build().await.context(what())?;
        let commands = service.exec_start().await.context(what())?;
        let [(program, words, ..)] = commands.as_slice() else {
            return Err(Error::failed(format!("{other} does not have one command but {}", commands.len())));
        };
        let words: Vec<&str> = words.iter().chain(more).map(String::as_str).collect();
        let properties = [
            ("Description", Variant::from(format!("{other}, once, for smartup"))),
            ("Type", Variant::from("oneshot")),
            ("RemainAfterExit", Variant::from(true)),
            ("Environment", Variant::from(service.environment().await.context(what())?)),
            ("EnvironmentFiles", Variant::from(service.environment_files().await.context(what())?)),
            ("UnsetEnvironment", Variant::from(unset)),
            ("ExecStart", Variant::from(vec![(program.as_str(), words, false)])),
        ];
        // one that failed before is in the way otherwise
        let _ = manager.reset_failed_unit(unit).await;
        manager.start_transient_unit(unit, "fail", &properties, &[]).await.map(|_| ()).context(what())
    }
}

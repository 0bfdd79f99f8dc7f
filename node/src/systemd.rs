use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use zbus::proxy::CacheProperties;
use zbus::{Connection, ObjectPath, OwnedObjectPath, OwnedVariant, Variant, proxy};

use crate::{Awaited, Change, Context as _, Error, Host, Result, State, Step, Undo, run};

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub(crate) trait Manager {
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn get_unit_file_state(&self, name: &str) -> zbus::Result<String>;
    fn list_units_by_names(&self, names: &[&str]) -> zbus::Result<Vec<Listed>>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn reload_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn enable_unit_files(&self, files: &[&str], runtime: bool, force: bool) -> zbus::Result<(bool, Vec<(String, String, String)>)>;
    fn disable_unit_files(&self, files: &[&str], runtime: bool) -> zbus::Result<Vec<(String, String, String)>>;
    fn mask_unit_files(&self, files: &[&str], runtime: bool, force: bool) -> zbus::Result<Vec<(String, String, String)>>;
    fn unmask_unit_files(&self, files: &[&str], runtime: bool) -> zbus::Result<Vec<(String, String, String)>>;
    fn reload(&self) -> zbus::Result<()>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        beside: &[(&str, Vec<(&str, Variant<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    fn reboot(&self) -> zbus::Result<()>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn system_state(&self) -> zbus::Result<String>;
}

const SERVICE: &str = "org.freedesktop.systemd1";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Name, description, load state, active state, sub state, unit that it follows, path, job, its kind, its path.
type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

fn take<T: TryFrom<OwnedVariant>>(properties: &mut HashMap<String, OwnedVariant>, name: &str) -> zbus::Result<T> {
    let value = properties.remove(name).ok_or_else(|| zbus::Error::Failure(format!("systemd has no property {name}")))?;
    value.try_into().map_err(|_| zbus::Error::Failure(format!("systemd's property {name} is of another kind than it should be")))
}

/// A unit's active state, and its job or 0. A busy systemd takes a while to begin what it was told to start.
fn soon(active: &str, job: u32) -> &str {
    if job != 0 && matches!(active, "inactive" | "failed") { "activating" } else { active }
}

/// systemd, over the system bus.
#[derive(Debug, Clone)]
pub struct Systemd {
    bus: Connection,
}

/// What systemd says of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitState {
    /// `loaded`, `not-found`, `masked`, `bad-setting`, …
    pub load: String,
    /// `active`, `activating`, `failed`, …
    pub active: String,
    /// The finer state: `running`, `auto-restart`, …
    pub sub: String,
    /// `enabled`, `disabled`, `static`, …; empty when there is no unit file.
    pub file: String,
    /// The unit file; None when there is none.
    pub fragment: Option<PathBuf>,
    /// Whether a file changed since systemd read it. A drop-in in a new folder may go unnoticed: systemd looks for it in a list of
    /// folders that it made before.
    pub stale: bool,
    /// The drop-ins that systemd has read.
    pub drop_ins: Vec<PathBuf>,
    /// How often systemd started it again by itself.
    pub restarts: u32,
    /// Its main process; 0 = none.
    pub pid: u32,
}

impl UnitState {
    /// Whether there is such a unit.
    pub fn exists(&self) -> bool {
        self.load != "not-found"
    }

    /// Whether it starts at boot.
    pub fn enabled(&self) -> bool {
        matches!(self.file.as_str(), "enabled" | "enabled-runtime" | "static" | "alias" | "linked")
    }

    /// Whether it runs, or is on its way: starting, or waiting to be started again.
    pub fn running(&self) -> bool {
        matches!(self.active.as_str(), "active" | "activating" | "reloading")
    }
}

impl Systemd {
    /// Connects to the system bus.
    ///
    /// # Errors
    /// When there is none.
    pub async fn connect() -> Result<Self> {
        let bus = Connection::system()
            .await
            .context("cannot reach the system bus (D-Bus)")
            .map_err(|e| e.hint("smartup needs a host that systemd runs, with dbus; run it as root on the host itself"))?;
        Ok(Self { bus })
    }

    /// Connects to the system bus of the host whose root is `root`: `/`, or `/proc/1/root` as a container sees it that shares the
    /// host's processes.
    ///
    /// # Errors
    /// When there is none.
    pub async fn of(root: &Path) -> Result<Self> {
        let socket = root.join("run/dbus/system_bus_socket");
        let what = || format!("cannot reach the system bus (D-Bus) at {}", socket.display());
        let address = format!("unix:path={}", socket.display());
        let bus = zbus::connection::Builder::address(address.as_str()).build().await.context(what())?;
        Ok(Self { bus })
    }

    /// The connection, for other services on the same bus.
    pub fn bus(&self) -> &Connection {
        &self.bus
    }

    pub(crate) async fn manager(&self) -> Result<ManagerProxy<'_>> {
        // without a cache: it would ask for all properties, and listen to their changes
        let proxy = ManagerProxy::builder(&self.bus).cache_properties(CacheProperties::No).build().await;
        proxy.context("cannot reach systemd over D-Bus")
    }

    /// What systemd says of a unit; one that does not exist has the load state `not-found`.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn unit(&self, name: &str) -> Result<UnitState> {
        let manager = self.manager().await?;
        let what = || format!("cannot read the state of {name}");
        let path = manager.load_unit(name).await.context(what())?;
        // all at once: they belong together, and a unit without a file would be loaded again for each
        let mut unit = self.properties(&path, "Unit").await.context(what())?;
        let load: String = take(&mut unit, "LoadState").context(what())?;
        let (restarts, pid) = if Path::new(name).extension().is_some_and(|e| e == "service") && load == "loaded" {
            // NRestarts came with systemd 235
            let restarts = self.property(&path, "Service", "NRestarts").await.ok().and_then(|v| v.try_into().ok());
            let pid = self.property(&path, "Service", "MainPID").await.and_then(OwnedVariant::try_into);
            (restarts.unwrap_or(0), pid.context(what())?)
        } else {
            (0, 0)
        };
        let fragment: String = take(&mut unit, "FragmentPath").context(what())?;
        let drop_ins: Vec<String> = take(&mut unit, "DropInPaths").context(what())?;
        Ok(UnitState {
            active: take(&mut unit, "ActiveState").context(what())?,
            sub: take(&mut unit, "SubState").context(what())?,
            file: if load == "not-found" { String::new() } else { manager.get_unit_file_state(name).await.unwrap_or_default() },
            fragment: (!fragment.is_empty()).then(|| fragment.into()),
            stale: take(&mut unit, "NeedDaemonReload").context(what())?,
            drop_ins: drop_ins.into_iter().map(PathBuf::from).collect(),
            load,
            restarts,
            pid,
        })
    }

    /// Which of these units there are.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn present(&self, names: &[&str]) -> Result<Vec<String>> {
        let listed = self.manager().await?.list_units_by_names(names).await.context("cannot ask systemd for its units")?;
        Ok(listed.into_iter().filter(|unit| unit.2 != "not-found").map(|unit| unit.0).collect())
    }

    /// The active state of each of these units, in their order: `active`, `activating`, `inactive`, `failed`, …; one that does not
    /// exist is `inactive`, and one that systemd is about to start `activating`.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn active(&self, names: &[&str]) -> Result<Vec<String>> {
        let Ok(listed) = self.manager().await?.list_units_by_names(names).await else {
            // systemd before 230 cannot be asked for all at once
            let mut states = Vec::new();
            for name in names {
                states.push(self.unit(name).await?.active);
            }
            return Ok(states);
        };
        let state = |name: &&str| listed.iter().find(|unit| unit.0 == *name).map_or("inactive", |unit| soon(&unit.3, unit.7)).to_owned();
        Ok(names.iter().map(state).collect())
    }

    /// Forgets that a unit has failed.
    ///
    /// # Errors
    /// When systemd cannot be reached. It does not matter if there is no such unit.
    pub async fn forget_failure(&self, unit: &str) -> Result<()> {
        let _ = self.manager().await?.reset_failed_unit(unit).await;
        Ok(())
    }

    /// Reboots the host, as `systemctl reboot` does. Does not wait.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn reboot(&self) -> Result<()> {
        self.manager().await?.reboot().await.context("systemd does not reboot the host")
    }

    /// Whether the host is shutting down, or rebooting.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn is_stopping(&self) -> Result<bool> {
        let state = self.manager().await?.system_state().await.context("cannot ask systemd how the host is")?;
        Ok(state == "stopping")
    }

    async fn properties(&self, path: &ObjectPath<'_>, interface: &str) -> zbus::Result<HashMap<String, OwnedVariant>> {
        let body = format!("{SERVICE}.{interface}");
        self.bus.call_method(Some(SERVICE), path, Some(PROPERTIES), "GetAll", &body).await?.body().deserialize()
    }

    async fn property(&self, path: &ObjectPath<'_>, interface: &str, name: &str) -> zbus::Result<OwnedVariant> {
        let body = (format!("{SERVICE}.{interface}"), name);
        self.bus.call_method(Some(SERVICE), path, Some(PROPERTIES), "Get", &body).await?.body().deserialize()
    }

    /// Starts a unit without waiting for it (a joining k3s may take for ever).
    ///
    /// # Errors
    /// When systemd refuses: no such unit, masked, a bad setting.
    pub async fn start(&self, unit: &str) -> Result<()> {
        let manager = self.manager().await?;
        // a unit that failed too often in a row would be refused otherwise; it may also never have failed
        let _ = manager.reset_failed_unit(unit).await;
        manager.start_unit(unit, "replace").await.map(|_| ()).context(format!("cannot start {unit}"))
    }

    /// Restarts a unit without waiting for it.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn restart(&self, unit: &str) -> Result<()> {
        self.manager().await?.restart_unit(unit, "replace").await.map(|_| ()).context(format!("cannot restart {unit}"))
    }

    /// Makes a unit read its configuration again.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn reload(&self, unit: &str) -> Result<()> {
        self.manager().await?.reload_unit(unit, "replace").await.map(|_| ()).context(format!("cannot reload {unit}"))
    }

    /// Stops a unit and waits until it has stopped, a minute and a half at most (systemd kills it then).
    ///
    /// # Errors
    /// When systemd refuses, or it still runs after 100 s.
    pub async fn stop(&self, unit: &str) -> Result<()> {
        self.manager().await?.stop_unit(unit, "replace").await.context(format!("cannot stop {unit}"))?;
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_secs(100) {
            let state = self.unit(unit).await?;
            if matches!(state.active.as_str(), "inactive" | "failed") {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(Error::failed(format!("{unit} does not stop")).hint(format!("see what it does: systemctl status {unit}")))
    }

    /// Enables a unit at boot.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn enable(&self, unit: &str) -> Result<()> {
        let manager = self.manager().await?;
        manager.enable_unit_files(&[unit], false, false).await.context(format!("cannot enable {unit}"))?;
        manager.reload().await.context("cannot make systemd read its units again")
    }

    /// Disables a unit at boot.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn disable(&self, unit: &str) -> Result<()> {
        let manager = self.manager().await?;
        manager.disable_unit_files(&[unit], false).await.context(format!("cannot disable {unit}"))?;
        manager.reload().await.context("cannot make systemd read its units again")
    }

    /// Masks a unit: nothing starts it, now or at boot.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn mask(&self, unit: &str) -> Result<()> {
        self.manager().await?.mask_unit_files(&[unit], false, false).await.context(format!("cannot mask {unit}"))?;
        self.daemon_reload().await
    }

    /// Unmasks a unit.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn unmask(&self, unit: &str) -> Result<()> {
        self.manager().await?.unmask_unit_files(&[unit], false).await.context(format!("cannot unmask {unit}"))?;
        self.daemon_reload().await
    }

    /// Sends a signal to a unit's main process.
    ///
    /// # Errors
    /// When systemd refuses, or it has no main process.
    pub async fn signal(&self, unit: &str, signal: i32) -> Result<()> {
        self.manager().await?.kill_unit(unit, "main", signal).await.context(format!("cannot send a signal to {unit}"))
    }

    /// Makes systemd read its unit files again.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn daemon_reload(&self) -> Result<()> {
        self.manager().await?.reload().await.context("cannot make systemd read its units again")
    }
}

/// The last lines that a unit wrote, after `since` if given, oldest first. Empty when the journal cannot be read.
pub async fn last_lines(unit: &str, lines: usize, since: Option<jiff::Timestamp>) -> Vec<String> {
    let mut args: Vec<String> = ["--unit", unit, "--output", "cat", "--no-pager", "--quiet", "--lines"].map(str::to_owned).into();
    args.push(lines.to_string());
    if let Some(since) = since {
        args.push(format!("--since=@{}", since.as_second()));
    }
    match run("journalctl", &args, Duration::from_secs(10)).await {
        Ok(out) if out.success() => out.stdout.lines().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// What a running unit needs when a file that it reads has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    /// A restart.
    Restart,
    /// To read it again.
    Reload,
}

/// A unit that should be enabled and run.
#[derive(Debug, Clone)]
pub struct UnitStep {
    /// Its full name: `keepalived.service`.
    pub unit: String,
    /// What it needs when a file that it reads has changed.
    pub on_change: OnChange,
    /// Whether the step ends only when the unit is active; otherwise being on its way is enough.
    pub wait: bool,
}

/// Marks that a file which `unit` reads is about to change. On a tmpfs: after a boot the unit has read the new one.
/// Written before the change, so that a run that is killed in between is followed by one that tells the unit.
pub(crate) fn mark_changed(unit: &str) -> Result<()> {
    let mark = mark(unit);
    let dir = mark.parent().unwrap_or(Path::new("/run"));
    fs::create_dir_all(dir).and_then(|()| fs::write(&mark, "")).context(format!("cannot write {}", mark.display()))
}

fn mark(unit: &str) -> PathBuf {
    Path::new("/run/smartup/changed").join(unit)
}

impl UnitStep {
    fn settled(&self, state: &UnitState) -> bool {
        if self.wait { state.active == "active" } else { state.running() }
    }
}

#[async_trait(?Send)]
impl Step for UnitStep {
    fn name(&self) -> String {
        format!("unit {}", self.unit)
    }

    async fn check(&self, host: &Host) -> Result<State> {
        let state = host.systemd.unit(&self.unit).await?;
        let mut changes = Vec::new();
        if state.load == "masked" {
            return Err(Error::refused(format!("{} is masked", self.unit)).hint(format!("systemctl unmask {}", self.unit)));
        }
        if !state.enabled() {
            changes.push(Change::new(format!("enable {}", self.unit)));
        }
        if !state.running() {
            changes.push(Change::new(format!("start {}", self.unit)));
        } else if !self.settled(&state) {
            changes.push(Change::new(format!("wait for {}", self.unit)));
        } else if mark(&self.unit).exists() {
            let verb = if self.on_change == OnChange::Restart { "restart" } else { "reload" };
            changes.push(Change::new(format!("{verb} {}: its configuration changed", self.unit)));
        }
        Ok(State::of(changes))
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let unit = self.unit.as_str();
        let systemd = &host.systemd;
        if systemd.unit(unit).await?.stale {
            systemd.daemon_reload().await?;
        }
        let state = systemd.unit(unit).await?;
        if !state.exists() {
            return Err(Error::failed(format!("{unit} does not exist on this host")));
        }
        let before = Undo::Unit { unit: unit.to_owned(), enabled: state.enabled(), active: state.running() };
        if !host.journal.entries().iter().any(|e| matches!(&e.undo, Undo::Unit { unit: u, .. } if u == unit)) {
            host.journal.record(before)?;
        }
        if !state.enabled() {
            systemd.enable(unit).await?;
        }
        match (state.running(), mark(unit).exists(), self.on_change) {
            (false, _, _) => systemd.start(unit).await?,
            (true, true, OnChange::Restart) => systemd.restart(unit).await?,
            (true, true, OnChange::Reload) => systemd.reload(unit).await?,
            (true, false, _) => {}
        }
        crate::remove_file(&mark(unit))?;
        host.wait_for(&self.name(), unit, async || {
            let state = systemd.unit(unit).await?;
            match state.active.as_str() {
                _ if self.settled(&state) => Ok(Awaited::Done(())),
                "failed" => Err(Error::failed(format!("{unit} failed:\n{}", last_lines(unit, 10, None).await.join("\n")))
                    .hint(format!("journalctl -u {unit} has all of it"))),
                other => Ok(Awaited::missing(format!("{other} ({})", state.sub))),
            }
        })
        .await
    }
}

/// A unit of somebody else's that must read its configuration again when smartup has changed it. One that does not run is
/// left alone.
#[derive(Debug, Clone)]
pub struct TellStep {
    /// Its full name.
    pub unit: String,
}

#[async_trait(?Send)]
impl Step for TellStep {
    fn name(&self) -> String {
        format!("reload {}", self.unit)
    }

    async fn check(&self, host: &Host) -> Result<State> {
        let running = mark(&self.unit).exists() && host.systemd.unit(&self.unit).await?.active == "active";
        Ok(if running { State::differs(format!("reload {}: its configuration changed", self.unit)) } else { State::Right })
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        host.systemd.reload(&self.unit).await?;
        crate::remove_file(&mark(&self.unit))
    }
}

#[cfg(test)]
mod tests {
    use super::soon;

    #[test]
    fn what_is_about_to_start_is_not_inactive() {
        let states = [("inactive", 7), ("failed", 7), ("inactive", 0), ("failed", 0), ("deactivating", 7), ("active", 7)];
        let seen = states.map(|(active, job)| soon(active, job));
        assert_eq!(seen, ["activating", "activating", "inactive", "failed", "deactivating", "active"]);
    }
}

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use node::{
    Change, Context as _, Error, FileStep, Host, OnChange, Plan, Result, SeLinux, State, Step, UnitStep, read_optional, run,
    write_atomically,
};

use crate::Settings;
use crate::preflight::replaceable;
use crate::settings::{drop_in, k3s_drop_in, paths};
use crate::version::{self, Release};

/// The steps that make this host a holder of the VIP: what is put in place, and the start. keepalived must be installed by
/// then. k3s is to be started after the first part, since its unit's drop-in tells keepalived when the API is up; and before
/// the second, since it is what takes time, but where keepalived runs already: there k3s is restarted after it.
///
/// # Errors
/// None in practice.
pub fn plan(settings: &Settings) -> Result<(Plan, Plan)> {
    let (mut plan, mut start) = (Plan::default(), Plan::default());
    plan.push(FileStep::new(paths::CHECK, settings.check_script()?).mode(0o755));
    plan.push(FileStep::new(paths::K3S_DROP_IN, k3s_drop_in()?));
    plan.push(FileStep::new(paths::DROP_IN, drop_in()?));
    plan.push(ConfigStep { settings: settings.clone() });
    plan.push(DropInsStep);
    plan.push(StateFileStep);
    start.push(UnitStep { unit: paths::UNIT.into(), on_change: OnChange::Reload, wait: true });
    Ok((plan, start))
}

/// keepalived's configuration: refused where another one would be lost, and tried with `keepalived -t` first.
struct ConfigStep {
    settings: Settings,
}

impl ConfigStep {
    /// Without keepalived (a dry run before it is installed) the newest one's syntax.
    async fn file(&self) -> Result<(FileStep, String)> {
        let text = self.settings.config(version::installed().await?.unwrap_or(Release::NEWEST))?;
        // keepalived skips a configuration that is executable
        let mode = if self.settings.has_password() { 0o600 } else { 0o644 };
        Ok((FileStep::new(paths::CONFIG, text.as_str()).mode(mode).mask(mask).read_by(paths::UNIT), text))
    }

    /// Asks keepalived itself. It does not see everything (an empty file, one that is executable, a source address that is
    /// not here, a script that may not be run): all that is settled by type or by the other steps.
    async fn test(&self, text: &str) -> Result<()> {
        let Some(program) = version::program() else { return Ok(()) };
        // a script in a folder that others may write to would be complained of
        let folder = tempfile::Builder::new().prefix("smartup-keepalived-").tempdir_in("/run").context("cannot make a folder in /run")?;
        let (config, check) = (folder.path().join("keepalived.conf"), folder.path().join("check"));
        write_atomically(&check, self.settings.check_script()?.as_bytes(), 0o755)?;
        write_atomically(&config, text.replace(paths::CHECK, &check.to_string_lossy()).as_bytes(), 0o600)?;
        let config = config.to_string_lossy();
        let out = run(&program.to_string_lossy(), &["--config-test", "--use-file", &config], Duration::from_secs(20)).await?;
        if out.success() {
            return Ok(());
        }
        let code = out.code.map_or_else(|| "by a signal".to_owned(), |c| c.to_string());
        Err(Error::failed(format!("keepalived does not accept the new configuration (exit {code}): {}", out.tail(5)))
            .hint("nothing was put in place; please report this with keepalived's version"))
    }
}

#[async_trait(?Send)]
impl Step for ConfigStep {
    fn name(&self) -> String {
        format!("file {}", paths::CONFIG)
    }

    async fn check(&self, host: &Host) -> Result<State> {
        let (file, text) = self.file().await?;
        replaceable(host, &self.settings, version::installed().await?.unwrap_or(Release::NEWEST))?;
        let state = file.check(host).await?;
        if state != State::Right {
            self.test(&text).await?;
        }
        Ok(state)
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        self.file().await?.0.apply(host).await
    }
}

fn mask(line: &str) -> String {
    match line.split_once("auth_pass") {
        Some((indent, _)) => format!("{indent}auth_pass (not shown)"),
        None => line.to_owned(),
    }
}

/// systemd has read the drop-ins. It does not restart k3s for one.
struct DropInsStep;

#[async_trait(?Send)]
impl Step for DropInsStep {
    fn name(&self) -> String {
        "systemd reads the drop-ins".into()
    }

    async fn check(&self, host: &Host) -> Result<State> {
        let mut changes = Vec::new();
        for (unit, drop_in) in [(paths::UNIT, paths::DROP_IN), (paths::K3S_UNIT, paths::K3S_DROP_IN)] {
            let (state, drop_in) = (host.systemd.unit(unit).await?, Path::new(drop_in));
            let unread = state.exists() && drop_in.exists() && !state.drop_ins.iter().any(|d| d == drop_in);
            if state.stale || unread {
                changes.push(Change::new(format!("make systemd read {unit} again")));
            }
        }
        Ok(State::of(changes))
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        host.systemd.daemon_reload().await
    }
}

/// The state file says the truth where a unit runs already that began without its drop-in. Otherwise the units write it.
struct StateFileStep;

impl StateFileStep {
    async fn wanted(host: &Host) -> Result<Option<&'static str>> {
        let path = Path::new(paths::STATE);
        if host.systemd.unit(paths::K3S_UNIT).await?.active == "active" {
            let right = read_optional(path)?.is_some_and(|f| f.content.trim_ascii() == b"0");
            return Ok((!right).then_some("0\n"));
        }
        let keepalived_runs = host.systemd.unit(paths::UNIT).await?.running();
        Ok((keepalived_runs && !path.exists()).then_some("1\n"))
    }
}

#[async_trait(?Send)]
impl Step for StateFileStep {
    fn name(&self) -> String {
        format!("file {}", paths::STATE)
    }

    async fn check(&self, host: &Host) -> Result<State> {
        Ok(match Self::wanted(host).await? {
            None => State::Right,
            Some("0\n") => State::differs(format!("write into {} that k3s runs", paths::STATE)),
            Some(_) => State::differs(format!("write into {} that k3s does not run yet", paths::STATE)),
        })
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let Some(text) = Self::wanted(host).await? else { return Ok(()) };
        let folder = Path::new(paths::STATE_FOLDER);
        fs::create_dir_all(folder)
            .and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o755)))
            .context(format!("cannot make the folder {}", folder.display()))?;
        write_atomically(Path::new(paths::STATE), text.as_bytes(), 0o644)?;
        if host.selinux() != SeLinux::Disabled {
            let out = run("restorecon", &["-R", paths::STATE_FOLDER], Duration::from_secs(30)).await?;
            if !out.success() {
                return Err(Error::failed(format!("cannot restore the SELinux context of {}: {}", paths::STATE_FOLDER, out.tail(3))));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::settings;

    #[test]
    fn each_step_has_a_name_of_its_own() {
        let (files, start) = plan(&settings(false, None, &[])).unwrap();
        let names: Vec<_> = files.0.iter().chain(&start.0).map(|s| s.name()).collect();
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
    }

    #[test]
    fn a_diff_does_not_show_the_password() {
        let text = settings(false, Some("mypasswd"), &[]).config(Release::NEWEST).unwrap();
        assert!(text.contains("mypasswd"));
        assert!(!text.lines().map(mask).any(|l| l.contains("mypasswd")));
    }

    #[test]
    fn the_script_is_a_shells() {
        let script = settings(false, None, &[]).check_script().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("check");
        fs::write(&path, script).unwrap();
        assert!(std::process::Command::new("sh").arg("-n").arg(path).status().unwrap().success());
    }
}

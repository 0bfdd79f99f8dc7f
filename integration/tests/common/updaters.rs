//! A host's own automatic updates: a service of Virtuozzo's name that leaves a line each time it runs, and it would run each second.

use anyhow::{Result, ensure};
use integration::{Host, until};

use super::LONG;

const SERVICE: &str = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo it ran >> /root/updated'\n";
const TIMER: &str = "[Timer]\nOnCalendar=*:*:*\nAccuracySec=100ms\n[Install]\nWantedBy=timers.target\n";

/// A host that updates itself.
pub struct Updater<'a> {
    host: &'a Host,
    before: String,
}

impl<'a> Updater<'a> {
    /// On this host.
    pub fn on(host: &'a Host) -> Result<Self> {
        host.write("/etc/systemd/system/vzautoupdate.service", 0o644, SERVICE)?;
        host.write("/etc/systemd/system/vzautoupdate.timer", 0o644, TIMER)?;
        host.sh("systemctl daemon-reload; systemctl -q enable --now vzautoupdate.timer")?;
        let updater = Self { before: of_systemd(host)?, host };
        updater.runs()?;
        Ok(updater)
    }

    fn count(&self) -> Result<usize> {
        Ok(self.host.sh("cat /root/updated 2>/dev/null || true")?.lines().count())
    }

    fn runs(&self) -> Result<()> {
        let was = self.count()?;
        until(&format!("{} updates itself", self.host.name()), LONG, || Ok((self.count()? > was).then_some(())))
    }

    /// Waits until it is held back; answers how often it has run.
    pub fn held(&self) -> Result<usize> {
        until(&format!("{} does not update itself", self.host.name()), LONG, || {
            let shown = self.host.sh("systemctl show -p ConditionResult vzautoupdate.service")?;
            Ok((shown.trim() == "ConditionResult=no").then_some(()))
        })?;
        let apt = self.host.sh("systemctl show -p DropInPaths apt-daily-upgrade.service")?;
        ensure!(apt.contains("/90-smartup.conf"), "apt's own too: {apt}");
        self.count()
    }

    /// Fails if it has run since.
    pub fn still_held(&self, since: usize) -> Result<()> {
        let now = self.count()?;
        ensure!(now == since, "{}: it ran {} times", self.host.name(), now - since);
        Ok(())
    }

    /// Fails unless all is as it was, and it runs.
    pub fn as_before(&self) -> Result<()> {
        let now = of_systemd(self.host)?;
        ensure!(now == self.before, "{}: {now}\nbefore: {}", self.host.name(), self.before);
        self.runs()
    }
}

fn of_systemd(host: &Host) -> Result<String> {
    let units = "vzautoupdate.service vzautoupdate.timer apt-daily-upgrade.service apt-daily-upgrade.timer";
    host.sh(&format!("systemctl show -p Id,LoadState,UnitFileState,DropInPaths,NeedDaemonReload {units}; systemctl is-active vzautoupdate.timer; find /etc/systemd | grep -E 'upgrade|update' | sort"))
}

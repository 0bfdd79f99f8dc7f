//! The process beside each running host, which boots the host again when it reboots itself.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result};

use crate::cgroup::{self, Hierarchies};
use crate::net;
use crate::nspawn;
use crate::site::Site;

/// Boots the host in the lab at `folder`, and lasts until the host powers itself off. Whoever cuts its power kills this
/// process as well: it is in the host's control group.
pub fn keep(folder: &Path, host: &str) -> Result<()> {
    let site = Site::at(folder)?;
    let plan = site.plan()?;
    let host = plan.hosts.iter().find(|plan| plan.name() == host).with_context(|| format!("no host {host}"))?;
    let name = host.name();
    let groups = Hierarchies::of_machine()?;
    let own = std::process::id().to_string();
    for entrance in groups.entrances(&site.id, &name, "keeper") {
        cgroup::write(&entrance, &own)?;
    }
    loop {
        net::attach(&site, host)?;
        let status = nspawn::boot(&site, &groups, &name)
            .stdin(Stdio::null()) // --console=pipe would wait for the end of it
            .status()
            .context("cannot run systemd-nspawn")?;
        eprintln!("lab: {name}: systemd-nspawn ended: {status}");
        net::detach(&site, &name)?;
        if status.code() != Some(nspawn::REBOOT) {
            return Ok(());
        }
        groups.clear_boot(&site.id, &name)?;
    }
}

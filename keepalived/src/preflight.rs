use std::path::Path;
use std::time::Duration;

use node::{Error, Finding, Host, Result, read_optional};

use crate::existing::{Existing, examine};
use crate::judge::{Seen, judge};
use crate::settings::paths;
use crate::version::{self, Release};
use crate::{Settings, wire};

/// Routers announce each second by default, so a little more than a second hears them all; longer intervals once.
const LISTEN: Duration = Duration::from_millis(1200);

/// The checks `keepalived`, `keepalived-config`, `vip`, `router-id` and, when `joining`, `vrrp-match`. The wire is left alone
/// where this host's keepalived already takes part in the cluster.
pub async fn preflight(host: &Host, settings: &Settings, joining: bool) -> Vec<Finding> {
    let release = version::installed().await;
    let mut found = vec![match &release {
        Ok(None) => Finding::ok("keepalived", "will be installed"),
        Ok(Some(r)) if *r >= Release::LEAST => Finding::ok("keepalived", format!("version {}.{}.{}", r.0, r.1, r.2)),
        Ok(Some(r)) => {
            let what = format!("keepalived {}.{}.{} is too old: it cannot track files and scripts as it must", r.0, r.1, r.2);
            Finding::fail("keepalived", &Error::failed(what).hint("install version 2.0 or later"))
        }
        Err(e) => Finding::fail("keepalived", e),
    }];
    found.push(match replaceable(host, settings, release.ok().flatten().unwrap_or(Release::NEWEST)) {
        Ok(()) => Finding::ok("keepalived-config", "there is none that serves others"),
        Err(e) => Finding::fail("keepalived-config", &e),
    });
    match takes_part(host).await {
        Err(e) => found.push(Finding::fail("vip", &e)),
        Ok(true) => found.push(Finding::ok("vip", "this host's keepalived takes part already")),
        Ok(false) => match look(host, settings).await {
            Ok(seen) => found.extend(judge(settings, joining, &seen)),
            Err(e) => found.push(Finding::fail("vip", &e)),
        },
    }
    found
}

async fn takes_part(host: &Host) -> Result<bool> {
    Ok(host.journal.wrote(Path::new(paths::CONFIG)) && host.systemd.unit(paths::UNIT).await?.active == "active")
}

async fn look(host: &Host, settings: &Settings) -> Result<Seen> {
    let vip = settings.vip.addr();
    // the leftover of a run of ours that was cut short is no stranger's
    let here = host.facts.has(vip) && !host.journal.wrote(Path::new(paths::CONFIG));
    let long_enough = LISTEN.max(settings.vrrp.advert.duration().mul_f32(1.2));
    let (claims, heard) = tokio::try_join!(
        wire::who_has(&settings.interface, vip),
        wire::listen(&settings.interface, vip.is_ipv6(), long_enough, |_| false)
    )?;
    Ok(Seen { here, claims, heard })
}

/// Whether keepalived's configuration may be replaced: it is smartup's, serves nobody, or there is none.
///
/// # Errors
/// Refused, with the names of what it serves.
pub(crate) fn replaceable(host: &Host, settings: &Settings, release: Release) -> Result<()> {
    let path = Path::new(paths::CONFIG);
    if host.journal.wrote(path) {
        return Ok(());
    }
    let Some(file) = read_optional(path)? else { return Ok(()) };
    let text = String::from_utf8_lossy(&file.content);
    if text == settings.config(release)? {
        return Ok(());
    }
    match examine(&text, settings.vip.addr()) {
        Existing::Empty | Existing::Sample => Ok(()),
        Existing::SameVip(name) => {
            let what = format!("{} was made by hand for this VIP: vrrp_instance {name}", paths::CONFIG);
            let hint = "smartup's settings differ from it, and two kinds at once are a split brain: on every server stop keepalived and move \
                        the file away, then run smartup on one after the other";
            Err(Error::refused(what).hint(hint))
        }
        Existing::Foreign(names) => {
            let what = format!("{} serves something else on this host: {}", paths::CONFIG, names.join(", "));
            Err(Error::refused(what).hint("take another host for the server, or move that service and its configuration away first"))
        }
    }
}

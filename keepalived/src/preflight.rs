use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cluster::Vrrp;
use node::{Error, Finding, Host, Result, Verdict, read_optional};

use crate::existing::{Existing, examine, spoken};
use crate::judge::{Seen, judge};
use crate::settings::paths;
use crate::version::{self, Release};
use crate::wire::{Heard, Pace};
use crate::{Settings, wire};

/// Routers announce each second by default, so a little more than a second hears them all; longer intervals once.
const LISTEN: Duration = Duration::from_millis(1200);

/// So many adverts of the VIP tell a joiner how the cluster speaks, and whether two hosts hold it.
const ENOUGH: usize = 3;

/// The checks `keepalived` and `keepalived-config`.
pub async fn preflight(host: &Host, settings: &Settings) -> Vec<Finding> {
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
    found
}

/// The checks `vip`, `router-id` and, when `joining`, `vrrp-match`: a second and a bit for the first server, less for one that
/// joins. The wire is left alone where this host's keepalived already takes part in the cluster.
pub async fn wire_preflight(host: &Host, settings: &Settings, joining: bool) -> Vec<Finding> {
    match takes_part(host, settings).await {
        Err(e) => vec![Finding::fail("vip", &e)],
        Ok(true) => vec![Finding::ok("vip", "this host's keepalived takes part already")],
        Ok(false) => match look(host, settings, joining).await {
            // the VIP may just have been on its way from one server to another: only who is there twice is a stranger
            Ok(seen) if joining && refuses(&judge(settings, joining, &seen)) => {
                look(host, settings, joining).await.map_or_else(|e| vec![Finding::fail("vip", &e)], |seen| judge(settings, joining, &seen))
            }
            Ok(seen) => judge(settings, joining, &seen),
            Err(e) => vec![Finding::fail("vip", &e)],
        },
    }
}

fn refuses(found: &[Finding]) -> bool {
    found.iter().any(|f| f.name == "vip" && f.verdict == Verdict::Fail)
}

async fn takes_part(host: &Host, settings: &Settings) -> Result<bool> {
    let by_hand = || by_hand(host, settings.vip.addr()).map(|v| v.is_some_and(|v| v.agrees_with(&settings.vrrp)));
    Ok((host.journal.wrote(Path::new(paths::CONFIG)) || by_hand()?) && host.systemd.unit(paths::UNIT).await?.active == "active")
}

async fn look(host: &Host, settings: &Settings, joining: bool) -> Result<Seen> {
    let vip = settings.vip.addr();
    // the leftover of a run of ours that was cut short is no stranger's
    let here = host.facts.has(vip) && !host.journal.wrote(Path::new(paths::CONFIG));
    let long_enough = LISTEN.max(settings.vrrp.advert.duration().mul_f32(1.2));
    let adverts = AtomicUsize::new(0);
    let enough = move |h: &Heard| joining && h.advert.addresses.contains(&vip) && adverts.fetch_add(1, Ordering::Relaxed) + 1 >= ENOUGH;
    let (claims, heard) = tokio::try_join!(
        wire::who_has(&settings.interface, vip, if joining { Pace::Quick } else { Pace::Careful }),
        wire::listen(&settings.interface, vip.is_ipv6(), long_enough, enough)
    )?;
    Ok(Seen { here, claims, heard })
}

/// What this host's keepalived says on the wire for the VIP, where it was set up by hand for it; None where it was not, or
/// where smartup cannot say the same.
///
/// # Errors
/// When its configuration cannot be read.
pub fn by_hand(host: &Host, vip: IpAddr) -> Result<Option<Vrrp>> {
    let path = Path::new(paths::CONFIG);
    if host.journal.wrote(path) {
        return Ok(None);
    }
    let Some(file) = read_optional(path)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&file.content);
    Ok(matches!(examine(&text, vip), Existing::SameVip(_)).then(|| spoken(&text)).flatten())
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
        // taken over as it is on the wire, so that servers that have been changed and those that have not understand each other
        Existing::SameVip(_) if spoken(&text).is_some_and(|v| v.agrees_with(&settings.vrrp)) => Ok(()),
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

//! When to look for updates, and what comes of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};
use updates::HostPath;
use updates::api::{Available, HostRules, Listing, Phase};

/// What is available is asked for this often (7.4).
const DAILY: SignedDuration = SignedDuration::from_hours(24);
/// A user's command is asked this often whether a reboot is needed; kured has the same.
const HOURLY: SignedDuration = SignedDuration::from_hours(1);
/// Somebody who installs packages one after the other is not followed one by one.
const CALM: SignedDuration = SignedDuration::from_mins(2);
/// A look that takes longer than this hangs.
pub(super) const LIMIT: SignedDuration = SignedDuration::from_mins(15);

/// Where package managers keep what is installed; their times change when it does. rpm's newer database has a log, which is written
/// first.
const DATABASES: [&str; 11] = [
    "var/lib/dpkg/status",
    "var/lib/rpm/Packages",
    "var/lib/rpm/Packages.db",
    "var/lib/rpm/rpmdb.sqlite",
    "var/lib/rpm/rpmdb.sqlite-wal",
    "usr/lib/sysimage/rpm/Packages",
    "usr/lib/sysimage/rpm/Packages.db",
    "usr/lib/sysimage/rpm/rpmdb.sqlite",
    "usr/lib/sysimage/rpm/rpmdb.sqlite-wal",
    "var/lib/pacman/local",
    "sys/kernel/livepatch",
];
/// Files that say that a reboot is needed.
const SENTINELS: [&str; 2] = ["run/reboot-required", "run/reboot-needed"];

/// What was not listed for so long was never seen. A mirror that lacks a build for a while does not make it younger.
const KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);

/// When an update was listed for the first time, and for the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Times {
    first: Timestamp,
    last: Timestamp,
}

/// The times of all updates, by name.
pub(super) type Seen = BTreeMap<String, Times>;

/// After a look that found out all that it was to.
pub(super) fn forget(seen: &mut Seen, now: Timestamp) {
    seen.retain(|_, times| now.duration_since(times.last) < KEPT);
}

/// What of the host changes when a look would find something else.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Print {
    packages: Vec<Option<SystemTime>>,
    sentinels: Vec<Option<SystemTime>>,
}

impl Print {
    pub(super) fn take(root: &Path, rules: &HostRules) -> Self {
        let time = |path: &Path| std::fs::metadata(root.join(path)).and_then(|m| m.modified()).ok();
        let own = rules.sentinel_file.as_ref().map(from_root);
        Self {
            packages: DATABASES.iter().map(|path| time(path.as_ref())).collect(),
            sentinels: SENTINELS.map(PathBuf::from).into_iter().chain(own).map(|path| time(&path)).collect(),
        }
    }
}

/// A file of the host, from its root. /var/run, where kured has its own, is an absolute link to /run, which would be followed to the
/// agent's.
fn from_root(path: &HostPath) -> PathBuf {
    let path = Path::new(path.as_str());
    match path.strip_prefix("/var/run") {
        Ok(rest) => Path::new("run").join(rest),
        Err(_) => path.strip_prefix("/").unwrap_or(path).to_owned(),
    }
}

/// A look that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Begun {
    pub at: Timestamp,
    pub check: String,
    pub rules: HostRules,
    pub print: Print,
    pub listing: bool,
    /// Whether what it found was seen.
    pub taken: bool,
}

/// What looks there were since the agent started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Looks {
    /// The last one.
    pub last: Option<Begun>,
    /// When the last one that asked for updates began, and when the agent had last installed something, by then.
    pub listed: Option<(Timestamp, Option<Timestamp>)>,
    /// Whether that failed.
    pub failed: bool,
}

impl Looks {
    /// Whether what the agent last installed, at `installed`, may still be listed as available: the look that is due after it was not
    /// begun yet, or what it found was not seen.
    pub(super) fn lag(&self, installed: Option<Timestamp>) -> bool {
        let looks = self.last.as_ref().is_some_and(|last| last.listing && !last.taken);
        looks || self.listed.is_none_or(|(_, before)| is_new(installed, before))
    }
}

/// Whether the agent has installed something since it had last done so at `before`. Not by which is later: the clock may have been set
/// back.
fn is_new(installed: Option<Timestamp>, before: Option<Timestamp>) -> bool {
    installed.is_some() && installed != before
}

/// What there is to say whether a look is due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub phase: Option<Phase>,
    pub check: &'a str,
    pub rules: &'a HostRules,
    pub print: &'a Print,
    /// When the agent last installed something.
    pub installed: Option<Timestamp>,
    pub now: Timestamp,
}

/// Whether to look now, and if so whether for updates, too. Between the beginning of an update and its reboot nothing is looked for.
pub(super) fn due(looks: &Looks, asked: Asked<'_>) -> Option<bool> {
    let Asked { phase, check, rules, print, installed, now } = asked;
    if !matches!(phase, None | Some(Phase::Verifying | Phase::Broken | Phase::Releasing)) {
        return None;
    }
    let (Some(last), Some((listed, before))) = (&looks.last, looks.listed) else { return Some(true) };
    let since = |at: Timestamp| now.duration_since(at).abs();
    let changed = is_new(installed, before) || (last.print.packages != print.packages && since(last.at) >= CALM);
    if last.check != check || changed || since(listed) >= DAILY || (looks.failed && since(listed) >= HOURLY) {
        return Some(true);
    }
    let asks = rules.sentinel_command.is_some() && since(last.at) >= HOURLY;
    (asks || last.rules != *rules || last.print.sentinels != print.sentinels).then_some(false)
}

/// What the status says about packages, or patches, after a look.
pub(super) fn listing<T: Clone + Ord + std::fmt::Display>(
    before: Option<&Listing<T>>,
    found: Result<impl IntoIterator<Item = (T, Option<Timestamp>)>, String>,
    seen: &mut Seen,
    now: Timestamp,
) -> Listing<T> {
    match found {
        Err(why) => {
            let (checked_at, available) = before.map(|b| (b.checked_at.clone(), b.available.clone())).unwrap_or_default();
            Listing { checked_at, error: Some(why), available }
        }
        Ok(found) => {
            let first = |name: &T| seen.get(&name.to_string()).map_or(now, |times| times.first);
            let mut available: Vec<_> = found
                .into_iter()
                .map(|(name, published)| Available { since: Time(published.unwrap_or_else(|| first(&name))), name })
                .collect();
            available.sort_by(|a, b| a.name.cmp(&b.name));
            available.dedup_by(|a, b| a.name == b.name);
            for item in &available {
                seen.entry(item.name.to_string()).and_modify(|times| times.last = now).or_insert(Times { first: now, last: now });
            }
            Listing { checked_at: Some(Time(now)), error: None, available }
        }
    }
}

#[cfg(test)]
mod tests {
    use updates::PackageName;

    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_mins(1_000_000 + minutes)
    }

    fn print(packages: u64, sentinels: bool) -> Print {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(packages);
        Print { packages: vec![Some(time), None], sentinels: vec![sentinels.then_some(time)] }
    }

    #[test]
    fn looks_at_start_daily_when_asked_and_when_something_changed() {
        let rules = HostRules::default();
        let due = |looks: &Looks, check: &str, print: Print, minutes| {
            let installed = Some(at(-100));
            super::due(looks, Asked { phase: None, check, rules: &rules, print: &print, installed, now: at(minutes) })
        };
        assert_eq!(due(&Looks::default(), "a", print(1, false), 0), Some(true));
        let last = Begun { at: at(0), check: "a".into(), rules: rules.clone(), print: print(1, false), listing: true, taken: true };
        let looks = Looks { last: Some(last), listed: Some((at(0), Some(at(-100)))), failed: false };
        assert_eq!(due(&looks, "a", print(1, false), 24 * 60 - 1), None);
        assert_eq!(due(&looks, "a", print(1, false), 24 * 60), Some(true));
        assert_eq!(due(&looks, "a", print(1, false), -24 * 60), Some(true), "the clock was set back");
        assert_eq!(due(&looks, "b", print(1, false), 0), Some(true));
        assert_eq!(due(&looks, "a", print(2, false), 1), None, "more may follow");
        assert_eq!(due(&looks, "a", print(2, false), 2), Some(true));
        assert_eq!(due(&looks, "a", print(1, true), 0), Some(false));
        let installed = Some(at(1));
        let after = Asked { phase: None, check: "a", rules: &rules, print: &print(1, false), installed, now: at(1) };
        assert_eq!(super::due(&looks, after), Some(true), "after an update of the agent's own at once");
        let ahead = Looks { listed: Some((at(0), Some(at(500)))), ..looks.clone() };
        assert_eq!(super::due(&ahead, Asked { installed: Some(at(500)), ..after }), None, "once, though the clock was set back since");
        let failed = Looks { failed: true, ..looks.clone() };
        assert_eq!(due(&failed, "a", print(1, false), 59), None);
        assert_eq!(due(&failed, "a", print(1, false), 60), Some(true));
    }

    #[test]
    fn what_was_installed_may_be_listed_until_a_look_after_it_is_seen() {
        assert!(Looks::default().lag(None), "an agent that was restarted knows of no look");
        let last = Begun { at: at(0), check: "a".into(), rules: HostRules::default(), print: print(1, false), listing: true, taken: true };
        let looks = Looks { last: Some(last.clone()), listed: Some((at(0), None)), failed: false };
        assert!(!looks.lag(None), "nothing was installed");
        assert!(looks.lag(Some(at(-5))), "the clock was set back since");
        let begun = Looks { last: Some(Begun { taken: false, ..last.clone() }), listed: Some((at(1), Some(at(-5)))), ..looks.clone() };
        assert!(begun.lag(Some(at(-5))));
        assert!(begun.lag(None), "the reboot was ordered after the installation");
        assert!(!Looks { last: Some(last.clone()), failed: true, ..begun.clone() }.lag(Some(at(-5))), "one that failed is no better later");
        let only_reboot = Begun { listing: false, taken: false, ..last };
        assert!(!Looks { last: Some(only_reboot), ..begun }.lag(Some(at(-5))));
    }

    #[test]
    fn a_sentinel_file_is_seen_through_the_hosts_own_link() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["run", "var", "srv"] {
            std::fs::create_dir(root.path().join(folder)).unwrap();
        }
        std::os::unix::fs::symlink("/nowhere/run", root.path().join("var/run")).unwrap();
        for path in ["/var/run/reboot-please", "/run/reboot-me", "/srv/reboot"] {
            let rules = HostRules { sentinel_file: Some(path.parse().unwrap()), ..HostRules::default() };
            let before = Print::take(root.path(), &rules);
            std::fs::write(root.path().join(path.replace("/var/run", "/run").trim_start_matches('/')), "").unwrap();
            assert_ne!(Print::take(root.path(), &rules).sentinels, before.sentinels, "{path}");
        }
    }

    #[test]
    fn asks_the_users_command_each_hour_and_never_in_the_middle_of_an_update() {
        let rules = HostRules { sentinel_command: Some(vec!["/bin/true".to_owned()].try_into().unwrap()), ..HostRules::default() };
        let last = Begun { at: at(0), check: "a".into(), rules: rules.clone(), print: print(1, false), listing: true, taken: true };
        let looks = Looks { last: Some(last), listed: Some((at(0), None)), failed: false };
        let in_phase = |looks: &Looks, phase, minutes| {
            due(looks, Asked { phase, check: "a", rules: &rules, print: &print(1, false), installed: None, now: at(minutes) })
        };
        assert_eq!(in_phase(&looks, None, 59), None);
        assert_eq!(in_phase(&looks, None, 60), Some(false));
        assert_eq!(in_phase(&looks, Some(Phase::Broken), 60), Some(false));
        for phase in [Phase::Checking, Phase::Downloading, Phase::HandingOver, Phase::Draining, Phase::Installing, Phase::Rebooting] {
            assert_eq!(in_phase(&Looks::default(), Some(phase), 60), None, "{phase}");
        }
    }

    #[test]
    fn what_has_no_time_counts_from_when_it_was_first_seen() {
        let name = |text: &str| text.parse::<PackageName>().unwrap();
        let mut seen = Seen::new();
        let found = |names: &[&str]| Ok(names.iter().map(|n| (name(n), None)).collect::<Vec<_>>());
        let first = listing(None, found(&["bb=1", "ab=1"]), &mut seen, at(0));
        assert_eq!(first.available[0].name, name("ab=1"));
        let later = listing(Some(&first), found(&["bb=1", "cc=2"]), &mut seen, at(60));
        let times: Vec<_> = later.available.iter().map(|a| (a.name.to_string(), a.since.0)).collect();
        assert_eq!(times, [("bb=1".to_owned(), at(0)), ("cc=2".to_owned(), at(60))]);
        let after = |days: i64, seen: &mut Seen| {
            forget(seen, at(60 + days * 24 * 60));
            listing(None, found(&["ab=1"]), &mut seen.clone(), at(60 + days * 24 * 60)).available[0].since.0
        };
        assert_eq!(after(29, &mut seen), at(0), "a mirror that lacks a build for a while does not make it younger");
        assert_eq!(after(31, &mut seen), at(60 + 31 * 24 * 60));
        let published = listing(Some(&later), Ok([(name("cc=2"), Some(at(-500)))]), &mut seen, at(120));
        assert_eq!(published.available[0].since.0, at(-500));
        let failed = listing::<PackageName>(Some(&published), Err::<Vec<_>, _>("no network".into()), &mut seen, at(180));
        assert_eq!(
            (failed.checked_at, failed.available, failed.error.as_deref()),
            (published.checked_at, published.available, Some("no network"))
        );
    }
}

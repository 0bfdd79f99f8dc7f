//! What a restore of several hosts does, decided from what each of them said. Pure.

use std::fmt;
use std::path::Path;

use cluster::Role;
use jiff::Timestamp;
use k3s::Quorum;
use k3s::restore::Stage;
use node::{Error, Result};

use super::told::{Fitting, Found, Seen};

/// A host of the file, and what it said.
#[derive(Debug)]
pub struct Of {
    /// As the file calls it.
    pub host: String,
    /// What the file wants it to be.
    pub role: Role,
    /// What it said, or why it could not be asked.
    pub seen: Result<Seen, String>,
}

/// What is done, and where. Hosts are numbers in the list that was given.
#[derive(Debug, PartialEq, Eq)]
pub struct Course {
    /// The server that is restored.
    pub first: usize,
    /// Servers whose k3s is stopped before that.
    pub stop: Vec<usize>,
    /// Servers that join again, in this order.
    pub rejoin: Vec<usize>,
    /// Agents, which start anew.
    pub agents: Vec<usize>,
    /// Hosts that smartup has not set up (any more).
    pub bare: Vec<usize>,
    /// Hosts that are left out.
    pub absent: Vec<usize>,
    /// An earlier run has restored the first server already.
    pub goes_on: bool,
    /// etcd's state as long as it has a quorum: the cluster is healthy, and no restore is needed.
    pub healthy: Option<Quorum>,
}

impl Course {
    /// Decides. `without`: servers that are gone, as the file calls them.
    ///
    /// # Errors
    /// Refused as long as a server may be out there with the old cluster; invalid when no server has the snapshot.
    pub fn of(all: &[Of], snapshot: &str, without: &[String]) -> Result<Self> {
        for name in without {
            match all.iter().find(|o| o.host == *name) {
                None => return Err(Error::invalid(format!("--without {name}: there is no such host in the file"))),
                Some(Of { seen: Ok(_), .. }) => {
                    return Err(Error::invalid(format!("--without {name}: it answers, and is stopped and joined again like the others")));
                }
                Some(_) => {}
            }
        }
        let silent = all.iter().find(|o| o.role == Role::Server && o.seen.is_err() && !without.contains(&o.host));
        if let Some(Of { host, seen: Err(why), .. }) = silent {
            return Err(Error::refused(format!("{host} cannot be reached, and may go on with the old cluster: {why}"))
                .hint(format!("bring it back, or, if it is off and stays off until it has been set up anew: --without {host}")));
        }
        let first = first(all, snapshot)?;
        let said = |n: &usize| all.get(*n).and_then(|o| o.seen.as_ref().ok());
        let is = |n: &usize, role: Option<Role>| said(n).is_some_and(|s| s.role == role);
        let hosts = || 0..all.len();
        let others: Vec<usize> = hosts().filter(|n| *n != first && is(n, Some(Role::Server))).collect();
        let goes_on = said(&first).is_some_and(|s| match (&s.mark, &s.found) {
            (Some(mark), Some(found)) => mark.stage == Stage::Restored { snapshot: found.snapshot.path.clone() },
            _ => false,
        });
        // those of an earlier run have the restored cluster's data already, or are stopped
        let in_it = |n: &usize| goes_on && said(n).is_some_and(|s| s.mark.is_some());
        Ok(Self {
            first,
            stop: others.iter().copied().filter(|n| !in_it(n)).collect(),
            rejoin: others,
            agents: hosts().filter(|n| is(n, Some(Role::Agent))).collect(),
            bare: hosts().filter(|n| is(n, None)).collect(),
            absent: hosts().filter(|n| said(n).is_none()).collect(),
            goes_on,
            healthy: all.iter().filter_map(|o| o.seen.as_ref().ok()?.quorum).find(|q| q.is_there()).filter(|_| !goes_on),
        })
    }

    /// What is done, line by line.
    pub fn in_words(&self, all: &[Of], found: &Found) -> Vec<String> {
        let name = |n: &usize| all.get(*n).map_or("?", |o| o.host.as_str());
        let snapshot = found.snapshot.path.display();
        let mut lines: Vec<String> = self.stop.iter().map(|n| format!("{}: stop k3s", name(n))).collect();
        let first = name(&self.first);
        if self.goes_on {
            lines.push(format!("{first}: is restored from {snapshot} already, by a run that did not end; go on there"));
        } else {
            lines.push(format!("{first}: stop k3s, restore etcd from {snapshot} as a cluster of one (its old data is kept), start k3s"));
        }
        lines.extend(self.rejoin.iter().map(|n| format!("{}: set etcd's old data aside, start k3s, join {first}", name(n))));
        lines.extend(self.agents.iter().map(|n| format!("{}: start k3s anew", name(n))));
        lines.extend(
            self.bare.iter().map(|n| format!("{}: is not set up; its node is removed, and `smartup apply` makes it anew", name(n))),
        );
        lines.extend(self.absent.iter().map(|n| format!("{}: is left out", name(n))));
        lines
    }
}

/// The server that an earlier run began with, or else the first one that has the snapshot.
fn first(all: &[Of], snapshot: &str) -> Result<usize> {
    let servers = || all.iter().enumerate().filter_map(|(n, o)| Some((n, o, o.seen.as_ref().ok()?)));
    let having = || servers().filter_map(|(n, o, s)| Some((n, o, s, s.found.as_ref()?)));
    let begun = |s: &Seen, f: &Found| match s.mark.as_ref().map(|m| &m.stage) {
        Some(Stage::Begun { snapshot } | Stage::Restored { snapshot }) => *snapshot == f.snapshot.path,
        _ => false,
    };
    let chosen = having().find(|(_, _, s, f)| begun(s, f)).or_else(|| having().next());
    let Some((n, of, _, found)) = chosen else {
        return Err(
            Error::invalid(format!("no server has a snapshot {snapshot}")).hint("smartup snapshot list -f FILE shows those that are there")
        );
    };
    found.usable().map(|()| n).map_err(|e| at(&of.host, e))
}

/// An error of a host's.
pub fn at(host: &str, mut error: Error) -> Error {
    error.what = format!("{host}: {}", error.what);
    error
}

impl Found {
    /// Whether it can be restored.
    ///
    /// # Errors
    /// Why not.
    pub fn usable(&self) -> Result<()> {
        match (&self.trouble, self.token) {
            (Some(why), _) => Err(Error::invalid(why.clone())),
            (None, Fitting::None) if self.sealed.is_some() => {
                Err(no_token(&self.snapshot.path).hint("the token beside it is encrypted: give --identity FILE, or --token-file FILE"))
            }
            (None, Fitting::None) => Err(no_token(&self.snapshot.path)),
            (None, _) => Ok(()),
        }
    }
}

/// k3s could not read the cluster's keys.
pub fn no_token(snapshot: &Path) -> Error {
    Error::refused(format!("{} was taken with another token: k3s could not read the cluster's keys in it", snapshot.display()))
        .hint("give the token that the cluster had then: --token-file FILE")
}

/// What a restore costs.
pub fn loses(found: &Found, now: Timestamp) -> impl fmt::Display {
    let minutes = now.duration_since(found.snapshot.created).as_mins();
    let ago = match minutes {
        0..=119 => format!("{minutes} minutes"),
        120..=2879 => format!("{} hours", minutes / 60),
        _ => format!("{} days", minutes / 1440),
    };
    format!("everything written to the cluster since {} ({ago} ago)", found.snapshot.created.strftime("%Y-%m-%d %H:%M:%S UTC"))
}

#[cfg(test)]
mod tests {
    use k3s::Snapshot;
    use k3s::restore::Mark;

    use super::*;

    fn found() -> Found {
        let created = "2026-01-02T03:04:05Z".parse().unwrap();
        let snapshot = Snapshot { name: "s".into(), path: "/db/snapshots/s".into(), size: 1, created };
        Found { snapshot, trouble: None, token: Fitting::Kept, sealed: None }
    }

    fn seen(role: Option<Role>) -> Seen {
        Seen { node: "n".into(), role, runs: true, quorum: None, healthy: vec![], mark: None, found: None }
    }

    /// Three servers, of which the second has the snapshot, and an agent.
    fn all() -> Vec<Of> {
        let of = |host: &str, role| Of { host: host.into(), role, seen: Ok(seen(Some(role))) };
        let mut all = vec![of("h1", Role::Server), of("h2", Role::Server), of("h3", Role::Server), of("h4", Role::Agent)];
        said(&mut all[1]).found = Some(found());
        all
    }

    fn said(of: &mut Of) -> &mut Seen {
        of.seen.as_mut().unwrap()
    }

    fn mark(stage: Stage) -> Mark {
        Mark { at: 1, stage }
    }

    #[test]
    fn the_server_that_has_the_snapshot_is_restored_and_the_others_join_it() {
        let all = all();
        let course = Course::of(&all, "s", &[]).unwrap();
        insta::assert_snapshot!(course.in_words(&all, &found()).join("\n"), @r"
        h1: stop k3s
        h3: stop k3s
        h2: stop k3s, restore etcd from /db/snapshots/s as a cluster of one (its old data is kept), start k3s
        h1: set etcd's old data aside, start k3s, join h2
        h3: set etcd's old data aside, start k3s, join h2
        h4: start k3s anew
        ");
        assert_eq!(course.healthy, None);
    }

    #[test]
    fn a_server_that_may_go_on_with_the_old_cluster_is_not_left_out_silently() {
        let mut all = all();
        all[2].seen = Err("no route".into());
        all[3].seen = Err("no route".into());
        let e = Course::of(&all, "s", &[]).unwrap_err();
        assert_eq!((e.kind, e.what.as_str()), (node::Kind::Refused, "h3 cannot be reached, and may go on with the old cluster: no route"));
        assert_eq!(Course::of(&all, "s", &["h3".into()]).unwrap().absent, [2, 3]);
        for (without, why) in [
            ("h1", "--without h1: it answers, and is stopped and joined again like the others"),
            ("h9", "--without h9: there is no such host in the file"),
        ] {
            assert_eq!(Course::of(&all, "s", &[without.into()]).unwrap_err().what, why);
        }
    }

    #[test]
    fn what_is_no_snapshot_or_has_no_token_is_refused_before_anything_is_done() {
        let mut all = all();
        said(&mut all[1]).found = None;
        assert_eq!(Course::of(&all, "s", &[]).unwrap_err().what, "no server has a snapshot s");
        said(&mut all[1]).found = Some(Found { trouble: Some("it is damaged".into()), ..found() });
        let e = Course::of(&all, "s", &[]).unwrap_err();
        assert_eq!((e.kind, e.what.as_str()), (node::Kind::Invalid, "h2: it is damaged"));
        said(&mut all[1]).found = Some(Found { token: Fitting::None, sealed: Some("YQ".into()), ..found() });
        let e = Course::of(&all, "s", &[]).unwrap_err();
        assert_eq!(e.kind, node::Kind::Refused);
        assert_eq!(e.hint.unwrap(), "the token beside it is encrypted: give --identity FILE, or --token-file FILE");
    }

    #[test]
    fn a_run_that_was_cut_off_goes_on_with_the_server_that_it_began_with() {
        let mut all = all();
        said(&mut all[0]).found = Some(found());
        said(&mut all[1]).mark = Some(mark(Stage::Begun { snapshot: "/db/snapshots/s".into() }));
        said(&mut all[0]).mark = Some(mark(Stage::Stopped));
        let course = Course::of(&all, "s", &[]).unwrap();
        assert_eq!((course.first, course.goes_on, course.stop), (1, false, vec![0, 2]));

        // one has rejoined, one is stopped: neither is stopped again; one that was not there at all is
        said(&mut all[1]).mark = Some(mark(Stage::Restored { snapshot: "/db/snapshots/s".into() }));
        said(&mut all[0]).mark = Some(mark(Stage::Back));
        said(&mut all[1]).quorum = Some(Quorum { voters: 2, healthy: 2 });
        let course = Course::of(&all, "s", &[]).unwrap();
        assert_eq!((course.first, course.goes_on, course.stop, course.rejoin, course.healthy), (1, true, vec![2], vec![0, 2], None));

        // another snapshot is another restore
        said(&mut all[1]).mark = Some(mark(Stage::Restored { snapshot: "/db/snapshots/other".into() }));
        let course = Course::of(&all, "s", &[]).unwrap();
        assert_eq!((course.first, course.stop), (0, vec![1, 2]));
    }

    #[test]
    fn new_hosts_and_a_healthy_cluster_are_named() {
        let mut all = all();
        all[0].seen = Ok(seen(None));
        said(&mut all[2]).quorum = Some(Quorum { voters: 3, healthy: 2 });
        let course = Course::of(&all, "s", &[]).unwrap();
        assert_eq!((&course.bare[..], &course.rejoin[..]), (&[0][..], &[2][..]));
        assert_eq!(course.healthy, Some(Quorum { voters: 3, healthy: 2 }));
        let now = "2026-01-02T03:18:30Z".parse().unwrap();
        assert_eq!(loses(&found(), now).to_string(), "everything written to the cluster since 2026-01-02 03:04:05 UTC (14 minutes ago)");
    }
}

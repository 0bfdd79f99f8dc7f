//! How the making of a cluster went, and what of its time was k3s's own.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::cluster::{Crew, api, node_ready, unit_start};
use integration::clock::now;

/// Says when the API of the server on which it runs is ready. Asked each 100 ms by a process that is small beside k3s.
const API: &str = "t=/var/lib/rancher/k3s/server/tls
    until curl -fs -m 2 --cacert $t/server-ca.crt --cert $t/client-admin.crt --key $t/client-admin.key https://127.0.0.1:$0/readyz
    do sleep 0.1; done >/dev/null
    date +%s.%N";

/// Times since the command's start.
#[derive(Debug, Clone, Copy)]
pub struct Course {
    /// Until the API of each server is ready.
    pub api: Duration,
    /// Until each node is Ready; Kubernetes tells whole seconds only, rounded down.
    pub nodes: Duration,
    /// Until the command's end.
    pub end: Duration,
    /// Of that, the time in which no unit of k3s was on its way from its start to READY.
    pub beside_units: Duration,
    /// Of that in turn, the time in which no node was on its way from there to Ready.
    pub own: Duration,
}

/// Runs a command that makes a cluster of these hosts.
pub fn follow<T>(crew: &Crew<'_>, command: impl FnOnce() -> Result<T>) -> Result<(Course, T)> {
    let port = api().port().to_string();
    let watchers = crew.servers.iter().map(|server| server.spawn(["sh", "-c", API, &port])).collect::<Result<Vec<_>>>()?;
    let (start, wall) = (now(), SystemTime::now());
    let given = command()?;
    let end = now();
    let mut ready = Duration::ZERO;
    for mut watcher in watchers {
        let said = watcher.line()?.context("nobody says when the API was ready")?;
        ready = ready.max(since(wall, &said)?);
    }
    let (mut units, mut nodes) = (Vec::new(), Vec::new());
    for (host, role) in crew.roles() {
        let unit = unit_start(host, role)?;
        nodes.push(unit.end..node_ready(crew.first()?, host)?.max(unit.end));
        units.push(unit);
    }
    let last = nodes.iter().map(|node| node.end).max().unwrap_or_default();
    let beside = |spans: &[Range<Duration>]| end.saturating_sub(start).saturating_sub(covered(spans, &(start..end)));
    let course = Course {
        api: ready,
        nodes: last.saturating_sub(start),
        end: end.saturating_sub(start),
        beside_units: beside(&units),
        own: beside(&[units, nodes].concat()),
    };
    Ok((course, given))
}

/// `said` is a time as `date +%s.%N` prints it.
fn since(start: SystemTime, said: &str) -> Result<Duration> {
    let parsed = || said.trim().split_once('.').and_then(|(s, ns)| Some(Duration::new(s.parse().ok()?, ns.parse().ok()?)));
    let at = UNIX_EPOCH + parsed().with_context(|| format!("{said:?} is no time"))?;
    Ok(at.duration_since(start).unwrap_or_default())
}

/// How much of `all` lies in at least one of these spans: starts that overlap count once.
fn covered(spans: &[Range<Duration>], all: &Range<Duration>) -> Duration {
    let mut spans: Vec<_> = spans.iter().map(|span| span.start.max(all.start)..span.end.min(all.end)).collect();
    spans.sort_by_key(|span| span.start);
    let (mut total, mut reached) = (Duration::ZERO, all.start);
    for span in spans {
        total += span.end.saturating_sub(span.start.max(reached));
        reached = reached.max(span.end);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(range: Range<u64>) -> Range<Duration> {
        Duration::from_secs(range.start)..Duration::from_secs(range.end)
    }

    #[test]
    fn what_overlaps_counts_once() {
        let covered = |spans: &[Range<u64>]| covered(&spans.iter().cloned().map(span).collect::<Vec<_>>(), &span(10..20)).as_secs();
        assert_eq!(covered(&[12..15, 14..18]), 6);
        assert_eq!(covered(&[14..15, 12..18]), 6);
        assert_eq!(covered(&[5..11, 19..30]), 2);
        assert_eq!(covered(&[30..40, 1..2]), 0);
    }

    #[test]
    fn a_time_is_told_since_the_start() {
        let start = UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
        assert_eq!(since(start, "1700000002.250000000\n").unwrap(), Duration::from_millis(1750));
        assert!(since(start, "soon").is_err());
    }
}

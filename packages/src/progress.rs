use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Instant;

use rustix::process::Pid;

/// How far a command has come.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// When it was taken.
    at: Instant,
    /// Lines that all commands so far have printed.
    lines: u64,
    /// Processor time that the running one and all its children have used, in ticks of the clock.
    time: u64,
}

/// Ticks of proc(5) in a second.
const TICKS: u128 = 100;
/// What one in so many of the ticks in a while is no work: apt, which only waits for a script that hangs, looks at it several times a
/// second and takes 0.2 % of a processor for that (seen in the lab).
const IDLE: u128 = 50;

impl Mark {
    /// Whether work has gone on since `earlier`: something was printed, or more than 2 % of a processor's time was used.
    pub fn is_beyond(&self, earlier: &Self) -> bool {
        let idle = self.at.saturating_duration_since(earlier.at).as_millis() * TICKS / 1000 / IDLE;
        self.lines != earlier.lines || u128::from(self.time.saturating_sub(earlier.time)) > idle
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    lines: AtomicU64,
    /// The process that runs now; 0: none.
    leader: AtomicI32,
}

impl Progress {
    pub(crate) fn starts(&self, leader: Option<Pid>) {
        self.0.leader.store(leader.map_or(0, |pid| pid.as_raw_nonzero().get()), Ordering::Relaxed);
    }

    pub(crate) fn ends(&self) {
        self.0.leader.store(0, Ordering::Relaxed);
    }

    pub(crate) fn line(&self) {
        self.0.lines.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn mark(&self) -> Mark {
        let leader = self.0.leader.load(Ordering::Relaxed);
        let time = if leader == 0 { 0 } else { time_below(leader, &processes()) };
        Mark { at: Instant::now(), lines: self.0.lines.load(Ordering::Relaxed), time }
    }
}

/// A process: its own id, its parent's, and the time that it and its children that ended have used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    id: i32,
    parent: i32,
    time: u64,
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| process(&fs::read_to_string(entry.path().join("stat")).ok()?)).collect()
}

/// proc(5), `/proc/pid/stat`: the name, in parentheses, may hold anything.
fn process(stat: &str) -> Option<Process> {
    let (id, rest) = stat.split_once(" (")?;
    let fields: Vec<&str> = rest.rsplit_once(')')?.1.split_whitespace().collect();
    // the third field is the first here
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let time = field(14)? + field(15)? + field(16)? + field(17)?;
    Some(Process { id: id.parse().ok()?, parent: fields.get(1)?.parse().ok()?, time })
}

fn time_below(leader: i32, processes: &[Process]) -> u64 {
    let mut children: HashMap<i32, Vec<&Process>> = HashMap::new();
    for process in processes {
        children.entry(process.parent).or_default().push(process);
    }
    let mut time = processes.iter().find(|p| p.id == leader).map_or(0, |p| p.time);
    let mut next = vec![leader];
    while let Some(parent) = next.pop() {
        for child in children.remove(&parent).into_iter().flatten() {
            time += child.time;
            next.push(child.id);
        }
    }
    time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_no_work() {
        let at = Instant::now();
        let start = Mark { at, lines: 5, time: 100 };
        let after = |seconds, lines, time| Mark { at: at + std::time::Duration::from_secs(seconds), lines, time }.is_beyond(&start);
        assert!(!after(600, 5, 100) && !after(600, 5, 220), "a little of the processor's time");
        assert!(!after(600, 5, 0), "another process");
        assert!(after(600, 6, 100) && after(600, 5, 2000) && after(0, 5, 101));
    }

    #[test]
    fn the_time_of_a_tree() {
        let dpkg = "48 (dpkg (1) x) S 6 6 6 0 -1 4194304 100 0 0 0 7 2 10 1 20 0 1 0 100 0 0 0";
        assert_eq!(process(dpkg), Some(Process { id: 48, parent: 6, time: 20 }));
        assert_eq!(process("48 (dpkg"), None);
        let p = |id, parent, time| Process { id, parent, time };
        let all = [p(1, 0, 1000), p(6, 1, 1), p(48, 6, 20), p(50, 48, 300), p(7, 1, 5)];
        assert_eq!(time_below(6, &all), 321);
        assert_eq!(time_below(9, &all), 0, "it is gone");
        // ids that were read at different moments can make a circle
        assert_eq!(time_below(6, &[p(6, 7, 1), p(7, 6, 2)]), 4);
    }
}

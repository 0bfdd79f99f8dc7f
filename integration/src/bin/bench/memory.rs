//! How much memory processes have, seen from the machine's side: looking from within would cost the time that is measured.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(50);

/// The most that was seen, KiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peak {
    /// Resident in one process, as the kernel kept count.
    pub largest: u64,
    /// In all together at a time, what they share counted once.
    pub together: u64,
}

/// Looks at the processes of a network (`net:[…]`), or at those of one name there, until it is over.
pub fn peak(network: &Path, name: Option<&str>, over: &AtomicBool) -> Peak {
    let mut peak = Peak::default();
    while !over.load(Ordering::Relaxed) {
        let processes = processes(network, name);
        let largest = processes.iter().filter_map(|process| kilobytes(process, "status", "VmHWM:")).max();
        peak.largest = peak.largest.max(largest.unwrap_or(0));
        let together = processes.iter().filter_map(|process| kilobytes(process, "smaps_rollup", "Pss:")).sum();
        peak.together = peak.together.max(together);
        std::thread::sleep(TICK);
    }
    peak
}

/// The network of a process, to be compared with others.
pub fn network(process: &Path) -> Option<PathBuf> {
    std::fs::read_link(process.join("ns/net")).ok()
}

fn processes(wanted: &Path, name: Option<&str>) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let named =
        |process: &PathBuf| name.is_none_or(|name| std::fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim_end() == name));
    let inside = |process: &PathBuf| network(process).is_some_and(|network| network == wanted);
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(named).filter(inside).collect()
}

fn kilobytes(process: &Path, file: &str, line: &str) -> Option<u64> {
    value(&std::fs::read_to_string(process.join(file)).ok()?, line)
}

fn value(text: &str, line: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(line))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_found_in_a_status() {
        assert_eq!(value("Name:\tsmartup\nVmPeak:\t  99 kB\nVmHWM:\t    4096 kB\nVmRSS:\t 10 kB\n", "VmHWM:"), Some(4096));
        assert_eq!(value("Name:\tkthreadd\n", "VmHWM:"), None);
    }
}

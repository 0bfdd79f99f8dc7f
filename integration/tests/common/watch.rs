//! Watching from beside while something happens.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use integration::Lab;

use super::answers;

/// Does something, and `look`s again and again until it is done, with a pause between.
fn beside<T>(pause: Duration, mut look: impl FnMut() -> Result<()> + Send, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        let watcher = s.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                look()?;
                std::thread::sleep(pause);
            }
            Ok(())
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        watcher.join().map_err(|_| anyhow!("the watcher panicked"))??;
        done
    })
}

/// Does something, and tells how long at most the API did not answer through the VIP meanwhile, from one answer to the next.
pub fn longest_silence<T>(lab: &Lab, work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let look = || {
        if answers(lab)? {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        Ok(())
    };
    let done = beside(Duration::from_millis(50), look, work)?;
    // it may have gone away for good
    Ok((done, longest.max(last.elapsed())))
}

/// Does something, and collects the arguments of every process that was seen meanwhile on any host: a lab's processes are the
/// machine's too.
pub fn arguments<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, BTreeSet<String>)> {
    let mut seen = BTreeSet::new();
    let look = || {
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            if name.to_string_lossy().bytes().all(|b| b.is_ascii_digit())
                && let Ok(arguments) = std::fs::read(std::path::Path::new("/proc").join(name).join("cmdline"))
            {
                seen.insert(String::from_utf8_lossy(&arguments).replace('\0', " "));
            }
        }
        Ok(())
    };
    let done = beside(Duration::from_millis(1), look, work)?;
    Ok((done, seen))
}

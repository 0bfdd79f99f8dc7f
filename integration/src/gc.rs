//! The end of a lab, also of one whose owner cannot see to it any more.
//!
//! The owner of a lab holds the lock in its folder. However it ends, the kernel releases the lock: whoever gets it, and
//! finds that the lab is not a kept one, removes the lab. That is the lab's own reaper, at once, or if that was killed as
//! well, whoever starts the next lab.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::cgroup::Hierarchies;
use crate::lock::Lock;
use crate::site::Site;
use crate::{disk, net, nspawn, place};

/// Held while folders of labs appear or are looked through.
pub(crate) fn lock_all(state: &Path) -> Result<Lock> {
    Lock::wait(&state.join(".lock"))
}

/// Removes the labs whose owner is gone, and gives their ids.
pub fn collect() -> Result<Vec<String>> {
    let state = place::state();
    if !state.exists() {
        return Ok(Vec::new());
    }
    let _all = lock_all(&state)?;
    let mut removed = Vec::new();
    for entry in fs::read_dir(&state).with_context(|| format!("cannot list {}", state.display()))? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let site = Site::at(&entry.path())?;
        match Lock::attempt_existing(&site.lock())? {
            Some(owner) if remove_unkept(&site, &owner)? => removed.push(site.id),
            Some(_) => {}
            // Somebody's, or nothing yet: an owner that ended before it had the lock left an empty folder.
            None => drop(fs::remove_dir(&site.folder)),
        }
    }
    Ok(removed)
}

/// Waits for the end of the owner of the lab in this folder, and removes the lab unless it is a kept one.
pub fn reap(folder: &Path) -> Result<()> {
    let site = Site::at(folder)?;
    if let Some(owner) = Lock::wait_existing(&site.lock())? {
        remove_unkept(&site, &owner)?;
    }
    Ok(())
}

fn remove_unkept(site: &Site, owner: &Lock) -> Result<bool> {
    // Without a plan its owner ended before there was anything to keep.
    if site.plan().is_ok_and(|plan| plan.kept) {
        return Ok(false);
    }
    remove(site, owner)?;
    Ok(true)
}

/// Removes a lab, by whoever holds its lock. Each part is tried, whatever became of the others.
pub(crate) fn remove(site: &Site, _owner: &Lock) -> Result<()> {
    let ended = [
        Hierarchies::of_machine().and_then(|groups| groups.remove_lab(&site.id)),
        net::remove(site),
        nspawn::remove(site),
        disk::unmount(&site.folder),
    ];
    ended.into_iter().collect::<Result<()>>()?;
    // Only now: what is left could still be found by this folder.
    disk::remove(&site.folder)
}

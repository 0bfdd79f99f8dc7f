//! Where the lab keeps its things, all of it outside of the repository.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, anyhow};

/// What is made once and shared: `$SMARTUP_LAB_CACHE`, else `smartup-lab` in `$XDG_CACHE_HOME` or `~/.cache`.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
    set("SMARTUP_LAB_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("smartup-lab")))
        .or_else(|| Some(set("HOME")?.join(".cache/smartup-lab")))
        .ok_or_else(|| anyhow!("no place for the lab's cache: set SMARTUP_LAB_CACHE"))
}

/// What belongs to the running labs: `$SMARTUP_LAB_STATE`, else `/var/tmp/smartup-lab`. It must not itself lie on an
/// overlay.
pub fn state() -> PathBuf {
    std::env::var_os("SMARTUP_LAB_STATE")
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from("/var/tmp/smartup-lab"), PathBuf::from)
}

//! The programs under test, found beside the one that runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow, ensure};

/// Cargo's folder for the profile we were built with.
fn folder() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    // Tests are one deeper, in `deps`.
    let folder = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    folder.map(Path::to_owned).ok_or_else(|| anyhow!("{} is in no folder", own.display()))
}

/// The lab's own program, which keeps hosts running.
pub(crate) fn lab() -> Result<PathBuf> {
    let lab = folder()?.join("lab");
    ensure!(lab.exists(), "there is no {}; hint: cargo build -p integration", lab.display());
    Ok(lab)
}

/// What goes to a host's `/usr/local/bin` as k3s: `$SMARTUP_LAB_K3S`, a file or a folder with several, else the lab's
/// own.
pub(crate) fn k3s() -> Result<Vec<(String, PathBuf)>> {
    let Some(given) = std::env::var_os("SMARTUP_LAB_K3S").filter(|value| !value.is_empty()) else {
        return Ok(vec![("k3s".to_owned(), built("k3s", "lab-k3s")?)]);
    };
    let given = fs::canonicalize(&given).with_context(|| format!("SMARTUP_LAB_K3S={}", given.display()))?;
    if given.is_file() {
        return Ok(vec![("k3s".to_owned(), given)]);
    }
    let mut programs = Vec::new();
    for entry in fs::read_dir(&given).with_context(|| format!("cannot list {}", given.display()))? {
        let entry = entry?;
        if entry.path().is_file() {
            programs.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
    }
    ensure!(programs.iter().any(|(name, _)| name == "k3s"), "there is no k3s in {}", given.display());
    Ok(programs)
}

/// What goes there as smartup: `$SMARTUP_LAB_BIN`, else what cargo built.
pub(crate) fn smartup() -> Result<Vec<(String, PathBuf)>> {
    let given = std::env::var_os("SMARTUP_LAB_BIN").filter(|value| !value.is_empty());
    let program = match given {
        Some(given) => fs::canonicalize(&given).with_context(|| format!("SMARTUP_LAB_BIN={}", given.display()))?,
        None => built("smartup", "smartup")?,
    };
    Ok(vec![("smartup".to_owned(), program)])
}

/// A program that cargo built, and that is not older than its sources.
fn built(name: &str, package: &str) -> Result<PathBuf> {
    let program = folder()?.join(name);
    let hint = format!("hint: cargo build -p {package}");
    let made = fs::metadata(&program).and_then(|meta| meta.modified());
    let made = made.map_err(|_| anyhow!("there is no {}; {hint}", program.display()))?;
    // Cargo writes beside the program which files it came from.
    let sources = fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    if let Some(newer) = newer(&sources, made) {
        return Err(anyhow!("{} is older than {newer}; {hint}", program.display()));
    }
    Ok(program)
}

/// The first of the listed sources that changed after `made`.
fn newer(dep_info: &str, made: SystemTime) -> Option<&str> {
    let (_, sources) = dep_info.split_once(": ")?;
    sources.split_whitespace().find(|source| fs::metadata(source).and_then(|meta| meta.modified()).is_ok_and(|changed| changed > made))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_source_that_changed_later_is_named() {
        let source = tempfile::NamedTempFile::new().unwrap();
        let changed = source.as_file().metadata().unwrap().modified().unwrap();
        let info = format!("/target/program: /no/such/file {}\n", source.path().display());
        assert_eq!(newer(&info, changed - Duration::from_secs(1)), source.path().to_str());
        assert_eq!(newer(&info, changed), None);
    }
}

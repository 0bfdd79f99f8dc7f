//! Which release of k3s this program says it is. Another one is a copy of it with a line at its end:
//! `cp k3s other; printf '\nlab-k3s-release=v1.20.3+k3s1\n' >> other`. It says so to `--version`, and its nodes and its API
//! report that version: as k3s does, it unpacks programs of its own, which are the lab's with the other version in them.

use crate::process::{kubernetes, run};
use anyhow::{Context as _, Result, ensure};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What the lab's Kubernetes says of itself (`integration/recipes/kubernetes.sh`).
const OWN: &str = "v1.20.2+k3s1";
const MARK: &str = "\nlab-k3s-release=";
/// Where k3s unpacks its programs.
const UNPACKED: &str = "/var/lib/rancher/k3s/data";

/// The release.
pub fn name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| said(Path::new("/proc/self/exe")).unwrap_or_default().unwrap_or_else(|| OWN.to_owned()))
}

/// What stands at the end of a program.
fn said(program: &Path) -> std::io::Result<Option<String>> {
    let mut file = File::open(program)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(64)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let end = String::from_utf8_lossy(&end);
    Ok(end.rsplit_once(MARK).map(|(_, release)| release.trim().to_owned()))
}

/// One of Kubernetes' programs, in this release.
///
/// # Errors
/// It cannot be unpacked.
pub async fn program(name: &str) -> Result<PathBuf> {
    let release = self::name();
    // only these two are asked for their version
    if release == OWN || !["kubelet", "kube-apiserver"].contains(&name) {
        return Ok(kubernetes(name));
    }
    // it takes the place of the other one in the middle of a program
    ensure!(release.len() == OWN.len(), "a release of the lab's must be as long as {OWN}");
    let folder = Path::new(UNPACKED).join(release).join("bin");
    let program = folder.join(name);
    if !program.exists() {
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let part = folder.join(format!("{name}.part"));
        let script = "LC_ALL=C sed \"s/$1/$2/g\" \"$3\" > \"$4\" && chmod 755 \"$4\" && mv \"$4\" \"$5\"";
        let (from, to) = (kubernetes(name).display().to_string(), part.display().to_string());
        run("sh", &["-c", script, "sh", &OWN.replace('.', "\\."), release, &from, &to, &program.display().to_string()]).await?;
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_at_the_end_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [b"\x7fELF".repeat(50), b"\nlab-k3s-release=v1.21.0+k3s1\n".to_vec()].concat()).unwrap();
        assert_eq!(said(file.path()).unwrap().as_deref(), Some("v1.21.0+k3s1"));
        std::fs::write(file.path(), b"\x7fELF").unwrap();
        assert_eq!(said(file.path()).unwrap(), None);
    }
}

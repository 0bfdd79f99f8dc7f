//! Files on their way to a host: streamed, verified there by their hash, put in place in one step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use node::{Context as _, Error, Host, Result};
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::session::harmless;
use crate::ssh::{Connection, Exit};

/// Where they go.
const FOLDER: &str = Host::PROGRAMS;

/// What the upload ends with when the bytes that arrived are not those that were sent.
const DAMAGED: u32 = 90;

/// A file of ours, and what tells it apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
}

impl LocalFile {
    /// Reads it through once.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let what = || format!("cannot read {}", path.display());
        let size = std::fs::metadata(path).context(what())?.len();
        Ok(Self { path: path.to_owned(), sha256: node::hash(path).context(what())?, size })
    }

    /// Where it goes on a host: its name there says what is in it, so it is sent once.
    pub fn remote_path(&self, name: &str) -> String {
        format!("{FOLDER}/{name}-{}", self.sha256)
    }
}

/// smartup itself, for each kind of processor that is known of, by the name that `uname -m` gives it.
#[derive(Debug, Clone)]
pub struct Programs {
    own: String,
    by_arch: BTreeMap<String, LocalFile>,
}

impl Programs {
    /// The running program, those named `smartup-ARCH` beside it, and those that the user gives, which count more.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn find(given: &[(String, PathBuf)]) -> Result<Self> {
        let exe = std::env::current_exe().context("cannot tell where smartup itself is")?;
        let own = std::env::consts::ARCH.to_owned();
        let mut by_arch = BTreeMap::from([(own.clone(), LocalFile::read(&exe)?)]);
        for arch in ["x86_64", "aarch64"] {
            let beside = exe.with_file_name(format!("smartup-{arch}"));
            if arch != own && beside.is_file() {
                by_arch.insert(arch.to_owned(), LocalFile::read(&beside)?);
            }
        }
        for (arch, path) in given {
            by_arch.insert(arch.clone(), LocalFile::read(path)?);
        }
        Ok(Self { own, by_arch })
    }

    /// The one for hosts like this one, which most are.
    pub fn first_guess(&self) -> Option<&LocalFile> {
        self.by_arch.get(&self.own)
    }

    /// The one for a processor.
    ///
    /// # Errors
    /// When there is none.
    pub fn for_arch(&self, arch: &str) -> Result<&LocalFile> {
        self.by_arch.get(arch).ok_or_else(|| {
            Error::invalid(format!("the host's processor is {arch}, and this smartup is for {}", self.own))
                .hint(format!("put that binary beside this one as smartup-{arch}, or give it: --binary {arch}=PATH"))
        })
    }
}

/// A shell's command line for a script without single quotes, as root.
pub(crate) fn as_root(connection: &Connection, script: &str) -> String {
    let sudo = if connection.user() == "root" { "" } else { "sudo -n " };
    format!("{sudo}sh -c '{script}'")
}

/// Sends a file, mode 0755. What was sent before under `name` with another content is removed. `progress` is told each further percent.
///
/// # Errors
/// When it cannot be read, sent or written, or arrives damaged.
pub(crate) async fn send(connection: &Connection, file: &LocalFile, name: &str, progress: impl Fn(u64)) -> Result<()> {
    let what = || format!("cannot send {}", file.path.display());
    let target = file.remote_path(name);
    // what arrived in part is removed: its sum is not the right one. Where nobody was there to do so (no power, or a connection
    // whose end was not heard), the next upload does; one that is under way is never silent for more than a minute
    let script = format!(
        "set -e; umask 077; mkdir -p {FOLDER}; \
         find {FOLDER} -name \".part.*\" -mmin +1 -exec rm -f {{}} +; \
         t=$(mktemp {FOLDER}/.part.XXXXXX); trap \"rm -f $t\" EXIT; cat > $t; \
         s=$(sha256sum < $t); test \"${{s%% *}}\" = {} || exit {DAMAGED}; chmod 755 $t; sync $t; mv $t {target}; \
         for f in {FOLDER}/{name}-*; do test \"$f\" = {target} || rm -f \"$f\"; done",
        file.sha256
    );
    let mut process = connection.exec(&as_root(connection, &script)).await?;
    let copied = copy(file, &mut process, progress).await;
    let exit = process.wait().await;
    match exit {
        Exit::Code(0) => copied.context(what()),
        Exit::Code(DAMAGED) => Err(Error::failed(format!("{} arrived damaged", file.path.display())).hint("run again")),
        Exit::Lost => {
            Err(Error::failed(format!("{}: the connection was lost", what())).hint("run again: it is sent anew, from its beginning"))
        }
        Exit::Code(_) | Exit::Signal(_) => Err(Error::failed(format!("{}: {}", what(), harmless(process.stderr().trim())))
            .hint(format!("is there room on the host, and may {FOLDER} be written?"))),
    }
}

async fn copy(file: &LocalFile, process: &mut crate::ssh::Process, progress: impl Fn(u64)) -> std::io::Result<()> {
    let Some(stdin) = process.stdin.as_mut() else { return Ok(()) };
    let mut source = tokio::fs::File::open(&file.path).await?;
    let (mut buffer, mut sent, mut said) = (vec![0; 1 << 16], 0_u64, None);
    loop {
        let n = source.read(&mut buffer).await?;
        if n == 0 {
            return stdin.shutdown().await;
        }
        stdin.write_all(&buffer[..n]).await?;
        sent = sent.saturating_add(u64::try_from(n).unwrap_or(0));
        let percent = sent.saturating_mul(100) / file.size.max(1);
        if said.replace(percent) != Some(percent) {
            progress(percent);
        }
    }
}

/// Takes away what [`send`] put there, and the folders if nothing else is in them.
pub(crate) async fn remove(connection: &Connection, file: &LocalFile, name: &str) -> Result<()> {
    let script = format!("rm -f {}; rmdir {FOLDER} /var/lib/smartup 2> /dev/null; true", file.remote_path(name));
    let mut process = connection.exec(&as_root(connection, &script)).await?;
    match process.wait().await {
        Exit::Code(0) => Ok(()),
        _ => Err(Error::failed(format!("cannot remove {}: {}", file.remote_path(name), harmless(process.stderr().trim())))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, "abc").unwrap();
        let file = LocalFile::read(&path).unwrap();
        assert_eq!(file.size, 3);
        // FIPS 180-2, appendix B.1
        assert_eq!(
            file.remote_path("smartup"),
            "/var/lib/smartup/bin/smartup-ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(LocalFile::read(&folder.path().join("none")).is_err());
    }

    #[test]
    fn another_processor_needs_another_program() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::write(&path, "abc").unwrap();
        let programs = Programs::find(&[("riscv64".into(), path)]).unwrap();
        assert_eq!(programs.for_arch("riscv64").unwrap().size, 3);
        assert!(programs.first_guess().is_some());
        let e = programs.for_arch("s390x").unwrap_err();
        assert!(e.what.contains("s390x") && e.hint.unwrap().contains("--binary s390x=PATH"));
    }
}

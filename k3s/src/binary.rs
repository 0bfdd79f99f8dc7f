use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use node::{Context as _, Error, Host, Result, State, Step, has_content, install, run, same_content};
use sha2::{Digest as _, Sha256};

use crate::settings::paths;

/// Where k3s comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It is on the host already.
    Host,
    /// A file on the host.
    File(PathBuf),
    /// A file on the host that was sent there for this, and is removed when it has been installed.
    Sent {
        /// Where it is; it need not be there when the right k3s is installed, nor for a dry run.
        path: PathBuf,
        /// Its SHA-256 in hexadecimal.
        sha256: String,
        /// Its size in bytes.
        size: u64,
    },
    /// A release, from a mirror laid out like k3s's own releases: `MIRROR/VERSION/k3s` beside `sha256sum-ARCH.txt`.
    Release {
        /// As in `v1.31.2+k3s1`.
        version: String,
        /// Without a slash at its end.
        mirror: String,
    },
}

impl Source {
    /// k3s's own releases.
    pub const MIRROR: &'static str = "https://github.com/k3s-io/k3s/releases/download";

    /// Where the binary is, or will be.
    ///
    /// # Errors
    /// When it should be on the host and is not.
    pub fn path(&self) -> Result<PathBuf> {
        match self {
            Self::Host => which::which("k3s")
                .ok()
                .or_else(|| ["/usr/local/bin/k3s", "/usr/bin/k3s"].into_iter().map(PathBuf::from).find(|p| p.exists()))
                .ok_or_else(|| {
                    Error::invalid("k3s is not on this host")
                        .hint("give it with --k3s PATH, have it downloaded with --k3s-version VERSION, or install its package")
                }),
            Self::File(_) | Self::Sent { .. } | Self::Release { .. } => Ok(paths::BINARY.into()),
        }
    }
}

/// `k3s --version`'s second to last word of the first line: `v1.31.2+k3s1`. None when it cannot be run.
pub async fn version_of(binary: &Path) -> Option<String> {
    let out = run(binary.to_str()?, &["--version"], Duration::from_secs(20)).await.ok()?;
    out.stdout
        .lines()
        .next()?
        .split_whitespace()
        .find(|w| w.starts_with('v') && w[1..].starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_owned)
}

/// The binary at its place.
pub struct BinaryStep {
    /// Where it comes from.
    pub source: Source,
    /// The unit that runs it.
    pub unit: String,
}

#[async_trait(?Send)]
impl Step for BinaryStep {
    fn name(&self) -> String {
        "k3s binary".into()
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        let target = Path::new(paths::BINARY);
        Ok(match &self.source {
            Source::Host => {
                self.source.path()?;
                State::Right
            }
            Source::File(file) if same_content(file, target)? => State::Right,
            Source::File(file) => State::differs(format!("install {} as {}", file.display(), target.display())),
            Source::Sent { sha256, size, .. } if has_content(target, sha256, *size)? => State::Right,
            Source::Sent { sha256, .. } => State::differs(format!("install k3s with SHA-256 {sha256} as {}", target.display())),
            Source::Release { version, .. } if target.exists() && version_of(target).await.as_ref() == Some(version) => State::Right,
            Source::Release { version, mirror } => State::differs(format!("download k3s {version} from {mirror}, and install it")),
        })
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let target = Path::new(paths::BINARY);
        match &self.source {
            Source::Host => Ok(()),
            Source::File(file) => install(host, file, target, 0o755, &self.unit).await,
            Source::Sent { path, .. } => {
                install(host, path, target, 0o755, &self.unit).await?;
                node::remove_file(path)
            }
            Source::Release { version, mirror } => {
                let file = Path::new(Host::STATE).join(Host::DOWNLOAD);
                download(host, version, mirror, &file).await?;
                install(host, &file, target, 0o755, &self.unit).await?;
                node::remove_file(&file)
            }
        }
    }
}

/// The names of a release's files for this machine, as k3s's releases have them: the binary, its checksum file, and the
/// name that stands in that file.
fn release_files(arch: &str) -> Option<(&'static str, &'static str)> {
    match arch {
        "x86_64" => Some(("k3s", "sha256sum-amd64.txt")),
        "aarch64" => Some(("k3s-arm64", "sha256sum-arm64.txt")),
        "arm" => Some(("k3s-armhf", "sha256sum-arm.txt")),
        "s390x" => Some(("k3s-s390x", "sha256sum-s390x.txt")),
        _ => None,
    }
}

/// The checksum of a file in a list as `sha256sum` writes it.
fn checksum_of(list: &str, name: &str) -> Option<String> {
    list.lines().find_map(|l| {
        let (sum, file) = l.split_once(char::is_whitespace)?;
        (file.trim().trim_start_matches('*') == name && sum.len() == 64).then(|| sum.to_ascii_lowercase())
    })
}

/// Downloads a release to `target`, where only root may read, and compares its checksum.
pub(crate) async fn download(host: &Host, version: &str, mirror: &str, target: &Path) -> Result<()> {
    let (name, list_name) = release_files(std::env::consts::ARCH)
        .ok_or_else(|| Error::failed(format!("k3s has no release for {}", std::env::consts::ARCH)).hint("give a binary with --k3s PATH"))?;
    let base = format!("{}/{}", mirror.trim_end_matches('/'), version.replace('+', "%2B"));
    let client = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(Duration::from_secs(30))
        .build()
        .context("cannot make an HTTPS client")?;
    let get = |file: &str| {
        let url = format!("{base}/{file}");
        let request = client.get(&url);
        async move {
            let fail = |e: reqwest::Error| {
                Error::failed(format!("cannot download {url}")).because(e).hint("is the version right? is there a mirror (--k3s-mirror)?")
            };
            request.send().await.and_then(reqwest::Response::error_for_status).map_err(fail)
        }
    };
    let list = get(list_name).await?.text().await.context(format!("cannot download {list_name}"))?;
    let wanted = checksum_of(&list, name).ok_or_else(|| Error::failed(format!("{list_name} of {version} does not name {name}")))?;
    let mut body = get(name).await?;
    let total = body.content_length();
    let what = || format!("cannot write {}", target.display());
    let mut file = File::create(target).context(what())?;
    let (mut sum, mut got) = (Sha256::new(), 0_u64);
    while let Some(chunk) = body.chunk().await.context(format!("the download of {name} broke off"))? {
        sum.update(&chunk);
        file.write_all(&chunk).context(what())?;
        let before = got >> 22;
        got += chunk.len() as u64;
        if got >> 22 != before {
            let of = total.map_or_else(String::new, |t| format!(" of {} MiB", t >> 20));
            host.waiting("k3s binary", format!("downloading k3s {version}: {} MiB{of}", got >> 20));
        }
    }
    let sum = node::hex(&sum.finalize());
    if sum != wanted {
        return Err(Error::failed(format!("the download of k3s {version} is damaged: its SHA-256 is {sum}, {list_name} says {wanted}"))
            .hint("run again; if it stays so, do not trust the mirror"));
    }
    let mut magic = [0_u8; 4];
    File::open(target).and_then(|mut f| f.read_exact(&mut magic)).context("cannot read the download")?;
    if magic != *b"\x7fELF" {
        return Err(Error::failed(format!("what {base}/{name} gives is not a program")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_checksum_of_the_very_file() {
        let sum = "a".repeat(64);
        let list = format!("{}  k3s-airgap-images-amd64.tar\n{sum}  k3s\n", "b".repeat(64));
        assert_eq!(checksum_of(&list, "k3s"), Some(sum));
        assert_eq!(checksum_of(&list, "k3s-arm64"), None);
        assert_eq!(checksum_of("short  k3s\n", "k3s"), None);
    }
}

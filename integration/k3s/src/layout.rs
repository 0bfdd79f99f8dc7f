//! Where k3s keeps its files.

use std::path::{Path, PathBuf};

/// The data folder (`/var/lib/rancher/k3s` unless told otherwise).
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// A data folder.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
    /// `server/…`
    pub fn server(&self, path: &str) -> PathBuf {
        self.root.join("server").join(path)
    }
    /// `server/tls/…`
    pub fn tls(&self, path: &str) -> PathBuf {
        self.root.join("server/tls").join(path)
    }
    /// `server/cred/…`
    pub fn cred(&self, path: &str) -> PathBuf {
        self.root.join("server/cred").join(path)
    }
    /// `agent/…`
    pub fn agent(&self, path: &str) -> PathBuf {
        self.root.join("agent").join(path)
    }
    /// `server/db/…`
    pub fn db(&self, path: &str) -> PathBuf {
        self.root.join("server/db").join(path)
    }
    /// Whether etcd has been up here before.
    pub fn etcd_initialised(&self) -> bool {
        self.db("etcd/member/wal").is_dir()
    }
}

/// Writes a file with exactly this mode, by way of a rename, making its folder (0700) if needed.
///
/// # Errors
/// The folder or the file cannot be written.
pub fn write(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
    let failed = |e: std::io::Error| anyhow::anyhow!("failed to write to {}: {e}", path.display());
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    // A left-over would keep its mode.
    if temporary.exists() {
        std::fs::remove_file(&temporary).map_err(failed)?;
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}

/// Makes a folder and its parents with mode 0700.
///
/// # Errors
/// It cannot be made.
pub fn folder(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| anyhow::anyhow!("failed to mkdir {}: {e}", path.display()))
}

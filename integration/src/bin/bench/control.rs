//! The host from which others are set up: the probe, with a key, `known_hosts` and a home of its own.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use integration::Lab;

use crate::cluster::{Crew, vip};
use crate::memory::{self, Peak};

/// A home on the probe. It ends with this value.
#[derive(Debug)]
pub struct Control<'a> {
    lab: &'a Lab,
    home: tempfile::TempDir,
}

impl<'a> Control<'a> {
    /// With the keys of all hosts.
    pub fn new(lab: &'a Lab) -> Result<Self> {
        let control = Self { lab, home: tempfile::tempdir()? };
        let addresses = lab.hosts().iter().map(|host| host.ipv4().to_string());
        let scan = ["ssh-keyscan", "-t", "ed25519"].map(str::to_owned).into_iter().chain(addresses);
        let keys = lab.probe().exec(scan)?.checked()?;
        ensure!(keys.lines().count() == lab.hosts().len(), "ssh-keyscan: not every host has shown its key");
        control.write(".ssh/known_hosts", &keys)?;
        Ok(control)
    }

    /// The home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The key that opens every host as root.
    pub fn key(&self) -> PathBuf {
        self.lab.ssh_key()
    }

    /// Writes a file below the home.
    pub fn write(&self, path: &str, content: &str) -> Result<PathBuf> {
        let path = self.home().join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(self.home()))?;
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Writes the `cluster.yaml` of these hosts; `more` are further lines at its top.
    pub fn cluster_file(&self, crew: &Crew<'_>, more: &str) -> Result<PathBuf> {
        let mut text = format!("vip: {}\nssh: {{user: root, identityFiles: [{}]}}\n{more}hosts:\n", vip(), self.key().display());
        for (host, role) in crew.roles() {
            writeln!(text, "  - {{host: {}, role: {role}}}", host.ipv4())?;
        }
        self.write("cluster.yaml", &text)
    }

    /// Runs a command, which must work, and tells how much memory it took.
    pub fn run<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Peak> {
        let mut command = self.lab.probe().command(argv);
        command.env("HOME", self.home()).env_remove("SSH_AUTH_SOCK").current_dir(self.home()).stdin(Stdio::null());
        let network = PathBuf::from(self.lab.probe().exec(["readlink", "/proc/self/ns/net"])?.checked()?.trim());
        let over = AtomicBool::new(false);
        let (output, peak) = std::thread::scope(|scope| {
            let peak = scope.spawn(|| memory::peak(&network, None, &over));
            let output = command.output();
            over.store(true, Ordering::Relaxed);
            (output, peak.join().unwrap_or_default())
        });
        let output = output.with_context(|| format!("cannot run {command:?}"))?;
        let said = |stream: &[u8]| String::from_utf8_lossy(stream).into_owned();
        ensure!(output.status.success(), "{}\n{}{}", output.status, said(&output.stdout), said(&output.stderr));
        Ok(peak)
    }
}

//! What the lab's hosts are made of: trees that scripts make once, cached by what made them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::lock::Lock;
use crate::place;
use crate::random::in_hex;

/// A script that makes a tree in the folder that is its first argument.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe {
    name: &'static str,
    script: &'static str,
    arguments: &'static [&'static str],
}

/// The root file system with keepalived and firewalld.
pub(crate) const FULL: Recipe = Recipe { name: "full", script: include_str!("../recipes/base.sh"), arguments: &["full"] };

/// The root file system without them, but with a repository of their packages.
pub(crate) const PLAIN: Recipe = Recipe { name: "plain", script: include_str!("../recipes/base.sh"), arguments: &["plain"] };

/// The first of them with the package managers of other distributions.
pub(crate) const MANAGERS: Recipe = Recipe { name: "managers", script: include_str!("../recipes/base.sh"), arguments: &["managers"] };

/// etcd, containerd, runc, the CNI plugins and an image.
pub(crate) const RUNTIME: Recipe = Recipe { name: "runtime", script: include_str!("../recipes/runtime.sh"), arguments: &[] };

/// Kubernetes' own programs.
pub(crate) const KUBERNETES: Recipe = Recipe { name: "kubernetes", script: include_str!("../recipes/kubernetes.sh"), arguments: &[] };

/// All that can be cached.
pub(crate) const ALL: [Recipe; 5] = [FULL, PLAIN, MANAGERS, RUNTIME, KUBERNETES];

impl Recipe {
    /// The tree's folder in the cache; it changes with the script and its arguments.
    fn folder(&self) -> String {
        let mut hash = Sha256::new();
        for part in std::iter::once(&self.script).chain(self.arguments) {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        let hash = in_hex(&hash.finalize());
        format!("{}-{}", self.name, &hash[..16])
    }

    /// The tree, made now if nobody made it yet. Whoever else makes it at this moment is waited for.
    pub(crate) fn tree(&self) -> Result<PathBuf> {
        let cache = place::cache()?;
        let tree = cache.join(self.folder());
        if tree.exists() {
            return Ok(tree);
        }
        fs::create_dir_all(&cache).with_context(|| format!("cannot make the cache {}", cache.display()))?;
        let _lock = Lock::wait(&cache.join(format!("{}.lock", self.name)))?;
        if !tree.exists() {
            self.make(&cache, &tree).with_context(|| format!("cannot make the lab's {} tree", self.name))?;
        }
        Ok(tree)
    }

    fn make(&self, cache: &Path, tree: &Path) -> Result<()> {
        eprintln!("lab: making the {} tree (once; it is kept in {})", self.name, cache.display());
        let work = tempfile::Builder::new().prefix("making-").tempdir_in(cache)?;
        let made = work.path().join("tree");
        fs::create_dir(&made)?;
        let script = work.path().join("recipe.sh");
        fs::write(&script, self.script)?;
        let log_path = work.path().join("log");
        let log = fs::File::create(&log_path)?;
        let status = Command::new("bash")
            .arg(&script)
            .arg(&made)
            .args(self.arguments)
            .current_dir(work.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .context("cannot run bash")?;
        ensure!(
            status.success(),
            "its script ended with {status}:\n{}\nhint: integration/setup installs what the scripts need",
            tail(&fs::read_to_string(&log_path).unwrap_or_default(), 20)
        );
        // The layers become a host's `/`, which sshd wants to be nobody else's to write.
        rustix::fs::chmod(&made, rustix::fs::Mode::from_raw_mode(0o755))?;
        fs::rename(&made, tree).with_context(|| format!("cannot put {} in place", tree.display()))
    }
}

/// The last `count` lines.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_depends_on_script_and_arguments() {
        let recipe = Recipe { name: "r", script: "true", arguments: &[] };
        let with = Recipe { arguments: &["x"], ..recipe };
        let other = Recipe { script: "false", ..recipe };
        assert_eq!(recipe.folder(), Recipe { name: "r", ..recipe }.folder());
        assert_ne!(recipe.folder(), with.folder());
        assert_ne!(recipe.folder(), other.folder());
    }

    #[test]
    fn tail_takes_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 5), "a");
    }
}

//! Live patches of the running kernel: `readykernel` (Virtuozzo).
//!
//! RHEL's are packages like any other, `kpatch-patch-…`, whose scripts load them: [`Manager`](crate::Manager) finds and installs them.

use std::collections::BTreeSet;
use std::fs;

use node::{Error, Result};
use updates::PatchName;

use crate::OnHost;
use crate::manager::{done, failure};

/// Installs Virtuozzo's live patches, X-Y-rZ, each of which holds all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadyKernel;

impl ReadyKernel {
    /// If the host has it.
    pub fn detect(host: &OnHost) -> Option<Self> {
        let has = |folder: &str| fs::symlink_metadata(host.file(folder).join("readykernel")).is_ok();
        ["/usr/bin", "/usr/sbin"].into_iter().any(has).then_some(Self)
    }

    /// The patches for the running kernel that there are and that are not loaded.
    ///
    /// # Errors
    /// When `readykernel` or its server fails.
    pub async fn available(self, host: &OnHost) -> Result<BTreeSet<PatchName>> {
        let out = host.run(&["readykernel", "check-update"]).await?;
        // 100: there is one, as with yum check-update
        if !matches!(out.code, Some(0 | 100)) {
            return Err(failure("ask for live patches", &out));
        }
        let loaded = loaded(host).await?;
        let newest = loaded.last().copied();
        Ok(patches(&out.stdout).into_iter().filter(|patch| newest.is_none_or(|newest| *patch > newest)).collect())
    }

    /// Installs and loads this patch; `readykernel` takes the newest and no other.
    ///
    /// # Errors
    /// Kind Refused, with nothing changed, when there is a newer one by now, or it cannot be asked; Failed when it is not loaded then.
    pub async fn install(self, host: &OnHost, patch: PatchName) -> Result<()> {
        let available = self.available(host).await.map_err(|e| Error::refused("it is not known what would be installed").because(e))?;
        if available.last() != Some(&patch) {
            let newest = available.last().map_or("none".to_owned(), ToString::to_string);
            return Err(Error::refused(format!("readykernel would not install the patch {patch} by now, but {newest}")));
        }
        done("install a live patch", &host.run(&["readykernel", "update"]).await?)?;
        if loaded(host).await?.contains(&patch) {
            return Ok(());
        }
        Err(Error::failed(format!("readykernel reports success, but the patch {patch} is not loaded")))
    }
}

/// `ReadyKernel`'s patches that are loaded: their modules' names are `kpatch_cumulative_X_Y_rZ`.
async fn loaded(host: &OnHost) -> Result<BTreeSet<PatchName>> {
    let folder = host.file("/sys/kernel/livepatch");
    let names = fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let list = host.run(&["kpatch", "list"]).await?;
    let (loaded, _) = list.stdout.split_once("Installed patch modules").unwrap_or((&list.stdout, ""));
    Ok(names.flat_map(|name| patches(&name)).chain(patches(loaded)).collect())
}

/// Every patch that is named in a text, as X-Y-rZ or in the name of its module.
fn patches(text: &str) -> BTreeSet<PatchName> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
    let parse = |word: &str| {
        let word = word.replace('_', "-");
        let parts: Vec<&str> = word.split('-').collect();
        // of kpatch-cumulative-123-4-r5, or readykernel-patch-123-4-r5.vl7: the three that belong together
        parts.windows(3).find_map(|three| three.join("-").split('.').next()?.parse().ok())
    };
    words.filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::on_host::tests::scripted;

    #[test]
    fn patches_in_a_text() {
        let found = |text: &str| patches(text).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        insta::assert_snapshot!(found("Available: 123-4-r5\n"), @"123-4-r5");
        insta::assert_snapshot!(found("Loaded patch modules:\nkpatch_cumulative_14_1_r1 [enabled]\n"), @"14-1-r1");
        insta::assert_snapshot!(found("readykernel-patch-30.15-28.1-1.vl7.x86_64 3.10.0-1160.21.1.vz7.174.10"), @"");
        insta::assert_snapshot!(found(""), @"");
    }

    #[tokio::test]
    async fn exactly_the_patch_that_was_decided() {
        let root = tempfile::tempdir().unwrap();
        let scripts = [
            (
                "kpatch",
                "echo Loaded patch modules:; cat loaded 2> /dev/null; printf 'Installed patch modules:\\nkpatch_cumulative_12_0_r1\\n'",
            ),
            (
                "readykernel",
                "case $1 in check-update) cat new; exit 100;; update) echo kpatch_cumulative_123_4_r5 '[enabled]' > loaded;; esac",
            ),
        ];
        let host = scripted(root.path(), &scripts);
        fs::write(root.path().join("new"), "123-4-r5 is available\n").unwrap();
        let ready = ReadyKernel;
        let patch: PatchName = "123-4-r5".parse().unwrap();
        assert_eq!(ready.available(&host).await.unwrap(), [patch].into());
        let other = ready.install(&host, "123-4-r4".parse().unwrap()).await.unwrap_err();
        assert_eq!(
            (other.kind, other.what.as_str()),
            (node::Kind::Refused, "readykernel would not install the patch 123-4-r4 by now, but 123-4-r5")
        );
        ready.install(&host, patch).await.unwrap();
        assert!(ready.available(&host).await.unwrap().is_empty());
    }
}

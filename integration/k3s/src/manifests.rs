//! `server/manifests`: applied at start and whenever a file changes; deleting one deletes
//! nothing in the cluster.

use crate::layout::Layout;
use crate::process::{kubernetes, run};
use crate::{error, info};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// How often k3s looks.
const PERIOD: Duration = Duration::from_secs(15);
/// After a failure, for instance while a CRD is not established.
const RETRY: Duration = Duration::from_secs(3);

type Seen = BTreeMap<PathBuf, (SystemTime, u64)>;

/// Keeps the cluster in step with the folder, for ever; files named as what `--disable` names
/// are left out.
pub async fn keep(layout: Layout, disabled: Vec<String>) {
    let folder = layout.server("manifests");
    if let Err(e) = crate::layout::folder(&folder) {
        error!("{e:#}");
    }
    let kubeconfig = layout.cred("admin.kubeconfig").display().to_string();
    let kubectl = kubernetes("kubectl");
    let mut applied = Seen::new();
    loop {
        let found = scan(&folder, &disabled);
        let mut failed = false;
        for (path, stamp) in &found {
            if applied.get(path) == Some(stamp) {
                continue;
            }
            let shown = path.display().to_string();
            match run(&kubectl, &["--kubeconfig", &kubeconfig, "apply", "--filename", &shown]).await {
                Ok(_) => {
                    info!("Applied manifest {shown}");
                    applied.insert(path.clone(), *stamp);
                }
                Err(e) => {
                    error!("Failed to process config: failed to process {shown}: {e:#}");
                    failed = true;
                }
            }
        }
        applied.retain(|path, _| found.contains_key(path));
        tokio::time::sleep(if failed { RETRY } else { PERIOD }).await;
    }
}

fn scan(folder: &std::path::Path, disabled: &[String]) -> Seen {
    let mut found = Seen::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, Ok(meta)) = (entry.path(), std::fs::metadata(entry.path())) else { continue };
            if meta.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
                && !skipped(&path)
                && !path.file_stem().is_some_and(|stem| disabled.iter().any(|d| stem == d.as_str()))
                && let Ok(time) = meta.modified()
            {
                found.insert(path, (time, meta.len()));
            }
        }
    }
    found
}

/// `x.yaml.skip` beside `x.yaml` keeps k3s from applying it.
fn skipped(path: &std::path::Path) -> bool {
    let mut name = path.as_os_str().to_owned();
    name.push(".skip");
    PathBuf::from(name).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_applied() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for f in ["a.yaml", "b.yml", "c.json", "d.txt", "e.yaml", "e.yaml.skip", "sub/f.yaml", "g.yaml"] {
            std::fs::write(dir.path().join(f), "x").unwrap();
        }
        let names: Vec<_> =
            scan(dir.path(), &["g".to_owned()]).into_keys().map(|p| p.strip_prefix(dir.path()).unwrap().to_owned()).collect();
        assert_eq!(names, ["a.yaml", "b.yml", "c.json", "sub/f.yaml"].map(PathBuf::from));
    }
}

use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use cluster::Runtime;
use k3s::Source;
use node::{Context as _, Error, Host, Result, State, Step, Undo, Undone, replace, run};
use serde::{Deserialize, Serialize};

use super::containerd::{self, Found};
use super::{Image, Reference};

/// Whose entries in the journal [`undo`] takes back.
pub const BY: &str = "operator image";

/// The folder whose archives k3s imports whenever it starts.
const FOLDER: &str = "/var/lib/rancher/k3s/agent/images";
/// How smartup's archives there begin and end.
const FILE: (&str, &str) = ("smartup-operator-", ".tar");
/// An import writes the image to the disk twice.
const LIMIT: Duration = Duration::from_secs(120);

/// The operator's image on this host, so that no pod of it ever asks a registry.
pub struct ImageStep {
    /// The image.
    pub image: Image,
    /// What runs the containers.
    pub runtime: Runtime,
}

/// What the journal has of it.
#[derive(Debug, Serialize, Deserialize)]
struct Put {
    image: String,
    runtime: Runtime,
}

/// Where k3s finds an image. The name says what is in it, so it need not be read again.
fn archive(tag: &str) -> PathBuf {
    Path::new(FOLDER).join(format!("{}{tag}{}", FILE.0, FILE.1))
}

#[async_trait(?Send)]
impl Step for ImageStep {
    fn name(&self) -> String {
        "operator image".into()
    }

    async fn check(&self, _host: &Host) -> Result<State> {
        let reference = self.image.reference();
        let put = || State::differs(format!("put the image {reference} on this host"));
        if self.runtime == Runtime::Docker {
            let out = run("docker", &["image", "inspect", "--format", "{{.Id}}", &reference.to_string()], LIMIT).await;
            return Ok(if out.is_ok_and(|o| o.success()) { State::Right } else { put() });
        }
        if !archive(reference.tag()).exists() {
            return Ok(put());
        }
        // a k3s that does not run imports it when it starts
        Ok(match containerd::find(&reference.to_string()).await? {
            Found::NotRunning | Found::Image => State::Right,
            Found::Nothing => put(),
        })
    }

    async fn apply(&self, host: &Host) -> Result<()> {
        let reference = self.image.reference();
        let put = Put { image: reference.to_string(), runtime: self.runtime };
        let data = serde_json::to_value(put).context("cannot write JSON")?;
        host.journal.record(Undo::Other { by: BY.into(), data })?;
        if self.runtime == Runtime::Docker {
            let file = Path::new(Host::STATE).join("operator.tar");
            self.write(&file)?;
            let loaded = import("docker", &["load", "--input"], &file).await;
            node::remove_file(&file)?;
            return loaded;
        }
        let file = archive(reference.tag());
        if !file.exists() {
            fs::create_dir_all(FOLDER).context(format!("cannot make the folder {FOLDER}"))?;
            self.write(&file)?;
        }
        forget_older(&file)?;
        match containerd::find(&reference.to_string()).await? {
            Found::NotRunning => Ok(()),
            _ => import(&Source::Host.path()?.to_string_lossy(), &["ctr", "images", "import"], &file).await,
        }
    }
}

impl ImageStep {
    fn write(&self, file: &Path) -> Result<()> {
        let content = |to: &mut fs::File| {
            let mut buffered = BufWriter::with_capacity(1 << 18, to);
            self.image.write(&mut buffered)?;
            buffered.flush()
        };
        replace(file, 0o600, content).context(format!("cannot write {}", file.display()))
    }
}

async fn import(program: &str, args: &[&str], file: &Path) -> Result<()> {
    let path = file.to_string_lossy();
    let args = [args, &[path.as_ref()]].concat();
    let out = run(program, &args, LIMIT).await?;
    if out.success() {
        return Ok(());
    }
    Err(Error::failed(format!("{program} {} failed: {}", args.join(" "), out.tail(3)))
        .hint("is there space on the disk? is the container runtime well?"))
}

/// Only the newest is imported at the next start; what runs from older ones goes on.
fn forget_older(newest: &Path) -> Result<()> {
    for entry in fs::read_dir(FOLDER).context(format!("cannot list {FOLDER}"))? {
        let path = entry.context(format!("cannot list {FOLDER}"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path != newest && name.starts_with(FILE.0) && name.ends_with(FILE.1) {
            node::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Takes an image from this host again.
///
/// # Errors
/// When its file or the image cannot be removed.
pub async fn undo(_host: &Host, data: &serde_json::Value) -> Result<Undone> {
    let put: Put = serde_json::from_value(data.clone()).context("the journal has an image that is not understood")?;
    let what = format!("image {}", put.image);
    let there = match put.runtime {
        Runtime::Docker => run("docker", &["image", "rm", &put.image], LIMIT).await.is_ok_and(|out| out.success()),
        Runtime::Containerd => {
            let reference: Reference = put.image.parse()?;
            let file = archive(reference.tag());
            let there = file.exists();
            node::remove_file(&file)?;
            // not empty: somebody else's images; not there: k3s's folder is gone already
            match fs::remove_dir(FOLDER) {
                Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                    return Err(e).context(format!("cannot remove {FOLDER}"));
                }
                _ => {}
            }
            containerd::remove(&put.image).await? || there
        }
    };
    Ok(if there { Undone::back(format!("{what} removed")) } else { Undone::gone(what) })
}

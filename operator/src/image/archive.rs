use std::fs::File;
use std::io::{self, Read, Write};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::{Program, Reference};

/// The program's name in the image.
const PROGRAM: &str = "smartup";
/// When everything in it was made: the same program gives the same bytes, on whatever day.
const MADE: &str = "1970-01-01T00:00:00Z";

/// The image of one program on nothing else.
///
/// As a file it is a tar that is an OCI layout and what `docker save` writes at once, so that k3s, `ctr images import` and
/// `docker load` all take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    program: Program,
    reference: Reference,
}

impl Image {
    /// Of a program of this version.
    pub fn of(program: Program, version: &str) -> Self {
        let reference = Reference::ours(version, &program.sha256);
        Self { program, reference }
    }

    /// What the image is called.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Writes it as a file; answers what container runtimes tell it by: `sha256:` and the hash of its manifest. The program is read three
    /// times, and never in memory as a whole.
    ///
    /// # Errors
    /// When it cannot be read or written, or the program was changed since it was looked at.
    pub fn write(&self, to: impl Write) -> io::Result<String> {
        let changed = || io::Error::other(format!("{} was changed meanwhile", self.program.path.display()));
        if node::hash(&self.program.path)? != self.program.sha256 {
            return Err(changed());
        }
        let mut summed = Summed::new(layer(&self.program)?);
        io::copy(&mut summed, &mut io::sink())?;
        let layer = summed.blob();
        let (config, manifest) = self.described(&layer);
        self.archive(to, &layer, &config, &manifest)?.then(|| Blob::of(&manifest).digest()).ok_or_else(changed)
    }

    /// The image's configuration and its manifest.
    fn described(&self, layer: &Blob) -> (Vec<u8>, Vec<u8>) {
        let config = json!({
            "created": MADE,
            "architecture": self.program.arch,
            "os": "linux",
            "config": { "Entrypoint": [format!("/{PROGRAM}")], "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [layer.digest()] },
            "history": [{ "created": MADE, "created_by": "smartup image save" }],
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": Blob::of(&config).described_as("config.v1+json"),
            "layers": [layer.described_as("layer.v1.tar")],
        });
        (config, manifest.to_string().into_bytes())
    }

    /// Whether the layer was still the one that is described.
    fn archive(&self, to: impl Write, layer: &Blob, config: &[u8], manifest: &[u8]) -> io::Result<bool> {
        let (config_blob, manifest_blob) = (Blob::of(config), Blob::of(manifest));
        let mut described = manifest_blob.described_as("manifest.v1+json");
        described["platform"] = json!({ "architecture": self.program.arch, "os": "linux" });
        // containerd goes by its own annotation, which has the whole reference; the OCI's has the tag
        let name = self.reference.to_string();
        described["annotations"] = json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": self.reference.tag() });
        let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [described] });
        let docker = json!([{ "Config": config_blob.path(), "RepoTags": [name], "Layers": [layer.path()] }]);

        let mut tar = Builder::new(to);
        for folder in ["blobs/", "blobs/sha256/"] {
            tar.append_data(&mut header(EntryType::Directory, 0o755, 0), folder, io::empty())?;
        }
        let mut file =
            |path: &str, size: u64, content: &mut dyn Read| tar.append_data(&mut header(EntryType::Regular, 0o644, size), path, content);
        for (path, content) in [
            ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes()),
            ("index.json", index.to_string().as_bytes()),
            ("manifest.json", docker.to_string().as_bytes()),
            (&config_blob.path(), config),
            (&manifest_blob.path(), manifest),
        ] {
            file(path, Blob::of(content).size, &mut &*content)?;
        }
        let mut summed = Summed::new(self::layer(&self.program)?);
        file(&layer.path(), layer.size, &mut summed)?;
        let same = summed.blob() == *layer;
        tar.into_inner()?.flush()?;
        Ok(same)
    }
}

/// The image's one layer: a tar of the program alone.
fn layer(program: &Program) -> io::Result<impl Read + use<>> {
    let mut head = header(EntryType::Regular, 0o755, program.size);
    head.set_path(PROGRAM)?;
    head.set_cksum();
    let padding = program.size.next_multiple_of(BLOCK) - program.size;
    let file = File::open(&program.path)?.take(program.size);
    // two blocks of zeros end a tar
    Ok(io::Cursor::new(head.as_bytes().to_vec()).chain(file).chain(io::repeat(0).take(padding + 2 * BLOCK)))
}

/// A tar's block size in bytes (tar(5)).
const BLOCK: u64 = 512;

/// Root's, and as old as can be.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Something that is named by its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Blob {
    sha256: String,
    size: u64,
}

impl Blob {
    fn of(bytes: &[u8]) -> Self {
        Self { sha256: node::hex(&Sha256::digest(bytes)), size: bytes.len() as u64 }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.sha256)
    }

    /// As the OCI's image specification describes content.
    fn described_as(&self, kind: &str) -> Value {
        json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": self.digest(), "size": self.size })
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.sha256)
    }
}

/// Sums up what is read through it.
struct Summed<R> {
    from: R,
    sum: Sha256,
    size: u64,
}

impl<R: Read> Summed<R> {
    fn new(from: R) -> Self {
        Self { from, sum: Sha256::new(), size: 0 }
    }

    fn blob(self) -> Blob {
        Blob { sha256: node::hex(&self.sum.finalize()), size: self.size }
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.sum.update(&buffer[..n]);
        self.size += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::image::program::tests::elf;

    /// An image of a program that would not run.
    pub(crate) fn image(more: &[u8]) -> (tempfile::NamedTempFile, Image) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [elf(62, &[1]).as_slice(), more].concat()).unwrap();
        let image = Image::of(Program::read(file.path()).unwrap(), "1.2.3");
        (file, image)
    }

    fn written(image: &Image) -> (Vec<u8>, String) {
        let mut bytes = Vec::new();
        let digest = image.write(&mut bytes).unwrap();
        (bytes, digest)
    }

    /// The files of a tar by name, with their headers' owner, time and mode.
    fn files(tar: &[u8]) -> BTreeMap<String, (Vec<u8>, [u64; 4])> {
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(tar).entries().unwrap() {
            let mut entry = entry.unwrap();
            let (name, head) = (entry.path().unwrap().display().to_string(), entry.header().clone());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let facts = [head.uid().unwrap(), head.gid().unwrap(), head.mtime().unwrap(), u64::from(head.mode().unwrap())];
            found.insert(name, (content, facts));
        }
        found
    }

    #[test]
    fn the_same_program_gives_the_same_bytes_wherever_it_is() {
        let ((_a, a), (_b, b)) = (image(b"x"), image(b"x"));
        assert_eq!(written(&a), written(&b));
        let (_c, c) = image(b"y");
        assert_ne!(written(&a).1, written(&c).1);
        assert_ne!(a.reference(), c.reference());
    }

    #[test]
    fn every_hash_in_it_leads_to_content_of_that_hash() {
        let (_file, image) = image(&vec![7; 100_000]);
        let (bytes, digest) = written(&image);
        let files = files(&bytes);
        let json = |name: &str| -> Value { serde_json::from_slice(&files[name].0).unwrap() };
        let follow = |described: &Value| {
            let hash = described["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let content = files[&format!("blobs/sha256/{hash}")].0.clone();
            assert_eq!(Blob::of(&content), Blob { sha256: hash.into(), size: described["size"].as_u64().unwrap() });
            content
        };
        assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
        let described = &json("index.json")["manifests"][0];
        assert_eq!(described["digest"], digest);
        assert_eq!(described["annotations"]["io.containerd.image.name"], image.reference().to_string());
        let manifest: Value = serde_json::from_slice(&follow(described)).unwrap();
        let config: Value = serde_json::from_slice(&follow(&manifest["config"])).unwrap();
        let layer = follow(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"], "the layer is not packed");
        assert_eq!((&config["architecture"], &config["config"]["Entrypoint"][0]), (&json!("amd64"), &json!("/smartup")));

        // docker's way to the same
        let docker = &json("manifest.json")[0];
        assert_eq!(docker["RepoTags"][0], image.reference().to_string());
        assert_eq!(files[docker["Config"].as_str().unwrap()].0, follow(&manifest["config"]));
        assert_eq!(files[docker["Layers"][0].as_str().unwrap()].0, layer);

        let inner = self::files(&layer);
        assert_eq!(inner.keys().collect::<Vec<_>>(), ["smartup"]);
        assert_eq!(inner["smartup"].1, [0, 0, 0, 0o755]);
        assert!(inner["smartup"].0.ends_with(&vec![7; 100_000]));
        assert!(files.values().all(|(_, facts)| facts[..3] == [0, 0, 0]), "no owner, no time");
    }

    #[test]
    fn a_program_that_changes_meanwhile_is_not_written_as_if_it_had_not() {
        let (file, image) = image(&[7; 1000]);
        let mut bytes = std::fs::read(file.path()).unwrap();
        *bytes.last_mut().unwrap() = 8;
        std::fs::write(file.path(), &bytes).unwrap();
        assert!(image.write(io::sink()).unwrap_err().to_string().contains("was changed meanwhile"));
        std::fs::write(file.path(), &bytes[..100]).unwrap();
        assert!(image.write(io::sink()).is_err());
    }
}

//! The program that becomes an image: which processor it is for, and whether it starts where there is nothing else.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use node::{Context as _, Error, Host, Result};

/// A program that needs nothing but the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Its size in bytes.
    pub(super) size: u64,
    /// Its SHA-256 in hexadecimal.
    pub(super) sha256: String,
    /// Its processor, in the names of Go, which image formats use: `amd64`, `arm64`.
    pub(super) arch: &'static str,
}

impl Program {
    /// The program that is running. One that was sent to this host has its sum in its name, and is not read through again for it.
    ///
    /// # Errors
    /// As [`Program::read`].
    pub fn own() -> Result<Self> {
        let path = std::env::current_exe().context("cannot tell where smartup itself is")?;
        match sum_in_name(&path) {
            Some(sum) => Self::of(&path, sum),
            None => Self::read(&path),
        }
    }

    /// Looks at a program's headers, and sums it up.
    ///
    /// # Errors
    /// Refused when it is dynamically linked; failed when it is none, or cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of(path, node::hash(path).context(format!("cannot read {}", path.display()))?)
    }

    fn of(path: &Path, sha256: String) -> Result<Self> {
        let what = || format!("cannot read {}", path.display());
        let mut file = File::open(path).context(what())?;
        let size = file.metadata().context(what())?.len();
        let arch = match linked(&mut file).context(what())? {
            Linked::Statically(arch) => arch,
            Linked::Dynamically => {
                return Err(Error::refused(format!("{} is dynamically linked: an image of it alone would not start", path.display()))
                    .hint("take the static smartup of a release, or build one with make"));
            }
            Linked::Unknown => {
                return Err(Error::failed(format!("{} is no program for x86_64 or aarch64", path.display())));
            }
        };
        Ok(Self { path: path.to_owned(), size, sha256, arch })
    }
}

/// The sum that a program's name says it has, where smartup gave it that name after comparing.
fn sum_in_name(path: &Path) -> Option<String> {
    let (_, sum) = path.file_name()?.to_str()?.rsplit_once('-')?;
    let whole = sum.len() == 64 && sum.chars().all(|c| c.is_ascii_hexdigit());
    (whole && path.parent() == Some(Path::new(Host::PROGRAMS))).then(|| sum.to_owned())
}

/// What its headers say of a program.
#[derive(Debug, PartialEq, Eq)]
enum Linked {
    /// All of it is there.
    Statically(&'static str),
    /// It names the loader that it needs.
    Dynamically,
    /// No ELF file, or of another kind than smartup is built for.
    Unknown,
}

/// elf(5): the loader's name is in a segment of this type, `PT_INTERP`. A static-pie has none.
const INTERPRETER: u32 = 3;

/// Reads the headers of a 64-bit little-endian ELF file, as elf(5) has them.
fn linked(file: &mut File) -> std::io::Result<Linked> {
    let mut header = [0; 64];
    match file.read_exact(&mut header) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Linked::Unknown),
        other => other?,
    }
    // the magic, ELFCLASS64, ELFDATA2LSB
    let arch = match (header.starts_with(b"\x7fELF\x02\x01"), u16_at(&header, 18)) {
        (true, 62) => "amd64",
        (true, 183) => "arm64",
        _ => return Ok(Linked::Unknown),
    };
    let mut at = [0; 8];
    at.copy_from_slice(&header[32..40]);
    file.seek(SeekFrom::Start(u64::from_le_bytes(at)))?;
    let mut segment = vec![0; usize::from(u16_at(&header, 54))];
    for _ in 0..u16_at(&header, 56) {
        file.read_exact(&mut segment)?;
        if segment.starts_with(&INTERPRETER.to_le_bytes()) {
            return Ok(Linked::Dynamically);
        }
    }
    Ok(Linked::Statically(arch))
}

fn u16_at(bytes: &[u8; 64], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A program's headers with segments of these types.
    pub(crate) fn elf(machine: u16, segments: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
        for kind in segments {
            let mut segment = vec![0; 56];
            segment[..4].copy_from_slice(&kind.to_le_bytes());
            bytes.extend(segment);
        }
        bytes
    }

    fn read(content: &[u8]) -> Result<Program> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        Program::read(file.path())
    }

    #[test]
    fn only_what_needs_no_loader_can_be_an_image() {
        // PT_LOAD, PT_DYNAMIC: a static-pie has both
        assert_eq!(read(&elf(62, &[1, 1, 2])).unwrap().arch, "amd64");
        assert_eq!(read(&elf(183, &[1])).unwrap().arch, "arm64");
        let e = read(&elf(62, &[6, INTERPRETER, 1])).unwrap_err();
        assert_eq!(e.kind, node::Kind::Refused);
        assert!(e.what.ends_with("is dynamically linked: an image of it alone would not start"), "{}", e.what);
    }

    #[test]
    fn only_where_smartup_itself_named_it_does_a_name_tell_the_sum() {
        let sum = "0f".repeat(32);
        assert_eq!(sum_in_name(&Path::new(Host::PROGRAMS).join(format!("smartup-{sum}"))), Some(sum.clone()));
        assert_eq!(sum_in_name(&Path::new(Host::PROGRAMS).join("smartup-0f")), None);
        assert_eq!(sum_in_name(Path::new(&format!("/root/smartup-{sum}"))), None);
        assert_eq!(sum_in_name(Path::new("/usr/local/bin/smartup")), None);
    }

    #[test]
    fn what_is_no_program_is_said() {
        for content in [b"#!/bin/sh\n".to_vec(), vec![0; 100], elf(8, &[1]), elf(62, &[1])[..40].to_vec()] {
            let e = read(&content).unwrap_err();
            assert!(e.what.ends_with("is no program for x86_64 or aarch64"), "{}", e.what);
        }
        assert!(read(&elf(62, &[1])[..80]).is_err(), "its headers are cut off");
    }

    #[test]
    fn the_shell_of_this_machine_is_dynamic() {
        assert!(Program::read(Path::new("/bin/sh")).unwrap_err().what.contains("dynamically linked"));
    }
}

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, lchown};
use std::path::{Path, PathBuf};

use node::{Context as _, Error, FileState, Result, read_optional};

use super::admin::Admin;
use super::merge::{Change, Merged, merge};

/// How many former contents are kept beside the file.
const BACKUPS: usize = 3;

/// What was done.
#[derive(Debug)]
pub struct Stored {
    /// To our entries.
    pub change: Change,
    /// The current context in the file now.
    pub current: Option<String>,
    /// Where the former content is.
    pub backup: Option<PathBuf>,
}

/// Merges `ours` into the kubeconfig at `path`, which is made if it is not there. A symbolic link is followed.
///
/// Whoever reads the file sees the old one or the new one whole; it keeps its owner, and its mode becomes 0600. A new file or
/// folder belongs to the owner of the folder it is in when root makes it, so that sudo leaves nothing of root's in a home.
/// Nothing is written when nothing changes.
///
/// # Errors
/// As [`merge`], and when the file cannot be read or written, or another program is writing it. The file is then as it was.
pub fn store(path: &Path, ours: &Admin, use_context: bool) -> Result<Stored> {
    let (_, merged) = look(path, ours, use_context)?;
    if merged.change == Change::None {
        return Ok(Stored { change: merged.change, current: merged.current, backup: None });
    }
    make_folders(folder_of(path))?;
    let _lock = Lock::take(path)?;
    // again: it may have changed before it was ours
    let (old, Merged { text, change, current }) = look(path, ours, use_context)?;
    let owner = match &old {
        Some(file) => Some((file.uid, file.gid)),
        None => owner_for_new(folder_of(path))?,
    };
    let (mut real, mut backup) = (path.to_owned(), None);
    if let Some(file) = &old {
        real = fs::canonicalize(path).context(format!("cannot follow {}", path.display()))?;
        backup = Some(keep(path, &file.content, owner)?);
    }
    replace(&real, text.as_bytes(), owner)?;
    Ok(Stored { change, current, backup })
}

/// What the file holds, and what it shall hold.
fn look(path: &Path, ours: &Admin, use_context: bool) -> Result<(Option<FileState>, Merged)> {
    let shown = path.display();
    match (fs::metadata(path), fs::symlink_metadata(path)) {
        (Ok(meta), _) if !meta.is_file() => return Err(Error::invalid(format!("{shown} is not a file"))),
        (Err(e), Ok(link)) if e.kind() == ErrorKind::NotFound && link.is_symlink() => {
            return Err(Error::invalid(format!("{shown} is a symbolic link to a file that is not there"))
                .hint("make that file, which may be empty, or remove the link"));
        }
        _ => {}
    }
    let file = read_optional(path)?;
    let text = match &file {
        Some(f) => Some(std::str::from_utf8(&f.content).map_err(|_| Error::invalid(format!("{shown} is not text")))?),
        None => None,
    };
    let merged = merge(text, ours, use_context).map_err(|mut e| {
        e.what = format!("{shown}: {}", e.what);
        e
    })?;
    Ok((file, merged))
}

/// Writes a backup beside the file, by whatever name it is reached, and moves older ones on.
fn keep(path: &Path, content: &[u8], owner: Option<(u32, u32)>) -> Result<PathBuf> {
    let name = |n| beside(path, &if n == 0 { ".smartup-backup".to_owned() } else { format!(".smartup-backup.{n}") });
    for n in (1..BACKUPS).rev() {
        match fs::rename(name(n - 1), name(n)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).context(format!("cannot rename {}", name(n - 1).display())),
            _ => {}
        }
    }
    replace(&name(0), content, owner)?;
    Ok(name(0))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The lock that kubectl itself takes (client-go, `clientcmd/config.go`): a file beside the kubeconfig that must not be there.
struct Lock(PathBuf);

impl Lock {
    fn take(path: &Path) -> Result<Self> {
        let lock = beside(path, ".lock");
        match File::options().write(true).create_new(true).mode(0o600).open(&lock) {
            Ok(_) => Ok(Self(lock)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                Err(Error::failed(format!("{} is being written by another program: {} is there", path.display(), lock.display()))
                    .hint("run again; if no kubectl and no smartup is running, remove that lock first"))
            }
            Err(e) => Err(e).context(format!("cannot make {}", lock.display())),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes a folder and those above it, for their owner only.
fn make_folders(folder: &Path) -> Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists()).collect();
    for new in missing.into_iter().rev() {
        let owner = owner_for_new(folder_of(new))?;
        DirBuilder::new()
            .mode(0o700)
            .create(new)
            .and_then(|()| owner.map_or(Ok(()), |(uid, gid)| lchown(new, Some(uid), Some(gid))))
            .context(format!("cannot make the folder {}", new.display()))?;
    }
    Ok(())
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Who shall own what is made in a folder: its own owner when root makes it, otherwise whoever makes it.
fn owner_for_new(folder: &Path) -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let meta = fs::metadata(folder).context(format!("cannot look at {}", folder.display()))?;
    Ok(Some((meta.uid(), meta.gid())))
}

/// Puts a file of mode 0600 in place whole, synced. Whoever calls has the lock, so that the temporary file can have one name.
fn replace(path: &Path, content: &[u8], owner: Option<(u32, u32)>) -> Result<()> {
    let tmp = path.with_file_name(format!(".smartup-{}.tmp", path.file_name().unwrap_or_default().to_string_lossy()));
    let write = || {
        match fs::remove_file(&tmp) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&tmp)?;
        let meta = file.metadata()?;
        if let Some((uid, gid)) = owner
            && (meta.uid(), meta.gid()) != (uid, gid)
        {
            fchown(&file, Some(uid), Some(gid))?;
        }
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&tmp, path)?;
        File::open(folder_of(path))?.sync_all()
    };
    write().context(format!("cannot write {}", path.display())).inspect_err(|_| {
        let _ = fs::remove_file(&tmp);
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::kubeconfig::Name;

    fn admin(which: &str) -> Admin {
        let text = format!(
            "clusters: [{{name: a, cluster: {{server: x, certificate-authority-data: {which}}}}}]\nusers: [{{name: a, user: {{client-certificate-data: AAAA, \
             client-key-data: AAAA}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\ncurrent-context: a\n"
        );
        Admin::parse(&text, "https://10.0.0.10:9443".into(), Name::of_vip([10, 0, 0, 10].into())).map_err(|e| e.chain()).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = folder.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_file_is_its_owners_only_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home/.kube/config");
        let stored = store(&path, &admin("AAA1"), false).unwrap();
        assert_eq!((stored.change, stored.backup), (Change::Added, None));
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(names(path.parent().unwrap()), ["config"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), admin("AAA1").expose());
    }

    #[test]
    fn the_former_contents_are_kept_and_nothing_is_written_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, "# zero\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let mut before = Vec::new();
        for which in ["AAA1", "AAA2", "AAA3", "AAA4"] {
            before.push(fs::read_to_string(&path).unwrap());
            let stored = store(&path, &admin(which), false).unwrap();
            assert_eq!(stored.backup.as_deref(), Some(dir.path().join("config.smartup-backup").as_path()));
        }
        let all = ["config", "config.smartup-backup", "config.smartup-backup.1", "config.smartup-backup.2"];
        assert_eq!(names(dir.path()), all);
        for (name, text) in all[1..].iter().zip(before.iter().rev()) {
            assert_eq!((fs::read_to_string(dir.path().join(name)).unwrap(), mode(&dir.path().join(name))), (text.clone(), 0o600));
        }
        let inode = fs::metadata(&path).unwrap().ino();
        let again = store(&path, &admin("AAA4"), false).unwrap();
        assert_eq!((again.change, again.backup), (Change::None, None));
        assert_eq!((fs::metadata(&path).unwrap().ino(), names(dir.path()).len()), (inode, 4));
    }

    #[test]
    fn a_link_is_followed_and_a_refusal_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, real) = (dir.path().join("config"), dir.path().join("dotfiles/kube"));
        fs::create_dir(dir.path().join("dotfiles")).unwrap();
        symlink("dotfiles/kube", &path).unwrap();
        assert!(store(&path, &admin("AAA1"), false).unwrap_err().chain().contains("symbolic link"));
        fs::write(&real, "kind: Pod\n").unwrap();
        assert!(store(&path, &admin("AAA1"), false).is_err());
        fs::write(&real, b"\xff").unwrap();
        assert!(store(&path, &admin("AAA1"), false).is_err());
        assert_eq!(
            (names(dir.path()), names(real.parent().unwrap())),
            (vec!["config".to_owned(), "dotfiles".to_owned()], vec!["kube".to_owned()])
        );
        fs::write(&real, "x: 1\nkind: Config\n").unwrap();
        store(&path, &admin("AAA1"), false).unwrap();
        assert!(path.is_symlink() && fs::read_to_string(&real).unwrap().starts_with("x: 1\n"));
        assert_eq!((mode(&real), names(real.parent().unwrap())), (0o600, vec!["kube".to_owned()]));
        assert_eq!(fs::read_to_string(dir.path().join("config.smartup-backup")).unwrap(), "x: 1\nkind: Config\n");
        assert!(store(dir.path(), &admin("AAA1"), false).unwrap_err().chain().contains("is not a file"));
    }

    #[test]
    fn kubectls_lock_is_honoured_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(dir.path().join("config.lock"), "").unwrap();
        let e = store(&path, &admin("AAA1"), false).unwrap_err();
        assert!(e.chain().contains("config.lock") && !path.exists());
        fs::remove_file(dir.path().join("config.lock")).unwrap();
        store(&path, &admin("AAA1"), false).unwrap();
        assert_eq!(names(dir.path()), ["config"]);
    }

    #[test]
    fn the_owner_stays_and_what_root_makes_belongs_to_the_homes_owner() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let owner = |path: &Path| fs::metadata(path).map(|m| (m.uid(), m.gid())).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(1234), Some(1235)).unwrap();
        let path = dir.path().join(".kube/config");
        store(&path, &admin("AAA1"), false).unwrap();
        assert_eq!((owner(path.parent().unwrap()), owner(&path)), ((1234, 1235), (1234, 1235)));
        std::os::unix::fs::chown(&path, Some(77), Some(78)).unwrap();
        let backup = store(&path, &admin("AAA2"), false).unwrap().backup.unwrap();
        assert_eq!((owner(&path), owner(&backup)), ((77, 78), (77, 78)));
    }
}

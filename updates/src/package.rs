use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use cluster::Invalid;

use crate::text::text_type;

/// One build of a package: `<name>-<version>-<release>.<arch>` as rpm prints it (7.4.4), with `<epoch>:` before the version
/// if it has one, or Debian's `<name>=<version>`, with `:<arch>` after the name if need be. Arch's are written as rpm's, with its
/// architecture `any` too.
///
/// Clones share their text: thousands of nodes lack the same packages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackageName(Arc<Form>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Form {
    Rpm { name: String, epoch: Option<u32>, version: String, release: String, arch: String },
    Debian { name: String, arch: Option<String>, version: String },
}

/// The architectures of rpm's and Arch's packages on hosts that Kubernetes runs on: the only part whose absence would otherwise go
/// unseen, since `bash-4.2.46-34.vl7` would be one of architecture `vl7`.
const RPM_ARCHES: [&str; 22] = [
    "noarch",
    "any",
    "x86_64",
    "x86_64_v2",
    "x86_64_v3",
    "x86_64_v4",
    "amd64",
    "ia32e",
    "i386",
    "i486",
    "i586",
    "i686",
    "athlon",
    "aarch64",
    "armv6hl",
    "armv7hl",
    "armv7l",
    "ppc64",
    "ppc64le",
    "s390x",
    "riscv64",
    "loongarch64",
];

impl PackageName {
    /// The package's name without its version.
    pub fn name(&self) -> &str {
        match &*self.0 {
            Form::Rpm { name, .. } | Form::Debian { name, .. } => name,
        }
    }

    /// Without what a ban may leave out: the epoch, or Debian's architecture.
    fn bare(&self) -> Self {
        let mut bare = self.clone();
        match &*self.0 {
            Form::Rpm { epoch: None, .. } | Form::Debian { arch: None, .. } => {}
            _ => match Arc::make_mut(&mut bare.0) {
                Form::Rpm { epoch, .. } => *epoch = None,
                Form::Debian { arch, .. } => *arch = None,
            },
        }
        bare
    }

    /// Whether nobody else has the text.
    pub(crate) fn alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Whether the other one has the same text in memory.
    #[cfg(test)]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn rpm(s: &str) -> Result<Form, String> {
        let form = "is not of the form <name>-<version>-<release>.<arch>, as in bash-4.2.46-34.vl7.x86_64";
        let mut parts = s.rsplitn(3, '-');
        let (Some(last), Some(evr), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(format!("{form}, nor <name>=<version>, as in bash=5.2.15-2+b8"));
        };
        let Some((release, arch)) = last.rsplit_once('.').filter(|(_, arch)| RPM_ARCHES.contains(arch)) else {
            return Err("has no architecture at its end; write for example bash-4.2.46-34.vl7.x86_64".into());
        };
        let (epoch, version) = epoch(evr).ok_or("has an epoch that is not a number")?;
        // rpm: build/parsePreamble.c and rpmbuild_internal.h, ALLOWED_CHARS_NAME, ALLOWED_CHARS_VERREL
        let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !name.starts_with(first) || !only(name, "-._+") {
            return Err(format!("has a name that rpm does not allow: '{name}'"));
        }
        if version.is_empty() || release.is_empty() || !only(version, "._+~^") || !only(release, "._+~^") {
            return Err(form.into());
        }
        let text = str::to_owned;
        Ok(Form::Rpm { name: text(name), epoch, version: text(version), release: text(release), arch: text(arch) })
    }

    fn debian(name: &str, evr: &str) -> Result<Form, String> {
        let (name, arch) = match name.split_once(':') {
            Some((name, arch)) => (name, Some(arch)),
            None => (name, None),
        };
        // Debian policy 5.6.7 (names) and 5.6.12 (versions)
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if name.len() < 2 || !name.starts_with(lower) || !name.chars().all(|c| lower(c) || "+-.".contains(c)) {
            return Err(format!("has a name that Debian does not allow: '{name}'"));
        }
        if arch.is_some_and(|a| !a.starts_with(lower) || !a.chars().all(|c| lower(c) || c == '-')) {
            return Err("has an architecture that is not one, after the ':' in its name".into());
        }
        let (_, version) = epoch(evr).ok_or("has an epoch that is not a number")?;
        if !version.starts_with(|c: char| c.is_ascii_digit()) || version.ends_with('-') || !only(version, ".+~-") {
            return Err("has a version that Debian does not allow; write for example bash=5.2.15-2+b8".into());
        }
        Ok(Form::Debian { name: name.to_owned(), arch: arch.map(str::to_owned), version: evr.to_owned() })
    }
}

/// Builds that are not to be installed. What a ban leaves out, an epoch or Debian's architecture, may be any.
#[derive(Debug, Default)]
pub struct Bans<'a>(HashSet<&'a PackageName>);

impl Bans<'_> {
    /// Whether `package` is one of them.
    pub fn include(&self, package: &PackageName) -> bool {
        !self.0.is_empty() && (self.0.contains(package) || self.0.contains(&package.bare()))
    }
}

impl<'a> FromIterator<&'a PackageName> for Bans<'a> {
    fn from_iter<I: IntoIterator<Item = &'a PackageName>>(packages: I) -> Self {
        Self(packages.into_iter().collect())
    }
}

/// Longer than any package's name; etcd keeps all of a list in one value.
const LONGEST: usize = 255;

fn only(text: &str, signs: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || signs.contains(c))
}

fn epoch(evr: &str) -> Option<(Option<u32>, &str)> {
    match evr.split_once(':') {
        None => Some((None, evr)),
        Some((epoch, version)) => {
            let number = epoch.parse().ok().filter(|n: &u32| *n < 1_000_000_000 && n.to_string() == epoch)?;
            Some((Some(number), version))
        }
    }
}

impl FromStr for PackageName {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        if s.len() > LONGEST {
            return Err(Invalid::new("package", s, format!("is longer than {LONGEST} characters")));
        }
        let form = match s.split_once('=') {
            Some((name, version)) => Self::debian(name, version),
            None => Self::rpm(s),
        };
        form.map(|form| Self(Arc::new(form))).map_err(|why| Invalid::new("package", s, why))
    }
}

impl fmt::Display for PackageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Form::Rpm { name, epoch, version, release, arch } => {
                write!(f, "{name}-")?;
                epoch.map_or(Ok(()), |e| write!(f, "{e}:"))?;
                write!(f, "{version}-{release}.{arch}")
            }
            Form::Debian { name, arch, version } => {
                f.write_str(name)?;
                arch.as_ref().map_or(Ok(()), |a| write!(f, ":{a}"))?;
                write!(f, "={version}")
            }
        }
    }
}

text_type!(
    PackageName,
    pattern: concat!(
        "^((?P<name>[A-Za-z0-9_][A-Za-z0-9._+-]*)-(?P<version>((0|[1-9][0-9]{0,8}):)?[A-Za-z0-9._+~^]+)-(?P<release>[A-Za-z0-9._+~^]+)",
        r"\.(?P<arch>noarch|any|x86_64(_v[234])?|amd64|ia32e|i[3456]86|athlon|aarch64|armv6hl|armv7h?l|ppc64(le)?|s390x|riscv64|loongarch64)",
        "|(?P<debian>[a-z0-9][a-z0-9+.-]+(:[a-z0-9][a-z0-9-]*)?)=((0|[1-9][0-9]{0,8}):)?[0-9]([A-Za-z0-9.+~-]*[A-Za-z0-9.+~])?)$"
    ),
    max: LONGEST,
    "A build of a package: <name>-<version>-<release>.<arch>, as in bash-4.2.46-34.vl7.x86_64, or Debian's <name>=<version>."
);

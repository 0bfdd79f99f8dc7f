use std::fmt;
use std::str::FromStr;

use cluster::Invalid;

/// What an image is called: `smartup.local/operator:0.1.0-1a2b3c4d5e6f`, or a name of the user's own in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    name: String,
    ours: bool,
}

/// The host part has a dot, so that no runtime takes it for something of docker.io; nobody can be reached under `.local` by
/// accident, and nobody is asked: see [`Reference::pull_policy`].
const NAME: &str = "smartup.local/operator";

impl Reference {
    /// The image that smartup makes of itself. The program's hash in the tag: two builds of one version are two images, so a pod
    /// never runs another program than the one that its manifest came from.
    pub(super) fn ours(version: &str, program: &str) -> Self {
        Self { name: format!("{NAME}:{version}-{}", &program[..program.len().min(12)]), ours: true }
    }

    /// The part behind the last colon.
    pub(super) fn tag(&self) -> &str {
        self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag)
    }

    /// `Never` for smartup's own image: every host has it, or must be given it; a kubelet that asked a registry for it would only
    /// say so later and less clearly. `IfNotPresent` for one in a registry.
    pub fn pull_policy(&self) -> &'static str {
        if self.ours { "Never" } else { "IfNotPresent" }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for Reference {
    type Err = Invalid;

    /// A reference in a registry, by the characters that image references have; which registry it is, the kubelet finds out.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let good = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        if text.len() > 400 || !text.chars().all(good) || !ends(text.chars().next()) || !ends(text.chars().last()) {
            let why = "must be a reference as in registry.example.com/smartup/operator:0.1.0".into();
            return Err(Invalid { what: "image", value: format!("'{text}'"), why });
        }
        Ok(Self { name: text.to_owned(), ours: text.starts_with(&format!("{NAME}:")) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_break_nothing() {
        let ours = Reference::ours("0.1.0", "1a2b3c4d5e6f7a8b");
        assert_eq!((ours.to_string().as_str(), ours.tag()), ("smartup.local/operator:0.1.0-1a2b3c4d5e6f", "0.1.0-1a2b3c4d5e6f"));
        assert_eq!((ours.to_string().parse(), ours.pull_policy()), (Ok(ours.clone()), "Never"));
        let theirs: Reference = "registry.example.com:5000/a/b@sha256:00ff".parse().unwrap();
        assert_eq!(theirs.pull_policy(), "IfNotPresent");
        for bad in ["", "a b", "a\"b", "a\nb: c", ":x", "x/", "{{ x }}"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}

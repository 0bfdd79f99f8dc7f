use std::fmt;
use std::str::FromStr;

use cluster::{Invalid, nearest};

use crate::{PackageName, PatchName};

/// What can be banned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// A build of a package.
    Package(PackageName),
    /// A live patch.
    Patch(PatchName),
}

impl FromStr for Item {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        // every package has a '.' before its architecture, or a '='
        let patch = s.starts_with(|c: char| c.is_ascii_digit()) && !s.contains(['.', '=']);
        if patch { s.parse().map(Self::Patch) } else { s.parse().map(Self::Package) }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Package(package) => package.fmt(f),
            Self::Patch(patch) => patch.fmt(f),
        }
    }
}

/// The item in `known`, what is installed or available, that `text` was most likely meant to be: one that it is the beginning of,
/// another build of the same package, or one with up to two other letters.
pub fn suggestion<'a>(text: &str, known: &'a [Item]) -> Option<&'a Item> {
    let begins = |item: &&Item| !text.is_empty() && item.to_string().starts_with(text);
    let same_package = |item: &&Item| match item {
        Item::Package(package) => {
            text.strip_prefix(package.name()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '=', ':']))
        }
        Item::Patch(_) => false,
    };
    let distance = |item: &&Item| strsim::damerau_levenshtein(text, &item.to_string());
    // of bash and bash-completion, the longer name is the one that is meant
    let longest = known.iter().filter(same_package).map(|item| name(item).len()).max();
    let builds = known.iter().filter(same_package).filter(|item| Some(name(item).len()) == longest);
    let texts: Vec<_> = known.iter().map(Item::to_string).collect();
    let near = || known.get(texts.iter().position(|t| Some(t.as_str()) == nearest(text, texts.iter().map(String::as_str)))?);
    known.iter().filter(begins).min_by_key(distance).or_else(|| builds.min_by_key(distance)).or_else(near)
}

fn name(item: &Item) -> &str {
    match item {
        Item::Package(package) => package.name(),
        Item::Patch(_) => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_most_likely_meant() {
        let texts = [
            "bash-4.2.46-34.vl7.x86_64",
            "bash-completion-2.1-8.vl7.noarch",
            "vim-minimal-2:8.0.1763-19.el8_6.4.x86_64",
            "bash=5.2.15-2+b8",
            "libc6:amd64=2.36-9+deb12u10",
            "123-4-r5",
        ];
        let known = texts.map(|t| t.parse::<Item>().unwrap());
        for (text, meant) in [
            ("bash-4.2.46-34.vl7", Some(0)),
            ("bash-4.2.46-35.vl7.x86_64", Some(0)),
            ("bash-completion-3.0-1.vl7.noarch", Some(1)),
            ("bash=5.1", Some(3)),
            ("bsah=5.2.15-2+b8", Some(3)),
            ("libc6=2.36", Some(4)),
            ("vim-minimal", Some(2)),
            ("123-4-r6", Some(5)),
            ("123-4-5", Some(5)),
            ("postgresql-15.0-1.el9.x86_64", None),
            ("", None),
        ] {
            assert_eq!(suggestion(text, &known).map(ToString::to_string), meant.map(|at: usize| texts[at].to_owned()), "{text}");
        }
    }

    #[test]
    fn says_what_an_item_is() {
        let why = |text: &str| text.parse::<Item>().unwrap_err().to_string();
        insta::assert_snapshot!(["bash", "123-4-5", "bash-4.2.46-34.vl7", "Bash=5"].map(why).join("\n"), @r"
        package 'bash': is not of the form <name>-<version>-<release>.<arch>, as in bash-4.2.46-34.vl7.x86_64, nor <name>=<version>, as in bash=5.2.15-2+b8
        patch '123-4-5': is not of the form X-Y-rZ, as in 123-4-r5
        package 'bash-4.2.46-34.vl7': has no architecture at its end; write for example bash-4.2.46-34.vl7.x86_64
        package 'Bash=5': has a name that Debian does not allow: 'Bash'
        ");
    }
}

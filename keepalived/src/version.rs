use std::path::{Path, PathBuf};
use std::time::Duration;

use node::{Error, Result, run};

/// A release of keepalived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release(pub u16, pub u16, pub u16);

impl Release {
    /// The least that tracks files and scripts as smartup needs it.
    pub const LEAST: Self = Self(2, 0, 0);
    /// What is assumed where none is installed yet.
    pub const NEWEST: Self = Self(u16::MAX, 0, 0);

    /// The block's keyword: `vrrp_track_file` up to 2.0.20, which later releases only tolerate (its source,
    /// `add_track_file_keywords`).
    pub fn track_file(self) -> &'static str {
        if self < Self(2, 1, 0) { "vrrp_track_file" } else { "track_file" }
    }

    /// The keyword that limits its real-time share; spelt otherwise up to 2.0.20 (its source, `init_global_keywords`).
    pub fn realtime_limit(self) -> &'static str {
        if self < Self(2, 1, 0) { "vrrp_rlimit_rtime" } else { "vrrp_rlimit_rttime" }
    }
}

/// Where the program is; None when it is not installed. Users' PATH often lacks the folders of daemons.
pub(crate) fn program() -> Option<PathBuf> {
    ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"].iter().map(|d| Path::new(d).join("keepalived")).find(|p| p.exists())
}

/// The installed release; None when there is none.
///
/// # Errors
/// When it does not run, or says what is not understood.
pub(crate) async fn installed() -> Result<Option<Release>> {
    let Some(program) = program() else { return Ok(None) };
    let out = run(&program.to_string_lossy(), &["--version"], Duration::from_secs(10)).await?;
    // it speaks on standard error
    let text = format!("{}{}", out.stderr, out.stdout);
    parse(&text)
        .map(Some)
        .ok_or_else(|| Error::failed(format!("cannot tell the version of {} from what it says: {}", program.display(), out.tail(1))))
}

fn parse(text: &str) -> Option<Release> {
    let version = text.lines().find_map(|l| l.trim().strip_prefix("Keepalived v"))?;
    let number: String = version.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let mut parts = number.split('.').map(|p| p.parse::<u16>().ok());
    Some(Release(parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_keepalived_says() {
        assert_eq!(parse("Keepalived v2.2.7 (01/16,2022)\n\nCopyright(C)"), Some(Release(2, 2, 7)));
        assert_eq!(parse("Keepalived v2.0.19 (10/17,2019), git commit"), Some(Release(2, 0, 19)));
        assert_eq!(parse("Keepalived v2.4 (x)"), Some(Release(2, 4, 0)));
        assert_eq!(parse("command not found"), None);
        assert!(parse("Keepalived v1.3.5 (03/19,2017)").unwrap() < Release::LEAST);
    }

    #[test]
    fn keywords_changed_after_2_0() {
        let of = |r: Release| (r.track_file(), r.realtime_limit());
        assert_eq!(of(Release(2, 0, 20)), ("vrrp_track_file", "vrrp_rlimit_rtime"));
        assert_eq!(of(Release(2, 1, 0)), ("track_file", "vrrp_rlimit_rttime"));
        assert_eq!(Release::NEWEST.track_file(), "track_file");
    }

    proptest::proptest! {
        #[test]
        fn takes_anything(text: String) {
            let _ = parse(&format!("Keepalived v{text}"));
        }
    }
}

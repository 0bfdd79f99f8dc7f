//! Texts that are what one pattern takes, in the API's schema and here alike.

use std::sync::LazyLock;

use cluster::Invalid;
use regex::Regex;

use crate::text::text_type;

macro_rules! matched {
    ($(#[$doc:meta])* $t:ident, $what:literal, $pattern:expr, max: $max:literal, $is:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $t(String);

        impl $t {
            /// As it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $t {
            type Err = Invalid;
            fn from_str(s: &str) -> Result<Self, Invalid> {
                static FORM: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($pattern).ok());
                let is = s.chars().count() <= $max && FORM.as_ref().is_some_and(|form| form.is_match(s));
                if is { Ok(Self(s.to_owned())) } else { Err(Invalid::new($what, s, concat!("is not ", $is))) }
            }
        }

        impl std::fmt::Display for $t {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        text_type!($t, pattern: $pattern, max: $max, concat!("It is ", $is, "."));
    };
}

matched!(
    /// A boot of a host, as `/proc/sys/kernel/random/boot_id` has it (random(4)).
    BootId,
    "boot id",
    "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
    max: 36,
    "of the form of /proc/sys/kernel/random/boot_id"
);

matched!(
    /// One attempt to update one node.
    TransactionId,
    "transaction",
    "^[0-9a-f]{16}$",
    max: 16,
    "made of 16 hexadecimal digits"
);

impl TransactionId {
    /// Its first 16 digits.
    pub(crate) fn of_digest(digest: &[u8]) -> Self {
        Self(digest.iter().chain([0; 8].iter()).take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
    }
}

matched!(
    /// An address of HTTP or HTTPS.
    WebUrl,
    "URL",
    r"^https?://[A-Za-z0-9._~\[\]:-]+(/[^\s]*)?$",
    max: 2048,
    "of the form http://host:port/path"
);

matched!(
    /// A file on a host, from its root.
    HostPath,
    "path",
    r"^(/[^/\x00]+)+$",
    max: 4096,
    "an absolute path of a file, as in /run/reboot-required"
);

matched!(
    /// A service of systemd (systemd.unit(5)).
    ServiceName,
    "service",
    r"^[A-Za-z0-9:_.\\@-]+\.service$",
    max: 255,
    "the name of a service of systemd, as in sshd.service"
);

const KEY: &str = r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?";
const VALUE: &str = "([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?";

matched!(
    /// The name of a label or an annotation (Kubernetes, "Labels and Selectors", syntax).
    MarkName,
    "name",
    r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$",
    max: 317,
    "the name of a label, as in example.com/patched"
);

matched!(
    /// The value of a label (the same).
    LabelValue,
    "value",
    "^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$",
    max: 63,
    "the value of a label: at most 63 letters, digits and ., _, - between them"
);

static SELECTOR: LazyLock<String> = LazyLock::new(|| {
    let values = format!(r"\(\s*{VALUE}\s*(,\s*{VALUE}\s*)*\)");
    let one = format!(r"\s*(!\s*{KEY}|{KEY}(\s*(=|==|!=)\s*{VALUE}|\s+(in|notin)\s*{values})?)\s*");
    format!("^{one}(,{one})*$")
});

matched!(
    /// Pods by their labels, as `kubectl get --selector` takes it: `app=db,tier in (a, b),!spare`.
    PodSelector,
    "selector",
    SELECTOR.as_str(),
    max: 1024,
    "a selector of labels, as in app=db,tier in (a,b)"
);

/// A pattern that is looked for in the names of alerts; `^` and `$` tie it to their beginning and end.
#[derive(Debug, Clone)]
pub struct AlertPattern(Regex);

impl AlertPattern {
    /// Whether it is found in an alert's name.
    pub fn is_in(&self, alert: &str) -> bool {
        self.0.is_match(alert)
    }
}

impl PartialEq for AlertPattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for AlertPattern {}

impl std::str::FromStr for AlertPattern {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        const LONGEST: usize = 1024;
        let bad = |why: String| Invalid::new("pattern", s, why);
        if s.is_empty() || s.chars().count() > LONGEST {
            return Err(bad(format!("has not from 1 to {LONGEST} characters")));
        }
        let why = |e: &regex::Error| e.to_string().lines().last().map(|l| l.trim_start_matches("error: ").to_owned()).unwrap_or_default();
        Regex::new(s).map(Self).map_err(|e| bad(format!("is no regular expression: {}", why(&e))))
    }
}

impl std::fmt::Display for AlertPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.0.as_str())
    }
}

text_type!(AlertPattern, { "type": "string", "minLength": 1, "maxLength": 1024, "description": "A regular expression that is looked for in the names of alerts." });

#[cfg(test)]
mod tests {
    use super::*;

    fn takes<T: std::str::FromStr>(texts: &[&str]) -> Vec<bool> {
        texts.iter().map(|t| t.parse::<T>().is_ok()).collect()
    }

    #[test]
    fn each_takes_its_own() {
        assert_eq!(
            takes::<BootId>(&["6a8e1b6c-0b0e-4b0e-9d3b-0123456789ab", "6A8E1B6C-0b0e-4b0e-9d3b-0123456789ab", ""]),
            [true, false, false]
        );
        assert_eq!(takes::<TransactionId>(&["0123456789abcdef", "0123456789abcde"]), [true, false]);
        assert_eq!(
            takes::<WebUrl>(&["http://prometheus.monitoring:9090", "https://[fd00::1]/a b", "https://h/x?y=z", "ftp://h", "http:///x"]),
            [true, false, true, false, false]
        );
        assert_eq!(takes::<HostPath>(&["/run/reboot-required", "run/x", "/", "/run//x", "/run/x/"]), [true, false, false, false, false]);
        assert_eq!(takes::<ServiceName>(&["k3s-server.service", "getty@tty1.service", "sshd", ".service"]), [true, true, false, false]);
        assert_eq!(
            takes::<PodSelector>(&["runtime=long,cost=expensive", "a in (b, c),!x/y, k != v,e", "a=", "", "a in b", "a=b c", "=b", "a,"]),
            [true, true, true, false, false, false, false, false]
        );
        assert_eq!(
            takes::<MarkName>(&["patched", "example.com/Patched_at", "", "a b", "a/b/c", "Example.com/a", "-a", "a..b/c", "a/"]),
            [true, true, false, false, false, false, false, false, false]
        );
        assert_eq!(takes::<LabelValue>(&["", "yes", "1.2_3-x", "a b", "yes!", "-"]), [true, true, true, false, false, false]);
        let long = |n| "a".repeat(n);
        assert_eq!(
            (takes::<MarkName>(&[&long(63), &long(64)]), takes::<LabelValue>(&[&long(63), &long(64)])),
            (vec![true, false], vec![true, false])
        );
        assert_eq!(takes::<AlertPattern>(&["^(Watchdog|Info.*)$", ".*", "", "("]), [true, true, false, false]);
    }

    #[test]
    fn says_what_is_wrong() {
        let why = [
            "x".parse::<BootId>().map(drop).unwrap_err(),
            "h:9090".parse::<WebUrl>().map(drop).unwrap_err(),
            "reboot-required".parse::<HostPath>().map(drop).unwrap_err(),
            "sshd".parse::<ServiceName>().map(drop).unwrap_err(),
            "a in b".parse::<PodSelector>().map(drop).unwrap_err(),
            "a(".parse::<AlertPattern>().map(drop).unwrap_err(),
        ];
        insta::assert_snapshot!(why.map(|e| e.to_string()).join("\n"), @r"
        boot id 'x': is not of the form of /proc/sys/kernel/random/boot_id
        URL 'h:9090': is not of the form http://host:port/path
        path 'reboot-required': is not an absolute path of a file, as in /run/reboot-required
        service 'sshd': is not the name of a service of systemd, as in sshd.service
        selector 'a in b': is not a selector of labels, as in app=db,tier in (a,b)
        pattern 'a(': is no regular expression: unclosed group
        ");
        assert!("Watchdog".parse::<AlertPattern>().unwrap().is_in("Watchdog2"));
    }
}

//! `ssh_config(5)`, as far as it says where a host is, as whom, with which keys, through whom, and how it is verified.

use std::path::{Path, PathBuf};

use node::{Error, Result};

use super::pattern;

/// How deep `Include` may nest, as in OpenSSH.
const DEPTH: u32 = 16;

/// A configuration file that was read, or a file that it includes.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// Reads the files that an `Include` names, in their order.
pub(super) type Include<'a> = &'a dyn Fn(&str) -> Vec<Source>;

/// What the configuration says about one host; None or empty where it says nothing. Tokens are not replaced yet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) host_name: Option<String>,
    pub(super) user: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) identity_files: Vec<String>,
    pub(super) identities_only: Option<bool>,
    pub(super) identity_agent: Option<String>,
    pub(super) proxy_jump: Option<String>,
    pub(super) user_known_hosts: Option<Vec<String>>,
    pub(super) global_known_hosts: Option<Vec<String>>,
    pub(super) host_key_alias: Option<String>,
    pub(super) hash_known_hosts: Option<bool>,
    /// What the user should know: one sentence each.
    pub(super) warnings: Vec<String>,
}

/// What the files say about `host`; the first value wins, and so the file that comes first.
///
/// # Errors
/// A line that cannot be read, or a value that cannot be: it is not known what the user meant.
pub(super) fn settings(files: &[(Source, Include<'_>)], host: &str) -> Result<Settings> {
    let mut reader = Reader { host, settings: Settings::default(), last_pass: false, wants_last_pass: false };
    for (source, include) in files {
        reader.file(source, *include, true, 0)?;
    }
    // `Match final` asks for all to be read once more; what is set by then stays.
    if reader.wants_last_pass {
        reader.last_pass = true;
        for (source, include) in files {
            reader.file(source, *include, true, 0)?;
        }
    }
    Ok(reader.settings)
}

struct Reader<'a> {
    host: &'a str,
    settings: Settings,
    last_pass: bool,
    wants_last_pass: bool,
}

impl Reader<'_> {
    /// `applies`: whether the place that includes this file does.
    fn file(&mut self, source: &Source, include: Include<'_>, applies: bool, depth: u32) -> Result<()> {
        if depth > DEPTH {
            return Err(Error::invalid(format!("{}: too many files include each other", source.path.display())));
        }
        let mut active = applies;
        for (n, line) in source.text.lines().enumerate() {
            let at = format!("{}:{}", source.path.display(), n + 1);
            let Some((keyword, values)) = words(line).map_err(|why| Error::invalid(format!("{at}: {why}")))? else { continue };
            match keyword.as_str() {
                "host" => active = applies && pattern::list_matches(values.iter().map(String::as_str), self.host),
                "match" => active = applies && self.match_block(&values, &at),
                "include" if active => {
                    for file in values.iter().flat_map(|v| include(v)) {
                        self.file(&file, include, active, depth + 1)?;
                    }
                }
                _ if active => self.set(&keyword, values, &at)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a `Match` block applies: `all`, and `final all` in the last pass. Others are skipped, and that is said.
    fn match_block(&mut self, criteria: &[String], at: &str) -> bool {
        let criteria: Vec<String> = criteria.iter().map(|c| c.to_ascii_lowercase()).collect();
        match criteria.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["all"] => true,
            ["final"] | ["final", "all"] => {
                self.wants_last_pass = true;
                self.last_pass
            }
            _ => {
                self.warn(format!("{at}: this Match block is skipped: smartup reads Host blocks and `Match all` only"));
                false
            }
        }
    }

    fn set(&mut self, keyword: &str, values: Vec<String>, at: &str) -> Result<()> {
        let Some(value) = values.first().cloned() else { return Ok(()) };
        let s = &mut self.settings;
        match keyword {
            "hostname" => first(&mut s.host_name, value),
            "user" => first(&mut s.user, value),
            "port" => {
                let port = value.parse().ok().filter(|p| *p != 0);
                first(&mut s.port, port.ok_or_else(|| Error::invalid(format!("{at}: Port {value} is not a number from 1 to 65535")))?);
            }
            "identityfile" if !s.identity_files.contains(&value) => {
                s.identity_files.push(value);
            }
            "identitiesonly" => first(&mut s.identities_only, yes(&value, at)?),
            "identityagent" => first(&mut s.identity_agent, value),
            "proxyjump" => first(&mut s.proxy_jump, value),
            "proxycommand" if s.proxy_jump.is_none() && !value.eq_ignore_ascii_case("none") => {
                self.warn(format!("{at}: ProxyCommand is skipped: smartup knows ProxyJump only"));
            }
            "userknownhostsfile" => first(&mut s.user_known_hosts, values),
            "globalknownhostsfile" => first(&mut s.global_known_hosts, values),
            "hostkeyalias" => first(&mut s.host_key_alias, value),
            "hashknownhosts" => first(&mut s.hash_known_hosts, yes(&value, at)?),
            "revokedhostkeys" if !value.eq_ignore_ascii_case("none") => {
                self.warn(format!("{at}: RevokedHostKeys is not read: mark revoked keys with @revoked in known_hosts"));
            }
            _ => {}
        }
        Ok(())
    }

    fn warn(&mut self, warning: String) {
        if !self.settings.warnings.contains(&warning) {
            self.settings.warnings.push(warning);
        }
    }
}

fn first<T>(slot: &mut Option<T>, value: T) {
    slot.get_or_insert(value);
}

fn yes(value: &str, at: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err(Error::invalid(format!("{at}: {value} is neither yes nor no"))),
    }
}

/// The keyword of a line, in lower case, and its values; None for an empty line or a comment.
///
/// A keyword ends at white space, or at one `=` with or without white space around it. Values may stand in quotes, in
/// which a backslash keeps a quote or a backslash; a `#` at the beginning of a value is a comment to the line's end.
fn words(line: &str) -> Result<Option<(String, Vec<String>)>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line.find(|c: char| c.is_ascii_whitespace() || c == '=').unwrap_or(line.len());
    let (keyword, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let mut rest = rest.strip_prefix('=').unwrap_or(rest).chars().peekable();

    let mut values = Vec::new();
    loop {
        while rest.next_if(char::is_ascii_whitespace).is_some() {}
        match rest.peek() {
            None | Some('#') => break,
            Some(_) => {}
        }
        let mut value = String::new();
        let mut quote = None;
        loop {
            match rest.next() {
                None if quote.is_some() => return Err("a quote is not closed"),
                None => break,
                Some(c) if quote == Some(c) => quote = None,
                Some(c @ ('"' | '\'')) if quote.is_none() => quote = Some(c),
                Some('\\') if rest.peek().is_some_and(|c| matches!(c, '"' | '\'' | '\\') || (quote.is_none() && *c == ' ')) => {
                    value.extend(rest.next());
                }
                Some(c) if quote.is_none() && c.is_ascii_whitespace() => break,
                Some(c) => value.push(c),
            }
        }
        values.push(value);
    }
    if values.is_empty() { Err("a keyword without a value") } else { Ok(Some((keyword.to_ascii_lowercase(), values))) }
}

/// What stands for tokens and variables in values (`ssh_config(5)`, TOKENS and ENVIRONMENT VARIABLES).
pub(super) struct Tokens<'a> {
    /// `~`, `%d`.
    pub(super) home: &'a Path,
    /// `%u`.
    pub(super) local_user: &'a str,
    /// `%n`: the name as it was given.
    pub(super) alias: &'a str,
    /// `%h`.
    pub(super) host: &'a str,
    /// `%p`.
    pub(super) port: u16,
    /// `%r`.
    pub(super) user: &'a str,
    /// `${NAME}`.
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
}

impl Tokens<'_> {
    /// A path with its tokens replaced.
    ///
    /// # Errors
    /// Invalid when a token is not known here, or a variable is not set.
    pub(super) fn path(&self, value: &str) -> Result<PathBuf> {
        let bad = |why: String| Error::invalid(format!("ssh_config: {value}: {why}"));
        let mut text = String::new();
        let mut rest = value;
        while let Some(at) = rest.find(['%', '$']) {
            text.push_str(&rest[..at]);
            if let Some(inner) = rest[at..].strip_prefix("${") {
                let (name, after) = inner.split_once('}').ok_or_else(|| bad("a ${ is not closed".to_owned()))?;
                text.push_str(&(self.env)(name).ok_or_else(|| bad(format!("the variable {name} is not set")))?);
                rest = after;
                continue;
            }
            if let Some(after) = rest[at..].strip_prefix('$') {
                text.push('$');
                rest = after;
                continue;
            }
            let letter = rest[at..].chars().nth(1).ok_or_else(|| bad("it ends with %".to_owned()))?;
            match letter {
                '%' => text.push('%'),
                'd' => text.push_str(&self.home.display().to_string()),
                'h' => text.push_str(self.host),
                'n' => text.push_str(self.alias),
                'p' => text.push_str(&self.port.to_string()),
                'r' => text.push_str(self.user),
                'u' => text.push_str(self.local_user),
                other => return Err(bad(format!("smartup does not know the token %{other}"))),
            }
            rest = &rest[at + 1 + letter.len_utf8()..];
        }
        text.push_str(rest);
        Ok(home_of(&text, self.home))
    }
}

/// The host's own name with `%h` and `%%` replaced, the only tokens that `HostName` takes.
pub(super) fn host_name(value: &str, alias: &str) -> String {
    let mut name = String::new();
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('%', Some('h')) => {
                chars.next();
                name.push_str(alias);
            }
            ('%', Some('%')) => {
                chars.next();
                name.push('%');
            }
            _ => name.push(c),
        }
    }
    name
}

/// A path that may begin with `~/`.
pub(super) fn home_of(path: &str, home: &Path) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.to_owned() }
    }

    fn nothing(_: &str) -> Vec<Source> {
        Vec::new()
    }

    fn read(text: &str, host: &str) -> Settings {
        settings(&[(source("config", text), &nothing)], host).unwrap()
    }

    #[test]
    fn the_first_value_wins_and_keys_add_up() {
        let text = "
            User first
            Host h1 *.example !bad.example
                Port 2222
                User second
                IdentityFile ~/.ssh/one
            Host *
                port = 22
                IdentityFile=\"~/.ssh/with space\"
                IdentityFile ~/.ssh/one
                HOSTNAME %h.internal # a comment
                UserKnownHostsFile ~/a \"~/b c\"
                SendEnv LANG LC_*
        ";
        let said = read(text, "h1");
        assert_eq!((said.user.as_deref(), said.port), (Some("first"), Some(2222)));
        assert_eq!(said.identity_files, ["~/.ssh/one", "~/.ssh/with space"]);
        assert_eq!(host_name(&said.host_name.unwrap(), "h1"), "h1.internal");
        assert_eq!(said.user_known_hosts.unwrap(), ["~/a", "~/b c"]);
        assert_eq!(read(text, "bad.example").port, Some(22));
        assert_eq!(said.warnings, Vec::<String>::new());
    }

    #[test]
    fn of_several_files_the_first_counts() {
        let files: [(Source, Include<'_>); 2] =
            [(source("own", "Host h1\n Port 1\n"), &nothing), (source("system", "Port 2\nUser x\n"), &nothing)];
        let said = settings(&files, "h1").unwrap();
        assert_eq!((said.port, said.user.as_deref()), (Some(1), Some("x")));
        // A Host block ends with its file.
        assert_eq!(settings(&files, "h2").unwrap().port, Some(2));
    }

    #[test]
    fn what_is_included_applies_where_it_is_included() {
        let include = |pattern: &str| match pattern {
            "a" => vec![source("a", "Port 1\nHost other\nUser other\n")],
            "b" => vec![source("b1", "User b1\n"), source("b2", "User b2\n")],
            _ => vec![],
        };
        let text = "Host h1\n Include a none\n IdentityFile after\nHost *\n Include b\n";
        let said = |host| settings(&[(source("config", text), &include as Include<'_>)], host).unwrap();
        let h1 = said("h1");
        assert_eq!((h1.port, h1.user.as_deref(), &h1.identity_files[..]), (Some(1), Some("b1"), &["after".to_owned()][..]));
        let other = said("other");
        assert_eq!((other.port, other.user.as_deref()), (None, Some("b1")));
    }

    #[test]
    fn files_that_include_each_other_are_refused() {
        let include = |_: &str| vec![source("again", "Include again\n")];
        assert!(settings(&[(source("config", "Include again\n"), &include as Include<'_>)], "h1").is_err());
    }

    #[test]
    fn match_blocks_are_not_misread() {
        let text =
            "Match host h1\n User wrong\nMatch all\n Port 3\nMatch final all\n Port 4\n IdentityFile last\nHost *\n Port 5\n User right\n";
        let said = read(text, "h1");
        assert_eq!((said.user.as_deref(), said.port), (Some("right"), Some(3)));
        assert_eq!(said.identity_files, ["last"]);
        insta::assert_snapshot!(said.warnings.join("\n"), @"config:1: this Match block is skipped: smartup reads Host blocks and `Match all` only");
        // What `Match final` says counts after all that the first reading found.
        assert_eq!(read("Match final\n Port 4\nHost *\n Port 5\n", "h1").port, Some(5));
    }

    #[test]
    fn what_is_not_read_but_matters_is_said() {
        let said = read("ProxyCommand nc %h %p\nRevokedHostKeys /etc/revoked\n", "h1");
        insta::assert_snapshot!(said.warnings.join("\n"), @"
        config:1: ProxyCommand is skipped: smartup knows ProxyJump only
        config:2: RevokedHostKeys is not read: mark revoked keys with @revoked in known_hosts
        ");
        assert!(read("ProxyJump none\nProxyCommand nc %h %p\n", "h1").warnings.is_empty());
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        for (text, said) in [
            ("\nPort x\n", "config:2: Port x is not a number from 1 to 65535"),
            ("Port 0", "config:1: Port 0 is not"),
            ("User \"open", "config:1: a quote is not closed"),
            ("User", "config:1: a keyword without a value"),
            ("IdentitiesOnly perhaps", "config:1: perhaps is neither yes nor no"),
        ] {
            let e = settings(&[(source("config", text), &nothing as Include<'_>)], "h1").unwrap_err();
            assert!(e.what.starts_with(said), "{}", e.what);
        }
    }

    #[test]
    fn tokens_and_variables_are_replaced() {
        let env = |name: &str| (name == "RUN").then(|| "/run/me".to_owned());
        let tokens =
            Tokens { home: Path::new("/home/u"), local_user: "u", alias: "h1", host: "h1.example", port: 2222, user: "root", env: &env };
        for (value, path) in [
            ("~/.ssh/id", "/home/u/.ssh/id"),
            ("~", "/home/u"),
            ("~other/id", "~other/id"),
            ("%d/%u@%n-%h:%p-%r%%", "/home/u/u@h1-h1.example:2222-root%"),
            ("${RUN}/agent", "/run/me/agent"),
            ("a$b", "a$b"),
        ] {
            assert_eq!(tokens.path(value).unwrap(), Path::new(path));
        }
        for bad in ["%C", "%", "${NONE}", "${RUN", "%é"] {
            assert!(tokens.path(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "([\"'\\\\#=%$ \t\na-z*!]|Host|Match|Include|Port|final|all){0,40}", host in "[a-z*!]{0,4}") {
            let _ = settings(&[(source("config", &text), &nothing as Include<'_>)], &host);
        }

        #[test]
        fn a_quoted_value_is_read_as_it_is(value in "[^\n\r\0]{1,20}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let (keyword, values) = words(&format!("  IdentityFile = \"{quoted}\" \"next\"")).unwrap().unwrap();
            prop_assert_eq!((keyword.as_str(), values), ("identityfile", vec![value, "next".to_owned()]));
        }

        #[test]
        fn the_first_block_that_matches_decides(blocks in prop::collection::vec((prop::sample::select(vec!["h1", "h2", "h?", "*", "!h1 *", "x h1"]), 1..9_u16), 0..6)) {
            let text = blocks.iter().map(|(patterns, port)| format!("Host {patterns}\n  Port {port}")).collect::<Vec<_>>().join("\n");
            let first = blocks.iter().find(|(patterns, _)| matches!(*patterns, "h1" | "h?" | "*" | "x h1")).map(|(_, port)| *port);
            prop_assert_eq!(read(&text, "h1").port, first);
        }
    }
}

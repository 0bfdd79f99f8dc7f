use std::fmt;

/// Where something stands in the text: line and column from 1, the length in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub line: usize,
    pub column: usize,
    pub length: usize,
}

impl Place {
    /// The text as a whole.
    pub const WHOLE: Self = Self { line: 1, column: 1, length: 0 };
}

/// One thing that is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    snippet: Option<Snippet>,
}

/// All that is wrong in a file, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl Problem {
    pub(super) fn new(source: &str, at: Place, message: impl Into<String>) -> Self {
        // what was read is quoted, and must not move the cursor of a terminal
        let message = message.into().chars().map(|c| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() }).collect();
        Self { line: at.line, column: at.column, message, hint: None, snippet: Snippet::new(source, at) }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl Problems {
    /// All of them as text for people, the file's name before each.
    pub fn text(&self, file: &str) -> String {
        let each = |p: &Problem| {
            let snippet = p.snippet.as_ref().map(|s| s.text(p.line)).unwrap_or_default();
            let hint = p.hint.as_ref().map(|h| format!("\n{:MARGIN$}   hint: {h}", "")).unwrap_or_default();
            format!("{file}:{}:{}: {}{snippet}{hint}", p.line, p.column, p.message)
        };
        self.0.iter().map(each).collect::<Vec<_>>().join("\n")
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text("cluster.yaml"))
    }
}

/// How wide line numbers are printed.
const MARGIN: usize = 4;
/// How much of a line is shown, in characters.
const WIDTH: usize = 100;

/// A line, and what of it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Snippet {
    line: String,
    start: usize,
    length: usize,
}

impl Snippet {
    fn new(source: &str, at: Place) -> Option<Self> {
        let line = source.split('\n').nth(at.line.checked_sub(1)?)?.trim_end();
        if line.is_empty() || at.length == 0 {
            return None;
        }
        let line: Vec<char> = without_secret(line).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let column = at.column.saturating_sub(1).min(line.len());
        let from = (column + 20).saturating_sub(WIDTH);
        let shown = line.get(from..line.len().min(from + WIDTH))?;
        let start = column - from;
        Some(Self { line: shown.iter().collect(), start, length: at.length.min(shown.len() - start.min(shown.len())).max(1) })
    }

    fn text(&self, number: usize) -> String {
        let Self { line, start, length } = self;
        format!("\n{number:>MARGIN$} | {line}\n{:MARGIN$} | {:start$}{}", "", "", "^".repeat(*length))
    }
}

/// Words that name a secret, where `:` or `=` follows.
const SECRETS: [&str; 6] = ["token", "password", "passphrase", "passwd", "pass", "secret"];

/// Whether a key of this name would hold a secret.
pub(super) fn names_a_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    SECRETS.iter().any(|s| key.ends_with(s))
}

/// The line up to where a secret may begin: someone may have put one in, and it must not be printed.
fn without_secret(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let secret = |word: &&str| {
        lower.match_indices(*word).find_map(|(at, _)| {
            let end = at + word.len();
            let rest = lower.get(end..)?;
            let sign = rest.find(|c: char| !c.is_whitespace() && !"'\"".contains(c))?;
            rest.get(sign..)?.starts_with([':', '=']).then_some(end + sign + 1)
        })
    };
    match SECRETS.iter().filter_map(secret).min().and_then(|end| line.get(..end)) {
        Some(shown) if shown.len() < line.len() => format!("{shown} …"),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        for (line, shown) in [
            ("token: abc", "token: …"),
            ("  - {host: a, Token: abc}", "  - {host: a, Token: …"),
            ("\"password\" : abc", "\"password\" : …"),
            ("k3sArgs: [--token=abc]", "k3sArgs: [--token= …"),
            ("tokenFile: abc", "tokenFile: abc"),
            ("token:", "token:"),
            ("authPass: abc # and token: x", "authPass: …"),
        ] {
            assert_eq!(without_secret(line), shown);
        }
    }

    #[test]
    fn long_lines_are_cut() {
        let source = format!("{}bad{}", "x".repeat(300), "y".repeat(300));
        let text = Snippet::new(&source, Place { line: 1, column: 301, length: 3 }).unwrap().text(1);
        let mut lines = text.trim_start().lines();
        let (line, caret) = (lines.next().unwrap(), lines.next().unwrap());
        let at = caret.find('^').unwrap() - caret.find('|').unwrap() + line.find('|').unwrap();
        assert_eq!(&line[at..at + 3], "bad");
        assert!(line.len() < 120 && caret.ends_with(" ^^^"), "{text}");
    }

    proptest::proptest! {
        #[test]
        fn any_place_in_any_text(source in "(?s).{0,80}", line in 0usize..6, column in 0usize..200, length in 0usize..200) {
            let problem = Problem::new(&source, Place { line, column, length }, "wrong");
            let text = Problems(vec![problem]).text("f");
            let prefix = format!("f:{line}:{column}: wrong");
            assert!(text.starts_with(&prefix));
        }
    }
}

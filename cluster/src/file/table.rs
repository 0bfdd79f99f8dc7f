use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use super::problem::{Place, Problem, names_a_secret};
use super::tree::{Key, Node, Value};
use crate::nearest;

/// What reading needs everywhere: the text for snippets, the environment, and what has been found wrong so far.
pub(super) struct Reader<'a> {
    pub source: &'a str,
    pub env: &'a dyn Fn(&str) -> Option<String>,
    pub problems: Vec<Problem>,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub value: T,
    pub at: Place,
}

impl Reader<'_> {
    pub fn wrong(&mut self, at: Place, message: impl Into<String>) {
        self.problems.push(Problem::new(self.source, at, message));
    }

    pub fn wrong_with_hint(&mut self, at: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(Problem::new(self.source, at, message).hint(hint));
    }

    /// The text of a scalar, variables replaced. What a variable holds is never read as YAML.
    fn text(&mut self, node: &Node, what: &str) -> Option<String> {
        let text = match &node.value {
            Value::Text(text) => text,
            Value::Nothing => {
                self.wrong_with_hint(node.at, format!("'{what}' has no value"), "give it one, or leave the key out");
                return None;
            }
            Value::List(_) | Value::Table(_) => {
                self.wrong(node.at, format!("'{what}' must be a single value"));
                return None;
            }
        };
        match substitute(text, self.env) {
            Ok(text) => Some(text),
            Err(e) => {
                let at = self.within(node.at, &e.found);
                self.wrong_with_hint(at, e.message, e.hint);
                None
            }
        }
    }

    /// Where `part` stands within the line that `at` is on, from its column on; `at` itself where it does not.
    fn within(&self, at: Place, part: &str) -> Place {
        let line: Option<String> = self.source.split('\n').nth(at.line - 1).map(|l| l.chars().skip(at.column - 1).collect());
        match line.and_then(|l| l.find(part).map(|byte| l[..byte].chars().count())) {
            Some(offset) => Place { column: at.column + offset, length: part.chars().count(), ..at },
            None => at,
        }
    }
}

/// A variable that cannot be replaced.
struct Unreplaced {
    /// As it stands in the text.
    found: String,
    message: String,
    hint: String,
}

/// Replaces each `${NAME}`; `$${` stands for `${`. What comes in is not looked at again.
fn substitute(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Unreplaced> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if let Some(after) = from.strip_prefix("$${") {
            out.push_str("${");
            rest = after;
        } else if let Some(inner) = from.strip_prefix("${") {
            let end = inner.find('}');
            let name = end.and_then(|end| inner.get(..end)).unwrap_or(inner);
            let found = from.get(..2 + name.len() + usize::from(end.is_some())).unwrap_or(from).to_owned();
            let bad = |message: String, hint: String| Err(Unreplaced { found: found.clone(), message, hint });
            if end.is_none() || !is_variable(name) {
                return bad(format!("'{found}' is not of the form ${{NAME}}"), "write $${ where no variable is meant".into());
            }
            match env(name) {
                Some(value) => out.push_str(&value),
                None => return bad(format!("the environment has no variable {name}"), format!("set {name} before the command")),
            }
            rest = inner.get(name.len() + 1..).unwrap_or_default();
        } else {
            out.push('$');
            rest = from.get(1..).unwrap_or_default();
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// A name as POSIX has it: letters, digits and `_`, no digit first.
fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A mapping whose keys are taken one after the other; what is left in the end is unknown.
pub(super) struct Table {
    /// What it describes, as in `a host`.
    what: &'static str,
    pub at: Place,
    entries: Vec<(Key, Node)>,
    known: Vec<&'static str>,
}

impl Table {
    pub fn new(reader: &mut Reader<'_>, node: Node, what: &'static str, example: &str) -> Option<Self> {
        if let Value::Table(entries) = node.value {
            Some(Self { what, at: node.at, entries, known: Vec::new() })
        } else {
            reader.wrong_with_hint(node.at, format!("{what} is written as keys with values"), format!("for example {example}"));
            None
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        let index = self.entries.iter().position(|(k, _)| k.name == key)?;
        let (key, node) = self.entries.swap_remove(index);
        // nothing is nowhere; the key can be pointed at
        let at = if matches!(node.value, Value::Nothing) { key.at } else { node.at };
        Some(Node { at, ..node })
    }

    /// A value of any type that has a text form.
    pub fn value<T: FromStr<Err: Display>>(&mut self, reader: &mut Reader<'_>, key: &'static str) -> Option<At<T>> {
        self.parsed(reader, key, str::parse)
    }

    /// A value that must be there.
    pub fn required<T: FromStr<Err: Display>>(&mut self, reader: &mut Reader<'_>, key: &'static str, hint: &str) -> Option<At<T>> {
        self.must_have(reader, key, hint);
        self.value(reader, key)
    }

    fn must_have(&self, reader: &mut Reader<'_>, key: &str, hint: &str) {
        if !self.entries.iter().any(|(k, _)| k.name == key) {
            reader.wrong_with_hint(self.at, format!("{} has no '{key}'", self.what), hint);
        }
    }

    /// A value that `parse` makes of its text.
    pub fn parsed<T, E: Display>(
        &mut self,
        reader: &mut Reader<'_>,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<At<T>> {
        let node = self.take(key)?;
        item(reader, &node, key, parse)
    }

    /// `true` or `false`.
    pub fn flag(&mut self, reader: &mut Reader<'_>, key: &'static str) -> Option<At<bool>> {
        self.parsed(reader, key, |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(format!("'{text}' is neither true nor false")),
        })
    }

    /// The path of a file.
    pub fn path(&mut self, reader: &mut Reader<'_>, key: &'static str) -> Option<At<PathBuf>> {
        self.parsed(reader, key, path)
    }

    /// A list of single values.
    pub fn list<T, E: Display>(
        &mut self,
        reader: &mut Reader<'_>,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let nodes = self.nodes(reader, key)?;
        Some(nodes.value.iter().filter_map(|node| item(reader, node, key, &parse)).map(|v| v.value).collect())
    }

    fn nodes(&mut self, reader: &mut Reader<'_>, key: &'static str) -> Option<At<Vec<Node>>> {
        let node = self.take(key)?;
        if let Value::List(nodes) = node.value {
            return Some(At { value: nodes, at: node.at });
        }
        reader.wrong_with_hint(node.at, format!("'{key}' must be a list"), "write each item on a line of its own, after '- '");
        None
    }

    /// A list of anything that must be there.
    pub fn required_nodes(&mut self, reader: &mut Reader<'_>, key: &'static str, hint: &str) -> Option<At<Vec<Node>>> {
        self.must_have(reader, key, hint);
        self.nodes(reader, key)
    }

    /// A mapping within.
    pub fn table(&mut self, reader: &mut Reader<'_>, key: &'static str, example: &str) -> Option<Self> {
        let node = self.take(key)?;
        Self::new(reader, node, key, example)
    }

    /// Reports all keys that nobody asked for.
    pub fn end(self, reader: &mut Reader<'_>) {
        for (key, _) in &self.entries {
            let hint = if names_a_secret(&key.name) {
                "secrets do not stand in this file: tokenFile and vrrp.authPassFile name files that hold them".to_owned()
            } else if let Some(near) = nearest(&key.name, self.known.iter().copied()) {
                format!("did you mean '{near}'?")
            } else {
                format!("known are {}", self.known.join(", "))
            };
            reader.wrong_with_hint(key.at, format!("unknown key '{}' in {}", key.name, self.what), hint);
        }
    }
}

fn item<T, E: Display>(reader: &mut Reader<'_>, node: &Node, key: &str, parse: impl Fn(&str) -> Result<T, E>) -> Option<At<T>> {
    let text = reader.text(node, key)?;
    match parse(&text) {
        Ok(value) => Some(At { value, at: node.at }),
        Err(e) => {
            reader.wrong(node.at, e.to_string());
            None
        }
    }
}

/// A path, which is not empty.
pub(super) fn path(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() { Err("the path is empty") } else { Ok(text.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<String, String> {
        let env = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "B_2" => Some("${A}".to_owned()),
            _ => None,
        };
        substitute(text, &env).map_err(|e| format!("{} at {}", e.message, e.found))
    }

    #[test]
    fn variables() {
        for (text, replaced) in [
            ("", ""),
            ("a", "a"),
            ("${A}", "1"),
            ("x${A}y${A}z", "x1y1z"),
            ("${B_2}", "${A}"),
            ("$${A}", "${A}"),
            ("$A $ $$ a$", "$A $ $$ a$"),
            ("ä${A}ö", "ä1ö"),
        ] {
            assert_eq!(with(text).unwrap(), replaced);
        }
        assert_eq!(with("x${NO}").unwrap_err(), "the environment has no variable NO at ${NO}");
        for bad in ["${", "${}", "${A", "${1}", "${A:-1}", "${a b}", "${ä}"] {
            assert!(with(bad).unwrap_err().contains("not of the form"), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_without_dollars_stays(text in "[^$]*", value in ".*") {
            let env = |_: &str| Some(value.clone());
            assert_eq!(substitute(&text, &env).ok().as_deref(), Some(text.as_str()));
            assert_eq!(substitute(&format!("{text}${{X}}"), &env).ok(), Some(format!("{text}{value}")));
        }
    }
}

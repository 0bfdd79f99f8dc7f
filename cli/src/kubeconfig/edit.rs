//! Changes to a YAML text, made where the nodes stand.

use std::ops::Range;

use super::yaml::{Kind, Node, Style};

/// What is written into a text.
pub enum Value<'a> {
    /// A string.
    Text(&'a str),
    /// A mapping.
    Mapping(Vec<(&'a str, Value<'a>)>),
    /// A list.
    List(Vec<Value<'a>>),
}

impl Value<'_> {
    /// By indentation, without the indentation of the first line.
    pub fn block(&self, indent: usize, newline: &str) -> String {
        let pad = |n: usize| format!("{newline}{}", " ".repeat(n));
        match self {
            Self::Text(text) => scalar(text),
            Self::Mapping(pairs) => {
                let pair = |(key, value): &(&str, Self)| match value {
                    Self::Text(text) => format!("{key}: {}", scalar(text)),
                    Self::Mapping(_) => format!("{key}:{}{}", pad(indent + 2), value.block(indent + 2, newline)),
                    Self::List(_) => format!("{key}:{}{}", pad(indent), value.block(indent, newline)),
                };
                pairs.iter().map(pair).collect::<Vec<_>>().join(&pad(indent))
            }
            Self::List(items) => items.iter().map(|i| format!("- {}", i.block(indent + 2, newline))).collect::<Vec<_>>().join(&pad(indent)),
        }
    }

    /// In one line, as JSON, which is YAML anywhere.
    fn flow(&self) -> String {
        match self {
            Self::Text(text) => quoted(text),
            Self::Mapping(pairs) => format!("{{{}}}", flow_pairs(pairs)),
            Self::List(items) => format!("[{}]", items.iter().map(Value::flow).collect::<Vec<_>>().join(", ")),
        }
    }
}

fn flow_pairs(pairs: &[(&str, Value<'_>)]) -> String {
    pairs.iter().map(|(key, value)| format!("{}: {}", quoted(key), value.flow())).collect::<Vec<_>>().join(", ")
}

/// JSON's strings are YAML's double-quoted ones too (YAML 1.2.2, 1.2).
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Quoted, unless every YAML reader takes it for a string in a block.
fn scalar(text: &str) -> String {
    // YAML 1.1 has more words for true and false than 1.2, and Kubernetes reads 1.1
    const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./+=:[]@".contains(c))
        && !text.ends_with(':')
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { quoted(text) }
}

/// Changes to one text, all of them in terms of where things stand before any is made.
pub struct Edits<'t> {
    text: &'t str,
    newline: &'static str,
    made: Vec<(Range<usize>, String)>,
}

impl<'t> Edits<'t> {
    /// None yet. New lines end as those of the text do.
    pub fn of(text: &'t str) -> Self {
        Self { text, newline: if text.contains("\r\n") { "\r\n" } else { "\n" }, made: Vec::new() }
    }

    /// Puts a document behind all that is there, which are comments at most.
    pub fn append(&mut self, value: &Value<'_>) {
        let before = if self.text.is_empty() || self.text.ends_with('\n') { "" } else { self.newline };
        let end = self.text.len();
        self.made.push((end..end, format!("{before}{}{}", value.block(0, self.newline), self.newline)));
    }

    /// Gives keys of a mapping these strings: what is so already is left alone, what is missing is added.
    pub fn set(&mut self, mapping: &Node, fields: &[(&str, &str)]) {
        let Kind::Mapping { style, pairs } = &mapping.kind else { return };
        let mut missing = Vec::new();
        for (key, value) in fields {
            match pairs.iter().find(|(k, _)| k.text() == Some(key)) {
                None => missing.push((*key, Value::Text(value))),
                Some((_, old)) if old.text() == Some(value) && !old.is_null() => {}
                Some((_, old)) => {
                    let space = if old.at.is_empty() { " " } else { "" };
                    let new = if matches!(style, Style::Flow) { quoted(value) } else { scalar(value) };
                    self.made.push((old.at.clone(), format!("{space}{new}")));
                }
            }
        }
        self.add(mapping, missing);
    }

    /// Adds keys at the end of a mapping.
    pub fn add(&mut self, mapping: &Node, new: Vec<(&str, Value<'_>)>) {
        let Kind::Mapping { style, pairs } = &mapping.kind else { return };
        match (style, pairs.last()) {
            _ if new.is_empty() => {}
            (Style::Block, Some((_, last))) => {
                let column = pairs.first().map_or(0, |(key, _)| key.column);
                let new = self.line(column, &Value::Mapping(new).block(column, self.newline));
                self.insert(self.line_end(last.at.end), new);
            }
            (_, Some((_, last))) => self.insert(last.at.end, format!(", {}", flow_pairs(&new))),
            (_, None) => self.insert(mapping.at.start + 1, flow_pairs(&new)),
        }
    }

    /// Adds an item at the end of a list that is the value of a key in `mapping`; a list that is left out becomes one.
    pub fn push(&mut self, mapping: &Node, list: &Node, item: Value<'_>) {
        let behind = if let Kind::Sequence { style, items } = &list.kind { items.last().map(|item| (*style, item.at.end)) } else { None };
        let in_block = match &mapping.kind {
            Kind::Mapping { style: Style::Block, pairs } => pairs.first().map(|(key, _)| key.column),
            _ => None,
        };
        let (at, new) = match (behind, in_block) {
            (Some((Style::Block, end)), _) => {
                let end = self.line_end(end);
                (end..end, self.line(list.column, &Value::List(vec![item]).block(list.column, self.newline)))
            }
            (Some((Style::Flow, end)), _) => (end..end, format!(", {}", item.flow())),
            (None, Some(column)) => {
                let end = self.line_end(list.at.end);
                // what stands for nothing goes, with the space before it; what is left out has nothing to go
                let start = self.text[..list.at.start].trim_end_matches(' ').len();
                let at = if list.at.is_empty() { end..end } else { start..list.at.end };
                (at, self.line(column, &Value::List(vec![item]).block(column, self.newline)))
            }
            (None, None) => {
                let space = if list.at.is_empty() { " " } else { "" };
                (list.at.clone(), format!("{space}{}", Value::List(vec![item]).flow()))
            }
        };
        self.made.push((at, new));
    }

    /// The text with the changes.
    pub fn apply(mut self) -> String {
        // stable: what goes to the same place stays in its order
        self.made.sort_by_key(|(at, _)| at.start);
        let (mut out, mut done) = (String::with_capacity(self.text.len()), 0);
        for (at, new) in &self.made {
            out.push_str(self.text.get(done..at.start).unwrap_or_default());
            out.push_str(new);
            done = at.end;
        }
        out.push_str(self.text.get(done..).unwrap_or_default());
        out
    }

    fn line(&self, column: usize, text: &str) -> String {
        format!("{}{}{text}", self.newline, " ".repeat(column))
    }

    fn insert(&mut self, at: usize, new: String) {
        self.made.push((at..at, new));
    }

    /// The end of the line in which a node ends, before its line break: a comment behind the node stays with it.
    fn line_end(&self, end: usize) -> usize {
        let (before, after) = self.text.split_at(end);
        // a block scalar ends behind its line break
        let line = if before.ends_with('\n') { &before[..end - 1] } else { &self.text[..end + after.find('\n').unwrap_or(after.len())] };
        line.strip_suffix('\r').unwrap_or(line).len()
    }
}

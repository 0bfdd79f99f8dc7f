use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Error, Location, MessageFormatter as _, Spanned, UserMessageFormatter};

use super::problem::{Place, Problem};

/// A value and where it is written; for an alias that is where its anchor is.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub at: Place,
    pub value: Value,
}

/// What YAML knows, but for the types of scalars: which one is meant, the key says. `12e4` may be the name of a host.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Nothing,
    Text(String),
    List(Vec<Node>),
    Table(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(super) struct Key {
    pub at: Place,
    pub name: String,
}

/// Reads YAML with its anchors, aliases and merge keys; None where there is nothing but comments.
pub(super) fn load(source: &str) -> Result<Option<Node>, Box<Problem>> {
    // far more than 1000 hosts need, far less than hurts
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_nodes: 100_000, max_events: 300_000, max_depth: 32, max_documents: 64 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000, max_replay_stack_depth: 16 },
        strict_booleans: true,
        reject_unsupported_tags: true,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    };
    let documents: Vec<Spanned<Raw>> =
        serde_saphyr::from_multiple_with_options(source, options).map_err(|e| Box::new(problem(source, &e)))?;
    let mut documents = documents.into_iter().map(|d| node(source, d));
    match (documents.next(), documents.next()) {
        (_, Some(second)) => Err(Box::new(
            Problem::new(source, second.at, "a second document begins here")
                .hint("a file describes one cluster; take out all but one document, each begins after '---'"),
        )),
        (first, None) => Ok(first),
    }
}

/// A value as serde sees it.
enum Raw {
    Nothing,
    /// A plain word that YAML takes for a number or a truth value.
    Plain(String),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Table(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Nothing)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
        Ok(Raw::Plain(v.to_string()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
        Ok(Raw::Plain(v.to_string()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Raw, E> {
        Ok(Raw::Plain(v.to_string()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Raw, E> {
        Ok(Raw::Plain(v.to_string()))
    }

    fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
        Ok(Raw::Text(v.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut table = Vec::new();
        while let Some(entry) = map.next_entry()? {
            table.push(entry);
        }
        Ok(Raw::Table(table))
    }
}

fn node(source: &str, raw: Spanned<Raw>) -> Node {
    let value = match raw.value {
        Raw::Nothing => Value::Nothing,
        Raw::Plain(canonical) => Value::Text(written(source, &raw.defined).unwrap_or(canonical)),
        Raw::Text(text) => Value::Text(text),
        Raw::List(list) => Value::List(list.into_iter().map(|item| node(source, item)).collect()),
        Raw::Table(table) => Value::Table(
            table.into_iter().map(|(key, value)| (Key { at: place(&key.defined), name: key.value }, node(source, value))).collect(),
        ),
    };
    Node { at: place(&raw.defined), value }
}

/// A plain word as it is written: YAML would make 120000 of `12e4`.
fn written(source: &str, at: &Location) -> Option<String> {
    let start = usize::try_from(at.span().byte_offset()?).ok()?;
    let length = usize::try_from(at.span().byte_len()?).ok()?;
    let text = source.get(start..start.checked_add(length)?)?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn place(at: &Location) -> Place {
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).max(1);
    Place { line: number(at.line()), column: number(at.column()), length: number(at.span().len()) }
}

/// What the parser says, in our words where its own are about its settings or its callers.
fn problem(source: &str, error: &Error) -> Problem {
    let at = error.location().map_or(Place::WHOLE, |l| place(&l));
    let error = match error {
        Error::AliasError { error, .. } => error,
        other => other,
    };
    let new = |message: &str| Problem::new(source, at, message);
    match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => new(&format!("the key '{key}' is there twice")),
        Error::UnknownAnchor { .. } => new("there is no anchor of this name before it"),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. } => new("the file, with its aliases expanded, is too large or nested too deeply"),
        _ => {
            let message = UserMessageFormatter.format_message(error);
            let problem = new(&format!("this cannot be read as YAML: {message}"));
            let line = source.split('\n').nth(at.line - 1).unwrap_or_default();
            if message.contains("a tab") || message.contains("tabs ") {
                problem.hint("YAML is indented with spaces, never with tabs")
            } else if line.contains("${") && line.contains(['[', ',']) {
                problem.hint("within [ ] and { }, a value with ${NAME} needs quotes: \"${NAME}\"")
            } else {
                problem
            }
        }
    }
}

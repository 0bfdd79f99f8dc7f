//! A YAML text as a tree that knows where each node stands, so that a change can leave every other byte as it is.

use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle};

/// A node. Two are equal when they mean the same: where they stand and how they are laid out does not count.
pub struct Node {
    /// Its bytes in the text; empty where the value is left out, and then right behind the key's colon.
    pub at: Range<usize>,
    /// How many characters stand before it in its line; for a block sequence, before its first dash.
    pub column: usize,
    /// 0 = it has no anchor.
    anchor: usize,
    tag: Option<String>,
    /// What it is.
    pub kind: Kind,
}

/// What a node is.
#[derive(PartialEq)]
pub enum Kind {
    /// A scalar after its escapes. What a plain one means (a string, a number, nothing) is for its reader to say.
    Scalar { text: String, plain: bool },
    /// A list.
    Sequence { style: Style, items: Vec<Node> },
    /// A mapping, in its order.
    Mapping { style: Style, pairs: Vec<(Node, Node)> },
    /// Another node, by its anchor.
    Alias(usize),
}

/// How a collection is laid out; all are equal in meaning.
#[derive(Clone, Copy)]
pub enum Style {
    /// By indentation.
    Block,
    /// In brackets or braces, as JSON is.
    Flow,
}

impl PartialEq for Style {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.anchor == other.anchor && self.tag == other.tag && self.kind == other.kind
    }
}

/// Why a text cannot be read. It never quotes the text: there are keys in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// It is not YAML.
    Syntax { line: usize, column: usize, why: String },
    /// It holds more than one document.
    Documents,
    /// A mapping that must be read has the same key twice, or uses an anchor, an alias, a merge key or a tag.
    Unclear { key: &'static str },
    /// What should be a list of named entries is not.
    Entries { key: &'static str },
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Syntax { line, column, why } => write!(f, "line {line}, column {column}: {why}"),
            Self::Documents => f.write_str("there is more than one document in it"),
            Self::Unclear { key } => {
                write!(f, "\"{key}\" is there twice, or given by an anchor, an alias, a merge key or a tag")
            }
            Self::Entries { key } => write!(f, "\"{key}\" is not a list of entries, each with a name of its own"),
        }
    }
}

impl std::error::Error for Unreadable {}

impl Node {
    /// Reads a text; None when there is no document in it.
    ///
    /// # Errors
    /// When it is not YAML, or more than one document.
    pub fn parse(text: &str) -> Result<Option<Self>, Unreadable> {
        let mut options = granit_parser::options! {};
        options.set_emit_comments(false);
        let (mut open, mut root, mut documents): (Vec<Open>, _, _) = (Vec::new(), None, 0);
        for next in Parser::new_from_str_with_options(text, options) {
            let (event, span) =
                next.map_err(|e| Unreadable::Syntax { line: e.marker().line(), column: e.marker().col() + 1, why: e.info() })?;
            let node = |anchor, tag: Option<String>, kind| Self {
                at: span.byte_range().unwrap_or_default(),
                column: span.start.col(),
                anchor,
                tag,
                kind,
            };
            let node = match event {
                Event::DocumentStart(..) => {
                    documents += 1;
                    continue;
                }
                Event::Scalar(text, style, anchor, tag) => {
                    node(anchor, tag.map(|t| t.to_string()), Kind::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain })
                }
                Event::Alias(id) => node(0, None, Kind::Alias(id)),
                Event::SequenceStart(style, anchor, tag) => {
                    let kind = Kind::Sequence { style: style.into(), items: Vec::new() };
                    open.push(Open { node: node(anchor, tag.map(|t| t.to_string()), kind), key: None });
                    continue;
                }
                Event::MappingStart(style, anchor, tag) => {
                    let kind = Kind::Mapping { style: style.into(), pairs: Vec::new() };
                    open.push(Open { node: node(anchor, tag.map(|t| t.to_string()), kind), key: None });
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                    Some(done) => done.close(&span, text),
                    None => continue,
                },
                _ => continue,
            };
            match open.last_mut() {
                Some(parent) => parent.take(node, text),
                None => root = Some(node),
            }
        }
        if documents > 1 { Err(Unreadable::Documents) } else { Ok(root) }
    }

    /// The value of a key of this mapping; None when it has none, or is no mapping.
    ///
    /// # Errors
    /// When what is there cannot be told without YAML's references, or cannot be changed without changing what refers to it.
    pub fn get(&self, key: &'static str) -> Result<Option<&Self>, Unreadable> {
        let Kind::Mapping { pairs, .. } = &self.kind else { return Ok(None) };
        let unclear = Unreadable::Unclear { key };
        if !self.is_literal() || pairs.iter().any(|(k, _)| k.text().is_none_or(|t| t == "<<")) {
            return Err(unclear);
        }
        let mut found = pairs.iter().filter(|(k, _)| k.text() == Some(key)).map(|(_, v)| v);
        match (found.next(), found.next()) {
            (None, _) => Ok(None),
            (Some(value), None) if value.is_literal() => Ok(Some(value)),
            _ => Err(unclear),
        }
    }

    /// The keys of this mapping that are plain words.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let pairs = if let Kind::Mapping { pairs, .. } = &self.kind { pairs.as_slice() } else { &[] };
        pairs.iter().filter_map(|(k, _)| k.text())
    }

    /// What a scalar says.
    pub fn text(&self) -> Option<&str> {
        if let Kind::Scalar { text, .. } = &self.kind { Some(text) } else { None }
    }

    /// Whether it is YAML's nothing: left out, `~` or `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if ["", "~", "null", "Null", "NULL"].contains(&text.as_str()))
    }

    fn is_literal(&self) -> bool {
        self.anchor == 0 && self.tag.is_none() && !matches!(self.kind, Kind::Alias(_))
    }
}

impl From<StructureStyle> for Style {
    fn from(style: StructureStyle) -> Self {
        match style {
            StructureStyle::Block => Self::Block,
            StructureStyle::Flow => Self::Flow,
        }
    }
}

/// A collection whose end has not come yet.
struct Open {
    node: Node,
    key: Option<Node>,
}

impl Open {
    fn take(&mut self, mut child: Node, text: &str) {
        match &mut self.node.kind {
            Kind::Sequence { items, .. } => items.push(child),
            Kind::Mapping { pairs, .. } => match self.key.take() {
                None => self.key = Some(child),
                Some(key) => {
                    // where the parser puts a value that is left out is anywhere up to the next token
                    if child.at.is_empty() {
                        let behind = text.get(key.at.end..).unwrap_or_default();
                        let colon = behind.find(':').filter(|c| behind[..*c].trim().is_empty());
                        let at = key.at.end + colon.map_or(0, |c| c + 1);
                        child.at = at..at;
                    }
                    pairs.push((key, child));
                }
            },
            _ => {}
        }
    }

    /// A block collection ends with its last child: the parser has its end at the next token. And a list that is no further
    /// in than its key begins for the parser behind its first dash.
    fn close(self, span: &Span, text: &str) -> Node {
        let mut node = self.node;
        let end = span.byte_range().map(|at| at.end);
        let (end, column) = match &node.kind {
            Kind::Sequence { style: Style::Block, items } => {
                (items.last().map(|last| last.at.end), items.iter().find_map(|item| dash(text, item)))
            }
            Kind::Mapping { style: Style::Block, pairs } => (pairs.last().map(|(_, last)| last.at.end), None),
            _ => (end, None),
        };
        node.at.end = end.unwrap_or(node.at.end);
        node.column = column.unwrap_or(node.column);
        node
    }
}

/// The column of the dash before an item of a block sequence; None when something else stands between the two.
fn dash(text: &str, item: &Node) -> Option<usize> {
    let before = text.get(..item.at.start)?.trim_end().strip_suffix('-')?;
    Some(before.chars().rev().take_while(|c| *c != '\n').count())
}

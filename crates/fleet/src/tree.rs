//! YAML text to a tree in which every key and value knows where it stands.
//!
//! Scalars stay text: what is a number and what a name is for the key to say, so `version: 5.10` keeps its zero and `on` stays `on`.
//! Anchors, aliases and merge keys (`<<`) are resolved here. Refused, each with its place: files above [`BYTES_MAX`], nesting above
//! [`DEPTH_MAX`], more than [`NODES_MAX`] values with all aliases written out (so that a few lines cannot grow without end),
//! keys that are not plain text, tags, a second document. Keys that come twice are kept, for the check of shapes to refuse.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use crate::codes;
use crate::mistake::{At, Report};

/// Longest file that is read.
pub const BYTES_MAX: usize = 1 << 20;
/// Deepest nesting of lists and mappings.
pub const DEPTH_MAX: usize = 32;
/// Most values in a file, aliases written out.
pub const NODES_MAX: usize = 50_000;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where a mistake in it is shown: a scalar's own place, the key of a list or mapping.
    pub at: At,
    /// What it is.
    pub value: Value,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing, or `null` or `~`.
    Null,
    /// Any other scalar, as text. Quoted text is never null, true or a number.
    Scalar {
        /// The text, escapes resolved.
        text: String,
        /// Whether it was quoted, or a block.
        quoted: bool,
    },
    /// A list.
    List(Vec<Node>),
    /// A mapping in the file's order.
    Map(Vec<Entry>),
}

/// One key and its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_at: At,
    /// Its value.
    pub value: Node,
    /// The line of the first of that key in this mapping, if this is not the first. Lookups find the first.
    pub again: Option<u32>,
}

impl Node {
    /// The value of `key`, if this is a mapping that has it and it is not null.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value).filter(|node| !matches!(node.value, Value::Null))
    }

    /// The entry of `key`, if this is a mapping that has it.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The entries, if this is a mapping.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items, if this is a list.
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The names in this mapping, each once.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries().iter().filter(|entry| entry.again.is_none()).map(|entry| entry.key.as_str())
    }

    /// Where the value at `path` stands, or the nearest thing above it that is there.
    pub fn locate(&self, path: &[&str]) -> At {
        let mut node = self;
        for key in path {
            match node.entry(key) {
                Some(entry) => node = &entry.value,
                None => break,
            }
        }
        node.at
    }

    /// The value at `path`, if it is there and not null.
    pub fn find(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// This value with another laid over it: mappings are merged key by key, all else is replaced, null takes away.
    pub fn overlaid(&self, over: &Node) -> Node {
        let (Value::Map(below), Value::Map(above)) = (&self.value, &over.value) else { return over.clone() };
        let mut entries: Vec<Entry> = Vec::with_capacity(below.len() + above.len());
        for entry in below.iter().filter(|entry| entry.again.is_none()) {
            match over.entry(&entry.key) {
                None => entries.push(entry.clone()),
                Some(over) if matches!(over.value.value, Value::Null) => {}
                Some(over) => {
                    entries.push(Entry { value: entry.value.overlaid(&over.value), ..over.clone() })
                }
            }
        }
        let new = above.iter().filter(|entry| entry.again.is_none() && self.entry(&entry.key).is_none());
        entries.extend(new.filter(|entry| !matches!(entry.value.value, Value::Null)).cloned());
        Node { at: self.at, value: Value::Map(entries) }
    }

    /// The text, if this is a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }
}

/// Parses a file's text. `None` when it cannot be understood at all; the reason is then in `report`.
pub fn parse(text: &str, report: &mut Report) -> Option<Node> {
    if text.len() > BYTES_MAX {
        report.add(
            codes::TOO_LARGE,
            At::START,
            "this file is above 1 MiB",
            "a fleet file holds what people write; this is something else",
        );
        return None;
    }
    let mut builder =
        Builder { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0, report };
    match builder.document() {
        Ok(node) => Some(node),
        Err(Stop { code, at, message, hint }) => {
            builder.report.add(code, at, message, hint);
            None
        }
    }
}

/// Why parsing ends.
struct Stop {
    code: &'static str,
    at: At,
    message: String,
    hint: String,
}

struct Builder<'t, 'r> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    /// What each anchor names, and how many values that is.
    anchors: HashMap<usize, (Node, usize)>,
    /// Values so far, aliases written out.
    nodes: usize,
    report: &'r mut Report,
}

impl<'t> Builder<'t, '_> {
    fn document(&mut self) -> Result<Node, Stop> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(stop(
                        at(span),
                        "a second document begins here",
                        "a fleet is one document: take out the `---`",
                    ));
                }
                Event::DocumentStart(_) => {}
                event => root = Some(self.node(event, span, 0)?),
            }
        }
        Ok(root.unwrap_or(Node { at: At::START, value: Value::Null }))
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Stop> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let at = at(Span::empty(*error.marker()));
                if error.info().contains("recursion limit") {
                    return Err(too_deep(at));
                }
                let hint =
                    "YAML: indent with spaces, one `key: value` a line, quote text that holds `: ` or ` #`";
                Err(stop(at, format!("this is not YAML: {}", error.info()), hint))
            }
            None => Err(stop(At::START, "the file ends too early", "is it complete?")),
        }
    }

    /// The value that begins with `event`.
    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, Stop> {
        let at = at(span);
        if depth > DEPTH_MAX {
            return Err(too_deep(at));
        }
        self.count(1, at)?;
        let before = self.nodes;
        let (anchor, node) = match event {
            Event::Alias(id) => {
                let (node, size) = self.anchors.get(&id).cloned().ok_or_else(|| {
                    stop(at, "this alias stands within what it names", "an anchor cannot hold itself")
                })?;
                self.count(size, at)?;
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.as_deref(), at);
                let quoted = style != ScalarStyle::Plain;
                let null = !quoted && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value =
                    if null { Value::Null } else { Value::Scalar { text: text.into_owned(), quoted } };
                (anchor, Node { at, value })
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_tag(tag.as_deref(), at);
                (anchor, Node { at, value: Value::List(self.list(depth)?) })
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_tag(tag.as_deref(), at);
                (anchor, Node { at, value: Value::Map(self.map(depth)?) })
            }
            _ => return Err(stop(at, "this is not YAML: a value is missing", "is the file complete?")),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - before + 1));
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Stop> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Stop> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        let mut first_lines: HashMap<String, u32> = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let key_node = self.node(event, span, depth + 1)?;
            let key_at = key_node.at;
            let Value::Scalar { text: key, quoted } = key_node.value else {
                return Err(stop(key_at, "a key must be plain text", "write `key: value`"));
            };
            let (event, span) = self.next()?;
            let alias = matches!(event, Event::Alias(_));
            let mut value = self.node(event, span, depth + 1)?;
            if key == "<<" && !quoted {
                merged.extend(self.merge(value, key_at));
                continue;
            }
            // A list or mapping is shown by its key, and so is what is not there; an aliased one by where it is written.
            if !alias && !matches!(value.value, Value::Scalar { .. }) {
                value.at = key_at;
            }
            let again = first_lines.get(&key).copied();
            first_lines.entry(key.clone()).or_insert(key_at.line);
            entries.push(Entry { key, key_at, value, again });
        }
        for entry in merged {
            if entry.again.is_none() && !first_lines.contains_key(&entry.key) {
                first_lines.insert(entry.key.clone(), entry.key_at.line);
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// The entries that a merge key brings in.
    fn merge(&mut self, value: Node, key_at: At) -> Vec<Entry> {
        let maps = match value.value {
            Value::List(items) => items,
            value => vec![Node { at: key_at, value }],
        };
        let mut entries = Vec::new();
        for map in maps {
            match map.value {
                Value::Map(more) => entries.extend(more),
                _ => {
                    let message = "`<<` merges a mapping or a list of mappings";
                    self.report.add(codes::BAD_YAML, key_at, message, "write `<<: *anchor`");
                }
            }
        }
        entries
    }

    fn count(&mut self, more: usize, at: At) -> Result<(), Stop> {
        self.nodes += more;
        if self.nodes > NODES_MAX {
            let hint = "at most 50000, aliases written out";
            return Err(Stop {
                code: codes::TOO_LARGE,
                ..stop(at, "here the file has too many values", hint)
            });
        }
        Ok(())
    }

    fn refuse_tag(&mut self, tag: Option<&saphyr_parser::Tag>, at: At) {
        if tag.is_some() {
            self.report.add(
                codes::BAD_YAML,
                at,
                "a fleet file has no tags",
                "write the value without what begins with `!`",
            );
        }
    }
}

fn too_deep(at: At) -> Stop {
    Stop {
        code: codes::TOO_LARGE,
        ..stop(at, "this is nested too deeply", "a fleet file needs no more than 32 levels")
    }
}

fn stop(at: At, message: impl Into<String>, hint: impl Into<String>) -> Stop {
    Stop { code: codes::BAD_YAML, at, message: message.into(), hint: hint.into() }
}

/// Lines and columns count from 1, columns in characters.
fn at(span: Span) -> At {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let one_line = span.start.line() == span.end.line();
    let width = if one_line { span.end.col().saturating_sub(span.start.col()).max(1) } else { 1 };
    At {
        line: number(span.start.line()).max(1),
        column: number(span.start.col()).saturating_add(1),
        width: number(width),
    }
}

//! The configuration as a tree: YAML whose scalars are still text, each with where it was given.
//!
//! What a text means is decided by the code that reads the key: an access key `0123` is not a
//! number. Anchors, aliases and merge keys (`<<`) are resolved here.

use std::{collections::HashMap, rc::Rc};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use crate::findings::Findings;

/// The deepest nesting; the deepest key of Distribution is at 6.
const MAX_DEPTH: usize = 32;
/// The most nodes, copies made by aliases included, so that no few lines become gigabytes.
const MAX_NODES: usize = 100_000;

/// Where something was given; lines sort before variables.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// A line of the file, counted from 1.
    Line(usize),
    /// An environment variable.
    Variable(Rc<str>),
}

/// A value and where it was given: on the line of its key, if it has one.
#[derive(Clone)]
pub(crate) struct Node {
    pub origin: Origin,
    pub value: Value,
}

/// It has no `Debug`, because it holds secrets.
#[derive(Clone)]
pub(crate) enum Value {
    Null,
    Scalar(String),
    Sequence(Vec<Node>),
    Mapping(Vec<(String, Node)>),
    /// A variable's value that cannot be used, and why. It matters only if its key is read.
    Invalid(&'static str),
}

impl Value {
    /// What this is, without saying anything of its content.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar(_) => "a single value",
            Self::Sequence(_) => "a list",
            Self::Mapping(_) => "a mapping",
            Self::Invalid(why) => why,
        }
    }

    /// Whether this says as little as leaving the key out, which is how Distribution takes it.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Null => true,
            Self::Scalar(text) => text.is_empty(),
            Self::Sequence(elements) => elements.is_empty(),
            Self::Mapping(entries) => entries.is_empty(),
            Self::Invalid(_) => false,
        }
    }
}

impl Node {
    /// Makes `storage: s3` the `storage: {s3: }` that it stands for.
    pub fn expand_name(&mut self) {
        if let Value::Scalar(name) = &mut self.value
            && !name.is_empty()
        {
            let driver = Self { origin: self.origin.clone(), value: Value::Null };
            self.value = Value::Mapping(vec![(std::mem::take(name), driver)]);
        }
    }

    fn count(&self) -> usize {
        1 + match &self.value {
            Value::Sequence(elements) => elements.iter().map(Self::count).sum(),
            Value::Mapping(entries) => entries.iter().map(|(_, node)| node.count()).sum(),
            Value::Null | Value::Scalar(_) | Value::Invalid(_) => 0,
        }
    }
}

/// Parses the one YAML document in `text`, which is the file's or that of `variable`.
///
/// Keys given twice are mistakes beside which the rest can still be read.
///
/// # Errors
/// What makes the rest unreadable.
pub(crate) fn parse(
    text: &str,
    variable: Option<&Rc<str>>,
    findings: &mut Findings,
) -> Result<Node, ScanError> {
    let mut builder = Builder {
        events: Parser::new_from_str(text),
        variable,
        anchors: HashMap::new(),
        nodes_left: MAX_NODES,
        findings,
    };
    let mut root = None;
    while let Some(event) = builder.events.next_event() {
        match event? {
            (
                Event::Nothing
                | Event::StreamStart
                | Event::StreamEnd
                | Event::DocumentStart(_)
                | Event::DocumentEnd,
                _,
            ) => {}
            (_, span) if root.is_some() => {
                return Err(error(span, "a second document begins; put everything in one"));
            }
            (event, span) => root = Some(builder.node(event, span, 0)?),
        }
    }
    Ok(root.unwrap_or_else(|| Node { origin: builder.origin_of_line(1), value: Value::Null }))
}

struct Builder<'a> {
    events: Parser<'a, StrInput<'a>>,
    variable: Option<&'a Rc<str>>,
    anchors: HashMap<usize, Node>,
    nodes_left: usize,
    findings: &'a mut Findings,
}

impl<'a> Builder<'a> {
    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, ScanError> {
        if depth > MAX_DEPTH {
            return Err(error(span, "nested too deeply"));
        }
        self.spend(1, span)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                check_tag(tag.as_deref(), span)?;
                let is_plain = style == ScalarStyle::Plain;
                let value = match &*text {
                    "" | "~" | "null" | "Null" | "NULL" if is_plain => Value::Null,
                    _ => Value::Scalar(text.into_owned()),
                };
                (value, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref(), span)?;
                (self.sequence(depth)?, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref(), span)?;
                (self.mapping(depth)?, anchor)
            }
            Event::Alias(anchor) => (self.alias(anchor, span)?, 0),
            _ => return Err(error(span, "the document ends too early")),
        };
        let node = Node { origin: self.origin(span), value };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, ScanError> {
        let mut elements = Vec::new();
        loop {
            match self.next_event()? {
                (Event::SequenceEnd, _) => return Ok(Value::Sequence(elements)),
                (event, span) => elements.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, ScanError> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, key_span) = match self.next_event()? {
                (Event::MappingEnd, _) => break,
                key => key,
            };
            let is_merge =
                matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let Value::Scalar(key) = self.node(event, key_span, depth + 1)?.value else {
                return Err(error(key_span, "a key has to be a text"));
            };
            let (event, span) = self.next_event()?;
            let value = self.node(event, span, depth + 1)?.value;
            let node = Node { origin: self.origin(key_span), value };
            if is_merge {
                merged.extend(merge_sources(node.value, key_span)?);
            } else if entries.iter().any(|(earlier, _)| *earlier == key) {
                let text = format!("the key `{key}` is given twice in this mapping; keep one");
                self.findings.mistake(&node.origin, text);
            } else {
                entries.push((key, node));
            }
        }
        // What a mapping says itself wins over what it merges, wherever it says it.
        for (key, node) in merged {
            if entries.iter().all(|(earlier, _)| *earlier != key) {
                entries.push((key, node));
            }
        }
        Ok(Value::Mapping(entries))
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<Value, ScanError> {
        let Some(node) = self.anchors.get(&anchor).cloned() else {
            return Err(error(span, "an alias lies within what it stands for"));
        };
        self.spend(node.count(), span)?;
        Ok(node.value)
    }

    fn next_event(&mut self) -> Result<(Event<'a>, Span), ScanError> {
        let end = || error(Span::default(), "the document ends too early");
        self.events.next_event().ok_or_else(end)?
    }

    fn spend(&mut self, nodes: usize, span: Span) -> Result<(), ScanError> {
        let left = self.nodes_left.checked_sub(nodes);
        self.nodes_left =
            left.ok_or_else(|| error(span, "too large, with its aliases resolved"))?;
        Ok(())
    }

    fn origin(&self, span: Span) -> Origin {
        self.origin_of_line(span.start.line())
    }

    fn origin_of_line(&self, line: usize) -> Origin {
        match self.variable {
            Some(name) => Origin::Variable(Rc::clone(name)),
            None => Origin::Line(line),
        }
    }
}

/// The entries that the value of a `<<` adds: those of one mapping, or of several.
fn merge_sources(value: Value, span: Span) -> Result<Vec<(String, Node)>, ScanError> {
    let sources = match value {
        Value::Sequence(elements) => elements.into_iter().map(|node| node.value).collect(),
        value => vec![value],
    };
    let mut merged = Vec::new();
    for source in sources {
        match source {
            Value::Mapping(entries) => merged.extend(entries),
            _ => return Err(error(span, "`<<` takes a mapping or a list of mappings")),
        }
    }
    Ok(merged)
}

/// YAML's own tags say nothing here, since each key knows its type; others are not understood.
/// The tag is not quoted: a password that begins with `!` is one.
fn check_tag(tag: Option<&Tag>, span: Span) -> Result<(), ScanError> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() || tag.suffix == "binary" => {
            Err(error(span, "a tag that is not known; put a value that begins with `!` in quotes"))
        }
        _ => Ok(()),
    }
}

fn error(span: Span, why: &str) -> ScanError {
    ScanError::new_str(span.start, why)
}

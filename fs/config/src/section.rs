//! Reads a mapping key by key, so that the code that reads a key is the statement that it works.
//!
//! Each section's code takes every key it knows; a key that nobody took is a mistake. The order
//! of the calls does not matter, and none of them stops at a mistake.

use std::mem;

use crate::{
    document::{Node, Origin, Value},
    findings::Findings,
    value::boolean,
};

/// How alike, from 0 to 1, an unknown key has to be to a known one to be taken for its misspelling.
const LIKENESS: f64 = 0.8;

#[cfg(test)]
thread_local! {
    /// The path of every key that was asked for, in any section.
    pub(crate) static KNOWN: std::cell::RefCell<std::collections::BTreeSet<String>> =
        const { std::cell::RefCell::new(std::collections::BTreeSet::new()) };
}

/// One mapping of the configuration while it is read.
pub(crate) struct Section<'a> {
    /// `storage.s3`; empty for the whole document.
    path: String,
    origin: Origin,
    /// What was taken stays as an empty value, so that mistakes can still say where it was.
    entries: Vec<(String, Node)>,
    /// Every key that was asked for, whether it was there or not.
    known: Vec<String>,
    findings: &'a mut Findings,
}

impl Section<'_> {
    /// Lets `read` take what it knows from the mapping `node`; the rest are mistakes.
    pub fn read<T>(
        path: String,
        node: Node,
        findings: &mut Findings,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let entries = match node.value {
            Value::Mapping(entries) => entries,
            Value::Null => Vec::new(),
            other => {
                let name = if path.is_empty() { "the whole file" } else { &path };
                let text = format!("{name}: expected a mapping, found {}", other.kind());
                findings.mistake(&node.origin, text);
                Vec::new()
            }
        };
        let mut section =
            Section { path, origin: node.origin, entries, known: Vec::new(), findings };
        let result = read(&mut section);
        section.report_unknown_keys();
        #[cfg(test)]
        KNOWN.with_borrow_mut(|known| {
            known.extend(section.known.iter().map(|k| section.path_of(k)))
        });
        result
    }

    /// Whether `key` has a value that says anything.
    pub fn has(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|node| !node.value.is_empty())
    }

    /// Whether `key` is there, be its value empty: `filesystem:` names a driver.
    pub fn names(&mut self, key: &str) -> bool {
        self.known.push(key.to_owned());
        self.entry(key).is_some()
    }

    /// Whether nothing in here has a value that says anything.
    pub fn is_empty(&self) -> bool {
        self.entries.iter().all(|(_, node)| node.value.is_empty())
    }

    /// Every key, where they are names that the operator chooses.
    pub fn keys(&self) -> Vec<String> {
        self.entries.iter().map(|(key, _)| key.clone()).collect()
    }

    /// The value of `key` as `parse` understands it.
    pub fn value<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let node = self.take(key)?;
        let path = self.path_of(key);
        self.scalar(&path, node, &parse)
    }

    /// A mistake if `key` has no value; to be called before that is taken.
    pub fn require(&mut self, key: &str) {
        if !self.has(key) {
            self.mistake(key, "is missing");
        }
    }

    /// A mistake if just one of two keys has a value; to be called before they are taken.
    pub fn require_both(&mut self, one: &str, other: &str) {
        for (given, missing) in [(one, other), (other, one)] {
            if self.has(given) && !self.has(missing) {
                self.mistake(missing, &format!("is missing, and {given} is of no use without it"));
            }
        }
    }

    /// Every element of the list `key` as `parse` understands it.
    pub fn list<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let elements = self.elements(key).into_iter();
        elements.filter_map(|(path, node)| self.scalar(&path, node, &parse)).collect()
    }

    /// What `read` makes of the section `key`, which is an empty one when there is none.
    pub fn section<T>(&mut self, key: &str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let node = self.take(key);
        let node = node.unwrap_or_else(|| Node { origin: self.origin.clone(), value: Value::Null });
        Section::read(self.path_of(key), node, self.findings, read)
    }

    /// Like [`Self::section`], where a single value may stand for a key without a value.
    pub fn named_section<T>(&mut self, key: &str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        if let Some((_, node)) = self.entries.iter_mut().find(|(name, _)| name == key) {
            node.expand_name();
        }
        self.section(key, read)
    }

    /// What `read` makes of every section in the list `key`.
    pub fn sections<T>(&mut self, key: &str, read: impl Fn(&mut Section<'_>) -> T) -> Vec<T> {
        let elements = self.elements(key).into_iter();
        elements.map(|(path, node)| Section::read(path, node, self.findings, &read)).collect()
    }

    /// Takes `key` whatever it says, and notes `why` it changes nothing.
    pub fn note(&mut self, key: &str, why: &str) {
        if self.take(key).is_some() {
            self.add_note(key, why);
        }
    }

    /// Like [`Self::note`], for a value that at least has to be understood.
    pub fn note_valid<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
        why: &str,
    ) {
        if self.value(key, parse).is_some() {
            self.add_note(key, why);
        }
    }

    /// Takes `key` whatever it says, as a mistake: `why`, and what to do instead.
    pub fn refuse(&mut self, key: &str, why: &str) {
        if self.take(key).is_some() {
            self.mistake(key, why);
        }
    }

    /// Like [`Self::refuse`], for the one setting of `key` that is not supported.
    pub fn refuse_when(&mut self, key: &str, refused: bool, why: &str) {
        self.value(key, |text| match boolean(text)? {
            on if on == refused => Err(why.to_owned()),
            _ => Ok(()),
        });
    }

    /// A mistake on the line of `key`, or of the section when the key is not there.
    pub fn mistake(&mut self, key: &str, text: &str) {
        let text = format!("{}: {text}", self.path_of(key));
        let origin = self.origin_of(key);
        self.findings.mistake(&origin, text);
    }

    /// A mistake of this whole section.
    pub fn mistake_of_all(&mut self, text: &str) {
        self.findings.mistake(&self.origin, format!("{}: {text}", self.path));
    }

    /// A note on the line of `key`.
    pub fn add_note(&mut self, key: &str, text: &str) {
        let text = format!("{}: {text}", self.path_of(key));
        let origin = self.origin_of(key);
        self.findings.note(&origin, text);
    }

    fn entry(&self, key: &str) -> Option<&Node> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    fn origin_of(&self, key: &str) -> Origin {
        self.entry(key).map_or(&self.origin, |node| &node.origin).clone()
    }

    fn take(&mut self, key: &str) -> Option<Node> {
        self.known.push(key.to_owned());
        let (_, node) = self.entries.iter_mut().find(|(name, _)| name == key)?;
        let value = mem::replace(&mut node.value, Value::Null);
        (!value.is_empty()).then(|| Node { origin: node.origin.clone(), value })
    }

    /// The elements of the list `key`, each with its path.
    fn elements(&mut self, key: &str) -> Vec<(String, Node)> {
        let Some(node) = self.take(key) else { return Vec::new() };
        let path = self.path_of(key);
        match node.value {
            Value::Sequence(elements) => {
                let indexed = elements.into_iter().enumerate();
                indexed.map(|(index, node)| (format!("{path}[{index}]"), node)).collect()
            }
            other => {
                let text = format!("{path}: expected a list, found {}", other.kind());
                self.findings.mistake(&node.origin, text);
                Vec::new()
            }
        }
    }

    fn scalar<T>(
        &mut self,
        path: &str,
        node: Node,
        parse: &impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let result = match node.value {
            Value::Scalar(text) => parse(&text),
            other => Err(format!("expected a single value, found {}", other.kind())),
        };
        result.map_err(|why| self.findings.mistake(&node.origin, format!("{path}: {why}"))).ok()
    }

    fn path_of(&self, key: &str) -> String {
        match &*self.path {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    fn report_unknown_keys(&mut self) {
        for (key, node) in &self.entries {
            if self.known.contains(key) {
                continue;
            }
            let path = self.path_of(key);
            if let (true, Origin::Variable(_)) = (self.path.is_empty(), &node.origin) {
                // Kubernetes sets REGISTRY_PORT and more for a Service called registry.
                let prefix = key.to_ascii_uppercase();
                self.findings.note(
                    &node.origin,
                    format!("no section is called {key}, so REGISTRY_{prefix}… changes nothing"),
                );
                continue;
            }
            let advice = match self.nearest_known_key(key) {
                Some(known) => format!("did you mean `{known}`?"),
                None => "remove it, or see docs/configuration.md for the keys there are".to_owned(),
            };
            self.findings.mistake(&node.origin, format!("{path}: unknown key; {advice}"));
        }
    }

    fn nearest_known_key(&self, key: &str) -> Option<&String> {
        let likeness = |known: &&String| strsim::jaro_winkler(&key.to_lowercase(), known);
        let nearest = self.known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
        (likeness(&nearest) > LIKENESS).then_some(nearest)
    }
}

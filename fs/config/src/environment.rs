//! `REGISTRY_…` variables over the file, as in Distribution: the path of a key in capitals, joined
//! by `_`, elements of a list by their index.

use std::{ffi::OsString, rc::Rc};

use crate::{
    document::{self, Node, Origin, Value},
    findings::Findings,
};

const PREFIX: &str = "REGISTRY_";

/// Sets in `root` what the variables say.
pub(crate) fn override_values(
    root: &mut Node,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) {
    let mut variables: Vec<_> = environment
        .into_iter()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    variables.sort_by_cached_key(|(name, _)| application_order(name));
    for (name, value) in variables {
        let variable = Rc::from(&*name);
        set(root, &path(&name[PREFIX.len()..]), parse(&variable, value));
    }
}

/// The one key that has a `_` in itself is Larder's own.
fn path(name: &str) -> Vec<&str> {
    match name.strip_suffix("_MIN_FREE") {
        Some("CACHE") => vec!["CACHE", "MIN_FREE"],
        _ => name.split('_').collect(),
    }
}

/// `REGISTRY_STORAGE` comes before `REGISTRY_STORAGE_S3_BUCKET`, and `…_2` before `…_10`.
fn application_order(name: &str) -> Vec<(usize, String)> {
    name.split('_').map(|component| (component.len(), component.to_owned())).collect()
}

fn parse(variable: &Rc<str>, value: OsString) -> Node {
    let invalid =
        |why| Node { origin: Origin::Variable(Rc::clone(variable)), value: Value::Invalid(why) };
    let Some(text) = value.to_str() else {
        return invalid("what is not UTF-8");
    };
    let mut findings = Findings::default();
    match document::parse(text, Some(variable), &mut findings) {
        Ok(node) if findings.has_no_mistake() => node,
        _ => invalid("what is not valid YAML; it may need quotes inside the variable"),
    }
}

/// Puts `new` where `path` leads from `node`, and makes on the way what is missing.
pub(crate) fn set(node: &mut Node, path: &[&str], new: Node) {
    let Some((component, rest)) = path.split_first() else {
        *node = new;
        return;
    };
    if node.value.is_empty() {
        node.value = match *component {
            "0" => Value::Sequence(Vec::new()),
            _ => Value::Mapping(Vec::new()),
        };
    }
    node.expand_name();
    let child = match &mut node.value {
        Value::Mapping(entries) => Some(entry(entries, component, &new.origin)),
        Value::Sequence(elements) => element(elements, component, &new.origin),
        Value::Null | Value::Scalar(_) | Value::Invalid(_) => return,
    };
    match child {
        Some(child) => set(child, rest, new),
        None => {
            let why = "a variable for an element far behind the list's last";
            *node = Node { origin: new.origin, value: Value::Invalid(why) };
        }
    }
}

/// The entry whose key is `component` but for the case.
fn entry<'a>(
    entries: &'a mut Vec<(String, Node)>,
    component: &str,
    origin: &Origin,
) -> &'a mut Node {
    let position = entries.iter().position(|(key, _)| key.eq_ignore_ascii_case(component));
    let position = position.unwrap_or_else(|| {
        let node = Node { origin: origin.clone(), value: Value::Null };
        entries.push((component.to_ascii_lowercase(), node));
        entries.len() - 1
    });
    &mut entries[position].1
}

/// The element with the index `component`, which may be the first one behind the last.
fn element<'a>(
    elements: &'a mut Vec<Node>,
    component: &str,
    origin: &Origin,
) -> Option<&'a mut Node> {
    let index = component.parse::<usize>().ok()?;
    if index == elements.len() {
        elements.push(Node { origin: origin.clone(), value: Value::Null });
    }
    elements.get_mut(index)
}

//! `node:`, Larder's own section: this node, among those that share the storage.

use crate::{section::Section, value::url};

/// `node:`
#[derive(Debug)]
pub struct Node {
    /// `node.url`, `scheme://host[:port]`: where the other nodes reach this one's `http.addr`. Made up from
    /// that and the address of this machine when absent.
    pub url: Option<String>,
}

impl Node {
    /// Reads `node:`.
    pub(crate) fn read(root: &mut Section<'_>) -> Self {
        root.section("node", |node| Self { url: node.value("url", url) })
    }
}

//! `tags:`, Larder's own section: when the upstream is asked what a tag names.

use std::time::Duration;

use crate::{
    section::Section,
    value::{duration, expected},
};

/// `tags:`
#[derive(Clone, Debug, Default)]
pub struct Tags {
    /// `tags.rules`: the first that matches a tag counts; where none does, it is [`Check::Always`].
    pub rules: Vec<TagRule>,
    /// `tags.deleted`
    pub deleted: Deleted,
}

/// An element of `tags.rules`.
#[derive(Clone, Debug)]
pub struct TagRule {
    /// `match`, for `<repository>:<tag>`: `*` stands for any text, slashes included, and `?` for one
    /// character.
    pub pattern: String,
    /// `check`
    pub check: Check,
}

/// When the upstream is asked what a cached tag names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// `always`: at each request.
    Always,
    /// `5m`: when it was not asked for so long.
    Every(Duration),
    /// `immutable`: never again.
    Immutable,
    /// `pinned`: never, not even for a tag that is not cached.
    Pinned,
}

/// What becomes of a tag that is cached, and that the upstream has no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deleted {
    /// `follow`, also when absent: it is gone here, too.
    #[default]
    Follow,
    /// `keep`: it is served, marked as stale.
    Keep,
}

impl Tags {
    /// Reads `tags:`.
    pub(crate) fn read(root: &mut Section<'_>) -> Self {
        root.section("tags", |tags| Self {
            rules: tags.sections("rules", TagRule::read).into_iter().flatten().collect(),
            deleted: tags.value("deleted", deleted).unwrap_or_default(),
        })
    }
}

impl TagRule {
    fn read(rule: &mut Section<'_>) -> Option<Self> {
        rule.require("match");
        rule.require("check");
        let (pattern, check) = (rule.value("match", pattern), rule.value("check", check));
        Some(Self { pattern: pattern?, check: check? })
    }
}

fn pattern(text: &str) -> Result<String, String> {
    match text.contains(':') || text == "*" {
        true => Ok(text.to_owned()),
        false => Err(expected("a pattern of <repository>:<tag> such as library/*:latest", text)),
    }
}

fn check(text: &str) -> Result<Check, String> {
    match text {
        "always" => Ok(Check::Always),
        "immutable" => Ok(Check::Immutable),
        "pinned" => Ok(Check::Pinned),
        _ => duration(text)
            .map(Check::Every)
            .map_err(|_| expected("always, immutable, pinned, or a duration such as 5m", text)),
    }
}

fn deleted(text: &str) -> Result<Deleted, String> {
    match text {
        "follow" => Ok(Deleted::Follow),
        "keep" => Ok(Deleted::Keep),
        _ => Err(expected("follow or keep", text)),
    }
}

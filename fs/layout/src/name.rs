//! Names as the OCI distribution spec defines them ("Pulling manifests": `<name>`, `<reference>`).

use std::{fmt, str::FromStr};

use crate::digest::Digest;

/// The longest repository name: what clients accept, host name not counted.
const REPOSITORY_MAX_BYTES: usize = 255;
/// The longest tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
const TAG_MAX_BYTES: usize = 128;
/// The longest name of a staging file: a UUID fits twice, with a digest behind it.
const STAGING_ID_MAX_BYTES: usize = 224;

/// Why a text is not the name it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a repository name.
    #[error(
        "{0:?} is not a repository name: expected lower-case letters and digits, joined by one of . _ __ - and divided by slashes"
    )]
    Repository(String),
    /// Not a tag.
    #[error("{0:?} is not a tag: expected at most 128 letters, digits, _ . and -")]
    Tag(String),
    /// Not the name of a staging file.
    #[error("{0:?} is not a staging name: expected at most 224 letters, digits, _ . and -")]
    StagingId(String),
}

macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

/// A repository's name, `library/alpine`: path components divided by slashes.
///
/// A component starts and ends with a letter or digit, so no name can climb out of its
/// directory or be taken for `_tags`, `_manifests` or `_layers`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(Box<str>);
text_newtype!(Repository);

impl Repository {
    /// The name one level below this one: `library` and `alpine` give `library/alpine`.
    ///
    /// # Errors
    /// [`NameError::Repository`] when the result is no repository name.
    pub fn child(&self, component: &str) -> Result<Self, NameError> {
        format!("{self}/{component}").parse()
    }
}

impl FromStr for Repository {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() <= REPOSITORY_MAX_BYTES && text.split('/').all(is_path_component) {
            return Ok(Self(text.into()));
        }
        Err(NameError::Repository(text.to_owned()))
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    component.starts_with(is_alphanumeric)
        && component.ends_with(is_alphanumeric)
        && component.split(is_alphanumeric).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

/// A tag: `3.20`, `latest`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Box<str>);
text_newtype!(Tag);

impl FromStr for Tag {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if starts_well && is_plain(text, TAG_MAX_BYTES) {
            return Ok(Self(text.into()));
        }
        Err(NameError::Tag(text.to_owned()))
    }
}

/// The name of a file below `ingest/`, chosen by whoever writes it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StagingId(Box<str>);
text_newtype!(StagingId);

impl StagingId {
    /// A name that tells which blob the file will be: `<name>.<algorithm>.<hex>`. It need not, but
    /// a large file with such a name can be sent to the storage while it is still being written.
    ///
    /// # Errors
    /// [`NameError::StagingId`] when `name` is none by itself, or too long.
    pub fn of_blob(name: &str, digest: &Digest) -> Result<Self, NameError> {
        format!("{name}.{}.{}", digest.algorithm().as_str(), digest.hex()).parse()
    }

    /// The digest that the name tells.
    pub fn digest(&self) -> Option<Digest> {
        let (rest, hex) = self.0.rsplit_once('.')?;
        let (_, algorithm) = rest.rsplit_once('.')?;
        Digest::new(algorithm.parse().ok()?, hex).ok()
    }
}

impl FromStr for StagingId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if !text.starts_with('.') && is_plain(text, STAGING_ID_MAX_BYTES) {
            return Ok(Self(text.into()));
        }
        Err(NameError::StagingId(text.to_owned()))
    }
}

fn is_plain(text: &str, max_bytes: usize) -> bool {
    (1..=max_bytes).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// By tag, which may name another manifest tomorrow.
    Tag(Tag),
    /// By digest, which never changes.
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = NameError;

    /// A text with a colon can only be a digest, one without only a tag.
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.parse() {
            Ok(digest) => Ok(Self::Digest(digest)),
            Err(_) => text.parse().map(Self::Tag),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_the_grammar() {
        for good in ["a", "library/alpine", "quay.io/org/app", "a--b", "a__b/c.d_e", "0/1"] {
            assert!(good.parse::<Repository>().is_ok(), "{good:?} was refused");
        }
        let long = "a".repeat(256);
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/../b",
            "..",
            "_tags",
            "a/_layers",
            "a___b",
            "a..b",
            "a.-b",
            "-a",
            "a-",
            "ä",
            "a b",
            &long,
        ] {
            assert!(bad.parse::<Repository>().is_err(), "{bad:?} was taken for a repository");
        }
    }

    #[test]
    fn tags_and_digests_are_told_apart() {
        let hex = "0".repeat(64);
        assert!(matches!(format!("sha256:{hex}").parse(), Ok(Reference::Digest(_))));
        assert!(matches!("3.20_x-Y".parse(), Ok(Reference::Tag(_))));
        for bad in ["", ".a", "-a", "a/b", "a:b", &"a".repeat(129)] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was taken for a reference");
        }
    }
}

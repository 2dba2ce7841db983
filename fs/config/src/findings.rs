//! What reading a configuration found: mistakes, which stop the program, and notes, which do not.

use std::{fmt::Display, path::Path};

use crate::document::Origin;

/// What is wrong with a configuration: one line each, `config.yml:12: storage.s3.buket: …`.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Mistakes(Vec<String>);

impl Mistakes {
    /// The mistake that leaves nothing to look for others in.
    pub(crate) fn unreadable(file: &Path, why: impl Display) -> Self {
        Self(vec![format!("{}: cannot be read: {why}", file.display())])
    }
}

/// Collects everything that is to be said about one configuration.
///
/// No text in here may quote a value that could be a secret.
#[derive(Default)]
pub(crate) struct Findings {
    mistakes: Vec<(Origin, String)>,
    notes: Vec<(Origin, String)>,
}

impl Findings {
    pub fn mistake(&mut self, origin: &Origin, text: String) {
        self.mistakes.push((origin.clone(), text));
    }

    pub fn note(&mut self, origin: &Origin, text: String) {
        self.notes.push((origin.clone(), text));
    }

    pub fn has_no_mistake(&self) -> bool {
        self.mistakes.is_empty()
    }

    pub fn into_mistakes(self, file: &Path) -> Mistakes {
        Mistakes(lines(self.mistakes, file))
    }

    pub fn into_notes(self, file: &Path) -> Vec<String> {
        lines(self.notes, file)
    }
}

/// One line each, in the order of the file; those about variables come last.
fn lines(mut findings: Vec<(Origin, String)>, file: &Path) -> Vec<String> {
    findings.sort_by(|(a, _), (b, _)| a.cmp(b));
    let line = |(origin, text)| match origin {
        Origin::Line(line) => format!("{}:{line}: {text}", file.display()),
        Origin::Variable(name) => format!("{name}: {text}"),
    };
    findings.into_iter().map(line).collect()
}

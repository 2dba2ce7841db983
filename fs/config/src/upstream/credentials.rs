//! What Larder says of itself to an upstream.

use std::{path::PathBuf, time::Duration};

use crate::{
    Secret,
    section::Section,
    value::{duration, path, secret, string},
};

/// The credentials for one upstream.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// A user's.
    Password {
        /// `username`
        username: String,
        /// `password` or `passwordfile`
        password: SecretSource,
    },
    /// `token` or `tokenfile`: shown to the registry itself as it is, and to no token server.
    Token(SecretSource),
    /// `exec`: what a Docker credential helper says.
    Exec {
        /// `exec.command`: the helper's name or path.
        command: String,
        /// `exec.lifetime`: how long its word holds; for ever when absent.
        lifetime: Option<Duration>,
    },
}

/// Where a secret is.
#[derive(Clone, Debug)]
pub enum SecretSource {
    /// In the configuration.
    Value(Secret),
    /// In a file, which may change.
    File(PathBuf),
}

impl Credentials {
    /// Reads them off the section of an upstream.
    pub(super) fn read(upstream: &mut Section<'_>) -> Option<Self> {
        let kinds = [
            ("username", ["password", "passwordfile"]),
            ("token", ["token", "tokenfile"]),
            ("exec", ["exec", "exec"]),
        ];
        let is_given = |upstream: &Section<'_>, (key, others): &(&str, [&str; 2])| {
            upstream.has(key) || others.iter().any(|other| upstream.has(other))
        };
        if kinds.iter().filter(|kind| is_given(upstream, kind)).count() > 1 {
            upstream.mistake_of_all(
                "more than one kind of credentials is given; keep username and password, or token, \
                 or exec",
            );
        }
        if upstream.has("username") || upstream.has("password") {
            if !upstream.has("passwordfile") {
                upstream.require_both("username", "password");
            }
        } else if upstream.has("passwordfile") {
            upstream.require("username");
        }
        let username = upstream.value("username", string);
        let password = SecretSource::read(upstream, "password", "passwordfile");
        let token = SecretSource::read(upstream, "token", "tokenfile");
        let exec = upstream.section("exec", |exec| {
            if !exec.is_empty() {
                exec.require("command");
            }
            let lifetime = exec.value("lifetime", duration);
            Some(Self::Exec { command: exec.value("command", string)?, lifetime })
        });
        let password = username.zip(password);
        let password = password.map(|(username, password)| Self::Password { username, password });
        password.or(token.map(Self::Token)).or(exec)
    }
}

impl SecretSource {
    fn read(section: &mut Section<'_>, value: &str, file: &str) -> Option<Self> {
        if section.has(value) && section.has(file) {
            section.mistake(file, &format!("{value} is given too; keep one"));
        }
        let value = section.value(value, secret).map(Self::Value);
        let file = section.value(file, path).map(Self::File);
        value.or(file)
    }
}

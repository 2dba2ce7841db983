//! What Larder says of itself to an upstream, as it is now: files change, and helpers are asked.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use larder_config::{self as config, Secret, SecretSource};
use serde::Deserialize;
use tokio::{fs, io::AsyncWriteExt, process::Command, sync::Mutex, time::timeout};

use super::{UpstreamError, error::late};

/// How long a credential helper may take.
const HELPER_DEADLINE: Duration = Duration::from_secs(10);
/// How long a file's content is used before it is read again. What is refused is read again at once.
const FILE_LIFETIME: Duration = Duration::from_secs(60);
/// What a helper calls the user when the secret is a token for OAuth 2 (`docker-credential-helpers`).
const IDENTITY_TOKEN: &str = "<token>";

/// The credentials for one upstream.
pub(super) struct Credentials {
    config: config::Credentials,
    /// What the helper said last.
    helped: Mutex<Option<Current>>,
}

/// Credentials, and until when they need not be looked up again.
#[derive(Clone)]
pub(super) struct Current {
    pub(super) login: Login,
    pub(super) expires: Option<Instant>,
}

/// What there is to show.
#[derive(Clone)]
pub enum Login {
    /// A user's.
    Password {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A token for the registry itself.
    Token(Secret),
}

/// The answer of a credential helper to `get`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Credentials {
    pub(super) fn new(config: config::Credentials) -> Self {
        Self { config, helped: Mutex::new(None) }
    }

    /// Those of a client of this cache.
    pub(super) fn of(client: Login) -> Self {
        Self::new(match client {
            Login::Password { username, password } => {
                config::Credentials::Password { username, password: SecretSource::Value(password) }
            }
            Login::Token(token) => config::Credentials::Token(SecretSource::Value(token)),
        })
    }

    /// The credentials for the upstream at `host`.
    ///
    /// # Errors
    /// The file cannot be read, or the helper has none.
    pub(super) async fn current(&self, host: &str) -> Result<Current, UpstreamError> {
        match &self.config {
            config::Credentials::Password { username, password } => {
                let (password, expires) = look_up(password).await?;
                let login = Login::Password { username: username.clone(), password };
                Ok(Current { login, expires })
            }
            config::Credentials::Token(token) => {
                let (token, expires) = look_up(token).await?;
                Ok(Current { login: Login::Token(token), expires })
            }
            config::Credentials::Exec { command, lifetime } => {
                self.helped(command, *lifetime, host).await
            }
        }
    }

    /// They were refused: a helper is asked again, whatever its lifetime.
    pub(super) async fn refused(&self) {
        *self.helped.lock().await = None;
    }

    async fn helped(
        &self,
        command: &str,
        lifetime: Option<Duration>,
        host: &str,
    ) -> Result<Current, UpstreamError> {
        // Held while it runs, so that it runs once for all who wait.
        let mut helped = self.helped.lock().await;
        let holds = |current: &&Current| current.expires.is_none_or(|at| Instant::now() < at);
        if let Some(current) = helped.as_ref().filter(holds) {
            return Ok(current.clone());
        }
        let login = ask(command, host).await?;
        let expires = lifetime.and_then(|lifetime| Instant::now().checked_add(lifetime));
        Ok(helped.insert(Current { login, expires }).clone())
    }
}

async fn look_up(source: &SecretSource) -> Result<(Secret, Option<Instant>), UpstreamError> {
    match source {
        SecretSource::Value(secret) => Ok((secret.clone(), None)),
        SecretSource::File(path) => Ok((read(path).await?, Some(Instant::now() + FILE_LIFETIME))),
    }
}

/// A secret in a file of its own, where an editor may have left a line end behind it.
async fn read(path: &Path) -> Result<Secret, UpstreamError> {
    let text = fs::read_to_string(path).await.map_err(|error| {
        UpstreamError::Unavailable(format!("its credentials in {}: {error}", path.display()))
    })?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Asks a credential helper: the host on its standard input, JSON on its output. What it says is
/// never told, because it may be a secret.
async fn ask(command: &str, host: &str) -> Result<Login, UpstreamError> {
    let failed = |reason: &dyn std::fmt::Display| {
        let reason = format!("its credential helper {command:?} {reason}; try `{command} get`");
        UpstreamError::Unavailable(reason)
    };
    let run = async {
        let mut helper = Command::new(command)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = helper.stdin.take() {
            // A helper that knows one registry alone need not read.
            let _ = input.write_all(format!("{host}\n").as_bytes()).await;
        }
        helper.wait_with_output().await
    };
    let output = timeout(HELPER_DEADLINE, run).await;
    let output = output.map_err(|_| late("an answer of its credential helper", HELPER_DEADLINE))?;
    let output = output.map_err(|error| failed(&format_args!("does not run: {error}")))?;
    if !output.status.success() {
        return Err(failed(&format_args!("has nothing for {host} ({})", output.status)));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| failed(&"answered something that is no Username and Secret"))?;
    if answer.username == IDENTITY_TOKEN {
        return Err(failed(&"has an identity token, which is not supported"));
    }
    Ok(Login::Password { username: answer.username, password: Secret::new(answer.secret) })
}

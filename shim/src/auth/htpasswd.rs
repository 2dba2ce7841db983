//! `auth.htpasswd`: the users of a file, with passwords hashed by bcrypt, as `htpasswd -B` writes it.

use std::{
    collections::HashMap,
    fs,
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use hyper::HeaderMap;
use larder_config as config;
use lru::LruCache;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use super::{
    AuthMistake,
    basic::{Login, Print, Prints},
    challenge, quoted,
};
use crate::{error::Error, watched::Watched};

/// How many logins are known to be right.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// How long a password may take to be verified, with those before it.
const VERIFY_DEADLINE: Duration = Duration::from_secs(10);

/// The users, and who of them has been here.
pub struct Htpasswd {
    challenge: String,
    users: Watched<HashMap<String, String>, AuthMistake>,
    /// Logins that were right, with the hash that they were right for: a user whose password is
    /// changed is verified again.
    known: Mutex<LruCache<Print, ()>>,
    prints: Prints,
    /// bcrypt is slow by intent: more at once than processors help nobody.
    turns: Arc<Semaphore>,
}

impl Htpasswd {
    pub fn new(config: &config::Htpasswd) -> Result<Self, AuthMistake> {
        let path = config.path.clone();
        let mistake = |reason: String| AuthMistake { what: "htpasswd".to_owned(), reason };
        Ok(Self {
            challenge: format!("Basic realm={}", quoted(&config.realm)),
            users: Watched::new(vec![path.clone()], move || read(&path))?,
            known: Mutex::new(LruCache::new(KNOWN_MAX)),
            prints: Prints::new().map_err(|error| mistake(error.to_string()))?,
            turns: Arc::new(Semaphore::new(thread::available_parallelism().map_or(1, usize::from))),
        })
    }

    pub fn refresh(&self) {
        self.users.refresh();
    }

    /// Whether a request comes from one of the users.
    pub async fn check(&self, headers: &HeaderMap) -> Result<(), Error> {
        let refused = || challenge(&self.challenge);
        let login = Login::of(headers).ok_or_else(refused)?;
        let users = self.users.get();
        let is_user = users.contains_key(&login.username);
        // Who is none takes as long as who is one.
        let hash = users.get(&login.username).or_else(|| users.values().next());
        let hash = hash.ok_or_else(refused)?.clone();
        let print = self.prints.of(&login, &hash);
        if is_user && self.is_known(&print) {
            return Ok(());
        }
        let verified = timeout(VERIFY_DEADLINE, self.verify(login, hash, print, is_user)).await;
        let is_right =
            verified.map_err(|_| Error::Busy("too many passwords are being verified"))?;
        if is_right { Ok(()) } else { Err(refused()) }
    }

    async fn verify(&self, login: Login, hash: String, print: Print, is_user: bool) -> bool {
        // A semaphore that is never closed always gives.
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        if is_user && self.is_known(&print) {
            return true;
        }
        let verified = spawn_blocking(move || {
            // Held to the end, also when the client has left: it cannot make this any more.
            let _turn = turn;
            bcrypt::verify(login.password.expose(), &hash).unwrap_or(false)
        });
        let is_right = verified.await.unwrap_or(false) && is_user;
        if is_right {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).put(print, ());
        }
        is_right
    }

    fn is_known(&self, print: &Print) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(print).is_some()
    }
}

/// The hashes of the users. Other hashes than bcrypt's are too weak, and let nobody in, as in
/// Distribution.
fn read(path: &Path) -> Result<HashMap<String, String>, AuthMistake> {
    let mistake = |reason: String| AuthMistake { what: "htpasswd.path".to_owned(), reason };
    let text = fs::read_to_string(path)
        .map_err(|error| mistake(format!("{}: {error}", path.display())))?;
    let mut users = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = format!("{}:{}", path.display(), number + 1);
        let (user, hash) = line.split_once(':').ok_or_else(|| {
            mistake(format!("{at}: expected user:hash, as `htpasswd -B` writes it"))
        })?;
        if !["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|version| hash.starts_with(version)) {
            tracing::warn!("{at}: {user} is let in by no password: its hash is not bcrypt's");
            continue;
        }
        users.insert(user.to_owned(), hash.to_owned());
    }
    Ok(users)
}

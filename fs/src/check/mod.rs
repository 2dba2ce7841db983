//! `larder-fs check`: what an operator runs before a storage goes live, and what `mount` asks of
//! it at every start.
//!
//! Every check writes below `docker/larder/check/`, through two clients that know nothing of each
//! other, as two nodes do, and removes what it wrote.

mod local;
mod probes;

use std::{fmt, path::Path, time::Duration};

use futures_util::StreamExt;
use larder_config::Storage as Config;
use object_store::{ObjectStoreExt, path::Path as Key};
use serde::Serialize;
use tokio::time::Instant;

use crate::store::{self, Backend};

/// How long one check may take. A part of 8 MiB at 1 Mbit/s would be too slow for anything.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long the first requests may take, in which a wrong configuration shows: an operator is told
/// within 10 s.
const ACCESS_DEADLINE: Duration = Duration::from_secs(9);
/// The same for what is asked of a directory besides, after it was opened twice.
const DIRECTORY_DEADLINE: Duration = Duration::from_secs(5);

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All is well.
    Ok,
    /// It works, but not as well as it could.
    Warning,
    /// It must not go live like this.
    Failure,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
        })
    }
}

/// The outcome of one check.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was seen and, where it is not well, what to do.
    pub detail: String,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { check, verdict, detail: detail.into() }
    }
}

/// What a check says: a verdict, and a sentence.
type Outcome = object_store::Result<(Verdict, String)>;

/// Two clients of one storage.
pub struct Probe {
    first: Backend,
    second: Backend,
    /// What this run's keys begin with.
    prefix: Key,
}

impl Probe {
    fn open(config: &Config) -> Result<Self, String> {
        let (first, second) = (store::open(config)?, store::open(config)?);
        let time = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let run = format!("{}-{time}", std::process::id());
        let root = Key::from(first.root_directory.as_str());
        let prefix = root.join("docker").join("larder").join("check").join(run);
        Ok(Self { first, second, prefix })
    }

    fn key(&self, name: impl fmt::Display) -> Key {
        self.prefix.clone().join(name.to_string())
    }

    async fn run(
        &self,
        check: &'static str,
        deadline: Duration,
        probe: impl Future<Output = Outcome>,
    ) -> Finding {
        match tokio::time::timeout(deadline, probe).await {
            Ok(Ok((verdict, detail))) => Finding::new(check, verdict, detail),
            Ok(Err(e)) => Finding::new(check, Verdict::Failure, self.first.explain(&e)),
            Err(_) => Finding::new(check, Verdict::Failure, self.first.explain_silence(deadline)),
        }
    }

    /// Removes what the checks have left, as far as the storage lets us.
    async fn clean_up(&self) {
        let objects = &self.first.objects;
        let mut left = objects.list(Some(&self.prefix));
        while let Ok(Some(Ok(meta))) = tokio::time::timeout(DEADLINE, left.next()).await {
            let _ = objects.delete(&meta.location).await;
        }
    }
}

/// Runs every check, and hands each finding to `report` as soon as it is there. Tells whether no
/// check failed.
pub async fn all(config: &Config, mut report: impl FnMut(&Finding)) -> bool {
    let mut is_well = true;
    let mut report = |finding: Finding| {
        is_well &= finding.verdict != Verdict::Failure;
        report(&finding);
        finding.verdict != Verdict::Failure
    };
    let probe = match Probe::open(config) {
        Ok(probe) => probe,
        Err(mistake) => {
            report(Finding::new("open", Verdict::Failure, mistake));
            return false;
        }
    };
    let Some(of_a_directory) = of_a_directory(config).await else {
        let silence = probe.first.explain_silence(DIRECTORY_DEADLINE);
        return report(Finding::new("mount", Verdict::Failure, silence));
    };
    for finding in of_a_directory {
        report(finding);
    }
    if report(probe.run("access", ACCESS_DEADLINE, probes::access(&probe)).await) {
        for (name, check) in probes::ALL {
            report(probe.run(name, DEADLINE, check(&probe)).await);
        }
        probe.clean_up().await;
    }
    is_well
}

/// What only applies to a directory; `None` when it does not answer.
async fn of_a_directory(config: &Config) -> Option<Vec<Finding>> {
    let Config::Filesystem { root_directory } = config else { return Some(Vec::new()) };
    let root = root_directory.clone();
    let checks = tokio::task::spawn_blocking(move || local::checks(&root));
    tokio::time::timeout(DIRECTORY_DEADLINE, checks).await.ok()?.ok()
}

/// What `mount` asks before it mounts.
#[derive(Debug)]
pub enum Readiness {
    /// The storage answers, and is consistent.
    Ready,
    /// It does not answer now. It may be back soon, and what is cached is served until then.
    Unreachable(String),
    /// Replicas on it would disagree.
    Inconsistent(String),
    /// It does not let us in, or does not exist.
    Unfit(String),
}

/// The short form: whether the storage lets us in, and whether one client reads at once what
/// another has written. What else there is to say of a directory is logged.
pub async fn readiness(config: &Config) -> Readiness {
    let deadline = Instant::now() + ACCESS_DEADLINE;
    let probe = match Probe::open(config) {
        Ok(probe) => probe,
        Err(mistake) => return Readiness::Unfit(mistake),
    };
    match tokio::time::timeout_at(deadline, probes::access(&probe)).await {
        Ok(Ok(_)) => {}
        Ok(Err(e)) if probe.first.is_misconfigured(&e) => {
            return Readiness::Unfit(probe.first.explain(&e));
        }
        Ok(Err(e)) => return Readiness::Unreachable(probe.first.explain(&e)),
        Err(_) => return Readiness::Unreachable(probe.first.explain_silence(ACCESS_DEADLINE)),
    }
    for finding in of_a_directory(config).await.unwrap_or_default() {
        match finding {
            Finding { check: local::ATTRIBUTES, verdict: Verdict::Failure, detail } => {
                return Readiness::Inconsistent(detail);
            }
            Finding { verdict: Verdict::Ok, .. } => {}
            Finding { check, detail, .. } => tracing::warn!("{check}: {detail}"),
        }
    }
    let consistency = probe.run("read-after-write", DEADLINE, probes::read_after_write(&probe, 3));
    let finding = consistency.await;
    probe.clean_up().await;
    match finding.verdict {
        Verdict::Ok | Verdict::Warning => Readiness::Ready,
        Verdict::Failure => Readiness::Inconsistent(finding.detail),
    }
}

/// Runs `larder-fs check`: prints the findings, and tells whether no check failed.
pub async fn print(config: &Config, as_json: bool) -> bool {
    if as_json {
        let mut findings = Vec::new();
        let is_well = all(config, |finding| findings.push(finding.clone())).await;
        println!("{:#}", serde_json::json!({ "ok": is_well, "checks": findings }));
        return is_well;
    }
    all(config, |Finding { check, verdict, detail }| {
        println!("{check:<18} {verdict:<8} {detail}");
    })
    .await
}

/// The directory of a `storage.filesystem`, for what only applies to directories.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

//! `/readyz`: whether a balancer should send requests here.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::StatusCode;

use crate::{answer::Response, content::Content, registries::Registries, shim::text};

/// How long a node that drains still takes requests, if anybody asks for its readiness: as long as it
/// takes a balancer that asks every second or two to hear of it.
const NOTICE: Duration = Duration::from_secs(5);
/// Who has asked within this time will ask again.
const ASKED_LATELY: Duration = Duration::from_secs(30);

/// Whether it is ready, and who wants to know.
#[derive(Default)]
pub struct Readiness {
    is_draining: AtomicBool,
    asked: Mutex<Option<Instant>>,
}

impl Readiness {
    /// 200 or 503, and why. A directory in trouble alone is no reason for 503, as long as there is an
    /// upstream: it may be the same on every node, and then this would turn slow answers into none.
    pub async fn answer(&self, content: &Content, registries: &Registries) -> Response {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        if self.is_draining.load(Ordering::Relaxed) {
            return not_ready("this node is going to end");
        }
        match (content.probe().await, registries.all().is_empty()) {
            (Ok(()), _) => text("text/plain", "ready".into()),
            (Err(error), false) => {
                let reason = format!("ready, from the upstream alone: the directory: {error}");
                text("text/plain", reason.into())
            }
            (Err(error), true) => not_ready(&format!("the directory: {error}")),
        }
    }

    /// It is not ready any more. Tells how long to wait until everybody knows.
    pub fn drain(&self) -> Duration {
        self.is_draining.store(true, Ordering::Relaxed);
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_watched = asked.is_some_and(|asked| asked.elapsed() < ASKED_LATELY);
        if is_watched { NOTICE } else { Duration::ZERO }
    }
}

fn not_ready(reason: &str) -> Response {
    let mut response = text("text/plain", format!("not ready: {reason}").into());
    response.status = StatusCode::SERVICE_UNAVAILABLE;
    response
}

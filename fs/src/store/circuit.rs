//! Deadlines, and a circuit breaker: a storage that is down costs milliseconds after the first
//! failures, and a request now and then finds out that it is back.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use object_store::Error as StoreError;
use tokio::time::Instant;

use crate::error::{Error, Result};

/// How many operations in a row must fail before the storage counts as down.
const FAILURES_MAX: u32 = 5;
/// How many of them one is that got no answer before its deadline: whoever asked has waited long.
const FAILURES_OF_SILENCE: u32 = 3;
/// How long the one may wait that finds out whether a storage that is down is back.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(5);
/// How long nothing is asked of a storage that is down; it doubles with each failed attempt.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// What is known of the storage's health. Every operation on it goes through [`Circuit::run`].
#[derive(Debug, Default)]
pub struct Circuit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Set while the storage counts as down.
    next_attempt: Option<Instant>,
}

impl Circuit {
    /// Runs one operation on the storage, which must end before `deadline`.
    ///
    /// # Errors
    /// [`Error::TimedOut`] after the deadline, [`Error::Down`] at once while the storage counts
    /// as down, and what the storage says, with `operation` in it.
    pub async fn run<T>(
        &self,
        operation: impl Into<String>,
        deadline: Duration,
        future: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T> {
        let deadline = self.admit(deadline)?;
        let outcome = match tokio::time::timeout(deadline, future).await {
            Ok(outcome) => outcome.map_err(|e| Error::storage(operation, e)),
            Err(_) => Err(Error::TimedOut),
        };
        self.record(&outcome);
        outcome
    }

    /// Lets an operation through, unless the storage counts as down. Then one operation for each
    /// pause is let through, to see whether it is back. Gives the operation's deadline.
    fn admit(&self, deadline: Duration) -> Result<Duration> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match state.next_attempt {
            Some(next) if now < next => Err(Error::Down),
            Some(_) => {
                state.next_attempt = Some(now + state.pause());
                Ok(deadline.min(ATTEMPT_DEADLINE))
            }
            None => Ok(deadline),
        }
    }

    fn record<T>(&self, outcome: &Result<T>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = outcome.as_ref().err().filter(|error| is_of_the_storage(error));
        let Some(error) = failure else {
            if state.next_attempt.is_some() {
                tracing::info!("the shared storage is back");
            }
            *state = State::default();
            return;
        };
        let count = if matches!(error, Error::TimedOut) { FAILURES_OF_SILENCE } else { 1 };
        state.failures = state.failures.saturating_add(count);
        if state.failures < FAILURES_MAX {
            return;
        }
        if state.next_attempt.is_none() {
            tracing::error!("the shared storage counts as down after several failures: {error}");
        }
        state.next_attempt = Some(Instant::now() + state.pause());
    }
}

impl State {
    fn pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(FAILURES_MAX).min(16);
        (PAUSE_MIN * 2_u32.pow(doublings)).min(PAUSE_MAX)
    }
}

/// Whether an error says something about the storage, and not about one object.
fn is_of_the_storage(error: &Error) -> bool {
    match error {
        Error::TimedOut => true,
        Error::Storage { source, .. } => !matches!(
            **source,
            StoreError::AlreadyExists { .. }
                | StoreError::Precondition { .. }
                | StoreError::NotModified { .. }
                | StoreError::InvalidPath { .. }
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn failure() -> Result<(), StoreError> {
        Err(StoreError::Generic { store: "test", source: "down".into() })
    }

    /// "Nothing hangs: every wait has a deadline."
    #[tokio::test(start_paused = true)]
    async fn an_operation_that_hangs_ends_at_its_deadline() {
        let hangs = pending::<Result<(), StoreError>>();
        let outcome = Circuit::default().run("read", DEADLINE, hangs).await;
        assert_eq!(outcome.unwrap_err().errno(), libc::ETIMEDOUT);
    }

    /// "A storage that is down costs milliseconds, not minutes, after the first failures."
    #[tokio::test(start_paused = true)]
    async fn a_storage_that_is_silent_costs_two_deadlines_and_then_little() {
        let circuit = Circuit::default();
        let started = Instant::now();
        let ask = || circuit.run("read", DEADLINE, pending::<Result<(), StoreError>>());
        for _ in 0..2 {
            assert!(matches!(ask().await, Err(Error::TimedOut)));
        }
        assert!(matches!(ask().await, Err(Error::Down)));
        assert_eq!(started.elapsed(), 2 * DEADLINE);

        circuit.0.lock().unwrap().next_attempt = Some(Instant::now());
        assert!(matches!(ask().await, Err(Error::TimedOut)));
        assert_eq!(started.elapsed(), 2 * DEADLINE + ATTEMPT_DEADLINE);
        assert!(matches!(ask().await, Err(Error::Down)));
    }

    #[tokio::test]
    async fn a_storage_that_is_down_is_asked_seldom_and_comes_back() {
        let circuit = Circuit::default();
        for _ in 0..FAILURES_MAX {
            let outcome = circuit.run("read", DEADLINE, ready(failure())).await;
            assert!(matches!(outcome, Err(Error::Storage { .. })));
        }
        let asked = circuit.run("read", DEADLINE, ready(Ok(()))).await;
        assert!(matches!(asked, Err(Error::Down)), "it is asked though it is down");

        circuit.0.lock().unwrap().next_attempt = Some(Instant::now());
        circuit.run("read", DEADLINE, ready(Ok(()))).await.unwrap();
        circuit.run("read", DEADLINE, ready(Ok(()))).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_missing_says_nothing_about_the_storage() {
        let circuit = Circuit::default();
        for _ in 0..=FAILURES_MAX {
            let missing = StoreError::NotFound { path: String::new(), source: "missing".into() };
            let outcome: Result<()> = circuit.run("read", DEADLINE, ready(Err(missing))).await;
            assert!(matches!(outcome, Err(Error::NotFound)));
        }
    }
}

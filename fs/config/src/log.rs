//! `log:`

/// `log:`
#[derive(Debug)]
pub struct Log {
    /// `log.level`, `info` when absent.
    pub level: Level,
    /// `log.formatter`
    pub formatter: Formatter,
    /// One line per request: on unless `log.accesslog.disabled`.
    pub access_log: bool,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Formatter {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

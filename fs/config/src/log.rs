//! `log:`

use crate::{
    section::Section,
    value::{boolean, expected},
};

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

impl Log {
    /// Reads `log:`, and `loglevel:` from before there was one.
    pub(crate) fn read(root: &mut Section<'_>) -> Self {
        let old_level = root.value("loglevel", level);
        if old_level.is_some() && root.has("log") {
            root.add_note("loglevel", "log.level wins if it is there too");
        }
        root.section("log", |log| {
            log.note("fields", "log lines carry no fields of the operator's");
            log.note("reportcaller", "log lines do not say which line of code wrote them");
            log.refuse("hooks", "hooks are not supported; let the log's collector send mails");
            Self {
                level: log.value("level", level).or(old_level).unwrap_or(Level::Info),
                formatter: log.value("formatter", formatter).unwrap_or(Formatter::Text),
                access_log: log.section("accesslog", |access_log| {
                    !access_log.value("disabled", boolean).unwrap_or(false)
                }),
            }
        })
    }
}

fn level(text: &str) -> Result<Level, String> {
    match &*text.to_ascii_lowercase() {
        "error" => Ok(Level::Error),
        "warn" => Ok(Level::Warn),
        "info" => Ok(Level::Info),
        "debug" => Ok(Level::Debug),
        "trace" => Ok(Level::Trace),
        _ => Err(expected("error, warn, info, debug or trace", text)),
    }
}

fn formatter(text: &str) -> Result<Formatter, String> {
    match text {
        "text" => Ok(Formatter::Text),
        "json" => Ok(Formatter::Json),
        "logstash" => Err("logstash is not supported; use json, which it reads too".to_owned()),
        _ => Err(expected("text or json", text)),
    }
}

//! `larder-shim serve --config config.yml --root DIR`

use std::{
    env,
    fmt::Display,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use larder_config::{Config, Debug, Formatter, Level, Log};
use larder_shim::{ACCESS_LOG, Server, serve_debug};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// A registry over a directory: serves images, and pulls through on a miss.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until SIGTERM or SIGINT.
    Serve {
        /// Distribution's config.yml; REGISTRY_… variables override it.
        #[arg(long)]
        config: PathBuf,
        /// The directory that larder-fs mounts, or any other.
        #[arg(long)]
        root: PathBuf,
    },
}

fn main() -> ExitCode {
    let Command::Serve { config, root } = Arguments::parse().command;
    let config = match Config::load(&config, env::vars_os()) {
        Ok(config) => config,
        Err(mistakes) => return fail(&mistakes, larder_config::EXIT_CODE),
    };
    start_log(&config.log);
    for note in &config.notes {
        tracing::info!("{note}");
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    let code = runtime.block_on(serve(&config, &root));
    // A call into a dead mount never comes back, and must not keep the process.
    runtime.shutdown_background();
    code
}

async fn serve(config: &Config, root: &Path) -> ExitCode {
    let server = match Server::new(config, root).await {
        Ok(server) => server,
        Err(mistake) => return fail(&mistake, larder_config::EXIT_CODE),
    };
    let (listener, mut terminate, mut interrupt) = match (
        TcpListener::bind(&config.http.addr).await,
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(listener), Ok(terminate), Ok(interrupt)) => (listener, terminate, interrupt),
        (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
            return fail(&format!("{}: {error}", config.http.addr), 1);
        }
    };
    if let Some(Debug { addr, metrics_path }) = &config.http.debug {
        match TcpListener::bind(addr).await {
            Ok(listener) => drop(tokio::spawn(serve_debug(listener, metrics_path.clone()))),
            Err(error) => return fail(&format!("http.debug.addr: {addr}: {error}"), 1),
        }
        tracing::info!(addr, path = metrics_path, "serving metrics");
    }
    tracing::info!(addr = config.http.addr, root = %root.display(), "serving");
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    server.run(listener, shutdown).await;
    ExitCode::SUCCESS
}

/// Starts the log. What libraries say is only of use when this program says too little.
fn start_log(log: &Log) {
    let level = match log.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let access = if log.access_log { LevelFilter::INFO } else { LevelFilter::OFF };
    let targets = Targets::new()
        .with_default(LevelFilter::WARN.min(level))
        .with_target("larder_shim", level)
        .with_target(ACCESS_LOG, access);
    let registry = tracing_subscriber::registry().with(targets);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match log.formatter {
        Formatter::Text => registry.with(layer.with_ansi(false)).init(),
        Formatter::Json => registry.with(layer.json().flatten_event(true)).init(),
    }
}

/// Says what is wrong where it is seen even when there is no log yet.
fn fail(reason: &dyn Display, code: u8) -> ExitCode {
    eprintln!("larder-shim: {reason}");
    ExitCode::from(code)
}

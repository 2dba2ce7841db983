//! `larder-fs mount`: from the configuration to a mounted filesystem, and back.

use std::{
    fs,
    io::{self, IsTerminal},
    os::unix::fs::MetadataExt,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use larder_config::{Config, EXIT_CODE, Formatter, Level, Log};
use larder_fs::{
    cache::Cache,
    filesystem::Filesystem,
    fuse,
    store::{self, Storage},
};
use nix::mount::{MntFlags, umount, umount2};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// How long files may stay open after a signal before the mount is cut off under them.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Mounts, and returns when the filesystem is unmounted.
pub fn run(config: &Path, mountpoint: &Path, allow_other: bool) -> ExitCode {
    let prepared = Config::load(config, std::env::vars_os())
        .map_err(|e| e.to_string())
        .and_then(|config| prepare(&config, mountpoint));
    let filesystem = match prepared {
        Ok(filesystem) => filesystem,
        Err(mistake) => {
            eprintln!("larder-fs: {mistake}");
            return ExitCode::from(EXIT_CODE);
        }
    };
    match serve(filesystem, mountpoint, allow_other) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{}: {e}", mountpoint.display());
            ExitCode::FAILURE
        }
    }
}

/// Everything that can be wrong with the configuration, before anything is mounted.
fn prepare(config: &Config, mountpoint: &Path) -> Result<Filesystem, String> {
    start_log(&config.log);
    for note in &config.notes {
        tracing::info!("{note}");
    }
    free_mountpoint(mountpoint)?;
    let storage = Storage::new(store::open(&config.storage)?);
    let cache = Cache::open(&config.cache)?;
    let usage = cache.usage();
    tracing::info!(
        blobs = usage.blobs,
        used_bytes = usage.used_bytes,
        limit_bytes = usage.limit_bytes,
        "local cache"
    );
    // The Debug of a configuration shows no secret.
    let report = format!("{:#?}\n{:#?}\n", config.storage, config.cache);
    Ok(Filesystem::new(Arc::new(storage), cache, report))
}

/// Makes sure that the mount point can be mounted on, and takes it over from a `larder-fs` that
/// was killed.
fn free_mountpoint(mountpoint: &Path) -> Result<(), String> {
    let shown = mountpoint.display();
    let explain = |e: io::Error| format!("{shown}: {e}; the mount point is an empty directory");
    let metadata = match fs::metadata(mountpoint) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            tracing::warn!("{shown}: unmounting what a killed larder-fs left");
            umount2(mountpoint, MntFlags::MNT_DETACH).map_err(|e| explain(e.into()))?;
            fs::metadata(mountpoint)
        }
        metadata => metadata,
    };
    if !metadata.map_err(explain)?.is_dir() {
        return Err(explain(io::ErrorKind::NotADirectory.into()));
    }
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).map_err(explain);
    if device(mountpoint)? != device(&mountpoint.join(".."))? {
        return Err(format!("{shown}: something is mounted here already; umount it first"));
    }
    if fs::read_dir(mountpoint).map_err(explain)?.next().is_some() {
        return Err(format!("{shown}: not empty; the mount would hide what is in it"));
    }
    Ok(())
}

fn serve(filesystem: Filesystem, mountpoint: &Path, allow_other: bool) -> io::Result<()> {
    let runtime = Runtime::new()?;
    let session = fuse::mount(filesystem, mountpoint, allow_other, runtime.handle().clone())?;
    let (send_end, mut end) = oneshot::channel();
    std::thread::Builder::new().name("fuse".to_owned()).spawn(move || {
        let _ = send_end.send(session.run());
    })?;
    tracing::info!(mountpoint = %mountpoint.display(), "mounted");
    // For systemd's Type=notify; without systemd this does nothing.
    if let Err(e) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!("cannot tell systemd that the mount is ready: {e}");
    }

    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            ended = &mut end => return Ok(ended),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        unmount(mountpoint)?;
        match tokio::time::timeout(CLOSE_TIMEOUT, end).await {
            Ok(ended) => Ok(ended),
            Err(_) => {
                tracing::warn!("files are still open; what reads them now gets an error");
                Ok(Ok(Ok(())))
            }
        }
    });
    runtime.shutdown_background();
    tracing::info!(mountpoint = %mountpoint.display(), "unmounted");
    ended.and_then(|ended: Result<io::Result<()>, _>| ended.unwrap_or(Ok(())))
}

/// Takes the mount out of the tree, at once, also while files in it are open.
fn unmount(mountpoint: &Path) -> io::Result<()> {
    match umount(mountpoint) {
        Err(nix::Error::EBUSY) => {
            tracing::info!("files are open; waiting for them up to {CLOSE_TIMEOUT:?}");
            Ok(umount2(mountpoint, MntFlags::MNT_DETACH)?)
        }
        outcome => Ok(outcome?),
    }
}

fn start_log(log: &Log) {
    let level = match log.level {
        Level::Error => tracing::Level::ERROR,
        Level::Warn => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
        Level::Trace => tracing::Level::TRACE,
    };
    // The FUSE library logs every request at debug; what we do with it is logged by us.
    let targets = Targets::new().with_default(level).with_target("fuser", tracing::Level::ERROR);
    let stderr = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match log.formatter {
        Formatter::Text => tracing_subscriber::registry().with(stderr.with_filter(targets)).init(),
        Formatter::Json => {
            tracing_subscriber::registry()
                .with(stderr.json().flatten_event(true).with_filter(targets))
                .init();
        }
    }
}

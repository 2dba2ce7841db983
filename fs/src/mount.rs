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
    cache::{Cache, Usage},
    check::{self, Readiness},
    filesystem::Filesystem,
    fuse,
    store::{self, Storage},
};
use nix::{
    mount::{MntFlags, umount, umount2},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        stat::{Mode, umask},
    },
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// How long files may stay open after a signal before the mount is cut off under them.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the command line says besides the configuration.
pub struct Options {
    /// Whether other users may look into the mount.
    pub allow_other: bool,
    /// Whether to mount a storage on which replicas may disagree.
    pub allow_inconsistent_storage: bool,
}

/// Mounts, and returns when the filesystem is unmounted.
pub fn run(config: &Config, mountpoint: &Path, options: &Options) -> ExitCode {
    start_log(&config.log);
    for note in &config.notes {
        tracing::info!("{note}");
    }
    let (filesystem, storage) = match prepare(config, mountpoint) {
        Ok(prepared) => prepared,
        Err(mistake) => {
            eprintln!("larder-fs: {mistake}");
            return ExitCode::from(EXIT_CODE);
        }
    };
    match serve(config, filesystem, storage, mountpoint, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{}: {e}", mountpoint.display());
            ExitCode::FAILURE
        }
    }
}

/// Everything that can be wrong with the configuration, before anything is mounted.
fn prepare(config: &Config, mountpoint: &Path) -> Result<(Filesystem, Arc<Storage>), String> {
    // What is published is for every node to read, and for registries, whatever user they run as.
    umask(Mode::from_bits_truncate(0o022));
    raise_open_files();
    free_mountpoint(mountpoint)?;
    let storage = Arc::new(Storage::new(store::open(&config.storage)?));
    let cache = Cache::open(&config.cache)?;
    let Usage { blobs, used_bytes, limit_bytes, .. } = cache.usage();
    tracing::info!(blobs, used_bytes, limit_bytes, "local cache");
    // The Debug of a configuration shows no secret.
    let report = format!("{:#?}\n{:#?}\n", config.storage, config.cache);
    let filesystem = Filesystem::new(Arc::clone(&storage), cache, config.cache.fill, report);
    Ok((filesystem, storage))
}

/// Asks the storage whether it is fit to be mounted. One that is down now does not keep us from
/// serving what is cached.
async fn examine(config: &Config, options: &Options) -> io::Result<()> {
    match check::readiness(&config.storage).await {
        Readiness::Ready => Ok(()),
        Readiness::Unreachable(reason) => {
            tracing::error!("mounting without the shared storage, which does not answer: {reason}");
            Ok(())
        }
        Readiness::Inconsistent(reason) if options.allow_inconsistent_storage => {
            tracing::warn!("{reason}");
            Ok(())
        }
        Readiness::Inconsistent(reason) => Err(io::Error::other(format!(
            "{reason} (larder-fs check says more; --allow-inconsistent-storage mounts it anyhow)"
        ))),
        Readiness::Unfit(reason) => Err(io::Error::other(reason)),
    }
}

/// Takes what the system allows: every open blob is an open file, and so are those kept open.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(e) = raised {
        tracing::warn!("few files can be open: {e}");
    }
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

fn serve(
    config: &Config,
    filesystem: Filesystem,
    storage: Arc<Storage>,
    mountpoint: &Path,
    options: &Options,
) -> io::Result<()> {
    let runtime = Runtime::new()?;
    runtime.block_on(examine(config, options))?;
    if let Some(ttl) = config.blob_ttl() {
        runtime.spawn(store::expire(Arc::clone(&storage), filesystem.metrics(), ttl));
    }
    runtime.spawn(store::sweep_hourly(storage));
    let handle = runtime.handle().clone();
    let session = fuse::mount(filesystem, mountpoint, options.allow_other, handle)?;
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

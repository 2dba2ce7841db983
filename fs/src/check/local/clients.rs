//! NFSv4 clients of one name: a server takes them for one client that has started anew, and gives up
//! what it knew of the other, locks and open files (RFC 8881, "Client Identification").
//!
//! A client's name is made of its host's, mostly, and no client sees the others. So each node writes
//! down under its name who it is, in the storage that all of them share.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use nix::unistd::gethostname;

use super::super::{Finding, Verdict};

/// Where the nodes are written down, below the root directory.
const NODES: &str = "docker/larder/nodes";
/// What makes the names of clients differ, whatever their hosts are called.
const IDENTIFIER: &str = "/sys/fs/nfs/net/nfs_client/identifier";
/// Who was here before that may be gone, or may be this host under an older identity.
const MEMORY: Duration = Duration::from_hours(24);

/// Whether another host has the name of this one.
pub fn name(root: &Path) -> Finding {
    let finding = |verdict, detail: String| Finding::new("nfs-client", verdict, detail);
    let identifier = fs::read_to_string(IDENTIFIER).unwrap_or_default();
    if !matches!(identifier.trim(), "" | "(null)") {
        return finding(
            Verdict::Ok,
            format!("the client has an identifier: {}", identifier.trim()),
        );
    }
    let host = gethostname().unwrap_or_default().to_string_lossy().into_owned();
    match twin(&root.join(NODES), &host) {
        Ok(None) if host == "localhost" => {
            finding(Verdict::Warning, advise("this host is called localhost, as others may be"))
        }
        Ok(None) => finding(Verdict::Ok, format!("no other node is called {host}")),
        Ok(Some(age)) => {
            let minutes = age.as_secs() / 60;
            finding(
                Verdict::Warning,
                advise(&format!("another node called {host} was here {minutes} minutes ago")),
            )
        }
        Err(e) => finding(Verdict::Warning, format!("{NODES} cannot be used: {e}")),
    }
}

fn advise(what: &str) -> String {
    format!("{what}: NFSv4 clients of one name break each other's locks; give each node its own")
}

/// Writes down who we are, and tells how long ago another one did so under the same name.
fn twin(nodes: &Path, host: &str) -> io::Result<Option<Duration>> {
    let (path, own) = (nodes.join(host), identity()?);
    fs::create_dir_all(nodes)?;
    // Has the client ask the server for the names in it again.
    drop(File::open(nodes)?);
    let found = match fs::read_to_string(&path) {
        Ok(other) if other != own => {
            let age = fs::metadata(&path)?.modified()?.elapsed().unwrap_or_default();
            Some(age).filter(|age| is_of_another(&other, &own, *age))
        }
        Ok(_) => None,
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    fs::write(path, own)?;
    Ok(found)
}

/// Before this host was started, it had another identity itself.
fn is_of_another(other: &str, own: &str, age: Duration) -> bool {
    let boot = |identity: &str| identity.split(' ').next().map(str::to_owned);
    age < MEMORY && (boot(other) == boot(own) || age < uptime())
}

/// What this client is and no other: the boot of its kernel, and its network, for each network
/// namespace is a client of its own.
fn identity() -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(format!("{} {}\n", boot.trim(), fs::metadata("/proc/self/ns/net")?.ino()))
}

/// For how long this kernel runs (proc(5)).
fn uptime() -> Duration {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split('.').next().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_host_of_the_same_name_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let nodes = directory.path().join(NODES);
        assert_eq!(twin(&nodes, "a").unwrap(), None, "nobody was here");
        assert_eq!(twin(&nodes, "a").unwrap(), None, "it is we who were here");
        assert_eq!(twin(&nodes, "b").unwrap(), None, "another name");
        fs::write(nodes.join("a"), "another-boot 1\n").unwrap();
        assert!(twin(&nodes, "a").unwrap().is_some());

        let hour = Duration::from_secs(3600);
        assert!(is_of_another("boot 1\n", "boot 2\n", hour), "another network of this host");
        assert!(!is_of_another("older 1\n", "boot 1\n", uptime() + hour), "before a restart");
        assert!(!is_of_another("boot 1\n", "boot 2\n", MEMORY), "too long ago");
    }
}

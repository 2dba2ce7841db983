//! What only applies to directories: who owns them, and how NFS is mounted.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{Finding, Verdict, shown};

/// A line of `/proc/self/mountinfo` (proc(5)).
struct Mount {
    point: PathBuf,
    kind: String,
    options: Vec<String>,
}

/// The checks of a directory.
pub fn checks(root: &Path) -> Vec<Finding> {
    let mut findings = vec![ownership(root)];
    match mount_of(root) {
        Ok(Some(mount)) if mount.kind.starts_with("nfs") => findings.extend(nfs(&mount)),
        Ok(Some(mount)) => findings.push(Finding::new(
            "mount",
            Verdict::Ok,
            format!("{} on {}: for one node, or to be exported", mount.kind, shown(&mount.point)),
        )),
        Ok(None) => {}
        Err(e) => findings.push(Finding::new("mount", Verdict::Warning, format!("unknown: {e}"))),
    }
    findings
}

/// Whether what we create belongs to us. With `root_squash`, what root creates does not.
fn ownership(root: &Path) -> Finding {
    let path = root.join(format!(".larder-check-{}", std::process::id()));
    let owner = File::create(&path).and_then(|file| file.metadata()).map(|metadata| metadata.uid());
    let _ = fs::remove_file(&path);
    let user = nix::unistd::geteuid().as_raw();
    let (verdict, detail) = match owner {
        Ok(owner) if owner == user => (Verdict::Ok, format!("files belong to user {user}")),
        Ok(owner) => (
            Verdict::Warning,
            format!(
                "we are user {user}, but files belong to {owner}: the export squashes us; run \
                 larder-fs as a user of its own that owns {}",
                shown(root)
            ),
        ),
        Err(e) => (
            Verdict::Failure,
            format!(
                "{}: user {user} cannot create files: {e}; chown it on the server",
                shown(root)
            ),
        ),
    };
    Finding::new("ownership", verdict, detail)
}

/// The mount options that matter (nfs(5)).
fn nfs(mount: &Mount) -> Vec<Finding> {
    let has = |option: &str| mount.options.iter().any(|o| o == option);
    let mut findings = Vec::new();
    let mut advise = |is_bad: bool, verdict: Verdict, advice: &str| {
        if is_bad {
            findings.push(Finding::new("nfs-mount", verdict, advice));
        }
    };
    advise(
        !has("hard"),
        Verdict::Failure,
        "mounted with soft: a write that was acknowledged may be lost; mount with hard",
    );
    advise(
        !has("lookupcache=pos") && !has("lookupcache=positive") && !has("lookupcache=none"),
        Verdict::Warning,
        "without lookupcache=positive every miss costs some more round trips; add it",
    );
    advise(
        has("noac") || has("acregmax=0"),
        Verdict::Warning,
        "noac and actimeo=0 cost a round trip for each read and bring nothing here; remove them",
    );
    advise(
        has("local_lock=all") || has("local_lock=flock"),
        Verdict::Warning,
        "local_lock hides the locks of other nodes; remove it",
    );
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    advise(
        mount.kind == "nfs4" && hostname == "localhost",
        Verdict::Warning,
        "this host is called localhost: NFSv4 clients with the same name break each other's \
         locks; give each node a name",
    );
    if findings.is_empty() {
        let detail =
            format!("{} on {}: {}", mount.kind, shown(&mount.point), mount.options.join(","));
        findings.push(Finding::new("nfs-mount", Verdict::Ok, detail));
    }
    findings
}

/// The mount that a path is on: the one with the longest mount point above it.
fn mount_of(path: &Path) -> io::Result<Option<Mount>> {
    let path = path.canonicalize()?;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mounts = table.lines().filter_map(parse).filter(|mount| path.starts_with(&mount.point));
    // Of several on the same point, the last is on top.
    Ok(mounts.max_by_key(|mount| mount.point.components().count()))
}

/// `36 35 98:0 /root /point rw,noatime shared:1 - ext3 /dev/root rw,errors=continue`
fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(4);
    let (point, options) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (kind, _source, super_options) = (right.next()?, right.next()?, right.next()?);
    let options = options.split(',').chain(super_options.split(',')).map(str::to_owned).collect();
    // Blanks in a path are written as octal numbers.
    Some(Mount { point: point.replace("\\040", " ").into(), kind: kind.to_owned(), options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nfs_options_that_lose_data_fail_and_others_are_warned_of() {
        let line = |options: &str| {
            let line = format!("36 35 0:42 / /mnt/a b rw shared:1 - nfs4 server:/x rw,{options}");
            line.replace("/mnt/a b", "/mnt/a\\040b")
        };
        for (options, expected) in [
            ("vers=4.2,hard,lookupcache=pos", Verdict::Ok),
            ("vers=4.2,hard", Verdict::Warning),
            ("vers=4.2,hard,lookupcache=pos,noac", Verdict::Warning),
            ("vers=4.2,soft,lookupcache=pos", Verdict::Failure),
        ] {
            let mount = parse(&line(options)).unwrap();
            assert_eq!((mount.point.as_path(), &*mount.kind), (Path::new("/mnt/a b"), "nfs4"));
            assert_eq!(nfs(&mount)[0].verdict, expected, "{options}");
        }
    }
}

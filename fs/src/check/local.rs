//! What only applies to directories: who owns them, and how NFS is mounted.

mod clients;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access, geteuid};

use super::{Finding, Verdict, shown};

/// What Distribution and Larder make, and have to be allowed to make more in.
const DIRECTORIES: [&str; 6] = [
    "docker",
    "docker/registry",
    "docker/registry/v2",
    "docker/registry/v2/blobs",
    "docker/registry/v2/blobs/sha256",
    "docker/registry/v2/repositories",
];
/// How mount options show that what other nodes do is not seen: a storage that is not consistent.
pub const ATTRIBUTES: &str = "nfs-attributes";

/// A line of `/proc/self/mountinfo` (proc(5)).
struct Mount {
    point: PathBuf,
    kind: String,
    options: Vec<String>,
}

/// The checks of a directory.
pub fn checks(root: &Path) -> Vec<Finding> {
    let creator = creator(root);
    let mut findings = vec![ownership(root, &creator), permissions(root, &creator)];
    match mount_of(root) {
        Ok(Some(mount)) if mount.kind.starts_with("nfs") => {
            findings.extend(nfs(&mount));
            if mount.kind == "nfs4" {
                findings.push(clients::name(root));
            }
        }
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

/// Whom a file belongs to that we create: with `root_squash` on the export, not to root.
fn creator(root: &Path) -> io::Result<u32> {
    let path = root.join(format!(".larder-check-{}", std::process::id()));
    let owner = File::create(&path).and_then(|file| file.metadata()).map(|metadata| metadata.uid());
    let _ = fs::remove_file(&path);
    owner
}

fn ownership(root: &Path, creator: &io::Result<u32>) -> Finding {
    let user = geteuid().as_raw();
    let (verdict, detail) = match creator {
        Ok(creator) if *creator == user => (Verdict::Ok, format!("files belong to user {user}")),
        Ok(creator) => (
            Verdict::Warning,
            format!(
                "we are user {user}, but files belong to {creator}: the export squashes us; run \
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

/// Whether we may make more where others have made something: a registry that ran as another user,
/// or a node whose user has another number.
fn permissions(root: &Path, creator: &io::Result<u32>) -> Finding {
    let made = DIRECTORIES.iter().map(|name| root.join(name));
    let first = |name: &str| Some(fs::read_dir(root.join(name)).ok()?.next()?.ok()?.path());
    let first = DIRECTORIES[4..].iter().filter_map(|name| first(name));
    let is_closed = |path: &PathBuf| {
        path.is_dir() && access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_err()
    };
    let Some(closed) = made.chain(first).find(is_closed) else {
        return Finding::new("permissions", Verdict::Ok, "what is there can be added to");
    };
    let user = *creator.as_ref().unwrap_or(&geteuid().as_raw());
    let owner =
        fs::metadata(&closed).map_or_else(|e| e.to_string(), |m| format!("user {}", m.uid()));
    let detail = format!(
        "{} belongs to {owner}, and user {user}, as whom we write, may not write there; chown -R {user} \
         {} on the server",
        shown(&closed),
        shown(root)
    );
    Finding::new("permissions", Verdict::Failure, detail)
}

/// The mount options that matter (nfs(5)).
fn nfs(mount: &Mount) -> Vec<Finding> {
    let has = |option: &str| mount.options.iter().any(|o| o == option);
    let mut findings = Vec::new();
    let mut advise = |check: &'static str, is_bad: bool, verdict: Verdict, advice: &str| {
        if is_bad {
            findings.push(Finding::new(check, verdict, advice));
        }
    };
    advise(
        "nfs-mount",
        !has("hard"),
        Verdict::Failure,
        "mounted with soft: a write that was acknowledged may be lost; mount with hard",
    );
    advise(
        "nfs-mount",
        !has("lookupcache=pos") && !has("lookupcache=positive") && !has("lookupcache=none"),
        Verdict::Warning,
        "without lookupcache=positive every miss costs some more round trips; add it",
    );
    advise(
        "nfs-mount",
        has("local_lock=all") || has("local_lock=flock"),
        Verdict::Warning,
        "local_lock hides the locks of other nodes; remove it",
    );
    advise(
        ATTRIBUTES,
        has("nocto"),
        Verdict::Failure,
        "mounted with nocto: what other nodes publish stays hidden, and tags that they move stay \
         old; remove it",
    );
    advise(
        ATTRIBUTES,
        has("noac") || has("acregmax=0"),
        Verdict::Warning,
        "noac and actimeo=0 cost a round trip for each read and bring nothing here; remove them",
    );
    for check in ["nfs-mount", ATTRIBUTES] {
        if findings.iter().all(|finding| finding.check != check) {
            let detail =
                format!("{} on {}: {}", mount.kind, shown(&mount.point), mount.options.join(","));
            findings.push(Finding::new(check, Verdict::Ok, detail));
        }
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
        use Verdict::{Failure, Ok, Warning};
        for (options, expected) in [
            ("vers=4.2,hard,lookupcache=pos", [Ok, Ok]),
            ("vers=4.2,hard", [Warning, Ok]),
            ("vers=4.2,hard,lookupcache=pos,noac", [Warning, Ok]),
            ("vers=4.2,hard,lookupcache=pos,nocto", [Failure, Ok]),
            ("vers=4.2,soft,lookupcache=pos", [Failure, Ok]),
        ] {
            let mount = parse(&line(options)).unwrap();
            assert_eq!((mount.point.as_path(), &*mount.kind), (Path::new("/mnt/a b"), "nfs4"));
            let verdicts: Vec<_> = nfs(&mount).iter().map(|finding| finding.verdict).collect();
            assert_eq!(verdicts, expected, "{options}");
        }
    }
}

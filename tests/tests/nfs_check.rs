//! `larder-fs check` on NFS: a real server with `rw,root_squash,no_wdelay`, and clients with good and
//! bad options. As in the tests called `nfs`, the first test boots a machine, and the rest runs inside.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use larder_tests::{
    Failure, Mount, Node, Sandbox, Storage, bin,
    nfs::{self, CLIENTS, EXPORT, in_client, mount, network, run_in_machine},
    publish, run, until,
};
use serde_json::Value;

const DISK_BYTES: u64 = 256 << 20;
const NOBODY: u32 = 65534;
const TIMEOUT: Duration = Duration::from_secs(120);
const TELL_TIMEOUT: Duration = Duration::from_secs(10);
/// To start a program in the machine.
const START_TIMEOUT: Duration = Duration::from_secs(3);

#[test]
fn version_4_2() {
    let Some(sandbox) = Sandbox::enter(&[&nfs::NEEDS[..], &Node::NEEDS].concat()) else { return };
    run_in_machine(&sandbox, "4.2", DISK_BYTES, "inside::");
}

/// What a check found: its verdict, and its sentence.
struct Report(Value);

impl Report {
    fn of(&self, check: &str) -> (&str, &str) {
        let findings = self.0["checks"].as_array().unwrap();
        let finding = findings.iter().find(|finding| finding["check"] == check);
        let finding = finding.unwrap_or_else(|| panic!("no {check} in {:#}", self.0));
        (finding["verdict"].as_str().unwrap(), finding["detail"].as_str().unwrap())
    }

    fn assert(&self, check: &str, verdict: &str, detail: &str) {
        let found = self.of(check);
        println!("{check}: {found:?}");
        assert!(found.0 == verdict && found.1.contains(detail), "{check}: {found:?}");
    }
}

fn config(sandbox: &Sandbox, storage: &Path) -> PathBuf {
    let cache = sandbox.directory("cache");
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\ncache: {{directory: {}}}\n",
        storage.display(),
        cache.display()
    );
    sandbox.file("check.yml", &text)
}

/// Runs the check in `command`, which is to run a program.
fn check(sandbox: &Sandbox, mut command: Command, storage: &Path) -> Report {
    command.arg(bin("larder-fs")).args(["check", "--json", "--config"]);
    command.arg(config(sandbox, storage));
    let printed = run(command, TIMEOUT).unwrap_or_else(|Failure(printed)| {
        // The report stands between the command line and what else was said.
        let start = printed.find("\n{").expect("a report");
        printed[start..=printed.rfind('}').expect("its end")].to_owned()
    });
    Report(serde_json::from_str(&printed).unwrap())
}

/// A directory of the test's own, which belongs to whom it has to.
fn directory(name: &str) -> PathBuf {
    let exported = Path::new(EXPORT).join(name);
    fs::create_dir(&exported).unwrap();
    chown(&exported, Some(NOBODY), Some(NOBODY)).unwrap();
    exported
}

mod inside {
    use super::*;

    #[test]
    #[ignore = "runs in a machine"]
    fn default_options_are_well_and_root_is_squashed() {
        let sandbox = Sandbox::enter(&["larder-fs"]).unwrap();
        directory("default");
        let storage = Path::new(CLIENTS[1]).join("default");
        let report = check(&sandbox, Command::new("env"), &storage);
        assert_eq!(report.0["ok"], true, "{:#}", report.0);
        report.assert("ownership", "warning", "files belong to 65534: the export squashes us");
        report.assert("permissions", "ok", "");
        report.assert("nfs-mount", "warning", "lookupcache=positive");
        report.assert("nfs-attributes", "ok", "");
        report.assert("nfs-client", "ok", "");
        report.assert("speed", report.of("speed").0, "ms a read");
        report.assert("clock", "ok", "");

        let mut user = Command::new("setpriv");
        user.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
        fs::set_permissions(sandbox.directory("cache"), fs::Permissions::from_mode(0o777)).unwrap();
        let report = check(&sandbox, user, &storage);
        report.assert("ownership", "ok", "");
    }

    #[test]
    #[ignore = "runs in a machine"]
    fn what_another_user_has_made_is_told() {
        let sandbox = Sandbox::enter(&["larder-fs"]).unwrap();
        let exported = directory("foreign");
        fs::create_dir_all(exported.join("docker/registry/v2/blobs/sha256")).unwrap();
        chown(exported.join("docker"), Some(NOBODY), Some(NOBODY)).unwrap();
        let storage = Path::new(CLIENTS[1]).join("foreign");
        let report = check(&sandbox, Command::new("env"), &storage);
        assert_eq!(report.0["ok"], false, "{:#}", report.0);
        report.assert("permissions", "failure", "docker/registry belongs to user 0");
    }

    // "mount […] refuses a storage without read-after-write consistency unless told otherwise."

    #[test]
    #[ignore = "runs in a machine"]
    fn options_that_hide_what_others_do_are_told_and_not_mounted() {
        let sandbox = Sandbox::enter(&Node::NEEDS).unwrap();
        directory("hidden");
        let point = sandbox.directory("badly");
        mount("b", "badly-mounted", "nocto,soft,timeo=50", &point);
        let storage = point.join("hidden");
        let report = check(&sandbox, Command::new("env"), &storage);
        assert_eq!(report.0["ok"], false, "{:#}", report.0);
        report.assert("nfs-mount", "failure", "mounted with soft");
        report.assert("nfs-attributes", "failure", "mounted with nocto");

        let mut mount = Command::new(bin("larder-fs"));
        mount.arg("mount").arg("--config").arg(config(&sandbox, &storage));
        mount.arg(sandbox.directory("mount"));
        let refused = run(mount, TIMEOUT).unwrap_err().0;
        assert!(refused.contains("nocto") && refused.contains("--allow-inconsistent-storage"));
    }

    // "Two v4 clients with the same hostname broke each other's locks: the check command should notice."

    #[test]
    #[ignore = "runs in a machine"]
    fn two_clients_of_one_name_are_told() {
        let sandbox = Sandbox::enter(&["larder-fs"]).unwrap();
        directory("twins");
        let [a, b] = CLIENTS.map(|client| Path::new(client).join("twins"));
        check(&sandbox, in_client("a", "twin"), &a).assert("nfs-client", "ok", "twin");
        check(&sandbox, in_client("a", "twin"), &a).assert("nfs-client", "ok", "twin");
        check(&sandbox, in_client("b", "other"), &b).assert("nfs-client", "ok", "other");
        let report = check(&sandbox, in_client("b", "twin"), &b);
        report.assert("nfs-client", "warning", "another node called twin was here 0 minutes ago");
    }

    // "An unreachable endpoint […] gives one error that names the key in the configuration to look at,
    // within 10 s."

    #[test]
    #[ignore = "runs in a machine"]
    fn a_server_that_is_away_is_told() {
        let sandbox = Sandbox::enter(&Mount::NEEDS).unwrap();
        directory("away");
        let storage = Path::new(CLIENTS[1]).join("away");
        network("b", "down");
        let mut check = Command::new(bin("larder-fs"));
        check.args(["check", "--config"]).arg(config(&sandbox, &storage));
        let started = Instant::now();
        let Failure(told) = run(check, TIMEOUT).unwrap_err();
        println!("{:?}: {told}", started.elapsed());
        assert!(told.contains("storage.filesystem.rootdirectory: no answer"), "{told}");
        assert!(started.elapsed() < TELL_TIMEOUT + START_TIMEOUT);

        // A mount serves what is cached, and all of it when the server is back.
        let started = Instant::now();
        let mount = Mount::start(&sandbox, "away", &Storage::Directory(storage), "size: 32MiB");
        println!("{:?}: {}", started.elapsed(), mount.log());
        assert!(mount.log().contains("storage.filesystem.rootdirectory: no answer"));
        assert!(started.elapsed() < TELL_TIMEOUT + START_TIMEOUT);
        network("b", "up");
        until("a server that is back", TIMEOUT, || {
            mount.call_within(TIMEOUT, |mount| publish(mount, b"blob")).ok()
        });
    }
}

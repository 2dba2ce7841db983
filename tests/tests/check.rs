//! `larder-fs check`, and what `larder-fs mount` says of a storage that it cannot use.

use std::{process::Command, time::Duration};

use larder_tests::{Failure, Node, S3, Sandbox, Storage, bin, run};
use serde_json::Value;

/// A mistake is told within 10 s; the rest is for a busy machine to start a program.
const MISTAKE_TIMEOUT: Duration = Duration::from_secs(15);
const CHECK_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs `larder-fs` with a configuration.
fn larder_fs(
    sandbox: &Sandbox,
    args: &[&str],
    config: &str,
    timeout: Duration,
) -> Result<String, Failure> {
    let cache = sandbox.directory("check-cache");
    let text = format!("version: 0.1\n{config}\ncache: {{directory: {}}}\n", cache.display());
    let path = sandbox.file("check.yml", &text);
    let mut command = Command::new(bin("larder-fs"));
    command.args(args).arg("--config").arg(path);
    run(command, timeout)
}

#[test]
fn a_sound_storage_passes_every_check() {
    let Some(sandbox) = Sandbox::enter(&["larder-fs", S3::NEEDS]) else { return };
    let s3 = S3::start(&sandbox);
    let directory = Storage::Directory(sandbox.directory("storage"));
    for storage in [directory, s3.storage()] {
        let args = ["check", "--json"];
        let printed = larder_fs(&sandbox, &args, &storage.section(), CHECK_TIMEOUT);
        let report: Value =
            serde_json::from_str(&printed.expect("exit code 0")).expect("a JSON object");
        assert_eq!(report["ok"], true);
        let checks = report["checks"].as_array().expect("a list of checks");
        for check in ["read-after-write", "list-after-write", "put-if-absent", "leftovers", "clock"]
        {
            let is_well = |found: &Value| found["check"] == check && found["verdict"] == "ok";
            assert!(checks.iter().any(is_well), "no {check} in {report:#}");
        }
    }
}

// Each mistake is in the tests called `mistakes`. Here it is that both commands tell it.
#[test]
fn a_mistake_in_the_storage_section_ends_either_command() {
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &[S3::NEEDS]].concat()) else { return };
    let s3 = S3::start(&sandbox);
    const WRONG: &str = "Wr0ngSecret";
    let section = s3.storage().section().replace(S3::SECRET_KEY, WRONG);
    let mountpoint = sandbox.directory("mount");
    let mountpoint = mountpoint.to_str().expect("a path in UTF-8");
    for args in [&["check"][..], &["mount", mountpoint]] {
        let failure = larder_fs(&sandbox, args, &section, MISTAKE_TIMEOUT);
        let said = failure.expect_err("a mistake is an error").0;
        assert!(said.contains("storage.s3.secretkey"), "{args:?}: {said}");
        assert!(!said.contains(WRONG), "a secret: {said}");
    }
}

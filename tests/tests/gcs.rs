//! Google Cloud Storage: a server that checks the tokens.

use std::time::{Duration, Instant};

use larder_tests::{Distributed, Gcs, Opened, Sandbox, Untrusted};
use serde_json::Value;

/// An operator learns within this time that the storage cannot be used.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);

/// A section with this key file, and `more` in it.
fn section(sandbox: &Sandbox, key_file: &Value, more: &str) -> String {
    let path = sandbox.file("account.json", &key_file.to_string());
    format!("gcs: {{bucket: {}, keyfile: {}, {more}}}", Gcs::BUCKET, path.display())
}

#[test]
fn a_bucket_of_distribution_is_served() {
    let Some(sandbox) = Sandbox::enter(&[Gcs::NEEDS]) else { return };
    let gcs = Gcs::start(&sandbox);
    for (more, prefix) in [("", ""), ("rootdirectory: /a/b/", "a/b/")] {
        let image = Distributed::image();
        let name = |path: &str| format!("{prefix}{}", path.trim_start_matches('/'));
        gcs.fill(image.files.iter().map(|(path, content)| (name(path), content.clone())));
        let opened = Opened::open(&sandbox, &section(&sandbox, &gcs.key_file(), more)).unwrap();
        assert_eq!(opened.check(), Ok(()), "{more}");
        image.assert_served(opened);
    }
}

#[test]
fn objects_are_put_read_listed_replaced_and_deleted() {
    let Some(sandbox) = Sandbox::enter(&[Gcs::NEEDS]) else { return };
    let gcs = Gcs::start(&sandbox);
    Opened::open(&sandbox, &section(&sandbox, &gcs.key_file(), "")).unwrap().exercise();
    assert_eq!(gcs.content().1, [""; 0], "an aborted upload leaves nothing");
}

/// Guarantee 9: no secret reaches a log or an error.
#[test]
fn what_is_wrong_is_told_with_the_key_to_look_at() {
    let Some(sandbox) = Sandbox::enter(&[Gcs::NEEDS]) else { return };
    let (gcs, other) = (Gcs::start(&sandbox), Gcs::start(&sandbox));
    let untrusted = Untrusted::start(&sandbox);
    let with = |key: &str, value: &Value| {
        let mut file = gcs.key_file();
        file[key] = value.clone();
        file
    };
    let nobody = format!("http://{}", sandbox.address());
    let good = gcs.key_file();
    let missing = |section: String| section.replace(Gcs::BUCKET, "missing");
    let tell = |section: String, key: &str| {
        let start = Instant::now();
        let told = Opened::open(&sandbox, &section).and_then(|opened| opened.check()).unwrap_err();
        assert!(start.elapsed() < TELL_TIMEOUT, "{:?} for: {told}", start.elapsed());
        assert!(told.starts_with(key), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(!told.contains("PRIVATE KEY"), "{told}");
        eprintln!("{told}");
    };
    let account = "storage.gcs.keyfile";
    tell(section(&sandbox, &with("private_key", &other.key_file()["private_key"]), ""), account);
    tell(section(&sandbox, &with("client_email", &"somebody".into()), ""), account);
    tell(section(&sandbox, &with("private_key", &"no key".into()), ""), account);
    tell(section(&sandbox, &with("type", &"authorized_user".into()), ""), account);
    tell(section(&sandbox, &good, "").replace("account.json", "other.json"), account);
    tell(missing(section(&sandbox, &good, "")), "storage.gcs.bucket: ");
    tell(section(&sandbox, &with("gcs_base_url", &nobody.into()), ""), "storage.gcs: ");
    tell(section(&sandbox, &with("gcs_base_url", &untrusted.url().into()), ""), "storage.gcs: ");
    gcs.set_ahead(Duration::from_secs(7200));
    tell(section(&sandbox, &good, ""), account);
}

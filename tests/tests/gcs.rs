//! Google Cloud Storage: a server that checks the tokens.

use larder_tests::{Distributed, Gcs, Opened, Sandbox};
use serde_json::Value;

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

//! Google Cloud Storage: a server that checks the tokens.

use larder_tests::{
    Format, Gcs, Image, Opened, Sandbox,
    distribution::{assert_served, stored},
};
use serde_json::Value;

/// A section with this key file, and `more` in it.
fn section(sandbox: &Sandbox, key_file: &Value, more: &str) -> String {
    let path = sandbox.file("account.json", &key_file.to_string());
    format!("gcs: {{bucket: {}, keyfile: {}, {more}}}", Gcs::BUCKET, path.display())
}

#[test]
fn a_bucket_of_distribution_is_served() {
    let Some(sandbox) = Sandbox::enter(&[Gcs::NEEDS, Gcs::LIBRARY_NEEDS]) else { return };
    let gcs = Gcs::start(&sandbox);
    for (more, prefix) in [("", ""), ("rootdirectory: /a/b/", "a/b/")] {
        let image = Image::new(Format::Oci);
        gcs.fill(&sandbox, &stored(&image, prefix));
        let opened = Opened::open(&sandbox, &section(&sandbox, &gcs.key_file(), more)).unwrap();
        assert_eq!(opened.check(), Ok(()), "{more}");
        assert_served(&opened, &image);
    }
}

#[test]
fn objects_are_put_read_listed_replaced_and_deleted() {
    let Some(sandbox) = Sandbox::enter(&[Gcs::NEEDS, Gcs::LIBRARY_NEEDS]) else { return };
    let gcs = Gcs::start(&sandbox);
    Opened::open(&sandbox, &section(&sandbox, &gcs.key_file(), "")).unwrap().exercise();
    assert_eq!(gcs.names(&sandbox), ["docker/larder/test/one"]);
    assert_eq!(gcs.content().1, [""; 0], "an aborted upload leaves nothing");
}

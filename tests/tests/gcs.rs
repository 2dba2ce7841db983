//! Google Cloud Storage: a server that checks the tokens.

use std::{fs, process::Command, time::Duration};

use larder_tests::{
    Format, Gcs, Image, Opened, Process, Sandbox, bin, certificate,
    distribution::{assert_served, stored},
    run,
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

/// The account in the configuration itself, and Google's own address, at which the server is put.
#[test]
fn an_account_that_is_given_inline_gets_in() {
    let Some(sandbox) = Sandbox::enter(&[Gcs::NEEDS, "haproxy", "larder-fs"]) else { return };
    let gcs = Gcs::start(&sandbox);
    let (key, trusted) = certificate(&sandbox, "DNS:storage.googleapis.com");
    let both = [&key, &trusted].map(|path| fs::read_to_string(path).expect("PEM")).concat();
    let both = sandbox.file("both.pem", &both);
    let config = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         listen google\n bind 127.0.0.1:443 ssl crt {}\n server gcs {}\n",
        both.display(),
        gcs.address()
    );
    let mut haproxy = Command::new("haproxy");
    haproxy.args(["-db", "-f"]).arg(sandbox.file("google.cfg", &config));
    let mut google = Process::start(&sandbox, "google", haproxy);
    google.wait_until("a connection", || std::net::TcpStream::connect("127.0.0.1:443").ok());

    let account = gcs.key_file();
    let mut inline = String::new();
    for key in ["type", "project_id", "private_key_id", "private_key", "client_email"] {
        inline += &format!("{key}: {}, ", account[key]);
    }
    let config = format!(
        "version: 0.1\nstorage: {{gcs: {{bucket: {}, credentials: {{{inline}}}}}}}\n",
        Gcs::BUCKET
    );
    let mut check = Command::new(bin("larder-fs"));
    check.args(["check", "--config"]).arg(sandbox.file("inline.yml", &config));
    check.env("SSL_CERT_FILE", trusted);
    let told = run(check, Duration::from_secs(60)).expect("a storage that lets us in");
    assert!(told.contains("read-after-write   ok"), "{told}");
}

//! Keys of a `storage:` section that only change what is sent: what arrives at a server.

use std::{
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use larder_fs::store::{self, Storage};
use larder_layout::{Algorithm, Digest};
use larder_tests::{Answer, Azurite, Opened, Sandbox, Server, bin, run};

const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
const UPLOAD: &str = "<InitiateMultipartUploadResult><UploadId>1</UploadId>\
                      </InitiateMultipartUploadResult>";

/// Requests as `PUT http://host/path name: value, name: value, …`
type Requests = Arc<Mutex<Vec<String>>>;

/// A server that takes all that it is sent.
fn recorder(sandbox: &Sandbox) -> (Server, Requests) {
    let requests = Requests::default();
    let recorded = Arc::clone(&requests);
    let server = Server::start(sandbox, move |request| {
        let headers = request.headers.iter().map(|(name, value)| format!("{name}: {value}"));
        let headers = headers.collect::<Vec<_>>().join(", ");
        let line =
            format!("{} {}{} {headers}", request.method, request.header("host"), request.path);
        recorded.lock().expect("no panic").push(line);
        Answer::new(200, if request.method == "POST" { UPLOAD } else { "" }).with("ETag", "\"e\"")
    });
    (server, requests)
}

/// Puts one blob, and begins another, and checks that all of `expected` is in either request.
fn assert_sent(sandbox: &Sandbox, requests: &Requests, section: &str, expected: &[&str]) {
    let opened = Opened::open(sandbox, section).expect("a section without mistakes");
    let storage = Storage::new(store::open(&opened.config.storage).expect("a storage"));
    let storage = Arc::new(storage);
    let digest = Digest::of(Algorithm::Sha256, b"blob");
    opened.run(async {
        storage.put_blob(&digest, Bytes::from_static(b"blob")).await.expect("a blob");
        // Never ended, as by a node that is killed: to take it back would be a third request.
        std::mem::forget(storage.upload_blob(&digest).await.expect("an upload"));
    });
    let sent: Vec<_> = requests.lock().expect("no panic").drain(..).collect();
    let [put, begin] = &sent[..] else { panic!("not two requests: {sent:#?}") };
    assert!(put.starts_with("PUT ") && begin.starts_with("POST "), "{sent:#?}");
    for part in expected {
        assert!(put.contains(part) && begin.contains(part), "no {part} in {sent:#?}");
    }
}

#[test]
fn of_s3() {
    let Some(sandbox) = Sandbox::enter(&[]) else { return };
    let (server, requests) = recorder(&sandbox);
    let section = |endpoint: &str, more: &str| {
        format!(
            "s3: {{bucket: below, region: eu-central-1, accesskey: a, secretkey: b, secure: false, \
             rootdirectory: /root/, regionendpoint: '{endpoint}', {more}}}"
        )
    };
    let named = server.address().replace("127.0.0.1", Sandbox::HOST);
    let below = format!("{}/root/docker/registry/v2/blobs/", named.replace("host", "below.host"));
    let path = format!("{named}/below/root/docker/registry/v2/blobs/");
    for (more, expected) in [
        ("", &[&*path, "Credential=a/", "/eu-central-1/s3/"][..]),
        ("forcepathstyle: false", &[&below]),
        ("sessiontoken: t", &["x-amz-security-token: t"]),
        ("storageclass: STANDARD_IA", &["x-amz-storage-class: STANDARD_IA"]),
        ("encrypt: true", &["x-amz-server-side-encryption: AES256"]),
        (
            "encrypt: true, keyid: k",
            &[
                "x-amz-server-side-encryption: aws:kms",
                "x-amz-server-side-encryption-aws-kms-key-id: k",
            ],
        ),
    ] {
        assert_sent(&sandbox, &requests, &section(&named, more), expected);
    }
}

#[test]
fn of_oss() {
    let Some(sandbox) = Sandbox::enter(&[]) else { return };
    let (server, requests) = recorder(&sandbox);
    let section = format!(
        "oss: {{accesskeyid: a, accesskeysecret: b, region: oss-cn-hangzhou, bucket: b, secure: false, \
         endpoint: '{}', rootdirectory: /root, encrypt: true, encryptionkeyid: k}}",
        server.address()
    );
    let expected = [
        &*format!("{}/root/docker/registry/v2/blobs/", server.address()),
        "Credential=a/",
        "/cn-hangzhou/oss/",
        "x-oss-server-side-encryption: KMS",
        "x-oss-server-side-encryption-key-id: k",
    ];
    assert_sent(&sandbox, &requests, &section, &expected);
}

/// An application of Entra ID: a token in exchange for its secret.
#[test]
fn of_azure() {
    let Some(sandbox) = Sandbox::enter(&["larder-fs"]) else { return };
    let forms = Requests::default();
    let recorded = Arc::clone(&forms);
    let entra = Server::start(&sandbox, move |request| {
        let form = String::from_utf8_lossy(&request.body);
        recorded.lock().expect("no panic").push(format!("{} {form}", request.path));
        let token =
            r#"{"access_token": "token-of-entra", "token_type": "Bearer", "expires_in": 3600}"#;
        Answer::new(200, token).with("Content-Type", "application/json")
    });
    let (azure, requests) = recorder(&sandbox);
    let config = format!(
        "version: 0.1\nstorage: {{azure: {{accountname: {}, container: {}, serviceurl: 'http://{}', \
         credentials: {{type: client_secret, tenantid: tenant, clientid: client, secret: hunter2}}}}}}\n\
         cache: {{directory: {}}}\n",
        Azurite::ACCOUNT,
        Azurite::CONTAINER,
        azure.address(),
        sandbox.directory("cache").display(),
    );
    let mut check = Command::new(bin("larder-fs"));
    check.args(["check", "--config"]).arg(sandbox.file("azure.yml", &config));
    check.env("AZURE_AUTHORITY_HOST", format!("http://{}", entra.address()));
    let told = run(check, COMMAND_TIMEOUT).expect_err("a server that keeps nothing");
    assert!(!told.0.contains("hunter2"), "a secret: {}", told.0);

    let form = forms.lock().expect("no panic").first().cloned().expect("a login");
    assert!(form.starts_with("/tenant/oauth2/v2.0/token "), "{form}");
    for part in ["client_id=client", "client_secret=hunter2", "grant_type=client_credentials"] {
        assert!(form.contains(part), "no {part} in {form}");
    }
    let put = requests.lock().expect("no panic").first().cloned().expect("a request");
    // Distribution 3 is the first that knows these credentials, and its names begin with no slash.
    assert!(put.starts_with(&format!("PUT {}/images/docker/", azure.address())), "{put}");
    assert!(put.contains("authorization: Bearer token-of-entra"), "{put}");
}

//! What an operator is told whose `storage:` section is wrong, on each system.
//!
//! "Wrong credentials, a missing bucket, a wrong region, a bad CA, an unreachable endpoint: each gives
//! one error that names the key in the configuration to look at, within 10 s, with no secret in it."

use std::{
    fs,
    net::TcpListener,
    process::Command,
    time::{Duration, Instant},
};

use larder_tests::{
    Answer, Azurite, Gcs, Keystone, Node, Opened, Oss, S3, Sandbox, Server, Storage, Swift,
    Untrusted, run,
};
use object_store::{Error, ObjectStoreExt, path::Path};
use serde_json::Value;

const TELL_TIMEOUT: Duration = Duration::from_secs(10);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// No secret of a test is in another one's configuration by chance.
const WRONG: &str = "Wr0ngSecret";

/// Opens a storage on this section, and checks that what `larder-fs` says then begins with `key`.
/// Gives what it says.
fn assert_told(sandbox: &Sandbox, section: &str, key: &str, secrets: &[&str]) -> String {
    let started = Instant::now();
    let opened = Opened::open(sandbox, section);
    let told = opened.and_then(|opened| opened.check()).expect_err("a mistake is an error");
    println!("{:?}: {told}", started.elapsed());
    assert!(started.elapsed() < TELL_TIMEOUT, "{:?} for: {told}", started.elapsed());
    assert!(told.starts_with(key), "not {key}, but: {told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    for secret in secrets.iter().chain([&WRONG]) {
        assert!(!told.contains(secret), "a secret: {told}");
    }
    told
}

/// A bucket or container that is missing must not be taken for a missing object, which is no error.
fn assert_no_miss(sandbox: &Sandbox, section: &str) {
    let opened = Opened::open(sandbox, section).expect("a section without mistakes of its own");
    let head = opened.run(opened.backend.objects.head(&Path::from("none"))).map(drop);
    let error = head.expect_err("a storage that cannot be used");
    assert!(!matches!(error, Error::NotFound { .. }), "a miss: {error}");
}

/// Who serves no storage at all is only found out when its certificate was accepted.
fn assert_trusted(sandbox: &Sandbox, section: &str) {
    let opened = Opened::open(sandbox, section).expect("a section without mistakes of its own");
    let get = opened.run(opened.backend.objects.get(&Path::from("none"))).map(drop);
    let told = opened.backend.explain(&get.expect_err("an answer that is no object"));
    assert!(!told.contains("certificate"), "it is not trusted: {told}");
}

/// A port that takes connections, and on which nobody answers.
fn silent(sandbox: &Sandbox) -> (String, TcpListener) {
    let address = sandbox.address();
    let listener = TcpListener::bind(&address).expect("a port of the sandbox");
    (address, listener)
}

#[test]
fn in_s3() {
    let Some(sandbox) = Sandbox::enter(&[S3::NEEDS, Untrusted::NEEDS]) else { return };
    let s3 = S3::start(&sandbox);
    let (untrusted, (silent, _listener)) = (Untrusted::start(&sandbox), silent(&sandbox));
    let section = |endpoint: &str, more: &str| {
        format!(
            "s3: {{bucket: {}, region: us-east-1, regionendpoint: '{endpoint}', accesskey: {}, \
             secretkey: {}, {more}}}",
            S3::BUCKET,
            S3::ACCESS_KEY,
            S3::SECRET_KEY
        )
    };
    let good = section(s3.endpoint(), "");
    let nobody = format!("http://{}", sandbox.address());
    let bucket = |name: &str| good.replace("bucket: larder", &format!("bucket: {name}"));
    let without_keys = "s3: {bucket: b, region: r, regionendpoint: 'http://127.0.0.1:9'}";
    for (section, key) in [
        (good.replace(S3::SECRET_KEY, WRONG), "storage.s3.secretkey: "),
        (good.replace(S3::ACCESS_KEY, "nobody"), "storage.s3.accesskey: "),
        (bucket("missing"), "storage.s3.accesskey, and what it may do with storage.s3.bucket: "),
        (section(&nobody, ""), "storage.s3.regionendpoint: "),
        (section(&format!("http://{silent}"), ""), "storage.s3.regionendpoint: "),
        (section("http://nobody.invalid", ""), "storage.s3.regionendpoint: "),
        (section(&untrusted.url(), ""), "storage.s3.regionendpoint and storage.s3.skipverify: "),
        (without_keys.to_owned(), "storage.s3.accesskey and secretkey, which are not set: "),
    ] {
        assert_told(&sandbox, &section, key, &[S3::SECRET_KEY]);
    }
    assert_trusted(&sandbox, &section(&untrusted.url(), "skipverify: true"));
}

/// As Amazon itself answers: SeaweedFS has no regions, and denies what is not there.
#[test]
fn in_s3_at_amazon() {
    let Some(sandbox) = Sandbox::enter(&[]) else { return };
    let missing = "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist\
                   </Message><BucketName>b</BucketName></Error>";
    let malformed = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header \
                     is malformed; the region 'us-east-1' is wrong; expecting 'eu-central-1'</Message>\
                     <Region>eu-central-1</Region></Error>";
    let redirect = "<Error><Code>PermanentRedirect</Code><Message>The bucket you are attempting to \
                    access must be addressed using the specified endpoint.</Message>\
                    <Endpoint>b.s3.eu-central-1.amazonaws.com</Endpoint></Error>";
    for (status, body, key, detail) in [
        (404, missing, "storage.s3.bucket: ", "NoSuchBucket"),
        (400, malformed, "storage.s3.region: ", "the bucket is in eu-central-1"),
        (301, redirect, "storage.s3.region: ", "the bucket is in eu-central-1"),
    ] {
        let amazon = Server::start(&sandbox, move |_| {
            Answer::new(status, body).with("x-amz-bucket-region", "eu-central-1")
        });
        let section = format!(
            "s3: {{bucket: b, region: us-east-1, accesskey: a, secretkey: {WRONG}, \
             regionendpoint: 'http://{}'}}",
            amazon.address()
        );
        let told = assert_told(&sandbox, &section, key, &[]);
        assert!(told.contains(detail), "{told}");
    }
    let nowhere =
        format!("s3: {{bucket: b, region: eu-cental-1, accesskey: a, secretkey: {WRONG}}}");
    assert_told(&sandbox, &nowhere, "storage.s3.region: ", &[]);
}

#[test]
fn in_azure() {
    let needs = [&Azurite::NEEDS[..], &[Untrusted::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let azurite = Azurite::start(&sandbox);
    let (untrusted, (silent, _listener)) = (Untrusted::start(&sandbox), silent(&sandbox));
    let section = |url: &str, more: &str| {
        format!(
            "azure: {{accountname: {}, accountkey: {}, container: {}, serviceurl: '{url}', {more}}}",
            Azurite::ACCOUNT,
            Azurite::KEY,
            Azurite::CONTAINER,
        )
    };
    let good = section(azurite.service_url(), "");
    let wrong_key = "bGFyZGVyLXdyb25nLWxhcmRlci13cm9uZy1sYXJkZXI=";
    let nobody = format!("http://{}/{}", sandbox.address(), Azurite::ACCOUNT);
    for (section, key) in [
        (good.replace(Azurite::KEY, wrong_key), "storage.azure.accountkey"),
        (good.replace(Azurite::KEY, "no-base64!"), "storage.azure.accountkey: not base64"),
        (good.replace(Azurite::CONTAINER, "missing"), "storage.azure.container: "),
        (section(&nobody, ""), "storage.azure.serviceurl"),
        (section(&format!("http://{silent}"), ""), "storage.azure.serviceurl"),
        (section("http://nobody.invalid", ""), "storage.azure.serviceurl"),
        (section(&untrusted.url(), ""), "storage.azure.skipverify: "),
    ] {
        assert_told(&sandbox, &section, key, &[Azurite::KEY, wrong_key, "no-base64"]);
    }
    assert_trusted(&sandbox, &section(&untrusted.url(), "skipverify: true"));
}

#[test]
fn in_gcs() {
    let Some(sandbox) = Sandbox::enter(&[Gcs::NEEDS]) else { return };
    let (gcs, other) = (Gcs::start(&sandbox), Gcs::start(&sandbox));
    let (untrusted, (silent, _listener)) = (Untrusted::start(&sandbox), silent(&sandbox));
    let section = |key: &str, value: Value| {
        let mut file = gcs.key_file();
        if !key.is_empty() {
            file[key] = value;
        }
        let path = sandbox.file("account.json", &file.to_string());
        format!("gcs: {{bucket: {}, keyfile: {}}}", Gcs::BUCKET, path.display())
    };
    let good = || section("", Value::Null);
    let at = |url: String| section("gcs_base_url", url.into());
    let tell = |section: String, key: &str| {
        assert_told(&sandbox, &section, key, &["PRIVATE KEY"]);
    };
    let account = "storage.gcs.keyfile";
    tell(section("private_key", other.key_file()["private_key"].clone()), account);
    tell(section("client_email", "somebody".into()), account);
    tell(section("private_key", "no key".into()), account);
    tell(section("type", "authorized_user".into()), account);
    tell(good().replace("account.json", "other.json"), account);
    tell(good().replace(Gcs::BUCKET, "missing"), "storage.gcs.bucket: ");
    tell(at(format!("http://{}", sandbox.address())), "storage.gcs: ");
    tell(at(format!("http://{silent}")), "storage.gcs: ");
    tell(at("http://nobody.invalid".to_owned()), "storage.gcs: ");
    tell(at(untrusted.url()), "storage.gcs: ");
    gcs.set_ahead(Duration::from_secs(7200));
    tell(good(), account);
}

#[test]
fn in_swift() {
    let needs = [&Swift::NEEDS[..], &[Untrusted::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let swift = Swift::start(&sandbox, TOKEN_LIFE);
    let (untrusted, (silent, _listener)) = (Untrusted::start(&sandbox), silent(&sandbox));
    let good = format!("swift: {{{}}}", swift.section());
    let password = |password: &str| format!("password: {password}");
    let at = |url: &str| {
        format!(
            "swift: {{authurl: '{url}/auth/v1.0', username: a, password: {WRONG}, container: c}}"
        )
    };
    for (section, key) in [
        (good.replace(&password(Swift::PASSWORD), &password(WRONG)), "storage.swift: "),
        (good.replace(Swift::USER, "test:nobody"), "storage.swift: "),
        (good.replace("container: larder", "container: lader"), "storage.swift.container: "),
        (at(&format!("http://{}", sandbox.address())), "storage.swift.authurl: "),
        (at(&format!("http://{silent}")), "storage.swift.authurl: "),
        (at("http://nobody.invalid"), "storage.swift.authurl: "),
    ] {
        assert_told(&sandbox, &section, key, &[Swift::PASSWORD]);
    }
    assert_no_miss(&sandbox, &good.replace("container: larder", "container: lader"));
    let told = assert_told(&sandbox, &at(&untrusted.url()), "storage.swift.authurl: ", &[]);
    assert!(told.contains("storage.swift.insecureskipverify"), "{told}");
    let trusting = at(&untrusted.url()).replace("}", ", insecureskipverify: true}");
    let told = assert_told(&sandbox, &trusting, "storage.swift.authurl: ", &[]);
    assert!(told.contains("answered without a token"), "it is trusted all the same: {told}");
}

#[test]
fn in_swift_with_keystone() {
    let needs = [&Swift::NEEDS[..], &[Keystone::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let keystone = Keystone::start(&sandbox, TOKEN_LIFE);
    let _swift = Swift::with_keystone(&sandbox, &keystone);
    let container = format!("container: {}", Swift::CONTAINER);
    let (password, application) = (keystone.section(), keystone.application_section());
    let wrong_secret = application.replace(
        "applicationcredentialsecret: \"",
        &format!("applicationcredentialsecret: \"{WRONG}"),
    );
    for (section, key, detail) in [
        (password.replace(Keystone::PASSWORD, WRONG), "storage.swift: ", "username, password"),
        (wrong_secret, "storage.swift: ", "applicationcredentialsecret"),
        (password.replace("RegionOne", "RegionTwo"), "storage.swift.region", "RegionTwo"),
        (format!("{password}, endpointtype: admin"), "storage.swift.region", "endpointtype"),
    ] {
        let section = format!("swift: {{{section}, {container}}}");
        let told = assert_told(&sandbox, &section, key, &[Keystone::PASSWORD]);
        assert!(told.contains(detail), "{told}");
    }
}

#[test]
fn in_oss() {
    let Some(sandbox) = Sandbox::enter(&[Untrusted::NEEDS]) else { return };
    let oss = Oss::start(&sandbox);
    let (untrusted, (silent, _listener)) = (Untrusted::start(&sandbox), silent(&sandbox));
    let elsewhere = Server::start(&sandbox, |_| {
        let body = "<Error><Code>AccessDenied</Code><Message>The bucket you are attempting to access \
                    must be addressed using the specified endpoint.</Message>\
                    <Endpoint>oss-cn-beijing.aliyuncs.com</Endpoint></Error>";
        Answer::new(403, body)
    });
    let good = format!("oss: {{{}}}", oss.section());
    let at = |endpoint: &str| good.replace(oss.address(), endpoint);
    for (section, key) in [
        (good.replace(Oss::KEY_ID, "nobody"), "storage.oss.accesskeyid: "),
        (good.replace(Oss::KEY_SECRET, WRONG), "storage.oss.accesskeysecret: "),
        (good.replace("cn-hangzhou", "cn-beijing"), "storage.oss.region: "),
        (at(elsewhere.address()), "storage.oss.region "),
        (good.replace("bucket: larder", "bucket: lader"), "storage.oss.bucket: "),
        (at(&sandbox.address()), "storage.oss.endpoint "),
        (at(&silent), "storage.oss.endpoint "),
        (at("nobody.invalid"), "storage.oss.endpoint "),
        (at(&untrusted.url()), "storage.oss.endpoint"),
    ] {
        assert_told(&sandbox, &section, key, &[Oss::KEY_SECRET]);
    }
    assert_no_miss(&sandbox, &good.replace("bucket: larder", "bucket: lader"));
}

#[test]
fn in_a_directory() {
    let Some(sandbox) = Sandbox::enter(&Node::NEEDS) else { return };
    let missing = sandbox.path("missing");
    let file = sandbox.file("file", "");
    let read_only = sandbox.directory("read-only");
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "ro", "none"]).arg(&read_only);
    run(mount, COMMAND_TIMEOUT).expect("a read-only filesystem");
    // A dead mount: whoever served it was killed.
    let storage = Storage::Directory(sandbox.directory("storage"));
    let mut node = Node::start(&sandbox, "dead", &storage, None);
    node.kill_fs();
    for path in [&missing, &file, &read_only, node.directory()] {
        let section = format!("filesystem: {{rootdirectory: {}}}", path.display());
        assert_told(&sandbox, &section, "storage.filesystem.rootdirectory", &[]);
    }
    assert!(
        !fs::exists(missing).expect("an answer"),
        "it would hide an export that is not mounted"
    );
}

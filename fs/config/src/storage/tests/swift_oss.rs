//! What `storage.swift` and `storage.oss` say, and each mistake in them.

use std::path::Path;

use crate::{Config, KeystoneDomain, KeystoneIdentity, KeystoneScope, Storage, SwiftLogin};

const V1: &str = "authurl: 'http://a:8080/auth/v1.0', username: 'a:b', password: p, container: c";
const V3: &str = "authurl: 'https://a/v3/', username: u, password: p, tenant: t, container: c";
const OSS: &str = "accesskeyid: i, accesskeysecret: s, region: oss-cn-hangzhou, bucket: b";

fn read(driver: &str, section: &str) -> Result<Config, String> {
    let text = format!("version: 0.1\nstorage: {{{driver}: {{{section}}}}}\n");
    Config::parse(Path::new("config.yml"), &text, []).map_err(|e| e.to_string())
}

#[test]
fn swift_tells_the_version_by_the_url() {
    let Storage::Swift(swift) = read("swift", V1).unwrap().storage else { panic!("not swift") };
    assert!(matches!(swift.login, SwiftLogin::V1 { username, .. } if username == "a:b"));
    assert_eq!((&*swift.prefix, swift.chunk_size_bytes, swift.skip_verify), ("", 20 << 20, false));

    let section = format!("{V3}, domainid: d, region: r, endpointtype: internal");
    let Storage::Swift(swift) = read("swift", &section).unwrap().storage else { panic!("swift") };
    assert_eq!(swift.auth_url, "https://a/v3");
    let SwiftLogin::V3 { identity, region, interface } = swift.login else { panic!("not v3") };
    assert_eq!((region.as_deref(), &*interface), (Some("r"), "internal"));
    let KeystoneIdentity::Password { domain, scope, .. } = identity else { panic!("no password") };
    assert_eq!(domain, KeystoneDomain::Id("d".to_owned()));
    assert_eq!(scope, KeystoneScope::Project("t".to_owned(), domain));

    let section = "authurl: 'http://a:5000', authversion: 3, container: c, \
                   applicationcredentialid: i, applicationcredentialsecret: s";
    let Storage::Swift(swift) = read("swift", section).unwrap().storage else { panic!("swift") };
    let SwiftLogin::V3 { identity, .. } = swift.login else { panic!("not v3") };
    assert!(matches!(identity, KeystoneIdentity::Application { .. }));
}

#[test]
fn each_mistake_in_swift_is_found() {
    for (section, more, mistake) in [
        (V1, "authversion: 2", "authversion: Keystone dropped version 2"),
        (V1, "endpointtype: internal", "endpointtype: expected public"),
        (V1, "trustid: t", "trustid: only Keystone knows it"),
        (V1, "chunksize: 1", "chunksize: expected a size from 1MiB"),
        (V1, "tenat: a", "tenat: unknown key; did you mean `tenant`?"),
        (V3, "endpointtype: private", "endpointtype: expected public, internal or admin"),
        (V3, "applicationcredentialid: i", "applicationcredentialsecret: is missing"),
    ] {
        let found = read("swift", &format!("{section}, {more}")).unwrap_err();
        assert!(found.contains(&format!("config.yml:2: storage.swift.{mistake}")), "{found}");
    }
    for (section, mistake) in [
        (V1.replace("v1.0", "v2.0"), "authurl: Keystone dropped version 2"),
        (V1.replace("auth/v1.0", ""), "authversion: is missing, and authurl does not tell"),
        (V1.replace("http://a", "http://u:p@a"), "authurl: expected a URL"),
        (V3.replace("tenant: t, ", ""), "tenant: is missing"),
        (V3.replace("container: c", "container: c/d"), "container: expected a name"),
        (V3.replace("password: p, ", ""), "password: is missing"),
    ] {
        let found = read("swift", &section).unwrap_err();
        assert!(found.starts_with(&format!("config.yml:2: storage.swift.{mistake}")), "{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
}

#[test]
fn oss_has_the_endpoint_of_its_bucket() {
    for (more, endpoint) in [
        ("secure: true", "https://b.oss-cn-hangzhou.aliyuncs.com"),
        ("internal: true", "https://b.oss-cn-hangzhou-internal.aliyuncs.com"),
        ("secure: false, endpoint: 'images.example.com'", "http://images.example.com"),
    ] {
        let config = read("oss", &format!("{OSS}, {more}")).unwrap();
        let Storage::Oss(oss) = config.storage else { panic!("not oss") };
        assert_eq!((&*oss.endpoint, &*oss.region), (endpoint, "cn-hangzhou"));
    }
    for (section, mistake) in [
        (OSS.to_owned() + ", encryptionkeyid: k", "encryptionkeyid: nothing is encrypted with it"),
        (OSS.to_owned() + ", chunksize: 1", "chunksize: expected a size from 5MiB to 5GiB"),
        (OSS.replace("oss-cn-hangzhou", "a/b"), "region: expected a region such as"),
        (OSS.replace(", bucket: b", ""), "bucket: is missing"),
    ] {
        let found = read("oss", &section).unwrap_err();
        assert!(found.contains(&format!("storage.oss.{mistake}")), "{found}");
    }
}

/// Guarantee 9: no secret reaches a log or an error.
#[test]
fn no_secret_is_ever_shown() {
    let swift = V3.replace("password: p", "password: hunter2");
    let application = "authurl: 'https://a/v3', container: c, applicationcredentialid: i, \
                       applicationcredentialsecret: hunter2";
    let oss = OSS.replace("accesskeysecret: s", "accesskeysecret: hunter2");
    for (driver, section) in [("swift", &*swift), ("swift", application), ("oss", &*oss)] {
        let more = if driver == "swift" { "secretkey: hunter2, accesskey: hunter2" } else { "" };
        let config = read(driver, &format!("{section}, {more}")).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
        let found = read(driver, &format!("{section}, {more}, chunksize: 1")).unwrap_err();
        assert!(!found.contains("hunter2"), "{found}");
    }
}

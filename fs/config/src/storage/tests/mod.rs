//! The sections of the drivers, as an operator writes them.

use std::path::Path;

use crate::Config;

mod azure_gcs;
mod swift_oss;

/// "Every key either works, or is refused with a sentence that says why." Those that Distribution
/// 2.8 and 3 read, beside a section of each driver that is whole without them.
#[test]
fn every_key_of_distribution_is_known() {
    let whole = [
        ("delete", "", "enabled"),
        ("redirect", "", "disable"),
        ("cache", "", "blobdescriptor blobdescriptorsize"),
        ("maintenance", "", "uploadpurging readonly"),
        ("tag", "", "concurrencylimit"),
        ("filesystem", "", "rootdirectory maxthreads"),
        (
            "s3",
            "bucket: b, region: r",
            "accesskey secretkey sessiontoken region regionendpoint forcepathstyle bucket encrypt keyid \
             secure skipverify v4auth chunksize multipartcopychunksize multipartcopymaxconcurrency \
             multipartcopythresholdsize rootdirectory storageclass useragent objectacl accelerate \
             usedualstack usefipsendpoint loglevel",
        ),
        (
            "azure",
            "accountname: abc, container: abc",
            "accountname accountkey container realm rootdirectory serviceurl connectionstring \
             credentials max_retries retry_delay skipverify",
        ),
        ("gcs", "bucket: b", "bucket keyfile credentials rootdirectory chunksize maxconcurrency"),
        (
            "oss",
            "accesskeyid: i, accesskeysecret: s, region: oss-r, bucket: b",
            "accesskeyid accesskeysecret region bucket endpoint internal encrypt encryptionkeyid \
             secure chunksize rootdirectory",
        ),
        (
            "swift",
            "authurl: 'http://a/v3', username: u, password: p, container: c, tenant: t",
            "username password authurl tenant tenantid domain domainid tenantdomain tenantdomainid \
             trustid region authversion container prefix endpointtype insecureskipverify chunksize \
             secretkey accesskey tempurlcontainerkey tempurlmethods",
        ),
    ];
    for (section, rest, keys) in whole {
        for key in keys.split_whitespace() {
            let driver =
                if rest.is_empty() && section != "filesystem" { ", inmemory: " } else { "" };
            let others = rest.split(", ").filter(|other| !other.starts_with(&format!("{key}: ")));
            let others: String = others.map(|other| format!("{other}, ")).collect();
            let text =
                format!("version: 0.1\nstorage: {{{section}: {{{others}{key}: x}}{driver}}}\n");
            let found = Config::parse(Path::new("config.yml"), &text, []);
            let mistakes = found.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(!mistakes.contains("unknown key"), "{mistakes}");
        }
    }
}

//! Azure's and Google's sections, as an operator writes them.

use std::path::Path;

use crate::{Azure, AzureCredentials, Config, Gcs, Mistakes, ServiceAccount, Storage};

const AZURE: &str = "azure: {accountname: account, container: images, MORE}";
const GCS: &str = "gcs: {bucket: images, MORE}";

fn parse(section: &str, more: &str) -> Result<Config, Mistakes> {
    let section = section.replace("MORE", more);
    let text = format!("version: 0.1\nstorage: {{{section}}}\n");
    Config::parse(Path::new("config.yml"), &text, [])
}

fn azure(more: &str) -> Azure {
    match parse(AZURE, more).unwrap().storage {
        Storage::Azure(azure) => azure,
        other => panic!("not azure: {other:?}"),
    }
}

fn gcs(more: &str) -> Gcs {
    match parse(GCS, more).unwrap().storage {
        Storage::Gcs(gcs) => gcs,
        other => panic!("not gcs: {other:?}"),
    }
}

#[test]
fn a_section_of_distribution_2_is_read() {
    let azure = azure("accountkey: c2VjcmV0, realm: core.chinacloudapi.cn");
    assert_eq!((&*azure.account, &*azure.container), ("account", "images"));
    assert_eq!(azure.service_url, "https://account.blob.core.chinacloudapi.cn");
    assert!(azure.has_leading_slash && azure.root_directory.is_empty() && !azure.skip_verify);
    assert!(matches!(azure.credentials, AzureCredentials::Key(key) if key.expose() == "c2VjcmV0"));

    let gcs = gcs("keyfile: /etc/key.json, rootdirectory: /a/b/, chunksize: 5242880");
    assert_eq!((&*gcs.bucket, &*gcs.root_directory), ("images", "a/b"));
    assert!(
        matches!(gcs.service_account, Some(ServiceAccount::File(path)) if path == Path::new("/etc/key.json"))
    );
    assert_eq!(gcs.chunk_size_bytes, 5 << 20);
}

#[test]
fn a_section_of_distribution_3_is_read() {
    let azure = azure(
        "credentials: {type: client_secret, clientid: c, tenantid: t, secret: s}, \
         rootdirectory: /a/, skipverify: true, serviceurl: 'http://127.0.0.1:10000/account/'",
    );
    assert_eq!(azure.service_url, "http://127.0.0.1:10000/account");
    assert!(!azure.has_leading_slash && azure.skip_verify);
    assert_eq!(azure.root_directory, "a");
    let AzureCredentials::Application { client_id, tenant_id, secret } = azure.credentials else {
        panic!("not an application");
    };
    assert_eq!((&*client_id, &*tenant_id, secret.expose()), ("c", "t", "s"));

    let gcs = gcs("credentials: {type: service_account, project_id: p, private_key_id: i, \
                   private_key: k, client_email: e, client_id: c, token_uri: u}");
    let Some(ServiceAccount::Inline { client_email, private_key_id, private_key }) =
        gcs.service_account
    else {
        panic!("not inline");
    };
    assert_eq!((&*client_email, &*private_key_id, private_key.expose()), ("e", "i", "k"));
}

#[test]
fn absent_keys_have_their_defaults() {
    let azure = azure("credentials: {type: default_credentials}");
    assert_eq!(azure.service_url, "https://account.blob.core.windows.net");
    assert!(matches!(azure.credentials, AzureCredentials::Environment));
    let gcs = gcs("");
    assert!(gcs.service_account.is_none() && gcs.root_directory.is_empty());
    assert_eq!(gcs.chunk_size_bytes, 16 << 20);
}

#[test]
fn the_slash_is_what_the_file_says_it_is() {
    for (more, has_leading_slash) in [
        ("", true),
        ("credentials: {type: default_credentials}", false),
        ("trimlegacyrootprefix: true, rootdirectory: a", false),
        ("trimlegacyrootprefix: false, credentials: {type: default}", true),
        ("legacyrootprefix: true, credentials: {type: default}", true),
        ("legacyrootprefix: true, trimlegacyrootprefix: false", true),
    ] {
        assert_eq!(azure(more).has_leading_slash, has_leading_slash, "{more}");
    }
}

#[test]
fn what_changes_nothing_is_noted() {
    for (section, more, key) in [
        (AZURE, "connectionstring: a", "azure.connectionstring"),
        (AZURE, "max_retries: 5", "azure.max_retries"),
        (AZURE, "retry_delay: 100ms", "azure.retry_delay"),
        (AZURE, "realm: a.b, serviceurl: 'https://a.b'", "azure.realm"),
        (GCS, "maxconcurrency: 50", "gcs.maxconcurrency"),
        (GCS, "useragent: a", "gcs.useragent"),
        (GCS, "chunksize: 256KiB", "gcs.chunksize"),
    ] {
        let notes = parse(section, more).unwrap().notes;
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains(&format!("storage.{key}: ")), "{notes:?}");
    }
}

#[test]
fn each_mistake_is_found() {
    for (section, more, mistake) in [
        (AZURE, "realm: 'a b'", "azure.realm: expected a domain"),
        (AZURE, "serviceurl: 'https://a/b?sig=hunter2'", "azure.serviceurl: expected a URL"),
        (AZURE, "serviceurl: 'https://u:hunter2@a'", "azure.serviceurl: expected a URL"),
        (AZURE, "rootdirectory: a", "azure.rootdirectory: without `credentials`"),
        (
            AZURE,
            "legacyrootprefix: true, trimlegacyrootprefix: true",
            "azure.legacyrootprefix: contradicts",
        ),
        (AZURE, "credentials: {type: hunter}", "credentials.type: expected shared_key"),
        (AZURE, "credentials: {type: shared_key}", "credentials.type: shared_key takes"),
        (AZURE, "credentials: {secret: hunter2}", "credentials.secret: is of no use without"),
        (
            AZURE,
            "credentials: {type: client_secret, clientid: c, secret: hunter2}",
            "credentials.tenantid: is missing",
        ),
        ("azure: {accountname: account}", "", "azure.container: is missing"),
        ("azure: {accountname: A, container: images}", "", "azure.accountname: expected 3 to"),
        ("azure: {accountname: account, container: a/b}", "", "azure.container: expected 3 to"),
        ("gcs: {rootdirectory: a}", "", "gcs.bucket: is missing"),
        (GCS, "chunksize: 5000000", "gcs.chunksize: expected a multiple of 256KiB"),
        (
            GCS,
            "keyfile: a, credentials: {type: service_account, client_email: e, \
             private_key_id: i, private_key: hunter2}",
            "gcs.credentials: the account is given in keyfile already",
        ),
        (
            GCS,
            "credentials: {type: service_account, private_key_id: i, private_key: hunter2}",
            "gcs.credentials.client_email: is missing",
        ),
        (
            GCS,
            "credentials: {type: service_account, client_email: e, private_key_id: i, \
             private_key: hunter2, universe_domain: a}",
            "gcs.credentials.universe_domain: no other universe",
        ),
    ] {
        let found = parse(section, more).unwrap_err().to_string();
        assert!(
            found.contains(&format!("storage.{mistake}")) || found.contains(mistake),
            "{found}"
        );
        assert_eq!(found.lines().count(), 1, "{found}");
        assert!(!found.contains("hunter2"), "{found}");
    }
    let shown = format!("{:?}", parse(AZURE, "accountkey: hunter2").unwrap());
    assert!(!shown.contains("hunter2"), "{shown}");
}

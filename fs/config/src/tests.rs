//! What an operator sees: a file and variables in, a configuration or all its mistakes out.

mod mistakes;
mod table;

use std::{path::Path, time::Duration};

use crate::{
    Auth, CacheSize, Check, ClientAuth, Config, Credentials, Debug, Deleted, Formatter, Http,
    Level, Mistakes, S3, SecretSource, Storage, TlsVersion,
};

/// The configuration of Debian's package docker-registry, as it is installed.
const DEBIAN: &str = "\
version: 0.1
log:
  fields:
    service: registry
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: /var/lib/docker-registry
  delete:
    enabled: true
http:
  addr: :5000
  headers:
    X-Content-Type-Options: [nosniff]
auth:
  htpasswd:
    realm: basic-realm
    path: /etc/docker/registry
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
";

/// The example in Docker Trusted Registry's manual, with its `<…>` filled in.
const DTR: &str = "\
version: 0.1
log: {level: info}
storage:
  delete: {enabled: true}
  filesystem: {rootdirectory: /var/lib/registry}
http:
  addr: 0.0.0.0:443
  secret: generate-random-secret
  host: https://cache.example.com
  tls: {certificate: /run/secrets/cache.cert.pem, key: /run/secrets/cache.key.pem}
middleware:
  registry:
    - name: downstream
      options:
        blobttl: 24h
        upstreams: [https://dtr.example.com:4443]
        cas: [/run/secrets/dtr.cert.pem]
";

const MINIMAL: &str = "version: 0.1\nstorage: {filesystem: {}}\n";
const MINIMAL_S3: &str = "version: 0.1\nstorage: {s3: {bucket: b, region: r}}\n";

fn parse_with(text: &str, environment: &[(&str, &str)]) -> Result<Config, Mistakes> {
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
    Config::parse(Path::new("config.yml"), text, environment)
}

fn parse(text: &str) -> Result<Config, Mistakes> {
    parse_with(text, &[])
}

/// The mistakes in `text`, one a line.
fn mistakes(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

fn s3(config: Config) -> S3 {
    match config.storage {
        Storage::S3(s3) => s3,
        other => panic!("not s3: {other:?}"),
    }
}

#[test]
fn dtrs_example_loads_as_it_stands() {
    let config = parse(DTR).unwrap();
    let Storage::Filesystem { root_directory } = &config.storage else { panic!("not filesystem") };
    assert_eq!(root_directory, Path::new("/var/lib/registry"));
    assert_eq!(config.http.addr, "0.0.0.0:443");
    let tls = config.http.tls.unwrap();
    assert_eq!(tls.certificate, Path::new("/run/secrets/cache.cert.pem"));
    assert_eq!(tls.key, Path::new("/run/secrets/cache.key.pem"));
    assert_eq!(tls.minimum_version, TlsVersion::Tls12);
    let [upstream] = &config.upstreams[..] else { panic!("not one upstream") };
    assert_eq!(upstream.urls, ["https://dtr.example.com:4443"]);
    assert_eq!(upstream.certificate_authorities, [Path::new("/run/secrets/dtr.cert.pem")]);
    assert!(upstream.is_default && upstream.key.is_none() && upstream.credentials.is_none());
    assert_eq!(upstream.blob_ttl, Some(Duration::from_hours(24)));
    let noted: Vec<_> = config.notes.iter().map(|note| note.split(": ").nth(1).unwrap()).collect();
    assert_eq!(noted, ["storage.delete.enabled", "http.secret", "http.host"]);
}

#[test]
fn debians_file_loads_as_it_is_installed() {
    let config = parse(DEBIAN).unwrap();
    assert_eq!(config.http.addr, "0.0.0.0:5000");
    let header = ("X-Content-Type-Options".to_owned(), "nosniff".to_owned());
    assert_eq!(config.http.headers, [header]);
    let Some(Auth::Htpasswd(htpasswd)) = config.auth else { panic!("{:?}", config.auth) };
    assert_eq!(
        (&*htpasswd.realm, &*htpasswd.path),
        ("basic-realm", Path::new("/etc/docker/registry"))
    );
    assert_eq!(config.notes.len(), 4, "{:?}", config.notes);
}

#[test]
fn an_absent_key_has_its_default_and_an_empty_value_is_as_good_as_absent() {
    let empty = "version: '0.1'\nstorage: {filesystem: , delete: {}}\nlog:\ncache: {size: ''}\n\
                 http: {tls: {certificate: '', key: ''}, headers: {}, prefix: ''}\nauth: {}\n\
                 proxy: {remoteurl: '', username: ''}\nmiddleware: {registry: []}\n\
                 notifications: {endpoints: []}\nreporting: {}\n";
    let from_windows = format!("\u{feff}{}", MINIMAL.replace('\n', "\r\n"));
    for text in [MINIMAL, empty, &from_windows] {
        let config = parse(text).unwrap();
        assert_eq!((config.log.level, config.log.formatter), (Level::Info, Formatter::Text));
        assert!(config.log.access_log);
        assert_eq!(config.cache.directory, Path::new("/var/cache/larder"));
        assert_eq!(config.cache.size, CacheSize::Percent(20));
        assert_eq!(config.cache.min_free, CacheSize::Bytes(1 << 30));
        assert_eq!(config.cache.scrub_bytes_per_second, 10 << 20);
        assert_eq!(config.http.addr, "0.0.0.0:5000");
        assert_eq!(config.http.drain_timeout, Duration::from_secs(60));
        assert!(config.http.http2 && !config.http.h2c);
        assert!(config.http.tls.is_none() && config.upstreams.is_empty());
        assert_eq!(config.notes, Vec::<String>::new());
    }
    let s3 = s3(parse(MINIMAL_S3).unwrap());
    assert!(s3.endpoint.is_none() && !s3.force_path_style && !s3.encrypt && !s3.skip_verify);
    assert!(s3.access_key.is_none() && s3.storage_class.is_none() && s3.root_directory.is_empty());
    assert_eq!(s3.chunk_size_bytes, 10 << 20);
}

#[test]
fn every_key_that_works_arrives() {
    let config = parse(
        "version: 0.1
loglevel: error
log: {formatter: json, accesslog: {disabled: true}}
storage:
  s3:
    bucket: images
    region: 0123
    regionendpoint: minio:9000/
    secure: false
    accesskey: 0x10
    secretkey: =secret=
    sessiontoken: 'null'
    rootdirectory: /a/b/
    encrypt: true
    keyid: key
    skipverify: yes
    storageclass: standard_ia
    chunksize: 5MiB
    v4auth: true
    objectacl: private
cache: {directory: /cache, size: 50 GB, min_free: 5%, scrub: 1MiB}
catalog: {maxentries: 7}
tags:
  rules: [{match: 'a/*:v?', check: immutable}, {match: '*', check: 5m}]
  deleted: keep
http:
  addr: '[::]:5000'
  net: tcp
  draintimeout: 1.5m
  http2: {disabled: true}
  h2c: {enabled: true}
  debug: {addr: ':5001', prometheus: {enabled: true, path: /m}}
  tls:
    certificate: c
    key: k
    minimumtls: tls1.3
    ciphersuites: [TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305, TLS_AES_256_GCM_SHA384]
    clientcas: [ca]
    clientauth: verify-client-cert-if-given
proxy: {remoteurl: 'HTTPS://registry-1.docker.io/', username: u, password: 0777}
",
    )
    .unwrap();
    assert_eq!((config.log.level, config.log.formatter), (Level::Error, Formatter::Json));
    assert!(!config.log.access_log);
    assert_eq!(config.cache.directory, Path::new("/cache"));
    assert_eq!(config.cache.size, CacheSize::Bytes(50_000_000_000));
    assert_eq!(config.cache.min_free, CacheSize::Percent(5));
    assert_eq!(config.cache.scrub_bytes_per_second, 1 << 20);
    assert_eq!(config.catalog_max_entries, 7);
    assert_eq!(config.tags.deleted, Deleted::Keep);
    let rules = config.tags.rules.iter().map(|rule| (&*rule.pattern, rule.check));
    let expected = [("a/*:v?", Check::Immutable), ("*", Check::Every(Duration::from_secs(300)))];
    assert_eq!(rules.collect::<Vec<_>>(), expected);
    assert_http(&config.http);
    let upstream = &config.upstreams[0];
    assert_eq!(upstream.urls, ["https://registry-1.docker.io"]);
    let Some(Credentials::Password { username, password: SecretSource::Value(password) }) =
        &upstream.credentials
    else {
        panic!("no password")
    };
    assert_eq!((&**username, password.expose()), ("u", "0777"));

    let s3 = s3(config);
    assert_eq!((&*s3.bucket, &*s3.region), ("images", "0123"));
    assert_eq!(s3.endpoint.unwrap(), "http://minio:9000");
    assert!(s3.force_path_style && s3.encrypt && s3.skip_verify);
    let (access_key, secret_key) = s3.access_key.unwrap();
    assert_eq!((&*access_key, secret_key.expose()), ("0x10", "=secret="));
    assert_eq!(s3.session_token.unwrap().expose(), "null");
    assert_eq!((&*s3.root_directory, s3.kms_key_id.as_deref()), ("a/b", Some("key")));
    assert_eq!(s3.storage_class.as_deref(), Some("STANDARD_IA"));
    assert_eq!(s3.chunk_size_bytes, 5 << 20);
}

fn assert_http(http: &Http) {
    assert_eq!(http.addr, "[::]:5000");
    assert_eq!(http.drain_timeout, Duration::from_secs(90));
    assert!(!http.http2 && http.h2c);
    let Debug { addr, metrics_path } = http.debug.as_ref().unwrap();
    assert_eq!((&**addr, &**metrics_path), ("0.0.0.0:5001", "/m"));
    let tls = http.tls.as_ref().unwrap();
    assert_eq!(tls.minimum_version, TlsVersion::Tls13);
    let suites = ["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "TLS_AES_256_GCM_SHA384"];
    assert_eq!(tls.cipher_suites, suites);
    assert_eq!(tls.client_authorities, [Path::new("ca")]);
    assert_eq!(tls.client_auth, ClientAuth::IfGiven);
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let found = mistakes(
        "storage:
  delete: {enabled: true}
  s3:
    buket: images
    secretkey: s
    chunksize: 1MiB
    storageclass: [a]
http:
  addr: nowhere
  draintimeout: 1 hour
  draintimeout: 1h
  headers:
    X-One: one
middleware:
  registry:
    - name: downstream
      options:
        upstreams:
          - registry.example.com
          - https://example.com/v2/
          - ftp://example.com
cache: 50GiB
auth: {token: {realm: r}}
frobnicate: 1
",
    );
    let url = "expected a URL such as https://registry.example.com:5000, and no path in it";
    let upstreams = "middleware.registry[0].options.upstreams";
    let expected = [
        "1: version: is missing",
        "3: storage.s3.bucket: is missing",
        "3: storage.s3.region: is missing",
        "3: storage.s3.accesskey: is missing, and secretkey is of no use without it",
        "4: storage.s3.buket: unknown key; did you mean `bucket`?",
        "6: storage.s3.chunksize: expected a size from 5MiB to 5GiB, found \"1MiB\"",
        "7: storage.s3.storageclass: expected a single value, found a list",
        "9: http.addr: expected an address such as 0.0.0.0:5000, found \"nowhere\"",
        "10: http.draintimeout: expected a duration such as 1h30m, found \"1 hour\"",
        "11: the key `draintimeout` is given twice in this mapping; keep one",
        "13: http.headers.X-One: expected a list, found a single value",
        &format!("20: {upstreams}[1]: {url}"),
        &format!("21: {upstreams}[2]: {url}"),
        "22: cache: expected a mapping, found a single value",
        "23: auth.token.service: is missing",
        "23: auth.token.issuer: is missing",
        "23: auth.token.rootcertbundle: is missing, and so is jwks; name the keys that sign",
        "24: frobnicate: unknown key; remove it, or see docs/configuration.md for the keys there are",
    ]
    .map(|line| format!("config.yml:{line}"));
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn variables_override_and_add() {
    let file = "version: 0.1\nstorage: {filesystem: {rootdirectory: /a}}\n\
                http: {headers: {X-A: [one]}}\nproxy:\n";
    let environment = [
        ("PATH", "/bin"),
        ("REGISTRY_STORAGE_S3_REGION", "r"),
        ("REGISTRY_STORAGE", "s3"),
        ("REGISTRY_STORAGE_S3_BUCKET", "'quoted'"),
        ("REGISTRY_HTTP_ADDR", ":80"),
        ("REGISTRY_HTTP_HEADERS_X-A_1", "two"),
        ("REGISTRY_CACHE_SIZE", "30%"),
        ("REGISTRY_CACHE_MIN_FREE", "2GiB"),
        ("REGISTRY_LOG", "{level: debug}"),
        ("REGISTRY_MIDDLEWARE_REGISTRY_0_NAME", "downstream"),
        ("REGISTRY_MIDDLEWARE_REGISTRY_0_OPTIONS_UPSTREAMS_0", "a:5000"),
        ("REGISTRY_MIDDLEWARE_REGISTRY_0_OPTIONS_UPSTREAMS_1", "http://b"),
        ("REGISTRY_PROXY_REMOTEURL", ""),
        ("REGISTRY_PORT", "tcp://10.0.0.1:5000"),
        ("REGISTRY_PORT_5000_TCP_ADDR", "10.0.0.1"),
        ("REGISTRY_SERVICE_HOST", "{{"),
    ];
    let config = parse_with(file, &environment).unwrap();
    assert_eq!(config.http.addr, "0.0.0.0:80");
    let headers = config.http.headers.iter().map(|(_, value)| &**value);
    assert_eq!(headers.collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(config.cache.size, CacheSize::Percent(30));
    assert_eq!(config.cache.min_free, CacheSize::Bytes(2 << 30));
    assert_eq!(config.log.level, Level::Debug);
    assert_eq!(config.upstreams[0].urls, ["https://a:5000", "http://b"]);
    assert_eq!(
        config.notes,
        [
            "REGISTRY_PORT: no section is called port, so REGISTRY_PORT… changes nothing",
            "REGISTRY_SERVICE_HOST: no section is called service, so REGISTRY_SERVICE… changes \
             nothing",
        ]
    );
    assert_eq!(s3(config).bucket, "quoted");
}

#[test]
fn a_mistake_in_a_variable_names_the_variable() {
    let environment = [
        ("REGISTRY_HTTP_ADDRESS", ":80"),
        ("REGISTRY_HTTP_DRAINTIMEOUT", "soon"),
        ("REGISTRY_HTTP_HEADERS_A_7", "b"),
        ("REGISTRY_HTTP_HEADERS_B", "[b"),
        ("REGISTRY_PROXY_USERNAME", "u"),
    ];
    let file = format!("{MINIMAL}http: {{headers: {{a: [b]}}, adr: a}}\n");
    let found = parse_with(&file, &environment).unwrap_err().to_string();
    let expected = [
        "config.yml:3: http.adr: unknown key; did you mean `addr`?",
        "REGISTRY_HTTP_ADDRESS: http.address: unknown key; did you mean `addr`?",
        "REGISTRY_HTTP_DRAINTIMEOUT: http.draintimeout: expected a duration such as 1h30m, found \
         \"soon\"",
        "REGISTRY_HTTP_HEADERS_A_7: http.headers.a: expected a list, found a variable for an \
         element far behind the list's last",
        "REGISTRY_HTTP_HEADERS_B: http.headers.b: expected a list, found what is not valid YAML; \
         it may need quotes inside the variable",
        "REGISTRY_PROXY_USERNAME: proxy.remoteurl: is missing",
        "REGISTRY_PROXY_USERNAME: proxy.password: is missing, and username is of no use without it",
    ];
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn anchors_aliases_and_merges_are_resolved() {
    let config = parse(
        "version: 0.1
cache: &base {size: 1, directory: &directory /a}
storage: {filesystem: {rootdirectory: *directory}}
log: {level: error, fields: *base}
http:
  tls: {<<: [{key: k}, {key: other, certificate: c}], minimumtls: tls1.3}
",
    )
    .unwrap();
    assert_eq!(config.cache.size, CacheSize::Bytes(1));
    assert!(
        matches!(config.storage, Storage::Filesystem { root_directory } if root_directory == Path::new("/a"))
    );
    let tls = config.http.tls.unwrap();
    assert_eq!((&*tls.key, &*tls.certificate), (Path::new("k"), Path::new("c")));

    let doubling = (1..30).map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}]\n", i - 1));
    let bomb = format!("a0: &a0 [x]\n{}", doubling.collect::<String>());
    assert!(mistakes(&bomb).contains("too large, with its aliases resolved"));
    assert!(mistakes(&"[".repeat(200)).contains("nested too deeply"));
}

/// Guarantee 9: no secret reaches a log or an error.
#[test]
fn no_secret_is_ever_shown() {
    const SECRET: &str = "hunter2";
    let s3 = "accesskey: a, secretkey: hunter2, sessiontoken: hunter2";
    let good = MINIMAL_S3.replace("region: r", &format!("region: r, {s3}"))
        + "proxy: {remoteurl: 'https://a', username: u, password: hunter2}\n\
           http: {secret: hunter2}\nredis: {password: hunter2}\n";
    let config = parse(&good).unwrap();
    assert!(!format!("{config:?}").contains(SECRET), "{config:?}");

    for bad in [
        "proxy: {password: [hunter2]}",
        "proxy: {password: {hunter2: hunter2}}",
        "proxy: {password: hunter2}",
        "proxy: {password: *hunter2}",
        "proxy: {password: !hunter2 a}",
        "proxy: {password: !a!hunter2 a}",
        "proxy: {password: \"hunter2}",
        "proxy: {pasword: hunter2}",
        "proxy: {remoteurl: 'https://u:hunter2@a'}",
        "middleware: {registry: [{name: downstream, options: {upstreams: ['u:hunter2@a']}}]}",
        "http: {headers: {Authorization: [\"hunter2\\n\"]}}",
        "http: {headers: {Authorization: hunter2}}",
        "auth: {token: hunter2}",
        "storage: {s3: {secretkey: hunter2}}",
        "storage: {s3: {secretkey: [hunter2], sessiontoken: {a: hunter2}}}",
        "storage: {s3: {regionendpoint: 'https://u:hunter2@a'}}",
    ] {
        let found = mistakes(bad);
        assert!(!found.contains(SECRET), "{found}");
    }
    for value in ["hunter2", "[hunter2]", "{hunter2: 1}", "{hunter2: 1, hunter2: 2}", "\"hunter2"] {
        let environment = [
            ("REGISTRY_PROXY_PASSWORD", value),
            ("REGISTRY_PROXY_PASSWORD_X", "1"),
            ("REGISTRY_STORAGE_S3_SECRETKEY", value),
            ("REGISTRY_HTTP_SECRET", value),
        ];
        let found = parse_with("", &environment).unwrap_err().to_string();
        assert!(!found.contains(SECRET), "{found}");
        let found = parse_with("", &environment[..1]).unwrap_err().to_string();
        assert!(!found.contains(SECRET), "{found}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_the_one_mistake() {
    let found = Config::load(Path::new("/nonexistent/config.yml"), []).unwrap_err().to_string();
    assert!(found.starts_with("/nonexistent/config.yml: cannot be read: No such file"), "{found}");
}

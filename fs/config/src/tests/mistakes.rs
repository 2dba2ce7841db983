//! Each mistake that can be made in the file, alone.

use super::{MINIMAL, MINIMAL_S3, mistakes};

/// Adds one line to a good file, in the place of what it says of the same section, and expects one
/// mistake.
fn finds_each(cases: &[(&str, &str)]) {
    for (more, mistake) in cases {
        let key = more.split(':').next().unwrap();
        let kept = MINIMAL.lines().filter(|line| !line.starts_with(key));
        let text = kept.chain([*more]).collect::<Vec<_>>().join("\n");
        let found = mistakes(&text);
        assert!(found.contains(mistake), "{more}\n{found}");
        assert_eq!(found.lines().count(), 1, "{more}\n{found}");
    }
}

#[test]
fn each_mistake_is_found_in_an_otherwise_good_file() {
    finds_each(&[
        ("version: 0.2", "version: expected 0.1, found \"0.2\""),
        ("log: {level: loud}", "log.level: expected error, warn, info, debug or trace"),
        ("log: {formatter: logstash}", "log.formatter: logstash is not supported; use json"),
        ("log: {hooks: [{type: mail}]}", "log.hooks: hooks are not supported"),
        ("log: {accesslog: {disabled: maybe}}", "disabled: expected true or false"),
        ("storage: {delete: {enabled: true}}", "storage.filesystem: is missing, and so is"),
        ("storage: {filesystem: , s3: {bucket: b, region: r}}", "storage.s3: a second storage"),
        ("storage: inmemory", "storage.inmemory: not supported"),
        ("storage: {filesystem: {rootdirectory: data}}", "expected an absolute path"),
        ("storage: {filesystem: , maintenance: {readonly: {enabled: on}}}", "readonly.enabled: a"),
        ("storage: {filesystem: , delete: {enable: true}}", "did you mean `enabled`?"),
        ("cache: {size: 0%}", "cache.size: expected a size such as 50GiB, or 1% to 100%"),
        ("cache: {size: 101%}", "cache.size: expected a size"),
        ("cache: {size: 99999999T}", "cache.size: expected a size"),
        ("cache: {min_free: 100%}", "cache.min_free: expected a size such as 10GiB, or 0% to 99%"),
        ("cache: {min_free: most}", "cache.min_free: expected a size"),
        ("cache: {scrub: off}", "cache.scrub: expected a size such as 50GiB"),
        ("cache: {minfree: 1}", "cache.minfree: unknown key; did you mean `min_free`?"),
        ("cache: {directory: cache}", "cache.directory: expected an absolute path"),
        ("proxy: {username: u, password: p}", "proxy.remoteurl: is missing"),
        ("proxy: {remoteurl: 'https://a', username: u}", "proxy.password: is missing"),
        ("proxy: {remoteurl: registry.example.com}", "proxy.remoteurl: expected a URL"),
        ("proxy: {remoteurl: 'https://a', ttl: 1 week}", "proxy.ttl: expected a duration"),
        ("middleware: {registry: [{name: other}]}", "a registry middleware \"other\" is not"),
        ("middleware: {registry: [{options: {}}]}", "middleware.registry[0].name: is missing"),
        ("middleware: {registry: [{name: downstream}]}", "options.upstreams: is missing"),
        ("middleware: {storage: [{name: other}]}", "a storage middleware \"other\" is not"),
        ("middleware: {repository: [{name: a}]}", "middleware.repository: not supported"),
        (
            "proxy: {remoteurl: 'https://a'}\n\
             middleware: {registry: [{name: downstream, options: {upstreams: [a]}}]}",
            "middleware: the default upstream is given more than once",
        ),
        ("catalog: {maxentries: 0}", "catalog.maxentries: expected a number from 1 to 100000"),
        ("auth: {upstream: {}}", "auth.upstream: there is no upstream to ask"),
        (
            "tags: {rules: [{match: latest, check: always}]}",
            "tags.rules[0].match: expected a pattern",
        ),
        ("tags: {rules: [{match: 'a:*', check: often}]}", "tags.rules[0].check: expected always"),
        ("tags: {rules: [{match: 'a:*'}]}", "tags.rules[0].check: is missing"),
        ("tags: {deleted: ignore}", "tags.deleted: expected follow or keep"),
        ("notifications: {endpoints: [{name: a}]}", "notifications.endpoints: no events"),
        ("reporting: {bugsnag: {apikey: a}}", "reporting: no errors are sent"),
        ("compatibility: {schema1: {enabled: true}}", "manifests of schema 1 are not served"),
        ("http: {addr: [}", "not valid YAML"),
        ("http: {1: {2: {[3]: 4}}}", "not valid YAML: a key has to be a text"),
        ("http: {host: !b a}", "not valid YAML: "),
        ("--- {}", "not valid YAML: a second document begins"),
        ("log: &a {fields: *a}", "not valid YAML: an alias lies within what it stands for"),
    ]);
}

#[test]
fn each_mistake_in_http_is_found() {
    finds_each(&[
        ("http: {debug: {prometheus: {enabled: true}}}", "http.debug.addr: is missing"),
        (
            "http: {debug: {addr: ':5001', prometheus: {enabled: true, path: metrics}}}",
            "http.debug.prometheus.path: expected a path such as /metrics",
        ),
        ("http: {net: unix}", "http.net: expected tcp"),
        ("http: {addr: ':65536'}", "http.addr: expected an address"),
        ("http: {prefix: /registry}", "http.prefix: a prefix is not supported"),
        ("http: {tls: {certificate: c}}", "http.tls.key: is missing"),
        ("http: {tls: {certificate: c, key: k, minimumtls: tls1.1}}", "expected tls1.2 or tls1.3"),
        ("http: {tls: {certificate: c, key: k, clientauth: none, clientcas: [a]}}", "or verify-cl"),
        (
            "http: {tls: {certificate: c, key: k, clientauth: request-client-cert, clientcas: [a]}}",
            "tls.clientauth: request-client-cert would take any certificate",
        ),
        (
            "http: {tls: {certificate: c, key: k, clientauth: verify-client-cert-if-given}}",
            "http.tls.clientcas: is missing",
        ),
        (
            "http: {tls: {certificate: c, key: k, ciphersuites: [TLS_RSA_WITH_AES_128_CBC_SHA]}}",
            "tls.ciphersuites[0]: \"TLS_RSA_WITH_AES_128_CBC_SHA\" is not spoken",
        ),
        ("http: {h2c: {enabled: maybe}}", "http.h2c.enabled: expected true or false"),
        ("http: {http2: {enabled: true}}", "http.http2.enabled: unknown key"),
        ("http: {tls: {letsencrypt: {email: a}}}", "tls.letsencrypt: Larder fetches no cert"),
        ("http: {headers: {'a b': [c]}}", "http.headers.a b: not the name of an HTTP header"),
        ("http: {headers: {a: [\"b\\nc\"]}}", "http.headers.a[0]: a header takes printable"),
    ]);
}

#[test]
fn each_mistake_in_s3_is_found() {
    for (more, mistake) in [
        ("accesskey: a", "secretkey: is missing, and accesskey is of no use without it"),
        ("sessiontoken: a", "accesskey: is missing"),
        ("v4auth: false", "v4auth: only signature version 4 is supported"),
        ("accelerate: true", "accelerate: not supported"),
        ("usedualstack: true", "usedualstack: not supported"),
        ("usefipsendpoint: true", "usefipsendpoint: not supported"),
        ("objectacl: public-read", "objectacl: no ACL but private is supported"),
        ("keyid: key", "keyid: nothing is encrypted with it"),
        ("storageclass: DEEP_ARCHIVE", "storageclass: expected a storage class that can be read"),
        ("chunksize: 6GiB", "chunksize: expected a size from 5MiB to 5GiB"),
        ("regionendpoint: 'https://a/b'", "regionendpoint: expected a URL"),
    ] {
        let text = MINIMAL_S3.replace("region: r", &format!("region: r, {more}"));
        let found = mistakes(&text);
        assert!(found.starts_with(&format!("config.yml:2: storage.s3.{mistake}")), "{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
}

//! docs/configuration.md says of each key what the code does with it.

use std::path::Path;

use crate::{
    Config, document, environment,
    findings::Findings,
    section::{KNOWN, Section},
};

const TABLE: &str = include_str!("../../../../docs/configuration.md");

/// A good file, in which `key` can be set without another being missing or in its way.
fn base(key: &str) -> String {
    let has = |parts: &[&str]| parts.iter().any(|part| key.contains(part));
    let storage = match key.split('.').nth(1).filter(|_| key.starts_with("storage.")) {
        Some("s3") => "s3: {bucket: b, region: r, accesskey: a, secretkey: s, encrypt: true}",
        Some("azure") => {
            "azure: {accountname: abc, container: abc, credentials: {type: client_secret, \
             clientid: c, tenantid: t, secret: s}}"
        }
        Some("gcs") if has(&["credentials"]) => {
            "gcs: {bucket: b, credentials: {type: service_account, client_email: c, \
             private_key_id: i, private_key: k}}"
        }
        Some("gcs") => "gcs: {bucket: b}",
        Some("oss") => {
            "oss: {accesskeyid: a, accesskeysecret: s, region: r, bucket: b, encrypt: true}"
        }
        Some("swift") if has(&["application"]) => {
            "swift: {authurl: 'https://k/v3', container: c, applicationcredentialid: i, \
             applicationcredentialsecret: s}"
        }
        Some("swift") => {
            "swift: {authurl: 'https://k/v3', container: c, username: u, password: p, tenant: t}"
        }
        _ => "filesystem: {}",
    };
    let credentials = match key {
        _ if has(&[".exec"]) => "exec: {command: c}",
        _ if has(&[".token"]) => "realms: []",
        _ if has(&[".passwordfile"]) => "username: u",
        _ => "username: u, password: p",
    };
    let section = match key.split('.').next() {
        Some("http") if has(&["debug"]) => {
            "http: {debug: {addr: ':5001', prometheus: {enabled: true}}}"
        }
        Some("tags") => "tags: {rules: [{match: 'a:*', check: always}]}",
        Some("http") => "http: {tls: {certificate: c, key: k, clientcas: [a]}}",
        Some("proxy") => &format!("proxy: {{remoteurl: 'https://a', {credentials}}}"),
        Some("upstreams") => &format!("upstreams: {{quay: {{{credentials}}}}}"),
        Some("middleware") if has(&["storage[]"]) => "middleware: {storage: [{name: redirect}]}",
        Some("middleware") => {
            "middleware: {registry: [{name: downstream, options: {upstreams: [a]}}]}"
        }
        Some("auth") if has(&["htpasswd"]) => "auth: {htpasswd: {realm: r, path: p}}",
        Some("auth") if has(&["upstream"]) => {
            "auth: {upstream: {}}\nproxy: {remoteurl: 'https://a'}"
        }
        Some("auth") => "auth: {token: {realm: r, service: s, issuer: i, jwks: j}}",
        _ => "log:",
    };
    format!("version: 0.1\nstorage: {{{storage}}}\n{section}\n")
}

/// What the code says with `key` set to `value`: its mistakes, and its notes.
fn judge(key: &str, value: &str) -> (Vec<String>, Vec<String>) {
    let mut findings = Findings::default();
    let mut parse = |text: &str| document::parse(text, None, &mut findings).ok().unwrap();
    let (mut root, value) = (parse(&base(key)), parse(value));
    let path = key.replace("[]", ".0").replace("<name>", "quay");
    environment::set(&mut root, &path.split('.').collect::<Vec<_>>(), value);
    Section::read(String::new(), root, &mut findings, Config::read);
    // Notes are only to be had where there are no mistakes.
    let of = |lines: String| lines.lines().map(|l| l[l.find(": ").unwrap() + 2..].into()).collect();
    match findings.has_no_mistake() {
        true => (Vec::new(), of(findings.into_notes(Path::new("f")).join("\n"))),
        false => (of(findings.into_mistakes(Path::new("f")).to_string()), Vec::new()),
    }
}

#[test]
fn the_table_says_what_the_code_does_and_leaves_nothing_out() {
    let rows = TABLE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let mut keys = Vec::new();
    for (key, rest) in rows {
        let mut columns = rest.split(" | ").skip(1);
        let value = columns.next().unwrap().trim_matches('`');
        let (mistakes, notes) = judge(key, value);
        let path = key.replace("[]", "[0]").replace("<name>", "quay");
        let is_of_key = |line: &String| {
            line.strip_prefix(&path).is_some_and(|rest| rest.starts_with([':', '[', '.']))
        };
        let verdict = match (mistakes.is_empty(), notes.iter().any(is_of_key)) {
            (true, false) => "works",
            (true, true) => "changes nothing",
            (false, _) if mistakes.iter().all(is_of_key) => "refused",
            (false, _) => "not alone",
        };
        assert_eq!(columns.next(), Some(verdict), "{key}: {value}: {mistakes:?} {notes:?}");
        keys.push(path);
    }
    for known in KNOWN.take() {
        let is_part = |key: &String| {
            key.strip_prefix(&known)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        assert!(keys.iter().any(is_part), "docs/configuration.md has no {known}");
    }
}

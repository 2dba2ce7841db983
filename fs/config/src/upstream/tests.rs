use std::{path::Path, time::Duration};

use super::{Credentials, SecretSource};
use crate::{Config, Mistakes};

fn parse(more: &str) -> Result<Config, Mistakes> {
    let text = format!("version: 0.1\nstorage: {{filesystem: {{}}}}\n{more}");
    Config::parse(Path::new("config.yml"), &text, [])
}

#[test]
fn upstreams_are_named_by_their_keys() {
    let config = parse(
        "proxy: {remoteurl: 'https://dtr.example.com'}
upstreams:
  docker.io:
  quay.io: {hosts: ['quay.example.com:5000'], realms: ['https://auth.example.org']}
  k8s: {urls: [registry.k8s.io, 'http://mirror:5000'], cas: [/ca.pem], mirror: true}
",
    )
    .unwrap();
    let [proxy, hub, quay, k8s] = &config.upstreams[..] else { panic!("{:?}", config.upstreams) };
    assert!(proxy.is_default && !hub.is_default && !quay.is_default && !k8s.is_default);
    assert_eq!(hub.key.as_deref(), Some("docker.io"));
    assert_eq!(hub.urls, ["https://registry-1.docker.io"]);
    assert_eq!(hub.hosts, ["index.docker.io", "registry-1.docker.io"]);
    assert_eq!((&*quay.urls[0], &*quay.hosts[0]), ("https://quay.io", "quay.example.com:5000"));
    assert_eq!(quay.realms, ["https://auth.example.org"]);
    assert_eq!(k8s.urls, ["https://registry.k8s.io", "http://mirror:5000"]);
    assert!(k8s.is_mirror && k8s.certificate_authorities == [Path::new("/ca.pem")]);
}

#[test]
fn credentials_are_of_one_kind() {
    let credentials = |text: &str| {
        let config = parse(&format!("upstreams: {{quay.io: {{{text}}}}}")).unwrap();
        config.upstreams.into_iter().next().unwrap().credentials.unwrap()
    };
    assert!(matches!(
        credentials("username: u, password: p"),
        Credentials::Password { username, password: SecretSource::Value(p) }
            if username == "u" && p.expose() == "p"
    ));
    assert!(matches!(
        credentials("username: u, passwordfile: /p"),
        Credentials::Password { password: SecretSource::File(path), .. } if path == Path::new("/p")
    ));
    assert!(matches!(credentials("token: t"), Credentials::Token(SecretSource::Value(_))));
    assert!(matches!(credentials("tokenfile: t"), Credentials::Token(SecretSource::File(_))));
    assert!(matches!(
        credentials("exec: {command: docker-credential-x, lifetime: 1h}"),
        Credentials::Exec { command, lifetime: Some(lifetime) }
            if command == "docker-credential-x" && lifetime == Duration::from_secs(3600)
    ));
}

/// What is shared with others is removed only when somebody has asked for it.
#[test]
fn blobs_expire_only_when_a_time_is_given() {
    for (more, ttl) in [
        ("", None),
        ("proxy: {remoteurl: 'https://a'}", None),
        ("proxy: {remoteurl: 'https://a', ttl: 0}", None),
        ("proxy: {remoteurl: 'https://a', ttl: 0s}", None),
        ("proxy: {remoteurl: 'https://a', ttl: 168h}", Some(Duration::from_hours(168))),
        (
            "proxy: {remoteurl: 'https://a', ttl: 1h}\nupstreams: {quay.io: }",
            Some(Duration::from_hours(1)),
        ),
        ("upstreams: {quay.io: }", None),
    ] {
        assert_eq!(parse(more).unwrap().blob_ttl(), ttl, "{more}");
    }
}

#[test]
fn each_mistake_is_found() {
    for (more, mistake) in [
        ("'quay.io:443': {}", "upstreams.quay.io:443: repositories are named after it"),
        ("quay.io: {hosts: [a/b]}", "hosts[0]: expected a host such as quay.io"),
        ("quay.io: {username: u}", "upstreams.quay.io.password: is missing"),
        ("quay.io: {passwordfile: u}", "upstreams.quay.io.username: is missing"),
        ("a: {username: u, password: p, passwordfile: p}", "password is given too; keep one"),
        ("a: {username: u, password: p, token: t}", "a: more than one kind of credentials"),
        ("a: {token: t, exec: {command: c}}", "a: more than one kind of credentials"),
        ("a: {exec: {lifetime: 1h}}", "upstreams.a.exec.command: is missing"),
        ("a: {realms: [auth.example.com]}", "upstreams.a.realms[0]: expected a URL"),
        ("a: {}, b: {hosts: [A]}", "upstreams: a is what two of them are called; keep one"),
        ("a: {default: true}, b: {default: true}", "upstreams: more than one upstream is the"),
    ] {
        let found = parse(&format!("upstreams: {{{more}}}")).unwrap_err().to_string();
        assert!(found.contains(mistake), "{more}\n{found}");
        assert_eq!(found.lines().count(), 1, "{more}\n{found}");
    }
}

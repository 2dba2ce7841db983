//! Real clients that have to say who they are, over TLS.

use base64::{Engine, engine::general_purpose::STANDARD};
use larder_tests::{
    Access, Authority, Client, Format, Image, Kind, Node, Sandbox, Storage, TokenServer, Upstream,
    scenario::pull_and_run,
};
use reqwest::{
    StatusCode,
    header::{ACCEPT, AUTHORIZATION, WWW_AUTHENTICATE},
};

const USER: &str = "alice";
const PASSWORD: &str = "correct horse";
/// bcrypt's least: the tests are about something else.
const COST: u32 = 4;

/// The section of a configuration, and the token server that it names.
type Auth = (String, Option<TokenServer>);

// "7. A client sees only what `auth:` says that it may, and cannot tell the rest from what does not
// exist."

/// A client pulls with a login, and neither without nor with a wrong one: from the upstream and, when that
/// is gone, from the cache.
fn pulls_with_a_login(kind: Kind, auth: fn(&Sandbox) -> Auth) {
    let needs =
        [&Node::NEEDS_PLAIN[..], kind.needs(), &[Upstream::NEEDS], &Authority::NEEDS].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let authority = Authority::new(&sandbox);
    let mut upstream = Upstream::start(&sandbox);
    let image = Image::new(Format::Oci);
    upstream.registry().push(&image);
    let (section, _server) = auth(&sandbox);
    let sections = format!("proxy: {{remoteurl: \"{}\"}}\n{section}", upstream.url());
    let node = Node::plain_with(&sandbox, "node", Some(&authority), &sections);
    let client = kind.start(&sandbox, node.address());
    let image = image.at(&node.named_address());

    assert_refused(&*client, &node, &image, kind);
    client.login(&node.named_address(), USER, PASSWORD).expect("a login");
    pull_and_run(&*client, &image);
    upstream.stop();
    client.remove(&image);
    pull_and_run(&*client, &image);
}

fn assert_refused(client: &dyn Client, node: &Node<'_>, image: &Image, kind: Kind) {
    client.pull(image).expect_err("a pull without a login");
    let login = client.login(&node.named_address(), USER, "a guess");
    // ctr asks for no login before it pulls.
    assert!(login.is_err() || kind == Kind::Containerd, "a login with a wrong password");
    client.pull(image).expect_err("a pull with a wrong password");
    let path = |access: &Access| access.path.starts_with("/v2/library/");
    let shown = node.accesses().into_iter().filter(|a| path(a) && a.status < 400);
    assert_eq!(shown.count(), 0, "something was shown");
}

fn htpasswd(sandbox: &Sandbox) -> Auth {
    (htpasswd_section(sandbox), None)
}

fn htpasswd_section(sandbox: &Sandbox) -> String {
    let hash = bcrypt::hash(PASSWORD, COST).expect("a hash");
    let file = sandbox.file("htpasswd", &format!("{USER}:{hash}\n"));
    format!("auth: {{htpasswd: {{realm: Registry, path: {}}}}}\n", file.display())
}

fn token(sandbox: &Sandbox) -> Auth {
    let server = TokenServer::start(sandbox, USER, PASSWORD);
    (server.section(), Some(server))
}

#[test]
fn docker_pulls_as_a_user_of_the_file() {
    pulls_with_a_login(Kind::Docker, htpasswd);
}

#[test]
fn containerd_pulls_as_a_user_of_the_file() {
    pulls_with_a_login(Kind::Containerd, htpasswd);
}

#[test]
fn podman_pulls_as_a_user_of_the_file() {
    pulls_with_a_login(Kind::Podman, htpasswd);
}

#[test]
fn skopeo_copies_as_a_user_of_the_file() {
    pulls_with_a_login(Kind::Skopeo, htpasswd);
}

#[test]
fn docker_pulls_with_a_token() {
    pulls_with_a_login(Kind::Docker, token);
}

#[test]
fn containerd_pulls_with_a_token() {
    pulls_with_a_login(Kind::Containerd, token);
}

#[test]
fn podman_pulls_with_a_token() {
    pulls_with_a_login(Kind::Podman, token);
}

#[test]
fn skopeo_copies_with_a_token() {
    pulls_with_a_login(Kind::Skopeo, token);
}

/// `auth: upstream`: one repository is everybody's there, the other a user's.
fn pulls_what_the_upstream_shows(kind: Kind) {
    let needs =
        [&Node::NEEDS_PLAIN[..], kind.needs(), &[Upstream::NEEDS], &Authority::NEEDS].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let authority = Authority::new(&sandbox);
    let (public, private) = (Image::new(Format::Docker), Image::new(Format::Oci));
    let open = Upstream::start(&sandbox);
    open.registry().push(&public);
    let directory = Storage::Directory(sandbox.directory("guarded"));
    let mut guarded = Upstream::over(&sandbox, "guarded", &directory);
    guarded.registry().push(&private);
    guarded.restart_with(&htpasswd_section(&sandbox));
    let sections = format!(
        "proxy: {{remoteurl: \"{}\"}}\nupstreams: {{guarded: {{urls: [\"{}\"]}}}}\n\
         auth: {{upstream: {{ttl: 0s}}}}\n",
        open.url(),
        guarded.url(),
    );
    let node = Node::plain_with(&sandbox, "node", Some(&authority), &sections);
    let client = kind.start(&sandbox, node.address());
    let public = public.at(&node.named_address());
    let private = private.at(&format!("{}/guarded", node.named_address()));

    pull_and_run(&*client, &public);
    client.pull(&private).expect_err("a pull of what is private, without a login");
    // With several upstreams it is only known at the pull whose password this should be.
    client.login(&node.named_address(), USER, "a guess").expect("a login");
    client.pull(&private).expect_err("a pull of what is private, with a wrong password");
    client.login(&node.named_address(), USER, PASSWORD).expect("a login");
    pull_and_run(&*client, &private);
    // It is cached now, and still nobody else's.
    client.remove(&private);
    client.login(&node.named_address(), "mallory", PASSWORD).expect("a login");
    client.pull(&private).expect_err("a pull of what is cached and private");
    client.remove(&public);
    pull_and_run(&*client, &public);
}

#[test]
fn docker_pulls_what_the_upstream_shows() {
    pulls_what_the_upstream_shows(Kind::Docker);
}

#[test]
fn containerd_pulls_what_the_upstream_shows() {
    pulls_what_the_upstream_shows(Kind::Containerd);
}

#[test]
fn podman_pulls_what_the_upstream_shows() {
    pulls_what_the_upstream_shows(Kind::Podman);
}

#[test]
fn skopeo_copies_what_the_upstream_shows() {
    pulls_what_the_upstream_shows(Kind::Skopeo);
}

/// The same requests to Distribution and to Larder: the same status, and the same challenge to the byte.
#[test]
fn challenges_and_tokens_are_distributions() {
    let needs = [&Node::NEEDS_PLAIN[..], &[Upstream::NEEDS, TokenServer::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let mut theirs = Upstream::start(&sandbox);
    let image = Image::new(Format::Oci);
    theirs.registry().push(&image);
    // The same content without questions, for the cache.
    let open = Upstream::over(&sandbox, "open", theirs.storage());
    let mut compare = |name: &str, section: &str, shown: &[String]| {
        theirs.restart_with(section);
        let sections = format!("proxy: {{remoteurl: \"{}\"}}\n{section}", open.url());
        let ours = Node::plain_with(&sandbox, name, None, &sections);
        let ask = |authorization: &String| {
            answers_of_both([theirs.address(), ours.address()], &image, authorization)
        };
        shown.iter().map(ask).collect::<Vec<_>>()
    };

    let server = TokenServer::start(&sandbox, USER, PASSWORD);
    let scope = |repository: &str| format!("repository:{repository}:pull");
    let login = Some((USER, PASSWORD));
    let good = server.token(&scope(&image.repository), login);
    let shown = [
        good.clone(),
        server.token(&scope("library/another"), login),
        server.token(&scope(&image.repository), None),
        good[..good.len() - 4].to_owned(),
        "nonsense".to_owned(),
    ];
    let mut shown = shown.map(|token| format!("Bearer {token}")).to_vec();
    shown.push(String::new());
    let (yes, no) = (StatusCode::OK, StatusCode::UNAUTHORIZED);
    let expected =
        [[yes, yes, yes], [yes, no, no], [yes, no, no], [no, no, no], [no, no, no], [no, no, no]];
    assert_eq!(compare("tokens", &server.section(), &shown), expected);

    let login = |password| format!("Basic {}", STANDARD.encode(format!("{USER}:{password}")));
    let shown = [login(PASSWORD), login("a guess"), "Basic nonsense".to_owned(), String::new()];
    let expected = [[yes, yes, yes], [no, no, no], [no, no, no], [no, no, no]];
    assert_eq!(compare("users", &htpasswd_section(&sandbox), &shown), expected);
}

/// What two registries answer to a client that shows this.
fn answers_of_both(addresses: [&str; 2], image: &Image, authorization: &str) -> [StatusCode; 3] {
    let client = reqwest::blocking::Client::new();
    let repository = &image.repository;
    let paths = ["", &format!("{repository}/manifests/1.0"), &format!("{repository}/tags/list")];
    paths.map(|path| {
        let [theirs, ours] = addresses.map(|address| {
            let mut request = client.get(format!("http://{address}/v2/{path}"));
            request = request.header(ACCEPT, image.index.media_type);
            if !authorization.is_empty() {
                request = request.header(AUTHORIZATION, authorization);
            }
            let answer = request.send().expect("an answer");
            (answer.status(), answer.headers().get(WWW_AUTHENTICATE).cloned())
        });
        assert_eq!(ours, theirs, "{path} {authorization}");
        ours.0
    })
}

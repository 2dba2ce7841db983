//! OpenStack Swift: a real cluster of one replica on one device.

use std::{path::Path, process::Command, time::Duration};

use reqwest::{
    StatusCode,
    blocking::{Client, RequestBuilder},
};

use crate::{Keystone, Process, Sandbox, Storage, run, until};

const RING_TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than a token is good in a test that waits for its end.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(60);

/// A cluster with one container.
pub struct Swift<'a> {
    proxy: String,
    keystone: Option<&'a Keystone>,
    client: Client,
    _processes: Vec<Process>,
}

impl<'a> Swift<'a> {
    /// What a test needs to have one.
    pub const NEEDS: [&'static str; 2] = ["swift-proxy-server", "memcached"];
    /// The container.
    pub const CONTAINER: &'static str = "larder";
    /// The user of TempAuth.
    pub const USER: &'static str = "test:tester";
    /// The user's password.
    pub const PASSWORD: &'static str = "testing";

    /// Starts a cluster whose users log in with TempAuth, and makes the container. A token is
    /// good for `token_life`.
    pub fn start(sandbox: &Sandbox, token_life: Duration) -> Self {
        let auth = format!(
            "[filter:tempauth]\nuse = egg:swift#tempauth\nuser_test_tester = {} .admin\n\
             token_life = {}\n",
            Self::PASSWORD,
            token_life.as_secs(),
        );
        Self::cluster(sandbox, &sandbox.address(), "tempauth", &auth, None)
    }

    /// Starts a cluster whose users log in with Keystone, at the address that Keystone's catalog
    /// has for it.
    pub fn with_keystone(sandbox: &Sandbox, keystone: &'a Keystone) -> Self {
        let url = keystone.url();
        let auth = format!(
            "[filter:authtoken]\npaste.filter_factory = keystonemiddleware.auth_token:filter_factory\n\
             www_authenticate_uri = {url}\nauth_url = {url}\nauth_type = password\n\
             project_domain_name = Default\nuser_domain_name = Default\nproject_name = service\n\
             username = swift\npassword = swiftpass\ndelay_auth_decision = true\n\
             cache = swift.cache\ninclude_service_catalog = false\n\
             [filter:keystoneauth]\nuse = egg:swift#keystoneauth\noperator_roles = admin, member\n"
        );
        let address = keystone.swift_address();
        Self::cluster(sandbox, address, "authtoken keystoneauth", &auth, Some(keystone))
    }

    fn cluster(
        sandbox: &Sandbox,
        proxy: &str,
        auth_filters: &str,
        auth: &str,
        keystone: Option<&'a Keystone>,
    ) -> Self {
        let etc = sandbox.directory("swift");
        sandbox.directory("swift/srv/d1");
        let hash = "[swift-hash]\nswift_hash_path_suffix = test\nswift_hash_path_prefix = test\n\
                    [storage-policy:0]\nname = one\ndefault = yes\n";
        sandbox.file("swift/swift.conf", hash);
        let mut processes = vec![];
        let memcached = sandbox.address();
        let mut command = Command::new("memcached");
        let port = memcached.rsplit(':').next().unwrap_or_default();
        command.args(["-l", "127.0.0.1", "-U", "0", "-m", "64", "-u", "root", "-p", port]);
        processes.push(Process::start(sandbox, "swift-memcached", command));
        for service in ["account", "container", "object"] {
            processes.push(Self::storage_service(sandbox, &etc, service));
        }
        let config = proxy_config(proxy, &etc, &memcached, auth_filters, auth);
        let config = sandbox.file("swift/proxy.conf", &config);
        let mut command = Command::new("swift-proxy-server");
        command.arg(config).arg("-v");
        let mut process = Process::start(sandbox, "swift-proxy", command);

        let client = Client::builder().no_proxy().build().expect("an HTTP client");
        let mut swift =
            Self { proxy: format!("http://{proxy}"), keystone, client, _processes: processes };
        process.wait_until("a container", || {
            let (account, token) = swift.log_in()?;
            let put = swift.client.put(format!("{account}/{}", Self::CONTAINER));
            put.header("X-Auth-Token", token).send().ok()?.error_for_status().ok()
        });
        swift._processes.push(process);
        swift
    }

    fn storage_service(sandbox: &Sandbox, etc: &Path, service: &str) -> Process {
        let address = sandbox.address();
        let port = address.rsplit(':').next().unwrap_or_default();
        let config = format!(
            "[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\ndevices = {0}/srv\n\
             mount_check = false\nuser = root\nswift_dir = {0}\nworkers = 0\n\
             log_level = WARNING\nfallocate_reserve = 0\n\
             [pipeline:main]\npipeline = {service}-server\n\
             [app:{service}-server]\nuse = egg:swift#{service}\nallow_versions = yes\n",
            etc.display(),
        );
        let config = sandbox.file(&format!("swift/{service}.conf"), &config);
        let mut rings = Command::new("sh");
        rings.current_dir(etc).arg("-ec").arg(format!(
            "b='swift-ring-builder {service}.builder'\n\
             $b create 6 1 0\n$b add r1z1-127.0.0.1:{port}/d1 1\n$b rebalance\n"
        ));
        run(rings, RING_TIMEOUT).expect("a ring");
        let mut command = Command::new(format!("swift-{service}-server"));
        command.arg(config).arg("-v");
        Process::start(sandbox, &format!("swift-{service}"), command)
    }

    /// What of `storage.swift` names the cluster, the user and the container, in one line.
    pub fn section(&self) -> String {
        let login = match self.keystone {
            Some(keystone) => keystone.section(),
            None => format!(
                "authurl: \"{}/auth/v1.0\", authversion: 1, username: \"{}\", password: {}",
                self.proxy,
                Self::USER,
                Self::PASSWORD
            ),
        };
        format!("{login}, container: {}", Self::CONTAINER)
    }

    /// The names of all objects in the container, whoever put them there, and however.
    ///
    /// # Panics
    /// When the container cannot be listed.
    pub fn names(&self) -> Vec<String> {
        let (account, token) = self.log_in().expect("a token");
        let list = self.client.get(format!("{account}/{}?limit=10000", Self::CONTAINER));
        let list = list.header("X-Auth-Token", token).send().expect("a listing");
        let list = list.error_for_status().expect("a listing").text().expect("a listing");
        list.lines().map(str::to_owned).collect()
    }

    /// The container as the storage of nodes.
    pub fn storage(&self) -> Storage {
        Storage::Other(format!("swift: {{{}}}", self.section()))
    }

    /// Waits until every token has ended that somebody has by now.
    ///
    /// # Panics
    /// When that takes a minute.
    pub fn wait_for_end_of_tokens(&self) {
        let (account, token) = self.log_in().expect("a token");
        let head = self.client.head(format!("{account}/{}", Self::CONTAINER));
        let head = head.header("X-Auth-Token", token);
        let status = || Some(head.try_clone()?.send().ok()?.status());
        assert!(status().is_some_and(|status| status.is_success()), "a new token is good");
        until("a token has ended", TOKEN_TIMEOUT, || {
            (status()? == StatusCode::UNAUTHORIZED).then_some(())
        });
    }

    /// The URL of the account, and a token.
    fn log_in(&self) -> Option<(String, String)> {
        if let Some(keystone) = self.keystone {
            return keystone.token();
        }
        let login: RequestBuilder = self.client.get(format!("{}/auth/v1.0", self.proxy));
        let login = login.header("X-Auth-User", Self::USER).header("X-Auth-Key", Self::PASSWORD);
        let answer = login.send().ok()?;
        let header = |name| Some(answer.headers().get(name)?.to_str().ok()?.to_owned());
        Some((header("X-Storage-Url")?, header("X-Auth-Token")?))
    }
}

fn proxy_config(proxy: &str, etc: &Path, memcached: &str, filters: &str, auth: &str) -> String {
    let port = proxy.rsplit(':').next().unwrap_or_default();
    let plain: String = [
        "catch_errors:catch_errors",
        "gatekeeper:gatekeeper",
        "listing_formats:listing_formats",
        "bulk:bulk",
        "copy:copy",
        "slo:slo",
        "dlo:dlo",
    ]
    .iter()
    .filter_map(|filter| filter.split_once(':'))
    .map(|(name, egg)| format!("[filter:{name}]\nuse = egg:swift#{egg}\n"))
    .collect();
    format!(
        "[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nuser = root\nswift_dir = {}\n\
         workers = 0\nlog_level = WARNING\n\
         [pipeline:main]\npipeline = catch_errors gatekeeper cache listing_formats bulk {filters} \
         copy slo dlo proxy-server\n\
         [app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n\
         conn_timeout = 10\nnode_timeout = 60\n\
         [filter:cache]\nuse = egg:swift#memcache\nmemcache_servers = {memcached}\n{plain}{auth}",
        etc.display(),
    )
}

//! OpenStack Keystone: users, projects and tokens of version 3.

use std::{env, path::PathBuf, process::Command, time::Duration};

use reqwest::blocking::Client;
use serde_json::{Value, json};

use crate::{Process, Sandbox, run};

const SETUP_TIMEOUT: Duration = Duration::from_secs(90);

/// A Keystone with a project for the cache, and a place for Swift in its catalog.
pub struct Keystone {
    url: String,
    swift: String,
    /// `storage.swift`'s keys for an application credential.
    application: String,
    /// The id of the project that `tester` is a member of.
    project: String,
    /// The id of a trust: the user `trustee` may do there what `tester` may.
    trust: String,
    client: Client,
    _process: Process,
}

impl Keystone {
    /// What a test needs to have one.
    pub const NEEDS: &'static str = "keystone-manage";
    /// The password of the user `tester`.
    pub const PASSWORD: &'static str = "testing";

    /// Starts a server whose tokens are good for `token_life`.
    pub fn start(sandbox: &Sandbox, token_life: Duration) -> Self {
        let address = sandbox.address();
        let url = format!("http://{address}/v3");
        let home = sandbox.directory("keystone");
        for directory in ["keystone/fernet", "keystone/credential"] {
            sandbox.directory(directory);
        }
        let config = format!(
            "[database]\nconnection = sqlite:///{0}/keystone.db\n\
             [token]\nprovider = fernet\nexpiration = {1}\n\
             [fernet_tokens]\nkey_repository = {0}/fernet\n\
             [credential]\nkey_repository = {0}/credential\n\
             [identity]\npassword_hash_rounds = 4\n[cache]\nenabled = false\n",
            home.display(),
            token_life.as_secs(),
        );
        let config = sandbox.file("keystone/keystone.conf", &config);
        let script = format!(
            "m='keystone-manage --config-file {}'\n$m db_sync\n\
             $m fernet_setup --keystone-user root --keystone-group root\n\
             $m credential_setup --keystone-user root --keystone-group root\n\
             $m bootstrap --bootstrap-password adminpass --bootstrap-region-id RegionOne \
             --bootstrap-public-url {url} --bootstrap-internal-url {url} --bootstrap-admin-url {url}\n",
            config.display(),
        );
        let mut setup = Command::new("sh");
        setup.arg("-ec").arg(script);
        run(setup, SETUP_TIMEOUT).expect("a database for Keystone");

        let server = sandbox.file("keystone/serve.py", include_str!("keystone.py"));
        let mut command = Command::new(python());
        command
            .arg(server)
            .arg(address.rsplit(':').next().unwrap_or_default())
            .env("OS_KEYSTONE_CONFIG_FILES", &config)
            .env("OS_KEYSTONE_CONFIG_DIR", &home);
        let mut process = Process::start(sandbox, "keystone", command);
        let client = Client::builder().no_proxy().build().expect("an HTTP client");
        process.wait_until("an answer", || client.get(&url).send().ok());
        let mut keystone = Self {
            url,
            swift: sandbox.address(),
            application: String::new(),
            project: String::new(),
            trust: String::new(),
            client,
            _process: process,
        };
        keystone.fill();
        keystone
    }

    /// Where tokens come from.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the catalog says that Swift is.
    pub fn swift_address(&self) -> &str {
        &self.swift
    }

    /// `storage.swift`'s keys for a user with a password.
    pub fn section(&self) -> String {
        format!(
            "authurl: \"{}\", username: tester, password: {}, tenant: demo, domain: Default, \
             region: RegionOne",
            self.url,
            Self::PASSWORD
        )
    }

    /// `storage.swift`'s keys for an application credential of the same user.
    pub fn application_section(&self) -> String {
        format!("authurl: \"{}\", {}", self.url, self.application)
    }

    /// The same user's project in all the ways in which `storage.swift` names it, and somebody who
    /// is trusted with it.
    pub fn other_sections(&self) -> [String; 4] {
        let (url, password) = (&self.url, Self::PASSWORD);
        let tester = format!("authurl: \"{url}\", username: tester, password: {password}");
        [
            format!("{tester}, tenantid: {}, domainid: default", self.project),
            format!("{tester}, tenant: demo, domain: Default, tenantdomain: Default"),
            format!("{tester}, tenant: demo, tenantdomainid: default, endpointtype: internal"),
            format!("{}, trustid: {}", tester.replace("tester", "trustee"), self.trust),
        ]
    }

    /// The URL of the account, and a token.
    pub fn token(&self) -> Option<(String, String)> {
        let (token, answer) = self.log_in("tester", Self::PASSWORD, "demo")?;
        let project = answer["token"]["project"]["id"].as_str()?;
        Some((format!("http://{}/v1/AUTH_{project}", self.swift), token))
    }

    fn log_in(&self, user: &str, password: &str, project: &str) -> Option<(String, Value)> {
        let domain = json!({"name": "Default"});
        let user = json!({"name": user, "domain": domain, "password": password});
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let scope = json!({"project": {"name": project, "domain": domain}});
        let body = json!({"auth": {"identity": identity, "scope": scope}}).to_string();
        let request = self.client.post(format!("{}/auth/tokens", self.url));
        let request = request.header("Content-Type", "application/json").body(body);
        let answer = request.send().ok()?.error_for_status().ok()?;
        let token = answer.headers().get("X-Subject-Token")?.to_str().ok()?.to_owned();
        Some((token, serde_json::from_str(&answer.text().ok()?).ok()?))
    }

    /// Makes the users, their projects and roles, the catalog's entry, and the credential.
    fn fill(&mut self) {
        let make = |path: &str, what: &str, value: Value| {
            let made = self.call("admin", "adminpass", "admin", path, &json!({what: value}));
            made[what].clone()
        };
        let id = |value: &Value| value["id"].as_str().expect("an id").to_owned();
        let member = |project: &Value, user: &Value, role: &str| {
            let (token, _) = self.log_in("admin", "adminpass", "admin").expect("the admin");
            let roles = self.client.get(format!("{}/roles?name={role}", self.url));
            let roles = roles.header("X-Auth-Token", &token).send().and_then(|r| r.text());
            let roles: Value = serde_json::from_str(&roles.expect("roles")).expect("roles");
            let role = id(&roles["roles"][0]);
            let (project, user) = (id(project), id(user));
            let url = format!("{}/projects/{project}/users/{user}/roles/{role}", self.url);
            let put = self.client.put(url).header("X-Auth-Token", token).send();
            put.and_then(reqwest::blocking::Response::error_for_status).expect("a role");
        };
        let project =
            |name| make("/projects", "project", json!({"name": name, "domain_id": "default"}));
        let user = |name, password| {
            let user = json!({"name": name, "password": password, "domain_id": "default"});
            make("/users", "user", user)
        };
        member(&project("service"), &user("swift", "swiftpass"), "admin");
        let tester = user("tester", Self::PASSWORD);
        let demo = project("demo");
        member(&demo, &tester, "member");
        let service =
            make("/services", "service", json!({"name": "swift", "type": "object-store"}));
        let url = format!("http://{}/v1/AUTH_%(project_id)s", self.swift);
        for interface in ["public", "internal"] {
            let endpoint = json!({"service_id": id(&service), "interface": interface,
                "region_id": "RegionOne", "url": url});
            make("/endpoints", "endpoint", endpoint);
        }
        let trustee = user("trustee", Self::PASSWORD);
        let trust = json!({"trust": {"trustor_user_id": id(&tester), "trustee_user_id": id(&trustee),
            "project_id": id(&demo), "impersonation": true, "roles": [{"name": "member"}]}});
        let made = self.call("tester", Self::PASSWORD, "demo", "/OS-TRUST/trusts", &trust);
        self.trust = id(&made["trust"]);
        self.project = id(&demo);
        let path = format!("/users/{}/application_credentials", id(&tester));
        let body = json!({"application_credential": {"name": "larder"}});
        let made = self.call("tester", Self::PASSWORD, "demo", &path, &body);
        let made = &made["application_credential"];
        self.application = format!(
            "applicationcredentialid: \"{}\", applicationcredentialsecret: {}",
            id(made),
            made["secret"]
        );
    }

    fn call(&self, user: &str, password: &str, project: &str, path: &str, body: &Value) -> Value {
        // A token lives no longer than the test wants it to.
        let (token, _) = self.log_in(user, password, project).expect("a token");
        let request = self.client.post(format!("{}{path}", self.url)).header("X-Auth-Token", token);
        let request = request.header("Content-Type", "application/json").body(body.to_string());
        let answer = request.send().and_then(reqwest::blocking::Response::error_for_status);
        let text = answer.and_then(reqwest::blocking::Response::text).expect(path);
        serde_json::from_str(&text).expect(path)
    }
}

/// The Python that has Keystone: it lies beside `keystone-manage`.
fn python() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories = env::split_paths(&path);
    let directory = directories.find(|directory| directory.join(Keystone::NEEDS).exists());
    directory.expect("keystone-manage in PATH").join("python")
}

//! `storage.swift`

use crate::{
    Secret,
    section::Section,
    value::{boolean, expected, secret, size_bytes, string, url_with_path},
};

/// `chunksize`: what Distribution takes, and what Swift takes as one object.
const MIN_CHUNK_BYTES: u64 = 1 << 20;
const MAX_CHUNK_BYTES: u64 = 5 << 30;
const DEFAULT_CHUNK_BYTES: u64 = 20 << 20;

/// What names a project or a domain of Keystone.
const PROJECT_KEYS: [&str; 6] =
    ["tenant", "tenantid", "domain", "domainid", "tenantdomain", "tenantdomainid"];
/// The other keys of which `authversion` decides what they mean.
const LOGIN_KEYS: [&str; 7] = [
    "username",
    "password",
    "applicationcredentialid",
    "applicationcredentialsecret",
    "trustid",
    "region",
    "endpointtype",
];

/// `storage.swift`
#[derive(Clone, Debug)]
pub struct Swift {
    /// `authurl`: where tokens come from, without a trailing slash.
    pub auth_url: String,
    /// Who asks for a token.
    pub login: SwiftLogin,
    /// `container`
    pub container: String,
    /// `prefix`, as it stands there: what every object's name begins with.
    pub prefix: String,
    /// `insecureskipverify`: trust any certificate.
    pub skip_verify: bool,
    /// `chunksize`: bytes in a segment of a large object; 20 MiB when absent.
    pub chunk_size_bytes: u64,
}

/// `authversion`, and the keys that mean something with it.
#[derive(Clone, Debug)]
pub enum SwiftLogin {
    /// `authversion: 1`: TempAuth, or another of the same protocol.
    V1 {
        /// `username`, mostly `account:user`.
        username: String,
        /// `password`
        password: Secret,
    },
    /// `authversion: 3`: Keystone.
    V3 {
        /// Who logs in, and to what.
        identity: KeystoneIdentity,
        /// `region`: the region of the endpoint; the catalog's first one when absent.
        region: Option<String>,
        /// `endpointtype`: `public`, `internal` or `admin`.
        interface: String,
    },
}

/// Who logs in to Keystone.
#[derive(Clone, Debug)]
pub enum KeystoneIdentity {
    /// `username` and `password`
    Password {
        /// `username`
        username: String,
        /// `password`
        password: Secret,
        /// `domain` or `domainid`
        domain: KeystoneDomain,
        /// What the token is for.
        scope: KeystoneScope,
    },
    /// `applicationcredentialid` and `applicationcredentialsecret`, Larder's own keys. What the
    /// token is for is part of the credential.
    Application {
        /// `applicationcredentialid`
        id: String,
        /// `applicationcredentialsecret`
        secret: Secret,
    },
}

/// A domain of Keystone: of a user, or of a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeystoneDomain {
    /// `domain`, `tenantdomain`; `Default` when nothing is said.
    Name(String),
    /// `domainid`, `tenantdomainid`
    Id(String),
}

/// What a token of Keystone is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeystoneScope {
    /// `tenant`, and its domain: `tenantdomain` or `tenantdomainid`, that of the user when absent.
    Project(String, KeystoneDomain),
    /// `tenantid`
    ProjectId(String),
    /// `trustid`
    Trust(String),
}

impl Swift {
    pub(super) fn read(swift: &mut Section<'_>) -> Option<Self> {
        for key in ["secretkey", "accesskey", "tempurlcontainerkey", "tempurlmethods"] {
            swift.note(key, "Larder serves every blob itself and hands out no temporary URLs");
        }
        swift.require("authurl");
        swift.require("container");
        let auth_url = swift.value("authurl", url_with_path);
        let container = swift.value("container", container_name);
        let version = read_version(swift, auth_url.as_deref());
        let login = match version {
            Some(1) => read_v1(swift),
            Some(_) => read_v3(swift),
            // Which of them mean something cannot be told.
            None => {
                let keys = LOGIN_KEYS.iter().chain(&PROJECT_KEYS);
                keys.for_each(|key| drop(swift.value(key, secret)));
                None
            }
        };
        let prefix = swift.value("prefix", string).unwrap_or_default();
        let skip_verify = swift.value("insecureskipverify", boolean).unwrap_or(false);
        let chunk_size = swift.value("chunksize", chunk_size);
        Some(Self {
            auth_url: auth_url?,
            login: login?,
            container: container?,
            prefix,
            skip_verify,
            chunk_size_bytes: chunk_size.unwrap_or(DEFAULT_CHUNK_BYTES),
        })
    }
}

/// `authversion`; without it, what `authurl` says, as in Distribution.
fn read_version(swift: &mut Section<'_>, auth_url: Option<&str>) -> Option<u8> {
    const KEYSTONE_V2: &str = "Keystone dropped version 2 in 2018; set authversion to 3, let authurl end \
         in /v3, and add domain or domainid";
    let given = swift.has("authversion");
    let version = swift.value("authversion", |text| match text {
        "1" => Ok(Some(1)),
        "2" => Err(KEYSTONE_V2.to_owned()),
        "3" => Ok(Some(3)),
        "0" => Ok(None),
        _ => Err(expected("1 or 3", text)),
    });
    match (version, auth_url) {
        (Some(Some(version)), _) => Some(version),
        (None, _) if given => None,
        (_, None) => None,
        (_, Some(url)) if url.contains("v3") => Some(3),
        (_, Some(url)) if url.contains("v2") => {
            swift.mistake("authurl", KEYSTONE_V2);
            None
        }
        (_, Some(url)) if url.contains("v1") => Some(1),
        _ => {
            let text = "is missing, and authurl does not tell: set 3 for Keystone, 1 for TempAuth";
            swift.mistake("authversion", text);
            None
        }
    }
}

fn read_v1(swift: &mut Section<'_>) -> Option<SwiftLogin> {
    for key in ["applicationcredentialid", "applicationcredentialsecret", "trustid"] {
        swift.refuse(key, "only Keystone knows it; set authversion to 3");
    }
    for key in PROJECT_KEYS {
        swift.note(key, "with authversion 1 the user name says it all");
    }
    swift.note("region", "with authversion 1 the server names its one storage URL");
    swift.value("endpointtype", |text| match text {
        "public" => Ok(()),
        _ => Err(expected("public, for authversion 1 knows no other,", text)),
    });
    swift.require("username");
    swift.require("password");
    let username = swift.value("username", string);
    let password = swift.value("password", secret);
    Some(SwiftLogin::V1 { username: username?, password: password? })
}

fn read_v3(swift: &mut Section<'_>) -> Option<SwiftLogin> {
    swift.require_both("applicationcredentialid", "applicationcredentialsecret");
    let is_application =
        swift.has("applicationcredentialid") || swift.has("applicationcredentialsecret");
    let id = swift.value("applicationcredentialid", string);
    let application_secret = swift.value("applicationcredentialsecret", secret);
    let region = swift.value("region", string);
    let interface = swift.value("endpointtype", interface);
    let identity = if is_application {
        for key in ["username", "password", "trustid"] {
            swift.refuse(key, "remove it: there is an application credential to log in with");
        }
        for key in PROJECT_KEYS {
            swift.note(key, "an application credential is for one project anyway");
        }
        let secret = application_secret;
        id.zip(secret).map(|(id, secret)| KeystoneIdentity::Application { id, secret })
    } else {
        read_password(swift)
    };
    let interface = interface.unwrap_or_else(|| "public".to_owned());
    Some(SwiftLogin::V3 { identity: identity?, region, interface })
}

fn read_password(swift: &mut Section<'_>) -> Option<KeystoneIdentity> {
    swift.require("username");
    swift.require("password");
    let username = swift.value("username", string);
    let password = swift.value("password", secret);
    let domain = read_domain(swift, "domain", "domainid")
        .unwrap_or_else(|| KeystoneDomain::Name("Default".to_owned()));
    let project_domain = read_domain(swift, "tenantdomain", "tenantdomainid");
    let trust = swift.value("trustid", string);
    let project_id = swift.value("tenantid", string);
    let project = swift.value("tenant", string);
    let scope = match (trust, project_id, project) {
        (Some(trust), _, _) => KeystoneScope::Trust(trust),
        (None, Some(id), _) => KeystoneScope::ProjectId(id),
        (None, None, Some(name)) => {
            KeystoneScope::Project(name, project_domain.unwrap_or_else(|| domain.clone()))
        }
        (None, None, None) => {
            let text = "is missing: name the project, here or by tenantid or trustid";
            swift.mistake("tenant", text);
            return None;
        }
    };
    Some(KeystoneIdentity::Password { username: username?, password: password?, domain, scope })
}

/// A domain by its name or its id; the name comes first, as in Distribution.
fn read_domain(swift: &mut Section<'_>, name: &str, id: &str) -> Option<KeystoneDomain> {
    let by_id = swift.value(id, string).map(KeystoneDomain::Id);
    swift.value(name, string).map(KeystoneDomain::Name).or(by_id)
}

fn container_name(text: &str) -> Result<String, String> {
    match text {
        _ if text.contains('/') => Err(expected("a name without a slash", text)),
        _ => Ok(text.to_owned()),
    }
}

fn interface(text: &str) -> Result<String, String> {
    match text {
        "public" | "internal" | "admin" => Ok(text.to_owned()),
        _ => Err(expected("public, internal or admin", text)),
    }
}

fn chunk_size(text: &str) -> Result<u64, String> {
    match size_bytes(text)? {
        size @ MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES => Ok(size),
        _ => Err(expected("a size from 1MiB to 5GiB", text)),
    }
}

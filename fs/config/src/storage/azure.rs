//! `storage.azure`

use crate::{
    Secret,
    section::Section,
    value::{boolean, expected, secret, string, url},
};

/// `realm`: Azure's public cloud.
const DEFAULT_REALM: &str = "core.windows.net";

/// `storage.azure`
#[derive(Debug)]
pub struct Azure {
    /// `accountname`
    pub account: String,
    /// `container`
    pub container: String,
    /// `accountkey`, or `credentials`.
    pub credentials: AzureCredentials,
    /// `serviceurl`, or what `accountname` and `realm` make of it; without a trailing slash.
    pub service_url: String,
    /// Whether the names of blobs begin with a slash, as those that Distribution 2 wrote do.
    pub has_leading_slash: bool,
    /// `rootdirectory` without slashes at either end; empty when absent.
    pub root_directory: String,
    /// `skipverify`: trust any certificate of the endpoint.
    pub skip_verify: bool,
}

/// What requests to Azure are signed with.
#[derive(Debug)]
pub enum AzureCredentials {
    /// `accountkey`
    Key(Secret),
    /// `credentials` of the type `client_secret`: an application of Entra ID.
    Application {
        /// `credentials.clientid`
        client_id: String,
        /// `credentials.tenantid`
        tenant_id: String,
        /// `credentials.secret`
        secret: Secret,
    },
    /// Nothing in the file: the usual variables, workload identity, or the machine's identity.
    Environment,
}

impl Azure {
    pub(super) fn read(azure: &mut Section<'_>) -> Option<Self> {
        Self::read_what_changes_nothing(azure);
        azure.require("accountname");
        azure.require("container");
        // Distribution 3 demands `credentials`, and Distribution 2 does not know it.
        let is_of_distribution_3 = azure.has("credentials");
        let account = azure.value("accountname", account_name);
        let container = azure.value("container", container_name);
        let realm = azure.value("realm", realm);
        let service_url = azure.value("serviceurl", service_url);
        if service_url.is_some() && realm.is_some() {
            azure.add_note("realm", "serviceurl says all of the endpoint");
        }
        let has_leading_slash = Self::read_leading_slash(azure, !is_of_distribution_3);
        let root_directory = azure.value("rootdirectory", string).unwrap_or_default();
        let credentials = Self::read_credentials(azure);
        let skip_verify = azure.value("skipverify", boolean).unwrap_or(false);
        // Only now that every key was taken may a missing one end this.
        let account = account?;
        let realm = realm.as_deref().unwrap_or(DEFAULT_REALM);
        Some(Self {
            service_url: service_url.unwrap_or_else(|| format!("https://{account}.blob.{realm}")),
            account,
            container: container?,
            credentials: credentials?,
            has_leading_slash,
            root_directory: root_directory.trim_matches('/').to_owned(),
            skip_verify,
        })
    }

    /// The keys are those of GitLab's registry, which took both layouts over.
    fn read_leading_slash(azure: &mut Section<'_>, default: bool) -> bool {
        let trims = azure.value("trimlegacyrootprefix", boolean);
        let keeps = azure.value("legacyrootprefix", boolean);
        if trims.is_some() && trims == keeps {
            azure.mistake("legacyrootprefix", "contradicts trimlegacyrootprefix; remove one");
        }
        let is_said = trims.is_some() || keeps.is_some();
        if default && !is_said && azure.has("rootdirectory") {
            let text = "without `credentials` this is a file of Distribution 2, which ignores it; \
                        say with trimlegacyrootprefix, true or false, whether the names of blobs \
                        begin with a slash that is to be left out";
            azure.mistake("rootdirectory", text);
        }
        keeps.or(trims.map(|trims| !trims)).unwrap_or(default)
    }

    fn read_credentials(azure: &mut Section<'_>) -> Option<AzureCredentials> {
        let key = azure.value("accountkey", secret);
        azure.section("credentials", |credentials| {
            let kind = credentials.value("type", credentials_type);
            let is_application = kind == Some("client_secret");
            if is_application {
                for key in ["clientid", "tenantid", "secret"] {
                    credentials.require(key);
                }
            } else if kind == Some("shared_key") && key.is_none() {
                credentials.mistake("type", "shared_key takes storage.azure.accountkey beside it");
            }
            let client_id = credentials.value("clientid", string);
            let tenant_id = credentials.value("tenantid", string);
            let secret = credentials.value("secret", secret);
            if is_application {
                let (client_id, tenant_id, secret) = (client_id?, tenant_id?, secret?);
                return Some(AzureCredentials::Application { client_id, tenant_id, secret });
            }
            for (key, is_given) in [
                ("clientid", client_id.is_some()),
                ("tenantid", tenant_id.is_some()),
                ("secret", secret.is_some()),
            ] {
                if is_given {
                    credentials.mistake(key, "is of no use without `type: client_secret`");
                }
            }
            Some(key.map_or(AzureCredentials::Environment, AzureCredentials::Key))
        })
    }

    fn read_what_changes_nothing(azure: &mut Section<'_>) {
        let why = "Distribution makes no use of it either; accountname, accountkey and serviceurl \
                   say the same";
        azure.note("connectionstring", why);
        for key in
            ["max_retries", "retry_delay", "copy_status_poll_max_retry", "copy_status_poll_delay"]
        {
            azure.note(key, "Larder copies nothing within the storage, and limits retries itself");
        }
    }
}

/// Azure's rule; the name becomes a part of the host name.
fn account_name(text: &str) -> Result<String, String> {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    match text.len() {
        3..=24 if text.bytes().all(is_allowed) => Ok(text.to_owned()),
        _ => Err(expected("3 to 24 lower-case letters and digits", text)),
    }
}

/// Azure's rule; the name is the first part of every path.
fn container_name(text: &str) -> Result<String, String> {
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match text.len() {
        3..=63 if text.bytes().all(is_allowed) => Ok(text.to_owned()),
        _ => Err(expected("3 to 63 lower-case letters, digits and hyphens", text)),
    }
}

fn realm(text: &str) -> Result<String, String> {
    match url(&format!("https://{text}")) {
        Ok(_) => Ok(text.trim_end_matches('/').to_owned()),
        Err(_) => Err(expected("a domain such as core.windows.net", text)),
    }
}

/// A URL, with the account's name as its path where the host does not have it. It is not quoted:
/// a shared access signature may be in it.
fn service_url(text: &str) -> Result<String, String> {
    let host = text.find("://").map_or(0, |scheme| scheme + "://".len());
    let path = text[host..].find('/').map_or(text.len(), |length| host + length);
    let (base, path) = (&text[..path], text[path..].trim_matches('/'));
    match url(base) {
        Ok(base) if path.is_empty() => Ok(base),
        Ok(base) if path.bytes().all(|b| b.is_ascii_alphanumeric()) => Ok(format!("{base}/{path}")),
        _ => {
            Err("expected a URL such as https://account.blob.core.windows.net, and no path in it \
                  but the account's name"
                .to_owned())
        }
    }
}

fn credentials_type(text: &str) -> Result<&'static str, String> {
    match text {
        "shared_key" => Ok("shared_key"),
        "client_secret" => Ok("client_secret"),
        // Distribution's manual has both.
        "default_credentials" | "default" => Ok("default_credentials"),
        _ => Err(expected("shared_key, client_secret or default_credentials", text)),
    }
}

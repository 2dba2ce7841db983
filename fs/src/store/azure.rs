//! Azure Blob Storage.

mod slash;

use std::sync::Arc;

use larder_config::{Azure, AzureCredentials};
use object_store::{
    Attributes,
    azure::{AzureAccessKey, AzureConfigKey, AzureCredential, MicrosoftAzureBuilder},
};

use self::slash::{LeadingSlash, Signer};
use super::{Backend, PART_BYTES, http};

/// The store of a `storage.azure` section.
///
/// # Errors
/// A sentence that names the key to look at.
pub fn open(config: &Azure) -> Result<Backend, String> {
    let mut builder = credentials(config)
        .with_account(&config.account)
        .with_container_name(&config.container)
        .with_endpoint(config.service_url.clone())
        .with_use_emulator(false)
        .with_skip_signature(false)
        .with_client_options(http::client(Some(&config.service_url), config.skip_verify))
        .with_retry(http::retry());
    let key = builder.get_config_value(&AzureConfigKey::AccessKey);
    // What the library says of a key that is no base64 quotes a part of it.
    let key = key.map(|key| AzureAccessKey::try_new(&key)).transpose().map_err(
        |_| "storage.azure.accountkey: not base64; copy it again from the account's access keys",
    )?;
    if config.has_leading_slash {
        let signer = key.map(|key| {
            let credential = AzureCredential::AccessKey(key);
            Arc::new(Signer { account: config.account.clone(), credential })
        });
        let container = format!("{}/{}", path_of(&config.service_url), config.container);
        builder = builder.with_http_connector(LeadingSlash { container, signer });
    }
    let objects = builder.build().map_err(|e| format!("storage.azure: {e}"))?;
    Ok(Backend {
        objects: Arc::new(objects),
        // Azure removes blocks that were not committed a week after the last of them came, and has no
        // call for it (REST API, "Put Block").
        leftovers: None,
        root_directory: config.root_directory.clone(),
        part_bytes: PART_BYTES,
        attributes: Attributes::new(),
        mistaken_key,
        endpoint_key: "storage.azure.serviceurl (or accountname)",
    })
}

/// The key of the configuration to look at when Azure answers so.
fn mistaken_key(error: &object_store::Error) -> Option<&'static str> {
    let text = http::text(error);
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["token request"]) {
        Some("storage.azure.credentials")
    } else if says(&["certificate"]) {
        Some("storage.azure.skipverify")
    } else if says(&["ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled"]) {
        Some("storage.azure.container")
    } else if says(&["401 Unauthorized", "403 Forbidden", "AuthenticationFailed"]) {
        Some("storage.azure.accountkey (or credentials)")
    } else {
        None
    }
}

/// The variables that the library knows are for who gives nothing in the file, but for the
/// authority that tokens come from.
fn credentials(config: &Azure) -> MicrosoftAzureBuilder {
    let builder = MicrosoftAzureBuilder::from_env();
    match &config.credentials {
        AzureCredentials::Key(key) => {
            builder.with_credential_type("access_key").with_access_key(key.expose())
        }
        AzureCredentials::Application { client_id, tenant_id, secret } => builder
            .with_credential_type("client_secret")
            .with_client_secret_authorization(client_id, secret.expose(), tenant_id),
        AzureCredentials::Environment => builder,
    }
}

/// What stands behind the host: nothing, or `/account`.
fn path_of(url: &str) -> &str {
    let host = url.split_once("://").map_or(url, |(_, host)| host);
    host.find('/').map_or("", |path| &host[path..])
}

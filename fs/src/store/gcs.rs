//! Google Cloud Storage.

use std::{fs, sync::Arc};

use larder_config::{Gcs, ServiceAccount};
use object_store::{Attributes, gcp::GoogleCloudStorageBuilder};
use serde_json::{Value, json};

use super::{Backend, http};

/// The store of a `storage.gcs` section.
///
/// # Errors
/// A sentence that names the key to look at.
pub fn open(config: &Gcs) -> Result<Backend, String> {
    let account = config.service_account.as_ref().map(service_account).transpose()?;
    // Another endpoint than Google's stands in the account's file, where the library looks for it.
    let endpoint = account.as_ref().and_then(|account| account["gcs_base_url"].as_str());
    let client = http::client(endpoint, false);
    let builder = match &account {
        Some(account) => {
            GoogleCloudStorageBuilder::new().with_service_account_key(account.to_string())
        }
        // The application default credentials: a file that a variable names, or the machine's own.
        None => GoogleCloudStorageBuilder::from_env(),
    };
    let objects = builder
        .with_bucket_name(&config.bucket)
        .with_client_options(client)
        .with_retry(http::retry())
        .build()
        // The library's error may quote the file.
        .map_err(|_| match &config.service_account {
            Some(_) => format!("{}: the key in it is no RSA key in PEM", key_of(config)),
            None => "storage.gcs: the file that GOOGLE_APPLICATION_CREDENTIALS names cannot be \
                     used; set storage.gcs.keyfile"
                .to_owned(),
        })?;
    Ok(Backend {
        objects: Arc::new(objects),
        root_directory: config.root_directory.clone(),
        part_bytes: config.chunk_size_bytes,
        attributes: Attributes::new(),
        mistaken_key,
    })
}

/// The key of the configuration to look at when Google answers so.
fn mistaken_key(error: &object_store::Error) -> Option<&'static str> {
    let text = http::text(error);
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["NoSuchBucket", "InvalidBucketName"]) {
        Some("storage.gcs.bucket")
    } else if says(&["token request", "401 Unauthorized", "403 Forbidden"]) {
        Some("storage.gcs.keyfile (or credentials)")
    } else if says(&["HTTP error"]) {
        Some("storage.gcs")
    } else {
        None
    }
}

/// The account's file, as Google writes it.
fn service_account(account: &ServiceAccount) -> Result<Value, String> {
    match account {
        ServiceAccount::File(path) => {
            let mistake = |why: &str| format!("storage.gcs.keyfile: {} {why}", path.display());
            let text =
                fs::read_to_string(path).map_err(|e| mistake(&format!("cannot be read: {e}")))?;
            let account: Value = serde_json::from_str(&text)
                .map_err(|_| mistake("is not the JSON file that Google gave out"))?;
            match account["type"].as_str() {
                Some("service_account") => Ok(account),
                _ => Err(mistake("is not the key of a service account; create one")),
            }
        }
        ServiceAccount::Inline { client_email, private_key_id, private_key } => Ok(json!({
            "client_email": client_email,
            "private_key_id": private_key_id,
            "private_key": private_key.expose(),
        })),
    }
}

fn key_of(config: &Gcs) -> &'static str {
    match config.service_account {
        Some(ServiceAccount::Inline { .. }) => "storage.gcs.credentials.private_key",
        _ => "storage.gcs.keyfile",
    }
}

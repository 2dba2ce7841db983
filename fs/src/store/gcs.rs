//! Google Cloud Storage.

use std::{fs, sync::Arc};

use async_trait::async_trait;
use http::{HeaderValue, header::AUTHORIZATION};
use larder_config::{Gcs, ServiceAccount};
use object_store::{
    Attributes, Error, Result,
    client::{HttpConnector, HttpRequest, ReqwestConnector},
    gcp::{GcpCredentialProvider, GoogleCloudStorageBuilder, GoogleConfigKey},
};
use reqwest::Url;
use serde_json::{Value, json};

use super::{
    Backend, http as shared,
    leftovers::{self, Requests, Uploads},
};

const ENDPOINT: &str = "https://storage.googleapis.com";

/// The store of a `storage.gcs` section.
///
/// # Errors
/// A sentence that names the key to look at.
pub fn open(config: &Gcs) -> Result<Backend, String> {
    let account = config.service_account.as_ref().map(service_account).transpose()?;
    // Another endpoint than Google's stands in the account's file, where the library looks for it.
    let endpoint = account.as_ref().and_then(|account| account["gcs_base_url"].as_str());
    let connections = shared::client(endpoint, false);
    let builder = match &account {
        Some(account) => {
            GoogleCloudStorageBuilder::new().with_service_account_key(account.to_string())
        }
        // The application default credentials: a file that a variable names, or the machine's own.
        None => GoogleCloudStorageBuilder::from_env(),
    };
    let endpoint =
        builder.get_config_value(&GoogleConfigKey::BaseUrl).or(endpoint.map(str::to_owned));
    let endpoint = endpoint.as_deref().unwrap_or(ENDPOINT);
    let bucket = format!("{endpoint}/{}", config.bucket).parse();
    let bucket = bucket.map_err(|e| format!("storage.gcs.bucket: {e}"))?;
    let objects = builder
        .with_bucket_name(&config.bucket)
        .with_client_options(connections.clone())
        .with_retry(shared::retry())
        .build()
        // The library's error may quote the file.
        .map_err(|_| match &config.service_account {
            Some(_) => format!("{}: the key in it is no RSA key in PEM", key_of(config)),
            None => "storage.gcs: the file that GOOGLE_APPLICATION_CREDENTIALS names cannot be \
                     used; set storage.gcs.keyfile"
                .to_owned(),
        })?;
    let client = ReqwestConnector::default().connect(&connections);
    let client = client.map_err(|e| format!("storage.gcs: {e}"))?;
    let requests = WithToken { credentials: Arc::clone(objects.credentials()), bucket };
    let leftovers = Uploads::new(objects.clone(), requests, client, &config.root_directory);
    Ok(Backend {
        objects: Arc::new(objects),
        leftovers: Some(Arc::new(leftovers)),
        root_directory: config.root_directory.clone(),
        part_bytes: config.chunk_size_bytes,
        attributes: Attributes::new(),
        mistaken_key,
        // Google's own, unless the account's file names another.
        endpoint_key: "storage.gcs",
    })
}

/// The key of the configuration to look at when Google answers so.
fn mistaken_key(error: &Error) -> Option<&'static str> {
    let text = shared::text(error);
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["NoSuchBucket", "InvalidBucketName"]) {
        Some("storage.gcs.bucket")
    } else if says(&["token request", "401 Unauthorized", "403 Forbidden"]) {
        Some("storage.gcs.keyfile (or credentials)")
    } else if says(&["certificate"]) {
        Some("storage.gcs")
    } else {
        None
    }
}

/// Asks the bucket with the tokens of the library.
struct WithToken {
    credentials: GcpCredentialProvider,
    bucket: Url,
}

#[async_trait]
impl Requests for WithToken {
    async fn get_bucket(&self, query: Vec<(&'static str, String)>) -> Result<HttpRequest> {
        let mut url = self.bucket.clone();
        url.query_pairs_mut().extend_pairs(query);
        let mut request = leftovers::get(&url)?;
        let credential = self.credentials.get_credential().await?;
        let token = HeaderValue::from_str(&format!("Bearer {}", credential.bearer));
        let mut token = token.map_err(|e| Error::Generic { store: "GCS", source: e.into() })?;
        token.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, token);
        Ok(request)
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

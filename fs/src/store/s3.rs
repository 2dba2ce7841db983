//! Amazon S3, and the servers that speak its protocol.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{HeaderName, Method, StatusCode};
use larder_config::S3;
use object_store::{
    Attribute, ClientOptions, Error, Result,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    client::{
        HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService,
        ReqwestConnector,
    },
    path::Path,
    signer::{SignedUrlOptions, Signer},
};

use super::{
    Backend, http as shared,
    leftovers::{self, Requests, Uploads},
};

const BUCKET_REGION: HeaderName = HeaderName::from_static("x-amz-bucket-region");
/// For how long a signed URL may be used. It is used at once; clocks may differ a little.
const SIGNED_FOR: Duration = Duration::from_secs(300);

/// The store of a `storage.s3` section.
///
/// # Errors
/// A sentence that names the key to look at.
pub fn open(config: &S3) -> Result<Backend, String> {
    let connections = shared::client(config.endpoint.as_deref(), config.skip_verify);
    // from_env: without keys in the file, the usual variables and instance sources hold them.
    let mut builder = match &config.access_key {
        Some((id, secret)) => {
            AmazonS3Builder::new().with_access_key_id(id).with_secret_access_key(secret.expose())
        }
        None => AmazonS3Builder::from_env(),
    };
    builder = builder
        .with_bucket_name(&config.bucket)
        .with_region(&config.region)
        .with_virtual_hosted_style_request(!config.force_path_style)
        .with_client_options(connections.clone())
        .with_http_connector(Connector)
        .with_retry(shared::retry());
    if let Some(token) = &config.session_token {
        builder = builder.with_token(token.expose());
    }
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint_of_bucket(endpoint, config));
    }
    if let Some(key) = &config.kms_key_id {
        builder = builder.with_sse_kms_encryption(key);
    } else if config.encrypt {
        builder = builder.with_config(server_side_encryption()?, "AES256");
    }
    let explain = |e: Error| format!("storage.s3: {e}");
    let objects = builder.build().map_err(explain)?;
    let client = Connector.connect(&connections).map_err(explain)?;
    let requests = SignedUrls(objects.clone());
    let leftovers = Uploads::new(objects.clone(), requests, client, &config.root_directory);
    let class = config.storage_class.clone();
    Ok(Backend {
        objects: Arc::new(objects),
        leftovers: Some(Arc::new(leftovers)),
        root_directory: config.root_directory.clone(),
        part_bytes: config.chunk_size_bytes,
        attributes: class.into_iter().map(|class| (Attribute::StorageClass, class)).collect(),
        mistaken_key,
        endpoint_key: match config.endpoint {
            Some(_) => "storage.s3.regionendpoint",
            None => "storage.s3.region",
        },
    })
}

/// The key to look at, by the codes that S3 answers with (its API reference, "Error responses").
fn mistaken_key(error: &Error) -> Option<&'static str> {
    const KEYS: [(&str, &str); 12] = [
        // Where Amazon's machines get credentials when the configuration has none.
        ("169.254.169.254", "storage.s3.accesskey and secretkey, which are not set"),
        ("InvalidAccessKeyId", "storage.s3.accesskey"),
        ("SignatureDoesNotMatch", "storage.s3.secretkey"),
        ("InvalidToken", "storage.s3.sessiontoken"),
        ("ExpiredToken", "storage.s3.sessiontoken"),
        ("NoSuchBucket", "storage.s3.bucket"),
        ("InvalidBucketName", "storage.s3.bucket"),
        ("AuthorizationHeaderMalformed", "storage.s3.region"),
        ("PermanentRedirect", "storage.s3.region"),
        ("AccessDenied", "storage.s3.accesskey, and what it may do with storage.s3.bucket"),
        ("IllegalLocationConstraintException", "storage.s3.region"),
        ("certificate", "storage.s3.regionendpoint and storage.s3.skipverify"),
    ];
    let said = shared::text(error);
    KEYS.iter().find(|(code, _)| said.contains(code)).map(|(_, key)| *key)
}

/// Makes the client of the endpoint.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        Ok(HttpClient::new(Redirected(ReqwestConnector::default().connect(options)?)))
    }
}

/// What S3 answers who asks in the wrong region for a bucket is a redirect that leads nowhere, and
/// to HEAD it has no body. Here it becomes an error that says the right region.
#[derive(Debug)]
struct Redirected(HttpClient);

#[async_trait]
impl HttpService for Redirected {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let mut answer = self.0.execute(request).await?;
        let is_redirect = answer.status() == StatusCode::MOVED_PERMANENTLY;
        if is_redirect && let Some(region) = answer.headers().get(BUCKET_REGION) {
            let region = region.to_str().unwrap_or_default();
            let error = format!("<Code>PermanentRedirect</Code><Region>{region}</Region>");
            *answer.body_mut() = error.into();
            *answer.status_mut() = StatusCode::BAD_REQUEST;
        }
        Ok(answer)
    }
}

/// Asks the bucket by URLs that the library signs: it knows the credentials and the endpoint.
struct SignedUrls(AmazonS3);

#[async_trait]
impl Requests for SignedUrls {
    async fn get_bucket(&self, query: Vec<(&'static str, String)>) -> Result<HttpRequest> {
        let options = SignedUrlOptions::new().with_query(query);
        let url = self.0.signed_url_opts(Method::GET, &Path::ROOT, SIGNED_FOR, &options).await?;
        leftovers::get(&url)
    }
}

/// The library builds this key from its name only.
fn server_side_encryption() -> Result<AmazonS3ConfigKey, String> {
    "aws_server_side_encryption".parse().map_err(|e| format!("storage.s3.encrypt: {e}"))
}

/// In virtual-hosted style the library takes the endpoint with the bucket in its host name.
fn endpoint_of_bucket(endpoint: &str, config: &S3) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) if !config.force_path_style => {
            format!("{scheme}://{}.{host}", config.bucket)
        }
        _ => endpoint.to_owned(),
    }
}

//! Alibaba Cloud's Object Storage Service.
//!
//! Its API is that of Amazon S3 in everything that Larder needs but names of headers and the
//! signature. So the library's client for S3 does the work, and what it sends is put into OSS's
//! words and signed (version 4: the older ones are closed to new buckets) on its way out. Each
//! attempt is signed anew, so that a retry never carries an old date.
//!
//! Put-if-absent (`x-oss-forbid-overwrite`) is atomic, except on a bucket with versioning, where
//! OSS ignores it.

use std::sync::Arc;

use async_trait::async_trait;
use http::{
    HeaderName, HeaderValue, Method, StatusCode, Uri, header::IF_NONE_MATCH, request::Parts,
    uri::PathAndQuery,
};
use larder_config::Oss as Config;
use object_store::{
    Attributes, ClientOptions, Error, Result,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
        HttpResponse, HttpService, ReqwestConnector,
    },
};
use reqsign_aliyun_oss::{Credential, RequestSigner, SigningVersion};
use reqsign_core::{Context, SignRequest};
use reqwest::Url;
use tokio::sync::OnceCell;

use super::{
    Backend, http as shared,
    leftovers::{self, Requests, Uploads},
};

const COPY_SOURCE: HeaderName = HeaderName::from_static("x-oss-copy-source");
const FORBID_OVERWRITE: HeaderName = HeaderName::from_static("x-oss-forbid-overwrite");
const ENCRYPTION: HeaderName = HeaderName::from_static("x-oss-server-side-encryption");
const ENCRYPTION_KEY: HeaderName = HeaderName::from_static("x-oss-server-side-encryption-key-id");
/// As much of a server's word as is told.
const ELEMENT_MAX_CHARS: usize = 64;

/// What our own sentences name.
const KEYS: [&str; 4] = [
    "storage.oss.accesskeyid",
    "storage.oss.accesskeysecret",
    "storage.oss.bucket",
    "storage.oss.region",
];

/// The store of a `storage.oss` section.
///
/// # Errors
/// A sentence that names the key to look at.
pub fn open(config: &Config) -> Result<Backend, String> {
    let connector = Connector { dialect: Arc::new(Dialect::new(config)?) };
    let connections = shared::client(Some(&config.endpoint), false);
    let explain = |e: Error| format!("storage.oss: {e}");
    let client = connector.connect(&connections).map_err(explain)?;
    let objects = AmazonS3Builder::new()
        .with_bucket_name(&config.bucket)
        .with_region(&config.region)
        .with_endpoint(&config.endpoint)
        .with_virtual_hosted_style_request(true)
        .with_skip_signature(true)
        // OSS wants an MD5 with it, and a cache deletes little.
        .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true")
        .with_client_options(connections)
        .with_retry(shared::retry())
        .with_http_connector(connector)
        .build()
        .map_err(explain)?;
    let bucket = config.endpoint.parse().map_err(|e| format!("storage.oss.endpoint: {e}"))?;
    let requests = Unsigned(bucket);
    let leftovers = Uploads::new(objects.clone(), requests, client, &config.root_directory);
    Ok(Backend {
        objects: Arc::new(objects),
        leftovers: Some(Arc::new(leftovers)),
        root_directory: config.root_directory.clone(),
        part_bytes: config.chunk_size_bytes,
        attributes: Attributes::new(),
        mistaken_key,
        endpoint_key: "storage.oss.endpoint (or region)",
    })
}

fn mistaken_key(error: &Error) -> Option<&'static str> {
    let said = shared::text(error);
    if said.contains("certificate") {
        return Some(
            "storage.oss.endpoint, whose certificate has to be one that the system trusts",
        );
    }
    KEYS.into_iter().find(|key| said.contains(key))
}

/// Asks the bucket; the connection signs what it is given.
struct Unsigned(Url);

#[async_trait]
impl Requests for Unsigned {
    async fn get_bucket(&self, query: Vec<(&'static str, String)>) -> Result<HttpRequest> {
        let mut url = self.0.clone();
        url.query_pairs_mut().extend_pairs(query);
        leftovers::get(&url)
    }
}

/// How S3's requests become OSS's.
#[derive(Debug)]
struct Dialect {
    bucket: String,
    endpoint: String,
    signer: RequestSigner,
    credential: Credential,
    /// Sent with every new object.
    encryption: Vec<(HeaderName, HeaderValue)>,
}

impl Dialect {
    fn new(config: &Config) -> Result<Self, String> {
        let mut encryption = Vec::new();
        if let Some(key) = &config.kms_key_id {
            let key = HeaderValue::from_str(key);
            let key = key.map_err(|e| format!("storage.oss.encryptionkeyid: {e}"))?;
            encryption.push((ENCRYPTION, HeaderValue::from_static("KMS")));
            encryption.push((ENCRYPTION_KEY, key));
        } else if config.encrypt {
            encryption.push((ENCRYPTION, HeaderValue::from_static("AES256")));
        }
        Ok(Self {
            bucket: config.bucket.clone(),
            endpoint: config.endpoint.clone(),
            signer: RequestSigner::new(&config.bucket)
                .with_region(&config.region)
                .with_signing_version(SigningVersion::V4),
            credential: Credential {
                access_key_id: config.access_key_id.clone(),
                access_key_secret: config.access_key_secret.expose().to_owned(),
                security_token: None,
                expires_in: None,
            },
            encryption,
        })
    }

    fn translate(&self, request: &mut Parts) {
        let headers = &mut request.headers;
        if let Some(source) = headers.remove("x-amz-copy-source") {
            // S3 takes `bucket/key`, OSS takes `/bucket/key`.
            let path = source.to_str().unwrap_or_default().trim_start_matches('/');
            if let Ok(source) = HeaderValue::from_str(&format!("/{path}")) {
                headers.insert(COPY_SOURCE, source);
            }
        }
        if request.method != Method::GET && headers.remove(IF_NONE_MATCH).is_some() {
            headers.insert(FORBID_OVERWRITE, HeaderValue::from_static("true"));
        }
        let foreign: Vec<_> =
            headers.keys().filter(|name| name.as_str().starts_with("x-amz-")).cloned().collect();
        foreign.iter().for_each(|name| drop(headers.remove(name)));

        let query = request.uri.query().unwrap_or_default();
        let is_part = query.contains("uploadId=");
        let is_new_object = match request.method {
            Method::PUT => !is_part,
            Method::POST => !is_part && query.starts_with("uploads"),
            _ => false,
        };
        if is_new_object {
            headers.extend(self.encryption.iter().cloned());
        }
    }

    /// The signer looks for the bucket in the name of the host, where a domain of one's own does
    /// not have it; which host it is is not signed.
    async fn sign(&self, request: &mut Parts) -> Result<(), HttpError> {
        let resource = request.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let resource = format!("http://{}.oss{resource}", self.bucket).parse();
        let resource = resource.map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        let uri = std::mem::replace::<Uri>(&mut request.uri, resource);
        let (context, credential) = (Context::new(), Some(&self.credential));
        let signed = self.signer.sign_request(&context, request, credential, None).await;
        request.uri = uri;
        signed.map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))
    }
}

/// Makes the client that translates and signs.
#[derive(Debug)]
struct Connector {
    dialect: Arc<Dialect>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        let dialect = Arc::clone(&self.dialect);
        Ok(HttpClient::new(Translator { dialect, inner, bucket_is_there: OnceCell::new() }))
    }
}

/// Sends what the S3 client says in OSS's words.
#[derive(Debug)]
struct Translator {
    dialect: Arc<Dialect>,
    inner: HttpClient,
    bucket_is_there: OnceCell<()>,
}

impl Translator {
    async fn send(
        &self,
        mut parts: Parts,
        body: HttpRequestBody,
    ) -> Result<HttpResponse, HttpError> {
        self.dialect.translate(&mut parts);
        self.dialect.sign(&mut parts).await?;
        self.inner.execute(HttpRequest::from_parts(parts, body)).await
    }

    /// What the bucket says to a listing of one key: HEAD is answered without a code, so that a
    /// missing bucket looks like a missing object.
    async fn find_bucket(&self) -> Result<(), HttpError> {
        let uri = format!("{}/?list-type=2&max-keys=1", self.dialect.endpoint);
        let request = HttpRequest::new(HttpRequestBody::empty());
        let (mut parts, body) = request.into_parts();
        parts.uri = uri.parse().map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        let answer = self.send(parts, body).await?;
        if answer.status() != StatusCode::NOT_FOUND {
            return Ok(());
        }
        Err(HttpError::new(HttpErrorKind::Unknown, Mistake(self.no_bucket())))
    }

    fn no_bucket(&self) -> String {
        format!(
            "storage.oss.bucket: there is no bucket {:?} at {}; create it, or look at region",
            self.dialect.bucket, self.dialect.endpoint
        )
    }

    /// Puts what to look at into an answer that is an error: its body is what is told.
    async fn explain(&self, answer: HttpResponse) -> Result<HttpResponse, HttpError> {
        let (mut parts, body) = answer.into_parts();
        let body = body.bytes().await?;
        let text = String::from_utf8_lossy(&body);
        let element = |name| -> String {
            let element = shared::element(&text, name).unwrap_or_default();
            element.chars().take(ELEMENT_MAX_CHARS).collect()
        };
        let (code, endpoint) = (element("Code"), element("Endpoint"));
        let explained = match (parts.status, &*code) {
            (_, "NoSuchBucket") => {
                // Not 404: only a missing object is a miss.
                parts.status = StatusCode::BAD_REQUEST;
                self.no_bucket()
            }
            (_, "InvalidAccessKeyId") => {
                "storage.oss.accesskeyid: OSS does not know this key (InvalidAccessKeyId)"
                    .to_owned()
            }
            (_, "SignatureDoesNotMatch") => "storage.oss.accesskeysecret: it is not that of \
                 accesskeyid (SignatureDoesNotMatch)"
                .to_owned(),
            (_, "InvalidArgument") if text.contains("signing region") => {
                "storage.oss.region: it is not the bucket's (InvalidArgument)".to_owned()
            }
            (StatusCode::FORBIDDEN, _) if !endpoint.is_empty() => {
                format!("storage.oss.region (or endpoint): the bucket is at {endpoint} ({code})")
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => format!(
                "storage.oss.accesskeyid, storage.oss.bucket: OSS does not allow it ({code})"
            ),
            (StatusCode::CONFLICT, "FileAlreadyExists") => {
                // What S3 answers to an object that was to be new.
                parts.status = StatusCode::PRECONDITION_FAILED;
                code
            }
            _ => return Ok(HttpResponse::from_parts(parts, body.into())),
        };
        Ok(HttpResponse::from_parts(parts, explained.into()))
    }
}

#[async_trait]
impl HttpService for Translator {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let is_head = parts.method == Method::HEAD;
        let answer = self.send(parts, body).await?;
        if is_head && answer.status() == StatusCode::NOT_FOUND {
            self.bucket_is_there.get_or_try_init(|| self.find_bucket()).await?;
        }
        if answer.status().is_client_error() { self.explain(answer).await } else { Ok(answer) }
    }
}

/// What an operator has to look at.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Mistake(String);

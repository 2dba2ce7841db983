//! A registry's HTTP API, as a client sees it.

use std::{io::Read, time::Duration};

use larder_layout::{Digest, Verifier};
use reqwest::{
    StatusCode,
    blocking::{Client, Response},
    header::{ACCEPT, CONTENT_TYPE, LOCATION, RANGE},
};

use crate::{Blob, Failure, Image, Platform};

/// Longer than any deadline of the programs under test: it is their deadlines that are tested.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// How often a cut body is continued where it ended.
const RESUMES_MAX: usize = 5;
const CHUNK_BYTES: usize = 128 << 10;
const ANY_MANIFEST: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// A client of one registry.
#[derive(Clone)]
pub struct Registry {
    url: String,
    client: Client,
}

impl Registry {
    /// The registry that listens on `address`, host and port.
    pub fn at(address: &str) -> Self {
        let client = Client::builder().no_proxy().timeout(REQUEST_TIMEOUT);
        let client = client.build().expect("an HTTP client");
        Self { url: format!("http://{address}"), client }
    }

    /// The same, over TLS.
    pub fn over_tls(address: &str) -> Self {
        Self { url: format!("https://{address}"), ..Self::at(address) }
    }

    /// Answers what `path` is answered with, an error status too.
    ///
    /// # Errors
    /// [`Failure`] when nothing is answered.
    pub fn get(&self, path: &str) -> Result<Response, Failure> {
        let request = self.client.get(format!("{}{path}", self.url)).header(ACCEPT, ANY_MANIFEST);
        request.send().map_err(|e| failure(path, &e))
    }

    /// Whether `path` is answered with 200 now.
    pub fn is_ok(&self, path: &str) -> bool {
        self.get(path).is_ok_and(|response| response.status() == StatusCode::OK)
    }

    /// Pushes an image with everything that belongs to it.
    ///
    /// # Panics
    /// When the registry refuses a part of it.
    pub fn push(&self, image: &Image) {
        for blob in image.blobs() {
            self.push_blob(&image.repository, blob);
        }
        for manifest in image.manifests() {
            self.push_manifest(&image.repository, &manifest.digest.to_string(), manifest);
        }
        self.push_manifest(&image.repository, &image.tag, &image.index);
    }

    /// Pushes a blob.
    ///
    /// # Panics
    /// When the registry refuses it.
    pub fn push_blob(&self, repository: &str, blob: &Blob) {
        let location = self.begin(repository);
        let and = if location.contains('?') { '&' } else { '?' };
        let end = self.client.put(format!("{location}{and}digest={}", blob.digest));
        let end = end.body(blob.bytes.clone()).send();
        end.and_then(Response::error_for_status).expect("an upload ends");
    }

    /// Begins to push a blob, and leaves it at that.
    ///
    /// # Panics
    /// When the registry refuses it.
    pub fn begin_push(&self, repository: &str, content: Vec<u8>) {
        let piece = self.client.patch(self.begin(repository)).body(content).send();
        piece.and_then(Response::error_for_status).expect("a piece of an upload");
    }

    /// Where the next piece of a new upload goes.
    fn begin(&self, repository: &str) -> String {
        let start = self.client.post(format!("{}/v2/{repository}/blobs/uploads/", self.url)).send();
        let start = start.and_then(Response::error_for_status).expect("an upload starts");
        start.headers()[LOCATION].to_str().expect("a location in ASCII").to_owned()
    }

    /// Pushes a manifest under a tag or its digest.
    ///
    /// # Panics
    /// When the registry refuses it.
    pub fn push_manifest(&self, repository: &str, reference: &str, manifest: &Blob) {
        let url = format!("{}/v2/{repository}/manifests/{reference}", self.url);
        let put = self.client.put(url).header(CONTENT_TYPE, manifest.media_type);
        let put = put.body(manifest.bytes.clone()).send();
        put.and_then(Response::error_for_status).expect("a manifest is pushed");
    }

    /// Pulls what `docker pull` would: the tag, one platform's manifest, its config and layers.
    /// All content is checked; a cut body is continued where it ended, as docker and ctr do.
    ///
    /// # Errors
    /// [`Failure`] when any answer is not the image's content.
    pub fn pull(&self, image: &Image, platform: &Platform) -> Result<(), Failure> {
        self.manifest(&image.repository, &image.tag, &image.index)?;
        let manifest = &platform.manifest;
        self.manifest(&image.repository, &manifest.digest.to_string(), manifest)?;
        for blob in &platform.blobs {
            self.open_blob(&image.repository, &blob.digest)?.finish_with_resumes()?;
        }
        Ok(())
    }

    /// Gets a manifest, which must be `expected`.
    ///
    /// # Errors
    /// [`Failure`] when it is not.
    pub fn manifest(
        &self,
        repository: &str,
        reference: &str,
        expected: &Blob,
    ) -> Result<(), Failure> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let response = self.get(&path)?.error_for_status().map_err(|e| failure(&path, &e))?;
        let media_type = response.headers().get(CONTENT_TYPE).cloned();
        let bytes = response.bytes().map_err(|e| failure(&path, &e))?;
        if bytes != expected.bytes || media_type.is_none_or(|m| m != expected.media_type) {
            return Err(Failure(format!("{path}: not {}", expected.digest)));
        }
        Ok(())
    }

    /// Gets a whole blob in one answer and checks its digest. Gives the size of the content.
    ///
    /// # Errors
    /// [`Failure`] when the answer is an error, is cut, or has other content.
    pub fn blob(&self, repository: &str, digest: &Digest) -> Result<u64, Failure> {
        self.open_blob(repository, digest)?.finish()
    }

    /// Asks for a blob, and comes back when the answer has begun.
    ///
    /// # Errors
    /// [`Failure`] when there is no answer, or an error.
    pub fn open_blob(&self, repository: &str, digest: &Digest) -> Result<Download, Failure> {
        let url = format!("{}/v2/{repository}/blobs/{digest}", self.url);
        let response = request(&self.client, &url, 0)?;
        let verifier = Verifier::new(digest.clone());
        Ok(Download { client: self.client.clone(), url, verifier, response })
    }
}

/// A blob on its way.
pub struct Download {
    client: Client,
    url: String,
    verifier: Verifier,
    response: Response,
}

impl Download {
    /// Reads on to the end, and checks the digest. Gives the size of the content.
    ///
    /// # Errors
    /// [`Failure`] when the body is cut or has other content.
    pub fn finish(mut self) -> Result<u64, Failure> {
        self.read_to_end()?;
        self.check()
    }

    /// Reads on to the end, and continues a body that is cut where it ended, as docker and ctr do.
    /// Gives the number of times that it was cut.
    ///
    /// # Errors
    /// [`Failure`] when the blob cannot be continued or has other content.
    pub fn finish_with_resumes(mut self) -> Result<usize, Failure> {
        let mut cuts = 0;
        while let Err(cut) = self.read_to_end() {
            cuts += 1;
            if cuts > RESUMES_MAX {
                return Err(cut);
            }
            let offset = self.verifier.size_bytes();
            self.response = request(&self.client, &self.url, offset)?;
        }
        self.check()?;
        Ok(cuts)
    }

    /// Reads the next piece. Nothing is left when its size is 0.
    ///
    /// # Errors
    /// [`Failure`] when the body is cut.
    pub fn read(&mut self) -> Result<usize, Failure> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let len = self.response.read(&mut chunk).map_err(|e| failure(&self.url, &e))?;
        self.verifier.update(&chunk[..len]);
        Ok(len)
    }

    fn read_to_end(&mut self) -> Result<(), Failure> {
        while self.read()? > 0 {}
        Ok(())
    }

    fn check(self) -> Result<u64, Failure> {
        let size_bytes = self.verifier.size_bytes();
        self.verifier.finish().map_err(|mismatch| Failure(mismatch.to_string()))?;
        Ok(size_bytes)
    }
}

/// Asks for a blob from a byte on. Anything but an answer with exactly that is a failure.
fn request(client: &Client, url: &str, offset: u64) -> Result<Response, Failure> {
    let mut request = client.get(url);
    if offset > 0 {
        request = request.header(RANGE, format!("bytes={offset}-"));
    }
    let response = request.send().map_err(|e| failure(url, &e))?;
    let expected = if offset > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    if response.status() != expected {
        return Err(Failure(format!("{url} from byte {offset}: {}", response.status())));
    }
    Ok(response)
}

/// An error with its causes, which `Display` leaves out.
fn failure(what: &str, error: &dyn std::error::Error) -> Failure {
    let mut message = format!("{what}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    Failure(message)
}

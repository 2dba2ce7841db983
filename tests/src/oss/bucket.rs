//! Objects, uploads and listings.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::signature::encode;
use crate::{
    gcs::uploads_page,
    http::{Answer, Request},
};

/// OSS's own default, a tenth of S3's.
const PAGE_KEYS: usize = 100;
/// A page of uploads is shorter here, so that a test with a few of them has pages.
const PAGE_UPLOADS: usize = 2;

#[derive(Default)]
pub struct Bucket {
    pub objects: BTreeMap<String, Vec<u8>>,
    /// By their numbers: those that were neither completed nor aborted.
    pub uploads: BTreeMap<usize, Upload>,
    uploads_begun: usize,
    /// How many objects came with `x-oss-server-side-encryption`.
    pub encrypted: usize,
}

pub struct Upload {
    /// The object that it is to become.
    pub key: String,
    began: DateTime<Utc>,
    parts: BTreeMap<usize, Vec<u8>>,
}

impl Bucket {
    pub fn answer(&mut self, request: &Request) -> Answer {
        let key = request.path.trim_start_matches('/').to_owned();
        let upload = request.query.get("uploadId");
        match (&*request.method, upload) {
            ("GET", None) if request.query.contains_key("uploads") => self.list_uploads(request),
            ("GET", None) if key.is_empty() => self.list(request),
            ("GET" | "HEAD", None) => self.get(request, &key),
            ("PUT", None) => self.put(request, key),
            ("DELETE", None) => {
                self.objects.remove(&key);
                Answer::new(204, "")
            }
            ("POST", None) if request.query.contains_key("uploads") => self.begin(request, key),
            (method, Some(id)) => self.upload(method, id.parse().unwrap_or(0), key, request),
            _ => Answer::error(405, "MethodNotAllowed"),
        }
    }

    fn begin(&mut self, request: &Request, key: String) -> Answer {
        self.count_encrypted(request);
        self.uploads_begun += 1;
        let upload = Upload { key, began: Utc::now(), parts: BTreeMap::new() };
        self.uploads.insert(self.uploads_begun, upload);
        let (id, element) = (self.uploads_begun, "InitiateMultipartUploadResult");
        Answer::new(200, format!("<{element}><UploadId>{id}</UploadId></{element}>"))
    }

    fn upload(&mut self, method: &str, id: usize, key: String, request: &Request) -> Answer {
        let Some(upload) = self.uploads.get_mut(&id).filter(|upload| upload.key == key) else {
            return Answer::error(404, "NoSuchUpload");
        };
        match method {
            "PUT" => {
                let number = request.parameter("partNumber").parse().unwrap_or(0);
                upload.parts.insert(number, request.body.clone());
                Answer::new(200, "").with("ETag", "\"e\"")
            }
            "POST" => {
                let upload = self.uploads.remove(&id).expect("the upload");
                self.objects.insert(key, upload.parts.into_values().collect::<Vec<_>>().concat());
                let element = "CompleteMultipartUploadResult";
                Answer::new(200, format!("<{element}><ETag>\"e\"</ETag></{element}>"))
            }
            "DELETE" => {
                self.uploads.remove(&id);
                Answer::new(204, "")
            }
            _ => Answer::error(405, "MethodNotAllowed"),
        }
    }

    fn count_encrypted(&mut self, request: &Request) {
        self.encrypted += usize::from(request.headers.contains_key("x-oss-server-side-encryption"));
    }

    fn put(&mut self, request: &Request, key: String) -> Answer {
        if request.header("x-oss-forbid-overwrite") == "true" && self.objects.contains_key(&key) {
            return Answer::error(409, "FileAlreadyExists");
        }
        self.count_encrypted(request);
        self.objects.insert(key, request.body.clone());
        Answer::new(200, "").with("ETag", "\"e\"")
    }

    fn get(&self, request: &Request, key: &str) -> Answer {
        let Some(content) = self.objects.get(key) else { return Answer::error(404, "NoSuchKey") };
        // An object has no date of its own here, and is always new.
        let date = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
        Answer::content(request, content).with("Last-Modified", date).with("ETag", "\"e\"")
    }

    fn list(&self, request: &Request) -> Answer {
        let (prefix, delimiter) = (request.parameter("prefix"), request.parameter("delimiter"));
        let marker = request.parameter("continuation-token").to_owned();
        let is_encoded = request.parameter("encoding-type") == "url";
        let shown = |name: &str| if is_encoded { encode(name) } else { name.to_owned() };
        let (mut lines, mut last_group, mut next) = (Vec::new(), String::new(), None);
        for (key, content) in self.objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
            let rest = &key[prefix.len()..];
            let group = rest.find(delimiter).filter(|_| !delimiter.is_empty());
            let group = group.map(|at| format!("{prefix}{}", &rest[..at + delimiter.len()]));
            let name = group.clone().unwrap_or_else(|| key.clone());
            if name <= marker || (group.is_some() && name == last_group) {
                continue;
            }
            if lines.len() == PAGE_KEYS {
                next = Some(last_group.clone());
                break;
            }
            last_group.clone_from(&name);
            lines.push(match group {
                Some(group) => {
                    format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", shown(&group))
                }
                None => format!(
                    "<Contents><Key>{}</Key><LastModified>2026-11-23T09:00:00.000Z</LastModified>\
                     <ETag>\"e\"</ETag><Size>{}</Size><Type>Normal</Type>\
                     <StorageClass>Standard</StorageClass></Contents>",
                    shown(key),
                    content.len()
                ),
            });
        }
        let mut head = format!("<IsTruncated>{}</IsTruncated>", next.is_some());
        if is_encoded {
            head += "<EncodingType>url</EncodingType>";
        }
        if let Some(next) = next {
            let next = shown(&next);
            head += &format!("<NextContinuationToken>{next}</NextContinuationToken>");
        }
        let lines = lines.concat();
        Answer::new(200, format!("<ListBucketResult>{head}{lines}</ListBucketResult>"))
    }

    fn list_uploads(&self, request: &Request) -> Answer {
        let uploads = self.uploads.iter().map(|(id, upload)| (&*upload.key, *id, upload.began));
        Answer::new(200, uploads_page(uploads, request, PAGE_UPLOADS))
    }
}

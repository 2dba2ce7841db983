//! The bucket, and its XML interface.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat, Utc};

use super::Gcs;
use crate::http::{Answer, Request};

/// As many names as Google puts into one page of a listing.
const PAGE: usize = 1000;
/// A page of uploads is shorter here, so that a test with a few of them has pages.
const UPLOADS_PAGE: usize = 2;

#[derive(Default)]
pub struct Bucket {
    pub objects: BTreeMap<String, Vec<u8>>,
    /// By their numbers: those that were neither completed nor aborted.
    pub uploads: BTreeMap<usize, Upload>,
    uploads_begun: usize,
}

pub struct Upload {
    /// The object that it is to become.
    pub name: String,
    began: DateTime<Utc>,
    parts: BTreeMap<usize, Vec<u8>>,
}

impl Bucket {
    pub fn answer(&mut self, request: &Request) -> Answer {
        let path = request.path.strip_prefix('/').unwrap_or_default();
        let (bucket, name) = path.split_once('/').unwrap_or((path, ""));
        if bucket != Gcs::BUCKET {
            return Answer::error(404, "NoSuchBucket");
        }
        let if_absent = request.header("x-goog-if-generation-match") == "0";
        let upload = request.query.get("uploadId");
        match (&*request.method, upload) {
            ("GET", _) if request.query.contains_key("uploads") => self.list_uploads(request),
            ("GET", _) if name.is_empty() => self.list(request),
            ("GET" | "HEAD", None) => self.get(name, request),
            ("PUT", None) if if_absent && self.objects.contains_key(name) => {
                Answer::error(412, "PreconditionFailed")
            }
            ("PUT", None) => {
                self.objects.insert(name.to_owned(), request.body.clone());
                Answer::new(200, "").with("ETag", "\"1\"")
            }
            ("DELETE", None) => match self.objects.remove(name) {
                Some(_) => Answer::new(204, ""),
                None => Answer::error(404, "NoSuchKey"),
            },
            ("POST", None) if request.query.contains_key("uploads") => self.begin(name),
            (method, Some(id)) => self.upload(method, id.parse().unwrap_or(0), name, request),
            _ => Answer::error(400, "InvalidArgument"),
        }
    }

    fn begin(&mut self, name: &str) -> Answer {
        self.uploads_begun += 1;
        let upload = Upload { name: name.to_owned(), began: Utc::now(), parts: BTreeMap::new() };
        self.uploads.insert(self.uploads_begun, upload);
        let (id, element) = (self.uploads_begun, "InitiateMultipartUploadResult");
        Answer::new(200, format!("<{element}><UploadId>{id}</UploadId></{element}>"))
    }

    fn upload(&mut self, method: &str, id: usize, name: &str, request: &Request) -> Answer {
        let Some(upload) = self.uploads.get_mut(&id).filter(|upload| upload.name == name) else {
            return Answer::error(404, "NoSuchUpload");
        };
        match method {
            "PUT" => {
                let number: usize = request.parameter("partNumber").parse().unwrap_or_default();
                upload.parts.insert(number, request.body.clone());
                Answer::new(200, "").with("ETag", format!("\"{number}\""))
            }
            "POST" => {
                let upload = self.uploads.remove(&id).expect("the upload");
                let parts: Vec<_> = upload.parts.into_values().collect();
                let last = parts.len().saturating_sub(1);
                if parts[..last].iter().any(|part| part.len() < 5 << 20) {
                    return Answer::error(400, "EntityTooSmall");
                }
                self.objects.insert(name.to_owned(), parts.concat());
                let element = "CompleteMultipartUploadResult";
                Answer::new(200, format!("<{element}><ETag>\"1\"</ETag></{element}>"))
            }
            _ => {
                self.uploads.remove(&id);
                Answer::new(204, "")
            }
        }
    }

    fn get(&self, name: &str, request: &Request) -> Answer {
        let Some(content) = self.objects.get(name) else { return Answer::error(404, "NoSuchKey") };
        // An object has no date of its own here, and is always new.
        let date = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
        Answer::content(request, content).with("ETag", "\"1\"").with("Last-Modified", date)
    }

    fn list(&self, request: &Request) -> Answer {
        let (prefix, delimiter) = (request.parameter("prefix"), request.parameter("delimiter"));
        // What lies below a delimiter is one entry; an entry is a name and its size.
        let mut entries = BTreeMap::new();
        for (name, content) in &self.objects {
            let Some(rest) = name.strip_prefix(prefix) else { continue };
            match rest.split_once(delimiter).filter(|_| !delimiter.is_empty()) {
                Some((part, _)) => entries.insert(format!("{prefix}{part}{delimiter}"), None),
                None => entries.insert(name.clone(), Some(content.len())),
            };
        }
        let after = request.parameter("continuation-token");
        let mut rest = entries.into_iter().filter(|(name, _)| name.as_str() > after);
        let page: Vec<_> = rest.by_ref().take(PAGE).collect();
        let mut xml = "<ListBucketResult>".to_owned();
        for (name, size) in &page {
            xml += &match size {
                Some(size) => format!(
                    "<Contents><Key>{name}</Key><Size>{size}</Size><ETag>\"1\"</ETag>\
                     <LastModified>2026-11-23T09:00:00.000Z</LastModified></Contents>"
                ),
                None => format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"),
            };
        }
        if let (Some((last, _)), Some(_)) = (page.last(), rest.next()) {
            xml += &format!("<NextContinuationToken>{last}</NextContinuationToken>");
        }
        Answer::new(200, xml + "</ListBucketResult>")
    }

    fn list_uploads(&self, request: &Request) -> Answer {
        let uploads = self.uploads.iter().map(|(id, upload)| (&*upload.name, *id, upload.began));
        Answer::new(200, uploads_page(uploads, request, UPLOADS_PAGE))
    }
}

/// The answer to `GET ?uploads`, which is the same on Google Cloud Storage and on OSS: those whose
/// name begins with `prefix`, by name and number, behind the two markers.
pub fn uploads_page<'a>(
    uploads: impl Iterator<Item = (&'a str, usize, DateTime<Utc>)>,
    request: &Request,
    size: usize,
) -> String {
    let after = (
        request.parameter("key-marker"),
        request.parameter("upload-id-marker").parse().unwrap_or(usize::MAX),
    );
    let mut uploads: Vec<_> = uploads
        .filter(|(name, ..)| name.starts_with(request.parameter("prefix")))
        .filter(|(name, id, _)| (*name, *id) > after || after.0.is_empty())
        .collect();
    uploads.sort();
    let is_truncated = uploads.len() > size;
    uploads.truncate(size);
    let mut xml = format!("<ListMultipartUploadsResult><IsTruncated>{is_truncated}</IsTruncated>");
    if let Some((name, id, _)) = uploads.last() {
        xml += &format!(
            "<NextKeyMarker>{name}</NextKeyMarker><NextUploadIdMarker>{id}</NextUploadIdMarker>"
        );
    }
    for (name, id, began) in uploads {
        let began = began.to_rfc3339_opts(SecondsFormat::Millis, true);
        xml += &format!(
            "<Upload><Key>{name}</Key><UploadId>{id}</UploadId><Initiated>{began}</Initiated></Upload>"
        );
    }
    xml + "</ListMultipartUploadsResult>"
}

//! The JSON interface, as far as Google's own library for Python speaks it to put objects and to list
//! them: tokens in exchange for what the account signed, uploads in one request, listings.

use reqwest::Url;
use serde_json::{Value, json};

use super::{Gcs, Shared};
use crate::http::{Answer, Request};

const UPLOAD: &str = "/upload/storage/v1/b/";
const OBJECTS: &str = "/storage/v1/b/";
pub const TOKEN: &str = "/token";
/// What is given out for a token.
const ACCESS_TOKEN: &str = "access-token-of-the-account";

/// Answers what is asked by JSON, and nothing else.
pub fn answer(shared: &Shared, request: &Request) -> Option<Answer> {
    if request.path == TOKEN {
        return Some(give_token(shared, request));
    }
    let is_upload = request.path.starts_with(UPLOAD);
    if !is_upload && !request.path.starts_with(OBJECTS) {
        return None;
    }
    if request.header("authorization") != format!("Bearer {ACCESS_TOKEN}") {
        return Some(Answer::new(401, "{}"));
    }
    let of_bucket = |base| request.path == format!("{base}{}/o", Gcs::BUCKET);
    Some(match &*request.method {
        "POST" if of_bucket(UPLOAD) => upload(shared, request),
        "GET" if of_bucket(OBJECTS) => list(shared),
        _ => Answer::new(404, "{}"),
    })
}

/// What the account signed is as good as a password (RFC 7523).
fn give_token(shared: &Shared, request: &Request) -> Answer {
    let body = String::from_utf8_lossy(&request.body);
    let form = Url::parse(&format!("http://form/?{body}")).expect("a form");
    let assertion = form.query_pairs().find(|(name, _)| name == "assertion");
    let is_for_us = |claims: &Value| claims["aud"].as_str().is_some_and(|url| url.ends_with(TOKEN));
    match assertion.and_then(|(_, token)| shared.claims(&token)).is_some_and(|c| is_for_us(&c)) {
        true => respond(&json!({
            "access_token": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 3600,
        })),
        false => Answer::new(401, "{}"),
    }
}

/// A body of two parts: what is said of the object, and its content.
fn upload(shared: &Shared, request: &Request) -> Answer {
    let kind = request.header("content-type");
    let boundary = kind.split_once("boundary=").map_or("", |(_, boundary)| boundary);
    let delimiter = format!("--{}", boundary.trim_matches(['"', '\'']));
    let parts: Vec<_> = split(&request.body, delimiter.as_bytes())
        .filter_map(|part| split_once(part, b"\r\n\r\n"))
        .map(|(_, content)| content.strip_suffix(b"\r\n").unwrap_or(content))
        .collect();
    let [said, content] = parts[..] else { return Answer::new(400, "{}") };
    let said: Value = serde_json::from_slice(said).unwrap_or_default();
    let Some(name) = said["name"].as_str() else { return Answer::new(400, "{}") };
    shared.bucket().objects.insert(name.to_owned(), content.to_vec());
    respond(&object(name, content))
}

fn list(shared: &Shared) -> Answer {
    let bucket = shared.bucket();
    let items: Vec<_> =
        bucket.objects.iter().map(|(name, content)| object(name, content)).collect();
    respond(&json!({"kind": "storage#objects", "items": items}))
}

fn object(name: &str, content: &[u8]) -> Value {
    json!({
        "kind": "storage#object", "name": name, "bucket": Gcs::BUCKET, "generation": "1",
        "size": content.len().to_string(),
    })
}

fn respond(value: &Value) -> Answer {
    Answer::new(200, value.to_string()).with("Content-Type", "application/json")
}

fn split<'a>(bytes: &'a [u8], delimiter: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest?;
        let (piece, next) =
            split_once(bytes, delimiter).map_or((bytes, None), |(a, b)| (a, Some(b)));
        rest = next;
        Some(piece)
    })
}

fn split_once<'a>(bytes: &'a [u8], delimiter: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(delimiter.len()).position(|window| window == delimiter)?;
    Some((&bytes[..at], &bytes[at + delimiter.len()..]))
}

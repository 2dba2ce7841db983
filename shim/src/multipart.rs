//! Several ranges in one answer: `multipart/byteranges` (RFC 9110, section 14.6).

use std::{
    hash::{BuildHasher, RandomState},
    ops::Range,
};

use hyper::header::HeaderValue;

use crate::{
    answer::{ascii, content_range},
    body::Body,
};

/// The type, length and body of an answer with several ranges. `body` gives the bytes of each.
pub fn of(
    parts: Vec<Range<u64>>,
    size_bytes: u64,
    media_type: &HeaderValue,
    mut body: impl FnMut(Option<Range<u64>>) -> Body,
) -> (HeaderValue, Option<u64>, Body) {
    // Nobody can put it into a blob beforehand.
    let boundary = format!("{:016x}", RandomState::new().hash_one(size_bytes));
    let media_type = media_type.to_str().unwrap_or_default();
    let mut bodies = Vec::new();
    let mut length = 0;
    let mut line_end = "";
    for part in parts {
        let head = format!(
            "{line_end}--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: {}\r\n\r\n",
            content_range(&part, size_bytes)
        );
        length += head.len() as u64 + (part.end - part.start);
        bodies.push(Body::Memory(head.into()));
        bodies.push(body(Some(part)));
        line_end = "\r\n";
    }
    let end = format!("\r\n--{boundary}--\r\n");
    length += end.len() as u64;
    bodies.push(Body::Memory(end.into()));
    let media_type = format!("multipart/byteranges; boundary={boundary}");
    (ascii(&media_type), Some(length), Body::Parts(bodies))
}

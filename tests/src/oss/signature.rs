//! Who may ask: signatures of version 4.

use sha2::{Digest, Sha256};

use super::Oss;
use crate::http::{Answer, Request};

/// What a request is answered that has no business here.
pub fn refuse(request: &Request) -> Option<Answer> {
    if request.headers.keys().any(|name| name.starts_with("x-amz-")) {
        return Some(Answer::error(400, "NotOurHeader"));
    }
    let unsigned = || Answer::error(403, "AccessDenied");
    let authorization = request.header("authorization");
    let Some(authorization) = authorization.strip_prefix("OSS4-HMAC-SHA256 ") else {
        return Some(unsigned());
    };
    let field = |name: &str| {
        let fields = authorization.split(',').map(str::trim);
        fields.filter_map(|field| field.split_once('=')).find(|(n, _)| *n == name).map(|(_, v)| v)
    };
    let (Some(credential), Some(signature)) = (field("Credential"), field("Signature")) else {
        return Some(unsigned());
    };
    let (id, scope) = credential.split_once('/').unwrap_or_default();
    if id != Oss::KEY_ID {
        return Some(Answer::error(403, "InvalidAccessKeyId"));
    }
    let additional = field("AdditionalHeaders").unwrap_or_default();
    let date = request.header("x-oss-date");
    let first = format!("aliyun_v4{}", Oss::KEY_SECRET).into_bytes();
    let key = scope.split('/').fold(first, |key, part| hmac(&key, part.as_bytes()));
    let is_of = |bucket| {
        let canonical = hex(&Sha256::digest(canonical_request(request, bucket, additional)));
        let text = format!("OSS4-HMAC-SHA256\n{date}\n{scope}\n{canonical}");
        hex(&hmac(&key, text.as_bytes())) == signature
    };
    if !scope.ends_with("/cn-hangzhou/oss/aliyun_v4_request") {
        let body = "<Error><Code>InvalidArgument</Code><Message>Invalid signing region in \
                    Authorization header.</Message><EC>0002-00000226</EC></Error>";
        return Some(Answer::new(400, body));
    }
    if is_of(Oss::BUCKET) {
        None
    } else if is_of(Oss::MISSING_BUCKET) {
        Some(Answer::error(404, "NoSuchBucket"))
    } else {
        Some(Answer::error(403, "SignatureDoesNotMatch"))
    }
}

fn canonical_request(request: &Request, bucket: &str, additional: &str) -> String {
    let query = request.query.iter().map(|(name, value)| match &**value {
        "" => encode(name),
        value => format!("{}={}", encode(name), encode(value)),
    });
    let is_signed = |name: &str| {
        name.starts_with("x-oss-")
            || ["content-type", "content-md5"].contains(&name)
            || additional.split(';').any(|additional| additional == name)
    };
    let headers = request.headers.iter().filter(|(name, _)| is_signed(name));
    let headers: String = headers.map(|(name, value)| format!("{name}:{value}\n")).collect();
    let path = encode(&format!("/{bucket}{}", request.path)).replace("%2F", "/");
    format!(
        "{}\n{path}\n{}\n{headers}\n{additional}\n{}",
        request.method,
        query.collect::<Vec<_>>().join("&"),
        request.header("x-oss-content-sha256"),
    )
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    assert!(key.len() <= 64, "a key that fits into a block");
    let pad = |byte: u8| -> Vec<u8> {
        (0..64).map(|i| key.get(i).copied().unwrap_or(0) ^ byte).collect()
    };
    let inner = Sha256::digest([&pad(0x36), text].concat());
    Sha256::digest([&pad(0x5c), &inner[..]].concat()).to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

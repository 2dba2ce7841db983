//! The media type of a manifest, which no storage keeps: its own word, else its shape.

use hyper::header::HeaderValue;
use serde::{Deserialize, de::IgnoredAny};

/// The type of what does not say what it is.
pub const UNKNOWN: HeaderValue = HeaderValue::from_static("application/octet-stream");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

/// The media type of a manifest.
pub fn of(content: &[u8]) -> HeaderValue {
    let Ok(shape) = serde_json::from_slice::<Shape>(content) else {
        return UNKNOWN;
    };
    // A manifest is foreign input: it does not get to be a type that a browser would run.
    let own = shape.media_type.filter(|own| own.starts_with("application/"));
    let by_shape = match (shape.schema_version, shape.manifests, shape.config, shape.layers) {
        (Some(1), ..) => "application/vnd.docker.distribution.manifest.v1+prettyjws",
        (_, Some(_), ..) => "application/vnd.oci.image.index.v1+json",
        (_, _, Some(_), Some(_)) => "application/vnd.oci.image.manifest.v1+json",
        _ => return own.map_or(UNKNOWN, |own| header(&own)),
    };
    own.map_or(HeaderValue::from_static(by_shape), |own| header(&own))
}

/// How deep the brackets of a manifest are nested. Only those of a JSON text mean anything.
pub fn depth(content: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut is_text, mut is_escaped) = (false, false);
    for byte in content {
        match (is_text, byte) {
            (true, _) if is_escaped => is_escaped = false,
            (true, b'\\') => is_escaped = true,
            (_, b'"') => is_text = !is_text,
            (false, b'{' | b'[') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn header(media_type: &str) -> HeaderValue {
    HeaderValue::from_str(media_type).unwrap_or(UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_media_type_is_the_manifests_own_or_its_shapes() {
        for (content, expected) in [
            (
                r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{},"layers":[]}"#,
                "application/vnd.docker.distribution.manifest.v2+json",
            ),
            (r#"{"schemaVersion":2,"manifests":[]}"#, "application/vnd.oci.image.index.v1+json"),
            (
                r#"{"schemaVersion":2,"config":{},"layers":[]}"#,
                "application/vnd.oci.image.manifest.v1+json",
            ),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#,
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
            ),
            (r#"{"schemaVersion":2,"mediaType":"text/html"}"#, "application/octet-stream"),
            (r#"{"mediaType":7}"#, "application/octet-stream"),
            ("no json", "application/octet-stream"),
        ] {
            assert_eq!(of(content.as_bytes()), expected, "{content}");
        }
    }

    #[test]
    fn brackets_in_texts_do_not_count() {
        for (content, expected) in [
            ("", 0),
            ("[]]]]{}", 1),
            (r#"{"a":[{"b":1},{}],"c":{}}"#, 3),
            (r#"["[[[", "\"[[[", "\\", [1]]"#, 2),
        ] {
            assert_eq!(depth(content.as_bytes()), expected, "{content}");
        }
        assert_eq!(depth("[".repeat(1 << 20).as_bytes()), 1 << 20);
    }
}

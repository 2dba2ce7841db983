//! `Range` of one request, as RFC 9110 section 14 has it.

use std::ops::Range;

/// What part of a blob is asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of it: there is no `Range`, or one that may be ignored.
    Whole,
    /// These bytes, of which there is at least one.
    Part(Range<u64>),
    /// Only bytes that the blob has not.
    Unsatisfiable,
}

/// Reads a `Range` header for content of `size_bytes`.
///
/// Several ranges, other units and what cannot be read are ignored, which the RFC allows: no
/// container client sends them, and an answer with everything is right for each.
pub fn select(header: Option<&str>, size_bytes: u64) -> Selection {
    let Some(spec) = header.and_then(|header| header.strip_prefix("bytes=")) else {
        return Selection::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else { return Selection::Whole };
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => return Selection::Whole,
        (Some(first), Some(last)) => first..last.saturating_add(1).min(size_bytes),
        (Some(first), None) if last.is_empty() => first..size_bytes,
        (None, Some(suffix)) if first.is_empty() => size_bytes.saturating_sub(suffix)..size_bytes,
        _ => return Selection::Whole,
    };
    if range.is_empty() { Selection::Unsatisfiable } else { Selection::Part(range) }
}

/// Digits only: `parse` alone would also take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_the_rfc() {
        use Selection::{Part, Unsatisfiable, Whole};
        for (header, selection) in [
            ("bytes=0-0", Part(0..1)),
            ("bytes=0-9", Part(0..10)),
            ("bytes=5-", Part(5..10)),
            ("bytes=5-99", Part(5..10)),
            ("bytes=5-18446744073709551615", Part(5..10)),
            ("bytes=-3", Part(7..10)),
            ("bytes=-99", Part(0..10)),
            ("bytes=-0", Unsatisfiable),
            ("bytes=10-", Unsatisfiable),
            ("bytes=10-12", Unsatisfiable),
            ("bytes=5-4", Whole),
            ("bytes=0-1,3-4", Whole),
            ("bytes=-", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=a-b", Whole),
            ("bytes=99999999999999999999-", Whole),
            ("items=0-1", Whole),
        ] {
            assert_eq!(select(Some(header), 10), selection, "{header}");
        }
        assert_eq!(select(None, 10), Whole);
        assert_eq!(select(Some("bytes=0-"), 0), Unsatisfiable);
    }
}

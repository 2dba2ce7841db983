//! `Range` of one request, as RFC 9110 section 14 has it.

use std::ops::Range;

/// How many ranges a request may ask for. Each part of an answer costs a header of its own, and
/// many tiny ones cost more than all of the blob.
const RANGES_MAX: usize = 16;

/// What part of a blob is asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of it: there is no `Range`, or one that may be ignored.
    Whole,
    /// These bytes: at least one range, none of which is empty, overlaps or touches another.
    Parts(Vec<Range<u64>>),
    /// Only bytes that the blob has not, or more ranges than anybody needs.
    Unsatisfiable,
}

/// Reads a `Range` header for content of `size_bytes`.
///
/// Other units and what cannot be read are ignored, which section 14.2 allows: an answer with
/// everything is right for each. A range that ends before it begins has no bytes. Ranges that
/// overlap or touch become one, so that no byte is sent twice (section 15.3.7.2), and more than
/// [`RANGES_MAX`] are refused (section 15.5.17).
pub fn select(header: Option<&str>, size_bytes: u64) -> Selection {
    let Some((unit, specs)) = header.and_then(|header| header.split_once('=')) else {
        return Selection::Whole;
    };
    if !unit.eq_ignore_ascii_case("bytes") {
        return Selection::Whole;
    }
    let specs = || specs.split(',').map(|spec| spec.trim_matches([' ', '\t']));
    let specs = || specs().filter(|spec| !spec.is_empty());
    if specs().count() > RANGES_MAX {
        return Selection::Unsatisfiable;
    }
    let mut parts = Vec::new();
    for spec in specs() {
        match parse(spec, size_bytes) {
            Some(range) if range.is_empty() => {}
            Some(range) => add(&mut parts, range),
            None => return Selection::Whole,
        }
    }
    match (specs().next(), parts.is_empty()) {
        (None, _) => Selection::Whole,
        (_, true) => Selection::Unsatisfiable,
        (_, false) => Selection::Parts(parts),
    }
}

/// The bytes that `5-9`, `5-` or `-5` stand for, which may be none; `None` when it is no range.
fn parse(spec: &str, size_bytes: u64) -> Option<Range<u64>> {
    let (first, last) = spec.split_once('-')?;
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => Some(first..first),
        (Some(first), Some(last)) => Some(first..last.saturating_add(1).min(size_bytes)),
        (Some(first), None) if last.is_empty() => Some(first..size_bytes),
        (None, Some(suffix)) if first.is_empty() => {
            Some(size_bytes.saturating_sub(suffix)..size_bytes)
        }
        _ => None,
    }
}

/// Adds a range, in the place of the first that it overlaps or touches.
fn add(parts: &mut Vec<Range<u64>>, mut range: Range<u64>) {
    let mut place = parts.len();
    // What has grown may touch others.
    while let Some(met) =
        parts.iter().position(|part| part.start <= range.end && range.start <= part.end)
    {
        let part = parts.remove(met);
        range = part.start.min(range.start)..part.end.max(range.end);
        place = place.min(met);
    }
    parts.insert(place.min(parts.len()), range);
}

/// Digits only: `parse` alone would also take a sign. What is too large lies behind every end.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_the_rfc() {
        use Selection::{Unsatisfiable, Whole};
        let part = |range| Selection::Parts(vec![range]);
        let parts = |ranges: &[Range<u64>]| Selection::Parts(ranges.to_vec());
        for (header, selection) in [
            ("bytes=0-0", part(0..1)),
            ("bytes=0-9", part(0..10)),
            ("Bytes=5-", part(5..10)),
            ("bytes=5-99", part(5..10)),
            ("bytes=5-18446744073709551615", part(5..10)),
            ("bytes=5-99999999999999999999", part(5..10)),
            ("bytes=-3", part(7..10)),
            ("bytes=-99", part(0..10)),
            ("bytes=-99999999999999999999", part(0..10)),
            ("bytes=-0", Unsatisfiable),
            ("bytes=10-", Unsatisfiable),
            ("bytes=10-12", Unsatisfiable),
            ("bytes=99999999999999999999-", Unsatisfiable),
            ("bytes=10-,-0, 12-13", Unsatisfiable),
            ("bytes=0-1,3-4", parts(&[0..2, 3..5])),
            ("bytes=-1 ,, 3-4,\t10-", parts(&[9..10, 3..5])),
            ("bytes=0-1,2-4", part(0..5)),
            ("bytes=0-8,0-8,0-8", part(0..9)),
            ("bytes=0-0,4-4,8-8,3-5", parts(&[0..1, 3..6, 8..9])),
            ("bytes=4-4,0-0,1-3", part(0..5)),
            ("bytes=5-4", Unsatisfiable),
            ("bytes=0-1,5-4", part(0..2)),
            ("bytes=", Whole),
            ("bytes=,", Whole),
            ("bytes=-", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=1--2", Whole),
            ("bytes=a-b", Whole),
            ("bytes 0-1", Whole),
            ("items=0-1", Whole),
        ] {
            assert_eq!(select(Some(header), 10), selection, "{header}");
        }
        assert_eq!(select(None, 10), Whole);
        assert_eq!(select(Some("bytes=0-"), 0), Unsatisfiable);

        let many = |count: usize| format!("bytes={}", "0-0,".repeat(count));
        assert_eq!(select(Some(&many(RANGES_MAX)), 10), part(0..1));
        assert_eq!(select(Some(&many(RANGES_MAX + 1)), 10), Unsatisfiable);
    }
}

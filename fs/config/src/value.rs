//! What a text of the configuration means: one function for each type of value.
//!
//! Their errors are whole sentences for the operator. Those of types that can hold a secret
//! (a password, but also a URL or a header) do not quote the text.

use std::{path::PathBuf, time::Duration};

use crate::Secret;

/// Any text.
pub(crate) fn string(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// Any text, which must not be shown.
pub(crate) fn secret(text: &str) -> Result<Secret, String> {
    Ok(Secret::new(text.to_owned()))
}

/// A file, relative to the directory the program runs in if it is not absolute.
pub(crate) fn path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

/// A path that means the same wherever the program runs.
pub(crate) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(expected("an absolute path", text)) }
}

/// A boolean in any spelling that YAML ever had.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match &*text.to_ascii_lowercase() {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" | "off" => Ok(false),
        _ => Err(expected("true or false", text)),
    }
}

/// A duration as Go writes it, `1h30m`; a bare number is nanoseconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = match text.parse() {
        Ok(nanoseconds) => Some(Duration::from_nanos(nanoseconds)),
        Err(_) => duration_with_units(text),
    };
    duration.ok_or_else(|| expected("a duration such as 1h30m", text))
}

fn duration_with_units(text: &str) -> Option<Duration> {
    let is_of_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c| !is_of_number(c))?);
        let (unit, tail) = tail.split_at(tail.find(is_of_number).unwrap_or(tail.len()));
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

/// A number of bytes, bare or with a unit: `50GiB`, `50G` (which is the same), `50GB`.
pub(crate) fn size_bytes(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| expected("a size such as 50GiB", text))
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_bytes = match &*unit.trim_start().to_ascii_lowercase() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000_u64.pow(2),
        "gb" => 1000_u64.pow(3),
        "tb" => 1000_u64.pow(4),
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_bytes)
}

/// An address to listen on; one without a host means every one of the machine's.
pub(crate) fn listen_address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some(("", port)) if is_port(port) => Ok(format!("0.0.0.0:{port}")),
        Some((host, port)) if is_host(host) && is_port(port) => Ok(text.to_owned()),
        _ => Err(expected("an address such as 0.0.0.0:5000", text)),
    }
}

/// `http://host[:port]` or `https://host[:port]`, returned without a trailing slash.
pub(crate) fn url(text: &str) -> Result<String, String> {
    if text.contains('@') {
        return Err("a URL here takes no user name and password, because logs name it; those \
                    for an upstream go into its username and password"
            .to_owned());
    }
    let malformed = || {
        "expected a URL such as https://registry.example.com:5000, and no path \
                        in it"
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(malformed)?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    match &*scheme.to_ascii_lowercase() {
        scheme @ ("http" | "https") if host_and_port(authority).is_ok() => {
            Ok(format!("{scheme}://{authority}"))
        }
        _ => Err(malformed().to_owned()),
    }
}

/// Like [`url`], with a path behind it, returned without a trailing slash.
pub(crate) fn url_with_path(text: &str) -> Result<String, String> {
    let malformed = "expected a URL such as https://keystone.example.com:5000/v3, with no user \
                     name or password in it";
    let authority_at = text.find("://").map_or(0, |at| at + 3);
    let path_at = text[authority_at..].find('/').map_or(text.len(), |at| authority_at + at);
    let (origin, path) = text.split_at(path_at);
    let is_of_path = |c: char| c.is_ascii_graphic() && !"?#@\\\"<>".contains(c);
    match url(origin) {
        Ok(origin) if path.chars().all(is_of_path) => {
            Ok(format!("{origin}{}", path.trim_end_matches('/')))
        }
        _ => Err(malformed.to_owned()),
    }
}

/// Like [`url`], where a bare `host[:port]` gets `scheme`.
pub(crate) fn url_or_host(text: &str, scheme: &str) -> Result<String, String> {
    if text.contains("://") { url(text) } else { url(&format!("{scheme}://{text}")) }
}

/// A host's name or address, with or without a port.
pub(crate) fn host_and_port(text: &str) -> Result<String, String> {
    let is_valid = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => is_host(host) && is_port(port),
        _ => is_host(text),
    };
    if is_valid { Ok(text.to_owned()) } else { Err(expected("a host such as quay.io", text)) }
}

fn is_host(text: &str) -> bool {
    if let Some(address) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !text.is_empty() && text.bytes().all(is_allowed)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// What was expected, and what was found.
pub(crate) fn expected(what: &str, found: &str) -> String {
    format!("expected {what}, found {found:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, nanoseconds) in [
            ("1h30m", 5_400_000_000_000),
            ("168h", 604_800_000_000_000),
            ("500ms", 500_000_000),
            ("1.5s", 1_500_000_000),
            ("1µs1ns", 1_001),
            ("1000", 1_000),
            ("0", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanoseconds)), "{text}");
        }
        for bad in ["", "1d", "1 h", "h", "-1s", "1h30", ".", "1.2.3s", "1e3s", "inf", "9e99h"] {
            assert!(duration(bad).is_err(), "{bad:?} was taken for a duration");
        }
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        for (text, bytes) in [
            ("0", 0),
            ("12345", 12_345),
            ("1B", 1),
            ("1kB", 1_000),
            ("2 GB", 2_000_000_000),
            ("2G", 2 << 30),
            ("2gib", 2 << 30),
            ("3TiB", 3 << 40),
        ] {
            assert_eq!(size_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GiB", "1.5GiB", "-1", "1PB", "1%", "20000000TiB"] {
            assert!(size_bytes(bad).is_err(), "{bad:?} was taken for a size");
        }
    }

    #[test]
    fn urls_are_a_scheme_a_host_and_a_port() {
        for (text, url_of_it) in [
            ("https://a.example.com", "https://a.example.com"),
            ("HTTP://a:5000/", "http://a:5000"),
            ("https://[::1]", "https://[::1]"),
            ("https://[::1]:443", "https://[::1]:443"),
        ] {
            assert_eq!(url(text).as_deref(), Ok(url_of_it));
        }
        for bad in [
            "a",
            "ftp://a",
            "https://",
            "https:///",
            "https://a//",
            "https://a/b",
            "https://a?b",
            "https://a:",
            "https://a:+1",
            "https://a:65536",
            "https://:443",
            "https://u:p@a",
            "https://a b",
            "https://[::1",
            "https://[a]",
        ] {
            assert!(url(bad).is_err(), "{bad:?} was taken for a URL");
        }
    }
}

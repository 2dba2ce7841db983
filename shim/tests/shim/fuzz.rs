//! What the fuzzer in `fuzz/` looks for, with the corpus that it keeps and with random texts.

use std::{fs, path::Path};

use larder_shim::fuzz;
use proptest::prelude::*;

type Target = (&'static str, fn(&str));

/// The fuzzer's targets.
const TARGETS: [Target; 4] = [
    ("path", fuzz::path),
    ("reference", fuzz::reference),
    ("range", ranges),
    ("challenge", fuzz::challenge),
];

fn ranges(header: &str) {
    for size_bytes in [0, 1, 10, 1 << 20, u64::MAX] {
        fuzz::range(header, size_bytes);
    }
}

#[test]
fn the_corpus_finds_nothing() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (target, check) in TARGETS {
        let inputs: Vec<_> = fs::read_dir(corpus.join(target)).unwrap().collect();
        assert!(inputs.len() >= 8, "{target} has {} inputs", inputs.len());
        for input in inputs {
            check(&String::from_utf8_lossy(&fs::read(input.unwrap().path()).unwrap()));
        }
    }
}

/// Texts of the words that mean something to each target, and of anything between them.
fn texts() -> impl Strategy<Value = String> {
    let digest = format!("sha256:{}", "0a".repeat(32));
    let words = [
        "/",
        "/v2/",
        "a",
        "library/alpine",
        "manifests",
        "blobs",
        "tags/list",
        "referrers",
        "..",
        ".",
        "_",
        "__",
        "%2f",
        "\0",
        "latest",
        &digest,
        "sha512:",
        "bytes=",
        "0-0",
        "5-",
        "-5",
        ",",
        " ",
        "\t",
        "99999999999999999999",
        "Bearer ",
        "Basic",
        "realm=",
        "\"",
        "\\",
        "=",
        "https://a",
        "ä",
    ];
    let word = prop::sample::select(words.map(str::to_owned).to_vec());
    prop::collection::vec(prop_oneof![8 => word, 1 => any::<String>()], 0..12)
        .prop_map(|words| words.concat())
}

/// The same as they come: those that a parser takes are rare among random ones.
fn requests() -> impl Strategy<Value = String> {
    let name = "[a-z0-9]{1,4}(([._]|__|-{1,3})[a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,4}){0,3}";
    let reference = prop_oneof!["[A-Za-z0-9_][A-Za-z0-9._-]{0,8}", "sha256:[0-9a-f]{64}"];
    (name, "manifests|blobs|referrers", reference, ".{0,2}")
        .prop_map(|(name, kind, reference, tail)| format!("/v2/{name}/{kind}/{reference}{tail}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_text_breaks_a_target(text in texts(), request in requests()) {
        for (_, check) in TARGETS {
            check(&text);
        }
        fuzz::path(&request);
        let specs = text.replace("bytes=", "");
        ranges(&format!("bytes={specs}"));
    }
}

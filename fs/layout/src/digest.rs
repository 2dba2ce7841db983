//! Digests as the OCI image spec defines them (descriptor.md, "Digests"), and their check.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256, Sha512};

/// A registered hash algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 64 hexadecimal digits.
    Sha256,
    /// SHA-512, 128 hexadecimal digits.
    Sha512,
}

impl Algorithm {
    /// Every algorithm, in the order in which directories list them.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// The name in front of the colon, and of the directory: `sha256`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.as_str() == text)
            .ok_or_else(|| DigestError::Algorithm(text.to_owned()))
    }
}

/// The digest of a blob: `sha256:` and 64 lower-case hexadecimal digits, or its sha512 twin.
///
/// Only a well-formed digest can be built, so its text is safe in a path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

/// Why a text is no digest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The part in front of the colon is not a registered algorithm.
    #[error("digest algorithm {0:?} is not supported: use sha256 or sha512")]
    Algorithm(String),
    /// There is no colon, or what follows is not the right number of lower-case hex digits.
    #[error("{0:?} is not a digest: expected <algorithm>:<lower-case hex>")]
    Format(String),
}

impl Digest {
    /// A digest from the two components of its path, `sha256` and the hex digits.
    ///
    /// # Errors
    /// [`DigestError::Format`] when `hex` has the wrong length or a digit out of `0-9a-f`.
    pub fn new(algorithm: Algorithm, hex: &str) -> Result<Self, DigestError> {
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        // All of them, whatever the first is: the processor then looks at many at once.
        let are_hex = hex.bytes().fold(true, |all, byte| all & is_hex(byte));
        if hex.len() != algorithm.hex_len() || !are_hex {
            return Err(DigestError::Format(format!("{}:{hex}", algorithm.as_str())));
        }
        Ok(Self { algorithm, hex: hex.into() })
    }

    /// The digest of `content`.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// The algorithm in front of the colon.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hexadecimal digits behind the colon.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm.as_str())?;
        f.write_str(":")?;
        f.write_str(&self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) =
            text.split_once(':').ok_or_else(|| DigestError::Format(text.to_owned()))?;
        Self::new(algorithm.parse()?, hex)
    }
}

/// Content did not hash to the name it was published or served under.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("content of {size_bytes} bytes hashes to {actual}, not to {expected}")]
pub struct Mismatch {
    /// The digest the content should have had.
    pub expected: Digest,
    /// The digest it has.
    pub actual: Digest,
    /// How much content was hashed.
    pub size_bytes: u64,
}

/// Checks content against a digest while it passes.
pub struct Verifier {
    expected: Digest,
    hasher: Hasher,
    size_bytes: u64,
}

impl Verifier {
    /// A verifier that has seen no content yet.
    pub fn new(expected: Digest) -> Self {
        let hasher = Hasher::new(expected.algorithm);
        Self { expected, hasher, size_bytes: 0 }
    }

    /// Hashes the next piece of the content.
    pub fn update(&mut self, content: &[u8]) {
        self.hasher.update(content);
        self.size_bytes += content.len() as u64;
    }

    /// How much content was hashed so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Compares what was hashed with the expected digest.
    ///
    /// # Errors
    /// [`Mismatch`] when they differ.
    pub fn finish(self) -> Result<(), Mismatch> {
        let actual = self.hasher.finish();
        if actual == self.expected {
            return Ok(());
        }
        Err(Mismatch { expected: self.expected, actual, size_bytes: self.size_bytes })
    }
}

/// Hashes content while it passes. A clone goes on by itself.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// A hasher that has seen no content yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Hashes the next piece of the content.
    pub fn update(&mut self, content: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(content),
            State::Sha512(hasher) => hasher.update(content),
        }
    }

    /// The digest of what was hashed.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hasher) => from_bytes(Algorithm::Sha256, &hasher.finalize()),
            State::Sha512(hasher) => from_bytes(Algorithm::Sha512, &hasher.finalize()),
        }
    }
}

fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Digest { algorithm, hex: hex.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    // FIPS 180-2, appendix B.1 and C.1: the digests of "abc".
    const ABC_SHA256: &str =
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const ABC_SHA512: &str = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

    #[test]
    fn known_content_has_the_published_digest() {
        for text in [ABC_SHA256, ABC_SHA512] {
            let digest: Digest = text.parse().unwrap();
            assert_eq!(Digest::of(digest.algorithm(), b"abc"), digest);
            assert_eq!(digest.to_string(), text);

            let mut verifier = Verifier::new(digest);
            verifier.update(b"a");
            verifier.update(b"bc");
            assert_eq!(verifier.finish(), Ok(()));
        }
    }

    #[test]
    fn other_content_is_a_mismatch_that_says_what_it_is() {
        let expected: Digest = ABC_SHA256.parse().unwrap();
        let mut verifier = Verifier::new(expected.clone());
        verifier.update(b"abd");
        let actual = Digest::of(Algorithm::Sha256, b"abd");
        assert_eq!(verifier.finish(), Err(Mismatch { expected, actual, size_bytes: 3 }));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let upper = ABC_SHA256.to_uppercase().replace("SHA256", "sha256");
        let short = &ABC_SHA256[..70];
        let traversal = format!("sha256:../{}", &ABC_SHA256[10..]);
        for text in [
            "",
            "sha256",
            "sha256:",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &upper,
            short,
            &traversal,
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text:?} was taken for a digest");
        }
    }
}

//! A digest as the index keeps it: 40 bytes, where its text takes 100.

use larder_layout::{Algorithm, Digest};

/// The bytes of a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    Sha256([u8; 32]),
    /// In a box, so that the many do not pay for the few.
    Sha512(Box<[u8; 64]>),
}

impl Key {
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => &**bytes,
        }
    }

    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        Some(match algorithm {
            Algorithm::Sha256 => Self::Sha256(bytes.try_into().ok()?),
            Algorithm::Sha512 => Self::Sha512(Box::new(bytes.try_into().ok()?)),
        })
    }

    pub fn digest(&self) -> Digest {
        let hex: String = self.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        Digest::new(self.algorithm(), &hex).expect("every byte is two lower-case digits")
    }
}

impl From<&Digest> for Key {
    fn from(digest: &Digest) -> Self {
        let value = |digit: u8| match digit {
            b'0'..=b'9' => digit - b'0',
            _ => digit - b'a' + 10,
        };
        let pairs = digest.hex().as_bytes().as_chunks().0.iter();
        let bytes: Vec<u8> = pairs.map(|&[high, low]| value(high) << 4 | value(low)).collect();
        Self::from_bytes(digest.algorithm(), &bytes).expect("a digest has its algorithm's length")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_for_its_digest() {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"abc");
            assert_eq!(Key::from(&digest).digest(), digest);
        }
        assert_eq!(size_of::<Key>(), 40);
    }
}

//! Hashes of static content's tree, and the content's name: the root and its function.

use std::fmt;
use std::str::FromStr;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::keys::write_hex;

/// The hash functions that every implementation of the RFC has. RFC 7574 7.6: MUST support SHA-1 and
/// SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MerkleFunction {
    /// 20 bytes. Weak: for content that was named so elsewhere.
    Sha1,
    /// 32 bytes: the RFC's default.
    Sha256,
}

impl MerkleFunction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sha1, Self::Sha256];

    /// Bytes of a hash.
    pub const fn hash_bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
        }
    }

    /// The hash of a chunk.
    pub fn chunk(self, bytes: &[u8]) -> MerkleHash {
        match self {
            Self::Sha1 => MerkleHash::widened(&Sha1::digest(bytes)),
            Self::Sha256 => MerkleHash::widened(&Sha256::digest(bytes)),
        }
    }

    /// The hash of a node over its two children. RFC 7574 §5.1: over two empty ones it is empty, to save
    /// computation.
    pub fn parent(self, left: MerkleHash, right: MerkleHash) -> MerkleHash {
        if left.is_empty() && right.is_empty() {
            return MerkleHash::EMPTY;
        }
        let len = self.hash_bytes();
        let mut both = [0; 64];
        both[..len].copy_from_slice(left.as_bytes(self));
        both[len..2 * len].copy_from_slice(right.as_bytes(self));
        self.chunk(&both[..2 * len])
    }
}

/// The hash of a node; those of SHA-1 are zeros from byte 20 on.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct MerkleHash(pub(super) [u8; 32]);

impl MerkleHash {
    /// That of a node without content: all zeros.
    pub const EMPTY: Self = Self([0; 32]);

    /// The hash with these bytes; `None` if that is not the function's length.
    pub fn from_bytes(function: MerkleFunction, bytes: &[u8]) -> Option<Self> {
        (bytes.len() == function.hash_bytes()).then(|| Self::widened(bytes))
    }

    /// Its bytes, as many as the function has.
    pub fn as_bytes(&self, function: MerkleFunction) -> &[u8] {
        &self.0[..function.hash_bytes()]
    }

    /// Its bytes with the zeros that follow those of SHA-1, as they are kept on disk.
    pub fn as_wide_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hash that was kept so; `None` if these are not 32 bytes.
    pub fn from_wide_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Whether it stands for no content at all.
    pub fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    fn widened(bytes: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash[..bytes.len()].copy_from_slice(bytes);
        Self(hash)
    }
}

impl fmt::Debug for MerkleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0[..8])?;
        f.write_str("..")
    }
}

/// The name of static content: its tree's root (RFC 7574 §5.1), and so the swarm's id. The empty
/// content's is all zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ContentId {
    /// How it was hashed: the id's length tells.
    pub function: MerkleFunction,
    /// The root.
    pub root: MerkleHash,
}

impl ContentId {
    /// The swarm id (option 2).
    pub fn as_bytes(&self) -> &[u8] {
        self.root.as_bytes(self.function)
    }

    /// Whether it names the empty content.
    pub fn is_of_nothing(&self) -> bool {
        self.root.is_empty()
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, self.as_bytes())
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.function.as_str())
    }
}

/// A word that is no content id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a swarm id has 64 hexadecimal digits (SHA-256) or 40 (SHA-1), found {found} characters or other digits"
)]
pub struct ContentIdError {
    /// Length of the word, in characters.
    pub found: usize,
}

impl FromStr for ContentId {
    type Err = ContentIdError;

    fn from_str(text: &str) -> Result<Self, ContentIdError> {
        let error = ContentIdError { found: text.chars().count() };
        let digits: Option<Vec<u8>> =
            text.chars().map(|digit| digit.to_digit(16).map(|value| value as u8)).collect();
        let digits = digits.ok_or(error)?;
        let bytes: Vec<u8> =
            digits.chunks(2).map(|pair| pair[0] << 4 | pair[pair.len() - 1]).collect();
        let function = MerkleFunction::ALL
            .into_iter()
            .find(|function| digits.len() == 2 * function.hash_bytes())
            .ok_or(error)?;
        let root = MerkleHash::from_bytes(function, &bytes).ok_or(error)?;
        Ok(Self { function, root })
    }
}

//! Chaining values of BLAKE3's tree, and the position-independent hash of a block.
//!
//! The hazard fenced in here: a chaining value is right only for its position (`input_offset`), its
//! length (a whole power of two of chunks) and for a node that is not the root. [`Bin`] carries all
//! three.

use std::fmt;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

use crate::keys::write_hex;
use crate::unit::Bin;

/// The chaining value of a node that is not the root: what INTEGRITY carries and a uid names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeHash(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl NodeHash {
    /// The chaining value of `bytes` as the whole content below `bin`.
    ///
    /// # Panics
    /// If the length is not `bin.byte_len()`: that is a bug, never input.
    pub fn of_bytes(bin: Bin, bytes: &[u8]) -> Self {
        assert_eq!(bytes.len() as u64, bin.byte_len(), "a node covers whole chunks");
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(bin.byte_offset());
        Self(hasher.update(bytes).finalize_non_root())
    }

    /// The parent of two siblings.
    pub fn parent(left: Self, right: Self) -> Self {
        Self(merge_subtrees_non_root(&left.0, &right.0, Mode::Hash))
    }

    /// The root over two subtrees: what `blake3::hash` prints for the bytes below them.
    pub fn root(left: Self, right: Self) -> [u8; 32] {
        *merge_subtrees_root(&left.0, &right.0, Mode::Hash).as_bytes()
    }
}

impl fmt::Debug for NodeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0[..8])?;
        f.write_str("..")
    }
}

/// `blake3::hash` of a block's bytes: the same wherever the block lies, the key of deduplication.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash(pub [u8; 32]);

impl BlockHash {
    /// Hash of one block's bytes.
    pub fn of(block: &[u8]) -> Self {
        Self(*blake3::hash(block).as_bytes())
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0[..8])?;
        f.write_str("..")
    }
}

//! The geometry of static content's tree: how high it is, what of it is content, which nodes are peaks.

use crate::limits::{BRANCH_LAYER, CHUNK_BYTES, CONTENT_BYTES_MAX};
use crate::unit::{Bin, ChunkRange};

/// A branch of the tree: 64 chunks, the last one perhaps fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchIndex(pub u64);

impl BranchIndex {
    /// The branch that holds a chunk.
    pub const fn of(chunk: u64) -> Self {
        Self(chunk >> BRANCH_LAYER)
    }

    /// Its first chunk.
    pub const fn first_chunk(self) -> u64 {
        self.0 << BRANCH_LAYER
    }

    /// Where it begins in the content, in bytes.
    pub const fn byte_offset(self) -> u64 {
        self.first_chunk() * CHUNK_BYTES
    }
}

/// How many chunks content has: all that its tree's geometry depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentShape {
    chunks: u64,
}

impl ContentShape {
    /// The shape of so many chunks; `None` for none and for more than content may have.
    pub const fn new(chunks: u64) -> Option<Self> {
        if chunks == 0 || chunks > CONTENT_BYTES_MAX / CHUNK_BYTES {
            return None;
        }
        Some(Self { chunks })
    }

    /// The shape of content of so many bytes; `None` for none and for too many.
    pub const fn of_bytes(bytes: u64) -> Option<Self> {
        Self::new(bytes.div_ceil(CHUNK_BYTES))
    }

    /// Number of chunks.
    pub const fn chunks(self) -> u64 {
        self.chunks
    }

    /// Number of branches.
    pub const fn branches(self) -> u64 {
        self.chunks.div_ceil(1 << BRANCH_LAYER)
    }

    /// The root: of the least height that holds all chunks (RFC 7574 §5.1).
    pub const fn root(self) -> Bin {
        Bin::new(self.chunks.next_power_of_two().trailing_zeros(), 0)
    }

    /// Layer of the branches: that of the root where the whole tree is smaller than one.
    pub const fn branch_layer(self) -> u32 {
        let root = self.root().layer();
        if root < BRANCH_LAYER { root } else { BRANCH_LAYER }
    }

    /// The node of a branch.
    pub const fn branch_bin(self, branch: BranchIndex) -> Bin {
        Bin::new(self.branch_layer(), branch.0)
    }

    /// The chunks of a branch, as far as there is content.
    pub fn branch_chunks(self, branch: BranchIndex) -> Option<ChunkRange> {
        let first = branch.first_chunk();
        ChunkRange::new(first, self.chunks.min(first.saturating_add(1 << BRANCH_LAYER)))
    }

    /// Whether a node has no content below it: its hash is empty.
    pub fn is_void(self, bin: Bin) -> bool {
        bin.chunks().start.0 >= self.chunks
    }

    /// Whether a node is one of the tree's and has content below it.
    pub fn has(self, bin: Bin) -> bool {
        bin.layer() <= self.root().layer() && !self.is_void(bin)
    }

    /// The peaks, left to right and so from the tallest down: filled nodes whose sibling is not
    /// (RFC 7574 §5.6.1), one for each 1 in the number of chunks.
    pub fn peaks(self) -> Vec<Bin> {
        let mut peaks = Vec::new();
        let (mut first, mut rest) = (0, self.chunks);
        while rest > 0 {
            let layer = rest.ilog2();
            peaks.push(Bin::new(layer, first >> layer));
            first += 1 << layer;
            rest -= 1 << layer;
        }
        peaks
    }
}

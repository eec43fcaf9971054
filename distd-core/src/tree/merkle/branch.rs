//! All hashes of one branch, made of its bytes.

use crate::limits::{BRANCH_LAYER, CHUNK_BYTES};
use crate::unit::{Bin, ChunkRange};

use super::{BranchIndex, ContentShape, MerkleFunction, MerkleHash};

/// Nodes of a full branch, and one more: slot 1 is its top, the children of slot `s` are `2s` and `2s + 1`.
pub(super) const SLOTS: usize = 2 << BRANCH_LAYER;

/// The slot of a node at or below a branch's top.
pub(super) fn slot(bin: Bin, branch_layer: u32) -> Option<usize> {
    let depth = branch_layer.checked_sub(bin.layer())?;
    Some((1 << depth) | (bin.offset() & ((1 << depth) - 1)) as usize)
}

/// The hashes of a branch's nodes, from its top down to its chunks.
#[derive(Clone, Debug)]
pub struct BranchHashes {
    branch: BranchIndex,
    layer: u32,
    nodes: Box<[MerkleHash; SLOTS]>,
}

impl BranchHashes {
    /// Hashes the bytes of a branch.
    ///
    /// # Panics
    /// If there are not as many chunks as the branch has: that is a bug, never input.
    pub fn of(
        function: MerkleFunction,
        shape: ContentShape,
        branch: BranchIndex,
        bytes: &[u8],
    ) -> Self {
        let chunks = shape.branch_chunks(branch).map_or(0, ChunkRange::count);
        let found = (bytes.len() as u64).div_ceil(CHUNK_BYTES);
        assert_eq!(found, chunks, "a branch is hashed whole");
        let layer = shape.branch_layer();
        let mut nodes = Box::new([MerkleHash::EMPTY; SLOTS]);
        let leaves = 1 << layer;
        for (leaf, chunk) in nodes[leaves..].iter_mut().zip(bytes.chunks(CHUNK_BYTES as usize)) {
            *leaf = function.chunk(chunk);
        }
        for slot in (1..leaves).rev() {
            nodes[slot] = function.parent(nodes[2 * slot], nodes[2 * slot + 1]);
        }
        Self { branch, layer, nodes }
    }

    /// Which branch it is.
    pub fn branch(&self) -> BranchIndex {
        self.branch
    }

    /// All of them, by slot.
    pub(super) fn slots(&self) -> &[MerkleHash; SLOTS] {
        &self.nodes
    }

    /// The hash of its top.
    pub fn top(&self) -> MerkleHash {
        self.nodes[1]
    }

    /// The hash of a node of this branch.
    pub fn node(&self, bin: Bin) -> Option<MerkleHash> {
        let top = Bin::new(self.layer, self.branch.0);
        if !top.contains(bin) {
            return None;
        }
        slot(bin, self.layer).and_then(|slot| self.nodes.get(slot).copied())
    }
}

//! What is proved of static content's tree: every hash in it was compared with the root.

use std::collections::BTreeMap;

use crate::limits::CHUNK_BYTES;
use crate::unit::Bin;

use super::branch::{SLOTS, slot};
use super::{BranchHashes, BranchIndex, ContentId, ContentShape, MerkleFunction, MerkleHash};

/// Bytes of one chunk that were proved to be the content's. Only [`MerkleTree::verify`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedChunk<'a> {
    chunk: u64,
    bytes: &'a [u8],
}

impl<'a> VerifiedChunk<'a> {
    /// Which chunk it is.
    pub fn chunk(&self) -> u64 {
        self.chunk
    }

    /// Its bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// Why bytes, or hashes, are not proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnprovedError {
    /// A hash is neither known nor offered: nothing can be said yet.
    #[error("the hash of node {0} is not here")]
    Lacking(Bin),
    /// They are not the content's.
    #[error("what lies below node {0} is not the content's")]
    False(Bin),
    /// They lead to the root, as two hashes of the tree side by side would, too.
    #[error("a last chunk of {bytes} bytes may be two hashes of the tree")]
    Ambiguous {
        /// Its length.
        bytes: usize,
    },
}

/// The tree of one content, as far as it is proved.
#[derive(Clone, Debug)]
pub struct MerkleTree {
    id: ContentId,
    shape: ContentShape,
    /// The hashes of each layer from the branches' up to the root's; all zeros: not known. Pages of zeros
    /// that are never written take no memory.
    upper: Vec<Vec<[u8; 32]>>,
    /// The hashes below the tops of branches of which chunks are missing, and of the last one if peaks lie
    /// there: peers are told the peaks whatever chunk they ask for.
    lower: BTreeMap<BranchIndex, Box<[MerkleHash; SLOTS]>>,
    /// Nodes of `upper` that became known and were not taken yet.
    news: Vec<(Bin, MerkleHash)>,
}

impl MerkleTree {
    /// A tree of which the root alone is known.
    pub fn new(id: ContentId, shape: ContentShape) -> Self {
        let (low, high) = (shape.branch_layer(), shape.root().layer());
        let width = |layer: u32| shape.chunks().div_ceil(1 << layer) as usize;
        let upper = (low..=high).map(|layer| vec![[0; 32]; width(layer)]).collect();
        let mut tree = Self { id, shape, upper, lower: BTreeMap::new(), news: Vec::new() };
        tree.set(shape.root(), id.root);
        tree.news.clear();
        tree
    }

    /// The tree over branches that were all hashed, in order; its root is the content's name.
    ///
    /// # Panics
    /// If they are not as many as the shape has: that is a bug, never input.
    pub fn over(
        function: MerkleFunction,
        shape: ContentShape,
        tops: &[MerkleHash],
        last: &BranchHashes,
    ) -> Self {
        assert_eq!(tops.len() as u64, shape.branches(), "every branch is hashed");
        let nothing = ContentId { function, root: MerkleHash::EMPTY };
        let mut tree = Self::new(nothing, shape);
        for (branch, top) in (0..).zip(tops) {
            tree.set(shape.branch_bin(BranchIndex(branch)), *top);
        }
        for layer in shape.branch_layer()..shape.root().layer() {
            for offset in 0..shape.chunks().div_ceil(2 << layer) {
                let hash = |offset| tree.node(Bin::new(layer, offset)).unwrap_or_default();
                let parent = function.parent(hash(2 * offset), hash(2 * offset + 1));
                tree.set(Bin::new(layer + 1, offset), parent);
            }
            tree.news.clear();
        }
        tree.id.root = tree.node(shape.root()).unwrap_or_default();
        tree.news.clear();
        assert!(tree.admit_branch(last), "the last branch is one of them");
        tree
    }

    /// Whose tree it is.
    pub fn id(&self) -> ContentId {
        self.id
    }

    /// Its geometry.
    pub fn shape(&self) -> ContentShape {
        self.shape
    }

    /// The proved hash of a node; the empty one where there is no content.
    pub fn node(&self, bin: Bin) -> Option<MerkleHash> {
        if self.shape.is_void(bin) {
            return Some(MerkleHash::EMPTY);
        }
        let hash = match bin.layer().checked_sub(self.shape.branch_layer()) {
            Some(layer) => MerkleHash(*self.upper.get(layer as usize)?.get(bin.offset() as usize)?),
            None => self.lower.get(&self.branch_of(bin))?[slot(bin, self.shape.branch_layer())?],
        };
        (!hash.is_empty()).then_some(hash)
    }

    /// Takes the peaks, left to right, if they fold to the root (RFC 7574 §5.6.1): whether they do.
    pub fn admit_peaks(&mut self, peaks: &[(Bin, MerkleHash)]) -> bool {
        if !peaks.iter().map(|(bin, _)| *bin).eq(self.shape.peaks()) {
            return false;
        }
        let folded = fold(self.id.function, self.shape, peaks);
        let right = folded.last() == Some(&(self.shape.root(), self.id.root));
        if right {
            for (bin, hash) in folded.iter().chain(peaks) {
                self.set(*bin, *hash);
            }
        }
        right
    }

    /// The only door from strangers' bytes to verified ones. RFC 7574 §5.2: the chunk's hash and those of
    /// its uncles, known ones before `offered` ones, must lead to the root. What was offered and used is
    /// then known.
    pub fn verify<'a>(
        &mut self,
        chunk: u64,
        bytes: &'a [u8],
        offered: impl Fn(Bin) -> Option<MerkleHash>,
    ) -> Result<VerifiedChunk<'a>, UnprovedError> {
        let leaf = Bin::new(0, chunk);
        check_length(self.shape, chunk, bytes)?;
        let hash = self.id.function.chunk(bytes);
        let known = |bin| self.node(bin);
        let path = climb(self.id.function, self.shape, (leaf, hash), known, offered)?;
        for (bin, hash) in path {
            self.set(bin, hash);
        }
        Ok(VerifiedChunk { chunk, bytes })
    }

    /// Takes hashes that were kept from before, as far as they lead to what is known already.
    pub fn admit(&mut self, kept: &BTreeMap<Bin, MerkleHash>) {
        let mut below: Vec<Bin> = vec![self.shape.root()];
        while let Some(parent) = below.pop() {
            let (Some(left), Some(right)) = (parent.left(), parent.right()) else { continue };
            if left.layer() < self.shape.branch_layer() {
                continue;
            }
            let hash = |bin| self.node(bin).or_else(|| kept.get(&bin).copied());
            let (Some(one), Some(other)) = (hash(left), hash(right)) else { continue };
            if self.node(parent) == Some(self.id.function.parent(one, other)) {
                for (bin, hash) in [(left, one), (right, other)] {
                    if !self.shape.is_void(bin) {
                        self.set(bin, hash);
                        below.push(bin);
                    }
                }
            }
        }
    }

    /// Whether a branch's bytes are the content's.
    pub fn proves(&self, hashes: &BranchHashes) -> bool {
        self.node(self.shape.branch_bin(hashes.branch())) == Some(hashes.top())
    }

    /// As [`Self::proves`], of a branch that is here: what must be kept of its hashes is.
    pub fn admit_branch(&mut self, hashes: &BranchHashes) -> bool {
        let proved = self.proves(hashes);
        if proved && self.has_low_peaks(hashes.branch()) {
            self.lower.insert(hashes.branch(), Box::new(*hashes.slots()));
        }
        proved
    }

    /// Forgets the hashes below a branch's top: all its chunks are here, and give them back.
    pub fn close(&mut self, branch: BranchIndex) {
        if !self.has_low_peaks(branch) {
            self.lower.remove(&branch);
        }
    }

    /// Whether some of the peaks lie below a branch's top.
    fn has_low_peaks(&self, branch: BranchIndex) -> bool {
        let is_low = |bin: &Bin| bin.layer() < self.shape.branch_layer();
        branch.0 + 1 == self.shape.branches() && self.shape.peaks().iter().any(is_low)
    }

    /// Nodes above the branches that became known since this was last asked.
    pub fn take_news(&mut self) -> Vec<(Bin, MerkleHash)> {
        std::mem::take(&mut self.news)
    }

    fn branch_of(&self, bin: Bin) -> BranchIndex {
        BranchIndex(bin.ancestor(self.shape.branch_layer()).offset())
    }

    fn set(&mut self, bin: Bin, hash: MerkleHash) {
        if self.shape.is_void(bin) {
            return;
        }
        let (low, branch) = (self.shape.branch_layer(), self.branch_of(bin));
        if let Some(layer) = bin.layer().checked_sub(low) {
            let place = self.upper.get_mut(layer as usize);
            if let Some(place) = place.and_then(|nodes| nodes.get_mut(bin.offset() as usize))
                && *place != hash.0
            {
                *place = hash.0;
                self.news.push((bin, hash));
            }
        } else if let Some(slot) = slot(bin, low) {
            let nodes = self.lower.entry(branch);
            nodes.or_insert_with(|| Box::new([MerkleHash::EMPTY; SLOTS]))[slot] = hash;
        }
    }
}

/// The shape that peaks among `offered` hashes claim, if they fold to the root (RFC 7574 §5.6.2).
///
/// A single peak is the root itself and proves no height at all: a claim is worth something only once
/// its last chunk was verified ([`verify_last`]).
pub fn find_shape(id: ContentId, offered: &BTreeMap<Bin, MerkleHash>) -> Option<ContentShape> {
    let mut peaks: Vec<(Bin, MerkleHash)> = Vec::new();
    loop {
        let start = peaks.last().map_or(0, |(bin, _)| bin.chunks().end.0);
        let below = peaks.last().map_or(Bin::LAYER_MAX, |(bin, _)| bin.layer());
        // Uncles that begin where a peak does lie below it.
        let next =
            (0..below).rev().filter(|layer| start.is_multiple_of(1 << layer)).find_map(|layer| {
                let bin = Bin::new(layer, start >> layer);
                offered.get(&bin).map(|hash| (bin, *hash))
            });
        let Some(next) = next else { break };
        peaks.push(next);
    }
    let chunks = peaks.last()?.0.chunks().end.0;
    let shape = ContentShape::new(chunks)?;
    let folded = fold(id.function, shape, &peaks);
    (folded.last() == Some(&(shape.root(), id.root))).then_some(shape)
}

/// Whether `bytes` are the last chunk of content of this shape: then the shape is right, and the content's
/// length is known. RFC 7574 §5.6: only one length leads to the root.
///
/// The RFC's tree does not tell a chunk from two hashes side by side: a stranger could pass the root's
/// children off as content of one chunk. So a last chunk of just that length is
/// [`UnprovedError::Ambiguous`], whatever it is: content that ends so needs its length told by other means.
pub fn verify_last(
    id: ContentId,
    shape: ContentShape,
    bytes: &[u8],
    offered: &BTreeMap<Bin, MerkleHash>,
) -> Result<u64, UnprovedError> {
    let last = shape.chunks() - 1;
    let leaf = Bin::new(0, last);
    check_length(shape, last, bytes)?;
    let peaks: Option<Vec<_>> =
        shape.peaks().iter().map(|bin| Some((*bin, *offered.get(bin)?))).collect();
    let mut known: BTreeMap<Bin, MerkleHash> = BTreeMap::from([(shape.root(), id.root)]);
    if let Some(peaks) = peaks {
        let folded = fold(id.function, shape, &peaks);
        if folded.last() == Some(&(shape.root(), id.root)) {
            known.extend(folded.into_iter().chain(peaks));
        }
    }
    let hash = id.function.chunk(bytes);
    let find = |bin: Bin| known.get(&bin).copied();
    climb(id.function, shape, (leaf, hash), find, |bin| offered.get(&bin).copied())?;
    if bytes.len() == 2 * id.function.hash_bytes() {
        return Err(UnprovedError::Ambiguous { bytes: bytes.len() });
    }
    Ok(last * CHUNK_BYTES + bytes.len() as u64)
}

/// Every chunk but the last is whole, and none is empty.
fn check_length(shape: ContentShape, chunk: u64, bytes: &[u8]) -> Result<(), UnprovedError> {
    let len = bytes.len() as u64;
    let last = chunk + 1 == shape.chunks();
    let right = len == CHUNK_BYTES || (last && len > 0 && len < CHUNK_BYTES);
    if chunk < shape.chunks() && right {
        Ok(())
    } else {
        Err(UnprovedError::False(Bin::new(0, chunk)))
    }
}

/// From a chunk up to the first known node: the nodes on the way and their siblings. The root is known,
/// so that it ends.
fn climb(
    function: MerkleFunction,
    shape: ContentShape,
    leaf: (Bin, MerkleHash),
    known: impl Fn(Bin) -> Option<MerkleHash>,
    offered: impl Fn(Bin) -> Option<MerkleHash>,
) -> Result<Vec<(Bin, MerkleHash)>, UnprovedError> {
    let (mut at, mut hash) = leaf;
    let mut path = vec![leaf];
    loop {
        if let Some(expected) = known(at) {
            return if expected == hash { Ok(path) } else { Err(UnprovedError::False(at)) };
        }
        if at.layer() >= shape.root().layer() {
            return Err(UnprovedError::Lacking(at));
        }
        let sibling = at.sibling();
        let other = if shape.is_void(sibling) {
            MerkleHash::EMPTY
        } else {
            let found = known(sibling).or_else(|| offered(sibling));
            found.ok_or(UnprovedError::Lacking(sibling))?
        };
        path.push((sibling, other));
        let (left, right) = if at.is_left() { (hash, other) } else { (other, hash) };
        (at, hash) = (at.parent(), function.parent(left, right));
        path.push((at, hash));
    }
}

/// The incomplete nodes above the peaks, from the lowest up to the root: each follows from the peaks to
/// the left and from empty nodes to the right (the lemma of RFC 7574 §5.6.1).
fn fold(
    function: MerkleFunction,
    shape: ContentShape,
    peaks: &[(Bin, MerkleHash)],
) -> Vec<(Bin, MerkleHash)> {
    let mut left = peaks.to_vec();
    let Some((mut at, mut hash)) = left.pop() else { return Vec::new() };
    let mut folded = vec![(at, hash)];
    while at.layer() < shape.root().layer() {
        hash = if at.is_left() {
            function.parent(hash, MerkleHash::EMPTY)
        } else {
            match left.pop() {
                Some((bin, peak)) if bin == at.sibling() => function.parent(peak, hash),
                // Not the peaks of this shape.
                _ => return Vec::new(),
            }
        };
        at = at.parent();
        folded.push((at, hash));
    }
    folded
}

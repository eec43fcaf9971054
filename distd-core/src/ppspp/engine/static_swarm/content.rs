//! The content, as far as it is here: its tree, what is stored, what is on its way, what is wanted.

use std::collections::BTreeMap;

use crate::limits::{BRANCH_LAYER, CHUNK_BYTES};
use crate::tree::merkle::{BranchIndex, ContentId, ContentShape, MerkleTree, VerifiedChunk};
use crate::unit::ChunkRange;

use super::super::interval::IntervalSet;
use super::limits::{OPEN_BRANCHES_MAX, RARE_STRETCHES};

/// A branch of which some chunks are asked for or here.
#[derive(Debug, Default)]
struct Open {
    /// Empty until the first chunk is here.
    bytes: Vec<u8>,
    /// Which chunks are.
    arrived: u64,
}

/// The content.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) id: ContentId,
    /// Its length, once that is known.
    pub(super) bytes: Option<u64>,
    pub(super) tree: Option<MerkleTree>,
    /// Chunks of whole branches that are stored: served and announced.
    pub(super) held: IntervalSet,
    /// Chunks of whole branches that are here and not stored yet.
    storing: IntervalSet,
    /// Chunks that are neither here nor asked for.
    wanted: IntervalSet,
    open: BTreeMap<BranchIndex, Open>,
    pub(super) fetching: bool,
}

/// The bits of a branch's chunks within `chunks`.
pub(super) fn bits_of(branch: BranchIndex, chunks: ChunkRange) -> u64 {
    let first = branch.first_chunk();
    let end = (chunks.end.0.saturating_sub(first)).min(1 << BRANCH_LAYER);
    let start = chunks.start.0.saturating_sub(first).min(end);
    let below = |bits: u64| if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
    below(end) & !below(start)
}

/// The runs of a branch's chunks that are set.
pub(super) fn ranges_of(branch: BranchIndex, mut bits: u64) -> impl Iterator<Item = ChunkRange> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let start = u64::from(bits.trailing_zeros());
        let count = u64::from((bits >> start).trailing_ones());
        let first = branch.first_chunk() + start;
        let run = ChunkRange::new(first, first + count)?;
        bits &= !bits_of(branch, run);
        Some(run)
    })
}

impl Content {
    pub(super) fn new(id: ContentId) -> Self {
        Self {
            id,
            bytes: None,
            tree: None,
            held: IntervalSet::default(),
            storing: IntervalSet::default(),
            wanted: IntervalSet::default(),
            open: BTreeMap::new(),
            fetching: false,
        }
    }

    /// The length is known.
    pub(super) fn settle(&mut self, shape: ContentShape, bytes: u64) {
        self.bytes = Some(bytes);
        self.tree = Some(MerkleTree::new(self.id, shape));
    }

    pub(super) fn shape(&self) -> Option<ContentShape> {
        self.tree.as_ref().map(MerkleTree::shape)
    }

    /// Fetches what is not here from now on.
    pub(super) fn start(&mut self) {
        let Some(shape) = self.shape() else { return };
        self.fetching = true;
        self.wanted.insert(0, shape.chunks());
        for set in [&self.held, &self.storing] {
            for (start, end) in set.iter() {
                self.wanted.remove(start, end);
            }
        }
        for (branch, open) in &self.open {
            for run in ranges_of(*branch, open.arrived) {
                self.wanted.remove(run.start.0, run.end.0);
            }
        }
    }

    /// A branch is stored.
    pub(super) fn hold(&mut self, branch: BranchIndex) {
        let Some(chunks) = self.shape().and_then(|shape| shape.branch_chunks(branch)) else {
            return;
        };
        let (start, end) = (chunks.start.0, chunks.end.0);
        self.storing.remove(start, end);
        self.wanted.remove(start, end);
        self.held.insert(start, end);
    }

    /// A branch is not what it was when it was stored.
    pub(super) fn lose(&mut self, branch: BranchIndex) {
        let Some(chunks) = self.shape().and_then(|shape| shape.branch_chunks(branch)) else {
            return;
        };
        self.held.remove(chunks.start.0, chunks.end.0);
        if self.fetching {
            self.wanted.insert(chunks.start.0, chunks.end.0);
        }
    }

    /// Whether all of it is stored.
    pub(super) fn is_complete(&self) -> bool {
        self.shape().is_some_and(|shape| self.held.contains(0, shape.chunks()))
    }

    /// Chunks that are here.
    pub(super) fn chunks_here(&self) -> u64 {
        let arriving: u64 =
            self.open.values().map(|open| u64::from(open.arrived.count_ones())).sum();
        self.held.count() + self.storing.count() + arriving
    }

    /// Whether a chunk is here.
    pub(super) fn has(&self, chunk: u64) -> bool {
        let branch = BranchIndex::of(chunk);
        let arrived =
            self.open.get(&branch).is_some_and(|open| open.arrived >> (chunk % 64) & 1 == 1);
        arrived || self.held.contains(chunk, chunk + 1) || self.storing.contains(chunk, chunk + 1)
    }

    /// Whether chunks of a branch are asked for or here, and not all of them are here.
    pub(super) fn is_open(&self, branch: BranchIndex) -> bool {
        self.open.contains_key(&branch)
    }

    /// Takes the next chunks to ask a source for that has `available` ones, of one branch, at `from` or
    /// behind it, else anywhere.
    pub(super) fn pick(&mut self, available: &IntervalSet, from: u64) -> Option<ChunkRange> {
        let found = if self.open.len() < OPEN_BRANCHES_MAX {
            let behind = self.wanted.next_common(available, from);
            behind.or_else(|| self.wanted.first_common(available))
        } else {
            // No room for another branch: what is missing of those that are begun.
            self.open.keys().find_map(|branch| {
                let first = branch.first_chunk();
                let found = self.wanted.next_common(available, first)?;
                (BranchIndex::of(found.0) == *branch).then_some(found)
            })
        };
        let (start, end) = found?;
        self.claim(start, end)
    }

    /// Takes chunks as [`Self::pick`] does that no other source has, if there are some near `from`: so what
    /// few have spreads first, and who has everything is not asked for what others can give.
    pub(super) fn pick_rare(
        &mut self,
        available: &IntervalSet,
        others: &[&IntervalSet],
        from: u64,
    ) -> Option<ChunkRange> {
        if self.open.len() >= OPEN_BRANCHES_MAX {
            return None;
        }
        let mut at = from;
        for _ in 0..RARE_STRETCHES {
            let (start, end) = self.wanted.next_common(available, at)?;
            // What others have at the start of it is passed over.
            let here = others.iter().filter_map(|other| other.covering(start)).map(|span| span.1);
            if let Some(until) = here.max() {
                at = until;
                continue;
            }
            let there = others.iter().filter_map(|other| other.first_within(start, end));
            let end = there.map(|span| span.0).min().unwrap_or(end);
            return self.claim(start, end);
        }
        None
    }

    /// Chunks from `start` on, of one branch, are asked for.
    fn claim(&mut self, start: u64, end: u64) -> Option<ChunkRange> {
        let branch = BranchIndex::of(start);
        let end = end.min(branch.first_chunk() + (1 << BRANCH_LAYER));
        self.wanted.remove(start, end);
        self.open.entry(branch).or_default();
        ChunkRange::new(start, end)
    }

    /// Chunks are asked for no longer; those that are not here are wanted again.
    pub(super) fn give_back(&mut self, branch: BranchIndex, bits: u64) {
        let arrived = self.open.get(&branch).map_or(0, |open| open.arrived);
        for run in ranges_of(branch, bits & !arrived) {
            let (start, end) = (run.start.0, run.end.0);
            let here = [&self.held, &self.storing].iter().any(|set| set.contains(start, end));
            if !here && self.fetching {
                self.wanted.insert(start, end);
            }
        }
    }

    /// Keeps a chunk; the bytes of its branch if that is whole now.
    pub(super) fn take(&mut self, chunk: &VerifiedChunk<'_>) -> Option<(BranchIndex, Vec<u8>)> {
        let (at, bytes) = (chunk.chunk(), chunk.bytes());
        let tree = self.tree.as_mut()?;
        let branch = BranchIndex::of(at);
        let chunks = tree.shape().branch_chunks(branch)?;
        let total = self.bytes?;
        if !self.open.contains_key(&branch) && self.open.len() >= OPEN_BRANCHES_MAX {
            return None;
        }
        let open = self.open.entry(branch).or_default();
        if open.bytes.is_empty() {
            let len = (chunks.count() * CHUNK_BYTES).min(total - branch.byte_offset());
            open.bytes = vec![0; len as usize];
        }
        let offset = ((at - chunks.start.0) * CHUNK_BYTES) as usize;
        open.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        open.arrived |= 1 << (at % 64);
        self.wanted.remove(at, at + 1);
        if open.arrived != bits_of(branch, chunks) {
            return None;
        }
        tree.close(branch);
        self.storing.insert(chunks.start.0, chunks.end.0);
        self.open.remove(&branch).map(|open| (branch, open.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_runs_of_a_branchs_chunks() {
        let branch = BranchIndex(3);
        let run = |start, end| ChunkRange::new(start, end).expect("some");
        assert_eq!(bits_of(branch, run(0, 1 << 40)), u64::MAX);
        assert_eq!(bits_of(branch, run(192, 193)), 1);
        assert_eq!(bits_of(branch, run(255, 256)), 1 << 63);
        assert_eq!(bits_of(branch, run(0, 192)), 0);
        assert_eq!(bits_of(branch, run(256, 300)), 0);
        for bits in [0, 1, u64::MAX, 0b1011 << 60, 0xf0f0_f0f0_0000_0001] {
            let runs: Vec<ChunkRange> = ranges_of(branch, bits).collect();
            assert_eq!(runs.iter().map(|run| bits_of(branch, *run)).sum::<u64>(), bits);
        }
    }
}

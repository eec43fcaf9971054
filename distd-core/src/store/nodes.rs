//! A munro as a disk claims it and as it is proved: its signature, its stored hashes, its tree.
//!
//! The tree holds what is proved, in memory; the table is what the disk offers. A hash of the table
//! counts only when a fold of read bytes meets a proved node with it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::keys::OriginId;
use crate::limits::{BLOCK_BYTES, BLOCK_LAYER, GRANULE_LAYER, MUNRO_LAYER};
use crate::tree::{
    MunroTree, NodeHash, SignatureError, StoredRun, VerifiedMunro, VerifiedRun, VerifyError,
};
use crate::unit::{Bin, BlockIndex, BlockRange, MunroIndex};

use super::DiskError;
use super::segment::{SegmentFile, TABLE_BYTES, table_offset};

/// Bytes of a table that are written at once.
const PAGE_BYTES: usize = 4096;
const ZERO: NodeHash = NodeHash([0; 32]);

/// One munro in memory.
pub(super) struct MunroNodes(Mutex<Inner>);

struct Inner {
    tree: MunroTree,
    /// `None`: the disk has the whole tree, and all of it is proved.
    table: Option<Box<[NodeHash; 512]>>,
    /// Granules whose content was verified lately.
    checked: Checked,
    /// Pages of the table that the disk does not have yet, as bits.
    pages_dirty: u8,
    record_dirty: bool,
}

/// What was verified since a moment, and in which era of trust in the disk.
struct Checked {
    granules: u64,
    since: Instant,
    era: u64,
}

impl Checked {
    fn new() -> Self {
        Self { granules: 0, since: Instant::now(), era: 0 }
    }

    /// Forgets what is of another era, or too old.
    fn renew(&mut self, era: u64, life: Duration) {
        if self.era != era || self.since.elapsed() > life {
            *self = Self { era, ..Self::new() };
        }
    }
}

/// The granules that lie within a bin, or round it, as bits of its munro's 64.
fn granules_of(bin: Bin) -> u64 {
    let chunks = bin.chunks();
    let first = chunks.start.0 >> GRANULE_LAYER;
    let count = (chunks.end.0.div_ceil(1 << GRANULE_LAYER) - first).min(64);
    (u64::MAX >> (64 - count)) << (first % 64)
}

impl Inner {
    /// Puts a proved hash into the table that goes to the disk.
    fn keep(&mut self, slot: usize, hash: NodeHash) {
        let Some(table) = &mut self.table else { return };
        if let Some(node) = table.get_mut(slot).filter(|node| **node != hash) {
            *node = hash;
            self.pages_dirty |= 1 << (slot * 32 / PAGE_BYTES);
        }
    }
}

/// Two hashes are validly signed for one munro: the origin's key signed two logs.
#[derive(Debug)]
pub(super) struct Conflict {
    pub(super) known: VerifiedMunro,
}

impl MunroNodes {
    /// A munro of which the disk has nothing.
    pub(super) fn new(trust: VerifiedMunro) -> Self {
        Self(Mutex::new(Inner {
            tree: MunroTree::new(trust),
            table: Some(Box::new([ZERO; 512])),
            checked: Checked::new(),
            pages_dirty: 0,
            record_dirty: true,
        }))
    }

    /// A munro with the hashes that the disk offers. `stored`: whether the record is on the disk.
    pub(super) fn load(
        file: &SegmentFile,
        trust: VerifiedMunro,
        stored: bool,
    ) -> Result<Self, DiskError> {
        let mut bytes = vec![0; TABLE_BYTES as usize];
        file.read(table_offset(trust.munro()), &mut bytes)?;
        let mut table = Box::new([ZERO; 512]);
        for (node, hash) in table.iter_mut().zip(bytes.as_chunks::<32>().0) {
            node.0 = *hash;
        }
        let mut tree = MunroTree::new(trust);
        // A whole table is proved by itself; a wrong one is found out run by run.
        let whole = !table[1..].contains(&ZERO) && tree.learn_table(&table);
        let table = (!whole).then_some(table);
        let (checked, record_dirty) = (Checked::new(), !stored);
        Ok(Self(Mutex::new(Inner { tree, table, checked, pages_dirty: 0, record_dirty })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each step leaves proved nodes proved: what a panicking thread left is still right.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The signed munro.
    pub(super) fn trust(&self) -> VerifiedMunro {
        *self.lock().tree.trust()
    }

    /// Takes the hashes that a run carries.
    pub(super) fn learn(&self, run: &VerifiedRun) -> Result<(), Conflict> {
        let mut inner = self.lock();
        let known = *inner.tree.trust();
        if !inner.tree.learn_run(run) {
            return Err(Conflict { known });
        }
        if run.munro().time().0 > known.time().0 {
            inner.tree.renew(*run.munro());
            inner.record_dirty = true;
        }
        for (bin, hash) in run.nodes().iter().chain(run.uncles()) {
            if let Some(slot) = MunroTree::slot(*bin) {
                inner.keep(slot, *hash);
            }
        }
        Ok(())
    }

    /// Verifies bytes as a run.
    pub(super) fn verify(&self, bin: Bin, bytes: Bytes) -> Result<VerifiedRun, VerifyError> {
        let Inner { tree, table, .. } = &mut *self.lock();
        tree.verify_run(bin, bytes, |uncle| {
            let slot = MunroTree::slot(uncle)?;
            table.as_ref()?.get(slot).copied().filter(|hash| *hash != ZERO)
        })
    }

    /// Verifies bytes as a run for a peer, unless they were within `life` and the same `era`.
    pub(super) fn stored_run(
        &self,
        bin: Bin,
        bytes: Bytes,
        (era, life): (u64, Duration),
    ) -> Result<StoredRun, VerifyError> {
        let granules = granules_of(bin);
        // A hole reads as zeros: a prune may have made one since.
        let (blocks, _) = bytes.as_chunks::<{ BLOCK_BYTES as usize }>();
        let hole = blocks.iter().any(|block| block.starts_with(&[0; 8]));
        {
            let mut inner = self.lock();
            inner.checked.renew(era, life);
            if inner.checked.granules & granules == granules
                && !hole
                && let Some(run) = inner.tree.stored_run(bin, bytes.clone())
            {
                return Ok(run);
            }
        }
        let run = self.verify(bin, bytes)?;
        if bin.layer() >= GRANULE_LAYER {
            self.lock().checked.granules |= granules;
        }
        Ok(run.into())
    }

    /// Proves the blocks of a granule one by one from its content, for whoever reads or keeps less
    /// than a granule; whether the content was right.
    pub(super) fn learn_blocks(&self, granule: Bin, content: &[u8]) -> bool {
        if self.proved(granule).is_none()
            && self.verify(granule, Bytes::copy_from_slice(content)).is_err()
        {
            return false;
        }
        let mut inner = self.lock();
        if !inner.tree.learn_blocks(granule, content) {
            return false;
        }
        let below = [BLOCK_LAYER, BLOCK_LAYER + 1].into_iter().flat_map(|layer| {
            let width = 1 << (GRANULE_LAYER - layer);
            (0..width).map(move |i| Bin::new(layer, granule.offset() * width + i))
        });
        for bin in below {
            let (Some(slot), Some(hash)) = (MunroTree::slot(bin), inner.tree.node(bin)) else {
                continue;
            };
            inner.keep(slot, hash);
        }
        true
    }

    /// Whether the block's hash is proved.
    pub(super) fn proves(&self, block: BlockIndex) -> bool {
        self.proved(block.bin()).is_some()
    }

    /// A node's hash, if it is proved.
    pub(super) fn proved(&self, bin: Bin) -> Option<NodeHash> {
        self.lock().tree.node(bin)
    }

    /// Checks `bytes` as the content of `blocks` (within this munro): the ranges that are wrong.
    ///
    /// A proved node over many blocks is compared in one go, at the speed of BLAKE3's widest SIMD
    /// and outside of the lock; what no proved node covers yet is proved granule by granule.
    pub(super) fn wrong(&self, blocks: BlockRange, bytes: &[u8]) -> Vec<BlockRange> {
        let mut wrong = Vec::new();
        let mut rest = bytes;
        for bin in aligned_bins(blocks, MUNRO_LAYER) {
            let Some((content, after)) = rest.split_at_checked(bin.byte_len() as usize) else {
                break;
            };
            rest = after;
            match self.proved(bin) {
                Some(hash) if NodeHash::of_bytes(bin, content) == hash => {}
                _ => self.wrong_below(bin, content, &mut wrong),
            }
        }
        wrong
    }

    fn wrong_below(&self, bin: Bin, content: &[u8], wrong: &mut Vec<BlockRange>) {
        for (part, content) in parts(bin, GRANULE_LAYER, content) {
            if self.verify(part, Bytes::copy_from_slice(content)).is_ok() {
                continue;
            }
            for (block, content) in parts(part, BLOCK_LAYER, content) {
                if self.verify(block, Bytes::copy_from_slice(content)).is_err() {
                    wrong.extend(block.blocks());
                }
            }
        }
    }

    /// Whether the disk lacks something of it.
    pub(super) fn is_dirty(&self) -> bool {
        let inner = self.lock();
        inner.record_dirty || inner.pages_dirty != 0
    }

    /// Writes what the disk lacks.
    pub(super) fn write(&self, file: &SegmentFile) -> Result<(), DiskError> {
        let mut inner = self.lock();
        let signed = inner.tree.trust().signed();
        let table = inner.table.as_ref().map_or(&[][..], |table| &table[..]);
        for (page, hashes) in table.chunks(PAGE_BYTES / 32).enumerate() {
            if inner.pages_dirty & (1 << page) != 0 {
                let offset = table_offset(signed.munro) + (page * PAGE_BYTES) as u64;
                file.write(offset, &table_bytes(hashes))?;
            }
        }
        if inner.record_dirty {
            file.write_record(&signed)?;
        }
        inner.pages_dirty = 0;
        inner.record_dirty = false;
        Ok(())
    }
}

/// The stored form of hashes.
pub(super) fn table_bytes(hashes: &[NodeHash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// The record of a munro with its signature checked: `Ok(None)` if there is none.
pub(super) fn trusted_record(
    file: &SegmentFile,
    munro: MunroIndex,
    origin: &OriginId,
) -> Result<Option<Result<VerifiedMunro, SignatureError>>, DiskError> {
    Ok(file.record(munro)?.map(|signed| signed.verify(origin)))
}

/// `bin` cut into nodes of `layer` (itself if it is no taller) with their content.
fn parts(bin: Bin, layer: u32, content: &[u8]) -> impl Iterator<Item = (Bin, &[u8])> {
    let layer = layer.min(bin.layer());
    let first = bin.offset() << (bin.layer() - layer);
    let nodes = (first..).map(move |offset| Bin::new(layer, offset));
    let len = Bin::new(layer, 0).byte_len() as usize;
    nodes.zip(content.chunks_exact(len))
}

/// The fewest aligned runs of at most `layer_max` that make up `blocks`, left to right.
pub(super) fn aligned_bins(blocks: BlockRange, layer_max: u32) -> impl Iterator<Item = Bin> {
    let end = blocks.end().0;
    let mut next = blocks.start.0;
    std::iter::from_fn(move || {
        let room = end.checked_sub(next).filter(|room| *room > 0)?;
        let shift = next.trailing_zeros().min(room.ilog2()).min(layer_max - BLOCK_LAYER);
        let bin = Bin::new(BLOCK_LAYER + shift, next >> shift);
        next += 1 << shift;
        Some(bin)
    })
}

/// `blocks` cut at munro boundaries.
pub(super) fn by_munro(blocks: BlockRange) -> impl Iterator<Item = (MunroIndex, BlockRange)> {
    let end = blocks.end();
    let mut next = blocks.start;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let munro = next.munro();
        let stop = munro.blocks().end().min(end);
        let part = BlockRange::new(next, stop.0 - next.0);
        next = BlockIndex(stop.0);
        Some((munro, part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn aligned_bins_make_up_the_range(start in 0u64..5000, count in 0u64..2000) {
            let range = BlockRange::new(BlockIndex(start), count);
            let blocks: Vec<_> = aligned_bins(range, MUNRO_LAYER)
                .flat_map(|bin| bin.blocks().into_iter().flat_map(BlockRange::iter))
                .collect();
            prop_assert_eq!(blocks, range.iter().collect::<Vec<_>>());
            let parts: Vec<_> = by_munro(range).collect();
            prop_assert!(parts.iter().all(|(munro, part)| part.start.munro() == *munro && part.count <= 256));
            prop_assert_eq!(parts.iter().map(|(_, part)| part.count).sum::<u64>(), count);
        }
    }
}

//! What a peer was sent of each munro: its signature, its nodes, its blocks.
//!
//! A sender leaves out hashes that the receiver has or can compute (RFC 7574 §5.3). What was sent
//! may be lost; then the receiver asks again, and what is asked for a second time is proved from
//! the munro down once more.

use std::collections::BTreeMap;

use crate::limits::{BLOCK_LAYER, GRANULE_LAYER, MUNRO_LAYER};
use crate::tree::{MunroTree, NodeHash, StoredRun};
use crate::unit::{Bin, MunroIndex};

use super::limits::KNOWN_MUNROS_MAX;

/// Blocks of a munro.
const BLOCKS: u64 = 1 << (MUNRO_LAYER - BLOCK_LAYER);

/// What one peer was sent.
#[derive(Debug, Default)]
pub(super) struct Known {
    munros: BTreeMap<MunroIndex, Nodes>,
    /// Counts uses, to find the munro that was used least recently.
    clock: u64,
}

/// Bit sets over one munro's tree.
#[derive(Clone, Copy, Debug, Default)]
struct Nodes {
    /// By slot: nodes that the peer has or can compute. Slot 1: the munro with its signature.
    slots: [u64; 8],
    /// Blocks of which chunks were sent.
    blocks: [u64; 4],
    used: u64,
}

impl Nodes {
    fn has(&self, slot: usize) -> bool {
        self.slots[slot / 64] & (1 << (slot % 64)) != 0
    }
    fn set(&mut self, slot: usize) {
        self.slots[slot / 64] |= 1 << (slot % 64);
    }
}

/// The hashes that must precede a piece's chunks.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// The munro and its signature are needed.
    pub(super) munro: bool,
    /// Uncles, tallest first (RFC 7574 §5.4).
    pub(super) uncles: Vec<(Bin, NodeHash)>,
}

impl Known {
    /// What the peer lacks to verify `piece` of `run`, which counts as sent from here on.
    ///
    /// A piece of a granule or more is proved granule by granule, a smaller one block by block: so
    /// a receiver may verify what it asked for in one piece or in several.
    pub(super) fn prove(&mut self, run: &StoredRun, piece: Bin) -> Proof {
        let munro = run.munro().munro();
        let nodes = self.nodes_mut(munro);
        let layer = piece.layer();
        let leaf_layer = if layer >= GRANULE_LAYER { GRANULE_LAYER } else { BLOCK_LAYER };
        let leaves = 1 << (layer - leaf_layer);
        // RFC 7574 5.2, 5.3: the sender MUST include what it believes the receiver needs for the check.
        let mut proof = Proof { munro: !nodes.has(1), uncles: Vec::new() };
        nodes.set(1);
        let first = piece.chunks().start.0 >> leaf_layer;
        for leaf in first..first + leaves {
            let mut at = Bin::new(leaf_layer, leaf);
            while at.layer() < MUNRO_LAYER {
                let (Some(slot), uncle) = (MunroTree::slot(at), at.sibling()) else { break };
                if nodes.has(slot) {
                    break;
                }
                nodes.set(slot);
                if !nodes.has(slot ^ 1) {
                    nodes.set(slot ^ 1);
                    proof.uncles.extend(hash_in(run, uncle).map(|hash| (uncle, hash)));
                }
                at = at.parent();
            }
        }
        // RFC 7574 5.4: INTEGRITY messages sorted by node height, descending.
        proof.uncles.sort_by_key(|(bin, _)| std::cmp::Reverse(bin.layer()));
        if let Some(blocks) = piece.blocks() {
            for block in blocks.iter() {
                let at = (block.0 % BLOCKS) as usize;
                nodes.blocks[at / 64] |= 1 << (at % 64);
            }
        }
        proof
    }

    /// Whether some of the block that holds `chunk` was sent.
    pub(super) fn has_sent(&self, chunk: u64) -> bool {
        let block = Bin::new(0, chunk).ancestor(BLOCK_LAYER);
        let at = (block.offset() % BLOCKS) as usize;
        let nodes = block.munro().and_then(|munro| self.munros.get(&munro));
        nodes.is_some_and(|nodes| nodes.blocks[at / 64] & (1 << (at % 64)) != 0)
    }

    /// Forgets what was sent with the blocks of `piece`, if they were sent before; whether they
    /// were.
    pub(super) fn sent_before(&mut self, piece: Bin) -> bool {
        let (Some(munro), Some(blocks)) = (piece.munro(), piece.blocks()) else {
            return false;
        };
        let Some(nodes) = self.munros.get_mut(&munro) else {
            return false;
        };
        let mut before = false;
        for block in blocks.iter() {
            let at = (block.0 % BLOCKS) as usize;
            if nodes.blocks[at / 64] & (1 << (at % 64)) == 0 {
                continue;
            }
            before = true;
            let mut slot = MunroTree::slot(block.bin()).unwrap_or(1);
            while slot > 1 {
                for forgotten in [slot, slot ^ 1] {
                    nodes.slots[forgotten / 64] &= !(1 << (forgotten % 64));
                }
                slot /= 2;
            }
            nodes.slots[0] &= !(1 << 1);
        }
        before
    }

    fn nodes_mut(&mut self, munro: MunroIndex) -> &mut Nodes {
        self.clock += 1;
        if !self.munros.contains_key(&munro) && self.munros.len() >= KNOWN_MUNROS_MAX {
            let oldest = self.munros.iter().min_by_key(|(_, nodes)| nodes.used);
            if let Some(oldest) = oldest.map(|(munro, _)| *munro) {
                self.munros.remove(&oldest);
            }
        }
        let nodes = self.munros.entry(munro).or_default();
        nodes.used = self.clock;
        nodes
    }
}

/// The hash of a node that a verified run carries.
fn hash_in(run: &StoredRun, bin: Bin) -> Option<NodeHash> {
    let found = |nodes: &[(Bin, NodeHash)]| {
        nodes.iter().find(|(node, _)| *node == bin).map(|(_, hash)| *hash)
    };
    if run.bin().contains(bin) { found(run.nodes()) } else { found(run.uncles()) }
}

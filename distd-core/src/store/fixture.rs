//! For tests: an origin whose munros are made up on demand, and the runs that prove them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;

use crate::keys::{NtpTime, OriginId, OriginKey};
use crate::limits::MUNRO_BYTES;
use crate::tree::{MunroTree, NodeHash, VerifiedMunro, VerifiedRun};
use crate::unit::{Bin, BlockIndex, BlockRange, MunroIndex};

/// One munro as its origin knows it.
pub(super) struct Munro {
    pub(super) content: Bytes,
    pub(super) nodes: Box<[NodeHash; 512]>,
    pub(super) trust: VerifiedMunro,
}

pub(super) fn key() -> OriginKey {
    OriginKey::from_seed(&[9; 32])
}

pub(super) fn origin() -> OriginId {
    key().id()
}

pub(super) fn time() -> NtpTime {
    NtpTime::from_unix(1_800_000_000, 0)
}

/// Bytes that differ from block to block.
pub(super) fn content(blocks: BlockRange) -> Vec<u8> {
    let word = |block: u64, i: u64| {
        (block << 9 | i).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    };
    blocks
        .iter()
        .flat_map(|block| (0..512).flat_map(move |i| word(block.0, i).to_le_bytes()))
        .collect()
}

/// The munro, made once.
pub(super) fn munro(index: MunroIndex) -> Arc<Munro> {
    static MUNROS: OnceLock<Mutex<BTreeMap<u64, Arc<Munro>>>> = OnceLock::new();
    let munros = MUNROS.get_or_init(Mutex::default);
    let mut munros = munros.lock().expect("no panic holds it");
    let made = munros.entry(index.0).or_insert_with(|| {
        let content = Bytes::from(content(index.blocks()));
        let nodes = MunroTree::hash_content(index, &content);
        let trust = VerifiedMunro::sign(&key(), index, nodes[1], time());
        Arc::new(Munro { content, nodes, trust })
    });
    Arc::clone(made)
}

/// A verified run, as the engine gives it.
pub(super) fn run(bin: Bin) -> VerifiedRun {
    let munro = munro(bin.munro().expect("at most a munro"));
    let start = (bin.byte_offset() % MUNRO_BYTES) as usize;
    let bytes = munro.content.slice(start..start + bin.byte_len() as usize);
    MunroTree::new(munro.trust)
        .verify_run(bin, bytes, |uncle| MunroTree::slot(uncle).map(|slot| munro.nodes[slot]))
        .expect("true")
}

/// `start..start+count` in blocks.
pub(super) fn blocks(start: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(start), count)
}

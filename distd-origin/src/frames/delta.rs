//! One delta frame: a base of older blocks, chosen by content, and what is new against it.

use std::collections::BTreeMap;

use distd_core::frame::FrameEncoder;
use distd_core::limits::{BLOCK_BYTES, FRAME_BASE_BLOCKS_MAX, FRAME_BASE_EXTENTS_MAX};
use distd_core::unit::{Bin, BlockIndex, BlockRange};

use super::candidates::{Candidates, Prospects};
use super::changes::operations;
use super::matching::{Copy, Seeds, find_copies};
use super::older::{Older, OlderBlocks};
use super::tables::{Columns, realign, without_noise};

const BLOCK: usize = BLOCK_BYTES as usize;
/// A base extent must give so many bytes, or its copies are not worth the blocks that they need.
const EXTENT_BYTES_MIN: usize = 64;
/// Blocks between two used ones that are taken along rather than begin another extent.
const GAP_BLOCKS_MAX: u64 = 1;

/// What is kept between frames for its memory.
#[derive(Default)]
pub struct Scratch {
    seeds: Seeds,
    columns: Columns,
}

/// A delta frame and its bases.
#[derive(Debug)]
pub struct Delta {
    /// The frame's bytes.
    pub frame: Vec<u8>,
    /// What it needs.
    pub bases: Vec<BlockRange>,
    /// The bytes of these.
    pub base_bytes: Vec<u8>,
}

/// Encodes `new` as the content of `bin` against what `older` has to offer; `None` if that has
/// nothing to give. What looks most alike is tried first: where it explains nearly everything, nothing
/// else is read.
pub fn encode<B: OlderBlocks>(
    scratch: &mut Scratch,
    encoder: &mut FrameEncoder,
    bin: Bin,
    new: &[u8],
    older: &Older<'_, B>,
    level: i32,
) -> Result<Option<Delta>, B::Error> {
    // A frame's bin is never below a granule.
    let Some(run) = bin.blocks() else { return Ok(None) };
    let prospects = Prospects::new(older, run, new);
    let mut candidates = prospects.likeliest(older)?;
    let mut copies = find_copies(&mut scratch.seeds, &candidates.bytes, new);
    if let Some(more) = prospects.more(older, &candidates, &copies, new.len())? {
        candidates = more;
        copies = find_copies(&mut scratch.seeds, &candidates.bytes, new);
    }
    Ok(encode_copies(scratch, encoder, bin, new, &candidates, copies, level))
}

/// Encodes `new` as copies from the candidates, and the rest.
fn encode_copies(
    scratch: &mut Scratch,
    encoder: &mut FrameEncoder,
    bin: Bin,
    new: &[u8],
    candidates: &Candidates,
    copies: Vec<Copy>,
    level: i32,
) -> Option<Delta> {
    let (copies, used) = choose_base(copies, &candidates.blocks, new, &candidates.bytes);
    if used.is_empty() {
        return None;
    }
    let mut bases: Vec<BlockRange> = Vec::new();
    let mut bytes = Vec::with_capacity(used.len() * BLOCK);
    // Where each candidate block lies in the base that is left.
    let mut moved = BTreeMap::new();
    for position in used {
        let block = candidates.blocks[position];
        match bases.last_mut() {
            Some(last) if last.end() == block => last.count += 1,
            _ => bases.push(BlockRange::new(block, 1)),
        }
        moved.insert(position, bytes.len());
        bytes.extend_from_slice(&candidates.bytes[position * BLOCK..(position + 1) * BLOCK]);
    }
    let copies: Vec<Copy> = copies
        .into_iter()
        .map(|copy| Copy { base: moved[&(copy.base / BLOCK)] + copy.base % BLOCK, ..copy })
        .collect();
    let copies = realign(&mut scratch.columns, copies, &bytes, new);
    let copies = without_noise(&copies, &bytes, new);
    let operations = operations(&copies, &bytes, new);
    let frame = encoder.delta(bin, &operations, new, &bytes, level)?;
    Some(Delta { frame, bases, base_bytes: bytes })
}

/// Keeps the copies whose blocks are worth it, within the bounds of a base: the copies, and the
/// positions of the candidates that they need.
fn choose_base(
    copies: Vec<Copy>,
    blocks: &[BlockIndex],
    new: &[u8],
    base: &[u8],
) -> (Vec<Copy>, Vec<usize>) {
    let gain = |copy: &Copy| {
        let pair = new[copy.new..copy.new + copy.len].iter().zip(&base[copy.base..]);
        pair.filter(|(a, b)| a == b).count()
    };
    let positions = |copy: &Copy| copy.base / BLOCK..=(copy.base + copy.len - 1) / BLOCK;
    let mut gains: BTreeMap<usize, usize> = BTreeMap::new();
    for copy in &copies {
        let gain = gain(copy) / positions(copy).count();
        for position in positions(copy) {
            *gains.entry(position).or_default() += gain;
        }
    }
    // Extents of candidates that are used, with what they give.
    let mut extents: Vec<(usize, usize, usize)> = Vec::new();
    for (position, gain) in gains {
        match extents.last_mut() {
            Some((_, last, sum))
                if blocks[position].0.wrapping_sub(blocks[*last].0)
                    == (position - *last) as u64
                    && (position - *last) as u64 <= GAP_BLOCKS_MAX + 1 =>
            {
                *last = position;
                *sum += gain;
            }
            _ => extents.push((position, position, gain)),
        }
    }
    extents.sort_by_key(|(first, _, gain)| (std::cmp::Reverse(*gain), *first));
    let mut room = FRAME_BASE_BLOCKS_MAX as usize;
    extents.retain(|(first, last, gain)| {
        let count = last - first + 1;
        let kept = *gain >= EXTENT_BYTES_MIN && count <= room;
        if kept {
            room -= count;
        }
        kept
    });
    extents.truncate(FRAME_BASE_EXTENTS_MAX);
    extents.sort_unstable();
    let mut used: Vec<usize> = extents.iter().flat_map(|(first, last, _)| *first..=*last).collect();
    used.dedup();
    let held = |position: usize| used.binary_search(&position).is_ok();
    let mut copies = copies;
    copies.retain(|copy| positions(copy).all(held));
    (copies, used)
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;
    use distd_core::frame::{FrameDecoder, FrameEntry};
    use distd_core::unit::ByteRange;
    use proptest::prelude::*;

    /// Encodes and decodes again; the frame's length.
    fn round(bin: Bin, new: &[u8], candidates: &Candidates) -> Option<usize> {
        let copies = find_copies(&mut Seeds::default(), &candidates.bytes, new);
        let scratch = &mut Scratch::default();
        let encoder = &mut FrameEncoder::new();
        let delta = encode_copies(scratch, encoder, bin, new, candidates, copies, 3)?;
        let block = |block: BlockIndex| {
            let at = candidates.blocks.iter().position(|known| *known == block).expect("offered");
            &candidates.bytes[at * BLOCK..(at + 1) * BLOCK]
        };
        let bases: Vec<u8> =
            delta.bases.iter().flat_map(|range| range.iter()).flat_map(block).copied().collect();
        let range = ByteRange { offset: 1 << 30, len: delta.frame.len() as u64 };
        let entry = FrameEntry { bin, range, bases: delta.bases };
        let decoded = FrameDecoder::new().decode(&entry, &delta.frame, &bases).expect("sound");
        assert!(decoded == new);
        Some(delta.frame.len())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn what_was_encoded_is_decoded(
            edits in proptest::collection::vec((0usize..65_000, 0usize..300, any::<u8>(), 0u8..4), 0..60),
            gaps in proptest::collection::vec(1u64..40, 16..40),
        ) {
            let mut at = 0;
            let blocks: Vec<BlockIndex> = gaps.iter().map(|gap| { at += gap; BlockIndex(at) }).collect();
            let candidates = Candidates { bytes: noise(3, blocks.len() * BLOCK), blocks };
            let bin = Bin::new(6, 1000);
            let mut new = candidates.bytes[..1 << 16].to_vec();
            for (from, len, value, how) in edits {
                let from = from.min(new.len() - 1);
                let end = (from + len).min(new.len());
                match how {
                    0 => new[from..end].iter_mut().for_each(|byte| *byte = byte.wrapping_add(value)),
                    1 => drop(new.drain(from..end)),
                    2 => drop(new.splice(from..from, noise(u64::from(value), len))),
                    _ => new[from] = value,
                }
            }
            new.resize(1 << 16, 0);
            round(bin, &new, &candidates);
        }
    }

    #[test]
    fn shifted_addresses_cost_almost_nothing() {
        let bin = Bin::new(6, 1000);
        let numbers = |shift: u32| -> Vec<u8> {
            let table: Vec<u8> = (0..1u32 << 12)
                .flat_map(|i| {
                    let address = u64::from(i.wrapping_mul(0x9e37) % 0x00ff_ffff + shift);
                    let name = i.wrapping_mul(2_654_435_761);
                    [&address.to_le_bytes()[..], &name.to_le_bytes(), &(!name).to_be_bytes()]
                        .concat()
                })
                .collect();
            assert_eq!(table.len(), 1 << 16);
            table
        };
        let blocks = (0..16).map(BlockIndex).collect();
        let candidates = Candidates { blocks, bytes: numbers(0) };
        let len = round(bin, &numbers(0x40), &candidates).expect("similar");
        assert!(len < 400, "{len}");
    }
}

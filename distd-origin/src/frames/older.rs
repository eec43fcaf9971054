//! What older releases offer as bases: their blocks, what hints say of them, and where in them what
//! lies.

use distd_core::limits::BLOCK_BYTES;
use distd_core::store::{OriginLog, ReadError};
use distd_core::unit::{BlockIndex, BlockRange};
use rayon::prelude::*;

use super::anchors::Anchors;
use super::candidates::Candidates;

/// Blocks of a region: what anchors point to.
pub(super) const REGION_BLOCKS: u64 = 8;
/// Regions that are read at once when anchors are made.
const READ_REGIONS: u64 = 64;
/// Reads older blocks.
pub trait OlderBlocks: Sync {
    /// Why they cannot be read.
    type Error: Send;

    /// Reads blocks; `out` is as long as they are.
    fn read(&self, blocks: BlockRange, out: &mut [u8]) -> Result<(), Self::Error>;
}

impl OlderBlocks for OriginLog {
    type Error = ReadError;

    fn read(&self, blocks: BlockRange, out: &mut [u8]) -> Result<(), ReadError> {
        self.read_blocks(blocks, out)
    }
}

/// New blocks, and the older ones at the same place of the same file (or of one of that name).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The new blocks.
    pub new: BlockRange,
    /// Older blocks to try for them.
    pub older: BlockRange,
    /// These only lie around the likeliest ones.
    pub around: bool,
}

/// All blocks that new runs may be compared with.
pub struct Older<'a, B: OlderBlocks> {
    blocks: &'a B,
    /// Sorted and apart, with the number of each one's first region.
    ranges: Vec<(BlockRange, u32)>,
    anchors: Anchors,
    /// By the new blocks.
    hints: Vec<Hint>,
}

impl<'a, B: OlderBlocks> Older<'a, B> {
    /// Reads all of `ranges` (sorted, apart) once and remembers where what lies.
    pub fn new(
        blocks: &'a B,
        ranges: &[BlockRange],
        mut hints: Vec<Hint>,
    ) -> Result<Self, B::Error> {
        let mut regions = 0;
        let numbered = ranges.iter().map(|range| {
            let first = regions;
            regions += range.count.div_ceil(REGION_BLOCKS) as u32;
            (*range, first)
        });
        let ranges: Vec<_> = numbered.collect();
        let bytes = ranges.iter().map(|(range, _)| range.byte_len()).sum();
        let anchors = Anchors::new(bytes);
        let parts: Vec<(BlockRange, u32)> = ranges
            .iter()
            .flat_map(|(range, first)| {
                let step = READ_REGIONS * REGION_BLOCKS;
                (0..range.count).step_by(step as usize).map(move |at| {
                    let start = BlockIndex(range.start.0 + at);
                    let part = BlockRange::new(start, step.min(range.count - at));
                    (part, first + (at / REGION_BLOCKS) as u32)
                })
            })
            .collect();
        parts.par_iter().try_for_each_init(Vec::new, |buffer, (part, first)| {
            buffer.resize(part.byte_len() as usize, 0);
            blocks.read(*part, buffer)?;
            for (i, region) in buffer.chunks((REGION_BLOCKS * BLOCK_BYTES) as usize).enumerate() {
                anchors.insert(first + i as u32, region);
            }
            Ok(())
        })?;
        hints.sort_unstable_by_key(|hint| (hint.new, hint.older));
        Ok(Self { blocks, ranges, anchors, hints })
    }

    /// The hints for blocks of a run.
    pub fn hints(&self, run: BlockRange) -> impl Iterator<Item = Hint> {
        let from = self.hints.partition_point(|hint| hint.new.end() <= run.start);
        self.hints[from..].iter().copied().take_while(move |hint| hint.new.start < run.end())
    }

    /// Calls `found` with the region of each anchor of `bytes` that is known.
    pub fn anchors(&self, bytes: &[u8], found: impl FnMut(u32)) {
        self.anchors.find(bytes, found);
    }

    /// Reads blocks, which are sorted.
    pub fn candidates(&self, blocks: Vec<BlockIndex>) -> Result<Candidates, B::Error> {
        let extents: Vec<BlockRange> = blocks
            .chunk_by(|a, b| a.0 + 1 == b.0)
            .map(|extent| BlockRange::new(extent[0], extent.len() as u64))
            .collect();
        Ok(Candidates { bytes: self.read_all(&extents)?, blocks })
    }

    /// The bytes of blocks, one range after the other.
    fn read_all(&self, ranges: &[BlockRange]) -> Result<Vec<u8>, B::Error> {
        let len: u64 = ranges.iter().map(|range| range.byte_len()).sum();
        let mut bytes = vec![0; len as usize];
        let mut rest = bytes.as_mut_slice();
        for range in ranges {
            let (out, after) = rest.split_at_mut(range.byte_len() as usize);
            self.blocks.read(*range, out)?;
            rest = after;
        }
        Ok(bytes)
    }

    /// The blocks of a region, if there is such a one.
    pub fn region(&self, region: u32) -> Option<BlockRange> {
        let after = self.ranges.partition_point(|(_, first)| *first <= region);
        let (range, first) = self.ranges.get(after.checked_sub(1)?)?;
        let at = u64::from(region - first) * REGION_BLOCKS;
        let count = REGION_BLOCKS.min(range.count.checked_sub(at)?);
        Some(BlockRange::new(BlockIndex(range.start.0 + at), count))
    }
}

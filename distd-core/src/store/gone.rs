//! What of an origin's log is gone on purpose: content that no retained release needs.
//!
//! One bit a block in the map of its segment. A bit is durable before the content goes and is never
//! cleared, for no address is used twice: so after a kill at any instant a block is there, or known to
//! be gone, and what is marked can be given back again. Records of munros stay, and hash tables down to
//! the granules wherever something of a munro stays: what is left keeps its proofs.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::limits::{BLOCK_BYTES, BLOCK_LAYER, GRANULE_BYTES, GRANULE_LAYER};
use crate::tree::{MunroTree, NodeHash};
use crate::unit::{Bin, BlockRange, MunroIndex};

use super::directory::{Access, Directory};
use super::nodes::{by_munro, table_bytes};
use super::presence::{
    Bits, and, and_not, bits_from_bytes, bits_of, bits_to_bytes, or, push_joined, runs,
};
use super::segment::{
    DescriptorPool, Kind, SEGMENT_MUNROS, SegmentFile, Segments, TABLE_BYTES, content_offset,
    map_offset, table_offset,
};
use super::{AppendError, Appender, DiskError, OpenError, OriginLog, ReadError};

/// All blocks of a munro.
pub(super) const ALL: Bits = [u64::MAX; 4];
/// Blocks of a granule.
const GRANULE_BLOCKS: u64 = GRANULE_BYTES / BLOCK_BYTES;

/// The blocks of a munro that are gone on purpose.
pub(super) fn gone_bits(file: &SegmentFile, munro: MunroIndex) -> Result<Bits, DiskError> {
    let mut bytes = [0; 32];
    file.read(map_offset(munro), &mut bytes)?;
    Ok(bits_from_bytes(&bytes))
}

impl OriginLog {
    /// The parts of `blocks` that are gone on purpose, ascending.
    pub fn gone(&self, blocks: BlockRange) -> Result<Vec<BlockRange>, ReadError> {
        let mut gone = Vec::new();
        for (munro, part) in by_munro(blocks) {
            let Some(file) = self.segments().open(Segments::number_of(munro))? else { continue };
            let bits = and(gone_bits(&file, munro)?, bits_of(part));
            for run in runs(munro, bits) {
                push_joined(&mut gone, run);
            }
        }
        Ok(gone)
    }

    /// The parts of `blocks` that are not gone, ascending.
    pub fn retained(&self, blocks: BlockRange) -> Result<Vec<BlockRange>, ReadError> {
        let mut retained = Vec::new();
        let mut next = blocks.start;
        for gone in self.gone(blocks)? {
            push_joined(&mut retained, BlockRange::new(next, gone.start.0 - next.0));
            next = gone.end();
        }
        push_joined(&mut retained, BlockRange::new(next, blocks.end().0 - next.0));
        Ok(retained)
    }

    /// Marks blocks of the log in `dir` (whole granules, committed) as gone on purpose, durably.
    pub fn mark_gone(dir: &Path, gone: &[BlockRange]) -> Result<(), AppendError> {
        let segments = writable(dir)?;
        let mut touched = BTreeSet::new();
        for blocks in gone {
            let granules = blocks.start.0.is_multiple_of(GRANULE_BLOCKS)
                && blocks.count.is_multiple_of(GRANULE_BLOCKS);
            assert!(granules, "only whole granules go");
            for (munro, part) in by_munro(*blocks) {
                let number = Segments::number_of(munro);
                let file = segments.open_or_create(number)?;
                let before = gone_bits(&file, munro)?;
                let bits = or(before, bits_of(part));
                if bits != before {
                    file.write(map_offset(munro), &bits_to_bytes(bits))?;
                    touched.insert(number);
                }
            }
        }
        for number in touched {
            segments.open_or_create(number)?.sync()?;
        }
        Ok(())
    }

    /// Gives back the space of everything that is marked as gone; the bytes that came free. `progress`
    /// is told segments done and to do. May run beside everything else, and again.
    pub fn free_gone(dir: &Path, mut progress: impl FnMut(u64, u64)) -> Result<u64, AppendError> {
        let segments = writable(dir)?;
        let numbers = segments.list()?;
        let mut freed = 0;
        for (done, number) in numbers.iter().enumerate() {
            if let Some(file) = segments.open(*number)? {
                let before = file.allocated_bytes()?;
                free(&file, *number)?;
                freed += before.saturating_sub(file.allocated_bytes()?);
            }
            progress(done as u64 + 1, numbers.len() as u64);
        }
        Ok(freed)
    }
}

fn writable(dir: &Path) -> Result<Segments, OpenError> {
    let origin = OriginLog::open(dir)?.origin();
    let pool = Arc::new(DescriptorPool::new());
    let directory = Arc::new(Directory::public(dir)?);
    Ok(Segments::new(directory, Kind::Log, origin, Access::Write, pool))
}

/// Gives back what is gone of one segment.
fn free(file: &SegmentFile, number: u64) -> Result<(), DiskError> {
    let mut gone = Vec::new();
    let mut tables: Vec<(u64, u64)> = Vec::new();
    for munro in (0..SEGMENT_MUNROS).map(|at| MunroIndex(number * SEGMENT_MUNROS + at)) {
        let bits = gone_bits(file, munro)?;
        for run in runs(munro, bits) {
            push_joined(&mut gone, run);
        }
        if bits == ALL {
            match tables.last_mut() {
                Some((offset, len)) if *offset + *len == table_offset(munro) => *len += TABLE_BYTES,
                _ => tables.push((table_offset(munro), TABLE_BYTES)),
            }
        }
    }
    for blocks in gone {
        file.punch(content_offset(blocks.start), blocks.byte_len())?;
    }
    tables.into_iter().try_for_each(|(offset, len)| file.punch(offset, len))
}

impl Appender {
    /// Stores `content` of `blocks` (whole granules, committed, as [`OriginLog::read_blocks`] gave it)
    /// plain, with the hashes below the granules: the full frames that hold it are to go. It is
    /// durable with the commit.
    pub fn keep_plain(&mut self, blocks: BlockRange, content: &[u8]) -> Result<(), AppendError> {
        let mut rest = content;
        for (munro, part) in by_munro(blocks) {
            let (content, after) = rest.split_at(part.byte_len() as usize);
            rest = after;
            let number = Segments::number_of(munro);
            let file = self.segments.open_or_create(number)?;
            self.touched.insert(number);
            file.write(content_offset(part.start), content)?;
            let granules = content.chunks_exact(GRANULE_BYTES as usize);
            let starts = part.iter().step_by(GRANULE_BLOCKS as usize);
            for (start, content) in starts.zip(granules) {
                write_hashes(&file, munro, start.granule().bin(), content)?;
            }
        }
        Ok(())
    }
}

/// Writes the hashes of a granule's blocks, and of its pairs of blocks, to the munro's table.
fn write_hashes(
    file: &SegmentFile,
    munro: MunroIndex,
    granule: Bin,
    content: &[u8],
) -> Result<(), DiskError> {
    let first = granule.offset() << (GRANULE_LAYER - BLOCK_LAYER);
    let blocks: Vec<NodeHash> = content
        .chunks_exact(BLOCK_BYTES as usize)
        .zip(first..)
        .map(|(block, at)| NodeHash::of_bytes(Bin::new(BLOCK_LAYER, at), block))
        .collect();
    let (pairs, _) = blocks.as_chunks::<2>();
    let pairs: Vec<NodeHash> =
        pairs.iter().map(|[left, right]| NodeHash::parent(*left, *right)).collect();
    for (layer, hashes) in [(BLOCK_LAYER, blocks), (BLOCK_LAYER + 1, pairs)] {
        let bin = Bin::new(layer, granule.offset() << (GRANULE_LAYER - layer));
        let Some(slot) = MunroTree::slot(bin) else { continue };
        file.write(table_offset(munro) + slot as u64 * 32, &table_bytes(&hashes))?;
    }
    Ok(())
}

/// Blocks of a munro that are not gone.
pub(super) fn retained_runs(munro: MunroIndex, gone: Bits) -> Vec<BlockRange> {
    runs(munro, and_not(ALL, gone))
}

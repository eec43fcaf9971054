//! Reading what an origin keeps only as full frames: plain bytes come from a decoder.
//!
//! Section F, its index and the heads are stored as they are; a run of section P that a full frame
//! covers is not stored a second time. What was decoded last is kept, within a bound that counts
//! decoded bytes.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use lru::LruCache;

use crate::frame::{EpochItem, EpochList, FrameDecoder, FrameEntry, IndexEntry, MunroFrames, Part};
use crate::head::Head;
use crate::limits::{GRANULE_BYTES, GRANULE_LAYER};
use crate::tree::VerifiedMunro;
use crate::unit::{Bin, BlockRange, ByteRange, MunroIndex};

use super::log::Patience;
use super::nodes::MunroNodes;
use super::segment::SegmentFile;
use super::{OriginLog, ReadError};

/// Decoded bytes that are kept.
const DECODED_BYTES_MAX: usize = 32 << 20;
/// Munros whose record of full frames is kept, about 2 KiB each.
const RECORDS_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// What an [`OriginLog`] remembers of frames.
pub(super) struct Framed {
    /// The list of epochs, as the log of so many munros has it.
    epochs: Mutex<(u64, Arc<EpochList>)>,
    records: Mutex<LruCache<u64, Option<Arc<MunroFrames>>>>,
    decoded: Mutex<Decoded>,
}

struct Decoded {
    runs: LruCache<Bin, Bytes>,
    bytes: usize,
}

impl Framed {
    pub(super) fn new() -> Self {
        Self {
            epochs: Mutex::default(),
            records: Mutex::new(LruCache::new(RECORDS_MAX)),
            decoded: Mutex::new(Decoded { runs: LruCache::unbounded(), bytes: 0 }),
        }
    }
}

impl Decoded {
    fn put(&mut self, bin: Bin, bytes: Bytes) {
        self.bytes += bytes.len();
        if let Some(before) = self.runs.put(bin, bytes) {
            self.bytes -= before.len();
        }
        while self.bytes > DECODED_BYTES_MAX
            && let Some((_, oldest)) = self.runs.pop_lru()
        {
            self.bytes -= oldest.len();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each of them is whole after every statement: a panic elsewhere leaves it so.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OriginLog {
    /// The epochs that have frames, as the newest head lists them.
    pub fn epochs(&self) -> Result<Arc<EpochList>, ReadError> {
        self.epochs_as(Patience::Waits)
    }

    fn epochs_as(&self, patience: Patience) -> Result<Arc<EpochList>, ReadError> {
        let Some(commit) = self.committed() else { return Ok(Arc::default()) };
        let (munros, known) = lock(&self.framed().epochs).clone();
        if munros == commit.munros {
            return Ok(known);
        }
        if patience == Patience::None {
            return Err(ReadError::WouldBlock);
        }
        // Without a list, what only frames hold reads as damaged, and all else as it is: so one
        // damaged block of the head does not take the whole log with it.
        let Ok(list) = self.read_epochs(commit.munros) else { return Ok(known) };
        let list = Arc::new(list);
        *lock(&self.framed().epochs) = (commit.munros, Arc::clone(&list));
        Ok(list)
    }

    fn read_epochs(&self, munros: u64) -> Result<EpochList, ReadError> {
        let head = BlockRange::new(Head::block(munros), 1);
        let range = ByteRange { offset: head.byte_offset(), len: head.byte_len() };
        let block = self.read_stored(range)?;
        // A block that is no head says nothing of frames; whoever wants the head finds out.
        match Head::decode(MunroIndex(munros - 1), &block).map(|head| head.epochs) {
            Ok(range) if range.len > 0 => Ok(EpochList::decode(&self.read_stored(range)?)?),
            _ => Ok(EpochList::default()),
        }
    }

    /// A munro's frames; `None` if it has none of that kind.
    pub fn frames(&self, munro: MunroIndex, part: Part) -> Result<Option<MunroFrames>, ReadError> {
        let epochs = self.epochs()?;
        match epochs.covering(munro.blocks().start) {
            Some(item) => self.read_record(item, self.munro(munro)?, part),
            None => Ok(None),
        }
    }

    fn read_record(
        &self,
        item: &EpochItem,
        trust: VerifiedMunro,
        part: Part,
    ) -> Result<Option<MunroFrames>, ReadError> {
        let Some(range) = item.entry_range(trust.munro()) else { return Ok(None) };
        let entry = self.read_stored(range)?;
        let entry = IndexEntry::decode(trust.munro(), item.signed_at(), &self.origin(), &entry)?;
        let Some(range) = entry.record(part) else { return Ok(None) };
        Ok(Some(MunroFrames::decode(trust, part, &self.read_stored(range)?)?))
    }

    /// The full frames that stand for the munro's plain bytes.
    fn full_frames(
        &self,
        trust: VerifiedMunro,
        patience: Patience,
    ) -> Result<Option<Arc<MunroFrames>>, ReadError> {
        let epochs = self.epochs_as(patience)?;
        let Some(item) = epochs.covering(trust.munro().blocks().start) else { return Ok(None) };
        if let Some(known) = lock(&self.framed().records).get(&trust.munro().0) {
            return Ok(known.clone());
        }
        if patience == Patience::None {
            return Err(ReadError::WouldBlock);
        }
        let frames = self.read_record(item, trust, Part::Full)?.map(Arc::new);
        lock(&self.framed().records).put(trust.munro().0, frames.clone());
        Ok(frames)
    }

    /// The content of blocks of one munro, stored or decoded. What was decoded is verified, what was
    /// stored is not yet.
    pub(super) fn content(
        &self,
        nodes: &MunroNodes,
        file: &SegmentFile,
        blocks: BlockRange,
        patience: Patience,
    ) -> Result<Bytes, ReadError> {
        let Some(frames) = self.full_frames(nodes.trust(), patience)? else {
            return Ok(patience.read(file, blocks)??);
        };
        let mut parts = Vec::new();
        let mut at = blocks;
        for entry in frames.covering(blocks) {
            let part = entry.blocks().intersection(blocks);
            if at.start < part.start {
                let before = BlockRange::new(at.start, part.start.0 - at.start.0);
                parts.push(patience.read(file, before)??);
            }
            let run = self.decoded(nodes, entry, patience)?;
            let from = (part.byte_offset() - entry.blocks().byte_offset()) as usize;
            parts.push(run.slice(from..from + part.byte_len() as usize));
            at = BlockRange::new(part.end(), blocks.end().0 - part.end().0);
        }
        if !at.is_empty() {
            parts.push(patience.read(file, at)??);
        }
        if let [only] = parts.as_slice() {
            return Ok(only.clone());
        }
        let mut bytes = BytesMut::with_capacity(blocks.byte_len() as usize);
        for part in &parts {
            bytes.extend_from_slice(part);
        }
        Ok(bytes.freeze())
    }

    /// What a full frame decodes to, verified; the munro's tree knows all its nodes then.
    pub(super) fn decoded(
        &self,
        nodes: &MunroNodes,
        entry: &FrameEntry,
        patience: Patience,
    ) -> Result<Bytes, ReadError> {
        let known = lock(&self.framed().decoded).runs.get(&entry.bin).cloned();
        let bytes = match known {
            Some(bytes) => bytes,
            None if patience == Patience::None => return Err(ReadError::WouldBlock),
            None => {
                let frame = self.read_stored(entry.range)?;
                Bytes::from(FrameDecoder::new().decode(entry, &frame, &[])?)
            }
        };
        let right = if nodes.proves(entry.blocks().start) {
            nodes.wrong(entry.blocks(), &bytes).is_empty()
        } else {
            // Where frames hold the content, the disk has no hashes below granules.
            let granules = bytes.chunks_exact(GRANULE_BYTES as usize).enumerate();
            let first = entry.bin.chunks().start.0 >> GRANULE_LAYER;
            nodes.verify(entry.bin, bytes.clone()).is_ok()
                && granules
                    .map(|(i, content)| (Bin::new(GRANULE_LAYER, first + i as u64), content))
                    .all(|(granule, content)| nodes.learn_blocks(granule, content))
        };
        if !right {
            return Err(ReadError::Damaged { blocks: entry.blocks() });
        }
        lock(&self.framed().decoded).put(entry.bin, bytes.clone());
        Ok(bytes)
    }
}

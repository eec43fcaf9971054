//! Reading what an origin keeps only as full frames: plain bytes come from a decoder.
//!
//! Section F, its index and the heads are stored as they are; a run of section P that a full frame
//! covers is not stored a second time. What was decoded last is kept, within a bound that counts
//! decoded bytes.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use lru::LruCache;

use crate::frame::{
    EpochItem, EpochList, FrameDecoders, FrameEntry, IndexEntry, MunroFrames, Part,
};
use crate::head::Head;
use crate::limits::GRANULE_LAYER;
use crate::tree::VerifiedMunro;
use crate::unit::{Bin, BlockRange, ByteRange, MunroIndex};

use super::nodes::MunroNodes;
use super::segment::{SegmentFile, content_offset};
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
    decoders: FrameDecoders,
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
            decoders: FrameDecoders::default(),
        }
    }
}

impl Framed {
    /// Reads the list of epochs and its records again when they are used next.
    pub(super) fn forget(&self) {
        *lock(&self.epochs) = <_>::default();
        lock(&self.records).clear();
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
        let Some(commit) = self.committed() else { return Ok(Arc::default()) };
        let (munros, known) = lock(&self.framed().epochs).clone();
        if munros == commit.munros {
            return Ok(known);
        }
        // Without a list, what only frames hold reads as damaged, and all else as it is: so one
        // damaged block of the head does not take the whole log with it.
        let Ok(list) = self.read_epochs(commit.munros) else { return Ok(known) };
        let list = Arc::new(list);
        *lock(&self.framed().epochs) = (commit.munros, Arc::clone(&list));
        // A prune lists frames anew.
        lock(&self.framed().records).clear();
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

    /// What an epoch's index says of a munro; `None` for a munro of another epoch.
    pub fn index_entry(
        &self,
        item: &EpochItem,
        munro: MunroIndex,
    ) -> Result<Option<IndexEntry>, ReadError> {
        let Some(range) = item.entry_range(munro) else { return Ok(None) };
        let entry = self.read_stored(range)?;
        Ok(Some(IndexEntry::decode(munro, item.signed_at(), &self.origin(), &entry)?))
    }

    fn read_record(
        &self,
        item: &EpochItem,
        trust: VerifiedMunro,
        part: Part,
    ) -> Result<Option<MunroFrames>, ReadError> {
        let Some(entry) = self.index_entry(item, trust.munro())? else { return Ok(None) };
        let Some(range) = entry.record(part) else { return Ok(None) };
        Ok(Some(MunroFrames::decode(trust, part, &self.read_stored(range)?)?))
    }

    /// The full frames that stand for the munro's plain bytes.
    fn full_frames(&self, trust: VerifiedMunro) -> Result<Option<Arc<MunroFrames>>, ReadError> {
        let epochs = self.epochs()?;
        let Some(item) = epochs.covering(trust.munro().blocks().start) else { return Ok(None) };
        if let Some(known) = lock(&self.framed().records).get(&trust.munro().0) {
            return Ok(known.clone());
        }
        let frames = self.read_record(item, trust, Part::Full)?.map(Arc::new);
        lock(&self.framed().records).put(trust.munro().0, frames.clone());
        Ok(frames)
    }

    /// The content of blocks of one munro. `stored` reads what is stored as it is; what is decoded
    /// from frames is verified.
    pub(super) fn content(
        &self,
        nodes: &MunroNodes,
        blocks: BlockRange,
        stored: impl Fn(BlockRange) -> Result<Bytes, ReadError>,
    ) -> Result<Bytes, ReadError> {
        let Some(frames) = self.full_frames(nodes.trust())? else { return stored(blocks) };
        let mut parts = Vec::new();
        let mut at = blocks;
        for entry in frames.covering(blocks) {
            let part = entry.blocks().intersection(blocks);
            if at.start < part.start {
                parts.push(stored(BlockRange::new(at.start, part.start.0 - at.start.0))?);
            }
            let run = self.decoded(nodes, entry)?;
            let from = (part.byte_offset() - entry.blocks().byte_offset()) as usize;
            parts.push(run.slice(from..from + part.byte_len() as usize));
            at = BlockRange::new(part.end(), blocks.end().0 - part.end().0);
        }
        if !at.is_empty() {
            parts.push(stored(at)?);
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

    /// What a full frame decodes to, verified.
    pub(super) fn decoded(
        &self,
        nodes: &MunroNodes,
        entry: &FrameEntry,
    ) -> Result<Bytes, ReadError> {
        if let Some(known) = lock(&self.framed().decoded).runs.get(&entry.bin) {
            return Ok(known.clone());
        }
        let frame = self.read_stored(entry.range)?;
        let bytes = Bytes::from(self.framed().decoders.decode(entry, &frame, &[])?);
        if !nodes.wrong(entry.blocks(), &bytes).is_empty() {
            return Err(ReadError::Damaged { blocks: entry.blocks() });
        }
        lock(&self.framed().decoded).put(entry.bin, bytes.clone());
        Ok(bytes)
    }

    /// Proves the blocks of a bin that is less than a granule one by one, from the whole granule:
    /// where frames hold the content, the disk has no hashes below granules.
    pub(super) fn prove_blocks(
        &self,
        nodes: &MunroNodes,
        file: &SegmentFile,
        bin: Bin,
    ) -> Result<(), ReadError> {
        let Some(first) = bin.blocks().map(|blocks| blocks.start) else { return Ok(()) };
        if bin.layer() >= GRANULE_LAYER || nodes.proves(first) {
            return Ok(());
        }
        let granule = first.granule();
        let content =
            self.content(nodes, granule.blocks(), |blocks| read_stored_blocks(file, blocks))?;
        // What is wrong is found out by the read that follows.
        nodes.learn_blocks(granule.bin(), &content);
        Ok(())
    }
}

/// Blocks as they are stored, not verified.
pub(super) fn read_stored_blocks(
    file: &SegmentFile,
    blocks: BlockRange,
) -> Result<Bytes, ReadError> {
    Ok(file.read_vec(content_offset(blocks.start), blocks.byte_len() as usize)?.into())
}

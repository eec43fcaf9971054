//! An epoch's frame index: a table with one signed entry a munro of P, and two records for each.
//!
//! ```text
//! section F   | frames | update records | full records | table | epoch list |
//! entry       hash (32)  signature (64)  update record (8, 4)  full record (8, 4)
//! record      layer (1)  hashes of the munro's bins on that layer (32 each)  frames
//! ```

use bytes::Bytes;

use crate::keys::{NtpTime, OriginId};
use crate::limits::{
    DELTA_FRAME_LAYER, FRAME_BASE_BLOCKS_MAX, FRAME_BASE_EXTENTS_MAX, FRAME_LAYER_MIN,
    FRAME_RECORD_BYTES_MAX, LOG_MUNROS_MAX, MUNRO_BYTES, MUNRO_LAYER,
};
use crate::tree::{
    MunroTree, NodeHash, SignatureError, SignedMunro, VerifiedMunro, VerifiedRun, VerifyError,
};
use crate::unit::{Bin, BlockIndex, BlockRange, ByteRange, MunroIndex};

use super::bytes::{Reader, put_signed, put_varint};

/// Bytes of one entry of the table.
pub(super) const ENTRY_BYTES: u64 = 120;

/// Why the bytes are no part of an index.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IndexError {
    /// Not a list of epochs.
    #[error("the list of epochs with frames is damaged or not in order")]
    Epochs,
    /// Not an entry.
    #[error("the frame index's entry of munro {munro} is cut off or refers to what cannot be")]
    Entry {
        /// Which munro.
        munro: MunroIndex,
    },
    /// The signature in an entry is not the origin's.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Not a record.
    #[error("the frame index's record of munro {munro}: {what}")]
    Record {
        /// Which munro.
        munro: MunroIndex,
        /// What is wrong.
        what: &'static str,
    },
}

/// Which of a munro's two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Delta frames: for who holds what was there before.
    Update,
    /// Full frames: they need nothing else.
    Full,
}

/// What the index says of one munro.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The munro, signed by the origin.
    pub munro: VerifiedMunro,
    update: ByteRange,
    full: ByteRange,
}

impl IndexEntry {
    /// An entry; a record of no bytes is none.
    pub const fn new(munro: VerifiedMunro, update: ByteRange, full: ByteRange) -> Self {
        Self { munro, update, full }
    }

    /// The bytes of one of the munro's records; `None` if it has no such frames.
    pub const fn record(&self, part: Part) -> Option<ByteRange> {
        let range = match part {
            Part::Update => self.update,
            Part::Full => self.full,
        };
        if range.len == 0 { None } else { Some(range) }
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let signed = self.munro.signed();
        let mut bytes = signed.hash.0.to_vec();
        bytes.extend(signed.signature);
        for range in [self.update, self.full] {
            bytes.extend(range.offset.to_be_bytes());
            bytes.extend((range.len as u32).to_be_bytes());
        }
        bytes
    }

    /// From the bytes of [`super::EpochItem::entry_range`], with that epoch's time.
    pub fn decode(
        munro: MunroIndex,
        time: NtpTime,
        origin: &OriginId,
        bytes: &[u8],
    ) -> Result<Self, IndexError> {
        let damaged = || IndexError::Entry { munro };
        let mut reader = Reader::new(bytes);
        let hash = NodeHash(reader.array().ok_or_else(damaged)?);
        let signature = reader.array().ok_or_else(damaged)?;
        let [update, full] = read_places(munro, &mut reader).ok_or_else(damaged)?;
        let munro = SignedMunro { munro, hash, time, signature }.verify(origin)?;
        Ok(Self { munro, update, full })
    }

    /// Where an entry says that the munro's update and full record lie, to fetch them: nothing is checked
    /// against the origin's signature.
    pub fn places(munro: MunroIndex, bytes: &[u8]) -> Option<[ByteRange; 2]> {
        let (_, places) = bytes.split_at_checked(32 + 64)?;
        read_places(munro, &mut Reader::new(places))
    }
}

/// The two ranges at the end of an entry.
fn read_places(munro: MunroIndex, reader: &mut Reader<'_>) -> Option<[ByteRange; 2]> {
    let mut range = || {
        let offset = u64::from_be_bytes(reader.array()?);
        let len = u64::from(u32::from_be_bytes(reader.array()?));
        let range = ByteRange { offset, len };
        let sound = len <= FRAME_RECORD_BYTES_MAX
            && range.end().is_some()
            && (len == 0 || offset / MUNRO_BYTES > munro.0);
        sound.then_some(range)
    };
    let places = [range()?, range()?];
    reader.is_empty().then_some(places)
}

/// One frame: where it lies, what it decodes to, and what it needs for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameEntry {
    /// What it decodes to.
    pub bin: Bin,
    /// Its bytes in the log, to be fetched plain.
    pub range: ByteRange,
    /// The blocks that it needs, in the order in which their bytes are given to the decoder; they
    /// lie before its bin. None for a full frame.
    pub bases: Vec<BlockRange>,
}

impl FrameEntry {
    /// Bytes of its bases.
    pub fn base_bytes(&self) -> u64 {
        self.bases.iter().map(|blocks| blocks.byte_len()).sum()
    }

    /// The blocks that it decodes to.
    pub fn blocks(&self) -> BlockRange {
        // A frame's bin is never below a granule.
        self.bin.blocks().unwrap_or(BlockRange::new(BlockIndex(0), 0))
    }
}

/// One record: the hashes of a munro's bins on one layer, proved, and the frames of some of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MunroFrames {
    munro: VerifiedMunro,
    layer: u32,
    hashes: Vec<NodeHash>,
    frames: Vec<FrameEntry>,
}

impl MunroFrames {
    /// A record of frames, ascending, whose bins are of `layer`; `hashes` are those of all bins of
    /// that layer in the munro.
    ///
    /// # Panics
    /// If the number of hashes is not that of the layer.
    pub fn new(
        munro: VerifiedMunro,
        layer: u32,
        hashes: Vec<NodeHash>,
        frames: Vec<FrameEntry>,
    ) -> Self {
        assert_eq!(hashes.len(), 1 << (MUNRO_LAYER - layer), "every bin of the layer has its hash");
        Self { munro, layer, hashes, frames }
    }

    /// The same, with only the frames that `keep` wants.
    pub fn keeping(&self, keep: impl FnMut(&&FrameEntry) -> bool) -> Self {
        let frames = self.frames.iter().filter(keep).cloned().collect();
        Self { frames, hashes: self.hashes.clone(), ..*self }
    }

    /// The signed munro.
    pub const fn munro(&self) -> &VerifiedMunro {
        &self.munro
    }

    /// All frames, by position.
    pub fn frames(&self) -> &[FrameEntry] {
        &self.frames
    }

    /// The frames that decode to any of the blocks, by position.
    pub fn covering(&self, blocks: BlockRange) -> impl Iterator<Item = &FrameEntry> {
        let meets = move |frame: &&FrameEntry| !frame.blocks().intersection(blocks).is_empty();
        self.frames.iter().filter(meets)
    }

    /// Makes a verified run of what a frame decoded to.
    ///
    /// `tree` is the munro's, as far as the reader knows it; [`MunroTree::new`] with [`Self::munro`]
    /// will do. Only what this gives may be kept, served or handed to a reader.
    pub fn verify(
        &self,
        tree: &mut MunroTree,
        bin: Bin,
        bytes: Bytes,
    ) -> Result<VerifiedRun, VerifyError> {
        tree.verify_run(bin, bytes, |uncle| self.node(uncle))
    }

    /// The hash of a node on the record's layer or above it.
    pub fn node(&self, bin: Bin) -> Option<NodeHash> {
        if bin.munro() != Some(self.munro.munro()) || bin.layer() < self.layer {
            return None;
        }
        let first = self.munro.munro().0 << (MUNRO_LAYER - self.layer);
        let start = (bin.chunks().start.0 >> self.layer).checked_sub(first)? as usize;
        let count = 1usize << (bin.layer() - self.layer);
        fold(self.hashes.get(start..start + count)?)
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.layer as u8];
        bytes.extend(self.hashes.iter().flat_map(|hash| hash.0));
        let (mut position, mut end) = (self.first_bin(), 0u64);
        for frame in &self.frames {
            put_varint(&mut bytes, frame.bin.offset() - position);
            put_signed(&mut bytes, frame.range.offset as i64 - end as i64);
            put_varint(&mut bytes, frame.range.len);
            put_varint(&mut bytes, frame.bases.len() as u64);
            let mut from = frame.blocks().start.0;
            for base in &frame.bases {
                put_signed(&mut bytes, base.start.0 as i64 - from as i64);
                put_varint(&mut bytes, base.count);
                from = base.end().0;
            }
            position = frame.bin.offset() + 1;
            end = frame.range.offset + frame.range.len;
        }
        bytes
    }

    /// From the bytes of [`IndexEntry::record`].
    pub fn decode(munro: VerifiedMunro, part: Part, bytes: &[u8]) -> Result<Self, IndexError> {
        let wrong = |what| IndexError::Record { munro: munro.munro(), what };
        let mut reader = Reader::new(bytes);
        let layer = u32::from(reader.byte().ok_or(wrong("it is empty"))?);
        if !(FRAME_LAYER_MIN..=DELTA_FRAME_LAYER).contains(&layer) {
            return Err(wrong("its layer is out of bounds"));
        }
        let count = 1usize << (MUNRO_LAYER - layer);
        let (hashes, _) =
            reader.take(count * 32).ok_or(wrong("its hashes are cut off"))?.as_chunks();
        let hashes: Vec<NodeHash> = hashes.iter().copied().map(NodeHash).collect();
        if fold(&hashes) != Some(munro.hash()) {
            return Err(wrong("its hashes are not those that the origin signed"));
        }
        let mut record = Self { munro, layer, hashes, frames: Vec::new() };
        let (mut position, mut end) = (record.first_bin(), 0u64);
        while !reader.is_empty() {
            let frame = record.read_frame(&mut reader, position, end).map_err(wrong)?;
            if frame.bases.is_empty() != (part == Part::Full) {
                return Err(wrong("a frame of the other kind"));
            }
            position = frame.bin.offset() + 1;
            end = frame.range.offset + frame.range.len;
            record.frames.push(frame);
        }
        Ok(record)
    }

    fn first_bin(&self) -> u64 {
        self.munro.munro().0 << (MUNRO_LAYER - self.layer)
    }

    fn read_frame(
        &self,
        reader: &mut Reader<'_>,
        position: u64,
        end: u64,
    ) -> Result<FrameEntry, &'static str> {
        const CUT: &str = "a frame's numbers are cut off";
        let skipped = reader.varint().ok_or(CUT)?;
        let at = position.checked_add(skipped).ok_or("a frame of another munro")?;
        if at - self.first_bin() >= self.hashes.len() as u64 {
            return Err("a frame of another munro");
        }
        let bin = Bin::new(self.layer, at);
        let offset = end.checked_add_signed(reader.signed().ok_or(CUT)?);
        let len = reader.varint().ok_or(CUT)?;
        let range = ByteRange { offset: offset.ok_or("a frame outside of the log")?, len };
        if range.end().is_none() || range.offset / MUNRO_BYTES <= self.munro.munro().0 {
            return Err("a frame outside of the log, or not behind its run");
        }
        if len == 0 || len > bin.byte_len() {
            return Err("a frame that is longer than what it decodes to");
        }
        let count = reader.varint().ok_or(CUT)?;
        if count > FRAME_BASE_EXTENTS_MAX as u64 {
            return Err("a frame of too many base extents");
        }
        let mut frame = FrameEntry { bin, range, bases: Vec::with_capacity(count as usize) };
        let first = frame.blocks().start;
        let (mut from, mut blocks) = (first.0, 0u64);
        for _ in 0..count {
            let start = from.checked_add_signed(reader.signed().ok_or(CUT)?);
            let start = start.ok_or("a base outside of the log")?;
            let count = reader.varint().ok_or(CUT)?;
            blocks = blocks.saturating_add(count);
            if count == 0 || blocks > FRAME_BASE_BLOCKS_MAX {
                return Err("a base of no blocks, or of too many");
            }
            // Before its own run: so no frame can need itself, directly or through others.
            if start.checked_add(count).is_none_or(|end| end > first.0) {
                return Err("a base that does not lie before its run");
            }
            frame.bases.push(BlockRange::new(BlockIndex(start), count));
            from = start + count;
        }
        Ok(frame)
    }
}

/// The parent over a power of two of neighbouring nodes.
fn fold(hashes: &[NodeHash]) -> Option<NodeHash> {
    let mut layer = hashes.to_vec();
    while layer.len() > 1 {
        let (pairs, _) = layer.as_chunks::<2>();
        layer = pairs.iter().map(|[left, right]| NodeHash::parent(*left, *right)).collect();
    }
    layer.first().copied()
}

const _: () = assert!(LOG_MUNROS_MAX.checked_mul(MUNRO_BYTES).is_some());

//! The frames of one munro: a delta frame for each quarter of it where that is clearly smaller, full
//! frames for everything that compresses.

use distd_core::frame::{FrameDecoder, FrameEncoder, FrameEntry};
use distd_core::limits::{BLOCK_BYTES, DELTA_FRAME_LAYER, FULL_FRAME_LAYER, MUNRO_LAYER};
use distd_core::tree::{MunroTree, NodeHash};
use distd_core::unit::{Bin, BlockRange, ByteRange, MunroIndex};

use super::delta::{self, Delta, Scratch};
use super::older::{Older, OlderBlocks};

/// zstd level where the publisher does not choose one. Measured on a kernel package (411 MB in frames
/// of 64 KiB, CPU seconds): level 3 116 MB, 2.1 s; 5 112 MB, 5.4 s; 6 108 MB, 7.2 s. What an update
/// fetches hardly depends on it.
pub const LEVEL_DEFAULT: i32 = 3;
/// Highest level: beyond it zstd takes more memory than the rest of a publish.
pub const LEVEL_MAX: i32 = 19;

/// The streams of delta frames are small and worth more work. Measured on two versions of a Node.js
/// application (delta frames, CPU seconds for all of them): 9 above: 8.04 MB, 2.4 s; 12: 7.76 MB, 3.6 s;
/// 16: 7.72 MB, 8.8 s.
const DELTA_LEVEL_ABOVE: i32 = 12;

/// What of a full frame's bytes a delta frame may have to be kept, in sixteenths.
const KEPT_SIXTEENTHS: usize = 14;
/// A full frame must save so many bytes to be kept.
const SAVED_BYTES_MIN: usize = 1024;

/// Makes frames.
pub struct Maker<'a, B: OlderBlocks> {
    /// What delta frames may be made against.
    pub older: Option<Older<'a, B>>,
    /// The blocks of an image, and what theirs may be made against in its place: who does not need the
    /// image does not hold the one before either.
    pub image: Option<(BlockRange, Older<'a, B>)>,
    /// zstd level.
    pub level: i32,
}

/// What one thread needs to make frames.
pub struct Tools {
    scratch: Scratch,
    encoder: FrameEncoder,
    decoder: FrameDecoder,
}

/// One frame to be written.
#[derive(Debug)]
pub struct NewFrame {
    /// What it decodes to.
    pub bin: Bin,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What it needs.
    pub bases: Vec<BlockRange>,
}

/// The frames of one munro, by position.
#[derive(Debug)]
pub struct Made {
    /// Which munro.
    pub munro: MunroIndex,
    /// Its hash, and those of its bins on the layers of both kinds of frames.
    pub hash: NodeHash,
    /// Of delta frames' bins.
    pub update_hashes: Vec<NodeHash>,
    /// Of full frames' bins.
    pub full_hashes: Vec<NodeHash>,
    /// Delta frames.
    pub deltas: Vec<NewFrame>,
    /// Full frames.
    pub fulls: Vec<NewFrame>,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            scratch: Scratch::default(),
            encoder: FrameEncoder::new(),
            decoder: FrameDecoder::new(),
        }
    }
}

impl<B: OlderBlocks> Maker<'_, B> {
    /// What a bin is compared with.
    fn older(&self, bin: Bin) -> Option<&Older<'_, B>> {
        let blocks = BlockRange::covering(bin.byte_offset(), bin.byte_len());
        match &self.image {
            Some((image, older)) if !image.intersection(blocks).is_empty() => Some(older),
            _ => self.older.as_ref(),
        }
    }

    /// Makes the frames of a munro of which `used` bytes are content.
    pub fn make(
        &self,
        tools: &mut Tools,
        munro: MunroIndex,
        content: &[u8],
        used: u64,
    ) -> Result<Made, B::Error> {
        let nodes = MunroTree::hash_content(munro, content);
        let on = |layer: u32| {
            let width = 1usize << (MUNRO_LAYER - layer);
            nodes[width..2 * width].to_vec()
        };
        let mut made = Made {
            munro,
            hash: nodes[1],
            update_hashes: on(DELTA_FRAME_LAYER),
            full_hashes: on(FULL_FRAME_LAYER),
            deltas: Vec::new(),
            fulls: Vec::new(),
        };
        let bins = |layer: u32| {
            let first = munro.0 << (MUNRO_LAYER - layer);
            let len = Bin::new(layer, first).byte_len();
            let parts = content.chunks_exact(len as usize).take(used.div_ceil(len) as usize);
            parts.enumerate().map(move |(i, part)| (Bin::new(layer, first + i as u64), part))
        };
        for (bin, part) in bins(FULL_FRAME_LAYER) {
            let frame = tools.encoder.full(bin, part, self.level);
            let saves = |frame: &Vec<u8>| frame.len() + SAVED_BYTES_MIN <= part.len();
            if let Some(bytes) = frame.filter(saves) {
                made.fulls.push(NewFrame { bin, bytes, bases: Vec::new() });
            }
        }
        for (bin, part) in bins(DELTA_FRAME_LAYER) {
            let Some(older) = self.older(bin) else { continue };
            let level = (self.level + DELTA_LEVEL_ABOVE).min(LEVEL_MAX);
            let delta =
                delta::encode(&mut tools.scratch, &mut tools.encoder, bin, part, older, level)?;
            let Some(delta) = delta else { continue };
            let alone = made.alone(bin, used - (bin.byte_offset() - munro.byte_offset()));
            if delta.frame.len() <= alone * KEPT_SIXTEENTHS / 16
                && decodes(&mut tools.decoder, bin, &delta, part)
            {
                made.deltas.push(NewFrame { bin, bytes: delta.frame, bases: delta.bases });
            }
        }
        Ok(made)
    }
}

impl Made {
    /// Bytes that a run costs without a delta frame: full frames, plain blocks where there are none.
    pub fn alone(&self, bin: Bin, used: u64) -> usize {
        let used = used.min(bin.byte_len()).next_multiple_of(BLOCK_BYTES) as usize;
        let fulls = self.fulls.iter().filter(|full| bin.contains(full.bin));
        let saved = fulls.map(|full| full.bin.byte_len() as usize - full.bytes.len());
        used.saturating_sub(saved.sum())
    }

    /// Whether a delta frame makes up the bin.
    pub fn has_delta(&self, bin: Bin) -> bool {
        self.deltas.iter().any(|delta| delta.bin.contains(bin))
    }
}

/// Whether a delta frame gives what it was made of: no node should find out first that it does not.
fn decodes(decoder: &mut FrameDecoder, bin: Bin, delta: &Delta, content: &[u8]) -> bool {
    let range = ByteRange { offset: 0, len: delta.frame.len() as u64 };
    let entry = FrameEntry { bin, range, bases: delta.bases.clone() };
    let decoded = decoder.decode(&entry, &delta.frame, &delta.base_bytes);
    decoded.is_ok_and(|decoded| decoded == content)
}

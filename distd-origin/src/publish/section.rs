//! Section F of an epoch: the frames of section P, and their index.
//!
//! ```text
//! for every 32 munros of P    what an update fetches: deltas, full frames where there is no delta
//!                             the other full frames
//! then                        update records | full records | table | list of epochs | block hashes
//! ```
//!
//! So an update reads long runs of F, a newcomer too, and what is in memory is bounded. The block hashes, which
//! only a `get` reads, begin at a block of their own: nobody else gets a part of them.

use distd_core::frame::{
    BLOCK_HASH_BYTES, EpochItem, EpochList, FrameEntry, IndexEntry, MunroFrames,
};
use distd_core::head::Section;
use distd_core::keys::{NtpTime, OriginKey};
use distd_core::limits::{
    BLOCK_BYTES, DELTA_FRAME_LAYER, EPOCHS_MAX, FULL_FRAME_LAYER, MUNRO_BYTES,
};
use distd_core::tree::{BlockHash, VerifiedMunro};
use distd_core::unit::{Bin, BlockRange, ByteRange, MunroIndex};
use rayon::prelude::*;

use crate::frames::maker::{Made, Maker, NewFrame, Tools};
use crate::frames::older::OlderBlocks;

use super::target::{ByteArea, Target};
use super::{PublishError, Step};

/// Munros whose frames are in memory at once, with their plain bytes.
const BATCH_MUNROS: u64 = 32;

/// A section F that was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) section: Section,
    pub(super) epochs: ByteRange,
    pub(super) update_bytes: u64,
    pub(super) image_update_bytes: u64,
}

/// What the epoch's section P is, and how its index is signed.
pub(super) struct Epoch<'a> {
    pub(super) plain: Section,
    /// The image in it, if it has one.
    pub(super) image: Option<BlockRange>,
    pub(super) key: &'a OriginKey,
    pub(super) time: NtpTime,
}

/// The two records of a munro, encoded; empty for none.
struct Records {
    munro: VerifiedMunro,
    update: Vec<u8>,
    full: Vec<u8>,
}

/// Writes section F after section P, to which nothing is added any more.
pub(super) fn write<B: OlderBlocks>(
    target: &mut Target,
    maker: &Maker<'_, B>,
    epoch: &Epoch<'_>,
    progress: &dyn Fn(Step),
) -> Result<Written, PublishError>
where
    PublishError: From<B::Error>,
{
    target.begin_section()?;
    let first = epoch.plain.munro;
    let munros = epoch.plain.bytes.div_ceil(MUNRO_BYTES);
    let start = target.next_block();
    let mut epochs = target.log().epochs()?.as_ref().clone();
    let mut area = ByteArea::new(target);
    let mut records = Vec::new();
    let (mut kept, mut hashes) = (Vec::new(), Vec::new());
    let (mut update_bytes, mut image_update_bytes) = (0, 0);
    for from in (0..munros).step_by(BATCH_MUNROS as usize) {
        let count = BATCH_MUNROS.min(munros - from);
        let blocks = BlockRange::new(MunroIndex(first + from).blocks().start, count * 256);
        let plain = area.target().read_back(blocks)?;
        let (made, hashed): (Vec<Made>, Vec<Vec<u8>>) = plain
            .par_chunks_exact(MUNRO_BYTES as usize)
            .enumerate()
            .map_init(Tools::default, |tools, (i, content)| {
                let at = from + i as u64;
                let used = (epoch.plain.bytes - at * MUNRO_BYTES).min(MUNRO_BYTES);
                let made = maker.make(tools, MunroIndex(first + at), content, used)?;
                Ok::<_, B::Error>((made, block_hashes(content)))
            })
            .collect::<Result<_, _>>()?;
        drop(plain);
        hashes.extend(hashed.into_iter().flatten());
        for made in &made {
            let (update, image) = update_cost(made, epoch);
            update_bytes += update;
            image_update_bytes += image;
        }
        let batch = write_frames(&mut area, made, epoch, &mut kept)?;
        records.extend(batch);
        progress(Step::Frames(from + count, munros));
    }
    let index = write_index(&mut area, &records)?;
    update_bytes += records.iter().map(|record| record.update.len() as u64 + 120).sum::<u64>();
    let listed = munros > 0 && epochs.items.len() < EPOCHS_MAX;
    if listed {
        let item = EpochItem { munro: first, munros, index, time: epoch.time.0, hashes: None };
        epochs.items.push(item);
    }
    let list = write_list(&mut area, &mut epochs, if listed { &hashes } else { &[] })?;
    let end = area.finish()?;
    // What no list names as frames stays plain: else nobody would find it again.
    for (munro, bins) in kept.into_iter().filter(|_| listed) {
        target.keep_as_frames(munro, bins);
    }
    let section =
        Section { munro: start.munro().0, bytes: end.byte_offset() - start.byte_offset() };
    Ok(Written { section, epochs: list, update_bytes, image_update_bytes })
}

/// What a machine with the previous release fetches of this munro, without the image and of it: the
/// cheapest way for each run.
fn update_cost(made: &Made, epoch: &Epoch<'_>) -> (u64, u64) {
    let plain = epoch.plain;
    let used = plain.bytes - (made.munro.0 - plain.munro) * MUNRO_BYTES;
    let used = used.min(MUNRO_BYTES).next_multiple_of(BLOCK_BYTES);
    let quarter = Bin::new(DELTA_FRAME_LAYER, 0).byte_len();
    let (mut update, mut image) = (0, 0);
    for i in 0..used.div_ceil(quarter) {
        let bin = Bin::new(DELTA_FRAME_LAYER, made.munro.0 * 4 + i);
        let delta = made.deltas.iter().find(|delta| delta.bin == bin);
        let cost = delta.map_or(made.alone(bin, used - i * quarter), |delta| delta.bytes.len());
        let blocks = BlockRange::covering(bin.byte_offset(), bin.byte_len());
        let of_image = epoch.image.is_some_and(|own| !own.intersection(blocks).is_empty());
        *(if of_image { &mut image } else { &mut update }) += cost as u64;
    }
    (update, image)
}

/// Writes the frames of some munros: first what an update needs, then the rest.
fn write_frames(
    area: &mut ByteArea<'_>,
    batch: Vec<Made>,
    epoch: &Epoch<'_>,
    kept: &mut Vec<(MunroIndex, Vec<BlockRange>)>,
) -> Result<Vec<Records>, PublishError> {
    let mut listed: Vec<(Vec<FrameEntry>, Vec<FrameEntry>)> = Vec::with_capacity(batch.len());
    for made in &batch {
        let mut place = |frame: &NewFrame| {
            let range = area.push(&frame.bytes)?;
            Ok::<_, PublishError>(FrameEntry { bin: frame.bin, range, bases: frame.bases.clone() })
        };
        let update = made.deltas.iter().map(&mut place).collect::<Result<_, _>>()?;
        let needed = made.fulls.iter().filter(|full| !made.has_delta(full.bin));
        let full = needed.map(&mut place).collect::<Result<_, _>>()?;
        listed.push((update, full));
    }
    let mut records = Vec::with_capacity(batch.len());
    for (made, (update, mut full)) in batch.into_iter().zip(listed) {
        for frame in made.fulls.iter().filter(|full| made.has_delta(full.bin)) {
            let range = area.push(&frame.bytes)?;
            full.push(FrameEntry { bin: frame.bin, range, bases: Vec::new() });
        }
        full.sort_unstable_by_key(|entry| entry.bin);
        kept.push((made.munro, full.iter().map(FrameEntry::blocks).collect()));
        let munro = VerifiedMunro::sign(epoch.key, made.munro, made.hash, epoch.time);
        let encode = |layer, hashes, frames: Vec<FrameEntry>| {
            if frames.is_empty() {
                return Vec::new();
            }
            MunroFrames::new(munro, layer, hashes, frames).encode()
        };
        records.push(Records {
            munro,
            update: encode(DELTA_FRAME_LAYER, made.update_hashes, update),
            full: encode(FULL_FRAME_LAYER, made.full_hashes, full),
        });
    }
    Ok(records)
}

/// Writes the list of epochs and, from the next block on, the hashes of the last one's blocks.
fn write_list(
    area: &mut ByteArea<'_>,
    epochs: &mut EpochList,
    hashes: &[u8],
) -> Result<ByteRange, PublishError> {
    let Some(at) = epochs.items.len().checked_sub(1).filter(|_| !hashes.is_empty()) else {
        return area.push(&epochs.encode());
    };
    // However the place is encoded, the list is no longer than with the longest one.
    epochs.items[at].hashes = Some(u64::MAX);
    let begin = (area.at() + epochs.encode().len() as u64).next_multiple_of(BLOCK_BYTES);
    epochs.items[at].hashes = Some(begin);
    let list = area.push(&epochs.encode())?;
    area.push(&vec![0; (begin - area.at()) as usize])?;
    area.push(hashes)?;
    Ok(list)
}

/// What a list of block hashes has of some blocks.
fn block_hashes(content: &[u8]) -> Vec<u8> {
    let blocks = content.chunks_exact(BLOCK_BYTES as usize);
    let hashes = blocks.flat_map(|block| {
        let BlockHash(hash) = BlockHash::of(block);
        let is_zero = block.iter().all(|byte| *byte == 0);
        hash.into_iter().take(BLOCK_HASH_BYTES as usize).map(move |b| if is_zero { 0 } else { b })
    });
    hashes.collect()
}

/// Writes the records and the table; where the table begins.
fn write_index(area: &mut ByteArea<'_>, records: &[Records]) -> Result<u64, PublishError> {
    let mut place = |bytes: &Vec<u8>| area.push(bytes);
    let update: Vec<ByteRange> =
        records.iter().map(|record| place(&record.update)).collect::<Result<_, _>>()?;
    let full: Vec<ByteRange> =
        records.iter().map(|record| place(&record.full)).collect::<Result<_, _>>()?;
    let index = area.at();
    for ((record, update), full) in records.iter().zip(update).zip(full) {
        area.push(&IndexEntry::new(record.munro, update, full).encode())?;
    }
    Ok(index)
}

//! The cheapest way to blocks that are missing: delta frames, full frames, or the plain blocks.
//!
//! ```text
//! wanted     |--------------- bin of a delta frame ---------------|
//!            |  full  |  full  |  full  |  full  |
//! costs      delta + what its bases cost  <->  sum of min(full, plain)
//! bases      present: nothing; else the cheapest way to them, some steps deep
//! ```
//!
//! Pure. A cost is the number of bytes that must be moved; the rule is "the fewest bytes". Plain blocks
//! may come from a nearer peer than a frame: that is not weighed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::frame::{FrameEntry, MunroFrames, Part};
use crate::unit::{BlockRange, MunroIndex};

/// Frames whose bases must themselves be made of frames, one behind the other: releases that an update
/// may have missed.
pub(super) const CHAIN_MAX: u32 = 8;
/// Frames that are weighed in one choice: what is beyond counts as not there.
const WEIGHED_MAX: u32 = 4096;

/// What a choice rests on.
pub(super) trait View {
    /// The parts of `blocks` that are neither here nor on their way.
    fn lacking(&mut self, blocks: BlockRange) -> Vec<BlockRange>;
    /// A munro's frames of one kind, if it has such and they are known.
    fn frames(&mut self, munro: MunroIndex, part: Part) -> Option<Arc<MunroFrames>>;
    /// Bytes to be moved for a frame; `None` if it is not to be used.
    fn price(&mut self, frame: &FrameEntry) -> Option<u64>;
}

/// A frame to be used.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    /// The record that names it and proves what it decodes to.
    pub(super) record: Arc<MunroFrames>,
    pub(super) entry: FrameEntry,
    pub(super) part: Part,
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub(super) struct Choice {
    /// Frames by the first block that they decode to. Bases lie before what is made of them: in this
    /// order, each frame finds its bases made.
    pub(super) frames: BTreeMap<u64, Chosen>,
    /// What is wanted and fetched plain.
    pub(super) plain: Vec<BlockRange>,
    /// Parts of bases that are fetched plain.
    pub(super) support: Vec<BlockRange>,
    /// Bytes to be moved.
    pub(super) bytes: u64,
}

/// How costs are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Account {
    /// Somebody waits for just these blocks.
    Alone,
    /// A part of much: a frame counts by the share of what it brings that is wanted now, as the rest of
    /// that will be wanted by others, or be bases of theirs.
    Shared,
}

/// The cheapest way to what is lacking of `wanted`, which is ascending.
pub(super) fn choose(view: &mut impl View, account: Account, wanted: &[BlockRange]) -> Choice {
    let mut chooser = Chooser { view, account, taken: Choice::default(), weighed: 0 };
    for (munro, parts) in by_munro(wanted) {
        let parts = parts.into_iter().flat_map(|part| chooser.view.lacking(part)).collect();
        let parts = chooser.untaken(parts);
        let way = chooser.munro(munro, &parts, CHAIN_MAX);
        chooser.taken.add(way);
    }
    chooser.taken
}

struct Chooser<'a, V> {
    view: &'a mut V,
    account: Account,
    taken: Choice,
    weighed: u32,
}

impl Choice {
    fn plain(parts: &[BlockRange], depth: u32) -> Self {
        let bytes = byte_len(parts);
        let (plain, support) = if depth == CHAIN_MAX {
            (parts.to_vec(), Vec::new())
        } else {
            (Vec::new(), parts.to_vec())
        };
        Self { frames: BTreeMap::new(), plain, support, bytes }
    }

    fn add(&mut self, other: Self) {
        self.frames.extend(other.frames);
        self.plain.extend(other.plain);
        self.support.extend(other.support);
        self.bytes += other.bytes;
    }
}

impl<V: View> Chooser<'_, V> {
    /// What of `parts` is not made by the frames that are taken already.
    fn untaken(&self, mut parts: Vec<BlockRange>) -> Vec<BlockRange> {
        let Some(end) = parts.last().map(|part| part.end()) else { return parts };
        for chosen in self.taken.frames.range(..end.0).rev().map(|(_, chosen)| chosen) {
            let made = chosen.entry.blocks();
            if made.end() <= parts.first().map_or(end, |part| part.start) {
                break;
            }
            parts = subtract(&parts, made);
            if parts.is_empty() {
                break;
            }
        }
        parts
    }

    /// The cheapest way to parts of one munro.
    fn munro(&mut self, munro: MunroIndex, parts: &[BlockRange], depth: u32) -> Choice {
        if parts.is_empty() {
            return Choice::default();
        }
        let update = self.view.frames(munro, Part::Update);
        let settled = update.as_ref().and_then(|update| self.settle(update, parts, depth));
        if let Some(settled) = settled {
            return settled;
        }
        let full = self.view.frames(munro, Part::Full);
        let layer = |record: &Option<Arc<MunroFrames>>| {
            record.as_ref().and_then(|r| r.frames().first()).map_or(0, |frame| frame.bin.layer())
        };
        let (update, full) = (update.map(|r| (Part::Update, r)), full.map(|r| (Part::Full, r)));
        let (outer, inner) = if layer(&update.as_ref().map(|(_, r)| Arc::clone(r)))
            >= layer(&full.as_ref().map(|(_, r)| Arc::clone(r)))
        {
            (update, full)
        } else {
            (full, update)
        };
        let mut way = Choice::default();
        let mut left = parts.to_vec();
        for (index, within) in meeting(outer.as_ref(), parts) {
            let Some((part, record)) = &outer else { break };
            let frame = &record.frames()[index];
            left = subtract(&left, frame.blocks());
            let apart = self.inner(&within, inner.as_ref(), depth);
            way.add(self.or_frame(apart, record, *part, frame, &within, depth));
        }
        way.add(self.inner(&left, inner.as_ref(), depth));
        way
    }

    /// Delta frames alone, where each has at most half the bytes of what it stands for: then full frames
    /// need not be looked at, and their records not be fetched.
    fn settle(
        &mut self,
        update: &Arc<MunroFrames>,
        parts: &[BlockRange],
        depth: u32,
    ) -> Option<Choice> {
        let mut way = Choice::default();
        let mut left = parts.to_vec();
        for (index, within) in meeting(Some(&(Part::Update, Arc::clone(update))), parts) {
            let frame = &update.frames()[index];
            left = subtract(&left, frame.blocks());
            let by_frame = self.frame(update, Part::Update, frame, &within, depth)?;
            if by_frame.bytes * 2 > byte_len(&within) {
                return None;
            }
            way.add(by_frame);
        }
        left.is_empty().then_some(way)
    }

    /// Parts by the frames of one record, or plain.
    fn inner(
        &mut self,
        parts: &[BlockRange],
        record: Option<&(Part, Arc<MunroFrames>)>,
        depth: u32,
    ) -> Choice {
        let mut way = Choice::default();
        let mut left = parts.to_vec();
        for (index, within) in meeting(record, parts) {
            let Some((part, record)) = record else { break };
            let frame = &record.frames()[index];
            left = subtract(&left, frame.blocks());
            let plain = Choice::plain(&within, depth);
            way.add(self.or_frame(plain, record, *part, frame, &within, depth));
        }
        way.add(Choice::plain(&left, depth));
        way
    }

    /// `other`, or the frame if that is cheaper.
    fn or_frame(
        &mut self,
        other: Choice,
        record: &Arc<MunroFrames>,
        part: Part,
        frame: &FrameEntry,
        within: &[BlockRange],
        depth: u32,
    ) -> Choice {
        match self.frame(record, part, frame, within, depth) {
            Some(by_frame) if by_frame.bytes < other.bytes => by_frame,
            _ => other,
        }
    }

    /// What a frame and its bases cost; `None` if it cannot be used.
    fn frame(
        &mut self,
        record: &Arc<MunroFrames>,
        part: Part,
        frame: &FrameEntry,
        within: &[BlockRange],
        depth: u32,
    ) -> Option<Choice> {
        self.weighed += 1;
        if self.weighed > WEIGHED_MAX {
            return None;
        }
        let mut bytes = self.view.price(frame)?;
        if self.account == Account::Shared {
            let brings = byte_len(&self.view.lacking(frame.blocks()));
            bytes = bytes * byte_len(within) / brings.max(byte_len(within)).max(1);
        }
        let mut lacking: Vec<BlockRange> =
            frame.bases.iter().flat_map(|base| self.view.lacking(*base)).collect();
        lacking.sort_unstable_by_key(|blocks| blocks.start);
        let lacking = self.untaken(joined(&lacking));
        let mut way = Choice { bytes, ..Choice::default() };
        if !lacking.is_empty() {
            let below = depth.checked_sub(1)?;
            for (munro, parts) in by_munro(&lacking) {
                way.add(self.munro(munro, &parts, below));
            }
        }
        let chosen = Chosen { record: Arc::clone(record), entry: frame.clone(), part };
        way.frames.insert(frame.blocks().start.0, chosen);
        Some(way)
    }
}

/// The frames of a record that make some of `parts`, by their place in it, with those.
fn meeting(
    record: Option<&(Part, Arc<MunroFrames>)>,
    parts: &[BlockRange],
) -> Vec<(usize, Vec<BlockRange>)> {
    let frames = record.into_iter().flat_map(|(_, record)| record.frames().iter().enumerate());
    frames
        .map(|(index, frame)| (index, common(parts, frame.blocks())))
        .filter(|(_, within)| !within.is_empty())
        .collect()
}

/// Ranges cut at munro boundaries, together by munro.
pub(super) fn by_munro(ranges: &[BlockRange]) -> Vec<(MunroIndex, Vec<BlockRange>)> {
    let mut munros: Vec<(MunroIndex, Vec<BlockRange>)> = Vec::new();
    for range in ranges {
        let mut left = *range;
        while !left.is_empty() {
            let munro = left.start.munro();
            let part = left.intersection(munro.blocks());
            match munros.last_mut() {
                Some((last, parts)) if *last == munro => parts.push(part),
                _ => munros.push((munro, vec![part])),
            }
            left = BlockRange::new(part.end(), left.count - part.count);
        }
    }
    munros
}

/// The parts of `ranges` within `range`.
pub(super) fn common(ranges: &[BlockRange], range: BlockRange) -> Vec<BlockRange> {
    let parts = ranges.iter().map(|part| part.intersection(range));
    parts.filter(|part| !part.is_empty()).collect()
}

/// `ranges` without `range`.
pub(super) fn subtract(ranges: &[BlockRange], range: BlockRange) -> Vec<BlockRange> {
    let mut left = Vec::with_capacity(ranges.len());
    for part in ranges {
        let cut = part.intersection(range);
        if cut.is_empty() {
            left.push(*part);
            continue;
        }
        let ends = [(part.start, cut.start), (cut.end(), part.end())];
        let parts = ends.map(|(from, to)| BlockRange::new(from, to.0 - from.0));
        left.extend(parts.into_iter().filter(|part| !part.is_empty()));
    }
    left
}

/// Sorted ranges with neighbours and overlaps joined.
pub(in crate::node) fn joined(sorted: &[BlockRange]) -> Vec<BlockRange> {
    let mut joined: Vec<BlockRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.start <= last.end() => {
                let end = last.end().max(range.end());
                last.count = end.0 - last.start.0;
            }
            _ => joined.push(*range),
        }
    }
    joined
}

/// Bytes of all ranges.
pub(super) fn byte_len(ranges: &[BlockRange]) -> u64 {
    ranges.iter().map(|range| range.byte_len()).sum()
}

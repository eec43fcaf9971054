//! What a machine that holds one release fetches for all of another, by the rules that nodes choose by.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use distd_core::frame::{FrameEntry, MunroFrames, Part};
use distd_core::manifest::{CatalogItem, Release};
use distd_core::node::{Account, View, choose};
use distd_core::store::{OriginLog, ReadError};
use distd_core::unit::{BlockIndex, BlockRange, ByteRange, HumanBytes, MunroIndex};
use serde::Serialize;

use crate::history::{History, HistoryError, file_blocks, merge, read_release};

/// Munros for which is chosen at once, as nodes do.
const BATCH_MUNROS: u64 = 16;
/// Releases of which a publish tells the cost of an update.
const UPDATES_MAX: usize = 3;

/// Bytes that a machine fetches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Frames.
    pub frame_bytes: u64,
    /// Blocks that no frame makes cheaper.
    pub plain_bytes: u64,
    /// Of frames: the part of their index that is looked at.
    pub index_bytes: u64,
    /// Frames that older releases' updates consist of, as bases of what is wanted.
    pub chained_bytes: u64,
    /// What a mount by EROFS fetches besides: of the metadata image.
    pub image_bytes: u64,
}

impl Cost {
    /// All of it, but for the image.
    pub const fn bytes(&self) -> u64 {
        self.frame_bytes + self.plain_bytes + self.index_bytes
    }

    /// In words.
    pub fn text(&self) -> String {
        let Self { frame_bytes, plain_bytes, index_bytes, .. } = self;
        let bytes = self.bytes();
        let human = HumanBytes(bytes);
        let mut text = format!(
            "{bytes} bytes ({human}: frames {frame_bytes}, plain {plain_bytes}, index {index_bytes})"
        );
        text.push_str(&self.image_text());
        text
    }

    /// What is to be added for a mount by EROFS.
    pub fn image_text(&self) -> String {
        match self.image_bytes {
            0 => String::new(),
            bytes => format!(", and by EROFS {bytes} ({}) for the image", HumanBytes(bytes)),
        }
    }
}

/// What a machine that holds `old` (`None`: nothing) fetches for `new`, besides the head.
pub fn cost(log: &OriginLog, old: Option<&Release>, new: &Release) -> Result<Cost, HistoryError> {
    let mut held = Blocks::default();
    if let Some(old) = old {
        blocks_of(log, old)?.into_iter().for_each(|range| held.insert(range));
    }
    let wanted = blocks_of(log, new)?;
    let mut machine =
        Machine { log, held, records: HashMap::new(), cost: Cost::default(), failed: None };
    machine.fetch_all(&wanted)?;
    // No frame holds both of it and of anything else.
    let without = machine.cost;
    if let Some(image) = old.and_then(|old| old.image) {
        machine.held.insert(image.blocks);
    }
    machine.fetch_all(&new.image.map(|image| image.blocks).into_iter().collect::<Vec<_>>())?;
    Ok(Cost { image_bytes: machine.cost.bytes() - without.bytes(), ..without })
}

/// What machines on one of the last releases of a track fetch for the newest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpdateCost {
    /// The release that they hold.
    pub version: String,
    /// What they fetch.
    #[serde(flatten)]
    pub cost: Cost,
}

/// The costs of `version` of `track` from the releases before it, newest first.
pub fn updates(
    log: &OriginLog,
    track: &str,
    version: &str,
) -> Result<Vec<UpdateCost>, HistoryError> {
    let history = History::read(log)?;
    let new = read_release(log, history.find(&format!("{track}@{version}"))?.release)?;
    let of_track = |item: &&CatalogItem| item.track == track && !item.is_pruned();
    let older = history.catalog.items.iter().rev().filter(of_track);
    older
        .filter(|item| item.version != version)
        .take(UPDATES_MAX)
        .map(|item| {
            let old = read_release(log, item.release)?;
            Ok(UpdateCost { version: old.version.clone(), cost: cost(log, Some(&old), &new)? })
        })
        .collect()
}

fn blocks_of(log: &OriginLog, release: &Release) -> Result<Vec<BlockRange>, HistoryError> {
    let mut blocks = file_blocks(log, release)?;
    blocks.extend(&release.metadata);
    blocks.extend(release.profile.map(ByteRange::blocks));
    Ok(merge(blocks))
}

/// Blocks, as ranges apart from each other, end by start.
#[derive(Default)]
struct Blocks(BTreeMap<u64, u64>);

impl Blocks {
    fn insert(&mut self, range: BlockRange) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start.0, range.end().0);
        while let Some((at, to)) = self.0.range(..=end).next_back().map(|(at, to)| (*at, *to))
            && to >= start
        {
            start = start.min(at);
            end = end.max(to);
            self.0.remove(&at);
        }
        self.0.insert(start, end);
    }

    fn missing(&self, range: BlockRange) -> Vec<BlockRange> {
        let end = range.end().0;
        let before = self.0.range(..=range.start.0).next_back();
        let mut next = before.map_or(range.start.0, |(_, to)| range.start.0.max(*to));
        let mut missing = Vec::new();
        for (at, to) in self.0.range(range.start.0..end) {
            if next < *at {
                missing.push(BlockRange::new(BlockIndex(next), at - next));
            }
            next = next.max(*to);
        }
        if next < end {
            missing.push(BlockRange::new(BlockIndex(next), end - next));
        }
        missing
    }
}

/// A machine that is only imagined.
struct Machine<'a> {
    log: &'a OriginLog,
    held: Blocks,
    records: HashMap<(u64, bool), Option<Arc<MunroFrames>>>,
    cost: Cost,
    failed: Option<ReadError>,
}

impl Machine<'_> {
    fn fetch_all(&mut self, wanted: &[BlockRange]) -> Result<(), HistoryError> {
        let mut rest = wanted;
        while let Some(first) = rest.first() {
            let end = MunroIndex(first.start.munro().0 + BATCH_MUNROS).blocks().start;
            let count = rest.iter().take_while(|range| range.start < end).count();
            let (batch, after) = rest.split_at(count);
            rest = after;
            self.fetch(batch);
            if let Some(error) = self.failed.take() {
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn fetch(&mut self, wanted: &[BlockRange]) {
        let choice = choose(self, Account::Shared, wanted);
        for chosen in choice.frames.values() {
            let bytes = chosen.entry.range.len;
            self.cost.frame_bytes += bytes;
            let blocks = chosen.entry.blocks();
            if wanted.iter().all(|range| range.intersection(blocks).is_empty()) {
                self.cost.chained_bytes += bytes;
            }
            self.held.insert(blocks);
        }
        for range in choice.plain.iter().chain(&choice.support) {
            self.cost.plain_bytes += range.byte_len();
            self.held.insert(*range);
        }
    }

    fn read(&mut self, munro: MunroIndex, part: Part) -> Result<Option<MunroFrames>, ReadError> {
        let epochs = self.log.epochs()?;
        let Some(item) = epochs.covering(munro.blocks().start) else { return Ok(None) };
        let Some(entry) = self.log.index_entry(item, munro)? else { return Ok(None) };
        let Some(record) = entry.record(part) else { return Ok(None) };
        self.cost.index_bytes += record.len;
        self.log.frames(munro, part)
    }
}

impl View for Machine<'_> {
    fn lacking(&mut self, blocks: BlockRange) -> Vec<BlockRange> {
        self.held.missing(blocks)
    }

    fn frames(&mut self, munro: MunroIndex, part: Part) -> Option<Arc<MunroFrames>> {
        let key = (munro.0, part == Part::Full);
        if let Some(known) = self.records.get(&key) {
            return known.clone();
        }
        let read = self.read(munro, part).unwrap_or_else(|error| {
            self.failed.get_or_insert(error);
            None
        });
        let record = read.map(Arc::new);
        self.records.insert(key, record.clone());
        record
    }

    fn price(&mut self, frame: &FrameEntry) -> Option<u64> {
        Some(frame.range.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn blocks_agree_with_a_set(
            ranges in proptest::collection::vec((0u64..60, 0u64..9), 0..20),
            (from, count) in (0u64..60, 0u64..30),
        ) {
            let (mut blocks, mut set) = (Blocks::default(), BTreeSet::new());
            for (start, count) in ranges {
                blocks.insert(BlockRange::new(BlockIndex(start), count));
                set.extend(start..start + count);
            }
            let missing = blocks.missing(BlockRange::new(BlockIndex(from), count));
            let missing: Vec<u64> =
                missing.iter().flat_map(|range| range.start.0..range.end().0).collect();
            let expected: Vec<u64> = (from..from + count).filter(|b| !set.contains(b)).collect();
            prop_assert_eq!(missing, expected);
        }
    }
}

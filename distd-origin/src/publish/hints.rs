//! Which older blocks to try first for new ones: those at the same place of the file of the same path,
//! or else of a file of the same name. Where a file's unchanged blocks lie elsewhere than they did, as
//! behind an insertion or in an image of a file system, what lies between them is looked for there.

use std::collections::HashMap;

use distd_core::manifest::{Entry, EntryKind, Extent, Extents, Release};
use distd_core::store::OriginLog;
use distd_core::unit::{BlockIndex, BlockRange};

use crate::frames::older::Hint;
use crate::history::{HistoryError, Met, join, read_extents, walk};

/// New blocks that one hint is for.
const PIECE_BLOCKS: u64 = 8;
/// Older blocks before and behind the same place.
const AROUND_BLOCKS: u64 = 12;
/// Blocks that moved by no more are looked for where they were: the blocks around cover it.
const NEAR_BLOCKS: u64 = 6;
/// Places of one block in an older file that are compared.
const PLACES_MAX: usize = 16;
/// Older files of one name that are remembered.
const NAMESAKES_MAX: usize = 8;

/// A file with new blocks: its path, and which of its blocks are which of the log's.
pub(super) struct NewFile<'a> {
    pub(super) path: Vec<u8>,
    pub(super) extents: &'a Extents,
}

/// The hints for all blocks of `files` at or behind `first`.
pub(super) fn hints(
    log: &OriginLog,
    previous: &Release,
    files: &[NewFile<'_>],
    first: BlockIndex,
) -> Result<Vec<Hint>, HistoryError> {
    let mut wanted: HashMap<&[u8], Vec<(Vec<u8>, Extents)>> =
        files.iter().map(|file| (name(&file.path), Vec::new())).collect();
    walk(log, previous.root_directory().node, |met| {
        if let Met::Entry(directory, Entry { name, kind: EntryKind::File(file), .. }) = met
            && let Some(older) = wanted.get_mut(name.as_bytes())
            && older.len() < NAMESAKES_MAX
        {
            older.push((join(directory, name.as_bytes()), read_extents(log, file)?));
        }
        Ok::<_, HistoryError>(true)
    })?;
    let mut hints = Vec::new();
    for file in files {
        let older = wanted.get(name(&file.path)).into_iter().flatten();
        let Some((_, older)) = older.max_by_key(|(path, _)| closeness(path, &file.path)) else {
            continue;
        };
        OlderFile::new(older).hints(&mut hints, file.extents, first);
    }
    Ok(hints)
}

fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// How much of two paths is the same: whole, or else from the end, or else from the beginning.
fn closeness(a: &[u8], b: &[u8]) -> (bool, usize, usize) {
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let beginning = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (a == b, end, beginning)
}

/// The blocks of an older file, by both of their places.
struct OlderFile {
    /// Sorted by the first block's place in the file.
    by_place: Vec<(u64, BlockRange)>,
    /// The same, sorted by the first block's index in the log.
    by_block: Vec<(u64, BlockRange)>,
}

impl OlderFile {
    fn new(extents: &Extents) -> Self {
        let mut place = 0;
        let mut by_place = Vec::with_capacity(extents.len());
        for extent in extents.iter() {
            if let Extent::Data(blocks) = extent {
                by_place.push((place, blocks));
            }
            place += extent.blocks();
        }
        let mut by_block = by_place.clone();
        by_block.sort_unstable_by_key(|(place, blocks)| (blocks.start, *place));
        Self { by_place, by_block }
    }

    /// Hints for what of `extents` lies at or behind `first` in the log.
    fn hints(&self, hints: &mut Vec<Hint>, extents: &Extents, first: BlockIndex) {
        let mut at = 0;
        let mut placed = Vec::with_capacity(extents.len());
        for extent in extents.iter() {
            placed.push((at, extent));
            at += extent.blocks();
        }
        let is_new = |extent: Extent| matches!(extent, Extent::Data(run) if run.start >= first);
        let mut before = 0;
        for (i, (at, extent)) in placed.iter().enumerate() {
            let Extent::Data(run) = *extent else { continue };
            if !is_new(*extent) {
                let last = run.count - 1;
                let moved = self.moved(BlockIndex(run.start.0 + last), at + last, before);
                before = moved.unwrap_or(before);
                continue;
            }
            let next = placed[i + 1..].iter().find(|(_, extent)| !is_new(*extent));
            let after = match next {
                Some((at, Extent::Data(known))) => self.moved(known.start, *at, before),
                _ => None,
            };
            self.hint_run(hints, run, *at, [before, after.unwrap_or(before)]);
        }
    }

    /// How far a block at `place` has moved since; of its older places, that which fits `expected`
    /// best. `None` if the older file has not got it.
    fn moved(&self, block: BlockIndex, place: u64, expected: i64) -> Option<i64> {
        let from = self.by_block.partition_point(|(_, blocks)| blocks.start <= block);
        let near = self.by_block[..from].iter().rev().take(PLACES_MAX);
        near.filter(|(_, blocks)| block < blocks.end())
            .map(|(older, blocks)| (older + (block.0 - blocks.start.0)) as i64 - place as i64)
            .min_by_key(|moved| (moved - expected).unsigned_abs())
    }

    /// Hints for a run that begins at block `at` of its file, between blocks that have moved so far.
    fn hint_run(&self, hints: &mut Vec<Hint>, run: BlockRange, at: u64, moved: [i64; 2]) {
        let [before, after] =
            moved.map(|moved| if moved.unsigned_abs() <= NEAR_BLOCKS { 0 } else { moved });
        for step in (0..run.count).step_by(PIECE_BLOCKS as usize) {
            let count = PIECE_BLOCKS.min(run.count - step);
            let new = BlockRange::new(BlockIndex(run.start.0 + step), count);
            self.hint_piece(hints, new, (at + step).saturating_add_signed(before));
            if after != before {
                self.hint_piece(hints, new, (at + step).saturating_add_signed(after));
            }
        }
    }

    /// The blocks that lay at `place` and around it.
    fn hint_piece(&self, hints: &mut Vec<Hint>, new: BlockRange, place: u64) {
        let (from, to) = (place.saturating_sub(AROUND_BLOCKS), place + new.count + AROUND_BLOCKS);
        let begin = self.by_place.partition_point(|(place, blocks)| place + blocks.count <= from);
        for (place, blocks) in self.by_place[begin..].iter().take_while(|(place, _)| *place < to) {
            let (low, high) = (from.max(*place), to.min(place + blocks.count));
            let start = BlockIndex(blocks.start.0 + (low - place));
            hints.push(Hint { new, older: BlockRange::new(start, high - low) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(parts: &[(u64, u64)]) -> Extents {
        let data =
            |(start, count): &(u64, u64)| Extent::Data(BlockRange::new(BlockIndex(*start), *count));
        parts.iter().map(data).collect()
    }

    fn older_for(older: &[(u64, u64)], new: &[(u64, u64)], first: u64) -> Vec<BlockRange> {
        let mut hints = Vec::new();
        OlderFile::new(&extents(older)).hints(&mut hints, &extents(new), BlockIndex(first));
        hints.into_iter().map(|hint| hint.older).collect()
    }

    #[test]
    fn a_changed_block_is_looked_for_where_it_was() {
        let found = older_for(&[(0, 100)], &[(0, 50), (1000, 1), (51, 49)], 1000);
        assert_eq!(found, [BlockRange::new(BlockIndex(38), 25)]);
    }

    #[test]
    fn behind_an_insertion_blocks_are_looked_for_where_their_neighbours_were() {
        // Two hundred new blocks at the beginning, then the old ones, one of them changed.
        let found = older_for(&[(0, 100)], &[(1000, 200), (0, 50), (1200, 1), (51, 49)], 1000);
        assert_eq!(found.last(), Some(&BlockRange::new(BlockIndex(38), 25)));
    }

    #[test]
    fn a_block_with_many_places_is_taken_for_the_nearest() {
        let file = OlderFile::new(&extents(&[(7, 1), (100, 40), (7, 1), (200, 40), (7, 1)]));
        assert_eq!(file.moved(BlockIndex(7), 50, 0), Some(-9));
        assert_eq!(file.moved(BlockIndex(7), 50, 30), Some(32));
        assert_eq!(file.moved(BlockIndex(8), 50, 30), None);
    }
}

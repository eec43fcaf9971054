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
/// Older blocks before and behind the same place that are the likeliest, and those that are tried, too,
/// where the blocks beside do not show that nothing moved here.
const CLOSE_BLOCKS: u64 = 2;
const AROUND_BLOCKS: u64 = 12;
/// Neighbours that moved by so much more or less have the same blocks around them.
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
    let mut same: HashMap<&[u8], Option<Extents>> =
        files.iter().map(|file| (file.path.as_slice(), None)).collect();
    let mut namesakes: HashMap<&[u8], Vec<(Vec<u8>, Extents)>> =
        files.iter().map(|file| (name(&file.path), Vec::new())).collect();
    walk(log, previous.root_directory().node, |met| {
        let Met::Entry(directory, Entry { name, kind: EntryKind::File(file), .. }) = met else {
            return Ok::<_, HistoryError>(true);
        };
        let Some(others) = namesakes.get_mut(name.as_bytes()) else { return Ok(true) };
        let path = join(directory, name.as_bytes());
        if let Some(older) = same.get_mut(path.as_slice()) {
            *older = Some(read_extents(log, file)?);
        } else if others.len() < NAMESAKES_MAX {
            others.push((path, read_extents(log, file)?));
        }
        Ok(true)
    })?;
    let mut hints = Vec::new();
    for file in files {
        let same = same.get(file.path.as_slice()).and_then(Option::as_ref);
        let namesake = || {
            let others = namesakes.get(name(&file.path)).into_iter().flatten();
            let closest = others.max_by_key(|(path, _)| closeness(path, &file.path));
            closest.map(|(_, extents)| extents)
        };
        if let Some(older) = same.or_else(namesake) {
            OlderFile::new(older).hints(&mut hints, file.extents, first);
        }
    }
    Ok(hints)
}

/// The hints for a new image: the same place of the older one.
pub(super) fn image_hints(older: BlockRange, new: BlockRange) -> Vec<Hint> {
    let extents = |blocks| [Extent::Data(blocks)].into_iter().collect::<Extents>();
    let mut hints = Vec::new();
    OlderFile::new(&extents(older)).hints(&mut hints, &extents(new), new.start);
    hints
}

fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// How much of two paths is the same: from the end, or else from the beginning.
fn closeness(a: &[u8], b: &[u8]) -> (usize, usize) {
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let beginning = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (end, beginning)
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
        // The next extent that is not new, by extent: an image may have thousands in a row that are.
        let mut known = None;
        let mut behind = vec![None; placed.len()];
        for (i, (at, extent)) in placed.iter().enumerate().rev() {
            behind[i] = known;
            match extent {
                Extent::Data(run) if run.start >= first => {}
                Extent::Data(run) => known = Some((*at, *run)),
                Extent::Hole(_) => known = None,
            }
        }
        let mut before = None;
        for ((at, extent), behind) in placed.iter().zip(behind) {
            let Extent::Data(run) = *extent else { continue };
            if run.start < first {
                let last = run.count - 1;
                let block = BlockIndex(run.start.0 + last);
                let moved = self.moved(run, block, at + last, before.unwrap_or(0));
                before = moved.or(before);
                continue;
            }
            let after =
                behind.and_then(|(at, run)| self.moved(run, run.start, at, before.unwrap_or(0)));
            self.hint_run(hints, run, *at, before, after);
        }
    }

    /// How far an extent's `block` at `place` has moved since; `None` if that is as good as unknown: the
    /// older file has not got it, or has it in several places of which none fits `expected`, or it is a
    /// single block (a common one may lie anywhere) that does not fit either.
    fn moved(
        &self,
        extent: BlockRange,
        block: BlockIndex,
        place: u64,
        expected: i64,
    ) -> Option<i64> {
        let from = self.by_block.partition_point(|(_, blocks)| blocks.start <= block);
        let near = self.by_block[..from].iter().rev().take(PLACES_MAX);
        let mut places = near
            .filter(|(_, blocks)| block < blocks.end())
            .map(|(older, blocks)| (older + (block.0 - blocks.start.0)) as i64 - place as i64);
        let first = places.next()?;
        if first == expected || places.clone().any(|moved| moved == expected) {
            return Some(expected);
        }
        (places.next().is_none() && extent.count > 1).then_some(first)
    }

    /// Hints for a run that begins at block `at` of its file, between blocks that have moved so far.
    fn hint_run(
        &self,
        hints: &mut Vec<Hint>,
        run: BlockRange,
        at: u64,
        before: Option<i64>,
        after: Option<i64>,
    ) {
        let settled = before.is_some() && before == after;
        let before = before.unwrap_or(0);
        let mut places = vec![before];
        places.extend(after.filter(|after| after.abs_diff(before) > NEAR_BLOCKS));
        for step in (0..run.count).step_by(PIECE_BLOCKS as usize) {
            let count = PIECE_BLOCKS.min(run.count - step);
            let new = BlockRange::new(BlockIndex(run.start.0 + step), count);
            for moved in &places {
                let place = (at + step).saturating_add_signed(*moved);
                self.hint_piece(hints, new, place, CLOSE_BLOCKS, false);
                if !settled {
                    self.hint_piece(hints, new, place, AROUND_BLOCKS, true);
                }
            }
        }
    }

    /// The blocks that lay at `place`, and so many before and behind it.
    fn hint_piece(
        &self,
        hints: &mut Vec<Hint>,
        new: BlockRange,
        place: u64,
        beside: u64,
        around: bool,
    ) {
        let (from, to) = (place.saturating_sub(beside), place + new.count + beside);
        let begin = self.by_place.partition_point(|(place, blocks)| place + blocks.count <= from);
        for (place, blocks) in self.by_place[begin..].iter().take_while(|(place, _)| *place < to) {
            let (low, high) = (from.max(*place), to.min(place + blocks.count));
            let start = BlockIndex(blocks.start.0 + (low - place));
            hints.push(Hint { new, older: BlockRange::new(start, high - low), around });
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
        hints.into_iter().filter(|hint| !hint.around).map(|hint| hint.older).collect()
    }

    #[test]
    fn a_changed_block_is_looked_for_where_it_was() {
        let found = older_for(&[(0, 100)], &[(0, 50), (1000, 1), (51, 49)], 1000);
        assert_eq!(found, [BlockRange::new(BlockIndex(48), 5)]);
    }

    #[test]
    fn behind_an_insertion_blocks_are_looked_for_where_their_neighbours_were() {
        // Two hundred new blocks at the beginning, then the old ones, one of them changed.
        let found = older_for(&[(0, 100)], &[(1000, 200), (0, 50), (1200, 1), (51, 49)], 1000);
        assert_eq!(found.last(), Some(&BlockRange::new(BlockIndex(48), 5)));
    }

    #[test]
    fn a_block_that_may_lie_anywhere_says_nothing() {
        let file = OlderFile::new(&extents(&[(7, 1), (100, 40), (7, 1), (200, 40), (300, 1)]));
        let moved = |start, count, place, expected| {
            let extent = BlockRange::new(BlockIndex(start), count);
            file.moved(extent, extent.start, place, expected)
        };
        assert_eq!(moved(7, 1, 50, 0), None);
        assert_eq!(moved(7, 1, 50, -9), Some(-9));
        assert_eq!(moved(300, 1, 50, 0), None);
        assert_eq!(moved(300, 1, 50, 32), Some(32));
        assert_eq!(moved(200, 2, 50, 0), Some(-8));
        assert_eq!(moved(8, 1, 50, 30), None);
    }
}

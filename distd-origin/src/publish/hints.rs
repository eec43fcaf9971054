//! Which older blocks to try first for new ones: those at the same place of the file of the same path,
//! or else of a file of the same name.

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
        let mut at = 0;
        for extent in file.extents.iter() {
            if let Extent::Data(run) = extent
                && run.start >= first
            {
                hint_run(&mut hints, run, at, older);
            }
            at += extent.blocks();
        }
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

/// Hints for a run that begins at block `at` of its file.
fn hint_run(hints: &mut Vec<Hint>, run: BlockRange, at: u64, older: &Extents) {
    for step in (0..run.count).step_by(PIECE_BLOCKS as usize) {
        let count = PIECE_BLOCKS.min(run.count - step);
        let new = BlockRange::new(BlockIndex(run.start.0 + step), count);
        let from = (at + step).saturating_sub(AROUND_BLOCKS);
        let to = at + step + count + AROUND_BLOCKS;
        let mut position = 0;
        for extent in older.iter() {
            if let Extent::Data(blocks) = extent {
                let low = from.max(position);
                let high = to.min(position + blocks.count);
                if low < high {
                    let start = BlockIndex(blocks.start.0 + (low - position));
                    hints.push(Hint { new, older: BlockRange::new(start, high - low) });
                }
            }
            position += extent.blocks();
            if position >= to {
                break;
            }
        }
    }
}

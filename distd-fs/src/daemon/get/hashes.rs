//! Recognising files that no release has: block by block, by the hashes that the origin publishes.
//!
//! Fetched are the hashes of what releases have under the files' paths; for files of which that does not find
//! half, all others, as far as that is little beside what may be saved. Eight bytes of a hash say where in the log a block lies, no more: what is made with
//! it is verified as a whole.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use distd_core::frame::{BLOCK_HASH_BYTES, EpochList};
use distd_core::limits::BLOCK_BYTES;
use distd_core::unit::{BlockIndex, BlockRange, MunroIndex};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::GetError;
use super::known::Known;
use super::place::Place;
use super::survey::{FileNumber, Survey};
use super::tree::Tree;
use crate::daemon::jobs::Progress;
use crate::daemon::prefetch::bring;
use crate::fs::merged;

/// Blocks whose hashes are looked at: 8 GiB of content, 16 MiB of hashes.
const BLOCKS_MAX: u64 = 1 << 21;
/// All hashes of an epoch are fetched if they are at most this share of what may be saved.
const HASHES_SHARE: u64 = 64;
/// So many times what may be saved is read of the files under whose paths a release has something.
const NEAR_SHARES: u64 = 64;
/// So many times what may be saved is read of others.
const SEARCHED_SHARES: u64 = 4;
/// Blocks that are read at once.
const READ_BLOCKS: u64 = 256;

/// The first bytes of a block's hash.
type Short = [u8; BLOCK_HASH_BYTES as usize];

/// A block of zeros, which lies nowhere.
const ZERO: Short = [0; BLOCK_HASH_BYTES as usize];

/// Where blocks lie, by hash.
#[derive(Default)]
struct Table {
    places: HashMap<Short, BlockIndex>,
    /// By the first block.
    hashes: BTreeMap<u64, Vec<Short>>,
}

impl Table {
    fn add(&mut self, blocks: BlockRange, bytes: &[u8]) {
        let (hashes, _) = bytes.as_chunks();
        for (block, hash) in blocks.iter().zip(hashes).filter(|(_, hash)| **hash != ZERO) {
            self.places.entry(*hash).or_insert(block);
        }
        self.hashes.insert(blocks.start.0, hashes.to_vec());
    }

    fn at(&self, block: BlockIndex) -> Option<Short> {
        let (first, hashes) = self.hashes.range(..=block.0).next_back()?;
        hashes.get((block.0 - first) as usize).copied()
    }

    /// Where a block lies: at `next` if it may.
    fn find(&self, hash: Short, next: Option<BlockIndex>) -> Option<BlockIndex> {
        if hash == ZERO {
            return None;
        }
        let next = next.filter(|next| self.at(*next) == Some(hash));
        next.or_else(|| self.places.get(&hash).copied())
    }
}

/// A file to be searched.
struct Candidate {
    number: FileNumber,
    path: Vec<u8>,
    size: u64,
}

/// Adds what can be found of files that no release has, to save up to `worth` bytes.
pub(super) fn recognise(
    tree: &Tree<'_>,
    root: &Place,
    survey: &Survey,
    known: &mut Known,
    worth: u64,
    progress: &Progress,
) -> Result<(), GetError> {
    let Some(epochs) = epochs(tree)? else { return Ok(()) };
    let searching = Searching { tree, root, progress, epochs };
    let near: HashSet<FileNumber> = known.near(survey).map(|(number, _)| number).collect();
    let candidates = known.unexplained(survey).map(|(number, found)| Candidate {
        number,
        path: found.path.clone(),
        size: found.size(),
    });
    let (near, mut others): (Vec<_>, Vec<_>) =
        candidates.partition(|candidate| near.contains(&candidate.number));
    let table = searching.fetch(known.near(survey).map(|(_, blocks)| blocks).collect())?;
    progress.begin("looking for blocks", near.iter().map(|candidate| candidate.size).sum());
    let mut room = worth * NEAR_SHARES;
    for candidate in near {
        let found = searching.search(&candidate, &table, &mut room, known)?;
        if found * 2 < candidate.size {
            others.push(candidate);
        }
    }
    // Two tables at once would be too much for a node's memory.
    drop(table);
    let unfound: u64 = others.iter().map(|candidate| candidate.size).sum();
    let worth = worth.min(unfound);
    let table = searching.fetch(searching.all(worth / HASHES_SHARE))?;
    if table.places.is_empty() {
        return Ok(());
    }
    let mut room = worth * SEARCHED_SHARES;
    progress.begin("looking for blocks", unfound.min(room));
    for candidate in others {
        if candidate.size <= room {
            searching.search(&candidate, &table, &mut room, known)?;
        }
    }
    Ok(())
}

struct Searching<'a> {
    tree: &'a Tree<'a>,
    root: &'a Place,
    progress: &'a Progress,
    epochs: EpochList,
}

impl Searching<'_> {
    /// All blocks of the newest epochs, as many as have at most so many bytes of hashes.
    fn all(&self, mut budget_bytes: u64) -> Vec<BlockRange> {
        let mut all = Vec::new();
        for item in self.epochs.items.iter().rev() {
            let first = MunroIndex(item.munro).blocks();
            let own = BlockRange::new(first.start, item.munros * first.count);
            if item.hashes.is_none() {
                continue;
            }
            let Some(left) = budget_bytes.checked_sub(own.count * BLOCK_HASH_BYTES) else { break };
            budget_bytes = left;
            all.push(own);
        }
        all
    }

    /// Fetches the hashes of blocks.
    fn fetch(&self, blocks: Vec<BlockRange>) -> Result<Table, GetError> {
        let mut room = BLOCKS_MAX;
        let ranges = merged(blocks).into_iter().filter_map(|blocks| {
            // A run of blocks lies within one epoch.
            let found = self.epochs.covering(blocks.start)?.hashes_range(blocks)?;
            room = room.checked_sub(found.0.count)?;
            Some(found)
        });
        let ranges: Vec<_> = ranges.collect();
        let blocks = ranges.iter().map(|(_, range)| range.blocks()).collect();
        bring(self.tree.swarm, &merged(blocks), "hashes of blocks", self.progress)?;
        let mut table = Table::default();
        for (blocks, range) in ranges {
            table.add(blocks, &self.tree.read(range, b"")?);
        }
        Ok(table)
    }

    /// Adds what a file has of a table's blocks; how many bytes. What is read is taken from `room`.
    fn search(
        &self,
        candidate: &Candidate,
        table: &Table,
        room: &mut u64,
        known: &mut Known,
    ) -> Result<u64, GetError> {
        let mut bytes = 0;
        if let Ok(file) = self.root.open_file(&candidate.path) {
            // What cannot be read has nothing to offer.
            let most = candidate.size.min(*room);
            let read = search(&file, table, candidate.size, most, self.progress, |blocks, at| {
                bytes += blocks.byte_len();
                known.add(blocks, candidate.number, at);
            });
            *room = room.saturating_sub(read.unwrap_or(most));
        }
        self.progress.add(candidate.size);
        if self.progress.is_stopped() { Err(GetError::Stopped) } else { Ok(bytes) }
    }
}

fn epochs(tree: &Tree<'_>) -> Result<Option<EpochList>, GetError> {
    let trusted = tree.swarm.head_news().trusted;
    let range = trusted.map(|trusted| trusted.placed.head.epochs).filter(|range| range.len > 0);
    let Some(range) = range else { return Ok(None) };
    let list = EpochList::decode(&tree.read(range, b"")?);
    Ok(list.inspect_err(|error| tracing::warn!(%error, "no block hashes are used")).ok())
}

/// Tells `found` which runs of blocks a file has before its byte `end`, and from which of its blocks on; no
/// more than about `most` bytes are read, and holes are not. How many were read.
fn search(
    file: &File,
    table: &Table,
    end: u64,
    most: u64,
    progress: &Progress,
    mut found: impl FnMut(BlockRange, u64),
) -> io::Result<u64> {
    let mut buffer = vec![0; (READ_BLOCKS * BLOCK_BYTES) as usize];
    let mut run: Option<(BlockRange, u64)> = None;
    let (mut block, mut read) = (0, 0);
    while block * BLOCK_BYTES < end && read < most && !progress.is_stopped() {
        let Some(data) = next_data(file, block * BLOCK_BYTES) else { break };
        if data / BLOCK_BYTES > block {
            block = data / BLOCK_BYTES;
            run.take().into_iter().for_each(|(blocks, at)| found(blocks, at));
            continue;
        }
        let wanted = buffer.len().min((end - block * BLOCK_BYTES) as usize);
        let len = fill(file, &mut buffer[..wanted], block * BLOCK_BYTES)?;
        read += len as u64;
        let whole = len.next_multiple_of(BLOCK_BYTES as usize);
        buffer[len..whole].fill(0);
        for content in buffer[..whole].chunks_exact(BLOCK_BYTES as usize) {
            let next = run.map(|(blocks, _)| blocks.end());
            let place = table.find(short(content), next);
            match (&mut run, place) {
                (Some((blocks, _)), Some(place)) if blocks.end() == place => blocks.count += 1,
                (_, place) => {
                    run.take().into_iter().for_each(|(blocks, at)| found(blocks, at));
                    run = place.map(|place| (BlockRange::new(place, 1), block));
                }
            }
            block += 1;
        }
        if len < wanted {
            break;
        }
    }
    if let Some((blocks, at)) = run {
        found(blocks, at);
    }
    Ok(read)
}

/// Where data begins from `at` on; `None`: nowhere. A file system that knows no holes has data everywhere.
fn next_data(file: &File, at: u64) -> Option<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => Some(data),
        Err(Errno::NXIO) => None,
        Err(_) => Some(at),
    }
}

fn short(block: &[u8]) -> Short {
    if block.iter().all(|byte| *byte == 0) {
        return ZERO;
    }
    let mut short = ZERO;
    short.copy_from_slice(&blake3::hash(block).as_bytes()[..BLOCK_HASH_BYTES as usize]);
    short
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], at + len as u64) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn content(blocks: &[u8]) -> Vec<u8> {
        blocks.iter().flat_map(|byte| [*byte; BLOCK_BYTES as usize]).collect()
    }

    fn table(first: u64, blocks: &[u8]) -> Table {
        let hashes =
            content(blocks).chunks(BLOCK_BYTES as usize).flat_map(short).collect::<Vec<_>>();
        let mut table = Table::default();
        table.add(BlockRange::new(BlockIndex(first), blocks.len() as u64), &hashes);
        table
    }

    fn found(table: &Table, bytes: &[u8]) -> Vec<(u64, u64, u64)> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        let len = bytes.len() as u64;
        found_in(&file, table, len, len).0
    }

    fn found_in(file: &File, table: &Table, end: u64, most: u64) -> (Vec<(u64, u64, u64)>, u64) {
        let mut runs = Vec::new();
        let read = search(file, table, end, most, &Progress::default(), |blocks, at| {
            runs.push((blocks.start.0, blocks.count, at));
        });
        (runs, read.expect("read"))
    }

    #[test]
    fn holes_are_not_read_nor_what_is_beyond_a_bound() {
        let table = table(100, &[1, 2, 3]);
        let file = tempfile::tempfile().expect("a file");
        let far = (1 << 42) / BLOCK_BYTES;
        file.write_all_at(&content(&[1, 2]), 0).expect("written");
        file.write_all_at(&content(&[3, 2]), far * BLOCK_BYTES).expect("written");
        let end = (far + 2) * BLOCK_BYTES;
        let (runs, read) = found_in(&file, &table, end, u64::MAX);
        assert_eq!(runs, [(100, 2, 0), (102, 1, far), (101, 1, far + 1)]);
        assert!(read < 8 << 20, "{read}");
        // It has grown meanwhile.
        assert_eq!(found_in(&file, &table, BLOCK_BYTES, u64::MAX).0, [(100, 1, 0)]);
        assert_eq!(found_in(&file, &table, end, 1).0, [(100, 2, 0)]);
        assert_eq!(found_in(&file, &table, end, 0), (vec![], 0));
    }

    #[test]
    fn blocks_are_found_where_the_log_has_them() {
        let table = table(100, &[1, 2, 3, 0, 2, 5]);
        assert_eq!(
            found(&table, &content(&[1, 2, 3, 0, 2, 5])),
            [(100, 3, 0), (101, 1, 4), (105, 1, 5)]
        );
        assert_eq!(found(&table, &content(&[9, 2, 3, 9])), [(101, 2, 1)]);
        assert_eq!(found(&table, &content(&[0, 0, 9])), []);
        // The end of a file is filled up with zeros, in the log as here.
        let end = [&content(&[3])[..], &[7; 10]].concat();
        let mut padded = [7; 10].to_vec();
        padded.resize(BLOCK_BYTES as usize, 0);
        let mut table = table;
        table.add(BlockRange::new(BlockIndex(300), 1), &short(&padded));
        assert_eq!(found(&table, &end), [(102, 1, 0), (300, 1, 1)]);
    }

    #[test]
    fn a_run_goes_on_where_equal_blocks_lie_elsewhere_too() {
        let table = table(0, &[4, 4, 4, 6]);
        assert_eq!(found(&table, &content(&[4, 4, 4, 6])), [(0, 4, 0)]);
    }
}

//! Seeds: blocks of the log that lie in files outside of the cache.
//!
//! Whoever knows such files lends them to a swarm while it works: a `get` into a directory that holds an
//! older release. Their bytes are believed by nobody: they are bases of delta frames, whose result is
//! checked against the signed tree, or go into a file whose BLAKE3 is compared. The cache never takes
//! them, so that no hashes of them need to be fetched, and peers are not told of them. What turns out to be wrong or
//! unreadable is forgotten, and had in other ways.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::limits::{BLOCK_BYTES, SEED_RUNS_MAX};
use crate::unit::{BlockIndex, BlockRange};

/// Files that blocks are read from, by number.
pub trait SeedFiles: Send + Sync {
    /// Fills `out` with what the file has from byte `offset` on; zeros behind its end.
    fn read(&self, file: u32, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

/// A run of blocks that follow each other in a file, too.
#[derive(Clone, Copy, Debug)]
struct Run {
    count: u64,
    file: u32,
    /// Where it begins there, in blocks.
    at: u64,
}

/// Which blocks lie where.
pub struct Seeds {
    files: Arc<dyn SeedFiles>,
    /// By first block; apart from each other.
    runs: RwLock<BTreeMap<u64, Run>>,
}

impl Seeds {
    /// None yet.
    pub fn new(files: Arc<dyn SeedFiles>) -> Self {
        Self { files, runs: RwLock::default() }
    }

    /// Says that `blocks` lie in a file from its block `at` on. What is known already stays as it is; beyond
    /// [`SEED_RUNS_MAX`] runs nothing is taken any more. Whether something was.
    pub fn add(&self, blocks: BlockRange, file: u32, at: u64) -> bool {
        let lacking = self.lacking(blocks);
        let mut runs = self.write();
        let before = runs.len();
        for part in lacking {
            if runs.len() >= SEED_RUNS_MAX {
                break;
            }
            let at = at + (part.start.0 - blocks.start.0);
            runs.insert(part.start.0, Run { count: part.count, file, at });
        }
        runs.len() > before
    }

    /// Does not offer anything of a file any more.
    pub fn forget_file(&self, file: u32) {
        self.write().retain(|_, run| run.file != file);
    }

    /// The parts of `blocks` that are not known, ascending.
    pub fn lacking(&self, blocks: BlockRange) -> Vec<BlockRange> {
        let mut lacking = Vec::new();
        let mut next = blocks.start;
        for (known, _) in meeting(&self.read_runs(), blocks) {
            if next < known.start {
                lacking.push(BlockRange::new(next, known.start.0 - next.0));
            }
            next = known.end();
        }
        if next < blocks.end() {
            lacking.push(BlockRange::new(next, blocks.end().0 - next.0));
        }
        lacking
    }

    /// Whether a block before `end` is known.
    pub fn begin_before(&self, end: BlockIndex) -> bool {
        self.read_runs().first_key_value().is_some_and(|(first, _)| *first < end.0)
    }

    /// Reads `blocks` into `out`, unverified; gives the parts that could not be read, whose bytes are
    /// unspecified.
    ///
    /// # Panics
    /// If `out` is not `blocks.byte_len()` long.
    pub fn read(&self, blocks: BlockRange, out: &mut [u8]) -> Vec<BlockRange> {
        assert_eq!(out.len() as u64, blocks.byte_len(), "the buffer is as long as the blocks");
        let known = meeting(&self.read_runs(), blocks);
        for (part, Run { file, at, .. }) in known {
            let from = ((part.start.0 - blocks.start.0) * BLOCK_BYTES) as usize;
            let content = &mut out[from..from + part.byte_len() as usize];
            if let Err(error) = self.files.read(file, at * BLOCK_BYTES, content) {
                tracing::debug!(%error, file, "a seed cannot be read");
                self.forget(part);
            }
        }
        self.lacking(blocks)
    }

    /// Does not offer `blocks` any more: what was read there is wrong.
    pub fn forget(&self, blocks: BlockRange) {
        let mut runs = self.write();
        for (part, _) in meeting(&runs, blocks) {
            // The run that holds the part: it may be longer on both sides.
            let Some((start, run)) = runs.range(..=part.start.0).next_back() else { continue };
            let (start, run) = (*start, *run);
            runs.remove(&start);
            let whole = BlockRange::new(BlockIndex(start), run.count);
            for left in whole.without(part) {
                let at = run.at + (left.start.0 - start);
                runs.insert(left.start.0, Run { count: left.count, at, ..run });
            }
        }
    }

    fn read_runs(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Run>> {
        // Each change is whole, and a wrong run is found out by whoever uses it.
        self.runs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Run>> {
        self.runs.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The known parts of `blocks`, ascending, each with where it lies.
fn meeting(runs: &BTreeMap<u64, Run>, blocks: BlockRange) -> Vec<(BlockRange, Run)> {
    let before = runs.range(..blocks.start.0).next_back();
    let within = runs.range(blocks.start.0..blocks.end().0);
    let parts = before.into_iter().chain(within).map(|(start, run)| {
        let part = BlockRange::new(BlockIndex(*start), run.count).intersection(blocks);
        let skipped = part.start.0.saturating_sub(*start);
        (part, Run { count: part.count, file: run.file, at: run.at + skipped })
    });
    parts.filter(|(part, _)| !part.is_empty()).collect()
}

/// The seeds that are lent to one swarm.
#[derive(Default)]
pub(super) struct LentSeeds(RwLock<Vec<Arc<Seeds>>>);

impl LentSeeds {
    pub(super) fn take(&self, seeds: Arc<Seeds>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(seeds);
    }

    pub(super) fn give_back(&self, seeds: &Arc<Seeds>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| !Arc::ptr_eq(other, seeds));
    }

    fn all(&self) -> Vec<Arc<Seeds>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What of `blocks` nobody has lent.
    pub(super) fn lacking(&self, blocks: Vec<BlockRange>) -> Vec<BlockRange> {
        self.all().iter().fold(blocks, |left, seeds| {
            left.into_iter().flat_map(|part| seeds.lacking(part)).collect()
        })
    }

    pub(super) fn begin_before(&self, end: BlockIndex) -> bool {
        self.all().iter().any(|seeds| seeds.begin_before(end))
    }

    /// See [`Seeds::read`].
    pub(super) fn read(&self, blocks: BlockRange, out: &mut [u8]) -> Vec<BlockRange> {
        let mut left = vec![blocks];
        for seeds in self.all() {
            left = left
                .into_iter()
                .flat_map(|part| {
                    let from = ((part.start.0 - blocks.start.0) * BLOCK_BYTES) as usize;
                    seeds.read(part, &mut out[from..from + part.byte_len() as usize])
                })
                .collect();
        }
        left
    }

    pub(super) fn forget(&self, blocks: BlockRange) {
        for seeds in self.all() {
            seeds.forget(blocks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Files whose every byte is the number of the file plus that of the block.
    struct Counting;

    impl SeedFiles for Counting {
        fn read(&self, file: u32, offset: u64, out: &mut [u8]) -> io::Result<()> {
            if file == 9 {
                return Err(io::ErrorKind::NotFound.into());
            }
            for (block, bytes) in out.chunks_mut(BLOCK_BYTES as usize).enumerate() {
                bytes.fill((u64::from(file) * 50 + offset / BLOCK_BYTES) as u8 + block as u8);
            }
            Ok(())
        }
    }

    fn range(start: u64, count: u64) -> BlockRange {
        BlockRange::new(BlockIndex(start), count)
    }

    proptest! {
        #[test]
        fn they_read_as_a_plain_map_of_blocks_does(
            steps in proptest::collection::vec((any::<bool>(), 0u64..40, 0u64..9, 0u32..4, 0u64..9), 0..30),
            start in 0u64..45, count in 0u64..45,
        ) {
            let seeds = Seeds::new(Arc::new(Counting));
            let mut plain: BTreeMap<u64, u8> = BTreeMap::new();
            for (adds, start, count, file, at) in steps {
                if adds {
                    seeds.add(range(start, count), file, at);
                    for block in start..start + count {
                        let byte = (u64::from(file) * 50 + at + (block - start)) as u8;
                        plain.entry(block).or_insert(byte);
                    }
                } else {
                    seeds.forget(range(start, count));
                    plain.retain(|block, _| !range(start, count).contains(BlockIndex(*block)));
                }
            }
            let mut out = vec![0; range(start, count).byte_len() as usize];
            let lacking = seeds.read(range(start, count), &mut out);
            for (block, bytes) in (start..).zip(out.chunks(BLOCK_BYTES as usize)) {
                let is_lacking = lacking.iter().any(|part| part.contains(BlockIndex(block)));
                prop_assert_eq!(is_lacking, !plain.contains_key(&block));
                let found = plain.get(&block).map(|byte| bytes.iter().all(|other| other == byte));
                prop_assert!(found != Some(false), "block {} is of another place", block);
            }
            prop_assert_eq!(seeds.begin_before(BlockIndex(7)), plain.range(..7).next().is_some());
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_offered_again() {
        let seeds = Seeds::new(Arc::new(Counting));
        assert!(seeds.add(range(0, 4), 1, 0));
        assert!(seeds.add(range(4, 4), 9, 0));
        assert!(!seeds.add(range(2, 4), 7, 0), "all of it is known");
        let mut out = vec![0; 8 * BLOCK_BYTES as usize];
        assert_eq!(seeds.read(range(0, 8), &mut out), [range(4, 4)]);
        assert_eq!(seeds.lacking(range(0, 10)), [range(4, 6)]);
        assert!(seeds.add(range(2, 4), 7, 0));
        seeds.forget_file(1);
        assert_eq!(seeds.lacking(range(0, 10)), [range(0, 4), range(6, 4)]);
    }
}

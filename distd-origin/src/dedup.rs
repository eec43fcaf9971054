//! Where a file's blocks go: to a run of blocks that the log holds already, or to new ones.
//!
//! Runs, not single blocks: a match counts only if it continues the extent before it, is long
//! enough, or reaches the file's end. The more extents a file has, the longer a run must be, and at
//! its bound only what continues is taken: reading a file must not become a hunt for single blocks.
//!
//! ```text
//! file      a b c d e f g h        log  ... a b c d ... x ... f g h
//! extents   [a b c d] new(e) [f g h]          e is new; f g h is short but reaches the end
//! ```

use distd_core::limits::BLOCK_BYTES;
use distd_core::manifest::{Extent, Extents};
use distd_core::tree::BlockHash;
use distd_core::unit::{BlockIndex, BlockRange};

use crate::content::Piece;

/// Shortest run that is referenced in the middle of a file, in blocks, while it has few extents.
/// Measured on three successive kernel packages of 407 MB (new bytes of the second and the third,
/// extents of the third): 1: 312 and 178 MB, 19127; 2: 320 and 175 MB, 14622; 4: 336 and 189 MB,
/// 10769; 8: 357 and 220 MB, 7874. They have 4046 files.
const RUN_BLOCKS_MIN: u64 = 2;
/// A file may have this many extents, or one for so many of its blocks, whichever is more.
const EXTENTS_MIN: u64 = 8;
const BLOCKS_PER_EXTENT: u64 = 16;
/// Places of one block that are followed at once.
const PLACES_MAX: usize = 8;

/// The blocks that the log holds, and the way to append to it.
pub trait Blocks {
    /// Why a block cannot be looked up or stored.
    type Error;

    /// Whether the block with that hash lies there.
    fn lies_at(&mut self, hash: &BlockHash, block: BlockIndex) -> Result<bool, Self::Error>;
    /// Up to `max` places at which it lies.
    fn places(&mut self, hash: &BlockHash, max: usize) -> Result<Vec<BlockIndex>, Self::Error>;
    /// Appends it to the log.
    fn store(&mut self, hash: BlockHash, block: &[u8]) -> Result<BlockIndex, Self::Error>;
}

/// The plan of one file, fed with its pieces in order.
pub struct FilePlan {
    extents: Extents,
    blocks_total: u64,
    /// The file's block that comes next.
    at: u64,
    /// Where the file goes on if it goes on as the log does.
    expected: Option<BlockIndex>,
    /// Whether the block before was taken from `expected`'s run (and not stored).
    matched: bool,
    pending: Option<Pending>,
}

/// A run that matches and is not long enough yet.
struct Pending {
    /// Where it may begin in the log.
    places: Vec<BlockIndex>,
    hashes: Vec<BlockHash>,
    bytes: Vec<u8>,
}

impl Pending {
    fn count(&self) -> u64 {
        self.hashes.len() as u64
    }
}

impl FilePlan {
    /// A plan for a file of that size in bytes.
    pub fn new(size: u64) -> Self {
        Self {
            extents: Extents::default(),
            blocks_total: size.div_ceil(BLOCK_BYTES),
            at: 0,
            expected: None,
            matched: false,
            pending: None,
        }
    }

    /// Takes the next piece.
    pub fn take<B: Blocks>(&mut self, piece: &Piece, log: &mut B) -> Result<(), B::Error> {
        match piece {
            Piece::Blocks { bytes, hashes } => {
                for (block, hash) in bytes.chunks_exact(BLOCK_BYTES as usize).zip(hashes) {
                    match hash {
                        Some(hash) => self.block(*hash, block, log)?,
                        None => self.hole(1, log)?,
                    }
                }
                Ok(())
            }
            Piece::Hole(count) => self.hole(*count, log),
            Piece::End(_) => self.end(log),
        }
    }

    /// The file's extents, after its end was taken.
    pub fn into_extents(self) -> Extents {
        self.extents
    }

    fn hole<B: Blocks>(&mut self, count: u64, log: &mut B) -> Result<(), B::Error> {
        // A run goes on behind a hole where it stopped before it: holes lie nowhere.
        self.settle(log)?;
        self.extents.push(Extent::Hole(count));
        self.at += count;
        Ok(())
    }

    fn block<B: Blocks>(
        &mut self,
        hash: BlockHash,
        block: &[u8],
        log: &mut B,
    ) -> Result<(), B::Error> {
        if let Some(mut pending) = self.pending.take() {
            let count = pending.count();
            let mut places = Vec::with_capacity(pending.places.len());
            for start in &pending.places {
                if log.lies_at(&hash, BlockIndex(start.0 + count))? {
                    places.push(*start);
                }
            }
            if !places.is_empty() {
                pending.places = places;
                pending.hashes.push(hash);
                pending.bytes.extend_from_slice(block);
                self.at += 1;
                if pending.count() >= self.run_blocks_min() {
                    self.accept(&pending);
                } else {
                    self.pending = Some(pending);
                }
                return Ok(());
            }
            self.reject(&pending, log)?;
        }
        if let Some(expected) = self.expected.filter(|_| self.matched)
            && log.lies_at(&hash, expected)?
        {
            self.place(BlockRange::new(expected, 1));
            self.at += 1;
            return Ok(());
        }
        if (self.extents.len() as u64) < self.extents_max() {
            let places = self.places(&hash, log)?;
            if !places.is_empty() {
                self.at += 1;
                self.pending = Some(Pending { places, hashes: vec![hash], bytes: block.to_vec() });
                if self.run_blocks_min() == 1 {
                    return self.settle(log);
                }
                return Ok(());
            }
        }
        self.at += 1;
        self.store(hash, block, log)
    }

    /// Where a run may begin: first where the file was in step with the log before, then anywhere.
    fn places<B: Blocks>(
        &self,
        hash: &BlockHash,
        log: &mut B,
    ) -> Result<Vec<BlockIndex>, B::Error> {
        let mut places = log.places(hash, PLACES_MAX)?;
        if let Some(expected) = self.expected {
            match places.iter().position(|place| *place == expected) {
                Some(found) => places.swap(0, found),
                None if places.len() == PLACES_MAX && log.lies_at(hash, expected)? => {
                    places.insert(0, expected);
                }
                None => {}
            }
        }
        Ok(places)
    }

    /// The file's end: what matches up to here is the whole rest.
    fn end<B: Blocks>(&mut self, log: &mut B) -> Result<(), B::Error> {
        if self.at == self.blocks_total
            && let Some(pending) = self.pending.take()
        {
            self.accept(&pending);
        }
        self.settle(log)
    }

    /// Ends a pending run that did not become long enough.
    fn settle<B: Blocks>(&mut self, log: &mut B) -> Result<(), B::Error> {
        match self.pending.take() {
            Some(pending) if pending.count() >= self.run_blocks_min() => {
                self.accept(&pending);
                Ok(())
            }
            Some(pending) => self.reject(&pending, log),
            None => Ok(()),
        }
    }

    fn accept(&mut self, pending: &Pending) {
        if let Some(start) = pending.places.first() {
            self.place(BlockRange::new(*start, pending.count()));
        }
    }

    fn place(&mut self, run: BlockRange) {
        self.extents.push(Extent::Data(run));
        self.expected = Some(run.end());
        self.matched = true;
    }

    fn reject<B: Blocks>(&mut self, pending: &Pending, log: &mut B) -> Result<(), B::Error> {
        let blocks = pending.bytes.chunks_exact(BLOCK_BYTES as usize);
        for (hash, block) in pending.hashes.iter().zip(blocks) {
            self.store(*hash, block, log)?;
        }
        Ok(())
    }

    fn store<B: Blocks>(
        &mut self,
        hash: BlockHash,
        block: &[u8],
        log: &mut B,
    ) -> Result<(), B::Error> {
        let stored = log.store(hash, block)?;
        self.extents.push(Extent::Data(BlockRange::new(stored, 1)));
        // A changed block takes the place of an old one: behind it the file may be in step again.
        self.expected = self.expected.map(|expected| BlockIndex(expected.0 + 1));
        self.matched = false;
        Ok(())
    }

    fn extents_max(&self) -> u64 {
        EXTENTS_MIN.max(self.blocks_total / BLOCKS_PER_EXTENT)
    }

    /// Doubles with every quarter of the extents that are used up.
    fn run_blocks_min(&self) -> u64 {
        let quarters = (self.extents.len() as u64).saturating_mul(4) / self.extents_max();
        RUN_BLOCKS_MIN << quarters.min(4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    /// The plain reference: the log as a list of blocks, searched from its beginning.
    #[derive(Default)]
    struct PlainLog(Vec<(BlockHash, Vec<u8>)>);

    impl Blocks for PlainLog {
        type Error = Infallible;

        fn lies_at(&mut self, hash: &BlockHash, block: BlockIndex) -> Result<bool, Infallible> {
            Ok(self.0.get(block.0 as usize).is_some_and(|(known, _)| known == hash))
        }

        fn places(&mut self, hash: &BlockHash, max: usize) -> Result<Vec<BlockIndex>, Infallible> {
            let found = (0..self.0.len() as u64).map(BlockIndex);
            let equal = |b: &BlockIndex| self.0[b.0 as usize].0 == *hash;
            Ok(found.filter(equal).take(max).collect())
        }

        fn store(&mut self, hash: BlockHash, block: &[u8]) -> Result<BlockIndex, Infallible> {
            self.0.push((hash, block.to_vec()));
            Ok(BlockIndex(self.0.len() as u64 - 1))
        }
    }

    impl PlainLog {
        fn read(&self, extents: &Extents) -> Vec<u8> {
            let mut content = Vec::new();
            for extent in extents.iter() {
                match extent {
                    Extent::Data(run) => {
                        run.iter().for_each(|b| content.extend(&self.0[b.0 as usize].1));
                    }
                    Extent::Hole(count) => {
                        content.resize(content.len() + (count * BLOCK_BYTES) as usize, 0);
                    }
                }
            }
            content
        }

        /// Plans a file of blocks, each filled with its number (0: a block of zeros).
        fn add(&mut self, blocks: &[u16], pieces: usize) -> Extents {
            let mut plan = FilePlan::new(blocks.len() as u64 * BLOCK_BYTES);
            for part in blocks.chunks(pieces) {
                let bytes: Vec<u8> = part.iter().flat_map(|number| block(*number)).collect();
                let hash = |n: &u16| (*n != 0).then(|| BlockHash::of(&block(*n)));
                let hashes = part.iter().map(hash).collect();
                plan.take(&Piece::Blocks { bytes, hashes }, self).expect("infallible");
            }
            plan.take(&Piece::End([0; 32]), self).expect("infallible");
            plan.into_extents()
        }
    }

    fn block(number: u16) -> Vec<u8> {
        number.to_le_bytes().repeat(BLOCK_BYTES as usize / 2)
    }

    fn content(blocks: &[u16]) -> Vec<u8> {
        blocks.iter().flat_map(|number| block(*number)).collect()
    }

    fn numbers(range: std::ops::Range<u16>) -> Vec<u16> {
        range.collect()
    }

    #[test]
    fn an_equal_file_is_stored_once_and_is_one_extent() {
        let mut log = PlainLog::default();
        for len in [1, 2, 3, 4, 5, 100] {
            let file = numbers(1000 + len * 100..1000 + len * 101);
            log.add(&file, 7);
            let stored = log.0.len();
            assert_eq!(log.add(&file, 3).len(), 1);
            assert_eq!(log.0.len(), stored);
        }
    }

    #[test]
    fn one_changed_block_costs_one_block_and_three_extents() {
        let mut log = PlainLog::default();
        let mut file = numbers(1..200);
        log.add(&file, 50);
        file[100] = 1000;
        let stored = log.0.len();
        assert_eq!(log.add(&file, 50).len(), 3);
        assert_eq!(log.0.len(), stored + 1);
    }

    #[test]
    fn a_short_match_in_the_middle_is_stored_again_and_one_at_the_end_is_not() {
        let mut log = PlainLog::default();
        log.add(&numbers(1..10), 50);
        assert_eq!(log.add(&[500, 501, 3, 502, 503], 50).len(), 1);
        let extents = log.add(&[600, 601, 3], 50);
        assert_eq!((extents.len(), log.0.len()), (2, 9 + 5 + 2));
    }

    #[test]
    fn duplicates_inside_the_log_do_not_break_a_run() {
        let mut log = PlainLog::default();
        // 3 lies twice; the second copy of it is found by the run that goes on.
        log.add(&numbers(1..10), 50);
        log.add(&[500, 501, 3, 502, 503], 50);
        let stored = log.0.len();
        assert_eq!(log.add(&[500, 501, 3, 502, 503], 50).len(), 1);
        // A changed block before the duplicate: the file is in step again behind it.
        let extents = log.add(&[500, 999, 3, 502, 503], 50);
        assert_eq!((extents.len(), log.0.len()), (2, stored + 2));
    }

    #[test]
    fn every_second_block_changed_does_not_shatter_a_file() {
        let mut log = PlainLog::default();
        let old = numbers(1..2000);
        log.add(&old, 256);
        for gap in [2, 5, 6, 9, 20, 70] {
            let change = |i: usize, n: u16| if i.is_multiple_of(gap) { n + 10_000 } else { n };
            let new: Vec<u16> = old.iter().enumerate().map(|(i, n)| change(i, *n)).collect();
            let extents = log.add(&new, 256);
            // Each run that is taken brings at most one extent of new blocks with it.
            assert!(
                extents.len() as u64 <= 2 + 2000 / BLOCKS_PER_EXTENT,
                "{gap}: {}",
                extents.len()
            );
            assert_eq!(log.read(&extents), content(&new));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn extents_give_back_every_file(
            files in proptest::collection::vec(
                proptest::collection::vec((0u16..12, 1u16..20), 0..12), 1..8),
            pieces in 1usize..40,
        ) {
            let mut log = PlainLog::default();
            for file in files {
                // Runs of consecutive numbers: files that share stretches with each other.
                let blocks: Vec<u16> = file
                    .iter()
                    .flat_map(|(start, count)| (0..*count).map(move |i| match start {
                        0 => 0,
                        start => start * 8 + i,
                    }))
                    .collect();
                let before = log.0.len();
                let extents = log.add(&blocks, pieces);
                prop_assert_eq!(log.read(&extents), content(&blocks));
                prop_assert_eq!(extents.blocks(), blocks.len() as u64);
                // A piece is how a file is read, not what it is.
                log.0.truncate(before);
                prop_assert_eq!(log.add(&blocks, pieces + 13), extents);
            }
        }
    }
}

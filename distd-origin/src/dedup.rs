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
const RUN_BLOCKS_MIN: u64 = 4;
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
        if let Some(expected) = self.expected.filter(|_| self.matched) {
            if log.lies_at(&hash, expected)? {
                self.place(BlockRange::new(expected, 1));
                self.at += 1;
                return Ok(());
            }
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
        if self.at == self.blocks_total {
            if let Some(pending) = self.pending.take() {
                self.accept(&pending);
            }
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

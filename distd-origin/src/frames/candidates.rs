//! Which older blocks to try as the base of one new run: what hints name, and what shares anchors.
//!
//! The run is cut into pieces as long as a region. Each anchor of a piece that is known is a vote for
//! a pair of piece and region, and pairs on one diagonal (the same distance between piece and region)
//! support each other, the more the closer they are: what is popular lies everywhere, what is the same
//! file lies on one diagonal.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use distd_core::limits::{BLOCK_BYTES, DELTA_FRAME_LAYER};
use distd_core::unit::{Bin, BlockIndex, BlockRange};

use super::matching::Copy;
use super::older::{Older, OlderBlocks, REGION_BLOCKS};

/// Bytes of a piece.
const PIECE_BYTES: usize = (REGION_BLOCKS * BLOCK_BYTES) as usize;
/// Pieces of the longest run.
const PIECES: usize = (1 << DELTA_FRAME_LAYER) * 1024 / PIECE_BYTES;
/// Blocks that are tried as a base for one run, before the useless ones are dropped: to index them is
/// most of the work. Measured on two kernel packages (update, CPU seconds for all): 128: 23.9 MB, 9 s;
/// 192: 20.9 MB, 10 s; 256: 20.5 MB, 11 s; 512: 20.6 MB, 17 s.
const CANDIDATES_MAX: usize = 256;
/// A pair of piece and region counts from so many anchors on, if no other supports it.
const SHARED_MIN: u32 = 2;
/// More than one byte in so many of a piece that is left has more candidates tried for it. Measured
/// on two kernel packages (update, CPU seconds): always 20.2 MB, 16 s; 64: 20.0 MB, 11 s; 16: 19.9 MB,
/// 10 s; on two of a Node.js application: 9.91, 9.92, 10.12 MB.
const LEFT_PART_MAX: usize = 32;

/// Blocks that may serve as a base, and their bytes.
#[derive(Debug, Default)]
pub struct Candidates {
    /// In the order of their bytes.
    pub blocks: Vec<BlockIndex>,
    /// Their bytes.
    pub bytes: Vec<u8>,
}

/// What looks like a new run, best first.
pub struct Prospects {
    pairs: Vec<Pair>,
    /// What hints name, by piece.
    hinted: BTreeMap<usize, BTreeSet<BlockIndex>>,
    /// Of these, the likeliest, and what lies around them.
    close: BTreeSet<BlockIndex>,
    around: BTreeSet<BlockIndex>,
}

/// A piece of the run, and a region that has something in common with it.
struct Pair {
    support: u32,
    piece: usize,
    region: u32,
}

/// Votes of the pairs on one diagonal, by piece.
type Votes = [u32; PIECES];

impl Prospects {
    /// Looks for what resembles the blocks of `run`, which hold `bytes`.
    pub fn new<B: OlderBlocks>(older: &Older<'_, B>, run: BlockRange, bytes: &[u8]) -> Self {
        let mut diagonals: HashMap<i64, Votes> = HashMap::new();
        for (piece, bytes) in bytes.chunks(PIECE_BYTES).take(PIECES).enumerate() {
            older.anchors(bytes, |region| {
                diagonals.entry(i64::from(region) - piece as i64).or_default()[piece] += 1;
            });
        }
        let mut pairs = Vec::new();
        for (diagonal, votes) in &diagonals {
            let beside = [diagonal - 1, diagonal + 1].map(|beside| diagonals.get(&beside));
            for piece in (0..PIECES).filter(|piece| votes[*piece] > 0) {
                // Content that lies between two regions has half of its anchors on a diagonal beside.
                let beside = beside.iter().flatten().map(|beside| support(beside, piece) / 2);
                let support = support(votes, piece) + beside.sum::<u32>();
                let region = (diagonal + piece as i64) as u32;
                if support >= SHARED_MIN * PIECES as u32 {
                    pairs.push(Pair { support, piece, region });
                }
            }
        }
        pairs.sort_unstable_by_key(|pair| (Reverse(pair.support), pair.piece, pair.region));
        let mut hinted: BTreeMap<usize, BTreeSet<BlockIndex>> = BTreeMap::new();
        let (mut close, mut around) = (BTreeSet::new(), BTreeSet::new());
        for hint in older.hints(run) {
            if hint.around { &mut around } else { &mut close }.extend(hint.older.iter());
            let piece = hint.new.start.0.saturating_sub(run.start.0) / REGION_BLOCKS;
            hinted.entry(piece as usize).or_default().extend(hint.older.iter());
        }
        around.retain(|block| !close.contains(block));
        Self { pairs, hinted, close, around }
    }

    /// What to try first: what hints name, and for each piece of which the anchors say otherwise what
    /// they find. Where that is too much, what lies around goes first.
    pub fn likeliest<B: OlderBlocks>(&self, older: &Older<'_, B>) -> Result<Candidates, B::Error> {
        let mut chosen: BTreeSet<BlockIndex> =
            self.close.iter().copied().take(CANDIDATES_MAX).collect();
        let mut seen = [false; PIECES];
        for pair in &self.pairs {
            if std::mem::replace(&mut seen[pair.piece], true) || self.is_hinted(older, pair) {
                continue;
            }
            for region in pair.region.saturating_sub(1)..=pair.region + 1 {
                let blocks = older.region(region).into_iter().flat_map(BlockRange::iter);
                chosen.extend(blocks.take(CANDIDATES_MAX.saturating_sub(chosen.len())));
            }
        }
        chosen.extend(self.around.iter().take(CANDIDATES_MAX.saturating_sub(chosen.len())));
        older.candidates(chosen.into_iter().collect())
    }

    /// Whether hints for the piece name blocks of the region.
    fn is_hinted<B: OlderBlocks>(&self, older: &Older<'_, B>, pair: &Pair) -> bool {
        let Some(hinted) = self.hinted.get(&pair.piece) else { return false };
        let region = older.region(pair.region);
        region.is_some_and(|region| hinted.range(region.start..region.end()).next().is_some())
    }

    /// More than `first` for the pieces of which its `copies` leave much; `None` if they do not, or if
    /// there is no more.
    pub fn more<B: OlderBlocks>(
        &self,
        older: &Older<'_, B>,
        first: &Candidates,
        copies: &[Copy],
        len: usize,
    ) -> Result<Option<Candidates>, B::Error> {
        let left = left_by_piece(copies, len);
        let wanting = |piece: usize| left[piece] * LEFT_PART_MAX > PIECE_BYTES;
        if left.iter().sum::<usize>() * LEFT_PART_MAX <= len {
            return Ok(None);
        }
        let mut chosen: BTreeSet<BlockIndex> = first.blocks.iter().copied().collect();
        let pairs = self.pairs.iter().filter(|pair| wanting(pair.piece));
        let regions = pairs.filter_map(|pair| older.region(pair.region)).map(BlockRange::iter);
        let hinted = self.hinted.iter().filter(|(piece, _)| **piece < PIECES && wanting(**piece));
        for block in regions.flatten().chain(hinted.flat_map(|(_, hinted)| hinted.iter().copied()))
        {
            if chosen.len() == CANDIDATES_MAX {
                break;
            }
            chosen.insert(block);
        }
        if chosen.len() == first.blocks.len() {
            return Ok(None);
        }
        older.candidates(chosen.into_iter().collect()).map(Some)
    }
}

/// What the votes of a diagonal say for one piece: its own count in full, those of others the less
/// the farther they are.
fn support(votes: &Votes, piece: usize) -> u32 {
    let weighed = votes.iter().enumerate();
    weighed.map(|(other, votes)| (PIECES - piece.abs_diff(other)) as u32 * votes).sum()
}

/// Bytes that no copy covers, by piece.
fn left_by_piece(copies: &[Copy], len: usize) -> [usize; PIECES] {
    let mut left = [0; PIECES];
    let mut add = |from: usize, to: usize| {
        for (piece, left) in left.iter_mut().enumerate() {
            let (begin, end) = (piece * PIECE_BYTES, (piece + 1) * PIECE_BYTES);
            *left += to.min(end).saturating_sub(from.max(begin));
        }
    };
    let mut at = 0;
    for copy in copies {
        add(at, copy.new);
        at = copy.new + copy.len;
    }
    add(at, len);
    left
}

const _: () = assert!(Bin::new(DELTA_FRAME_LAYER, 0).byte_len() as usize == PIECES * PIECE_BYTES);

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::super::older::Hint;
    use super::*;

    struct Memory(Vec<u8>);

    impl OlderBlocks for Memory {
        type Error = ();

        fn read(&self, blocks: BlockRange, out: &mut [u8]) -> Result<(), ()> {
            let from = (blocks.start.0 * BLOCK_BYTES) as usize;
            out.copy_from_slice(&self.0[from..from + out.len()]);
            Ok(())
        }
    }

    const OLD_BLOCKS: u64 = 1024;
    const RUN: BlockRange = BlockRange { start: BlockIndex(OLD_BLOCKS), count: 64 };

    fn likeliest(memory: &Memory, hints: Vec<Hint>, new: &[u8]) -> Vec<BlockIndex> {
        let all = [BlockRange::new(BlockIndex(0), OLD_BLOCKS)];
        let older = Older::new(memory, &all, hints).expect("readable");
        Prospects::new(&older, RUN, new).likeliest(&older).expect("readable").blocks
    }

    #[test]
    fn moved_content_is_found_where_it_was() {
        let memory = Memory(noise(1, (OLD_BLOCKS * BLOCK_BYTES) as usize));
        // From the middle of block 700 on, and nothing that a hint would name.
        let from = 700 * BLOCK_BYTES as usize + 2000;
        let found = likeliest(&memory, Vec::new(), &memory.0[from..from + 64 * 4096]);
        assert!((700..=764).all(|block| found.contains(&BlockIndex(block))), "{found:?}");
        assert!(found.len() <= 100, "{}", found.len());
    }

    #[test]
    fn what_anchors_find_is_taken_where_hints_name_something_else() {
        let memory = Memory(noise(1, (OLD_BLOCKS * BLOCK_BYTES) as usize));
        let hint = |at: u64| {
            (0..8).map(move |piece| Hint {
                new: BlockRange::new(BlockIndex(OLD_BLOCKS + piece * 8), 8),
                older: BlockRange::new(BlockIndex(at + piece * 8), 8),
                around: false,
            })
        };
        let from = 700 * BLOCK_BYTES as usize;
        let new = &memory.0[from..from + 64 * 4096];
        let right: Vec<BlockIndex> = (700..764).map(BlockIndex).collect();
        assert_eq!(likeliest(&memory, hint(700).collect(), new), right);
        let wrong = likeliest(&memory, hint(100).collect(), new);
        assert!(right.iter().all(|block| wrong.contains(block)), "{wrong:?}");
        assert!(wrong.contains(&BlockIndex(100)));
        let unknown = noise(2, new.len());
        let hinted: Vec<BlockIndex> = (100..164).map(BlockIndex).collect();
        assert_eq!(likeliest(&memory, hint(100).collect(), &unknown), hinted);
    }
}

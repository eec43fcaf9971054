//! What came in lately, in memory.
//!
//! Whoever reads a file in order reads what was fetched a moment ago: verified bytes that are still
//! here need neither be read back nor be hashed again, which was a tenth of a transfer's CPU time.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::limits::BLOCK_BYTES;
use crate::tree::VerifiedRun;
use crate::unit::{BlockIndex, BlockRange};

/// Bytes kept: what a node fetches ahead of one reader, twice.
const RECENT_BYTES_MAX: u64 = 16 << 20;

/// The last runs that came in.
#[derive(Default)]
pub(super) struct Recent {
    /// By first block; they may overlap, and are right all the same.
    runs: BTreeMap<u64, Bytes>,
    order: VecDeque<u64>,
    bytes: u64,
}

impl Recent {
    /// Keeps a run; the oldest ones make room.
    pub(super) fn keep(&mut self, run: &VerifiedRun) {
        let Some(blocks) = run.bin().blocks() else { return };
        if let Some(before) = self.runs.insert(blocks.start.0, run.bytes().clone()) {
            // Its place in the order stays.
            self.bytes -= before.len() as u64;
        } else {
            self.order.push_back(blocks.start.0);
        }
        self.bytes += blocks.byte_len();
        while self.bytes > RECENT_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(gone) = self.runs.remove(&oldest) {
                self.bytes -= gone.len() as u64;
            }
        }
    }

    /// Copies blocks if all of them are here; `out` is as long as they are.
    pub(super) fn read(&self, blocks: BlockRange, out: &mut [u8]) -> bool {
        let mut parts = Vec::new();
        let mut next = blocks.start;
        while next < blocks.end() {
            let Some((start, bytes)) = self.runs.range(..=next.0).next_back() else { return false };
            let run = BlockRange::new(BlockIndex(*start), bytes.len() as u64 / BLOCK_BYTES);
            let common = run.intersection(BlockRange::new(next, blocks.end().0 - next.0));
            if common.is_empty() || common.start != next {
                return false;
            }
            let from = ((next.0 - start) * BLOCK_BYTES) as usize;
            let Some(part) = bytes.get(from..from + common.byte_len() as usize) else {
                return false;
            };
            parts.push(part);
            next = common.end();
        }
        let mut rest = out;
        for part in parts {
            let Some((to, after)) = rest.split_at_mut_checked(part.len()) else { return false };
            to.copy_from_slice(part);
            rest = after;
        }
        true
    }
}

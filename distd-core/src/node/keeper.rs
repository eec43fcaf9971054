//! Writing to the cache on a thread of its own, so that the file system holds nobody up who talks to
//! the network.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use crate::ppspp::engine::SwarmKey;
use crate::store::{CachedLog, PutError};
use crate::tree::VerifiedRun;
use crate::unit::{BlockIndex, BlockRange};

use super::service::spawn;

/// Bytes that may wait to be written; whoever brings more writes it himself, and is slowed down by
/// the disk as he should be.
const WAITING_BYTES_MAX: u64 = 16 << 20;
/// What is written at once by whoever has it: less work than waking a thread.
const INLINE_BYTES: u64 = 64 << 10;

/// Runs of one munro that follow each other.
pub(super) struct Keep {
    pub(super) swarm: SwarmKey,
    pub(super) log: Arc<CachedLog>,
    pub(super) runs: Vec<VerifiedRun>,
}

/// What became of them.
pub(super) struct Kept {
    pub(super) swarm: SwarmKey,
    pub(super) blocks: BlockRange,
    pub(super) runs: usize,
    pub(super) result: Result<(), PutError>,
}

/// The thread, and what waits there.
pub(super) struct Keeper {
    requests: std::sync::mpsc::Sender<Keep>,
    done: mpsc::UnboundedReceiver<Kept>,
    waiting: Vec<(SwarmKey, BlockRange)>,
}

impl Keeper {
    /// Starts the thread; it ends with the value, when all is written.
    pub(super) fn start() -> io::Result<(Self, JoinHandle<()>)> {
        let (requests, requested) = std::sync::mpsc::channel::<Keep>();
        let (answers, done) = mpsc::unbounded_channel();
        let work = move || {
            for keep in requested {
                // Written all the same if nobody listens any more.
                let _ = answers.send(keep.write());
            }
        };
        let thread = spawn("distd-keep", work)?;
        Ok((Self { requests, done, waiting: Vec::new() }, thread))
    }

    /// Keeps runs: the result if it is there at once, else [`Self::done`] gives it. Readers of the
    /// log have the runs from now on.
    pub(super) fn keep(&mut self, keep: Keep) -> Option<Kept> {
        let blocks = keep.blocks();
        let waiting: u64 = self.waiting.iter().map(|(_, blocks)| blocks.byte_len()).sum();
        let small = waiting == 0 && blocks.byte_len() <= INLINE_BYTES;
        if small || waiting > WAITING_BYTES_MAX {
            return Some(keep.write());
        }
        keep.log.receive(&keep.runs);
        let swarm = keep.swarm;
        match self.requests.send(keep) {
            Ok(()) => {
                self.waiting.push((swarm, blocks));
                None
            }
            // The thread is gone, which a panic alone can bring about: the work is done all the same.
            Err(unsent) => Some(unsent.0.write()),
        }
    }

    /// The next write that is done. May be dropped and called again.
    pub(super) async fn done(&mut self) -> Kept {
        match self.done.recv().await {
            Some(kept) => self.forget(kept),
            None => std::future::pending().await,
        }
    }

    /// A write that is done by now.
    pub(super) fn try_done(&mut self) -> Option<Kept> {
        let kept = self.done.try_recv().ok()?;
        Some(self.forget(kept))
    }

    /// What of `blocks` is neither being written nor waits for it.
    pub(super) fn not_waiting(&self, swarm: SwarmKey, blocks: BlockRange) -> Vec<BlockRange> {
        let mut left = vec![blocks];
        for (_, waiting) in self.waiting.iter().filter(|(key, _)| *key == swarm) {
            left = left.into_iter().flat_map(|part| part.without(*waiting)).collect();
        }
        left
    }

    fn forget(&mut self, kept: Kept) -> Kept {
        let this = (kept.swarm, kept.blocks);
        if let Some(at) = self.waiting.iter().position(|waiting| *waiting == this) {
            self.waiting.swap_remove(at);
        }
        kept
    }
}

impl Keep {
    fn blocks(&self) -> BlockRange {
        let blocks = |run: Option<&VerifiedRun>| run.and_then(|run| run.bin().blocks());
        match (blocks(self.runs.first()), blocks(self.runs.last())) {
            (Some(first), Some(last)) => BlockRange::new(first.start, last.end().0 - first.start.0),
            _ => BlockRange::new(BlockIndex(0), 0),
        }
    }

    fn write(self) -> Kept {
        let (swarm, blocks, runs) = (self.swarm, self.blocks(), self.runs.len());
        Kept { swarm, blocks, runs, result: self.log.put_joined(&self.runs) }
    }
}

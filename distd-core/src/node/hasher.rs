//! Hashing, on a thread of its own where there are processors for it: a third of what receiving a run
//! costs, beside the thread that talks to the network.

use std::io;
use std::num::NonZeroUsize;
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;

use crate::ppspp::engine::{HashId, HashRequest};
use crate::tree::HashedRun;

use super::service::spawn;

/// Runs that are hashed at once by whoever has them: less work than waking a thread.
const INLINE_RUNS: usize = 4;
/// Fewest processors with which the thread is of use: with fewer, sender, writer and network thread
/// fill them all, and waking one more costs what it saves (1 GiB over veth on two processors: 1.85 s
/// without the thread, 2.05 s with it).
const PROCESSORS_MIN: usize = 4;

/// What came of hashing, in the order in which it was asked for.
pub(super) type Hashed = Vec<(HashId, HashedRun)>;

/// The thread, and what is under way there. Its queues are bounded by the engine: it asks for no more
/// runs than it has in flight.
pub(super) struct Hasher {
    requests: Option<std::sync::mpsc::Sender<Vec<HashRequest>>>,
    done: mpsc::UnboundedReceiver<Hashed>,
    under_way: usize,
}

impl Hasher {
    /// Starts the thread, where there are processors for it; it ends with the value.
    pub(super) fn start() -> io::Result<(Self, Option<JoinHandle<()>>)> {
        let (answers, done) = mpsc::unbounded_channel();
        if thread::available_parallelism().map_or(1, NonZeroUsize::get) < PROCESSORS_MIN {
            return Ok((Self { requests: None, done, under_way: 0 }, None));
        }
        let (requests, requested) = std::sync::mpsc::channel::<Vec<HashRequest>>();
        let work = move || {
            for batch in requested {
                // The loop that would listen has ended: so do the requests.
                let _ = answers.send(hash(batch));
            }
        };
        let thread = spawn("distd-hash", work)?;
        Ok((Self { requests: Some(requests), done, under_way: 0 }, Some(thread)))
    }

    /// Hashes runs: the result if it is there at once, else [`Self::done`] gives it.
    pub(super) fn hash(&mut self, runs: Vec<HashRequest>) -> Option<Hashed> {
        if runs.is_empty() {
            return None;
        }
        let few = self.under_way == 0 && runs.len() <= INLINE_RUNS;
        let Some(requests) = self.requests.as_ref().filter(|_| !few) else {
            return Some(hash(runs));
        };
        match requests.send(runs) {
            Ok(()) => {
                self.under_way += 1;
                None
            }
            // The thread is gone, which a panic alone can bring about: the work is done all the same.
            Err(unsent) => Some(hash(unsent.0)),
        }
    }

    /// The next batch that is done. May be dropped and called again.
    pub(super) async fn done(&mut self) -> Hashed {
        match self.done.recv().await {
            Some(hashed) => {
                self.under_way -= 1;
                hashed
            }
            None => std::future::pending().await,
        }
    }

    /// A batch that is done by now.
    pub(super) fn try_done(&mut self) -> Option<Hashed> {
        let hashed = self.done.try_recv().ok()?;
        self.under_way -= 1;
        Some(hashed)
    }
}

fn hash(runs: Vec<HashRequest>) -> Hashed {
    let hashed = |HashRequest { id, bin, bytes }| Some((id, HashedRun::new(bin, bytes)?));
    runs.into_iter().filter_map(hashed).collect()
}

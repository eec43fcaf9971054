//! Making missing blocks out of frames.
//!
//! ```text
//! EventLoop ── Job (blocks that are missing) ──> unpack (a thread, tasks of its own)
//!    ^  ^                                          index    what the cache has of the frame indexes
//!    │  └──── Read, plain: index, frames ───────── choice   the fewest bytes (pure)
//!    │                                             job      fetch, wait for bases
//!    └─────── Decoded runs, blocks to fetch plain ─ decode   frame + bases -> verified run -> cache
//! ```
//!
//! A job ends in decoded runs, blocks that the loop shall fetch plain, or both. A **quick** job is of a
//! read that somebody waits for: it uses only what the cache has of the index, asks for nothing twice and
//! hands back at once what frames do not make cheaper. Other jobs take their time: they fetch the
//! index, and frames that bases are made of. What goes wrong with a frame (damage, a base that was
//! evicted, nobody has it) is said in the log and ends as plain blocks; the loop bounds a job's time.

pub(super) mod choice;
mod decode;
mod index;
mod job;
mod origin;

use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::ppspp::engine::Class;
use crate::unit::BlockRange;

use super::event_loop::Command;
use super::swarm::Shared;
use choice::Account;
pub(in crate::node) use choice::joined;
use origin::{Origin, Pool};

/// Logs whose indexes are kept in memory.
const ORIGINS_MAX: NonZeroUsize = NonZeroUsize::new(16).unwrap();
/// Jobs that may wait to be begun; a further one is fetched plain.
pub(super) const JOBS_MAX: usize = 4096;
/// How long decoding is waited for at the end: a disk may hang.
const ENDING: Duration = Duration::from_secs(5);

/// A number for each job, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct JobId(pub(super) u64);

/// Who wants the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    /// Somebody waits for just these.
    Quick,
    /// Nobody waits.
    Background,
    /// Nobody waits for just these, and what lies around the blocks will be wanted, too.
    Bulk,
}

impl Haste {
    /// How what is fetched for it is fetched.
    pub(super) const fn class(self) -> Class {
        match self {
            Self::Quick => Class::Waited,
            Self::Background | Self::Bulk => Class::Background,
        }
    }

    const fn account(self) -> Account {
        match self {
            Self::Quick | Self::Background => Account::Alone,
            Self::Bulk => Account::Shared,
        }
    }
}

/// Blocks that are missing.
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) shared: Arc<Shared>,
    /// Ascending.
    pub(super) missing: Vec<BlockRange>,
    pub(super) haste: Haste,
    pub(super) deadline: Instant,
}

/// The thread's body: runs until nobody can hand it a job any more.
pub(super) fn run(jobs: mpsc::Receiver<Job>, commands: mpsc::WeakSender<Command>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    match runtime {
        Ok(runtime) => {
            LocalSet::new().block_on(&runtime, take(jobs, commands));
            runtime.shutdown_timeout(ENDING);
        }
        // Without it, each job's time runs out, and its blocks are fetched plain.
        Err(error) => tracing::error!(%error, "no frames are used"),
    }
}

async fn take(mut jobs: mpsc::Receiver<Job>, commands: mpsc::WeakSender<Command>) {
    let pool = Rc::new(Pool::new());
    let mut origins: LruCache<_, Rc<Origin>> = LruCache::new(ORIGINS_MAX);
    while let Some(job) = jobs.recv().await {
        let known = origins.get(&job.shared.origin);
        let origin = match known.filter(|known| Arc::ptr_eq(&known.shared, &job.shared)) {
            Some(known) => Rc::clone(known),
            None => {
                let shared = Arc::clone(&job.shared);
                let origin = Rc::new(Origin::new(shared, commands.clone(), Rc::clone(&pool)));
                origins.put(job.shared.origin, Rc::clone(&origin));
                origin
            }
        };
        tokio::task::spawn_local(job::run(origin, job));
    }
}

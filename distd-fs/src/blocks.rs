//! The blocks of a log as the file system sees them.
//!
//! The node's swarm is one implementation; tests use one in memory.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distd_core::node::cut;
use distd_core::unit::{BlockIndex, BlockRange, ByteRange};

pub use distd_core::node::Purpose;

/// Why blocks could not be had.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Unavailable(#[from] pub Box<dyn Error + Send + Sync>);

/// Called once with the outcome of a read.
pub type Done = Box<dyn FnOnce(Result<Bytes, Unavailable>) + Send>;

/// Verified blocks of one log.
pub trait Blocks: Send + Sync + 'static {
    /// Fills `out` from what is local, without waiting for the network; `false` if something is
    /// missing (`out` is then undefined). `out` is as long as `blocks`.
    fn read_now(&self, blocks: BlockRange, out: &mut [u8]) -> Result<bool, Unavailable>;
    /// Reads, fetching what is missing. Never blocks; `done` is called on any thread.
    fn read(&self, blocks: BlockRange, purpose: Purpose, deadline: Instant, done: Done);
    /// Fetches in the background, as far as there is room in the queue.
    fn prefetch(&self, ranges: Vec<BlockRange>, purpose: Purpose);
    /// How many of the blocks are local.
    fn held_blocks(&self, blocks: BlockRange) -> u64;
    /// Bytes that have come from peers: whether anything comes at all.
    fn fetched_bytes(&self) -> u64;
    /// The end of the log, as far as it is known: what lies behind it may come to be anything.
    fn end(&self) -> BlockIndex;
}

/// Reads a metadata node, waiting for it. Not for FUSE threads.
pub fn read_bytes<B: Blocks + ?Sized>(
    blocks: &B,
    range: ByteRange,
    deadline: Instant,
) -> Result<Bytes, Unavailable> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let done = move |result| {
        let _ = sender.send(result);
    };
    blocks.read(range.blocks(), Purpose::Metadata, deadline, Box::new(done));
    // The deadline is kept by the other side; the slack is for a side that fails to.
    let patience = deadline.saturating_duration_since(Instant::now()) + Duration::from_secs(5);
    let bytes = receiver.recv_timeout(patience).map_err(|error| Unavailable(error.into()))??;
    Ok(cut(&bytes, range))
}

/// Runs a handler so that its panic ends what it handled and not the thread that serves others.
pub fn contained(operation: &'static str, handler: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        tracing::error!("a bug in {operation} was contained; the caller got EIO");
    }
}

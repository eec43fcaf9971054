//! Bringing releases, or what of them will be wanted, into the cache in the background.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use distd_core::manifest::{Profile, Release};
use distd_core::node::Swarm;
use distd_core::unit::{BlockIndex, BlockRange, ByteRange, HumanBytes};
use serde_json::json;

use crate::blocks::{Unavailable, read_bytes};
use crate::control::Answer;
use crate::exit::{Complaint, Exit};
use crate::fs::{View, WalkError, merged, walk, warm};
use crate::options::Prefetch;

use super::jobs::Progress;
use super::mounted::{Mounted, Shown};

/// Blocks asked for and not yet there, 48 MiB: enough for 1 Gbit/s over 400 ms, and for a GB/s while
/// this thread waits for a processor.
const WINDOW_BLOCKS: u64 = 12 << 10;
/// Blocks of one piece: 4 MiB.
const PIECE_BLOCKS: u64 = 1024;
/// How often is looked at what has come.
const POLL: Duration = Duration::from_millis(5);
/// After so long without anything coming it is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// After so long without anything coming it is given up.
const PATIENCE: Duration = Duration::from_secs(90);

/// Why not everything was brought.
#[derive(Debug, thiserror::Error)]
pub(super) enum BringError {
    /// Nobody wants it any more.
    #[error("stopped")]
    Stopped,
    /// Nothing came any more.
    #[error(
        "nothing came for {} s; {} of {} are still to be fetched: is a source reachable, and is there \
         room in the cache?",
        PATIENCE.as_secs(), HumanBytes(*left_bytes), HumanBytes(*total_bytes)
    )]
    Stuck {
        /// What is still to be fetched.
        left_bytes: u64,
        /// Of how much.
        total_bytes: u64,
    },
    /// The metadata that says what to bring.
    #[error(transparent)]
    Walk(#[from] WalkError),
}

impl From<Unavailable> for BringError {
    fn from(error: Unavailable) -> Self {
        Self::Walk(error.into())
    }
}

impl From<BringError> for Complaint {
    fn from(error: BringError) -> Self {
        let exit = match error {
            BringError::Stopped => Exit::Failure,
            BringError::Stuck { .. } | BringError::Walk(WalkError::Unavailable(_)) => {
                Exit::Unreachable
            }
            BringError::Walk(WalkError::NoEntry { .. }) => Exit::NoSuch,
            BringError::Walk(_) => Exit::Unverified,
        };
        Self::new(exit, error)
    }
}

/// Brings `ranges` into the cache, in this order, and waits for them.
pub(super) fn bring(
    swarm: &Swarm,
    ranges: &[BlockRange],
    phase: &'static str,
    progress: &Progress,
) -> Result<(), BringError> {
    let total: u64 = ranges.iter().map(|range| range.count).sum();
    progress.begin(phase, bytes(total));
    let mut pieces = ranges.iter().flat_map(|range| pieces(*range));
    let mut window: Vec<BlockRange> = Vec::new();
    let (mut done, mut seen) = (0, 0);
    let (mut came, mut asked) = (Instant::now(), Instant::now());
    loop {
        if progress.is_stopped() {
            return Err(BringError::Stopped);
        }
        window.retain(|piece| {
            let here = swarm.held_blocks(*piece) == piece.count;
            done += if here { piece.count } else { 0 };
            !here
        });
        let mut wanted = Vec::new();
        while window.iter().map(|piece| piece.count).sum::<u64>() < WINDOW_BLOCKS {
            let Some(piece) = pieces.next() else { break };
            if swarm.held_blocks(piece) == piece.count {
                done += piece.count;
            } else {
                window.push(piece);
                wanted.push(piece);
            }
        }
        let now = Instant::now();
        let here = done + window.iter().map(|piece| swarm.held_blocks(*piece)).sum::<u64>();
        if here != seen {
            (seen, came, asked) = (here, now, now);
        }
        progress.set(bytes(here));
        if window.is_empty() {
            return Ok(());
        }
        if now - came > PATIENCE {
            let left_bytes = bytes(total - here.min(total));
            return Err(BringError::Stuck { left_bytes, total_bytes: bytes(total) });
        }
        if now - asked > ASK_AGAIN {
            asked = now;
            wanted.clone_from(&window);
        }
        if !wanted.is_empty() {
            swarm.fetch_bulk(wanted);
        }
        std::thread::sleep(POLL);
    }
}

fn bytes(blocks: u64) -> u64 {
    BlockRange::new(BlockIndex(0), blocks).byte_len()
}

fn pieces(range: BlockRange) -> impl Iterator<Item = BlockRange> {
    let starts = (range.start.0..range.end().0).step_by(PIECE_BLOCKS as usize);
    starts.map(move |start| {
        BlockRange::new(BlockIndex(start), PIECE_BLOCKS.min(range.end().0 - start))
    })
}

/// Brings the part of a release that lies at `path`, content and metadata.
pub(super) fn bring_release(
    swarm: &Swarm,
    release: &Release,
    path: &Path,
    timeout: Duration,
    progress: &Progress,
) -> Answer {
    bring(swarm, &release.metadata, "metadata", progress)?;
    let place = walk(swarm, release, path, timeout).map_err(BringError::from)?;
    let image = release.image.iter().map(|image| image.blocks).collect();
    let ranges = merged([place.metadata, place.content, image].concat());
    let before = ranges.iter().map(|range| swarm.held_blocks(*range)).sum::<u64>();
    bring(swarm, &ranges, "content", progress)?;
    let held = ranges.iter().map(|range| swarm.held_blocks(*range)).sum::<u64>();
    let total: u64 = ranges.iter().map(|range| range.count).sum();
    if held < total {
        let text = format!(
            "only {} of {} are local: the cache's bound is too small for the whole release",
            HumanBytes(bytes(held)),
            HumanBytes(bytes(total))
        );
        return Err(Complaint::failure(text));
    }
    Ok(json!({
        "track": release.track,
        "release": release.version,
        "local_bytes": bytes(held),
        "total_bytes": bytes(total),
        "brought_bytes": bytes(total - before),
    }))
}

impl Mounted {
    /// Begins to bring what the mount's options say of the release on show, and of what was local of the
    /// one `before`. What was begun for that one ends.
    pub(super) fn start_prefetch(self: &Arc<Self>, before: Option<Arc<View>>) {
        let progress = self.restart_background();
        if self.prefetch == Prefetch::None {
            return;
        }
        if let (Shown::Erofs(erofs), Some(image)) = (&self.shown, &self.view().release.image) {
            // All that the kernel reads; the rest is for the node's own commands.
            erofs.sweep(image);
        }
        self.fs.sweep_metadata();
        if self.prefetch == Prefetch::Meta && before.is_none() {
            return;
        }
        let mounted = Arc::clone(self);
        let run = move || {
            if let Err(complaint) = mounted.prefetch(before.as_deref(), &progress)
                && !progress.is_stopped()
            {
                let directory = mounted.directory.display();
                tracing::warn!("not all that {directory} will want is local: {complaint}");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("prefetch".into()).spawn(run) {
            tracing::warn!("no background fetch: {error}");
        }
        // It may have been told to end before this one was there to be stopped.
        if self.ended.load(Ordering::Relaxed) {
            self.end();
        }
    }

    fn bring_profile(&self, profile: ByteRange, progress: &Progress) -> Result<(), Complaint> {
        let deadline = Instant::now() + self.timeout;
        let bytes = read_bytes(&self.swarm, profile, deadline).map_err(BringError::from)?;
        let damaged = |source| WalkError::Damaged { offset: profile.offset, source };
        let ranges = Profile::decode(&bytes).map_err(damaged).map_err(BringError::from)?;
        Ok(bring(&self.swarm, &ranges, "what it is first used for", progress)?)
    }

    fn prefetch(&self, before: Option<&View>, progress: &Progress) -> Result<(), Complaint> {
        let release = &self.view().release;
        if let Some(before) = before {
            bring(&self.swarm, &release.metadata, "metadata", progress)?;
            let ranges = warm(&self.swarm, &before.release, release, self.timeout)
                .map_err(BringError::from)?;
            bring(&self.swarm, &ranges, "what was warm", progress)?;
        }
        if let (Prefetch::Profile, Some(profile)) = (self.prefetch, release.profile) {
            self.bring_profile(profile, progress)?;
        }
        if self.prefetch == Prefetch::Full {
            let everything = Path::new("");
            bring_release(&self.swarm, release, everything, self.timeout, progress)?;
        }
        Ok(())
    }
}

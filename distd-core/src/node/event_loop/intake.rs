//! Runs that have arrived: hashed, given to whoever waits, kept.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::node::follow::Step;
use crate::node::hasher::Hashed;
use crate::node::keeper::{Keep, Kept};
use crate::node::reading::Purpose;
use crate::ppspp::engine::SwarmKey;
use crate::tree::VerifiedRun;

use super::EventLoop;

/// Verified runs of one munro, one behind the other, that go to the disk together.
#[derive(Default)]
pub(super) struct Arrived {
    pub(super) swarm: Option<SwarmKey>,
    pub(super) runs: Vec<VerifiedRun>,
}

impl Arrived {
    pub(super) fn takes(&self, swarm: SwarmKey, run: &VerifiedRun) -> bool {
        let Some(last) = self.runs.last() else { return true };
        self.swarm == Some(swarm)
            && last.munro().munro() == run.munro().munro()
            && last.bin().chunks().end == run.bin().chunks().start
    }
}

impl EventLoop {
    /// Gives runs to whoever waits for them, and keeps them.
    pub(super) fn keep(&mut self, now: Instant, arrived: Arrived) {
        let Arrived { swarm: Some(key), runs } = arrived else { return };
        let Some(joined) = self.swarms.get_mut(&key) else { return };
        for run in &runs {
            let counter = match joined.reading.on_run(run) {
                Purpose::Metadata => &joined.shared.counters.fetched_metadata,
                Purpose::Data => &joined.shared.counters.fetched_data,
                Purpose::Frames => &joined.shared.counters.fetched_frames,
            };
            counter.fetch_add(run.bytes().len() as u64, Ordering::Relaxed);
        }
        let steps: Vec<Step> = runs.iter().map(|run| joined.follower.on_run(run)).collect();
        let keep = Keep { swarm: key, log: Arc::clone(&joined.shared.log), runs };
        if let Some(kept) = self.helpers.keeper.keep(keep) {
            self.on_kept(kept);
        }
        for step in steps {
            self.on_step(now, key, step);
        }
    }

    pub(super) fn on_hashed(&mut self, hashed: Hashed) {
        let now = Instant::now();
        for (id, run) in hashed {
            self.driver.engine.handle_hashed(now, id, run);
        }
    }

    pub(super) fn on_kept(&mut self, kept: Kept) {
        let Kept { swarm, blocks, runs, result } = kept;
        let Some(joined) = self.swarms.get_mut(&swarm) else { return };
        match result {
            Ok(()) => {
                self.full_logged = false;
                // A small cache may have evicted it meanwhile, and said so.
                let mut held = vec![blocks];
                for gone in joined.shared.log.missing(blocks) {
                    self.driver.engine.release(Instant::now(), swarm, gone);
                    held = held.into_iter().flat_map(|part| part.without(gone)).collect();
                }
                for part in held {
                    self.driver.engine.hold(Instant::now(), swarm, part);
                }
            }
            Err(error) => {
                // Peers that wait for it are told that it is not here.
                self.driver.engine.release(Instant::now(), swarm, blocks);
                let uncached = &joined.shared.counters.uncached_runs;
                uncached.fetch_add(runs as u64, Ordering::Relaxed);
                if !std::mem::replace(&mut self.full_logged, true) {
                    tracing::warn!(%error, "the cache takes nothing; going on without it");
                }
            }
        }
    }
}

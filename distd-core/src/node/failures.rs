//! Reads that have just failed: the kernel asks for a page once more when its read-ahead has failed, and
//! that second question must not wait a whole deadline again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::unit::BlockRange;

/// How long a failure answers for the same blocks.
const FAILURE_LIFE: Duration = Duration::from_secs(1);
/// Failures remembered; the oldest gives way.
const FAILURES_MAX: usize = 1024;

/// The latest failures of one log.
#[derive(Default)]
pub(super) struct Failures(VecDeque<Failure>);

struct Failure {
    at: Instant,
    blocks: Vec<BlockRange>,
    tried: Vec<SocketAddr>,
}

impl Failures {
    /// These blocks did not come by their deadline.
    pub(super) fn note(&mut self, now: Instant, blocks: Vec<BlockRange>, tried: Vec<SocketAddr>) {
        if self.0.len() >= FAILURES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Failure { at: now, blocks, tried });
    }

    /// Whether one of the blocks has failed just now, and who had been asked for it.
    pub(super) fn recent(
        &mut self,
        now: Instant,
        blocks: &[BlockRange],
    ) -> Option<Vec<SocketAddr>> {
        while self.0.front().is_some_and(|failure| failure.at + FAILURE_LIFE <= now) {
            self.0.pop_front();
        }
        let meets = |failed: &BlockRange| {
            blocks.iter().any(|blocks| !blocks.intersection(*failed).is_empty())
        };
        let failure = self.0.iter().find(|failure| failure.blocks.iter().any(meets))?;
        Some(failure.tried.clone())
    }

    /// A peer came or delivered: the next read may fare better.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::BlockIndex;

    fn blocks(start: u64, count: u64) -> Vec<BlockRange> {
        vec![BlockRange::new(BlockIndex(start), count)]
    }

    #[test]
    fn a_failure_answers_for_its_blocks_until_it_is_old_or_a_peer_comes() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        failures.note(now, blocks(10, 4), Vec::new());
        assert!(failures.recent(now, &blocks(13, 1)).is_some());
        assert!(failures.recent(now, &blocks(14, 1)).is_none());
        assert!(failures.recent(now + FAILURE_LIFE, &blocks(10, 4)).is_none());
        failures.note(now, blocks(10, 4), Vec::new());
        failures.forget();
        assert!(failures.recent(now, &blocks(10, 4)).is_none());
    }

    #[test]
    fn the_number_of_failures_is_bounded() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        (0..10_000).for_each(|start| failures.note(now, blocks(start, 1), Vec::new()));
        assert_eq!(failures.0.len(), FAILURES_MAX);
    }
}

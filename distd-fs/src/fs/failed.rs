//! Reads that failed a moment ago.
//!
//! When the kernel's read-ahead fails, it reads the page that the caller waits for once more, by itself.
//! Waiting for the deadline a second time would double it, so that such a repetition fails at once.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use distd_core::unit::BlockRange;
use lru::LruCache;

/// How long after its failure a read counts as repeated: the kernel repeats within microseconds, a
/// person or a program that tries again does so later.
pub(super) const REPEAT: Duration = Duration::from_millis(500);
/// Files whose failures are remembered; the oldest is forgotten first.
const FILES_MAX: usize = 1024;
/// Ranges remembered of one file.
const RANGES_MAX: usize = 64;

/// The failures.
#[derive(Debug)]
pub(crate) struct Failed(Mutex<LruCache<u64, Vec<(BlockRange, Instant)>>>);

impl Default for Failed {
    fn default() -> Self {
        let most = NonZeroUsize::new(FILES_MAX).unwrap_or(NonZeroUsize::MIN);
        Self(Mutex::new(LruCache::new(most)))
    }
}

impl Failed {
    /// Takes note of blocks of a file that could not be had.
    pub(crate) fn record(&self, file: u64, blocks: BlockRange, now: Instant) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges = files.get_or_insert_mut(file, Vec::new);
        ranges.retain(|(_, at)| now.saturating_duration_since(*at) < REPEAT);
        if ranges.len() < RANGES_MAX {
            ranges.push((blocks, now));
        }
    }

    /// Whether a part of these blocks has just failed.
    pub(crate) fn is_repeated(&self, file: u64, blocks: BlockRange, now: Instant) -> bool {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ranges) = files.get(&file) else { return false };
        ranges.iter().any(|(range, at)| {
            now.saturating_duration_since(*at) < REPEAT && !range.intersection(blocks).is_empty()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use distd_core::unit::BlockIndex;

    #[test]
    fn a_repetition_is_known_for_a_moment_and_the_memory_is_bounded() {
        let (failed, now) = (Failed::default(), Instant::now());
        let range = |start| BlockRange::new(BlockIndex(start), 32);
        failed.record(1, range(0), now);
        assert!(failed.is_repeated(1, range(31), now));
        assert!(!failed.is_repeated(1, range(32), now) && !failed.is_repeated(2, range(0), now));
        assert!(!failed.is_repeated(1, range(0), now + REPEAT));
        for file in 0..10 * FILES_MAX as u64 {
            (0..2).for_each(|start| failed.record(file, range(start), now));
        }
        (0..1000).for_each(|start| failed.record(0, range(start), now));
        let mut files = failed.0.lock().expect("not poisoned");
        assert_eq!((files.len(), files.get(&0).map(Vec::len)), (FILES_MAX, Some(RANGES_MAX)));
    }
}

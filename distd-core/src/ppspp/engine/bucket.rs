//! A token bucket: what a limit of bytes a second leaves to be sent, or asked for, now.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::limits::{BURST_BYTES_MIN, BURSTS_PER_SECOND};

/// Bytes that a limit leaves.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Bytes a second.
    rate: NonZeroU64,
    /// Bytes left at `since`.
    left: u64,
    since: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: NonZeroU64, now: Instant) -> Self {
        let mut bucket = Self { rate, left: 0, since: now };
        bucket.left = bucket.capacity();
        bucket
    }

    /// Bytes a second.
    pub(super) fn rate(&self) -> u64 {
        self.rate.get()
    }

    /// Most that is saved up, in bytes.
    fn capacity(&self) -> u64 {
        (self.rate.get() / BURSTS_PER_SECOND).max(BURST_BYTES_MIN)
    }

    /// Bytes that may pass now.
    pub(super) fn left(&mut self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.since);
        let more = elapsed.as_nanos() * u128::from(self.rate.get()) / 1_000_000_000;
        // What is less than a byte counts next time.
        if more > 0 {
            self.left = self
                .capacity()
                .min(self.left.saturating_add(u64::try_from(more).unwrap_or(u64::MAX)));
            self.since = now;
        }
        self.left
    }

    /// Bytes pass.
    pub(super) fn take(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// When so many bytes may pass; at most what is ever saved up.
    pub(super) fn ready_at(&self, bytes: u64) -> Instant {
        let lacking = bytes.min(self.capacity()).saturating_sub(self.left);
        self.since
            + Duration::from_nanos(
                (u128::from(lacking) * 1_000_000_000).div_ceil(u128::from(self.rate.get())) as u64,
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_more_passes_than_the_rate_and_one_burst(
            rate in 1u64..200_000_000,
            steps in proptest::collection::vec((0u64..200_000_000, 0u64..300_000), 1..200),
        ) {
            let begin = Instant::now();
            let mut bucket = Bucket::new(NonZeroU64::new(rate).expect("positive"), begin);
            let (mut now, mut passed) = (begin, 0);
            for (pause, wanted) in steps {
                now += Duration::from_nanos(pause);
                let bytes = bucket.left(now).min(wanted);
                bucket.take(bytes);
                passed += bytes;
                let elapsed = (now - begin).as_secs_f64();
                let most = elapsed * rate as f64 + bucket.capacity() as f64 + 1.0;
                prop_assert!(passed as f64 <= most, "{passed} of {most}");
            }
        }

        #[test]
        fn what_is_waited_for_is_there_when_it_is_said_to_be(
            rate in 1u64..200_000_000,
            taken in 0u64..20_000_000,
            wanted in 1u64..100_000,
        ) {
            let begin = Instant::now();
            let mut bucket = Bucket::new(NonZeroU64::new(rate).expect("positive"), begin);
            bucket.take(taken);
            let at = bucket.ready_at(wanted);
            prop_assert!(bucket.left(at) >= wanted.min(bucket.capacity()));
        }
    }

    #[test]
    fn all_of_the_rate_is_used_by_whoever_always_has_something() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(NonZeroU64::new(1_000_003).expect("positive"), begin);
        let mut passed = 0;
        for ms in 0..10_000 {
            let bytes = bucket.left(begin + Duration::from_millis(ms));
            bucket.take(bytes);
            passed += bytes;
        }
        assert!(passed > 9_950_000, "{passed}");
    }
}

//! A token bucket that spreads a window over its round trip.
//!
//! Two milliseconds' worth goes through at once: one system call and one segmented packet cost less
//! than sixty, and a timer is no finer than a millisecond. Slower paths get less at once, since
//! their buffers may hold less.

use std::time::{Duration, Instant};

use super::FOREGROUND_BYTES_INITIAL;

/// What goes through at once in any case: the first window, so more than a granule.
const BATCH_BYTES: u64 = FOREGROUND_BYTES_INITIAL;
/// What the bucket holds, as a time at the current rate.
const BURST: Duration = Duration::from_millis(2);
/// No wait is longer: the rate changes meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The bucket.
#[derive(Debug)]
pub(super) struct Pacer {
    tokens: f64,
    filled_at: Instant,
}

impl Pacer {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: BATCH_BYTES as f64, filled_at: now }
    }

    /// Bytes that may go out now, at `rate` bytes a second.
    pub(super) fn tokens(&mut self, now: Instant, rate: f64) -> u64 {
        self.fill(now, rate);
        self.tokens as u64
    }

    /// `bytes` went out. What the bucket did not hold is a debt, so that the rate holds all the
    /// same; it is bounded like the bucket.
    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64, rate: f64) {
        self.fill(now, rate);
        self.tokens = (self.tokens - bytes as f64).max(-Self::most(rate));
    }

    /// When a batch of `bytes` may go out, if not now.
    pub(super) fn ready_at(&mut self, now: Instant, bytes: u64, rate: f64) -> Option<Instant> {
        self.fill(now, rate);
        let missing = bytes.min(BATCH_BYTES) as f64 - self.tokens;
        (missing > 0.0).then(|| {
            let wait = Duration::try_from_secs_f64(missing / rate).unwrap_or(WAIT_MAX);
            now + wait.clamp(Duration::from_micros(1), WAIT_MAX)
        })
    }

    fn fill(&mut self, now: Instant, rate: f64) {
        let elapsed = now.saturating_duration_since(self.filled_at);
        self.tokens = (self.tokens + rate * elapsed.as_secs_f64()).min(Self::most(rate));
        self.filled_at = self.filled_at.max(now);
    }

    fn most(rate: f64) -> f64 {
        (rate * BURST.as_secs_f64()).max(BATCH_BYTES as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_out_unasked_is_a_debt() {
        let now = Instant::now();
        let mut pacer = Pacer::new(now);
        pacer.on_sent(now, 2 * BATCH_BYTES, 1e6);
        assert_eq!(pacer.tokens(now, 1e6), 0);
        let at = pacer.ready_at(now, 1000, 1e6).expect("in debt");
        assert!(at >= now + Duration::from_millis(BATCH_BYTES / 1000));
        assert_eq!(pacer.tokens(at + Duration::from_secs(1), 1e6), BATCH_BYTES);
    }

    #[test]
    fn a_bucket_lets_its_rate_through_and_a_batch_at_once() {
        let start = Instant::now();
        let (rate, mut now) = (1e6, start);
        let mut pacer = Pacer::new(start);
        let mut sent = 0;
        while now < start + Duration::from_secs(10) {
            let tokens = pacer.tokens(now, rate);
            pacer.on_sent(now, tokens, rate);
            sent += tokens;
            let at =
                pacer.ready_at(now, FOREGROUND_BYTES_INITIAL / 2, rate).expect("an empty bucket");
            assert!(at > now);
            now = at;
        }
        let expected = 10_000_000 + BATCH_BYTES;
        assert!(sent.abs_diff(expected) < 2 * BATCH_BYTES, "{sent} bytes");
    }
}

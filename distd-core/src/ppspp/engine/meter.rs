//! A meter: bytes that pass one way over a channel, and how fast.

use std::time::{Duration, Instant};

/// Least time that a rate is of.
const SPAN: Duration = Duration::from_secs(1);

/// Counts bytes.
#[derive(Debug)]
pub(super) struct Meter {
    total: u64,
    /// Where the running span began, and at which total.
    since: (Instant, u64),
    last: Instant,
    /// Bytes a second in the span before.
    rate: u64,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self { total: 0, since: (now, 0), last: now, rate: 0 }
    }

    pub(super) fn add(&mut self, now: Instant, bytes: u64) {
        if let Some(rate) = self.span(now) {
            (self.rate, self.since) = (rate, (now, self.total));
        }
        self.total += bytes;
        self.last = now;
    }

    /// Bytes since the beginning.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes a second, over the last second or a little more; nothing for two seconds is nothing.
    pub(super) fn rate(&self, now: Instant) -> u64 {
        if now.saturating_duration_since(self.last) >= 2 * SPAN {
            return 0;
        }
        self.span(now).unwrap_or(self.rate)
    }

    /// The rate of the running span, if it is long enough.
    fn span(&self, now: Instant) -> Option<u64> {
        let (since, before) = self.since;
        let elapsed = now.saturating_duration_since(since);
        (elapsed >= SPAN).then(|| ((self.total - before) as f64 / elapsed.as_secs_f64()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_follows_what_passes_and_ends_with_it() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut meter = Meter::new(begin);
        (0..300).for_each(|i| meter.add(at(i * 10), 1000));
        assert!((99_000..=101_000).contains(&meter.rate(at(3000))), "{}", meter.rate(at(3000)));
        // Ten times as much.
        (300..600).for_each(|i| meter.add(at(i * 10), 10_000));
        assert!((990_000..=1_010_000).contains(&meter.rate(at(6000))), "{}", meter.rate(at(6000)));
        assert_eq!(meter.rate(at(8000)), 0);
        assert_eq!(meter.total(), 3_300_000);
        // After a rest the old rate does not come back.
        meter.add(at(20_000), 5);
        assert!(meter.rate(at(20_000)) < 100_000);
    }
}

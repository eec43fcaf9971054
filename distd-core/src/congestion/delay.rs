//! Delays on a clock that is not ours: only differences mean something (RFC 6817 §2.4.1).

use std::time::{Duration, Instant};

/// A base is remembered for so many [`SPAN`]s (RFC 6817 BASE_HISTORY).
const SPANS: usize = 10;
const SPAN: Duration = Duration::from_secs(60);
/// The least of so many samples counts as the current delay (RFC 6817 CURRENT_FILTER): one that
/// was held up by a timer says nothing of the path.
const RECENT: usize = 4;

/// The least delay of ten minutes and of the last few samples.
#[derive(Debug)]
pub(super) struct DelayHistory {
    /// Least delay of each span, the current one first, in microseconds modulo 2^64.
    base: [Option<u64>; SPANS],
    recent: [Option<u64>; RECENT],
    span_start: Instant,
}

impl DelayHistory {
    pub(super) fn new(now: Instant) -> Self {
        Self { base: [None; SPANS], recent: [None; RECENT], span_start: now }
    }

    /// Takes a delay in microseconds, modulo 2^64.
    pub(super) fn sample(&mut self, now: Instant, delay_us: u64) {
        let spans = now.saturating_duration_since(self.span_start).as_secs() / SPAN.as_secs();
        if spans > 0 {
            let shift = usize::try_from(spans).map_or(SPANS, |spans| spans.min(SPANS));
            self.base.rotate_right(shift);
            self.base[..shift].fill(None);
            self.span_start = now;
        }
        self.base[0] = Some(self.base[0].map_or(delay_us, |base| least(base, delay_us)));
        self.recent.rotate_right(1);
        self.recent[0] = Some(delay_us);
    }

    /// How much longer than the base the current delay is: what queues add.
    pub(super) fn queuing(&self) -> Option<Duration> {
        let base = self.base.iter().flatten().copied().reduce(least)?;
        let current = self.recent.iter().flatten().copied().reduce(least)?;
        Some(Duration::from_micros(difference(current, base)))
    }
}

/// `a - b`, or 0 if `b` is the larger: on a clock that wraps, within half of its circle.
const fn difference(a: u64, b: u64) -> u64 {
    let difference = a.wrapping_sub(b);
    if difference > u64::MAX / 2 { 0 } else { difference }
}

/// The smaller of two delays on a clock that wraps.
const fn least(a: u64, b: u64) -> u64 {
    if difference(a, b) == 0 { a } else { b }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: Option<Duration> = Some(Duration::ZERO);
    const LONG: Option<Duration> = Some(Duration::from_millis(20));

    #[test]
    fn a_base_lasts_ten_minutes() {
        let start = Instant::now();
        let mut history = DelayHistory::new(start);
        assert_eq!(history.queuing(), None);
        history.sample(start, 10_000);
        for second in 1..570 {
            history.sample(start + Duration::from_secs(second), 30_000);
            assert_eq!(history.queuing(), if second < 4 { NONE } else { LONG });
        }
        history.sample(start + Duration::from_secs(1300), 30_000);
        assert_eq!(history.queuing(), NONE);
    }

    #[test]
    fn one_held_up_sample_is_no_queue() {
        let start = Instant::now();
        let mut history = DelayHistory::new(start);
        for delay in [10_000, 10_000, 90_000] {
            history.sample(start, delay);
        }
        assert_eq!(history.queuing(), NONE);
    }

    proptest! {
        /// Where the peer's clock stands, before or behind ours or at its wrap, does not matter.
        #[test]
        fn the_clocks_offset_does_not_matter(
            offset: u64,
            delays in prop::collection::vec(0u64..1 << 40, 1..50),
        ) {
            let now = Instant::now();
            let (mut plain, mut shifted) = (DelayHistory::new(now), DelayHistory::new(now));
            for delay in delays {
                plain.sample(now, delay);
                shifted.sample(now, delay.wrapping_add(offset));
            }
            prop_assert_eq!(plain.queuing(), shifted.queuing());
        }

        #[test]
        fn no_delay_is_too_strange(delays in prop::collection::vec(any::<u64>(), 1..50)) {
            let now = Instant::now();
            let mut history = DelayHistory::new(now);
            for delay in delays {
                history.sample(now, delay);
                prop_assert!(history.queuing().is_some());
            }
        }
    }
}

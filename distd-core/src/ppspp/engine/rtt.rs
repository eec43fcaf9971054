//! A channel's round-trip time: smoothed as RFC 6298 does it, and its recent minimum.

use std::time::{Duration, Instant};

use super::limits::{OVERDUE_MAX, OVERDUE_MIN};

/// What is assumed before the first sample.
const INITIAL: Duration = Duration::from_millis(100);
/// A minimum is forgotten after one to two of these.
const MINIMUM_LIFE: Duration = Duration::from_secs(15);

/// Round-trip time estimates.
#[derive(Debug)]
pub(super) struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    /// Minimum of the current and of the previous span of [`MINIMUM_LIFE`].
    minimum: [Option<Duration>; 2],
    span_start: Instant,
}

impl Rtt {
    pub(super) fn new(now: Instant) -> Self {
        Self { smoothed: None, variation: INITIAL / 2, minimum: [None; 2], span_start: now }
    }

    /// Takes a sample; one of nothing (a coarse clock) counts as a microsecond.
    pub(super) fn sample(&mut self, now: Instant, sample: Duration) {
        let sample = sample.max(Duration::from_micros(1));
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(sample)) / 4;
                self.smoothed = Some((smoothed * 7 + sample) / 8);
            }
        }
        if now.saturating_duration_since(self.span_start) > MINIMUM_LIFE {
            self.minimum = [None, self.minimum[0]];
            self.span_start = now;
        }
        self.minimum[0] = Some(self.minimum[0].map_or(sample, |least| least.min(sample)));
    }

    /// Whether there was any sample.
    pub(super) fn is_known(&self) -> bool {
        self.smoothed.is_some()
    }

    /// The smoothed round-trip time.
    pub(super) fn smoothed(&self) -> Duration {
        self.smoothed.unwrap_or(INITIAL)
    }

    /// The least of the last half minute: the path without its queues.
    pub(super) fn minimum(&self) -> Duration {
        self.minimum.iter().flatten().min().copied().unwrap_or_else(|| self.smoothed())
    }

    /// After how long an answer is overdue when `before` were overdue in a row.
    pub(super) fn overdue(&self, before: u32) -> Duration {
        let first = (self.smoothed() + self.variation * 4).max(OVERDUE_MIN);
        (first * (1 << before.min(6))).min(OVERDUE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_overdue_soon_after_the_round_trip_and_later_each_time() {
        let now = Instant::now();
        let mut rtt = Rtt::new(now);
        for _ in 0..50 {
            rtt.sample(now, Duration::from_millis(50));
        }
        assert!(rtt.overdue(0) < Duration::from_millis(60));
        assert!(rtt.overdue(1) == rtt.overdue(0) * 2);
        assert!(rtt.overdue(60) <= OVERDUE_MAX);
        rtt.sample(now, Duration::from_millis(10));
        assert_eq!(rtt.minimum(), Duration::from_millis(10));
        let later = now + MINIMUM_LIFE * 3;
        rtt.sample(later, Duration::from_millis(40));
        rtt.sample(later + MINIMUM_LIFE * 2, Duration::from_millis(40));
        assert_eq!(rtt.minimum(), Duration::from_millis(40));
    }
}

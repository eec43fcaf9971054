//! The round-trip time and the retransmission timeout (RFC 6298).

use std::time::Duration;

/// What is assumed before the first sample.
const INITIAL: Duration = Duration::from_millis(100);
/// Least timeout (RFC 6298 2.4). Holes are asked for again by their receiver, so that a timeout
/// guards only against a dead path.
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Largest timeout (RFC 6298 2.5).
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// A channel's round-trip time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
}

impl Rtt {
    /// Takes a sample; one of nothing (a coarse clock) counts as a microsecond.
    pub fn sample(&mut self, sample: Duration) {
        let sample = sample.clamp(Duration::from_micros(1), TIMEOUT_MAX);
        let (smoothed, variation) = match self.smoothed {
            None => (sample, sample / 2),
            Some(smoothed) => {
                let deviation = smoothed.abs_diff(sample);
                ((smoothed * 7 + sample) / 8, (self.variation * 3 + deviation) / 4)
            }
        };
        self.smoothed = Some(smoothed);
        self.variation = variation;
    }

    /// The smoothed round-trip time.
    pub fn smoothed(&self) -> Duration {
        self.smoothed.unwrap_or(INITIAL)
    }

    /// How long to wait for an acknowledgement when `before` waits were in vain.
    pub fn timeout(&self, before: u32) -> Duration {
        let once = self.smoothed() + self.variation * 4;
        (once.max(TIMEOUT_MIN) * (1 << before.min(8))).min(TIMEOUT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_path_has_its_own_round_trip_time() {
        let mut rtt = Rtt::default();
        for _ in 0..100 {
            rtt.sample(Duration::from_millis(500));
        }
        assert_eq!(rtt.smoothed(), Duration::from_millis(500));
        assert_eq!(rtt.timeout(0), TIMEOUT_MIN);
        assert_eq!(rtt.timeout(1), rtt.timeout(0) * 2);
        assert_eq!(rtt.timeout(u32::MAX), TIMEOUT_MAX);
    }

    #[test]
    fn samples_without_sense_are_bounded() {
        let mut rtt = Rtt::default();
        rtt.sample(Duration::ZERO);
        assert!(rtt.smoothed() > Duration::ZERO);
        rtt.sample(Duration::MAX);
        assert!(rtt.smoothed() <= TIMEOUT_MAX);
        assert!(rtt.timeout(0) <= TIMEOUT_MAX);
    }
}

//! The machine's clock, which may be wrong.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::limits::CLOCK_SET_FROM_S;

/// This machine's clock in Unix seconds; 0 where it was never set (no battery, before NTP): such a clock
/// judges nothing, neither freshness nor what comes from the future.
pub fn unix_now_s() -> u64 {
    judged(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

fn judged(shown_s: u64) -> u64 {
    if shown_s < CLOCK_SET_FROM_S { 0 } else { shown_s }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_from_before_distd_was_never_set() {
        assert_eq!(judged(0), 0);
        assert_eq!(judged(CLOCK_SET_FROM_S - 1), 0);
        assert_eq!(judged(CLOCK_SET_FROM_S), CLOCK_SET_FROM_S);
        assert!(unix_now_s() >= CLOCK_SET_FROM_S, "the test machine's clock");
    }
}

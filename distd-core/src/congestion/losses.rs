//! Which part of what was sent lately was lost.

use super::SEGMENT_BYTES;

/// What counts as lately: twice so many bytes, at most.
const SPAN_BYTES: f64 = 512.0 * SEGMENT_BYTES as f64;
/// Lost parts up to this are what a path does by itself. Above 1 %, so that a path that loses that
/// much at random rarely looks worse.
const TOLERATED_PART: f64 = 0.025;
/// Least that a loss leaves of a window: RFC 6817's half.
const KEPT_PART_MIN: f64 = 0.5;

/// Bytes that arrived and bytes that did not; the older they are, the less they count.
#[derive(Debug, Default)]
pub(super) struct Losses {
    arrived: f64,
    lost: f64,
}

impl Losses {
    pub(super) fn on_ack(&mut self, bytes: u64) {
        self.arrived += bytes as f64;
        self.age();
    }

    pub(super) fn on_loss(&mut self, bytes: u64) {
        self.lost += bytes as f64;
        self.age();
    }

    /// Which part of a window to keep where losses come without a queue: 1 while they are few. At the
    /// beginning a span is taken to have arrived: one loss says nothing yet.
    pub(super) fn kept(&self) -> f64 {
        let part = self.lost / (self.lost + self.arrived.max(SPAN_BYTES));
        if part <= TOLERATED_PART { 1.0 } else { (1.0 - part).max(KEPT_PART_MIN) }
    }

    fn age(&mut self) {
        if self.arrived + self.lost > 2.0 * SPAN_BYTES {
            self.arrived /= 2.0;
            self.lost /= 2.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_tolerated_and_old_losses_are_forgotten() {
        let mut losses = Losses::default();
        losses.on_loss(10 * SEGMENT_BYTES);
        assert!(losses.kept() >= 1.0);
        losses.on_loss(90 * SEGMENT_BYTES);
        assert!((0.8..0.9).contains(&losses.kept()), "{}", losses.kept());
        losses.on_loss(100_000 * SEGMENT_BYTES);
        assert!(losses.kept() <= 0.5);
        for _ in 0..10_000 {
            losses.on_ack(SEGMENT_BYTES);
        }
        assert!(losses.kept() >= 1.0);
    }
}

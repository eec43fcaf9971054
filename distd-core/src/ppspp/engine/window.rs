//! How much may be under way to one peer, and how fast it goes out.
//!
//! A window in bytes that grows with acknowledgements and shrinks once a round trip on loss, and a
//! token bucket that spreads it over the round trip. Bursts of a batch are let through whole: the
//! system call and the network card want them.

use std::time::{Duration, Instant};

use super::limits::{BATCH_SEGMENTS, DATA_DATAGRAM_BYTES};
use super::rtt::Rtt;

const DATAGRAM: u64 = DATA_DATAGRAM_BYTES as u64;
/// First window: what a reader may wait for arrives in one round trip (RFC 7574 §8.15 allows it).
const INITIAL: u64 = 20 * DATAGRAM;
const LEAST: u64 = 4 * DATAGRAM;
const MOST: u64 = 32 << 20;
const BATCH: u64 = BATCH_SEGMENTS as u64 * DATAGRAM;
/// What the bucket holds at most, as a time at the current rate: timers are that coarse.
const BURST: Duration = Duration::from_millis(2);

/// The window and its pacing.
#[derive(Debug)]
pub(super) struct Window {
    bytes: u64,
    threshold: u64,
    tokens: u64,
    refilled_at: Instant,
    lost_at: Option<Instant>,
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: INITIAL, threshold: MOST, tokens: BATCH, refilled_at: now, lost_at: None }
    }

    /// The window, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that may go out now; `urgent` work may exceed the window by a first window.
    pub(super) fn allowance(
        &mut self,
        now: Instant,
        in_flight: u64,
        urgent: bool,
        rtt: &Rtt,
    ) -> u64 {
        let elapsed = now.saturating_duration_since(self.refilled_at);
        let rate = self.rate(rtt);
        let gained = (rate * elapsed.as_secs_f64()) as u64;
        if gained > 0 {
            self.tokens = (self.tokens + gained).min(self.burst(rate));
            self.refilled_at = now;
        }
        let window = self.bytes + if urgent { INITIAL } else { 0 };
        window.saturating_sub(in_flight).min(self.tokens)
    }

    /// When the bucket is worth looking at again, if it is what holds sending up.
    pub(super) fn refill_at(&self, rtt: &Rtt) -> Option<Instant> {
        let enough = BATCH / 4;
        (self.tokens < enough).then(|| {
            let wait = (enough - self.tokens) as f64 / self.rate(rtt).max(1.0);
            self.refilled_at + Duration::from_secs_f64(wait.min(1.0))
        })
    }

    /// `bytes` went out.
    pub(super) fn on_sent(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_sub(bytes);
    }

    /// `bytes` were acknowledged while `in_flight` were under way. A window that is not used does
    /// not grow.
    pub(super) fn on_ack(&mut self, bytes: u64, in_flight: u64) {
        if in_flight.saturating_add(bytes) < self.bytes / 2 {
            return;
        }
        let growth =
            if self.bytes < self.threshold { bytes } else { (bytes * DATAGRAM * 4) / self.bytes };
        self.bytes = (self.bytes + growth).min(MOST);
    }

    /// Something was lost; counts once per round trip.
    pub(super) fn on_loss(&mut self, now: Instant, rtt: &Rtt) -> bool {
        let recent = |at: Instant| now.saturating_duration_since(at) < rtt.smoothed();
        if self.lost_at.is_some_and(recent) {
            return false;
        }
        self.lost_at = Some(now);
        self.bytes = (self.bytes * 7 / 10).max(LEAST);
        self.threshold = self.bytes;
        true
    }

    /// Bytes a second.
    fn rate(&self, rtt: &Rtt) -> f64 {
        let gain = if self.bytes < self.threshold { 2.0 } else { 1.25 };
        gain * self.bytes as f64 / rtt.smoothed().as_secs_f64()
    }

    fn burst(&self, rate: f64) -> u64 {
        ((rate * BURST.as_secs_f64()) as u64).max(BATCH)
    }
}

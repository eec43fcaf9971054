//! LEDBAT (RFC 6817) with the decrease of LEDBAT++: background data keeps the queue on its path at
//! a small target and leaves the rest to others.

use std::time::{Duration, Instant};

use super::{Acked, BACKGROUND_BYTES_INITIAL, SEGMENT_BYTES, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN};

/// How long data may wait in queues because of us. RFC 6817: MUST be 100 milliseconds or less.
pub(super) const TARGET: Duration = Duration::from_millis(25);
/// The same while a reader waits for data on the same channel: it waits in these queues, too.
pub(super) const TARGET_BESIDE_READER: Duration = Duration::from_millis(5);
/// Segments that a window grows by in a round trip without any queue. RFC 7574 8.15: TARGET and
/// other parameters can be adjusted such that it acts as aggressive as TCP.
const GAIN: f64 = 4.0;
/// Large windows grow by this part in a round trip, or they would take minutes to fill a long fat
/// path after a loss.
const GAIN_PART: f64 = 1.0 / 32.0;

/// A window that goes by delay.
#[derive(Debug)]
pub(super) struct Ledbat {
    bytes: f64,
    starting: bool,
    /// When it last shrank at a stroke: what was sent before shows a queue that is being drained.
    reduced_at: Option<Instant>,
}

impl Ledbat {
    pub(super) fn new() -> Self {
        Self { bytes: BACKGROUND_BYTES_INITIAL as f64, starting: true, reduced_at: None }
    }

    pub(super) fn window_bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Whether it is still doubling.
    pub(super) fn is_starting(&self) -> bool {
        self.starting
    }

    /// Data arrived that went out at `sent_at` and waited for `queuing` on its way, where it should
    /// for `target`.
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        sent_at: Option<Instant>,
        acked: Acked,
        queuing: Duration,
        target: Duration,
    ) {
        let used = acked.in_flight as f64 >= self.bytes / 2.0;
        let off_target = 1.0 - queuing.as_secs_f64() / target.as_secs_f64();
        // LEDBAT++: slow start ends short of the target.
        if self.starting && off_target < 0.25 {
            self.starting = false;
            // What arrives now went out a round trip ago, when the window was half of this.
            self.reduce(now, 0.5);
        }
        let acked_bytes = (acked.bytes as f64).min(self.bytes);
        let growth = if off_target < 0.0 {
            if self.reduced_at.is_some_and(|at| sent_at.is_none_or(|sent_at| sent_at <= at)) {
                return;
            }
            // LEDBAT++: in proportion to the window, by half of it in a round trip at most.
            off_target.max(-0.5) * acked_bytes
        } else if !used {
            // RFC 6817 2.4.2: a window that is not used does not grow.
            0.0
        } else if self.starting {
            acked_bytes
        } else {
            let full = (GAIN * SEGMENT_BYTES as f64).max(GAIN_PART * self.bytes);
            off_target * full * acked_bytes / self.bytes
        };
        self.set(self.bytes + growth);
    }

    /// RFC 6817 2.4.2: cwnd = min(cwnd, max(cwnd/2, MIN_CWND * MSS)), unless the controller knows which
    /// part to keep.
    pub(super) fn on_loss(&mut self, now: Instant, kept: Option<f64>) {
        self.starting = false;
        self.reduce(now, kept.unwrap_or(0.5));
    }

    /// RFC 6817 2.4.2: on a congestion timeout cwnd becomes small, and starts anew.
    pub(super) fn on_timeout(&mut self, now: Instant) {
        self.starting = true;
        self.reduced_at = Some(now);
        self.set(0.0);
    }

    fn reduce(&mut self, now: Instant, kept: f64) {
        self.reduced_at = Some(now);
        self.set(self.bytes * kept);
    }

    fn set(&mut self, bytes: f64) {
        self.bytes = bytes.clamp(WINDOW_BYTES_MIN as f64, WINDOW_BYTES_MAX as f64);
    }
}

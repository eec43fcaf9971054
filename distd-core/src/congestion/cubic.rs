//! CUBIC (RFC 9438): what a reader waits for goes as fast as a TCP connection would.

use std::time::{Duration, Instant};

use super::{
    Acked, FOREGROUND_BYTES_INITIAL, Rtt, SEGMENT_BYTES, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN,
};

/// What is left of a window after a loss (RFC 9438 §4.6).
const BETA: f64 = 0.7;
/// Segments per cubed second (RFC 9438 §5).
const C: f64 = 0.4;
/// Segments a round trip that make it as fast as Reno with this BETA (RFC 9438 §4.3).
const RENO_GAIN: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// A queue of this length ends slow start before it overflows (HyStart++, RFC 9406).
const STARTING_QUEUE_MIN: Duration = Duration::from_millis(4);
const STARTING_QUEUE_MAX: Duration = Duration::from_millis(16);

/// A window that goes by loss.
#[derive(Debug)]
pub(super) struct Cubic {
    bytes: f64,
    starting: bool,
    /// Window when something was last lost.
    ceiling: f64,
    /// The growth since then; none while the window is not used.
    epoch: Option<Epoch>,
}

#[derive(Clone, Copy, Debug)]
struct Epoch {
    start: Instant,
    /// Seconds from the start until the ceiling is reached again.
    back_s: f64,
    /// The window that Reno would have, in bytes.
    reno: f64,
}

impl Cubic {
    pub(super) fn new() -> Self {
        Self {
            bytes: FOREGROUND_BYTES_INITIAL as f64,
            starting: true,
            ceiling: WINDOW_BYTES_MAX as f64,
            epoch: None,
        }
    }

    pub(super) fn window_bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Whether it is still doubling.
    pub(super) fn is_starting(&self) -> bool {
        self.starting
    }

    /// Data arrived; `queuing` is what its round trip took longer than the shortest known.
    pub(super) fn on_ack(&mut self, now: Instant, acked: Acked, queuing: Duration, rtt: &Rtt) {
        if (acked.in_flight as f64) < self.bytes / 2.0 {
            // A window that is not used does not grow, and its clock does not run.
            self.epoch = None;
            return;
        }
        let acked_bytes = (acked.bytes as f64).min(self.bytes);
        if self.starting {
            let queue_max = (rtt.smoothed() / 8).clamp(STARTING_QUEUE_MIN, STARTING_QUEUE_MAX);
            if queuing < queue_max {
                self.set(self.bytes + acked_bytes);
                return;
            }
            self.starting = false;
            self.ceiling = self.bytes;
        }
        let (segment, below) = (SEGMENT_BYTES as f64, (self.ceiling - self.bytes).max(0.0));
        let epoch = self.epoch.get_or_insert_with(|| Epoch {
            start: now,
            back_s: (below / segment / C).cbrt(),
            reno: self.bytes,
        });
        epoch.reno += RENO_GAIN * segment * acked_bytes / self.bytes;
        let Epoch { start, back_s, reno } = *epoch;
        // RFC 9438 4.2: where the window should be a round trip from now.
        let elapsed = now.saturating_duration_since(start) + rtt.smoothed();
        let cubed = (elapsed.as_secs_f64() - back_s).powi(3);
        let target = (self.ceiling + C * cubed * segment).clamp(self.bytes, self.bytes * 1.5);
        let cubic = self.bytes + (target - self.bytes) * acked_bytes / self.bytes;
        self.set(cubic.max(reno));
    }

    /// Something was lost; `kept`: which part of the window to keep, if the controller knows.
    pub(super) fn on_loss(&mut self, kept: Option<f64>) {
        // RFC 9438 4.7: fast convergence: below the last ceiling, make room for others.
        self.ceiling = if self.bytes < self.ceiling && !self.starting {
            self.bytes * f64::midpoint(1.0, BETA)
        } else {
            self.bytes
        };
        self.starting = false;
        self.epoch = None;
        self.set(self.bytes * kept.unwrap_or(BETA));
    }

    /// Nothing arrives any more: start anew, to half of what it was.
    pub(super) fn on_timeout(&mut self) {
        self.on_loss(None);
        self.starting = true;
        self.set(0.0);
    }

    fn set(&mut self, bytes: f64) {
        self.bytes = bytes.clamp(WINDOW_BYTES_MIN as f64, WINDOW_BYTES_MAX as f64);
    }
}

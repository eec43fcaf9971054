//! How much a sender may have in flight on one channel, and how fast it goes out, without I/O.
//!
//! Two windows share a channel. Background data (prefetch) goes by delay: LEDBAT gives way to
//! everything else on the path (RFC 7574 §8: MUST use LEDBAT). Data that a reader waits for goes by
//! loss, as TCP's does, and starts warm (RFC 7574 §8.15 allows tuning up to TCP's aggressiveness).
//!
//! ```text
//!                      acknowledgements, round trips, one-way delays, losses
//!                            |                                  |
//!                  background: Ledbat                  foreground: Cubic
//!                            \                                  /
//!                             `------------ Pacer -------------'  1.25 windows a round trip
//! ```
//!
//! Nothing that a peer reports is believed beyond what the sender measured itself.

mod cubic;
mod delay;
mod ledbat;
#[cfg(test)]
mod link;
mod losses;
mod pacer;
mod rtt;

use std::time::{Duration, Instant};

pub use rtt::Rtt;

use cubic::Cubic;
use delay::DelayHistory;
use ledbat::{Ledbat, TARGET, TARGET_BESIDE_READER};
use losses::Losses;
use pacer::Pacer;

/// What windows count in, in bytes: a datagram with one chunk.
pub const SEGMENT_BYTES: u64 = 1053;
/// Least window (RFC 6817 MIN_CWND), in bytes.
pub const WINDOW_BYTES_MIN: u64 = 2 * SEGMENT_BYTES;
/// Largest window, in bytes.
pub const WINDOW_BYTES_MAX: u64 = 32 << 20;
/// First window of data that somebody waits for: 20 datagrams, in bytes.
pub const FOREGROUND_BYTES_INITIAL: u64 = 20 * SEGMENT_BYTES;
/// First window of background data: that of TCP (RFC 6928), in bytes.
pub const BACKGROUND_BYTES_INITIAL: u64 = 10 * SEGMENT_BYTES;

/// How far a peer's one-way delay may lie above what the round trip shows: clocks tick coarsely.
const DELAY_SLACK: Duration = Duration::from_millis(5);

/// Losses count as congestion where data waits in a queue for so much of the round trip, within these
/// bounds: a full queue is what loses data; radio and bad cables do it without one.
const CONGESTED_QUEUE_PART: u32 = 8;
const CONGESTED_QUEUE_MIN: Duration = Duration::from_millis(1);
const CONGESTED_QUEUE_MAX: Duration = Duration::from_millis(12);

/// How long after data for a reader background data keeps queues shorter: who reads once reads on.
const READER_STAYS: Duration = Duration::from_secs(2);

/// What an acknowledgement says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acked {
    /// Bytes that were sent and are acknowledged now for the first time.
    pub bytes: u64,
    /// Bytes that were in flight before.
    pub in_flight: u64,
    /// Round-trip time of data that was sent once (Karn's rule: RFC 6298 §3).
    pub rtt: Option<Duration>,
    /// The peer's one-way delay: its clock less ours, modulo 2^64, in microseconds.
    pub delay_us: Option<u64>,
}

/// One channel's sending windows.
#[derive(Debug)]
pub struct Controller {
    background: Ledbat,
    foreground: Cubic,
    rtt: Rtt,
    /// One-way delays as the peer reports them, and round trips as measured here.
    one_way: DelayHistory,
    round_trip: DelayHistory,
    pacer: Pacer,
    losses: Losses,
    /// When a loss last shrank the windows.
    reduced_at: Option<Instant>,
    /// When data that a reader waits for last went out.
    reader_at: Option<Instant>,
}

impl Controller {
    /// A fresh channel.
    pub fn new(now: Instant) -> Self {
        Self {
            background: Ledbat::new(),
            foreground: Cubic::new(),
            rtt: Rtt::default(),
            one_way: DelayHistory::new(now),
            round_trip: DelayHistory::new(now),
            pacer: Pacer::new(now),
            losses: Losses::default(),
            reduced_at: None,
            reader_at: None,
        }
    }

    /// The round-trip time.
    pub const fn rtt(&self) -> &Rtt {
        &self.rtt
    }

    /// A round trip that carried no data, such as a handshake's.
    pub fn on_round_trip(&mut self, now: Instant, sample: Duration) {
        self.rtt.sample(sample);
        self.round_trip.sample(now, micros(sample));
    }

    /// `bytes` went out, for a reader or not.
    pub fn on_sent(&mut self, now: Instant, bytes: u64, waited: bool) {
        if waited {
            self.reader_at = Some(now);
        }
        self.pacer.on_sent(now, bytes, self.rate());
    }

    /// Data arrived at the peer.
    pub fn on_ack(&mut self, now: Instant, acked: Acked) {
        if let Some(sample) = acked.rtt {
            self.on_round_trip(now, sample);
        }
        if let Some(delay_us) = acked.delay_us {
            self.one_way.sample(now, delay_us);
        }
        self.losses.on_ack(acked.bytes);
        let beside_reader = self.reader_at.is_some_and(|at| now < at + READER_STAYS);
        let target = if beside_reader { TARGET_BESIDE_READER } else { TARGET };
        let queuing = self.queuing(target);
        let round_trip = self.round_trip.queuing().unwrap_or_default();
        let sent_at = acked.rtt.and_then(|rtt| now.checked_sub(rtt));
        self.background.on_ack(now, sent_at, acked, queuing, target);
        self.foreground.on_ack(now, acked, round_trip, &self.rtt);
    }

    /// `bytes` that went out at `sent_at` were lost. Whether that shrank the windows: what was sent
    /// before they last shrank says nothing of what they are now, so that they do so at most once
    /// in a round trip (RFC 6817 §2.4.2).
    ///
    /// Where nothing waits in a queue, a small part that is lost is not taken for congestion, and a
    /// larger one shrinks the windows by no more than itself: so they settle at what a policer lets
    /// through, and a path that loses at random stays in use (RFC 7574 §8.15 allows tuning).
    pub fn on_loss(&mut self, now: Instant, sent_at: Instant, bytes: u64) -> bool {
        self.losses.on_loss(bytes);
        if self.reduced_at.is_some_and(|reduced_at| sent_at <= reduced_at) {
            return false;
        }
        let part = self.rtt.smoothed() / CONGESTED_QUEUE_PART;
        let queue_max = part.clamp(CONGESTED_QUEUE_MIN, CONGESTED_QUEUE_MAX);
        let kept = if self.queuing(TARGET) >= queue_max { None } else { Some(self.losses.kept()) };
        if kept == Some(1.0) {
            return false;
        }
        self.reduced_at = Some(now);
        self.background.on_loss(now, kept);
        self.foreground.on_loss(kept);
        true
    }

    /// Nothing was acknowledged for a whole [`Rtt::timeout`]: the path may have changed, or died.
    pub fn on_timeout(&mut self, now: Instant) {
        self.reduced_at = Some(now);
        self.background.on_timeout(now);
        self.foreground.on_timeout();
    }

    /// How many bytes may be in flight, of all classes together, for data of this class to be sent.
    ///
    /// Background data counts what is in flight for readers and gives way. Waited data may exceed
    /// whatever background data is in flight by a first window.
    pub fn window_bytes(&self, waited: bool) -> u64 {
        let background = self.background.window_bytes();
        if waited {
            self.foreground.window_bytes().max(background.saturating_add(FOREGROUND_BYTES_INITIAL))
        } else {
            background
        }
    }

    /// How many bytes may go out now.
    pub fn allowance(&mut self, now: Instant, in_flight: u64, waited: bool) -> u64 {
        self.window_bytes(waited).saturating_sub(in_flight).min(self.tokens(now))
    }

    /// How many bytes pacing lets out now, whatever the window: for what must go on because it was
    /// begun, such as the rest of a run that is acknowledged as a whole.
    pub fn tokens(&mut self, now: Instant) -> u64 {
        self.pacer.tokens(now, self.rate())
    }

    /// When pacing lets a batch of `bytes` out, if it does not now.
    pub fn paced_until(&mut self, now: Instant, bytes: u64) -> Option<Instant> {
        self.pacer.ready_at(now, bytes, self.rate())
    }

    /// Bytes a second that pacing lets out.
    fn rate(&self) -> f64 {
        let (foreground, background) =
            (self.foreground.window_bytes(), self.background.window_bytes());
        let starting = self.foreground.is_starting() || self.background.is_starting();
        // Twice the window while it doubles each round trip, so that pacing does not slow it.
        let gain = if starting { 2.0 } else { 1.25 };
        gain * foreground.max(background) as f64 / self.rtt.smoothed().as_secs_f64()
    }

    /// How long data waits in queues: what the round trip shows (as LEDBAT++ has it), and what the
    /// peer's one-way delays say beyond, a little. So a peer can slow us, which is its loss, but
    /// not hide a queue that we see (RFC 7574 §12.6.4: forged delays); and a jump of its clock is
    /// not taken for a queue.
    /// Of that no more than counts little against `target`.
    fn queuing(&self, target: Duration) -> Duration {
        let measured = self.round_trip.queuing().unwrap_or_default();
        let reported = self.one_way.queuing().unwrap_or_default();
        measured.max(reported.min(measured.saturating_add(DELAY_SLACK.min(target / 4))))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Sent(u64),
        Acked(Acked),
        Lost,
        TimedOut,
    }

    fn op() -> impl Strategy<Value = Op> {
        let acked = (any::<u64>(), any::<u64>(), any::<Option<u64>>(), any::<Option<u64>>());
        prop_oneof![
            any::<u64>().prop_map(Op::Sent),
            acked.prop_map(|(bytes, in_flight, rtt, delay_us)| {
                let rtt = rtt.map(Duration::from_micros);
                Op::Acked(Acked { bytes, in_flight, rtt, delay_us })
            }),
            (1u64..1 << 20, 0u64..1 << 26, 0u64..1 << 20, 0u64..1 << 20).prop_map(
                |(bytes, in_flight, rtt, delay_us)| {
                    let rtt = Some(Duration::from_micros(rtt));
                    Op::Acked(Acked { bytes, in_flight, rtt, delay_us: Some(delay_us) })
                }
            ),
            Just(Op::Lost),
            Just(Op::TimedOut),
        ]
    }

    proptest! {
        #[test]
        fn windows_stay_within_their_bounds(
            ops in prop::collection::vec((op(), 0u64..1 << 34), 1..200),
        ) {
            let mut now = Instant::now();
            let mut controller = Controller::new(now);
            for (op, micros) in ops {
                now += Duration::from_micros(micros);
                match op {
                    Op::Sent(bytes) => controller.on_sent(now, bytes, bytes % 2 == 0),
                    Op::Acked(acked) => controller.on_ack(now, acked),
                    Op::Lost => _ = controller.on_loss(now, now, SEGMENT_BYTES),
                    Op::TimedOut => controller.on_timeout(now),
                }
                let background = controller.window_bytes(false);
                prop_assert!((WINDOW_BYTES_MIN..=WINDOW_BYTES_MAX).contains(&background));
                let waited = controller.window_bytes(true);
                prop_assert!(waited >= background + FOREGROUND_BYTES_INITIAL);
                prop_assert!(waited <= WINDOW_BYTES_MAX + FOREGROUND_BYTES_INITIAL);
                let allowed = controller.allowance(now, 0, true);
                prop_assert!(allowed <= waited);
                // A wait for pacing ends.
                if let Some(at) = controller.paced_until(now, SEGMENT_BYTES) {
                    prop_assert!(at > now && at <= now + Duration::from_secs(1));
                }
            }
        }
    }

    #[test]
    fn losses_within_a_round_trip_are_one() {
        let start = Instant::now();
        let mut controller = Controller::new(start);
        controller.on_round_trip(start, Duration::from_millis(20));
        for _ in 0..8 {
            controller.on_round_trip(start, Duration::from_millis(40));
        }
        let before = controller.window_bytes(false);
        let later = start + Duration::from_millis(40);
        assert!(controller.on_loss(later, start, SEGMENT_BYTES));
        // The rest of the same window is found missing little by little.
        assert!(!controller.on_loss(later + Duration::from_millis(60), start, SEGMENT_BYTES));
        assert!(!controller.on_loss(later + Duration::from_millis(60), later, SEGMENT_BYTES));
        assert_eq!(controller.window_bytes(false), before / 2);
        let sent_at = later + Duration::from_millis(1);
        assert!(controller.on_loss(later + Duration::from_millis(90), sent_at, SEGMENT_BYTES));
    }

    #[test]
    fn without_a_queue_few_losses_are_no_congestion_and_many_cost_their_part() {
        let start = Instant::now();
        let mut controller = Controller::new(start);
        controller.on_round_trip(start, Duration::from_millis(20));
        let before = controller.window_bytes(false);
        assert!(!controller.on_loss(start, start, SEGMENT_BYTES));
        assert_eq!(controller.window_bytes(false), before);
        assert!(controller.on_loss(start, start, 50 * SEGMENT_BYTES));
        let after = controller.window_bytes(false);
        assert!(after < before && after > before / 2, "{before} {after}");
    }

    #[test]
    fn a_jump_of_the_peers_clock_is_no_queue() {
        let mut now = Instant::now();
        let mut controller = Controller::new(now);
        let window = |step: u64, now: &mut Instant, controller: &mut Controller| {
            for _ in 0..500 {
                *now += Duration::from_millis(1);
                let (rtt, delay_us) = (Some(Duration::from_millis(20)), Some(10_000 + step));
                let in_flight = controller.window_bytes(false);
                let acked = Acked { bytes: SEGMENT_BYTES, in_flight, rtt, delay_us };
                controller.on_ack(*now, acked);
            }
            controller.window_bytes(false)
        };
        let before = window(0, &mut now, &mut controller);
        assert!(window(3_600_000_000, &mut now, &mut controller) > before);
        assert!(window(0, &mut now, &mut controller) > before);
    }

    #[test]
    fn background_data_goes_on_beside_a_reader_though_clocks_drift() {
        let mut now = Instant::now();
        let mut controller = Controller::new(now);
        let mut least = u64::MAX;
        for ms in 0..20_000u64 {
            now += Duration::from_millis(1);
            if ms % 100 == 0 {
                controller.on_sent(now, SEGMENT_BYTES, true);
            }
            // 50 parts in a million: the peer's clock runs away by a millisecond in 20 s.
            let delay_us = Some(10_000 + 4_000 + ms / 20);
            let rtt = Some(Duration::from_millis(20));
            let in_flight = controller.window_bytes(false);
            controller.on_ack(now, Acked { bytes: SEGMENT_BYTES, in_flight, rtt, delay_us });
            if ms > 1000 {
                least = least.min(controller.window_bytes(false));
            }
        }
        assert!(least >= BACKGROUND_BYTES_INITIAL, "{least} bytes of window");
    }

    #[test]
    fn a_reader_may_exceed_background_data_by_a_first_window() {
        let start = Instant::now();
        let mut controller = Controller::new(start);
        let background = controller.window_bytes(false);
        assert_eq!(controller.allowance(start, background, false), 0);
        assert_eq!(controller.allowance(start, background, true), FOREGROUND_BYTES_INITIAL);
        assert_eq!(controller.allowance(start, 0, true), FOREGROUND_BYTES_INITIAL);
    }
}

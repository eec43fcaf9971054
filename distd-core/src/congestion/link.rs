//! A simulated bottleneck: senders with their controllers share one link, in simulated time.
//!
//! ```text
//! sender 0 --.                                   .-- receiver 0
//! sender 1 ---> [ queue, bytes a second ] -delay-+--- receiver 1      acknowledgements come back
//! sender 2 --'    drops what does not fit        '-- receiver 2       after the same delay
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Datagrams that must have overtaken one before it counts as lost.
const REORDER: u64 = 12;

#[derive(Clone, Copy, Debug)]
struct Path {
    bytes_per_s: f64,
    /// One way, without queues.
    delay: Duration,
    buffer_bytes: f64,
    /// Part of the datagrams that is lost at random.
    loss: f64,
}

/// What a receiver says of the delay that it saw.
type Report = fn(u64) -> u64;

#[derive(Clone, Copy)]
struct Flow {
    waited: bool,
    starts: Duration,
    ends: Duration,
    report: Report,
    /// Datagrams that are acknowledged together, when the last of them is there.
    piece: u64,
}

const HONEST: Report = |delay| delay;

fn background() -> Flow {
    Flow { waited: false, starts: Duration::ZERO, ends: Duration::MAX, report: HONEST, piece: 1 }
}

fn foreground() -> Flow {
    Flow { waited: true, ..background() }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake(usize),
    Ack { flow: usize, number: u64, delay_us: u64 },
}

struct Sender {
    flow: Flow,
    controller: Controller,
    next: u64,
    highest_acked: u64,
    in_flight: BTreeMap<u64, Instant>,
    timeouts: u32,
    /// The one time that counts among its [`Event::Wake`]s.
    wake_at: Option<Instant>,
    delivered: u64,
    lost: u64,
}

struct Simulation {
    path: Path,
    start: Instant,
    now: Instant,
    /// When the link has sent what is queued.
    free_at: Instant,
    /// Between these the link drops everything.
    outage: Option<(Duration, Duration)>,
    senders: Vec<Sender>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    count: u64,
    random: SmallRng,
    /// Queuing delay, sampled at each datagram of the second half, in seconds.
    queue: (f64, u64),
    half: Instant,
}

/// What came of a sender.
#[derive(Debug)]
struct Outcome {
    delivered: u64,
    lost: u64,
}

impl Simulation {
    fn new(path: Path, flows: &[Flow], length: Duration) -> Self {
        let start = Instant::now();
        let sender = |flow: &Flow| Sender {
            flow: *flow,
            controller: Controller::new(start),
            next: 0,
            highest_acked: 0,
            in_flight: BTreeMap::new(),
            timeouts: 0,
            wake_at: None,
            delivered: 0,
            lost: 0,
        };
        let mut simulation = Self {
            path,
            start,
            now: start,
            free_at: start,
            outage: None,
            senders: flows.iter().map(sender).collect(),
            events: BinaryHeap::new(),
            count: 0,
            random: SmallRng::seed_from_u64(6817),
            queue: (0.0, 0),
            half: start + length / 2,
        };
        for (index, flow) in flows.iter().enumerate() {
            // The handshake's round trip is the first sample.
            let sender = &mut simulation.senders[index];
            sender.controller.on_round_trip(start, path.delay * 2);
            simulation.wake(start + flow.starts, index);
        }
        simulation
    }

    fn at(&mut self, when: Instant, event: Event) {
        self.count += 1;
        self.events.push(Reverse((when, self.count, event)));
    }

    fn wake(&mut self, when: Instant, flow: usize) {
        let sender = &mut self.senders[flow];
        if sender.wake_at.is_none_or(|at| when < at) {
            sender.wake_at = Some(when);
            self.at(when, Event::Wake(flow));
        }
    }

    /// Runs until `end`, counted from the start.
    fn run(&mut self, end: Duration) {
        while let Some(Reverse((when, _, _))) = self.events.peek()
            && *when < self.start + end
        {
            let Some(Reverse((when, _, event))) = self.events.pop() else { break };
            self.now = when;
            match event {
                Event::Wake(flow) if self.senders[flow].wake_at == Some(when) => {
                    self.senders[flow].wake_at = None;
                    self.pump(flow);
                }
                Event::Wake(_) => {}
                Event::Ack { flow, number, delay_us } => {
                    self.acknowledge(flow, number, delay_us);
                    self.pump(flow);
                }
            }
        }
        self.now = self.start + end;
    }

    /// When a datagram that enters the link now arrives.
    fn transmit(&mut self) -> Option<Instant> {
        let free_at = self.free_at.max(self.now);
        let queued = (free_at - self.now).as_secs_f64();
        if self.now >= self.half {
            self.queue.0 += queued;
            self.queue.1 += 1;
        }
        let elapsed = self.now - self.start;
        let out = self.outage.is_some_and(|(from, to)| (from..to).contains(&elapsed));
        let full = queued * self.path.bytes_per_s + SEGMENT_BYTES as f64 > self.path.buffer_bytes;
        if out || full || self.random.random_bool(self.path.loss) {
            return None;
        }
        let sending = Duration::from_secs_f64(SEGMENT_BYTES as f64 / self.path.bytes_per_s);
        self.free_at = free_at + sending;
        Some(self.free_at + self.path.delay)
    }

    fn pump(&mut self, flow: usize) {
        let now = self.now;
        let (starts, ends) = (self.senders[flow].flow.starts, self.senders[flow].flow.ends);
        if !(starts..ends).contains(&(now - self.start)) {
            return;
        }
        self.expire(flow);
        loop {
            let sender = &mut self.senders[flow];
            let waited = sender.flow.waited;
            let in_flight = sender.in_flight.len() as u64 * SEGMENT_BYTES;
            // A piece that was begun is finished: nothing else would acknowledge it.
            let begun = !sender.next.is_multiple_of(sender.flow.piece);
            if !begun && sender.controller.window_bytes(waited) < in_flight + SEGMENT_BYTES {
                break;
            }
            if sender.controller.tokens(now) < SEGMENT_BYTES {
                if let Some(at) = sender.controller.paced_until(now, SEGMENT_BYTES) {
                    self.wake(at, flow);
                }
                break;
            }
            sender.controller.on_sent(now, SEGMENT_BYTES, waited);
            sender.in_flight.insert(sender.next, now);
            let number = sender.next;
            sender.next += 1;
            let (report, piece) = (sender.flow.report, sender.flow.piece);
            let arrival = self.transmit();
            if let Some(arrival) = arrival.filter(|_| (number + 1).is_multiple_of(piece)) {
                // The receiver's clock is a day ahead.
                let delay = (arrival - now).as_micros() as u64 + 86_400_000_000;
                let ack = Event::Ack { flow, number, delay_us: report(delay) };
                self.at(arrival + self.path.delay, ack);
            }
        }
        let sender = &self.senders[flow];
        if let Some(oldest) = sender.in_flight.values().next() {
            let timeout = sender.controller.rtt().timeout(sender.timeouts);
            let at = (*oldest + timeout).max(now + Duration::from_millis(1));
            self.wake(at, flow);
        }
    }

    /// Gives up what was overtaken, or everything after a timeout.
    fn expire(&mut self, flow: usize) {
        let now = self.now;
        let sender = &mut self.senders[flow];
        let overtaken = sender.highest_acked.saturating_sub(REORDER);
        let kept = sender.in_flight.split_off(&overtaken);
        let lost = std::mem::replace(&mut sender.in_flight, kept);
        if let Some(sent_at) = lost.values().next_back() {
            let count = lost.len() as u64;
            sender.lost += count;
            sender.controller.on_loss(now, *sent_at, count * SEGMENT_BYTES);
        }
        let timeout = sender.controller.rtt().timeout(sender.timeouts);
        if sender.in_flight.values().next().is_some_and(|oldest| now >= *oldest + timeout) {
            sender.lost += sender.in_flight.len() as u64;
            sender.in_flight.clear();
            sender.timeouts += 1;

            sender.controller.on_timeout(now);
        }
    }

    fn acknowledge(&mut self, flow: usize, number: u64, delay_us: u64) {
        let now = self.now;
        let sender = &mut self.senders[flow];
        let in_flight = sender.in_flight.len() as u64 * SEGMENT_BYTES;
        let piece = sender.flow.piece;
        let mut acked = Acked { in_flight, delay_us: Some(delay_us), ..Acked::default() };
        for number in number + 1 - piece..=number {
            if let Some(sent_at) = sender.in_flight.remove(&number) {
                acked.bytes += SEGMENT_BYTES;
                acked.rtt = Some(now - sent_at);
            }
        }
        if acked.bytes > 0 {
            sender.delivered += acked.bytes;
            sender.highest_acked = sender.highest_acked.max(number);
            sender.timeouts = 0;
            sender.controller.on_ack(now, acked);
        }
    }

    fn outcomes(&self) -> Vec<Outcome> {
        let outcome = |s: &Sender| Outcome { delivered: s.delivered, lost: s.lost };
        self.senders.iter().map(outcome).collect()
    }

    fn mean_queue(&self) -> Duration {
        Duration::from_secs_f64(self.queue.0 / self.queue.1.max(1) as f64)
    }
}

/// `mbit` per second, `delay_ms` one way, a buffer of `buffer_ms` at that rate.
fn path(mbit: f64, delay_ms: f64, buffer_ms: f64) -> Path {
    let bytes_per_s = mbit * 1e6 / 8.0;
    Path {
        bytes_per_s,
        delay: Duration::from_secs_f64(delay_ms / 1e3),
        buffer_bytes: (bytes_per_s * buffer_ms / 1e3).max(20.0 * SEGMENT_BYTES as f64),
        loss: 0.0,
    }
}

/// One flow alone: percent of the link used, mean queue in ms, lost datagrams in a thousand.
fn alone(path: Path, flow: Flow, seconds: u64) -> (f64, f64, f64) {
    let length = Duration::from_secs(seconds);
    let mut simulation = Simulation::new(path, &[flow], length);
    simulation.run(length);
    let outcome = &simulation.outcomes()[0];
    let used = outcome.delivered as f64 / (path.bytes_per_s * seconds as f64);
    let sent = outcome.delivered / SEGMENT_BYTES + outcome.lost;
    (
        used * 100.0,
        simulation.mean_queue().as_secs_f64() * 1e3,
        outcome.lost as f64 * 1e3 / sent as f64,
    )
}

/// Paths that flows are tried on, and for how long: narrow and bloated, shallow, long and fat, LAN.
fn paths() -> [(Path, u64); 7] {
    [
        (path(2.0, 20.0, 500.0), 10),
        (path(10.0, 20.0, 200.0), 10),
        (path(10.0, 20.0, 20.0), 10),
        (path(100.0, 5.0, 100.0), 10),
        (path(100.0, 50.0, 50.0), 20),
        (path(1000.0, 0.1, 2.0), 2),
        (path(1000.0, 5.0, 10.0), 3),
    ]
}

#[test]
fn background_data_fills_an_idle_path_and_keeps_its_queue_short() {
    for (path, seconds) in paths() {
        let (used, queue_ms, lost) = alone(path, background(), seconds);
        assert!(used > 88.0, "{used} % of {path:?}");
        assert!(queue_ms < 28.0, "{queue_ms} ms on {path:?}");
        assert!(lost < 10.0, "{lost} in a thousand on {path:?}");
    }
}

#[test]
fn waited_data_fills_its_path() {
    for (path, seconds) in paths() {
        let (used, _, lost) = alone(path, foreground(), seconds);
        assert!(used > 92.0, "{used} % of {path:?}");
        assert!(lost < 25.0, "{lost} in a thousand on {path:?}");
    }
}

/// A granule is sent and acknowledged as a whole: on the narrowest path it alone is more than the
/// queue should hold, on the shallowest it is most of the buffer.
#[test]
fn granules_fill_a_path_as_well() {
    for (path, seconds) in paths() {
        for flow in [background(), foreground()] {
            let (used, queue_ms, lost) = alone(path, Flow { piece: 16, ..flow }, seconds);
            assert!(used > if flow.waited { 80.0 } else { 60.0 }, "{used} % of {path:?}");
            assert!(flow.waited || queue_ms < 35.0, "{queue_ms} ms on {path:?}");
            assert!(lost < 100.0, "{lost} in a thousand on {path:?}");
        }
    }
}

#[test]
fn one_percent_of_random_loss_costs_less_than_a_fifth() {
    for clean in [path(10.0, 10.0, 100.0), path(100.0, 10.0, 50.0), path(50.0, 40.0, 100.0)] {
        let lossy = Path { loss: 0.01, ..clean };
        for flow in [foreground(), background()] {
            let (used, _, _) = alone(lossy, flow, 20);
            assert!(used > 80.0, "{used} % of {lossy:?}, waited: {}", flow.waited);
        }
    }
}

#[test]
fn ten_percent_of_random_loss_does_not_stop_a_flow() {
    let lossy = Path { loss: 0.1, ..path(10.0, 10.0, 100.0) };
    for flow in [foreground(), background()] {
        let (used, _, _) = alone(lossy, flow, 20);
        assert!(used > 40.0, "{used} %, waited: {}", flow.waited);
    }
}

/// Windows in segments, every 200 ms of the first two seconds.
fn trace(path: Path, flow: Flow) -> Vec<u64> {
    let mut simulation = Simulation::new(path, &[flow], Duration::from_secs(2));
    let step = |index: u64| {
        simulation.run(Duration::from_millis(200 * index));
        simulation.senders[0].controller.window_bytes(flow.waited) / SEGMENT_BYTES
    };
    (1..=10).map(step).collect()
}

#[test]
fn windows_grow_as_they_did() {
    let path = path(10.0, 20.0, 100.0);
    let found = [trace(path, background()), trace(path, foreground())];
    assert_eq!(found[0], [124, 66, 71, 73, 75, 76, 76, 77, 77, 77]);
    assert_eq!(found[1], [43, 61, 37, 56, 54, 52, 52, 51, 54, 56]);
}

// Shows C65 (RFC 7574 8).
#[test]
fn background_data_gives_way_to_waited_data_and_comes_back() {
    let path = path(10.0, 20.0, 100.0);
    let reader =
        Flow { starts: Duration::from_secs(5), ends: Duration::from_secs(20), ..foreground() };
    let mut simulation = Simulation::new(path, &[background(), reader], Duration::from_secs(30));
    let mut delivered = |seconds| {
        simulation.run(Duration::from_secs(seconds));
        simulation.senders[0].delivered as f64 / path.bytes_per_s
    };
    let (at_8, at_20, at_24, at_30) = (delivered(8), delivered(20), delivered(24), delivered(30));
    assert!((at_20 - at_8) / 12.0 < 0.15, "beside a reader {}", (at_20 - at_8) / 12.0);
    assert!((at_30 - at_24) / 6.0 > 0.9, "alone again {}", (at_30 - at_24) / 6.0);
}

#[test]
fn a_liar_about_delays_gets_no_more_than_an_honest_peer() {
    let path = path(10.0, 20.0, 100.0);
    let length = Duration::from_secs(20);
    let delivered = |report| {
        let liar = Flow { report, ..background() };
        let mut simulation = Simulation::new(path, &[background(), liar], length);
        simulation.run(length);
        simulation.outcomes().iter().map(|outcome| outcome.delivered).collect::<Vec<_>>()
    };
    let honest = delivered(HONEST);
    let lies: [Report; 5] = [
        |_| 0,
        |_| u64::MAX,
        |delay| u64::MAX - delay,
        |delay| delay.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        |delay| delay / 1000,
    ];
    for (index, lie) in lies.into_iter().enumerate() {
        let found = delivered(lie);
        assert!(found[1] * 4 <= honest[1] * 5, "lie {index}: {found:?}, honest {honest:?}");
        // Nor does it take the path from the other.
        assert!(found[0] * 5 >= honest[0] * 4, "lie {index}: {found:?}, honest {honest:?}");
    }
}

#[test]
fn a_path_that_was_dead_for_a_while_is_used_again() {
    for flow in [background(), foreground()] {
        let path = path(10.0, 20.0, 100.0);
        let mut simulation = Simulation::new(path, &[flow], Duration::from_secs(20));
        simulation.outage = Some((Duration::from_secs(4), Duration::from_secs(8)));
        // Timeouts double: the last one that falls into the outage ends some seconds after it.
        simulation.run(Duration::from_secs(12));
        let before = simulation.senders[0].delivered;
        simulation.run(Duration::from_secs(18));
        let used = (simulation.senders[0].delivered - before) as f64 / path.bytes_per_s / 6.0;
        assert!(used > 0.9, "{used} of the path");
    }
}

//! A network of engines in virtual time: seeded delay, loss, duplication, reordering; lines that are
//! as wide as they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::ppspp::engine::{Event, FetchId, HashRequest, Role};
use crate::tree::{HashedRun, VerifiedMunro};
use crate::unit::BlockRange;

use super::amplification::Ledger;
use super::content::Log;
use super::node::{Node, Nodes};

/// What a link does to datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// From one end to the other.
    pub delay: Duration,
    /// Up to this much more, by chance: datagrams overtake each other.
    pub jitter: Duration,
    /// Share of datagrams that are lost.
    pub loss: f64,
    /// Share of datagrams that come twice.
    pub duplication: f64,
}

/// 10 ms there and back, and nothing else.
pub const FINE: Weather = Weather {
    delay: Duration::from_millis(5),
    jitter: Duration::ZERO,
    loss: 0.0,
    duplication: 0.0,
};

/// Datagrams of one sender that arrive together.
#[derive(Debug)]
struct Flight {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
    /// Bytes of a datagram; the last may be shorter.
    stride: usize,
}

/// The network and its time. The same seed gives the same bytes.
#[derive(Debug)]
pub struct Net {
    /// When it began.
    pub start: Instant,
    /// Virtual time.
    pub now: Instant,
    /// All nodes.
    pub nodes: Nodes,
    /// On every link.
    pub weather: Weather,
    /// All chance of the network.
    pub rng: SmallRng,
    /// What is sent together travels and arrives together, as with segmentation offload: a tenth of
    /// the work.
    pub trains: bool,
    /// Digest of all that arrived, and when, if it was asked for.
    digest: Option<blake3::Hasher>,
    amplification: Ledger,
    /// By arrival.
    wire: BTreeMap<(Instant, u64), Flight>,
    sequence: u64,
    /// How often something happened.
    pub steps: u64,
}

impl Net {
    /// A network without nodes.
    pub fn new(seed: u64, weather: Weather) -> Self {
        let start = Instant::now();
        let rng = SmallRng::seed_from_u64(seed);
        Self {
            start,
            now: start,
            nodes: Nodes::default(),
            weather,
            rng,
            trains: false,
            digest: None,
            amplification: Ledger::default(),
            wire: BTreeMap::new(),
            sequence: 0,
            steps: 0,
        }
    }

    /// Keeps a digest of everything from now on.
    pub fn keep_digest(&mut self) {
        self.digest = Some(blake3::Hasher::new());
    }

    /// Digest of all that arrived, and when.
    pub fn digest(&self) -> Option<blake3::Hash> {
        self.digest.as_ref().map(blake3::Hasher::finalize)
    }

    /// A node of the log's swarm that stores `blocks` of it.
    pub fn add(&mut self, log: &Rc<Log>, blocks: Option<BlockRange>) -> usize {
        self.add_as(log, blocks, Role::Node)
    }

    /// The same, with another role.
    pub fn add_as(&mut self, log: &Rc<Log>, blocks: Option<BlockRange>, role: Role) -> usize {
        let number = self.nodes.len();
        self.nodes.push(Node::new(log, number, blocks, role, self.now))
    }

    /// A node with the whole log.
    pub fn add_origin(&mut self, log: &Rc<Log>) -> usize {
        self.add_as(log, Some(log.blocks()), Role::Injector)
    }

    /// A node dials another one.
    pub fn connect(&mut self, from: usize, to: usize) {
        let address = self.nodes[to].address;
        self.amplification.on_dial(from, address);
        let node = &mut self.nodes[from];
        node.engine.connect(self.now, node.swarm, address);
    }

    /// A node is reached at another address from now on.
    pub fn move_to(&mut self, at: usize, address: SocketAddr) {
        self.nodes.move_to(at, address);
    }

    /// Replaces a node's engine, as if its process had been restarted.
    pub fn restart(&mut self, at: usize, seed: u8) {
        let log = self.nodes[at].log.clone();
        self.restart_with(at, seed, log.newest(), log.blocks());
    }

    /// Restarts a node that knows and holds no more than this.
    pub fn restart_with(&mut self, at: usize, seed: u8, newest: VerifiedMunro, held: BlockRange) {
        self.nodes[at].restart(self.now, seed, newest, held);
    }

    /// Puts a datagram on the wire.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        self.inject_train(from, to, datagram, datagram.len());
    }

    /// Puts datagrams of `stride` bytes on the wire, one behind the other.
    fn inject_train(&mut self, from: SocketAddr, to: SocketAddr, train: &[u8], stride: usize) {
        let weather = self.weather;
        let mut bytes = Vec::with_capacity(train.len());
        for datagram in train.chunks(stride.max(1)) {
            if !self.rng.random_bool(weather.loss) {
                bytes.extend_from_slice(datagram);
            }
        }
        let count = bytes.len().div_ceil(stride.max(1));
        if count == 0 && !train.is_empty() {
            return;
        }
        let up = self.nodes.at(&from).and_then(|at| self.nodes.line_up(at));
        let leaves = match up {
            Some(line) => line.pass(self.now, bytes.len(), count),
            None => Some(self.now),
        };
        let Some(leaves) = leaves else { return };
        let copies = 1 + u32::from(self.rng.random_bool(weather.duplication));
        for _ in 0..copies {
            let jitter = weather.jitter.mul_f64(self.rng.random());
            let arrives = leaves + weather.delay + jitter;
            let down = self.nodes.at(&to).and_then(|at| self.nodes.line_down(at));
            let through = match down {
                Some(line) => line.pass(arrives, bytes.len(), count),
                None => Some(arrives),
            };
            let Some(through) = through else { continue };
            self.sequence += 1;
            let flight = Flight { from, to, bytes: bytes.clone(), stride };
            self.wire.insert((through, self.sequence), flight);
        }
    }

    /// Lets every node do what it can do now.
    pub fn drive(&mut self) {
        while let Some(at) = self.nodes.touched.pop_first() {
            while self.drive_one(at) {}
            self.nodes.touched.remove(&at);
            self.nodes.schedule(at);
        }
    }

    /// Whether the node may have more to do.
    fn drive_one(&mut self, at: usize) -> bool {
        let now = self.now;
        let node = &mut self.nodes[at];
        let mut busy = false;
        while let Some(HashRequest { id, bin, bytes }) = node.engine.poll_hash() {
            let run = HashedRun::new(bin, bytes).expect("a run as long as its bin");
            node.engine.handle_hashed(now, id, run);
            busy = true;
        }
        while let Some(request) = node.engine.poll_disk() {
            let blocks = request.bin.blocks().expect("whole blocks");
            let there =
                !node.disk_fails && blocks.iter().all(|block| node.stored.contains(block.0));
            let run = there.then(|| node.log.run(request.bin));
            node.engine.handle_disk(now, request.id, run.map(Into::into));
            busy = true;
        }
        while let Some(event) = node.engine.poll_event() {
            busy = true;
            if let Event::Found { address, .. } = &event {
                self.amplification.on_told(at, *address);
            }
            if let Event::Verified { run, .. } = &event {
                let blocks = run.bin().blocks().expect("whole blocks");
                node.store(now, blocks);
                if !node.keep_runs {
                    continue;
                }
            }
            node.events.push(event);
        }
        let Some(transmit) = node.engine.poll_transmit(now) else { return busy };
        let from = node.address;
        if self.trains && node.tamper.is_none() && !node.keep_sent && !node.dead {
            let stride = transmit.segment_bytes.unwrap_or(transmit.payload.len());
            self.amplification.on_sent(at, transmit.to, &transmit.payload);
            self.inject_train(from, transmit.to, &transmit.payload, stride);
            return true;
        }
        for datagram in transmit.datagrams() {
            let node = &mut self.nodes[at];
            let mut datagram = datagram.to_vec();
            if let Some(tamper) = node.tamper {
                tamper(&mut datagram, &mut self.rng);
            }
            if node.keep_sent {
                node.sent.push((now, transmit.to, datagram.clone()));
            }
            if !node.dead {
                if node.tamper.is_none() {
                    self.amplification.on_sent(at, transmit.to, &datagram);
                }
                self.inject(from, transmit.to, &datagram);
            }
        }
        true
    }

    /// Goes on to the next thing that happens; `false` if nothing ever will before `until`.
    pub fn step(&mut self, until: Instant) -> bool {
        self.drive();
        let arrival = self.wire.first_key_value().map(|((at, _), _)| *at);
        let timeout = self.nodes.due.first().map(|(at, _)| *at);
        let Some(next) = arrival.into_iter().chain(timeout).min().filter(|next| *next <= until)
        else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        self.steps += 1;
        while let Some(entry) = self.wire.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let flight = entry.remove();
            self.deliver(&flight);
        }
        let due = self.nodes.due.iter().take_while(|(at, _)| *at <= self.now);
        let due: Vec<usize> = due.map(|(_, at)| *at).collect();
        for at in due {
            let node = &mut self.nodes[at];
            if node.engine.poll_timeout().is_some_and(|at| at <= self.now) {
                node.engine.handle_timeout(self.now);
            }
        }
        self.drive();
        true
    }

    fn deliver(&mut self, Flight { from, to, bytes, stride }: &Flight) {
        if let Some(digest) = &mut self.digest {
            let at = (self.now - self.start).as_nanos() as u64;
            digest.update(&at.to_le_bytes());
            digest.update(format!("{from} {to} {}:", bytes.len()).as_bytes());
            digest.update(bytes);
        }
        if let Some(at) = self.nodes.at(to).filter(|at| !self.nodes[*at].dead) {
            self.amplification.on_received(at, *from, bytes);
            self.nodes[at].engine.handle_datagrams(self.now, *from, bytes, *stride);
        }
    }

    /// Runs for a span of virtual time.
    pub fn run_for(&mut self, span: Duration) {
        let until = self.now + span;
        while self.step(until) {}
    }

    /// Runs until the fetch ends; how long that took.
    ///
    /// # Panics
    /// If the fetch fails, or has not ended within a minute.
    pub fn run_until_fetched(&mut self, at: usize, fetch: FetchId) -> Duration {
        let begin = self.now;
        let until = begin + Duration::from_secs(60);
        while self.nodes[at].outcome(fetch).is_none() {
            assert!(self.step(until), "the fetch never ended");
        }
        if self.nodes[at].outcome(fetch) == Some(false) {
            for node in &self.nodes {
                println!("{:?}", node.engine.counters(node.swarm));
                let peers = node.engine.peers(self.now, node.swarm, false);
                for peer in peers {
                    println!("{peer:?}");
                }
            }
        }
        assert_eq!(self.nodes[at].outcome(fetch), Some(true), "the fetch failed");
        self.now - begin
    }
}

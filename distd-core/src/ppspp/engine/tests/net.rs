//! A network of engines in virtual time: seeded delay, loss, duplication, reordering.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::keys::{NtpTime, OriginKey};
use crate::limits::MUNRO_BYTES;
use crate::ppspp::engine::{
    Class, Engine, EngineConfig, Event, FetchId, HashRequest, Role, SwarmKey, SwarmOptions,
};
use crate::tree::{HashedRun, MunroTree, VerifiedMunro, VerifiedRun};
use crate::unit::{Bin, BlockIndex, BlockRange, MunroIndex};

/// A log with its key.
pub(super) struct Log {
    pub(super) key: OriginKey,
    munros: Vec<(Bytes, Box<[crate::tree::NodeHash; 512]>, VerifiedMunro)>,
}

impl Log {
    pub(super) fn new(munros: u64) -> Rc<Self> {
        let key = OriginKey::from_seed(&[42; 32]);
        let mut rng = SmallRng::seed_from_u64(7);
        let made = (0..munros).map(|munro| {
            let mut bytes = vec![0; MUNRO_BYTES as usize];
            rng.fill(&mut bytes[..]);
            let index = MunroIndex(munro);
            let nodes = MunroTree::hash_content(index, &bytes);
            let signed = VerifiedMunro::sign(&key, index, nodes[1], Self::time(munro));
            (Bytes::from(bytes), nodes, signed)
        });
        let munros = made.collect();
        Rc::new(Self { key, munros })
    }

    pub(super) fn time(step: u64) -> NtpTime {
        NtpTime::from_unix(1_800_000_000 + step, 0)
    }

    pub(super) fn munro(&self, index: u64) -> VerifiedMunro {
        self.munros[index as usize].2
    }

    pub(super) fn newest(&self) -> VerifiedMunro {
        self.munro(self.munros.len() as u64 - 1)
    }

    /// The newest munro signed again, `step` seconds later.
    pub(super) fn heartbeat(&self, step: u64) -> VerifiedMunro {
        let newest = self.newest();
        let time = NtpTime::from_unix(newest.time().unix_seconds() + step, 0);
        VerifiedMunro::sign(&self.key, newest.munro(), newest.hash(), time)
    }

    pub(super) fn blocks(&self) -> BlockRange {
        BlockRange::new(BlockIndex(0), self.munros.len() as u64 * 256)
    }

    pub(super) fn run(&self, bin: Bin) -> VerifiedRun {
        let munro = bin.munro().expect("within a munro");
        let (bytes, nodes, signed) = &self.munros[munro.0 as usize];
        let start = (bin.byte_offset() - munro.byte_offset()) as usize;
        let content = bytes.slice(start..start + bin.byte_len() as usize);
        let offered = |bin| MunroTree::slot(bin).map(|slot| nodes[slot]);
        MunroTree::new(*signed).verify_run(bin, content, offered).expect("its own log")
    }
}

/// What a link does to datagrams.
#[derive(Clone, Copy)]
pub(super) struct Weather {
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    pub(super) loss: f64,
    pub(super) duplication: f64,
}

pub(super) const FINE: Weather = Weather {
    delay: Duration::from_millis(5),
    jitter: Duration::ZERO,
    loss: 0.0,
    duplication: 0.0,
};

/// What a node does to the datagrams that it sends.
pub(super) type Tamper = fn(&mut Vec<u8>, &mut SmallRng);

pub(super) struct Node {
    pub(super) engine: Engine,
    pub(super) swarm: SwarmKey,
    pub(super) address: SocketAddr,
    pub(super) log: Rc<Log>,
    /// Blocks that its disk has.
    pub(super) stored: BTreeSet<u64>,
    pub(super) events: Vec<Event>,
    /// Drops everything.
    pub(super) dead: bool,
    pub(super) tamper: Option<Tamper>,
    /// Reads find nothing, whatever is held.
    pub(super) disk_fails: bool,
    pub(super) sent: Vec<(Instant, SocketAddr, Vec<u8>)>,
    pub(super) keep_sent: bool,
    /// What its line takes, in bytes a second; `None`: everything at once.
    pub(super) line: Option<f64>,
    /// When the line has taken what waits.
    free_at: Instant,
}

impl Node {
    pub(super) fn store(&mut self, now: Instant, blocks: BlockRange) {
        self.stored.extend(blocks.iter().map(|block| block.0));
        self.engine.hold(now, self.swarm, blocks);
    }

    pub(super) fn fetch(&mut self, net_now: Instant, blocks: BlockRange, class: Class) -> FetchId {
        let deadline = net_now + Duration::from_secs(30);
        self.engine.fetch(net_now, self.swarm, blocks, class, deadline)
    }

    /// Whether the fetch ended well; `None` if it has not ended.
    pub(super) fn outcome(&self, fetch: FetchId) -> Option<bool> {
        self.events.iter().find_map(|event| match event {
            Event::Fetched { fetch: id } if *id == fetch => Some(true),
            Event::Failed { fetch: id, .. } if *id == fetch => Some(false),
            _ => None,
        })
    }

    pub(super) fn verified(&self) -> impl Iterator<Item = (&VerifiedRun, SocketAddr)> {
        self.events.iter().filter_map(|event| match event {
            Event::Verified { run, from, .. } => Some((run, *from)),
            _ => None,
        })
    }
}

pub(super) struct Net {
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) nodes: Vec<Node>,
    pub(super) weather: Weather,
    pub(super) rng: SmallRng,
    wire: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sequence: u64,
}

impl Net {
    pub(super) fn new(seed: u64, weather: Weather) -> Self {
        let start = Instant::now();
        let rng = SmallRng::seed_from_u64(seed);
        Self {
            start,
            now: start,
            nodes: Vec::new(),
            weather,
            rng,
            wire: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// A node of the log's swarm that stores `blocks` of it.
    pub(super) fn add(&mut self, log: &Rc<Log>, blocks: Option<BlockRange>) -> usize {
        self.add_as(log, blocks, Role::Node)
    }

    /// The same, with another role.
    pub(super) fn add_as(
        &mut self,
        log: &Rc<Log>,
        blocks: Option<BlockRange>,
        role: Role,
    ) -> usize {
        let number = self.nodes.len() as u8;
        let mut engine = Engine::new(EngineConfig::new([number + 1; 32]), self.now);
        let options = SwarmOptions {
            id: log.key.id().swarm_id(),
            newest: blocks.map(|_| log.newest()),
            held: blocks.into_iter().collect(),
            serve: true,
            role,
        };
        let swarm = engine.add_swarm(options).expect("a new swarm");
        self.nodes.push(Node {
            engine,
            swarm,
            address: SocketAddr::from((Ipv4Addr::new(10, 0, 0, number + 1), 7574)),
            log: log.clone(),
            stored: blocks.into_iter().flat_map(BlockRange::iter).map(|block| block.0).collect(),
            events: Vec::new(),
            dead: false,
            tamper: None,
            disk_fails: false,
            sent: Vec::new(),
            keep_sent: false,
            line: None,
            free_at: self.now,
        });
        self.nodes.len() - 1
    }

    /// A node with the whole log.
    pub(super) fn add_origin(&mut self, log: &Rc<Log>) -> usize {
        self.add_as(log, Some(log.blocks()), Role::Injector)
    }

    pub(super) fn connect(&mut self, from: usize, to: usize) {
        let address = self.nodes[to].address;
        let node = &mut self.nodes[from];
        node.engine.connect(self.now, node.swarm, address);
    }

    /// Replaces a node's engine, as if its process had been restarted.
    pub(super) fn restart(&mut self, at: usize, seed: u8) {
        let log = self.nodes[at].log.clone();
        self.restart_with(at, seed, log.newest(), log.blocks());
    }

    /// Restarts a node that knows and holds no more than this.
    pub(super) fn restart_with(
        &mut self,
        at: usize,
        seed: u8,
        newest: VerifiedMunro,
        held: BlockRange,
    ) {
        let node = &mut self.nodes[at];
        node.engine = Engine::new(EngineConfig::new([seed; 32]), self.now);
        let options = SwarmOptions {
            id: node.log.key.id().swarm_id(),
            newest: Some(newest),
            held: vec![held],
            serve: true,
            role: Role::Injector,
        };
        node.swarm = node.engine.add_swarm(options).expect("a new swarm");
    }

    /// Puts a datagram on the wire.
    pub(super) fn inject(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let weather = self.weather;
        if self.rng.random_bool(weather.loss) {
            return;
        }
        let Some(leaves) = self.leave(from, datagram.len()) else { return };
        let copies = 1 + u32::from(self.rng.random_bool(weather.duplication));
        for _ in 0..copies {
            let jitter = weather.jitter.mul_f64(self.rng.random());
            self.sequence += 1;
            let at = (leaves + weather.delay + jitter, self.sequence);
            self.wire.insert(at, (from, to, datagram.to_vec()));
        }
    }

    /// When a datagram has left its sender's line; `None` if there is no room: 50 ms may wait.
    fn leave(&mut self, from: SocketAddr, bytes: usize) -> Option<Instant> {
        let now = self.now;
        let node = self.nodes.iter_mut().find(|node| node.address == from);
        let Some((node, line)) = node.and_then(|node| node.line.map(|line| (node, line))) else {
            return Some(now);
        };
        let begin = node.free_at.max(now);
        if begin > now + Duration::from_millis(50) {
            return None;
        }
        node.free_at = begin + Duration::from_secs_f64((bytes + 42) as f64 / line);
        Some(node.free_at)
    }

    /// Lets every node do what it can do now.
    pub(super) fn drive(&mut self) {
        for at in 0..self.nodes.len() {
            loop {
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
                    let there = !node.disk_fails
                        && blocks.iter().all(|block| node.stored.contains(&block.0));
                    let run = there.then(|| node.log.run(request.bin));
                    node.engine.handle_disk(now, request.id, run.map(Into::into));
                    busy = true;
                }
                while let Some(event) = node.engine.poll_event() {
                    if let Event::Verified { run, .. } = &event {
                        let blocks = run.bin().blocks().expect("whole blocks");
                        node.store(now, blocks);
                    }
                    node.events.push(event);
                    busy = true;
                }
                let Some(transmit) = self.nodes[at].engine.poll_transmit(now) else {
                    if busy {
                        continue;
                    }
                    break;
                };
                let from = self.nodes[at].address;
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
                        self.inject(from, transmit.to, &datagram);
                    }
                }
            }
        }
    }

    /// Goes on to the next thing that happens; `false` if nothing ever will before `until`.
    pub(super) fn step(&mut self, until: Instant) -> bool {
        self.drive();
        let arrival = self.wire.first_key_value().map(|((at, _), _)| *at);
        let timeout = self.nodes.iter_mut().filter_map(|node| node.engine.poll_timeout()).min();
        let Some(next) = arrival.into_iter().chain(timeout).min().filter(|next| *next <= until)
        else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        while let Some(entry) = self.wire.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (from, to, datagram) = entry.remove();
            if let Some(node) = self.nodes.iter_mut().find(|node| node.address == to && !node.dead)
            {
                node.engine.handle_datagram(self.now, from, &datagram);
            }
        }
        for node in &mut self.nodes {
            if node.engine.poll_timeout().is_some_and(|at| at <= self.now) {
                node.engine.handle_timeout(self.now);
            }
        }
        self.drive();
        true
    }

    /// Runs for a span of virtual time.
    pub(super) fn run_for(&mut self, span: Duration) {
        let until = self.now + span;
        while self.step(until) {}
    }

    /// Runs until the fetch ends; how long that took.
    pub(super) fn run_until_fetched(&mut self, at: usize, fetch: FetchId) -> Duration {
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

//! The engine of static swarms in virtual time: members with files in memory, lines that lose, delay and
//! reorder, and peers that are written by hand.

mod conformance;
mod swarming;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::limits::{BRANCH_LAYER, CHUNK_BYTES};
use crate::tree::merkle::{ContentId, MerkleFunction};

const BRANCH_BYTES: usize = (CHUNK_BYTES << BRANCH_LAYER) as usize;

fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(bytes.as_mut_slice());
    bytes
}

fn grown(function: MerkleFunction, content: &[u8]) -> MerkleTree {
    let shape = ContentShape::of_bytes(content.len() as u64).expect("content");
    let branches: Vec<BranchHashes> = (0..)
        .zip(content.chunks(BRANCH_BYTES))
        .map(|(at, bytes)| BranchHashes::of(function, shape, BranchIndex(at), bytes))
        .collect();
    let tops: Vec<MerkleHash> = branches.iter().map(BranchHashes::top).collect();
    MerkleTree::over(function, shape, &tops, branches.last().expect("one"))
}

fn address(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 7000 + number))
}

/// A member and its file.
struct Member {
    engine: StaticSwarm,
    file: BTreeMap<BranchIndex, Vec<u8>>,
    downs: Vec<(SocketAddr, super::super::DownReason)>,
    settled: Option<u64>,
    /// What it sends is changed so.
    lie: Option<fn(&mut [u8])>,
    online: bool,
}

/// Members and the lines between them.
struct World {
    now: Instant,
    begin: Instant,
    rng: StdRng,
    members: Vec<Member>,
    /// By arrival and a number: from, to, datagram.
    lines: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    number: u64,
    loss: f64,
    delay: Duration,
    /// Bytes received from and sent to each address before it has proved itself.
    addresses: BTreeSet<SocketAddr>,
}

impl World {
    fn new(seed: u64, loss: f64) -> Self {
        let now = Instant::now();
        Self {
            now,
            begin: now,
            rng: StdRng::seed_from_u64(seed),
            members: Vec::new(),
            lines: BTreeMap::new(),
            number: 0,
            loss,
            delay: Duration::from_millis(10),
            addresses: BTreeSet::new(),
        }
    }

    fn join(&mut self, id: ContentId, bytes: Option<u64>, tree: Option<MerkleTree>) -> usize {
        let mut rng_seed = [0; 32];
        self.rng.fill(&mut rng_seed);
        let options = StaticOptions { rng_seed, id, bytes, tree };
        let engine = StaticSwarm::new(options, self.now).expect("a swarm");
        let (file, downs) = (BTreeMap::new(), Vec::new());
        self.members.push(Member { engine, file, downs, settled: None, lie: None, online: true });
        self.addresses.insert(address(self.members.len() as u16 - 1));
        self.members.len() - 1
    }

    fn seed(&mut self, function: MerkleFunction, content: &[u8]) -> (usize, ContentId) {
        let tree = grown(function, content);
        let id = tree.id();
        let member = self.join(id, Some(content.len() as u64), Some(tree));
        self.members[member].file =
            (0..).map(BranchIndex).zip(content.chunks(BRANCH_BYTES).map(<[u8]>::to_vec)).collect();
        (member, id)
    }

    fn connect(&mut self, from: usize, to: usize) {
        let now = self.now;
        self.members[from].engine.connect(now, address(to as u16));
    }

    /// Sends a datagram by hand.
    fn send(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        if self.rng.random_bool(self.loss) {
            return;
        }
        let jitter = self.rng.random_range(0..1 + self.delay.as_micros() as u64 / 20);
        let at = self.now + self.delay + Duration::from_micros(jitter);
        self.lines.insert((at, self.number), (from, to, datagram));
        self.number += 1;
    }

    /// Works off what every member has to say.
    fn settle(&mut self) {
        for at in 0..self.members.len() {
            let now = self.now;
            loop {
                let member = &mut self.members[at];
                let mut quiet = true;
                while let Some(event) = member.engine.poll_event() {
                    quiet = false;
                    match event {
                        StaticEvent::Settled { bytes } => {
                            member.settled = Some(bytes);
                            member.engine.start(now);
                        }
                        StaticEvent::Branch { branch, bytes } => {
                            assert!(member.file.insert(branch, bytes).is_none(), "stored once");
                            member.engine.hold(now, branch);
                        }
                        StaticEvent::PeerDown { address, reason } => {
                            member.downs.push((address, reason));
                        }
                        StaticEvent::Spoiled { branch } => {
                            member.file.remove(&branch);
                        }
                        StaticEvent::PeerUp { .. } => {}
                    }
                }
                let mut sent = Vec::new();
                while let Some(transmit) = member.engine.poll_transmit(now) {
                    sent.extend(
                        transmit.datagrams().map(|datagram| (transmit.to, datagram.to_vec())),
                    );
                }
                while let Some(branch) = member.engine.poll_read() {
                    quiet = false;
                    let bytes = member.file.get(&branch).cloned().map(Bytes::from);
                    member.engine.handle_read(branch, bytes);
                }
                let (lie, online) = (member.lie, member.online);
                for (to, mut datagram) in sent {
                    quiet = false;
                    if let Some(lie) = lie {
                        lie(&mut datagram);
                    }
                    if online {
                        self.send(address(at as u16), to, datagram);
                    }
                }
                if quiet {
                    break;
                }
            }
        }
    }

    /// One step of time: the next arrival or timeout; what arrived for nobody here.
    fn step(&mut self) -> Option<(SocketAddr, SocketAddr, Vec<u8>)> {
        self.settle();
        let arrival = self.lines.first_key_value().map(|((at, _), _)| *at);
        let timeouts = self.members.iter_mut().filter_map(|member| member.engine.poll_timeout());
        let timeout = timeouts.min();
        let next = [arrival, timeout].into_iter().flatten().min().expect("something goes on");
        self.now = self.now.max(next);
        for member in &mut self.members {
            if member.engine.poll_timeout().is_some_and(|at| at <= self.now) {
                member.engine.handle_timeout(self.now);
            }
        }
        if arrival.is_some_and(|at| at <= self.now)
            && let Some((_, (from, to, datagram))) = self.lines.pop_first()
        {
            let known = self.addresses.iter().position(|address| *address == to);
            let Some(member) = known else { return Some((from, to, datagram)) };
            if self.members[member].online {
                let len = datagram.len();
                self.members[member].engine.handle_datagrams(self.now, from, &datagram, len);
            }
        }
        None
    }

    fn elapsed(&self) -> Duration {
        self.now.saturating_duration_since(self.begin)
    }

    /// Runs until the members have everything.
    fn run(&mut self, members: &[usize], limit: Duration) {
        while !members.iter().all(|member| self.members[*member].engine.is_complete()) {
            self.step();
            let stand: Vec<_> =
                members.iter().map(|m| self.members[*m].engine.progress()).collect();
            assert!(self.elapsed() < limit, "not done after {limit:?}: {stand:?}");
        }
        self.settle();
    }

    fn file(&self, member: usize) -> Vec<u8> {
        self.members[member].file.values().flatten().copied().collect()
    }
}

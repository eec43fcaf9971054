//! A node of the simulated network: an engine, what its disk holds, its line.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Index, IndexMut};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use roaring::RoaringTreemap;

use crate::ppspp::engine::{
    Class, Engine, EngineConfig, Event, FetchId, Role, SwarmKey, SwarmOptions,
};
use crate::tree::{VerifiedMunro, VerifiedRun};
use crate::unit::BlockRange;

use super::content::Log;

/// What a node does to the datagrams that it sends.
pub type Tamper = fn(&mut Vec<u8>, &mut SmallRng);

/// What may wait in front of a line before it drops.
const QUEUE: Duration = Duration::from_millis(50);
/// Bytes that Ethernet, IPv4 and UDP add to a datagram.
const HEADERS: usize = 42;

/// One direction of a node's line.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    bytes_per_s: f64,
    /// When the line has taken what waits.
    free_at: Instant,
}

impl Line {
    /// A line of so many bytes a second.
    pub fn new(bytes_per_s: f64, now: Instant) -> Self {
        Self { bytes_per_s, free_at: now }
    }

    /// When datagrams that come at `at` are through; `None` if there is no room for them.
    pub(super) fn pass(&mut self, at: Instant, bytes: usize, count: usize) -> Option<Instant> {
        let begin = self.free_at.max(at);
        if begin > at + QUEUE {
            return None;
        }
        let bytes = bytes + count * HEADERS;
        self.free_at = begin + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s);
        Some(self.free_at)
    }
}

/// A peer.
#[derive(Debug)]
pub struct Node {
    /// The real one.
    pub engine: Engine,
    /// Its only swarm.
    pub swarm: SwarmKey,
    /// Where it is reached; changed by `Net::move_to`.
    pub address: SocketAddr,
    /// What the swarm is about.
    pub log: Rc<Log>,
    /// Blocks that its disk has.
    pub stored: RoaringTreemap,
    /// What the engine said; without verified runs if `keep_runs` is off.
    pub events: Vec<Event>,
    /// Keeps verified runs among the events.
    pub keep_runs: bool,
    /// Drops everything.
    pub dead: bool,
    /// What it does to what it sends.
    pub tamper: Option<Tamper>,
    /// Reads find nothing, whatever is held.
    pub disk_fails: bool,
    /// What it sent, if `keep_sent` is on.
    pub sent: Vec<(Instant, SocketAddr, Vec<u8>)>,
    /// Keeps what it sends.
    pub keep_sent: bool,
    /// What its line takes; `None`: everything at once.
    pub up: Option<Line>,
    /// What its line brings.
    pub down: Option<Line>,
    /// When it wants to be woken.
    pub(super) due: Option<Instant>,
}

impl Node {
    pub(super) fn new(
        log: &Rc<Log>,
        number: usize,
        blocks: Option<BlockRange>,
        role: Role,
        now: Instant,
    ) -> Self {
        let mut seed = [1; 32];
        seed[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
        let mut engine = Engine::new(EngineConfig::new(seed), now);
        let options = SwarmOptions {
            id: log.key.id().swarm_id(),
            newest: blocks.map(|_| log.newest()),
            held: blocks.into_iter().collect(),
            serve: true,
            role,
        };
        let swarm = engine.add_swarm(options).expect("a new swarm");
        let host = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number as u32 + 1);
        Self {
            engine,
            swarm,
            address: SocketAddr::from((host, 7574)),
            log: log.clone(),
            stored: blocks
                .map_or_else(RoaringTreemap::new, |blocks| blocks.iter().map(|b| b.0).collect()),
            events: Vec::new(),
            keep_runs: true,
            dead: false,
            tamper: None,
            disk_fails: false,
            sent: Vec::new(),
            keep_sent: false,
            up: None,
            down: None,
            due: None,
        }
    }

    /// Replaces the engine by one that knows and holds no more than this.
    pub(super) fn restart(
        &mut self,
        now: Instant,
        seed: u8,
        newest: VerifiedMunro,
        held: BlockRange,
    ) {
        self.engine = Engine::new(EngineConfig::new([seed; 32]), now);
        let options = SwarmOptions {
            id: self.log.key.id().swarm_id(),
            newest: Some(newest),
            held: vec![held],
            serve: true,
            role: Role::Injector,
        };
        self.swarm = self.engine.add_swarm(options).expect("a new swarm");
    }

    /// Its disk has these blocks from now on.
    pub fn store(&mut self, now: Instant, blocks: BlockRange) {
        self.stored.insert_range(blocks.start.0..blocks.end().0);
        self.engine.hold(now, self.swarm, blocks);
    }

    /// Fetches blocks, within 30 s.
    pub fn fetch(&mut self, now: Instant, blocks: BlockRange, class: Class) -> FetchId {
        self.engine.fetch(now, self.swarm, blocks, class, now + Duration::from_secs(30))
    }

    /// Whether the fetch ended well; `None` if it has not ended.
    pub fn outcome(&self, fetch: FetchId) -> Option<bool> {
        self.events.iter().find_map(|event| match event {
            Event::Fetched { fetch: id } if *id == fetch => Some(true),
            Event::Failed { fetch: id, .. } if *id == fetch => Some(false),
            _ => None,
        })
    }

    /// Runs that were verified, and who they came from.
    pub fn verified(&self) -> impl Iterator<Item = (&VerifiedRun, SocketAddr)> {
        self.events.iter().filter_map(|event| match event {
            Event::Verified { run, from, .. } => Some((run, *from)),
            _ => None,
        })
    }
}

/// All nodes by number. Whoever is borrowed mutably is looked at again by the network.
#[derive(Debug, Default)]
pub struct Nodes {
    list: Vec<Node>,
    numbers: BTreeMap<SocketAddr, usize>,
    pub(super) touched: BTreeSet<usize>,
    /// When nodes want to be woken.
    pub(super) due: BTreeSet<(Instant, usize)>,
}

impl Nodes {
    pub(super) fn push(&mut self, node: Node) -> usize {
        let number = self.list.len();
        self.numbers.insert(node.address, number);
        self.list.push(node);
        self.touched.insert(number);
        number
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// One after the other.
    pub fn iter(&self) -> std::slice::Iter<'_, Node> {
        self.list.iter()
    }

    /// One after the other, all of them to be looked at again.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, Node> {
        self.touched.extend(0..self.list.len());
        self.list.iter_mut()
    }

    pub(super) fn move_to(&mut self, at: usize, address: SocketAddr) {
        let before = std::mem::replace(&mut self.list[at].address, address);
        self.numbers.remove(&before);
        self.numbers.insert(address, at);
    }

    /// What a node's line takes.
    pub(super) fn line_up(&mut self, at: usize) -> Option<&mut Line> {
        self.list[at].up.as_mut()
    }

    /// What a node's line brings.
    pub(super) fn line_down(&mut self, at: usize) -> Option<&mut Line> {
        self.list[at].down.as_mut()
    }

    pub(super) fn at(&self, address: &SocketAddr) -> Option<usize> {
        self.numbers.get(address).copied()
    }

    /// The node was driven: when it wants to be woken.
    pub(super) fn schedule(&mut self, at: usize) {
        let node = &mut self.list[at];
        let due = node.engine.poll_timeout();
        if node.due == due {
            return;
        }
        if let Some(before) = std::mem::replace(&mut node.due, due) {
            self.due.remove(&(before, at));
        }
        self.due.extend(due.map(|due| (due, at)));
    }
}

impl Index<usize> for Nodes {
    type Output = Node;

    fn index(&self, at: usize) -> &Node {
        &self.list[at]
    }
}

impl IndexMut<usize> for Nodes {
    fn index_mut(&mut self, at: usize) -> &mut Node {
        self.touched.insert(at);
        &mut self.list[at]
    }
}

impl<'a> IntoIterator for &'a mut Nodes {
    type Item = &'a mut Node;
    type IntoIter = std::slice::IterMut<'a, Node>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl<'a> IntoIterator for &'a Nodes {
    type Item = &'a Node;
    type IntoIter = std::slice::Iter<'a, Node>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}

//! The engine: many peers, many swarms, and no I/O.
//!
//! ```text
//!   datagrams, time            +--------+   Transmit (batches of datagrams)
//!   ------------------------>  |        |  ------------------------------->
//!   fetch hold release publish | Engine |   DiskRequest (a run to serve)
//!   ------------------------>  |        |  ------------------------------->
//!   disk answers, hashed runs  +--------+   HashRequest, Event, next timeout
//! ```
//!
//! The driver is a loop without decisions: what arrives goes to `handle_*`, then every `poll_*` is
//! asked until it has nothing. The engine never looks at a clock, a socket, a disk or a source of
//! chance of its own.
//!
//! | room | noun |
//! |---|---|
//! | `event`, `limits` | what goes in and out; every bound |
//! | `half_open`, `handshake`, `dial` | how a channel comes to be (RFC 7574 §3.1.1, §12.1) |
//! | `channel`, `swarm`, `timers`, `rtt` | what is kept of a peer, a log, the time |
//! | `receive` | what each message does |
//! | `fetch`, `picker`, `source`, `flight`, `offered` | what is wanted, of whom, and what is there of it |
//! | `circle`, `turns`, `climb` | who of a level owns what, and who fetches it from above |
//! | `serve`, `asked`, `known`, `sent` | what a peer asked for, has, and was sent (how fast: `congestion`) |
//! | `bucket` | what limits of bytes a second leave |
//! | `acks`, `announce`, `transmit`, `writer` | what is said, and in which datagrams |
//! | `pex` | who else there is |
//! | `report`, `meter`, `networks` | how peers stand, how fast bytes pass, who is near |
//! | `static_swarm` | the same for one file that never changes (RFC 7574 §5): an engine of its own over the parts of this one |

mod acks;
mod announce;
mod asked;
mod bucket;
mod channel;
mod circle;
mod climb;
mod dial;
mod event;
mod fetch;
mod flight;
mod half_open;
mod handshake;
mod input;
mod interval;
mod known;
pub mod limits;
mod meter;
mod networks;
mod offered;
mod pex;
mod picker;
mod receive;
mod report;
mod rtt;
mod sent;
mod serve;
mod source;
pub mod static_swarm;
mod swarm;
#[cfg(test)]
mod tests;
mod timers;
mod transmit;
mod turns;
mod writer;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::keys::SwarmId;
use crate::ppspp::codec::ChannelId;
use crate::tree::{StoredRun, VerifiedMunro};
use crate::unit::BlockRange;

use bucket::Bucket;
use channel::{ChannelIndex, Channels};
pub use event::{
    Audience, Class, DiskId, DiskRequest, DownReason, EngineConfig, EngineCounters, Event,
    FetchError, FetchId, HashId, HashRequest, Rates, Role, SwarmCounters, SwarmKey, SwarmOptions,
    Transmit,
};
use half_open::HalfOpenTable;
use interval::IntervalSet;
pub use networks::Networks;
use receive::HashQueue;
pub use report::{Idle, PeerKind, PeerReport, PeerState, SourceBytes};
use serve::Urgency;
use swarm::Swarm;
use timers::{Timer, Timers};
use turns::Place;

/// The protocol's engine.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    rng: StdRng,
    /// Where our clock of microseconds begins, and at which value.
    clock: (Instant, u64),
    swarms: BTreeMap<SwarmKey, Swarm>,
    by_swarm_id: BTreeMap<SwarmId, SwarmKey>,
    next_swarm: u32,
    channels: Channels,
    by_channel_id: BTreeMap<ChannelId, ChannelIndex>,
    half_open: HalfOpenTable,
    /// Addresses that lied, until when.
    bans: BTreeMap<SocketAddr, dial::Ban>,
    timers: Timers,
    /// What limits leave, where there are any.
    upload: Option<Bucket>,
    download: Option<Bucket>,
    /// When sending goes on that waits for the limit.
    upload_armed: Option<Instant>,
    queues: Queues,
    /// Reads that the disk was asked for, and for which channel.
    reads: BTreeMap<DiskId, ChannelIndex>,
    next_read: u64,
    /// Bytes read or being read for all peers.
    read_bytes: u64,
    counters: EngineCounters,
}

/// What is on its way out, and who has something to send.
#[derive(Debug, Default)]
struct Queues {
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    disk: VecDeque<DiskRequest>,
    hashing: HashQueue,
    /// Channels with messages to write.
    control: VecDeque<ChannelIndex>,
    /// Channels with data to send, waited ones first.
    serving: VecDeque<ChannelIndex>,
    urgent: VecDeque<ChannelIndex>,
    /// Channels with data to send that the limit holds back.
    limited: VecDeque<ChannelIndex>,
    /// Channels whose timers must be looked at.
    touched: Vec<ChannelIndex>,
    /// Channels that wait for room to read.
    starved: VecDeque<ChannelIndex>,
    /// Swarms to plan for.
    dirty: Vec<SwarmKey>,
}

impl Engine {
    /// An engine without swarms.
    pub fn new(config: EngineConfig, now: Instant) -> Self {
        let mut rng = StdRng::from_seed(config.rng_seed);
        // A clock that begins anywhere tells nobody how long this process has been running.
        let clock = (now, u64::from(rng.random::<u32>()) << 16);
        Self {
            config,
            rng,
            clock,
            swarms: BTreeMap::new(),
            by_swarm_id: BTreeMap::new(),
            next_swarm: 0,
            channels: Channels::default(),
            by_channel_id: BTreeMap::new(),
            half_open: HalfOpenTable::default(),
            bans: BTreeMap::new(),
            timers: Timers::default(),
            upload: None,
            download: None,
            upload_armed: None,
            queues: Queues::default(),
            reads: BTreeMap::new(),
            next_read: 0,
            read_bytes: 0,
            counters: EngineCounters::default(),
        }
    }

    /// Takes part in a swarm. The same swarm again, an id of another algorithm, or one more than
    /// [`limits::SWARMS_MAX`] are refused.
    pub fn add_swarm(&mut self, options: SwarmOptions) -> Option<SwarmKey> {
        let origin = options.id.origin()?;
        if self.by_swarm_id.contains_key(&options.id) || self.swarms.len() >= limits::SWARMS_MAX {
            return None;
        }
        let key = SwarmKey(self.next_swarm);
        self.next_swarm += 1;
        let place = Place::new(self.rng.random(), options.role);
        let mut swarm = Swarm::new(key, options.id, origin, options.serve, place);
        swarm.newest = options.newest;
        for blocks in options.held {
            swarm.held.insert(blocks.start.0, blocks.end().0);
        }
        self.by_swarm_id.insert(options.id, key);
        self.swarms.insert(key, swarm);
        Some(key)
    }

    /// Leaves a swarm: says goodbye to its peers and cancels its fetches.
    pub fn remove_swarm(&mut self, now: Instant, key: SwarmKey) {
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        self.timers.disarm(Timer::Swarm(key), &mut swarm.armed);
        for (address, mut link) in std::mem::take(&mut swarm.links) {
            self.timers.disarm(Timer::Link(key, address), &mut link.armed);
        }
        for fetch in swarm.ledger.fetch_ids() {
            self.fail(fetch, FetchError::Cancelled);
        }
        let channels: Vec<ChannelIndex> = self
            .channels
            .iter()
            .filter(|(_, channel)| channel.swarm == key)
            .map(|(index, _)| index)
            .collect();
        for index in channels {
            self.close(now, index, DownReason::Left);
        }
        self.half_open.remove_swarm(key);
        if let Some(swarm) = self.swarms.remove(&key) {
            self.by_swarm_id.remove(&swarm.id);
        }
        self.queues.dirty.retain(|dirty| *dirty != key);
    }

    /// Leaves all swarms; what is polled afterwards says goodbye (RFC 7574 §3.1.1).
    pub fn close_all(&mut self, now: Instant) {
        let keys: Vec<SwarmKey> = self.swarms.keys().copied().collect();
        for key in keys {
            self.remove_swarm(now, key);
        }
    }

    /// Asks for blocks, whoever has them; may be called before any peer is known. Ends with
    /// [`Event::Fetched`], or with [`Event::Failed`] at the deadline.
    pub fn fetch(
        &mut self,
        now: Instant,
        key: SwarmKey,
        blocks: BlockRange,
        class: Class,
        deadline: Instant,
    ) -> FetchId {
        let Some(swarm) = self.swarms.get_mut(&key) else {
            let id = FetchId::new(key, 0);
            let (reason, tried) = (FetchError::Cancelled, Vec::new());
            self.queues.events.push_back(Event::Failed { fetch: id, reason, tried });
            return id;
        };
        let id = swarm.ledger.next_id();
        if blocks.is_empty() {
            self.queues.events.push_back(Event::Fetched { fetch: id });
        } else if swarm.ledger.insert(id, blocks, class, deadline) {
            if let Some(fetch) = swarm.ledger.fetch_mut(id) {
                self.timers.arm(Timer::Fetch(id), deadline.max(now), &mut fetch.armed);
            }
            self.mark_dirty(key);
        } else {
            let (reason, tried) = (FetchError::TooMany, Vec::new());
            self.queues.events.push_back(Event::Failed { fetch: id, reason, tried });
        }
        id
    }

    /// Gives a fetch up: [`Event::Failed`] follows unless it has ended.
    pub fn cancel(&mut self, _now: Instant, fetch: FetchId) {
        self.fail(fetch, FetchError::Cancelled);
    }

    /// Whether the open channels together have all of the blocks. Without any, nobody knows.
    pub fn is_offered(&self, key: SwarmKey, blocks: BlockRange) -> bool {
        let Some(swarm) = self.swarms.get(&key) else { return false };
        let mut lacking = IntervalSet::default();
        lacking.insert(blocks.start.0, blocks.end().0);
        for channel in swarm.members.iter().filter_map(|index| self.channels.get(*index)) {
            while let Some((start, end)) = lacking.first_common(&channel.source.availability) {
                lacking.remove(start, end);
            }
        }
        swarm.members.is_empty() || lacking.is_empty()
    }

    /// Blocks are stored from now on: they are served and announced.
    pub fn hold(&mut self, now: Instant, key: SwarmKey, blocks: BlockRange) {
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        let (start, end) = (blocks.start.0, blocks.end().0);
        if blocks.is_empty() || swarm.held.contains(start, end) {
            return;
        }
        swarm.held.insert(start, end);
        swarm.news.push(start, end);
        // Whoever has many peers would say little to each all the time.
        let many = swarm.members.len().div_ceil(limits::ANNOUNCE_MEMBERS) as u32;
        let delay = limits::ANNOUNCE_DELAY * many;
        let served = swarm.members.iter().filter_map(|index| {
            let channel = self.channels.get(*index).filter(|channel| channel.served)?;
            Some((*index, swarm.turns.rank(channel) > 0))
        });
        for (index, above) in served.collect::<Vec<_>>() {
            let Some(channel) = self.channels.get_mut(index) else { continue };
            channel.source.on_held(start, end);
            if channel.source.end_awaiting(start, end) {
                channel.told.news_at = Some(now);
                self.mark_control(index);
            } else if channel.told.news_at.is_none() {
                let delay = if above { limits::ANNOUNCE_DELAY_ABOVE } else { delay };
                channel.told.news_at = Some(now + delay);
                self.touch(index);
            }
        }
    }

    /// Blocks are no longer stored: requests for them are answered with MISS.
    pub fn release(&mut self, _now: Instant, key: SwarmKey, blocks: BlockRange) {
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        let (start, end) = (blocks.start.0, blocks.end().0);
        swarm.held.remove(start, end);
        for index in swarm.members.clone() {
            let Some(channel) = self.channels.get_mut(index) else { continue };
            let awaited: Vec<_> = channel.source.awaited.iter_within(start, end).collect();
            for (start, end) in &awaited {
                channel.source.end_awaiting(*start, *end);
                channel.serve.miss(*start, *end);
            }
            if !awaited.is_empty() {
                self.mark_control(index);
            }
        }
    }

    /// A newer munro of our own log, or the same one signed later (a heartbeat), and the blocks
    /// that came with it: pushed to every peer at once. One that is not newer is not pushed. RFC 7574
    /// 6.1.2.3: MUST NOT announce what is not signed: what is held comes with its signature.
    pub fn publish(
        &mut self,
        now: Instant,
        key: SwarmKey,
        newest: VerifiedMunro,
        held: BlockRange,
    ) {
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        if swarm.newest.is_none_or(|known| announce::is_newer(&newest, &known)) {
            swarm.newest = Some(newest);
            swarm.spread = true;
        }
        self.hold(now, key, held);
        if let Some(swarm) = self.swarms.get(&key) {
            for index in swarm.members.clone() {
                if let Some(channel) = self.channels.get_mut(index) {
                    channel.told.news_at = Some(now);
                    self.mark_control(index);
                }
            }
        }
        self.mark_dirty(key);
    }

    /// The next read that serving calls for.
    pub fn poll_disk(&mut self) -> Option<DiskRequest> {
        self.queues.disk.pop_front()
    }

    /// A read's answer. `None`: it is not held (any more), or not readable.
    pub fn handle_disk(&mut self, _now: Instant, id: DiskId, run: Option<StoredRun>) {
        let Some(index) = self.reads.remove(&id) else { return };
        let Some(channel) = self.channels.get_mut(index) else { return };
        let before = channel.serve.read_bytes();
        channel.serve.on_disk(id, run);
        self.read_bytes = self.read_bytes - before + channel.serve.read_bytes();
        if !channel.serve.misses.is_empty() {
            self.mark_control(index);
        }
        self.read_ahead(index);
        self.mark_serving(index);
    }

    /// The next run to be hashed.
    pub fn poll_hash(&mut self) -> Option<HashRequest> {
        self.queues.hashing.requests.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.queues.events.pop_front()
    }

    /// The machine is in these networks from now on: whoever is near by that is told of what is held.
    pub fn set_networks(&mut self, networks: Networks) {
        self.config.networks = networks;
        let mut welcome = Vec::new();
        for index in self.channels.iter().map(|(index, _)| index).collect::<Vec<_>>() {
            let Some(channel) = self.channels.get_mut(index) else { continue };
            let serve = self.swarms.get(&channel.swarm).is_some_and(|swarm| swarm.serve);
            channel.near = self.config.networks.hold(channel.address.ip());
            let before = channel.served;
            channel.served = serve && self.config.serves(channel.address);
            if channel.served && !before {
                welcome.push(index);
            }
        }
        for index in welcome {
            self.mark_control(index);
        }
    }

    /// All swarms together send and ask for no more than this from now on.
    pub fn set_rates(&mut self, now: Instant, rates: Rates) {
        self.upload = rates.upload.map(|rate| Bucket::new(rate, now));
        self.download = rates.download.map(|rate| Bucket::new(rate, now));
    }

    /// What a swarm has moved.
    pub fn counters(&self, key: SwarmKey) -> SwarmCounters {
        self.swarms.get(&key).map(|swarm| swarm.counters).unwrap_or_default()
    }

    /// What belongs to no swarm.
    pub fn engine_counters(&self) -> EngineCounters {
        EngineCounters {
            half_open: self.half_open.len() as u64,
            channels: self.channels.len() as u64,
            ..self.counters
        }
    }

    /// Ends a fetch without its data. Peers that wait for some of it are told, unless something else
    /// fetches it.
    fn fail(&mut self, fetch: FetchId, reason: FetchError) {
        let key = fetch.swarm();
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        let Some(entry) = swarm.ledger.fetch_mut(fetch) else { return };
        self.timers.disarm(Timer::Fetch(fetch), &mut entry.armed);
        let blocks = entry.blocks;
        let Some(tried) = swarm.ledger.remove(fetch) else { return };
        let mut told = Vec::new();
        for index in &swarm.members {
            let Some(channel) = self.channels.get_mut(*index) else { continue };
            for (start, end) in swarm.ledger.unfetched(&channel.source.awaited, blocks).iter() {
                channel.source.end_awaiting(start, end);
                channel.serve.miss(start, end);
                told.push(*index);
            }
        }
        for index in told {
            self.mark_control(index);
        }
        let reason = match reason {
            FetchError::Deadline if tried.is_empty() => FetchError::NoPeers,
            other => other,
        };
        self.queues.events.push_back(Event::Failed { fetch, reason, tried });
        self.mark_dirty(key);
    }

    /// Microseconds of our clock.
    fn clock_us(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.clock.0).as_micros() as u64;
        self.clock.1.wrapping_add(elapsed)
    }

    fn mark_dirty(&mut self, key: SwarmKey) {
        if let Some(swarm) = self.swarms.get_mut(&key) {
            swarm.dirty = true;
            if !self.queues.dirty.contains(&key) {
                self.queues.dirty.push(key);
            }
        }
    }

    fn mark_control(&mut self, index: ChannelIndex) {
        if let Some(channel) = self.channels.get_mut(index)
            && channel.is_open()
            && !std::mem::replace(&mut channel.flags.control, true)
        {
            self.queues.control.push_back(index);
        }
    }

    /// The channel may have data to send.
    fn mark_serving(&mut self, index: ChannelIndex) {
        let Some(channel) = self.channels.get_mut(index) else { return };
        let Some(urgency) = channel.serve.ready() else { return };
        let (flag, queue) = match urgency {
            Urgency::Again | Urgency::Waited => {
                (&mut channel.flags.urgent, &mut self.queues.urgent)
            }
            Urgency::Background => (&mut channel.flags.serving, &mut self.queues.serving),
        };
        if !std::mem::replace(flag, true) {
            queue.push_back(index);
        }
    }

    fn touch(&mut self, index: ChannelIndex) {
        if let Some(channel) = self.channels.get_mut(index)
            && !std::mem::replace(&mut channel.flags.touched, true)
        {
            self.queues.touched.push(index);
        }
    }
}

//! The node's one thread of control: commands and datagrams in, verified runs into the cache, answers
//! to readers and peers out.

mod frames;
mod head;
mod intake;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::keys::OriginId;
use crate::ppspp::engine::{
    Class, Event, FetchError, HashRequest, Networks, PeerReport, Role, SwarmCounters, SwarmKey,
    SwarmOptions,
};
use crate::tree::VerifiedRun;
use crate::unit::{BlockRange, MunroIndex};

use super::driver::Driver;
use super::follow::Follower;
use super::hasher::{Hashed, Hasher};
use super::keeper::{Keeper, Kept};
use super::prefetch::{Piece, Prefetching};
use super::reading::{Done, Purpose, ReadError, Reading, Waiting, Way, Work};
use super::swarm::Shared;
use super::unpack::{Job, JobId};
use frames::{Barren, Unpacking, Wanted};
use intake::Arrived;

/// Commands taken in one turn, so that datagrams are never starved.
const COMMANDS_PER_TURN: usize = 256;
/// How long after the first peer's arrival its silence on a newer head counts as "there is none".
const HEARD_AFTER: Duration = Duration::from_millis(150);
/// How long one prefetching fetch may take.
const PREFETCH_DEADLINE: Duration = Duration::from_secs(120);

/// What the handles ask of the loop.
pub(super) enum Command {
    Join {
        shared: Arc<Shared>,
        joined: SyncSender<bool>,
    },
    Leave {
        origin: OriginId,
    },
    Connect {
        origin: OriginId,
        address: SocketAddr,
    },
    Read {
        origin: OriginId,
        blocks: BlockRange,
        purpose: Purpose,
        way: Way,
        deadline: Instant,
        done: Done,
    },
    Prefetch {
        origin: OriginId,
        ranges: Vec<BlockRange>,
        purpose: Purpose,
        bulk: bool,
    },
    /// A frame was decoded, and the run kept or not.
    Decoded {
        origin: OriginId,
        run: VerifiedRun,
        kept: bool,
    },
    /// A job hands blocks back, to be fetched plain; `barren` munros have no frames.
    Unpacked {
        job: JobId,
        plain: Vec<BlockRange>,
        barren: Vec<MunroIndex>,
        ended: bool,
    },
    /// Whether anybody has the blocks that are not here.
    IsOffered {
        origin: OriginId,
        blocks: BlockRange,
        answer: oneshot::Sender<bool>,
    },
    /// The machine is in these networks from now on.
    Networks(Networks),
    /// `ranges`: also which blocks peers say they hold.
    Report {
        ranges: bool,
        answer: SyncSender<Vec<SwarmReport>>,
    },
    Stop,
}

/// What the engine knows of one swarm.
pub(super) struct SwarmReport {
    pub(super) origin: OriginId,
    pub(super) peers: Vec<PeerReport>,
    pub(super) counters: SwarmCounters,
    pub(super) waiting_reads: usize,
}

/// One log in the loop.
struct Joined {
    shared: Arc<Shared>,
    reading: Reading,
    follower: Follower,
    head_fetch: Option<Work>,
    prefetching: Prefetching,
    barren: Barren,
    heard_at: Option<Instant>,
    /// Position and signing time of the head in the state file.
    saved: Option<(MunroIndex, u64)>,
    forked: bool,
}

/// Threads that work for the loop, so that nothing holds up datagrams.
pub(super) struct Helpers {
    /// Writes answers to the kernel. Bounded by the number of reads that may wait.
    pub(super) answers: std::sync::mpsc::Sender<(Done, Result<Bytes, ReadError>)>,
    /// Hashes what arrives.
    pub(super) hasher: Hasher,
    /// Writes what was verified to the cache.
    pub(super) keeper: Keeper,
}

/// The loop's state.
pub(super) struct EventLoop {
    driver: Driver,
    role: Role,
    commands: mpsc::Receiver<Command>,
    helpers: Helpers,
    unpacking: Unpacking,
    swarms: BTreeMap<SwarmKey, Joined>,
    by_origin: BTreeMap<OriginId, SwarmKey>,
    full_logged: bool,
}

impl EventLoop {
    pub(super) fn new(
        driver: Driver,
        role: Role,
        commands: mpsc::Receiver<Command>,
        helpers: Helpers,
        jobs: mpsc::Sender<Job>,
    ) -> Self {
        let (swarms, by_origin) = (BTreeMap::new(), BTreeMap::new());
        let unpacking = Unpacking::new(jobs);
        Self { driver, role, commands, helpers, unpacking, swarms, by_origin, full_logged: false }
    }

    /// Runs until told to stop or until every handle is gone.
    pub(super) async fn run(mut self) {
        loop {
            let heard = self.swarms.values().filter_map(|joined| joined.heard_at).min();
            let until = [heard, self.unpacking.first_due()].into_iter().flatten().min();
            let Helpers { hasher, keeper, .. } = &mut self.helpers;
            let wake = async {
                tokio::select! {
                    command = self.commands.recv() => Woken::Command(command),
                    hashed = hasher.done() => Woken::Hashed(hashed),
                    kept = keeper.done() => Woken::Kept(kept),
                }
            };
            let woken = self.driver.wait(until, wake).await;
            let mut next = match woken {
                Some(Woken::Command(None)) => break,
                Some(Woken::Command(command)) => command,
                other => {
                    match other {
                        Some(Woken::Hashed(hashed)) => self.on_hashed(hashed),
                        Some(Woken::Kept(kept)) => self.on_kept(kept),
                        _ => {}
                    }
                    self.commands.try_recv().ok()
                }
            };
            // What has arrived is kept before anybody asks: else it would be fetched a second time.
            self.work_off();
            let mut stop = false;
            for left in (0..COMMANDS_PER_TURN).rev() {
                let Some(command) = next.take() else { break };
                stop |= matches!(command, Command::Stop);
                self.on_command(command);
                if left > 0 {
                    next = self.commands.try_recv().ok();
                }
            }
            self.settle();
            if stop {
                break;
            }
        }
        self.stop();
    }

    /// Works off all that the engine has to say.
    fn work_off(&mut self) {
        let now = Instant::now();
        while let Some(kept) = self.helpers.keeper.try_done() {
            self.on_kept(kept);
        }
        loop {
            let mut quiet = true;
            let arrived: Vec<HashRequest> =
                std::iter::from_fn(|| self.driver.engine.poll_hash()).collect();
            if let Some(hashed) = self.helpers.hasher.hash(arrived) {
                self.on_hashed(hashed);
            }
            while let Some(hashed) = self.helpers.hasher.try_done() {
                self.on_hashed(hashed);
            }
            let mut arrived = Arrived::default();
            while let Some(event) = self.driver.engine.poll_event() {
                quiet = false;
                match event {
                    Event::Verified { swarm, run, .. } => {
                        if !arrived.takes(swarm, &run) {
                            self.keep(now, std::mem::take(&mut arrived));
                        }
                        arrived.swarm = Some(swarm);
                        arrived.runs.push(run);
                    }
                    other => {
                        self.keep(now, std::mem::take(&mut arrived));
                        self.on_event(now, other);
                    }
                }
            }
            self.keep(now, arrived);
            while let Some(request) = self.driver.engine.poll_disk() {
                quiet = false;
                let run = self.swarms.get(&request.swarm).and_then(|joined| {
                    joined.shared.log.read_run(request.bin).unwrap_or_else(|error| {
                        tracing::warn!(%error, bin = %request.bin, "cannot read for a peer");
                        None
                    })
                });
                self.driver.engine.handle_disk(now, request.id, run.map(Into::into));
                // What is read goes out at once: the peer works on it while the next is read.
                self.driver.transmit();
            }
            if quiet {
                break;
            }
        }
    }

    /// Works off all that the engine has to say, then sends what came of it.
    fn settle(&mut self) {
        self.work_off();
        let now = Instant::now();
        self.check_dues(now);
        for (key, joined) in &mut self.swarms {
            for blocks in joined.shared.log.take_evicted() {
                self.driver.engine.release(now, *key, blocks);
            }
            if joined.heard_at.is_some_and(|at| at <= now) {
                joined.heard_at = None;
                joined.shared.update_news(|news| news.heard = true);
            }
        }
        let keys: Vec<SwarmKey> = self.swarms.keys().copied().collect();
        for key in keys {
            self.feed_prefetch(now, key);
        }
        self.driver.transmit();
    }

    fn stop(&mut self) {
        for joined in self.swarms.values_mut() {
            for done in joined.reading.drain() {
                let _ = self.helpers.answers.send((done, Err(ReadError::Stopping)));
            }
        }
        let now = Instant::now();
        for key in std::mem::take(&mut self.swarms).into_keys() {
            self.driver.engine.remove_swarm(now, key);
        }
        self.driver.transmit();
    }

    fn on_command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Join { shared, joined } => {
                // The caller may have given up waiting; it has joined all the same.
                let _ = joined.send(self.join(shared));
            }
            Command::Leave { origin } => self.leave(now, origin),
            Command::Connect { origin, address } => {
                if let Some(key) = self.by_origin.get(&origin) {
                    self.driver.engine.connect(now, *key, address);
                }
            }
            Command::Read { origin, blocks, purpose, way, deadline, done } => {
                match self.by_origin.get(&origin) {
                    Some(key) => {
                        let waiting = Waiting::new(blocks, deadline, purpose, way, done);
                        self.start_read(now, *key, waiting);
                    }
                    None => self.answer(done, Err(ReadError::Stopping)),
                }
            }
            Command::Prefetch { origin, ranges, purpose, bulk } => {
                if let Some(joined) =
                    self.by_origin.get(&origin).and_then(|key| self.swarms.get_mut(key))
                {
                    joined.prefetching.push(ranges, purpose, bulk);
                }
            }
            Command::Decoded { origin, run, kept } => {
                if let Some(key) = self.by_origin.get(&origin) {
                    self.on_decoded(now, *key, &run, kept);
                }
            }
            Command::Unpacked { job, plain, barren, ended } => {
                self.on_unpacked(now, job, plain, barren, ended);
            }
            Command::IsOffered { origin, blocks, answer } => {
                let key = self.by_origin.get(&origin);
                // Nobody listens any more if the job has ended meanwhile.
                let _ = answer.send(key.is_some_and(|key| self.is_offered(*key, blocks)));
            }
            Command::Networks(networks) => self.driver.engine.set_networks(networks),
            Command::Report { ranges, answer } => {
                let _ = answer.send(self.report(now, ranges));
            }
            Command::Stop => {}
        }
    }

    /// Takes part in one more swarm; `false` if the engine takes no more.
    fn join(&mut self, shared: Arc<Shared>) -> bool {
        let trusted = shared.load_head();
        shared.update_news(|news| news.trusted = trusted.clone().map(Arc::new));
        let key = self.driver.engine.add_swarm(SwarmOptions {
            id: shared.origin.swarm_id(),
            newest: trusted.as_ref().map(|trusted| trusted.munro),
            held: shared.log.held(),
            serve: true,
            role: self.role,
        });
        let Some(key) = key else { return false };
        let fork = shared.load_fork();
        fork.inspect(|munro| shared.tell_fork(*munro));
        self.by_origin.insert(shared.origin, key);
        let joined = Joined {
            shared,
            reading: Reading::default(),
            follower: Follower::new(trusted),
            head_fetch: None,
            prefetching: Prefetching::default(),
            barren: Barren::default(),
            heard_at: None,
            saved: None,
            forked: fork.is_some(),
        };
        self.swarms.insert(key, joined);
        true
    }

    /// Says goodbye to a swarm's peers; reads that still wait fail.
    fn leave(&mut self, now: Instant, origin: OriginId) {
        let Some(key) = self.by_origin.remove(&origin) else { return };
        if let Some(mut joined) = self.swarms.remove(&key) {
            for done in joined.reading.drain() {
                self.answer(done, Err(ReadError::Stopping));
            }
        }
        self.unpacking.forget_swarm(key);
        self.driver.engine.remove_swarm(now, key);
    }

    fn report(&self, now: Instant, ranges: bool) -> Vec<SwarmReport> {
        let report = |(key, joined): (&SwarmKey, &Joined)| SwarmReport {
            origin: joined.shared.origin,
            peers: self.driver.engine.peers(now, *key, ranges),
            counters: self.driver.engine.counters(*key),
            waiting_reads: joined.reading.waiting(),
        };
        self.swarms.iter().map(report).collect()
    }

    /// Takes what the cache has, asks peers for the rest.
    fn start_read(&mut self, now: Instant, key: SwarmKey, mut waiting: Waiting) {
        // Frames that nobody has are not waited for: there are other ways.
        let offered = waiting.purpose != Purpose::Frames || self.is_offered(key, waiting.blocks);
        let Some(joined) = self.swarms.get_mut(&key) else {
            return self.answer(waiting.done, Err(ReadError::Stopping));
        };
        for blocks in waiting.unfilled() {
            match joined.shared.log.read_blocks(blocks, waiting.part_mut(blocks)) {
                Ok(missing) => waiting.mark_filled_but(blocks, &missing),
                Err(error) => {
                    // A disk that fails does not keep the network from answering.
                    tracing::warn!(%error, "the cache cannot be read");
                }
            }
        }
        let missing = waiting.unfilled();
        if missing.is_empty() {
            let (done, bytes) = waiting.finish();
            joined.shared.counters.local.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return self.answer(done, Ok(bytes));
        }
        if !waiting.may_fetch() {
            let error = ReadError::Deadline { blocks: waiting.blocks, tried: Vec::new() };
            return self.answer(waiting.done, Err(error));
        }
        let Waiting { deadline, purpose, way, .. } = waiting;
        if !offered {
            let error = ReadError::Deadline { blocks: waiting.blocks, tried: Vec::new() };
            return self.answer(waiting.done, Err(error));
        }
        // What frames did not bring is not sought there once more.
        waiting.way = match way {
            Way::Background => Way::Plain(Class::Background),
            Way::Quick | Way::Cheap => Way::Plain(Class::Waited),
            plain @ Way::Plain(_) => plain,
        };
        let read = Some(joined.reading.wait(waiting));
        let wanted = Wanted { way, deadline, purpose, read, bulk: None };
        self.fetch(now, key, missing, &wanted);
    }

    fn answer(&self, done: Done, result: Result<Bytes, ReadError>) {
        // The answering thread ends after this loop.
        let _ = self.helpers.answers.send((done, result));
    }

    fn on_event(&mut self, now: Instant, event: Event) {
        match event {
            // Kept together with its neighbours before this.
            Event::Verified { .. } => {}
            Event::Fetched { fetch } => self.on_fetched(now, Work::Fetch(fetch)),
            Event::Failed { fetch, reason, tried } => {
                self.on_failed(now, Work::Fetch(fetch), reason, tried);
            }
            Event::Newest { swarm, munro, .. } => self.on_newest(now, swarm, munro),
            Event::Fork { swarm, known, claimed, from } => {
                self.on_fork(swarm, &known, &claimed, from);
            }
            Event::Found { address, .. } => tracing::debug!(%address, "a peer told of another"),
            Event::PeerUp { swarm, address } => {
                tracing::info!(%address, "peer connected");
                if let Some(joined) = self.swarms.get_mut(&swarm) {
                    joined.heard_at.get_or_insert(now + HEARD_AFTER);
                }
            }
            Event::PeerDown { address, reason, .. } => {
                tracing::info!(%address, %reason, "peer gone");
            }
        }
    }

    fn swarm_of(&mut self, fetch: Work) -> Option<(SwarmKey, &mut Joined)> {
        let owner = self.swarms.iter_mut().find(|(_, joined)| joined.owns(fetch));
        owner.map(|(key, joined)| (*key, joined))
    }

    fn on_fetched(&mut self, now: Instant, fetch: Work) {
        if let Some((key, _)) = self.swarm_of(fetch) {
            self.on_done(now, key, fetch);
        }
    }

    /// Work has ended well, or as well as it can.
    fn on_done(&mut self, now: Instant, key: SwarmKey, fetch: Work) {
        let Some(joined) = self.swarms.get_mut(&key) else { return };
        joined.forget_own(fetch);
        let Some(waiting) = joined.reading.on_fetched(fetch) else { return };
        // Where the cache lost a block meanwhile, the read asks again.
        self.start_read(now, key, waiting);
    }

    fn on_failed(&mut self, now: Instant, fetch: Work, reason: FetchError, tried: Vec<SocketAddr>) {
        let Some((_, joined)) = self.swarm_of(fetch) else { return };
        if joined.head_fetch == Some(fetch) {
            joined.follower.give_up();
            tracing::info!(%reason, "the newest head could not be fetched; waiting for the next offer");
        }
        joined.forget_own(fetch);
        let (waiting, others) = joined.reading.on_failed(fetch);
        let Some(waiting) = waiting else { return };
        joined.shared.counters.failed_reads.fetch_add(1, Ordering::Relaxed);
        for other in others {
            match other {
                Work::Fetch(fetch) => self.driver.engine.cancel(now, fetch),
                Work::Unpack(job) => drop(self.unpacking.forget(job)),
            }
        }
        let error = ReadError::Deadline { blocks: waiting.blocks, tried };
        self.answer(waiting.done, Err(error));
    }

    fn feed_prefetch(&mut self, now: Instant, key: SwarmKey) {
        let deadline = now + PREFETCH_DEADLINE;
        while let Some(joined) = self.swarms.get_mut(&key)
            && let Some(Piece { ranges, purpose, bulk }) = joined.prefetching.next()
        {
            let (log, keeper) = (&joined.shared.log, &self.helpers.keeper);
            let missing: Vec<BlockRange> = ranges
                .into_iter()
                .flat_map(|blocks| log.missing(blocks))
                .flat_map(|blocks| keeper.not_waiting(key, blocks))
                .collect();
            if !missing.is_empty() {
                let (way, bulk) = (Way::Background, Some(bulk));
                let wanted = Wanted { way, deadline, purpose, read: None, bulk };
                self.fetch(now, key, missing, &wanted);
            }
        }
    }
}

/// What ends a wait for the network.
enum Woken {
    Command(Option<Command>),
    Hashed(Hashed),
    Kept(Kept),
}

impl Joined {
    fn owns(&self, fetch: Work) -> bool {
        self.reading.is_fetching(fetch)
    }

    /// The fetch has ended: takes it off the loop's own lists.
    fn forget_own(&mut self, fetch: Work) {
        self.prefetching.fetch_ended(fetch);
        self.head_fetch.take_if(|head| *head == fetch);
    }
}

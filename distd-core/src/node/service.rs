//! A node: starts the threads, joins logs, reports.

use std::collections::{BTreeMap, btree_map};
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use crate::keys::OriginId;
use crate::manifest::PeerAddress;
use crate::ppspp::engine::{Audience, Engine, EngineConfig, Networks, Rates, Role};
use crate::store::{Cache, CacheOptions, OpenError};

use super::driver::{Drive, Driver};
use super::event_loop::{Command, EventLoop, Helpers, SwarmReport};
use super::hasher::Hasher;
use super::keeper::Keeper;
use super::lan::{DATAGRAM_BYTES, GroupSocket, Neighbours};
use super::networks::networks;
use super::socket::Socket;
use super::status::{NodeStatus, SwarmPeers, swarm_peers, swarm_status};
use super::swarm::{Shared, Swarm};
use super::unpack;

/// Commands that may wait for the loop. Reads are bounded apart; this bounds bursts.
const COMMANDS_MAX: usize = 4096;
/// How often what was fetched is made durable.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// The same while a release pours in: a sync holds up who writes beside it.
const FLUSH_INTERVAL_BUSY: Duration = Duration::from_secs(5);
/// Bytes in one [`FLUSH_INTERVAL`] that count as pouring in.
const BUSY_BYTES: u64 = 64 << 20;
/// How often the names of peers are looked up again: addresses change.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(300);
/// The same while a name has not been resolved at all.
const RESOLVE_RETRY: Duration = Duration::from_secs(5);
/// How often it is looked which networks the machine is in.
const NETWORKS_INTERVAL: Duration = Duration::from_secs(30);
/// How long the loop may take for a command's answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Pause before a full queue of commands is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// Disk space that a cache leaves to others unless told otherwise, in bytes.
const RESERVE_BYTES: u64 = 512 << 20;

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Directory of the cache; made if it is not there.
    pub cache: PathBuf,
    /// Most bytes that the cache may allocate; `None`: what the disk's reserve leaves.
    pub quota_bytes: Option<u64>,
    /// Bytes that stay free on the cache's disk.
    pub reserve_bytes: u64,
    /// UDP address to bind.
    pub listen: SocketAddr,
    /// Whether it is a relay: it fetches for the nodes below it.
    pub relay: bool,
    /// Whether it looks for peers on the local network, and lets them find it.
    pub lan: bool,
    /// Whom it serves.
    pub serve: Audience,
    /// Whom it asks for other peers, and tells of them.
    pub pex: Audience,
    /// How much it sends and asks for in a second at the most.
    pub rates: Rates,
}

impl NodeOptions {
    /// A node on any free port, with the default budgets; it serves those that are near.
    pub fn new(cache: PathBuf) -> Self {
        let listen = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        Self {
            cache,
            quota_bytes: None,
            reserve_bytes: RESERVE_BYTES,
            listen,
            relay: false,
            lan: false,
            serve: Audience::Local,
            pex: Audience::Local,
            rates: Rates::default(),
        }
    }
}

/// Why a node cannot start or join.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The cache.
    #[error(transparent)]
    Cache(#[from] OpenError),
    /// The socket.
    #[error("cannot listen on UDP {address}: {source}; choose another address or a free port")]
    Bind {
        /// The address wanted.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Threads, the runtime, the kernel's random source.
    #[error("cannot start the node's {what}: {source}")]
    Start {
        /// What could not be started.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The engine's bound.
    #[error("cannot join origin {origin}: the node is in as many swarms as it can be; unmount one")]
    TooManyOrigins {
        /// Whose swarm was to be joined.
        origin: OriginId,
    },
    /// It has stopped.
    #[error("the node is stopping")]
    Stopping,
}

struct Inner {
    cache: Arc<Cache>,
    listen: SocketAddr,
    commands: mpsc::Sender<Command>,
    runtime: tokio::runtime::Handle,
    waiting: Arc<AtomicUsize>,
    swarms: Mutex<BTreeMap<OriginId, Joined>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Whose swarms it is in, for who must not wait until one is joined.
    origins: Mutex<Vec<OriginId>>,
    /// Told when a swarm is joined.
    joining: Arc<Notify>,
    started: Instant,
    serve: Audience,
    /// The networks that the machine was in when it was looked last.
    networks: Mutex<Networks>,
}

/// A swarm that the node takes part in, and the tasks that keep it connected to its addresses.
struct Joined {
    swarm: Swarm,
    connecting: Vec<(PeerAddress, AbortHandle)>,
}

impl Inner {
    fn origins(&self) -> MutexGuard<'_, Vec<OriginId>> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn networks(&self) -> MutexGuard<'_, Networks> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running node. Cheap to clone; lives until [`Node::stop`].
#[derive(Clone)]
pub struct Node(Arc<Inner>);

impl Node {
    /// Opens the cache, binds the socket, starts the threads.
    pub fn start(options: &NodeOptions) -> Result<Self, NodeError> {
        let NodeOptions { quota_bytes, reserve_bytes, .. } = *options;
        let bounds = CacheOptions { quota_bytes, reserve_bytes };
        let cache = Arc::new(Cache::open(&options.cache, bounds)?);
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (answers, answering) = std::sync::mpsc::channel::<(super::reading::Done, _)>();
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let start = |what| move |source| NodeError::Start { what, source };

        let answer = move || answering.into_iter().for_each(|(done, result)| done(result));
        let answerer = spawn("distd-answer", answer).map_err(start("answering thread"))?;
        let (listen, rates) = (options.listen, options.rates);
        let (audience, exchange) = (options.serve, options.pex);
        let conduct = Conduct { audience, exchange, rates };
        let role = if options.relay { Role::Relay } else { Role::Node };
        let (jobs, unpacking) = mpsc::channel(unpack::JOBS_MAX);
        let weak = commands.downgrade();
        let unpack = move || unpack::run(unpacking, weak);
        let unpacker = spawn("distd-unpack", unpack).map_err(start("unpacking thread"))?;
        let (hasher, hashing) = Hasher::start().map_err(start("hashing thread"))?;
        let (keeper, keeping) = Keeper::start().map_err(start("writing thread"))?;
        let helpers = Helpers { answers, hasher, keeper };
        let network = move || match open_loop(listen, conduct, role, receiver, helpers, jobs) {
            Ok((runtime, event_loop, address)) => {
                // The starter waits for this; if it is gone, so will the commands be.
                let _ = ready.send(Ok((runtime.handle().clone(), address)));
                runtime.block_on(event_loop.run());
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        let network = spawn("distd-net", network).map_err(start("network thread"))?;
        let (runtime, listen) = started.recv().map_err(|_| NodeError::Stopping)??;

        let inner = Inner {
            cache,
            listen,
            commands,
            runtime,
            waiting: Arc::default(),
            swarms: Mutex::default(),
            threads: Mutex::new(
                [network, answerer, unpacker, keeping].into_iter().chain(hashing).collect(),
            ),
            origins: Mutex::default(),
            joining: Arc::default(),
            started: Instant::now(),
            serve: options.serve,
            networks: Mutex::new(networks()),
        };
        let node = Self(Arc::new(inner));
        node.0.runtime.spawn(watch_networks(Arc::downgrade(&node.0)));
        if options.lan {
            node.0.runtime.spawn(find_neighbours(Arc::downgrade(&node.0)));
        }
        node.spawn_flusher().map_err(start("flushing thread"))?;
        Ok(node)
    }

    /// Makes the cache durable now and then, until the node is gone.
    fn spawn_flusher(&self) -> io::Result<()> {
        let inner = Arc::downgrade(&self.0);
        let flush = move || {
            let (mut kept_before, mut flushed_at) = (0, Instant::now());
            loop {
                thread::sleep(FLUSH_INTERVAL);
                let Some(inner) = inner.upgrade() else { return };
                if inner.commands.is_closed() {
                    return;
                }
                let kept = inner.cache.kept_bytes();
                let busy = kept - std::mem::replace(&mut kept_before, kept) > BUSY_BYTES;
                if busy && flushed_at.elapsed() < FLUSH_INTERVAL_BUSY {
                    continue;
                }
                flushed_at = Instant::now();
                if let Err(error) = inner.cache.flush() {
                    tracing::warn!(%error, "what was fetched cannot be made durable yet");
                }
            }
        };
        spawn("distd-flush", flush).map(drop)
    }

    /// Takes part in an origin's swarm; of one joined before, the same handle with these addresses
    /// added.
    pub fn join(&self, origin: OriginId, addresses: &[PeerAddress]) -> Result<Swarm, NodeError> {
        let mut swarms = self.0.swarms.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = match swarms.entry(origin) {
            btree_map::Entry::Occupied(entry) => entry.into_mut(),
            btree_map::Entry::Vacant(entry) => {
                let swarm = self.join_new(origin)?;
                entry.insert(Joined { swarm, connecting: Vec::new() })
            }
        };
        for address in addresses {
            if joined.connecting.iter().any(|(known, _)| known == address) {
                continue;
            }
            let keep = keep_connected(self.0.commands.clone(), origin, address.clone());
            let task = self.0.runtime.spawn(keep).abort_handle();
            joined.connecting.push((address.clone(), task));
        }
        Ok(joined.swarm.clone())
    }

    fn join_new(&self, origin: OriginId) -> Result<Swarm, NodeError> {
        let log = self.0.cache.log(origin)?;
        let shared = Arc::new(Shared::new(origin, log, Arc::clone(&self.0.waiting)));
        let (joined, answer) = std::sync::mpsc::sync_channel(1);
        self.command(Command::Join { shared: Arc::clone(&shared), joined })?;
        if !answer.recv_timeout(ANSWER_DEADLINE).map_err(|_| NodeError::Stopping)? {
            return Err(NodeError::TooManyOrigins { origin });
        }
        self.0.origins().push(origin);
        self.0.joining.notify_one();
        Ok(Swarm { shared, commands: self.0.commands.clone() })
    }

    /// The origins whose swarms it takes part in.
    pub fn joined(&self) -> Vec<OriginId> {
        let swarms = self.0.swarms.lock().unwrap_or_else(PoisonError::into_inner);
        swarms.keys().copied().collect()
    }

    /// Leaves an origin's swarm: what its handles ask for from then on fails, until it is joined again.
    pub fn leave(&self, origin: OriginId) {
        let mut swarms = self.0.swarms.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(joined) = swarms.remove(&origin) else { return };
        self.0.origins().retain(|other| *other != origin);
        for (_, task) in joined.connecting {
            task.abort();
        }
        // A loop that has stopped has left already.
        let _ = self.command(Command::Leave { origin });
    }

    /// Hands the loop a command, within [`ANSWER_DEADLINE`].
    fn command(&self, command: Command) -> Result<(), NodeError> {
        let deadline = Instant::now() + ANSWER_DEADLINE;
        let mut command = command;
        loop {
            match self.0.commands.try_send(command) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Full(back)) if Instant::now() < deadline => {
                    command = back;
                    thread::sleep(FULL_PAUSE);
                }
                Err(_) => return Err(NodeError::Stopping),
            }
        }
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.0.cache
    }

    /// The UDP address that peers reach.
    pub fn listen_address(&self) -> SocketAddr {
        self.0.listen
    }

    /// How the node stands. Blocks the calling thread for a moment.
    pub fn status(&self) -> Result<NodeStatus, NodeError> {
        let reports = self.report(false)?;
        let swarms = self.0.swarms.lock().unwrap_or_else(PoisonError::into_inner);
        let swarms = reports
            .into_iter()
            .filter_map(|report| Some(swarm_status(&swarms.get(&report.origin)?.swarm, report)))
            .collect();
        Ok(NodeStatus {
            listen: self.0.listen.to_string(),
            serve: self.0.serve.as_str().to_owned(),
            uptime_s: self.0.started.elapsed().as_secs(),
            cache: self.0.cache.usage(),
            swarms,
        })
    }

    /// The peers of each swarm. Blocks the calling thread for a moment.
    pub fn peers(&self) -> Result<Vec<SwarmPeers>, NodeError> {
        let reports = self.report(true)?;
        let swarms = self.0.swarms.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(reports
            .into_iter()
            .filter_map(|report| {
                let swarm = swarms.get(&report.origin)?.swarm.clone();
                Some(swarm_peers(swarm, report))
            })
            .collect())
    }

    fn report(&self, ranges: bool) -> Result<Vec<SwarmReport>, NodeError> {
        let (answer, reports) = std::sync::mpsc::sync_channel(1);
        self.command(Command::Report { ranges, answer })?;
        reports.recv_timeout(ANSWER_DEADLINE).map_err(|_| NodeError::Stopping)
    }

    /// Ends the node: readers get an error, peers a goodbye, the cache its last flush.
    pub fn stop(&self) {
        // A full queue drains: the loop never waits for anything but its sockets.
        let _ = self.0.commands.blocking_send(Command::Stop);
        let threads =
            std::mem::take(&mut *self.0.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the node had panicked");
            }
        }
        if let Err(error) = self.0.cache.flush() {
            tracing::warn!(%error, "the last fetches are not durable; they will be fetched again");
        }
    }
}

pub(super) fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(body)
}

/// Makes the runtime and the loop on the thread that will run them.
fn open_loop(
    listen: SocketAddr,
    conduct: Conduct,
    role: Role,
    commands: mpsc::Receiver<Command>,
    helpers: Helpers,
    jobs: mpsc::Sender<unpack::Job>,
) -> Result<(tokio::runtime::Runtime, EventLoop, SocketAddr), NodeError> {
    let (runtime, driver, address) = open_driver(listen, conduct)?;
    Ok((runtime, EventLoop::new(driver, role, commands, helpers, jobs), address))
}

/// How a process deals with its peers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conduct {
    /// Whom it serves.
    pub(super) audience: Audience,
    /// Whom it asks for other peers, and tells of them.
    pub(super) exchange: Audience,
    /// Limits.
    pub(super) rates: Rates,
}

/// The engine of logs on a socket.
pub(super) fn open_driver(
    listen: SocketAddr,
    conduct: Conduct,
) -> Result<(tokio::runtime::Runtime, Driver, SocketAddr), NodeError> {
    drive(listen, |rng_seed, now| {
        let networks = networks();
        let Conduct { audience, exchange, rates } = conduct;
        let config = EngineConfig { networks, audience, exchange, ..EngineConfig::new(rng_seed) };
        let mut engine = Engine::new(config, now);
        engine.set_rates(now, rates);
        engine
    })
}

/// A runtime for one thread, and an engine on a socket in it.
pub(super) fn drive<E: Drive>(
    listen: SocketAddr,
    engine: impl FnOnce([u8; 32], Instant) -> E,
) -> Result<(tokio::runtime::Runtime, Driver<E>, SocketAddr), NodeError> {
    let start = |what| move |source| NodeError::Start { what, source };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(start("runtime"))?;
    let mut rng_seed = [0; 32];
    getrandom::fill(&mut rng_seed)
        .map_err(|error| start("random source")(io::Error::other(error.to_string())))?;
    let guard = runtime.enter();
    let bind = |source| NodeError::Bind { address: listen, source };
    let socket = Socket::bind(listen).map_err(bind)?;
    let driver = Driver::new(engine(rng_seed, Instant::now()), socket);
    let address = driver.local_address().map_err(bind)?;
    drop(guard);
    Ok((runtime, driver, address))
}

/// Tells the loop which networks the machine is in, whenever that changes.
async fn watch_networks(node: Weak<Inner>) {
    loop {
        tokio::time::sleep(NETWORKS_INTERVAL).await;
        let Some(node) = node.upgrade().filter(|node| !node.commands.is_closed()) else { return };
        let now = networks();
        let before = std::mem::replace(&mut *node.networks(), now.clone());
        if now != before && node.commands.send(Command::Networks(now)).await.is_err() {
            return;
        }
    }
}

/// Says to the local network which swarms are here, and connects to whoever says the same.
async fn find_neighbours(node: Weak<Inner>) {
    let (mut nonce, mut buffer) = ([0; 8], [0; DATAGRAM_BYTES]);
    let Some((port, joining)) = node.upgrade().map(|n| (n.listen.port(), Arc::clone(&n.joining)))
    else {
        return;
    };
    let socket = getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()));
    let mut socket = match socket.and_then(|()| GroupSocket::open()) {
        Ok(socket) => socket,
        Err(error) => {
            return tracing::info!(%error, "peers on the local network are not looked for");
        }
    };
    let mut neighbours = Neighbours::new(Instant::now(), nonce, port);
    loop {
        let heard = tokio::select! {
            heard = socket.receive(&mut buffer) => heard.ok(),
            () = tokio::time::sleep_until(neighbours.say_at().into()) => None,
            () = joining.notified() => {
                neighbours.hurry(Instant::now());
                None
            }
        };
        let Some(node) = node.upgrade().filter(|node| !node.commands.is_closed()) else { return };
        let now = Instant::now();
        let origins = node.origins().clone();
        if let Some((from, datagram)) = heard {
            neighbours.networks.clone_from(&node.networks());
            for (origin, address) in neighbours.hear(now, from, datagram, &origins) {
                tracing::debug!(%address, "found on the local network");
                // Best effort: it is heard again.
                let _ = node.commands.try_send(Command::Connect { origin, address });
            }
        }
        if now >= neighbours.say_at() {
            // Who serves nobody is not to be found; it listens all the same.
            let said = neighbours.say(now, &origins).filter(|_| node.serve != Audience::None);
            drop(node);
            socket.send(said.as_deref()).await;
        }
    }
}

/// Looks a peer's name up and tells the loop its addresses, again and again.
async fn keep_connected(commands: mpsc::Sender<Command>, origin: OriginId, peer: PeerAddress) {
    let mut warned = false;
    while !commands.is_closed() {
        let pause = match tokio::net::lookup_host((peer.host.as_str(), peer.port)).await {
            Ok(addresses) => {
                for address in addresses {
                    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                    if commands.send(Command::Connect { origin, address }).await.is_err() {
                        return;
                    }
                }
                warned = false;
                RESOLVE_INTERVAL
            }
            Err(error) => {
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(%peer, %error, "cannot look up a peer; trying on");
                }
                RESOLVE_RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

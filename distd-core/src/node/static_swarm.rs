//! One file as a static swarm: seeds it, or makes it of what arrives and serves that to others meanwhile.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::limits::{CHUNK_BYTES, CONTENT_BYTES_MAX};
use crate::ppspp::engine::static_swarm::{
    StaticCounters, StaticEvent, StaticOptions, StaticPeer, StaticSwarm,
};
use crate::store::{ContentFile, ContentFileError, DiskError, PartFile};
use crate::tree::merkle::{BranchIndex, ContentId, ContentShape, MerkleTree};

use super::driver::Driver;
use super::service::{NodeError, drive};

/// How often whoever waits is told how it stands.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// A member of a static swarm, on its socket.
pub struct StaticNode {
    runtime: tokio::runtime::Runtime,
    driver: Driver<StaticSwarm>,
    address: SocketAddr,
    id: ContentId,
}

/// What is fetched, and from where.
#[derive(Clone, Debug)]
pub struct GetOptions {
    /// The file to make; there must be none.
    pub target: PathBuf,
    /// Peers to dial.
    pub sources: Vec<SocketAddr>,
    /// How long nothing at all may arrive.
    pub patience: Duration,
}

/// How a fetch stands.
#[derive(Clone, Copy, Debug)]
pub struct Sought {
    /// Bytes that are here.
    pub here_bytes: u64,
    /// The content's length, once it is known.
    pub total_bytes: Option<u64>,
    /// Peers with an open channel.
    pub peers: usize,
}

/// What a fetch came to.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The content's length.
    pub bytes: u64,
    /// What an earlier attempt had left of it.
    pub resumed_bytes: u64,
    /// Who there was.
    pub peers: Vec<StaticPeer>,
    /// What was moved.
    pub counters: StaticCounters,
}

/// Why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The file.
    #[error(transparent)]
    File(#[from] ContentFileError),
    /// The network.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Nothing arrived for too long.
    #[error("nothing arrived for {} s", patience.as_secs())]
    Stalled {
        /// How long.
        patience: Duration,
        /// What is here, in bytes.
        here_bytes: u64,
        /// Who there was, and how they stood.
        peers: Vec<StaticPeer>,
    },
    /// A signal.
    #[error("interrupted")]
    Interrupted,
}

impl From<DiskError> for GetError {
    fn from(error: DiskError) -> Self {
        Self::File(error.into())
    }
}

/// What ends a wait for the network.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Must run inside a tokio runtime.
    fn new() -> Result<Self, NodeError> {
        let wait =
            |kind| signal(kind).map_err(|source| NodeError::Start { what: "signals", source });
        let (terminate, interrupt) =
            (wait(SignalKind::terminate())?, wait(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl StaticNode {
    /// Joins the swarm of `id`. `bytes`: the content's length, if it is known; `tree`: all of its hashes, of
    /// a seeder. Content of no bytes has no swarm.
    pub fn open(
        listen: SocketAddr,
        id: ContentId,
        bytes: Option<u64>,
        tree: Option<MerkleTree>,
    ) -> Result<Self, NodeError> {
        if bytes.is_some_and(|bytes| ContentShape::of_bytes(bytes).is_none()) {
            let text = format!("content has 1 to {CONTENT_BYTES_MAX} bytes");
            return Err(NodeError::Start { what: "swarm", source: io::Error::other(text) });
        }
        let (runtime, driver, address) = drive(listen, |rng_seed, now| {
            let swarm = StaticSwarm::new(StaticOptions { rng_seed, id, bytes, tree }, now);
            // The length was checked, and the tree is that of the file that the id was made of.
            swarm.expect("a swarm of this content")
        })?;
        Ok(Self { runtime, driver, address, id })
    }

    /// The UDP address bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves a whole file until SIGTERM or SIGINT, then says goodbye to the peers.
    pub fn seed(self, file: &ContentFile) -> Result<StaticCounters, NodeError> {
        let Self { runtime, mut driver, .. } = self;
        runtime.block_on(async move {
            let mut stop = Stop::new()?;
            loop {
                settle(&mut driver, |branch| file.read(branch).ok(), |event, _| {
                    if let StaticEvent::Spoiled { branch } = event {
                        tracing::error!(
                            "the file has changed at byte {}: what lies there is served no longer",
                            branch.byte_offset()
                        );
                    }
                    Ok(())
                })
                .unwrap_or_else(|never: std::convert::Infallible| match never {});
                if driver.wait(None, stop.told()).await.is_some() {
                    break;
                }
            }
            leave(&mut driver);
            Ok(driver.engine.counters())
        })
    }

    /// Fetches the content into a file, and serves what is here of it meanwhile. `report` is told how it
    /// stands, four times a second.
    pub fn get(
        self,
        options: &GetOptions,
        mut report: impl FnMut(Sought),
    ) -> Result<Fetched, GetError> {
        let Self { runtime, mut driver, id, .. } = self;
        runtime.block_on(async move {
            let mut stop = Stop::new()?;
            let mut making = Making { options, id, part: None, resumed_bytes: 0 };
            let now = Instant::now();
            for source in &options.sources {
                driver.engine.connect(now, *source);
            }
            let (mut moved, mut moved_at) = (driver.engine.progress(), now);
            let mut report_at = now;
            loop {
                making.settle(&mut driver)?;
                let now = Instant::now();
                let stands = driver.engine.progress();
                if stands != moved {
                    (moved, moved_at) = (stands, now);
                }
                if now >= report_at {
                    report_at = now + REPORT_EVERY;
                    report(sought(&driver.engine));
                }
                if driver.engine.is_complete() {
                    break;
                }
                if now >= moved_at + options.patience {
                    let (patience, peers) = (options.patience, driver.engine.peers());
                    let here_bytes = sought(&driver.engine).here_bytes;
                    leave(&mut driver);
                    return Err(GetError::Stalled { patience, here_bytes, peers });
                }
                let until = report_at.min(moved_at + options.patience);
                if driver.wait(Some(until), stop.told()).await.is_some() {
                    leave(&mut driver);
                    return Err(GetError::Interrupted);
                }
            }
            report(sought(&driver.engine));
            let peers = driver.engine.peers();
            leave(&mut driver);
            let (counters, resumed_bytes) = (driver.engine.counters(), making.resumed_bytes);
            if let Some(part) = making.part {
                part.finish()?;
            }
            let bytes = driver.engine.bytes().unwrap_or(0);
            Ok(Fetched { bytes, resumed_bytes, peers, counters })
        })
    }
}

fn sought(engine: &StaticSwarm) -> Sought {
    let (chunks, _) = engine.progress();
    let total_bytes = engine.bytes();
    let here_bytes = (chunks * CHUNK_BYTES).min(total_bytes.unwrap_or(u64::MAX));
    let peers = engine.peers().iter().filter(|peer| peer.is_open).count();
    Sought { here_bytes, total_bytes, peers }
}

/// A file that is being made.
struct Making<'a> {
    options: &'a GetOptions,
    id: ContentId,
    part: Option<PartFile>,
    resumed_bytes: u64,
}

impl Making<'_> {
    fn settle(&mut self, driver: &mut Driver<StaticSwarm>) -> Result<(), GetError> {
        // The part is written by events and read for peers: by turns.
        let Self { options, id, part, resumed_bytes } = self;
        let part = std::cell::RefCell::new(part);
        settle(
            driver,
            |branch| part.borrow().as_ref().and_then(|part| part.read(branch).ok()),
            |event, engine| {
                match event {
                    StaticEvent::Settled { bytes } => {
                        let (opened, kept) = PartFile::open(&options.target, id, bytes)?;
                        engine.admit(&kept);
                        *resumed_bytes = take_up(engine, &opened, bytes);
                        **part.borrow_mut() = Some(opened);
                        engine.start(Instant::now());
                    }
                    StaticEvent::Branch { branch, bytes } => {
                        let proved = engine.take_proved();
                        if let Some(part) = part.borrow_mut().as_mut() {
                            part.write(branch, &bytes, &proved)?;
                        }
                        engine.hold(Instant::now(), branch);
                    }
                    StaticEvent::Spoiled { branch } => {
                        let offset = branch.byte_offset();
                        tracing::warn!(
                            offset,
                            "the unfinished file was changed; fetching that again"
                        );
                    }
                    StaticEvent::PeerUp { address } => tracing::debug!(%address, "peer connected"),
                    StaticEvent::PeerDown { address, reason } => {
                        tracing::debug!(%address, %reason, "peer gone");
                    }
                }
                Ok(())
            },
        )
    }
}

/// Holds what an earlier attempt left and the kept hashes prove; how many bytes that is.
fn take_up(engine: &mut StaticSwarm, part: &PartFile, total: u64) -> u64 {
    let branches = ContentShape::of_bytes(total).map_or(0, ContentShape::branches);
    let mut bytes_here = 0;
    for branch in
        (0..branches).map(BranchIndex).filter(|branch| engine.knows(*branch)).collect::<Vec<_>>()
    {
        if let Ok(bytes) = part.read(branch)
            && engine.proves(branch, &bytes)
        {
            engine.hold(Instant::now(), branch);
            bytes_here += bytes.len() as u64;
        }
    }
    bytes_here
}

/// Works off all that the engine has to say, then sends what came of it.
fn settle<Error>(
    driver: &mut Driver<StaticSwarm>,
    mut read: impl FnMut(BranchIndex) -> Option<Vec<u8>>,
    mut on_event: impl FnMut(StaticEvent, &mut StaticSwarm) -> Result<(), Error>,
) -> Result<(), Error> {
    loop {
        let mut quiet = true;
        while let Some(event) = driver.engine.poll_event() {
            quiet = false;
            on_event(event, &mut driver.engine)?;
        }
        driver.transmit();
        while let Some(branch) = driver.engine.poll_read() {
            quiet = false;
            let bytes = read(branch).map(Into::into);
            driver.engine.handle_read(branch, bytes);
            // What is read goes out at once: the peer works on it while the next is read.
            driver.transmit();
        }
        if quiet {
            return Ok(());
        }
    }
}

/// Says goodbye.
fn leave(driver: &mut Driver<StaticSwarm>) {
    driver.engine.close_all(Instant::now());
    driver.transmit();
}

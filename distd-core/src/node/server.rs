//! The origin's side of the swarm: the injector. Serves the committed log, announces what is committed
//! meanwhile, and signs the newest munro afresh so that nodes know that it is the newest.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use crate::keys::{NtpTime, OriginKey};
use crate::ppspp::engine::{Audience, Event, Rates, Role, SwarmKey, SwarmOptions};
use crate::store::{Commit, OriginLog};
use crate::tree::{SignedMunro, VerifiedMunro};
use crate::unit::{BlockRange, MunroIndex};

use super::commit_watch::CommitWatch;
use super::driver::Driver;
use super::service::{Conduct, NodeError, open_driver};

/// How often the commit file is looked at even if nobody says that it was replaced.
const COMMIT_POLL: Duration = Duration::from_secs(1);

/// How an origin serves.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// UDP address to bind.
    pub listen: SocketAddr,
    /// How often the newest munro is signed afresh.
    pub heartbeat: Duration,
    /// Bytes of data that are sent in a second at the most.
    pub upload: Option<NonZeroU64>,
}

/// What becomes of a server.
#[derive(Clone, Copy, Debug)]
pub enum ServerNews {
    /// A commit was announced: whoever asks from then on is told of it.
    Announced {
        /// The log's length.
        munros: u64,
    },
    /// A node holds a munro, signed by this origin's key, that this log lacks or has otherwise: an
    /// older copy of the log is being served, and must not be published to.
    Behind {
        /// What it holds.
        munro: SignedMunro,
        /// The node.
        from: SocketAddr,
    },
}

/// An origin that is ready to serve.
pub struct OriginServer {
    runtime: tokio::runtime::Runtime,
    driver: Driver,
    address: SocketAddr,
    heartbeat: Duration,
    log: Arc<OriginLog>,
    key: OriginKey,
}

impl OriginServer {
    /// Binds the socket. The log may still be empty: its first release is announced when committed.
    pub fn open(
        log: Arc<OriginLog>,
        key: OriginKey,
        options: &ServeOptions,
    ) -> Result<Self, NodeError> {
        let conduct = Conduct {
            audience: Audience::All,
            exchange: Audience::None,
            rates: Rates { upload: options.upload, download: None },
        };
        let (runtime, driver, address) = open_driver(options.listen, conduct)?;
        Ok(Self { runtime, driver, address, heartbeat: options.heartbeat, log, key })
    }

    /// The UDP address bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is told (or its sender dropped), then says goodbye to the peers.
    pub fn run(self, mut stop: oneshot::Receiver<()>, mut report: impl FnMut(ServerNews)) {
        let Self { runtime, driver, heartbeat, log, key, .. } = self;
        // A new engine takes a first swarm.
        let Some(mut serving) = Serving::new(driver, log, key) else { return };
        runtime.block_on(async move {
            let mut watch = CommitWatch::new(serving.log.dir());
            let mut next_poll = Instant::now();
            let mut next_beat = Instant::now() + heartbeat;
            let mut woken = Some(Woken::Commit);
            while !matches!(woken, Some(Woken::Stop)) {
                let now = Instant::now();
                if woken.is_some() || now >= next_poll {
                    next_poll = now + COMMIT_POLL;
                    if let Some(munros) = serving.poll_commit(now) {
                        next_beat = now + heartbeat;
                        report(ServerNews::Announced { munros });
                    }
                }
                if now >= next_beat {
                    next_beat = now + heartbeat;
                    serving.beat(now);
                }
                serving.settle(now);
                if let Some((munro, from)) = serving.ahead.take() {
                    report(ServerNews::Behind { munro, from });
                }
                let wake = async {
                    tokio::select! {
                        // A sender that is gone means the same.
                        _ = &mut stop => Woken::Stop,
                        () = watch.changed() => Woken::Commit,
                    }
                };
                woken = serving.driver.wait(Some(next_poll.min(next_beat)), wake).await;
            }
            let counters = serving.driver.engine.counters(serving.swarm);
            let (data_sent_bytes, sent_bytes) = (counters.data_sent_bytes, counters.sent_bytes);
            tracing::info!(data_sent_bytes, sent_bytes, "served");
            serving.driver.engine.remove_swarm(Instant::now(), serving.swarm);
            serving.driver.transmit();
        });
    }
}

/// What ends a wait for the network.
enum Woken {
    Stop,
    Commit,
}

struct Serving {
    driver: Driver,
    log: Arc<OriginLog>,
    key: OriginKey,
    swarm: SwarmKey,
    /// Log length that the peers know, in munros.
    announced: u64,
    /// What a node held that the log lacks, not reported yet.
    ahead: Option<(SignedMunro, SocketAddr)>,
}

impl Serving {
    fn new(mut driver: Driver, log: Arc<OriginLog>, key: OriginKey) -> Option<Self> {
        let swarm = driver.engine.add_swarm(SwarmOptions {
            id: key.id().swarm_id(),
            newest: None,
            held: Vec::new(),
            serve: true,
            role: Role::Injector,
        });
        Some(Self { driver, log, key, swarm: swarm?, announced: 0, ahead: None })
    }

    /// Announces what was committed since; the log's new length if there was something.
    fn poll_commit(&mut self, now: Instant) -> Option<u64> {
        if let Err(error) = self.log.reload() {
            tracing::error!(%error, "the commit file cannot be read; serving what was committed before");
        }
        let commit = self.log.committed().filter(|commit| commit.munros > self.announced)?;
        let from = std::mem::replace(&mut self.announced, commit.munros);
        self.announce(now, &commit, from);
        Some(commit.munros)
    }

    /// Signs the newest munro afresh.
    fn beat(&mut self, now: Instant) {
        if let Some(commit) = self.log.committed() {
            self.announce(now, &commit, commit.munros - 1);
        }
    }

    fn announce(&mut self, now: Instant, commit: &Commit, from: u64) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Never older than the commit's own signature, whatever the clock says.
        let time = NtpTime::from_unix(since.as_secs(), since.subsec_nanos());
        let time = NtpTime(time.0.max(commit.newest.time().0));
        let newest =
            VerifiedMunro::sign(&self.key, commit.newest.munro(), commit.newest.hash(), time);
        let (first, end) =
            (MunroIndex(from).blocks().start, MunroIndex(commit.munros).blocks().start);
        let held = BlockRange::new(first, end.0 - first.0);
        self.driver.engine.publish(now, self.swarm, newest, held);
    }

    /// Works off all that the engine has to say, then sends what came of it.
    fn settle(&mut self, now: Instant) {
        loop {
            let mut quiet = true;
            while let Some(event) = self.driver.engine.poll_event() {
                quiet = false;
                self.on_event(&event);
            }
            while let Some(request) = self.driver.engine.poll_disk() {
                quiet = false;
                let run = self.log.stored_run(request.bin).unwrap_or_else(|error| {
                    tracing::error!(%error, bin = %request.bin, "cannot read the log; run 'distd-origin verify'");
                    None
                });
                self.driver.engine.handle_disk(now, request.id, run);
                // What is read goes out at once: the peer works on it while the next is read.
                self.driver.transmit();
            }
            if quiet {
                break;
            }
        }
        self.driver.transmit();
    }

    fn on_event(&mut self, event: &Event) {
        match event {
            Event::PeerUp { address, .. } => tracing::info!(%address, "peer connected"),
            Event::Found { address, .. } => tracing::debug!(%address, "a peer told of another"),
            Event::PeerDown { address, reason, unacknowledged, .. } => {
                tracing::info!(%address, %reason, "peer gone");
                if *unacknowledged {
                    // It may have left because of what it was sent.
                    self.log.doubt();
                }
            }
            Event::Fork { claimed, from, .. } => self.on_signed(claimed, *from),
            Event::Newest { munro, from, .. } => self.on_signed(&munro.signed(), *from),
            Event::Verified { .. } | Event::Fetched { .. } | Event::Failed { .. } => {}
        }
    }

    /// A peer showed a munro that this process has not announced.
    fn on_signed(&mut self, munro: &SignedMunro, from: SocketAddr) {
        // Another server of this log may have announced what was committed this moment.
        let _ = self.log.reload();
        if self.log.munro_hash(munro.munro).is_ok_and(|hash| hash == munro.hash) {
            return;
        }
        tracing::error!(
            munro = %munro.munro, %from,
            "a node holds what this origin's key signed and this log lacks: is it an old backup?"
        );
        self.ahead = Some((*munro, from));
    }
}

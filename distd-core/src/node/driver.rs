//! The loop's body: datagrams in, timeouts, datagrams out. No decisions: those are the engine's.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::ppspp::engine::static_swarm::StaticSwarm;
use crate::ppspp::engine::{Engine, Transmit};

use super::socket::{SOCKET_ERROR_PAUSE, Sent, Socket};

/// Longest rest without anything to do.
const REST_MAX: Duration = Duration::from_secs(60);

/// An engine without I/O, as its driver sees it.
pub(super) trait Drive {
    /// Datagrams of one peer arrived together, of `stride` bytes each; the last may be shorter.
    fn handle_datagrams(&mut self, now: Instant, from: SocketAddr, received: &[u8], stride: usize);
    /// Time has passed.
    fn handle_timeout(&mut self, now: Instant);
    /// When time will have passed.
    fn poll_timeout(&mut self) -> Option<Instant>;
    /// The next batch of datagrams to send.
    fn poll_transmit(&mut self, now: Instant) -> Option<Transmit>;
}

/// An engine on its socket: that of logs, or of one static swarm.
pub(super) struct Driver<E = Engine> {
    /// The engine that decides everything.
    pub(super) engine: E,
    socket: Socket,
    /// A batch that the kernel had no room for.
    blocked: Option<Transmit>,
    sleep: Pin<Box<Sleep>>,
}

impl<E: Drive> Driver<E> {
    /// Joins an engine and a socket. Must run inside a tokio runtime.
    pub(super) fn new(engine: E, socket: Socket) -> Self {
        Self { engine, socket, blocked: None, sleep: Box::pin(tokio::time::sleep(Duration::ZERO)) }
    }

    /// The address that peers reach.
    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_address()
    }

    /// Waits for datagrams, for the engine's next timeout, for `until`, or for `wake`, whichever
    /// comes first, and hands the engine what is its own. The result is `wake`'s, if that came.
    pub(super) async fn wait<T>(
        &mut self,
        until: Option<Instant>,
        wake: impl Future<Output = T>,
    ) -> Option<T> {
        let rest = Instant::now() + REST_MAX;
        let timeout = [self.engine.poll_timeout(), until].into_iter().flatten().min();
        self.sleep.as_mut().reset(timeout.map_or(rest, |t| t.min(rest)).into());
        tokio::select! {
            biased;
            _ = self.socket.readable() => {
                if let Err(error) = self.receive() {
                    tracing::warn!(%error, "the socket fails to receive; trying on");
                    tokio::time::sleep(SOCKET_ERROR_PAUSE).await;
                }
                None
            }
            _ = self.socket.writable(), if self.blocked.is_some() => None,
            () = self.sleep.as_mut() => {
                let now = Instant::now();
                if self.engine.poll_timeout().is_some_and(|t| t <= now) {
                    self.engine.handle_timeout(now);
                }
                None
            }
            value = wake => Some(value),
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let engine = &mut self.engine;
        self.socket.receive(|from, received, stride| {
            engine.handle_datagrams(now, from, received, stride);
        })?;
        // A steady stream must not keep the engine from its timeouts.
        if self.engine.poll_timeout().is_some_and(|t| t <= now) {
            self.engine.handle_timeout(now);
        }
        Ok(())
    }

    /// Sends what the engine has ready, until it has nothing more or the kernel no room.
    pub(super) fn transmit(&mut self) {
        if let Some(transmit) = self.blocked.take()
            && matches!(self.socket.send(&transmit), Sent::Blocked)
        {
            self.blocked = Some(transmit);
            return;
        }
        let now = Instant::now();
        while let Some(transmit) = self.engine.poll_transmit(now) {
            if matches!(self.socket.send(&transmit), Sent::Blocked) {
                self.blocked = Some(transmit);
                return;
            }
        }
    }
}

impl Drive for Engine {
    fn handle_datagrams(&mut self, now: Instant, from: SocketAddr, received: &[u8], stride: usize) {
        self.handle_datagrams(now, from, received, stride);
    }
    fn handle_timeout(&mut self, now: Instant) {
        self.handle_timeout(now);
    }
    fn poll_timeout(&mut self) -> Option<Instant> {
        self.poll_timeout()
    }
    fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        self.poll_transmit(now)
    }
}

impl Drive for StaticSwarm {
    fn handle_datagrams(&mut self, now: Instant, from: SocketAddr, received: &[u8], stride: usize) {
        self.handle_datagrams(now, from, received, stride);
    }
    fn handle_timeout(&mut self, now: Instant) {
        self.handle_timeout(now);
    }
    fn poll_timeout(&mut self) -> Option<Instant> {
        self.poll_timeout()
    }
    fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        self.poll_transmit(now)
    }
}

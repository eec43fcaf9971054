//! When the engine must be called again: one deadline per channel, fetch or link.
//!
//! A deadline that moves later is left where it is: it fires early, finds nothing due and is set
//! afresh. So the hot path touches no timer.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use super::channel::ChannelIndex;
use super::event::{FetchId, SwarmKey};

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A fetch has reached its deadline.
    Fetch(FetchId),
    /// A channel has something overdue.
    Channel(ChannelIndex),
    /// What waits for others' fetches is to be looked at.
    Swarm(SwarmKey),
    /// Sending goes on that waited for the limit.
    Upload,
    /// A peer is to be dialled (again).
    Link(SwarmKey, SocketAddr),
}

/// The deadlines in order.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Instant, Timer)>,
}

impl Timers {
    /// Sets `timer` to `at`; `armed` is what it was set to before, and after.
    pub(super) fn arm(&mut self, timer: Timer, at: Instant, armed: &mut Option<Instant>) {
        if armed.is_some_and(|before| before <= at) {
            return;
        }
        self.disarm(timer, armed);
        self.queue.insert((at, timer));
        *armed = Some(at);
    }

    /// Forgets `timer`.
    pub(super) fn disarm(&mut self, timer: Timer, armed: &mut Option<Instant>) {
        if let Some(at) = armed.take() {
            self.queue.remove(&(at, timer));
        }
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes one timer that is due. Its owner must forget that it is armed.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        self.queue.first().filter(|(at, _)| *at <= now)?;
        self.queue.pop_first().map(|(_, timer)| timer)
    }
}

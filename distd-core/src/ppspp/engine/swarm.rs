//! A swarm: one origin's log, as far as it concerns this engine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Instant;

use lru::LruCache;

use crate::keys::{OriginId, SwarmId};
use crate::tree::{MunroTree, VerifiedMunro};
use crate::unit::MunroIndex;

use super::announce::News;
use super::channel::ChannelIndex;
use super::event::{SwarmCounters, SwarmKey};
use super::fetch::Ledger;
use super::interval::IntervalSet;
use super::limits::TREES_MAX;

/// A peer that is wanted: dialled again whenever its channel is lost.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// The channel that is open, or being opened, to it.
    pub(super) channel: Option<ChannelIndex>,
    /// Failures in a row.
    pub(super) failures: u32,
    pub(super) armed: Option<Instant>,
}

/// One origin's log.
#[derive(Debug)]
pub(super) struct Swarm {
    pub(super) key: SwarmKey,
    pub(super) id: SwarmId,
    pub(super) origin: OriginId,
    pub(super) serve: bool,
    /// The rightmost signed munro.
    pub(super) newest: Option<VerifiedMunro>,
    /// Blocks that are stored here.
    pub(super) held: IntervalSet,
    pub(super) news: News,
    /// Trees of the munros that runs are verified against.
    pub(super) trees: LruCache<MunroIndex, MunroTree>,
    pub(super) ledger: Ledger,
    /// Channels that are open.
    pub(super) members: Vec<ChannelIndex>,
    pub(super) links: BTreeMap<SocketAddr, Link>,
    pub(super) counters: SwarmCounters,
    /// Sources may be found for what is wanted.
    pub(super) dirty: bool,
    /// Runs that nobody had may have a source.
    pub(super) unpark: bool,
    /// A newer munro is to be passed on.
    pub(super) spread: bool,
    /// The member that is first in the next distribution of background work.
    pub(super) rotor: usize,
}

impl Swarm {
    pub(super) fn new(key: SwarmKey, id: SwarmId, origin: OriginId, serve: bool) -> Self {
        Self {
            key,
            id,
            origin,
            serve,
            newest: None,
            held: IntervalSet::default(),
            news: News::default(),
            trees: LruCache::new(const { NonZeroUsize::new(TREES_MAX).expect("not zero") }),
            ledger: Ledger::new(key),
            members: Vec::new(),
            links: BTreeMap::new(),
            counters: SwarmCounters::default(),
            dirty: false,
            unpark: false,
            spread: false,
            rotor: 0,
        }
    }

    /// The rightmost munro is verified already: its tree needs no other signature.
    pub(super) fn trust_newest(&mut self, munro: MunroIndex) {
        if let Some(newest) = self.newest.filter(|newest| newest.munro() == munro)
            && !self.trees.contains(&munro)
        {
            self.trees.put(munro, MunroTree::new(newest));
        }
    }

    /// Something changed that may give a run its source.
    pub(super) fn on_news(&mut self) {
        self.dirty = true;
        self.unpark = true;
    }
}

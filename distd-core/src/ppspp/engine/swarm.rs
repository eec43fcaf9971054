//! A swarm: one origin's log, as far as it concerns this engine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Instant;

use lru::LruCache;

use crate::keys::{OriginId, SwarmId};
use crate::tree::{MunroTree, VerifiedMunro};
use crate::unit::MunroIndex;

use super::announce::News;
use super::channel::{ChannelIndex, Channels};
use super::event::{DownReason, FetchId, SwarmCounters, SwarmKey};
use super::fetch::Ledger;
use super::interval::IntervalSet;
use super::limits::TREES_MAX;
use super::pex::Hearsay;
use super::turns::{Place, Turns};

/// A peer that is wanted: dialled again whenever its channel is lost.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// The channel that is open, or being opened, to it.
    pub(super) channel: Option<ChannelIndex>,
    /// How the last one ended.
    pub(super) down: Option<DownReason>,
    /// Failures in a row.
    pub(super) failures: u32,
    pub(super) armed: Option<Instant>,
    /// Until when its first answer is waited for before the injector is asked.
    pub(super) greeting: Option<Instant>,
    /// A peer told of it: it is worth a few tries, and its word less.
    pub(super) found: bool,
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
    /// The same, but nobody waits: sources are sought when more has come together.
    pub(super) dirty_later: bool,
    /// What peers wished and cannot be had.
    pub(super) hopeless: Vec<FetchId>,
    /// Runs that nobody had may have a source.
    pub(super) unpark: bool,
    /// The version of the circle that equals are being told.
    pub(super) circle_told: u64,
    /// A newer munro is to be passed on.
    pub(super) spread: bool,
    /// The member that is first in the next distribution of background work.
    pub(super) rotor: usize,
    /// Who fetches what.
    pub(super) turns: Turns,
    /// Channels whose place was told.
    pub(super) placed: Vec<ChannelIndex>,
    /// What was dialled on hearsay.
    pub(super) hearsay: Hearsay,
    /// Addresses under which we reach ourselves.
    pub(super) own: BTreeSet<SocketAddr>,
    pub(super) armed: Option<Instant>,
}

impl Swarm {
    pub(super) fn new(
        key: SwarmKey,
        id: SwarmId,
        origin: OriginId,
        serve: bool,
        place: Place,
    ) -> Self {
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
            dirty_later: false,
            hopeless: Vec::new(),
            unpark: false,
            circle_told: 0,
            spread: false,
            rotor: 0,
            turns: Turns::new(place),
            placed: Vec::new(),
            hearsay: Hearsay::default(),
            own: BTreeSet::new(),
            armed: None,
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

    /// Until when members that were dialled may still answer for the first time; `None` if all did.
    pub(super) fn greeting(&self, now: Instant, channels: &Channels) -> Option<Instant> {
        let opening = |link: &&Link| {
            let channel = link.channel.and_then(|index| channels.get(index));
            channel.is_some_and(|channel| !channel.is_open()) && link.failures == 0
        };
        let waits = self.links.values().filter(|link| link.greeting.is_some_and(|at| at > now));
        waits.filter(opening).filter_map(|link| link.greeting).max()
    }

    /// Something changed that may give a run its source.
    pub(super) fn on_news(&mut self) {
        self.dirty = true;
        self.unpark = true;
    }

    /// The same, of what is said all the time: it changes nothing at once unless a reader waits.
    pub(super) fn on_small_news(&mut self) {
        if self.ledger.has_readers() {
            self.on_news();
        } else {
            self.dirty_later = true;
        }
    }
}

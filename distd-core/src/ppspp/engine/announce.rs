//! What a peer is told unasked: what is held here, and the rightmost signed munro.
//!
//! Announcements are coarse first and bounded: HAVE for the largest intervals, then maps of
//! fragmented munros to peers that understand HAVE_MAP.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use crate::limits::{BLOCK_LAYER, GRANULE_LAYER, MUNRO_LAYER};
use crate::tree::VerifiedMunro;
use crate::unit::{BlockRange, ChunkRange, MunroIndex};

use super::interval::IntervalSet;
use super::limits::{ANNOUNCE_REPEAT, ANNOUNCE_SPANS_MAX, KEEP_ALIVE, NEWS_MAX, TUNE_IN_REPEAT};

/// Blocks of a munro, of a granule.
const MUNRO_BLOCKS: u64 = 1 << (MUNRO_LAYER - BLOCK_LAYER);
const GRANULE_BLOCKS: u64 = 1 << (GRANULE_LAYER - BLOCK_LAYER);
/// Maps in a full announcement.
const MAPS_MAX: usize = 1024;

/// An announcement to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announcement {
    Have(ChunkRange),
    Map(MunroIndex, u64),
}

/// What changed of what is held, for channels to catch up with.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Number of changes that are no longer remembered.
    forgotten: u64,
    changes: VecDeque<(u64, u64)>,
}

impl News {
    /// Blocks `start..end` are held from now on.
    pub(super) fn push(&mut self, start: u64, end: u64) {
        if self.changes.len() >= NEWS_MAX {
            self.changes.pop_front();
            self.forgotten += 1;
        }
        self.changes.push_back((start, end));
    }

    /// The number of the next change.
    pub(super) fn next(&self) -> u64 {
        self.forgotten + self.changes.len() as u64
    }
}

/// What one peer was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The next change to tell; `None`: nothing was told yet.
    news: Option<u64>,
    /// Waiting to be written.
    pub(super) queue: VecDeque<Announcement>,
    /// When the next changes are due.
    pub(super) news_at: Option<Instant>,
    /// When what was told is repeated, and from which change on.
    repeat: Option<(Instant, u64)>,
    /// The rightmost munro that it was told, how often, and when last.
    munro: Option<(VerifiedMunro, u32, Instant)>,
    /// The newest munro of which the peer holds or acknowledged a chunk.
    reached: Option<MunroIndex>,
    /// The level of ours that it was told.
    pub(super) level: Option<u8>,
    /// The version of our circle that it was told.
    circle: Option<u64>,
    /// When it is told once more.
    circle_again: Option<Instant>,
    /// The newest munro that it sent itself.
    pub(super) knows: Option<VerifiedMunro>,
}

impl Told {
    /// Queues what the peer has not been told of what is held here.
    pub(super) fn catch_up(
        &mut self,
        now: Instant,
        held: &IntervalSet,
        news: &News,
        has: &IntervalSet,
        maps: bool,
    ) {
        self.news_at = None;
        if !self.lags(news) {
            return;
        }
        let next = self.news.replace(news.next());
        let Some(next) = next.filter(|next| *next >= news.forgotten) else {
            self.queue.clear();
            self.queue.extend(full_announcement(held, maps));
            return;
        };
        self.tell(held, news, has, next);
        self.repeat.get_or_insert((now + ANNOUNCE_REPEAT, next));
    }

    /// Says once more what was said of late: nobody acknowledges a HAVE, and whoever missed the last
    /// one of a stretch would wait for it.
    pub(super) fn repeat(
        &mut self,
        now: Instant,
        held: &IntervalSet,
        news: &News,
        has: &IntervalSet,
    ) {
        if let Some((_, from)) = self.repeat.take_if(|(at, _)| *at <= now) {
            self.tell(held, news, has, from);
        }
    }

    /// When something is to be said once more.
    pub(super) fn repeat_at(&self) -> Option<Instant> {
        self.repeat.map(|(at, _)| at)
    }

    /// The peer is told nothing of what is held here (any more).
    pub(super) fn forget_news(&mut self) {
        (self.news_at, self.repeat) = (None, None);
    }

    /// Whether the circle's `version` is to be told to an equal now: when it is new, once more soon
    /// after, and again and again, for nobody acknowledges it.
    pub(super) fn circle_due(&mut self, now: Instant, version: u64) -> bool {
        if self.circle != Some(version) {
            (self.circle, self.circle_again) = (Some(version), Some(now + ANNOUNCE_REPEAT));
            return true;
        }
        let is_due = self.circle_again.is_some_and(|at| at <= now);
        if is_due {
            self.circle_again = Some(now + KEEP_ALIVE);
        }
        is_due
    }

    /// The peer is no equal (any more).
    pub(super) fn forget_circle(&mut self) {
        (self.circle, self.circle_again) = (None, None);
    }

    /// When the circle is to be told once more.
    pub(super) fn circle_at(&self) -> Option<Instant> {
        self.circle_again
    }

    /// Queues the changes from number `from` on.
    fn tell(&mut self, held: &IntervalSet, news: &News, has: &IntervalSet, from: u64) {
        let mut told = BTreeSet::new();
        for (start, end) in news.changes.iter().skip(from.saturating_sub(news.forgotten) as usize) {
            // RFC 7574 3.2: SHOULD NOT be sent to peers that have it.
            if has.contains(*start, *end) {
                continue;
            }
            // RFC 7574 4.3.1: the biggest complete interval that contains the new data.
            let Some((start, end)) = held.covering(*start) else { continue };
            if told.insert(start) {
                self.queue.extend(have(start, end));
            }
        }
    }

    /// Whether there are changes that the peer has not been told.
    fn lags(&self, news: &News) -> bool {
        self.news != Some(news.next())
    }

    /// When the rightmost munro is to go out. RFC 7574 6.1.2.4: with every datagram until the peer
    /// has, or acknowledges, a chunk of it or of a newer one; here at once, and then after
    /// [`TUNE_IN_REPEAT`], twice that, and so on: a peer that fetches nothing is not pestered.
    pub(super) fn munro_at(&self, now: Instant, newest: Option<&VerifiedMunro>) -> Option<Instant> {
        let newest = newest?;
        if self.knows.is_some_and(|knows| !is_newer(newest, &knows)) {
            return None;
        }
        match &self.munro {
            None => Some(now),
            Some((told, ..)) if is_newer(newest, told) => Some(now),
            Some((_, times, at)) => self
                .reached
                .is_none_or(|reached| reached < newest.munro())
                .then(|| *at + TUNE_IN_REPEAT * (1 << times.saturating_sub(1).min(10))),
        }
    }

    /// The rightmost munro goes out.
    pub(super) fn on_munro(&mut self, now: Instant, newest: VerifiedMunro) {
        let times = match &self.munro {
            Some((told, times, _)) if *told == newest => times + 1,
            _ => 1,
        };
        self.munro = Some((newest, times, now));
    }

    /// The peer holds, or acknowledged, chunks up to `end`.
    pub(super) fn on_reached(&mut self, chunks: ChunkRange) {
        let munro = MunroIndex((chunks.end.0 - 1) >> MUNRO_LAYER);
        self.reached = self.reached.max(Some(munro));
    }
}

/// Whether `a` is a later statement than `b`: further right, or the same munro signed later.
pub(super) fn is_newer(a: &VerifiedMunro, b: &VerifiedMunro) -> bool {
    let key = |munro: &VerifiedMunro| {
        let time = munro.time();
        (munro.munro(), time.unix_seconds(), time.0 & u64::from(u32::MAX))
    };
    key(a) > key(b)
}

pub(super) fn have(start: u64, end: u64) -> Option<Announcement> {
    BlockRange::new(crate::unit::BlockIndex(start), end - start).chunks().map(Announcement::Have)
}

/// The intervals of `held`, largest first, as far as a datagram or few go.
pub(super) fn largest(held: &IntervalSet, count: usize) -> Vec<Announcement> {
    let mut spans: Vec<(u64, u64)> = held.iter().collect();
    if spans.len() > count {
        spans.sort_by_key(|(start, end)| std::cmp::Reverse(end - start));
        spans.truncate(count);
    }
    spans.into_iter().filter_map(|(start, end)| have(start, end)).collect()
}

/// Everything, coarse first.
fn full_announcement(held: &IntervalSet, maps: bool) -> Vec<Announcement> {
    let mut all = largest(held, ANNOUNCE_SPANS_MAX);
    if held.len() > ANNOUNCE_SPANS_MAX && maps {
        let mut granules: BTreeMap<u64, u64> = BTreeMap::new();
        for (start, end) in held.iter() {
            let first = start.div_ceil(GRANULE_BLOCKS);
            // A span that is longer than a munro is among the largest, or they all are that long.
            let last = (end / GRANULE_BLOCKS).min(first + 2 * MUNRO_BLOCKS / GRANULE_BLOCKS);
            for granule in first..last {
                let munro = granule * GRANULE_BLOCKS / MUNRO_BLOCKS;
                if granules.len() >= MAPS_MAX && !granules.contains_key(&munro) {
                    break;
                }
                *granules.entry(munro).or_default() |= 1 << (granule % 64);
            }
        }
        all.extend(
            granules.into_iter().map(|(munro, map)| Announcement::Map(MunroIndex(munro), map)),
        );
    }
    all
}

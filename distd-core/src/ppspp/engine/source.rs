//! A peer as a source: what it has, what it was asked for, what is there of it.
//!
//! A **flight** is a run asked of this peer. Its chunks are collected in one buffer, so that the
//! run is verified as a whole and a lie has one author. A peer serves each class in the order in
//! which it was asked; so each flight has a place in its **lane**, and a hole that later data has
//! overtaken is a loss. What is asked for again has lanes of its own, for a sender puts it first.

mod late;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::limits::{BLOCK_LAYER, CHUNK_BYTES, GRANULE_LAYER};
use crate::tree::HashedRun;
use crate::unit::{Bin, ChunkRange};

use super::climb::STRETCH_BLOCKS;
use super::event::Class;
use super::fetch::Sought;
use super::flight::{Delivery, Flight, Hashing, LANES, Lane, lane};
use super::interval::IntervalSet;
use super::limits::{
    AWAITED_BLOCKS_MAX, AWAITED_SPANS_MAX, CREDIT_MAX, ERRAND_MAX, FLIGHTS_MAX, PASSED_OVER,
    WAITED_BYTES_EXTRA, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN,
};
use super::offered::Offered;
use super::rtt::Rtt;

const CHUNK: usize = CHUNK_BYTES as usize;
/// Least time by which datagrams may overtake each other: a sender that moves to another processor
/// reorders whole batches on a local link.
const REORDER_DELAY_MIN: Duration = Duration::from_millis(2);
/// How long a run that a reader began to wait for may take before a second source is sought.
const HEDGE_UPGRADED: Duration = Duration::from_millis(50);
/// Background bytes that are asked for together, where the window allows.
const ASK_BYTES: u64 = 256 << 10;
/// How long a request may wait for a busy peer's processor and disk, and the answer for ours.
const WORKING: Duration = Duration::from_millis(10);

/// A range to ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) chunks: ChunkRange,
    pub(super) class: Class,
    pub(super) deadline: Instant,
}

/// What became of a DATA message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Nobody asked for it.
    Stray,
    /// It was there, or was asked for once.
    Duplicate,
    /// Kept.
    Kept,
    /// Kept, or known, and all of the flight with this first chunk is there.
    Complete(u64),
}

/// What a silent lane asks for.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    /// Flights of which something was asked for again.
    pub(super) again: u64,
    /// An answer is overdue.
    pub(super) late: bool,
}

/// A peer as a source.
#[derive(Debug)]
pub(super) struct Source {
    /// Blocks that it says it has.
    pub(super) availability: IntervalSet,
    /// It answers no requests (RFC 7574 §3.9).
    pub(super) choked: bool,
    /// Answers overdue in a row.
    pub(super) timeouts: u32,
    /// Hashes that it offered.
    pub(super) offered: Offered,
    /// Bytes in flight.
    pub(super) outstanding: u64,
    /// DATA that nobody asked for.
    pub(super) strays: u32,
    /// Ranges to ask for in the next datagram.
    pub(super) asks: Vec<Ask>,
    /// Ranges to ask it to fetch, in the next datagram, and how often that may be passed on.
    pub(super) wishes: Vec<(Ask, u8)>,
    /// Ranges to cancel in the next datagram.
    pub(super) cancels: Vec<ChunkRange>,
    /// The epoch ([`super::turns::Turns::epoch`]) in which it had nothing more of what is wanted in the
    /// background.
    pub(super) dry: u64,
    /// Where the search for background work of an epoch has come.
    pub(super) sought: Option<(u64, Sought)>,
    /// Blocks that it asked us to fetch and that are not here yet.
    pub(super) awaited: IntervalSet,
    /// Those of them that a reader waits for: it is told at once.
    pub(super) awaited_by_readers: IntervalSet,
    /// Blocks that we asked it to fetch and of which it has said nothing yet, and since when.
    wished: IntervalSet,
    wished_since: Instant,
    /// When it last said that it holds something that was not known of it.
    progress_at: Instant,
    /// It let us wait in vain: until when it is passed over, and how often that was; by class, for a
    /// reader's patience is short, and what it does not bring at once it brings all the same.
    passed_over: [(Option<Instant>, u32); 2],
    flights: BTreeMap<u64, Flight>,
    /// The chunks of the flight of which something arrived last; none if it is gone.
    arriving: Range<u64>,
    /// When a second source is sought for which flight.
    hedges: BTreeSet<(Instant, u64)>,
    lanes: [Lane; LANES],
    /// DATA that may arrive without being strays.
    credit: u64,
    /// Flights that wait for a hash.
    lacking: usize,
    delivery: Delivery,
}

impl Source {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            availability: IntervalSet::default(),
            choked: false,
            timeouts: 0,
            offered: Offered::default(),
            outstanding: 0,
            strays: 0,
            asks: Vec::new(),
            wishes: Vec::new(),
            cancels: Vec::new(),
            dry: 0,
            sought: None,
            awaited: IntervalSet::default(),
            awaited_by_readers: IntervalSet::default(),
            wished: IntervalSet::default(),
            wished_since: now,
            progress_at: now,
            passed_over: Default::default(),
            flights: BTreeMap::new(),
            arriving: 0..0,
            hedges: BTreeSet::new(),
            lanes: std::array::from_fn(|_| Lane::new(now)),
            credit: 0,
            lacking: 0,
            delivery: Delivery { since: now, bytes: 0, rate: 0.0 },
        }
    }

    /// Whether all blocks of `bin` are said to be there.
    pub(super) fn has(&self, bin: Bin) -> bool {
        let chunks = bin.chunks();
        self.availability.contains(chunks.start.0 >> BLOCK_LAYER, chunks.end.0 >> BLOCK_LAYER)
    }

    /// Whether some block of `bin` is said to be there.
    pub(super) fn has_some(&self, bin: Bin) -> bool {
        let chunks = bin.chunks();
        let (start, end) = (chunks.start.0 >> BLOCK_LAYER, chunks.end.0 >> BLOCK_LAYER);
        self.availability.first_within(start, end).is_some()
    }

    /// Bytes that may be asked for now.
    pub(super) fn room(&self, class: Class, rtt: &Rtt) -> u64 {
        if self.choked || self.flights.len() >= FLIGHTS_MAX {
            return 0;
        }
        let extra = if class == Class::Waited { WAITED_BYTES_EXTRA } else { 0 };
        (self.window(rtt) + extra).saturating_sub(self.outstanding)
    }

    /// Whether enough is there to ask for in the background: a request for each run that arrives
    /// would cost both sides more than the run.
    pub(super) fn wants_more(&self, rtt: &Rtt) -> bool {
        let least = (self.window(rtt) / 8).min(ASK_BYTES);
        self.room(Class::Background, rtt) >= least.max(CHUNK_BYTES << GRANULE_LAYER)
    }

    /// Twice what the peer delivers in a round trip and while either side works off a batch: enough
    /// that it never runs dry.
    fn window(&self, rtt: &Rtt) -> u64 {
        let bytes = 2.0 * self.delivery.rate * (rtt.minimum() + WORKING).as_secs_f64();
        (bytes as u64).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)
    }

    /// How long a run asked for now is likely to take.
    pub(super) fn expected(&self, class: Class, rtt: &Rtt) -> Duration {
        let ahead = match class {
            Class::Waited => self.waited() as u64 * (CHUNK_BYTES << GRANULE_LAYER),
            Class::Background => self.outstanding,
        };
        let queue = ahead as f64 / self.delivery.rate.max(1e6);
        rtt.smoothed() + Duration::from_secs_f64(queue.min(10.0))
    }

    /// Asks for a run.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        bin: Bin,
        class: Class,
        deadline: Instant,
        rtt: &Rtt,
    ) {
        let hedge_at = (class == Class::Waited)
            .then(|| now + (self.expected(class, rtt) * 2).max(Duration::from_millis(10)));
        let chunks = bin.chunks();
        // Behind others it waits in the peer's queue: that is no round trip.
        let alone = self.flights.is_empty()
            || (class == Class::Waited && self.lanes[lane(class, false)].order.is_empty());
        let order = self.lanes[lane(class, false)].place(chunks);
        let flight = Flight {
            bin,
            class,
            deadline,
            asked_at: now,
            hedge_at,
            order,
            got: 0,
            buffer: Vec::new(),
            hashing: None,
            lacks: None,
            hashless: 0,
            again: false,
            moved: false,
            alone,
        };
        if let Some(munro) = bin.munro() {
            self.offered.expect(munro);
        }
        self.outstanding += bin.byte_len();
        self.hedges.extend(hedge_at.map(|at| (at, chunks.start.0)));
        self.flights.insert(chunks.start.0, flight);
        self.push_ask(Ask { chunks, class, deadline });
    }

    /// Neighbouring granules become one range; smaller runs stay apart, because a sender proves
    /// whole granules granule by granule and all else block by block.
    fn push_ask(&mut self, ask: Ask) {
        self.credit = (self.credit + 2 * ask.chunks.count()).min(CREDIT_MAX);
        let granules = |chunks: ChunkRange| {
            let granule = 1 << GRANULE_LAYER;
            chunks.start.0.is_multiple_of(granule) && chunks.end.0.is_multiple_of(granule)
        };
        if let Some(last) = self.asks.last_mut()
            && last.class == ask.class
            && last.chunks.end == ask.chunks.start
            && granules(last.chunks)
            && granules(ask.chunks)
        {
            last.chunks.end = ask.chunks.end;
            last.deadline = last.deadline.max(ask.deadline);
            return;
        }
        self.asks.push(ask);
    }

    /// A reader waits for a run that was asked for in the background: asks again, ahead of the
    /// rest, unless it is arriving already or comes next: then a second request would only be
    /// taken for a loss.
    pub(super) fn upgrade(&mut self, now: Instant, first: u64, deadline: Instant, rtt: &Rtt) {
        let near = self.arriving(rtt);
        let Some(flight) = self.flights.get_mut(&first) else { return };
        if flight.class == Class::Waited || flight.hedge_at.is_some() {
            return;
        }
        let hedge_at = now + HEDGE_UPGRADED;
        flight.hedge_at = Some(hedge_at);
        self.hedges.insert((hedge_at, first));
        let ahead = flight.order.saturating_sub(self.lanes[flight.lane()].high);
        if flight.got != 0 || flight.again || ahead <= near {
            return;
        }
        let chunks = flight.bin.chunks();
        flight.asked_at = now;
        flight.moved = true;
        self.move_to(first, Class::Waited, false);
        self.push_ask(Ask { chunks, class: Class::Waited, deadline });
    }

    /// Chunks that may be on their way at this moment: what the peer delivers in a round trip and a
    /// little more.
    fn arriving(&self, rtt: &Rtt) -> u64 {
        let span = rtt.minimum() + REORDER_DELAY_MIN;
        let bytes = self.delivery.rate * span.as_secs_f64();
        (bytes as u64 / CHUNK_BYTES).max(1 << GRANULE_LAYER)
    }

    /// Moves a flight to the end of another lane, or of its own.
    fn move_to(&mut self, first: u64, class: Class, again: bool) {
        let Some(flight) = self.flights.get_mut(&first) else { return };
        self.lanes[flight.lane()].order.remove(&flight.order);
        (flight.class, flight.again) = (class, again);
        flight.moved &= !again;
        flight.order = self.lanes[flight.lane()].place(flight.bin.chunks());
    }

    /// Waited flights.
    fn waited(&self) -> usize {
        self.lanes[..2].iter().map(|lane| lane.order.len()).sum()
    }

    /// Takes the payload of a DATA message. The round-trip time is sampled at a flight's first
    /// chunk.
    pub(super) fn on_data(
        &mut self,
        now: Instant,
        chunk: u64,
        payload: &[u8],
        rtt: &mut Rtt,
    ) -> Arrival {
        let useless = if self.credit == 0 { Arrival::Stray } else { Arrival::Duplicate };
        self.credit = self.credit.saturating_sub(1);
        // Mostly it goes on with the run of the chunk before: a search for one key, not for a range.
        if !self.arriving.contains(&chunk) {
            let Some((first, flight)) = self.flights.range(..=chunk).next_back() else {
                return useless;
            };
            self.arriving = *first..*first + flight.chunks();
        }
        let first = self.arriving.start;
        let Some(flight) = self.flights.get_mut(&first).filter(|_| self.arriving.contains(&chunk))
        else {
            return useless;
        };
        let index = chunk - first;
        if payload.len() != CHUNK {
            return useless;
        }
        let lane = &mut self.lanes[flight.lane()];
        lane.on_arrival(now, if flight.moved { 0 } else { flight.order + index + 1 });
        self.timeouts = 0;
        if flight.got & (1 << index) != 0 {
            let complete = flight.is_complete();
            return if complete { Arrival::Complete(first) } else { Arrival::Duplicate };
        }
        if flight.got == 0 {
            flight.buffer.reserve_exact(flight.bin.byte_len() as usize);
            if flight.alone && !flight.again {
                rtt.sample(now, now.saturating_duration_since(flight.asked_at));
            }
        }
        flight.got |= 1 << index;
        flight.put(index as usize * CHUNK, payload);
        self.delivery.add(now, rtt);
        if flight.is_complete() { Arrival::Complete(first) } else { Arrival::Kept }
    }

    /// The bytes of a flight that has become complete, to be hashed; once.
    pub(super) fn begin_hashing(&mut self, first: u64, serial: u64) -> Option<(Bin, Bytes)> {
        let flight = self.flights.get_mut(&first)?;
        if !flight.is_complete() || flight.hashing.is_some() {
            return None;
        }
        flight.hashing = Some(Hashing::Wanted(serial));
        Some((flight.bin, std::mem::take(&mut flight.buffer).into()))
    }

    /// Takes what came of hashing; `false` if the flight is gone, or is another one by now.
    pub(super) fn end_hashing(&mut self, first: u64, serial: u64, run: HashedRun) -> bool {
        let Some(flight) = self.flights.get_mut(&first) else { return false };
        let wanted = matches!(flight.hashing, Some(Hashing::Wanted(at)) if at == serial);
        if wanted {
            flight.hashing = Some(Hashing::Done(run));
        }
        wanted
    }

    /// A flight's bytes with their hashes, as soon as they are there.
    pub(super) fn hashed(&self, first: u64) -> Option<&HashedRun> {
        match self.flights.get(&first)?.hashing.as_ref()? {
            Hashing::Done(run) => Some(run),
            Hashing::Wanted(_) => None,
        }
    }

    /// `lacks` must arrive before the flight can be verified.
    pub(super) fn wait_for_hash(&mut self, first: u64, lacks: Bin) {
        if let Some(flight) = self.flights.get_mut(&first) {
            self.lacking += usize::from(flight.lacks.replace(lacks).is_none());
        }
    }

    /// The hash that a complete flight waits for.
    pub(super) fn lacks(&self, first: u64) -> Option<Bin> {
        self.flights.get(&first)?.lacks
    }

    /// Complete flights within `bin` that wait for a hash.
    pub(super) fn lacking(&self, within: Bin) -> Vec<(u64, Bin)> {
        if self.lacking == 0 {
            return Vec::new();
        }
        let chunks = within.chunks();
        let flights = self.flights.range(chunks.start.0..chunks.end.0);
        flights.filter_map(|(first, flight)| Some((*first, flight.lacks?))).collect()
    }

    /// Forgets a flight: it is verified, or no longer wanted of this peer.
    pub(super) fn remove(&mut self, first: u64) -> Option<Flight> {
        let flight = self.flights.remove(&first)?;
        if self.arriving.start == first {
            self.arriving = 0..0;
        }
        self.lanes[flight.lane()].order.remove(&flight.order);
        if let Some(at) = flight.hedge_at {
            self.hedges.remove(&(at, first));
        }
        self.outstanding -= flight.bin.byte_len();
        self.lacking -= usize::from(flight.lacks.is_some());
        if let Some(munro) = flight.bin.munro() {
            self.offered.done(munro);
        }
        Some(flight)
    }

    /// Forgets a flight and tells the peer so (RFC 7574 §3.8).
    pub(super) fn withdraw(&mut self, first: u64) {
        if let Some(flight) = self.remove(first)
            && !flight.is_complete()
            && !self.choked
        {
            self.cancels.push(flight.bin.chunks());
        }
    }

    /// First chunks of all flights.
    pub(super) fn flights(&self) -> Vec<u64> {
        self.flights.keys().copied().collect()
    }

    /// First chunks of the flights that overlap `chunks`.
    pub(super) fn flights_within(&self, chunks: ChunkRange) -> Vec<u64> {
        // A flight is a granule at most, and aligned: one that reaches in begins less than that
        // before.
        let from = chunks.start.0.saturating_sub((1 << GRANULE_LAYER) - 1);
        let flights = self.flights.range(from..chunks.end.0);
        let overlapping =
            flights.filter(|(_, flight)| flight.bin.chunks().intersection(chunks).is_some());
        overlapping.map(|(first, _)| *first).collect()
    }

    /// Asks it to fetch what it does not have.
    pub(super) fn wish(&mut self, now: Instant, ask: Ask, hops: u8) {
        let chunks = ask.chunks;
        // What it was asked for long ago it has forgotten, even if what it said was lost.
        if self.wished.is_empty() || now >= self.wished_since + ERRAND_MAX {
            (self.wished, self.wished_since) = (IntervalSet::default(), now);
        }
        self.wished.insert(chunks.start.0 >> BLOCK_LAYER, chunks.end.0 >> BLOCK_LAYER);
        if let Some((last, _)) = self.wishes.last_mut().filter(|(last, last_hops)| {
            *last_hops == hops && last.class == ask.class && last.chunks.end == ask.chunks.start
        }) {
            last.chunks.end = ask.chunks.end;
            last.deadline = last.deadline.max(ask.deadline);
            return;
        }
        self.wishes.push((ask, hops));
    }

    /// It said that it holds blocks `start..end`. Only what it was asked for makes good what it let us
    /// wait for in vain.
    pub(super) fn on_have(&mut self, start: u64, end: u64) {
        self.end_awaiting(start, end);
        if self.wished.first_within(start, end).is_some() {
            for (until, times) in &mut self.passed_over {
                (*until, *times) = (None, times.saturating_sub(1));
            }
        }
        self.wished.remove(start, end);
    }

    /// It need not wait for blocks `start..end` any more; whether a reader of it did.
    pub(super) fn end_awaiting(&mut self, start: u64, end: u64) -> bool {
        self.awaited.remove(start, end);
        let by_reader = self.awaited_by_readers.first_within(start, end).is_some();
        self.awaited_by_readers.remove(start, end);
        by_reader
    }

    /// Blocks `start..end` are here: nobody need fetch them for us.
    pub(super) fn on_held(&mut self, start: u64, end: u64) {
        self.wished.remove(start, end);
    }

    /// It said that it holds something that was not known of it.
    pub(super) fn on_progress(&mut self, now: Instant) {
        self.progress_at = now;
    }

    /// It said that it does not hold blocks `start..end`, nor fetch them.
    pub(super) fn on_miss(&mut self, start: u64, end: u64) {
        self.availability.remove(start, end);
        self.wished.remove(start, end);
    }

    /// Whether it was asked to fetch as much as it takes; background work leaves a quarter to
    /// readers.
    pub(super) fn is_sated(&self, now: Instant, class: Class) -> bool {
        let most = match class {
            Class::Waited => AWAITED_BLOCKS_MAX,
            Class::Background => AWAITED_BLOCKS_MAX / 4 * 3,
        };
        let full = self.wished.count() + STRETCH_BLOCKS > most
            || self.wished.len() >= AWAITED_SPANS_MAX / 2;
        full && now < self.wished_since + ERRAND_MAX
    }

    pub(super) fn progress_at(&self) -> Instant {
        self.progress_at
    }

    /// It let us wait in vain.
    pub(super) fn pass_over(&mut self, now: Instant, class: Class) {
        self.wished = IntervalSet::default();
        let (until, times) = &mut self.passed_over[class.index()];
        *until = Some(now + PASSED_OVER * (1 << (*times).min(5)));
        *times += 1;
    }

    /// Until when it is, or was, passed over.
    pub(super) fn passed_over_until(&self) -> Option<Instant> {
        self.passed_over.iter().filter_map(|(until, _)| *until).max()
    }

    /// Whether it is passed over. Who is no good for the background is none for readers.
    pub(super) fn is_idle(&self, now: Instant, class: Class) -> bool {
        let is_passed_over = |class: Class| {
            let (until, _) = self.passed_over[class.index()];
            until.is_some_and(|until| until > now)
        };
        is_passed_over(class) || is_passed_over(Class::Background)
    }

    /// Bytes a second that it delivers at its best.
    pub(super) fn rate(&self) -> f64 {
        self.delivery.rate
    }

    /// Whether requests go unanswered.
    pub(super) fn is_silent(&self) -> bool {
        self.timeouts >= super::limits::SILENT_AFTER
    }
}

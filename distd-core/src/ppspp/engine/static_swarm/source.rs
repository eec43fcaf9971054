//! A peer as a source: what it has, what it was asked for, what it offers as proof.
//!
//! Chunks come in the order in which they were asked for: what others overtook was lost and is asked
//! for again at once. The window is as much as comes within half a second, since older implementations
//! forget requests that they have not answered in time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::limits::BRANCH_LAYER;
use crate::tree::merkle::{BranchIndex, ContentShape, MerkleHash, MerkleTree};
use crate::unit::{Bin, ChunkRange};

use super::super::interval::IntervalSet;
use super::super::rtt::Rtt;
use super::content::{bits_of, ranges_of};
use super::limits::{
    ANSWER_TARGET, FORGOTTEN_AFTER, GONE_AFTER, OFFERED_MAX, PROBE_CHUNKS, RATE_SPAN, REORDERING,
    SILENCE_MIN, SILENT_AFTER, TRIES_MAX, WINDOW_INITIAL, WINDOW_MAX, WINDOW_MIN,
};

/// Chunks of one branch that were asked for.
#[derive(Debug)]
struct Flight {
    /// Of the last request, to find it in `order`.
    serial: u64,
    /// Those that are not here.
    bits: u64,
    /// Those that were overtaken.
    suspects: u64,
    /// Those that came and lack hashes.
    unproved: u64,
    asked_at: Instant,
    /// When the suspects are asked for again.
    again_at: Option<Instant>,
    tries: u32,
    /// Another source was asked for them, too.
    hedged: bool,
}

/// How many chunks a source brings, while it is asked for any.
#[derive(Debug)]
struct Rate {
    since: Instant,
    chunks: u32,
    per_second: Option<f64>,
}

impl Rate {
    fn count(&mut self, now: Instant) {
        self.chunks += 1;
        let span = now.saturating_duration_since(self.since);
        if span >= RATE_SPAN {
            let sample = f64::from(self.chunks) / span.as_secs_f64();
            self.per_second = Some(self.per_second.map_or(sample, |rate| rate.midpoint(sample)));
            (self.since, self.chunks) = (now, 0);
        }
    }
}

impl Flight {
    /// Something of it is asked for again by then.
    fn again_by(&mut self, at: Instant) {
        self.again_at = Some(self.again_at.map_or(at, |before| before.min(at)));
    }
}

/// A chunk that came and lacks hashes.
#[derive(Debug)]
pub(super) struct Unproved {
    pub(super) chunk: u64,
    pub(super) delay_us: u64,
    pub(super) payload: Vec<u8>,
}

/// How a source is asked for the content's length.
#[derive(Debug, Default)]
pub(super) struct Sounding {
    /// The chunk that was asked for, when, and how often.
    asked: Option<(u64, Instant, u32)>,
    /// The number of chunks that its peaks claim.
    pub(super) claim: Option<ContentShape>,
    /// A length that cannot be told from a forgery.
    pub(super) ambiguous: Option<u64>,
}

/// What has become of requests.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    /// Chunks that were asked for again.
    pub(super) again: u64,
    /// Chunks that another source may be asked for.
    pub(super) returned: Vec<(BranchIndex, u64)>,
    /// The source does not answer any more.
    pub(super) is_gone: bool,
}

/// A peer as a source.
#[derive(Debug)]
pub(super) struct Source {
    /// Chunks that it says it has.
    pub(super) availability: IntervalSet,
    pub(super) is_choking: bool,
    flights: BTreeMap<BranchIndex, Flight>,
    /// Serials of requests in order; entries whose flight has another one are skipped.
    order: VecDeque<(u64, BranchIndex)>,
    next_serial: u64,
    /// Chunks asked for and not here.
    outstanding: u64,
    window: u64,
    rate: Rate,
    /// When something came of it last, or was asked of it while it rested.
    progress_at: Instant,
    /// Requests in vain since.
    in_vain: u32,
    /// Where the next chunks are looked for.
    pub(super) cursor: u64,
    /// Requests and cancellations to be written.
    pub(super) asks: Vec<ChunkRange>,
    pub(super) cancels: Vec<ChunkRange>,
    /// Hashes that nothing proves yet. They never help to verify what another peer sent, so that it is
    /// known who lied.
    pub(super) offered: BTreeMap<Bin, MerkleHash>,
    /// Chunks that came, by the hash that they lack: of those asked for, and so as bounded as these.
    kept: BTreeMap<Bin, Vec<Unproved>>,
    pub(super) sounding: Sounding,
    pub(super) verified_bytes: u64,
    /// Chunks of it that could not be verified for want of hashes that fit.
    pub(super) unproved: u64,
}

impl Source {
    pub(super) fn new(now: Instant, cursor: u64) -> Self {
        Self {
            availability: IntervalSet::default(),
            is_choking: false,
            flights: BTreeMap::new(),
            order: VecDeque::new(),
            next_serial: 0,
            outstanding: 0,
            window: WINDOW_INITIAL,
            rate: Rate { since: now, chunks: 0, per_second: None },
            progress_at: now,
            in_vain: 0,
            cursor,
            asks: Vec::new(),
            cancels: Vec::new(),
            offered: BTreeMap::new(),
            kept: BTreeMap::new(),
            sounding: Sounding::default(),
            verified_bytes: 0,
            unproved: 0,
        }
    }

    /// Chunks asked for and not here.
    pub(super) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// How many chunks more it may be asked for, if it is time to ask.
    pub(super) fn room(&self) -> u64 {
        // RFC 7574 3.9: who is choked MUST NOT send new requests, also not after a HAVE.
        let is_silent = self.in_vain >= SILENT_AFTER && self.outstanding > 0;
        if self.is_choking || is_silent || self.outstanding * 4 > self.window * 3 {
            return 0;
        }
        self.window - self.outstanding
    }

    /// Takes a hash that it offers.
    pub(super) fn offer(&mut self, bin: Bin, hash: MerkleHash) {
        if self.offered.len() >= OFFERED_MAX && !self.offered.contains_key(&bin) {
            // What is needed of them comes again with the chunks.
            self.offered.clear();
        }
        self.offered.insert(bin, hash);
    }

    /// Forgets what it offered for a chunk that is verified: that is known.
    pub(super) fn forget_offers(&mut self, leaf: Bin, shape: ContentShape) {
        let mut at = leaf;
        while !self.offered.is_empty() && at.layer() <= shape.root().layer() {
            self.offered.remove(&at);
            self.offered.remove(&at.sibling());
            at = at.parent();
        }
    }

    /// Asks for chunks of one branch.
    pub(super) fn ask(&mut self, now: Instant, chunks: ChunkRange) {
        let branch = BranchIndex::of(chunks.start.0);
        let bits = bits_of(branch, chunks);
        if self.outstanding == 0 {
            self.progress_at = now;
            (self.rate.since, self.rate.chunks) = (now, 0);
        }
        let serial = self.next_serial;
        let flight = self.flights.entry(branch).or_insert(Flight {
            serial,
            bits: 0,
            suspects: 0,
            unproved: 0,
            asked_at: now,
            again_at: None,
            tries: 0,
            hedged: false,
        });
        self.outstanding += u64::from((bits & !flight.bits).count_ones());
        flight.bits |= bits;
        self.request(now, branch, bits);
    }

    /// Writes requests for chunks of a flight, which moves to the end of the order.
    fn request(&mut self, now: Instant, branch: BranchIndex, bits: u64) {
        let Some(flight) = self.flights.get_mut(&branch) else { return };
        flight.serial = self.next_serial;
        flight.asked_at = now;
        self.next_serial += 1;
        self.order.push_back((flight.serial, branch));
        for run in ranges_of(branch, bits) {
            match self.asks.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => self.asks.push(run),
            }
        }
    }

    /// A chunk came, and is verified: whether it had been asked for.
    pub(super) fn on_chunk(&mut self, now: Instant, chunk: u64, rtt: &Rtt) -> bool {
        let (branch, bit) = place_of(chunk);
        if self.asked(branch) & bit == 0 {
            return false;
        }
        self.overtake(now, branch, bit, rtt);
        self.drop_bit(branch, bit);
        self.rate.count(now);
        let most = self.rate.per_second.map_or(WINDOW_MAX, |rate| {
            let time = ANSWER_TARGET + rtt.minimum();
            ((rate * time.as_secs_f64()) as u64).clamp(WINDOW_MIN, WINDOW_MAX)
        });
        self.window = (self.window + 1).min(most);
        true
    }

    /// A chunk came without the hashes that it needs: with what lacks it is kept, and asked for again if
    /// that does not come.
    pub(super) fn on_hashless(
        &mut self,
        now: Instant,
        unproved: Unproved,
        lacking: Bin,
        rtt: &Rtt,
    ) {
        self.unproved += 1;
        let (branch, bit) = place_of(unproved.chunk);
        let Some(flight) = self.flights.get_mut(&branch).filter(|flight| flight.bits & bit != 0)
        else {
            return;
        };
        flight.unproved |= bit;
        flight.again_by(now + rtt.overdue(0));
        self.overtake(now, branch, bit, rtt);
        // Each once: more are the same ones again, for want of ever other hashes.
        if self.kept.values().map(Vec::len).sum::<usize>() as u64 >= self.outstanding {
            self.kept.clear();
        }
        let kept = self.kept.entry(lacking).or_default();
        if kept.iter().all(|other| other.chunk != unproved.chunk) {
            kept.push(unproved);
        }
    }

    /// What was asked for before a chunk that came was lost, or is late.
    fn overtake(&mut self, now: Instant, branch: BranchIndex, bit: u64, rtt: &Rtt) {
        (self.progress_at, self.in_vain) = (now, 0);
        let again_at = now + REORDERING.max(rtt.smoothed() / 4);
        let Some(flight) = self.flights.get_mut(&branch) else { return };
        let serial = flight.serial;
        let overtaken = flight.bits & (bit - 1) & !flight.suspects & !flight.unproved;
        if overtaken != 0 && flight.tries == 0 {
            flight.suspects |= overtaken;
            flight.again_by(again_at);
        }
        while let Some((before, branch)) = self.order.front().copied() {
            if self.flights.get(&branch).is_some_and(|flight| flight.serial == before) {
                break;
            }
            self.order.pop_front();
        }
        for (before, branch) in self.order.iter().take_while(|(before, _)| *before < serial) {
            if let Some(flight) = self.flights.get_mut(branch).filter(|f| f.serial == *before)
                && flight.suspects == 0
                && flight.bits & !flight.unproved != 0
            {
                flight.suspects = flight.bits & !flight.unproved;
                flight.again_by(again_at);
            }
        }
    }

    /// A chunk is no longer asked for.
    fn drop_bit(&mut self, branch: BranchIndex, bit: u64) {
        let Some(flight) = self.flights.get_mut(&branch).filter(|flight| flight.bits & bit != 0)
        else {
            return;
        };
        flight.bits &= !bit;
        flight.suspects &= !bit;
        flight.unproved &= !bit;
        self.outstanding -= 1;
        if flight.bits == 0 {
            self.flights.remove(&branch);
        }
        if self.outstanding == 0 {
            self.kept.clear();
        }
    }

    /// Chunks that came without their hashes, and may be proved by what is known or offered now.
    pub(super) fn take_provable(&mut self, tree: &MerkleTree) -> Vec<Unproved> {
        let is_here = |bin: &Bin| tree.node(*bin).is_some() || self.offered.contains_key(bin);
        let ready: Vec<Bin> = self.kept.keys().filter(|bin| is_here(bin)).copied().collect();
        ready.iter().flat_map(|bin| self.kept.remove(bin).unwrap_or_default()).collect()
    }

    /// A chunk is no longer wanted of this source: another one brought it.
    pub(super) fn cancel(&mut self, chunk: u64) {
        let (branch, bit) = place_of(chunk);
        if self.asked(branch) & bit == 0 {
            return;
        }
        self.drop_bit(branch, bit);
        match (self.cancels.last_mut(), ChunkRange::new(chunk, chunk + 1)) {
            (Some(last), Some(one)) if last.end == one.start => last.end = one.end,
            (_, one) => self.cancels.extend(one),
        }
    }

    /// Whether a branch's chunks are asked for here.
    pub(super) fn asked(&self, branch: BranchIndex) -> u64 {
        self.flights.get(&branch).map_or(0, |flight| flight.bits)
    }

    /// Everything that was asked for is no longer.
    pub(super) fn withdraw(&mut self) -> Vec<(BranchIndex, u64)> {
        self.order.clear();
        self.asks.clear();
        self.outstanding = 0;
        self.kept.clear();
        std::mem::take(&mut self.flights)
            .into_iter()
            .map(|(at, flight)| (at, flight.bits))
            .collect()
    }

    /// The chunks that have waited longest, for another source to be asked for them, too.
    pub(super) fn hedge(&mut self, now: Instant, other: &IntervalSet) -> Option<ChunkRange> {
        let patience = super::limits::HEDGE_AFTER;
        let late = self.flights.iter_mut().filter(|(_, flight)| {
            !flight.hedged && now.saturating_duration_since(flight.asked_at) >= patience
        });
        let (branch, flight) = late.min_by_key(|(_, flight)| flight.asked_at)?;
        let run = ranges_of(*branch, flight.bits).next()?;
        let (start, end) = other.first_within(run.start.0, run.end.0)?;
        flight.hedged = true;
        ChunkRange::new(start, end)
    }

    /// When [`Self::on_late`] has something to do.
    pub(super) fn late_at(&self, rtt: &Rtt) -> Option<Instant> {
        if self.outstanding == 0 {
            return None;
        }
        let again = self.flights.values().filter_map(|flight| flight.again_at).min();
        let forgotten = self.oldest().map(|at| at + FORGOTTEN_AFTER);
        let silent = Some(self.silent_at(rtt));
        [again, forgotten, silent].into_iter().flatten().min()
    }

    fn silent_at(&self, rtt: &Rtt) -> Instant {
        self.progress_at + rtt.overdue(self.in_vain).max(SILENCE_MIN * (1 << self.in_vain.min(3)))
    }

    /// When the oldest request was made.
    fn oldest(&self) -> Option<Instant> {
        self.flights.values().map(|flight| flight.asked_at).min()
    }

    /// Asks again for what was overtaken, forgotten, or not answered at all.
    pub(super) fn on_late(&mut self, now: Instant, rtt: &Rtt) -> Overdue {
        let mut overdue = Overdue::default();
        if self.outstanding == 0 {
            return overdue;
        }
        let mut again = Vec::new();
        let mut forgotten = false;
        for (branch, flight) in &mut self.flights {
            let is_old = now.saturating_duration_since(flight.asked_at) >= FORGOTTEN_AFTER;
            let is_due = flight.again_at.is_some_and(|at| at <= now);
            if !is_old && !is_due {
                continue;
            }
            forgotten |= is_old;
            // The second time all of it is late: what was behind the suspects should long be here.
            let all = is_old || flight.tries > 0;
            let bits = match flight.suspects & flight.bits {
                _ if all => flight.bits,
                0 => flight.unproved & flight.bits,
                suspects => suspects,
            };
            flight.suspects = 0;
            flight.again_at = None;
            flight.tries += 1;
            if is_due && !is_old && flight.bits != 0 {
                // Lost a second time, it is not overtaken by what is asked for later.
                flight.suspects = bits;
                flight.again_at = Some(now + rtt.overdue(flight.tries - 1));
            }
            again.push((*branch, bits, flight.tries));
        }
        for (branch, bits, tries) in again {
            if bits == 0 {
                continue;
            }
            if tries > TRIES_MAX {
                if let Some(flight) = self.flights.remove(&branch) {
                    self.outstanding -= u64::from(flight.bits.count_ones());
                    overdue.returned.push((branch, flight.bits));
                }
            } else {
                overdue.again += u64::from(bits.count_ones());
                self.request(now, branch, bits);
            }
        }
        if forgotten {
            self.window = (self.window / 2).max(WINDOW_MIN);
        }
        if self.outstanding > 0 && self.silent_at(rtt) <= now {
            self.on_silence(now, &mut overdue);
        }
        overdue
    }

    /// Nothing came for too long.
    fn on_silence(&mut self, now: Instant, overdue: &mut Overdue) {
        self.in_vain += 1;
        self.progress_at = now;
        self.window = WINDOW_INITIAL.min(self.window);
        overdue.is_gone = self.in_vain >= GONE_AFTER;
        let oldest = self.flights.iter().min_by_key(|(_, flight)| flight.serial);
        let Some((kept, bits)) = oldest.map(|(branch, flight)| (*branch, flight.bits)) else {
            return;
        };
        if self.in_vain >= SILENT_AFTER {
            let gone: Vec<BranchIndex> =
                self.flights.keys().copied().filter(|branch| *branch != kept).collect();
            for branch in gone {
                if let Some(flight) = self.flights.remove(&branch) {
                    self.outstanding -= u64::from(flight.bits.count_ones());
                    overdue.returned.push((branch, flight.bits));
                }
            }
        }
        let (first, end) = (bits.trailing_zeros(), 1 << BRANCH_LAYER);
        let probe = bits & (((1 << PROBE_CHUNKS) - 1) << u64::from(first).min(end - PROBE_CHUNKS));
        overdue.again += u64::from(probe.count_ones());
        self.request(now, kept, probe);
    }

    /// Asks for a chunk that tells the content's length, if it is time: the last one that its peaks claim,
    /// else the last one that it has.
    pub(super) fn sound(&mut self, now: Instant, rtt: &Rtt) {
        let claimed = self.sounding.claim.map(|shape| shape.chunks() - 1);
        let claimed = claimed.filter(|last| self.availability.contains(*last, last + 1));
        let last = self.availability.iter().last().map(|(_, end)| end - 1);
        let Some(chunk) = claimed.or(last).filter(|_| !self.is_choking) else { return };
        let tries = match self.sounding.asked {
            Some((asked, at, tries)) if asked == chunk => {
                if now < at + Self::sounding_patience(tries, rtt) {
                    return;
                }
                tries + 1
            }
            _ => 0,
        };
        self.sounding.asked = Some((chunk, now, tries));
        self.asks.extend(ChunkRange::new(chunk, chunk + 1));
    }

    /// When the length is asked for again.
    pub(super) fn sound_at(&self, rtt: &Rtt) -> Option<Instant> {
        let (_, at, tries) = self.sounding.asked?;
        Some(at + Self::sounding_patience(tries, rtt))
    }

    fn sounding_patience(tries: u32, rtt: &Rtt) -> Duration {
        rtt.overdue(tries).max(SILENCE_MIN * (1 << tries.min(3)))
    }
}

/// The branch of a chunk, and its bit there.
fn place_of(chunk: u64) -> (BranchIndex, u64) {
    (BranchIndex::of(chunk), 1 << (chunk % (1 << BRANCH_LAYER)))
}

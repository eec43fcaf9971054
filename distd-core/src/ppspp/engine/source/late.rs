//! What is late at a source: holes that later data has overtaken, silent lanes, flights that want a second
//! source.

use std::time::{Duration, Instant};

use crate::ppspp::engine::flight::{Flight, Hashing, LANES};
use crate::ppspp::engine::limits::HASHLESS_MAX;
use crate::ppspp::engine::rtt::Rtt;
use crate::unit::{ChunkRange, MunroIndex};

use super::{Ask, Overdue, REORDER_DELAY_MIN, Source};

/// Flights of which the holes are asked for again when a lane is overdue.
const OVERDUE_FLIGHTS: usize = 64;
/// Least time after which an answer that nobody waits for is overdue.
const OVERDUE_BACKGROUND: Duration = Duration::from_millis(100);
/// How much longer background work may be without an answer while waited runs are ahead of it.
const BEHIND_WAITED: u32 = 8;

impl Source {
    /// Asks again for what later data has overtaken; the number of flights concerned.
    pub(in crate::ppspp::engine) fn recover(&mut self, now: Instant, rtt: &Rtt) -> u64 {
        let mut again = 0;
        for lane in 0..LANES {
            let lane = &self.lanes[lane];
            let high = now.checked_sub(Self::reorder_delay(rtt)).map_or(0, |at| lane.high_at(at));
            let overtaken: Vec<u64> = lane
                .order
                .iter()
                .take_while(|(place, _)| **place < high)
                .map(|(_, first)| *first)
                .filter(|first| {
                    self.flights.get(first).is_some_and(|flight| {
                        flight.end() <= high && now >= flight.asked_at + rtt.minimum()
                    })
                })
                .collect();
            again += overtaken.iter().filter(|first| self.ask_again(now, **first)).count() as u64;
        }
        again
    }

    pub(super) fn reorder_delay(rtt: &Rtt) -> Duration {
        (rtt.minimum() / 4).max(REORDER_DELAY_MIN)
    }

    /// Asks again for the holes of lanes that have been without an answer for too long.
    pub(in crate::ppspp::engine) fn overdue(&mut self, now: Instant, rtt: &Rtt) -> Overdue {
        let mut overdue = Overdue::default();
        for lane in 0..LANES {
            if self.overdue_at(lane, rtt).is_none_or(|at| at > now) {
                continue;
            }
            overdue.late = true;
            let lane = &self.lanes[lane];
            let late: Vec<u64> = lane.order.values().take(OVERDUE_FLIGHTS).copied().collect();
            overdue.again +=
                late.iter().filter(|first| self.ask_again(now, **first)).count() as u64;
        }
        if overdue.late {
            self.timeouts += 1;
        }
        overdue
    }

    /// When the lane's oldest flight is overdue.
    pub(super) fn overdue_at(&self, lane: usize, rtt: &Rtt) -> Option<Instant> {
        let (background, lane) = (lane >= 2, &self.lanes[lane]);
        let oldest = self.flights.get(lane.order.first_key_value()?.1)?;
        let behind = background && self.waited() > 0;
        let mut patience = rtt.overdue(self.timeouts);
        if background {
            // What others are sent meanwhile stands in the line's queue, and is no loss of ours.
            patience = patience.max(OVERDUE_BACKGROUND * (1 << self.timeouts.min(3)));
        }
        let patience = patience * if behind { BEHIND_WAITED } else { 1 };
        Some(oldest.asked_at.max(lane.last_arrival) + patience)
    }

    /// Asks for a flight's holes, or for its hashes if it has none; `false` if it must wait.
    pub(super) fn ask_again(&mut self, now: Instant, first: u64) -> bool {
        let Some(flight) = self.flights.get(&first) else { return false };
        let bin = flight.bin;
        let hashing = matches!(flight.hashing, Some(Hashing::Wanted(_)));
        if hashing || flight.is_complete() && self.computes_later(flight) {
            // Looked at again after another round trip.
            if let Some(flight) = self.flights.get_mut(&first) {
                flight.asked_at = now;
            }
            return false;
        }
        let Some(flight) = self.flights.get_mut(&first) else { return false };
        let (class, deadline) = (flight.class, flight.deadline);
        flight.asked_at = now;
        let chunks = bin.chunks();
        let mut holes = Vec::new();
        if flight.is_complete() {
            // A chunk that is asked for a second time comes with every hash (see `known`).
            flight.hashless += 1;
            holes.extend(ChunkRange::new(chunks.end.0 - 1, chunks.end.0));
        } else {
            let mut at = 0;
            while at < flight.chunks() {
                let missing = u64::from((!(flight.got >> at)).trailing_zeros());
                let start = (at + missing).min(flight.chunks());
                let length = u64::from((flight.got >> start).trailing_zeros());
                let end = (start + length).min(flight.chunks());
                holes.extend(ChunkRange::new(first + start, first + end));
                at = end;
            }
        }
        self.move_to(first, class, true);
        for chunks in holes {
            self.push_ask(Ask { chunks, class, deadline });
        }
        true
    }

    /// Whether an earlier flight of the same munro is incomplete: the hash that a complete one lacks
    /// may be one that it proves.
    pub(super) fn computes_later(&self, complete: &Flight) -> bool {
        let bin = complete.bin;
        let munro = bin.munro().map_or(bin, MunroIndex::bin).chunks();
        let mut others = self.flights.range(munro.start.0..munro.end.0);
        others.any(|(_, other)| {
            other.class == complete.class && other.order < complete.order && !other.is_complete()
        })
    }

    /// Flights whose hashes never came, though all their chunks did.
    pub(in crate::ppspp::engine) fn hashless(&self) -> Vec<u64> {
        let tired = self.flights.iter().filter(|(_, flight)| flight.hashless > HASHLESS_MAX);
        tired.map(|(first, _)| *first).collect()
    }

    /// Waited flights that are late enough for a second source; each is named once.
    pub(in crate::ppspp::engine) fn hedges(&mut self, now: Instant) -> Vec<u64> {
        let mut late = Vec::new();
        while let Some((at, first)) = self.hedges.first().copied().filter(|(at, _)| *at <= now) {
            self.hedges.remove(&(at, first));
            if let Some(flight) = self.flights.get_mut(&first) {
                flight.hedge_at = None;
                late.push(first);
            }
        }
        late
    }

    /// A late flight found no second source: one is sought again at `at`.
    pub(in crate::ppspp::engine) fn hedge_again(&mut self, first: u64, at: Instant) {
        if let Some(flight) =
            self.flights.get_mut(&first).filter(|flight| flight.hedge_at.is_none())
        {
            flight.hedge_at = Some(at);
            self.hedges.insert((at, first));
        }
    }

    /// When something here is due.
    pub(in crate::ppspp::engine) fn deadline(&self, rtt: &Rtt) -> Option<Instant> {
        if self.flights.is_empty() {
            return None;
        }
        let mut next: Option<Instant> = None;
        let mut at = |when: Instant| next = Some(next.map_or(when, |next| next.min(when)));
        for lane in 0..LANES {
            self.overdue_at(lane, rtt).into_iter().for_each(&mut at);
            let lane = &self.lanes[lane];
            let Some(first) = lane.order.first_key_value().and_then(|(_, f)| self.flights.get(f))
            else {
                continue;
            };
            if let Some(overtaken) = lane.overtaken_at(first.end()) {
                at((overtaken + Self::reorder_delay(rtt)).max(first.asked_at + rtt.minimum()));
            }
        }
        self.hedges.first().map(|(when, _)| *when).into_iter().for_each(&mut at);
        next
    }
}

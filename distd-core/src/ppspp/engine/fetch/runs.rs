//! The runs of a ledger: made of what is wanted, in line for a source, asked of some.

use std::net::SocketAddr;

use crate::limits::{BLOCK_LAYER, GRANULE_LAYER};
use crate::ppspp::engine::channel::ChannelIndex;
use crate::ppspp::engine::event::{Class, FetchId};
use crate::ppspp::engine::limits::{SOURCES_PER_RUN, TRIED_MAX};
use crate::unit::Bin;

use super::{Ledger, Place, Run};

/// How a block became part of a run.
pub(super) enum Carved {
    /// A run that exists already holds it.
    Joined,
    /// A new run.
    Created(u64),
}

impl Ledger {
    /// Takes the run that begins with block `start` (within `start..end`) off the fetch's `todo`.
    pub(super) fn carve(&mut self, id: FetchId, start: u64, end: u64) -> Carved {
        let Some(fetch) = self.fetches.get_mut(&id) else { return Carved::Joined };
        let chunk = start << BLOCK_LAYER;
        if let Some((first, run)) = self.runs.range_mut(..=chunk).next_back()
            && run.bin.chunks().end.0 > chunk
        {
            fetch.todo.remove(start, run.bin.chunks().end.0 >> BLOCK_LAYER);
            if !run.waiters.contains(&id) {
                run.waiters.push(id);
                fetch.runs += 1;
            }
            run.deadline = run.deadline.max(fetch.deadline);
            if fetch.class < run.class {
                run.class = fetch.class;
                if run.sources.is_empty() {
                    let place = (Class::Background, run.ticket, *first);
                    let (first, class) = (*first, fetch.class);
                    self.pending.remove(&place);
                    self.parked.remove(&place);
                    self.pending.insert((class, run.ticket, first));
                } else {
                    self.upgrades.push(*first);
                }
            }
            return Carved::Joined;
        }
        let next =
            self.runs.range(chunk..).next().map_or(u64::MAX, |(next, _)| next >> BLOCK_LAYER);
        let end = end.min(next);
        let fits = |layer: &u32| {
            let blocks = 1 << (layer - BLOCK_LAYER);
            start.is_multiple_of(blocks) && start + blocks <= end
        };
        let layer = (BLOCK_LAYER..=GRANULE_LAYER).rev().find(fits).unwrap_or(BLOCK_LAYER);
        let bin = Bin::new(layer, start >> (layer - BLOCK_LAYER));
        fetch.todo.remove(start, bin.chunks().end.0 >> BLOCK_LAYER);
        fetch.runs += 1;
        let run = Run {
            bin,
            class: fetch.class,
            deadline: fetch.deadline,
            waiters: vec![id],
            sources: Vec::new(),
            avoid: Vec::new(),
            ticket: 0,
            climb: None,
        };
        self.runs.insert(chunk, run);
        Carved::Created(chunk)
    }

    /// Puts a run without a source in line.
    pub(super) fn line_up(&mut self, first: u64) {
        if let Some(run) = self.runs.get_mut(&first) {
            if run.ticket == 0 {
                self.tickets += 1;
                run.ticket = self.tickets;
            }
            self.pending.insert((run.class, run.ticket, first));
        }
    }

    /// Nobody has all of this run, but somebody has some of it: its halves go their own ways.
    pub(in crate::ppspp::engine) fn split(&mut self, place: Place) {
        let (_, ticket, first) = place;
        self.pending.remove(&place);
        let Some(run) = self.runs.remove(&first) else { return };
        for id in &run.waiters {
            if let Some(fetch) = self.fetches.get_mut(id) {
                fetch.runs += 1;
            }
        }
        for bin in [run.bin.left(), run.bin.right()].into_iter().flatten() {
            let first = bin.chunks().start.0;
            let (class, deadline, avoid) = (run.class, run.deadline, run.avoid.clone());
            let (waiters, sources) = (run.waiters.clone(), Vec::new());
            let climb = run.climb;
            let half = Run { bin, class, deadline, waiters, sources, avoid, ticket, climb };
            self.runs.insert(first, half);
            self.pending.insert((class, ticket, first));
        }
    }

    /// Nobody has this run: it waits for news.
    pub(in crate::ppspp::engine) fn park(&mut self, place: Place) {
        self.pending.remove(&place);
        self.parked.insert(place);
    }

    /// There is news: a channel, a HAVE, an end of silence.
    pub(in crate::ppspp::engine) fn unpark(&mut self) {
        self.pending.append(&mut self.parked);
    }

    /// The run is asked of `channel` from now on.
    pub(in crate::ppspp::engine) fn assign(
        &mut self,
        first: u64,
        channel: ChannelIndex,
        address: SocketAddr,
    ) {
        let Some(run) = self.runs.get_mut(&first) else { return };
        self.pending.remove(&(run.class, run.ticket, first));
        run.sources.push(channel);
        assert!(run.sources.len() <= SOURCES_PER_RUN, "a run is in a race of two at most");
        for id in &run.waiters {
            if let Some(fetch) = self.fetches.get_mut(id)
                && fetch.tried.len() < TRIED_MAX
                && fetch.tried.last() != Some(&address)
                && !fetch.tried.contains(&address)
            {
                fetch.tried.push(address);
            }
        }
    }

    /// `channel` will not deliver the run; without another source it stands in line again.
    pub(in crate::ppspp::engine) fn unassign(&mut self, first: u64, channel: ChannelIndex) {
        let Some(run) = self.runs.get_mut(&first) else { return };
        run.sources.retain(|source| *source != channel);
        if run.avoid.len() < TRIED_MAX && !run.avoid.contains(&channel) {
            run.avoid.push(channel);
        }
        if run.sources.is_empty() {
            self.line_up(first);
        }
    }

    /// A channel's index is free for another peer.
    pub(in crate::ppspp::engine) fn forget_channel(&mut self, channel: ChannelIndex) {
        for run in self.runs.values_mut() {
            run.avoid.retain(|avoided| *avoided != channel);
            if let Some(climb) = &mut run.climb {
                climb.forget_channel(channel);
            }
        }
    }
}

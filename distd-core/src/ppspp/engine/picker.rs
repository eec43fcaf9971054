//! Which source is asked for which run.
//!
//! Waited runs go to the source that is likely to deliver first. Background work is dealt out in
//! stretches to every source with room, beginning with another one each time, so that all of them
//! work and neighbouring granules travel together. Silent sources (P3: they claim and never
//! answer) come last.

use std::cmp::Ordering;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::limits::BLOCK_LAYER;

use super::channel::{ChannelIndex, Channels};
use super::event::Class;
use super::fetch::Place;
use super::limits::{PLAN_MISSES_MAX, SOURCES_PER_RUN, STRETCH_RUNS};
use super::swarm::Swarm;

/// Gives runs their sources; `budget` is what may be asked for in all, in bytes. Names the
/// channels that have something to ask.
pub(super) fn plan(
    now: Instant,
    swarm: &mut Swarm,
    channels: &mut Channels,
    budget: &mut u64,
) -> Vec<ChannelIndex> {
    let mut asked = Vec::new();
    for (index, first) in std::mem::take(&mut swarm.ledger.withdrawn) {
        if let Some(channel) = channels.get_mut(index) {
            channel.source.withdraw(first);
            asked.push(index);
        }
    }
    if std::mem::take(&mut swarm.unpark) {
        swarm.ledger.unpark();
    }
    if !swarm.ledger.has_work() {
        return asked;
    }
    upgrade(now, swarm, channels, &mut asked);
    swarm.ledger.expand_waited();
    assign_pending(now, swarm, channels, budget, &mut asked);
    hedge(now, swarm, channels, &mut asked);
    deal_background(now, swarm, channels, budget, &mut asked);
    asked
}

/// Readers wait for runs that are in flight as background work.
fn upgrade(
    now: Instant,
    swarm: &mut Swarm,
    channels: &mut Channels,
    asked: &mut Vec<ChannelIndex>,
) {
    for first in std::mem::take(&mut swarm.ledger.upgrades) {
        let Some(run) = swarm.ledger.run(first) else { continue };
        for index in &run.sources {
            if let Some(channel) = channels.get_mut(*index) {
                channel.source.upgrade(now, first, run.deadline, &channel.rtt);
                asked.push(*index);
            }
        }
    }
}

/// Runs in line: waited ones first, then what came back from a source that failed.
fn assign_pending(
    now: Instant,
    swarm: &mut Swarm,
    channels: &mut Channels,
    budget: &mut u64,
    asked: &mut Vec<ChannelIndex>,
) {
    let mut misses = 0;
    let mut after: Option<Place> = None;
    while misses < PLAN_MISSES_MAX {
        let place = match after {
            None => swarm.ledger.pending.first(),
            Some(after) => {
                let behind = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
                swarm.ledger.pending.range(behind).next()
            }
        };
        let Some(place) = place.copied() else { break };
        after = Some(place);
        let Some(bytes) = swarm.ledger.run(place.2).map(|run| run.bin.byte_len()) else {
            swarm.ledger.pending.remove(&place);
            continue;
        };
        // The budget bounds memory; a reader's run is never refused for prefetched bytes.
        if place.0 == Class::Background && *budget < bytes {
            break;
        }
        match choose(swarm, channels, place.2) {
            Choice::Source(index, address) => {
                *budget = budget.saturating_sub(bytes);
                ask(now, swarm, channels, place.2, index, address);
                asked.push(index);
            }
            Choice::Full => misses += 1,
            Choice::Parts => {
                misses += 1;
                swarm.ledger.split(place);
                // The halves keep the ticket: look at both.
                after = Some((place.0, place.1.saturating_sub(1), u64::MAX));
            }
            Choice::Nobody => {
                misses += 1;
                swarm.ledger.park(place);
            }
        }
    }
}

/// Runs that are late get a second source.
fn hedge(now: Instant, swarm: &mut Swarm, channels: &mut Channels, asked: &mut Vec<ChannelIndex>) {
    for first in std::mem::take(&mut swarm.ledger.hedges) {
        if swarm.ledger.run(first).is_none_or(|run| run.sources.len() >= SOURCES_PER_RUN) {
            continue;
        }
        if let Choice::Source(index, address) = choose(swarm, channels, first) {
            swarm.counters.hedged_runs += 1;
            ask(now, swarm, channels, first, index, address);
            asked.push(index);
        }
    }
}

/// Background work for everyone with room.
fn deal_background(
    now: Instant,
    swarm: &mut Swarm,
    channels: &mut Channels,
    budget: &mut u64,
    asked: &mut Vec<ChannelIndex>,
) {
    let wants = |index: &ChannelIndex| {
        channels.get(*index).is_some_and(|channel| channel.source.wants_more(&channel.rtt))
    };
    let members: Vec<ChannelIndex> = swarm.members.iter().copied().filter(wants).collect();
    if members.is_empty() {
        return;
    }
    let mut idle = 0;
    while idle < members.len() {
        let index = members[swarm.rotor % members.len()];
        swarm.rotor = (swarm.rotor + 1) % members.len();
        idle += 1;
        let mut runs = 0;
        while runs < STRETCH_RUNS {
            let Some(channel) = channels.get(index) else { break };
            let room = channel.source.room(Class::Background, &channel.rtt).min(*budget);
            let granule = crate::limits::GRANULE_BYTES;
            if channel.source.is_silent() || room < granule {
                break;
            }
            let address = channel.address;
            let Some(first) = swarm.ledger.next_background(&channel.source.availability) else {
                break;
            };
            *budget -= swarm.ledger.run(first).map_or(0, |run| run.bin.byte_len());
            ask(now, swarm, channels, first, index, address);
            runs += 1;
        }
        if runs > 0 {
            asked.push(index);
            idle = 0;
        }
    }
}

/// Asks `index` for the run.
fn ask(
    now: Instant,
    swarm: &mut Swarm,
    channels: &mut Channels,
    first: u64,
    index: ChannelIndex,
    address: SocketAddr,
) {
    swarm.ledger.assign(first, index, address);
    let Some(run) = swarm.ledger.run(first) else { return };
    if let Some(channel) = channels.get_mut(index) {
        channel.source.ask(now, run.bin, run.class, run.deadline, &channel.rtt);
        swarm.counters.requested_runs += 1;
    }
}

/// Who may deliver a run.
enum Choice {
    Source(ChannelIndex, SocketAddr),
    /// Somebody has it, and has no room for another request.
    Full,
    /// Nobody has all of it, somebody has some of it.
    Parts,
    /// No open channel has any of it.
    Nobody,
}

/// A candidate's merits: those that failed the run and silent ones come last, then the quickest.
type Merit = (bool, bool, Duration, u64);

fn choose(swarm: &Swarm, channels: &Channels, first: u64) -> Choice {
    let Some(run) = swarm.ledger.run(first) else { return Choice::Nobody };
    let mut best: Option<(Merit, ChannelIndex, SocketAddr)> = None;
    let (mut somebody, mut parts) = (false, false);
    for index in &swarm.members {
        let Some(channel) = channels.get(*index) else { continue };
        let source = &channel.source;
        if source.choked || run.sources.contains(index) {
            continue;
        }
        if !source.has(run.bin) {
            parts |= source.has_some(run.bin);
            continue;
        }
        somebody = true;
        // A silent source keeps few requests: one that came back answers them.
        let room = source.room(run.class, &channel.rtt);
        if room < run.bin.byte_len() {
            continue;
        }
        let merit = (
            run.avoid.contains(index),
            source.is_silent(),
            source.expected(run.class, &channel.rtt),
            source.outstanding,
        );
        if best.as_ref().is_none_or(|(least, ..)| merit.cmp(least) == Ordering::Less) {
            best = Some((merit, *index, channel.address));
        }
    }
    match best {
        Some((_, index, address)) => Choice::Source(index, address),
        None if somebody => Choice::Full,
        None if parts && run.bin.layer() > BLOCK_LAYER => Choice::Parts,
        None => Choice::Nobody,
    }
}

/// Whether a member other than `than` could deliver the run and is not silent.
pub(super) fn has_other_source(
    swarm: &Swarm,
    channels: &Channels,
    first: u64,
    than: ChannelIndex,
) -> bool {
    let Some(run) = swarm.ledger.run(first) else { return false };
    swarm.members.iter().filter(|index| **index != than).any(|index| {
        channels.get(*index).is_some_and(|channel| {
            !channel.source.choked && !channel.source.is_silent() && channel.source.has(run.bin)
        })
    })
}

//! Which source is asked for which run.
//!
//! The nearest level that has a run delivers it: equals, then relays, then the injector; what nobody
//! near has is fetched from above by one of the equals (`turns`). Within a level waited runs go to the
//! source that is likely to deliver first. Background work is dealt out in stretches to every source
//! with room, beginning with another one each time, so that all of them work and neighbouring granules
//! travel together. Silent sources (P3: they claim and never answer) come last.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::limits::BLOCK_LAYER;

use super::channel::{ChannelIndex, Channels};
use super::climb::{Climb, Piece, Step, Want, stretch_of};
use super::event::{Class, FetchId};
use super::fetch::Place;
use super::interval::IntervalSet;
use super::limits::{
    HEDGE_FARTHER, LOOK_AHEAD_STRETCHES, PLAN_MISSES_MAX, SOURCES_PER_RUN, STRETCH_RUNS,
    STRETCHES_SOUGHT_MAX,
};
use super::source::Ask;
use super::swarm::Swarm;

/// What may be asked for in all, in bytes.
pub(super) struct Budget {
    /// What memory leaves for what nobody waits for.
    pub(super) memory: u64,
    /// What the limit leaves.
    pub(super) line: u64,
}

impl Budget {
    fn of(&self, class: Class) -> u64 {
        match class {
            // The budget of memory never refuses a reader's run for prefetched bytes.
            Class::Waited => self.line,
            Class::Background => self.line.min(self.memory),
        }
    }

    fn take(&mut self, bytes: u64) {
        self.memory = self.memory.saturating_sub(bytes);
        self.line = self.line.saturating_sub(bytes);
    }
}

/// Gives runs their sources, within a budget. Names the
/// channels that have something to ask.
pub(super) fn plan(
    now: Instant,
    swarm: &mut Swarm,
    channels: &mut Channels,
    budget: &mut Budget,
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
    let greeting = swarm.greeting(now, channels);
    let grown = std::mem::take(&mut swarm.ledger.grown);
    swarm.turns.epoch += u64::from(grown);
    let refreshed = swarm.turns.refresh(now, &swarm.members, channels, greeting);
    if !swarm.ledger.has_work() {
        return asked;
    }
    upgrade(now, swarm, channels, &mut asked);
    swarm.ledger.expand_waited();
    if (refreshed || grown) && !swarm.turns.is_flat() {
        climb_background(now, swarm, channels, &mut asked);
    }
    if swarm.ledger.has_errands()
        && let Some(least) = swarm.turns.cut_off(now)
    {
        swarm.hopeless = hopeless_errands(swarm, channels, least);
    }
    assign_pending(now, swarm, channels, budget, &mut asked);
    hedge(now, swarm, channels, budget, &mut asked);
    deal_background(now, swarm, channels, budget, &mut asked);
    asked
}

/// What peers want fetched at least as urgently, nobody offers, and nobody stands above us for.
fn hopeless_errands(swarm: &Swarm, channels: &Channels, least: Class) -> Vec<FetchId> {
    swarm.ledger.hopeless_errands(least, |start, end| {
        let sources = swarm.members.iter().filter_map(|index| channels.get(*index));
        sources.into_iter().any(|c| c.source.availability.first_within(start, end).is_some())
    })
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

/// Looks at who fetches what of the background work, and asks those who should and may not know.
fn climb_background(
    now: Instant,
    swarm: &mut Swarm,
    channels: &mut Channels,
    asked: &mut Vec<ChannelIndex>,
) {
    let pieces = swarm.ledger.background_pieces(LOOK_AHEAD_STRETCHES);
    let members = &swarm.members;
    let ranks: Vec<(usize, ChannelIndex)> = members
        .iter()
        .filter_map(|index| Some((swarm.turns.rank(channels.get(*index)?), *index)))
        .filter(|(rank, _)| *rank > 0)
        .collect();
    let offers = |rank: usize, piece: Piece, channels: &Channels| {
        let (start, end) = (piece.start, piece.end);
        ranks.iter().filter(|(of, _)| *of == rank).any(|(_, index)| {
            let channel = channels.get(*index);
            channel.is_some_and(|c| c.source.availability.first_within(start, end).is_some())
        })
    };
    asked.extend(swarm.turns.step_background(now, &pieces, channels, offers));
}

/// Runs in line: waited ones first, then what came back from a source that failed.
fn assign_pending(
    now: Instant,
    swarm: &mut Swarm,
    channels: &mut Channels,
    budget: &mut Budget,
    asked: &mut Vec<ChannelIndex>,
) {
    let (mut misses, mut parked) = (0, false);
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
        if budget.of(place.0) < bytes {
            break;
        }
        match choose(now, swarm, channels, place.2) {
            Choice::Ask(index) => {
                misses += 1;
                wish(now, swarm, channels, place.2, index);
                asked.push(index);
                swarm.ledger.park(place);
                parked = true;
            }
            Choice::Source(index, address) => {
                budget.take(bytes);
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
            Choice::Wait | Choice::Nobody => {
                misses += 1;
                swarm.ledger.park(place);
                parked = true;
            }
        }
    }
    // Whoever stands behind many that nobody has gets a look, too.
    swarm.dirty |= parked && misses >= PLAN_MISSES_MAX;
}

/// Runs that are late get a second source.
fn hedge(
    now: Instant,
    swarm: &mut Swarm,
    channels: &mut Channels,
    budget: &mut Budget,
    asked: &mut Vec<ChannelIndex>,
) {
    for first in std::mem::take(&mut swarm.ledger.hedges) {
        if swarm.ledger.run(first).is_none_or(|run| run.sources.len() >= SOURCES_PER_RUN) {
            continue;
        }
        match choose(now, swarm, channels, first) {
            Choice::Source(index, address) => {
                swarm.counters.hedged_runs += 1;
                budget.take(swarm.ledger.run(first).map_or(0, |run| run.bin.byte_len()));
                ask(now, swarm, channels, first, index, address);
                asked.push(index);
            }
            Choice::Ask(_) | Choice::Wait => {
                // Nobody near has it, too: those above are spared a little longer.
                let Some(run) = swarm.ledger.run_mut(first) else { continue };
                run.climb.get_or_insert(Climb::new(now)).hurry();
                for index in run.sources.clone() {
                    if let Some(channel) = channels.get_mut(index) {
                        channel.source.hedge_again(first, now + HEDGE_FARTHER);
                        asked.push(index);
                    }
                }
            }
            Choice::Full | Choice::Parts | Choice::Nobody => {}
        }
    }
}

/// Asks a member to fetch a run that it does not have.
fn wish(now: Instant, swarm: &Swarm, channels: &mut Channels, first: u64, index: ChannelIndex) {
    let Some(run) = swarm.ledger.run(first) else { return };
    let hops = swarm.ledger.hops(run);
    let ask = Ask { chunks: run.bin.chunks(), class: run.class, deadline: run.deadline };
    if let Some(channel) = channels.get_mut(index) {
        channel.source.wish(now, ask, hops);
    }
}

/// Background work for everyone with room, the nearest first.
fn deal_background(
    now: Instant,
    swarm: &mut Swarm,
    channels: &mut Channels,
    budget: &mut Budget,
    asked: &mut Vec<ChannelIndex>,
) {
    let (flat, epoch) = (swarm.turns.is_flat(), swarm.turns.epoch);
    let wants = |index: &ChannelIndex| {
        let channel = channels.get(*index)?;
        let source = &channel.source;
        let wants = !source.is_silent() && source.dry != epoch && source.wants_more(&channel.rtt);
        let rank = if flat { 0 } else { swarm.turns.rank(channel) };
        wants.then_some((rank, *index))
    };
    let mut members: Vec<(usize, ChannelIndex)> = swarm.members.iter().filter_map(wants).collect();
    members.sort_unstable();
    for rank in members.chunk_by(|a, b| a.0 == b.0) {
        deal_rank(now, swarm, channels, rank, budget, asked);
    }
}

/// Background work for the members of one rank.
fn deal_rank(
    now: Instant,
    swarm: &mut Swarm,
    channels: &mut Channels,
    members: &[(usize, ChannelIndex)],
    budget: &mut Budget,
    asked: &mut Vec<ChannelIndex>,
) {
    let mut idle = 0;
    while idle < members.len() {
        let (rank, index) = members[swarm.rotor % members.len()];
        swarm.rotor = (swarm.rotor + 1) % members.len();
        idle += 1;
        let mut runs = 0;
        while runs < STRETCH_RUNS {
            let Some(channel) = channels.get(index) else { break };
            let room = channel
                .source
                .room(Class::Background, &channel.rtt)
                .min(budget.of(Class::Background));
            let granule = crate::limits::GRANULE_BYTES;
            if channel.source.is_silent() || room < granule {
                break;
            }
            let address = channel.address;
            let Some(first) = next_background(now, swarm, channels, rank, index) else {
                let epoch = swarm.turns.epoch;
                if let Some(channel) = channels.get_mut(index)
                    && !swarm.ledger.is_full()
                {
                    channel.source.dry = epoch;
                }
                break;
            };
            budget.take(swarm.ledger.run(first).map_or(0, |run| run.bin.byte_len()));
            ask(now, swarm, channels, first, index, address);
            runs += 1;
        }
        if runs > 0 {
            asked.push(index);
            idle = 0;
        }
    }
}

/// Makes a run of background work that this member has. What comes from above is our share of what
/// nobody nearer has.
fn next_background(
    now: Instant,
    swarm: &mut Swarm,
    channels: &mut Channels,
    rank: usize,
    index: ChannelIndex,
) -> Option<u64> {
    let Swarm { ledger, turns, members, .. } = swarm;
    // What was passed over is so until something changes, which begins an epoch or is a HAVE.
    let epoch = turns.epoch;
    let sought = channels.get(index)?.source.sought;
    let mut from = sought.filter(|(at, _)| *at == epoch && rank > 0).map(|(_, sought)| sought);
    let available = &channels.get(index)?.source.availability;
    let first = if rank == 0 {
        ledger.next_background(available, &mut from, |start, end| Some((start, end)))
    } else {
        let nearer: Vec<&IntervalSet> = members
            .iter()
            .filter_map(|index| channels.get(*index))
            .filter(|c| turns.rank(c) < rank && !c.source.choked)
            .filter(|c| !c.is_out_of_reach(now, Class::Background))
            .map(|channel| &channel.source.availability)
            .collect();
        let first_held = |start: u64, end: u64| {
            let held = nearer.iter().filter_map(|has| has.first_within(start, end));
            held.min_by_key(|(from, until)| (*from, std::cmp::Reverse(*until)))
        };
        let mut patience = STRETCHES_SOUGHT_MAX;
        ledger.next_background(available, &mut from, |start, end| {
            turns.first_of_ours(start, end, rank, &mut patience, first_held)
        })
    };
    channels.get_mut(index)?.source.sought = from.map(|from| (epoch, from));
    first
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
    /// This member is to be asked to fetch it.
    Ask(ChannelIndex),
    /// Somebody was.
    Wait,
}

/// A candidate's merits: those that failed the run and silent ones come last, then the nearest, then
/// the quickest.
type Merit = (bool, bool, usize, Duration, u64);

/// Who has a run.
#[derive(Default)]
struct Candidates {
    /// With room for another request.
    able: Vec<(Merit, ChannelIndex, SocketAddr)>,
    /// Ranks with a member that has it and can be relied on, as bits.
    ranks: u64,
    somebody: bool,
    parts: bool,
}

impl Candidates {
    fn of(swarm: &Swarm, channels: &Channels, first: u64) -> Self {
        let mut candidates = Self::default();
        let Some(run) = swarm.ledger.run(first) else { return candidates };
        for index in &swarm.members {
            let Some(channel) = channels.get(*index) else { continue };
            let source = &channel.source;
            if source.choked || run.sources.contains(index) {
                continue;
            }
            if !source.has(run.bin) {
                candidates.parts |= source.has_some(run.bin);
                continue;
            }
            candidates.somebody = true;
            let (failed, silent) = (run.avoid.contains(index), source.is_silent());
            let rank = swarm.turns.rank(channel);
            if !failed && !silent {
                candidates.ranks |= 1 << rank.min(63);
            }
            // A silent source keeps few requests: one that came back answers them.
            let room = source.room(run.class, &channel.rtt);
            if room >= run.bin.byte_len() {
                let expected = source.expected(run.class, &channel.rtt);
                let merit = (failed, silent, rank, expected, source.outstanding);
                candidates.able.push((merit, *index, channel.address));
            }
        }
        candidates
    }

    /// The best one of this rank or nearer; of all, if everybody else has failed.
    fn best(&self, rank: usize) -> Option<(ChannelIndex, SocketAddr)> {
        let within = self.able.iter().filter(|(merit, ..)| merit.2 <= rank);
        let best = within.min_by_key(|(merit, ..)| *merit)?;
        Some((best.1, best.2))
    }
}

fn choose(now: Instant, swarm: &mut Swarm, channels: &mut Channels, first: u64) -> Choice {
    let candidates = Candidates::of(swarm, channels, first);
    let Some(run) = swarm.ledger.run(first) else { return Choice::Nobody };
    let (bin, class) = (run.bin, run.class);
    let mut reach = usize::MAX;
    if candidates.ranks & 1 != 0 {
        reach = 0;
    } else if !swarm.turns.is_flat() {
        let mut climb = run.climb.unwrap_or(Climb::new(now));
        let stretch = stretch_of(bin.chunks().start.0 >> BLOCK_LAYER);
        let want = Want { stretch, class, hops: swarm.ledger.hops(run) };
        let offers = |rank: usize| candidates.ranks & (1 << rank.min(63)) != 0;
        let step = swarm.turns.step(now, &mut climb, want, channels, offers);
        if let Some(run) = swarm.ledger.run_mut(first) {
            run.climb = Some(climb);
        }
        match step {
            Step::Take(rank) => reach = rank,
            Step::Wait => return Choice::Wait,
            Step::Ask(index) => return Choice::Ask(index),
        }
    }
    match candidates.best(reach) {
        Some((index, address)) => Choice::Source(index, address),
        None if candidates.somebody => Choice::Full,
        None if candidates.parts && bin.layer() > BLOCK_LAYER => Choice::Parts,
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

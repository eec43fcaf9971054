//! Who of our level owns a stretch: fetches it from above while the others wait.
//!
//! ```text
//!   A --- B --- C --- D      B knows A and C. If everybody chose the owner among those that it knows,
//!                            each neighbourhood would have one, and the level would cost the level
//!                            above as many copies as it has neighbourhoods.
//! ```
//!
//! So equals tell each other who takes turns (message CIRCLE): the members with the smallest lots,
//! [`SEATS_MAX`] of the whole level however large it is, each over how many peers it is known. A stretch
//! belongs to the seat that weighs most for it (rendezvous hashing, Thaler and Ravishankar 1996), and
//! wishes for it go to the neighbour that told of that seat. What is told is a distance vector with
//! split horizon and a small infinity (RFC 2453 §3.4): who is gone is forgotten within a few exchanges.
//!
//! What a reader waits for is left to near neighbours that take turns: every further hop would cost it
//! time. Only who has nobody above and nobody near asks farther.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::ppspp::codec::{SEATS_MAX, Seat, SeatList};

use super::channel::{ChannelIndex, Channels};
use super::event::Class;
use super::limits::{
    CIRCLE_HOPS_MAX, CLAIMS_MAX, OWNERS_MAX, SETTLING, SETTLING_AGAIN, SETTLING_MAX,
};

/// Round trip up to which an equal is near enough to fetch what a reader waits for.
const NEAR: Duration = Duration::from_millis(10);

/// A member of our own level.
#[derive(Clone, Copy, Debug)]
struct Equal {
    id: u64,
    index: ChannelIndex,
    /// Near enough for what a reader waits for, and it takes turns.
    near: bool,
}

/// A member that takes turns, and the neighbour that told of it; `None`: it is us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    seat: Seat,
    via: Option<ChannelIndex>,
}

/// Whom a wish goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) index: ChannelIndex,
    /// 1: it is the owner itself; more: it passes the wish on.
    pub(super) hops: u8,
}

/// The members of our level, as far as we know of them.
#[derive(Debug, Default)]
pub(super) struct Circle {
    /// The id of our place.
    id: u64,
    equals: Vec<Equal>,
    /// In the order of their lots.
    seats: Vec<Known>,
    /// Whether somebody stands above us.
    takes_turns: bool,
    /// Counts the changes of what others are told.
    version: u64,
    /// Since when, and until when, owners may still change with every exchange.
    unsettled: Option<(Instant, Instant)>,
    /// Owners of stretches of background work; `None`: we are.
    owners: BTreeMap<u64, Option<Owner>>,
    /// Stretches that an equal's reader waits for and wants of us: ours until then, whoever else
    /// might be near to us.
    claims: BTreeMap<u64, Instant>,
}

impl Circle {
    pub(super) fn new(id: u64) -> Self {
        Self { id, ..Self::default() }
    }

    /// Takes the equals among the members anew. Whether we take turns ourselves depends on whether
    /// somebody stands above us; `least_above` is the shortest round trip to those.
    pub(super) fn refresh(
        &mut self,
        now: Instant,
        equals: &[ChannelIndex],
        channels: &Channels,
        takes_turns: bool,
        least_above: Duration,
    ) {
        let known = equals.iter().filter_map(|index| Some((*index, channels.get(*index)?)));
        let known = known.filter_map(|(index, channel)| Some((index, channel, channel.place?.id)));
        let mut best: BTreeMap<u64, Known> = BTreeMap::new();
        self.equals.clear();
        for (index, channel, id) in known {
            let rtt = channel.rtt.minimum();
            let takes_turns = channel.circle.contains(&Seat { id, hops: 0 });
            let is_near = rtt <= NEAR || rtt <= least_above / 2;
            let near = is_near && takes_turns && !channel.source.is_idle(now, Class::Waited);
            self.equals.push(Equal { id, index, near });
            for told in &channel.circle {
                let hops = told.hops.saturating_add(1);
                let is_itself = (told.id == id) == (told.hops == 0);
                if told.id == self.id || hops > CIRCLE_HOPS_MAX || !is_itself {
                    continue;
                }
                let known = Known { seat: Seat { id: told.id, hops }, via: Some(index) };
                let nearest = best.entry(told.id).or_insert(known);
                if (hops, index) < (nearest.seat.hops, nearest.via.unwrap_or(index)) {
                    *nearest = known;
                }
            }
        }
        if takes_turns {
            best.insert(self.id, Known { seat: Seat { id: self.id, hops: 0 }, via: None });
        }
        let mut seats: Vec<Known> = best.into_values().collect();
        seats.sort_unstable_by_key(|known| (mix(known.seat.id), known.seat.id));
        seats.truncate(SEATS_MAX);
        let is_new = |known: &Known| self.seats.iter().all(|old| old.seat.id != known.seat.id);
        if seats.iter().any(is_new) {
            self.unsettle(now);
        }
        if seats != self.seats {
            self.version += 1;
        }
        (self.seats, self.takes_turns) = (seats, takes_turns);
        self.owners.clear();
        self.claims.retain(|_, until| *until > now);
    }

    /// Who takes turns may change with every exchange now; not for longer than [`SETTLING_MAX`], and then
    /// not again for a while: else whoever tells something new all the time would stop everybody.
    fn unsettle(&mut self, now: Instant) {
        let since = match self.unsettled {
            Some((since, _)) if now < since + SETTLING_AGAIN => since,
            _ => now,
        };
        self.unsettled = Some((since, (now + SETTLING).min(since + SETTLING_MAX)));
    }

    /// Until when owners may still change with every exchange: whoever asks the injector now may not
    /// be the owner in a moment.
    pub(super) fn settles_at(&self, now: Instant) -> Option<Instant> {
        let alone = self.equals.is_empty();
        self.unsettled.map(|(_, until)| until).filter(|until| *until > now && !alone)
    }

    /// Whether there are no equals.
    pub(super) fn is_alone(&self) -> bool {
        self.equals.is_empty()
    }

    /// Whether an equal takes turns, or knows of one that does.
    pub(super) fn has_others(&self) -> bool {
        self.seats.iter().any(|known| known.via.is_some())
    }

    /// How many take turns.
    pub(super) fn seats(&self) -> usize {
        self.seats.len()
    }

    /// Counts the changes of [`Self::told_to`].
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// What an equal is to be told: not what it told us itself.
    pub(super) fn told_to(&self, index: ChannelIndex) -> SeatList {
        let seats = self.seats.iter().filter(|known| known.via != Some(index));
        seats.map(|known| known.seat).filter(|seat| seat.hops < CIRCLE_HOPS_MAX).collect()
    }

    /// A reader of an equal waits for blocks of these stretches.
    pub(super) fn claim(&mut self, stretches: std::ops::Range<u64>, until: Instant) {
        for stretch in stretches {
            if self.claims.len() < CLAIMS_MAX || self.claims.contains_key(&stretch) {
                let claim = self.claims.entry(stretch).or_insert(until);
                *claim = until.max(*claim);
            }
        }
    }

    /// Whom a wish for the stretch goes to; `None` if it is our turn, or nobody's.
    pub(super) fn owner(&mut self, stretch: u64, class: Class) -> Option<Owner> {
        let near = self.equals.iter().any(|equal| equal.near);
        if class == Class::Waited && (near || self.takes_turns) {
            return self.near_owner(stretch);
        }
        if let Some(owner) = self.owners.get(&stretch) {
            return *owner;
        }
        let owner = self
            .seats
            .iter()
            .max_by_key(|known| weight(known.seat.id, stretch))
            .and_then(|known| Some(Owner { index: known.via?, hops: known.seat.hops }));
        if self.owners.len() >= OWNERS_MAX {
            self.owners.clear();
        }
        self.owners.insert(stretch, owner);
        owner
    }

    fn near_owner(&self, stretch: u64) -> Option<Owner> {
        if self.takes_turns && self.claims.contains_key(&stretch) {
            return None;
        }
        let near = self.equals.iter().filter(|equal| equal.near);
        let best = near.map(|equal| (weight(equal.id, stretch), equal.index)).max()?;
        let ours = self.takes_turns.then(|| weight(self.id, stretch));
        (Some(best.0) > ours).then_some(Owner { index: best.1, hops: 1 })
    }

    /// A neighbour let a reader, or background work, wait in vain.
    pub(super) fn pass_over(&mut self, now: Instant, index: ChannelIndex, class: Class) {
        if class == Class::Waited {
            self.equals
                .iter_mut()
                .filter(|equal| equal.index == index)
                .for_each(|e| e.near = false);
            return;
        }
        self.forget(index);
        // Others may know the same seats.
        self.unsettle(now);
    }

    /// Whether the stretch is somebody else's.
    pub(super) fn is_others(&mut self, stretch: u64) -> bool {
        self.owner(stretch, Class::Background).is_some()
    }

    /// A neighbour is gone.
    pub(super) fn forget(&mut self, index: ChannelIndex) {
        self.equals.retain(|equal| equal.index != index);
        let before = self.seats.len();
        self.seats.retain(|known| known.via != Some(index));
        self.version += u64::from(self.seats.len() != before);
        self.owners.clear();
    }
}

/// The weight of a member for a stretch: the same wherever it is computed.
pub(super) fn weight(id: u64, stretch: u64) -> u64 {
    mix(id ^ mix(stretch))
}

/// The finalizer of `SplitMix64`: every bit of the input moves every bit of the output.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_dealt_out_evenly() {
        let ids: Vec<u64> = (0..8).map(mix).collect();
        let mut owned = [0u32; 8];
        for stretch in 0..4000 {
            let owner = (0..8).max_by_key(|i| weight(ids[*i], stretch)).expect("eight");
            owned[owner] += 1;
        }
        assert!(owned.iter().all(|count| (400..600).contains(count)), "{owned:?}");
    }
}

//! Whose turn it is to fetch something from above: how many members of a level cost the level above
//! them one copy.
//!
//! ```text
//! level 0      the injector
//! level 1      relay   relay            each stretch of the log has one owner on a level (`circle`).
//!                 \    / |  \           The owner fetches it from above, the others wait for its
//! level 255     node  node  node        HAVE, for a bounded time
//! ```
//!
//! A want **climbs**: rung 0 is its owner among the equals, each further rung a level above, the
//! nearest first. On a rung where nobody offers it yet, one member is asked by WANT to fetch it. Who
//! lets others wait in vain is passed over for a while, so that a dead owner costs little and once.

mod patience;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::unit::{BlockIndex, BlockRange};

use super::channel::{Channel, ChannelIndex, Channels};
use super::circle::{Circle, Owner, weight};
use super::climb::{Asked, Climb, Piece, STRETCH_BLOCKS, Step, Want};
use super::event::{Class, Role};
use super::limits::{
    CIRCLE_DELAY, CIRCLE_DELAY_LONG, CUT_OFF_AFTER, HOLD_BACKGROUND, HOLD_WAITED,
    OWNER_CHANGES_MAX, TURNS_TICK,
};
use super::source::Ask;

/// Level of the injector.
pub(super) const INJECTOR: u8 = 0;
/// Level of a relay that has not met the level above it yet.
const RELAY_ALONE: u8 = 254;
/// Level of a node.
pub(super) const NODE: u8 = 255;

/// Who a member is, and how far from the injector (message PLACE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) id: u64,
    pub(super) level: u8,
}

impl Place {
    pub(super) const fn new(id: u64, role: Role) -> Self {
        let level = match role {
            Role::Injector => INJECTOR,
            Role::Relay => RELAY_ALONE,
            Role::Node => NODE,
        };
        Self { id, level }
    }

    /// A relay stands one level below the highest one that it dials; whether this moved it. It never
    /// moves down again: two relays that dial each other would chase each other.
    pub(super) fn stand_below(&mut self, other: Self) -> bool {
        let below = other.level.saturating_add(1);
        let moves = (INJECTOR + 1..=RELAY_ALONE).contains(&self.level) && below < self.level;
        if moves {
            self.level = below;
        }
        moves
    }
}

/// The levels of a swarm's members, and who fetches what.
#[derive(Debug)]
pub(super) struct Turns {
    pub(super) place: Place,
    pub(super) circle: Circle,
    /// Levels above with a member that answers, the nearest first.
    tiers: Vec<(u8, Vec<(u64, ChannelIndex)>)>,
    /// Stretches of background work.
    climbs: BTreeMap<u64, Climb>,
    /// Until then nearer members than the injector may still answer their first datagram.
    greeting: Option<Instant>,
    /// Until then owners may still change: background work is not asked of the injector.
    settling: Option<Instant>,
    /// Counts changes after which background work may find a source where it found none.
    pub(super) epoch: u64,
    /// When something that waits here is to be looked at.
    pub(super) tick_at: Option<Instant>,
    /// When members are looked at next.
    look_at: Option<Instant>,
    /// When what equals said of those who take turns is looked at.
    told_at: Option<Instant>,
    /// Since when nobody above answers.
    cut_off: Option<Instant>,
    /// Background work waits for others.
    waiting: bool,
}

impl Turns {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            circle: Circle::new(place.id),
            tiers: Vec::new(),
            climbs: BTreeMap::new(),
            greeting: None,
            settling: None,
            epoch: 1,
            tick_at: None,
            look_at: None,
            told_at: None,
            cut_off: None,
            waiting: false,
        }
    }

    /// Members or their places have changed.
    pub(super) fn on_change(&mut self) {
        self.look_at = None;
    }

    /// An equal says who takes turns: looked at soon, for others will say it, too.
    pub(super) fn on_circle(&mut self, now: Instant, is_frequent: bool) {
        let at = now + if is_frequent { CIRCLE_DELAY_LONG } else { CIRCLE_DELAY };
        self.told_at = Some(self.told_at.map_or(at, |told_at| told_at.min(at)));
        self.tick(at);
    }

    /// Looks at the members anew, if they have changed or some time has passed; whether it did.
    pub(super) fn refresh(
        &mut self,
        now: Instant,
        members: &[ChannelIndex],
        channels: &Channels,
        greeting: Option<Instant>,
    ) -> bool {
        if let Some(until) = greeting {
            self.tick(until);
        }
        let settling = self.circle.settles_at(now);
        let ended = self.greeting.is_some() && self.greeting != greeting
            || self.settling.is_some() && settling.is_none();
        (self.greeting, self.settling) = (greeting, settling);
        let told = self.told_at.is_some_and(|at| at <= now);
        if let Some(next) = self.look_at.filter(|at| now < *at && !ended && !told) {
            let wakes = [self.waiting.then_some(next), self.told_at, self.settling];
            wakes.into_iter().flatten().for_each(|at| self.tick(at));
            return false;
        }
        (self.look_at, self.told_at) = (Some(now + TURNS_TICK), None);
        self.epoch += 1;
        self.tiers.clear();
        let mut equals = Vec::new();
        let mut above: BTreeMap<u8, Vec<(u64, ChannelIndex)>> = BTreeMap::new();
        let mut least_above = Duration::MAX;
        for index in members {
            let Some(channel) = channels.get(*index) else { continue };
            let Some(place) = channel.place else { continue };
            let level = channel.level(self.place.level).unwrap_or(place.level);
            if channel.is_out_of_reach(now, Class::Background) || channel.source.choked {
                continue;
            }
            if level < self.place.level {
                above.entry(level).or_default().push((place.id, *index));
                least_above = least_above.min(channel.rtt.minimum());
            } else if level == self.place.level
                && !channel.source.is_idle(now, Class::Background)
                && !channel.source.is_silent()
            {
                equals.push(*index);
            }
        }
        self.tiers.extend(above.into_iter().rev());
        let takes_turns = !self.tiers.is_empty();
        self.circle.refresh(now, &equals, channels, takes_turns, least_above);
        self.settling = self.circle.settles_at(now);
        if let Some(at) = self.settling {
            self.tick(at);
        }
        self.cut_off = self.tiers.is_empty().then(|| self.cut_off.unwrap_or(now));
        true
    }

    /// What is given up because nobody stands above us who could have what nobody here has: what
    /// readers wait for, and background work too unless equals can get it. Who is silent or gone may come
    /// back soon: it gets some time.
    pub(super) fn cut_off(&mut self, now: Instant) -> Option<Class> {
        let until = self.cut_off.map(|at| at + CUT_OFF_AFTER)?;
        if until > now {
            self.tick(until);
        }
        let least = if self.circle.has_others() { Class::Waited } else { Class::Background };
        (until <= now && self.greeting.is_none()).then_some(least)
    }

    /// Whether nobody stands above us.
    pub(super) fn has_nobody_above(&self) -> bool {
        self.tiers.is_empty()
    }

    /// Whether we publish the log.
    pub(super) const fn is_injector(&self) -> bool {
        self.place.level == INJECTOR
    }

    /// Whether everybody who has something may be asked for it: there are no equals, and one level
    /// above at most.
    pub(super) fn is_flat(&self) -> bool {
        self.circle.is_alone()
            && self.greeting.is_none()
            && self.tiers.len() <= 1
            && self.tiers.iter().all(|(level, _)| *level == INJECTOR)
    }

    /// How far up a member stands: 0 for equals, those below us and those of whom we do not know.
    pub(super) fn rank(&self, channel: &Channel) -> usize {
        let above = channel.level(self.place.level).filter(|level| *level < self.place.level);
        let Some(above) = above else { return 0 };
        let tier = self.tiers.iter().position(|(level, _)| *level == above);
        1 + tier.unwrap_or(self.tiers.len())
    }

    /// A reader of an equal waits for blocks `start..end` until then, and wants them of us.
    pub(super) fn claim(&mut self, start: u64, end: u64, until: Instant) {
        self.circle.claim(start / STRETCH_BLOCKS..end.div_ceil(STRETCH_BLOCKS), until);
        self.epoch += 1;
    }

    /// The member of a level above that fetches the stretch for us.
    fn agent(
        &self,
        tier: usize,
        Want { stretch, class, .. }: Want,
        now: Instant,
        channels: &Channels,
    ) -> Option<Owner> {
        let (level, members) = self.tiers.get(tier)?;
        if *level == INJECTOR {
            return None;
        }
        let awake = members.iter().filter(|(_, index)| {
            channels.get(*index).is_some_and(|channel| {
                !channel.source.is_idle(now, class) && !channel.is_out_of_reach(now, class)
            })
        });
        let best = awake.map(|(id, index)| (weight(*id, stretch), *index)).max();
        best.map(|(_, index)| Owner { index, hops: 0 })
    }

    /// Whether who was asked, if it is an equal, owns the stretch as we see it now; it is to blame for
    /// nothing if not.
    fn is_owner_still(&mut self, stretch: u64, class: Class, climb: &mut Climb) -> bool {
        let version = self.circle.version();
        let Some(asked) = &mut climb.asked else { return false };
        if asked.is_above() || class == Class::Waited || asked.version == version {
            return true;
        }
        let owner = self.circle.owner(stretch, class);
        if owner.is_none_or(|owner| owner.index != asked.index) {
            climb.asked = None;
            climb.changes += 1;
            if climb.changes > OWNER_CHANGES_MAX {
                (climb.rung, climb.changes) = (climb.rung.max(1), 0);
            }
            return false;
        }
        asked.version = version;
        true
    }

    /// What a want may do now; `offers` says whether somebody of a rank has it.
    pub(super) fn step(
        &mut self,
        now: Instant,
        climb: &mut Climb,
        want: Want,
        channels: &mut Channels,
        offers: impl Fn(usize) -> bool,
    ) -> Step {
        let Want { stretch, class, hops } = want;
        loop {
            if let Some(asked) = climb.asked {
                if !self.is_owner_still(stretch, class, climb) {
                    continue;
                }
                if asked.is_above() && (1..=climb.rung.max(1)).any(&offers) {
                    climb.asked = None;
                    return self.take(now, class, climb.rung.max(1));
                }
                if let Some(until) = self.patience_until(now, climb, asked, class, channels)
                    && now < until
                {
                    self.tick(until);
                    return Step::Wait;
                }
                let hold = self.hold(class, channels);
                let held_up = now >= climb.since + hold;
                // It is to blame if most of that time was its own.
                let late = held_up && now >= asked.at + hold / 2;
                let gave_up = self.give_up(now, asked, class, late, channels);
                climb.asked = None;
                let again = gave_up && class == Class::Background;
                if !again || held_up {
                    climb.rung += 1;
                }
                continue;
            }
            let owner = if climb.rung == 0 { self.circle.owner(stretch, class) } else { None };
            // Our turn is not written down: a member that comes may have it next.
            let rung = if owner.is_none() { climb.rung.max(1) } else { 0 };
            if rung > self.tiers.len() || (1..=rung).any(&offers) {
                return self.take(now, class, rung);
            }
            let next = match rung {
                _ if hops == 0 => None,
                0 => owner,
                _ => self.agent(rung - 1, want, now, channels),
            };
            match next {
                // It takes no more for now: asked again when it has made progress.
                Some(Owner { index, .. })
                    if channels.get(index).is_some_and(|c| c.source.is_sated(now, class))
                        && (class == Class::Background || now < climb.since + HOLD_WAITED) =>
                {
                    if class == Class::Background {
                        climb.since = now;
                    }
                    self.tick(now + TURNS_TICK);
                    return Step::Wait;
                }
                Some(Owner { index, hops }) => {
                    let asked = Asked { index, at: now, hops, version: self.circle.version() };
                    climb.asked = Some(asked);
                    self.tick(now + self.patience(asked, class, channels));
                    return Step::Ask(index);
                }
                None => climb.rung = rung + 1,
            }
        }
    }

    /// The injector waits until nearer members have had time to answer.
    fn take(&mut self, now: Instant, class: Class, rank: usize) -> Step {
        let injector =
            self.tiers.get(rank.wrapping_sub(1)).is_none_or(|(level, _)| *level == INJECTOR);
        let settling = self.settling.filter(|_| class == Class::Background);
        match self.greeting.max(settling).filter(|until| *until > now && injector) {
            Some(until) => {
                self.tick(until);
                Step::Wait
            }
            None => Step::Take(rank),
        }
    }

    /// Passes a member over for a while if it has shown no progress for as long as it may, or is
    /// `late` all the same.
    fn give_up(
        &mut self,
        now: Instant,
        asked: Asked,
        class: Class,
        late: bool,
        channels: &mut Channels,
    ) -> bool {
        let patience = self.patience(asked, class, channels);
        let idle = channels.get_mut(asked.index).is_none_or(|channel| {
            let source = &mut channel.source;
            let idle =
                late || source.is_silent() || now >= source.progress_at().max(asked.at) + patience;
            if idle && !source.is_idle(now, class) {
                source.pass_over(now, class);
            }
            idle
        });
        if idle {
            self.circle.pass_over(now, asked.index, class);
            if class == Class::Background {
                self.settling = self.circle.settles_at(now);
                self.on_change();
            }
            self.epoch += 1;
        }
        idle
    }

    fn tick(&mut self, at: Instant) {
        self.tick_at = Some(self.tick_at.map_or(at, |tick| tick.min(at)));
    }

    /// Steps of the stretches of background work: `pieces` are what is left of it, in order. Asks
    /// those who are to fetch some of it, and names them.
    pub(super) fn step_background(
        &mut self,
        now: Instant,
        pieces: &[Piece],
        channels: &mut Channels,
        offers: impl Fn(usize, Piece, &Channels) -> bool,
    ) -> Vec<ChannelIndex> {
        let mut before = std::mem::take(&mut self.climbs);
        self.waiting = !pieces.is_empty();
        if self.waiting {
            self.tick(now + TURNS_TICK);
        }
        let mut asks = Vec::new();
        for piece in pieces {
            let (stretch, hops) = (piece.start / STRETCH_BLOCKS, piece.hops);
            let known = self.climbs.get(&stretch).copied().or_else(|| before.remove(&stretch));
            let mut climb = known.unwrap_or(Climb::new(now));
            let offered: u64 = (1..=self.tiers.len().min(63))
                .filter(|rank| offers(*rank, *piece, channels))
                .fold(0, |set, rank| set | 1 << rank);
            let offers = |rank: usize| rank < 64 && offered & (1 << rank) != 0;
            let rung = climb.rung;
            let want = Want { stretch, class: Class::Background, hops };
            if let Step::Ask(index) = self.step(now, &mut climb, want, channels, offers) {
                let blocks = BlockRange::new(BlockIndex(piece.start), piece.end - piece.start);
                if let (Some(channel), Some(chunks)) = (channels.get_mut(index), blocks.chunks()) {
                    let (class, deadline) = (Class::Background, now + HOLD_BACKGROUND);
                    channel.source.wish(now, Ask { chunks, class, deadline }, hops);
                    asks.push(index);
                }
            }
            self.epoch += u64::from(climb.rung != rung);
            self.climbs.insert(stretch, climb);
        }
        asks
    }

    /// Whether background work of the stretch that begins there may be asked of this rank.
    fn may_take(&mut self, stretch: u64, rank: usize) -> bool {
        let injector = self.tiers.get(rank.wrapping_sub(1)).is_none_or(|(of, _)| *of == INJECTOR);
        if self.greeting.is_some() || injector && self.settling.is_some() {
            return false;
        }
        let rung = self.climbs.get(&stretch).map_or(0, |climb| climb.rung);
        let mut ours = || usize::from(self.circle.owner(stretch, Class::Background).is_none());
        let reach = if rung == 0 { ours() } else { rung };
        reach >= rank
    }

    /// The first part of blocks `start..end` that may be asked of a member of this rank and that
    /// nobody nearer has; at most `patience` stretches are looked at.
    pub(super) fn first_of_ours(
        &mut self,
        start: u64,
        end: u64,
        rank: usize,
        patience: &mut usize,
        nearer: impl Fn(u64, u64) -> Option<(u64, u64)>,
    ) -> Option<(u64, u64)> {
        let mut at = start;
        while at < end && *patience > 0 {
            *patience -= 1;
            let stretch = at / STRETCH_BLOCKS;
            if rank > 1 && !self.climbs.contains_key(&stretch) {
                // What has not climbed is sought no higher.
                let next = self.climbs.range(stretch..).next();
                at = next.map_or(end, |(stretch, _)| stretch * STRETCH_BLOCKS);
                continue;
            }
            let until = end.min((stretch + 1) * STRETCH_BLOCKS);
            if !self.may_take(stretch, rank) {
                at = until;
                continue;
            }
            match nearer(at, until) {
                Some((from, held_until)) if from <= at => at = held_until,
                Some((from, _)) => return Some((at, from)),
                None => return Some((at, until)),
            }
        }
        None
    }

    /// A member does not fetch blocks `start..end` for us.
    pub(super) fn on_miss(&mut self, index: ChannelIndex, start: u64, end: u64) {
        let stretches = start / STRETCH_BLOCKS..end.div_ceil(STRETCH_BLOCKS).max(1);
        for (_, climb) in self.climbs.range_mut(stretches) {
            climb.on_miss(index);
        }
        self.epoch += 1;
    }

    /// A channel is gone: its index may become another peer's.
    pub(super) fn forget_channel(&mut self, now: Instant, index: ChannelIndex) {
        self.circle.forget(index);
        self.tiers.iter_mut().for_each(|(_, members)| members.retain(|(_, i)| *i != index));
        self.tiers.retain(|(_, members)| !members.is_empty());
        if self.tiers.is_empty() {
            self.cut_off.get_or_insert(now);
        }
        for climb in self.climbs.values_mut() {
            climb.forget_channel(index);
        }
        self.on_change();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_stands_below_what_it_dials_and_never_moves_down() {
        let mut relay = Place::new(1, Role::Relay);
        assert!(!relay.stand_below(Place::new(2, Role::Relay)), "nobody is placed yet");
        assert!(relay.stand_below(Place { id: 3, level: 4 }));
        assert!(relay.stand_below(Place::new(4, Role::Injector)));
        assert_eq!(relay.level, 1);
        assert!(!relay.stand_below(Place { id: 3, level: 1 }));
        assert!(!Place::new(5, Role::Node).stand_below(Place::new(4, Role::Injector)));
    }
}

//! Giving disk space back: least recently used granules first, pinned blocks never.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::unit::{BlockRange, MunroIndex};

use super::cache::Shared;
use super::cached_log::CachedLog;
use super::intake::PutError;
use super::nodes::by_munro;
use super::presence::{
    Bits, Presence, Tick, and, and_not, bits_of, bits_to_bytes, count, granule_bits, or,
    push_joined, runs,
};
use super::segment::{
    SEGMENT_MUNROS, Segments, TABLE_BYTES, content_offset, map_offset, table_offset,
};
use super::{OpenError, StateError, state_file};

/// The state file of a log's pins.
pub(super) const PINS_NAME: &str = "_pins";

/// Ranges that eviction leaves alone, by the name of who wants them.
#[derive(Default)]
pub(super) struct Pins {
    by_name: BTreeMap<String, Vec<BlockRange>>,
    /// All of them, sorted and joined.
    joined: Vec<BlockRange>,
}

impl Pins {
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let stored: BTreeMap<String, Vec<(u64, u64)>> = rmp_serde::from_slice(bytes).ok()?;
        let range = |(start, count)| BlockRange::new(crate::unit::BlockIndex(start), count);
        let by_name = stored
            .into_iter()
            .map(|(name, ranges)| (name, ranges.into_iter().map(range).collect()))
            .collect();
        let mut pins = Self { by_name, joined: Vec::new() };
        pins.join();
        Some(pins)
    }

    fn encode(&self) -> Vec<u8> {
        let stored: BTreeMap<&str, Vec<(u64, u64)>> = self
            .by_name
            .iter()
            .map(|(name, ranges)| {
                (name.as_str(), ranges.iter().map(|range| (range.start.0, range.count)).collect())
            })
            .collect();
        // Writing numbers and strings into memory does not fail.
        rmp_serde::to_vec(&stored).unwrap_or_default()
    }

    fn join(&mut self) {
        let mut ranges: Vec<_> = self.by_name.values().flatten().copied().collect();
        ranges.sort_unstable_by_key(|range| range.start);
        self.joined.clear();
        for range in ranges {
            match self.joined.last_mut() {
                Some(last) if last.end() >= range.start => {
                    let end = last.end().max(range.end());
                    last.count = end.0 - last.start.0;
                }
                _ => push_joined(&mut self.joined, range),
            }
        }
    }

    /// The pinned blocks of a munro.
    fn bits(&self, munro: MunroIndex) -> Bits {
        let blocks = munro.blocks();
        let first = self.joined.partition_point(|range| range.end() <= blocks.start);
        self.joined
            .iter()
            .skip(first)
            .map_while(|range| {
                let part = range.intersection(blocks);
                (!part.is_empty()).then(|| bits_of(part))
            })
            .fold([0; 4], or)
    }
}

impl CachedLog {
    /// Keeps `ranges` from eviction under `name`, whether they are held yet or not; replaces what
    /// the name pinned before. Durable.
    pub fn pin(&self, name: &str, ranges: &[BlockRange]) -> Result<(), StateError> {
        self.change_pins(|pins| {
            pins.by_name.insert(name.to_owned(), ranges.to_vec());
        })
    }

    /// Lets go of what `name` pinned. Durable.
    pub fn unpin(&self, name: &str) -> Result<(), StateError> {
        self.change_pins(|pins| {
            pins.by_name.remove(name);
        })
    }

    /// What is pinned, by name.
    pub fn pins(&self) -> BTreeMap<String, Vec<BlockRange>> {
        self.state().pins.by_name.clone()
    }

    fn change_pins(&self, change: impl FnOnce(&mut Pins)) -> Result<(), StateError> {
        let _one = self.pinning.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = {
            let pins = &mut self.state().pins;
            change(pins);
            pins.join();
            pins.encode()
        };
        self.shared.barren.store(false, Ordering::Relaxed);
        state_file::save(self.directory(), PINS_NAME, &bytes)
    }

    /// Counts granules as used longest ago: they are the first to go. For what has served its purpose.
    pub fn retire(&self, blocks: BlockRange) {
        let mut state = self.state();
        for (munro, part) in by_munro(blocks) {
            state.presence.touch(munro, part, 0);
        }
    }

    /// Gives up blocks; pinned ones stay. The disk space that this freed, in bytes.
    pub fn evict(&self, ranges: &[BlockRange]) -> u64 {
        let mut freed = 0;
        for range in ranges {
            // Only what is held: a range may span the whole log.
            let held = self.state().presence.parts_held(*range);
            for (munro, part) in held.into_iter().flat_map(by_munro) {
                freed += self.give_up(munro, bits_of(part));
            }
        }
        freed
    }

    /// Adds the bytes of unpinned granules to `bytes_at`, by tick.
    fn tally(&self, bytes_at: &mut [u64]) {
        let state = self.state();
        for (munro, presence) in state.presence.munros() {
            let pinned = state.pins.bits(munro);
            for (granule, tick) in granules(presence) {
                let blocks = count(and_not(and(presence.bits, granule), pinned));
                if let Some(bytes) = bytes_at.get_mut(usize::from(tick)) {
                    *bytes += blocks * crate::limits::BLOCK_BYTES;
                }
            }
        }
    }

    /// The unpinned blocks whose granules were last used before `threshold`, and at it.
    fn victims(&self, threshold: Tick) -> [Vec<(MunroIndex, Bits)>; 2] {
        let state = self.state();
        let mut victims = [Vec::new(), Vec::new()];
        for (munro, presence) in state.presence.munros() {
            if presence.ticks.iter().all(|tick| *tick > threshold) {
                continue;
            }
            let free = and_not(presence.bits, state.pins.bits(munro));
            let mut found = [[0; 4]; 2];
            for (granule, tick) in granules(presence).filter(|(_, tick)| *tick <= threshold) {
                let age = &mut found[usize::from(tick == threshold)];
                *age = or(*age, and(granule, free));
            }
            for (victims, bits) in victims.iter_mut().zip(found) {
                if bits != [0; 4] {
                    victims.push((munro, bits));
                }
            }
        }
        victims
    }

    /// Takes claims away, then the content; the disk space that this freed, in bytes.
    fn give_up(&self, munro: MunroIndex, blocks: Bits) -> u64 {
        // Exclusive: whoever found a block present has read it before it goes.
        let _io = self.io.write().unwrap_or_else(PoisonError::into_inner);
        let segment = Segments::number_of(munro);
        let blocks = and_not(blocks, self.state().pins.bits(munro));
        let blocks = self.prove_rest(munro, blocks);
        let (removed, left, segment_empty, before) = {
            let mut state = self.state();
            // Somebody may have pinned more meanwhile.
            let blocks = and_not(blocks, state.pins.bits(munro));
            let removed = state.presence.remove(munro, blocks);
            if removed == [0; 4] {
                return 0;
            }
            let gone = state.gone.entry(munro.0).or_insert([0; 4]);
            *gone = or(*gone, removed);
            let left = state.presence.munro(munro).map(|presence| presence.durable);
            let munros = segment * SEGMENT_MUNROS..(segment + 1) * SEGMENT_MUNROS;
            if left.is_none() {
                // The table goes with the last block: what is in memory would hide that.
                state.nodes.pop(&munro.0);
            }
            let segment_empty = left.is_none() && state.presence.is_empty_in(munros);
            (removed, left, segment_empty, state.allocated.get(&segment).copied().unwrap_or(0))
        };
        self.count_evicted(count(removed));
        match self.punch(munro, removed, left, segment_empty) {
            Ok(after) => before.saturating_sub(after),
            Err(error) => {
                tracing::warn!(%error, "the cache cannot give disk space back");
                0
            }
        }
    }

    /// Punches the content out; what the segment still takes on the disk, in bytes.
    fn punch(
        &self,
        munro: MunroIndex,
        removed: Bits,
        left: Option<Bits>,
        segment_empty: bool,
    ) -> Result<u64, OpenError> {
        let segment = Segments::number_of(munro);
        if segment_empty {
            self.segments.remove(segment)?;
            let before = self.state().allocated.remove(&segment).unwrap_or(0);
            self.shared.resize(before, 0);
            return Ok(0);
        }
        let Some(file) = self.segments.open(segment)? else { return Ok(0) };
        // The map first: after a kill it must not claim what is a hole.
        file.write(map_offset(munro), &bits_to_bytes(left.unwrap_or([0; 4])))?;
        for run in runs(munro, removed) {
            file.punch(content_offset(run.start), run.byte_len())?;
        }
        if left.is_none() {
            file.punch(table_offset(munro), TABLE_BYTES)?;
        }
        Ok(self.measure(segment, &file)?)
    }
}

impl Shared {
    /// Makes room for `needed` more bytes within the quota and above the disk's reserve.
    pub(super) fn make_room(&self, needed: u64) -> Result<(), PutError> {
        if self.shortage(needed) == 0 {
            return Ok(());
        }
        if !self.barren.load(Ordering::Relaxed) {
            let _one = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have made room while this one waited.
            let shortage = self.shortage(needed);
            if shortage > 0 {
                // Some more, so that the next puts need not search again. Nothing found: all that
                // is left is pinned, and to search before that changes is in vain.
                let freed = self.evict(shortage + self.headroom_bytes());
                self.barren.store(freed == 0, Ordering::Relaxed);
            }
        }
        if self.shortage(needed) == 0 { Ok(()) } else { Err(self.full(needed)) }
    }

    /// Makes room ahead of the next puts, from a thread that nobody waits for.
    pub(super) fn make_room_ahead(&self) {
        self.barren.store(false, Ordering::Relaxed);
        // Pinned blocks may leave no room: the next put says so.
        let _ = self.make_room(self.headroom_bytes());
        self.barren.store(false, Ordering::Relaxed);
    }

    /// Frees at least `bytes` if that much is not pinned; gives what was freed.
    pub(super) fn evict_bytes(&self, bytes: u64) -> u64 {
        if self.barren.load(Ordering::Relaxed) {
            return 0;
        }
        let _one = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let freed = self.evict(bytes);
        self.barren.store(freed == 0, Ordering::Relaxed);
        freed
    }

    fn headroom_bytes(&self) -> u64 {
        (self.allocated_bytes() / 20).min(HEADROOM_BYTES_MAX)
    }

    fn evict(&self, bytes: u64) -> u64 {
        let logs = self.logs();
        let mut bytes_at = vec![0; usize::from(Tick::MAX) + 1];
        for log in &logs {
            log.tally(&mut bytes_at);
        }
        let mut sum = 0u64;
        let threshold = bytes_at.iter().position(|bytes_of_tick| {
            sum = sum.saturating_add(*bytes_of_tick);
            sum >= bytes
        });
        let threshold = threshold.map_or(Tick::MAX, |tick| tick as Tick);
        let mut freed = 0;
        let mut rest = Vec::new();
        // All that is older, then of the threshold's own age only as much as it takes.
        for log in &logs {
            let [older, same] = log.victims(threshold);
            for (munro, bits) in older {
                freed += log.give_up(munro, bits);
            }
            rest.extend(same.into_iter().map(|(munro, bits)| (log, munro, bits)));
        }
        for (log, munro, bits) in rest {
            if freed >= bytes {
                break;
            }
            freed += log.give_up(munro, bits);
        }
        freed
    }
}

/// Room that is made beyond what is asked for, in bytes.
const HEADROOM_BYTES_MAX: u64 = 128 << 20;

/// The granules of a munro as bits, with their ticks.
fn granules(presence: &Presence) -> impl Iterator<Item = (Bits, Tick)> + use<'_> {
    presence.ticks.iter().enumerate().map(|(granule, tick)| (granule_bits(granule), *tick))
}

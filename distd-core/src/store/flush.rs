//! Making a cached log durable, and reading its claims back.
//!
//! Order is what keeps the claims honest: nodes and records are written, then content and they are
//! synced, then the map is written. A crash in between costs a refetch; what a power cut does beyond
//! that, the check at every read finds.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use crate::unit::MunroIndex;

use super::DiskError;
use super::cached_log::CachedLog;
use super::presence::{Bits, PresenceMap, Tick, and, bits_from_bytes, bits_to_bytes};
use super::segment::{
    CONTENT_OFFSET, SEGMENT_MUNROS, SegmentFile, Segments, map_offset, ticks_offset,
};
use super::{OpenError, cache::Shared};

impl CachedLog {
    /// Makes everything put so far durable. What fails stays to be tried again.
    pub fn flush(&self) -> Result<(), OpenError> {
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let dirty = std::mem::take(&mut self.state().dirty);
        let mut by_segment: BTreeMap<u64, Vec<MunroIndex>> = BTreeMap::new();
        for munro in dirty.into_iter().map(MunroIndex) {
            by_segment.entry(Segments::number_of(munro)).or_default().push(munro);
        }
        let mut result = Ok(());
        for (segment, munros) in by_segment {
            if let Err(error) = self.flush_segment(segment, &munros) {
                self.state().dirty.extend(munros.iter().map(|munro| munro.0));
                result = Err(error);
            }
        }
        result
    }

    fn flush_segment(&self, segment: u64, munros: &[MunroIndex]) -> Result<(), OpenError> {
        let Some(file) = self.segments.open(segment)? else { return Ok(()) };
        // The claims are taken before the sync: what arrives later is left for the next flush.
        let mut synced: Vec<(MunroIndex, Bits)> = Vec::with_capacity(munros.len());
        for munro in munros {
            let (bits, nodes) = {
                let state = self.state();
                let bits = state.presence.munro(*munro).map(|presence| presence.bits);
                (bits, state.nodes.peek(&munro.0).cloned())
            };
            if let (Some(_), Some(nodes)) = (bits, nodes) {
                nodes.write(&file)?;
            }
            synced.push((*munro, bits.unwrap_or([0; 4])));
        }
        file.sync()?;
        // Nothing is punched while the map is written: it would claim what is just given up.
        let _io = self.io();
        if file.is_removed()? {
            // Everything in it was evicted meanwhile; what was put since is marked dirty again.
            return Ok(());
        }
        for (munro, bits) in synced {
            let (durable, ticks) = {
                let mut state = self.state();
                match state.presence.munro_mut(munro) {
                    Some(presence) => {
                        presence.durable = and(presence.bits, bits);
                        (presence.durable, Some(presence.ticks))
                    }
                    None => ([0; 4], None),
                }
            };
            file.write(map_offset(munro), &bits_to_bytes(durable))?;
            if let Some(ticks) = ticks {
                let bytes: Vec<u8> = ticks.iter().flat_map(|tick| tick.to_le_bytes()).collect();
                file.write(ticks_offset(munro), &bytes)?;
            }
        }
        Ok(self.measure(segment, &file).map(|_| ())?)
    }

    /// Sets a segment's disk space to what it is; gives it.
    pub(super) fn measure(&self, segment: u64, file: &SegmentFile) -> Result<u64, DiskError> {
        let allocated = file.allocated_bytes()?;
        let before = self.state().allocated.insert(segment, allocated).unwrap_or(0);
        self.shared.resize(before, allocated);
        Ok(allocated)
    }
}

/// What the segments of a log claim to hold, their disk space by number, and the latest tick.
pub(super) fn load_claims(
    segments: &Segments,
    shared: &Shared,
) -> Result<(PresenceMap, BTreeMap<u64, u64>, Tick), OpenError> {
    let mut presence = PresenceMap::default();
    let mut allocated = BTreeMap::new();
    let mut latest = 0;
    for segment in segments.list()? {
        let Some(file) = segments.open(segment)? else {
            // Of another version or damaged: emptied, never guessed.
            tracing::warn!(segment, directory = %segments.directory().path().display(),
                "a segment of the cache is not usable and is removed");
            segments.remove(segment)?;
            continue;
        };
        latest = latest.max(load_segment(segment, &file, &mut presence)?);
        let bytes = file.allocated_bytes()?;
        allocated.insert(segment, bytes);
        shared.grow(bytes);
    }
    Ok((presence, allocated, latest))
}

fn load_segment(
    segment: u64,
    file: &SegmentFile,
    presence: &mut PresenceMap,
) -> Result<Tick, DiskError> {
    let first = MunroIndex(segment * SEGMENT_MUNROS);
    let mut map = vec![0; SEGMENT_MUNROS as usize * 32];
    let mut ticks = vec![0; SEGMENT_MUNROS as usize * 128];
    file.read(map_offset(first), &mut map)?;
    file.read(ticks_offset(first), &mut ticks)?;
    // Claims beyond the end of a truncated file are void at once.
    let munros_there = file.len()?.saturating_sub(CONTENT_OFFSET).div_ceil(1 << 20);
    let mut latest = 0;
    let munros = map.chunks_exact(32).zip(ticks.chunks_exact(128)).take(munros_there as usize);
    for (index, (map, ticks)) in munros.enumerate() {
        let bits = bits_from_bytes(map);
        if bits == [0; 4] {
            continue;
        }
        let munro = MunroIndex(first.0 + index as u64);
        presence.insert(munro, bits);
        if let Some(presence) = presence.munro_mut(munro) {
            presence.durable = bits;
            for (tick, bytes) in presence.ticks.iter_mut().zip(ticks.as_chunks::<2>().0) {
                *tick = Tick::from_le_bytes(*bytes);
                latest = latest.max(*tick);
            }
        }
    }
    Ok(latest)
}

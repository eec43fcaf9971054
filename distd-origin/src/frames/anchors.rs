//! Where in older content something similar lies: a table of sampled places, found by what is there.
//!
//! A place is sampled by its content (a hash of its first bytes), so that the same bytes are
//! sampled wherever they lie. The table names the region of the first such place.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that an anchor stands for.
const WINDOW_BYTES: usize = 32;
/// Anchors at most, 16 bytes of memory each.
const ANCHORS_MAX: usize = 8 << 20;
/// One place in so many is sampled, at least, as a power of two.
const SAMPLE_BITS_MIN: u32 = 8;

/// The anchors of older content, in numbered regions.
pub struct Anchors {
    /// Upper half: the anchor's hash, lower half: region + 1. Zero: free.
    slots: Vec<AtomicU64>,
    sample_bits: u32,
}

impl Anchors {
    /// A table for so many bytes of content.
    pub fn new(bytes: u64) -> Self {
        let mut sample_bits = SAMPLE_BITS_MIN;
        while bytes >> sample_bits > ANCHORS_MAX as u64 {
            sample_bits += 1;
        }
        let expected = (bytes >> sample_bits).max(512) as usize;
        let slots = (expected * 2).next_power_of_two();
        Self { slots: (0..slots).map(|_| AtomicU64::new(0)).collect(), sample_bits }
    }

    /// Adds the anchors of a region. Whatever the order of calls, the lowest region of an anchor
    /// stays.
    pub fn insert(&self, region: u32, bytes: &[u8]) {
        sample(bytes, self.sample_bits, |hash| self.put(hash, region));
    }

    /// Calls `found` with the region of each anchor of `bytes` that is known.
    pub fn find(&self, bytes: &[u8], mut found: impl FnMut(u32)) {
        sample(bytes, self.sample_bits, |hash| {
            for at in self.probes(hash) {
                let slot = self.slots[at].load(Ordering::Relaxed);
                if slot == 0 {
                    break;
                }
                if slot >> 32 == hash >> 32 {
                    found(slot as u32 - 1);
                    break;
                }
            }
        });
    }

    fn put(&self, hash: u64, region: u32) {
        let value = hash >> 32 << 32 | u64::from(region + 1);
        for at in self.probes(hash) {
            let slot = &self.slots[at];
            let mut seen = slot.load(Ordering::Relaxed);
            while seen == 0 || (seen >> 32 == hash >> 32 && seen > value) {
                let swapped =
                    slot.compare_exchange(seen, value, Ordering::Relaxed, Ordering::Relaxed);
                match swapped {
                    Ok(_) => return,
                    Err(now) => seen = now,
                }
            }
            if seen >> 32 == hash >> 32 {
                return;
            }
        }
    }

    /// The slots in which an anchor may lie.
    fn probes(&self, hash: u64) -> impl Iterator<Item = usize> {
        const PROBES_MAX: usize = 64;
        let mask = self.slots.len() - 1;
        (0..PROBES_MAX).map(move |step| (hash as usize + step) & mask)
    }
}

/// Calls `anchor` with a hash for each sampled place: where the first eight of its bytes hash to a
/// small number. Runs of one byte, which are everywhere, are no places.
fn sample(bytes: &[u8], bits: u32, mut anchor: impl FnMut(u64)) {
    let bound = 1u64 << (u64::BITS - bits);
    for window in bytes.windows(WINDOW_BYTES) {
        let [first, ..] = window.as_chunks::<8>().0 else { return };
        let first = u64::from_le_bytes(*first);
        if (first ^ SALT).wrapping_mul(MULTIPLIER) >= bound || first == first.rotate_left(8) {
            continue;
        }
        let words = window.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let hash = words.fold(0u64, |hash, word| {
            (hash ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29)
        });
        anchor((hash ^ hash >> 32).wrapping_mul(MULTIPLIER));
    }
}

const SALT: u64 = 0x2545_f491_4f6c_dd1d;
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

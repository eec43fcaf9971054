//! Hashes that one peer has offered and that nothing proves yet (RFC 7574 §5.3: remember the
//! hashes needed for chunks that are still wanted).
//!
//! Kept only for munros of which something is in flight from that peer, so that nobody can make
//! them grow; a hash of one peer never helps to verify what another one sent.

use std::collections::BTreeMap;

use crate::tree::{MunroTree, NodeHash};
use crate::unit::{Bin, MunroIndex};

/// The offered hashes of one channel.
#[derive(Debug, Default)]
pub(super) struct Offered {
    munros: BTreeMap<MunroIndex, Hashes>,
}

#[derive(Debug, Default)]
struct Hashes {
    /// Flights that need them.
    flights: u32,
    /// Slots of the munro's tree, in order of arrival, and the hash of each.
    slots: Vec<u16>,
    values: Vec<NodeHash>,
}

impl Offered {
    /// A run of `munro` is in flight.
    pub(super) fn expect(&mut self, munro: MunroIndex) {
        self.munros.entry(munro).or_default().flights += 1;
    }

    /// A run of `munro` is no longer in flight.
    pub(super) fn done(&mut self, munro: MunroIndex) {
        if let Some(hashes) = self.munros.get_mut(&munro) {
            hashes.flights -= 1;
            if hashes.flights == 0 {
                self.munros.remove(&munro);
            }
        }
    }

    /// Whether hashes of `munro` are of use.
    pub(super) fn is_expected(&self, munro: MunroIndex) -> bool {
        self.munros.contains_key(&munro)
    }

    /// Takes a hash; one of a munro that is not expected, or of no node above the blocks, is
    /// ignored. The last offer counts: a peer may correct itself.
    pub(super) fn offer(&mut self, bin: Bin, hash: NodeHash) {
        let (Some(munro), Some(slot)) = (bin.munro(), MunroTree::slot(bin)) else {
            return;
        };
        let Some(known) = self.munros.get_mut(&munro) else {
            return;
        };
        let slot = slot as u16;
        if let Some(at) = known.slots.iter().position(|other| *other == slot) {
            known.values[at] = hash;
        } else {
            known.slots.push(slot);
            known.values.push(hash);
        }
    }

    /// The hash that was offered for `bin`.
    pub(super) fn hash(&self, bin: Bin) -> Option<NodeHash> {
        let known = self.munros.get(&bin.munro()?)?;
        let slot = MunroTree::slot(bin)? as u16;
        let at = known.slots.iter().position(|other| *other == slot)?;
        known.values.get(at).copied()
    }
}

//! The log above its munros: peaks, the append frontier, and proofs that one log extends another.
//!
//! The peaks of n munros are the roots of the full subtrees that the 1-bits of n stand for, left to
//! right and so descending (RFC 7574 §5.6.1).

use crate::limits::{LOG_MUNROS_MAX, MUNRO_LAYER};
use crate::unit::{Bin, MunroIndex};

use super::NodeHash;

/// The peaks of a log of whole munros: all that is needed to append to it and to name its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontier {
    munros: u64,
    peaks: Vec<NodeHash>,
}

/// Why one log does not extend another.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConsistencyError {
    /// The log would shrink.
    #[error("the log has {new} munros, fewer than the {old} known before")]
    Shrinks {
        /// Munros known before.
        old: u64,
        /// Munros claimed.
        new: u64,
    },
    /// The number of hashes is not the exact one.
    #[error("the proof has {found} hashes, expected {expected}")]
    Length {
        /// Hashes that the two sizes call for.
        expected: usize,
        /// Hashes given.
        found: usize,
    },
    /// The old log's peaks are not nodes of the new log.
    #[error("the old log is not the beginning of the new one: bin {at} differs")]
    Differs {
        /// The new peak that is not met.
        at: Bin,
    },
    /// A number of peaks that does not belong to the number of munros.
    #[error("{munros} munros have {expected} peaks, found {found}")]
    Peaks {
        /// Munros claimed.
        munros: u64,
        /// Peaks that they have.
        expected: usize,
        /// Peaks given.
        found: usize,
    },
}

impl Frontier {
    /// The empty log.
    pub const fn empty() -> Self {
        Self { munros: 0, peaks: Vec::new() }
    }

    /// From a number of munros and their peaks, left to right.
    pub fn from_peaks(munros: u64, peaks: Vec<NodeHash>) -> Result<Self, ConsistencyError> {
        let expected = munros.count_ones() as usize;
        if munros > LOG_MUNROS_MAX || peaks.len() != expected {
            return Err(ConsistencyError::Peaks { munros, expected, found: peaks.len() });
        }
        Ok(Self { munros, peaks })
    }

    /// Munros in the log.
    pub fn munros(&self) -> u64 {
        self.munros
    }

    /// The peaks' hashes, left to right.
    pub fn peaks(&self) -> &[NodeHash] {
        &self.peaks
    }

    /// Appends one munro.
    pub fn push(&mut self, munro: NodeHash) {
        let mut hash = munro;
        for _ in 0..self.munros.trailing_ones() {
            // The number of trailing ones of n is the number of peaks that the new munro completes.
            let Some(left) = self.peaks.pop() else { break };
            hash = NodeHash::parent(left, hash);
        }
        self.peaks.push(hash);
        self.munros += 1;
    }

    /// `blake3::hash` of the whole log; `None` for the empty log. A single peak is not a root (the
    /// root flag is missing in it): `children` gives the hashes of its two children then.
    pub fn root(&self, children: impl FnOnce(Bin) -> (NodeHash, NodeHash)) -> Option<[u8; 32]> {
        let (last, rest) = self.peaks.split_last()?;
        let Some((first, middle)) = rest.split_first() else {
            let (left, right) = children(Self::peak_bins(self.munros)[0]);
            return Some(NodeHash::root(left, right));
        };
        let right = middle.iter().rev().fold(*last, |right, left| NodeHash::parent(*left, right));
        Some(NodeHash::root(*first, right))
    }

    /// The bins of the peaks of `munros` munros, left to right.
    pub fn peak_bins(munros: u64) -> Vec<Bin> {
        let mut start = 0;
        let mut bins = Vec::new();
        for bit in (0..u64::BITS).rev().filter(|bit| munros & (1 << bit) != 0) {
            bins.push(Bin::new(MUNRO_LAYER + bit, start >> bit));
            start += 1 << bit;
        }
        bins
    }

    /// Checks that `self` is the beginning of `new`, by exactly the hashes of
    /// [`prove_consistency`].
    pub fn check_extended_by(
        &self,
        new: &Self,
        proof: &[NodeHash],
    ) -> Result<(), ConsistencyError> {
        let (old_munros, new_munros) = (self.munros, new.munros);
        if new_munros < old_munros {
            return Err(ConsistencyError::Shrinks { old: old_munros, new: new_munros });
        }
        let missing = proof_bins(old_munros, new_munros);
        if proof.len() != missing.len() {
            let (expected, found) = (missing.len(), proof.len());
            return Err(ConsistencyError::Length { expected, found });
        }
        let old_bins = Self::peak_bins(old_munros);
        let new_bins = Self::peak_bins(new_munros);
        let same = old_bins.iter().zip(&new_bins).take_while(|(old, new)| old == new).count();
        for ((old, new), bin) in self.peaks.iter().zip(&new.peaks).zip(&new_bins).take(same) {
            if old != new {
                return Err(ConsistencyError::Differs { at: *bin });
            }
        }
        // The old peaks left over lie under one new peak; climb to it from the smallest.
        let mut left = old_bins[same..].iter().zip(&self.peaks[same..]).rev().peekable();
        let Some((first, hash)) = left.next() else {
            return Ok(());
        };
        let (mut at, mut hash) = (*first, *hash);
        let mut proof = proof.iter();
        let target = new_bins[same];
        while at != target {
            let sibling = at.sibling();
            hash = match left.next_if(|(bin, _)| **bin == sibling) {
                Some((_, left)) => NodeHash::parent(*left, hash),
                None => match proof.next() {
                    Some(right) => NodeHash::parent(hash, *right),
                    None => return Err(ConsistencyError::Differs { at: target }),
                },
            };
            at = at.parent();
        }
        if hash == new.peaks[same] { Ok(()) } else { Err(ConsistencyError::Differs { at: target }) }
    }
}

/// The bins whose hashes prove that a log of `old` munros is the beginning of one of `new`, in the
/// order in which they are folded.
fn proof_bins(old: u64, new: u64) -> Vec<Bin> {
    let old_bins = Frontier::peak_bins(old);
    let new_bins = Frontier::peak_bins(new);
    let same = old_bins.iter().zip(&new_bins).take_while(|(old, new)| old == new).count();
    let (Some(last), true) = (old_bins[same..].last(), same < new_bins.len()) else {
        return Vec::new();
    };
    let mut bins = Vec::new();
    let mut at = *last;
    while at != new_bins[same] {
        if at.is_left() {
            bins.push(at.sibling());
        }
        at = at.parent();
    }
    bins
}

/// Proves that a log of `old` munros is the beginning of one of `new`: the hashes that
/// [`Frontier::check_extended_by`] takes. `munro` gives a munro's hash.
///
/// # Panics
/// If `old > new`: that is a bug, a log only grows.
pub fn prove_consistency<E>(
    old: u64,
    new: u64,
    mut munro: impl FnMut(MunroIndex) -> Result<NodeHash, E>,
) -> Result<Vec<NodeHash>, E> {
    assert!(old <= new, "a log only grows");
    proof_bins(old, new)
        .into_iter()
        .map(|bin| {
            // The whole subtree exists: it lies under a peak of the new log.
            let mut frontier = Frontier::empty();
            let width = bin.chunks().count() >> MUNRO_LAYER;
            let first = bin.chunks().start.0 >> MUNRO_LAYER;
            for index in first..first + width {
                frontier.push(munro(MunroIndex(index))?);
            }
            Ok(frontier.peaks[0])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MUNRO_BYTES;
    use std::convert::Infallible;

    /// Hashes of munros whose content is their index, and the log's bytes.
    fn log(munros: u64) -> (Vec<NodeHash>, Vec<u8>) {
        let mut bytes = Vec::new();
        let mut hashes = Vec::new();
        for munro in 0..munros {
            let content = vec![munro as u8 + 1; MUNRO_BYTES as usize];
            hashes.push(NodeHash::of_bytes(MunroIndex(munro).bin(), &content));
            bytes.extend(content);
        }
        (hashes, bytes)
    }

    fn frontier(hashes: &[NodeHash]) -> Frontier {
        let mut frontier = Frontier::empty();
        for hash in hashes {
            frontier.push(*hash);
        }
        frontier
    }

    #[test]
    fn folded_peaks_equal_blake3_of_the_log() {
        let (hashes, bytes) = log(13);
        let child = |bin: Bin| {
            let start = bin.byte_offset() as usize;
            NodeHash::of_bytes(bin, &bytes[start..start + bin.byte_len() as usize])
        };
        let children = |bin: Bin| {
            let left = Bin::new(bin.layer() - 1, bin.offset() * 2);
            (child(left), child(left.sibling()))
        };
        for munros in 1..=13 {
            let expected = *blake3::hash(&bytes[..munros * MUNRO_BYTES as usize]).as_bytes();
            let root = frontier(&hashes[..munros]).root(children);
            assert_eq!(root, Some(expected), "{munros} munros");
        }
        assert_eq!(Frontier::empty().root(children), None);
    }

    #[test]
    fn consistency_holds_for_every_pair_of_sizes_and_no_mutation() {
        let hashes: Vec<_> = (0..66u8).map(|i| NodeHash([i; 32])).collect();
        for new in 0..=66 {
            let grown = frontier(&hashes[..new]);
            for old in 0..=new {
                let before = frontier(&hashes[..old]);
                let proof = prove_consistency(old as u64, new as u64, |munro| {
                    Ok::<_, Infallible>(hashes[munro.0 as usize])
                });
                let proof = proof.unwrap_or_else(|never| match never {});
                assert_eq!(before.check_extended_by(&grown, &proof), Ok(()), "{old} -> {new}");
                for i in 0..proof.len() {
                    let mut forged = proof.clone();
                    forged[i].0[5] ^= 1;
                    assert!(before.check_extended_by(&grown, &forged).is_err());
                    forged.remove(i);
                    assert!(before.check_extended_by(&grown, &forged).is_err());
                }
                let mut longer = proof.clone();
                longer.push(NodeHash([0; 32]));
                assert!(before.check_extended_by(&grown, &longer).is_err());
                for i in 0..before.peaks.len() {
                    let mut fork = before.clone();
                    fork.peaks[i].0[0] ^= 1;
                    assert!(fork.check_extended_by(&grown, &proof).is_err(), "{old} -> {new}");
                }
                if old < new {
                    assert!(grown.check_extended_by(&before, &[]).is_err());
                }
            }
        }
    }

    #[test]
    fn peaks_must_match_the_number_of_munros() {
        assert!(Frontier::from_peaks(3, vec![NodeHash([0; 32])]).is_err());
        assert!(Frontier::from_peaks(u64::MAX, vec![NodeHash([0; 32]); 64]).is_err());
        assert!(Frontier::from_peaks(4, vec![NodeHash([0; 32])]).is_ok());
    }
}

//! The head: the origin's newest statement, the last block of the log.
//!
//! ```text
//! munro  0 ............ n-2 | n-1
//!        peaks of these     | H: the head is the last block of the last munro
//! ```
//!
//! A head names everything: the log's length, its earlier peaks, where the epoch's sections lie,
//! the head before it, the tracks. It is proved by the signature of its munro; [`PlacedHead::follows`]
//! decides whether it may take the place of an earlier one. Heads are ordered by position, never by
//! time.

use serde::{Deserialize, Serialize};

use crate::limits::{
    BLOCK_BYTES, HEAD_BYTES_MAX, LABEL_BYTES_MAX, LOG_MUNROS_MAX, MUNRO_BYTES, TRACKS_MAX,
};
use crate::tree::{BlockHash, ConsistencyError, Frontier, NodeHash};
use crate::unit::{BlockIndex, ByteRange, MunroIndex};

const MAGIC: &[u8; 8] = b"distdHD1";

/// One of an epoch's three sections: plain, frames, head. Each starts on a munro boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// First munro.
    pub munro: u64,
    /// Bytes used; what follows up to the next munro boundary is zero padding. 0: no section.
    pub bytes: u64,
}

/// Where the newest epoch lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sections {
    /// P: file blocks and metadata, plain.
    pub plain: Section,
    /// F: frames and their index.
    pub frames: Section,
    /// H: the head.
    pub head: Section,
}

/// The head before, and the proof that its log is the beginning of this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Length of its log, in munros: its position.
    pub munros: u64,
    /// `blake3::hash` of its block.
    #[serde(with = "serde_bytes")]
    pub block: [u8; 32],
    /// What [`crate::tree::prove_consistency`] gives from its log to this head's earlier munros.
    pub consistency: Vec<NodeHash>,
}

/// A track: a name that moves from release to release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Track {
    /// Its name, 1 to 48 bytes (see [`check_label`]).
    pub name: String,
    /// The version that it stands at.
    pub version: String,
    /// The release record in the log.
    pub release: ByteRange,
}

/// A decoded, bounded head. Trust comes from the munro that it lies in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Log length in munros, the head's own included.
    pub munros: u64,
    /// The newest epoch's sections.
    pub sections: Sections,
    /// Peaks of the munros before the head's own.
    pub peaks: Vec<NodeHash>,
    /// The head before; `None` for the first.
    pub previous: Option<Previous>,
    /// Sorted by name.
    pub tracks: Vec<Track>,
    /// The list of releases.
    pub catalog: ByteRange,
    /// The list of epochs with frames ([`crate::frame::EpochList`]); of no bytes if there are none.
    pub epochs: ByteRange,
    /// How long after the newest signature this head counts as fresh, in seconds.
    pub validity_s: u64,
    /// `blake3::hash` of the offline recovery key's public half.
    #[serde(with = "serde_bytes")]
    pub recovery_key: [u8; 32],
}

/// Why bytes are no head, or no head for their position.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeadError {
    /// Not a head block at all.
    #[error("block {block} holds no head: expected {expected}, found other bytes")]
    NotAHead {
        /// Where it was read.
        block: BlockIndex,
        /// What is missing.
        expected: &'static str,
    },
    /// A head that says it lies elsewhere.
    #[error("the head in munro {munro} says that the log has {munros} munros")]
    Position {
        /// Where it was read.
        munro: MunroIndex,
        /// What it says.
        munros: u64,
    },
    /// A value out of its bounds.
    #[error("the head in munro {munro}: {what} is out of bounds")]
    Bounds {
        /// Where it was read.
        munro: MunroIndex,
        /// Which value.
        what: &'static str,
    },
    /// More than one block.
    #[error("the head has {found} bytes, at most {HEAD_BYTES_MAX} fit; publish to fewer tracks")]
    TooLarge {
        /// Bytes that it would have.
        found: usize,
    },
}

/// Why a head may not take the place of the trusted one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FollowError {
    /// An older head: a rollback.
    #[error("the head at {offered} munros is older than the trusted one at {trusted}")]
    Older {
        /// Position of the trusted head, in munros.
        trusted: u64,
        /// Position of the one offered.
        offered: u64,
    },
    /// Another history: the origin, or who holds its key, signed two logs.
    #[error("fork: two histories meet at {munros} munros; keep the evidence and ask the origin")]
    Fork {
        /// The position at which they differ, in munros.
        munros: u64,
    },
    /// The log's beginning changed.
    #[error("the head at {munros} munros does not extend the log: {source}")]
    Inconsistent {
        /// Position of the one offered.
        munros: u64,
        /// What does not fit.
        source: ConsistencyError,
    },
    /// The trusted head is not this head's predecessor but further back: walk first.
    #[error(
        "the head before is at {previous} munros, the trusted one at {trusted}: fetch it first"
    )]
    Gap {
        /// Position of the trusted head.
        trusted: u64,
        /// Position of the predecessor.
        previous: u64,
    },
}

/// A head in place: the record, its block's hash and its munro's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedHead {
    /// The record.
    pub head: Head,
    /// `blake3::hash` of its block.
    pub block: BlockHash,
    /// The signed hash of its munro.
    pub munro: NodeHash,
}

impl Head {
    /// The block that a log's head lies in.
    pub const fn block(munros: u64) -> BlockIndex {
        BlockIndex(munros * (MUNRO_BYTES / BLOCK_BYTES) - 1)
    }

    /// The head as its block.
    pub fn encode(&self) -> Result<Vec<u8>, HeadError> {
        let mut block = MAGIC.to_vec();
        // Plain integers, strings and byte strings always encode into memory.
        let record = rmp_serde::to_vec(self).unwrap_or_default();
        let found = MAGIC.len() + 2 + record.len();
        if record.is_empty() || found > HEAD_BYTES_MAX {
            return Err(HeadError::TooLarge { found });
        }
        block.extend((record.len() as u16).to_be_bytes());
        block.extend(record);
        block.resize(HEAD_BYTES_MAX, 0);
        Ok(block)
    }

    /// Decodes the verified last block of `munro`, canonical form only.
    pub fn decode(munro: MunroIndex, block: &[u8]) -> Result<Self, HeadError> {
        let at = Self::block(munro.0 + 1);
        let not = |expected| HeadError::NotAHead { block: at, expected };
        let rest = block.strip_prefix(MAGIC).ok_or(not("the magic number distdHD1"))?;
        let (len, rest) = rest.split_first_chunk::<2>().ok_or(not("a length"))?;
        let len = usize::from(u16::from_be_bytes(*len));
        let record = rest.get(..len).ok_or(not("a record within the block"))?;
        let head: Self = rmp_serde::from_slice(record).map_err(|_| not("a msgpack record"))?;
        head.check_bounds(munro)?;
        if head.encode().as_deref() != Ok(block) {
            return Err(not("the canonical form"));
        }
        Ok(head)
    }

    fn check_bounds(&self, munro: MunroIndex) -> Result<(), HeadError> {
        if self.munros != munro.0 + 1 {
            return Err(HeadError::Position { munro, munros: self.munros });
        }
        let sections = [self.sections.plain, self.sections.frames, self.sections.head];
        let in_order = sections.windows(2).all(|pair| {
            let end = pair[0].bytes.div_ceil(MUNRO_BYTES).checked_add(pair[0].munro);
            end.is_some_and(|end| end <= pair[1].munro)
        });
        let bounds = [
            ("the log's length", self.munros <= LOG_MUNROS_MAX),
            ("the section table", in_order && self.sections.head.munro == munro.0),
            ("the number of peaks", self.peaks.len() == munro.0.count_ones() as usize),
            (
                "the predecessor's position",
                self.previous.as_ref().is_none_or(|p| p.munros < self.munros),
            ),
            ("the number of tracks", self.tracks.len() <= TRACKS_MAX),
            ("the order of tracks", self.tracks.is_sorted_by(|a, b| a.name < b.name)),
            ("a track's name", self.tracks.iter().all(|t| check_label(&t.name).is_ok())),
            ("a track's version", self.tracks.iter().all(|t| check_label(&t.version).is_ok())),
            ("a track's release", self.tracks.iter().all(|t| self.holds(t.release))),
            ("the list of releases", self.holds(self.catalog)),
            ("the list of epochs", self.holds(self.epochs)),
        ];
        match bounds.iter().find(|(_, holds)| !holds) {
            Some((what, _)) => Err(HeadError::Bounds { munro, what }),
            None => Ok(()),
        }
    }

    /// Whether a range lies in the log before the head's own munro.
    pub fn holds(&self, range: ByteRange) -> bool {
        range.end().is_some_and(|end| end <= (self.munros - 1) * MUNRO_BYTES)
    }

    /// The track of that name.
    pub fn track(&self, name: &str) -> Option<&Track> {
        self.tracks.iter().find(|track| track.name == name)
    }
}

impl PlacedHead {
    /// Decodes a head from its verified block and its munro's verified hash.
    pub fn decode(munro: MunroIndex, hash: NodeHash, block: &[u8]) -> Result<Self, HeadError> {
        let head = Head::decode(munro, block)?;
        Ok(Self { head, block: BlockHash::of(block), munro: hash })
    }

    /// The log's peaks, the head's own munro included.
    fn frontier(&self) -> Result<Frontier, ConsistencyError> {
        let mut frontier = Frontier::from_peaks(self.head.munros - 1, self.head.peaks.clone())?;
        frontier.push(self.munro);
        Ok(frontier)
    }

    /// Whether this head may take the place of `trusted`, which must be its predecessor or itself.
    ///
    /// [`FollowError::Gap`] asks the caller to fetch the predecessor and to settle that one first.
    pub fn follows(&self, trusted: &Self) -> Result<(), FollowError> {
        let (ours, offered) = (trusted.head.munros, self.head.munros);
        if offered < ours {
            return Err(FollowError::Older { trusted: ours, offered });
        }
        if offered == ours {
            let same = self.munro == trusted.munro && self.block == trusted.block;
            return if same { Ok(()) } else { Err(FollowError::Fork { munros: ours }) };
        }
        let Some(previous) = self.head.previous.as_ref().filter(|p| p.munros >= ours) else {
            // The chain of heads jumps over the trusted one.
            return Err(FollowError::Fork { munros: ours });
        };
        if previous.munros > ours {
            return Err(FollowError::Gap { trusted: ours, previous: previous.munros });
        }
        if previous.block != trusted.block.0 {
            return Err(FollowError::Fork { munros: ours });
        }
        let inconsistent = |source| FollowError::Inconsistent { munros: offered, source };
        let new =
            Frontier::from_peaks(offered - 1, self.head.peaks.clone()).map_err(inconsistent)?;
        let old = trusted.frontier().map_err(inconsistent)?;
        old.check_extended_by(&new, &previous.consistency).map_err(inconsistent)
    }
}

/// Why text cannot name a track or a release.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{}' cannot name a track or a release: expected 1 to {LABEL_BYTES_MAX} letters, digits or any of . _ + - ~ :",
    label.escape_debug()
)]
pub struct LabelError {
    /// The text refused.
    pub label: String,
}

/// Checks the name of a track or the version of a release: 1 to 48 ASCII letters, digits and
/// `. _ + - ~ :`, not beginning with a dot or a dash, so that it is safe in URLs, paths and shells.
pub fn check_label(label: &str) -> Result<(), LabelError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._+-~:".contains(&b);
    let well_formed = (1..=LABEL_BYTES_MAX).contains(&label.len())
        && label.bytes().all(allowed)
        && !label.starts_with(['.', '-']);
    if well_formed { Ok(()) } else { Err(LabelError { label: label.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::prove_consistency;
    use proptest::prelude::*;
    use std::convert::Infallible;

    /// A history of heads, `step` munros of content before each.
    fn history(steps: &[u64], salt: u8) -> Vec<PlacedHead> {
        let mut munros: Vec<NodeHash> = Vec::new();
        let mut frontier = Frontier::empty();
        let mut heads: Vec<PlacedHead> = Vec::new();
        for step in steps {
            let start = munros.len() as u64;
            for _ in 0..*step {
                let hash = NodeHash(*blake3::hash(&[salt, munros.len() as u8]).as_bytes());
                munros.push(hash);
                frontier.push(hash);
            }
            let before = munros.len() as u64;
            let previous = heads.last().map(|p| Previous {
                munros: p.head.munros,
                block: p.block.0,
                consistency: prove_consistency(p.head.munros, before, |m| {
                    Ok::<_, Infallible>(munros[m.0 as usize])
                })
                .unwrap_or_default(),
            });
            let section = |munro, bytes| Section { munro, bytes };
            let head = Head {
                munros: before + 1,
                sections: Sections {
                    plain: section(start, step * MUNRO_BYTES),
                    frames: section(before, 0),
                    head: section(before, MUNRO_BYTES),
                },
                peaks: frontier.peaks().to_vec(),
                previous,
                tracks: vec![Track {
                    name: "stable".into(),
                    version: "1".into(),
                    release: ByteRange { offset: 0, len: 10 },
                }],
                catalog: ByteRange { offset: 10, len: 10 },
                epochs: ByteRange { offset: 20, len: 10 },
                validity_s: 86_400,
                recovery_key: [5; 32],
            };
            let block = head.encode().expect("small");
            let hash = NodeHash(*blake3::hash(&block).as_bytes());
            heads.push(PlacedHead::decode(MunroIndex(before), hash, &block).expect("canonical"));
            munros.push(hash);
            frontier.push(hash);
        }
        heads
    }

    #[test]
    fn each_head_follows_its_predecessor_and_asks_for_the_ones_between() {
        let heads = history(&[1, 3, 2, 7, 1], 0);
        for (i, old) in heads.iter().enumerate() {
            assert_eq!(old.follows(old), Ok(()));
            for (j, new) in heads.iter().enumerate().skip(i + 1) {
                let answer = new.follows(old);
                if j == i + 1 {
                    assert_eq!(answer, Ok(()));
                } else {
                    assert!(matches!(answer, Err(FollowError::Gap { .. })), "{answer:?}");
                }
                assert!(matches!(old.follows(new), Err(FollowError::Older { .. })));
            }
        }
    }

    #[test]
    fn another_history_is_a_fork_or_inconsistent() {
        let honest = history(&[1, 3, 2], 0);
        let forged = history(&[1, 3, 2], 1);
        assert!(matches!(forged[0].follows(&honest[0]), Err(FollowError::Fork { .. })));
        assert!(matches!(forged[1].follows(&honest[0]), Err(FollowError::Fork { .. })));
        // The right predecessor named, but other content before it.
        let mut grafted = forged[1].clone();
        grafted.head.previous.as_mut().expect("has one").block = honest[0].block.0;
        assert!(matches!(grafted.follows(&honest[0]), Err(FollowError::Inconsistent { .. })));
        // A chain that jumps over the trusted head.
        let mut jumping = honest[2].clone();
        jumping.head.previous.as_mut().expect("has one").munros = honest[0].head.munros;
        assert!(matches!(jumping.follows(&honest[1]), Err(FollowError::Fork { .. })));
    }

    #[test]
    fn a_head_of_the_longest_log_and_nine_longest_tracks_fits_its_block() {
        let mut head = history(&[1], 0).remove(0).head;
        head.munros = LOG_MUNROS_MAX;
        head.sections.plain.munro = 0;
        head.sections.frames.munro = LOG_MUNROS_MAX - 1;
        head.sections.head.munro = LOG_MUNROS_MAX - 1;
        head.peaks = vec![NodeHash([9; 32]); 40];
        let consistency = vec![NodeHash([9; 32]); 40];
        head.previous =
            Some(Previous { munros: LOG_MUNROS_MAX / 2 - 1, block: [9; 32], consistency });
        let release = ByteRange { offset: 1 << 59, len: 4096 };
        head.tracks = Vec::new();
        for i in 0..9 {
            head.tracks.push(Track { name: format!("{i:048}"), version: "v".repeat(48), release });
        }
        assert!(head.encode().is_ok());
    }

    #[test]
    fn a_label_is_safe_everywhere() {
        for good in ["stable", "6.1.0-55", "v1:2~rc1+b_3", "x"] {
            assert_eq!(check_label(good), Ok(()));
        }
        for bad in ["", ".", "..", "-r", "a/b", "a@b", "a b", "é", "a\n", &"a".repeat(49)] {
            assert!(check_label(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_mutated_head_is_refused_or_another_head(at in 0usize..4096, bit in 0u32..8) {
            let placed = history(&[1, 3], 0).remove(1);
            let mut block = placed.head.encode().expect("small");
            block[at] ^= 1 << bit;
            if let Ok(head) = Head::decode(MunroIndex(placed.head.munros - 1), &block) {
                prop_assert_ne!(&head, &placed.head);
                prop_assert_eq!(head.encode().expect("small"), block);
            }
        }

        #[test]
        fn arbitrary_bytes_are_no_head(mut bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            prop_assert!(Head::decode(MunroIndex(4), &bytes).is_err());
            let mut block = MAGIC.to_vec();
            block.append(&mut bytes);
            prop_assert!(Head::decode(MunroIndex(4), &block).is_err());
        }
    }
}

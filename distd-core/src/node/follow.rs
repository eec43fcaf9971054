//! Following the head: which newest munro is believed, and the walk back to the head trusted before.
//!
//! ```text
//! trusted            newest offered
//!    o----o----o----o      each head names its predecessor and proves that its log extends it;
//!    ^    <----<----^      the walk goes back until it meets the trusted one, then the newest is
//!                          trusted
//! ```
//!
//! Pure state: blocks come in, fetches go out.

use std::sync::Arc;

use bytes::Bytes;

use crate::head::{FollowError, Head, HeadError, PlacedHead};
use crate::keys::{NtpTime, OriginId};
use crate::limits::{BLOCK_LAYER, CLOCK_AHEAD_S_MAX, HEAD_BYTES_MAX, MUNRO_LAYER};
use crate::tree::{MunroTree, NodeHash, SignedMunro, VerifiedMunro, VerifiedRun};
use crate::unit::{Bin, BlockIndex, MunroIndex};

/// A head that this node believes, with the signature that proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedHead {
    /// The head and its place.
    pub placed: PlacedHead,
    /// Its munro, with the newest signature seen.
    pub munro: VerifiedMunro,
    /// The uncles that prove the head's block under its munro, tallest first.
    uncles: Vec<NodeHash>,
}

/// Why an offered head is not believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum HeadRefused {
    /// A signature from the future: the clock of this machine or of the origin is wrong.
    #[error(
        "a head signed {ahead_s} s ahead of this machine's clock is refused: set the clock here or at the origin"
    )]
    Future {
        /// Seconds ahead.
        ahead_s: u64,
    },
    /// The block is no head.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// It does not extend what is trusted.
    #[error(transparent)]
    Follow(#[from] FollowError),
}

/// What a step asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Rest,
    /// This head's block.
    Fetch(BlockIndex),
    /// There is a new trusted head, or a newer signature of it.
    Trusted,
    /// The offer is refused.
    Refused(HeadRefused),
}

/// A walk from an offered head back to the trusted one.
struct Walk {
    newest: Option<TrustedHead>,
    /// The head reached so far, if any; `wanted` is its predecessor.
    oldest: Option<PlacedHead>,
    target: MunroIndex,
    wanted: BlockIndex,
}

/// The trusted head of one log, and the walk under way.
pub(super) struct Follower {
    trusted: Option<Arc<TrustedHead>>,
    walk: Option<Walk>,
}

impl Follower {
    /// Starts from what the cache has kept.
    pub(super) fn new(trusted: Option<TrustedHead>) -> Self {
        Self { trusted: trusted.map(Arc::new), walk: None }
    }

    /// The head believed now.
    pub(super) fn trusted(&self) -> Option<&Arc<TrustedHead>> {
        self.trusted.as_ref()
    }

    /// A newer signed munro was seen. `now_s`: this machine's clock, in Unix seconds; 0 if unset.
    pub(super) fn offer(&mut self, munro: VerifiedMunro, now_s: u64) -> Step {
        let known_s = self.trusted.as_ref().map_or(0, |t| t.munro.time().unix_seconds());
        let ahead_s = munro.time().unix_seconds().saturating_sub(now_s.max(known_s));
        // A clock before the last trusted signature is unset; it cannot judge.
        if now_s != 0 && ahead_s > CLOCK_AHEAD_S_MAX {
            return Step::Refused(HeadRefused::Future { ahead_s });
        }
        if let Some(trusted) = &mut self.trusted {
            let (ours, offered) = (trusted.munro.munro(), munro.munro());
            if offered < ours {
                let (trusted, offered) = (ours.0 + 1, offered.0 + 1);
                return Step::Refused(FollowError::Older { trusted, offered }.into());
            }
            if offered == ours {
                if munro.hash() != trusted.munro.hash() {
                    return Step::Refused(FollowError::Fork { munros: ours.0 + 1 }.into());
                }
                if munro.time().unix_seconds() > known_s {
                    Arc::make_mut(trusted).munro = munro;
                }
                return Step::Trusted;
            }
        }
        if self.walk.as_ref().is_some_and(|walk| walk.target >= munro.munro()) {
            return Step::Rest;
        }
        let wanted = Head::block(munro.munro().0 + 1);
        self.walk = Some(Walk { newest: None, oldest: None, target: munro.munro(), wanted });
        Step::Fetch(wanted)
    }

    /// A verified run that may hold the wanted head.
    pub(super) fn on_run(&mut self, run: &VerifiedRun) -> Step {
        let Some(walk) = &mut self.walk else { return Step::Rest };
        let wanted = walk.wanted;
        if !run.bin().blocks().is_some_and(|blocks| blocks.contains(wanted)) {
            return Step::Rest;
        }
        let step = Self::advance(walk, self.trusted.as_deref(), run);
        match step {
            Step::Trusted => {
                self.trusted = self.walk.take().and_then(|walk| walk.newest).map(Arc::new);
            }
            Step::Refused(_) => self.walk = None,
            Step::Rest | Step::Fetch(_) => {}
        }
        step
    }

    fn advance(walk: &mut Walk, trusted: Option<&TrustedHead>, run: &VerifiedRun) -> Step {
        let munro = *run.munro();
        let start = (walk.wanted.byte_offset() - run.bin().byte_offset()) as usize;
        let block = run.bytes().get(start..start + HEAD_BYTES_MAX).unwrap_or_default();
        let placed = match PlacedHead::decode(munro.munro(), munro.hash(), block) {
            Ok(placed) => placed,
            Err(error) => return Step::Refused(error.into()),
        };
        if let Some(Err(error)) = walk.oldest.as_ref().map(|later| later.follows(&placed)) {
            return Step::Refused(error.into());
        }
        if walk.newest.is_none() {
            let uncles = block_uncles(run, walk.wanted);
            walk.newest = Some(TrustedHead { placed: placed.clone(), munro, uncles });
        }
        let Some(trusted) = trusted else { return Step::Trusted };
        match placed.follows(&trusted.placed) {
            Ok(()) => Step::Trusted,
            Err(FollowError::Gap { previous, .. }) => {
                walk.oldest = Some(placed);
                walk.wanted = Head::block(previous);
                Step::Fetch(walk.wanted)
            }
            Err(error) => Step::Refused(error.into()),
        }
    }

    /// The walk's fetch failed: the next offer starts anew.
    pub(super) fn give_up(&mut self) {
        self.walk = None;
    }
}

impl TrustedHead {
    /// Unix second after which the head no longer counts as fresh.
    pub fn fresh_until_s(&self) -> u64 {
        self.munro.time().unix_seconds().saturating_add(self.placed.head.validity_s)
    }

    /// Whether its validity has run out at this Unix second.
    pub fn is_stale_at(&self, now_s: u64) -> bool {
        self.fresh_until_s() < now_s
    }

    /// For the cache's state file: signature, the block's uncles, the block.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = encode_munro(&self.munro.signed());
        bytes.extend(self.uncles.iter().flat_map(|uncle| uncle.0));
        bytes.extend(self.placed.head.encode().ok()?);
        Some(bytes)
    }

    /// Reads a state file again, believing nothing that the origin's signature does not prove.
    pub(super) fn decode(origin: &OriginId, bytes: &[u8]) -> Option<Self> {
        let (munro, rest) = bytes.split_at_checked(MUNRO_RECORD_BYTES)?;
        let munro = decode_munro(munro)?.verify(origin).ok()?;
        let (uncles, block) = rest.split_at_checked(UNCLES * size_of::<NodeHash>())?;
        let uncles: Vec<NodeHash> =
            uncles.as_chunks().0.iter().map(|uncle| NodeHash(*uncle)).collect();
        let bin = Head::block(munro.munro().0.checked_add(1)?).bin();
        let offered = |uncle: Bin| {
            let depth = MUNRO_LAYER.checked_sub(uncle.layer() + 1)?;
            uncles.get(depth as usize).copied()
        };
        let block = Bytes::copy_from_slice(block);
        let run = MunroTree::new(munro).verify_run(bin, block, offered).ok()?;
        let placed = PlacedHead::decode(munro.munro(), munro.hash(), run.bytes()).ok()?;
        Some(Self { placed, munro, uncles })
    }
}

/// Uncles of a block: one for each layer from below the munro down to the blocks.
const UNCLES: usize = (MUNRO_LAYER - BLOCK_LAYER) as usize;

/// The uncles of one block of a verified run, tallest first. Those within the run are computed: a run
/// carries no hashes of less than a granule.
fn block_uncles(run: &VerifiedRun, block: BlockIndex) -> Vec<NodeHash> {
    let within = |bin: Bin| {
        let start = (bin.byte_offset() - run.bin().byte_offset()) as usize;
        let content = run.bytes().get(start..start + bin.byte_len() as usize)?;
        Some(NodeHash::of_bytes(bin, content))
    };
    let above = |bin: Bin| run.uncles().iter().find(|(uncle, _)| *uncle == bin);
    (BLOCK_LAYER..MUNRO_LAYER)
        .rev()
        .map(|layer| block.bin().ancestor(layer).sibling())
        .filter_map(|uncle| {
            if run.bin().contains(uncle) {
                within(uncle)
            } else {
                above(uncle).map(|(_, hash)| *hash)
            }
        })
        .collect()
}

const MUNRO_RECORD_BYTES: usize = 112;

/// A signed munro as 112 bytes: number, time, hash, signature.
fn encode_munro(signed: &SignedMunro) -> Vec<u8> {
    let mut bytes = signed.munro.0.to_be_bytes().to_vec();
    bytes.extend(signed.time.0.to_be_bytes());
    bytes.extend(signed.hash.0);
    bytes.extend(signed.signature);
    bytes
}

fn decode_munro(bytes: &[u8]) -> Option<SignedMunro> {
    let (munro, rest) = bytes.split_first_chunk::<8>()?;
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let (hash, rest) = rest.split_first_chunk::<32>()?;
    Some(SignedMunro {
        munro: MunroIndex(u64::from_be_bytes(*munro)),
        time: NtpTime(u64::from_be_bytes(*time)),
        hash: NodeHash(*hash),
        signature: rest.try_into().ok()?,
    })
}

/// Evidence of a fork: two munros one behind the other, as [`encode_munro`] has them.
pub(super) fn encode_fork(known: &SignedMunro, claimed: &SignedMunro) -> Vec<u8> {
    [encode_munro(known), encode_munro(claimed)].concat()
}

/// The munro for which `bytes` of a cache show two contents that the origin signed, if they do.
pub(super) fn decode_fork(origin: &OriginId, bytes: &[u8]) -> Option<MunroIndex> {
    let (known, claimed) = bytes.split_at_checked(MUNRO_RECORD_BYTES)?;
    let known = decode_munro(known)?.verify(origin).ok()?;
    let claimed = decode_munro(claimed)?.verify(origin).ok()?;
    let is_fork = known.munro() == claimed.munro() && known.hash() != claimed.hash();
    is_fork.then_some(known.munro())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::{Previous, Section, Sections};
    use crate::keys::OriginKey;
    use crate::limits::MUNRO_BYTES;
    use crate::tree::{Frontier, prove_consistency};
    use crate::unit::ByteRange;
    use proptest::prelude::*;
    use std::convert::Infallible;

    #[test]
    fn evidence_of_a_fork_counts_as_long_as_it_proves_one() {
        let key = OriginKey::from_seed(&[9; 32]);
        let sign = |key, munro, hash| {
            let time = NtpTime::from_unix(1_800_000_000, 0);
            VerifiedMunro::sign(key, MunroIndex(munro), NodeHash([hash; 32]), time).signed()
        };
        let evidence = encode_fork(&sign(&key, 7, 1), &sign(&key, 7, 2));
        assert_eq!(decode_fork(&key.id(), &evidence), Some(MunroIndex(7)));
        let other = OriginKey::from_seed(&[8; 32]);
        for (known, claimed) in [
            (sign(&key, 7, 1), sign(&key, 7, 1)),
            (sign(&key, 7, 1), sign(&key, 8, 2)),
            (sign(&key, 7, 1), sign(&other, 7, 2)),
        ] {
            assert_eq!(decode_fork(&key.id(), &encode_fork(&known, &claimed)), None);
        }
        assert_eq!(decode_fork(&key.id(), &evidence[1..]), None);
        assert_eq!(decode_fork(&key.id(), &[]), None);
    }

    const NOW_S: u64 = 1_800_000_000;

    /// The heads of a log of one-munro epochs, as the verified runs of their blocks.
    fn history(epochs: u64, salt: u8) -> Vec<VerifiedRun> {
        let key = OriginKey::from_seed(&[1; 32]);
        let mut frontier = Frontier::empty();
        let mut hashes: Vec<NodeHash> = Vec::new();
        let mut last: Option<(u64, PlacedHead)> = None;
        let mut runs = Vec::new();
        for epoch in 0..epochs {
            let before = epoch;
            let previous = last.as_ref().map(|(munros, placed)| Previous {
                munros: *munros,
                block: placed.block.0,
                consistency: prove_consistency(*munros, before, |m| {
                    Ok::<_, Infallible>(hashes[m.0 as usize])
                })
                .unwrap_or_default(),
            });
            let section = |bytes| Section { munro: before, bytes };
            let head = Head {
                munros: before + 1,
                sections: Sections {
                    plain: section(0),
                    frames: section(0),
                    head: section(MUNRO_BYTES),
                },
                peaks: frontier.peaks().to_vec(),
                previous,
                tracks: Vec::new(),
                catalog: ByteRange { offset: 0, len: 0 },
                epochs: ByteRange { offset: 0, len: 0 },
                validity_s: 60,
                recovery_key: [salt; 32],
            };
            let block = head.encode().expect("small");
            let mut content = vec![0; MUNRO_BYTES as usize];
            let start = content.len() - block.len();
            content[start..].copy_from_slice(&block);
            let munro = MunroIndex(before);
            let nodes = MunroTree::hash_content(munro, &content);
            let time = NtpTime::from_unix(NOW_S - 100 + epoch, 0);
            let signed = VerifiedMunro::sign(&key, munro, nodes[1], time);
            let offered = |bin: Bin| MunroTree::slot(bin).map(|slot| nodes[slot]);
            let run = MunroTree::new(signed)
                .verify_run(Head::block(before + 1).bin(), block.clone().into(), offered)
                .expect("true");
            let placed = PlacedHead::decode(munro, nodes[1], &block).expect("canonical");
            frontier.push(nodes[1]);
            hashes.push(nodes[1]);
            last = Some((before + 1, placed));
            runs.push(run);
        }
        runs
    }

    /// Offers the newest and hands over what is asked for; the last step.
    fn drive(follower: &mut Follower, runs: &[VerifiedRun], newest: usize) -> Step {
        let mut step = follower.offer(*runs[newest].munro(), NOW_S);
        while let Step::Fetch(block) = step {
            step = follower.on_run(&runs[block.munro().0 as usize]);
        }
        step
    }

    fn position(follower: &Follower) -> Option<u64> {
        follower.trusted().map(|trusted| trusted.placed.head.munros)
    }

    #[test]
    fn the_newest_head_is_trusted_after_a_walk_to_the_trusted_one() {
        let runs = history(6, 0);
        let mut follower = Follower::new(None);
        assert_eq!(drive(&mut follower, &runs, 1), Step::Trusted);
        assert_eq!(position(&follower), Some(2));
        assert_eq!(drive(&mut follower, &runs, 5), Step::Trusted);
        assert_eq!(position(&follower), Some(6));
    }

    #[test]
    fn every_past_head_is_refused_and_the_trusted_one_kept() {
        let runs = history(5, 0);
        let mut follower = Follower::new(None);
        drive(&mut follower, &runs, 4);
        for old in 0..4 {
            let step = drive(&mut follower, &runs, old);
            let older = FollowError::Older { trusted: 5, offered: old as u64 + 1 };
            assert_eq!(step, Step::Refused(older.into()));
            assert_eq!(position(&follower), Some(5));
        }
    }

    #[test]
    fn a_head_is_stale_from_the_second_after_its_validity_on() {
        let mut follower = Follower::new(None);
        drive(&mut follower, &history(1, 0), 0);
        let trusted = TrustedHead::clone(follower.trusted().expect("trusted"));
        let until_s = NOW_S - 100 + 60;
        assert_eq!(trusted.fresh_until_s(), until_s);
        for (now_s, stale) in [
            (0, false),
            (until_s - 1, false),
            (until_s, false),
            (until_s + 1, true),
            (u64::MAX, true),
        ] {
            assert_eq!(trusted.is_stale_at(now_s), stale, "at {now_s}");
        }
        let mut endless = trusted;
        endless.placed.head.validity_s = u64::MAX;
        assert!(!endless.is_stale_at(u64::MAX), "no overflow makes it stale");
    }

    #[test]
    fn another_history_under_the_same_key_is_a_fork() {
        let (honest, forged) = (history(3, 0), history(5, 1));
        let mut follower = Follower::new(None);
        drive(&mut follower, &honest, 2);
        for newest in 2..5 {
            let step = drive(&mut follower, &forged, newest);
            assert!(matches!(step, Step::Refused(HeadRefused::Follow(FollowError::Fork { .. }))));
            assert_eq!(position(&follower), Some(3));
            assert_eq!(follower.trusted().map(|t| t.munro.hash()), Some(honest[2].munro().hash()));
        }
    }

    #[test]
    fn a_head_from_the_future_is_refused_unless_the_clock_is_unset() {
        let runs = history(1, 0);
        let early = NOW_S - 100 - CLOCK_AHEAD_S_MAX - 1;
        let mut follower = Follower::new(None);
        let refused = follower.offer(*runs[0].munro(), early);
        assert!(matches!(refused, Step::Refused(HeadRefused::Future { ahead_s: 601 })));
        assert!(matches!(follower.offer(*runs[0].munro(), early + 1), Step::Fetch(_)));
        follower.give_up();
        assert!(matches!(follower.offer(*runs[0].munro(), 0), Step::Fetch(_)));
    }

    #[test]
    fn a_heartbeat_renews_freshness_and_never_takes_it_back() {
        let runs = history(1, 0);
        let key = OriginKey::from_seed(&[1; 32]);
        let mut follower = Follower::new(None);
        drive(&mut follower, &runs, 0);
        let at = |seconds| {
            let munro = runs[0].munro();
            VerifiedMunro::sign(&key, munro.munro(), munro.hash(), NtpTime::from_unix(seconds, 0))
        };
        let fresh_until = |follower: &Follower| follower.trusted().map(|t| t.fresh_until_s());
        assert_eq!(follower.offer(at(NOW_S), NOW_S), Step::Trusted);
        assert_eq!(fresh_until(&follower), Some(NOW_S + 60));
        assert_eq!(follower.offer(at(NOW_S - 50), NOW_S), Step::Trusted);
        assert_eq!(fresh_until(&follower), Some(NOW_S + 60));
    }

    #[test]
    fn a_state_file_is_the_head_again_or_nothing() {
        let runs = history(3, 0);
        let origin = OriginKey::from_seed(&[1; 32]).id();
        let mut follower = Follower::new(None);
        drive(&mut follower, &runs, 2);
        let trusted = follower.trusted().expect("trusted");
        let bytes = trusted.encode().expect("encodes");
        assert_eq!(TrustedHead::decode(&origin, &bytes).as_ref(), Some(&**trusted));
        assert_eq!(TrustedHead::decode(&OriginId([2; 32]), &bytes), None);
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 4;
            assert_eq!(TrustedHead::decode(&origin, &altered), None, "byte {at}");
        }
        assert_eq!(TrustedHead::decode(&origin, &bytes[..bytes.len() - 1]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn whatever_is_offered_the_head_never_goes_back(offers in proptest::collection::vec(0usize..6, 1..12)) {
            let runs = history(6, 0);
            let mut follower = Follower::new(None);
            let mut best = 0;
            for offer in offers {
                drive(&mut follower, &runs, offer);
                best = best.max(offer as u64 + 1);
                prop_assert_eq!(position(&follower), Some(best));
            }
        }
    }
}

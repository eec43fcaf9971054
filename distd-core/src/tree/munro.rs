//! One munro's tree: which of its nodes are proved, and the proof of a run of blocks.
//!
//! Slots are numbered as in a heap, so that a stored tree is a plain table of 512 hashes:
//!
//! ```text
//! slot        1            the munro (layer 10)
//!           /   \
//!          2     3
//!         ...   ...
//!      256 257 ... 511     the blocks (layer 2)          slot 0 is unused
//! ```

use bytes::Bytes;

use crate::limits::{BLOCK_BYTES, BLOCK_LAYER, GRANULE_LAYER, MUNRO_LAYER};
use crate::unit::{Bin, MunroIndex};

use super::{NodeHash, VerifiedMunro};

/// Slots of a munro's tree; slot 0 is unused.
const SLOTS: usize = 512;
const BLOCK_BYTES_USIZE: usize = BLOCK_BYTES as usize;

/// The nodes of one munro's tree that are known to be right, from the block layer up.
#[derive(Clone)]
pub struct MunroTree {
    trust: VerifiedMunro,
    nodes: Box<[NodeHash; SLOTS]>,
    known: [u64; SLOTS / 64],
}

/// An aligned run of blocks (at most one munro) whose bytes fold to a signed munro.
///
/// Made only by [`MunroTree::prove`]. It carries every hash that proves it again: its own
/// inner nodes down to the granules (to the blocks if it is smaller than one), and its uncles up to
/// the munro.
#[derive(Clone, Debug)]
pub struct VerifiedRun {
    munro: VerifiedMunro,
    bin: Bin,
    bytes: Bytes,
    nodes: Vec<(Bin, NodeHash)>,
    uncles: Vec<(Bin, NodeHash)>,
}

/// A run as a store holds it, with the hashes that prove it to whoever receives it. It goes out to
/// peers, who verify it; no store and no reader takes it.
#[derive(Clone, Debug)]
pub struct StoredRun(VerifiedRun);

/// A run's bytes with the hashes of its own nodes, computed and not yet proved: the costly half of
/// verifying, which needs no tree and so may be done on any thread.
#[derive(Clone, Debug)]
pub struct HashedRun {
    bin: Bin,
    bytes: Bytes,
    /// Leaves first, then each layer's parents; the last is the run itself.
    nodes: Vec<(Bin, NodeHash)>,
}

/// Why a run could not be verified.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VerifyError {
    /// The bin is not an aligned run of blocks within this munro, or the length is not its length.
    #[error("bin {bin}: {len} bytes are no run of blocks of munro {munro}")]
    NotARun {
        /// The bin claimed.
        bin: Bin,
        /// The bytes given.
        len: usize,
        /// The munro whose tree was asked.
        munro: MunroIndex,
    },
    /// A hash on the way up is neither known nor offered.
    #[error("bin {bin}: the hash of its uncle {missing} is not known")]
    MissingUncle {
        /// The run.
        bin: Bin,
        /// The uncle that is needed.
        missing: Bin,
    },
    /// The bytes, or an uncle that was offered, are wrong.
    #[error("bin {bin}: the hash at {at} is not the one that the origin signed")]
    Mismatch {
        /// The run.
        bin: Bin,
        /// The known node that the fold did not meet.
        at: Bin,
    },
}

impl VerifiedRun {
    /// The signed munro that proves it.
    pub fn munro(&self) -> &VerifiedMunro {
        &self.munro
    }
    /// Which run.
    pub fn bin(&self) -> Bin {
        self.bin
    }
    /// Its bytes, `bin().byte_len()` of them.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
    /// Hashes of the run's own nodes, from its leaves (granules, or blocks if it is smaller than a
    /// granule) up to the run itself.
    pub fn nodes(&self) -> &[(Bin, NodeHash)] {
        &self.nodes
    }
    /// Hashes of its uncles, tallest first (RFC 7574 §5.4); none for a whole munro.
    pub fn uncles(&self) -> &[(Bin, NodeHash)] {
        &self.uncles
    }
}

impl StoredRun {
    /// The signed munro that proves it.
    pub fn munro(&self) -> &VerifiedMunro {
        self.0.munro()
    }
    /// Which run.
    pub fn bin(&self) -> Bin {
        self.0.bin()
    }
    /// Its bytes, `bin().byte_len()` of them.
    pub fn bytes(&self) -> &Bytes {
        self.0.bytes()
    }
    /// Hashes of the run's own nodes, as [`VerifiedRun::nodes`].
    pub fn nodes(&self) -> &[(Bin, NodeHash)] {
        self.0.nodes()
    }
    /// Hashes of its uncles, as [`VerifiedRun::uncles`].
    pub fn uncles(&self) -> &[(Bin, NodeHash)] {
        self.0.uncles()
    }
}

impl From<VerifiedRun> for StoredRun {
    fn from(run: VerifiedRun) -> Self {
        Self(run)
    }
}

impl HashedRun {
    /// Hashes `bytes` as the content of `bin`; `None` if they are no aligned run of blocks within a
    /// munro, or not as long as it.
    pub fn new(bin: Bin, bytes: Bytes) -> Option<Self> {
        MunroTree::slot(bin).filter(|_| bytes.len() as u64 == bin.byte_len())?;
        let layer = leaf_layer(bin);
        let leaves = bin.chunks().start.0 >> layer;
        let mut nodes: Vec<(Bin, NodeHash)> = (leaves..)
            .map(|offset| Bin::new(layer, offset))
            .zip(bytes.chunks_exact(Bin::new(layer, 0).byte_len() as usize))
            .map(|(leaf, content)| (leaf, NodeHash::of_bytes(leaf, content)))
            .collect();
        let mut next = 0;
        while let [(left, a), (_, b), ..] = nodes[next..] {
            nodes.push((left.parent(), NodeHash::parent(a, b)));
            next += 2;
        }
        Some(Self { bin, bytes, nodes })
    }

    /// Which run.
    pub fn bin(&self) -> Bin {
        self.bin
    }
}

impl MunroTree {
    /// The tree of which only the signed root is known.
    pub fn new(trust: VerifiedMunro) -> Self {
        let mut tree =
            Self { trust, nodes: Box::new([NodeHash([0; 32]); SLOTS]), known: [0; SLOTS / 64] };
        tree.learn(1, trust.hash());
        tree
    }

    /// All nodes of a munro's content, bottom-up: the injector's side. Slot 1 is the munro's hash.
    ///
    /// # Panics
    /// If `bytes` is not one munro long.
    pub fn hash_content(munro: MunroIndex, bytes: &[u8]) -> Box<[NodeHash; SLOTS]> {
        assert_eq!(bytes.len() as u64, munro.bin().byte_len(), "a munro is 256 blocks");
        let mut nodes = Box::new([NodeHash([0; 32]); SLOTS]);
        let first = munro.bin().blocks().map_or(0, |blocks| blocks.start.0);
        for (i, block) in bytes.chunks_exact(BLOCK_BYTES_USIZE).enumerate() {
            nodes[SLOTS / 2 + i] =
                NodeHash::of_bytes(Bin::new(BLOCK_LAYER, first + i as u64), block);
        }
        for slot in (1..SLOTS / 2).rev() {
            nodes[slot] = NodeHash::parent(nodes[slot * 2], nodes[slot * 2 + 1]);
        }
        nodes
    }

    /// The slot of a node in a munro's table; `None` below the blocks or above the munro.
    pub fn slot(bin: Bin) -> Option<usize> {
        let layer = bin.layer();
        if !(BLOCK_LAYER..=MUNRO_LAYER).contains(&layer) {
            return None;
        }
        let width = 1u64 << (MUNRO_LAYER - layer);
        Some((width + bin.offset() % width) as usize)
    }

    /// The signed munro that everything here rests on.
    pub fn trust(&self) -> &VerifiedMunro {
        &self.trust
    }

    /// Takes the same munro signed at another time (a heartbeat) as the trust; `false` if its hash
    /// is another one.
    pub fn renew(&mut self, trust: VerifiedMunro) -> bool {
        let same = trust.munro() == self.trust.munro() && trust.hash() == self.trust.hash();
        if same {
            self.trust = trust;
        }
        same
    }

    /// A node's hash, if it has been proved.
    pub fn node(&self, bin: Bin) -> Option<NodeHash> {
        if bin.munro() != Some(self.trust.munro()) {
            return None;
        }
        let slot = Self::slot(bin)?;
        self.knows(slot).then(|| self.nodes[slot])
    }

    /// Takes the hashes that a verified run of this munro carries, without hashing its bytes again;
    /// `false` if the run is of another munro or of another hash for this one.
    pub fn learn_run(&mut self, run: &VerifiedRun) -> bool {
        let (own, other) = (&self.trust, &run.munro);
        if own.munro() != other.munro() || own.hash() != other.hash() {
            return false;
        }
        let (Some((bin, hash)), Some(mut at_slot)) = (run.nodes.last(), Self::slot(run.bin)) else {
            return false;
        };
        // The uncles lie tallest first; a known node on the way has known nodes above it.
        let (mut at, mut hash) = (*bin, *hash);
        let mut uncles = run.uncles.iter().rev();
        while !self.knows(at_slot) {
            self.learn(at_slot, hash);
            let Some((_, uncle)) = uncles.next() else { break };
            self.learn(at_slot ^ 1, *uncle);
            hash = if at.is_left() {
                NodeHash::parent(hash, *uncle)
            } else {
                NodeHash::parent(*uncle, hash)
            };
            at = at.parent();
            at_slot /= 2;
        }
        for (bin, hash) in &run.nodes {
            if let Some(slot) = Self::slot(*bin) {
                self.learn(slot, *hash);
            }
        }
        true
    }

    /// Verifies `bytes` as the content of `bin`.
    ///
    /// `offered` gives hashes that are not proved yet (from a peer's INTEGRITY messages, from a
    /// disk); they count only if the fold meets a known node, and are known from then on.
    pub fn verify_run(
        &mut self,
        bin: Bin,
        bytes: Bytes,
        offered: impl Fn(Bin) -> Option<NodeHash>,
    ) -> Result<VerifiedRun, VerifyError> {
        let munro = self.trust.munro();
        let not_a_run = VerifyError::NotARun { bin, len: bytes.len(), munro };
        if bin.munro() != Some(munro) || bytes.len() as u64 != bin.byte_len() {
            return Err(not_a_run);
        }
        let Some(slot) = Self::slot(bin) else { return Err(not_a_run) };

        if let Some(nodes) = self.known_below(bin) {
            // One pass at the speed of BLAKE3's widest SIMD, where single blocks take half again.
            return if NodeHash::of_bytes(bin, &bytes) == self.nodes[slot] {
                Ok(self.proved_run(bin, bytes, nodes))
            } else {
                Err(VerifyError::Mismatch { bin, at: bin })
            };
        }

        let Some(run) = HashedRun::new(bin, bytes) else { return Err(not_a_run) };
        self.prove(&run, offered)
    }

    /// The cheap half of [`Self::verify_run`]: proves a run that has been hashed.
    pub fn prove(
        &mut self,
        run: &HashedRun,
        offered: impl Fn(Bin) -> Option<NodeHash>,
    ) -> Result<VerifiedRun, VerifyError> {
        let HashedRun { bin, bytes, nodes } = run;
        let (bin, munro) = (*bin, self.trust.munro());
        let (Some(slot), Some((_, hash))) = (Self::slot(bin), nodes.last()) else {
            return Err(VerifyError::NotARun { bin, len: bytes.len(), munro });
        };
        if bin.munro() != Some(munro) {
            return Err(VerifyError::NotARun { bin, len: bytes.len(), munro });
        }
        let mut hash = *hash;

        // Climb until a known node; remember the way for what becomes known with it.
        let mut uncles = Vec::with_capacity((MUNRO_LAYER - bin.layer()) as usize);
        let mut path = Vec::with_capacity(uncles.capacity());
        let (mut at, mut at_slot) = (bin, slot);
        while !self.knows(at_slot) {
            let uncle = at.sibling();
            let uncle_slot = at_slot ^ 1;
            let uncle_hash = if self.knows(uncle_slot) {
                self.nodes[uncle_slot]
            } else {
                offered(uncle).ok_or(VerifyError::MissingUncle { bin, missing: uncle })?
            };
            uncles.push((uncle, uncle_hash));
            path.push((at_slot, hash));
            hash = if at.is_left() {
                NodeHash::parent(hash, uncle_hash)
            } else {
                NodeHash::parent(uncle_hash, hash)
            };
            at = at.parent();
            at_slot /= 2;
        }
        if self.nodes[at_slot] != hash {
            return Err(VerifyError::Mismatch { bin, at });
        }
        for (bin, hash) in uncles.iter().chain(nodes) {
            if let Some(slot) = Self::slot(*bin) {
                self.learn(slot, *hash);
            }
        }
        for (slot, hash) in path {
            self.learn(slot, hash);
        }
        Ok(self.proved_run(bin, bytes.clone(), nodes.clone()))
    }

    /// A run whose bytes were proved before, without hashing them again, if all of its nodes are known
    /// and the length is right.
    pub fn stored_run(&self, bin: Bin, bytes: Bytes) -> Option<StoredRun> {
        let within = bin.munro() == Some(self.trust.munro());
        let nodes = self.known_below(bin).filter(|_| within)?;
        (bytes.len() as u64 == bin.byte_len())
            .then(|| StoredRun(self.proved_run(bin, bytes, nodes)))
    }

    /// Takes a whole table of hashes, slot by slot, if it folds to the signed munro; `false` and
    /// nothing taken otherwise.
    pub fn learn_table(&mut self, table: &[NodeHash; SLOTS]) -> bool {
        let folds =
            |slot: usize| table[slot] == NodeHash::parent(table[slot * 2], table[slot * 2 + 1]);
        if table[1] != self.trust.hash() || !(1..SLOTS / 2).all(folds) {
            return false;
        }
        self.nodes[1..].copy_from_slice(&table[1..]);
        self.known = [u64::MAX; SLOTS / 64];
        self.known[0] &= !1;
        true
    }

    /// Takes the hashes of a proved granule's blocks from its content, and of the pairs between;
    /// `false` if the granule is not proved or the content is not its.
    pub fn learn_blocks(&mut self, granule: Bin, content: &[u8]) -> bool {
        let Some(proved) = self.node(granule).filter(|_| granule.layer() == GRANULE_LAYER) else {
            return false;
        };
        if content.len() as u64 != granule.byte_len() {
            return false;
        }
        let first = granule.chunks().start.0 >> BLOCK_LAYER;
        let mut nodes: Vec<(Bin, NodeHash)> = (first..)
            .map(|offset| Bin::new(BLOCK_LAYER, offset))
            .zip(content.chunks_exact(BLOCK_BYTES_USIZE))
            .map(|(block, content)| (block, NodeHash::of_bytes(block, content)))
            .collect();
        let mut next = 0;
        while let [(left, a), (_, b), ..] = nodes[next..] {
            nodes.push((left.parent(), NodeHash::parent(a, b)));
            next += 2;
        }
        let right = nodes.last().is_some_and(|(_, hash)| *hash == proved);
        for (bin, hash) in nodes.into_iter().filter(|_| right) {
            if let Some(slot) = Self::slot(bin) {
                self.learn(slot, hash);
            }
        }
        right
    }

    /// The nodes of `bin` from its leaves up to itself, if all are known.
    fn known_below(&self, bin: Bin) -> Option<Vec<(Bin, NodeHash)>> {
        let leaf_layer = leaf_layer(bin);
        let mut nodes = Vec::with_capacity(2 << (bin.layer() - leaf_layer));
        for layer in leaf_layer..=bin.layer() {
            let width = 1 << (bin.layer() - layer);
            let first = Bin::new(layer, bin.offset() * width);
            let slot = Self::slot(first)?;
            for i in 0..width as usize {
                if !self.knows(slot + i) {
                    return None;
                }
                nodes.push((Bin::new(layer, first.offset() + i as u64), self.nodes[slot + i]));
            }
        }
        Some(nodes)
    }

    /// A run whose node is known: every uncle is, too, for a node becomes known with its sibling.
    fn proved_run(&self, bin: Bin, bytes: Bytes, nodes: Vec<(Bin, NodeHash)>) -> VerifiedRun {
        let layers = (bin.layer()..MUNRO_LAYER).rev();
        let uncles = layers
            .map(|layer| bin.ancestor(layer).sibling())
            .filter_map(|uncle| Some((uncle, self.nodes[Self::slot(uncle)?])))
            .collect();
        VerifiedRun { munro: self.trust, bin, bytes, nodes, uncles }
    }

    fn knows(&self, slot: usize) -> bool {
        self.known[slot / 64] & (1 << (slot % 64)) != 0
    }

    fn learn(&mut self, slot: usize, hash: NodeHash) {
        self.nodes[slot] = hash;
        self.known[slot / 64] |= 1 << (slot % 64);
    }
}

/// Where the leaves of a run are: a granule's chunks fill the widest SIMD, a block's do not, so that
/// what comes in granules is hashed in granules.
fn leaf_layer(bin: Bin) -> u32 {
    if bin.layer() >= GRANULE_LAYER { GRANULE_LAYER } else { BLOCK_LAYER }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{NtpTime, OriginKey};
    use crate::limits::MUNRO_BYTES;
    use crate::unit::BlockIndex;
    use proptest::prelude::*;
    use std::sync::OnceLock;

    struct Fixture {
        bytes: Bytes,
        nodes: Box<[NodeHash; SLOTS]>,
        munro: VerifiedMunro,
    }

    fn fixture() -> &'static Fixture {
        static FIXTURE: OnceLock<Fixture> = OnceLock::new();
        FIXTURE.get_or_init(|| {
            let index = MunroIndex(3);
            let bytes: Vec<u8> = (0..MUNRO_BYTES as u32 / 4)
                .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
                .collect();
            let nodes = MunroTree::hash_content(index, &bytes);
            let key = OriginKey::from_seed(&[9; 32]);
            let munro =
                VerifiedMunro::sign(&key, index, nodes[1], NtpTime::from_unix(1_800_000_000, 0));
            Fixture { bytes: bytes.into(), nodes, munro }
        })
    }

    fn content(bin: Bin) -> Bytes {
        let start = (bin.byte_offset() - 3 * MUNRO_BYTES) as usize;
        fixture().bytes.slice(start..start + bin.byte_len() as usize)
    }

    fn run_of(layer: u32, offset: u64) -> Bin {
        let width = 1 << (MUNRO_LAYER - layer);
        Bin::new(layer, 3 * width + offset % width)
    }

    fn all_uncles(bin: Bin) -> Option<NodeHash> {
        MunroTree::slot(bin).map(|slot| fixture().nodes[slot])
    }

    // Shows C46 (RFC 7574 6.1.2.1).
    #[test]
    fn hash_content_equals_blake3_of_the_whole_subtree() {
        let fixture = fixture();
        assert_eq!(fixture.nodes[1], NodeHash::of_bytes(MunroIndex(3).bin(), &fixture.bytes));
        assert_eq!(
            MunroTree::slot(MunroIndex(3).bin())
                .zip(MunroTree::slot(BlockIndex(3 * 256 + 255).bin())),
            Some((1, 511))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_true_run_verifies_and_carries_its_proof(layer in 2u32..=10, offset: u64, warm in 0u64..256) {
            let bin = run_of(layer, offset);
            let mut tree = MunroTree::new(fixture().munro);
            let warm = run_of(2, warm);
            tree.verify_run(warm, content(warm), all_uncles).expect("true");
            let run = tree.verify_run(bin, content(bin), all_uncles).expect("true");
            prop_assert_eq!(run.uncles().len() as u32, MUNRO_LAYER - layer);
            prop_assert!(run.uncles().windows(2).all(|w| w[0].0.layer() > w[1].0.layer()));
            for (node, hash) in run.nodes().iter().chain(run.uncles()) {
                prop_assert_eq!(Some(*hash), all_uncles(*node));
                prop_assert_eq!(tree.node(*node), Some(*hash));
            }
            // What it carries proves it again to one who knows only the signature.
            let mut fresh = MunroTree::new(*run.munro());
            let uncles: Vec<_> = run.uncles().to_vec();
            let offered = |b: Bin| uncles.iter().find(|(u, _)| *u == b).map(|(_, h)| *h);
            prop_assert!(fresh.verify_run(bin, run.bytes().clone(), offered).is_ok());
        }

        #[test]
        fn a_learned_run_proves_as_much_as_a_verified_one(layer in 2u32..=10, offset: u64, warm in 0u64..256) {
            let bin = run_of(layer, offset);
            let mut tree = MunroTree::new(fixture().munro);
            let run = tree.verify_run(bin, content(bin), all_uncles).expect("true");
            let mut learner = MunroTree::new(fixture().munro);
            let warm = run_of(2, warm);
            learner.verify_run(warm, content(warm), all_uncles).expect("true");
            prop_assert!(learner.learn_run(&run));
            for slot in 1..SLOTS {
                prop_assert!(!tree.knows(slot) || learner.knows(slot), "slot {}", slot);
                prop_assert!(!learner.knows(slot) || learner.nodes[slot] == fixture().nodes[slot]);
            }
            let key = OriginKey::from_seed(&[9; 32]);
            let other = VerifiedMunro::sign(&key, MunroIndex(3), NodeHash([0; 32]), NtpTime(1));
            prop_assert!(!MunroTree::new(other).learn_run(&run));
        }

        #[test]
        fn a_learned_table_proves_what_hashing_proves(layer in 2u32..=10, offset: u64, slot in 1usize..SLOTS) {
            let bin = run_of(layer, offset);
            let mut tree = MunroTree::new(fixture().munro);
            prop_assert!(tree.learn_table(&fixture().nodes));
            let mut plain = MunroTree::new(fixture().munro);
            let run = tree.verify_run(bin, content(bin), |_| None).expect("true");
            let other = plain.verify_run(bin, content(bin), all_uncles).expect("true");
            prop_assert_eq!((run.nodes(), run.uncles()), (other.nodes(), other.uncles()));
            let mut forged = fixture().nodes.clone();
            forged[slot].0[0] ^= 1;
            let mut fresh = MunroTree::new(fixture().munro);
            prop_assert!(!fresh.learn_table(&forged));
            prop_assert_eq!(fresh.node(run_of(2, offset)), None);
        }

        #[test]
        fn a_granules_blocks_are_learned_only_from_its_content(offset: u64, bit: proptest::sample::Index) {
            let granule = run_of(4, offset);
            let mut tree = MunroTree::new(fixture().munro);
            prop_assert!(!tree.learn_blocks(granule, &content(granule)), "not proved yet");
            tree.verify_run(granule, content(granule), all_uncles).expect("true");
            let blocks = || granule.blocks().into_iter().flat_map(crate::unit::BlockRange::iter);
            let mut forged = content(granule).to_vec();
            let bit = bit.index(forged.len() * 8);
            forged[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!tree.learn_blocks(granule, &forged));
            prop_assert!(blocks().all(|block| tree.node(block.bin()).is_none()));
            prop_assert!(tree.learn_blocks(granule, &content(granule)));
            prop_assert!(blocks().all(|block| tree.node(block.bin()) == all_uncles(block.bin())));
        }

        #[test]
        fn a_flipped_bit_is_refused(layer in 2u32..=4, offset: u64, bit: proptest::sample::Index) {
            let bin = run_of(layer, offset);
            let mut forged = content(bin).to_vec();
            let bit = bit.index(forged.len() * 8);
            forged[bit / 8] ^= 1 << (bit % 8);
            let mut knowing = MunroTree::new(fixture().munro);
            prop_assert!(knowing.learn_table(&fixture().nodes));
            let refused = knowing.verify_run(bin, forged.clone().into(), |_| None);
            prop_assert_eq!(refused.map(|_| ()), Err(VerifyError::Mismatch { bin, at: bin }));
            let mut tree = MunroTree::new(fixture().munro);
            let refused = tree.verify_run(bin, forged.into(), all_uncles);
            let refused = matches!(refused, Err(VerifyError::Mismatch { .. }));
            prop_assert!(refused);
            // Nothing of the lie is remembered.
            prop_assert_eq!(tree.node(bin), None);
            prop_assert!(tree.verify_run(bin, content(bin), all_uncles).is_ok());
        }

        #[test]
        fn every_forged_or_missing_uncle_is_refused(layer in 2u32..=4, offset: u64, depth in 0u32..6) {
            let bin = run_of(layer, offset);
            let target = bin.ancestor(layer + depth).sibling();
            let mut tree = MunroTree::new(fixture().munro);
            let forged = |b: Bin| all_uncles(b).map(|h| if b == target { NodeHash([1; 32]) } else { h });
            let refused = matches!(tree.verify_run(bin, content(bin), forged), Err(VerifyError::Mismatch { .. }));
            prop_assert!(refused);
            let missing = |b: Bin| if b == target { None } else { all_uncles(b) };
            let expected = VerifyError::MissingUncle { bin, missing: target };
            prop_assert_eq!(tree.verify_run(bin, content(bin), missing).map(|_| ()), Err(expected));
        }
    }

    #[test]
    fn a_run_of_another_munro_or_length_is_refused() {
        let mut tree = MunroTree::new(fixture().munro);
        for (bin, len) in [
            (BlockIndex(0).bin(), 4096),
            (run_of(4, 0), 4096),
            (Bin::new(0, 3 << 10), 1024),
            (MunroIndex(3).bin().parent(), 2 << 20),
        ] {
            let refused = tree.verify_run(bin, vec![0; len].into(), all_uncles);
            assert!(matches!(refused, Err(VerifyError::NotARun { .. })), "{bin:?}");
        }
    }
}

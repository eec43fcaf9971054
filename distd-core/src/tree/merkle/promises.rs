//! The tree of static content against a slow, plain reference, and against liars.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::*;
use crate::unit::Bin;

const CHUNK: usize = 1024;

/// RFC 7574 §5.1 word by word: leaves, empty ones up to a power of two, layer by layer.
fn plain(function: MerkleFunction, content: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let digest = |bytes: &[u8]| match function {
        MerkleFunction::Sha1 => Sha1::digest(bytes).to_vec(),
        MerkleFunction::Sha256 => Sha256::digest(bytes).to_vec(),
    };
    let empty = vec![0; function.hash_bytes()];
    let mut layer: Vec<Vec<u8>> = content.chunks(CHUNK).map(digest).collect();
    layer.resize(layer.len().next_power_of_two(), empty.clone());
    let mut layers = vec![layer];
    while layers.last().expect("one").len() > 1 {
        let below = layers.last().expect("one");
        let above = below.chunks(2).map(|pair| {
            if pair.iter().all(|hash| *hash == empty) {
                empty.clone()
            } else {
                digest(&pair.concat())
            }
        });
        let above = above.collect();
        layers.push(above);
    }
    layers
}

fn bytes_of(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0] ^ seed)
        .collect()
}

/// The whole tree of content, and the hashes of each branch.
fn grown(function: MerkleFunction, content: &[u8]) -> (MerkleTree, Vec<BranchHashes>) {
    let shape = ContentShape::of_bytes(content.len() as u64).expect("content");
    let branches: Vec<BranchHashes> = (0..)
        .zip(content.chunks(64 * CHUNK))
        .map(|(at, bytes)| BranchHashes::of(function, shape, BranchIndex(at), bytes))
        .collect();
    let tops: Vec<MerkleHash> = branches.iter().map(BranchHashes::top).collect();
    let last = branches.last().expect("one");
    (MerkleTree::over(function, shape, &tops, last), branches)
}

fn hash_in(tree: &MerkleTree, branches: &[BranchHashes], bin: Bin) -> Option<MerkleHash> {
    let branch = BranchIndex::of(bin.chunks().start.0);
    tree.node(bin).or_else(|| branches.get(branch.0 as usize)?.node(bin))
}

/// All that a peer may be told of a tree.
fn everything(tree: &MerkleTree, branches: &[BranchHashes]) -> BTreeMap<Bin, MerkleHash> {
    let shape = tree.shape();
    let bins = (0..=shape.root().layer()).flat_map(|layer| {
        (0..shape.chunks().div_ceil(1 << layer)).map(move |offset| Bin::new(layer, offset))
    });
    bins.filter_map(|bin| Some((bin, hash_in(tree, branches, bin)?))).collect()
}

const LENGTHS: [usize; 22] = [
    1,
    63,
    64,
    1023,
    1024,
    1025,
    2048,
    2049,
    3 * 1024,
    4 * 1024,
    7162,
    8 * 1024,
    8 * 1024 + 1,
    63 * 1024,
    64 * 1024 - 1,
    64 * 1024,
    64 * 1024 + 1,
    65 * 1024,
    127 * 1024 + 5,
    128 * 1024,
    129 * 1024,
    300 * 1024 + 77,
];

#[test]
fn the_example_of_the_rfc_has_its_root() {
    // RFC 7574 8.16; its text says SHA-256 and "Hello World!", its bytes say otherwise.
    let (tree, _) = grown(MerkleFunction::Sha1, b"Hello world!\n");
    let id = tree.id().to_string();
    assert!(id.starts_with("47a0") && id.ends_with("b03b"), "{id}");
    assert_eq!(id.parse(), Ok(tree.id()));
    let (tree, _) = grown(MerkleFunction::Sha256, b"Hello world!\n");
    assert_eq!(tree.id().to_string().parse(), Ok(tree.id()));
    for word in ["", "47", &"g".repeat(40), &"0".repeat(63), &"0".repeat(65), "\u{e9}"] {
        assert!(word.parse::<ContentId>().is_err(), "{word}");
    }
}

#[test]
fn every_node_is_that_of_the_plain_tree() {
    for function in MerkleFunction::ALL {
        for len in LENGTHS {
            let content = bytes_of(len, 1);
            let (tree, branches) = grown(function, &content);
            let layers = plain(function, &content);
            assert_eq!(tree.shape().root().layer() as usize, layers.len() - 1, "{len}");
            for (layer, nodes) in layers.iter().enumerate() {
                for (offset, hash) in nodes.iter().enumerate() {
                    let bin = Bin::new(layer as u32, offset as u64);
                    let found = hash_in(&tree, &branches, bin)
                        .map(|found| found.as_bytes(function).to_vec());
                    assert_eq!(found.as_ref(), Some(hash), "{len} bytes, {bin:?}");
                }
            }
            assert_eq!(tree.id().as_bytes(), layers.last().expect("root")[0].as_slice());
        }
    }
}

// Shows C43 (RFC 7574 5.6.2).
#[test]
fn peaks_are_filled_nodes_and_fold_to_the_root_and_others_do_not() {
    for chunks in 1..600 {
        let shape = ContentShape::new(chunks).expect("some");
        let peaks = shape.peaks();
        assert_eq!(peaks.len() as u32, chunks.count_ones());
        assert_eq!(peaks.last().map(|bin| bin.chunks().end.0), Some(chunks));
        assert!(peaks.windows(2).all(|two| two[0].layer() > two[1].layer()), "{chunks}");
    }
    let content = bytes_of(300 * 1024 + 77, 2);
    let (whole, branches) = grown(MerkleFunction::Sha256, &content);
    let mut tree = MerkleTree::new(whole.id(), whole.shape());
    let hash = |bin: &Bin| (*bin, hash_in(&whole, &branches, *bin).expect("a node"));
    let peaks: Vec<_> = whole.shape().peaks().iter().map(hash).collect();
    let mut wrong = peaks.clone();
    wrong[1].1 = MerkleHash::EMPTY;
    assert!(!tree.admit_peaks(&wrong) && !tree.admit_peaks(&peaks[1..]) && !tree.admit_peaks(&[]));
    assert_eq!(tree.node(peaks[0].0), None);
    assert!(tree.admit_peaks(&peaks));
    assert_eq!(tree.node(peaks[0].0), Some(peaks[0].1));
    assert_eq!(find_shape(whole.id(), &peaks.iter().copied().collect()), Some(whole.shape()));
    assert_eq!(find_shape(whole.id(), &wrong.into_iter().collect()), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_order_of_chunks_verifies_with_the_hashes_of_their_uncles(
        at in 0..LENGTHS.len(), first in 0u64..400, sha1: bool,
    ) {
        let function = if sha1 { MerkleFunction::Sha1 } else { MerkleFunction::Sha256 };
        let content = bytes_of(LENGTHS[at], 3);
        let (whole, branches) = grown(function, &content);
        let chunks = whole.shape().chunks();
        let mut tree = MerkleTree::new(whole.id(), whole.shape());
        let mut sent = 0;
        for step in 0..chunks {
            // A stride that is odd visits every chunk of a power of two once; others twice or never.
            let chunk = (first + step * 37) % chunks;
            let bytes = content.chunks(CHUNK).nth(chunk as usize).expect("a chunk");
            let before = tree.clone();
            let offered = |bin: Bin| hash_in(&whole, &branches, bin);
            let verified = tree.verify(chunk, bytes, offered);
            prop_assert_eq!(verified.map(|chunk| chunk.bytes()), Ok(bytes));
            let mut false_bytes = bytes.to_vec();
            false_bytes[0] ^= 1;
            prop_assert!(before.clone().verify(chunk, &false_bytes, offered).is_err());
            if bytes.len() > 1 {
                prop_assert!(before.clone().verify(chunk, &bytes[1..], offered).is_err());
            }
            // Without hashes that are not known yet nothing is said of it.
            let mut alone = before;
            let lacking = matches!(alone.verify(chunk, bytes, |_| None), Err(UnprovedError::Lacking(_)));
            sent += u64::from(lacking);
        }
        prop_assert!(sent <= chunks);
        // What is known then is the tree's.
        for (bin, hash) in tree.take_news() {
            prop_assert_eq!(Some(hash), whole.node(bin));
        }
        for branch in &branches {
            tree.close(branch.branch());
        }
    }

    #[test]
    fn one_false_hash_among_the_offered_ones_is_found(at in 3..LENGTHS.len(), chunk in 0u64..400, which in 0usize..40) {
        let content = bytes_of(LENGTHS[at], 4);
        let (whole, branches) = grown(MerkleFunction::Sha256, &content);
        let chunk = chunk % whole.shape().chunks();
        let bytes = content.chunks(CHUNK).nth(chunk as usize).expect("a chunk");
        let mut uncles = Vec::new();
        let mut node = Bin::new(0, chunk);
        while node.layer() < whole.shape().root().layer() {
            uncles.extend((!whole.shape().is_void(node.sibling())).then_some(node.sibling()));
            node = node.parent();
        }
        if let Some(bad) = uncles.get(which % uncles.len().max(1)) {
            let mut tree = MerkleTree::new(whole.id(), whole.shape());
            let offered = |bin: Bin| {
                if bin == *bad { Some(MerkleHash([7; 32])) } else { hash_in(&whole, &branches, bin) }
            };
            let result = tree.verify(chunk, bytes, offered);
            prop_assert!(matches!(result, Err(UnprovedError::False(_))));
            prop_assert!(tree.take_news().is_empty());
        }
    }
}

#[test]
fn a_length_is_found_with_the_last_chunk_and_not_before() {
    for len in LENGTHS {
        let content = bytes_of(len, 5);
        let (whole, branches) = grown(MerkleFunction::Sha256, &content);
        let (id, shape) = (whole.id(), whole.shape());
        let is_filled = |bin: &Bin| bin.chunks().end.0 <= shape.chunks();
        let mut offered = everything(&whole, &branches);
        offered.retain(|bin, _| is_filled(bin));
        assert_eq!(find_shape(id, &offered), Some(shape), "{len}");
        let last = content.chunks(CHUNK).last().expect("one");
        let expected = if last.len() == 64 {
            Err(UnprovedError::Ambiguous { bytes: 64 })
        } else {
            Ok(len as u64)
        };
        assert_eq!(verify_last(id, shape, last, &offered), expected, "{len}");
        // The root as the single peak of a larger power of two proves nothing.
        let larger =
            ContentShape::new(shape.chunks().next_power_of_two() * 4).expect("not too many");
        let claim = BTreeMap::from([(larger.root(), id.root)]);
        assert_eq!(find_shape(id, &claim), Some(larger));
        assert!(verify_last(id, larger, &[1; CHUNK], &claim).is_err());
    }
}

#[test]
fn two_hashes_are_not_taken_for_a_chunk() {
    // Content of 8 chunks; a stranger offers the root's children as content of one chunk.
    for function in MerkleFunction::ALL {
        let (whole, _) = grown(function, &bytes_of(300 * 1024, 6));
        let top = whole.shape().root();
        let child = |bin: Option<Bin>| whole.node(bin.expect("a child")).expect("known");
        let (left, right) = (child(top.left()), child(top.right()));
        let forged = [left.as_bytes(function), right.as_bytes(function)].concat();
        let one = ContentShape::new(1).expect("one");
        let found = verify_last(whole.id(), one, &forged, &BTreeMap::new());
        assert_eq!(found, Err(UnprovedError::Ambiguous { bytes: forged.len() }));
    }
}

#[test]
fn kept_hashes_count_as_far_as_they_lead_to_the_root() {
    let content = bytes_of(300 * 1024 + 77, 7);
    let (whole, branches) = grown(MerkleFunction::Sha256, &content);
    let shape = whole.shape();
    let kept: BTreeMap<Bin, MerkleHash> = everything(&whole, &branches)
        .into_iter()
        .filter(|(bin, _)| bin.layer() >= shape.branch_layer())
        .collect();
    let mut tree = MerkleTree::new(whole.id(), shape);
    tree.admit(&kept);
    assert!(branches.iter().all(|branch| tree.proves(branch)));
    let mut damaged = kept;
    damaged.insert(shape.branch_bin(BranchIndex(2)), MerkleHash([9; 32]));
    let mut tree = MerkleTree::new(whole.id(), shape);
    tree.admit(&damaged);
    let proved: Vec<bool> = branches.iter().map(|branch| tree.proves(branch)).collect();
    assert_eq!(proved, [true, true, false, false, true]);
}

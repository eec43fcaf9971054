//! What frames promise, whole: written, listed, decoded, verified; and refused where they lie.

use zstd::zstd_safe::CCtx;

use super::layout::{CARRY, DELTA, PREFIX};
use super::*;
use crate::keys::{NtpTime, OriginKey};
use crate::limits::{DELTA_FRAME_LAYER, FULL_FRAME_LAYER, MUNRO_BYTES, MUNRO_LAYER};
use crate::tree::{MunroTree, NodeHash, VerifiedMunro};
use crate::unit::{Bin, BlockIndex, BlockRange, ByteRange, MunroIndex};
use proptest::prelude::*;

const MUNRO: MunroIndex = MunroIndex(2);

fn key() -> OriginKey {
    OriginKey::from_seed(&[4; 32])
}

/// Compressible bytes that are not all alike.
fn content(salt: u32) -> Vec<u8> {
    (0..MUNRO_BYTES as u32 / 4)
        .flat_map(|i| ((i / 16).wrapping_mul(2_654_435_761) ^ salt).to_le_bytes())
        .collect()
}

fn part(bin: Bin, munro: &[u8]) -> &[u8] {
    let start = (bin.byte_offset() - MUNRO.byte_offset()) as usize;
    &munro[start..start + bin.byte_len() as usize]
}

/// The munro's signature, and the hashes of its bins on a layer.
fn signed(bytes: &[u8], layer: u32) -> (VerifiedMunro, Vec<NodeHash>) {
    let nodes = MunroTree::hash_content(MUNRO, bytes);
    let munro = VerifiedMunro::sign(&key(), MUNRO, nodes[1], NtpTime(77));
    let width = 1 << (MUNRO_LAYER - layer);
    (munro, nodes[width..2 * width].to_vec())
}

fn entry(bin: Bin, len: usize, bases: Vec<BlockRange>) -> FrameEntry {
    FrameEntry { bin, range: ByteRange { offset: 5 << 20, len: len as u64 }, bases }
}

/// A copy of 4 KiB pieces, one byte changed in each.
fn streams(bin: Bin) -> DeltaStreams {
    let mut streams = DeltaStreams::default();
    streams.push(0, bin.byte_len(), 0);
    for i in 0..bin.byte_len() / 4096 {
        streams.change(if i == 0 { 100 } else { 4095 }, 3);
    }
    streams
}

#[test]
fn full_frames_are_listed_decoded_and_verified() {
    let bytes = content(1);
    let (munro, hashes) = signed(&bytes, FULL_FRAME_LAYER);
    let mut stored = Vec::new();
    let mut entries = Vec::new();
    for position in [0, 1, 5, 15] {
        let bin = Bin::new(FULL_FRAME_LAYER, MUNRO.0 * 16 + position);
        let frame = encode_full(&mut CCtx::create(), bin, part(bin, &bytes), 3).expect("smaller");
        let offset = (3 << 20) + stored.len() as u64;
        entries.push(FrameEntry {
            bin,
            range: ByteRange { offset, len: frame.len() as u64 },
            bases: Vec::new(),
        });
        stored.extend(frame);
    }
    let record = MunroFrames::new(munro, FULL_FRAME_LAYER, hashes, entries);
    let read = MunroFrames::decode(munro, Part::Full, &record.encode()).expect("sound");
    assert_eq!(read, record);
    assert!(MunroFrames::decode(munro, Part::Update, &record.encode()).is_err());
    let mut decoder = FrameDecoder::new();
    for entry in read.frames() {
        let start = entry.range.offset as usize - (3 << 20);
        let frame = &stored[start..start + entry.range.len as usize];
        let decoded = decoder.decode(entry, frame, &[]).expect("sound");
        assert!(decoded == part(entry.bin, &bytes));
        let mut tree = MunroTree::new(munro);
        let run = read.verify(&mut tree, entry.bin, decoded.clone().into()).expect("true");
        assert_eq!(run.bin(), entry.bin);
        let mut forged = decoded;
        forged[9] ^= 1;
        assert!(read.verify(&mut MunroTree::new(munro), entry.bin, forged.into()).is_err());
    }
    let blocks = BlockRange::new(BlockIndex(MUNRO.0 * 256 + 20), 70);
    let found: Vec<u64> = read.covering(blocks).map(|entry| entry.bin.offset() % 16).collect();
    assert_eq!(found, [1, 5]);
}

#[test]
fn an_index_entry_carries_a_signature_that_must_hold() {
    let bytes = content(1);
    let (munro, _) = signed(&bytes, FULL_FRAME_LAYER);
    let range = |offset, len| ByteRange { offset, len };
    let entry = IndexEntry::new(munro, range(3 << 20, 400), range(4 << 20, 0));
    let encoded = entry.encode();
    let read = |bytes: &[u8]| IndexEntry::decode(MUNRO, NtpTime(77), &key().id(), bytes);
    assert_eq!(read(&encoded), Ok(entry));
    assert_eq!(
        (entry.record(Part::Update), entry.record(Part::Full)),
        (Some(range(3 << 20, 400)), None)
    );
    assert!(read(&encoded[1..]).is_err());
    for at in 0..96 {
        let mut forged = encoded.clone();
        forged[at] ^= 1;
        assert!(matches!(read(&forged), Err(IndexError::Signature(_))), "byte {at}");
    }
    let early = IndexEntry::new(munro, range(2 << 20, 400), range(0, 0));
    assert_eq!(read(&early.encode()), Err(IndexError::Entry { munro: MUNRO }));
    assert!(IndexEntry::decode(MUNRO, NtpTime(78), &key().id(), &encoded).is_err());
}

#[test]
fn delta_frames_need_their_bases_and_nothing_else() {
    let old = content(1);
    let bin = Bin::new(DELTA_FRAME_LAYER, MUNRO.0 * 4 + 1);
    let mut new = part(bin, &old).to_vec();
    for block in new.chunks_exact_mut(4096) {
        block[100] = block[100].wrapping_add(3);
    }
    let bases = vec![BlockRange::new(BlockIndex(64), 40), BlockRange::new(BlockIndex(200), 24)];
    let frame = encode_delta(bin, &streams(bin), None, 3);
    assert!(frame.len() < 100, "{}", frame.len());
    let entry = entry(bin, frame.len(), bases);
    let mut decoder = FrameDecoder::new();
    assert!(decoder.decode(&entry, &frame, part(bin, &old)) == Ok(new));
    // Literals alone, behind the base.
    let mut random = vec![0; bin.byte_len() as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut random);
    let mut streams = DeltaStreams::default();
    streams.push(bin.byte_len(), 0, 0);
    streams.literals.clone_from(&random);
    let alone = encode_delta(bin, &streams, None, 3);
    let frame = encode_delta(bin, &streams, Some(&random), 3);
    assert!(frame.len() < alone.len() / 10 && frame[0] == DELTA | PREFIX);
    let entry =
        FrameEntry { range: ByteRange { offset: 5 << 20, len: frame.len() as u64 }, ..entry };
    assert!(decoder.decode(&entry, &frame, &random) == Ok(random));
}

#[test]
fn a_carry_runs_through_an_integer_and_no_further() {
    let add = |bytes: &[u8], value: i8| {
        let mut bytes = bytes.to_vec();
        decode::add_carrying(&mut bytes, value as u8);
        bytes
    };
    assert_eq!(add(&0x1ff0u32.to_le_bytes(), 0x20), 0x2010u32.to_le_bytes());
    assert_eq!(add(&0x2010u32.to_le_bytes(), -0x20), 0x1ff0u32.to_le_bytes());
    assert_eq!(add(&[0xff; 10], 1), [0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    assert!(add(&[], 1).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_record_reads_as_it_was_written(
        frames in proptest::collection::vec((0u64..2, 1u64..4096, proptest::collection::vec((0u64..500, 1u64..4), 1..20)), 0..4),
    ) {
        let bytes = content(1);
        let (munro, hashes) = signed(&bytes, DELTA_FRAME_LAYER);
        let mut entries: Vec<FrameEntry> = Vec::new();
        for (i, (gap, len, bases)) in frames.into_iter().enumerate() {
            let bases = bases.into_iter().map(|(at, n)| BlockRange::new(BlockIndex(at), n)).collect();
            let bin = Bin::new(DELTA_FRAME_LAYER, MUNRO.0 * 4 + i as u64);
            entries.push(FrameEntry { bin, range: ByteRange { offset: (4 << 20) + gap, len }, bases });
        }
        let record = MunroFrames::new(munro, DELTA_FRAME_LAYER, hashes, entries);
        prop_assert_eq!(MunroFrames::decode(munro, Part::Update, &record.encode()), Ok(record));
    }

    #[test]
    fn a_damaged_frame_is_refused_or_makes_as_many_bytes(at: proptest::sample::Index, value: u8, kind in 0u8..8) {
        let old = content(1);
        let bin = Bin::new(FULL_FRAME_LAYER, MUNRO.0 * 16 + 1);
        let streams = DeltaStreams { carry: kind & CARRY != 0, ..streams(bin) };
        let mut frame = encode_delta(bin, &streams, None, 3);
        let at = at.index(frame.len());
        frame[at] = value;
        let entry = entry(bin, frame.len(), vec![BlockRange::new(BlockIndex(64), 16)]);
        if let Ok(bytes) = FrameDecoder::new().decode(&entry, &frame, part(bin, &old)) {
            prop_assert_eq!(bytes.len() as u64, bin.byte_len());
        }
    }
}

//! What frames promise, whole: written, listed, decoded, verified; and refused where they lie.

use zstd::zstd_safe::CCtx;

use super::layout::{DELTA, DELTA_PREFIX};
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

/// `base` with a byte of each block changed.
fn changed(base: &[u8]) -> Vec<u8> {
    let mut new = base.to_vec();
    for block in new.chunks_exact_mut(4096) {
        block[100] = block[100].wrapping_add(3);
    }
    new
}

/// A copy of all of a bin, with its words.
fn copy(bin: Bin) -> Operation {
    Operation { copied: bin.byte_len() as usize, phase: 1, ..Operation::default() }
}

/// The frame of a bin that is as `base` but for a byte of each block.
fn delta(bin: Bin, base: &[u8]) -> Vec<u8> {
    FrameEncoder::new().delta(bin, &[copy(bin)], &changed(base), base, 3).expect("sound")
}

#[test]
fn full_frames_are_listed_decoded_and_verified() {
    let bytes = content(1);
    let (munro, hashes) = signed(&bytes, FULL_FRAME_LAYER);
    let mut stored = Vec::new();
    let mut entries = Vec::new();
    for position in [0, 1, 5, 15] {
        let bin = Bin::new(FULL_FRAME_LAYER, MUNRO.0 * 16 + position);
        let frame = FrameEncoder::new().full(bin, part(bin, &bytes), 3).expect("smaller");
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
    let (base, new) = (part(bin, &old), changed(part(bin, &old)));
    let bases = vec![BlockRange::new(BlockIndex(64), 40), BlockRange::new(BlockIndex(200), 24)];
    let frame = delta(bin, base);
    assert!(frame.len() < 160, "{}", frame.len());
    let entry = entry(bin, frame.len(), bases);
    let mut decoder = FrameDecoder::new();
    assert!(decoder.decode(&entry, &frame, base) == Ok(new));
    // Literals alone, behind the base.
    let mut random = vec![0; bin.byte_len() as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut random);
    let literals = Operation { literals: random.len(), ..Operation::default() };
    let mut encoder = FrameEncoder::new();
    let alone = encoder.delta(bin, &[literals], &random, &[], 3).expect("sound");
    let frame = encoder.delta(bin, &[literals], &random, &random, 3).expect("sound");
    assert!(frame.len() < alone.len() / 10 && frame[0] == DELTA_PREFIX && alone[0] == DELTA);
    let entry =
        FrameEntry { range: ByteRange { offset: 5 << 20, len: frame.len() as u64 }, ..entry };
    assert!(decoder.decode(&entry, &frame, &random) == Ok(random));
}

#[test]
fn what_does_not_make_up_a_run_is_no_frame() {
    let bytes = content(1);
    let bin = Bin::new(FULL_FRAME_LAYER, MUNRO.0 * 16);
    let (base, len) = (part(bin, &bytes), bin.byte_len() as usize);
    let mut encoder = FrameEncoder::new();
    let mut refused = |operations: &[Operation]| {
        encoder.delta(bin, operations, &changed(base), base, 3).is_none()
    };
    assert!(!refused(&[copy(bin)]));
    assert!(refused(&[]));
    assert!(refused(&[Operation { copied: len - 1, ..copy(bin) }]));
    assert!(refused(&[Operation { copied: len + 1, ..copy(bin) }]));
    assert!(refused(&[Operation { literals: 1, ..copy(bin) }]));
    assert!(refused(&[Operation { base: 1, ..copy(bin) }]));
    assert!(refused(&[Operation { phase: AS_IS + 1, ..copy(bin) }]));
    // Taken as it is, it is not what was changed.
    assert!(refused(&[Operation { phase: AS_IS, ..copy(bin) }]));
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
    fn a_damaged_frame_is_refused_or_makes_as_many_bytes(at: proptest::sample::Index, value: u8) {
        let old = content(1);
        let bin = Bin::new(FULL_FRAME_LAYER, MUNRO.0 * 16 + 1);
        let mut frame = delta(bin, part(bin, &old));
        let at = at.index(frame.len());
        frame[at] = value;
        let entry = entry(bin, frame.len(), vec![BlockRange::new(BlockIndex(64), 16)]);
        if let Ok(bytes) = FrameDecoder::new().decode(&entry, &frame, part(bin, &old)) {
            prop_assert_eq!(bytes.len() as u64, bin.byte_len());
        }
    }
}

/// Bytes that no frame may come near to making.
fn endless() -> Vec<u8> {
    let mut packed = vec![0; 64 << 10];
    let zeros = vec![0; 64 << 20];
    let mut context = CCtx::create();
    let len = context.compress2(&mut packed[..], &zeros).expect("zeros are small");
    packed.truncate(len);
    packed
}

/// A delta frame with these lengths in its header and this behind it.
fn crafted(bin: Bin, kind: u8, lengths: [u64; 2], content: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind];
    bytes::put_varint(&mut frame, bin.uid());
    for len in lengths {
        bytes::put_varint(&mut frame, len);
    }
    frame.extend_from_slice(content);
    frame
}

#[test]
fn a_thousand_hostile_frames_are_refused_by_name() {
    let old = content(1);
    let bin = Bin::new(FULL_FRAME_LAYER, MUNRO.0 * 16 + 1);
    let (len, base) = (bin.byte_len(), part(bin, &old));
    let bases = vec![BlockRange::new(BlockIndex(64), 16)];
    let bomb = endless();
    // (frame, with bases)
    let mut cases: Vec<(Vec<u8>, bool)> = Vec::new();
    // Lying sizes, with nothing, something and endless output behind them.
    let sizes = [0, 1, 3, 40, len - 1, len, len + 1, 1 << 20, 1 << 32, 1 << 63, u64::MAX];
    for plain in sizes {
        for packed in [sizes.as_slice(), &[bomb.len() as u64]].concat() {
            for rest in [&[][..], &[7; 40], &bomb] {
                cases.extend(
                    [DELTA, DELTA_PREFIX]
                        .map(|kind| (crafted(bin, kind, [plain, packed], rest), true)),
                );
            }
        }
    }
    // Endless output as a full frame.
    cases.push((crafted(bin, 0, [0; 2], &bomb), false));
    // Unknown kinds; full frames with bases and delta frames without.
    let honest = delta(bin, base);
    let full = FrameEncoder::new().full(bin, base, 3).expect("smaller");
    cases.extend((1..=255).map(|kind| ([&[kind], &full[1..]].concat(), false)));
    cases.extend(
        [2].into_iter().chain(4..=255).map(|kind| ([&[kind], &honest[1..]].concat(), true)),
    );
    cases.push((full.clone(), true));
    cases.push((honest.clone(), false));
    // A valid frame for another run: of this munro, of others, of other layers.
    for other in (0..64).map(|at| Bin::new(FULL_FRAME_LAYER, at)).filter(|other| *other != bin) {
        cases.push((delta(other, base), true));
    }
    // Operations of noise, and of bytes that are all alike.
    let mut noise = vec![0; 1 << 16];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    for (i, byte) in (0..=255).enumerate() {
        cases.push((crafted(bin, DELTA, [0; 2], &noise[i * 200..][..i]), true));
        cases.push((crafted(bin, DELTA, [0; 2], &[byte; 40]), true));
    }
    // More operations behind the last one.
    cases.push(([&honest[..], &[0]].concat(), true));
    // Cut off anywhere.
    cases.extend((0..honest.len()).map(|end| (honest[..end].to_vec(), true)));
    cases.extend((0..full.len()).step_by(7).map(|end| (full[..end].to_vec(), false)));
    assert!(cases.len() >= 1000, "{} cases", cases.len());
    let mut decoder = FrameDecoder::new();
    for (i, (frame, delta)) in cases.iter().enumerate() {
        let bases = if *delta { bases.clone() } else { Vec::new() };
        let given: &[u8] = if *delta { base } else { &[] };
        let refused = decoder.decode(&entry(bin, frame.len(), bases), frame, given);
        let error =
            refused.expect_err(&format!("case {i}: {:02x?}", &frame[..frame.len().min(40)]));
        assert!(error.to_string().contains(&format!("frame of bin {bin} at byte")), "{error}");
    }
    // More or fewer bytes than the index says, of the frame or of its bases.
    let listed = entry(bin, honest.len(), bases);
    assert!(decoder.decode(&listed, &honest[1..], base).is_err());
    assert!(decoder.decode(&listed, &honest, &base[1..]).is_err());
    assert!(decoder.decode(&listed, &honest, base).is_ok());
}

#[test]
fn records_of_impossible_frames_are_refused() {
    let bytes = content(1);
    let (munro, hashes) = signed(&bytes, DELTA_FRAME_LAYER);
    let bin = Bin::new(DELTA_FRAME_LAYER, MUNRO.0 * 4 + 2);
    let run = bin.blocks().expect("blocks");
    let base = |start: u64, count: u64| BlockRange::new(BlockIndex(start), count);
    let range = |offset: u64, len: u64| ByteRange { offset, len };
    let sound = FrameEntry { bin, range: range(4 << 20, 100), bases: vec![base(0, 3)] };
    let read = |entry: FrameEntry| {
        let record = MunroFrames::new(munro, DELTA_FRAME_LAYER, hashes.clone(), vec![entry]);
        MunroFrames::decode(munro, Part::Update, &record.encode())
    };
    assert!(read(sound.clone()).is_ok());
    let with = |bases: Vec<BlockRange>| FrameEntry { bases, ..sound.clone() };
    let at = |range: ByteRange| FrameEntry { range, ..sound.clone() };
    let impossible = [
        // Its own run, part of it, a run behind it: what needs itself can never be decoded.
        with(vec![run]),
        with(vec![base(run.start.0 - 1, 2)]),
        with(vec![base(run.end().0, 1)]),
        with(vec![base(1 << 50, 1)]),
        // Beyond the bounds of a base.
        with(vec![base(0, 257)]),
        with(vec![base(0, 0)]),
        with(vec![base(0, u64::MAX)]),
        with((0..65).map(|i| base(2 * i, 1)).collect()),
        with(Vec::new()),
        // Outside of the log, in front of its run, longer than its run, nothing.
        at(range(1 << 62, 100)),
        at(range(2 << 20, 100)),
        at(range(0, 100)),
        at(range(4 << 20, (256 << 10) + 1)),
        at(range(4 << 20, 0)),
        FrameEntry { bin: Bin::new(DELTA_FRAME_LAYER, MUNRO.0 * 4 + 4), ..sound.clone() },
    ];
    for entry in impossible {
        let shown = format!("{entry:?}");
        assert!(matches!(read(entry), Err(IndexError::Record { munro: MUNRO, .. })), "{shown}");
    }
    // Hashes that are not those of the munro.
    let record = MunroFrames::new(munro, DELTA_FRAME_LAYER, hashes.clone(), vec![sound]).encode();
    for at in 0..=4 * 32 {
        let mut forged = record.clone();
        forged[at] ^= 0x80;
        assert!(MunroFrames::decode(munro, Part::Update, &forged).is_err(), "byte {at}");
    }
    for end in 0..record.len() {
        let cut = MunroFrames::decode(munro, Part::Update, &record[..end]);
        assert!(cut.is_err() || cut.is_ok_and(|cut| cut.frames().is_empty()), "{end}");
    }
}

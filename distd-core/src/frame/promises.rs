//! What frames promise, whole: written, listed, decoded, verified; and refused where they lie.

use zstd::zstd_safe::CCtx;

use super::layout::{CARRY, DELTA, PREFIX, WORDS};
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

/// A copy of 4 KiB pieces, one word changed in each.
fn word_streams(bin: Bin) -> DeltaStreams {
    let mut streams = DeltaStreams { units: ChangedUnits::Words, ..DeltaStreams::default() };
    streams.push_words(0, bin.byte_len(), 0, 1);
    for i in 0..bin.byte_len() / 4096 {
        // The guess of nothing, one that is always there, and a difference.
        streams.change_word(if i == 0 { 25 } else { 1023 }, [4, 2, 5 + 600][i as usize % 3]);
    }
    streams
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
    let frame = encode_delta(&mut CCtx::create(), bin, &streams(bin), None, 3);
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
    let alone = encode_delta(&mut CCtx::create(), bin, &streams, None, 3);
    let frame = encode_delta(&mut CCtx::create(), bin, &streams, Some(&random), 3);
    assert!(frame.len() < alone.len() / 10 && frame[0] == DELTA | PREFIX);
    let entry =
        FrameEntry { range: ByteRange { offset: 5 << 20, len: frame.len() as u64 }, ..entry };
    assert!(decoder.decode(&entry, &frame, &random) == Ok(random));
}

#[test]
fn a_carry_runs_through_an_integer_and_no_further() {
    let add = |bytes: &[u8], value: i8| {
        let mut bytes = bytes.to_vec();
        add_carrying(&mut bytes, value as u8);
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
    fn a_damaged_frame_is_refused_or_makes_as_many_bytes(at: proptest::sample::Index, value: u8, kind in 0usize..3) {
        let old = content(1);
        let bin = Bin::new(FULL_FRAME_LAYER, MUNRO.0 * 16 + 1);
        let carrying = DeltaStreams { units: ChangedUnits::Carrying, ..streams(bin) };
        let streams = [streams(bin), carrying, word_streams(bin)][kind].clone();
        let mut frame = encode_delta(&mut CCtx::create(), bin, &streams, None, 3);
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
fn crafted(bin: Bin, kind: u8, lengths: [u64; 8], content: &[u8]) -> Vec<u8> {
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
    let sizes = [0, 1, 3, len - 1, len, len + 1, 1 << 20, 1 << 32, 1 << 63, u64::MAX];
    for field in 0..8 {
        for size in sizes {
            for rest in [&[][..], &[7; 40], &bomb] {
                for honest in [0, 40, rest.len() as u64] {
                    let mut lengths = [0, 0, 0, 0, 0, 0, honest, honest];
                    lengths[field] = size;
                    cases.push((crafted(bin, DELTA, lengths, rest), true));
                }
            }
        }
    }
    // Endless output as every stream, and as a full frame.
    for stream in 0..4 {
        for kind in [DELTA, DELTA | PREFIX, DELTA | CARRY, DELTA | WORDS] {
            let mut lengths = [0; 8];
            lengths[2 * stream] = len;
            lengths[2 * stream + 1] = bomb.len() as u64;
            cases.push((crafted(bin, kind, lengths, &bomb), true));
        }
    }
    cases.push((crafted(bin, 0, [0; 8], &bomb), false));
    // Unknown kinds, and words without their phases; full frames with bases and delta frames without.
    let honest = encode_delta(&mut CCtx::create(), bin, &streams(bin), None, 3);
    let full = encode_full(&mut CCtx::create(), bin, base, 3).expect("smaller");
    cases.extend((1..=255).map(|kind| ([&[kind], &full[1..]].concat(), false)));
    cases.extend((8..=255).map(|kind| ([&[kind], &honest[1..]].concat(), true)));
    cases.push((full.clone(), true));
    cases.push((honest.clone(), false));
    // A valid frame for another run: of this munro, of others, of other layers.
    for other in (0..64).map(|at| Bin::new(FULL_FRAME_LAYER, at)).filter(|other| *other != bin) {
        cases.push((encode_delta(&mut CCtx::create(), other, &streams(bin), None, 3), true));
    }
    // Copies from outside the base, beyond the run, and without end.
    for (literal, copied, distance) in [
        (0, len, 1),
        (0, len, -1),
        (0, len + 1, 0),
        (0, u64::MAX, 0),
        (u64::MAX, 1, 0),
        (1, len, 0),
        (0, 1, i64::MAX),
        (0, 1, i64::MIN),
        (0, 0, i64::MAX),
        (0, len - 1, 0),
    ] {
        let mut streams = DeltaStreams::default();
        streams.push(literal, copied, distance);
        cases.push((encode_delta(&mut CCtx::create(), bin, &streams, None, 3), true));
        streams.push(literal, copied, distance);
        cases.push((encode_delta(&mut CCtx::create(), bin, &streams, None, 3), true));
    }
    // The same by words, which begin where they cannot, are told by guesses that there are not or by
    // more than a word holds, or are too many.
    for (phase, gap, value) in [
        (4, 0, 605),
        (5, 0, 605),
        (255, 0, 605),
        (0, len / 4, 605),
        (0, u64::MAX, 605),
        (0, 0, 0),
        (0, 0, 1),
        (0, 0, 3),
        (0, 0, (1 << 32) + 5),
        (0, 0, u64::MAX),
    ] {
        let mut streams = DeltaStreams { units: ChangedUnits::Words, ..DeltaStreams::default() };
        streams.push_words(0, len, 0, phase);
        streams.change_word(gap, value);
        cases.push((encode_delta(&mut CCtx::create(), bin, &streams, None, 3), true));
    }
    // Changes behind the last byte, gaps without values, values without gaps.
    for (gaps, values) in [(vec![0xff, 0x7f], vec![1]), (vec![1; 3], vec![]), (vec![], vec![1; 3])]
    {
        let mut streams = DeltaStreams { gaps, values, ..DeltaStreams::default() };
        streams.push(0, len, 0);
        streams.gaps.extend([0xff, 0xff, 0x7f]);
        cases.push((encode_delta(&mut CCtx::create(), bin, &streams, None, 3), true));
    }
    let words = encode_delta(&mut CCtx::create(), bin, &word_streams(bin), None, 3);
    cases.extend((0..words.len()).map(|end| (words[..end].to_vec(), true)));
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

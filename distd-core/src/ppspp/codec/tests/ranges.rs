//! Chunk specifications at the edges of every notation, against plain 128-bit arithmetic.

use super::super::addressing::CHUNKS_MAX;
use super::*;
use crate::unit::{ChunkIndex, ChunkRange};

fn profile(addressing: Addressing) -> WireProfile {
    WireProfile { addressing, ..WireProfile::LIVE }
}

/// The range of a HAVE with this specification.
fn have(spec: &[u8], addressing: Addressing) -> Result<ChunkRange, Fault> {
    let mut bytes = vec![0, 0, 0, 7, 3];
    bytes.extend_from_slice(spec);
    match read(&bytes, &profile(addressing))?.as_slice() {
        [Message::Have(chunks)] => Ok(*chunks),
        other => panic!("a HAVE was read as {other:?}"),
    }
}

/// The specification of this range.
fn spec(chunks: ChunkRange, addressing: Addressing) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    Message::Have(chunks).encode(&profile(addressing), &mut bytes)?;
    Ok(bytes.split_off(1))
}

/// `start..end` if a log can have it.
fn expected(start: u128, end: u128) -> Option<ChunkRange> {
    (start < end && end <= u128::from(CHUNKS_MAX))
        .then(|| ChunkRange::new(start as u64, end as u64))
        .flatten()
}

#[test]
fn bins_of_every_layer_are_the_chunks_below_them_or_refused() {
    for layer in 0u32..=63 {
        // RFC 7574 4.2: 2^(layer+1) * offset + 2^layer - 1.
        let offset_max = (u64::MAX >> layer) >> 1;
        for offset in [0, 1, 2, offset_max / 2, offset_max.saturating_sub(1), offset_max] {
            if offset > offset_max {
                continue;
            }
            let uid = (u128::from(offset) << (layer + 1)) + (1 << layer) - 1;
            let (start, width) = (u128::from(offset) << layer, 1u128 << layer);
            let uid = u64::try_from(uid).expect("an offset of the layer");
            let found = have(&uid.to_be_bytes(), Addressing::Bin64);
            assert_eq!(found.ok(), expected(start, start + width), "layer {layer} of {offset}");
            if let Ok(chunks) = found {
                assert_eq!(spec(chunks, Addressing::Bin64), Ok(uid.to_be_bytes().to_vec()));
            }
            let Ok(uid) = u32::try_from(uid) else { continue };
            let found = have(&uid.to_be_bytes(), Addressing::Bin32);
            assert_eq!(found.ok(), expected(start, start + width).filter(|_| layer < 32));
        }
    }
    assert_eq!(have(&[0xff; 8], Addressing::Bin64), Err(Fault::EmptyBin));
    assert_eq!(have(&[0xff; 4], Addressing::Bin32), Err(Fault::EmptyBin));
}

#[test]
fn the_first_65535_bins_are_numbered_from_left_to_right() {
    /// A plain in-order walk over the node of `start..start + width`.
    fn walk(start: u64, width: u64, next: &mut u32) {
        if width > 1 {
            walk(start, width / 2, next);
        }
        let chunks = ChunkRange::new(start, start + width).expect("not empty");
        let uid = *next;
        *next += 1;
        assert_eq!(have(&uid.to_be_bytes(), Addressing::Bin32), Ok(chunks));
        assert_eq!(have(&u64::from(uid).to_be_bytes(), Addressing::Bin64), Ok(chunks));
        assert_eq!(spec(chunks, Addressing::Bin32), Ok(uid.to_be_bytes().to_vec()));
        if width > 1 {
            walk(start + width / 2, width / 2, next);
        }
    }
    let mut next = 0;
    walk(0, 1 << 15, &mut next);
    assert_eq!(next, 65_535);
}

/// Values round every power of two that means something somewhere.
fn edges() -> Vec<u64> {
    let powers = [0, 1, 2, 10, 12, 14, 20, 31, 32, 40, 49, 50, 51, 60, 62, 63];
    let mut edges: Vec<u64> = powers
        .into_iter()
        .map(|power| 1u64 << power)
        .flat_map(|edge| [edge - 1, edge, edge + 1])
        .chain([u64::MAX - 1024, u64::MAX - 1023, u64::MAX - 1, u64::MAX])
        .collect();
    edges.dedup();
    edges
}

#[test]
fn ranges_at_every_edge_are_exact_or_refused() {
    for first in edges() {
        for last in edges() {
            let end = u128::from(last) + 1;
            let wide = [first, last].map(u64::to_be_bytes).concat();

            let found = have(&wide, Addressing::Chunk64);
            assert_eq!(found.ok(), expected(first.into(), end), "{first}..={last}");
            if let Ok(chunks) = found {
                assert_eq!(spec(chunks, Addressing::Chunk64).as_ref(), Ok(&wide));
            }

            let found = have(&wide, Addressing::Bytes64);
            let whole = first.is_multiple_of(1024) && end.is_multiple_of(1024);
            let chunks = expected(u128::from(first) / 1024, end / 1024).filter(|_| whole);
            assert_eq!(found.ok(), chunks, "bytes {first}..={last}");
            if let Ok(chunks) = found {
                assert_eq!(spec(chunks, Addressing::Bytes64).as_ref(), Ok(&wide));
            }

            let (Ok(first), Ok(last)) = (u32::try_from(first), u32::try_from(last)) else {
                continue;
            };
            let narrow = [first, last].map(u32::to_be_bytes).concat();
            let found = have(&narrow, Addressing::Chunk32);
            assert_eq!(found.ok(), expected(first.into(), end), "{first}..={last}");
            if let Ok(chunks) = found {
                assert_eq!(spec(chunks, Addressing::Chunk32).as_ref(), Ok(&narrow));
            }
        }
    }
}

#[test]
fn a_range_without_a_form_is_not_written() {
    let range = |start, end| ChunkRange { start: ChunkIndex(start), end: ChunkIndex(end) };
    let refused = |chunks, addressing| {
        let found = spec(chunks, addressing);
        assert_eq!(found, Err(EncodeError::Range { chunks, addressing }));
    };
    for addressing in Addressing::ALL {
        for broken in [range(0, 0), range(5, 4), range(u64::MAX, 0), range(0, CHUNKS_MAX + 1)] {
            refused(broken, addressing);
        }
    }
    for addressing in [Addressing::Bin32, Addressing::Bin64] {
        refused(range(0, 3), addressing);
        refused(range(1, 3), addressing);
    }
    refused(range(0, 1 << 32), Addressing::Bin32);
    refused(range(0, (1 << 32) + 1), Addressing::Chunk32);
    assert!(spec(range(0, 1 << 32), Addressing::Chunk32).is_ok());
    assert!(spec(range(0, 1 << 31), Addressing::Bin32).is_ok());
}

// Shows C64 (RFC 7574 7.11).
#[test]
fn byte_ranges_of_variable_chunks_mean_nothing() {
    let profile = WireProfile {
        addressing: Addressing::Bytes64,
        chunk_bytes: WireProfile::VARIABLE,
        ..WireProfile::LIVE
    };
    let mut bytes = vec![0, 0, 0, 7, 3];
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&(u64::from(u32::MAX) - 1).to_be_bytes());
    let fault = Fault::UnalignedBytes { first: 0, last: u64::from(u32::MAX) - 1 };
    assert_eq!(read(&bytes, &profile), Err(fault));
    let chunk = ChunkRange::new(0, 1).expect("not empty");
    assert!(Message::Have(chunk).encode(&profile, &mut Vec::new()).is_err());
}

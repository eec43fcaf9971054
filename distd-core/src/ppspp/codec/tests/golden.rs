//! Bytes that were worked out by hand, from RFC 7574 and from `docs/protocol.md`.

use super::*;
use crate::keys::NtpTime;
use crate::unit::{ChunkRange, MunroIndex};

fn chunks(start: u64, end: u64) -> ChunkRange {
    ChunkRange::new(start, end).expect("not empty")
}

/// RFC 7574 8.16, with the hash function that its example's root belongs to (SHA-1).
#[test]
fn the_example_of_the_rfc_is_read_and_written() {
    let root = b"\x47\xa0\x13\xe6\x60\xd4\x08\x61\x9d\x89\x4b\x20\x80\x6b\x1d\x50\x86\xaa\xb0\x3b";
    let mut datagram = vec![0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 2, 0, 20];
    datagram.extend_from_slice(root);
    datagram.extend_from_slice(&[3, 1, 4, 0, 6, 2, 9, 0, 0, 4, 0, 255]);
    let messages = decode(&datagram, &WireProfile::LIVE).expect("well formed");
    let options = Options {
        version: Some(1),
        minimum_version: Some(1),
        swarm_id: Some(root),
        integrity: Some(IntegrityMethod::Merkle),
        hash_function: Some(HashFunction::Sha1),
        addressing: Some(Addressing::Chunk32),
        chunk_bytes: Some(1024),
        ..Options::default()
    };
    let handshake = Message::Handshake(Handshake { source: ChannelId(1), options });
    assert_eq!(messages.collect::<Vec<_>>(), [handshake]);

    let mut written = Vec::new();
    Encoder::new(&mut written, ChannelId(0), &WireProfile::LIVE, 1472)
        .push(&handshake)
        .expect("fits");
    assert_eq!(written, datagram);
}

/// RFC 7574 8.2: a HAVE of bin 1.
#[test]
fn the_have_of_the_rfc_is_five_bytes() {
    let profile = WireProfile { addressing: Addressing::Bin32, ..WireProfile::STATIC };
    let mut bytes = Vec::new();
    Message::Have(chunks(0, 2)).encode(&profile, &mut bytes).expect("a bin");
    assert_eq!(bytes, [3, 0, 0, 0, 1]);
}

/// RFC 7574 7.10: 11011001 11110000 is every message except ACKs and PEXs.
// Shows C63 (RFC 7574 7.10).
#[test]
fn bitmaps_are_those_of_the_rfc() {
    use MessageType::{Ack, PexReq, PexResCert, PexResV4, PexResV6};
    let without = |absent: &[MessageType]| {
        let kinds = MessageType::ALL.into_iter().filter(|kind| kind.is_standard());
        MessageSet::of(&kinds.filter(|kind| !absent.contains(kind)).collect::<Vec<_>>())
    };
    let bitmap = |set: MessageSet| set.as_bitmap().to_vec();
    assert_eq!(bitmap(without(&[])), [0xff, 0xfc]);
    assert_eq!(bitmap(without(&[PexReq, PexResV4, PexResV6, PexResCert])), [0xf9, 0xf0]);
    assert_eq!(bitmap(without(&[Ack, PexReq, PexResV4, PexResV6, PexResCert])), [0xd9, 0xf0]);
    assert_eq!(bitmap(MessageSet::EXTENDED), [0xff, 0xff, 0xe0]);
    assert!(bitmap(MessageSet::default()).is_empty());
    assert_eq!(MessageSet::STANDARD, without(&[]));
    assert_eq!(MessageSet::EXTENDED, MessageSet::of(&MessageType::ALL));
    assert!(MessageType::ALL.into_iter().all(|kind| MessageSet::EXTENDED.contains(kind)));
    assert!(!MessageSet::STANDARD.contains(MessageType::Want));
}

// Shows C05 (RFC 7574 3.1.1).
#[test]
fn a_handshake_of_a_log_is_77_bytes() {
    let mut id = [7; 33];
    id[0] = 15;
    let options = Options {
        version: Some(1),
        minimum_version: Some(1),
        swarm_id: Some(&id),
        integrity: Some(IntegrityMethod::UnifiedMerkle),
        hash_function: Some(HashFunction::Blake3),
        signature_algorithm: Some(SignatureAlgorithm::ED25519),
        addressing: Some(Addressing::Chunk64),
        discard_window: Some(DiscardWindow::Unlimited),
        supported: Some(MessageSet::EXTENDED),
        chunk_bytes: Some(1024),
    };
    let handshake = Message::Handshake(Handshake { source: ChannelId(0x0102_0304), options });
    let bytes = datagram(0, &WireProfile::LIVE, &[handshake]);
    let mut expected = vec![0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 1, 1, 1, 2, 0, 33];
    expected.extend_from_slice(&id);
    expected.extend_from_slice(&[3, 3, 4, 0xb3, 5, 15, 6, 4, 7]);
    expected.extend_from_slice(&[0xff; 8]);
    expected.extend_from_slice(&[8, 3, 0xff, 0xff, 0xe0, 9, 0, 0, 4, 0, 0xff]);
    assert_eq!(bytes, expected);
    assert_eq!(bytes.len(), 77);
}

#[test]
fn the_extensions_are_as_documented() {
    let live = WireProfile::LIVE;
    let want = Message::Want {
        chunks: chunks(4, 8),
        class: WireClass::Waited,
        deadline_ms: 30_000,
        hops: 3,
    };
    let miss = Message::Miss(chunks(4, 8));
    let map = Message::HaveMap { munro: MunroIndex(5), granules: (1 << 63) | 1 };
    let place = Message::Place { id: 0x0102, level: 255 };
    let seats = [Seat { id: 0x0102, hops: 0 }, Seat { id: 3, hops: 4 }];
    let seats: SeatList = seats.into_iter().collect();
    let circle = Message::Circle(seats.as_seats());
    let bytes = datagram(7, &live, &[want, miss, map, place, circle]);
    let range = [0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 7];
    let expected = [
        &[0, 0, 0, 7, 14][..],
        &range,
        &[1, 0, 0, 0x75, 0x30, 3, 15],
        &range,
        &[16, 0, 0, 0, 0, 0, 0, 0, 5, 0x80, 0, 0, 0, 0, 0, 0, 1],
        &[17, 0, 0, 0, 0, 0, 0, 1, 2, 255],
        &[18, 2, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4],
    ];
    assert_eq!(bytes, expected.concat());
}

/// Total size of each message in the five addressings, with hashes of 32 bytes, signatures of 64.
// Shows C69 (RFC 7574 8.6).
#[test]
fn messages_have_the_sizes_of_the_rfc() {
    let (range, hash, signature) = (chunks(0, 1), &[0; 32][..], &[0; 64][..]);
    let data = Message::Data { chunks: range, timestamp_us: 0, payload: &[0; 1024] };
    let want = Message::Want { chunks: range, class: WireClass::Waited, deadline_ms: 0, hops: 0 };
    let signed = Message::SignedIntegrity { chunks: range, time: NtpTime(0), signature };
    let nobody = SeatList::default();
    let table = [
        (data, [1037, 1049, 1041, 1041, 1049]),
        (Message::Ack { chunks: range, delay_us: 0 }, [13, 25, 17, 17, 25]),
        (Message::Have(range), [5, 17, 9, 9, 17]),
        (Message::Integrity { chunks: range, hash }, [37, 49, 41, 41, 49]),
        (Message::PexResV4("1.2.3.4:5".parse().expect("an address")), [7; 5]),
        (Message::PexReq, [1; 5]),
        (signed, [77, 89, 81, 81, 89]),
        (Message::Request(range), [5, 17, 9, 9, 17]),
        (Message::Cancel(range), [5, 17, 9, 9, 17]),
        (Message::Choke, [1; 5]),
        (Message::Unchoke, [1; 5]),
        (Message::PexResV6("[::1]:5".parse().expect("an address")), [19; 5]),
        (Message::PexResCert(&[0; 100]), [103; 5]),
        (want, [11, 23, 15, 15, 23]),
        (Message::Miss(range), [5, 17, 9, 9, 17]),
        (Message::HaveMap { munro: MunroIndex(0), granules: 0 }, [17; 5]),
        (Message::Place { id: 1, level: 0 }, [10; 5]),
        (Message::Circle(nobody.as_seats()), [2; 5]),
    ];
    for (message, sizes) in table {
        for (addressing, size) in Addressing::ALL.into_iter().zip(sizes) {
            let profile = WireProfile { addressing, ..WireProfile::LIVE };
            let mut bytes = Vec::new();
            message.encode(&profile, &mut bytes).expect("one chunk");
            assert_eq!(bytes.len(), size, "{message:?} in {addressing:?}");
            assert_eq!(message.encoded_len(&profile), size);
            assert_eq!(bytes.first(), Some(&message.kind().code()));
        }
    }
}

/// RFC 7574 8.9: the algorithm and the key tell how long a signature is.
#[test]
fn signatures_are_as_long_as_the_key_says() {
    let rsa = [&[5, 3, 1, 0, 1][..], &[0xc5; 256]].concat();
    let long_exponent = [&[8, 0, 0, 3, 1, 0, 1][..], &[0xc5; 128]].concat();
    assert_eq!(SignatureAlgorithm(5).signature_bytes(Some(&rsa)), Some(256));
    assert_eq!(SignatureAlgorithm(8).signature_bytes(Some(&long_exponent)), Some(128));
    assert_eq!(SignatureAlgorithm(8).signature_bytes(Some(&[8, 200, 1])), None);
    assert_eq!(SignatureAlgorithm(8).signature_bytes(None), None);
    assert_eq!(SignatureAlgorithm(13).signature_bytes(None), Some(64));
    assert_eq!(SignatureAlgorithm(14).signature_bytes(None), Some(96));
    assert_eq!(SignatureAlgorithm::ED25519.signature_bytes(None), Some(64));
    assert_eq!(SignatureAlgorithm(200).signature_bytes(None), None);
}

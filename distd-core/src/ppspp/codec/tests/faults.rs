//! Each way to be malformed is refused, by name.

use super::*;
use crate::unit::ChunkRange;

/// A HANDSHAKE on channel 0 with these option bytes.
fn handshake(options: &[u8]) -> Vec<u8> {
    [&[0, 0, 0, 0, 0, 0, 0, 0, 9], options].concat()
}

fn fault(bytes: &[u8]) -> Option<Fault> {
    read(bytes, &WireProfile::LIVE).err()
}

fn chunk(index: u64) -> ChunkRange {
    ChunkRange::new(index, index + 1).expect("not empty")
}

/// The options of a log's handshake, one by one, in order.
fn listed() -> [Vec<u8>; 10] {
    [
        vec![0, 1],
        vec![1, 1],
        [&[2, 0, 33, 15][..], &[7; 32]].concat(),
        vec![3, 3],
        vec![4, 0xb3],
        vec![5, 15],
        vec![6, 4],
        [7, 255, 255, 255, 255, 255, 255, 255, 255].to_vec(),
        vec![8, 3, 0xff, 0xff, 0x80],
        vec![9, 0, 0, 4, 0],
    ]
}

#[test]
fn a_keep_alive_is_a_channel_and_nothing_else() {
    assert_eq!(read(&[0, 0, 0, 7], &WireProfile::LIVE), Ok(vec![]));
    assert_eq!(fault(&[0, 0, 0, 0]), Some(Fault::HandshakeMissing));
    for len in 0..4 {
        let truncated = Fault::Truncated { needed: 4, found: len };
        assert_eq!(fault(&vec![0; len]), Some(truncated));
        let error = destination(&vec![0; len]).expect_err("too short");
        assert_eq!((error.offset, error.fault), (0, truncated));
    }
}

// Shows C01 (RFC 7574 3).
#[test]
fn types_that_are_not_known_end_a_datagram() {
    for code in 19..=255 {
        // RFC 7574 3: drop what follows an invalid message; here the whole datagram.
        assert_eq!(fault(&[0, 0, 0, 7, 10, code]), Some(Fault::UnknownMessage(code)));
        let error = decode(&[0, 0, 0, 7, 10, code], &WireProfile::LIVE).expect_err("unknown");
        assert_eq!(error.offset, 5);
    }
}

#[test]
fn a_circle_has_as_many_seats_as_it_says_and_no_more_than_take_turns() {
    let circle =
        |count: u8, seats: usize| [&[0, 0, 0, 7, 18, count][..], &vec![1; 9 * seats]].concat();
    assert_eq!(fault(&circle(16, 16)), None);
    assert_eq!(fault(&circle(17, 17)), Some(Fault::TooManySeats { count: 17 }));
    assert_eq!(fault(&circle(2, 1)), Some(Fault::Truncated { needed: 18, found: 9 }));
}

// Shows C04 (RFC 7574 3.1).
#[test]
fn a_handshake_comes_first_and_channel_0_takes_nothing_else() {
    let good = handshake(&[0, 1, 255]);
    assert_eq!(fault(&good), None);
    let twice = [&good[..], &good[4..]].concat();
    assert_eq!(fault(&twice), Some(Fault::HandshakeNotFirst));
    assert_eq!(fault(&[0, 0, 0, 0, 10]), Some(Fault::HandshakeMissing));
    assert_eq!(fault(&[0, 0, 0, 7, 10]), None);
}

// Shows C11 (RFC 7574 8.4).
#[test]
fn a_closing_handshake_has_at_most_a_version() {
    let closing = |options: &[u8]| [&[0, 0, 0, 7, 0, 0, 0, 0, 0], options].concat();
    assert_eq!(fault(&closing(&[255])), None);
    assert_eq!(fault(&closing(&[0, 1, 255])), None);
    assert_eq!(fault(&closing(&[0, 1, 1, 1, 255])), Some(Fault::ClosingOptions));
    assert_eq!(fault(&handshake(&[255])), Some(Fault::VersionMissing));
    assert_eq!(fault(&handshake(&[6, 4, 255])), Some(Fault::VersionMissing));
}

// Shows C57 (RFC 7574 7), C62 (RFC 7574 7.9).
#[test]
fn options_stand_in_order_and_once() {
    let listed = listed();
    assert_eq!(fault(&handshake(&[&listed.concat()[..], &[255]].concat())), None);
    for (first, one) in listed.iter().enumerate() {
        for (second, other) in listed.iter().enumerate() {
            // The addressing gives the window its width: it must stand before in any case.
            let bytes = handshake(&[&one[..], other, &[255]].concat());
            let found = fault(&bytes);
            match found {
                Some(Fault::OptionOrder { previous, found }) => {
                    assert!(first >= second, "{first} then {second}");
                    assert_eq!((usize::from(previous), usize::from(found)), (first, second));
                }
                Some(Fault::WindowWithoutAddressing) => {
                    assert!(first == 7 || (second == 7 && first < 6));
                }
                Some(Fault::VersionMissing) => assert!(0 < first && first < second),
                None => assert!(first == 0 && second > 0),
                other => panic!("{first} then {second}: {other:?}"),
            }
        }
    }
}

#[test]
fn options_and_values_that_are_not_known_are_refused() {
    for code in 10..255 {
        let bytes = handshake(&[0, 1, code, 0, 0, 255]);
        assert_eq!(fault(&bytes), Some(Fault::UnknownOption(code)));
    }
    for value in 0..=255 {
        let refused = |option| Some(Fault::OptionValue { option, value: u64::from(value) });
        let found = |option| fault(&handshake(&[0, 1, option, value, 255]));
        assert_eq!(found(3), if value < 4 { None } else { refused(3) });
        assert_eq!(found(4), if value < 5 || value == 0xb3 { None } else { refused(4) });
        assert_eq!(found(5), None);
        assert_eq!(found(6), if value < 5 { None } else { refused(6) });
        assert_eq!(fault(&handshake(&[0, value, 255])), if value > 0 { None } else { refused(0) });
        let bitmap = [&[0, 1, 8, value][..], &vec![1; usize::from(value)], &[255]].concat();
        assert_eq!(fault(&handshake(&bitmap)), if value <= 32 { None } else { refused(8) });
    }
    let zero = Fault::OptionValue { option: 9, value: 0 };
    assert_eq!(fault(&handshake(&[0, 1, 9, 0, 0, 0, 0, 255])), Some(zero));
}

#[test]
fn lengths_beyond_the_datagram_are_refused() {
    let bytes = handshake(&[&[0, 1, 2, 0xff, 0xff][..], &[1; 1400]].concat());
    assert_eq!(fault(&bytes), Some(Fault::Truncated { needed: 65535, found: 1400 }));
    let certificate = [&[0, 0, 0, 7, 13, 0xff, 0xff][..], &[1; 100]].concat();
    assert_eq!(fault(&certificate), Some(Fault::Truncated { needed: 65535, found: 100 }));
    let whole = handshake(&[&listed().concat()[..], &[255]].concat());
    for end in 9..whole.len() {
        let cut = fault(&whole[..end]);
        assert!(matches!(cut, Some(Fault::Truncated { .. })), "cut at {end}: {cut:?}");
    }
}

// Shows C21 (RFC 7574 8.6).
#[test]
fn data_keeps_to_the_tail() {
    let live = WireProfile::LIVE;
    let whole = |index, payload| Message::Data { chunks: chunk(index), timestamp_us: 1, payload };
    let (full, short) = (&[5; 1024][..], &[5; 1023][..]);
    let bytes = |messages: &[Message<'_>]| datagram(7, &live, messages);
    assert_eq!(fault(&bytes(&[Message::Choke, whole(0, full)])), None);
    assert_eq!(fault(&bytes(&[Message::Choke, whole(0, short)])), None);
    assert_eq!(fault(&bytes(&[whole(0, full), whole(1, full)])), None);
    assert_eq!(fault(&bytes(&[whole(0, full), Message::Choke, whole(1, full)])), None);
    assert_eq!(fault(&bytes(&[whole(0, full), Message::Choke])), Some(Fault::DataNotLast));
    let among = bytes(&[whole(0, full), whole(1, short)]);
    assert_eq!(fault(&among), Some(Fault::DataShort { found: 1023 }));
    let error = decode(&among, &live).expect_err("a short chunk");
    assert_eq!(error.offset, 4 + 25 + 1024);

    // Variable chunks: DATA takes the rest, so that there is one, and it is last.
    let variable = WireProfile { chunk_bytes: WireProfile::VARIABLE, ..live };
    let bytes = datagram(7, &variable, &[whole(0, full), whole(1, full)]);
    let messages = read(&bytes, &variable).expect("one chunk");
    assert!(matches!(messages.as_slice(), [Message::Data { payload, .. }] if payload.len() > 2048));
}

// Shows C20 (RFC 7574 8.6).
#[test]
fn data_is_one_chunk_with_bytes() {
    let mut bytes = vec![0, 0, 0, 7, 1];
    bytes.extend_from_slice(&[0; 24]);
    assert_eq!(fault(&bytes), Some(Fault::DataEmpty));
    bytes[20] = 1;
    bytes.push(9);
    assert_eq!(fault(&bytes), Some(Fault::DataOfSeveralChunks { count: 2 }));
    let live = WireProfile::LIVE;
    for (chunks, payload) in [(ChunkRange::new(0, 2), &[1; 1024][..]), (ChunkRange::new(0, 1), &[])]
    {
        let message =
            Message::Data { chunks: chunks.expect("not empty"), timestamp_us: 0, payload };
        assert!(message.encode(&live, &mut Vec::new()).is_err());
    }
}

// Shows C23 (RFC 7574 5.4).
#[test]
fn hashes_belong_to_nodes() {
    let mut bytes = vec![0, 0, 0, 7, 4];
    bytes.extend_from_slice(&1u64.to_be_bytes());
    bytes.extend_from_slice(&2u64.to_be_bytes());
    bytes.extend_from_slice(&[0; 32]);
    assert_eq!(fault(&bytes), Some(Fault::NotANode { first: 1, count: 2 }));
    bytes[12] = 0;
    bytes[20] = 2;
    assert_eq!(fault(&bytes), Some(Fault::NotANode { first: 0, count: 3 }));
    bytes[20] = 3;
    assert_eq!(fault(&bytes), None);
}

#[test]
fn a_message_that_cannot_be_written_leaves_no_trace() {
    let live = WireProfile::LIVE;
    let mut out = vec![1, 2, 3];
    let certificate = vec![0; 1 << 16];
    let cases = [
        Message::Integrity { chunks: chunk(0), hash: &[0; 31] },
        Message::SignedIntegrity {
            chunks: chunk(0),
            time: crate::keys::NtpTime(0),
            signature: &[0; 63],
        },
        Message::Data { chunks: chunk(0), timestamp_us: 0, payload: &[0; 1025] },
        Message::PexResCert(&certificate),
        Message::HaveMap { munro: crate::unit::MunroIndex(1 << 40), granules: 1 },
        Message::Handshake(Handshake { source: ChannelId(1), options: Options::default() }),
        Message::Handshake(Handshake {
            source: ChannelId(1),
            options: Options {
                version: Some(1),
                discard_window: Some(DiscardWindow::Unlimited),
                ..Options::default()
            },
        }),
        Message::Handshake(Handshake {
            source: ChannelId(1),
            options: Options {
                version: Some(1),
                addressing: Some(Addressing::Chunk32),
                discard_window: Some(DiscardWindow::Newest(u64::from(u32::MAX))),
                ..Options::default()
            },
        }),
    ];
    for message in cases {
        assert!(message.encode(&live, &mut out).is_err(), "{message:?}");
        assert_eq!(out, [1, 2, 3]);
    }
}

#[test]
fn a_datagram_ends_at_its_size() {
    let mut out = vec![9; 3];
    let mut encoder = Encoder::new(&mut out, ChannelId(7), &WireProfile::LIVE, 22);
    assert!(encoder.is_empty());
    encoder.push(&Message::Have(chunk(1))).expect("17 bytes");
    let full = encoder.push(&Message::Have(chunk(2)));
    assert_eq!(full, Err(EncodeError::Full { needed: 17, left: 1 }));
    encoder.push(&Message::Choke).expect("one byte");
    assert_eq!((encoder.len(), encoder.left()), (22, 0));
    let messages = [Message::Have(chunk(1)), Message::Choke];
    assert_eq!(read(&out[3..], &WireProfile::LIVE), Ok(messages.to_vec()));
}

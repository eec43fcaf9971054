//! The codec's promises over its whole surface: every message in every addressing.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;

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

//! 10,000 broken datagrams of each message type, from a fixed seed.
//!
//! That decoding takes no memory needs no counting allocator: nothing below [`decode`] owns any.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::samples::{message, pool};
use super::*;
use crate::unit::ChunkRange;

const MUTANTS: usize = 10_000;

/// Flips, cuts, extends, splices or overwrites `bytes`.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut SmallRng) {
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..6) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            2 => bytes.truncate(at),
            3 => bytes.extend((0..random.random_range(1..40)).map(|_| random.random::<u8>())),
            4 => {
                let from = random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            5 if at < bytes.len() => {
                let edge = [0x00, 0x01, 0x7f, 0x80, 0xfe, 0xff][random.random_range(0..6)];
                let end = bytes.len().min(at + random.random_range(1..=16));
                bytes[at..end].fill(edge);
            }
            _ => {}
        }
    }
}

/// What is decoded can be written, and reads as the same again.
fn check(bytes: &[u8], profile: &WireProfile) -> bool {
    let Ok(channel) = destination(bytes) else {
        assert!(bytes.len() < 4);
        return false;
    };
    let Ok(messages) = read(bytes, profile) else {
        return false;
    };
    assert!(messages.len() < bytes.len());
    let written = datagram(channel.0, profile, &messages);
    assert_eq!(read(&written, profile), Ok(messages), "{bytes:02x?}");
    true
}

#[test]
fn mutated_datagrams_are_refused_or_read_the_same_twice() {
    let mut random = SmallRng::seed_from_u64(7574);
    let profiles = profiles();
    for kind in MessageType::ALL {
        let mut read = 0;
        for round in 0..MUTANTS {
            let profile = &profiles[round % profiles.len()];
            let (pool, channel) = (pool(&mut random), random.random_range(0..3));
            let own = message(kind, &mut random, profile, &pool);
            let other = MessageType::ALL[random.random_range(0..MessageType::ALL.len())];
            let other = message(other, &mut random, profile, &pool);
            let mut bytes = datagram(channel, profile, &[own]);
            if random.random() {
                other.encode(profile, &mut bytes).expect("a message of the profile");
            }
            mutate(&mut bytes, &datagram(0, profile, &[other]), &mut random);
            read += usize::from(check(&bytes, profile));
        }
        // The mutants probe both sides of the door.
        assert!((MUTANTS / 100..MUTANTS).contains(&read), "{kind:?}: {read} were read");
    }
}

#[test]
fn every_cut_of_a_datagram_is_refused_or_a_shorter_datagram() {
    let mut random = SmallRng::seed_from_u64(1);
    for profile in profiles() {
        for kind in MessageType::ALL {
            let pool = pool(&mut random);
            let bytes = datagram(0, &profile, &[message(kind, &mut random, &profile, &pool)]);
            for end in 0..bytes.len() {
                check(&bytes[..end], &profile);
            }
        }
    }
}

#[test]
fn noise_is_no_datagram_or_reads_the_same_twice() {
    let mut random = SmallRng::seed_from_u64(2);
    for profile in profiles() {
        for _ in 0..MUTANTS {
            let len = random.random_range(0..80);
            let mut bytes: Vec<u8> = (0..len).map(|_| random.random()).collect();
            // A plausible type, so that more than the type octet is read.
            if let Some(kind) = bytes.get_mut(4) {
                *kind %= 18;
            }
            check(&bytes, &profile);
        }
    }
}

proptest::proptest! {
    /// The short cut for DATA reads what the long way reads, and nothing that it would refuse.
    #[test]
    fn lone_data_is_read_as_decode_reads_it(
        channel: u32, chunk in 0u64..1 << 50, timestamp_us: u64, byte: u8,
        mutation in proptest::option::of((0usize..1053, proptest::prelude::any::<u8>())), cut in 0usize..3, more in 0usize..2,
    ) {
        let mut datagram = channel.to_be_bytes().to_vec();
        let chunks = ChunkRange::new(chunk, chunk + 1).expect("one");
        Message::Data { chunks, timestamp_us, payload: &[byte; 1024] }
            .encode(&WireProfile::LIVE, &mut datagram)
            .expect("a chunk");
        if let Some((at, value)) = mutation {
            datagram[at] = value;
        }
        datagram.truncate(datagram.len() - cut);
        datagram.extend(vec![byte; more]);
        let whole = decode(&datagram, &WireProfile::LIVE).ok().map(Iterator::collect::<Vec<_>>);
        if let Some(LoneData { channel, chunk, timestamp_us, payload }) = lone_data(&datagram) {
            let chunks = ChunkRange::new(chunk, chunk + 1).expect("one");
            proptest::prop_assert_eq!(whole, Some(vec![Message::Data { chunks, timestamp_us, payload }]));
            proptest::prop_assert_eq!(destination(&datagram), Ok(channel));
        } else {
            let missed = whole.is_some_and(|all| matches!(all[..], [Message::Data { payload, .. }] if payload.len() == 1024));
            proptest::prop_assert!(!missed);
        }
    }
}

//! Random messages of each type, and that they come back from the wire as they went.

use std::net::{SocketAddrV4, SocketAddrV6};

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

use super::super::addressing::CHUNKS_MAX;
use super::super::reader::Reader;
use super::*;
use crate::keys::NtpTime;
use crate::limits::LOG_MUNROS_MAX;
use crate::unit::{Bin, ChunkRange, MunroIndex};

/// Where the borrowed fields of samples come from.
pub(super) fn pool(random: &mut SmallRng) -> Vec<u8> {
    let mut pool = vec![0; 2048];
    random.fill_bytes(&mut pool);
    pool
}

/// A number near an interesting power of two, below `end`.
fn near_edge(random: &mut SmallRng, end: u64) -> u64 {
    let power = 1u64 << random.random_range(0..64);
    power.wrapping_add(random.random_range(0..3)).wrapping_sub(1) % end
}

/// A node whose bin number fits the addressing.
fn node(random: &mut SmallRng, profile: &WireProfile) -> ChunkRange {
    let bits = match profile.addressing {
        Addressing::Bin32 | Addressing::Chunk32 => 31,
        Addressing::Bytes64 | Addressing::Bin64 | Addressing::Chunk64 => 50,
    };
    let layer = random.random_range(0..=bits);
    Bin::new(layer, near_edge(random, 1 << (bits - layer))).chunks()
}

/// A range that the addressing can express.
fn range(random: &mut SmallRng, profile: &WireProfile) -> ChunkRange {
    let end = match profile.addressing {
        Addressing::Bin32 | Addressing::Bin64 => return node(random, profile),
        Addressing::Chunk32 => 1 << 32,
        Addressing::Bytes64 | Addressing::Chunk64 => CHUNKS_MAX,
    };
    let (one, other) = (near_edge(random, end), near_edge(random, end));
    ChunkRange::new(one.min(other), one.max(other) + 1).expect("not empty")
}

fn maybe<T>(random: &mut SmallRng, value: impl FnOnce(&mut SmallRng) -> T) -> Option<T> {
    random.random::<bool>().then(|| value(random))
}

/// Options that name `profile` or leave it alone, so that what follows is read with it.
fn options<'a>(random: &mut SmallRng, profile: &WireProfile, pool: &'a [u8]) -> Options<'a> {
    let addressing = maybe(random, |_| profile.addressing);
    let width_max = match profile.addressing.value_bytes() {
        4 => u64::from(u32::MAX),
        _ => u64::MAX,
    };
    Options {
        version: Some(random.random_range(1..=255)),
        minimum_version: maybe(random, |random| random.random_range(1..=255)),
        swarm_id: maybe(random, |random| &pool[..random.random_range(0..600)]),
        integrity: maybe(random, |random| IntegrityMethod::ALL[random.random_range(0..4)]),
        hash_function: maybe(random, |random| HashFunction::ALL[random.random_range(0..6)]),
        signature_algorithm: maybe(random, |random| SignatureAlgorithm(random.random())),
        addressing,
        discard_window: addressing.and_then(|_| {
            maybe(random, |random| match random.random_range(0..2) {
                0 => DiscardWindow::Unlimited,
                _ => DiscardWindow::Newest(near_edge(random, width_max)),
            })
        }),
        supported: maybe(random, |random| {
            let len = random.random_range(0..=32);
            MessageSet::from_bitmap(&pool[..len]).expect("at most 32 bytes")
        }),
        chunk_bytes: maybe(random, |_| profile.chunk_bytes),
    }
}

/// A random message of `kind`.
pub(super) fn message<'a>(
    kind: MessageType,
    random: &mut SmallRng,
    profile: &WireProfile,
    pool: &'a [u8],
) -> Message<'a> {
    match kind {
        MessageType::Handshake if random.random_range(0..8) == 0 => {
            Message::Handshake(Handshake::closing())
        }
        MessageType::Handshake => Message::Handshake(Handshake {
            source: ChannelId(random.random_range(1..=u32::MAX)),
            options: options(random, profile, pool),
        }),
        MessageType::Data => {
            let first = range(random, profile).start.0;
            let len_max = profile.fixed_chunk_bytes().unwrap_or(1400);
            let len = if random.random() { len_max } else { random.random_range(1..=len_max) };
            Message::Data {
                chunks: ChunkRange::new(first, first + 1).expect("not empty"),
                timestamp_us: random.random(),
                payload: &pool[..len],
            }
        }
        MessageType::Ack => {
            Message::Ack { chunks: range(random, profile), delay_us: random.random() }
        }
        MessageType::Have => Message::Have(range(random, profile)),
        MessageType::Integrity => {
            Message::Integrity { chunks: node(random, profile), hash: &pool[..profile.hash_bytes] }
        }
        MessageType::SignedIntegrity => Message::SignedIntegrity {
            chunks: node(random, profile),
            time: NtpTime(random.random()),
            signature: &pool[..profile.signature_bytes],
        },
        MessageType::Request => Message::Request(range(random, profile)),
        MessageType::Cancel => Message::Cancel(range(random, profile)),
        MessageType::Choke => Message::Choke,
        MessageType::Unchoke => Message::Unchoke,
        MessageType::PexReq => Message::PexReq,
        MessageType::PexResV4 => {
            Message::PexResV4(SocketAddrV4::new(random.random::<[u8; 4]>().into(), random.random()))
        }
        MessageType::PexResV6 => Message::PexResV6(SocketAddrV6::new(
            random.random::<[u8; 16]>().into(),
            random.random(),
            0,
            0,
        )),
        MessageType::PexResCert => Message::PexResCert(&pool[..random.random_range(0..1400)]),
        MessageType::Want => Message::Want {
            chunks: range(random, profile),
            class: if random.random() { WireClass::Waited } else { WireClass::Background },
            deadline_ms: random.random(),
            hops: random.random(),
        },
        MessageType::Miss => Message::Miss(range(random, profile)),
        MessageType::HaveMap => Message::HaveMap {
            munro: MunroIndex(near_edge(random, LOG_MUNROS_MAX)),
            granules: random.random(),
        },
        MessageType::Place => Message::Place { id: random.random(), level: random.random() },
        MessageType::Circle => {
            let count = |byte: &u8| usize::from(*byte) <= SEATS_MAX;
            let from = random.random_range(0..pool.len() / 2);
            let at = pool[from..].iter().position(count).map_or(0, |at| from + at);
            let seats = Seats::read(&mut Reader::new(&pool[at..]));
            seats.map_or(Message::PexReq, Message::Circle)
        }
    }
}

proptest! {
    // Shows C32 (RFC 7574 4).
    #[test]
    fn every_message_survives_every_addressing(seed: u64) {
        let mut random = SmallRng::seed_from_u64(seed);
        let pool = pool(&mut random);
        for profile in profiles() {
            for kind in MessageType::ALL {
                let message = message(kind, &mut random, &profile, &pool);
                let bytes = datagram(7, &profile, &[message]);
                prop_assert_eq!(bytes.len(), 4 + message.encoded_len(&profile));
                prop_assert_eq!(read(&bytes, &profile), Ok(vec![message]));
            }
        }
    }

    // Shows C03 (RFC 7574 3).
    #[test]
    fn a_datagram_of_many_messages_comes_back_in_order(seed: u64, count in 0usize..12) {
        let mut random = SmallRng::seed_from_u64(seed);
        let pool = pool(&mut random);
        for profile in profiles() {
            let mut messages: Vec<_> = (0..count)
                .map(|_| {
                    let kind = MessageType::ALL[random.random_range(2..MessageType::ALL.len())];
                    message(kind, &mut random, &profile, &pool)
                })
                .collect();
            messages.push(message(MessageType::Data, &mut random, &profile, &pool));
            let bytes = datagram(7, &profile, &messages);
            prop_assert_eq!(read(&bytes, &profile), Ok(messages));
        }
    }

    /// The options say how what follows them is read: the profile that was given does not matter.
    #[test]
    fn what_follows_a_handshake_is_read_as_its_options_say(seed: u64) {
        let mut random = SmallRng::seed_from_u64(seed);
        let pool = pool(&mut random);
        for profile in profiles() {
            let options = Options {
                version: Some(1),
                addressing: Some(profile.addressing),
                chunk_bytes: Some(profile.chunk_bytes),
                hash_function: HashFunction::ALL
                    .into_iter()
                    .find(|hash| hash.hash_bytes() == profile.hash_bytes),
                signature_algorithm: [14, 15]
                    .map(SignatureAlgorithm)
                    .into_iter()
                    .find(|a| a.signature_bytes(None) == Some(profile.signature_bytes)),
                ..Options::default()
            };
            let messages = [
                Message::Handshake(Handshake { source: ChannelId(3), options }),
                message(MessageType::Have, &mut random, &profile, &pool),
                message(MessageType::Integrity, &mut random, &profile, &pool),
                message(MessageType::SignedIntegrity, &mut random, &profile, &pool),
                message(MessageType::Data, &mut random, &profile, &pool),
            ];
            let bytes = datagram(0, &WireProfile::LIVE, &messages);
            prop_assert_eq!(read(&bytes, &WireProfile::STATIC), Ok(messages.to_vec()));
        }
    }
}

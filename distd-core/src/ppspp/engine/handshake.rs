//! The options of a log's swarm, and the first two datagrams of a channel (RFC 7574 §3.1.1, §7).

use crate::keys::SwarmId;
use crate::limits::{CHUNK_BYTES, DATAGRAM_BYTES_MAX};
use crate::ppspp::codec::{
    Addressing, ChannelId, DiscardWindow, Encoder, Handshake, HashFunction, IntegrityMethod,
    Message, MessageSet, Options, SignatureAlgorithm, WireProfile,
};

use super::announce::{Announcement, largest};
use super::interval::IntervalSet;
use super::turns::Place;

/// The only version of the protocol (RFC 7574 §7.2).
const VERSION: u8 = 1;

/// All that members of a log's swarm must agree on; never negotiated. RFC 7574 7.5, 7.6, 7.7, 7.8, 7.9,
/// 7.10, 7.11: each MUST be named where the method is 3. RFC 7574 6.2: the window of who does not
/// discard, all ones.
fn options() -> Options<'static> {
    Options {
        version: Some(VERSION),
        minimum_version: None,
        swarm_id: None,
        integrity: Some(IntegrityMethod::UnifiedMerkle),
        hash_function: Some(HashFunction::Blake3),
        signature_algorithm: Some(SignatureAlgorithm::ED25519),
        addressing: Some(Addressing::Chunk64),
        discard_window: Some(DiscardWindow::Unlimited),
        supported: Some(MessageSet::EXTENDED),
        chunk_bytes: Some(CHUNK_BYTES as u32),
    }
}

/// Datagram 1: RFC 7574 3.1.1: destination channel 0, a random source channel, the swarm's id and
/// metadata.
pub(super) fn datagram_1(local: ChannelId, swarm: &SwarmId) -> Vec<u8> {
    let swarm_id: &[u8] = &swarm.0;
    let options = Options { minimum_version: Some(VERSION), swarm_id: Some(swarm_id), ..options() };
    begin(ChannelId(0), Handshake { source: local, options })
}

/// Datagram 2, not longer than the datagram 1 of `question_bytes` that it answers; `None` if that
/// is too short for it. Our place is told, and what is held as far as there is room, the largest
/// intervals.
pub(super) fn datagram_2(
    local: ChannelId,
    remote: ChannelId,
    place: Option<Place>,
    held: Option<&IntervalSet>,
    question_bytes: usize,
) -> Option<Vec<u8>> {
    let mut datagram = begin(remote, Handshake { source: local, options: options() });
    let place = place.map(|Place { id, level }| Message::Place { id, level });
    let held = held.map(|held| largest(held, 2)).unwrap_or_default();
    let haves = held.into_iter().filter_map(|announcement| match announcement {
        Announcement::Have(chunks) => Some(Message::Have(chunks)),
        Announcement::Map(..) => None,
    });
    for message in place.into_iter().chain(haves) {
        if datagram.len() + message.encoded_len(&WireProfile::LIVE) <= question_bytes {
            let written = message.encode(&WireProfile::LIVE, &mut datagram);
            assert!(written.is_ok(), "what is held lies within the log");
        }
    }
    (datagram.len() <= question_bytes).then_some(datagram)
}

/// Says goodbye (RFC 7574 §8.4).
pub(super) fn closing(remote: ChannelId) -> Vec<u8> {
    begin(remote, Handshake::closing())
}

/// The messages that the peer understands, if its options are those of the swarm.
pub(super) fn check(theirs: &Options<'_>, swarm: &SwarmId, initiator: bool) -> Option<MessageSet> {
    let ours = options();
    let same_swarm = match theirs.swarm_id {
        Some(id) => id == swarm.0.as_slice(),
        // RFC 7574 7.4: the initiator MUST name the swarm, the responder MAY.
        None => !initiator,
    };
    let versions = theirs.version >= ours.version
        && theirs.minimum_version.is_none_or(|minimum| minimum <= VERSION);
    let equal = Options {
        version: ours.version,
        minimum_version: ours.minimum_version,
        swarm_id: ours.swarm_id,
        supported: ours.supported,
        ..*theirs
    } == ours;
    // RFC 7574 7.10: without a bitmap, everything that the RFC defines.
    let supported = theirs.supported.unwrap_or(MessageSet::STANDARD);
    (same_swarm && versions && equal).then_some(supported)
}

fn begin(destination: ChannelId, handshake: Handshake<'_>) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(128);
    let profile = &WireProfile::LIVE;
    let mut encoder = Encoder::new(&mut datagram, destination, profile, DATAGRAM_BYTES_MAX);
    let written = encoder.push(&Message::Handshake(handshake));
    assert!(written.is_ok(), "a handshake fits a datagram");
    datagram
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ppspp::codec::decode;

    // Shows C06 (RFC 7574 3.1.1).
    #[test]
    fn an_answer_is_never_longer_than_the_question() {
        let id = SwarmId([15; 33]);
        let question = datagram_1(ChannelId(7), &id);
        let mut held = IntervalSet::default();
        (0..10).for_each(|i| held.insert(i * 100, i * 100 + 50));
        let place = Some(Place { id: 1, level: 0 });
        let answer = datagram_2(ChannelId(8), ChannelId(7), place, Some(&held), question.len());
        let answer = answer.expect("fits");
        assert!(answer.len() <= question.len());
        let messages: Vec<_> = decode(&answer, &WireProfile::LIVE).expect("valid").collect();
        assert!(messages.len() >= 3, "there is room for an interval: {messages:?}");
        assert!(datagram_2(ChannelId(8), ChannelId(7), None, None, 20).is_none());
    }

    // Shows C32 (RFC 7574 4), C33 (RFC 7574 5), C44 (RFC 7574 6.1), C56 (RFC 7574 6.2), C58 (RFC
    // 7574 7.2), C59 (RFC 7574 7.4).
    #[test]
    fn every_option_must_be_the_swarms() {
        let id = SwarmId([15; 33]);
        let swarm_id: &[u8] = &id.0;
        let good = Options { swarm_id: Some(swarm_id), minimum_version: Some(1), ..options() };
        assert_eq!(check(&good, &id, true), Some(MessageSet::EXTENDED));
        assert_eq!(check(&Options { swarm_id: None, ..good }, &id, true), None);
        assert!(check(&Options { swarm_id: None, ..good }, &id, false).is_some());
        let other: &[u8] = &[14; 33];
        let window = Some(DiscardWindow::Newest(5));
        let bad = [
            Options { swarm_id: Some(other), ..good },
            Options { integrity: Some(IntegrityMethod::SignAll), ..good },
            Options { hash_function: Some(HashFunction::Sha256), ..good },
            Options { hash_function: None, ..good },
            Options { signature_algorithm: Some(SignatureAlgorithm(13)), ..good },
            Options { addressing: Some(Addressing::Bin64), ..good },
            Options { chunk_bytes: Some(4096), ..good },
            Options { discard_window: window, ..good },
            Options { minimum_version: Some(2), ..good },
        ];
        for options in bad {
            assert_eq!(check(&options, &id, true), None, "{options:?}");
        }
        let standard = check(&Options { supported: None, ..good }, &id, true);
        assert_eq!(standard, Some(MessageSet::STANDARD));
    }
}

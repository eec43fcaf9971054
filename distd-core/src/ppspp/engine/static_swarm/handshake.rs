//! The options of a static swarm, and the first two datagrams of a channel (RFC 7574 §3.1.1, §7).
//!
//! Older implementations know neither option 8 nor option 9 and cannot skip what they do not know: an
//! initiator that is not answered leaves them out, and a responder has them only where the initiator
//! had option 9.

use std::fmt;

use crate::limits::{CHUNK_BYTES, DATAGRAM_BYTES_MAX};
use crate::ppspp::codec::{
    Addressing, ChannelId, Encoder, Handshake, HashFunction, IntegrityMethod, Message, MessageSet,
    MessageType, Options, WireProfile,
};
use crate::tree::merkle::{ContentId, MerkleFunction};
use crate::unit::ChunkRange;

/// The only version of the protocol (RFC 7574 §7.2).
const VERSION: u8 = 1;

/// A member with other parameters than the swarm's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Which option.
    pub option: &'static str,
    /// Its value in this swarm.
    pub expected: u32,
    /// What the member said; `None`: nothing.
    pub found: Option<u32>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its {} is ", self.option)?;
        match self.found {
            Some(found) => write!(f, "{found}")?,
            None => f.write_str("not named")?,
        }
        write!(f, ", this swarm's is {}", self.expected)
    }
}

/// How messages of the swarm are written.
pub(super) fn profile(function: MerkleFunction) -> WireProfile {
    WireProfile { hash_bytes: function.hash_bytes(), ..WireProfile::STATIC }
}

fn hash_function(function: MerkleFunction) -> HashFunction {
    match function {
        MerkleFunction::Sha1 => HashFunction::Sha1,
        MerkleFunction::Sha256 => HashFunction::Sha256,
    }
}

/// What this engine understands; PEX, signatures and distd's extensions are not for static swarms.
fn messages() -> MessageSet {
    use MessageType::{Ack, Cancel, Choke, Data, Handshake, Have, Integrity, Request, Unchoke};
    MessageSet::of(&[Handshake, Data, Ack, Have, Integrity, Request, Cancel, Choke, Unchoke])
}

/// RFC 7574 7.5, 7.6, 7.8: each MUST be named where the method is 1; `modern`: RFC 7574 7.10, 7.11, too.
fn options(id: &ContentId, modern: bool) -> Options<'static> {
    Options {
        version: Some(VERSION),
        integrity: Some(IntegrityMethod::Merkle),
        hash_function: Some(hash_function(id.function)),
        addressing: Some(Addressing::Chunk32),
        supported: modern.then(messages),
        chunk_bytes: modern.then_some(CHUNK_BYTES as u32),
        ..Options::default()
    }
}

/// Datagram 1: RFC 7574 3.1.1: destination channel 0, a random source channel, the swarm's id and
/// metadata.
pub(super) fn datagram_1(local: ChannelId, id: &ContentId, modern: bool) -> Vec<u8> {
    let options = Options {
        minimum_version: Some(VERSION),
        swarm_id: Some(id.as_bytes()),
        ..options(id, modern)
    };
    begin(ChannelId(0), id, Handshake { source: local, options })
}

/// Datagram 2, not longer than the datagram 1 of `question_bytes` that it answers; `None` if that is too
/// short for it. What is held is told as far as there is room.
pub(super) fn datagram_2(
    (local, remote): (ChannelId, ChannelId),
    id: &ContentId,
    modern: bool,
    held: impl Iterator<Item = ChunkRange>,
    question_bytes: usize,
) -> Option<Vec<u8>> {
    let handshake = Handshake { source: local, options: options(id, modern) };
    let mut datagram = begin(remote, id, handshake);
    let profile = profile(id.function);
    for message in held.map(Message::Have) {
        if datagram.len() + message.encoded_len(&profile) > question_bytes {
            break;
        }
        let written = message.encode(&profile, &mut datagram);
        assert!(written.is_ok(), "what is held lies within the content");
    }
    (datagram.len() <= question_bytes).then_some(datagram)
}

/// Says goodbye (RFC 7574 §8.4).
pub(super) fn closing(remote: ChannelId, id: &ContentId) -> Vec<u8> {
    begin(remote, id, Handshake::closing())
}

/// The messages that a peer understands, if its options are those of the swarm: an end-to-end check, never
/// a negotiation. What it does not name is the RFC's default.
pub(super) fn check(
    theirs: &Options<'_>,
    id: &ContentId,
    initiator: bool,
) -> Result<MessageSet, Mismatch> {
    let equal = |option, expected: u32, found: Option<u32>, default: Option<u32>| {
        if found.or(default) == Some(expected) {
            Ok(())
        } else {
            Err(Mismatch { option, expected, found })
        }
    };
    let same_swarm = match theirs.swarm_id {
        Some(found) => found == id.as_bytes(),
        // RFC 7574 7.4: the initiator MUST name the swarm, the responder MAY.
        None => !initiator,
    };
    if !same_swarm {
        return Err(Mismatch { option: "swarm id", expected: 1, found: None });
    }
    let version = theirs.version.map(u32::from);
    if version.is_none_or(|version| version < VERSION.into()) {
        return Err(Mismatch { option: "version", expected: 1, found: version });
    }
    let minimum = theirs.minimum_version.unwrap_or(VERSION);
    if minimum > VERSION {
        let found = Some(minimum.into());
        return Err(Mismatch { option: "minimum version", expected: 1, found });
    }
    let code = |value: Option<u8>| value.map(u32::from);
    let integrity = code(theirs.integrity.map(IntegrityMethod::code));
    equal("content integrity method", 1, integrity, Some(1))?;
    let ours = u32::from(hash_function(id.function).code());
    let function = code(theirs.hash_function.map(HashFunction::code));
    equal("hash function", ours, function, Some(2))?;
    equal("chunk addressing", 2, code(theirs.addressing.map(Addressing::code)), Some(2))?;
    let chunk_bytes = CHUNK_BYTES as u32;
    equal("chunk size", chunk_bytes, theirs.chunk_bytes, Some(chunk_bytes))?;
    // RFC 7574 7.10: without a bitmap, everything that the RFC defines.
    Ok(theirs.supported.unwrap_or(MessageSet::STANDARD))
}

fn begin(destination: ChannelId, id: &ContentId, handshake: Handshake<'_>) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(128);
    let profile = profile(id.function);
    let mut encoder = Encoder::new(&mut datagram, destination, &profile, DATAGRAM_BYTES_MAX);
    let written = encoder.push(&Message::Handshake(handshake));
    assert!(written.is_ok(), "a handshake fits a datagram");
    datagram
}

//! The codec's promises over its whole surface: every message in every addressing.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

mod faults;
mod golden;
mod mutants;
mod ranges;
mod samples;

use super::*;

/// The swarms whose messages are tried: a log's with each addressing, and two with variable chunks
/// and other lengths.
fn profiles() -> Vec<WireProfile> {
    let mut profiles: Vec<_> = Addressing::ALL
        .into_iter()
        .map(|addressing| WireProfile { addressing, ..WireProfile::LIVE })
        .collect();
    profiles.push(WireProfile {
        chunk_bytes: WireProfile::VARIABLE,
        hash_bytes: 20,
        signature_bytes: 96,
        ..WireProfile::STATIC
    });
    profiles.push(WireProfile { chunk_bytes: 512, hash_bytes: 64, ..WireProfile::LIVE });
    profiles
}

/// A datagram of these messages.
fn datagram(channel: u32, profile: &WireProfile, messages: &[Message<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, ChannelId(channel), profile, usize::MAX);
    for message in messages {
        encoder.push(message).expect("a message of the profile");
    }
    bytes
}

/// Every message that a datagram holds, or why it holds none.
fn read<'a>(bytes: &'a [u8], profile: &WireProfile) -> Result<Vec<Message<'a>>, Fault> {
    decode(bytes, profile).map(Iterator::collect).map_err(|error| error.fault)
}

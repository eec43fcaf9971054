//! What must hold of any input: shared by the fuzz targets and their stable twin,
//! `distd-core/tests/corpus.rs`.

use distd_core::ppspp::codec::{
    Addressing, ChannelId, Encoder, Message, Messages, WireProfile, decode, destination,
};

/// A datagram, behind a byte that picks the profile: what is read can be written, and reads as the
/// same again. Whether it was read.
pub(crate) fn datagram(input: &[u8]) -> bool {
    let Some((pick, bytes)) = input.split_first() else { return false };
    let addressing = Addressing::ALL[usize::from(pick % 5)];
    let chunk_bytes = if pick & 0x80 == 0 { 1024 } else { WireProfile::VARIABLE };
    twice(bytes, &WireProfile { addressing, chunk_bytes, ..WireProfile::LIVE })
}

/// Options of a HANDSHAKE on channel 0, and what follows them. Whether they were read.
pub(crate) fn options(input: &[u8]) -> bool {
    twice(&[&[0, 0, 0, 0, 0, 0, 0, 0, 9], input].concat(), &WireProfile::LIVE)
}

fn twice(bytes: &[u8], profile: &WireProfile) -> bool {
    let Ok(channel) = destination(bytes) else { return false };
    let Ok(messages) = decode(bytes, profile) else { return false };
    let written = write(channel, profile, messages.clone());
    let again = decode(&written, profile).expect("what was written");
    assert!(messages.clone().eq(again), "{bytes:02x?} became {written:02x?}");
    // A walk hands out as many messages as the check saw: none is a byte or longer than the rest.
    assert!(messages.count() < bytes.len());
    true
}

fn write<'a>(channel: ChannelId, profile: &WireProfile, messages: Messages<'a>) -> Vec<u8> {
    let mut written = Vec::new();
    let mut encoder = Encoder::new(&mut written, channel, profile, usize::MAX);
    messages.for_each(|message: Message<'a>| encoder.push(&message).expect("what was read"));
    written
}

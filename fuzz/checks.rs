//! What must hold of any input: shared by the fuzz targets and their stable twin,
//! `distd-core/tests/corpus.rs`.

use distd_core::frame::{EpochList, FrameDecoder, FrameEntry, IndexEntry, MunroFrames, Part};
use distd_core::keys::{NtpTime, OriginKey};
use distd_core::limits::{FRAME_LAYER_MIN, MUNRO_LAYER};
use distd_core::ppspp::codec::{
    Addressing, ChannelId, Encoder, Message, Messages, WireProfile, decode, destination,
};
use distd_core::tree::{NodeHash, VerifiedMunro};
use distd_core::unit::{Bin, BlockIndex, BlockRange, ByteRange, MunroIndex};

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

/// A frame of a 16 KiB run, behind a byte that says of how many blocks its base is: refused, or as
/// many bytes as the run has. Whether it was decoded.
pub(crate) fn frame(input: &[u8]) -> bool {
    let Some((blocks, frame)) = input.split_first() else { return false };
    let blocks = u64::from(blocks % 5);
    let bases = if blocks == 0 { vec![] } else { vec![BlockRange::new(BlockIndex(0), blocks)] };
    let base: Vec<u8> = (0..blocks * 4096).map(|i| (i / 5 * 37) as u8).collect();
    let bin = Bin::new(FRAME_LAYER_MIN, 300);
    let range = ByteRange { offset: 8 << 20, len: frame.len() as u64 };
    let entry = FrameEntry { bin, range, bases };
    match FrameDecoder::new().decode(&entry, frame, &base) {
        Ok(bytes) => {
            assert_eq!(bytes.len() as u64, bin.byte_len());
            true
        }
        Err(error) => {
            assert_eq!((error.bin, error.offset), (bin, 8 << 20));
            false
        }
    }
}

/// The parts of an index, by the first byte: a list of epochs, an entry, a record of either kind. What
/// is read can be written and is the same; a base lies before its frame's run. Whether it was read.
pub(crate) fn index(input: &[u8]) -> bool {
    let Some((pick, bytes)) = input.split_first() else { return false };
    let key = OriginKey::from_seed(&[1; 32]);
    let munro = MunroIndex(3);
    match pick % 4 {
        0 => EpochList::decode(bytes).is_ok_and(|list| {
            assert_eq!(list.encode(), bytes);
            true
        }),
        1 => IndexEntry::decode(munro, NtpTime(5), &key.id(), bytes).is_ok_and(|entry| {
            assert_eq!(entry.encode(), bytes);
            true
        }),
        part => {
            // Hashes of zeros: signed, so that what follows them is reached.
            let layer = u32::from(bytes.first().copied().unwrap_or_default());
            let hash = (layer..MUNRO_LAYER)
                .fold(NodeHash([0; 32]), |hash, _| NodeHash::parent(hash, hash));
            let munro = VerifiedMunro::sign(&key, munro, hash, NtpTime(5));
            let part = if part == 2 { Part::Update } else { Part::Full };
            let Ok(record) = MunroFrames::decode(munro, part, bytes) else { return false };
            assert_eq!(record.encode(), bytes);
            for frame in record.frames() {
                let before = |base: &BlockRange| base.end() <= frame.blocks().start;
                assert!(frame.bases.iter().all(before), "{frame:?}");
            }
            true
        }
    }
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

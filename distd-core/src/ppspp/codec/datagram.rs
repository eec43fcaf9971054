//! Datagrams: a destination channel and messages (RFC 7574 §8.2 to §8.4).

use std::fmt;

use crate::limits::CHUNK_BYTES;

use super::addressing::CHUNKS_MAX;
use super::reader::Reader;
use super::{DecodeError, EncodeError, Fault, Message, MessageType, WireProfile};

/// A channel: one end's name for a link between two peers (RFC 7574 §3.11). 0 is none: it takes
/// the first HANDSHAKE, and closes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u32);

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// The channel that a datagram is for; nothing else of it is looked at.
pub fn destination(datagram: &[u8]) -> Result<ChannelId, DecodeError> {
    Reader::new(datagram).u32().map(ChannelId).map_err(|fault| DecodeError { offset: 0, fault })
}

/// Reads a datagram of a swarm with this profile. If a HANDSHAKE comes first, what follows it is
/// read with the profile that its options name, so that any profile will do for channel 0.
///
/// The whole datagram is checked before any message is handed out. (RFC 7574 3 asks to process
/// messages up to the first invalid one; that a datagram counts whole or not at all is stricter.)
pub fn decode<'a>(datagram: &'a [u8], profile: &WireProfile) -> Result<Messages<'a>, DecodeError> {
    let channel = destination(datagram)?;
    let mut reader = Reader::new(datagram);
    let messages = match reader.u32() {
        Ok(_) => Messages { reader, profile: *profile },
        Err(fault) => return Err(DecodeError { offset: 0, fault }),
    };
    messages.check(channel, datagram.len())?;
    Ok(messages)
}

/// A datagram of one whole chunk and nothing else, as nearly all are in a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoneData<'a> {
    /// For which channel, never 0.
    pub channel: ChannelId,
    /// Which chunk.
    pub chunk: u64,
    /// The sender's clock, in microseconds.
    pub timestamp_us: u64,
    /// The chunk.
    pub payload: &'a [u8],
}

/// Reads a datagram of [`WireProfile::LIVE`] if it is one chunk and nothing else, without the rules
/// that span messages. `None`: not one of those, read it with [`decode`].
///
/// Inlined, field by field: a message that is handed on by way of memory is loaded in other pieces
/// than it was stored in, and such a load waits for every store before it, among them those of the
/// chunk before, which miss the processor's cache. That cost a sixth of a transfer's time.
#[inline]
pub fn lone_data(datagram: &[u8]) -> Option<LoneData<'_>> {
    let (channel, message) = datagram.split_first_chunk::<4>()?;
    let (code, spec) = message.split_first()?;
    let (first, rest) = spec.split_first_chunk::<8>()?;
    let (last, rest) = rest.split_first_chunk::<8>()?;
    let (timestamp, payload) = rest.split_first_chunk::<8>()?;
    let channel = ChannelId(u32::from_be_bytes(*channel));
    let chunk = u64::from_be_bytes(*first);
    let lone = *code == MessageType::Data.code()
        && channel != ChannelId(0)
        && first == last
        && chunk < CHUNKS_MAX
        && usize::try_from(CHUNK_BYTES) == Ok(payload.len());
    let timestamp_us = u64::from_be_bytes(*timestamp);
    lone.then_some(LoneData { channel, chunk, timestamp_us, payload })
}

/// The messages of a checked datagram, in order.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    reader: Reader<'a>,
    profile: WireProfile,
}

impl<'a> Messages<'a> {
    /// Whether the datagram is a keep-alive, or all messages were handed out (RFC 7574 §8.14).
    pub const fn is_empty(&self) -> bool {
        self.reader.is_empty()
    }

    /// The profile that the next message is read with.
    pub const fn profile(&self) -> &WireProfile {
        &self.profile
    }

    fn read(&mut self) -> Result<Message<'a>, Fault> {
        let message = Message::read(&mut self.reader, &self.profile)?;
        if let Message::Handshake(handshake) = &message {
            self.profile = self.profile.naming(&handshake.options);
        }
        Ok(message)
    }

    /// Walks a copy to the end, and holds it against the rules that span messages.
    fn check(&self, channel: ChannelId, datagram_bytes: usize) -> Result<(), DecodeError> {
        let mut walk = self.clone();
        let mut tail = DataTail::default();
        let mut first = true;
        while !walk.is_empty() {
            let offset = datagram_bytes.saturating_sub(walk.reader.len());
            let error = |fault| DecodeError { offset, fault };
            let message = walk.read().map_err(error)?;
            match (&message, first) {
                (Message::Handshake(_), true) => {}
                // RFC 7574 3.1: the HANDSHAKE is the first message of its datagram.
                (Message::Handshake(_), false) => return Err(error(Fault::HandshakeNotFirst)),
                (_, true) if channel == ChannelId(0) => {
                    return Err(error(Fault::HandshakeMissing));
                }
                (Message::Data { payload, .. }, _) => {
                    tail.push(offset, payload.len(), &walk.profile);
                }
                _ => tail.last_is_data = false,
            }
            first = false;
        }
        if first && channel == ChannelId(0) {
            return Err(DecodeError { offset: 0, fault: Fault::HandshakeMissing });
        }
        tail.check()
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        if self.is_empty() {
            return None;
        }
        // `check` has read the same bytes with the same profile.
        self.read().ok()
    }
}

/// The DATA messages of a datagram, for the rules of RFC 7574 §8.6.
#[derive(Default)]
struct DataTail {
    /// Where the last one begins, in bytes.
    offset: usize,
    count: usize,
    last_is_data: bool,
    /// Length of a chunk that is smaller than the swarm's.
    short: Option<usize>,
}

impl DataTail {
    fn push(&mut self, offset: usize, payload_bytes: usize, profile: &WireProfile) {
        self.offset = offset;
        self.count = self.count.saturating_add(1);
        self.last_is_data = true;
        if profile.fixed_chunk_bytes().is_some_and(|fixed| payload_bytes < fixed) {
            self.short = Some(payload_bytes);
        }
    }

    fn check(&self) -> Result<(), DecodeError> {
        let fault = match (self.count, self.short) {
            // RFC 7574 8.6: one DATA message: MUST always be put in the tail of the datagram.
            (1, _) if !self.last_is_data => Fault::DataNotLast,
            // RFC 7574 8.6: several when none carries the last chunk, if that is smaller.
            (2.., Some(found)) => Fault::DataShort { found },
            _ => return Ok(()),
        };
        Err(DecodeError { offset: self.offset, fault })
    }
}

/// Writes a datagram message by message into a buffer, up to a size.
///
/// The caller keeps the order of RFC 7574: HANDSHAKE first (§3.1), INTEGRITY before what it
/// proves (§5.4), a single DATA last (§8.6).
#[derive(Debug)]
pub struct Encoder<'v> {
    out: &'v mut Vec<u8>,
    start: usize,
    bytes_max: usize,
    profile: WireProfile,
}

impl<'v> Encoder<'v> {
    /// Begins a datagram of at most `bytes_max` bytes at the end of `out`. Without a message it is
    /// a keep-alive (RFC 7574 §8.14).
    pub fn new(
        out: &'v mut Vec<u8>,
        destination: ChannelId,
        profile: &WireProfile,
        bytes_max: usize,
    ) -> Self {
        let start = out.len();
        out.extend_from_slice(&destination.0.to_be_bytes());
        Self { out, start, bytes_max, profile: *profile }
    }

    /// Bytes of the datagram so far.
    pub fn len(&self) -> usize {
        self.out.len().saturating_sub(self.start)
    }

    /// Whether it has no message yet.
    pub fn is_empty(&self) -> bool {
        self.len() <= 4
    }

    /// Bytes that are left for messages.
    pub fn left(&self) -> usize {
        self.bytes_max.saturating_sub(self.len())
    }

    /// Appends the message, or says [`EncodeError::Full`] (or why it cannot be written) and leaves
    /// the datagram as it was.
    pub fn push(&mut self, message: &Message<'_>) -> Result<(), EncodeError> {
        let (needed, left) = (message.encoded_len(&self.profile), self.left());
        if needed > left {
            return Err(EncodeError::Full { needed, left });
        }
        message.encode(&self.profile, self.out)?;
        if let Message::Handshake(handshake) = message {
            self.profile = self.profile.naming(&handshake.options);
        }
        Ok(())
    }
}

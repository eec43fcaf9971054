//! Messages: one type octet and a body whose length the swarm's profile implies (RFC 7574 §8).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use crate::keys::NtpTime;
use crate::limits::LOG_MUNROS_MAX;
use crate::unit::{Bin, ChunkRange, MunroIndex};

use super::addressing::{Spec, read_range};
use super::circle::Seats;
use super::option::{Handshake, Options};
use super::reader::Reader;
use super::{ChannelId, EncodeError, Fault, WireProfile};

/// Message types: RFC 7574 §8.2 and, from 14, distd's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the RFC's; Message documents each")]
pub enum MessageType {
    Handshake = 0,
    Data = 1,
    Ack = 2,
    Have = 3,
    Integrity = 4,
    PexResV4 = 5,
    PexReq = 6,
    SignedIntegrity = 7,
    Request = 8,
    Cancel = 9,
    Choke = 10,
    Unchoke = 11,
    PexResV6 = 12,
    PexResCert = 13,
    Want = 14,
    Miss = 15,
    HaveMap = 16,
    Place = 17,
    Circle = 18,
}

impl MessageType {
    /// All types, in the order of their octet.
    pub const ALL: [Self; 19] = [
        Self::Handshake,
        Self::Data,
        Self::Ack,
        Self::Have,
        Self::Integrity,
        Self::PexResV4,
        Self::PexReq,
        Self::SignedIntegrity,
        Self::Request,
        Self::Cancel,
        Self::Choke,
        Self::Unchoke,
        Self::PexResV6,
        Self::PexResCert,
        Self::Want,
        Self::Miss,
        Self::HaveMap,
        Self::Place,
        Self::Circle,
    ];

    /// The octet on the wire.
    #[expect(clippy::as_conversions, reason = "a fieldless enum has no other way")]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The type with this octet.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// Whether RFC 7574 defines it.
    pub const fn is_standard(self) -> bool {
        self.code() <= 13
    }
}

/// A set of message types: the bitmap of option 8 (RFC 7574 §7.10). The first type is the highest
/// bit of the first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MessageSet([u8; 32]);

impl MessageSet {
    /// The RFC's fourteen: what a peer without option 8 understands.
    pub const STANDARD: Self = Self::starting([0xff, 0xfc, 0]);
    /// The RFC's fourteen and the extensions.
    pub const EXTENDED: Self = Self::starting([0xff, 0xff, 0xe0]);

    const fn starting(bytes: [u8; 3]) -> Self {
        let mut bitmap = [0; 32];
        bitmap[0] = bytes[0];
        bitmap[1] = bytes[1];
        bitmap[2] = bytes[2];
        Self(bitmap)
    }

    /// The set of these types.
    pub fn of(types: &[MessageType]) -> Self {
        let mut set = Self::default();
        for kind in types {
            if let Some(byte) = set.0.get_mut(usize::from(kind.code() >> 3)) {
                *byte |= Self::bit(*kind);
            }
        }
        set
    }

    /// Whether the type is in the set.
    pub fn contains(&self, kind: MessageType) -> bool {
        self.0.get(usize::from(kind.code() >> 3)).is_some_and(|byte| byte & Self::bit(kind) != 0)
    }

    const fn bit(kind: MessageType) -> u8 {
        0x80 >> (kind.code() & 7)
    }

    /// The set with this bitmap; `None` for one of more than 256 bits.
    pub(super) fn from_bitmap(bitmap: &[u8]) -> Option<Self> {
        let mut bytes = [0; 32];
        bytes.get_mut(..bitmap.len())?.copy_from_slice(bitmap);
        Some(Self(bytes))
    }

    /// The bitmap. RFC 7574 7.10: truncated to the last non-zero byte.
    pub(super) fn as_bitmap(&self) -> &[u8] {
        let zeros = self.0.iter().rev().take_while(|byte| **byte == 0).count();
        self.0.split_at_checked(self.0.len().saturating_sub(zeros)).map_or(&[], |(head, _)| head)
    }
}

/// Who waits for the chunks of a WANT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WireClass {
    /// Nobody: prefetch.
    Background,
    /// A reader.
    Waited,
}

impl WireClass {
    const fn code(self) -> u8 {
        match self {
            Self::Background => 0,
            Self::Waited => 1,
        }
    }
}

/// A message of RFC 7574 or of distd's extensions. Ranges hold at least one chunk and end within
/// the longest log; borrowed fields have the lengths of the swarm's profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Opens or closes a channel (§8.4).
    Handshake(Handshake<'a>),
    /// One chunk (§8.6).
    Data {
        /// The chunk.
        chunks: ChunkRange,
        /// The sender's clock, in microseconds since whenever; only differences mean something.
        timestamp_us: u64,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// The chunks arrived and are right (§8.7).
    Ack {
        /// The biggest complete range round the chunk that is acknowledged.
        chunks: ChunkRange,
        /// The receiver's clock less the DATA's timestamp, modulo 2^64, in microseconds.
        delay_us: u64,
    },
    /// The sender holds the chunks (§8.5).
    Have(ChunkRange),
    /// The hash of a node (§8.8).
    Integrity {
        /// The node's chunks: an aligned power of two.
        chunks: ChunkRange,
        /// Its hash.
        hash: &'a [u8],
    },
    /// The injector's signature of a munro (§8.9).
    SignedIntegrity {
        /// The munro's chunks: an aligned power of two.
        chunks: ChunkRange,
        /// When it signed.
        time: NtpTime,
        /// The signature.
        signature: &'a [u8],
    },
    /// The sender wants the chunks (§8.10).
    Request(ChunkRange),
    /// The sender no longer wants the chunks (§8.11).
    Cancel(ChunkRange),
    /// Requests are not answered from now on (§8.12).
    Choke,
    /// New requests are answered again (§8.12).
    Unchoke,
    /// Asks for other peers (§8.13).
    PexReq,
    /// A peer's address (§8.13).
    PexResV4(SocketAddrV4),
    /// A peer's address (§8.13).
    PexResV6(SocketAddrV6),
    /// A peer's membership certificate, X.509v3 in DER (§8.13).
    PexResCert(&'a [u8]),
    /// Extension: a REQUEST that says who waits, and that a relay may fetch upwards for.
    Want {
        /// The chunks.
        chunks: ChunkRange,
        /// Who waits.
        class: WireClass,
        /// When it is too late, in milliseconds from now.
        deadline_ms: u32,
        /// How many more relays may pass it on.
        hops: u8,
    },
    /// Extension: the sender does not hold the chunks (any more).
    Miss(ChunkRange),
    /// Extension: which granules of a munro the sender holds; bit 0 is the first granule.
    HaveMap {
        /// The munro.
        munro: MunroIndex,
        /// Its 64 granules.
        granules: u64,
    },
    /// Extension: who the sender is, whatever its address, and how far from the injector.
    Place {
        /// Drawn by lot when the sender's process began.
        id: u64,
        /// 0: the injector; 255: a node that is asked by its equals only; between: relays.
        level: u8,
    },
    /// Extension: who of the sender's level takes turns in fetching from above.
    Circle(Seats<'a>),
}

impl<'a> Message<'a> {
    /// Its type.
    pub const fn kind(&self) -> MessageType {
        match self {
            Self::Handshake(_) => MessageType::Handshake,
            Self::Data { .. } => MessageType::Data,
            Self::Ack { .. } => MessageType::Ack,
            Self::Have(_) => MessageType::Have,
            Self::Integrity { .. } => MessageType::Integrity,
            Self::SignedIntegrity { .. } => MessageType::SignedIntegrity,
            Self::Request(_) => MessageType::Request,
            Self::Cancel(_) => MessageType::Cancel,
            Self::Choke => MessageType::Choke,
            Self::Unchoke => MessageType::Unchoke,
            Self::PexReq => MessageType::PexReq,
            Self::PexResV4(_) => MessageType::PexResV4,
            Self::PexResV6(_) => MessageType::PexResV6,
            Self::PexResCert(_) => MessageType::PexResCert,
            Self::Want { .. } => MessageType::Want,
            Self::Miss(_) => MessageType::Miss,
            Self::HaveMap { .. } => MessageType::HaveMap,
            Self::Place { .. } => MessageType::Place,
            Self::Circle(_) => MessageType::Circle,
        }
    }

    /// Reads one message.
    pub(super) fn read(reader: &mut Reader<'a>, profile: &WireProfile) -> Result<Self, Fault> {
        let code = reader.u8()?;
        let Some(kind) = MessageType::from_code(code) else {
            return Err(Fault::UnknownMessage(code));
        };
        Ok(match kind {
            MessageType::Data => return read_data(reader, profile),
            MessageType::Ack => {
                let chunks = read_range(reader, profile)?;
                Self::Ack { chunks, delay_us: reader.u64()? }
            }
            MessageType::Have => Self::Have(read_range(reader, profile)?),
            MessageType::Integrity => {
                let chunks = read_node(reader, profile)?;
                Self::Integrity { chunks, hash: reader.take(profile.hash_bytes)? }
            }
            MessageType::SignedIntegrity => {
                let chunks = read_node(reader, profile)?;
                let time = NtpTime(reader.u64()?);
                let signature = reader.take(profile.signature_bytes)?;
                Self::SignedIntegrity { chunks, time, signature }
            }
            MessageType::Request => Self::Request(read_range(reader, profile)?),
            MessageType::Cancel => Self::Cancel(read_range(reader, profile)?),
            MessageType::Miss => Self::Miss(read_range(reader, profile)?),
            MessageType::Want => read_want(reader, profile)?,
            MessageType::HaveMap => read_have_map(reader)?,
            MessageType::Place => Self::Place { id: reader.u64()?, level: reader.u8()? },
            MessageType::Circle => Self::Circle(Seats::read(reader)?),
            MessageType::Handshake => return read_handshake(reader),
            MessageType::Choke => Self::Choke,
            MessageType::Unchoke => Self::Unchoke,
            MessageType::PexReq => Self::PexReq,
            MessageType::PexResV4 => {
                let address = Ipv4Addr::from(reader.array()?);
                Self::PexResV4(SocketAddrV4::new(address, reader.u16()?))
            }
            MessageType::PexResV6 => {
                let address = Ipv6Addr::from(reader.array()?);
                Self::PexResV6(SocketAddrV6::new(address, reader.u16()?, 0, 0))
            }
            MessageType::PexResCert => {
                let len = usize::from(reader.u16()?);
                Self::PexResCert(reader.take(len)?)
            }
        })
    }

    /// Bytes that [`Self::encode`] appends.
    pub fn encoded_len(&self, profile: &WireProfile) -> usize {
        let spec = profile.addressing.spec_bytes();
        let body = match self {
            Self::Handshake(handshake) => handshake.options.encoded_len().saturating_add(4),
            Self::Data { payload, .. } => spec.saturating_add(8).saturating_add(payload.len()),
            Self::Ack { .. } => spec.saturating_add(8),
            Self::Have(_) | Self::Request(_) | Self::Cancel(_) | Self::Miss(_) => spec,
            Self::Integrity { hash, .. } => spec.saturating_add(hash.len()),
            Self::SignedIntegrity { signature, .. } => {
                spec.saturating_add(8).saturating_add(signature.len())
            }
            Self::Choke | Self::Unchoke | Self::PexReq => 0,
            Self::PexResV4(_) => 6,
            Self::PexResV6(_) => 18,
            Self::PexResCert(certificate) => certificate.len().saturating_add(2),
            Self::Want { .. } => spec.saturating_add(6),
            Self::HaveMap { .. } => 16,
            Self::Place { .. } => 9,
            Self::Circle(seats) => seats.encoded_len(),
        };
        body.saturating_add(1)
    }

    /// Appends the message to `out`; on an error `out` is as before. Whatever is written,
    /// [`super::decode`] reads back as the same message, for the same profile.
    pub fn encode(&self, profile: &WireProfile, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let start = out.len();
        let result = self.write(profile, out);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    fn write(&self, profile: &WireProfile, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.push(self.kind().code());
        match self {
            Self::Handshake(handshake) => {
                handshake.check()?;
                out.extend_from_slice(&handshake.source.0.to_be_bytes());
                handshake.options.write(out)?;
            }
            Self::Data { chunks, timestamp_us, payload } => {
                check_chunk(*chunks, payload, profile)?;
                out.extend_from_slice(Spec::new(*chunks, profile)?.as_bytes());
                out.extend_from_slice(&timestamp_us.to_be_bytes());
                out.extend_from_slice(payload);
            }
            Self::Ack { chunks, delay_us } => {
                out.extend_from_slice(Spec::new(*chunks, profile)?.as_bytes());
                out.extend_from_slice(&delay_us.to_be_bytes());
            }
            Self::Have(chunks)
            | Self::Request(chunks)
            | Self::Cancel(chunks)
            | Self::Miss(chunks) => {
                out.extend_from_slice(Spec::new(*chunks, profile)?.as_bytes());
            }
            Self::Integrity { chunks, hash } => {
                check_length("hash", profile.hash_bytes, hash)?;
                out.extend_from_slice(Spec::new(*chunks, profile)?.as_bytes());
                check_node(*chunks)?;
                out.extend_from_slice(hash);
            }
            Self::SignedIntegrity { chunks, time, signature } => {
                check_length("signature", profile.signature_bytes, signature)?;
                out.extend_from_slice(Spec::new(*chunks, profile)?.as_bytes());
                check_node(*chunks)?;
                out.extend_from_slice(&time.0.to_be_bytes());
                out.extend_from_slice(signature);
            }
            Self::Choke | Self::Unchoke | Self::PexReq => {}
            Self::PexResV4(address) => {
                out.extend_from_slice(&address.ip().octets());
                out.extend_from_slice(&address.port().to_be_bytes());
            }
            Self::PexResV6(address) => {
                out.extend_from_slice(&address.ip().octets());
                out.extend_from_slice(&address.port().to_be_bytes());
            }
            Self::PexResCert(certificate) => {
                let len = u16::try_from(certificate.len()).map_err(|_| EncodeError::Length {
                    field: "certificate",
                    expected: usize::from(u16::MAX),
                    found: certificate.len(),
                })?;
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(certificate);
            }
            Self::Want { chunks, class, deadline_ms, hops } => {
                out.extend_from_slice(Spec::new(*chunks, profile)?.as_bytes());
                out.push(class.code());
                out.extend_from_slice(&deadline_ms.to_be_bytes());
                out.push(*hops);
            }
            Self::HaveMap { munro, granules } => {
                check_munro(munro.0)?;
                out.extend_from_slice(&munro.0.to_be_bytes());
                out.extend_from_slice(&granules.to_be_bytes());
            }
            Self::Place { id, level } => {
                out.extend_from_slice(&id.to_be_bytes());
                out.push(*level);
            }
            Self::Circle(seats) => seats.write(out)?,
        }
        Ok(())
    }
}

/// Apart from the rest and unlikely: the options would make every other message slower to read.
#[cold]
#[inline(never)]
fn read_handshake<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, Fault> {
    let source = ChannelId(reader.u32()?);
    let handshake = Handshake { source, options: Options::read(reader)? };
    handshake.check()?;
    Ok(Message::Handshake(handshake))
}

/// RFC 7574 8.6: the chunk specification, a timestamp, and the actual chunk: the rest of the
/// datagram if chunk sizes vary or the chunk is a short last one.
fn read_data<'a>(reader: &mut Reader<'a>, profile: &WireProfile) -> Result<Message<'a>, Fault> {
    let chunks = read_range(reader, profile)?;
    let timestamp_us = reader.u64()?;
    let len = profile.fixed_chunk_bytes().map_or(reader.len(), |fixed| fixed.min(reader.len()));
    let payload = reader.take(len)?;
    // RFC 7574 3.3: MUST contain the chunk ID of one chunk.
    match (chunks.count(), payload) {
        (1, [_, ..]) => Ok(Message::Data { chunks, timestamp_us, payload }),
        (1, []) => Err(Fault::DataEmpty),
        (count, _) => Err(Fault::DataOfSeveralChunks { count }),
    }
}

/// Reads the range of a hash. RFC 7574 5.4: a node is named by the range of its leaves.
fn read_node(reader: &mut Reader<'_>, profile: &WireProfile) -> Result<ChunkRange, Fault> {
    let chunks = read_range(reader, profile)?;
    check_node(chunks)?;
    Ok(chunks)
}

fn read_want<'a>(reader: &mut Reader<'a>, profile: &WireProfile) -> Result<Message<'a>, Fault> {
    let chunks = read_range(reader, profile)?;
    let class = match reader.u8()? {
        0 => WireClass::Background,
        1 => WireClass::Waited,
        unknown => return Err(Fault::UnknownClass(unknown)),
    };
    Ok(Message::Want { chunks, class, deadline_ms: reader.u32()?, hops: reader.u8()? })
}

fn read_have_map<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, Fault> {
    let munro = reader.u64()?;
    check_munro(munro)?;
    Ok(Message::HaveMap { munro: MunroIndex(munro), granules: reader.u64()? })
}

fn check_munro(munro: u64) -> Result<(), Fault> {
    if munro < LOG_MUNROS_MAX { Ok(()) } else { Err(Fault::BeyondLog(munro)) }
}

/// A range that came from the wire or passed [`Spec::new`] is not empty.
fn check_node(chunks: ChunkRange) -> Result<(), Fault> {
    match Bin::from_chunks(chunks) {
        Some(_) => Ok(()),
        None => Err(Fault::NotANode { first: chunks.start.0, count: chunks.count() }),
    }
}

fn check_chunk(
    chunks: ChunkRange,
    payload: &[u8],
    profile: &WireProfile,
) -> Result<(), EncodeError> {
    let count = chunks.end.0.saturating_sub(chunks.start.0);
    if count != 1 {
        return Err(Fault::DataOfSeveralChunks { count }.into());
    }
    if payload.is_empty() {
        return Err(Fault::DataEmpty.into());
    }
    match profile.fixed_chunk_bytes() {
        Some(fixed) if payload.len() > fixed => check_length("chunk", fixed, payload),
        _ => Ok(()),
    }
}

fn check_length(field: &'static str, expected: usize, bytes: &[u8]) -> Result<(), EncodeError> {
    if bytes.len() == expected {
        Ok(())
    } else {
        Err(EncodeError::Length { field, expected, found: bytes.len() })
    }
}

//! HANDSHAKE and its protocol options (RFC 7574 §7, §8.4).
//!
//! An option has a code and a value, and no length unless it says so: a code that is not known
//! cannot be skipped, so the whole datagram is refused.

use super::reader::Reader;
use super::{Addressing, ChannelId, EncodeError, Fault, MessageSet};

/// Opens or closes a channel (RFC 7574 §3.1, §8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake<'a> {
    /// The sender's own channel: what it wants datagrams to be addressed to. 0 closes.
    pub source: ChannelId,
    /// The swarm's metadata and the sender's capabilities.
    pub options: Options<'a>,
}

/// Protocol options, each at most once (RFC 7574 §7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options<'a> {
    /// 0: highest version of the protocol that the sender speaks.
    pub version: Option<u8>,
    /// 1: lowest version that it speaks.
    pub minimum_version: Option<u8>,
    /// 2: the swarm.
    pub swarm_id: Option<&'a [u8]>,
    /// 3: how content is protected.
    pub integrity: Option<IntegrityMethod>,
    /// 4: the tree's hash.
    pub hash_function: Option<HashFunction>,
    /// 5: who signs live content, and how.
    pub signature_algorithm: Option<SignatureAlgorithm>,
    /// 6: notation of chunk ranges.
    pub addressing: Option<Addressing>,
    /// 7: how much of a live swarm the sender keeps.
    pub discard_window: Option<DiscardWindow>,
    /// 8: the messages that the sender understands; without it, all of the RFC's.
    pub supported: Option<MessageSet>,
    /// 9: bytes of a chunk; `u32::MAX` if they differ.
    pub chunk_bytes: Option<u32>,
}

/// Content integrity protection method (RFC 7574 §7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IntegrityMethod {
    /// None at all.
    Unprotected,
    /// A Merkle tree whose root is the swarm id: static content.
    Merkle,
    /// Every chunk is signed.
    SignAll,
    /// Signed subtrees: live content.
    UnifiedMerkle,
}

impl IntegrityMethod {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::Unprotected, Self::Merkle, Self::SignAll, Self::UnifiedMerkle];

    /// Value of option 3.
    pub const fn code(self) -> u8 {
        match self {
            Self::Unprotected => 0,
            Self::Merkle => 1,
            Self::SignAll => 2,
            Self::UnifiedMerkle => 3,
        }
    }
}

/// Hash function of the tree (RFC 7574 §7.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashFunction {
    /// 20 bytes; weak, mandatory to implement, used only where a publisher chose it.
    Sha1,
    /// 28 bytes.
    Sha224,
    /// 32 bytes: the RFC's default.
    Sha256,
    /// 48 bytes.
    Sha384,
    /// 64 bytes.
    Sha512,
    /// BLAKE3's own tree, 32 bytes: a private value, 0xB3 (the registry has no private range).
    Blake3,
}

impl HashFunction {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Sha1, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512, Self::Blake3];

    /// Value of option 4.
    pub const fn code(self) -> u8 {
        match self {
            Self::Sha1 => 0,
            Self::Sha224 => 1,
            Self::Sha256 => 2,
            Self::Sha384 => 3,
            Self::Sha512 => 4,
            Self::Blake3 => 0xb3,
        }
    }

    /// Bytes of a hash.
    pub const fn hash_bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// A number of the DNSSEC algorithm registry (RFC 7574 §7.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SignatureAlgorithm(pub u8);

impl SignatureAlgorithm {
    /// Ed25519 (RFC 8080): what distd's logs use.
    pub const ED25519: Self = Self(15);

    /// Bytes of a signature by the key that `swarm_id` holds; `None` if that is not known here.
    pub fn signature_bytes(self, swarm_id: Option<&[u8]>) -> Option<usize> {
        match self.0 {
            // RFC 7574 8.9: RSA signatures are as long as the modulus.
            5 | 7 | 8 | 10 => modulus_bytes(swarm_id?),
            13 | 15 => Some(64),
            14 => Some(96),
            16 => Some(114),
            _ => None,
        }
    }
}

/// Length of the modulus of an RSA key in a swarm id: algorithm, then exponent length (one octet,
/// or zero and two octets), exponent, modulus (RFC 3110 §2).
fn modulus_bytes(swarm_id: &[u8]) -> Option<usize> {
    let mut key = Reader::new(swarm_id);
    key.u8().ok()?;
    let exponent_bytes = match key.u8().ok()? {
        0 => usize::from(key.u16().ok()?),
        short => usize::from(short),
    };
    key.take(exponent_bytes).ok()?;
    (!key.is_empty()).then(|| key.len())
}

/// How much of a live swarm a peer keeps (RFC 7574 §7.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiscardWindow {
    /// It does not discard: all ones on the wire.
    Unlimited,
    /// So many of the newest chunks (bytes, with byte ranges); below 2^32 - 1 in 32-bit notations.
    Newest(u64),
}

/// The last option of every list.
const END: u8 = 255;

impl<'a> Options<'a> {
    /// Reads options up to and with the end option.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Fault> {
        let mut options = Self::default();
        let mut previous = None;
        loop {
            let code = reader.u8()?;
            // RFC 7574 7.1: MUST conclude the list of protocol options with the end option.
            if code == END {
                return Ok(options);
            }
            // RFC 7574 7: MUST be sorted on code value (ascending); once each, as 7.4 demands.
            if let Some(previous) = previous.filter(|previous| *previous >= code) {
                return Err(Fault::OptionOrder { previous, found: code });
            }
            options.read_one(code, reader)?;
            previous = Some(code);
        }
    }

    fn read_one(&mut self, code: u8, reader: &mut Reader<'a>) -> Result<(), Fault> {
        match code {
            // RFC 7574 7.2: version 0 is reserved.
            0 => self.version = Some(byte(reader, code, |value| (value > 0).then_some(value))?),
            1 => {
                self.minimum_version =
                    Some(byte(reader, code, |value| (value > 0).then_some(value))?);
            }
            2 => {
                let len = usize::from(reader.u16()?);
                self.swarm_id = Some(reader.take(len)?);
            }
            3 => {
                let known = |value| IntegrityMethod::ALL.into_iter().find(|m| m.code() == value);
                self.integrity = Some(byte(reader, code, known)?);
            }
            4 => {
                let known = |value| HashFunction::ALL.into_iter().find(|h| h.code() == value);
                self.hash_function = Some(byte(reader, code, known)?);
            }
            5 => self.signature_algorithm = Some(SignatureAlgorithm(reader.u8()?)),
            6 => self.addressing = Some(byte(reader, code, Addressing::from_code)?),
            7 => self.discard_window = Some(read_window(reader, self.addressing)?),
            8 => {
                let len = reader.u8()?;
                let bitmap = reader.take(usize::from(len))?;
                let value = u64::from(len);
                self.supported = Some(
                    MessageSet::from_bitmap(bitmap)
                        .ok_or(Fault::OptionValue { option: code, value })?,
                );
            }
            9 => match reader.u32()? {
                0 => return Err(Fault::OptionValue { option: code, value: 0 }),
                bytes => self.chunk_bytes = Some(bytes),
            },
            _ => return Err(Fault::UnknownOption(code)),
        }
        Ok(())
    }

    /// Bytes of the list with its end option.
    pub(super) fn encoded_len(&self) -> usize {
        let bytes = [
            self.version.map(|_| 2),
            self.minimum_version.map(|_| 2),
            self.swarm_id.map(|id| id.len().saturating_add(3)),
            self.integrity.map(|_| 2),
            self.hash_function.map(|_| 2),
            self.signature_algorithm.map(|_| 2),
            self.addressing.map(|_| 2),
            self.discard_window
                .and(self.addressing)
                .map(|addressing| addressing.value_bytes().saturating_add(1)),
            self.supported.map(|supported| supported.as_bitmap().len().saturating_add(2)),
            self.chunk_bytes.map(|_| 5),
        ];
        bytes.into_iter().flatten().fold(1, usize::saturating_add)
    }

    /// Appends the list, sorted, with its end option.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let bytes = [
            (0, self.version),
            (1, self.minimum_version),
            (3, self.integrity.map(IntegrityMethod::code)),
            (4, self.hash_function.map(HashFunction::code)),
            (5, self.signature_algorithm.map(|algorithm| algorithm.0)),
            (6, self.addressing.map(Addressing::code)),
        ];
        for (code, value) in bytes {
            if code == 3
                && let Some(id) = self.swarm_id
            {
                let len = u16::try_from(id.len()).map_err(|_| EncodeError::Length {
                    field: "swarm id",
                    expected: usize::from(u16::MAX),
                    found: id.len(),
                })?;
                out.push(2);
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(id);
            }
            if let Some(value) = value {
                out.extend_from_slice(&[code, value]);
            }
        }
        if let Some(window) = self.discard_window {
            let addressing = self.addressing.ok_or(Fault::WindowWithoutAddressing)?;
            out.push(7);
            write_window(window, addressing, out)?;
        }
        if let Some(supported) = &self.supported {
            let bitmap = supported.as_bitmap();
            out.push(8);
            out.push(u8::try_from(bitmap.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(bitmap);
        }
        if let Some(bytes) = self.chunk_bytes {
            out.push(9);
            out.extend_from_slice(&bytes.to_be_bytes());
        }
        out.push(END);
        Ok(())
    }
}

impl Handshake<'_> {
    /// Says goodbye: RFC 7574 8.4: an all zeros channel id, and no options or the version only.
    pub const fn closing() -> Self {
        let options = Options {
            version: Some(1),
            minimum_version: None,
            swarm_id: None,
            integrity: None,
            hash_function: None,
            signature_algorithm: None,
            addressing: None,
            discard_window: None,
            supported: None,
            chunk_bytes: None,
        };
        Handshake { source: ChannelId(0), options }
    }

    /// Whether it closes the channel.
    pub const fn is_closing(&self) -> bool {
        self.source.0 == 0
    }

    /// What the RFC demands of the options together.
    pub(super) fn check(&self) -> Result<(), Fault> {
        let options = &self.options;
        if self.is_closing() {
            // RFC 7574 8.4: the list MUST either be empty or contain the maximum version number.
            let version_only = Options { version: options.version, ..Options::default() };
            return if *options == version_only { Ok(()) } else { Err(Fault::ClosingOptions) };
        }
        // RFC 7574 7.2: MUST include the maximum version as the first protocol option.
        options.version.map(|_| ()).ok_or(Fault::VersionMissing)
    }
}

/// Reads a one-byte value that `known` must map.
fn byte<T>(
    reader: &mut Reader<'_>,
    option: u8,
    known: impl Fn(u8) -> Option<T>,
) -> Result<T, Fault> {
    let value = reader.u8()?;
    known(value).ok_or(Fault::OptionValue { option, value: value.into() })
}

fn read_window(
    reader: &mut Reader<'_>,
    addressing: Option<Addressing>,
) -> Result<DiscardWindow, Fault> {
    // RFC 7574 7.9: the Chunk Addressing Method MUST appear before it in the list.
    let addressing = addressing.ok_or(Fault::WindowWithoutAddressing)?;
    // RFC 7574 7.9: the special value of all ones: does not, under normal circumstances, discard.
    let value = if addressing.value_bytes() == 4 {
        reader.u32().map(|value| (value != u32::MAX).then_some(u64::from(value)))?
    } else {
        reader.u64().map(|value| (value != u64::MAX).then_some(value))?
    };
    Ok(value.map_or(DiscardWindow::Unlimited, DiscardWindow::Newest))
}

fn write_window(
    window: DiscardWindow,
    addressing: Addressing,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    // All ones stand for `Unlimited`, so that no window of chunks has that value.
    let fitting = |max: u64| match window {
        DiscardWindow::Unlimited => Ok(max),
        DiscardWindow::Newest(value) if value < max => Ok(value),
        DiscardWindow::Newest(value) => Err(Fault::OptionValue { option: 7, value }),
    };
    if addressing.value_bytes() == 8 {
        out.extend_from_slice(&fitting(u64::MAX)?.to_be_bytes());
    } else {
        let value = fitting(u32::MAX.into())?;
        out.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes());
    }
    Ok(())
}

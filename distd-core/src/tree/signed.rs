//! A munro and its signature (RFC 7574 §6.1.2.2): `SignedMunro` is a claim, `VerifiedMunro` holds.

use crate::keys::{NtpTime, OriginId, OriginKey};
use crate::limits::LOG_MUNROS_MAX;
use crate::unit::MunroIndex;

use super::NodeHash;

/// A munro's hash with its injector's signature, as claimed by a peer or a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedMunro {
    /// Which munro of the log.
    pub munro: MunroIndex,
    /// Its node's hash.
    pub hash: NodeHash,
    /// When the injector signed.
    pub time: NtpTime,
    /// Ed25519 over the wire's chunk range, the time and the hash.
    pub signature: [u8; 64],
}

/// A munro whose signature was checked against the log's origin. Made only by
/// [`SignedMunro::verify`] and [`VerifiedMunro::sign`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedMunro(SignedMunro);

/// A munro's signature does not verify.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("munro {munro}: the signature is not the origin's ({origin})")]
pub struct SignatureError {
    /// Which munro.
    pub munro: MunroIndex,
    /// Whose signature was expected.
    pub origin: OriginId,
}

impl SignedMunro {
    /// The bytes that are signed: the wire's chunk range (64-bit, inclusive), the NTP time, the hash.
    fn plaintext(munro: MunroIndex, time: NtpTime, hash: NodeHash) -> [u8; 56] {
        // RFC 7574 §6.1.2.2: the chunk specification, the timestamp and the hash, in this order.
        let chunks = munro.bin().chunks();
        let mut plaintext = [0; 56];
        plaintext[..8].copy_from_slice(&chunks.start.0.to_be_bytes());
        plaintext[8..16].copy_from_slice(&(chunks.end.0 - 1).to_be_bytes());
        plaintext[16..24].copy_from_slice(&time.0.to_be_bytes());
        plaintext[24..].copy_from_slice(&hash.0);
        plaintext
    }

    /// Checks the signature, and that the munro lies within the longest log.
    pub fn verify(self, origin: &OriginId) -> Result<VerifiedMunro, SignatureError> {
        if self.munro.0 >= LOG_MUNROS_MAX {
            return Err(SignatureError { munro: self.munro, origin: *origin });
        }
        let plaintext = Self::plaintext(self.munro, self.time, self.hash);
        if origin.verify(&plaintext, &self.signature) {
            Ok(VerifiedMunro(self))
        } else {
            Err(SignatureError { munro: self.munro, origin: *origin })
        }
    }
}

impl VerifiedMunro {
    /// Signs a munro as its injector.
    pub fn sign(key: &OriginKey, munro: MunroIndex, hash: NodeHash, time: NtpTime) -> Self {
        let signature = key.sign(&SignedMunro::plaintext(munro, time, hash));
        Self(SignedMunro { munro, hash, time, signature })
    }
    /// Which munro.
    pub fn munro(&self) -> MunroIndex {
        self.0.munro
    }
    /// Its node's hash.
    pub fn hash(&self) -> NodeHash {
        self.0.hash
    }
    /// When it was signed.
    pub fn time(&self) -> NtpTime {
        self.0.time
    }
    /// The claim, for the wire and the disk.
    pub fn signed(&self) -> SignedMunro {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows C48 (RFC 7574 6.1.2.2).
    #[test]
    fn a_signature_holds_for_one_position_time_hash_and_origin() {
        let key = OriginKey::from_seed(&[1; 32]);
        let hash = NodeHash([3; 32]);
        let time = NtpTime::from_unix(1_800_000_000, 0);
        let signed = VerifiedMunro::sign(&key, MunroIndex(5), hash, time).signed();
        assert!(signed.verify(&key.id()).is_ok());
        let forgeries = [
            SignedMunro { munro: MunroIndex(6), ..signed },
            SignedMunro { munro: MunroIndex(u64::MAX), ..signed },
            SignedMunro { hash: NodeHash([4; 32]), ..signed },
            SignedMunro { time: NtpTime(time.0 + 1), ..signed },
        ];
        for forged in forgeries {
            assert!(forged.verify(&key.id()).is_err(), "{forged:?}");
        }
        assert!(signed.verify(&OriginKey::from_seed(&[2; 32]).id()).is_err());
    }
}

//! Packs messages into as few datagrams as possible.

use crate::limits::DATAGRAM_BYTES_MAX;
use crate::ppspp::codec::{ChannelId, Encoder, Message, WireProfile};
use crate::tree::VerifiedMunro;

/// Datagrams for one channel.
pub(super) struct Writer {
    remote: ChannelId,
    profile: WireProfile,
    datagrams: Vec<Vec<u8>>,
}

impl Writer {
    /// Datagrams of a log's swarm.
    pub(super) fn new(remote: ChannelId) -> Self {
        Self::with_profile(remote, WireProfile::LIVE)
    }

    pub(super) fn with_profile(remote: ChannelId, profile: WireProfile) -> Self {
        Self { remote, profile, datagrams: Vec::new() }
    }

    /// Appends a message.
    pub(super) fn push(&mut self, message: &Message<'_>) {
        self.make_room(message.encoded_len(&self.profile));
        self.write(message);
    }

    /// Appends a munro's hash and its signature; RFC 7574 6.1.2.3: the two MUST be in one datagram.
    pub(super) fn munro(&mut self, munro: &VerifiedMunro) {
        let signed = munro.signed();
        let chunks = signed.munro.bin().chunks();
        let hash = Message::Integrity { chunks, hash: &signed.hash.0 };
        let time = signed.time;
        let signature = Message::SignedIntegrity { chunks, time, signature: &signed.signature };
        let profile = &self.profile;
        self.make_room(hash.encoded_len(profile) + signature.encoded_len(profile));
        self.write(&hash);
        self.write(&signature);
    }

    /// A datagram without messages (RFC 7574 §8.14), if there is none yet.
    pub(super) fn keep_alive(&mut self) {
        if self.datagrams.is_empty() {
            self.begin();
        }
    }

    /// The datagrams.
    pub(super) fn finish(self) -> Vec<Vec<u8>> {
        self.datagrams
    }

    fn make_room(&mut self, bytes: usize) {
        let fits = |last: &Vec<u8>| last.len() + bytes <= DATAGRAM_BYTES_MAX;
        if !self.datagrams.last().is_some_and(fits) {
            self.begin();
        }
    }

    fn begin(&mut self) {
        let mut datagram = Vec::with_capacity(DATAGRAM_BYTES_MAX);
        Encoder::new(&mut datagram, self.remote, &self.profile, DATAGRAM_BYTES_MAX);
        self.datagrams.push(datagram);
    }

    fn write(&mut self, message: &Message<'_>) {
        if let Some(last) = self.datagrams.last_mut() {
            let written = message.encode(&self.profile, last);
            assert!(written.is_ok() && last.len() <= DATAGRAM_BYTES_MAX, "a message fits");
        }
    }
}

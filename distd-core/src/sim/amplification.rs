//! Watches what nodes send to addresses that have not proved themselves (RFC 7574 §12.1; the bound is
//! that of RFC 9000 §8.1, with a factor of one): never more bytes than came from there.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::ppspp::codec::{ChannelId, Message, WireProfile, decode};
use crate::ppspp::engine::limits::PEX_TRIES;

/// What passed between a node and an address.
#[derive(Debug, Default)]
struct Account {
    /// The node chose the address itself, or the address echoed a channel id that the node sent it.
    is_proved: bool,
    received: u64,
    sent: u64,
    /// Channel ids that the node sent there.
    ids: Vec<ChannelId>,
    /// Datagrams 1 that the node may send there though its user named no such address: a peer told of it.
    greetings: u32,
}

/// All accounts.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    accounts: BTreeMap<(usize, SocketAddr), Account>,
}

impl Ledger {
    /// The node dials the address.
    pub(super) fn on_dial(&mut self, node: usize, address: SocketAddr) {
        self.accounts.entry((node, address)).or_default().is_proved = true;
    }

    /// The node dials an address that a peer told of.
    pub(super) fn on_told(&mut self, node: usize, address: SocketAddr) {
        self.accounts.entry((node, address)).or_default().greetings += PEX_TRIES;
    }

    /// A datagram reaches the node.
    pub(super) fn on_received(&mut self, node: usize, from: SocketAddr, datagram: &[u8]) {
        let account = self.accounts.entry((node, from)).or_default();
        if account.is_proved {
            return;
        }
        account.received += datagram.len() as u64;
        if let Some(id) = datagram.first_chunk() {
            account.is_proved = account.ids.contains(&ChannelId(u32::from_be_bytes(*id)));
        }
    }

    /// The node sends a datagram.
    ///
    /// # Panics
    /// If the address has not proved itself and has sent less than it gets.
    pub(super) fn on_sent(&mut self, node: usize, to: SocketAddr, datagram: &[u8]) {
        let account = self.accounts.entry((node, to)).or_default();
        if account.is_proved {
            return;
        }
        for message in decode(datagram, &WireProfile::LIVE).into_iter().flatten() {
            if let Message::Handshake(handshake) = message {
                account.ids.push(handshake.source);
            }
        }
        if datagram.starts_with(&[0; 4]) && account.greetings > 0 {
            account.greetings -= 1;
            return;
        }
        account.sent += datagram.len() as u64;
        assert!(
            account.sent <= account.received,
            "node {node} sent {} bytes to {to}, which sent {} and has not proved itself",
            account.sent,
            account.received
        );
    }
}

//! Peer exchange: who knows few comes to know more, and hearsay is worth little.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::hostile::Stranger;
use crate::ppspp::codec::{Message, WireProfile, decode};
use crate::ppspp::engine::{Class, PeerState};
use crate::sim::{FINE, Log, Net};

fn peers(net: &Net, at: usize) -> Vec<SocketAddr> {
    let peers = net.nodes[at].engine.peers(net.now, net.nodes[at].swarm, false);
    let open = peers.into_iter().filter(|peer| peer.state == PeerState::Open);
    open.map(|peer| peer.address).collect()
}

// Shows C29 (RFC 7574 3.10.1).
#[test]
fn who_knows_one_peer_comes_to_know_its_peers_and_outlives_it() {
    let log = Log::new(1);
    let mut net = Net::new(1, FINE);
    let nodes: Vec<usize> = (0..5).map(|_| net.add(&log, None)).collect();
    let holder = net.add(&log, Some(log.blocks()));
    for pair in nodes.windows(2) {
        net.connect(pair[1], pair[0]);
    }
    net.connect(nodes[0], holder);
    // One minute and a little: a chain needs more than one exchange.
    net.run_for(Duration::from_secs(130));
    for node in &nodes {
        assert_eq!(peers(&net, *node).len(), 5, "{node}");
    }
    net.nodes[nodes[0]].dead = true;
    let fetch = net.nodes[nodes[4]].fetch(net.now, log.blocks(), Class::Background);
    net.run_until_fetched(nodes[4], fetch);
}

// Shows C31 (RFC 7574 3.10.1).
#[test]
fn an_origin_neither_asks_nor_answers() {
    let log = Log::new(1);
    let mut net = Net::new(2, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    net.connect(node, origin);
    for _ in 0..3 {
        let other = net.add(&log, None);
        net.connect(other, origin);
    }
    net.nodes[origin].keep_sent = true;
    net.nodes[node].keep_sent = true;
    net.run_for(Duration::from_secs(130));
    assert_eq!(peers(&net, node).len(), 1);
    for at in [origin, node] {
        for (_, _, datagram) in &net.nodes[at].sent {
            for message in decode(datagram, &WireProfile::LIVE).expect("valid") {
                assert!(!matches!(message, Message::PexReq | Message::PexResV4(_)), "{message:?}");
            }
        }
    }
}

// Shows C70 (RFC 7574 8.13), C30 (RFC 7574 3.10.1).
#[test]
fn private_addresses_are_not_told_to_strangers() {
    let log = Log::new(1);
    let mut net = Net::new(3, FINE);
    let (node, other) = (net.add(&log, None), net.add(&log, None));
    net.connect(other, node);
    let stranger = Stranger::open(&mut net, node, 9);
    stranger.say(&mut net, node, &[Message::PexReq]);
    net.run_for(Duration::from_secs(1));
    let told = net.nodes[node].sent.iter().filter(|(_, to, _)| *to == stranger.address);
    for (_, _, datagram) in told {
        let messages = decode(datagram, &WireProfile::LIVE).expect("valid");
        for message in messages {
            assert!(!matches!(message, Message::PexResV4(_) | Message::PexResV6(_)));
        }
    }
}

#[test]
fn hearsay_makes_nobody_dial_without_end() {
    let log = Log::new(1);
    let mut net = Net::new(4, FINE);
    let node = net.add(&log, None);
    let liar = Stranger::open_at(&mut net, node, "10.66.0.1:9".parse().expect("an address"));
    let (mut dialled, mut datagrams) = (BTreeSet::new(), 0);
    for round in 0..100u8 {
        // The same victim again and again, and new ones.
        let told = (0..40u8).map(|i| Ipv4Addr::new(10, 77, if i < 4 { 0 } else { round }, i));
        let told = told.map(|ip| Message::PexResV4(SocketAddrV4::new(ip, 7574)));
        liar.say(&mut net, node, &told.collect::<Vec<_>>());
        net.run_for(Duration::from_secs(2));
        let sent = std::mem::take(&mut net.nodes[node].sent);
        let sent = sent.into_iter().map(|(_, to, _)| to).filter(|to| *to != liar.address);
        sent.for_each(|to| {
            datagrams += 1;
            dialled.insert(to);
        });
    }
    // Ten a minute, two for each address, and none again within ten minutes.
    assert!(datagrams <= 40 && datagrams <= 2 * dialled.len(), "{datagrams} to {dialled:?}");
    assert!(dialled.len() >= 5, "hearsay is tried");
}

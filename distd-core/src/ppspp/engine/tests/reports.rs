//! What people are told of peers.

use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;

use crate::ppspp::engine::limits::BAN;
use crate::ppspp::engine::{
    Class, DownReason, Idle, Networks, PeerKind, PeerReport, PeerState, Role, SourceBytes,
};
use crate::sim::{FINE, Log, Net};
use crate::unit::MunroIndex;

fn report(net: &Net, at: usize, of: SocketAddr) -> PeerReport {
    let node = &net.nodes[at];
    let reports = node.engine.peers(net.now, node.swarm, true);
    let mut of_it = reports.into_iter().filter(|report| report.address == of);
    let report = of_it.next().expect("it is shown");
    assert!(of_it.next().is_none(), "once");
    report
}

#[test]
fn a_peer_is_shown_from_the_first_datagram_to_the_goodbye() {
    let log = Log::new(1);
    let mut net = Net::new(1, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    let address = net.nodes[origin].address;
    net.connect(node, origin);
    let opening = report(&net, node, address);
    assert_eq!((opening.state, opening.idle), (PeerState::Opening, Some(Idle::NoAnswer)));
    net.run_for(Duration::from_millis(200));
    let open = report(&net, node, address);
    assert_eq!((open.state, open.idle), (PeerState::Open, Some(Idle::NothingWanted)));
    assert_eq!((open.kind, open.level), (PeerKind::Origin, Some(0)));
    assert!(open.outbound && open.id.is_some() && open.rtt.is_some());
    assert_eq!(open.available, [log.blocks()]);
    let fetch = net.nodes[node].fetch(net.now, log.blocks(), Class::Background);
    net.run_until_fetched(node, fetch);
    let after = report(&net, node, address);
    assert_eq!(after.verified_bytes, log.blocks().byte_len());
    assert!(after.received_bytes > after.verified_bytes && after.sent_bytes > 0);
    net.run_for(Duration::from_millis(1100));
    assert!(report(&net, node, address).received_rate > 100_000, "{after:?}");
    net.run_for(Duration::from_secs(5));
    assert_eq!(report(&net, node, address).received_rate, 0, "nothing has come for long");
    let (now, swarm) = (net.now, net.nodes[origin].swarm);
    net.nodes[origin].engine.remove_swarm(now, swarm);
    net.run_for(Duration::from_millis(100));
    let closed = report(&net, node, address);
    assert_eq!((closed.state, closed.idle), (PeerState::Closed, Some(Idle::Closed)));
    assert_eq!(closed.down, Some(DownReason::Closed));
    assert!(closed.again_in.is_some());
}

#[test]
fn a_liar_is_shown_as_long_as_it_is_banned() {
    let log = Log::new(2);
    let mut net = Net::new(2, FINE);
    let (liar, honest) = (net.add_origin(&log), net.add_origin(&log));
    let node = net.add(&log, None);
    net.nodes[liar].tamper = Some(|datagram, rng| {
        if datagram.len() > 1000 && rng.random_bool(0.1) {
            datagram[500] ^= 1;
        }
    });
    net.connect(node, liar);
    net.connect(node, honest);
    let fetch = net.nodes[node].fetch(net.now, log.blocks(), Class::Background);
    net.run_until_fetched(node, fetch);
    let address = net.nodes[liar].address;
    let banned = report(&net, node, address);
    assert_eq!((banned.state, banned.idle), (PeerState::Banned, Some(Idle::Banned)));
    assert!(banned.again_in.is_some_and(|wait| wait > BAN / 2 && wait <= BAN), "{banned:?}");
    net.nodes[liar].tamper = None;
    net.run_for(BAN + Duration::from_secs(1));
    assert_ne!(report(&net, node, address).state, PeerState::Banned);
}

#[test]
fn verified_bytes_are_counted_by_who_sent_them() {
    let log = Log::new(4);
    let mut net = Net::new(3, FINE);
    let (origin, node) = (net.add_origin(&log), net.add(&log, None));
    let relay = net.add_as(&log, Some(log.blocks()), Role::Relay);
    let (near, elsewhere) = (net.add(&log, Some(log.blocks())), net.add(&log, Some(log.blocks())));
    net.move_to(near, SocketAddr::from(([203, 0, 113, 5], 7574)));
    net.move_to(elsewhere, SocketAddr::from(([198, 51, 100, 5], 7574)));
    net.connect(node, near);
    net.run_for(Duration::from_millis(200));
    assert_eq!(report(&net, node, net.nodes[near].address).kind, PeerKind::Other);
    let ours = Networks::new([([203, 0, 113, 77].into(), 24)]);
    net.nodes[node].engine.set_networks(ours);
    let mut counted = |peer: usize, kind: PeerKind, munro: u64| {
        net.connect(node, peer);
        net.run_for(Duration::from_millis(200));
        let address = net.nodes[peer].address;
        assert_eq!(report(&net, node, address).kind, kind);
        let blocks = MunroIndex(munro).blocks();
        let fetch = net.nodes[node].fetch(net.now, blocks, Class::Background);
        net.run_until_fetched(node, fetch);
        let counters = net.nodes[node].engine.counters(net.nodes[node].swarm);
        let SourceBytes { origin, relay, lan, other } = counters.verified_from;
        assert_eq!(origin + relay + lan + other, counters.verified_bytes);
        let (now, swarm) = (net.now, net.nodes[peer].swarm);
        net.nodes[peer].engine.remove_swarm(now, swarm);
        net.run_for(Duration::from_millis(100));
        counters.verified_from
    };
    let munro = MunroIndex(0).blocks().byte_len();
    let after = counted(near, PeerKind::Lan, 0);
    assert_eq!(after, SourceBytes { lan: munro, ..SourceBytes::default() });
    let after = counted(elsewhere, PeerKind::Other, 1);
    assert_eq!(after, SourceBytes { lan: munro, other: munro, ..SourceBytes::default() });
    let after = counted(relay, PeerKind::Relay, 2);
    assert_eq!((after.relay, after.origin), (munro, 0));
    let after = counted(origin, PeerKind::Origin, 3);
    assert_eq!(after, SourceBytes { lan: munro, other: munro, relay: munro, origin: munro });
}

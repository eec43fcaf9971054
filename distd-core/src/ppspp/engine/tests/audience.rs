//! Whom a member serves: nobody, those that are near, everybody.

use std::net::SocketAddr;
use std::time::Duration;

use crate::ppspp::codec::{Message, WireProfile, decode};
use crate::ppspp::engine::{
    Audience, Class, DownReason, Engine, EngineConfig, Idle, Networks, PeerState, Role,
    SwarmOptions,
};
use crate::sim::{FINE, Log, Net};

const NEAR: [u8; 4] = [203, 0, 113, 1];
const FAR: [u8; 4] = [198, 51, 100, 1];

/// A log's origin, a member that holds all of the log and serves `audience`, and a node at `address`.
fn members(seed: u64, audience: Audience, address: [u8; 4]) -> (Net, [usize; 3]) {
    let log = Log::new(1);
    let mut net = Net::new(seed, FINE);
    let (origin, member, node) =
        (net.add_origin(&log), net.add(&log, Some(log.blocks())), net.add(&log, None));
    let networks = Networks::new([([203, 0, 113, 200].into(), 24)]);
    let config = EngineConfig { networks, audience, ..EngineConfig::new([9; 32]) };
    let mut engine = Engine::new(config, net.now);
    let options = SwarmOptions {
        id: log.key.id().swarm_id(),
        newest: Some(log.newest()),
        held: vec![log.blocks()],
        serve: true,
        role: Role::Node,
    };
    net.nodes[member].swarm = engine.add_swarm(options).expect("a new swarm");
    net.nodes[member].engine = engine;
    net.move_to(node, SocketAddr::from((address, 7574)));
    (net, [origin, member, node])
}

// Shows C07 (RFC 7574 3.1.1).
#[test]
fn only_its_audience_is_let_in_and_others_are_told_so() {
    for (seed, (audience, address, served)) in [
        (Audience::None, NEAR, false),
        (Audience::Local, NEAR, true),
        (Audience::Local, [10, 9, 9, 9], true),
        (Audience::Local, FAR, false),
        (Audience::All, FAR, true),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut net, [_, member, node]) = members(seed as u64, audience, address);
        net.nodes[member].keep_sent = true;
        net.connect(node, member);
        let log = net.nodes[node].log.clone();
        let fetch = net.nodes[node].fetch(net.now, log.blocks(), Class::Background);
        net.run_for(Duration::from_secs(3));
        let fetched = net.nodes[node].outcome(fetch) == Some(true);
        assert_eq!(fetched, served, "{audience:?} {address:?}");
        if served {
            continue;
        }
        // One goodbye, shorter than the question, and no second question for a while.
        let sent = &net.nodes[member].sent;
        assert_eq!(sent.len(), 1, "{audience:?} {address:?}");
        let answer = decode(&sent[0].2, &WireProfile::LIVE).expect("valid").next();
        assert!(matches!(answer, Some(Message::Handshake(bye)) if bye.is_closing()), "{answer:?}");
        let shown = net.nodes[node].engine.peers(net.now, net.nodes[node].swarm, false);
        assert_eq!((shown[0].state, shown[0].idle), (PeerState::Closed, Some(Idle::Closed)));
        assert_eq!(shown[0].down, Some(DownReason::Refused));
        assert!(shown[0].again_in.is_some_and(|wait| wait > Duration::from_secs(50)), "{shown:?}");
        net.run_for(Duration::from_secs(70));
        assert_eq!(net.nodes[member].sent.len(), 2, "asked again after a minute");
        let counters = net.nodes[member].engine.engine_counters();
        assert_eq!((counters.half_open, counters.channels), (0, 0));
    }
}

// Shows C16 (RFC 7574 3.2).
#[test]
fn who_is_not_served_is_told_nothing_and_can_be_fetched_from() {
    for (seed, (audience, address)) in
        [(Audience::None, NEAR), (Audience::Local, FAR)].into_iter().enumerate()
    {
        let (mut net, [_, member, node]) = members(seed as u64, audience, address);
        // The node holds everything; the member has lost it and fetches it.
        let log = net.nodes[member].log.clone();
        let now = net.now;
        net.nodes[node].store(now, log.blocks());
        let swarm = net.nodes[member].swarm;
        net.nodes[member].engine.release(now, swarm, log.blocks());
        net.nodes[member].stored.clear();
        net.nodes[member].keep_sent = true;
        net.connect(member, node);
        let fetch = net.nodes[member].fetch(net.now, log.blocks(), Class::Background);
        net.run_until_fetched(member, fetch);
        let now = net.now;
        net.nodes[member].store(now, log.blocks());
        net.run_for(Duration::from_secs(1));
        for (_, _, datagram) in &net.nodes[member].sent {
            for message in decode(datagram, &WireProfile::LIVE).expect("valid") {
                let tells = matches!(
                    message,
                    Message::Have(_)
                        | Message::HaveMap { .. }
                        | Message::Place { .. }
                        | Message::Data { .. }
                );
                assert!(!tells, "{audience:?}: {message:?}");
            }
        }
        let shown = net.nodes[member].engine.peers(net.now, swarm, false);
        assert!(
            !shown[0].served && shown[0].verified_bytes == log.blocks().byte_len(),
            "{shown:?}"
        );
    }
}

#[test]
fn a_request_of_who_is_not_served_is_answered_with_miss() {
    let (mut net, [_, member, node]) = members(7, Audience::Local, FAR);
    net.connect(member, node);
    net.run_for(Duration::from_millis(200));
    // It believes that the member has everything, whatever it was told.
    let log = net.nodes[node].log.clone();
    let swarm = net.nodes[node].swarm;
    let now = net.now;
    assert!(
        net.nodes[node].engine.peers(now, swarm, false).iter().all(|p| p.available_blocks == 0)
    );
    for channel in net.nodes[node].engine.channels.iter_mut() {
        channel.source.availability.insert(0, log.blocks().count);
    }
    let fetch = net.nodes[node].fetch(net.now, log.blocks(), Class::Waited);
    net.run_for(Duration::from_secs(2));
    assert_ne!(net.nodes[node].outcome(fetch), Some(true));
    let counters = net.nodes[node].engine.counters(swarm);
    assert!(counters.missed > 0 && counters.data_received_bytes == 0, "{counters:?}");
}

#[test]
fn an_address_becomes_near_when_the_machine_joins_its_network() {
    let (mut net, [_, member, node]) = members(8, Audience::Local, FAR);
    net.connect(member, node);
    net.run_for(Duration::from_millis(200));
    let swarm = net.nodes[member].swarm;
    assert!(!net.nodes[member].engine.peers(net.now, swarm, false)[0].served);
    let networks = Networks::new([(FAR.into(), 24)]);
    net.nodes[member].engine.set_networks(networks);
    assert!(net.nodes[member].engine.peers(net.now, swarm, false)[0].served);
    // It is told at once of what it may have now.
    net.run_for(Duration::from_millis(200));
    let (swarm, log) = (net.nodes[node].swarm, net.nodes[node].log.clone());
    let offered = net.nodes[node].engine.peers(net.now, swarm, false)[0].available_blocks;
    assert_eq!(offered, log.blocks().count);
}

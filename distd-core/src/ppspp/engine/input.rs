//! What comes in: datagrams and time.

use std::net::SocketAddr;
use std::time::Instant;

use crate::ppspp::codec::{
    ChannelId, LoneData, Message, WireProfile, decode, destination, lone_data,
};
use crate::tree::HashedRun;

use super::channel::{ChannelIndex, State};
use super::event::{DownReason, FetchError, SwarmKey};
use super::limits::{EVENTS_MAX, PEX_TRIES, REDIAL_AFTER};
use super::picker::has_other_source;
use super::receive::Receive;
use super::timers::Timer;
use super::{DiskId, DiskRequest, Engine, HashId};

/// Malformed datagrams with the right channel and address before the peer is left.
const BAD_MAX: u32 = 16;
/// Least time that a piece stays unacknowledged before it counts as lost.
const SENT_LIFE_MIN: std::time::Duration = std::time::Duration::from_millis(500);
/// How long what may give background work a source waits for more of the kind.
const PLAN_DELAY: std::time::Duration = std::time::Duration::from_millis(2);
/// Least time between two runs of a channel's timer.
const TIMER_REST: std::time::Duration = std::time::Duration::from_micros(500);

impl Engine {
    /// A datagram arrived.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        self.handle_datagrams(now, from, datagram, datagram.len());
    }

    /// Datagrams of one peer arrived together, of `stride` bytes each; the last may be shorter.
    pub fn handle_datagrams(
        &mut self,
        now: Instant,
        from: SocketAddr,
        received: &[u8],
        stride: usize,
    ) {
        let mut rest = received;
        loop {
            rest = self.on_chunks(now, &from, rest, stride);
            if rest.is_empty() {
                return;
            }
            let (datagram, after) = rest.split_at(stride.clamp(1, rest.len()));
            self.on_datagram(now, from, datagram);
            rest = after;
        }
    }

    /// Takes the datagrams at the front that hold a chunk of one channel and nothing else, as nearly
    /// all do in a transfer: who sent them is looked up once. Gives the rest.
    fn on_chunks<'a>(
        &mut self,
        now: Instant,
        from: &SocketAddr,
        received: &'a [u8],
        stride: usize,
    ) -> &'a [u8] {
        let clock_us = self.clock_us(now);
        let Ok(local) = destination(received) else { return received };
        let Some(index) = self.by_channel_id.get(&local).copied() else { return received };
        let Some(channel) = self.channels.get_mut(index) else { return received };
        let key = channel.swarm;
        let Some(swarm) = self.swarms.get_mut(&key) else { return received };
        let ready = channel.state == State::Open && channel.address == *from;
        if !ready || self.queues.events.len() >= EVENTS_MAX {
            return received;
        }
        let (events, hashing) = (&mut self.queues.events, &mut self.queues.hashing);
        let mut receive =
            Receive { now, clock_us, index, channel, swarm, events, hashing, munro: None };
        let (mut rest, mut result) = (received, Ok(()));
        while result.is_ok() {
            let (datagram, after) = rest.split_at(stride.min(rest.len()));
            let Some(LoneData { channel, chunk, timestamp_us, payload }) = lone_data(datagram)
            else {
                break;
            };
            if channel != local {
                break;
            }
            receive.swarm.counters.received_datagrams += 1;
            receive.swarm.counters.received_bytes += datagram.len() as u64;
            receive.channel.on_heard(now, datagram.len());
            result = receive.on_data(chunk, timestamp_us, payload);
            rest = after;
        }
        if result.is_err() || channel.acks_due(now) || swarm.dirty || swarm.dirty_later {
            self.after(now, key, index, result);
        }
        rest
    }

    fn on_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        if self.queues.events.len() >= EVENTS_MAX {
            // Nobody takes the events: what is dropped here is asked for again.
            return;
        }
        let Ok(local) = destination(datagram) else {
            self.counters.unknown_channel += 1;
            return;
        };
        if local == ChannelId(0) {
            return self.on_datagram_1(now, from, datagram);
        }
        let known = self.by_channel_id.get(&local).copied();
        let Some(index) = known.or_else(|| self.promote(now, local, from)) else {
            // RFC 7574 3.1.1(3): MUST discard datagrams with a wrong channel.
            self.counters.unknown_channel += 1;
            return;
        };
        self.on_channel_datagram(now, index, from, datagram);
    }

    fn on_channel_datagram(
        &mut self,
        now: Instant,
        index: ChannelIndex,
        from: SocketAddr,
        datagram: &[u8],
    ) {
        let clock_us = self.clock_us(now);
        let Some(channel) = self.channels.get_mut(index) else { return };
        let key = channel.swarm;
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        if channel.address != from {
            self.counters.wrong_address += 1;
            swarm.counters.bad_datagrams += 1;
            return;
        }
        swarm.counters.received_datagrams += 1;
        swarm.counters.received_bytes += datagram.len() as u64;
        let read_bytes = channel.serve.read_bytes();
        let Ok(messages) = decode(datagram, &WireProfile::LIVE) else {
            swarm.counters.bad_datagrams += 1;
            channel.traffic.bad += 1;
            if channel.traffic.bad > BAD_MAX && channel.is_open() {
                // RFC 7574 3: SHOULD stop communicating with such a peer.
                self.close(now, index, DownReason::Malformed);
            }
            return;
        };
        if channel.state != State::Open && !self.on_first(now, index, &mut messages.clone()) {
            return;
        }
        let Some(channel) = self.channels.get_mut(index) else { return };
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        channel.on_heard(now, datagram.len());
        let (events, hashing) = (&mut self.queues.events, &mut self.queues.hashing);
        let mut receive =
            Receive { now, clock_us, index, channel, swarm, events, hashing, munro: None };
        let mut result = Ok(());
        for message in messages {
            result = receive.message(&message);
            if result.is_err() {
                break;
            }
        }
        // A glutton's reads are dropped, what a reader waits for is taken out of its read.
        if let Some(channel) = self.channels.get_mut(index) {
            self.read_bytes = self.read_bytes - read_bytes + channel.serve.read_bytes();
        }
        self.after(now, key, index, result);
    }

    /// A run that arrived has been hashed; one that nobody waits for any more is dropped.
    pub fn handle_hashed(&mut self, now: Instant, id: HashId, run: HashedRun) {
        let clock_us = self.clock_us(now);
        let index = id.channel;
        let Some(channel) = self.channels.get_mut(index) else { return };
        let key = channel.swarm;
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        if !channel.source.end_hashing(id.first, id.serial, run) {
            return;
        }
        let (events, hashing) = (&mut self.queues.events, &mut self.queues.hashing);
        let mut receive =
            Receive { now, clock_us, index, channel, swarm, events, hashing, munro: None };
        let result = receive.on_complete(id.first, id.delay_us);
        self.after(now, key, index, result);
    }

    /// The first datagrams on a channel that was opened from here; `false` to drop this one.
    fn on_first(
        &mut self,
        now: Instant,
        index: ChannelIndex,
        messages: &mut crate::ppspp::codec::Messages<'_>,
    ) -> bool {
        let Some(channel) = self.channels.get_mut(index) else { return false };
        match (channel.state, messages.next()) {
            (State::Opening, Some(Message::Handshake(handshake))) if !handshake.is_closing() => {
                self.on_datagram_2(now, index, &handshake)
            }
            // It serves nobody here: a goodbye to a channel id that only it was told.
            (State::Opening, Some(Message::Handshake(_))) => {
                self.close(now, index, DownReason::Refused);
                false
            }
            (State::Opening, _) => false,
            (State::Unconfirmed, Some(Message::Handshake(handshake)))
                if !handshake.is_closing() =>
            {
                // Datagram 2 again. If the peer has restarted since, its new id is the right one.
                channel.remote = handshake.source;
                true
            }
            _ => {
                channel.state = State::Open;
                true
            }
        }
    }

    /// What a datagram has set in motion.
    fn after(
        &mut self,
        now: Instant,
        key: SwarmKey,
        index: ChannelIndex,
        result: Result<(), DownReason>,
    ) {
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        for (fetch, at) in std::mem::take(&mut swarm.ledger.disarm) {
            self.timers.disarm(Timer::Fetch(fetch), &mut Some(at));
        }
        for id in std::mem::take(&mut swarm.ledger.arm) {
            if let Some(fetch) = swarm.ledger.fetch_mut(id) {
                self.timers.arm(Timer::Fetch(id), fetch.deadline, &mut fetch.armed);
            }
        }
        if std::mem::take(&mut swarm.dirty_later) {
            if swarm.dirty {
                swarm.unpark = true;
            } else {
                self.timers.arm(Timer::Swarm(key), now + PLAN_DELAY, &mut swarm.armed);
            }
        }
        let placed = std::mem::take(&mut swarm.placed);
        if swarm.dirty || swarm.spread {
            self.mark_dirty(key);
        }
        if let Err(reason) = result {
            return self.close(now, index, reason);
        }
        for index in placed {
            self.on_placed(now, index);
        }
        if self.channels.get(index).is_some_and(|channel| channel.exchange.has_news()) {
            self.exchange(now, index);
        }
        let Some(channel) = self.channels.get_mut(index) else { return };
        let answers = !channel.serve.misses.is_empty() || !channel.told.queue.is_empty();
        let asks = !channel.source.asks.is_empty() || channel.serve.choke.is_some();
        if channel.acks_due(now) || answers || asks {
            self.mark_control(index);
        }
        let Some(channel) = self.channels.get_mut(index) else { return };
        if channel.serve.has_unread() {
            self.read_ahead(index);
        }
        self.mark_serving(index);
        self.touch(index);
    }

    /// Asks the disk for what is to be sent next on a channel.
    pub(super) fn read_ahead(&mut self, index: ChannelIndex) {
        let Some(channel) = self.channels.get_mut(index) else { return };
        let Some(swarm) = self.swarms.get_mut(&channel.swarm) else { return };
        swarm.counters.losses += std::mem::take(&mut channel.serve.losses);
        loop {
            let left = self.config.read_bytes_max.saturating_sub(self.read_bytes);
            // A quarter is kept for reads that somebody waits for.
            let background = left.saturating_sub(self.config.read_bytes_max / 4);
            let id = DiskId(self.next_read);
            let before = channel.serve.read_bytes();
            let bin = channel.serve.next_read(&swarm.held, [left, background], id);
            self.read_bytes = self.read_bytes - before + channel.serve.read_bytes();
            let Some(bin) = bin else { break };
            self.next_read += 1;
            self.reads.insert(id, index);
            self.queues.disk.push_back(DiskRequest { id, swarm: swarm.key, bin });
        }
        let starved = channel.serve.has_unread() && channel.serve.read_bytes() == 0;
        if starved && !std::mem::replace(&mut channel.flags.starved, true) {
            self.queues.starved.push_back(index);
        }
        if !channel.serve.misses.is_empty() {
            self.mark_control(index);
        }
    }

    /// Time has passed: call at [`Self::poll_timeout`] or later.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Fetch(fetch) => self.fail(fetch, FetchError::Deadline),
                Timer::Swarm(key) => {
                    if let Some(swarm) = self.swarms.get_mut(&key) {
                        swarm.armed = None;
                        swarm.on_news();
                        self.mark_dirty(key);
                    }
                }
                Timer::Upload => self.on_upload_timer(),
                Timer::Link(key, address) => {
                    let Some(swarm) = self.swarms.get_mut(&key) else { continue };
                    let Some(link) = swarm.links.get_mut(&address) else { continue };
                    link.armed = None;
                    if link.channel.is_none() {
                        self.dial(now, key, address);
                    }
                }
                Timer::Channel(index) => {
                    if let Some(channel) = self.channels.get_mut(index) {
                        channel.armed = None;
                        channel.rest_until = now + TIMER_REST;
                        self.on_channel_timer(now, index);
                    }
                }
            }
        }
    }

    fn on_channel_timer(&mut self, now: Instant, index: ChannelIndex) {
        self.touch(index);
        let Some(channel) = self.channels.get_mut(index) else { return };
        if channel.greet_at().is_some_and(|at| at <= now) {
            if !channel.dialled && channel.traffic.greetings.0 >= PEX_TRIES {
                let silence = channel.silence(now);
                return self.close(now, index, DownReason::Dead { silence });
            }
            self.greet(now, index);
        }
        let Some(channel) = self.channels.get_mut(index) else { return };
        if !channel.is_open() {
            return;
        }
        if channel.dead_at().is_some_and(|at| at <= now) {
            let silence = channel.silence(now);
            return self.close(now, index, DownReason::Dead { silence });
        }
        if channel.keep_alive_at() <= now {
            channel.flags.keep_alive = true;
        }
        channel.serve.choked_until(now);
        let life = (channel.rtt.smoothed() * 8).max(SENT_LIFE_MIN);
        if let Some(since) = now.checked_sub(life) {
            channel.serve.expire(now, since);
        }
        self.mark_control(index);
        self.mark_serving(index);
        self.on_late(now, index);
    }

    /// Requests that are overdue: asked again, hedged, or moved to another source.
    fn on_late(&mut self, now: Instant, index: ChannelIndex) {
        let Some(channel) = self.channels.get_mut(index) else { return };
        let (key, address) = (channel.swarm, channel.address);
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        let overdue = channel.source.overdue(now, &channel.rtt);
        swarm.counters.rerequested_runs += overdue.again;
        if overdue.late {
            // Its window may be full of what it does not know to have arrived.
            channel.acks.repeat(now);
        }
        let hedges = channel.source.hedges(now);
        swarm.dirty |= !hedges.is_empty();
        swarm.ledger.hedges.extend(hedges);
        let silent = channel.source.is_silent();
        let silence = channel.silence(now);
        let mut moving = channel.source.hashless();
        if silent && overdue.late {
            moving.extend(channel.source.flights());
        }
        for first in moving {
            if has_other_source(swarm, &self.channels, first, index)
                && let Some(channel) = self.channels.get_mut(index)
            {
                channel.source.withdraw(first);
                swarm.ledger.unassign(first, index);
                swarm.dirty = true;
            }
        }
        // A peer that restarted does not know the channel: it is greeted anew beside the old one.
        let link = swarm.links.get_mut(&address).filter(|link| link.channel == Some(index));
        let redial = silent && silence >= REDIAL_AFTER && link.is_some();
        if swarm.dirty {
            self.mark_dirty(key);
        }
        if redial {
            self.dial(now, key, address);
        }
    }

    /// When [`Self::handle_timeout`] is to be called next.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        for index in std::mem::take(&mut self.queues.touched) {
            let Some(channel) = self.channels.get_mut(index) else { continue };
            channel.flags.touched = false;
            let next = self.next_deadline(index);
            let (Some(at), Some(channel)) = (next, self.channels.get_mut(index)) else { continue };
            let at = at.max(channel.rest_until);
            self.timers.arm(Timer::Channel(index), at, &mut channel.armed);
        }
        self.timers.next()
    }

    fn next_deadline(&mut self, index: ChannelIndex) -> Option<Instant> {
        let channel = self.channels.get_mut(index)?;
        let greet = channel.greet_at();
        if !channel.is_open() {
            return greet;
        }
        let swarm = self.swarms.get(&channel.swarm)?;
        let heard = channel.traffic.heard_at;
        let life = (channel.rtt.smoothed() * 8).max(SENT_LIFE_MIN);
        [
            greet,
            Some(channel.keep_alive_at()),
            channel.dead_at(),
            channel.source.deadline(&channel.rtt),
            channel.acks.due_at(channel.source.outstanding),
            channel.serve.choked_until(heard),
            channel.serve.sent.oldest().map(|at| at + life),
            channel.serve.paced_until,
            channel.told.news_at,
            channel.told.repeat_at(),
            channel.told.circle_at(),
            channel.ask_for_peers_at(swarm.members.len()),
            channel.told.munro_at(heard, swarm.newest.as_ref()),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

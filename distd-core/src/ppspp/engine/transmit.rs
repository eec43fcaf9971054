//! What goes out: control messages first, then data, waited before background.

use std::time::Instant;

use crate::limits::GRANULE_BYTES;
use crate::ppspp::codec::{Message, MessageType, WireClass, WireProfile};

use super::announce::Announcement;
use super::channel::{ChannelIndex, State};
use super::event::{Class, FetchError, SwarmKey};
use super::limits::{DATA_DATAGRAM_BYTES, LIMITED_BYTES};
use super::pex::response;
use super::picker::{Budget, plan};
use super::timers::Timer;
use super::writer::Writer;
use super::{Engine, Transmit};

/// Announcements written at once; the rest follows when others had their turn.
const ANNOUNCEMENTS: usize = 80;

impl Engine {
    /// The next batch of datagrams to send.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        loop {
            if let Some(transmit) = self.queues.transmits.pop_front() {
                return Some(transmit);
            }
            if let Some(key) = self.queues.dirty.pop() {
                self.settle(now, key);
            } else if let Some(index) = self.queues.control.pop_front() {
                self.write_control(now, index);
            } else if let Some(index) = self.queues.urgent.pop_front() {
                if let Some(channel) = self.channels.get_mut(index) {
                    channel.flags.urgent = false;
                }
                self.write_data(now, index);
            } else if let Some(index) = self.queues.serving.pop_front() {
                if let Some(channel) = self.channels.get_mut(index) {
                    channel.flags.serving = false;
                }
                self.write_data(now, index);
            } else if !self.feed_starved() {
                return None;
            }
        }
    }

    /// Finds sources for what is wanted, and passes a newer munro on.
    fn settle(&mut self, now: Instant, key: SwarmKey) {
        let Some(swarm) = self.swarms.get_mut(&key) else { return };
        swarm.dirty = false;
        let members = &swarm.members;
        let channels = &self.channels;
        let outstanding: u64 = members
            .iter()
            .filter_map(|index| channels.get(*index))
            .map(|channel| channel.source.outstanding)
            .sum();
        let line = self.download.as_mut().map(|bucket| bucket.left(now));
        let mut budget = Budget {
            memory: self.config.receive_bytes_max.saturating_sub(outstanding),
            line: line.unwrap_or(u64::MAX),
        };
        let told = if std::mem::take(&mut swarm.spread) { members.clone() } else { Vec::new() };
        let asked = plan(now, swarm, &mut self.channels, &mut budget);
        if let (Some(bucket), Some(line)) = (&mut self.download, line) {
            bucket.take(line - budget.line);
            if budget.line < GRANULE_BYTES && swarm.ledger.has_work() {
                let at = bucket.ready_at(GRANULE_BYTES);
                self.timers.arm(Timer::Swarm(key), at, &mut swarm.armed);
            }
        }
        let version = swarm.turns.circle.version();
        let is_new = std::mem::replace(&mut swarm.circle_told, version) != version;
        let told = if is_new { swarm.members.clone() } else { told };
        let hopeless = std::mem::take(&mut swarm.hopeless);
        if let Some(at) = swarm.turns.tick_at.take() {
            self.timers.arm(Timer::Swarm(key), at, &mut swarm.armed);
        }
        if swarm.dirty {
            self.mark_dirty(key);
        }
        for index in asked.into_iter().chain(told) {
            self.mark_control(index);
            self.touch(index);
        }
        for fetch in hopeless {
            self.fail(fetch, FetchError::NoPeers);
        }
    }

    /// Writes everything that is to be said on a channel.
    fn write_control(&mut self, now: Instant, index: ChannelIndex) {
        let Some(channel) = self.channels.get_mut(index) else { return };
        channel.flags.control = false;
        let Some(swarm) = self.swarms.get_mut(&channel.swarm) else { return };
        if !channel.is_open() {
            return;
        }
        swarm.counters.rerequested_runs += channel.source.recover(now, &channel.rtt);
        let mut writer = Writer::new(channel.remote);
        if let Some(newest) = swarm.newest.as_ref()
            && channel.told.munro_at(now, Some(newest)).is_some_and(|at| at <= now)
        {
            writer.munro(newest);
            channel.told.on_munro(now, *newest);
        }
        let level = swarm.turns.place.level;
        let due = channel.told.level != Some(level)
            || channel.state == State::Unconfirmed
            || channel.flags.keep_alive;
        if channel.served && due && channel.understands(MessageType::Place) {
            writer.push(&Message::Place { id: swarm.turns.place.id, level });
            channel.told.level = Some(level);
        }
        let is_equal =
            channel.level(level) == Some(level) && channel.understands(MessageType::Circle);
        let circle = &swarm.turns.circle;
        if !(channel.served && is_equal) {
            channel.told.forget_circle();
        } else if channel.told.circle_due(now, circle.version()) {
            writer.push(&Message::Circle(circle.told_to(index).as_seats()));
        }
        if channel.ask_for_peers_at(swarm.members.len()).is_some_and(|at| at <= now) {
            writer.push(&Message::PexReq);
            channel.exchange.on_asked(now);
        }
        for address in channel.exchange.answers.drain(..) {
            writer.push(&response(address));
        }
        match channel.serve.choke.take() {
            Some(true) => writer.push(&Message::Choke),
            Some(false) => writer.push(&Message::Unchoke),
            None => {}
        }
        if channel.served {
            let (held, news) = (&swarm.held, &swarm.news);
            let has = &channel.source.availability;
            channel.told.repeat(now, held, news, has);
            if channel.told.news_at.is_none_or(|at| at <= now) {
                let maps = channel.messages.contains(MessageType::HaveMap);
                channel.told.catch_up(now, held, news, has, maps);
            }
        } else {
            channel.told.forget_news();
        }
        for _ in 0..ANNOUNCEMENTS {
            match channel.told.queue.pop_front() {
                Some(Announcement::Have(chunks)) => writer.push(&Message::Have(chunks)),
                Some(Announcement::Map(munro, granules)) => {
                    writer.push(&Message::HaveMap { munro, granules });
                }
                None => break,
            }
        }
        for (chunks, delay_us) in channel.acks.take() {
            writer.push(&Message::Ack { chunks, delay_us });
        }
        let says_miss = channel.understands(MessageType::Miss);
        for chunks in channel.serve.misses.drain(..).filter(|_| says_miss) {
            writer.push(&Message::Miss(chunks));
        }
        for chunks in channel.source.cancels.drain(..) {
            writer.push(&Message::Cancel(chunks));
        }
        let says_want = channel.messages.contains(MessageType::Want);
        let asks = channel.source.asks.drain(..).map(|ask| (ask, 0));
        for (ask, hops) in asks.chain(channel.source.wishes.drain(..)) {
            let chunks = ask.chunks;
            if !says_want {
                if hops == 0 {
                    writer.push(&Message::Request(chunks));
                }
                continue;
            }
            let left = ask.deadline.saturating_duration_since(now).as_millis();
            let class = match ask.class {
                Class::Waited => WireClass::Waited,
                Class::Background => WireClass::Background,
            };
            let deadline_ms = u32::try_from(left).unwrap_or(u32::MAX);
            writer.push(&Message::Want { chunks, class, deadline_ms, hops });
        }
        if std::mem::take(&mut channel.flags.keep_alive) {
            writer.keep_alive();
        }
        let (to, more) = (channel.address, !channel.told.queue.is_empty());
        for payload in writer.finish() {
            self.send(now, index, Transmit { to, payload, segment_bytes: None });
        }
        if more {
            self.mark_control(index);
        }
        self.touch(index);
    }

    /// Sends the next batch of data on a channel, as far as its window goes.
    fn write_data(&mut self, now: Instant, index: ChannelIndex) {
        let timestamp_us = self.clock_us(now);
        let Some(channel) = self.channels.get_mut(index) else { return };
        let Some(urgency) = channel.serve.ready() else { return };
        if channel.serve.holds_back(urgency) {
            return;
        }
        let mut allowed = channel.serve.allowance(now, urgency);
        self.touch(index);
        if allowed < DATA_DATAGRAM_BYTES as u64 {
            return;
        }
        if let Some(bucket) = &mut self.upload {
            allowed = allowed.min(bucket.left(now));
            if allowed < DATA_DATAGRAM_BYTES as u64 {
                return self.wait_for_upload(index);
            }
        }
        let Some(channel) = self.channels.get_mut(index) else { return };
        let before = channel.serve.read_bytes();
        let batch = channel.serve.fill(now, urgency, allowed, channel.remote, timestamp_us);
        self.read_bytes = self.read_bytes - before + channel.serve.read_bytes();
        let (to, key) = (channel.address, channel.swarm);
        if let Some(bucket) = &mut self.upload {
            bucket.take(batch.data.len() as u64);
        }
        for payload in batch.proofs {
            self.send(now, index, Transmit { to, payload, segment_bytes: None });
        }
        if !batch.data.is_empty() {
            let datagrams = batch.data.len() / DATA_DATAGRAM_BYTES;
            if let Some(swarm) = self.swarms.get_mut(&key) {
                let chunk = u64::from(WireProfile::LIVE.chunk_bytes);
                swarm.counters.data_sent_bytes += datagrams as u64 * chunk;
            }
            let segment_bytes = (datagrams > 1).then_some(DATA_DATAGRAM_BYTES);
            self.send(now, index, Transmit { to, payload: batch.data, segment_bytes });
        }
        self.read_ahead(index);
        self.mark_serving(index);
    }

    /// A channel has data to send when the limit leaves something.
    fn wait_for_upload(&mut self, index: ChannelIndex) {
        if let Some(channel) = self.channels.get_mut(index)
            && !std::mem::replace(&mut channel.flags.limited, true)
        {
            self.queues.limited.push_back(index);
        }
        if let Some(bucket) = &self.upload {
            let at = bucket.ready_at(LIMITED_BYTES.max(bucket.rate() / 100));
            self.timers.arm(Timer::Upload, at, &mut self.upload_armed);
        }
    }

    /// The limit leaves something: whoever waits has a turn, in the order in which they came.
    pub(super) fn on_upload_timer(&mut self) {
        self.upload_armed = None;
        for index in std::mem::take(&mut self.queues.limited) {
            if let Some(channel) = self.channels.get_mut(index) {
                channel.flags.limited = false;
                self.mark_serving(index);
            }
        }
    }

    /// Lets a channel read that waited for others' reads to be sent.
    fn feed_starved(&mut self) -> bool {
        if self.read_bytes >= self.config.read_bytes_max / 2 {
            return false;
        }
        let Some(index) = self.queues.starved.pop_front() else { return false };
        if let Some(channel) = self.channels.get_mut(index) {
            channel.flags.starved = false;
            let before = self.next_read;
            self.read_ahead(index);
            return self.next_read != before;
        }
        true
    }

    /// Queues datagrams of a channel, and counts them.
    pub(super) fn send(&mut self, now: Instant, index: ChannelIndex, transmit: Transmit) {
        let Some(channel) = self.channels.get_mut(index) else { return };
        let bytes = transmit.payload.len() as u64;
        let segment = transmit.segment_bytes.unwrap_or(transmit.payload.len()).max(1);
        let datagrams = bytes.div_ceil(segment as u64);
        channel.on_sent(now, datagrams, bytes);
        if let Some(swarm) = self.swarms.get_mut(&channel.swarm) {
            swarm.counters.sent_datagrams += datagrams;
            swarm.counters.sent_bytes += bytes;
        }
        self.queues.transmits.push_back(transmit);
    }
}

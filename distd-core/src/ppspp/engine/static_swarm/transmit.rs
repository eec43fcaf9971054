//! What goes out, and when the engine must be called again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::congestion;
use crate::ppspp::codec::{ChannelId, Message, MessageType};

use super::super::interval::IntervalSet;
use super::super::writer::Writer;
use super::super::{DownReason, Transmit};
use super::StaticSwarm;
use super::channel::Channel;
use super::limits::HEDGE_EVERY;
use super::receive::has_all;
use super::serve::{Shelved, Writing};

/// Least time between two runs of the timers: whatever is due, it cannot keep a core busy.
const TIMER_REST: Duration = Duration::from_micros(500);

impl StaticSwarm {
    /// The next batch of datagrams to send.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        if self.queues.transmits.is_empty() {
            self.work(now);
        }
        self.queues.transmits.pop_front()
    }

    /// Writes what the next channel that has something to say says.
    fn work(&mut self, now: Instant) {
        let order: Vec<ChannelId> = self
            .channels
            .range(self.turn..)
            .chain(self.channels.range(..self.turn))
            .filter(|(_, channel)| channel.is_open())
            .map(|(local, _)| *local)
            .collect();
        for local in order {
            self.fetch(now, local);
            self.write_control(now, local);
            self.write_data(now, local);
            if !self.queues.transmits.is_empty() {
                self.turn = ChannelId(local.0.wrapping_add(1));
                return;
            }
        }
    }

    /// Asks a source for what is wanted and it has.
    fn fetch(&mut self, now: Instant, local: ChannelId) {
        let Some(channel) = self.channels.get_mut(&local) else { return };
        if self.content.tree.is_none() {
            channel.source.sound(now, &channel.rtt);
            return;
        }
        if !self.content.fetching || channel.source.room() == 0 {
            return;
        }
        let Some(mut channel) = self.channels.remove(&local) else { return };
        let others: Vec<&IntervalSet> = self
            .channels
            .values()
            .filter(|other| other.source.room() > 0 || other.source.outstanding() > 0)
            .map(|other| &other.source.availability)
            .collect();
        let mut room = channel.source.room();
        while room > 0 {
            let (from, available) = (channel.source.cursor, &channel.source.availability);
            let rare = self.content.pick_rare(available, &others, from);
            let picked = rare.or_else(|| self.content.pick_rare(available, &others, 0));
            let Some(chunks) = picked.or_else(|| self.content.pick(available, from)) else { break };
            channel.source.ask(now, chunks);
            channel.source.cursor = chunks.end.0;
            room = room.saturating_sub(chunks.count());
        }
        self.channels.insert(local, channel);
    }

    /// Writes everything that is to be said on a channel.
    fn write_control(&mut self, now: Instant, local: ChannelId) {
        let Some(channel) = self.channels.get_mut(&local) else { return };
        let mut writer = Writer::with_profile(channel.remote, self.profile);
        if has_all(&channel.source.availability, self.content.shape()) {
            // RFC 7574 3.2: no HAVE to those who have everything.
            channel.told = super::channel::Told::default();
        } else {
            for chunks in channel.told.take(now, &self.content.held) {
                writer.push(&Message::Have(chunks));
            }
        }
        if channel.acks.due_at(channel.outstanding_bytes()).is_some_and(|at| at <= now) {
            for (chunks, delay_us) in channel.acks.take() {
                writer.push(&Message::Ack { chunks, delay_us });
            }
        }
        match channel.serve.choke.take() {
            Some(true) => writer.push(&Message::Choke),
            Some(false) => writer.push(&Message::Unchoke),
            None => {}
        }
        let says_cancel = channel.messages.contains(MessageType::Cancel);
        for chunks in channel.source.cancels.drain(..).filter(|_| says_cancel) {
            writer.push(&Message::Cancel(chunks));
        }
        for chunks in channel.source.asks.drain(..) {
            writer.push(&Message::Request(chunks));
        }
        if std::mem::take(&mut channel.contact.keep_alive) {
            writer.keep_alive();
        }
        let to = channel.address;
        for payload in writer.finish() {
            Self::note_sent(now, channel, 1);
            let transmit = Transmit { to, payload, segment_bytes: None };
            count(&mut self.counters, &transmit);
            self.queues.transmits.push_back(transmit);
        }
    }

    /// Sends the next chunks on a channel, as far as its window goes.
    fn write_data(&mut self, now: Instant, local: ChannelId) {
        let timestamp_us = self.clock_us(now);
        let Some(channel) = self.channels.get_mut(&local) else { return };
        let allowed = channel.serve.allowance(now);
        if allowed < congestion::SEGMENT_BYTES {
            return;
        }
        if let Some(branch) = channel.serve.lacks_branch() {
            let is_it = |shelved: &Arc<Shelved>| shelved.hashes.branch() == branch;
            match self.shelf.iter().position(is_it).and_then(|at| self.shelf.remove(at)) {
                Some(shelved) => {
                    channel.serve.provide(Arc::clone(&shelved));
                    self.shelf.push_back(shelved);
                }
                None => {
                    if self.reading.insert(branch) {
                        self.queues.reads.push_back(branch);
                    }
                    return;
                }
            }
        }
        let Some(tree) = &self.content.tree else { return };
        let (remote, profile) = (channel.remote, &self.profile);
        let before = channel.serve.data_sent_bytes;
        let batches =
            channel.serve.fill(&Writing { now, remote, profile, tree, timestamp_us }, allowed);
        self.counters.data_sent_bytes += channel.serve.data_sent_bytes - before;
        for batch in batches {
            let transmit = batch.transmit(channel.address);
            Self::note_sent(now, channel, transmit.datagrams().count() as u32);
            count(&mut self.counters, &transmit);
            self.queues.transmits.push_back(transmit);
        }
    }

    fn note_sent(now: Instant, channel: &mut Channel, datagrams: u32) {
        channel.contact.sent_at = now;
        channel.contact.unheard = channel.contact.unheard.saturating_add(datagrams);
    }

    /// Queues a datagram that belongs to no open channel, or ends one.
    pub(super) fn send(&mut self, transmit: Transmit) {
        count(&mut self.counters, &transmit);
        self.queues.transmits.push_back(transmit);
    }

    /// Time has passed: call at [`Self::poll_timeout`] or later.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.rest_until = now + TIMER_REST;
        self.dial_due(now);
        let channels: Vec<ChannelId> = self.channels.keys().copied().collect();
        for local in channels {
            self.on_channel_timer(now, local);
        }
        if self.hedge_at.is_none_or(|at| at <= now) {
            self.hedge_at = None;
            if self.content.fetching && !self.content.is_complete() {
                self.hedge_at = Some(now + HEDGE_EVERY);
                self.hedge(now);
            }
        }
    }

    fn on_channel_timer(&mut self, now: Instant, local: ChannelId) {
        let Some(channel) = self.channels.get(&local) else { return };
        if channel.greet_at().is_some_and(|at| at <= now) {
            self.greet(now, local);
        }
        let Some(channel) = self.channels.get_mut(&local).filter(|channel| channel.is_open())
        else {
            return;
        };
        let silence = now.saturating_duration_since(channel.contact.heard_at);
        if channel.dead_at().is_some_and(|at| at <= now) {
            return self.close(now, local, DownReason::Dead { silence });
        }
        if channel.keep_alive_at() <= now {
            channel.contact.keep_alive = true;
        }
        channel.serve.on_time(now);
        let overdue = channel.source.on_late(now, &channel.rtt);
        self.counters.rerequested += overdue.again;
        for (branch, bits) in overdue.returned {
            self.give_back(branch, bits);
        }
        if overdue.is_gone {
            // It may have restarted, and know the channel no more.
            self.close(now, local, DownReason::Dead { silence });
        }
    }

    /// Who has nothing left to bring is asked for what others are slow with.
    fn hedge(&mut self, now: Instant) {
        let idle = |channel: &Channel| channel.is_open() && channel.source.outstanding() == 0;
        let ids: Vec<ChannelId> = self.channels.keys().copied().collect();
        for one in &ids {
            let Some(mut helper) = self.channels.remove(one) else { continue };
            if idle(&helper) && helper.source.room() > 0 {
                let late = self
                    .channels
                    .values_mut()
                    .find_map(|channel| channel.source.hedge(now, &helper.source.availability));
                if let Some(chunks) = late {
                    helper.source.ask(now, chunks);
                }
            }
            self.channels.insert(*one, helper);
        }
    }

    /// When [`Self::handle_timeout`] is to be called next.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let is_sounding = self.content.tree.is_none();
        let channels = self.channels.values().filter_map(|channel| channel.next_at(is_sounding));
        let next = channels.chain(self.dial_at()).chain(self.hedge_at).min();
        next.map(|at| at.max(self.rest_until))
    }
}

fn count(counters: &mut super::StaticCounters, transmit: &Transmit) {
    counters.sent_datagrams += transmit.datagrams().count() as u64;
    counters.sent_bytes += transmit.payload.len() as u64;
}

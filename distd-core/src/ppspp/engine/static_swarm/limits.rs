//! Every bound of a static swarm's engine that the log's has not ([`super::super::limits`]).

use std::time::Duration;

use crate::limits::{BRANCH_LAYER, CHUNK_BYTES};

/// Channels at the same time; a further datagram 1 is not answered.
pub const CHANNELS_MAX: usize = 256;
/// Addresses to dial.
pub const LINKS_MAX: usize = 64;
/// After how long without an answer datagram 1 goes out without options 8 and 9, every other time.
pub const PLAIN_AFTER: Duration = Duration::from_secs(1);
/// Hashes that one peer has offered and nothing proves yet; beyond, all of them are forgotten.
pub const OFFERED_MAX: usize = 2048;
/// Branches of which some chunks are asked for or here: 64 MiB of buffers.
pub const OPEN_BRANCHES_MAX: usize = 1024;
/// Least, first and largest number of chunks that one source is asked for at a time.
pub const WINDOW_MIN: u64 = 8;
/// The first.
pub const WINDOW_INITIAL: u64 = 64;
/// The largest: 8 MiB.
pub const WINDOW_MAX: u64 = 8192;
/// A source is asked for as much as it brings in this time beyond the round trip: so requests are answered
/// before older implementations forget them.
pub const ANSWER_TARGET: Duration = Duration::from_millis(500);
/// Older implementations forget requests after this time: they are made again.
pub const FORGOTTEN_AFTER: Duration = Duration::from_millis(1500);
/// Chunks that a silent source is asked for again at a time: it may be busy, and answer all requests yet.
pub const PROBE_CHUNKS: u64 = 8;
/// How long a source that is at work may be silent before it is asked again.
pub const SILENCE_MIN: Duration = Duration::from_millis(250);
/// Requests in vain after which a source's chunks are asked of others.
pub const SILENT_AFTER: u32 = 2;
/// Requests in vain after which its channel is given up, and opened anew.
pub const GONE_AFTER: u32 = 5;
/// Times that chunks are asked of one source again before another may have them.
pub const TRIES_MAX: u32 = 6;
/// How long a chunk that others overtook may yet come.
pub const REORDERING: Duration = Duration::from_millis(5);
/// Over how long a source's rate is measured at least.
pub const RATE_SPAN: Duration = Duration::from_millis(100);
/// Stretches looked at for chunks that no other source has.
pub const RARE_STRETCHES: usize = 64;
/// How long the last chunks wait at one source before another is asked for them, too.
pub const HEDGE_AFTER: Duration = Duration::from_millis(500);
/// How often hedges are thought of.
pub const HEDGE_EVERY: Duration = Duration::from_millis(200);
/// Ranges that one peer may have queued here; beyond, it is choked.
pub const REQUESTED_RANGES_MAX: usize = 4096;
/// Chunks that one peer may have queued here (64 MiB); beyond, it is choked.
pub const REQUESTED_CHUNKS_MAX: u64 = 1 << 16;
/// Chunks sent to one peer and not acknowledged; beyond, sending waits.
pub const SENT_CHUNKS_MAX: usize = 16_384;
/// Branches kept to be served, 68 KiB each, the least recently used one goes.
pub const SHELF_MAX: usize = 256;
/// Announcements of new branches wait this long for company.
pub const ANNOUNCE_DELAY: Duration = Duration::from_millis(20);
/// After how long without news everything is announced once more: datagrams get lost.
pub const ANNOUNCE_REPEAT: Duration = Duration::from_secs(1);
/// Intervals in one announcement.
pub const ANNOUNCE_SPANS_MAX: usize = 128;
/// Events that wait for their reader; beyond, datagrams are dropped.
pub const EVENTS_MAX: usize = 1024;
/// Malformed datagrams of a peer before it is left.
pub const BAD_MAX: u32 = 16;

const _: () = assert!(OPEN_BRANCHES_MAX as u64 * (CHUNK_BYTES << BRANCH_LAYER) <= 64 << 20);
const _: () = assert!(WINDOW_MAX < REQUESTED_CHUNKS_MAX);

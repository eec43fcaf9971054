//! Every bound of the engine: what a peer, or a reader, can make it keep, send or do.
//!
//! What happens at a bound is said at the place that checks it.

use std::time::Duration;

use crate::limits::{CHUNK_BYTES, DATAGRAM_BYTES_MAX, GRANULE_BYTES};

/// Half-open handshakes kept at the same time, for all swarms together.
pub const HALF_OPEN_MAX: usize = 4096;
/// Life of a half-open handshake.
pub const HALF_OPEN_LIFE: Duration = Duration::from_secs(10);
/// Half-open handshakes from one IPv4 /24 or IPv6 /56.
pub const HALF_OPEN_PER_PREFIX_MAX: u16 = 256;
/// Channels that others opened; a further datagram 1 is not answered.
pub const CHANNELS_INBOUND_MAX: usize = 2048;
/// Addresses that [`super::Engine::connect`] keeps per swarm; further ones are ignored.
pub const LINKS_MAX: usize = 1024;
/// Swarms of one engine.
pub const SWARMS_MAX: usize = 1024;

/// First wait before datagram 1 is sent again; doubled each time.
pub const HANDSHAKE_RETRY: Duration = Duration::from_millis(250);
/// Longest wait before datagram 1 is sent again, and before a lost peer is dialled again.
pub const HANDSHAKE_RETRY_MAX: Duration = Duration::from_secs(10);
/// How long a peer that serves nobody here is left alone.
pub const REFUSED_RETRY: Duration = Duration::from_secs(60);
/// A channel on which nothing was sent for this long gets a keep-alive (RFC 7574 §3.12).
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A channel on which nothing arrived for this long, and [`DEAD_SENT_MIN`] were sent, is dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(180);
/// Datagrams sent in vain before a peer counts as dead (RFC 7574 §3.12).
pub const DEAD_SENT_MIN: u32 = 3;
/// A peer whose requests go unanswered is dialled afresh after this silence: it may have restarted
/// and know the channel no more.
pub const REDIAL_AFTER: Duration = Duration::from_millis(250);
/// How long the only source of a swarm is not talked to after its first lie; doubled at each more.
pub const BAN_ALONE: Duration = Duration::from_millis(250);
/// How long an address that lied is not talked to where there are others, and at the most.
pub const BAN: Duration = Duration::from_secs(600);
/// Banned addresses remembered; beyond, the oldest ban ends early.
pub const BANS_MAX: usize = 1024;

/// Intervals of a peer's availability that are kept; a HAVE that would add another is ignored.
pub const AVAILABILITY_SPANS_MAX: usize = 2048;
/// HAVE messages for a full announcement of what is held; the largest intervals come first.
pub const ANNOUNCE_SPANS_MAX: usize = 192;
/// Changes of what is held that are remembered for peers; one that lags more hears it all afresh.
pub const NEWS_MAX: usize = 1024;
/// Announcements of newly held data wait this long for company, for each so many peers.
pub const ANNOUNCE_DELAY: Duration = Duration::from_millis(5);
/// Peers for which announcements wait one [`ANNOUNCE_DELAY`].
pub const ANNOUNCE_MEMBERS: usize = 8;
/// After how long announcements are repeated: they may be lost.
pub const ANNOUNCE_REPEAT: Duration = Duration::from_millis(150);
/// Wait before the rightmost signed munro is repeated to a peer that is otherwise idle.
pub const TUNE_IN_REPEAT: Duration = Duration::from_millis(100);

/// What a limit of bytes a second lets through at once: such a part of it, but at least
/// [`BURST_BYTES_MIN`].
pub const BURSTS_PER_SECOND: u64 = 20;
/// Bytes of a burst at the least; a granule must be less.
pub const BURST_BYTES_MIN: u64 = 64 << 10;
/// Where sending waits for a limit, it waits for so many bytes, or for a hundredth of a second.
pub const LIMITED_BYTES: u64 = 4 << 10;

/// Runs that are wanted or in flight, per swarm; what is beyond stays an interval.
pub const RUNS_MAX: usize = 16_384;
/// Fetches at the same time, per swarm; a further one fails at once.
pub const FETCHES_MAX: usize = 16_384;
/// Addresses named in a failed fetch.
pub const TRIED_MAX: usize = 16;
/// Bytes asked for and not yet there, of all sources together: the receive buffers' memory.
pub const RECEIVE_BYTES_MAX: u64 = 96 << 20;
/// Smallest window of requests at one source, in bytes.
pub const WINDOW_BYTES_MIN: u64 = 512 << 10;
/// Largest window of requests at one source, in bytes.
pub const WINDOW_BYTES_MAX: u64 = 16 << 20;
/// What waited runs may exceed a source's window by, in bytes.
pub const WAITED_BYTES_EXTRA: u64 = 4 << 20;
/// Runs in flight at one source.
pub const FLIGHTS_MAX: usize = 2048;
/// Background runs that are handed to one source at a time.
pub const STRETCH_RUNS: usize = 32;
/// Pending runs looked at in one pass without finding a source.
pub const PLAN_MISSES_MAX: usize = 64;
/// Sources in the race for one run: the first and a hedge.
pub const SOURCES_PER_RUN: usize = 2;
/// Shortest time after which an answer is overdue.
pub const OVERDUE_MIN: Duration = Duration::from_millis(30);
/// Longest time after which an answer is overdue.
pub const OVERDUE_MAX: Duration = Duration::from_secs(4);
/// Overdue answers in a row after which a source is silent: asked last.
pub const SILENT_AFTER: u32 = 2;
/// Times that the hashes of a run are asked for again before another source is.
pub const HASHLESS_MAX: u8 = 3;
/// DATA that nobody asked for, beyond what requests account for, before the channel is closed.
pub const STRAYS_MAX: u32 = 64;
/// Most chunks that may yet arrive without being strays.
pub const CREDIT_MAX: u64 = 1 << 17;
/// Signatures of munros that were not asked for and turn out to be no news, checked per peer and
/// minute (INTEGRITY.1).
pub const SIGNATURE_CHECKS_PER_MINUTE: u32 = 8;
/// Stretches whose owner is remembered; beyond, all are computed anew.
pub const OWNERS_MAX: usize = 4096;
/// How long a member above us may be silent before the background turns to those above it.
pub const SILENCE_BACKGROUND: Duration = Duration::from_secs(2);
/// How long all above may be silent before what peers want of them is given up.
pub const CUT_OFF_AFTER: Duration = Duration::from_secs(3);
/// Stretches remembered that readers of equals wait for; further ones are fetched without.
pub const CLAIMS_MAX: usize = 512;
/// Peers over which a member that takes turns is known at the most.
pub const CIRCLE_HOPS_MAX: u8 = 6;
/// How long what an equal says of those who take turns waits for others that say it, too.
pub const CIRCLE_DELAY: Duration = Duration::from_millis(10);
/// CIRCLE messages of one peer that are looked at soon, in a minute; further ones wait for
/// [`CIRCLE_DELAY_LONG`].
pub const CIRCLES_PER_MINUTE: u32 = 240;
/// How long what a peer says beyond [`CIRCLES_PER_MINUTE`] waits.
pub const CIRCLE_DELAY_LONG: Duration = Duration::from_secs(5);
/// How long nothing new must be heard of those who take turns before background work is asked of the
/// injector: a few exchanges tell all of a large level.
pub const SETTLING: Duration = Duration::from_millis(100);
/// And how long it waits at the most.
pub const SETTLING_MAX: Duration = Duration::from_secs(1);
/// Only after so long does it wait again.
pub const SETTLING_AGAIN: Duration = Duration::from_secs(10);
/// How often the owner of a stretch may change before it is sought above.
pub const OWNER_CHANGES_MAX: u8 = 8;
/// Stretches of background work that are looked at for whom to ask to fetch them: 64 MiB.
pub const LOOK_AHEAD_STRETCHES: usize = 256;
/// How often waiting background work is looked at.
pub const TURNS_TICK: Duration = Duration::from_millis(100);
/// Least and longest time that an equal may be without progress while a reader waits for what it
/// fetches, before it is fetched from above.
pub const PATIENCE_WAITED_MIN: Duration = Duration::from_millis(100);
/// The longest time that a reader waits for an equal, or a relay, without progress.
pub const PATIENCE_WAITED_MAX: Duration = Duration::from_secs(1);
/// The same where nobody waits.
pub const PATIENCE_BACKGROUND_MIN: Duration = Duration::from_millis(600);
/// The longest time that background work waits so.
pub const PATIENCE_BACKGROUND_MAX: Duration = Duration::from_secs(5);
/// How long a reader waits for others' fetches at the most, whatever progress they make.
pub const HOLD_WAITED: Duration = Duration::from_secs(2);
/// The same for background work: at least, as the line may be thin.
pub const HOLD_BACKGROUND: Duration = Duration::from_secs(30);
/// And at most.
pub const HOLD_BACKGROUND_MAX: Duration = Duration::from_secs(600);
/// How long who let others wait in vain is passed over; doubled each time, up to 32 times that.
pub const PASSED_OVER: Duration = Duration::from_secs(10);
/// How long the injector is spared after other members were dialled: they may have it, too.
pub const GREETING: Duration = Duration::from_millis(100);
/// Blocks that one peer may have asked us to fetch and that are not here yet: 16 MiB.
pub const AWAITED_BLOCKS_MAX: u64 = 4096;
/// Ranges of them.
pub const AWAITED_SPANS_MAX: usize = 1024;
/// Stretches that one search for background work looks at: 1 GiB ahead of the first that is wanted.
pub const STRETCHES_SOUGHT_MAX: usize = 4096;
/// Intervals of wanted blocks up to which those of ended fetches may stay among them.
pub const RECOUNT_SPANS_MIN: usize = 4096;
/// Places that a peer may tell on one channel: a relay moves up as it meets those above it.
pub const PLACES_MAX: u32 = 32;
/// Fetches for peers, per swarm: few of [`FETCHES_MAX`], which are there for our own readers.
pub const ERRANDS_MAX: usize = 2048;
/// Blocks of those that a reader waits for: they become at most about half of [`RUNS_MAX`].
pub const ERRANDS_WAITED_BLOCKS_MAX: u64 = 16_384;
/// Longest time that what a peer asked for is sought.
pub const ERRAND_MAX: Duration = Duration::from_secs(60);
/// How long announcements to members above us wait for company: they hold it themselves.
pub const ANNOUNCE_DELAY_ABOVE: Duration = Duration::from_millis(500);
/// Addresses remembered to be our own.
pub const OWN_ADDRESSES_MAX: usize = 64;
/// How much later a second source farther away is sought for a run whose near one is late.
pub const HEDGE_FARTHER: Duration = Duration::from_millis(200);

/// How long a channel is open before its peer is asked for others: some will come by themselves.
pub const PEX_ASK_AFTER: Duration = Duration::from_secs(2);
/// How often a peer is asked for others, and told them.
pub const PEX_EVERY: Duration = Duration::from_secs(60);
/// Only who was heard within this time is told of (RFC 7574 §3.10.1).
pub const PEX_HEARD_WITHIN: Duration = Duration::from_secs(60);
/// Addresses in one answer.
pub const PEX_ADDRESSES_MAX: usize = 8;
/// How long an address that was tried on hearsay is not tried again.
pub const PEX_TRIED_FOR: Duration = Duration::from_secs(600);
/// Addresses remembered to have been tried.
pub const PEX_TRIED_MAX: usize = 512;
/// Addresses that are tried in a minute.
pub const PEX_PROBES_PER_MINUTE: u32 = 5;
/// Peers found so that are wanted at the same time.
pub const PEX_FOUND_MAX: usize = 24;
/// Who has so many peers does not ask for others.
pub const PEX_MEMBERS_ENOUGH: usize = 24;
/// Datagrams in vain after which an address that was only heard of is forgotten.
pub const PEX_TRIES: u32 = 2;

/// Trees of munros kept per swarm, 17 KiB each.
pub const TREES_MAX: usize = 256;

/// Ranges that one peer may have queued here; beyond, it is choked.
pub const REQUESTED_RANGES_MAX: usize = 4096;
/// Bytes that one peer may have queued here; beyond, it is choked.
pub const REQUESTED_BYTES_MAX: u64 = 64 << 20;
/// How long a glutton stays choked.
pub const CHOKE: Duration = Duration::from_millis(200);
/// MISS messages waiting for one peer; beyond, the request is met with silence.
pub const MISSES_MAX: usize = 256;
/// Layer of the largest bin that is read from disk at once: 256 KiB.
pub const READ_LAYER_MAX: u32 = 8;
/// Bytes read or being read for one peer and not yet sent.
pub const READ_BYTES_PER_CHANNEL_MAX: u64 = 1 << 20;
/// Bytes read or being read for all peers and not yet sent.
pub const READ_BYTES_MAX: u64 = 48 << 20;
/// Munros of which it is remembered what a peer was sent.
pub const KNOWN_MUNROS_MAX: usize = 256;
/// Runs sent to one peer and not acknowledged; beyond, sending waits.
pub const SENT_RUNS_MAX: usize = 4096;

/// Bytes of a datagram with one DATA: channel, type, range, timestamp, chunk.
pub const DATA_DATAGRAM_BYTES: usize = 4 + 1 + 16 + 8 + CHUNK_BYTES as usize;
/// Datagrams in one batch: three granules (UDP_SEGMENT takes 64, of 64 KiB together).
pub const BATCH_SEGMENTS: usize = 48;
/// Events that wait for [`super::Engine::poll_event`] before received datagrams are dropped.
pub const EVENTS_MAX: usize = 65_536;

const _: () = assert!(DATA_DATAGRAM_BYTES <= DATAGRAM_BYTES_MAX);
const _: () = assert!(BATCH_SEGMENTS * DATA_DATAGRAM_BYTES < 65_507);
const _: () = assert!(WINDOW_BYTES_MIN >= GRANULE_BYTES * STRETCH_RUNS as u64);
const _: () = assert!(REQUESTED_BYTES_MAX > WINDOW_BYTES_MAX + WAITED_BYTES_EXTRA);
const _: () = assert!(REQUESTED_RANGES_MAX > FLIGHTS_MAX);
const _: () = assert!(ERRANDS_MAX * 8 <= FETCHES_MAX);

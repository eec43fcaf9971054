//! One job, from what is missing to what is there.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{error::Elapsed, timeout};

use crate::frame::Part;
use crate::limits::BLOCK_BYTES;
use crate::node::event_loop::Command;
use crate::node::reading::Purpose;
use crate::ppspp::engine::Class;
use crate::unit::{BlockRange, ByteRange};

use super::choice::{CHAIN_MAX, Choice, Chosen, by_munro, choose, subtract};
use super::decode::{Decoded, Refused, decode};
use super::origin::{Claim, FRAMES_KIB_MAX, Origin, Sight};
use super::{Haste, Job};

/// Choices of one job that may take its time: after the first, what a frame failed to give is sought otherwise.
const ROUNDS_MAX: usize = 3;
/// Frames that lie together are fetched together, up to so many bytes.
const GROUP_BYTES_MAX: u64 = 1 << 20;
/// A decoding may take so long even where a job's time is running out.
const PATIENCE_MIN: Duration = Duration::from_secs(2);

/// Runs a job to its end and tells the loop.
pub(super) async fn run(origin: Rc<Origin>, job: Job) {
    match job.haste {
        Haste::Quick => quick(&origin, &job).await,
        Haste::Background | Haste::Bulk => cheap(&origin, &job).await,
    }
}

/// What somebody waits for: with what is known of the index, at once.
async fn quick(origin: &Rc<Origin>, job: &Job) {
    let mut sight = Sight::new(origin, job.haste);
    let choice = choose(&mut sight, job.haste.account(), &job.missing);
    let absent = std::mem::take(&mut sight.absent);
    let unmade = subtract_all(&job.missing, &choice.plain);
    hand_over(origin, job, choice.plain.clone(), unmade.is_empty()).await;
    if let Some((munro, ..)) = absent.first() {
        let parts = absent.iter().filter(|(other, ..)| other == munro).map(|(_, part, _)| *part);
        tokio::task::spawn_local(Rc::clone(origin).warm(*munro, parts.collect()));
    }
    if unmade.is_empty() {
        return;
    }
    let made = unpack(origin, job, choice).await;
    let _ = timeout(patience(job), origin.claimed_done(&unmade, true)).await;
    let left = subtract_all(&unmade, &made);
    let left = left.iter().flat_map(|part| origin.shared.log.missing(*part)).collect();
    hand_over(origin, job, left, true).await;
}

/// What may take its time: with the index, and in the fewest bytes.
async fn cheap(origin: &Rc<Origin>, job: &Job) {
    let mut wanted = job.missing.clone();
    for _ in 0..ROUNDS_MAX {
        let choice = choose_all(origin, job, &wanted).await;
        if choice.frames.is_empty() && choice.plain.is_empty() {
            // Others make all of it.
            origin.claimed_done(&wanted, false).await;
        } else {
            hand_over(origin, job, choice.plain.clone(), false).await;
            wanted = subtract_all(&wanted, &choice.plain);
            let others = wanted.clone();
            let made = unpack(origin, job, choice).await;
            wanted = subtract_all(&wanted, &made);
            origin.claimed_done(&others, false).await;
        }
        wanted = wanted.iter().flat_map(|part| origin.shared.log.missing(*part)).collect();
        if wanted.is_empty() {
            break;
        }
    }
    hand_over(origin, job, wanted, true).await;
}

/// Chooses, and fetches what the choice lacks of the index, until nothing is lacking or it does not come.
async fn choose_all(origin: &Rc<Origin>, job: &Job, wanted: &[BlockRange]) -> Choice {
    // For each epoch of a chain: list, table, update records, full records.
    let rounds = 4 * (CHAIN_MAX + 1);
    for round in 0..=rounds {
        let mut sight = Sight::new(origin, job.haste);
        let choice = choose(&mut sight, job.haste.account(), wanted);
        let mut absent: Vec<_> = sight.absent.into_iter().map(|(.., absent)| absent).collect();
        absent.sort_unstable_by_key(|absent| (absent.0.start, absent.0.count));
        absent.dedup();
        if absent.is_empty() || round == rounds {
            return choice;
        }
        let loads: Vec<_> = absent
            .into_iter()
            .map(|absent| {
                let origin = Rc::clone(origin);
                tokio::task::spawn_local(async move { origin.load(absent, Class::Waited).await })
            })
            .collect();
        let mut came = false;
        for load in loads {
            came |= load.await.unwrap_or(false);
        }
        if !came || job.deadline <= std::time::Instant::now() {
            return choice;
        }
    }
    Choice::default()
}

/// Tells the loop what it shall fetch plain.
async fn hand_over(origin: &Origin, job: &Job, plain: Vec<BlockRange>, ended: bool) {
    if plain.is_empty() && !ended {
        return;
    }
    let munros = by_munro(&plain).into_iter().map(|(munro, _)| munro);
    let barren = origin.barren(munros);
    origin.tell(Command::Unpacked { job: job.id, plain, barren, ended }).await;
}

/// Fetches and decodes what was chosen; the blocks that were made.
async fn unpack(origin: &Rc<Origin>, job: &Job, choice: Choice) -> Vec<BlockRange> {
    let waited = job.haste == Haste::Quick;
    let groups = grouped(choice.frames.values());
    let bytes = groups.iter().map(|group| group.blocks.byte_len()).sum::<u64>();
    let _room = if waited {
        None
    } else {
        let kib = (bytes >> 10).min(FRAMES_KIB_MAX as u64) as u32;
        origin.pool.frames_kib.acquire_many(kib).await.ok()
    };
    let mut claims: Vec<Option<Claim>> = choice
        .frames
        .values()
        .map(|chosen| Some(origin.claim(chosen.entry.blocks(), waited)))
        .collect();
    let supports: Vec<_> =
        choice.support.iter().map(|blocks| fetch(origin, job, *blocks, Purpose::Data)).collect();
    let mut fetched: Vec<Fetched> = groups
        .iter()
        .map(|group| Fetched::OnTheWay(fetch(origin, job, group.blocks, Purpose::Frames)))
        .collect();
    for support in supports {
        // What does not come is found out as a missing base.
        let _ = support.await;
    }
    let mut made = Vec::new();
    for (place, (chosen, claim)) in choice.frames.into_values().zip(&mut claims).enumerate() {
        let at = groups.iter().position(|group| group.members.contains(&place));
        let Some((group, fetched)) = at.and_then(|at| Some((&groups[at], fetched.get_mut(at)?)))
        else {
            continue;
        };
        match fetched.bytes().await {
            Some(bytes) => {
                let frame = slice(&bytes, group.blocks, chosen.entry.range);
                let Ok(one) = unpack_one(origin, job, chosen, frame).await else {
                    tracing::warn!("frames are not decoded in time; blocks are fetched plain");
                    break;
                };
                made.extend(one);
            }
            None => origin.pause(&chosen.entry),
        }
        drop(claim.take());
    }
    for group in &groups {
        origin.shared.log.retire(group.blocks);
    }
    made
}

/// How long a job may wait for what takes no network: half of the time that it has, so that the other half
/// is left to fetch its blocks plain. A disk may hang.
fn patience(job: &Job) -> Duration {
    let left = job.deadline.saturating_duration_since(std::time::Instant::now());
    (left / 2).max(PATIENCE_MIN)
}

/// Decodes one frame, once all its bases are there, and hands over what it gave; the blocks. An error: it
/// takes too long.
async fn unpack_one(
    origin: &Rc<Origin>,
    job: &Job,
    chosen: Chosen,
    frame: Bytes,
) -> Result<Option<BlockRange>, Elapsed> {
    let waited = job.haste == Haste::Quick;
    let blocks = chosen.entry.blocks();
    let log = &origin.shared.log;
    if log.missing(blocks).is_empty() && !waited {
        return Ok(Some(blocks));
    }
    let bases = origin.claimed_done(&chosen.entry.bases, waited);
    if waited {
        timeout(patience(job), bases).await?;
    } else {
        bases.await;
    }
    let decoding = timeout(patience(job), async {
        let decoders = if waited { &origin.pool.quick } else { &origin.pool.background };
        let turn = Arc::clone(decoders).acquire_owned().await;
        let (shared, of_frame) = (Arc::clone(&origin.shared), chosen.clone());
        let decoding = tokio::task::spawn_blocking(move || {
            // Kept for as long as it runs, whoever waits for it.
            let _turn = turn;
            decode(&shared, &of_frame, &frame, !waited)
        });
        decoding.await
    });
    let decoded = decoding.await?;
    let counters = &origin.shared.counters;
    let Chosen { entry, part, .. } = chosen;
    match decoded {
        Ok(Ok(Decoded { run, kept })) => {
            let count = match part {
                Part::Update => &counters.delta_frames,
                Part::Full => &counters.full_frames,
            };
            count.fetch_add(1, Ordering::Relaxed);
            counters.decoded.fetch_add(run.bytes().len() as u64, Ordering::Relaxed);
            let origin_id = origin.shared.origin;
            origin.tell(Command::Decoded { origin: origin_id, run, kept }).await;
            Ok(Some(blocks))
        }
        Ok(Err(error)) => {
            let ByteRange { offset, len } = entry.range;
            counters.refused_frames.fetch_add(1, Ordering::Relaxed);
            if error.is_final() {
                tracing::warn!(
                    %error, bin = %entry.bin, offset, len,
                    "a frame is refused; its blocks are fetched another way"
                );
                origin.refuse(&entry);
            } else {
                tracing::info!(
                    %error, bin = %entry.bin, offset, len,
                    "a frame cannot be used; its blocks are fetched another way"
                );
                if matches!(error, Refused::NoBase { .. }) {
                    origin.pause_for_bases(&entry);
                }
            }
            Ok(None)
        }
        Err(error) => {
            tracing::error!(%error, "a bug in decoding a frame was contained");
            origin.refuse(&entry);
            Ok(None)
        }
    }
}

/// Asks for blocks, and goes on.
fn fetch(
    origin: &Rc<Origin>,
    job: &Job,
    blocks: BlockRange,
    purpose: Purpose,
) -> oneshot::Receiver<Option<Bytes>> {
    let (sender, receiver) = oneshot::channel();
    let (origin, class, deadline) = (Rc::clone(origin), job.haste.class(), job.deadline);
    tokio::task::spawn_local(async move {
        let _ = sender.send(origin.read(blocks, purpose, class, deadline).await);
    });
    receiver
}

/// The bytes of frames that lie together.
enum Fetched {
    OnTheWay(oneshot::Receiver<Option<Bytes>>),
    Here(Option<Bytes>),
}

impl Fetched {
    async fn bytes(&mut self) -> Option<Bytes> {
        if let Self::OnTheWay(receiver) = self {
            *self = Self::Here(receiver.await.ok().flatten());
        }
        match self {
            Self::Here(bytes) => bytes.clone(),
            Self::OnTheWay(_) => None,
        }
    }
}

/// Frames that lie together.
struct Group {
    blocks: BlockRange,
    /// Their places among all that were chosen.
    members: Vec<usize>,
}

fn grouped<'a>(frames: impl Iterator<Item = &'a Chosen>) -> Vec<Group> {
    let mut places: Vec<(ByteRange, usize)> =
        frames.enumerate().map(|(place, chosen)| (chosen.entry.range, place)).collect();
    places.sort_unstable_by_key(|(range, _)| range.offset);
    let mut groups: Vec<Group> = Vec::new();
    for (range, place) in places {
        let blocks = range.blocks();
        match groups.last_mut() {
            Some(last)
                if blocks.start <= last.blocks.end()
                    && (blocks.end().0 - last.blocks.start.0) * BLOCK_BYTES <= GROUP_BYTES_MAX =>
            {
                last.blocks.count = blocks.end().max(last.blocks.end()).0 - last.blocks.start.0;
                last.members.push(place);
            }
            _ => groups.push(Group { blocks, members: vec![place] }),
        }
    }
    groups
}

/// The bytes of `range` out of those of `blocks`.
fn slice(bytes: &Bytes, blocks: BlockRange, range: ByteRange) -> Bytes {
    let from = (range.offset - blocks.byte_offset()) as usize;
    bytes.slice(from..from + range.len as usize)
}

fn subtract_all(ranges: &[BlockRange], others: &[BlockRange]) -> Vec<BlockRange> {
    others.iter().fold(ranges.to_vec(), |left, other| subtract(&left, *other))
}

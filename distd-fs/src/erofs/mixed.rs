//! Requests of which a part is local, and how long they wait for the rest.
//!
//! The kernel reads ahead in the log without knowing where a file ends, so that what somebody waits for
//! and what nobody wants come in one request: the first must not wait a deadline for the second. Such a
//! request waits for as long as anything at all arrives from peers. When nothing does, it is declined, and
//! the kernel asks again for the one page that is wanted; what was asked of peers goes on.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use distd_core::unit::BlockRange;
use lru::LruCache;

use crate::blocks::Blocks;
use crate::errno::Failure;

use super::reads::Take;

/// How long nothing may arrive. Above the round trips of most networks, and a wait that is hardly felt.
const PATIENCE: Duration = Duration::from_millis(300);
/// Requests that wait at one time; a further one is declined at once.
const WAITING_MAX: usize = 4096;
/// Declined requests that are remembered, and how long.
const DECLINED_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();
const DECLINED: Duration = Duration::from_secs(1);

/// What still waits for an answer.
type Answer = Box<dyn FnOnce(Result<&[u8], Failure>) + Send>;

/// A request that can be answered from two sides; the first one does.
#[derive(Clone)]
pub(super) struct Pending(Arc<Mutex<Option<Answer>>>);

impl Pending {
    pub(super) fn new(then: impl Take) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(then)))))
    }

    /// Takes over answering it.
    pub(super) fn claim(&self) -> Option<Answer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_answered(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

struct Waiting {
    blocks: BlockRange,
    due: Instant,
    /// What had been fetched when it was last looked at.
    fetched: u64,
    pending: Pending,
}

/// The requests that wait.
pub(super) struct Mixed {
    waiting: SyncSender<Waiting>,
    declined: Arc<Declined>,
}

struct Declined(Mutex<LruCache<BlockRange, Instant>>);

impl Mixed {
    /// Watches over requests for `blocks` on a thread that ends when this is dropped.
    pub(super) fn new<B: Blocks>(blocks: Arc<B>) -> std::io::Result<Self> {
        let (waiting, receiver) = sync_channel(WAITING_MAX);
        let declined = Arc::new(Declined(Mutex::new(LruCache::new(DECLINED_MAX))));
        let told = Arc::clone(&declined);
        let watch = move || watch(&receiver, &*blocks, &told);
        std::thread::Builder::new().name("hidden-mixed".into()).spawn(watch)?;
        Ok(Self { waiting, declined })
    }

    /// Declines a request when nothing arrives any more, unless it is answered before.
    pub(super) fn watch<B: Blocks>(&self, blocks: BlockRange, pending: &Pending, from: &B) {
        let (due, fetched) = (Instant::now() + PATIENCE, from.fetched_bytes());
        let waiting = Waiting { blocks, due, fetched, pending: pending.clone() };
        if self.waiting.try_send(waiting).is_err() {
            self.decline(blocks, pending);
        }
    }

    /// Answers that it cannot be had as a whole.
    pub(super) fn decline(&self, blocks: BlockRange, pending: &Pending) {
        self.declined.decline(blocks, pending);
    }

    /// Whether exactly this was declined a moment ago: then somebody waits for all of it.
    pub(super) fn was_declined(&self, blocks: BlockRange, now: Instant) -> bool {
        let declined = self.declined.0.lock().unwrap_or_else(PoisonError::into_inner);
        declined.peek(&blocks).is_some_and(|at| now.saturating_duration_since(*at) < DECLINED)
    }
}

impl Declined {
    fn decline(&self, blocks: BlockRange, pending: &Pending) {
        let Some(answer) = pending.claim() else { return };
        // Before the answer: the kernel may ask again at once.
        let mut declined = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        declined.push(blocks, Instant::now());
        drop(declined);
        answer(Err(Failure::Unavailable));
    }
}

/// All of them wait equally long, so that they are due in the order in which they come.
fn watch<B: Blocks>(waiting: &Receiver<Waiting>, blocks: &B, declined: &Declined) {
    let mut queue: VecDeque<Waiting> = VecDeque::new();
    loop {
        let next = match queue.front() {
            Some(first) => {
                waiting.recv_timeout(first.due.saturating_duration_since(Instant::now()))
            }
            None => waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(next) => queue.push_back(next),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        while queue.front().is_some_and(|first| first.due <= now) {
            let Some(first) = queue.pop_front() else { break };
            let fetched = blocks.fetched_bytes();
            if fetched == first.fetched {
                declined.decline(first.blocks, &first.pending);
            } else if !first.pending.is_answered() {
                queue.push_back(Waiting { due: now + PATIENCE, fetched, ..first });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::testing::Memory;
    use distd_core::unit::BlockIndex;
    use std::sync::atomic::Ordering;
    use std::sync::mpsc;

    #[test]
    fn a_request_waits_while_anything_arrives_and_not_longer() {
        let memory = Arc::new(Memory::default());
        let mixed = Mixed::new(Arc::clone(&memory)).expect("a thread");
        let blocks = BlockRange::new(BlockIndex(0), 8);
        let (sender, receiver) = mpsc::channel();
        let pending = Pending::new(move |answer: Result<&[u8], Failure>| {
            sender.send(answer.map(<[u8]>::len)).expect("somebody listens");
        });
        mixed.watch(blocks, &pending, &*memory);
        for _ in 0..6 {
            memory.fetched.fetch_add(1, Ordering::Relaxed);
            assert!(receiver.recv_timeout(PATIENCE / 2).is_err(), "it waits");
        }
        let answer = receiver.recv_timeout(PATIENCE * 4).expect("answered");
        assert_eq!(answer, Err(Failure::Unavailable));
        let now = Instant::now();
        assert!(mixed.was_declined(blocks, now) && !mixed.was_declined(blocks, now + DECLINED));
        assert!(pending.claim().is_none());
    }
}

//! Requests for several blocks, and how long those of them that are local wait for the others.
//!
//! The kernel reads ahead without knowing what is local, nor where in the log a file ends, so that what
//! somebody waits for and what nobody wants, or nobody has, come in one request, or in several of which one
//! answer is made: the first must not wait a deadline for the second. A request of which no more blocks come
//! is declined; what was asked of peers goes on. The kernel then asks for each page by itself, in order: what
//! is local is answered. The first question for what is missing fails at once, too: with that the kernel gives
//! up what it read ahead, and reads only what somebody waits for. That waits for its own deadline.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use distd_core::unit::BlockRange;
use lru::LruCache;

use crate::blocks::Blocks;
use crate::errno::Failure;

use super::reads::Take;

/// How long nothing at all may arrive. Above the round trips of most networks, and a wait that is hardly felt.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long none of a request's own blocks may arrive while others do; or while nothing does, where none of
/// them is here.
const OWN_PATIENCE: Duration = Duration::from_secs(1);
/// The same, where none of them is here while others arrive: a slow line.
const LONG_PATIENCE: Duration = Duration::from_secs(3);
/// Requests that wait at one time; a further one is declined at once.
const WAITING_MAX: usize = 4096;
/// Declined requests that are remembered, and for how long their missing blocks count as late.
const DECLINED_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();
const LATE: Duration = Duration::from_secs(30);
/// How long the kernel may take to ask again.
const AGAIN: Duration = Duration::from_secs(1);

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
    /// How many of its blocks were here, and since when.
    held: u64,
    held_since: Instant,
    /// What had been fetched when it was last looked at.
    fetched: u64,
    pending: Pending,
}

/// The requests that wait.
pub(super) struct Mixed {
    waiting: SyncSender<Waiting>,
    declined: Arc<Declined>,
}

/// What was declined of late.
struct Declined(Mutex<State>);

struct State {
    requests: LruCache<BlockRange, Instant>,
    /// Their first missing blocks: the next question for one fails at once.
    excused: LruCache<u64, Instant>,
    /// What had been fetched when nothing arrived any more.
    silent_at: Option<u64>,
}

impl Mixed {
    /// Watches over requests for `blocks` on a thread that ends when this is dropped.
    pub(super) fn new<B: Blocks>(blocks: Arc<B>) -> std::io::Result<Self> {
        let (waiting, receiver) = sync_channel(WAITING_MAX);
        let declined = Arc::new(Declined(Mutex::new(State {
            requests: LruCache::new(DECLINED_MAX),
            excused: LruCache::new(DECLINED_MAX),
            silent_at: None,
        })));
        let told = Arc::clone(&declined);
        let watch = move || watch(&receiver, &*blocks, &told);
        std::thread::Builder::new().name("hidden-mixed".into()).spawn(watch)?;
        Ok(Self { waiting, declined })
    }

    /// Declines a request when no more of it arrives, unless it is answered before: at once where that is
    /// known already.
    pub(super) fn watch<B: Blocks>(&self, blocks: BlockRange, pending: &Pending, from: &B) {
        let (now, held) = (Instant::now(), from.held_blocks(blocks));
        let fetched = from.fetched_bytes();
        if self.declined.is_late(blocks, (held, fetched), from, now) {
            return self.declined.decline(blocks, pending, from, None);
        }
        let (due, held_since) = (now + PATIENCE, now);
        let waiting = Waiting { blocks, due, held, held_since, fetched, pending: pending.clone() };
        if self.waiting.try_send(waiting).is_err() {
            self.declined.decline(blocks, pending, from, None);
        }
    }

    /// Whether exactly this was declined a moment ago: then somebody waits for all of it.
    pub(super) fn was_declined(&self, blocks: BlockRange, now: Instant) -> bool {
        let state = self.declined.state();
        state.requests.peek(&blocks).is_some_and(|at| now.saturating_duration_since(*at) < AGAIN)
    }

    /// Whether this block is to fail at once, this time.
    pub(super) fn take_excuse(&self, block: u64, now: Instant) -> bool {
        let at = self.declined.state().excused.pop(&block);
        at.is_some_and(|at| now.saturating_duration_since(at) < AGAIN)
    }
}

impl Declined {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether some of these blocks were waited for in vain and have not come since.
    fn is_late<B: Blocks>(
        &self,
        blocks: BlockRange,
        (held, fetched): (u64, u64),
        from: &B,
        now: Instant,
    ) -> bool {
        let state = self.state();
        if state.silent_at == Some(fetched) {
            return true;
        }
        if held == 0 {
            return false;
        }
        state.requests.iter().any(|(range, at)| {
            let common = range.intersection(blocks);
            now.saturating_duration_since(*at) < LATE
                && !common.is_empty()
                && from.held_blocks(common) < common.count
        })
    }

    fn decline<B: Blocks>(
        &self,
        blocks: BlockRange,
        pending: &Pending,
        from: &B,
        silent_at: Option<u64>,
    ) {
        let Some(answer) = pending.claim() else { return };
        let missing = blocks.iter().find(|b| from.held_blocks(BlockRange::new(*b, 1)) == 0);
        // Before the answer: the kernel may ask again at once.
        let (now, mut state) = (Instant::now(), self.state());
        if let Some(missing) = missing {
            state.excused.push(missing.0, now);
        }
        state.requests.push(blocks, now);
        state.silent_at = silent_at.or(state.silent_at);
        drop(state);
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
            let Some(mut first) = queue.pop_front() else { break };
            if first.pending.is_answered() {
                continue;
            }
            let (held, fetched) = (blocks.held_blocks(first.blocks), blocks.fetched_bytes());
            if held != first.held {
                (first.held, first.held_since) = (held, now);
            }
            let silent = fetched == first.fetched;
            let waited = now.saturating_duration_since(first.held_since);
            let due = match (held, silent) {
                (1.., true) => PATIENCE,
                (1.., false) | (0, true) => OWN_PATIENCE,
                (0, false) => LONG_PATIENCE,
            };
            if waited >= due {
                declined.decline(first.blocks, &first.pending, blocks, silent.then_some(fetched));
            } else {
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

    /// Of 8 blocks the first `held` ones are local; a request for all of them.
    fn request(held: u64) -> (Arc<Memory>, Mixed, BlockRange, Pending, mpsc::Receiver<bool>) {
        let memory = Arc::new(Memory::default());
        memory.append(&vec![1; 8 * 4096]);
        if held > 0 {
            memory
                .prefetch(vec![BlockRange::new(BlockIndex(0), held)], crate::blocks::Purpose::Data);
        }
        let mixed = Mixed::new(Arc::clone(&memory)).expect("a thread");
        let blocks = BlockRange::new(BlockIndex(0), 8);
        let (sender, receiver) = mpsc::channel();
        let pending = Pending::new(move |answer: Result<&[u8], Failure>| {
            sender.send(answer.is_ok()).expect("somebody listens");
        });
        mixed.watch(blocks, &pending, &*memory);
        (memory, mixed, blocks, pending, receiver)
    }

    #[test]
    fn a_request_waits_while_its_blocks_arrive_and_not_longer() {
        let (memory, mixed, blocks, pending, receiver) = request(0);
        for block in 0..6 {
            let next = BlockRange::new(BlockIndex(block), 1);
            memory.prefetch(vec![next], crate::blocks::Purpose::Data);
            assert!(receiver.recv_timeout(PATIENCE / 2).is_err(), "it waits");
        }
        assert!(!receiver.recv_timeout(PATIENCE * 4).expect("declined"));
        let now = Instant::now();
        assert!(mixed.was_declined(blocks, now) && !mixed.was_declined(blocks, now + AGAIN));
        assert!(pending.claim().is_none());
        // The first one that is missing fails at once, one time.
        let excuses: Vec<bool> = (0..8).map(|block| mixed.take_excuse(block, now)).collect();
        assert_eq!(excuses, [false, false, false, false, false, false, true, false]);
        assert!(!mixed.take_excuse(6, now));
    }

    #[test]
    fn what_is_here_does_not_wait_for_others_that_arrive() {
        let (memory, _mixed, _, _, receiver) = request(3);
        let begin = Instant::now();
        while receiver.try_recv().is_err() {
            assert!(begin.elapsed() < OWN_PATIENCE * 3, "it waits too long");
            memory.fetched.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(begin.elapsed() >= OWN_PATIENCE);
    }

    #[test]
    fn a_request_of_which_nothing_is_here_waits_longer() {
        let (_memory, _mixed, _, _, receiver) = request(0);
        assert!(receiver.recv_timeout(OWN_PATIENCE * 7 / 10).is_err());
        assert!(!receiver.recv_timeout(OWN_PATIENCE + PATIENCE * 2).expect("declined"));
    }

    #[test]
    fn what_was_waited_for_in_vain_is_not_waited_for_again() {
        let (memory, mixed, blocks, _, receiver) = request(3);
        assert!(!receiver.recv_timeout(PATIENCE * 3).expect("declined"));
        let ask = |blocks| {
            let (sender, receiver) = mpsc::channel();
            let pending = Pending::new(move |_: Result<&[u8], Failure>| {
                sender.send(()).expect("somebody listens");
            });
            mixed.watch(blocks, &pending, &*memory);
            receiver.try_recv().is_ok()
        };
        assert!(ask(blocks), "nothing has arrived since");
        memory.fetched.fetch_add(1, Ordering::Relaxed);
        assert!(ask(BlockRange::new(BlockIndex(1), 7)), "these blocks have not");
        memory.prefetch(vec![BlockRange::new(BlockIndex(3), 1)], crate::blocks::Purpose::Data);
        assert!(!ask(BlockRange::new(BlockIndex(1), 3)), "all of these are here");
    }
}

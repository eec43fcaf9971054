//! What goes on for longer than one question and its answer: a prefetch, a get.
//!
//! Who started a job asks how it stands every now and then; a job that nobody asks about any more is
//! stopped, so that a command that was killed leaves no work behind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::control::Answer;
use crate::exit::{Complaint, Exit};

/// How long a job goes on without being asked about.
const LEASE: Duration = Duration::from_secs(3);
/// How long whoever asks about a job waits for its end before he is told how it stands.
const ANSWER_AFTER: Duration = Duration::from_millis(100);
/// Jobs at one time; a further one is refused.
const JOBS_MAX: usize = 16;

/// How far something is, and whether it is still wanted.
#[derive(Debug, Default)]
pub(super) struct Progress {
    phase: Mutex<&'static str>,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    stopped: AtomicBool,
}

impl Progress {
    /// Begins a phase of so many bytes.
    pub(super) fn begin(&self, phase: &'static str, total_bytes: u64) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.done_bytes.store(0, Ordering::Relaxed);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// So many bytes of the phase are done.
    pub(super) fn set(&self, done_bytes: u64) {
        self.done_bytes.store(done_bytes, Ordering::Relaxed);
    }

    /// So many bytes more are done.
    pub(super) fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Nobody wants it any more.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether it is to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn describe(&self) -> Value {
        json!({
            "phase": *self.phase.lock().unwrap_or_else(PoisonError::into_inner),
            "done_bytes": self.done_bytes.load(Ordering::Relaxed),
            "total_bytes": self.total_bytes.load(Ordering::Relaxed),
        })
    }
}

struct Job {
    progress: Arc<Progress>,
    /// When somebody asked last; `None` for one that goes on unasked.
    asked: Option<Instant>,
    outcome: Option<Answer>,
}

impl Job {
    fn is_abandoned(&self) -> bool {
        self.asked.is_some_and(|asked| asked.elapsed() > LEASE)
    }
}

#[derive(Default)]
struct Table {
    next: u64,
    jobs: BTreeMap<u64, Job>,
}

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    /// A job has ended.
    ended: Condvar,
}

/// The jobs of a node.
#[derive(Clone, Default)]
pub(super) struct Jobs(Arc<Shared>);

impl Jobs {
    /// Starts a job on a thread of its own and answers its number. `watched`: it ends when nobody asks
    /// about it any more.
    pub(super) fn start(
        &self,
        watched: bool,
        body: impl FnOnce(&Progress) -> Answer + Send + 'static,
    ) -> Answer {
        let progress = Arc::new(Progress::default());
        let number = {
            let mut table = self.table();
            if table.jobs.len() >= JOBS_MAX {
                let text = format!("the node has {JOBS_MAX} jobs already: wait for one to end");
                return Err(Complaint::new(Exit::Busy, text));
            }
            table.next += 1;
            let (number, asked) = (table.next, watched.then(Instant::now));
            let job = Job { progress: Arc::clone(&progress), asked, outcome: None };
            table.jobs.insert(number, job);
            number
        };
        let jobs = self.clone();
        let run = move || {
            let outcome = body(&progress);
            jobs.end(number, outcome);
        };
        if let Err(error) = std::thread::Builder::new().name("job".into()).spawn(run) {
            self.table().jobs.remove(&number);
            return Err(Complaint::failure(format_args!("no thread for the job: {error}")));
        }
        Ok(json!({ "job": number }))
    }

    fn end(&self, number: u64, outcome: Answer) {
        let mut table = self.table();
        let Some(job) = table.jobs.get_mut(&number) else { return };
        if job.asked.is_some() {
            job.outcome = Some(outcome);
            self.0.ended.notify_all();
            return;
        }
        table.jobs.remove(&number);
        if let Err(complaint) = outcome {
            tracing::warn!("a job in the background failed: {complaint}");
        }
    }

    /// How a job stands when it ends, or in [`ANSWER_AFTER`]. Its outcome is told once.
    pub(super) fn ask(&self, number: u64) -> Answer {
        let goes_on =
            |table: &mut Table| table.jobs.get(&number).is_some_and(|job| job.outcome.is_none());
        let waited = self.0.ended.wait_timeout_while(self.table(), ANSWER_AFTER, goes_on);
        let (mut table, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let Some(job) = table.jobs.get_mut(&number) else {
            return Err(Complaint::new(Exit::NoSuch, format_args!("the node has no job {number}")));
        };
        job.asked = Some(Instant::now());
        let mut value = job.progress.describe();
        value["ended"] = json!(job.outcome.is_some());
        if let Some(outcome) = job.outcome.take() {
            table.jobs.remove(&number);
            value["result"] = outcome?;
        }
        Ok(value)
    }

    /// Stops what nobody asks about, and forgets it once it has ended. Whether any job is left.
    pub(super) fn are_left(&self) -> bool {
        let mut table = self.table();
        table.jobs.retain(|_, job| {
            if job.is_abandoned() {
                job.progress.stop();
            }
            !(job.is_abandoned() && job.outcome.is_some())
        });
        !table.jobs.is_empty()
    }

    /// Stops them all.
    pub(super) fn stop(&self) {
        self.table().jobs.values().for_each(|job| job.progress.stop());
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait<T>(mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match look() {
                Some(found) => return found,
                None => assert!(Instant::now() < end, "not within 10 s"),
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_outcome_of_a_job_is_told_once() {
        let jobs = Jobs::default();
        let started = jobs.start(true, |progress| {
            progress.begin("counting", 10);
            progress.set(10);
            Ok(json!(42))
        });
        let number = started.expect("started")["job"].as_u64().expect("a number");
        let value = wait(|| jobs.ask(number).ok().filter(|value| value["ended"] == true));
        assert_eq!((&value["result"], &value["done_bytes"]), (&json!(42), &json!(10)));
        assert_eq!(jobs.ask(number).expect_err("forgotten").exit, Exit::NoSuch);
        assert!(!jobs.are_left());
    }

    #[test]
    fn jobs_are_bounded_and_stop_when_told() {
        let jobs = Jobs::default();
        let endless = |progress: &Progress| {
            wait(|| progress.is_stopped().then_some(()));
            Ok(Value::Null)
        };
        for _ in 0..JOBS_MAX {
            jobs.start(false, endless).expect("started");
        }
        assert_eq!(jobs.start(false, endless).expect_err("refused").exit, Exit::Busy);
        jobs.stop();
        wait(|| (!jobs.are_left()).then_some(()));
    }
}

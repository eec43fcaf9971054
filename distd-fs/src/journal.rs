//! The log lines about reads that failed: one line each, bounded in number, safe to print.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use distd_core::unit::BlockRange;

/// Lines a minute; what goes beyond is counted.
const LINES_MAX: u32 = 60;
const PERIOD: Duration = Duration::from_secs(60);

/// A bounded log of failed reads.
#[derive(Debug, Default)]
pub struct Journal(Mutex<Period>);

#[derive(Debug, Default)]
struct Period {
    start: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Journal {
    /// Writes one line naming file, range and reason.
    pub fn failed_read(&self, path: &str, blocks: Option<BlockRange>, reason: &dyn Display) {
        let Some(left_out) = self.admit(Instant::now()) else { return };
        if left_out > 0 {
            tracing::warn!("{left_out} more lines about failed reads were left out");
        }
        // Paths are escaped where they are made; a reason may quote a peer.
        let reason = reason.to_string().escape_debug().to_string();
        if let Some(blocks) = blocks {
            let (first, end) = (blocks.start, blocks.end());
            tracing::warn!("read of {path} failed: blocks {first}..{end} of the log: {reason}");
        } else {
            tracing::warn!("{path}: {reason}");
        }
    }

    /// Whether a line may be written now, and how many were left out before it.
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if period.start.is_none_or(|start| now.duration_since(start) >= PERIOD) {
            period.start = Some(now);
            period.lines = 0;
        }
        if period.lines >= LINES_MAX {
            period.left_out += 1;
            return None;
        }
        period.lines += 1;
        Some(std::mem::take(&mut period.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_failures_writes_a_bounded_number_of_lines() {
        let journal = Journal::default();
        let now = Instant::now();
        let written = (0..1000).filter(|_| journal.admit(now).is_some()).count();
        assert_eq!(written, LINES_MAX as usize);
        assert_eq!(journal.admit(now + PERIOD), Some(1000 - u64::from(LINES_MAX)));
    }
}

//! How a job of the node stands, until it has ended: a bar on a terminal, lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use distd_core::unit::HumanBytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use crate::control::{self, Answer, Request};
use crate::exit::Complaint;

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// How long the node may take to say how a job stands.
const PATIENCE: Duration = Duration::from_secs(30);

/// Watches a job of the node of a cache to its end, and says what it came to.
pub(crate) fn watch(cache: &Path, job: u64, silent: bool) -> Answer {
    let mut meter = Meter::new(silent);
    loop {
        let request = Request::Job { job };
        let value = control::call(cache, &request, PATIENCE).map_err(Complaint::failure)??;
        if value["ended"] == true {
            return Ok(value["result"].clone());
        }
        // The node lets a while pass before it answers.
        meter.set(&value);
    }
}

/// What the caller sees.
pub(crate) struct Meter {
    bar: Option<ProgressBar>,
    lines: bool,
    phase: String,
    said: Instant,
}

impl Meter {
    pub(crate) fn new(silent: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let bar = (!silent && terminal).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            let template =
                "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
            // The template is a constant and well-formed.
            bar.set_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        Self { bar, lines: !silent && !terminal, phase: String::new(), said: Instant::now() }
    }

    /// How it stands: `phase`, `done_bytes` of `total_bytes`.
    pub(crate) fn set(&mut self, value: &Value) {
        let phase = value["phase"].as_str().unwrap_or_default();
        let bytes = |name: &str| value[name].as_u64().unwrap_or(0);
        let (done, total) = (bytes("done_bytes"), bytes("total_bytes"));
        if let Some(bar) = &self.bar {
            if self.phase != phase {
                phase.clone_into(&mut self.phase);
                bar.set_message(self.phase.clone());
                bar.reset_eta();
            }
            bar.set_length(total);
            bar.set_position(done);
        } else if self.lines && self.said.elapsed() >= LINE_EVERY {
            self.said = Instant::now();
            let (done, total) = (HumanBytes(done), HumanBytes(total));
            let _ = writeln!(io::stderr(), "distd-fs: {phase}: {done} of {total}");
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

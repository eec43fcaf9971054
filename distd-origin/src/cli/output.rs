//! What is printed where: results to standard output, everything else to standard error.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use distd_core::unit::HumanBytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::cost::UpdateCost;
use crate::prune::PruneStep;
use crate::publish::{PublishReport, Step};

use super::exit::CommandError;

/// Without a terminal, a line of progress at most so often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How the user wants to be told.
pub(super) struct Output {
    json: bool,
    quiet: bool,
    verbose: u8,
}

impl Output {
    pub(super) fn new(json: bool, quiet: bool, verbose: u8) -> Self {
        Self { json, quiet, verbose }
    }

    /// Prints a command's result.
    pub(super) fn report(
        &self,
        report: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), CommandError> {
        if self.json {
            let mut line = serde_json::to_string(report).unwrap_or_default();
            line.push('\n');
            Self::raw(line.as_bytes())
        } else {
            Self::raw(text().as_bytes())
        }
    }

    /// Prints bytes to the standard output. Nobody reading them any more is no error.
    pub(super) fn raw(bytes: &[u8]) -> Result<(), CommandError> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(CommandError::Output(error)),
            Ok(()) => Ok(()),
        }
    }

    /// Says something that is worth knowing.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            Self::say("note: ", text);
        }
    }

    /// Warns; `--json` does not hide it, the warning is on standard error.
    pub(super) fn warning(&self, text: &str) {
        if !self.quiet {
            Self::say("warning: ", text);
        }
    }

    /// Prints why the command failed.
    pub(super) fn error(&self, error: &CommandError) {
        if self.json {
            let line = serde_json::json!({
                "error": error.to_string(),
                "exit_code": error.exit() as u8,
            });
            Self::say("", &line.to_string());
        } else {
            Self::say("error: ", &error.to_string());
        }
    }

    fn say(kind: &str, text: &str) {
        let mut stderr = anstream::stderr().lock();
        // Nothing is left to be told to whom.
        let _ = writeln!(stderr, "distd-origin: {kind}{text}");
    }

    /// Prints what a publish came to.
    pub(super) fn publish(&self, report: &PublishReport) -> Result<(), CommandError> {
        let exposed = &report.not_world_readable;
        if exposed.count > 0 {
            let more = if exposed.count > exposed.examples.len() as u64 { ", ..." } else { "" };
            self.warning(&format!(
                "{} entries are not readable by everybody here, and every member of the swarm will be able to read them: {}{more}",
                exposed.count,
                exposed.examples.join(", ")
            ));
        }
        if let Some(warning) = &report.index_warning {
            self.warning(&format!("the log is as it should be, but {warning}"));
        }
        if self.quiet && !self.json {
            return Ok(());
        }
        self.report(report, || publish_text(report, self.verbose))
    }

    /// Sends what happens while a server runs to standard error. `RUST_LOG` overrides `-v` and `-q`.
    pub(super) fn start_log(&self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => "error",
            (false, 0) => "info",
            (false, 1) => "debug",
            (false, _) => "trace",
        };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
        // systemd and the like add the time themselves.
        let colours = io::stderr().is_terminal();
        let log = tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter);
        log.without_time().with_target(false).with_ansi(colours).init();
    }

    /// Says where the origin serves; whoever started it may wait for that.
    pub(super) fn serving(&self, address: SocketAddr, urls: &[String]) {
        let report = serde_json::json!({ "address": address.to_string(), "urls": urls });
        let printed = self.report(&report, || {
            urls.iter().fold(String::new(), |text, url| text + "serving " + url + "\n")
        });
        if let Err(error) = printed {
            tracing::warn!(%error, "cannot print the URL");
        }
    }

    /// Shows how far a walk over the log has got.
    pub(super) fn munro_progress(&self, what: &'static str) -> impl FnMut(u64, u64) + use<> {
        let mut meter = Meter::new(self.quiet || self.json);
        move |done, total| meter.set(what, done, total, Unit::Mebibytes)
    }

    /// Shows how many bytes are written.
    pub(super) fn byte_progress(&self, what: &'static str) -> impl FnMut(u64, u64) + use<> {
        let mut meter = Meter::new(self.quiet || self.json);
        move |done, total| meter.set(what, done, total, Unit::Bytes)
    }

    /// Shows how a prune gets on.
    pub(super) fn prune_progress(&self) -> impl Fn(PruneStep) + use<> {
        let meter = RefCell::new(Meter::new(self.quiet || self.json));
        move |step| {
            let mut meter = meter.borrow_mut();
            match step {
                PruneStep::Wait => meter.set("waiting for a publish", 0, 0, Unit::Entries),
                PruneStep::Read(at, of) => meter.set("reading releases", at, of, Unit::Entries),
                PruneStep::Plan(at, of) => meter.set("planning", at, of, Unit::Mebibytes),
                PruneStep::Free(at, of) => meter.set("freeing", at, of, Unit::Entries),
            }
        }
    }

    /// Shows how a publish gets on.
    pub(super) fn publish_progress(&self) -> impl Fn(Step) + use<> {
        let meter = RefCell::new((Meter::new(self.quiet || self.json), 0, 0));
        move |step| {
            let (meter, done, total) = &mut *meter.borrow_mut();
            match step {
                Step::Index(at, of) => meter.set("indexing", at, of, Unit::Mebibytes),
                Step::Scan(found) => meter.set("scanning", found, 0, Unit::Entries),
                Step::Read(_, bytes) => (*done, *total) = (0, bytes),
                Step::Bytes(bytes) => {
                    *done += bytes;
                    meter.set("reading", *done, *total, Unit::Bytes);
                }
                Step::Frames(at, of) => meter.set("compressing", at, of, Unit::Mebibytes),
                Step::Seal => meter.set("sealing", 1, 1, Unit::Entries),
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Mebibytes,
    Entries,
}

/// A bar on a terminal, a line now and then elsewhere.
struct Meter {
    bar: Option<ProgressBar>,
    lines: bool,
    what: &'static str,
    said: Instant,
}

impl Meter {
    fn new(silent: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let bar = (!silent && terminal)
            .then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)));
        Self { bar, lines: !silent && !terminal, what: "", said: Instant::now() }
    }

    fn set(&mut self, what: &'static str, done: u64, total: u64, unit: Unit) {
        if let Some(bar) = &self.bar {
            if self.what != what {
                bar.set_style(style(total, unit));
                bar.set_message(what);
            }
            bar.set_length(total);
            bar.set_position(done);
        } else if self.lines && self.said.elapsed() >= LINE_EVERY {
            self.said = Instant::now();
            let _ = writeln!(
                io::stderr(),
                "distd-origin: {what}: {}",
                progress_text(done, total, unit)
            );
        }
        self.what = what;
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(total: u64, unit: Unit) -> ProgressStyle {
    let template = match (unit, total) {
        (_, 0) => "{msg} {pos}",
        (Unit::Bytes, _) => {
            "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
        }
        _ => "{msg} [{bar:30}] {pos}/{len} {eta}",
    };
    // The templates are constants and well-formed.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn progress_text(done: u64, total: u64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => format!("{} of {}", HumanBytes(done), HumanBytes(total)),
        Unit::Mebibytes => format!("{} of {}", HumanBytes(done << 20), HumanBytes(total << 20)),
        Unit::Entries => format!("{done} entries"),
    }
}

fn publish_text(report: &PublishReport, verbose: u8) -> String {
    let mut text = String::new();
    let PublishReport { track, version, .. } = report;
    if !report.changed {
        let _ = writeln!(
            text,
            "nothing changed: the tree is what {track}@{version} holds; there is no new release"
        );
        return text;
    }
    let verb = if report.dry_run { "would publish" } else { "published" };
    let _ = writeln!(text, "{verb} {track}@{version}");
    let PublishReport { files, directories, others, .. } = report;
    let _ = writeln!(text, "  {files} files, {directories} directories, {others} others");
    for (label, bytes) in [
        ("content", report.bytes),
        ("new content", report.new_bytes),
        ("new metadata", report.metadata_bytes),
        ("EROFS image", report.image_bytes),
        ("frames", report.frame_bytes),
    ] {
        let _ = writeln!(text, "  {label:13} {bytes:>14} bytes ({})", HumanBytes(bytes));
    }
    if let Some(embedded) = &report.embedded {
        let _ = writeln!(text, "  {}", embedded.text());
    }
    if let Some(why) = &report.no_image {
        let _ = writeln!(text, "  no EROFS image, FUSE shows each file of it: {why}");
    }
    if report.dry_run {
        let bytes = report.update_bytes;
        let _ = writeln!(text, "  {:13} {bytes:>14} bytes ({})", "to update", HumanBytes(bytes));
    }
    if report.image_update_bytes > 0 {
        let bytes = report.image_update_bytes;
        let _ =
            writeln!(text, "  {:13} {bytes:>14} bytes ({})", "for the image", HumanBytes(bytes));
    }
    for UpdateCost { version, cost } in &report.updates {
        let (label, bytes) = (format!("from {version}"), cost.bytes());
        let (human, image) = (HumanBytes(bytes), cost.image_text());
        let _ = writeln!(text, "  {label:13} {bytes:>14} bytes ({human}){image}");
    }
    if verbose > 0 {
        let _ = writeln!(text, "  {:13} {:>14} bytes", "read", report.read_bytes);
        let _ = writeln!(text, "  {:13} {:>14}", "extents", report.extents);
        let _ = writeln!(text, "  {:13} {:>14} munros", "log", report.munros);
    }
    text
}

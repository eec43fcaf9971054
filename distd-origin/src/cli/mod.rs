//! The command line: arguments, what each command prints, exit codes.

mod arguments;
mod exit;
mod output;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use distd_core::manifest::{Access, Metainfo, PeerAddress, parse_profile};
use serde_json::json;

use crate::announced::{self, Answer};
use crate::cost::updates;
use crate::diff::diff;
use crate::export::export;
use crate::history::History;
use crate::partial::Partial;
use crate::prune::{PruneOptions, prune};
use crate::publish::{PublishOptions, publish};
use crate::repo::{InitOptions, Repo};
use crate::rollback::rollback;
use crate::serve::{default_listen, serve};
use crate::show::{list, show};
use crate::verify::verify;

use arguments::{Arguments, Command};
use exit::{CommandError, Exit};
use output::Output;

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // The error prints itself, help and version to stdout; a closed pipe is no failure.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    let output = Output::new(arguments.json, arguments.quiet, arguments.verbose);
    match run(&arguments, &output) {
        Ok(exit) => exit.into(),
        Err(error) => {
            output.error(&error);
            error.exit().into()
        }
    }
}

fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CommandError> {
    let repo = || Repo::open(&arguments.repo);
    match &arguments.command {
        Command::Init { address, recovery_key } => {
            run_init(&arguments.repo, address, recovery_key.as_deref(), output)
        }
        Command::Publish { source, track, release, message, level, dry_run, profile } => {
            let profile = profile.as_deref().map(read_profile).transpose()?.unwrap_or_default();
            let options = PublishOptions {
                source,
                track,
                version: release,
                message: message.as_deref().unwrap_or_default(),
                dry_run: *dry_run,
                profile: &profile,
                level: *level,
            };
            let repo = repo()?;
            let mut report = publish(&repo, &options, &output.publish_progress())?;
            if report.changed && !report.dry_run {
                report.updates = updates(&repo.log()?, track, release)?;
                report.announced = await_announcement(&repo, report.munros, output);
            }
            output.publish(&report)?;
            Ok(Exit::Success)
        }
        Command::List => {
            let repo = repo()?;
            let listing = list(&repo, &repo.log()?)?;
            output.report(&listing, || listing.text())?;
            Ok(Exit::Success)
        }
        Command::Show { release } => {
            let repo = repo()?;
            let shown = show(&repo, &repo.log()?, release)?;
            output.report(&shown, || shown.text())?;
            Ok(Exit::Success)
        }
        Command::Diff { from, to, cost } => {
            let report = diff(&repo()?.log()?, from, to, *cost)?;
            output.report(&report, || report.text())?;
            Ok(Exit::Success)
        }
        Command::ExportErofs { release, file } => {
            let report = export(&repo()?.log()?, release, file, output.byte_progress("exporting"))?;
            output.report(&report, || report.text())?;
            Ok(Exit::Success)
        }
        Command::Verify => {
            let report = verify(&repo()?.log()?, output.munro_progress("verifying"))?;
            output.report(&report, || report.text())?;
            Ok(if report.is_sound() { Exit::Success } else { Exit::VerificationFailed })
        }
        Command::Rollback { track, release } => {
            let repo = repo()?;
            let mut report = rollback(&repo, track.name(), release.name())?;
            if report.changed {
                report.announced = await_announcement(&repo, report.munros, output);
            }
            output.report(&report, || {
                if report.changed {
                    format!("track {} went from {} to {}\n", report.track, report.from, report.to)
                } else {
                    format!(
                        "track {} stands at {} already: nothing changed\n",
                        report.track, report.to
                    )
                }
            })?;
            Ok(Exit::Success)
        }
        Command::Prune { keep, keep_track, dry_run } => {
            let options = PruneOptions {
                keep: keep.unwrap_or(1),
                keep_tracks: keep_track.clone(),
                dry_run: *dry_run,
            };
            let repo = repo()?;
            let mut report = prune(&repo, &options, &output.prune_progress())?;
            if report.sealed {
                report.announced = await_announcement(&repo, report.munros, output);
            }
            output.report(&report, || report.text())?;
            Ok(Exit::Success)
        }
        Command::Metainfo { track, address, output: file } => {
            run_metainfo(&repo()?, track.name(), address, file.as_deref(), output)
        }
        Command::Serve { listen, upload } => {
            output.start_log();
            let listen = listen.unwrap_or_else(default_listen);
            let ready = |address: SocketAddr, urls: &[String]| output.serving(address, urls);
            let announced = |munros| tracing::info!(munros, "announced");
            serve(&repo()?, listen, *upload, ready, announced)?;
            Ok(Exit::Success)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "distd-origin", &mut script);
            Output::raw(&script)?;
            Ok(Exit::Success)
        }
    }
}

/// Waits for a server that runs to tell the swarm of the log's first `munros`; whether it did, if one
/// runs.
fn await_announcement(repo: &Repo, munros: u64, output: &Output) -> Option<bool> {
    match announced::wait(&repo.announced_path(), munros, announced::PATIENCE) {
        Answer::NoServer => None,
        Answer::Announced => Some(true),
        Answer::Late => {
            output.warning(
                "it is committed, but the running 'distd-origin serve' has not announced it yet: \
                 a mount made now may show the release before",
            );
            Some(false)
        }
    }
}

/// Reads a profile as `distd-fs trace` writes it.
fn read_profile(file: &Path) -> Result<Vec<Access>, CommandError> {
    let path = || file.to_owned();
    let text = std::fs::read_to_string(file)
        .map_err(|source| CommandError::Read { path: path(), source })?;
    parse_profile(&text).map_err(|source| CommandError::Profile { path: path(), source })
}

fn run_init(
    dir: &Path,
    addresses: &[PeerAddress],
    recovery_key: Option<&Path>,
    output: &Output,
) -> Result<Exit, CommandError> {
    let recovery_key = recovery_key.map_or_else(|| beside(dir), Path::to_owned);
    let repo = Repo::init(&InitOptions { dir, addresses, recovery_key: &recovery_key })?;
    let (origin, url) = (repo.origin().to_string(), repo.url("TRACK"));
    let report = json!({
        "origin": origin,
        "url": url,
        "repo": dir.to_string_lossy(),
        "recovery_key": recovery_key.to_string_lossy(),
    });
    output.report(&report, || {
        format!("origin {origin}\nurl    {url}\nrecovery key in {}\n", recovery_key.display())
    })?;
    output.note(&format!(
        "move {} to a place that is not on this machine: it alone can name a successor if the origin's key is lost or stolen",
        recovery_key.display()
    ));
    Ok(Exit::Success)
}

/// `DIR.recovery.key`: not inside the repository, which is what gets stolen.
fn beside(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".recovery.key");
    dir.with_file_name(name)
}

fn run_metainfo(
    repo: &Repo,
    track: &str,
    addresses: &[PeerAddress],
    file: Option<&Path>,
    output: &Output,
) -> Result<Exit, CommandError> {
    let history = History::read(&repo.log()?)?;
    if !history.tracks().iter().any(|known| known == track) {
        return Err(history.no_such_track(track).into());
    }
    let addresses = if addresses.is_empty() { repo.addresses() } else { addresses.to_vec() };
    let metainfo = Metainfo { origin: repo.origin(), addresses, track: track.to_owned() };
    let file = file.map_or_else(|| PathBuf::from(format!("{track}.distd")), Path::to_owned);
    if file.as_os_str() == "-" {
        Output::raw(&metainfo.encode())?;
        return Ok(Exit::Success);
    }
    let failed = |source: io::Error| CommandError::Write { path: file.clone(), source };
    write_atomically(&file, &metainfo.encode()).map_err(failed)?;
    let report = json!({ "file": file.to_string_lossy(), "track": track });
    output.report(&report, || format!("{}\n", file.display()))?;
    Ok(Exit::Success)
}

/// Half a metainfo file is never seen under its name.
fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (partial, mut file) = Partial::create(path)?;
    file.write_all(bytes)?;
    partial.finish()
}

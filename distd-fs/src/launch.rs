//! Starting a node process in the background, and being one.
//!
//! Nothing is forked: the program runs itself again with the hidden command `node`, in a session of its
//! own, without the descriptors that its starter inherited. One line on its standard output tells
//! whether it is ready; from then on its output goes to a log in the cache.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::control::{self, Answer, CallError, Request};
use crate::daemon::{Daemon, DaemonOptions, Doorkeeper};
use crate::exit::{Complaint, Exit};

/// How long a node may take to open its cache and answer.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a starter tries where another node holds the cache but does not answer: it leaves, or it
/// has just been started.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(20);
const HANDOVER_PAUSE: Duration = Duration::from_millis(50);
/// Name of the log in the cache, and of the one before it.
const LOG_NAME: &str = "node.log";
const OLD_LOG_NAME: &str = "node.log.old";
/// The log is begun anew above this, in bytes; the one before is kept.
const LOG_BYTES_MAX: u64 = 4 << 20;
const LOG_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// What a node says when it is ready; anything else is a [`Complaint`].
const READY: &str = "ready";

/// Asks the node of the cache, which is started if none runs.
pub fn call_or_start(options: &DaemonOptions, request: &Request, patience: Duration) -> Answer {
    let began = Instant::now();
    loop {
        match control::call(&options.cache, request, patience) {
            Ok(answer) => return answer,
            Err(CallError::NoNode { .. }) => match start(options) {
                Ok(()) => {}
                // Another one was quicker, or the last one is not quite gone.
                Err(complaint) if complaint.exit != Exit::Busy => return Err(complaint),
                Err(complaint) if began.elapsed() > HANDOVER_PATIENCE => return Err(complaint),
                Err(_) => std::thread::sleep(HANDOVER_PAUSE),
            },
            Err(error) if began.elapsed() > HANDOVER_PATIENCE || timed_out(&error) => {
                return Err(Complaint::failure(error));
            }
            Err(_) => std::thread::sleep(HANDOVER_PAUSE),
        }
    }
}

fn timed_out(error: &CallError) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error, CallError::Broken { source, .. } if matches!(source.kind(), TimedOut | WouldBlock))
}

/// Starts a node process and waits until it answers.
fn start(options: &DaemonOptions) -> Result<(), Complaint> {
    let failed =
        |error: io::Error| Complaint::failure(format_args!("cannot start a node: {error}"));
    // What the starter inherited (locks, pipes of a shell) is not the node's.
    close_fds::set_fds_cloexec(3, &[]);
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.arg("node").arg("--cache").arg(&options.cache).current_dir("/");
    if let Some(quota) = options.quota_bytes {
        command.args(["--quota", &quota.to_string()]);
    }
    if let Some(listen) = options.listen {
        command.args(["--listen", &listen.to_string()]);
    }
    if !options.lan {
        command.arg("--nolan");
    }
    command.args(["--serve", options.serve.as_str(), "--pex", options.pex.as_str()]);
    let rates = [("--upload", options.rates.upload), ("--download", options.rates.download)];
    for (name, rate) in rates {
        if let Some(rate) = rate {
            command.args([name, &rate.to_string()]);
        }
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let Some(stdout) = child.stdout.take() else { return Ok(()) };
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut line = String::new();
        let outcome = BufReader::new(stdout).read_line(&mut line).map(|_| line);
        let _ = sender.send(outcome);
    });
    let Ok(line) = receiver.recv_timeout(START_PATIENCE) else {
        let _ = child.kill();
        return Err(Complaint::failure(format_args!(
            "the node of the cache {} did not start within {} s",
            options.cache.display(),
            START_PATIENCE.as_secs()
        )));
    };
    let line = line.map_err(failed)?;
    if line.trim_end() == READY {
        return Ok(());
    }
    Err(serde_json::from_str(&line).unwrap_or_else(|_| {
        let status = child.wait().map_or_else(|error| error.to_string(), |s| s.to_string());
        Complaint::failure(format_args!("the node ended while it started: {status}"))
    }))
}

/// Runs the node process that `start` started: the hidden command `node`.
pub fn run_node(options: &DaemonOptions) -> Result<(), Complaint> {
    // Fails only for a leader of a session, which is as good.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let daemon = match open(options) {
        Ok(daemon) => daemon,
        Err(complaint) => {
            let line = serde_json::to_string(&complaint).unwrap_or_default();
            let _ = writeln!(io::stdout(), "{line}");
            return Err(complaint);
        }
    };
    // Who started it may be gone: then somebody else may come.
    let _ = writeln!(io::stdout(), "{READY}");
    if let Err(error) = redirect(&options.cache) {
        tracing::warn!(%error, "no log in the cache");
    }
    let log_of = options.cache.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(LOG_CHECK_INTERVAL);
            let len = std::fs::metadata(log_of.join(LOG_NAME)).map_or(0, |log| log.len());
            if len > LOG_BYTES_MAX {
                let _ = redirect(&log_of);
            }
        }
    });
    daemon.revive();
    daemon.wait_end();
    leave(&daemon, &options.cache);
    Ok(())
}

/// Starts a daemon whose control socket is served.
pub fn open(options: &DaemonOptions) -> Result<Arc<Daemon>, Complaint> {
    let daemon = Daemon::start(options)?;
    let cannot =
        |error| Complaint::failure(format_args!("cannot open the control socket: {error}"));
    let listener = control::bind(&options.cache).map_err(cannot)?;
    let doorkeeper = Arc::new(Doorkeeper(Arc::clone(&daemon)));
    std::thread::Builder::new()
        .name("control-socket".into())
        .spawn(move || control::serve(&listener, &doorkeeper))
        .map_err(cannot)?;
    watch_signals(&daemon);
    Ok(daemon)
}

/// Unmounts, flushes, and takes the control socket away.
pub fn leave(daemon: &Daemon, cache: &Path) {
    // First, so that whoever comes now waits for the lock instead of for this node.
    let _ = std::fs::remove_file(cache.join(control::SOCKET_NAME));
    daemon.end();
}

/// SIGTERM and SIGINT end the node as an unmount of everything would.
fn watch_signals(daemon: &Arc<Daemon>) {
    let daemon = Arc::clone(daemon);
    let watch = move || -> io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            daemon.stop();
            Ok(())
        })
    };
    std::thread::spawn(move || {
        if let Err(error) = watch() {
            tracing::warn!(%error, "signals end the node without a last flush");
        }
    });
}

/// Sends standard output and errors to the log in the cache, begun anew if it is long.
fn redirect(cache: &Path) -> io::Result<()> {
    let (log, old) = (cache.join(LOG_NAME), cache.join(OLD_LOG_NAME));
    if std::fs::symlink_metadata(&log).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
        std::fs::rename(&log, old)?;
    }
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(0o600).custom_flags(no_follow).open(&log)?;
    rustix::stdio::dup2_stderr(&file)?;
    rustix::stdio::dup2_stdout(&file)?;
    rustix::stdio::dup2_stdin(&File::open("/dev/null")?)?;
    Ok(())
}

//! `serve`: the process around [`OriginServer`]: signals, readiness, the URL.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use distd_core::manifest::{DEFAULT_PORT, PeerAddress};
use distd_core::node::{NodeError, OriginServer, ServeOptions, ServerNews};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::announced::Announced;
use crate::behind;
use crate::history::{History, HistoryError};
use crate::repo::{Repo, RepoError};

/// How often the newest munro is signed afresh: how nodes know that it is the newest.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// Why the origin cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The repository.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// What was published.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The network.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
}

/// All addresses, on the default port.
pub fn default_listen() -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, DEFAULT_PORT).into()
}

/// Serves until SIGTERM or SIGINT, at most so many bytes of data a second. `ready` is told the URLs when the socket is open, one for each
/// track; `announced` the log's length in munros, each time that a publish is announced.
pub fn serve(
    repo: &Repo,
    listen: SocketAddr,
    upload: Option<NonZeroU64>,
    ready: impl FnOnce(SocketAddr, &[String]),
    mut announced: impl FnMut(u64),
) -> Result<(), ServeError> {
    let log = repo.log()?;
    if let Err(error) = behind::check(repo, &log) {
        tracing::error!(%error);
    }
    let mut tracks = History::read(&log)?.tracks();
    if tracks.is_empty() {
        // Nothing to mount yet: the place where a track's name will go.
        tracks.push("TRACK".to_owned());
    }
    let stop = stop_signal().map_err(ServeError::Signals)?;
    let options = ServeOptions { listen, heartbeat: HEARTBEAT, upload };
    let server = OriginServer::open(Arc::new(log), repo.key()?, &options)?;
    let address = server.address();
    let noted = Announced::hold(&repo.announced_path()).inspect_err(|error| {
        tracing::info!(%error, "a publish will not wait for its announcement");
    });
    let urls: Vec<String> =
        tracks.iter().map(|track| repo.url_at(&reachable(repo, address), track)).collect();
    ready(address, &urls);
    notify(&[NotifyState::Ready, NotifyState::Status(&format!("serving at {address}"))]);
    server.run(stop, |news| match news {
        ServerNews::Announced { munros } => {
            if let Ok(Err(error)) = noted.as_ref().map(|noted| noted.note(munros)) {
                tracing::warn!(%error, "a publish will not know of its announcement");
            }
            announced(munros);
        }
        ServerNews::Behind { munro, from } => {
            if let Err(error) = behind::note(repo, &munro, from) {
                tracing::error!(%error, "what the node holds cannot be kept: publish nothing here");
            }
        }
    });
    notify(&[NotifyState::Stopping]);
    Ok(())
}

/// Where nodes reach a server that listens there.
fn reachable(repo: &Repo, address: SocketAddr) -> Vec<PeerAddress> {
    let ip = address.ip().to_canonical();
    if ip.is_unspecified() {
        let listed = repo.addresses();
        let own = |peer: &PeerAddress| PeerAddress { port: address.port(), ..peer.clone() };
        return if repo.names_addresses() { listed } else { listed.iter().map(own).collect() };
    }
    let host = match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => ip.to_string(),
    };
    vec![PeerAddress { host, port: address.port() }]
}

/// Resolves at the first SIGTERM or SIGINT.
fn stop_signal() -> io::Result<oneshot::Receiver<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut terminate, mut interrupt) = {
        let _guard = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    let (stop, stopped) = oneshot::channel();
    thread::Builder::new().name("distd-signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        // The server may have ended by itself.
        let _ = stop.send(());
    })?;
    Ok(stopped)
}

/// Tells systemd, where it is there.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

//! The node process of a cache: its mounts, and what the control socket asks of it.

mod attributes;
mod follow;
mod get;
mod jobs;
mod mounted;
mod peers;
mod prefetch;
mod show;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use distd_core::manifest::profile_text;
use distd_core::node::{Audience, Node, NodeError, NodeOptions, Rates, Swarm};
use distd_core::store::OpenError;
use serde_json::{Value, json};

use crate::control::{Answer, GetRequest, MountRequest, Request, Responder, Wanted};
use crate::erofs::record::Record;
use crate::exit::{Complaint, Exit};
use crate::fs::{Fs, View, merged, without};
use crate::mount;
use crate::mountinfo::lying_on;
use crate::options::MountOptions;
use crate::target::Target;
use jobs::Jobs;
use mounted::Mounted;
use prefetch::bring_release;
use show::Wish;

/// How long a node without a mount waits for its first.
const FIRST_MOUNT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the sessions may take to end when the node is told to leave.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
/// State file of the cache that keeps the bound set by `cache limit`.
const QUOTA_STATE: &str = "quota";

/// How a node process is set up.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The cache's directory.
    pub cache: PathBuf,
    /// Bound of the cache, in bytes; `None`: as set by `cache limit`, else what the disk leaves.
    pub quota_bytes: Option<u64>,
    /// UDP address; `None`: any free port.
    pub listen: Option<SocketAddr>,
    /// Whether it fetches for nodes below it.
    pub relay: bool,
    /// Whether it looks for peers on the local network, and lets them find it.
    pub lan: bool,
    /// Whom it serves.
    pub serve: Audience,
    /// Whom it asks for other peers, and tells of them.
    pub pex: Audience,
    /// How much it sends and asks for in a second at the most.
    pub rates: Rates,
}

impl DaemonOptions {
    /// A node of this cache that is set up as usual.
    pub fn new(cache: PathBuf) -> Self {
        Self {
            cache,
            quota_bytes: None,
            listen: None,
            relay: false,
            lan: true,
            serve: Audience::default(),
            pex: Audience::default(),
            rates: Rates::default(),
        }
    }
}

#[derive(Default)]
struct State {
    mounts: BTreeMap<PathBuf, Arc<Mounted>>,
    /// Unmounted from the tree; their sessions end when their last files are closed.
    detached: Vec<Arc<Mounted>>,
    /// Mount requests being worked on.
    pending: usize,
    /// Whether a mount was ever asked for.
    asked: bool,
    /// Told to end, by a signal.
    stopped: bool,
    /// Takes no more mounts.
    leaving: bool,
    /// Dead mounts of the node before that cannot be replaced yet, and why.
    left: BTreeMap<PathBuf, String>,
    /// Releases held without a mount, by pin, as `status` tells them.
    relayed: BTreeMap<String, Value>,
}

impl State {
    fn sessions(&self) -> usize {
        self.mounts.len() + self.detached.len()
    }

    /// Whether it is mounted, or was and is still used.
    fn sessions_of(&self, mounted: &Arc<Mounted>) -> bool {
        self.mounts.values().chain(&self.detached).any(|other| Arc::ptr_eq(other, mounted))
    }

    /// A session has ended. Another mount may stand on its directory by then.
    fn forget(&mut self, mounted: &Arc<Mounted>) {
        self.mounts.retain(|_, other| !Arc::ptr_eq(other, mounted));
        self.detached.retain(|other| !Arc::ptr_eq(other, mounted));
    }
}

/// The node process.
pub struct Daemon {
    node: Node,
    cache: PathBuf,
    started: Instant,
    state: Mutex<State>,
    changed: Condvar,
    /// Held from the look at a directory to its mount.
    mounting: Mutex<()>,
    /// Held while a mount in the erofs view gets another superblock.
    mending: Mutex<()>,
    jobs: Jobs,
}

impl From<NodeError> for Complaint {
    fn from(error: NodeError) -> Self {
        let exit = match &error {
            NodeError::Cache(OpenError::Busy { .. }) => Exit::Busy,
            NodeError::Bind { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                Exit::Busy
            }
            _ => Exit::Failure,
        };
        Self::new(exit, error)
    }
}

impl Daemon {
    /// Opens the cache and starts the node.
    pub fn start(options: &DaemonOptions) -> Result<Arc<Self>, Complaint> {
        let mut node_options = NodeOptions::new(options.cache.clone());
        node_options.quota_bytes = options.quota_bytes;
        (node_options.relay, node_options.lan) = (options.relay, options.lan);
        (node_options.serve, node_options.pex) = (options.serve, options.pex);
        node_options.rates = options.rates;
        if let Some(listen) = options.listen {
            node_options.listen = listen;
        }
        let node = Node::start(&node_options)?;
        if options.quota_bytes.is_none()
            && let Some(quota) = saved_quota(&node)
        {
            node.cache().set_quota(Some(quota));
        }
        Ok(Arc::new(Self {
            node,
            cache: options.cache.clone(),
            started: Instant::now(),
            state: Mutex::default(),
            changed: Condvar::new(),
            mounting: Mutex::default(),
            mending: Mutex::default(),
            jobs: Jobs::default(),
        }))
    }

    /// Waits until there is nothing left to do: after the last unmount, or when told to stop.
    pub fn wait_end(&self) {
        let mut state = self.state();
        loop {
            let jobs_left = self.jobs.are_left();
            let idle = state.sessions() == 0 && state.pending == 0 && !jobs_left;
            let waited = state.asked || self.started.elapsed() >= FIRST_MOUNT_PATIENCE;
            if state.stopped || (idle && waited) {
                state.leaving = true;
                self.jobs.stop();
                return;
            }
            if state.pending == 0 && !jobs_left {
                self.leave_swarms(&state);
            }
            let wait = self.changed.wait_timeout(state, Duration::from_secs(1));
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Leaves the swarms that no mount needs any more. Who is about to need one is counted before it
    /// joins, under the same lock.
    fn leave_swarms(&self, state: &State) {
        for origin in self.node.joined() {
            let mut sessions = state.mounts.values().chain(&state.detached);
            if !sessions.any(|mounted| mounted.swarm.origin() == origin) {
                tracing::info!(%origin, "nothing of this origin is mounted any more: leaving its swarm");
                self.node.leave(origin);
            }
        }
    }

    /// Keeps [`Self::wait_end`] from returning for lack of mounts.
    pub fn stay(&self) {
        self.state().pending += 1;
    }

    /// Takes back one [`Self::stay`].
    fn unstay(&self) {
        self.state().pending -= 1;
        self.changed.notify_all();
    }

    /// Whether the node is on its way out.
    pub fn is_leaving(&self) -> bool {
        let state = self.state();
        state.stopped || state.leaving
    }

    /// Takes part in a target's swarm.
    pub fn join(&self, target: &Target) -> Result<Swarm, Complaint> {
        Ok(self.node.join(target.origin, &target.addresses)?)
    }

    /// The UDP address that peers reach.
    pub fn listen_address(&self) -> SocketAddr {
        self.node.listen_address()
    }

    /// What `status` says of a release that is held without a mount.
    pub fn note_relayed(&self, pin: &str, value: Value) {
        self.state().relayed.insert(pin.to_owned(), value);
    }

    /// Makes [`Self::wait_end`] return.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    /// Unmounts what is mounted, lazily, and ends the node: the cache is flushed.
    pub fn end(&self) {
        let directories: Vec<PathBuf> = self.state().mounts.keys().cloned().collect();
        for directory in directories {
            if let Err(error) = mount::detach(&directory) {
                tracing::warn!(%error, "cannot unmount {}", directory.display());
            }
        }
        let state = self.state();
        let mounted = |state: &mut State| state.sessions() > 0;
        drop(self.changed.wait_timeout_while(state, LEAVE_PATIENCE, mounted));
        self.node.stop();
    }

    /// Mounts what is asked for; the same again is success.
    pub fn mount(self: &Arc<Self>, request: &MountRequest) -> Option<Answer> {
        self.counted(|| self.mount_counted(request))
    }

    /// Does what keeps the node from leaving meanwhile; `None` if it leaves already.
    fn counted(&self, action: impl FnOnce() -> Answer) -> Option<Answer> {
        {
            let mut state = self.state();
            if state.leaving {
                return None;
            }
            state.pending += 1;
            state.asked = true;
        }
        let answer = action();
        self.state().pending -= 1;
        self.changed.notify_all();
        Some(answer)
    }

    /// Starts to bring a release into the cache.
    fn prefetch_source(&self, wanted: &Wanted, timeout_s: u64, watched: bool) -> Answer {
        let target = target_of(wanted)?;
        let timeout = Duration::from_secs(timeout_s);
        let swarm = self.node.join(target.origin, &target.addresses)?;
        self.jobs.start(watched, move |progress| {
            let (_, release) = target.release(&swarm, timeout, false)?;
            bring_release(&swarm, &release, Path::new(""), timeout, progress)
        })
    }

    /// Starts to make a directory a release.
    fn get(&self, request: GetRequest) -> Answer {
        let GetRequest { wanted, directory, delete, timeout_s } = request;
        let target = target_of(&wanted)?;
        let timeout = Duration::from_secs(timeout_s);
        let swarm = self.node.join(target.origin, &target.addresses)?;
        let directory = PathBuf::from(directory);
        self.jobs.start(true, move |progress| {
            let (_, release) = target.release(&swarm, timeout, false)?;
            let report = get::get(&swarm, &release, &directory, delete, timeout, progress)?;
            serde_json::to_value(report).map_err(Complaint::failure)
        })
    }

    /// Starts to bring a path's content into the cache.
    pub fn prefetch(&self, path: &Path, watched: bool) -> Answer {
        let (mounted, below) = self.mount_of(path)?;
        self.jobs.start(watched, move |progress| {
            let (swarm, timeout) = (&mounted.swarm, mounted.timeout);
            bring_release(swarm, &mounted.view().release, &below, timeout, progress)
        })
    }

    fn mount_counted(self: &Arc<Self>, request: &MountRequest) -> Answer {
        let MountRequest { source, directory, options, .. } = request.clone();
        let directory: PathBuf = directory.into();
        let target = target_of(&request.wanted)?;
        let timeout = clamped_timeout(&options);
        let swarm = self.node.join(target.origin, &target.addresses)?;
        let (record, release) = target.release(&swarm, timeout, options.allow_stale)?;
        let _one_at_a_time = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mounted) = self.standing(&directory) {
            if mounted.source != source {
                let text = format!("{} is mounted on {}", mounted.source, directory.display());
                return Err(Complaint::new(Exit::Busy, text));
            }
            self.mend(&mounted)?;
            return Ok(mounted.describe());
        }
        let left = self.left_on(&directory).map(|line| line.device);
        if let Some(device) = &left {
            let lying = lying_on(&directory, device).map_err(Complaint::failure)?;
            if let Some(lying) = lying.filter(|lying| !lying.is_empty()) {
                let (shown, lying) = (directory.display(), lying.join(", "));
                let text = format!(
                    "a dead mount is on {shown}; what is mounted on {lying} below it has to be unmounted first"
                );
                return Err(Complaint::new(Exit::Busy, text));
            }
        }
        let view = View { generation: 0, origin: target.origin, record, release };
        let fs = Fs::new(Arc::new(swarm.clone()), Arc::new(view), timeout);
        let (shown, session) = self.show(&Wish {
            fs: &fs,
            directory: &directory,
            source: &source,
            options: &options,
            timeout,
            left: left.as_deref(),
        })?;
        let point = mounted::Point { directory, source, shown };
        let mounted = Arc::new(Mounted::new(point, swarm, fs, request));
        let described = mounted.describe();
        tracing::info!("mounted {} on {}", mounted.source, mounted.directory.display());
        self.state().mounts.insert(mounted.directory.clone(), Arc::clone(&mounted));
        Self::note(&mounted, &self.cache);
        let running = match session {
            Some(session) => self.run_session(session, &mounted),
            None => {
                self.watch_view(&mounted);
                Ok(())
            }
        };
        let following = running.and_then(|()| follow::start(self, &mounted));
        mounted.start_prefetch(None);
        following.map_err(|error| {
            self.state().forget(&mounted);
            let _ = mount::detach(&mounted.directory);
            Complaint::failure(format_args!("no thread for the mount: {error}"))
        })?;
        Ok(described)
    }

    /// What this node shows on the directory. Between an unmount and the end of its session the entry
    /// still stands, and nothing is mounted: that one is put aside.
    fn standing(&self, directory: &Path) -> Option<Arc<Mounted>> {
        let mut state = self.state();
        let mounted = Arc::clone(state.mounts.get(directory)?);
        if mounted.is_visible() {
            return Some(mounted);
        }
        state.mounts.remove(directory);
        state.detached.push(mounted);
        None
    }

    fn run_session(
        self: &Arc<Self>,
        session: fuser::Session<crate::fuse::Adapter<Swarm>>,
        mounted: &Arc<Mounted>,
    ) -> std::io::Result<()> {
        let (daemon, gone) = (Arc::clone(self), Arc::clone(mounted));
        let run = move || {
            // A panic in a session thread comes back as an error here and ends this mount only.
            if let Err(error) = session.run() {
                tracing::error!(%error, "the mount on {} broke", gone.directory.display());
                // Unless another mount stands there by now.
                if daemon.stands(&gone) {
                    let _ = mount::detach(&gone.directory);
                }
            }
            daemon.on_unmounted(&gone);
        };
        std::thread::Builder::new().name("fuse-session".into()).spawn(run).map(drop)
    }

    /// A mount whose session has ended.
    fn on_unmounted(&self, gone: &Arc<Mounted>) {
        if self.stands(gone) {
            Record::remove(&gone.directory);
            tracing::info!("unmounted {}", gone.directory.display());
        }
        gone.end();
        self.state().forget(gone);
        self.changed.notify_all();
    }

    /// Whether it is this mount that the node has on its directory.
    fn stands(&self, mounted: &Arc<Mounted>) -> bool {
        self.state().mounts.values().any(|other| Arc::ptr_eq(other, mounted))
    }

    /// How the node, its mounts and its swarms stand.
    pub fn status(&self) -> Answer {
        let status = self.node.status()?;
        let mounts: Vec<Arc<Mounted>> = self.state().mounts.values().cloned().collect();
        let sum = |bytes: fn(&distd_core::node::SwarmStatus) -> u64| -> u64 {
            status.swarms.iter().map(bytes).sum()
        };
        let metadata = sum(|swarm| swarm.fetched_metadata_bytes);
        let data = sum(|swarm| swarm.fetched_data_bytes);
        let frames = sum(|swarm| swarm.fetched_frame_bytes);
        let pins: Vec<String> = self
            .logs()
            .iter()
            .flat_map(|log| log.pins().into_keys())
            .filter(|name| name.contains('@'))
            .collect();
        Ok(json!({
            "fetched_bytes": metadata + data + frames,
            "fetched_metadata_bytes": metadata,
            "fetched_data_bytes": data,
            "fetched_frame_bytes": frames,
            "decoded_bytes": sum(|swarm| swarm.decoded_bytes),
            "delta_frames": sum(|swarm| swarm.delta_frames),
            "full_frames": sum(|swarm| swarm.full_frames),
            "refused_frames": sum(|swarm| swarm.refused_frames),
            "local_bytes": sum(|swarm| swarm.local_bytes),
            "sources": peers::sources(status.swarms.iter()),
            "node": {
                "pid": std::process::id(),
                "version": env!("CARGO_PKG_VERSION"),
                "listen": status.listen,
                "serve": status.serve,
                "uptime_s": status.uptime_s,
            },
            "cache": { "directory": self.cache, "usage": status.cache, "pins": pins },
            "mounts": mounts.iter().map(|mounted| mounted.status()).collect::<Vec<Value>>(),
            "left": self.state().left,
            "relayed": self.state().relayed.values().cloned().collect::<Vec<Value>>(),
            "swarms": status.swarms,
        }))
    }

    /// Keeps a path's blocks from eviction.
    pub fn pin(&self, path: &Path) -> Answer {
        let (mounted, below) = self.mount_of(path)?;
        let place = mounted.walk(&below)?;
        let ranges = merged([place.content, place.metadata].concat());
        let name = mounted.pin_name(&below);
        mounted.swarm.cached().pin(&name, &ranges).map_err(Complaint::failure)?;
        let local = mounted.fs.local(ranges.into_iter());
        Ok(json!({ "pin": name, "local_bytes": local.local, "total_bytes": local.total }))
    }

    /// Lets go of a path's blocks.
    pub fn unpin(&self, path: &Path) -> Answer {
        let (mounted, below) = self.mount_of(path)?;
        let name = mounted.pin_name(&below);
        let log = mounted.swarm.cached();
        if !log.pins().contains_key(&name) {
            let text = format!("{} is not pinned (no pin named {name})", path.display());
            return Err(Complaint::new(Exit::NoSuch, text));
        }
        log.unpin(&name).map_err(Complaint::failure)?;
        Ok(json!({ "pin": name }))
    }

    /// What the mount that a path lies on was first used for, as a profile.
    pub fn trace(&self, path: &Path) -> Answer {
        let (mounted, _) = self.mount_of(path)?;
        let accesses = mounted.accesses()?;
        let mut value = mounted.describe();
        value["accesses"] = json!(accesses.len());
        value["profile"] = json!(profile_text(&accesses));
        Ok(value)
    }

    /// Has the mount that a path lies on stay at its release.
    pub fn hold(&self, path: &Path) -> Answer {
        self.mount_of(path)?.0.hold()
    }

    /// Has the mount that a path lies on take the newest release, and follow its track from then on
    /// unless this is for once.
    pub fn release(self: &Arc<Self>, path: &Path, once: bool) -> Answer {
        self.mount_of(path)?.0.let_go(self, once)
    }

    /// Changes the bound of the cache, for later nodes too.
    pub fn limit(&self, quota_bytes: Option<u64>) -> Answer {
        self.node.cache().set_quota(quota_bytes);
        let text = quota_bytes.map(|bytes| bytes.to_string()).unwrap_or_default();
        self.node.cache().save(QUOTA_STATE, text.as_bytes()).map_err(Complaint::failure)?;
        self.usage()
    }

    /// Gives up a path's content.
    pub fn evict(&self, path: &Path) -> Answer {
        let (mounted, below) = self.mount_of(path)?;
        let place = mounted.walk(&below)?;
        Ok(json!({ "freed_bytes": mounted.swarm.cached().evict(&place.content) }))
    }

    /// Gives up all that nothing pins, but the metadata of what is mounted.
    pub fn clean(&self) -> Answer {
        let mounts: Vec<Arc<Mounted>> = self.state().mounts.values().cloned().collect();
        let mut freed = 0;
        for log in self.logs() {
            let of_log = mounts.iter().filter(|mounted| mounted.swarm.origin() == log.origin());
            let kept = merged(of_log.flat_map(|mounted| mounted.metadata()).collect());
            freed += log.evict(&without(&log.held(), &kept));
        }
        Ok(json!({ "freed_bytes": freed }))
    }

    /// Makes everything fetched durable.
    pub fn flush(&self) -> Answer {
        self.node.cache().flush().map_err(Complaint::failure)?;
        self.usage()
    }

    fn usage(&self) -> Answer {
        serde_json::to_value(self.node.cache().usage()).map_err(Complaint::failure)
    }

    fn logs(&self) -> Vec<Arc<distd_core::store::CachedLog>> {
        let cache = self.node.cache();
        cache.logs().into_iter().filter_map(|origin| cache.log(origin).ok()).collect()
    }

    /// The mount that a path lies on, and the path below its mount point.
    fn mount_of(&self, path: &Path) -> Result<(Arc<Mounted>, PathBuf), Complaint> {
        let state = self.state();
        let holds = |mounted: &&Arc<Mounted>| path.starts_with(&mounted.directory);
        let mounted = state.mounts.values().rev().find(holds).cloned().ok_or_else(|| {
            let points: Vec<_> = state.mounts.keys().map(|p| p.display().to_string()).collect();
            let text = format!(
                "{} lies on no mount of the cache {}; it has {}",
                path.display(),
                self.cache.display(),
                if points.is_empty() { "none".to_owned() } else { points.join(", ") }
            );
            Complaint::new(Exit::NoSuch, text)
        })?;
        let below = path.strip_prefix(&mounted.directory).unwrap_or(path).to_owned();
        Ok((mounted, below))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the control socket talks to.
pub struct Doorkeeper(pub Arc<Daemon>);

impl Responder for Doorkeeper {
    fn respond(&self, request: Request) -> Option<Answer> {
        let daemon = &self.0;
        Some(match request {
            Request::Mount(request) => return daemon.mount(&request),
            Request::Status => daemon.status(),
            Request::Peers => daemon.peers(),
            Request::Pin { path } => daemon.pin(&PathBuf::from(path)),
            Request::Unpin { path } => daemon.unpin(&PathBuf::from(path)),
            Request::Prefetch { path, watched } => daemon.prefetch(&PathBuf::from(path), watched),
            Request::PrefetchSource { wanted, timeout_s, watched } => {
                return daemon.counted(|| daemon.prefetch_source(&wanted, timeout_s, watched));
            }
            Request::Trace { path } => daemon.trace(&PathBuf::from(path)),
            Request::Attributes { path } => daemon.attributes(&PathBuf::from(path)),
            Request::Get(request) => return daemon.counted(|| daemon.get(request)),
            Request::Job { job } => daemon.jobs.ask(job),
            Request::Hold { path } => daemon.hold(&PathBuf::from(path)),
            Request::Release { path, once } => daemon.release(&PathBuf::from(path), once),
            Request::Limit { quota_bytes } => daemon.limit(quota_bytes),
            Request::Evict { path } => daemon.evict(&PathBuf::from(path)),
            Request::Clean => daemon.clean(),
            Request::Flush => daemon.flush(),
        })
    }
}

fn saved_quota(node: &Node) -> Option<u64> {
    let bytes = match node.cache().load(QUOTA_STATE) {
        Ok(bytes) => bytes?,
        Err(error) => {
            tracing::warn!(%error, "the cache's limit is lost; set it again");
            return None;
        }
    };
    std::str::from_utf8(&bytes).ok()?.parse().ok()
}

fn target_of(wanted: &Wanted) -> Result<Target, Complaint> {
    let wrong = |error: &dyn std::fmt::Display| Complaint::usage(format_args!("{error}"));
    let addresses = wanted.addresses.iter().map(|address| address.parse());
    Ok(Target {
        origin: wanted.origin.parse().map_err(|error| wrong(&error))?,
        addresses: addresses
            .collect::<Result<_, distd_core::manifest::SourceError>>()
            .map_err(|error| wrong(&error))?,
        track: wanted.track.clone(),
        release: wanted.release.clone(),
    })
}

/// The deadline of operations, kept below the kernel's own: that one ends the whole mount.
fn clamped_timeout(options: &MountOptions) -> Duration {
    let wanted = Duration::from_secs(options.timeout_s);
    let Some(bound) = mount::kernel_timeout_s().map(Duration::from_secs) else { return wanted };
    // The kernel counts in coarse steps, and an answer takes a moment after its deadline.
    let safe = (bound * 3 / 4).max(Duration::from_secs(1)).min(bound);
    if wanted > safe {
        tracing::warn!(
            "timeout={} s is above the kernel's own bound for FUSE requests ({} s): {} s count",
            wanted.as_secs(),
            bound.as_secs(),
            safe.as_secs()
        );
    }
    wanted.min(safe)
}

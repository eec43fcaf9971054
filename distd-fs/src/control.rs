//! The control socket: how commands talk to the node process of a cache.
//!
//! One request and one answer per connection, each one line of JSON with the protocol's version in it.
//! Only the node's own user and root are heard; others may ask for the status and the peers. Both sides read with a
//! bound and a deadline.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exit::{Complaint, Exit};
use crate::options::MountOptions;
use crate::target::Target;

/// Version of the protocol: both sides must be of the same.
pub const VERSION: u32 = 5;
/// Name of the socket in the cache's directory.
pub const SOCKET_NAME: &str = "control.sock";

/// Longest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Connections served at one time; a further one is told to come again.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to say what it wants.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// What a command asks of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    /// Show a release on a directory.
    Mount(MountRequest),
    /// How the node stands.
    Status,
    /// The peers of the node.
    Peers,
    /// Keep a path's blocks from eviction.
    Pin {
        /// A path on a mount.
        path: PathText,
    },
    /// Let go of a path's blocks.
    Unpin {
        /// A path that was pinned.
        path: PathText,
    },
    /// Stay at the release that is shown.
    Hold {
        /// A path on a mount.
        path: PathText,
    },
    /// Take the newest release, and follow from then on.
    Release {
        /// A path on a mount.
        path: PathText,
        /// Stay at that one.
        once: bool,
    },
    /// Bring a path's content into the cache, as a job.
    Prefetch {
        /// A path on a mount.
        path: PathText,
        /// The job ends when nobody asks about it any more.
        watched: bool,
    },
    /// Bring a release into the cache, as a job.
    PrefetchSource {
        /// Which release.
        wanted: Wanted,
        /// How long each step waits for the network, in seconds.
        timeout_s: u64,
        /// The job ends when nobody asks about it any more.
        watched: bool,
    },
    /// What a mount was first used for.
    Trace {
        /// A path on a mount.
        path: PathText,
    },
    /// What distd knows of a file: the attributes that the tree view answers by itself.
    Attributes {
        /// A path on a mount.
        path: PathText,
    },
    /// Make a directory a release, as a job.
    Get(GetRequest),
    /// How a job stands.
    Job {
        /// Its number.
        job: u64,
    },
    /// Change the bound of the cache.
    Limit {
        /// In bytes; `None`: what the disk's reserve leaves.
        quota_bytes: Option<u64>,
    },
    /// Give up a path's blocks.
    Evict {
        /// A path on a mount.
        path: PathText,
    },
    /// Give up all that nothing pins and no mount's metadata needs.
    Clean,
    /// Make everything fetched durable now.
    Flush,
}

/// A release, as a source says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The origin's id.
    pub origin: String,
    /// Peers to begin with.
    pub addresses: Vec<String>,
    /// The track.
    pub track: String,
    /// The release; `None`: the track's newest.
    pub release: Option<String>,
}

impl From<&Target> for Wanted {
    fn from(target: &Target) -> Self {
        Self {
            origin: target.origin.to_string(),
            addresses: target.addresses.iter().map(ToString::to_string).collect(),
            track: target.track.clone(),
            release: target.release.clone(),
        }
    }
}

/// Which release to make a directory of, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetRequest {
    /// Which release.
    pub wanted: Wanted,
    /// Where, as an absolute path.
    pub directory: PathText,
    /// Remove what the release does not have.
    pub delete: bool,
    /// How long each step waits for the network, in seconds.
    pub timeout_s: u64,
}

/// What to mount, where and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// The source as it was given: what mount tables show.
    pub source: String,
    /// Which release.
    pub wanted: Wanted,
    /// Where, as an absolute path.
    pub directory: PathText,
    /// How.
    pub options: MountOptions,
}

/// A path as JSON: a string, or bytes where it is no UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PathText {
    /// UTF-8.
    Text(String),
    /// Anything else.
    Bytes(Vec<u8>),
}

impl From<&Path> for PathText {
    fn from(path: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }
}

impl From<PathText> for PathBuf {
    fn from(path: PathText) -> Self {
        use std::os::unix::ffi::OsStringExt;
        match path {
            PathText::Text(text) => text.into(),
            PathText::Bytes(bytes) => std::ffi::OsString::from_vec(bytes).into(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    #[serde(flatten)]
    request: Request,
}

#[derive(Serialize, Deserialize)]
struct Reply {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Complaint>,
}

/// What the node answers.
pub type Answer = Result<Value, Complaint>;

/// Whether anybody listens.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No node runs for this cache.
    #[error("no node runs for the cache {}", .cache.display())]
    NoNode {
        /// The cache's directory.
        cache: PathBuf,
    },
    /// The conversation broke off.
    #[error("the node of the cache {} does not answer: {source}", .cache.display())]
    Broken {
        /// The cache's directory.
        cache: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// Asks the node of a cache; the answer is waited for up to `patience`.
pub fn call(cache: &Path, request: &Request, patience: Duration) -> Result<Answer, CallError> {
    let no_node = || CallError::NoNode { cache: cache.to_owned() };
    let broken = |source| CallError::Broken { cache: cache.to_owned(), source };
    let Ok(directory) = open_directory(cache) else { return Err(no_node()) };
    let stream =
        UnixStream::connect(short_path(&directory)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => no_node(),
            _ => broken(error),
        })?;
    converse(&stream, request, patience).map_err(broken)
}

fn converse(stream: &UnixStream, request: &Request, patience: Duration) -> io::Result<Answer> {
    stream.set_write_timeout(Some(REQUEST_DEADLINE))?;
    stream.set_read_timeout(Some(patience))?;
    write_line(stream, &Envelope { version: VERSION, request: request.clone() })?;
    let line = read_line(stream, ANSWER_BYTES_MAX)?;
    let reply: Reply = serde_json::from_slice(&line)?;
    if reply.version != VERSION {
        return Ok(Err(other_version(reply.version)));
    }
    Ok(match (reply.result, reply.error) {
        (_, Some(complaint)) => Err(complaint),
        (result, None) => Ok(result.unwrap_or(Value::Null)),
    })
}

fn other_version(found: u32) -> Complaint {
    Complaint::failure(format_args!(
        "the node speaks version {found} of the control protocol, this program version {VERSION}: \
         unmount everything and mount again, so that both are of one version"
    ))
}

/// Opens the cache's directory, and nothing else: what was planted there in its place (a fifo) would
/// block.
fn open_directory(cache: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(cache, flags, Mode::empty())?.into())
}

/// The socket's path through the open directory: socket addresses hold 107 bytes only, and the
/// directory cannot be exchanged meanwhile.
fn short_path(directory: &File) -> PathBuf {
    format!("/proc/self/fd/{}/{SOCKET_NAME}", directory.as_raw_fd()).into()
}

fn write_line<T: Serialize>(mut stream: &UnixStream, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn read_line(stream: &UnixStream, most: u64) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(most)).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => Ok(line),
        Some(_) if line.len() as u64 + 1 >= most => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {most} bytes")))
        }
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Answers a request; called on a thread of its own, which may block.
pub trait Responder: Send + Sync + 'static {
    /// The answer; `None` hangs up: the node is leaving, another one may be started.
    fn respond(&self, request: Request) -> Option<Answer>;
}

/// Binds the control socket of a cache whose lock the caller holds, so that a socket that lies there
/// is a dead node's.
pub fn bind(cache: &Path) -> io::Result<UnixListener> {
    let directory = open_directory(cache)?;
    match rustix::fs::unlinkat(&directory, SOCKET_NAME, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let listener = UnixListener::bind(short_path(&directory))?;
    // The directory is the owner's alone, so that nobody came in between.
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::chmodat(&directory, SOCKET_NAME, mode, rustix::fs::AtFlags::empty())?;
    Ok(listener)
}

/// Serves the socket until the process ends.
pub fn serve(listener: &UnixListener, responder: &Arc<impl Responder>) {
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket fails");
                // Out of descriptors, most likely: trying on at once would spin.
                std::thread::sleep(Duration::from_secs(1));
                continue;
            }
        };
        let (responder, counted) = (Arc::clone(responder), Counted::new(&connections));
        let connection = move || {
            let busy = counted.number > CONNECTIONS_MAX;
            if let Err(error) = serve_one(&stream, &*responder, busy) {
                tracing::debug!(%error, "a control connection broke off");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("control".into()).spawn(connection) {
            tracing::warn!(%error, "no thread for a control connection");
        }
    }
}

/// One connection in the count of all.
struct Counted {
    all: Arc<AtomicUsize>,
    number: usize,
}

impl Counted {
    fn new(all: &Arc<AtomicUsize>) -> Self {
        Self { all: Arc::clone(all), number: all.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve_one(stream: &UnixStream, responder: &impl Responder, busy: bool) -> io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_DEADLINE))?;
    stream.set_write_timeout(Some(REQUEST_DEADLINE))?;
    let answer = if busy {
        Err(Complaint::new(Exit::Busy, "the node has too many commands at once: try again"))
    } else {
        let peer = rustix::net::sockopt::socket_peercred(stream)?;
        let own = rustix::process::geteuid();
        let trusted = peer.uid.is_root() || peer.uid == own;
        match read_line(stream, REQUEST_BYTES_MAX) {
            Ok(line) => match answer_line(&line, trusted, responder) {
                Some(answer) => answer,
                None => return Ok(()),
            },
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(Complaint::usage(format_args!("the request is too long: {error}")))
            }
            Err(error) => return Err(error),
        }
    };
    let (result, error) = match answer {
        Ok(result) => (Some(result), None),
        Err(complaint) => (None, Some(complaint)),
    };
    write_line(stream, &Reply { version: VERSION, result, error })
}

fn answer_line(line: &[u8], trusted: bool, responder: &impl Responder) -> Option<Answer> {
    match parse_request(line) {
        Ok(request) if trusted || matches!(request, Request::Status | Request::Peers) => {
            responder.respond(request)
        }
        Ok(_) => {
            Some(Err(Complaint::failure("only root and the node's own user may ask for this")))
        }
        Err(complaint) => Some(Err(complaint)),
    }
}

fn parse_request(line: &[u8]) -> Result<Request, Complaint> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let no_request = |error| Complaint::usage(format_args!("not a request: {error}"));
    let Version { version } = serde_json::from_slice(line).map_err(no_request)?;
    if version != VERSION {
        return Err(other_version(version));
    }
    let envelope: Envelope = serde_json::from_slice(line).map_err(no_request)?;
    Ok(envelope.request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Echo;

    impl Responder for Echo {
        fn respond(&self, request: Request) -> Option<Answer> {
            Some(serde_json::to_value(request).map_err(Complaint::failure))
        }
    }

    fn served() -> (tempfile::TempDir, PathBuf) {
        let cache = tempfile::tempdir().expect("a directory");
        let deep = cache.path().join("d".repeat(200));
        std::fs::create_dir(&deep).expect("made");
        let listener = bind(&deep).expect("binds");
        std::thread::spawn(move || serve(&listener, &Arc::new(Echo)));
        (cache, deep)
    }

    fn say(cache: &Path, bytes: &[u8]) -> Vec<u8> {
        let directory = open_directory(cache).expect("is there");
        let mut stream = UnixStream::connect(short_path(&directory)).expect("connects");
        // The node may hang up before all is written.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    #[test]
    fn a_request_is_answered_in_a_cache_with_a_long_path() {
        let (_directory, cache) = served();
        let request = Request::Pin { path: PathText::Bytes(vec![0xff, 1]) };
        let answer =
            call(&cache, &request, Duration::from_secs(5)).expect("answers").expect("echoes");
        assert_eq!(serde_json::from_value::<Request>(answer).expect("a request"), request);
    }

    #[test]
    fn the_socket_is_the_owners_alone_and_a_dead_one_is_replaced() {
        use std::os::unix::fs::MetadataExt;
        let (_directory, cache) = served();
        let mode = std::fs::metadata(cache.join(SOCKET_NAME)).expect("is there").mode();
        assert_eq!(mode & 0o777, 0o600);
        bind(&cache).expect("binds again");
    }

    #[test]
    fn no_node_is_told_apart_from_a_broken_one() {
        let cache = tempfile::tempdir().expect("a directory");
        let patience = Duration::from_secs(1);
        let outcome = call(cache.path(), &Request::Status, patience);
        assert!(matches!(outcome, Err(CallError::NoNode { .. })));
        drop(bind(cache.path()).expect("binds"));
        let outcome = call(cache.path(), &Request::Status, patience);
        assert!(matches!(outcome, Err(CallError::NoNode { .. })));
    }

    #[test]
    fn requests_that_are_none_get_a_complaint() {
        let (_directory, cache) = served();
        for bytes in [
            &b"{}\n"[..],
            b"[]\n",
            b"{\"version\":2}\n",
            b"{\"version\":2,\"verb\":\"nonsense\"}\n",
            b"{\"version\":1,\"verb\":\"status\"}\n",
            b"\xff\xfe\n",
        ] {
            let answer = say(&cache, bytes);
            assert!(answer.windows(7).any(|part| part == b"\"error\""), "{}", bytes.escape_ascii());
        }
        let endless = vec![b'x'; 2 * REQUEST_BYTES_MAX as usize];
        let _ = say(&cache, &endless);
        assert!(call(&cache, &Request::Status, Duration::from_secs(5)).is_ok(), "it lives on");
    }

    proptest! {
        #[test]
        fn any_line_is_answered(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = answer_line(&line, true, &Echo);
        }

        #[test]
        fn strangers_may_only_ask_for_the_status(limit in any::<Option<u64>>()) {
            let line = |request| {
                serde_json::to_vec(&Envelope { version: VERSION, request }).expect("encodes")
            };
            let ask = |request| answer_line(&line(request), false, &Echo).expect("an answer");
            prop_assert!(ask(Request::Status).is_ok());
            let change = Request::Limit { quota_bytes: limit };
            prop_assert!(ask(change).is_err());
            prop_assert!(ask(Request::Clean).is_err());
        }
    }
}

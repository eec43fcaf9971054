//! An origin's repository: a directory with the key, the settings, the log and the index.
//!
//! ```text
//! repo.json     format, origin id, addresses, hash of the recovery key, validity
//! key           the signing key, mode 0600
//! log/          the log (distd_core::store)
//! index.redb    what the log holds, by content; may be deleted
//! pruning       locked while a prune runs
//! announced     how far a running `serve` has told the swarm
//! ahead.json    only if nodes hold more than the log does
//! ```
//!
//! `init` writes `repo.json` last: a directory without it is no repository.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use distd_core::keys::{OriginId, OriginKey};
use distd_core::limits::ADDRESSES_MAX;
use distd_core::manifest::PeerAddress;
use distd_core::store::{OpenError, OriginLog};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

const FORMAT: u32 = 1;
const SETTINGS: &str = "repo.json";
const KEY: &str = "key";
const LOG: &str = "log";
const INDEX: &str = "index.redb";
const ANNOUNCED: &str = "announced";
const PRUNING: &str = "pruning";
/// How long after its newest signature a head counts as fresh where the settings do not say.
const VALIDITY_S: u64 = 7 * 86_400;
/// Settings and key files are small.
const FILE_BYTES_MAX: u64 = 64 << 10;

const ORIGIN_KEY_TITLE: &str = "distd origin key 1";
const RECOVERY_KEY_TITLE: &str = "distd recovery key 1";

/// An opened repository.
#[derive(Debug)]
pub struct Repo {
    dir: PathBuf,
    settings: Settings,
}

/// Held while the index is used.
#[derive(Debug)]
pub struct RepoLock {
    _file: File,
}

/// `repo.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    format: u32,
    origin: String,
    addresses: Vec<String>,
    recovery_key_blake3: String,
    #[serde(default = "default_validity")]
    validity_s: u64,
}

fn default_validity() -> u64 {
    VALIDITY_S
}

/// Why a repository cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum RepoError {
    /// Nothing there, or something else.
    #[error(
        "'{}' is no distd repository: it has no {SETTINGS}; make one with 'distd-origin init --repo DIR', or name another with --repo or DISTD_REPO",
        path.display()
    )]
    NotARepo {
        /// The directory.
        path: PathBuf,
    },
    /// `init` where something is.
    #[error("'{}' is not empty: expected a new or empty directory for 'init'", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A file stands where a key should go.
    #[error("'{}' exists already: give another path with --recovery-key, keys are never overwritten", path.display())]
    KeyExists {
        /// The file.
        path: PathBuf,
    },
    /// An older copy of the log stands in its place.
    #[error(
        "'{}' is an older copy: its log has {found} munros, and the node {from} holds {munros} signed by this key. \
         Publishing here would sign a second content for what is out already, and every node would refuse both. \
         Put the newest copy of the repository back",
        path.display()
    )]
    Behind {
        /// The repository.
        path: PathBuf,
        /// Munros that its log has.
        found: u64,
        /// Munros that a node holds.
        munros: u64,
        /// Which node.
        from: String,
    },
    /// The settings cannot be understood.
    #[error("'{}' is damaged or of another version: {what}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// Others can read the key.
    #[error(
        "the key '{}' has mode {mode:04o}: others can read it. If nobody did, 'chmod 600' it; if somebody may have, the origin must be replaced",
        path.display()
    )]
    KeyReadable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The key is none, or another one's.
    #[error("'{}' is not the key of origin {origin}: {what}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Whose key it should be.
        origin: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The index is in use.
    #[error("the repository '{}' is in use by {other}: wait for its end", path.display())]
    Busy {
        /// The repository.
        path: PathBuf,
        /// What uses it.
        other: &'static str,
    },
    /// Too many addresses.
    #[error("{found} addresses, at most {ADDRESSES_MAX} are possible")]
    Addresses {
        /// Addresses given.
        found: usize,
    },
    /// A call failed.
    #[error("cannot {verb} '{}': {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No entropy.
    #[error("the kernel gives no random numbers for a key: {0}")]
    Entropy(getrandom::Error),
    /// The log.
    #[error(transparent)]
    Log(#[from] OpenError),
}

/// What `init` is to make.
#[derive(Debug)]
pub struct InitOptions<'a> {
    /// The repository's directory.
    pub dir: &'a Path,
    /// Where nodes will find the origin.
    pub addresses: &'a [PeerAddress],
    /// Where the recovery key goes.
    pub recovery_key: &'a Path,
}

impl Repo {
    /// Makes a repository. On any error nothing of it remains.
    pub fn init(options: &InitOptions<'_>) -> Result<Self, RepoError> {
        let dir = options.dir;
        if options.addresses.len() > ADDRESSES_MAX {
            return Err(RepoError::Addresses { found: options.addresses.len() });
        }
        if options.recovery_key.symlink_metadata().is_ok() {
            return Err(RepoError::KeyExists { path: options.recovery_key.into() });
        }
        let created = create_empty(dir)?;
        Self::fill(options).inspect_err(|_| {
            // What is removed here was made by this call: the directory was empty before it.
            for name in [SETTINGS, KEY] {
                let _ = fs::remove_file(dir.join(name));
            }
            let _ = fs::remove_dir_all(dir.join(LOG));
            if created {
                let _ = fs::remove_dir(dir);
            }
        })
    }

    fn fill(options: &InitOptions<'_>) -> Result<Self, RepoError> {
        let dir = options.dir;
        let key = new_key()?;
        write_key(&dir.join(KEY), ORIGIN_KEY_TITLE, &key)?;
        OriginLog::create(&dir.join(LOG), key.id())?;
        let recovery = new_key()?;
        write_key(options.recovery_key, RECOVERY_KEY_TITLE, &recovery)?;
        let settings = Settings {
            format: FORMAT,
            origin: key.id().to_string(),
            addresses: options.addresses.iter().map(ToString::to_string).collect(),
            recovery_key_blake3: blake3::hash(&recovery.id().0).to_hex().to_string(),
            validity_s: VALIDITY_S,
        };
        let text = serde_json::to_vec_pretty(&settings).unwrap_or_default();
        write_new(&dir.join(SETTINGS), 0o644, &text).inspect_err(|_| {
            let _ = fs::remove_file(options.recovery_key);
        })?;
        sync_dir(dir)?;
        Ok(Self { dir: dir.into(), settings })
    }

    /// Opens the repository in `dir`.
    pub fn open(dir: &Path) -> Result<Self, RepoError> {
        let path = dir.join(SETTINGS);
        let text = match File::open(&path) {
            Ok(file) => read_small(file, &path)?,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(RepoError::NotARepo { path: dir.into() });
            }
            Err(source) => return Err(RepoError::Io { verb: "open", path, source }),
        };
        let wrong = |what| RepoError::Settings { path: path.clone(), what };
        let settings: Settings =
            serde_json::from_slice(&text).map_err(|_| wrong("not the JSON that init writes"))?;
        if settings.format != FORMAT {
            return Err(wrong("another format number"));
        }
        let repo = Self { dir: dir.into(), settings };
        repo.parse_origin().ok_or_else(|| wrong("the origin is no id"))?;
        repo.parse_recovery_key().ok_or_else(|| wrong("recovery_key_blake3 is no hash"))?;
        repo.parse_addresses().ok_or_else(|| wrong("an address is not HOST:PORT"))?;
        Ok(repo)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its log's directory.
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join(LOG)
    }

    /// Its index file.
    pub fn index_path(&self) -> PathBuf {
        self.dir.join(INDEX)
    }

    /// The file in which `serve` says how far it has told the swarm.
    pub fn announced_path(&self) -> PathBuf {
        self.dir.join(ANNOUNCED)
    }

    /// Opens its log to read.
    pub fn log(&self) -> Result<OriginLog, RepoError> {
        Ok(OriginLog::open(&self.log_dir())?)
    }

    /// Keeps publishes (which write the index) and dry runs (which read it) apart. Two publishes
    /// are told from each other by the log's own lock.
    pub fn lock(&self, shared: bool) -> Result<RepoLock, RepoError> {
        let path = self.dir.join(SETTINGS);
        let failed = |source| RepoError::Io { verb: "lock", path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        let operation = if shared {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(&file, operation) {
            Ok(()) => Ok(RepoLock { _file: file }),
            Err(Errno::WOULDBLOCK) => {
                let other = if shared { "a publish" } else { "a dry run" };
                Err(RepoError::Busy { path: self.dir.clone(), other })
            }
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Keeps prunes apart from each other, and tells a publish that one runs.
    pub fn lock_prune(&self) -> Result<RepoLock, RepoError> {
        let path = self.dir.join(PRUNING);
        let failed = |source| RepoError::Io { verb: "lock", path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o644);
        let file = options.open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(RepoLock { _file: file }),
            Err(Errno::WOULDBLOCK) => {
                Err(RepoError::Busy { path: self.dir.clone(), other: "a prune" })
            }
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Whether a prune runs.
    pub fn is_pruning(&self) -> bool {
        File::open(self.dir.join(PRUNING)).is_ok_and(|file| {
            flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
        })
    }

    /// Whose log it is.
    pub fn origin(&self) -> OriginId {
        // `open` and `init` let only parsable settings through.
        self.parse_origin().unwrap_or(OriginId([0; 32]))
    }

    /// The hash of the recovery key.
    pub fn recovery_key(&self) -> [u8; 32] {
        self.parse_recovery_key().unwrap_or_default()
    }

    /// How long a head counts as fresh, in seconds.
    pub fn validity_s(&self) -> u64 {
        self.settings.validity_s
    }

    /// Where nodes find the origin: the addresses given to `init`, else this machine's name.
    pub fn addresses(&self) -> Vec<PeerAddress> {
        let addresses = self.parse_addresses().unwrap_or_default();
        if addresses.is_empty() { vec![own_address()] } else { addresses }
    }

    /// Whether `init` was given addresses.
    pub fn names_addresses(&self) -> bool {
        !self.settings.addresses.is_empty()
    }

    /// The URL by which a node mounts a track.
    pub fn url(&self, track: &str) -> String {
        self.url_at(&self.addresses(), track)
    }

    /// The same, with other addresses.
    pub fn url_at(&self, addresses: &[PeerAddress], track: &str) -> String {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        format!("distd://{}@{}/{track}", self.settings.origin, addresses.join(","))
    }

    /// The signing key, from a file that only its owner can read.
    pub fn key(&self) -> Result<OriginKey, RepoError> {
        let path = self.dir.join(KEY);
        // A crash must not leave the key in a core file. Where the kernel refuses, the limit on core
        // files (0 by default) is what remains.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        let key = read_key(&path, ORIGIN_KEY_TITLE, &self.settings.origin)?;
        if key.id() == self.origin() {
            Ok(key)
        } else {
            let (origin, what) = (self.settings.origin.clone(), "it is another origin's");
            Err(RepoError::Key { path, origin, what })
        }
    }

    fn parse_origin(&self) -> Option<OriginId> {
        self.settings.origin.parse().ok()
    }

    fn parse_recovery_key(&self) -> Option<[u8; 32]> {
        Some(*blake3::Hash::from_hex(&self.settings.recovery_key_blake3).ok()?.as_bytes())
    }

    fn parse_addresses(&self) -> Option<Vec<PeerAddress>> {
        let addresses = &self.settings.addresses;
        if addresses.len() > ADDRESSES_MAX {
            return None;
        }
        addresses.iter().map(|address| address.parse().ok()).collect()
    }
}

/// This machine by name, on the default port.
fn own_address() -> PeerAddress {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let localhost =
        PeerAddress { host: "localhost".into(), port: distd_core::manifest::DEFAULT_PORT };
    name.parse().unwrap_or(localhost)
}

/// Makes the directory, or takes an empty one; whether it was made.
fn create_empty(dir: &Path) -> Result<bool, RepoError> {
    let failed = |verb| move |source| RepoError::Io { verb, path: dir.into(), source };
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(false),
            Some(_) => Err(RepoError::NotEmpty { path: dir.into() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = dir.parent() {
                fs::create_dir_all(parent).map_err(failed("create the parent directory of"))?;
            }
            fs::DirBuilder::new().mode(0o700).create(dir).map_err(failed("create"))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(RepoError::NotEmpty { path: dir.into() })
        }
        Err(error) => Err(failed("read")(error)),
    }
}

fn new_key() -> Result<OriginKey, RepoError> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice()).map_err(RepoError::Entropy)?;
    Ok(OriginKey::from_seed(&seed))
}

/// ```text
/// distd origin key 1
/// <seed, 64 hexadecimal digits>
/// ```
fn write_key(path: &Path, title: &str, key: &OriginKey) -> Result<(), RepoError> {
    let mut text = Zeroizing::new(format!("{title}\n").into_bytes());
    text.reserve_exact(65);
    for byte in key.seed().iter() {
        text.extend([byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
    }
    text.push(b'\n');
    write_new(path, 0o600, &text)
}

fn read_key(path: &Path, title: &str, origin: &str) -> Result<OriginKey, RepoError> {
    let failed = |verb| move |source| RepoError::Io { verb, path: path.into(), source };
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits().cast_signed());
    let file = options.open(path).map_err(failed("open"))?;
    let mode = file.metadata().map_err(failed("stat"))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(RepoError::KeyReadable { path: path.into(), mode });
    }
    let text = Zeroizing::new(read_small(file, path)?);
    let key = text.strip_prefix(title.as_bytes()).and_then(|rest| {
        let digits: &[u8; 64] = rest.trim_ascii().try_into().ok()?;
        let mut seed = Zeroizing::new([0; 32]);
        for (byte, pair) in seed.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |i: usize| char::from(pair[i]).to_digit(16);
            *byte = (digit(0)? * 16 + digit(1)?) as u8;
        }
        Some(OriginKey::from_seed(&seed))
    });
    let what = "it is no key file";
    key.ok_or_else(|| RepoError::Key { path: path.into(), origin: origin.into(), what })
}

fn read_small(file: File, path: &Path) -> Result<Vec<u8>, RepoError> {
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
    if let Err(source) = read {
        bytes.zeroize();
        return Err(RepoError::Io { verb: "read", path: path.into(), source });
    }
    Ok(bytes)
}

/// Writes a file that must not exist, durably.
fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), RepoError> {
    let failed = |verb| move |source| RepoError::Io { verb, path: path.into(), source };
    let mut options = OpenOptions::new();
    let mut file = match options.write(true).create_new(true).mode(mode).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(RepoError::KeyExists { path: path.into() });
        }
        Err(error) => return Err(failed("create")(error)),
    };
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|source| {
        let _ = fs::remove_file(path);
        failed("write")(source)
    })
}

fn sync_dir(dir: &Path) -> Result<(), RepoError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| RepoError::Io { verb: "sync", path: dir.into(), source })
}

//! From SOURCE to a release: whose log, which track, which record.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use distd_core::head::Head;
use distd_core::keys::OriginId;
use distd_core::limits::METAINFO_BYTES_MAX;
use distd_core::manifest::{
    Catalog, Metainfo, MetainfoError, NodeError, PeerAddress, Release, Source, SourceError,
    SourceOrigin,
};
use distd_core::node::{HeadNews, ReadError, Swarm, unix_now_s};
use distd_core::unit::ByteRange;

use crate::exit::{Complaint, Exit};

/// How long a node that knows a head from its cache listens for a newer one before it shows what it
/// knows.
const NEWS_PATIENCE: Duration = Duration::from_secs(2);
/// How long a release that no head names is waited for, before it counts as not there.
const PUBLISH_PATIENCE: Duration = Duration::from_millis(500);
/// Names quoted in a message about one that is not there.
const NAMES_SHOWN_MAX: usize = 20;

/// A source with its metainfo file read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose log.
    pub origin: OriginId,
    /// Peers to begin with.
    pub addresses: Vec<PeerAddress>,
    /// The track.
    pub track: String,
    /// The release; `None`: the track's newest.
    pub release: Option<String>,
}

/// Why a source does not lead to a release.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It is no source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The metainfo file.
    #[error("{}: {source}", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Its content.
    #[error("{}: {source}", .file.display())]
    Metainfo {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: MetainfoError,
    },
    /// Nobody told the log's head in time.
    #[error(
        "no source of origin {origin} answered within {} s; tried {addresses}{}",
        .timeout.as_secs(),
        .problem.as_ref().map(|problem| format!("; {problem}")).unwrap_or_default()
    )]
    Unreachable {
        /// Whose log.
        origin: OriginId,
        /// Who was asked.
        addresses: String,
        /// How long.
        timeout: Duration,
        /// What was wrong with the last answer.
        problem: Option<String>,
    },
    /// There are peers, but none of them knows a head.
    #[error(
        "peers of origin {origin} answered, but none told a release within {} s; tried {addresses}; \
         has anything been published there?",
        .timeout.as_secs()
    )]
    NothingTold {
        /// Whose log.
        origin: OriginId,
        /// Who was asked.
        addresses: String,
        /// How long.
        timeout: Duration,
    },
    /// The head ran out and this cache has never seen another.
    #[error(
        "the newest statement of origin {origin} ran out {age_s} s ago: it may hide newer releases, \
         or this machine's clock is wrong; mount with -o allow_stale to take it"
    )]
    Stale {
        /// Whose log.
        origin: OriginId,
        /// How long ago.
        age_s: u64,
    },
    /// No such track.
    #[error("origin {origin} has no track '{track}'; it has {existing}")]
    NoTrack {
        /// Whose log.
        origin: OriginId,
        /// The track asked for.
        track: String,
        /// What there is.
        existing: String,
    },
    /// No such release.
    #[error("track '{track}' has no release '{release}'; it has {existing}")]
    NoRelease {
        /// The track.
        track: String,
        /// The release asked for.
        release: String,
        /// What there is.
        existing: String,
    },
    /// The origin let it go.
    #[error(
        "release '{release}' of track '{track}' was pruned: its origin does not hold it any more"
    )]
    Pruned {
        /// The track.
        track: String,
        /// The release asked for.
        release: String,
    },
    /// Metadata that did not come.
    #[error("cannot read the {what}: {source}")]
    Fetch {
        /// Which part.
        what: &'static str,
        /// Why.
        source: ReadError,
    },
    /// Metadata that is wrong.
    #[error("the origin signed a wrong {what}: {source}")]
    Damaged {
        /// Which part.
        what: &'static str,
        /// Why.
        source: NodeError,
    },
}

impl From<TargetError> for Complaint {
    fn from(error: TargetError) -> Self {
        let exit = match &error {
            TargetError::Source(_) => Exit::Usage,
            TargetError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Exit::NoSuch
            }
            TargetError::Read { .. } => Exit::Failure,
            TargetError::Metainfo { .. }
            | TargetError::Damaged { .. }
            | TargetError::Stale { .. } => Exit::Unverified,
            TargetError::Unreachable { .. }
            | TargetError::NothingTold { .. }
            | TargetError::Fetch { .. } => Exit::Unreachable,
            TargetError::NoTrack { .. }
            | TargetError::NoRelease { .. }
            | TargetError::Pruned { .. } => Exit::NoSuch,
        };
        Self::new(exit, error)
    }
}

impl Target {
    /// Parses SOURCE, and reads the metainfo file that it may name.
    pub fn resolve(text: &str) -> Result<Self, TargetError> {
        let source: Source = text.parse()?;
        match source.origin {
            SourceOrigin::Url { id, addresses } => Ok(Self {
                origin: id,
                addresses,
                track: source.track.unwrap_or_default(),
                release: source.release,
            }),
            SourceOrigin::Metainfo(file) => {
                let bytes = read_metainfo(&file)
                    .map_err(|source| TargetError::Read { file: file.clone(), source })?;
                let metainfo = Metainfo::decode(&bytes)
                    .map_err(|source| TargetError::Metainfo { file, source })?;
                Ok(Self {
                    origin: metainfo.origin,
                    addresses: metainfo.addresses,
                    track: source.track.unwrap_or(metainfo.track),
                    release: source.release,
                })
            }
        }
    }

    /// Waits for the log's head and reads the release that is asked for, and says where its record
    /// lies. A head that the cache knows
    /// is good enough where nobody tells a newer one.
    pub fn release(
        &self,
        swarm: &Swarm,
        timeout: Duration,
        allow_stale: bool,
    ) -> Result<(ByteRange, Release), TargetError> {
        match self.release_by_head(swarm, timeout, allow_stale) {
            Err(TargetError::NoTrack { .. } | TargetError::NoRelease { .. }) => {
                // It may have been published this moment: the news of it is on its way.
                let known = swarm.head_news().trusted;
                let munros = known.map_or(0, |trusted| trusted.placed.head.munros);
                swarm.wait_newer_head(munros, PUBLISH_PATIENCE);
                self.release_by_head(swarm, timeout, allow_stale)
            }
            outcome => outcome,
        }
    }

    fn release_by_head(
        &self,
        swarm: &Swarm,
        timeout: Duration,
        allow_stale: bool,
    ) -> Result<(ByteRange, Release), TargetError> {
        let deadline = Instant::now() + timeout;
        let known = swarm.head_news().trusted.is_some();
        let range = if let Some(range) = self.find_known(swarm, known, deadline)? {
            range
        } else {
            let left = deadline.saturating_duration_since(Instant::now());
            let news = swarm.wait_head(left);
            self.check_fresh(&news, known || allow_stale)?;
            self.find(swarm, &news, timeout, deadline)?
        };
        Ok((range, fetch_release(swarm, range, deadline)?))
    }

    /// What the head from the cache, or one that comes soon, says; nothing where it does not know what
    /// is asked for.
    fn find_known(
        &self,
        swarm: &Swarm,
        known: bool,
        deadline: Instant,
    ) -> Result<Option<ByteRange>, TargetError> {
        if !known {
            return Ok(None);
        }
        // A pinned release never changes: no need to hear of newer ones.
        let patience = match self.release {
            Some(_) => Duration::ZERO,
            None => NEWS_PATIENCE.min(deadline.saturating_duration_since(Instant::now())),
        };
        let news = swarm.wait_head(patience);
        let soon = deadline.min(Instant::now() + NEWS_PATIENCE);
        match self.find(swarm, &news, patience, soon) {
            Ok(range) => Ok(Some(range)),
            Err(error) if news.heard => Err(error),
            Err(_) => Ok(None),
        }
    }

    fn check_fresh(&self, news: &HeadNews, excused: bool) -> Result<(), TargetError> {
        let Some(trusted) = &news.trusted else { return Ok(()) };
        let now_s = unix_now_s();
        match now_s.checked_sub(trusted.fresh_until_s()) {
            Some(age_s) if age_s > 0 && !excused => {
                Err(TargetError::Stale { origin: self.origin, age_s })
            }
            _ => Ok(()),
        }
    }

    fn find(
        &self,
        swarm: &Swarm,
        news: &HeadNews,
        timeout: Duration,
        deadline: Instant,
    ) -> Result<ByteRange, TargetError> {
        let Some(trusted) = &news.trusted else {
            return Err(self.untold(news, timeout));
        };
        let head = &trusted.placed.head;
        let track = head.track(&self.track);
        match (&self.release, track) {
            (None, Some(track)) => Ok(track.release),
            (Some(release), Some(track)) if *release == track.version => Ok(track.release),
            (None, None) => Err(TargetError::NoTrack {
                origin: self.origin,
                track: self.track.clone(),
                existing: names(head.tracks.iter().map(|track| track.name.as_str())),
            }),
            (Some(release), _) => self.find_in_catalog(swarm, head, release, deadline),
        }
    }

    /// Why there is no head.
    fn untold(&self, news: &HeadNews, timeout: Duration) -> TargetError {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let (origin, addresses) = (self.origin, addresses.join(", "));
        match &news.problem {
            None if news.heard => TargetError::NothingTold { origin, addresses, timeout },
            problem => {
                TargetError::Unreachable { origin, addresses, timeout, problem: problem.clone() }
            }
        }
    }

    fn find_in_catalog(
        &self,
        swarm: &Swarm,
        head: &Head,
        release: &str,
        deadline: Instant,
    ) -> Result<ByteRange, TargetError> {
        let what = "list of releases";
        let fetch = |source| TargetError::Fetch { what, source };
        let bytes = swarm.read_bytes_blocking(head.catalog, deadline).map_err(fetch)?;
        let catalog =
            Catalog::decode(&bytes).map_err(|source| TargetError::Damaged { what, source })?;
        match catalog.find(&self.track, release) {
            Some(item) if item.is_pruned() => {
                let (track, release) = (self.track.clone(), release.to_owned());
                return Err(TargetError::Pruned { track, release });
            }
            Some(item) => return Ok(item.release),
            None => {}
        }
        let of_track = || catalog.items.iter().rev().filter(|item| item.track == self.track);
        if of_track().next().is_none() {
            return Err(TargetError::NoTrack {
                origin: self.origin,
                track: self.track.clone(),
                existing: names(head.tracks.iter().map(|track| track.name.as_str())),
            });
        }
        Err(TargetError::NoRelease {
            track: self.track.clone(),
            release: release.to_owned(),
            existing: names(
                of_track().filter(|item| !item.is_pruned()).map(|item| item.version.as_str()),
            ),
        })
    }
}

/// Reads the release record that lies there.
pub fn fetch_release(
    swarm: &Swarm,
    record: ByteRange,
    deadline: Instant,
) -> Result<Release, TargetError> {
    let what = "release record";
    let fetch = |source| TargetError::Fetch { what, source };
    let bytes = swarm.read_bytes_blocking(record, deadline).map_err(fetch)?;
    Release::decode(&bytes).map_err(|source| TargetError::Damaged { what, source })
}

fn read_metainfo(file: &std::path::Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(METAINFO_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The first names of a list, for a message.
fn names<'a>(mut all: impl Iterator<Item = &'a str>) -> String {
    let shown: Vec<&str> = all.by_ref().take(NAMES_SHOWN_MAX).collect();
    match (shown.is_empty(), all.count()) {
        (true, _) => "none".to_owned(),
        (false, 0) => shown.join(", "),
        (false, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_a_bounded_number_of_releases() {
        assert_eq!(names(std::iter::empty()), "none");
        assert_eq!(names(["a", "b"].into_iter()), "a, b");
        let many: Vec<String> = (0..1000).map(|i| i.to_string()).collect();
        assert!(names(many.iter().map(String::as_str)).ends_with("19 and 980 more"));
    }

    #[test]
    fn a_metainfo_file_gives_what_the_source_leaves_out() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("os.distd");
        let metainfo = Metainfo {
            origin: distd_core::keys::OriginKey::from_seed(&[3; 32]).id(),
            addresses: vec!["origin:7574".parse().expect("well-formed")],
            track: "stable".into(),
        };
        std::fs::write(&file, metainfo.encode()).expect("written");
        let source = file.to_str().expect("UTF-8");
        let target = Target::resolve(source).expect("resolves");
        assert_eq!((target.track.as_str(), target.release.as_deref()), ("stable", None));
        let target = Target::resolve(&format!("{source}#beta@2")).expect("resolves");
        assert_eq!((target.track.as_str(), target.release.as_deref()), ("beta", Some("2")));
        std::fs::write(&file, &metainfo.encode()[..50]).expect("written");
        let complaint = Complaint::from(Target::resolve(source).expect_err("cut short"));
        assert_eq!(complaint.exit, Exit::Unverified);
        assert!(complaint.message.contains("os.distd"));
        let complaint = Complaint::from(Target::resolve("none.distd").expect_err("no file"));
        assert_eq!(complaint.exit, Exit::NoSuch);
        let complaint = Complaint::from(Target::resolve("nonsense").expect_err("no source"));
        assert_eq!(complaint.exit, Exit::Usage);
    }
}

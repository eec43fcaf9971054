//! A repository and a source tree in a scratch directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use distd_core::manifest::{Entry, EntryKind, Release};
use distd_core::store::OriginLog;
use distd_core::unit::{BlockRange, ByteRange};
use distd_origin::history::{History, HistoryError, Met, join, read_extents, read_release, walk};
use distd_origin::publish::{PublishError, PublishOptions, PublishReport, publish};
use distd_origin::repo::{InitOptions, Repo};
use tempfile::TempDir;

pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) repo: Repo,
    pub(crate) source: PathBuf,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let repo = dir.path().join("repo");
        let recovery_key = dir.path().join("recovery.key");
        let options = InitOptions { dir: &repo, addresses: &[], recovery_key: &recovery_key };
        let repo = Repo::init(&options).expect("made");
        let source = dir.path().join("source");
        fs::create_dir(&source).expect("made");
        Self { dir, repo, source }
    }

    pub(crate) fn write(&self, path: &str, content: &[u8]) {
        let path = self.source.join(path);
        fs::create_dir_all(path.parent().expect("below the source")).expect("made");
        fs::write(path, content).expect("written");
    }

    pub(crate) fn try_publish(&self, version: &str) -> Result<PublishReport, PublishError> {
        self.publish_from(&self.source, "stable", version, false)
    }

    pub(crate) fn publish(&self, version: &str) -> PublishReport {
        self.try_publish(version).expect("published")
    }

    pub(crate) fn publish_from(
        &self,
        source: &Path,
        track: &str,
        version: &str,
        dry_run: bool,
    ) -> Result<PublishReport, PublishError> {
        let options =
            PublishOptions { source, track, version, message: "", dry_run, level: 3, profile: &[] };
        publish(&self.repo, &options, &|_| {})
    }

    pub(crate) fn log(&self) -> OriginLog {
        self.repo.log().expect("opens")
    }

    pub(crate) fn release(&self, wanted: &str) -> Release {
        let log = self.log();
        let history = History::read(&log).expect("read");
        read_release(&log, history.find(wanted).expect("there").release).expect("read")
    }

    /// The release's entries by path.
    pub(crate) fn entries(&self, wanted: &str) -> BTreeMap<Vec<u8>, Entry> {
        let mut entries = BTreeMap::new();
        walk(&self.log(), self.release(wanted).root_directory().node, |met| {
            if let Met::Entry(directory, entry) = met {
                entries.insert(join(directory, entry.name.as_bytes()), entry.clone());
            }
            Ok::<_, HistoryError>(true)
        })
        .expect("walked");
        entries
    }

    /// The content of a file of the release.
    pub(crate) fn content(&self, entry: &Entry) -> Vec<u8> {
        let EntryKind::File(file) = &entry.kind else { panic!("{:?} is no file", entry.name) };
        let log = self.log();
        let mut content = Vec::new();
        for extent in read_extents(&log, file).expect("read").iter() {
            match extent {
                distd_core::manifest::Extent::Data(run) => content.extend(read_run(&log, run)),
                distd_core::manifest::Extent::Hole(count) => {
                    content.resize(content.len() + (count * 4096) as usize, 0);
                }
            }
        }
        content.truncate(file.size as usize);
        assert_eq!(file.blake3, *blake3::hash(&content).as_bytes());
        content
    }
}

fn read_run(log: &OriginLog, run: BlockRange) -> Vec<u8> {
    let range = ByteRange { offset: run.byte_offset(), len: run.byte_len() };
    log.read_bytes(range).expect("read")
}

/// Bytes that do not repeat.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

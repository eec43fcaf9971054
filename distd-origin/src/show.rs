//! `list` and `show`: what was published, for people and for programs.

use std::fmt::Write as _;

use distd_core::keys::OriginId;
use distd_core::manifest::{CatalogItem, Release, Totals};
use distd_core::store::OriginLog;
use distd_core::unit::HumanBytes;
use serde::Serialize;

use crate::history::{History, HistoryError, read_release};
use crate::repo::Repo;
use crate::time::utc;

/// All that `list` tells.
#[derive(Debug, Serialize)]
pub struct Listing {
    /// Whose log.
    pub origin: String,
    /// Length of the log, in munros of 1 MiB.
    pub munros: u64,
    /// The tracks.
    pub tracks: Vec<ListedTrack>,
    /// The releases, oldest first.
    pub releases: Vec<ListedRelease>,
}

/// A track and where it stands.
#[derive(Debug, Serialize)]
pub struct ListedTrack {
    /// Its name.
    pub track: String,
    /// The version that it stands at.
    pub version: String,
    /// How to mount it.
    pub url: String,
}

/// A release in the list.
#[derive(Debug, Serialize)]
pub struct ListedRelease {
    /// Its track.
    pub track: String,
    /// Its version.
    pub version: String,
    /// When it was published, seconds since the Unix epoch.
    pub created_s: u64,
    /// Whether its track stands at it.
    pub current: bool,
    /// Whether it was pruned: its content is gone.
    pub pruned: bool,
}

/// Lists tracks and releases.
pub fn list(repo: &Repo, log: &OriginLog) -> Result<Listing, HistoryError> {
    let history = History::read(log)?;
    let head = history.head.as_ref().map(|placed| &placed.head);
    let tracks = head.map_or(&[][..], |head| &head.tracks);
    let is_current = |item: &CatalogItem| {
        tracks.iter().any(|track| track.name == item.track && track.version == item.version)
    };
    Ok(Listing {
        origin: log.origin().to_string(),
        munros: head.map_or(0, |head| head.munros),
        tracks: tracks
            .iter()
            .map(|track| ListedTrack {
                track: track.name.clone(),
                version: track.version.clone(),
                url: repo.url(&track.name),
            })
            .collect(),
        releases: history
            .catalog
            .items
            .iter()
            .map(|item| ListedRelease {
                track: item.track.clone(),
                version: item.version.clone(),
                created_s: item.created_s,
                current: is_current(item),
                pruned: item.is_pruned(),
            })
            .collect(),
    })
}

impl Listing {
    /// One line a release, the current ones marked.
    pub fn text(&self) -> String {
        if self.releases.is_empty() {
            return "nothing was published yet\n".to_owned();
        }
        let width = |text: fn(&ListedRelease) -> &str| {
            self.releases.iter().map(|release| text(release).len()).max().unwrap_or(0)
        };
        let (track, version) = (width(|release| &release.track), width(|release| &release.version));
        let mut text = String::new();
        for release in &self.releases {
            let mark = if release.current { '*' } else { ' ' };
            let time = utc(release.created_s);
            let (name, number) = (&release.track, &release.version);
            let pruned = if release.pruned { "  (pruned)" } else { "" };
            let _ = writeln!(text, "{mark} {name:track$}  {number:version$}  {time}{pruned}");
        }
        text
    }
}

/// All that `show` tells.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Whose log.
    pub origin: String,
    /// Its track.
    pub track: String,
    /// Its version.
    pub version: String,
    /// Whether its track stands at it.
    pub current: bool,
    /// When it was published, seconds since the Unix epoch.
    pub created_s: u64,
    /// What the publisher said.
    pub message: String,
    /// What it holds.
    #[serde(flatten)]
    pub totals: Totals,
    /// Bytes of the blocks that hold its metadata.
    pub metadata_bytes: u64,
    /// Runs of blocks in which they lie.
    pub metadata_runs: u64,
    /// Bytes of its EROFS image; 0 if it has none.
    pub image_bytes: u64,
    /// How to mount it.
    pub url: String,
}

/// Shows one release.
pub fn show(repo: &Repo, log: &OriginLog, wanted: &str) -> Result<Shown, HistoryError> {
    let history = History::read(log)?;
    let item = history.find(wanted)?;
    let release = read_release(log, item.release)?;
    let head = history.head.as_ref().map(|placed| &placed.head);
    let track = head.and_then(|head| head.track(&item.track));
    let current = track.is_some_and(|track| track.version == item.version);
    Ok(shown(repo, log.origin(), release, current))
}

fn shown(repo: &Repo, origin: OriginId, release: Release, current: bool) -> Shown {
    let url = repo.url(&format!("{}@{}", release.track, release.version));
    Shown {
        origin: origin.to_string(),
        current,
        created_s: release.created_s,
        totals: release.totals,
        metadata_bytes: release.metadata.iter().map(|run| run.byte_len()).sum(),
        metadata_runs: release.metadata.len() as u64,
        image_bytes: release.image.map_or(0, |image| image.blocks.byte_len()),
        url,
        track: release.track,
        version: release.version,
        message: release.message,
    }
}

impl Shown {
    /// One line a fact.
    pub fn text(&self) -> String {
        let Totals { files, directories, others, bytes, new_bytes } = self.totals;
        let current = if self.current { ", current" } else { "" };
        let mut text = String::new();
        let _ = writeln!(text, "release    {} (track {}{current})", self.version, self.track);
        let _ = writeln!(text, "published  {}", utc(self.created_s));
        let _ =
            writeln!(text, "holds      {files} files, {directories} directories, {others} others");
        let _ =
            writeln!(text, "bytes      {bytes} ({}), {new_bytes} of them new", HumanBytes(bytes));
        let runs = self.metadata_runs;
        let _ = writeln!(text, "metadata   {} in {runs} runs", HumanBytes(self.metadata_bytes));
        if self.image_bytes > 0 {
            let _ = writeln!(text, "image      {} of EROFS metadata", HumanBytes(self.image_bytes));
        }
        let _ = writeln!(text, "mount      {}", self.url);
        for line in self.message.lines() {
            let _ = writeln!(text, "message    {}", line.escape_debug());
        }
        text
    }
}

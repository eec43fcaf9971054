//! SOURCE: how people name what to mount.
//!
//! `distd://ID@HOST:PORT[,HOST:PORT...]/TRACK[@RELEASE]` or `FILE.distd[#TRACK[@RELEASE]]`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::head::{LabelError, check_label};
use crate::keys::{OriginId, OriginIdError};
use crate::limits::ADDRESSES_MAX;

/// Port of distd's peers where none is given.
pub const DEFAULT_PORT: u16 = 7574;

/// A peer's host and port, not yet resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    /// Name or IP address (an IPv6 address without its brackets).
    pub host: String,
    /// UDP port.
    pub port: u16,
}

/// Where a source says that the origin is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceOrigin {
    /// In the URL itself.
    Url {
        /// The origin.
        id: OriginId,
        /// Its peers.
        addresses: Vec<PeerAddress>,
    },
    /// In a metainfo file.
    Metainfo(PathBuf),
}

/// What to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Whose log.
    pub origin: SourceOrigin,
    /// Which track; `None` takes the metainfo file's.
    pub track: Option<String>,
    /// Pinned to this release; `None` takes the track's newest.
    pub release: Option<String>,
}

/// Why text is no SOURCE.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SourceError {
    /// Neither form.
    #[error(
        "'{text}' is no source: expected distd://ID@HOST:PORT[,HOST:PORT...]/TRACK[@RELEASE] or FILE.distd[#TRACK[@RELEASE]]"
    )]
    Form {
        /// The text refused.
        text: String,
    },
    /// The part before '@' is no id.
    #[error("the origin id in '{text}' is wrong: {source}")]
    Id {
        /// The text refused.
        text: String,
        /// Why.
        source: OriginIdError,
    },
    /// An address that cannot be one.
    #[error("'{address}' is no address: expected HOST:PORT, [IPV6]:PORT or HOST (port 7574)")]
    Address {
        /// The address refused.
        address: String,
    },
    /// Too many addresses.
    #[error("{found} addresses, at most {ADDRESSES_MAX} are taken")]
    Addresses {
        /// Addresses given.
        found: usize,
    },
    /// The track or the release.
    #[error(transparent)]
    Label(#[from] LabelError),
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for PeerAddress {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let wrong = || SourceError::Address { address: text.to_owned() };
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err(wrong());
                }
                let port = if port.is_empty() {
                    None
                } else {
                    Some(port.strip_prefix(':').ok_or_else(wrong)?)
                };
                (host, port)
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.len() > 253 || !host.chars().all(in_name) {
            return Err(wrong());
        }
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?,
            None => DEFAULT_PORT,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let form = || SourceError::Form { text: text.to_owned() };
        if let Some(rest) = text.strip_prefix("distd://") {
            let (authority, path) = rest.split_once('/').ok_or_else(form)?;
            let (id, hosts) = authority.split_once('@').ok_or_else(form)?;
            let id =
                id.parse().map_err(|source| SourceError::Id { text: text.to_owned(), source })?;
            let addresses = parse_addresses(hosts.split(','))?;
            let (track, release) = parse_label_pair(path)?;
            let origin = SourceOrigin::Url { id, addresses };
            return Ok(Self { origin, track: Some(track), release });
        }
        let (file, label) = match text.rsplit_once('#') {
            Some((file, label)) => (file, Some(label)),
            None => (text, None),
        };
        let is_metainfo =
            |file: &str| std::path::Path::new(file).extension().is_some_and(|ext| ext == "distd");
        if !is_metainfo(file) || file.contains("://") {
            return Err(form());
        }
        let (track, release) = match label.map(parse_label_pair).transpose()? {
            Some((track, release)) => (Some(track), release),
            None => (None, None),
        };
        Ok(Self { origin: SourceOrigin::Metainfo(file.into()), track, release })
    }
}

pub(super) fn parse_addresses<'a>(
    addresses: impl Iterator<Item = &'a str>,
) -> Result<Vec<PeerAddress>, SourceError> {
    let addresses: Vec<PeerAddress> = addresses.map(str::parse).collect::<Result<_, _>>()?;
    if addresses.len() > ADDRESSES_MAX {
        return Err(SourceError::Addresses { found: addresses.len() });
    }
    Ok(addresses)
}

fn parse_label_pair(text: &str) -> Result<(String, Option<String>), LabelError> {
    let (track, release) = match text.split_once('@') {
        Some((track, release)) => (track, Some(release)),
        None => (text, None),
    };
    check_label(track)?;
    release.map(check_label).transpose()?;
    Ok((track.to_owned(), release.map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(id: &str, hosts: &str, path: &str) -> Result<Source, SourceError> {
        format!("distd://{id}@{hosts}/{path}").parse()
    }

    #[test]
    fn a_url_names_origin_peers_track_and_release() {
        let id = "ab".repeat(32);
        let source =
            url(&id, "origin:7574,[fe80::1]:99,10.0.0.1", "stable@6.1-2").expect("well-formed");
        assert_eq!(source.track.as_deref(), Some("stable"));
        assert_eq!(source.release.as_deref(), Some("6.1-2"));
        let SourceOrigin::Url { addresses, .. } = source.origin else { panic!("a URL") };
        let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["origin:7574", "[fe80::1]:99", "10.0.0.1:7574"]);
    }

    #[test]
    fn a_metainfo_file_may_name_a_track_and_a_release() {
        let source: Source = "/etc/os.distd#beta@2".parse().expect("well-formed");
        assert_eq!(source.origin, SourceOrigin::Metainfo("/etc/os.distd".into()));
        assert_eq!((source.track.as_deref(), source.release.as_deref()), (Some("beta"), Some("2")));
        let source: Source = "os.distd".parse().expect("well-formed");
        assert_eq!((source.track, source.release), (None, None));
    }

    #[test]
    fn what_is_wrong_with_a_source_is_named() {
        let id = "ab".repeat(32);
        assert!(matches!("http://x/y".parse::<Source>(), Err(SourceError::Form { .. })));
        assert!(matches!("/mnt/x".parse::<Source>(), Err(SourceError::Form { .. })));
        assert!(matches!(url("abc", "h", "t"), Err(SourceError::Id { .. })));
        for hosts in ["", "h:0", "h:99999", "h:", "[::1", "[x]:1", "a b", "h,,h"] {
            assert!(matches!(url(&id, hosts, "t"), Err(SourceError::Address { .. })), "{hosts}");
        }
        assert!(matches!(url(&id, &["h"; 17].join(","), "t"), Err(SourceError::Addresses { .. })));
        for path in ["", "@1", "a/b", "t@", "t@a@b"] {
            assert!(matches!(url(&id, "h", path), Err(SourceError::Label(_))), "{path}");
        }
    }
}

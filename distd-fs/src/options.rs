//! `-o`: the options of a mount.

use std::net::SocketAddr;
use std::path::PathBuf;

use distd_core::node::{Audience, Rates};
use distd_core::size::{parse_rate, parse_size};
use serde::{Deserialize, Serialize};

/// Who may use a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Only the user who mounts.
    #[default]
    Owner,
    /// That user and root.
    Root,
    /// Everybody, as the modes and ACLs in the release say.
    All,
}

/// What is fetched without being asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefetch {
    /// Nothing.
    None,
    /// The release's directories; after a switch also what was local of the release before.
    #[default]
    Meta,
    /// Also what the release's profile says that it is first used for.
    Profile,
    /// Everything.
    Full,
}

/// Who answers the kernel's questions about files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Show {
    /// The kernel where it can, else the node.
    #[default]
    Auto,
    /// The kernel: EROFS on the log.
    Erofs,
    /// The node: every lookup and read through FUSE.
    Tree,
}

/// What concerns one mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOptions {
    /// Who may use it.
    pub access: Access,
    /// The kernel checks modes even where only the owner has access.
    pub check_modes: bool,
    /// Set-id bits and file capabilities count.
    pub suid: bool,
    /// Device nodes work.
    pub dev: bool,
    /// Programs can be executed.
    pub exec: bool,
    /// How long a read waits for the network, in seconds.
    pub timeout_s: u64,
    /// What is fetched without being asked for.
    pub prefetch: Prefetch,
    /// A track that was never seen may be mounted although its head is out of date.
    pub allow_stale: bool,
    /// The mount stays at the release that it begins with.
    #[serde(default)]
    pub hold: bool,
    /// Who answers the kernel's questions.
    #[serde(default)]
    pub view: Show,
}

/// All options of a mount command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What concerns the mount.
    pub mount: MountOptions,
    /// The cache's directory; `None` for the default.
    pub cache: Option<PathBuf>,
    /// Bound of the cache, in bytes.
    pub quota_bytes: Option<u64>,
    /// UDP address of the node.
    pub listen: Option<SocketAddr>,
    /// The node looks for peers on the local network.
    pub lan: bool,
    /// Whom the node serves.
    pub serve: Audience,
    /// Whom it asks for other peers, and tells of them.
    pub pex: Audience,
    /// How much the node sends and asks for in a second at the most.
    pub rates: Rates,
    /// The directory may hold files.
    pub nonempty: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mount: MountOptions {
                access: Access::default(),
                check_modes: false,
                suid: false,
                dev: false,
                exec: true,
                timeout_s: 30,
                prefetch: Prefetch::default(),
                allow_stale: false,
                hold: false,
                view: Show::default(),
            },
            cache: None,
            quota_bytes: None,
            listen: None,
            lan: true,
            serve: Audience::default(),
            pex: Audience::default(),
            rates: Rates::default(),
            nonempty: false,
        }
    }
}

/// Why an option is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OptionError {
    /// Nobody knows it.
    #[error(
        "unknown mount option '{option}'; distd knows {KNOWN}, and takes no notice of the generic options of mount(8)"
    )]
    Unknown {
        /// The option.
        option: String,
    },
    /// A value that it cannot have.
    #[error("mount option {name}={value}: expected {expected}")]
    Value {
        /// The option.
        name: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Only root may.
    #[error(
        "mount option '{option}' is for root: set-id bits and devices of a release would count"
    )]
    Privilege {
        /// The option.
        option: String,
    },
}

const KNOWN: &str = "allow_other, allow_root, allow_stale, cache=DIR, default_permissions, \
dev, download=RATE, exec, hold, lan, listen=ADDR:PORT, nodev, noexec, nolan, nonempty, nosuid, prefetch=none|meta|profile|full, \
pex=none|local|all, quota=BYTES, ro, serve=none|local|all, suid, timeout=SECONDS, upload=RATE, view=auto|erofs|tree";

/// Options of mount(8) and of fstab that say nothing to a read-only, immutable file system.
const GENERIC: [&str; 38] = [
    "rw",
    "ro",
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "_netdev",
    "nofail",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "sync",
    "async",
    "dirsync",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "silent",
    "loud",
    "symfollow",
    "nosymfollow",
    "remount",
    "bg",
];

/// Seconds that a read may wait at most: a day.
const TIMEOUT_S_MAX: u64 = 86_400;

impl Options {
    /// Parses `-o` lists, later ones last. `sloppy` ignores unknown options (mount(8)'s `-s`);
    /// `privileged` callers may ask for `suid` and `dev`.
    pub fn parse<'a>(
        lists: impl IntoIterator<Item = &'a str>,
        privileged: bool,
        sloppy: bool,
    ) -> Result<Self, OptionError> {
        let mut options = Self::default();
        let words = lists.into_iter().flat_map(|list| list.split(',')).filter(|o| !o.is_empty());
        for word in words {
            match options.take(word, privileged) {
                Err(OptionError::Unknown { .. }) if sloppy => {}
                outcome => outcome?,
            }
        }
        Ok(options)
    }

    fn take(&mut self, word: &str, privileged: bool) -> Result<(), OptionError> {
        let value_error = |name: &str, value: &str, expected| OptionError::Value {
            name: name.to_owned(),
            value: value.to_owned(),
            expected,
        };
        if let Some((name, value)) = word.split_once('=') {
            let wrong = |expected| value_error(name, value, expected);
            match name {
                "cache" if !value.is_empty() => self.cache = Some(value.into()),
                "cache" => return Err(wrong("a directory")),
                "timeout" => {
                    let seconds = value.parse().ok().filter(|s| (1..=TIMEOUT_S_MAX).contains(s));
                    self.mount.timeout_s = seconds.ok_or(wrong("1 to 86400 seconds"))?;
                }
                "quota" | "size" => {
                    let bytes = parse_size(value);
                    self.quota_bytes = Some(bytes.ok_or(wrong("bytes, such as 500M or 20G"))?);
                }
                "listen" => {
                    let address = value.parse().ok();
                    self.listen = Some(address.ok_or(wrong("ADDRESS:PORT or [IPV6]:PORT"))?);
                }
                "serve" => {
                    let audience = parse_audience(value);
                    self.serve = audience.ok_or(wrong("none, local or all"))?;
                }
                "upload" | "download" => {
                    let rate = parse_rate(value).ok();
                    let rate = rate.ok_or(wrong("bytes a second, such as 500K or 10M"))?;
                    let rates = &mut self.rates;
                    *(if name == "upload" { &mut rates.upload } else { &mut rates.download }) =
                        Some(rate);
                }
                "pex" => {
                    let audience = parse_audience(value);
                    self.pex = audience.ok_or(wrong("none, local or all"))?;
                }
                "prefetch" => {
                    self.mount.prefetch = match value {
                        "none" => Prefetch::None,
                        "meta" => Prefetch::Meta,
                        "profile" => Prefetch::Profile,
                        "full" => Prefetch::Full,
                        _ => return Err(wrong("none, meta, profile or full")),
                    };
                }
                "view" => {
                    self.mount.view = match value {
                        "auto" => Show::Auto,
                        "erofs" => Show::Erofs,
                        "tree" => Show::Tree,
                        _ => return Err(wrong("auto, erofs or tree")),
                    };
                }
                "background" => {
                    self.mount.prefetch = match value {
                        "none" => Prefetch::None,
                        "metadata" => Prefetch::Meta,
                        _ => return Err(wrong("none or metadata")),
                    };
                }
                "user" | "uhelper" | "helper" | "comment" => {}
                _ if is_private(name) => {}
                _ => return Err(OptionError::Unknown { option: word.to_owned() }),
            }
            return Ok(());
        }
        match word {
            "suid" | "dev" if !privileged => {
                return Err(OptionError::Privilege { option: word.to_owned() });
            }
            "suid" => self.mount.suid = true,
            "nosuid" => self.mount.suid = false,
            "dev" => self.mount.dev = true,
            "nodev" => self.mount.dev = false,
            "exec" => self.mount.exec = true,
            "noexec" => self.mount.exec = false,
            "allow_other" => self.mount.access = Access::All,
            "allow_root" => self.mount.access = Access::Root,
            "default_permissions" => self.mount.check_modes = true,
            "allow_stale" => self.mount.allow_stale = true,
            "hold" => self.mount.hold = true,
            "lan" => self.lan = true,
            "nolan" => self.lan = false,
            "nonempty" => self.nonempty = true,
            _ if GENERIC.contains(&word) || is_private(word) => {}
            _ => return Err(OptionError::Unknown { option: word.to_owned() }),
        }
        Ok(())
    }
}

/// Whom a node serves, by its word.
pub fn parse_audience(word: &str) -> Option<Audience> {
    Audience::ALL.into_iter().find(|audience| audience.as_str() == word)
}

/// Options that mount(8) leaves to others: `x-systemd.automount`, `X-mount.mkdir`.
fn is_private(name: &str) -> bool {
    name.starts_with("x-") || name.starts_with("X-")
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    fn parse(list: &str) -> Result<Options, OptionError> {
        Options::parse([list], true, false)
    }

    #[test]
    fn generic_options_change_nothing() {
        let generic = "rw,noatime,relatime,_netdev,nofail,user,auto,x-foo=bar,comment=x,defaults,\
                       x-systemd.automount,ro,,";
        assert_eq!(parse(generic), Ok(Options::default()));
        let restricted = parse("noexec,nosuid,nodev").expect("known");
        assert!(!restricted.mount.exec && !restricted.mount.suid && !restricted.mount.dev);
    }

    #[test]
    fn each_option_does_what_it_says() {
        let options =
            parse("cache=/c,timeout=3,size=2M,listen=[::1]:5,allow_other,suid,dev,nonempty");
        let options = options.expect("known");
        assert_eq!(options.cache, Some("/c".into()));
        assert_eq!((options.mount.timeout_s, options.quota_bytes), (3, Some(2 << 20)));
        assert_eq!(options.listen.map(|a| a.port()), Some(5));
        assert_eq!(options.mount.access, Access::All);
        assert!(options.mount.suid && options.mount.dev && options.nonempty);
        assert!(!parse("suid,nosuid").expect("known").mount.suid, "the last one counts");
        for audience in Audience::ALL {
            let list = format!("serve={}", audience.as_str());
            assert_eq!(parse(&list).expect("known").serve, audience, "{list}");
        }
        assert_eq!(Options::default().serve, Audience::Local);
        for (list, expected) in
            [("view=auto", Show::Auto), ("view=erofs", Show::Erofs), ("view=tree", Show::Tree)]
        {
            assert_eq!(parse(list).expect("known").mount.view, expected, "{list}");
        }
        let limited = parse("upload=500K,download=10M").expect("known").rates;
        assert_eq!(limited.upload, NonZeroU64::new(500 << 10));
        assert_eq!(limited.download, NonZeroU64::new(10 << 20));
        assert_eq!(parse("pex=all").expect("known").pex, Audience::All);
        for (list, expected) in [
            ("background=none", Prefetch::None),
            ("prefetch=none", Prefetch::None),
            ("background=metadata", Prefetch::Meta),
            ("prefetch=profile", Prefetch::Profile),
            ("prefetch=full", Prefetch::Full),
        ] {
            assert_eq!(parse(list).expect("known").mount.prefetch, expected, "{list}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for list in [
            "timeout=0",
            "timeout=x",
            "timeout=86401",
            "size=",
            "quota=2Q",
            "listen=x",
            "cache=",
            "background=all",
            "prefetch=metadata",
            "serve=everybody",
            "view=fuse",
            "pex=yes",
            "upload=0",
            "download=fast",
        ] {
            assert!(matches!(parse(list), Err(OptionError::Value { .. })), "{list}");
        }
        let unknown = parse("no_such_option=1").expect_err("unknown").to_string();
        assert!(unknown.contains("no_such_option") && unknown.contains("timeout=SECONDS"));
        assert_eq!(Options::parse(["nonsense,more=1"], true, true), Ok(Options::default()));
    }

    #[test]
    fn set_id_bits_and_devices_are_for_root() {
        for list in ["suid", "dev"] {
            let refused = Options::parse([list], false, true);
            assert!(matches!(refused, Err(OptionError::Privilege { .. })));
        }
        assert!(Options::parse(["nosuid,nodev"], false, false).is_ok());
    }

    #[test]
    fn the_defaults_trust_nobody() {
        let mount = Options::default().mount;
        assert_eq!(mount.access, Access::Owner);
        assert!(!mount.suid && !mount.dev);
    }
}

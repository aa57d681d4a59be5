//! The daemon's part of the configuration: who is served, and how much.
//!
//! Names of users and groups are looked up by the daemon, not here. A program name is what the
//! process says it is and therefore a convenience, not a guard: combine it with a user or group.

use serde::{Deserialize, Serialize};

use super::pattern::{self, Glob};

/// The `[daemon]` table. Every absent limit has the default of [`DaemonPolicy::default`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaemonPolicy {
    /// Who is served beside root. `None` = everybody (each only for ports that it has bound
    /// itself); an empty list = root only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<Allow>>,
    /// Most clients connected at a time.
    pub clients: u32,
    /// Most filters of one client.
    pub filters_per_client: u32,
    /// Chunks of packet memory of one stack, 2048 bytes each.
    pub chunks: u32,
    /// Endpoints of one stack.
    pub endpoints: u32,
    /// Interfaces that get a backend.
    pub interfaces: InterfaceChoice,
}

impl Default for DaemonPolicy {
    fn default() -> Self {
        Self {
            allow: None,
            clients: 1024,
            filters_per_client: 32 * 1024,
            chunks: 16 * 1024,
            endpoints: 4096,
            interfaces: InterfaceChoice::default(),
        }
    }
}

impl DaemonPolicy {
    /// Bounds that [`super::Policy::parse`] holds the limits to: name, value, least, most.
    pub(super) fn limits(&self) -> [(&'static str, u32, u32, u32); 4] {
        [
            ("clients", self.clients, 1, 65_536),
            ("filters_per_client", self.filters_per_client, 1, 1 << 20),
            ("chunks", self.chunks, 256, 1 << 20),
            ("endpoints", self.endpoints, 1, 1 << 20),
        ]
    }

    /// Whether this client is served. Root always is.
    #[must_use]
    pub fn allows(&self, peer: &Peer<'_>) -> bool {
        let Some(allow) = &self.allow else {
            return true;
        };
        peer.uid == 0 || allow.iter().any(|entry| entry.matches(peer))
    }
}

/// A client as the daemon knows it from its socket.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// Effective user id.
    pub uid: u32,
    /// The user's name, where there is one.
    pub user: Option<&'a str>,
    /// Group ids, supplementary ones included.
    pub gids: &'a [u32],
    /// Names of those groups, in any order.
    pub groups: &'a [&'a str],
    /// Path of the program: the file that runs, as the kernel shows it.
    pub program: &'a str,
}

/// One entry of `allow`: every condition given must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// User name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Group name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Program name or path pattern.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Glob>,
}

impl Allow {
    /// Whether no condition is given (then the entry would allow everybody, surely by mistake).
    pub(super) fn is_empty(&self) -> bool {
        self.user.is_none() && self.group.is_none() && self.program.is_none()
    }

    fn matches(&self, peer: &Peer<'_>) -> bool {
        let in_group = |wanted: &String| {
            peer.groups.contains(&wanted.as_str())
                || peer
                    .gids
                    .iter()
                    .any(|gid| pattern::same_user(wanted, *gid, None))
        };
        self.user
            .as_ref()
            .is_none_or(|user| pattern::same_user(user, peer.uid, peer.user))
            && self.group.as_ref().is_none_or(in_group)
            && self
                .program
                .as_ref()
                .is_none_or(|glob| glob.matches_program(peer.program))
    }
}

/// Which interfaces get a backend: those that `include` names (all, when it is empty) without
/// those that `exclude` names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InterfaceChoice {
    /// Name patterns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<Glob>,
    /// Name patterns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Glob>,
}

impl InterfaceChoice {
    /// Whether an interface of this name may get a backend.
    #[must_use]
    pub fn takes(&self, name: &str) -> bool {
        let named = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(name));
        (self.include.is_empty() || named(&self.include)) && !named(&self.exclude)
    }
}

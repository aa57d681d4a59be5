//! The policy: which sockets are accelerated, and why the others are not.
//!
//! A [`Policy`] is read once per process from `bypass.toml` ([`Policy::parse`]) and asked once per
//! `bind`, `connect`, `listen` or first send ([`Policy::decide`], which allocates nothing). Its
//! rules are ordered and the first that matches decides; before them stands a built-in part that
//! no rule overrides: login and super-server programs, loopback, multicast and broadcast stay with
//! the kernel. Where no rule matches, the socket is accelerated on whatever interface can.
//!
//! ```toml
//! [[rule]]
//! program   = "nginx"             # name, or path; ? and * as in a shell; also a link or script
//! user      = "www-data"          # name or number
//! protocol  = "udp"               # tcp | udp
//! role      = "bind"              # bind | listen | connect | send
//! local     = "0.0.0.0/0:80-443"  # address[/prefix][:port[-port]]; remote likewise
//! interface = "eth0"
//! action    = "accelerate"        # accelerate | kernel
//! backend   = "auto"              # auto | af_xdp | dpdk | ef_vi | shm
//!
//! [options]
//! spin_us = 50                    # the BYPASS_* options, in lower case without the prefix
//!
//! [[device]]
//! name    = "vf0"                 # an interface that a backend makes, see [`Device`]
//! backend = "dpdk"
//! devargs = "0000:01:10.0"
//!
//! [daemon]
//! allow   = [{ user = "nobody" }, { group = "bypass" }]
//! clients = 64
//! ```
//!
//! What an interface can do, local routes and whether the daemon agrees are not known here.

mod daemon;
mod device;
mod parse;
mod pattern;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use daemon::{Allow, DaemonPolicy, InterfaceChoice, Peer};
pub use device::Device;
pub use parse::PolicyError;
pub use pattern::{Address, AddressPattern, Glob, PatternError};

use crate::options::Setting;
use crate::reason::FallThrough;

/// Where the policy is read from when `BYPASS_CONFIG` does not say otherwise.
pub const DEFAULT_PATH: &str = "/etc/bypass/bypass.toml";

/// Programs that stay with the kernel whatever the rules say: a mistake in them locks people out.
/// (Debian's inetd of the GNU inetutils has a name of its own.)
pub const KERNEL_PROGRAMS: [&str; 5] = ["sshd", "inetd", "inetutils-inetd", "xinetd", "sudo"];

/// Rules, option settings and the daemon's part of one configuration file. The default is the
/// policy without a file: no rules, no settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// In the order of the file; [`Decision::rule`] counts from 0.
    pub rules: Vec<Rule>,
    /// Settings of the `[options]` table, checked; for [`crate::options::Options::resolve`].
    pub options: Vec<Setting>,
    /// The `[daemon]` table.
    pub daemon: DaemonPolicy,
    /// The `[[device]]` tables.
    pub devices: Vec<Device>,
}

impl Policy {
    /// Whether an interface's frames are to come into the stack's memory without a copy.
    #[must_use]
    pub fn zero_copy(&self, interface: &str) -> bool {
        let mut devices = self.devices.iter();
        devices.any(|device| device.name == interface && device.zero_copy)
    }

    /// Whether the stack is to have a queue of an interface for itself.
    #[must_use]
    pub fn own_queue(&self, interface: &str) -> bool {
        let mut devices = self.devices.iter();
        devices.any(|device| device.name == interface && device.own_queue)
    }

    /// Whether a rule names a user by name, so that [`Policy::resolve_users`] has work.
    #[must_use]
    pub fn names_users(&self) -> bool {
        let names = |rule: &Rule| {
            rule.user
                .as_ref()
                .is_some_and(|user| user.parse::<u32>().is_err())
        };
        self.rules.iter().any(names)
    }

    /// Whether a rule asks for an interface, so that [`Query::interface`] matters.
    #[must_use]
    pub fn names_interfaces(&self) -> bool {
        self.rules.iter().any(|rule| rule.interface.is_some())
    }

    /// Puts numbers in the place of user names, so that [`Query::user`] needs no name. A rule whose
    /// user does not exist keeps the name and matches nobody.
    pub fn resolve_users(&mut self, mut uid_of: impl FnMut(&str) -> Option<u32>) {
        for user in self.rules.iter_mut().filter_map(|rule| rule.user.as_mut()) {
            if user.parse::<u32>().is_err()
                && let Some(uid) = uid_of(user)
            {
                *user = uid.to_string();
            }
        }
    }

    /// Decides about a socket at the call that fixes an address. Allocates nothing.
    #[must_use]
    pub fn decide(&self, query: &Query<'_>) -> Decision<'_> {
        if let Some(reason) = builtin(query) {
            return Decision::Kernel { reason, rule: None };
        }
        match self
            .rules
            .iter()
            .enumerate()
            .find(|(_, rule)| rule.matches(query))
        {
            Some((index, rule)) => rule.decision(index, &self.devices),
            None => Decision::Accelerate {
                interface: None,
                backend: Backend::Auto,
                rule: None,
            },
        }
    }
}

/// The number that the text of `/etc/passwd` gives a user; for [`Policy::resolve_users`].
#[must_use]
pub fn uid_in_passwd(passwd: &str, name: &str) -> Option<u32> {
    let mut entries = passwd.lines().map(|line| line.split(':'));
    entries.find_map(|mut fields| {
        let same = fields.next() == Some(name);
        fields.nth(1).filter(|_| same)?.parse().ok()
    })
}

/// What no rule overrides.
fn builtin(query: &Query<'_>) -> Option<FallThrough> {
    if query.program.is_kernels() {
        return Some(FallThrough::Program);
    }
    let any = |is: fn(&Address) -> bool| [query.local, query.remote].iter().flatten().any(is);
    if any(Address::is_loopback) {
        Some(FallThrough::Loopback)
    } else if any(Address::is_multicast) {
        Some(FallThrough::Multicast)
    } else if any(Address::is_broadcast) {
        Some(FallThrough::Broadcast)
    } else {
        None
    }
}

/// What is known of a socket when the policy is asked.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The program.
    pub program: Program<'a>,
    /// The effective user.
    pub user: User<'a>,
    /// The socket's protocol.
    pub protocol: Protocol,
    /// The call that fixes the address.
    pub role: Role,
    /// Local address as bound so far; `None` when nothing is bound.
    pub local: Option<Address>,
    /// Remote address of a connect or first send.
    pub remote: Option<Address>,
    /// Interface of the local address or route, where that is known already.
    pub interface: Option<&'a str>,
}

/// A program by its two names, each a path or a bare name. A rule may mean either: Debian's
/// redis-server is a link to redis-check-rdb, and what runs of a script is its interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program<'a> {
    /// The file that runs.
    pub file: &'a str,
    /// What was asked to run: a link to the file, a script, or the file itself. It is the word of
    /// whoever started the program, so nothing that grants a right may look at it.
    pub started_as: &'a str,
}

impl<'a> Program<'a> {
    fn names(self) -> [&'a str; 2] {
        [self.file, self.started_as]
    }

    /// Whether it is one of [`KERNEL_PROGRAMS`].
    #[must_use]
    pub fn is_kernels(self) -> bool {
        let is_kernels = |name: &str| KERNEL_PROGRAMS.contains(&pattern::file_name(name));
        self.names().into_iter().any(is_kernels)
    }
}

/// A user by number, and by name where the caller knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User<'a> {
    /// User id.
    pub uid: u32,
    /// Name in the user database. Without it, rules that name a user by name do not match.
    pub name: Option<&'a str>,
}

/// The answer of [`Policy::decide`]. `rule` is the index of the rule that decided; `None` = the
/// built-in policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Accelerate, where a backend can be had.
    Accelerate {
        /// Only on this interface; `None` = on every one that serves the address.
        interface: Option<&'a str>,
        /// The wanted backend.
        backend: Backend,
        /// The rule.
        rule: Option<usize>,
    },
    /// The kernel serves the socket.
    Kernel {
        /// Why.
        reason: FallThrough,
        /// The rule.
        rule: Option<usize>,
    },
}

impl Decision<'_> {
    /// Index of the rule that decided.
    #[must_use]
    pub fn rule(&self) -> Option<usize> {
        match self {
            Self::Accelerate { rule, .. } | Self::Kernel { rule, .. } => *rule,
        }
    }

    /// Why the kernel serves the socket; `None` = it is accelerated.
    #[must_use]
    pub fn reason(&self) -> Option<FallThrough> {
        match self {
            Self::Accelerate { .. } => None,
            Self::Kernel { reason, .. } => Some(*reason),
        }
    }
}

/// One `[[rule]]`. An absent condition matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Program name or path pattern.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Glob>,
    /// User name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The call that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Local address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<AddressPattern>,
    /// Remote address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<AddressPattern>,
    /// Interface name. An accelerate rule also matches where the interface is not known yet (a
    /// socket bound to any address) and then restricts acceleration to this one; a kernel rule
    /// matches only where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// What to do.
    pub action: Action,
    /// With which backend; only for `accelerate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
}

impl Rule {
    /// Whether every condition holds.
    #[must_use]
    pub fn matches(&self, query: &Query<'_>) -> bool {
        let address = |wanted: &Option<AddressPattern>, actual: Option<Address>| match wanted {
            None => true,
            Some(pattern) => actual.is_some_and(|address| pattern.matches(&address)),
        };
        self.program.as_ref().is_none_or(|glob| {
            let mut names = query.program.names().into_iter();
            names.any(|name| glob.matches_program(name))
        }) && self
            .user
            .as_ref()
            .is_none_or(|user| pattern::same_user(user, query.user.uid, query.user.name))
            && self
                .protocol
                .is_none_or(|protocol| protocol == query.protocol)
            && self.role.is_none_or(|role| role == query.role)
            && address(&self.local, query.local)
            && address(&self.remote, query.remote)
            && self
                .interface
                .as_ref()
                .is_none_or(|wanted| match query.interface {
                    Some(actual) => wanted == actual,
                    None => self.action == Action::Accelerate,
                })
    }

    /// What the rule says, as the `index`-th of a policy with these devices.
    fn decision<'p>(&'p self, index: usize, devices: &'p [Device]) -> Decision<'p> {
        let rule = Some(index);
        match self.action {
            Action::Kernel => Decision::Kernel {
                reason: FallThrough::Rule,
                rule,
            },
            Action::Accelerate => match self.served_by(devices) {
                Some(interface) => Decision::Accelerate {
                    interface,
                    backend: self.backend.unwrap_or(Backend::Auto),
                    rule,
                },
                None => Decision::Kernel {
                    reason: FallThrough::Backend,
                    rule,
                },
            },
        }
    }

    /// The interface that the rule restricts acceleration to, itself or by its backend
    /// (`Some(None)` = none); `None` when nothing has the backend.
    fn served_by<'p>(&'p self, devices: &'p [Device]) -> Option<Option<&'p str>> {
        let named = self.interface.as_deref();
        let backend = self.backend.unwrap_or(Backend::Auto);
        let is_relayed = |it: &Device| it.backend.has_relay();
        let is_device =
            named.is_some_and(|name| devices.iter().any(|it| it.name == name && is_relayed(it)));
        let mut fitting = devices.iter().filter(|it| it.backend == backend);
        match backend {
            Backend::Auto => Some(named),
            Backend::AfXdp => (!is_device).then_some(named),
            Backend::Dpdk | Backend::EfVi => {
                let fits = |device: &&Device| named.is_none_or(|name| device.name == name);
                fitting.find(fits).map(|device| Some(device.name.as_str()))
            }
            Backend::Shm => None,
        }
    }
}

impl fmt::Display for Rule {
    /// One line: the conditions, then the action.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut part = |name: &str, value: Option<&dyn fmt::Display>| match value {
            Some(value) => write!(f, "{name}={value} "),
            None => Ok(()),
        };
        part("program", self.program.as_ref().map(|value| value as _))?;
        part("user", self.user.as_ref().map(|value| value as _))?;
        part("protocol", self.protocol.as_ref().map(|value| value as _))?;
        part("role", self.role.as_ref().map(|value| value as _))?;
        part("local", self.local.as_ref().map(|value| value as _))?;
        part("remote", self.remote.as_ref().map(|value| value as _))?;
        part("interface", self.interface.as_ref().map(|value| value as _))?;
        part("backend", self.backend.as_ref().map(|value| value as _))?;
        write!(f, "-> {}", self.action)
    }
}

impl Backend {
    /// Whether it is in a process of its own: then the link of its interface is the rings of its
    /// queue pair.
    #[must_use]
    pub fn has_relay(self) -> bool {
        Self::is_relayed(self as u8)
    }

    /// The same of its number in the stack's image.
    #[must_use]
    pub fn is_relayed(number: u8) -> bool {
        let relayed = [Self::Dpdk, Self::EfVi];
        relayed.into_iter().any(|backend| backend as u8 == number)
    }
}

/// Declares an enum of words of the configuration file: variant, number, word.
macro_rules! words {
    ($(
        $(#[$meta:meta])*
        $name:ident {
            $( $(#[doc = $doc:literal])+ $variant:ident = $number:literal, $word:literal; )+
        }
    )+) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[repr(u8)]
        pub enum $name { $( $(#[doc = $doc])+ #[serde(rename = $word)] $variant = $number, )+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// The word of the configuration file.
            #[must_use]
            pub fn word(self) -> &'static str { match self { $( Self::$variant => $word, )+ } }

            /// The value with this word.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.word() == word)
            }

            /// The value with this number (as the process report stores it).
            #[must_use]
            pub fn from_number(number: u8) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| *value as u8 == number)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.word()) }
        }
    )+ };
}

words! {
    /// A transport protocol; its number is the IP protocol number.
    Protocol {
        /// TCP.
        Tcp = 6, "tcp";
        /// UDP.
        Udp = 17, "udp";
    }
    /// The call that fixes an address.
    Role {
        /// `bind`.
        Bind = 1, "bind";
        /// `listen`.
        Listen = 2, "listen";
        /// `connect`.
        Connect = 3, "connect";
        /// The first send of an unbound socket.
        Send = 4, "send";
    }
    /// What a rule decides.
    Action {
        /// Our stack serves the socket where a backend can be had.
        Accelerate = 1, "accelerate";
        /// The kernel serves the socket.
        Kernel = 2, "kernel";
    }
    /// How frames reach the stack.
    Backend {
        /// The best that the interface has.
        Auto = 0, "auto";
        /// An AF_XDP socket.
        AfXdp = 1, "af_xdp";
        /// A DPDK port.
        Dpdk = 2, "dpdk";
        /// A Solarflare virtual interface.
        EfVi = 3, "ef_vi";
        /// Shared memory between two processes of one host.
        Shm = 4, "shm";
    }
}

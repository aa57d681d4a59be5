//! `bypassctl daemon`: the privileged side of the bypass, one per network namespace.
//!
//! It opens interfaces, attaches the XDP program, owns stacks' memory, grants filters to programs
//! that prove that they own an address, mirrors the kernel's routes and neighbours into a table
//! that programs read, and sweeps up after the dead. Programs run their stacks themselves; only
//! for those that do not while frames are due, the daemon does ([`deputy`]).
//!
//! ```text
//!   program --(AF_UNIX, SCM_RIGHTS)--> client -> requests -> stacks, filters, nics
//!   pidfd of each program ------------> watch --------------/      |
//!   frames that wait -----------------> deputy -------------/      |
//!   rtnetlink ------------------------> mirror -> control-plane table, filters
//!   ICMP errors (raw sockets) --------> icmp -> the connections that they are about
//! ```
//!
//! One thread and one epoll set ([`server`]); nothing in it waits for a client. All it owns hangs
//! on
//! descriptors, so its death leaves nothing behind, and running programs, which hold copies of the
//! same descriptors, go on. The next daemon finds them ([`adopt`]).

mod adopt;
mod attach;
mod bequeath;
mod capture;
mod client;
mod counters;
mod deputy;
mod detach;
mod devices;
mod dress;
mod filters;
mod foreign;
mod handover;
mod icmp;
mod memory;
mod netlink;
mod nics;
mod opening;
mod outlet;
mod port;
mod ports;
mod proc_text;
mod process;
mod proof;
mod published;
mod query;
mod recall;
mod reload;
mod repair;
mod report;
mod requests;
mod rollback;
mod server;
mod sockopt;
mod stacks;
mod statics;
mod steer;
mod sweep;
#[cfg(test)]
mod tests;
mod transfer;
mod watch;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bypass_proto::control::ADDRESS;
use bypass_proto::policy::{DEFAULT_PATH, Policy};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use self::detach::Side;

/// Connections that may wait to be accepted: a thousand programs may start at once, and a
/// connection
/// that does not wait for its place fails. (The kernel's net.core.somaxconn is the upper bound.)
const BACKLOG: i32 = 2048;

/// How the daemon runs.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// Ends about two seconds after its last client and program are gone.
    pub exit_when_idle: bool,
    /// Stays where it is: same session, folder and standard streams. Otherwise it detaches from
    /// all of them before it answers.
    pub foreground: bool,
    /// Configuration file; `None` = the default one, if there is one.
    pub config: Option<PathBuf>,
}

/// Why the daemon does not run (any more).
#[derive(Debug)]
pub enum DaemonError {
    /// Another daemon serves this network namespace.
    Running,
    /// The configuration file that was named cannot be read.
    Config(PathBuf, std::io::Error),
    /// The operating system refused a step.
    System(&'static str, Errno),
}

impl DaemonError {
    /// Exit code: 3 = nothing to do, 1 = failed.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Running => 3,
            Self::Config(..) | Self::System(..) => 1,
        }
    }
}

impl fmt::Display for DaemonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str(
                "a daemon serves this network namespace already; nothing to do (see bypassctl stacks)",
            ),
            Self::Config(path, error) => {
                write!(f, "cannot read the configuration {}: {error}", path.display())
            }
            Self::System(step, errno) => write!(f, "cannot {step}: {errno}"),
        }
    }
}

impl std::error::Error for DaemonError {}

/// Runs the daemon of the calling thread's network namespace until it is told to stop or, with
/// [`DaemonOptions::exit_when_idle`], until nobody needs it.
///
/// # Errors
/// Each [`DaemonError`], all of them before the daemon serves anybody.
pub fn run(options: &DaemonOptions) -> Result<(), DaemonError> {
    if !options.foreground {
        detach::close_inherited();
    }
    let config = Config::read(options.config.as_deref())?;
    let listener = claim_address()?;
    if let (Some(path), Some(error)) = (&config.path, &config.error) {
        eprintln!(
            "bypassctl: {}: {error}; nobody is served until it is corrected and bypassctl \
             reload was called",
            path.display()
        );
    }
    if !options.foreground && detach::detach()? == Side::Caller {
        return Ok(());
    }
    raise_descriptor_limit();
    raise_priority();
    let mut server = server::Server::new(options, config, listener)?;
    server.run()
}

/// The configuration as the daemon uses it.
#[derive(Debug, Default)]
struct Config {
    /// Where it was read from.
    path: Option<PathBuf>,
    /// The policy; the default one when there is an error.
    policy: Policy,
    /// What is wrong with the file. Then nobody is served: a rule that cannot be read might have
    /// been one that forbids.
    error: Option<String>,
}

impl Config {
    fn read(named: Option<&Path>) -> Result<Self, DaemonError> {
        let path = named.unwrap_or_else(|| Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(DaemonError::Config(path.to_owned(), error)),
        };
        let (policy, error) = match Policy::parse(&text) {
            Ok(policy) => (policy, None),
            Err(error) => (Policy::default(), Some(error.to_string())),
        };
        Ok(Self {
            path: Some(path.to_owned()),
            policy,
            error,
        })
    }
}

/// Binds the address of the daemon of this network namespace, which only one can have.
fn claim_address() -> Result<OwnedFd, DaemonError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|errno| DaemonError::System("make the control socket", errno))?;
    let address = SocketAddrUnix::new_abstract_name(ADDRESS)
        .map_err(|errno| DaemonError::System("name the control socket", errno))?;
    match bind(&listener, &address) {
        Err(Errno::ADDRINUSE) => return Err(DaemonError::Running),
        bound => bound.map_err(|errno| DaemonError::System("bind the control socket", errno))?,
    }
    listen(&listener, BACKLOG)
        .map_err(|errno| DaemonError::System("listen on the control socket", errno))?;
    Ok(listener)
}

/// Frames do not wait: a queue is full after a few milliseconds, and in the kernel it would be the
/// interrupt that took them in. Without CAP_SYS_NICE it stays as it is.
fn raise_priority() {
    const NICE: i32 = -10;
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Clients, programs and queues each cost descriptors.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(65_536, |most| most.max(65_536));
    let raised = Rlimit {
        current: Some(wanted),
        maximum: Some(wanted),
    };
    if setrlimit(Resource::Nofile, raised).is_err() {
        // Without CAP_SYS_RESOURCE: as far as it goes.
        let most = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        let _ = setrlimit(Resource::Nofile, most);
    }
}

//! Where the facts come from: the daemon's answers, and what processes hold in memory.
//!
//! Images and reports are memfds that are found through `/proc/PID/fd`, copied, checked and then read:
//! nobody is asked and nothing is stopped. Their content is believed only as far as it is checked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use bypass_proto::control::{
    ADDRESS, MAGIC, MAX_TEXT, QueryKind, Refusal, Reply, ReplyKind, Request, RequestKind, VERSION,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with, sockopt,
};
use serde_json::Value;
use zerocopy::{FromBytes, IntoBytes};

use crate::Failure;

/// Offset of the stack in an image memfd: after the page with the lock.
const STACK_OFFSET: usize = 4096;
/// Largest memfd that is read.
const LARGEST: u64 = 1 << 30;

/// Sends a request to the daemon and collects its text and reply.
///
/// # Errors
/// When no daemon answers, or it refuses.
pub fn ask(request: &Request) -> Result<Value, Failure> {
    let fail = |what: &str, error: rustix::io::Errno| {
        Failure::new(format!("{what}: {error}; is the daemon running? (bypassctl daemon)"))
    };
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| fail("cannot make a socket", error))?;
    let address = SocketAddrUnix::new_abstract_name(ADDRESS)
        .map_err(|error| fail("cannot name the daemon", error))?;
    connect(&socket, &address)
        .map_err(|_| Failure::nothing("no daemon runs in this network namespace"))?;
    let patience = Some(std::time::Duration::from_secs(5));
    let _ = sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, patience);
    send(&socket, request.as_bytes(), SendFlags::NOSIGNAL)
        .map_err(|error| fail("cannot ask the daemon", error))?;
    let mut text = Vec::new();
    let mut packet = vec![MaybeUninit::<u8>::uninit(); MAX_TEXT + 1];
    loop {
        let ((bytes, _), _) = recv(&socket, &mut packet[..], RecvFlags::empty())
            .map_err(|error| fail("no answer from the daemon", error))?;
        if bytes.is_empty() {
            return Err(Failure::new("the daemon closed the connection"));
        }
        match Reply::read_from_bytes(bytes) {
            Ok(reply) if reply.magic == MAGIC && reply.version == VERSION => {
                return finish(reply, &text);
            }
            _ => text.extend_from_slice(bytes),
        }
    }
}

fn finish(reply: Reply, text: &[u8]) -> Result<Value, Failure> {
    if ReplyKind::from_wire(reply.kind) == Some(ReplyKind::Refused) {
        let why = Refusal::from_wire(reply.refusal)
            .map_or_else(|| "for a reason unknown here".to_owned(), |why| format!("{why:?}"));
        return Err(Failure::new(format!("the daemon refuses: {why}")));
    }
    if text.is_empty() {
        return Ok(serde_json::json!({ "filter": reply.filter, "count": reply.count }));
    }
    serde_json::from_slice(text)
        .map_err(|error| Failure::new(format!("the daemon's answer is not JSON: {error}")))
}

/// One of the daemon's lists.
///
/// # Errors
/// As [`ask`].
pub fn query(kind: QueryKind) -> Result<Value, Failure> {
    ask(&Request { query: kind as u32, ..Request::new(RequestKind::Query) })
}

/// A memfd of ours that some process holds.
#[derive(Debug)]
pub struct Held {
    /// A process that holds it.
    pub pid: u32,
    path: PathBuf,
    bytes: u64,
}

impl Held {
    /// A copy of its content.
    pub fn read(&self) -> Option<Vec<u8>> {
        if self.bytes > LARGEST {
            return None;
        }
        let mut content = Vec::with_capacity(self.bytes as usize);
        File::open(&self.path).ok()?.take(LARGEST).read_to_end(&mut content).ok()?;
        Some(content)
    }

    /// A copy of a stack image, aligned for reading.
    pub fn read_stack(&self) -> Option<AlignedBytes> {
        self.read().and_then(|content| content.get(STACK_OFFSET..).map(AlignedBytes::new))
    }
}

/// Bytes that begin at a multiple of eight.
#[derive(Debug)]
pub struct AlignedBytes {
    words: Vec<u64>,
    length: usize,
}

impl AlignedBytes {
    fn new(bytes: &[u8]) -> Self {
        let mut words = vec![0_u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        Self { words, length: bytes.len() }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.words.as_bytes()[..self.length]
    }
}

/// Every process id.
pub fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

/// Memfds with this name, each once, with the first process that holds it.
pub fn memfds(name: &str, pids: &[u32]) -> Vec<Held> {
    let wanted = format!("/memfd:{name} (deleted)");
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for &pid in pids {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if fs::read_link(&path).is_ok_and(|target| target.as_os_str() == wanted.as_str())
                && let Ok(facts) = fs::metadata(&path)
                && seen.insert((facts.dev(), facts.ino()))
            {
                found.push(Held { pid, path, bytes: facts.len() });
            }
        }
    }
    found
}

/// Name of a program, "-" when it is gone.
pub fn program(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "-".to_owned(), |name| name.trim().to_owned())
}

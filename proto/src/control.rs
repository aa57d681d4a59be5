//! Messages between a program (or `bypassctl`) and the daemon.
//!
//! The daemon listens on the abstract `SOCK_SEQPACKET` address [`ADDRESS`], which the kernel
//! scopes to the network namespace. One message is one packet: a fixed [`Request`] from the client,
//! a fixed [`Reply`] from the daemon, descriptors beside them by `SCM_RIGHTS`. A query is answered
//! by any number of packets of JSON text, then one [`Reply`] of kind [`ReplyKind::End`].
//!
//! Every field is valid for any bit pattern; the receiver checks magic, version and kind.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Abstract UNIX address (without the leading NUL) of the daemon of a network namespace.
pub const ADDRESS: &[u8] = b"bypass-daemon";
/// First word of every request and reply: "BYPS" in memory.
pub const MAGIC: u32 = u32::from_le_bytes(*b"BYPS");
/// Protocol version. A daemon refuses any other with [`Refusal::Version`].
pub const VERSION: u16 = 2;
/// Most descriptors that one message carries (the kernel's SCM_MAX_FD is 253).
pub const MAX_FDS: usize = 128;
/// Most bytes of one packet of JSON text.
pub const MAX_TEXT: usize = 32 * 1024;

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RequestKind {
    /// Join the stack of the caller's user. Reply: [`ReplyKind::Attached`] with image, packet
    /// memory, control-plane table and the table of TCP flows.
    Attach = 1,
    /// All queue pairs of the stack. Reply: [`ReplyKind::QueuePairs`]; per queue pair, in index
    /// order, the XSK, then one link descriptor for each interface.
    QueuePairs = 2,
    /// UDP: steer a flow or local address to the stack. TCP: allow the stack to claim flows of a
    /// local address and port in its flow table, and with [`Request::listen`] steer connections
    /// that begin there to it. One descriptor: the bound socket itself, the proof that the caller
    /// owns the address. For TCP the daemon keeps a copy of it as long as the filter lives, so that
    /// the port stays taken. Reply: [`ReplyKind::Filter`].
    AddFilter = 3,
    /// Give a filter back. No reply. The grant of a TCP listener goes with the last flow of its
    /// address in the flow table, the listener itself and the daemon's copy of the socket at once.
    RemoveFilter = 4,
    /// The caller has forked: `pid` now owns process slot `process`. No reply.
    Forked = 5,
    /// A list for `bypassctl` as JSON; [`Request::query`] says which.
    Query = 6,
    /// Add a static filter (privileged): one that keeps an address in the kernel, or reserves it
    /// for a user's programs. Reply: [`ReplyKind::Filter`].
    AddStatic = 7,
    /// Remove a static filter by id (privileged). Reply: [`ReplyKind::End`].
    RemoveStatic = 8,
    /// Ask the daemon to stop (privileged). Reply: [`ReplyKind::End`].
    Shutdown = 9,
    /// Ask the daemon to read its configuration again (privileged). Reply: text, which is what is
    /// wrong with it, or empty; then [`ReplyKind::End`].
    Reload = 10,
    /// Give a UDP filter back and have what the endpoint has not read sent to the bound socket once
    /// more, by the kernel. Reply: [`ReplyKind::End`], `count` = datagrams moved. With a
    /// descriptor: the endpoint is a TCP connection, which the descriptor, a closed TCP socket,
    /// becomes; the endpoint is gone then. Reply: the same, `count` = 1.
    HandOver = 11,
    /// Have the kernel find out the MAC address of the next hop to `remote`, as a packet to it
    /// would; with `ifindex` by that interface only. No reply: the table tells.
    Resolve = 12,
    /// Roll sockets back to the kernel (privileged): those of process `pid` and what it has forked,
    /// or those of local port `local_port`, or with neither all. New sockets of these programs, or
    /// of this port, stay with the kernel. Reply: text, an object with the counts `processes`,
    /// `connections` (moved), `listeners`, `udp` and `left`, connections that could not be moved
    /// yet; then [`ReplyKind::End`].
    RollBack = 13,
    /// Take such sockets back (privileged). Reply: as for [`RequestKind::RollBack`].
    TakeBack = 14,
    /// A listener's socket is about to be passed to a program of which nobody knows whether it has
    /// the endpoint too: until one that has says so ([`Request::listen`]), the kernel's socket gets
    /// what begins. Reply: [`ReplyKind::End`].
    Lend = 15,
    /// Add ports of the address `local` to those that the stack keeps for connections of its
    /// programs: the daemon reserves them and allows the stack to claim their flows. Reply:
    /// [`ReplyKind::End`], `count` = how many.
    AddPorts = 16,
}

impl RequestKind {
    /// The kind with this number on the wire, if there is one.
    #[must_use]
    pub fn from_wire(value: u16) -> Option<Self> {
        use RequestKind::{
            AddFilter, AddPorts, AddStatic, Attach, Forked, HandOver, Lend, Query, QueuePairs,
            Reload, RemoveFilter, RemoveStatic, Resolve, RollBack, Shutdown, TakeBack,
        };
        [
            Attach,
            QueuePairs,
            AddFilter,
            RemoveFilter,
            Forked,
            Query,
            AddStatic,
            RemoveStatic,
            Shutdown,
            Reload,
            HandOver,
            Resolve,
            RollBack,
            TakeBack,
            Lend,
            AddPorts,
        ]
        .into_iter()
        .find(|kind| *kind as u16 == value)
    }
}

/// Which list a [`RequestKind::Query`] asks for (`Request::query`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum QueryKind {
    /// Filters with owner, backend, packets, bytes.
    Filters = 1,
    /// Stacks with users, processes, interfaces, queue pairs.
    Stacks = 2,
    /// The daemon's own counters.
    Daemon = 3,
    /// Interfaces with their backend, mode or the reason why there is none.
    Interfaces = 4,
}

/// A request. Unused fields are zero.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Request {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u16,
    /// A [`RequestKind`].
    pub kind: u16,
    /// Echoed in the reply.
    pub sequence: u32,
    /// A [`QueryKind`], or zero.
    pub query: u32,
    /// Local address, IPv4 as v4-mapped; all zero = any.
    pub local: [u8; 16],
    /// Remote address of a connected socket; all zero = any.
    pub remote: [u8; 16],
    /// Local port, host order.
    pub local_port: u16,
    /// Remote port, host order; 0 = any.
    pub remote_port: u16,
    /// IP protocol number: 6 or 17.
    pub protocol: u8,
    /// 1 = the socket is AF_INET6 and not IPV6_V6ONLY (takes IPv4 and IPv6 when `local` is any),
    /// 2 = AF_INET6 and IPV6_V6ONLY, 0 = AF_INET.
    pub family: u8,
    /// 1 = a static filter that keeps the traffic in the kernel, 0 = one that reserves it for the
    /// programs that `user` and `program` name (AddStatic).
    pub keep_in_kernel: u8,
    /// TCP: 1 = connections that others begin are the stack's too, 0 = only the flows that it
    /// claims. Zero for UDP. TakeBack: 1 = connections that the kernel has too.
    pub listen: u8,
    /// Interface index, 0 = every interface with a backend that has the local address.
    pub ifindex: u32,
    /// Endpoint in the stack image that the filter feeds: slab index.
    pub endpoint_index: u32,
    /// Endpoint generation.
    pub endpoint_generation: u32,
    /// Filter to remove.
    pub filter: u32,
    /// Process slot in the stack image (Forked).
    pub process: u32,
    /// Process id of the new owner (Forked), in the caller's pid namespace.
    pub pid: u32,
    /// User whose programs may have the address (AddStatic).
    pub user: u32,
    /// Whether `user` means anything (AddStatic).
    pub has_user: u8,
    /// File name of the programs that may have it, padded with NULs; empty = any (AddStatic).
    pub program: [u8; PROGRAM_NAME],
}

/// Most bytes of a program's name in a [`Request`].
pub const PROGRAM_NAME: usize = 27;

impl Request {
    /// A request of this kind with every other field zero.
    #[must_use]
    pub fn new(kind: RequestKind) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            kind: kind as u16,
            sequence: 0,
            query: 0,
            local: [0; 16],
            remote: [0; 16],
            local_port: 0,
            remote_port: 0,
            protocol: 0,
            family: 0,
            keep_in_kernel: 0,
            listen: 0,
            ifindex: 0,
            endpoint_index: 0,
            endpoint_generation: 0,
            filter: 0,
            process: 0,
            pid: 0,
            user: 0,
            has_user: 0,
            program: [0; PROGRAM_NAME],
        }
    }

    /// A request, or why it is refused, with its sequence number as far as it has one. What the
    /// fields say is checked by whoever serves it.
    ///
    /// # Errors
    /// [`Refusal::Version`] for another protocol version, whatever its length;
    /// [`Refusal::Malformed`] for everything else that is no request.
    pub fn parse(bytes: &[u8]) -> Result<Self, (Refusal, u32)> {
        // The head is the same in every version, so that each can tell the other.
        let Ok((head, _)) = <[[u16; 2]; 3]>::read_from_prefix(bytes) else {
            return Err((Refusal::Malformed, 0));
        };
        let [magic, [version, _kind], sequence] = head;
        let sequence = u32::read_from_bytes(sequence.as_bytes()).unwrap_or(0);
        if magic.as_bytes() != MAGIC.as_bytes() {
            return Err((Refusal::Malformed, 0));
        }
        if version != VERSION {
            return Err((Refusal::Version, sequence));
        }
        Self::read_from_bytes(bytes).map_err(|_| (Refusal::Malformed, sequence))
    }
}

/// How the daemon answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ReplyKind {
    /// Descriptors: stack image, packet memory, control-plane table, table of TCP flows (in this
    /// order).
    Attached = 1,
    /// Descriptors: see [`RequestKind::QueuePairs`].
    QueuePairs = 2,
    /// The filter is in place.
    Filter = 3,
    /// No: `refusal` says why.
    Refused = 4,
    /// End of a query, or a plain "done".
    End = 5,
}

impl ReplyKind {
    /// The kind with this number on the wire, if there is one.
    #[must_use]
    pub fn from_wire(value: u16) -> Option<Self> {
        [
            Self::Attached,
            Self::QueuePairs,
            Self::Filter,
            Self::Refused,
            Self::End,
        ]
        .into_iter()
        .find(|kind| *kind as u16 == value)
    }
}

/// Why the daemon refuses. The shim records it as the reason of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Refusal {
    /// Another protocol version.
    Version = 1,
    /// Malformed: length, magic, kind, descriptors missing or of the wrong kind.
    Malformed = 2,
    /// The descriptor is not a socket bound to the address that the request names.
    NotOwner = 3,
    /// No interface with a usable backend has this address.
    NoInterface = 4,
    /// The interface's queue belongs to another user's stack, or to another program.
    QueueBusy = 5,
    /// The daemon's policy does not let this user have acceleration.
    NotAllowed = 6,
    /// A limit of the daemon or of this client is reached (filters, processes, clients).
    Limit = 7,
    /// The operating system said no: `detail` is the errno.
    System = 8,
    /// Another live filter has this address, or a static filter keeps it in the kernel.
    Conflict = 9,
    /// The user's stack has programs of another pid namespace, whose threads this one could not
    /// tell from dead ones.
    PidNamespace = 10,
}

impl Refusal {
    /// Every refusal, for tables.
    pub const ALL: [Self; 10] = [
        Self::Version,
        Self::Malformed,
        Self::NotOwner,
        Self::NoInterface,
        Self::QueueBusy,
        Self::NotAllowed,
        Self::Limit,
        Self::System,
        Self::Conflict,
        Self::PidNamespace,
    ];

    /// The refusal with this number on the wire, if there is one.
    #[must_use]
    pub fn from_wire(value: u16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|refusal| *refusal as u16 == value)
    }
}

/// A reply. Unused fields are zero.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Reply {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u16,
    /// A [`ReplyKind`].
    pub kind: u16,
    /// The request's `sequence`.
    pub sequence: u32,
    /// A [`Refusal`], or zero.
    pub refusal: u16,
    /// Count of descriptors that the message carries.
    pub fds: u16,
    /// errno behind a [`Refusal::System`]; EEXIST when a static filter was there already; or zero.
    pub detail: u32,
    /// Process slot of the caller in the stack image (Attached).
    pub process: u32,
    /// Filter id (Filter).
    pub filter: u32,
    /// Count of queue pairs (QueuePairs), of interfaces served (Filter), of datagrams (HandOver).
    pub count: u32,
    /// Size of a chunk of the packet memory in bytes (Attached).
    pub chunk_size: u32,
    /// Entries of each ring (QueuePairs): fill, completion, RX and TX alike.
    pub ring_entries: u32,
}

impl Reply {
    /// A reply of this kind with every other field zero.
    #[must_use]
    pub fn new(kind: ReplyKind) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            kind: kind as u16,
            sequence: 0,
            refusal: 0,
            fds: 0,
            detail: 0,
            process: 0,
            filter: 0,
            count: 0,
            chunk_size: 0,
            ring_entries: 0,
        }
    }
}

const _: () = assert!(size_of::<Request>() == 112);
const _: () = assert!(size_of::<Reply>() == 40);

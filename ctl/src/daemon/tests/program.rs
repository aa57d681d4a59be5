//! A program as the shim would make it, reduced to what the daemon sees of it.

use std::mem::MaybeUninit;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bypass_backends::af_xdp::AfXdpQueuePair;
use bypass_proto::control::{ADDRESS, QueryKind, Refusal, Reply, ReplyKind, Request, RequestKind};
use bypass_runtime::attachment::Attachment;
use bypass_runtime::control::{Answer, Control, ControlError};
use bypass_runtime::cplane::Cplane;
use bypass_runtime::flows::Flows;
use bypass_runtime::image::Image;
use bypass_runtime::packets::Packets;
use bypass_runtime::wake::Ringer;
use bypass_stack::{
    Cargo, ConnectionRecord, Counter, EndpointId, Family, IpAddress, NextHop, ProcessId,
    SocketAddress, TcpOpen, TcpOptions, UdpOpen, UdpOptions,
};
use rustix::io::{IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};
use serde_json::Value;
use zerocopy::{FromBytes, IntoBytes};

/// A program that has joined its user's stack.
pub(super) struct Program {
    pub control: Control,
    pub attachment: Attachment,
    pub cplane: Cplane,
    pub flows: Flows,
    pub process: ProcessId,
    chunk_size: u32,
    shared: Vec<OwnedFd>,
    leases: Vec<OwnedFd>,
}

impl Program {
    pub(super) fn join() -> Result<Self, ControlError> {
        let mut control = Control::connect()?;
        let Answer { reply, fds } = control.ask(Request::new(RequestKind::Attach), None)?;
        assert_eq!(reply.kind, ReplyKind::Attached as u16);
        let [image, packets, cplane, flows] = fds.as_slice() else {
            panic!("four descriptors")
        };
        let packets = Packets::map(packets, reply.chunk_size).expect("packets");
        let cplane = Cplane::map(cplane).expect("cplane");
        let steered = Flows::map(flows).expect("flows");
        let flows = Flows::map(flows).expect("flows");
        let image = Image::map(image).expect("image");
        let attachment = Attachment::new(image, packets, steered, Ringer::new().expect("ringer"))
            .expect("attachment");
        let process = ProcessId(reply.process as u8);
        let chunk_size = reply.chunk_size;
        Ok(Self {
            control,
            attachment,
            cplane,
            flows,
            process,
            chunk_size,
            shared: fds,
            leases: Vec::new(),
        })
    }

    /// A program that serves an address, with its queues mapped; its socket waits for two seconds.
    pub(super) fn serving(address: &str) -> (Self, UdpSocket, EndpointId) {
        let mut program = Self::join().expect("join");
        let socket = UdpSocket::bind(address).expect("bind");
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(2)))
            .expect("timeout");
        let endpoint = program.open(&socket);
        program.filter(&socket, endpoint).expect("filter");
        program.map_queues();
        (program, socket, endpoint)
    }

    /// Opens an endpoint for a bound socket.
    pub(super) fn open(&mut self, socket: &UdpSocket) -> EndpointId {
        let open = UdpOpen {
            family: family(socket),
            local: local(socket),
            remote: remote(socket),
            process: self.process,
            options: UdpOptions::new(),
            shadow_cookie: 0,
            ifindex: 0,
        };
        let mut locked = self.attachment.lock().expect("lock");
        locked.stack().udp_open(&open).expect("open")
    }

    /// Asks for a filter for it; the filter's id.
    pub(super) fn filter(
        &mut self,
        socket: &UdpSocket,
        endpoint: EndpointId,
    ) -> Result<u32, ControlError> {
        let request = filter_request(socket, endpoint);
        let answer = self.control.ask(request, Some(socket.as_fd()))?;
        assert_eq!(answer.reply.kind, ReplyKind::Filter as u16);
        assert!(answer.reply.count > 0);
        let mut locked = self.attachment.lock().expect("lock");
        locked.stack().set_filter(endpoint, answer.reply.filter);
        Ok(answer.reply.filter)
    }

    /// Asks for a grant for a bound TCP socket, or a listener; the filter's id.
    pub(super) fn grant(
        &mut self,
        socket: impl AsFd,
        local: &str,
        endpoint: EndpointId,
        listen: u8,
    ) -> Result<u32, ControlError> {
        let local = from_std(local.parse().expect("address"));
        let request = Request {
            local: local.ip.0,
            local_port: local.port,
            protocol: 6,
            listen,
            endpoint_index: endpoint.index,
            endpoint_generation: endpoint.generation,
            ..Request::new(RequestKind::AddFilter)
        };
        let answer = self.control.ask(request, Some(socket.as_fd()))?;
        Ok(answer.reply.filter)
    }

    /// Asks for more ports for connections; all that there are then.
    pub(super) fn ports(&mut self, ip: &str) -> Vec<u16> {
        let request = Request {
            local: IpAddress::from(ip.parse::<std::net::IpAddr>().expect("address")).0,
            ..Request::new(RequestKind::AddPorts)
        };
        if let Err(ControlError::NoDaemon(_)) = self.control.ask(request, None) {
            self.control = Control::connect().expect("another daemon");
            self.control.ask(request, None).expect("ports");
        }
        let mut locked = self.attachment.lock().expect("lock");
        let stack = locked.stack();
        stack.ports().map(|port| port.local.port).collect()
    }

    /// Gives a filter back.
    pub(super) fn release(&mut self, filter: u32) {
        let request = Request {
            filter,
            ..Request::new(RequestKind::RemoveFilter)
        };
        self.control.tell(request).expect("tell");
    }

    /// Enters a TCP flow; its place.
    pub(super) fn enter(&self, local: &str, remote: &str, endpoint: EndpointId) -> u32 {
        let address = |text: &str| from_std(text.parse().expect("address"));
        let _locked = self.attachment.lock().expect("lock");
        let slot = self.flows.insert(address(local), address(remote), endpoint);
        slot.expect("room")
    }

    /// Maps the queue pairs; how many.
    pub(super) fn map_queues(&mut self) -> u32 {
        let answer = self
            .control
            .ask(Request::new(RequestKind::QueuePairs), None)
            .expect("queue pairs");
        let count = answer.reply.count;
        let mut fds = answer.fds.into_iter();
        let mut locked = self.attachment.lock().expect("lock");
        for (index, xsk) in fds.by_ref().take(count as usize).enumerate() {
            let is_live = locked.stack().queue_pairs()[index].is_live();
            if is_live && !locked.has_queue(index) {
                let pair = AfXdpQueuePair::map(xsk, self.chunk_size, answer.reply.ring_entries)
                    .expect("map queue");
                self.attachment.install(&mut locked, index, Box::new(pair));
            }
        }
        drop(locked);
        self.leases = fds.collect();
        count
    }

    /// Writes rubbish all over the image, lock word and identity included.
    pub(super) fn scribble(&self) {
        let image = &self.shared[0];
        let size = rustix::fs::fstat(image).expect("stat").st_size as u64;
        let mut state = u64::from(std::process::id()) | 1;
        for page in 0..size / 4096 {
            let bytes: Vec<u8> = (0..4096)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            rustix::io::pwrite(image, &bytes, page * 4096).expect("write");
        }
    }

    /// Writes anything into the lock word of the image.
    pub(super) fn write_lock_word(&self, word: u32) {
        const OFFSET: u64 = 16;
        rustix::io::pwrite(&self.shared[0], &word.to_ne_bytes(), OFFSET).expect("write");
    }

    /// How many datagrams an endpoint has, without taking frames in.
    pub(super) fn held(&self, endpoint: EndpointId) -> u32 {
        let mut locked = self.attachment.lock().expect("lock");
        locked.stack().udp_status(endpoint).expect("status").queued
    }

    /// Begins a connection to a neighbour with this address; without one no frame comes back.
    pub(super) fn connect(&self, from: &str, to: &str) {
        let open = TcpOpen {
            family: Family::V4,
            local: from_std(from.parse().expect("address")),
            process: self.process,
            options: TcpOptions::new(),
            shadow_cookie: 0,
            ifindex: 0,
        };
        let via = NextHop {
            queue_pair: 0,
            neighbour_state: bypass_stack::cplane::neighbour_state::REACHABLE,
            mtu: 1500,
            ifindex: 0,
            source: open.local.ip,
            source_mac: [2, 0, 0, 0, 0, 1],
            mac: [2, 0, 0, 0, 0, 2],
            generation: 1,
        };
        let remote = from_std(to.parse().expect("address"));
        let now = bypass_runtime::clock::now();
        let mut locked = self.attachment.lock().expect("lock");
        let (stack, packets) = locked.parts();
        let connected = stack.tcp_connect(packets, &open, remote, &via, now);
        connected.expect("connect");
    }

    /// A connection between these addresses, as it may stand in any image; nothing is sent.
    pub(super) fn forge(&self, from: &str, to: &str) -> EndpointId {
        let address = |text: &str| from_std(text.parse().expect("address"));
        let (local, remote) = (address(from), address(to));
        let mut record = ConnectionRecord::read_from_bytes(&[0; size_of::<ConnectionRecord>()])
            .expect("plain data");
        (record.local_ip, record.local_port) = (local.ip, local.port);
        (record.remote_ip, record.remote_port) = (remote.ip, remote.port);
        (record.mss_clamp, record.advertised_mss) = (1460, 1460);
        (record.snd_wnd, record.max_window, record.rcv_wnd) = (9000, 9000, 9000);
        let open = TcpOpen {
            family: Family::V4,
            local,
            process: self.process,
            options: TcpOptions::new(),
            shadow_cookie: 0,
            ifindex: 0,
        };
        let via = NextHop {
            queue_pair: 0,
            neighbour_state: bypass_stack::cplane::neighbour_state::REACHABLE,
            mtu: 1500,
            ifindex: 0,
            source: local.ip,
            source_mac: [2, 0, 0, 0, 0, 1],
            mac: [2, 0, 0, 0, 0, 2],
            generation: 1,
        };
        let now = bypass_runtime::clock::now();
        let mut locked = self.attachment.lock().expect("lock");
        let (stack, packets) = locked.parts();
        let cargo = Cargo::default();
        let came = stack.tcp_import(packets, &open, (&record, cargo), &via, now);
        came.expect("room")
    }

    /// Asks that a connection becomes this socket.
    pub(super) fn hand_over(
        &mut self,
        socket: impl AsFd,
        endpoint: EndpointId,
    ) -> Result<u32, ControlError> {
        let request = Request {
            protocol: 6,
            endpoint_index: endpoint.index,
            endpoint_generation: endpoint.generation,
            ..Request::new(RequestKind::HandOver)
        };
        let answer = self.control.ask(request, Some(socket.as_fd()))?;
        Ok(answer.reply.count)
    }

    /// Segments that the stack has sent again, without running it.
    pub(super) fn retransmits(&self) -> u64 {
        let mut locked = self.attachment.lock().expect("lock");
        let counters = locked.stack().counters();
        counters.get(Counter::TcpRetransmits)
    }

    /// How many links the program holds.
    pub(super) fn links(&self) -> usize {
        self.leases.len()
    }

    /// Takes frames in; how many datagrams the endpoint has then.
    pub(super) fn queued(&self, endpoint: EndpointId) -> u32 {
        let mut locked = self.attachment.lock().expect("lock");
        locked.pump(bypass_runtime::clock::now());
        locked.stack().udp_status(endpoint).expect("status").queued
    }
}

pub(super) fn filter_request(socket: &UdpSocket, endpoint: EndpointId) -> Request {
    let (local, remote) = (local(socket), remote(socket));
    let remote = remote.unwrap_or(SocketAddress::UNSPECIFIED);
    Request {
        local: local.ip.0,
        local_port: local.port,
        remote: remote.ip.0,
        remote_port: remote.port,
        protocol: 17,
        family: match family(socket) {
            Family::V4 => 0,
            Family::Dual => 1,
            Family::V6 => 2,
        },
        endpoint_index: endpoint.index,
        endpoint_generation: endpoint.generation,
        ..Request::new(RequestKind::AddFilter)
    }
}

fn family(socket: &UdpSocket) -> Family {
    if socket.local_addr().expect("address").is_ipv4() {
        Family::V4
    } else {
        Family::Dual
    }
}

fn local(socket: &UdpSocket) -> SocketAddress {
    from_std(socket.local_addr().expect("address"))
}

fn remote(socket: &UdpSocket) -> Option<SocketAddress> {
    socket.peer_addr().ok().map(from_std)
}

fn from_std(address: std::net::SocketAddr) -> SocketAddress {
    SocketAddress::new(IpAddress::from(address.ip()), address.port())
}

/// Asks for a list.
pub(super) fn query(kind: QueryKind) -> Value {
    ask_text(Request {
        query: kind as u32,
        ..Request::new(RequestKind::Query)
    })
}

/// Asks for whatever is answered in text.
pub(super) fn ask_text(request: Request) -> Value {
    let raw = Raw::connect();
    raw.send(request.as_bytes(), &[]);
    let mut text = Vec::new();
    loop {
        let packet = raw.receive();
        match Reply::read_from_bytes(&packet) {
            Ok(reply) if reply.magic == bypass_proto::control::MAGIC => {
                assert_eq!(reply.kind, ReplyKind::End as u16);
                return serde_json::from_slice(&text).expect("JSON");
            }
            _ => text.extend(packet),
        }
    }
}

/// A connection that sends whatever it is told to.
pub(super) struct Raw(pub OwnedFd);

impl Raw {
    pub(super) fn connect() -> Self {
        let fd = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("socket");
        connect(
            &fd,
            &SocketAddrUnix::new_abstract_name(ADDRESS).expect("name"),
        )
        .expect("connect");
        Self(fd)
    }

    pub(super) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .expect("send");
    }

    pub(super) fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; 64 * 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(128))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = {
            let mut into = [IoSliceMut::new(&mut bytes)];
            recvmsg(&self.0, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC).expect("receive")
        };
        bytes.truncate(received.bytes);
        bytes
    }

    /// Sends something wrong; how it is refused.
    pub(super) fn refusal(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Option<Refusal> {
        self.send(bytes, fds);
        let reply = Reply::read_from_bytes(&self.receive()).expect("reply");
        assert_eq!(reply.kind, ReplyKind::Refused as u16);
        Refusal::from_wire(reply.refusal)
    }
}

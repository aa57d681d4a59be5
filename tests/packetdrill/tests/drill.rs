//! A short script through the table of functions, as packetdrill would run it: a handshake, data
//! both ways, a read that blocks in another thread, the end.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: a library of C functions is loaded and called"
)]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use bypass_packetdrill::table::Table;
use bypass_packetdrill::world::{MAC, PEER_MAC};
use bypass_stack::wire::TxChecksum;
use bypass_stack::wire::tcp::{Headers, Options, Segment, emit, flags, headers_len, parse};
use bypass_stack::{IpAddress, RxChecksum, SocketAddress};

const ETHERNET: usize = 14;
const OURS: IpAddress = IpAddress::from_v4([198, 18, 0, 1]);
const PEERS: SocketAddress = SocketAddress::new(IpAddress::from_v4([198, 18, 0, 2]), 40_000);
const ANY: [u8; 16] = [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The library that packetdrill would load, beside this program or a folder above it.
/// It stays, as with packetdrill: threads end in it.
fn library() -> &'static libloading::Library {
    let program = std::env::current_exe().unwrap();
    let mut folders = program.ancestors().skip(1);
    let path = folders
        .find_map(|folder| {
            let path = folder.join("libbypass_packetdrill.so");
            path.exists().then_some(path)
        })
        .unwrap();
    // SAFETY: its constructors are those of the standard library.
    let library = unsafe { libloading::Library::new(path) }.unwrap();
    Box::leak(Box::new(library))
}

/// The table, and the peer's numbers.
struct Drill {
    table: Table,
    port: u16,
    seq: u32,
    ack: u32,
}

impl Drill {
    /// A packet of the peer's.
    fn send(&mut self, flags: u16, payload: &[u8]) {
        let headers = Headers {
            source_mac: PEER_MAC,
            destination_mac: MAC,
            source: PEERS.ip,
            destination: OURS,
            source_port: PEERS.port,
            destination_port: self.port,
            seq: self.seq,
            ack: self.ack,
            flags,
            window: 60_000,
            urgent: 0,
            tos: 0,
            ttl: 64,
            ipv4_id: 0,
            options: Options::default(),
            checksum: TxChecksum::Whole,
        };
        let mut frame = vec![0; headers_len(true, &headers.options)];
        frame.extend_from_slice(payload);
        emit(&mut frame, &headers);
        let packet = &frame[ETHERNET..];
        // SAFETY: the packet is readable for its length.
        let done =
            unsafe { (self.table.netdev_send)(null_mut(), packet.as_ptr().cast(), packet.len()) };
        assert_eq!(done, 0);
        self.seq += payload.len() as u32 + u32::from(flags & (flags::SYN | flags::FIN) != 0);
    }

    /// The next packet of ours: its headers and its payload.
    fn receive(&mut self) -> (Segment, Vec<u8>) {
        let mut room = [0_u8; 4096];
        let (mut len, mut at) = (room.len(), 0);
        let to = room.as_mut_ptr().cast();
        // SAFETY: all three are writable, `room` for `len` bytes.
        unsafe { (self.table.netdev_receive)(null_mut(), to, &raw mut len, &raw mut at) };
        let frame = [&PEER_MAC[..], &MAC, &[8, 0], &room[..len]].concat();
        let found = parse(&frame, &PEER_MAC, RxChecksum::Unknown).unwrap();
        let taken =
            u32::from(found.payload_len) + u32::from(found.flags & (flags::SYN | flags::FIN) != 0);
        self.ack = found.seq.wrapping_add(taken);
        let payload = frame[usize::from(found.payload_offset)..].to_vec();
        (found, payload)
    }

    fn microseconds(&self) -> i64 {
        let mut time = libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        };
        // SAFETY: `time` is writable.
        unsafe { (self.table.gettimeofday)(null_mut(), &raw mut time, null_mut()) };
        time.tv_sec * 1_000_000 + time.tv_usec
    }

    /// A listening socket, and a connection of it.
    fn connection(&mut self) -> (c_int, c_int) {
        let listener = (self.table.socket)(null_mut(), libc::AF_INET, libc::SOCK_STREAM, 0);
        let address = ANY.as_ptr().cast();
        // SAFETY: the address is readable for its length.
        let bound = unsafe { (self.table.bind)(null_mut(), listener, address, 16) };
        assert_eq!(
            (bound, (self.table.listen)(null_mut(), listener, 1)),
            (0, 0)
        );
        let (mut name, mut len) = ([0_u8; 16], 16);
        // SAFETY: `name` is writable for `len` bytes.
        unsafe { libc::getsockname(listener, name.as_mut_ptr().cast(), &raw mut len) };
        self.port = u16::from_be_bytes([name[2], name[3]]);
        self.send(flags::SYN, &[]);
        let (answer, _) = self.receive();
        assert_eq!(answer.flags, flags::SYN | flags::ACK);
        assert_eq!(answer.ack, self.seq);
        self.send(flags::ACK, &[]);
        // SAFETY: no address is wanted.
        let fd = unsafe { (self.table.accept)(null_mut(), listener, null_mut(), null_mut()) };
        assert!(fd >= 0);
        (listener, fd)
    }
}

#[test]
fn a_script_runs() {
    let library = library();
    let mut table = MaybeUninit::<Table>::uninit();
    // SAFETY: the function has this type.
    let begin: libloading::Symbol<'_, unsafe extern "C" fn(*const i8, *mut Table)> =
        unsafe { library.get(b"packetdrill_interface_init") }.unwrap();
    // SAFETY: `table` is writable.
    unsafe { begin(null(), table.as_mut_ptr()) };
    let mut drill = Drill {
        // SAFETY: it has been filled in.
        table: unsafe { table.assume_init() },
        port: 0,
        seq: 1000,
        ack: 0,
    };
    let (listener, fd) = drill.connection();

    // What is written leaves.
    let written = b"from us";
    let from: *const c_void = written.as_ptr().cast();
    // SAFETY: readable for its length.
    let count = unsafe { (drill.table.write)(null_mut(), fd, from, written.len()) };
    assert_eq!(count, written.len() as isize);
    let (_, payload) = drill.receive();
    assert_eq!(payload, written);

    // A read in another thread returns when the peer's data come, 50 ms later of its clock.
    let began = drill.microseconds();
    let (read, clock) = (drill.table.read, drill.table.gettimeofday);
    let blocked = std::thread::spawn(move || {
        let mut room = [0_u8; 64];
        // SAFETY: writable for its length.
        let count = unsafe { read(null_mut(), fd, room.as_mut_ptr().cast(), room.len()) };
        let mut time = libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        };
        // SAFETY: `time` is writable.
        unsafe { clock(null_mut(), &raw mut time, null_mut()) };
        let bytes = room[..usize::try_from(count).unwrap()].to_vec();
        (bytes, time.tv_sec * 1_000_000 + time.tv_usec)
    });
    (drill.table.usleep)(null_mut(), 50_000);
    drill.send(flags::ACK | flags::PSH, b"from the peer");
    (drill.table.usleep)(null_mut(), 50_000);
    let (bytes, ended) = blocked.join().unwrap();
    assert_eq!(bytes, b"from the peer");
    assert!(
        (50_000..50_100).contains(&(ended - began)),
        "{}",
        ended - began
    );

    // The acknowledgement, the end, and a reset to who talks to nobody.
    let (answer, _) = drill.receive();
    assert_eq!((answer.flags, answer.ack), (flags::ACK, drill.seq));
    assert_eq!((drill.table.close)(null_mut(), fd), 0);
    let (answer, _) = drill.receive();
    assert_eq!(answer.flags, flags::FIN | flags::ACK);
    assert_eq!((drill.table.close)(null_mut(), listener), 0);
    drill.port ^= 1;
    drill.send(flags::SYN, &[]);
    let (answer, _) = drill.receive();
    assert_eq!(answer.flags, flags::RST | flags::ACK);
    (drill.table.free)(null_mut());
}

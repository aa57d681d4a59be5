//! The table of functions that packetdrill asks for, and what C wants of each.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: functions that a C program calls with pointers of its own"
)]

use std::ffi::{CStr, OsStr, c_char, c_int, c_long, c_longlong, c_uint, c_ulong, c_void};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::ptr::{null, null_mut};
use std::slice;

use libc::{
    epoll_event, iovec, msghdr, nfds_t, off_t, pollfd, size_t, sockaddr, socklen_t, ssize_t,
    timeval,
};

use crate::kernel::{self, Answer};
use crate::{calls, ready, transfer, turns};

/// What packetdrill hands back with every call; there is one world, so it is of no use.
type Data = *mut c_void;

/// The table, in packetdrill's order (the calls as POSIX has them, behind [`Data`]).
#[derive(Debug)]
#[repr(C)]
#[expect(missing_docs, reason = "each is the call of its name")]
pub struct Table {
    pub userdata: Data,
    pub free: extern "C" fn(Data),
    pub socket: extern "C" fn(Data, c_int, c_int, c_int) -> c_int,
    pub bind: unsafe extern "C" fn(Data, c_int, *const sockaddr, socklen_t) -> c_int,
    pub listen: extern "C" fn(Data, c_int, c_int) -> c_int,
    pub accept: unsafe extern "C" fn(Data, c_int, *mut sockaddr, *mut socklen_t) -> c_int,
    pub connect: unsafe extern "C" fn(Data, c_int, *const sockaddr, socklen_t) -> c_int,
    pub read: unsafe extern "C" fn(Data, c_int, *mut c_void, size_t) -> ssize_t,
    pub readv: unsafe extern "C" fn(Data, c_int, *const iovec, c_int) -> ssize_t,
    pub recv: unsafe extern "C" fn(Data, c_int, *mut c_void, size_t, c_int) -> ssize_t,
    pub recvfrom: unsafe extern "C" fn(
        Data,
        c_int,
        *mut c_void,
        size_t,
        c_int,
        *mut sockaddr,
        *mut socklen_t,
    ) -> ssize_t,
    pub recvmsg: unsafe extern "C" fn(Data, c_int, *mut msghdr, c_int) -> ssize_t,
    pub write: unsafe extern "C" fn(Data, c_int, *const c_void, size_t) -> ssize_t,
    pub writev: unsafe extern "C" fn(Data, c_int, *const iovec, c_int) -> ssize_t,
    pub send: unsafe extern "C" fn(Data, c_int, *const c_void, size_t, c_int) -> ssize_t,
    pub sendto: unsafe extern "C" fn(
        Data,
        c_int,
        *const c_void,
        size_t,
        c_int,
        *const sockaddr,
        socklen_t,
    ) -> ssize_t,
    pub sendmsg: unsafe extern "C" fn(Data, c_int, *const msghdr, c_int) -> ssize_t,
    /// Variadic in C: one argument of a machine word is where its callers put it.
    pub fcntl: unsafe extern "C" fn(Data, c_int, c_int, size_t) -> c_int,
    /// As `fcntl`.
    pub ioctl: unsafe extern "C" fn(Data, c_int, c_ulong, size_t) -> c_int,
    pub close: extern "C" fn(Data, c_int) -> c_int,
    pub shutdown: extern "C" fn(Data, c_int, c_int) -> c_int,
    pub getsockopt:
        unsafe extern "C" fn(Data, c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int,
    pub setsockopt:
        unsafe extern "C" fn(Data, c_int, c_int, c_int, *const c_void, socklen_t) -> c_int,
    pub poll: unsafe extern "C" fn(Data, *mut pollfd, nfds_t, c_int) -> c_int,
    /// A packet into the stack.
    pub netdev_send: unsafe extern "C" fn(Data, *const c_void, size_t) -> c_int,
    /// The next packet out of it, and when in microseconds.
    pub netdev_receive:
        unsafe extern "C" fn(Data, *mut c_void, *mut size_t, *mut c_longlong) -> c_int,
    pub usleep: extern "C" fn(Data, c_uint) -> c_int,
    pub gettimeofday: unsafe extern "C" fn(Data, *mut timeval, *mut c_void) -> c_int,
    pub epoll_create: extern "C" fn(Data, c_int) -> c_int,
    pub epoll_ctl: unsafe extern "C" fn(Data, c_int, c_int, c_int, *mut epoll_event) -> c_int,
    pub epoll_wait: unsafe extern "C" fn(Data, c_int, *mut epoll_event, c_int, c_int) -> c_int,
    pub pipe: unsafe extern "C" fn(Data, *mut c_int) -> c_int,
    pub splice:
        unsafe extern "C" fn(Data, c_int, *mut off_t, c_int, *mut off_t, size_t, c_uint) -> ssize_t,
}

/// Begins a world and fills the table in.
///
/// # Safety
/// `table` is the caller's to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn packetdrill_interface_init(_flags: *const c_char, table: *mut Table) {
    turns::begin();
    let ours = Table {
        userdata: null_mut(),
        free,
        socket,
        bind,
        listen,
        accept,
        connect,
        read,
        readv,
        recv,
        recvfrom,
        recvmsg,
        write,
        writev,
        send,
        sendto,
        sendmsg,
        fcntl,
        ioctl,
        close,
        shutdown,
        getsockopt: getsockopt_of,
        setsockopt,
        poll,
        netdev_send,
        netdev_receive,
        usleep,
        gettimeofday,
        epoll_create,
        epoll_ctl,
        epoll_wait,
        pipe,
        splice,
    };
    // SAFETY: the caller's promise.
    unsafe { table.write(ours) };
}

fn set_errno(errno: i32) {
    // SAFETY: libc's place for it, valid for this thread's life.
    unsafe { *libc::__errno_location() = errno };
}

fn to_c(answer: Answer) -> isize {
    answer.unwrap_or_else(|errno| {
        set_errno(errno);
        -1
    })
}

fn to_int(answer: Answer) -> c_int {
    to_c(answer) as c_int
}

extern "C" fn free(_: Data) {
    turns::end();
}

extern "C" fn socket(_: Data, domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    to_int(calls::socket(domain, kind, protocol))
}

/// Bytes of the caller; none where it passes null.
unsafe fn bytes<'a>(from: *const c_void, len: size_t) -> &'a [u8] {
    if from.is_null() {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { slice::from_raw_parts(from.cast(), len) }
}

unsafe extern "C" fn bind(_: Data, fd: c_int, address: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the caller's address.
    to_int(kernel::bind(fd, unsafe {
        bytes(address.cast(), len as usize)
    }))
}

extern "C" fn listen(_: Data, fd: c_int, backlog: c_int) -> c_int {
    to_int(calls::listen(fd, backlog))
}

unsafe extern "C" fn accept(
    _: Data,
    fd: c_int,
    address: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    use crate::world::Socket;
    let found = match calls::of(fd) {
        Some(Socket::Listener(id)) => calls::accept(fd, id),
        Some(_) => Err(libc::EINVAL),
        None => Err(libc::EBADF),
    };
    let told = found.map(|(fd, remote, family)| {
        let from = kernel::sockaddr(remote, family);
        if !address.is_null() && !len.is_null() {
            // SAFETY: the caller's length.
            let room = unsafe { *len } as usize;
            // SAFETY: the caller's room.
            let to = unsafe { slice::from_raw_parts_mut(address.cast::<u8>(), room) };
            let count = room.min(from.len());
            to[..count].copy_from_slice(&from[..count]);
            // SAFETY: as above.
            unsafe { *len = from.len() as socklen_t };
        }
        fd as isize
    });
    to_int(told)
}

unsafe extern "C" fn connect(_: Data, fd: c_int, to: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the caller's address.
    let remote = kernel::address_of(unsafe { bytes(to.cast(), len as usize) });
    to_int(calls::connect(fd, remote))
}

/// The vectors of a message or of readv and writev.
///
/// # Errors
/// `EFAULT`, `EINVAL`.
unsafe fn vectors<'a>(from: *const iovec, count: usize) -> Result<&'a [iovec], i32> {
    if count > 1024 {
        return Err(libc::EINVAL);
    }
    if count == 0 {
        return Ok(&[]);
    }
    if from.is_null() {
        return Err(libc::EFAULT);
    }
    // SAFETY: the caller's array.
    let vectors: &[iovec] = unsafe { slice::from_raw_parts(from, count) };
    if vectors.iter().any(|one| one.iov_len as isize <= -1) {
        return Err(libc::EINVAL);
    }
    let missing = |one: &iovec| one.iov_base.is_null() && one.iov_len > 0;
    if vectors.iter().any(missing) {
        return Err(libc::EFAULT);
    }
    Ok(vectors)
}

/// Receives into vectors; the count, and what TCP_INQ tells.
unsafe fn scatter(fd: c_int, vectors: &[iovec], flags: c_int) -> Result<(usize, Option<u32>), i32> {
    let most = vectors.iter().map(|one| one.iov_len).sum();
    let received = transfer::receive(fd, most, flags)?;
    let mut rest = &received.bytes[..];
    let discard = flags & (libc::MSG_TRUNC | libc::MSG_PEEK) == libc::MSG_TRUNC;
    for one in vectors.iter().filter(|_| !discard) {
        let (piece, behind) = rest.split_at(rest.len().min(one.iov_len));
        // SAFETY: the caller's buffer of `iov_len` bytes.
        unsafe {
            one.iov_base
                .cast::<u8>()
                .copy_from(piece.as_ptr(), piece.len())
        };
        rest = behind;
    }
    Ok((received.bytes.len(), received.inq))
}

unsafe fn receive_vectors(fd: c_int, from: *const iovec, count: usize, flags: c_int) -> Answer {
    // SAFETY: the caller's promise.
    let vectors = unsafe { vectors(from, count) }?;
    // SAFETY: as above.
    let (count, _) = unsafe { scatter(fd, vectors, flags) }?;
    Ok(count as isize)
}

unsafe extern "C" fn read(data: Data, fd: c_int, to: *mut c_void, len: size_t) -> ssize_t {
    if calls::of(fd).is_none() {
        // SAFETY: the caller's buffer.
        return unsafe { libc::read(fd, to, len) };
    }
    // SAFETY: the caller's buffer.
    unsafe { recv(data, fd, to, len, 0) }
}

unsafe extern "C" fn readv(_: Data, fd: c_int, to: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's vectors.
    to_c(unsafe { receive_vectors(fd, to, count as usize, 0) })
}

unsafe extern "C" fn recv(
    _: Data,
    fd: c_int,
    to: *mut c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    let one = iovec {
        iov_base: to,
        iov_len: len,
    };
    // MSG_TRUNC looks at no buffer.
    let answer = if flags & libc::MSG_TRUNC != 0 && to.is_null() {
        transfer::receive(fd, len, flags).map(|received| received.bytes.len() as isize)
    } else {
        // SAFETY: the caller's buffer.
        unsafe { receive_vectors(fd, &raw const one, 1, flags) }
    };
    to_c(answer)
}

unsafe extern "C" fn recvfrom(
    data: Data,
    fd: c_int,
    to: *mut c_void,
    len: size_t,
    flags: c_int,
    _from: *mut sockaddr,
    from_len: *mut socklen_t,
) -> ssize_t {
    if !from_len.is_null() {
        // A connection tells no address. SAFETY: the caller's length.
        unsafe { *from_len = 0 };
    }
    // SAFETY: the caller's buffer.
    unsafe { recv(data, fd, to, len, flags) }
}

unsafe extern "C" fn recvmsg(_: Data, fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's message.
    let message = unsafe { &mut *message };
    if flags & libc::MSG_ERRQUEUE != 0 {
        let told = transfer::notice(fd).map(|told| {
            message.msg_namelen = 0;
            message.msg_flags = told.flags;
            // SAFETY: as above.
            unsafe { put(message, &told.messages) };
            0
        });
        return to_c(told);
    }
    // SAFETY: as above.
    let received = unsafe { vectors(message.msg_iov, message.msg_iovlen) }
        // SAFETY: as above.
        .and_then(|vectors| unsafe { scatter(fd, vectors, flags) });
    let answer = received.map(|(count, inq)| {
        message.msg_namelen = 0;
        message.msg_flags = 0;
        // SAFETY: as above.
        unsafe { tell_inq(message, inq) };
        count as isize
    });
    to_c(answer)
}

/// Writes TCP_INQ's control message, if there is one.
unsafe fn tell_inq(message: &mut msghdr, inq: Option<u32>) {
    /// `TCP_CM_INQ` of linux/tcp.h.
    const INQ: c_int = 36;
    let told = inq.map(|inq| (libc::IPPROTO_TCP, INQ, inq.to_ne_bytes().to_vec()));
    // SAFETY: the caller's promise.
    unsafe { put(message, told.as_slice()) };
}

/// Writes control messages, those that there is room for.
unsafe fn put(message: &mut msghdr, messages: &[(c_int, c_int, Vec<u8>)]) {
    let room = std::mem::replace(&mut message.msg_controllen, 0);
    for (level, kind, data) in messages {
        let len = data.len() as c_uint;
        // SAFETY: plain numbers.
        let (space, len) = unsafe { (libc::CMSG_SPACE(len), libc::CMSG_LEN(len)) };
        let at = message.msg_controllen;
        if at + space as usize > room {
            return;
        }
        message.msg_controllen += space as usize;
        // SAFETY: the control buffer has room for it, at a place as aligned as its beginning.
        unsafe {
            let header = message.msg_control.byte_add(at).cast::<libc::cmsghdr>();
            (*header).cmsg_level = *level;
            (*header).cmsg_type = *kind;
            (*header).cmsg_len = len as usize;
            libc::CMSG_DATA(header).copy_from(data.as_ptr(), data.len());
        }
    }
}

unsafe fn send_vectors(
    fd: c_int,
    (from, count): (*const iovec, usize),
    flags: c_int,
    to: (*const c_void, socklen_t),
) -> Answer {
    // SAFETY: the caller's promise.
    let vectors = unsafe { vectors(from, count) }?;
    let parts = vectors
        .iter()
        // SAFETY: the caller's buffers.
        .map(|one| unsafe { bytes(one.iov_base, one.iov_len) });
    let bytes_to_send = parts.collect::<Vec<_>>().concat();
    if flags & libc::MSG_FASTOPEN == 0 {
        return transfer::send(fd, &bytes_to_send, flags);
    }
    // SAFETY: the caller's address.
    let remote = kernel::address_of(unsafe { bytes(to.0, to.1 as usize) });
    transfer::send_fast(fd, &bytes_to_send, flags, remote)
}

unsafe extern "C" fn write(_: Data, fd: c_int, from: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the caller's buffer.
    unsafe { send(null_mut(), fd, from, len, 0) }
}

unsafe extern "C" fn writev(_: Data, fd: c_int, from: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the caller's vectors.
    to_c(unsafe { send_vectors(fd, (from, count as usize), 0, (null(), 0)) })
}

unsafe extern "C" fn send(
    data: Data,
    fd: c_int,
    from: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's buffer.
    unsafe { sendto(data, fd, from, len, flags, null(), 0) }
}

/// sendfile(2), which packetdrill's table has no place for either.
///
/// # Safety
/// `offset` is null or the caller's to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendfile(
    fd: c_int,
    file: c_int,
    offset: *mut off_t,
    len: size_t,
) -> ssize_t {
    if calls::of(fd).is_none() {
        // SAFETY: the caller's promise.
        return unsafe { libc::syscall(libc::SYS_sendfile, fd, file, offset, len) as ssize_t };
    }
    let mut bytes = vec![0_u8; len.min(1 << 20)];
    let to = bytes.as_mut_ptr().cast();
    // SAFETY: `bytes` has room for so many; `offset` as the caller says.
    let count = unsafe {
        match offset.as_ref() {
            Some(&from) => libc::pread(file, to, bytes.len(), from),
            None => libc::read(file, to, bytes.len()),
        }
    };
    if count <= 0 {
        return count;
    }
    // SAFETY: `bytes` is readable.
    let sent = unsafe { send(null_mut(), fd, bytes.as_ptr().cast(), count as size_t, 0) };
    // SAFETY: the caller's promise.
    if let Some(offset) = unsafe { offset.as_mut() } {
        *offset += sent.max(0) as off_t;
    }
    sent
}

unsafe extern "C" fn sendto(
    _: Data,
    fd: c_int,
    from: *const c_void,
    len: size_t,
    flags: c_int,
    to: *const sockaddr,
    to_len: socklen_t,
) -> ssize_t {
    let one = iovec {
        iov_base: from.cast_mut(),
        iov_len: len,
    };
    // SAFETY: the caller's buffer and address.
    to_c(unsafe { send_vectors(fd, (&raw const one, 1), flags, (to.cast(), to_len)) })
}

unsafe extern "C" fn sendmsg(_: Data, fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's message.
    let message = unsafe { &*message };
    let vectors = (message.msg_iov.cast_const(), message.msg_iovlen);
    let name = (message.msg_name.cast_const(), message.msg_namelen);
    // SAFETY: as above.
    to_c(unsafe { send_vectors(fd, vectors, flags, name) })
}

unsafe extern "C" fn fcntl(_: Data, fd: c_int, command: c_int, argument: size_t) -> c_int {
    // SAFETY: the caller's argument.
    unsafe { libc::fcntl(fd, command, argument) }
}

unsafe extern "C" fn ioctl(_: Data, fd: c_int, request: c_ulong, argument: size_t) -> c_int {
    match calls::queued(fd, request) {
        Some(Ok(_)) if argument == 0 => to_int(Err(libc::EFAULT)),
        Some(found) => to_int(found.map(|value| {
            // SAFETY: the caller's int.
            unsafe { (argument as *mut c_int).write(value) };
            0
        })),
        // SAFETY: the caller's argument.
        None => unsafe { libc::ioctl(fd, request, argument) },
    }
}

extern "C" fn close(_: Data, fd: c_int) -> c_int {
    to_int(calls::close(fd))
}

extern "C" fn shutdown(_: Data, fd: c_int, how: c_int) -> c_int {
    to_int(calls::shutdown(fd, how))
}

unsafe extern "C" fn getsockopt_of(
    _: Data,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { getsockopt(fd, level, name, value, len) }
}

/// libc's name too: a script's shell commands. One that has the kernel forget its peers means the
/// engine as well.
///
/// # Safety
/// `command` is null or a string of the caller.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn system(command: *const c_char) -> c_int {
    if command.is_null() {
        return 1;
    }
    // SAFETY: the caller's string.
    let command = unsafe { CStr::from_ptr(command) };
    let command = OsStr::from_bytes(command.to_bytes());
    let text = command.to_string_lossy();
    if text.contains("tcp_metrics flush") || text.contains("tcp_fastopen_cookies=0") {
        turns::with(|world| world.stack().tcp_forget_peers());
    }
    let status = Command::new("sh").arg("-c").arg(command).status();
    status.map_or(-1, ExitStatusExt::into_raw)
}

/// libc's name too: what packetdrill asks for its Python parts goes past the table, and comes here
/// when this library is also in LD_PRELOAD.
///
/// # Safety
/// `value` and `len` are the caller's to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    let Some(known) = calls::option(fd, level, name) else {
        // SAFETY: the caller's promise.
        return unsafe {
            libc::syscall(libc::SYS_getsockopt, fd, level, name, value, len) as c_int
        };
    };
    if value.is_null() || len.is_null() {
        return to_int(Err(libc::EFAULT));
    }
    // SAFETY: the caller's length.
    let room = unsafe { *len } as usize;
    let count = room.min(known.len());
    // SAFETY: the caller's room.
    unsafe { value.cast::<u8>().copy_from(known.as_ptr(), count) };
    // SAFETY: as above.
    unsafe { *len = count as socklen_t };
    0
}

unsafe extern "C" fn setsockopt(
    _: Data,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    if (level, name) == (libc::SOL_SOCKET, libc::SO_TIMESTAMPING) && len == 4 {
        // SAFETY: the caller's value.
        let flags = unsafe { value.cast::<u32>().read_unaligned() };
        if let Some(answer) = calls::set_timestamping(fd, flags) {
            return to_int(answer);
        }
    }
    // SAFETY: the caller's value.
    let result = unsafe { libc::setsockopt(fd, level, name, value, len) };
    if result == 0 {
        calls::option_set(fd, (level, name));
    }
    result
}

unsafe extern "C" fn poll(_: Data, entries: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int {
    if entries.is_null() && count > 0 {
        return to_int(Err(libc::EFAULT));
    }
    let entries = if count == 0 {
        &mut []
    } else {
        // SAFETY: the caller's array.
        unsafe { slice::from_raw_parts_mut(entries, count as usize) }
    };
    ready::poll(entries, timeout) as c_int
}

unsafe extern "C" fn netdev_send(_: Data, packet: *const c_void, len: size_t) -> c_int {
    turns::settle();
    // SAFETY: the caller's packet.
    let packet = unsafe { bytes(packet, len) };
    turns::with(|world| world.receive(packet));
    0
}

unsafe extern "C" fn netdev_receive(
    _: Data,
    to: *mut c_void,
    len: *mut size_t,
    at_us: *mut c_longlong,
) -> c_int {
    let (packet, at) = turns::next_packet();
    // SAFETY: the caller's room.
    let count = packet.len().min(unsafe { *len });
    // SAFETY: as above.
    unsafe { to.cast::<u8>().copy_from(packet.as_ptr(), count) };
    // SAFETY: the caller's places.
    unsafe { (*len, *at_us) = (count, (at / 1000) as c_longlong) };
    0
}

extern "C" fn usleep(_: Data, us: c_uint) -> c_int {
    turns::sleep(u64::from(us) * 1000);
    0
}

unsafe extern "C" fn gettimeofday(_: Data, to: *mut timeval, _zone: *mut c_void) -> c_int {
    // packetdrill spins on this: each look takes a microsecond.
    let now = turns::with(|world| {
        world.now += 1000;
        world.now
    });
    let us = now.unwrap_or(0) / 1000;
    let time = timeval {
        tv_sec: (us / 1_000_000) as c_long,
        tv_usec: (us % 1_000_000) as c_long,
    };
    // SAFETY: the caller's place.
    unsafe { to.write(time) };
    0
}

extern "C" fn epoll_create(_: Data, size: c_int) -> c_int {
    // SAFETY: plain integers.
    let fd = unsafe { libc::epoll_create(size) };
    if fd >= 0 {
        turns::with(|world| world.sets.insert(fd, ready::EpollSet::default()));
    }
    fd
}

unsafe extern "C" fn epoll_ctl(
    _: Data,
    set: c_int,
    op: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    let event = if event.is_null() {
        epoll_event { events: 0, u64: 0 }
    } else {
        // SAFETY: the caller's event.
        unsafe { event.read_unaligned() }
    };
    to_int(ready::control(set, op, fd, event))
}

unsafe extern "C" fn epoll_wait(
    _: Data,
    set: c_int,
    into: *mut epoll_event,
    most: c_int,
    timeout: c_int,
) -> c_int {
    let Some(most) = usize::try_from(most).ok().filter(|most| *most > 0) else {
        return to_int(Err(libc::EINVAL));
    };
    // SAFETY: the caller's array.
    let into = unsafe { slice::from_raw_parts_mut(into, most) };
    to_int(ready::epoll_wait(set, into, timeout))
}

unsafe extern "C" fn pipe(_: Data, ends: *mut c_int) -> c_int {
    // SAFETY: the caller's two ints.
    unsafe { libc::pipe(ends) }
}

/// From a connection into a pipe, as much as there is and the pipe takes.
unsafe extern "C" fn splice(
    _: Data,
    from: c_int,
    _from_at: *mut off_t,
    to: c_int,
    _to_at: *mut off_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    let dont_wait = if flags & libc::SPLICE_F_NONBLOCK != 0 {
        libc::MSG_DONTWAIT
    } else {
        0
    };
    if dont_wait == 0 && transfer::stops_splice(from) {
        return 0;
    }
    let most = len.min(65_536);
    let answer = transfer::receive(from, most, dont_wait).and_then(|received| {
        let bytes = &received.bytes;
        // SAFETY: the vector's bytes.
        kernel::answer(unsafe { libc::write(to, bytes.as_ptr().cast(), bytes.len()) })
    });
    to_c(answer)
}

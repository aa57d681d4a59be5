//! Ancillary data: writing what a receive delivers. ([`super::asked`] reads what a send asks for.)

#![expect(unsafe_code, reason = "UNSAFETY: views C structures as bytes")]

use std::mem::size_of;

use bypass_runtime::error_queue::stamping;
use bypass_stack::{Datagram, Family};
use libc::{
    IPPROTO_IP, IPPROTO_IPV6, SOL_SOCKET, c_int, in_addr, in_pktinfo, in6_addr, in6_pktinfo,
    sockaddr_in, timespec, timeval,
};

use super::asked::{HEADER, aligned};
use crate::shadow::{flags, new_names};

/// Appends control messages to a buffer, as net/core/scm.c:put_cmsg does: a message that does not
/// fit is cut and sets the truncation flag.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    used: usize,
    truncated: bool,
}

/// A C structure as bytes.
fn bytes_of<T>(value: &T) -> &[u8] {
    // SAFETY: used only for C structures of integers without padding (see the callers).
    unsafe { std::slice::from_raw_parts((&raw const *value).cast::<u8>(), size_of::<T>()) }
}

impl<'a> Writer<'a> {
    /// Writes into `buffer` from its start.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self {
            buffer,
            used: 0,
            truncated: false,
        }
    }

    /// Bytes written: what `msg_controllen` becomes.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Whether something did not fit.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// Appends one message.
    pub fn put(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let room = self.buffer.len() - self.used;
        if room < HEADER {
            self.truncated = true;
            return;
        }
        let mut length = HEADER + data.len();
        if room < length {
            self.truncated = true;
            length = room;
        }
        let (Some(header), Some(body)) = (
            self.buffer.get_mut(self.used..self.used + HEADER),
            data.get(..length - HEADER),
        ) else {
            return;
        };
        header[..8].copy_from_slice(&length.to_ne_bytes());
        header[8..12].copy_from_slice(&level.to_ne_bytes());
        header[12..16].copy_from_slice(&kind.to_ne_bytes());
        let start = self.used + HEADER;
        self.buffer[start..start + body.len()].copy_from_slice(body);
        self.used += aligned(length).min(room);
    }

    /// Everything that the flags ask for about one message: `joined` is the size of its datagrams
    /// when it has several, `nic_ns` when it has come by the NIC's clock.
    pub fn datagram(
        &mut self,
        datagram: &Datagram,
        (family, port): (Family, u16),
        wanted: u32,
        (ifindex, nic_ns): (u32, u64),
        joined: Option<u32>,
    ) {
        /// `UDP_GRO` of linux/udp.h.
        const UDP_GRO: c_int = 104;
        let wants = |flag: u32| wanted & flag != 0;
        let kind = |old, new| if wants(flags::NEW_TYPES) { new } else { old };
        let seconds = (datagram.timestamp_ns / 1_000_000_000) as i64;
        let nanoseconds = (datagram.timestamp_ns % 1_000_000_000) as i64;
        if wants(flags::TIMESTAMPNS) {
            let time = timespec {
                tv_sec: seconds,
                tv_nsec: nanoseconds,
            };
            let kind = kind(libc::SCM_TIMESTAMPNS, new_names::TIMESTAMPNS);
            self.put(SOL_SOCKET, kind, bytes_of(&time));
        } else if wants(flags::TIMESTAMP) {
            let time = timeval {
                tv_sec: seconds,
                tv_usec: nanoseconds / 1000,
            };
            let kind = kind(libc::SCM_TIMESTAMP, new_names::TIMESTAMP);
            self.put(SOL_SOCKET, kind, bytes_of(&time));
        }
        let host_ns = if wants(flags::STAMPS) {
            datagram.timestamp_ns
        } else {
            0
        };
        if host_ns != 0 || nic_ns != 0 {
            let stamps = stamping(host_ns, nic_ns);
            let kind = kind(libc::SCM_TIMESTAMPING, new_names::TIMESTAMPING);
            self.put(SOL_SOCKET, kind, &stamps);
        }
        // The kernel leaves the message out while nothing was dropped.
        if wants(flags::RXQ_OVFL) && datagram.drops != 0 {
            self.put(SOL_SOCKET, libc::SO_RXQ_OVFL, bytes_of(&datagram.drops));
        }
        if let Some(size) = joined {
            self.put(libc::SOL_UDP, UDP_GRO, bytes_of(&size.cast_signed()));
        }
        if family != Family::V4 {
            self.v6(datagram, wanted, ifindex);
        }
        if datagram.local.is_v4() {
            self.v4(datagram, wanted, ifindex, port);
        }
    }

    fn v4(&mut self, datagram: &Datagram, wanted: u32, ifindex: u32, port: u16) {
        let address = in_addr {
            s_addr: u32::from_ne_bytes(datagram.local.to_v4().unwrap_or_default()),
        };
        if wanted & flags::PKTINFO != 0 {
            let info = in_pktinfo {
                ipi_ifindex: ifindex as c_int,
                ipi_spec_dst: address,
                ipi_addr: address,
            };
            self.put(IPPROTO_IP, libc::IP_PKTINFO, bytes_of(&info));
        }
        if wanted & flags::RECVTTL != 0 {
            self.put(
                IPPROTO_IP,
                libc::IP_TTL,
                bytes_of(&c_int::from(datagram.ttl)),
            );
        }
        if wanted & flags::RECVTOS != 0 {
            self.put(IPPROTO_IP, libc::IP_TOS, &[datagram.tos]);
        }
        if wanted & flags::ORIGDSTADDR != 0 {
            let original = sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: port.to_be(),
                sin_addr: address,
                sin_zero: [0; 8],
            };
            self.put(IPPROTO_IP, libc::IP_ORIGDSTADDR, bytes_of(&original));
        }
    }

    fn v6(&mut self, datagram: &Datagram, wanted: u32, ifindex: u32) {
        if wanted & flags::PKTINFO6 != 0 {
            let info = in6_pktinfo {
                ipi6_addr: in6_addr {
                    s6_addr: datagram.local.0,
                },
                ipi6_ifindex: ifindex,
            };
            self.put(IPPROTO_IPV6, libc::IPV6_PKTINFO, bytes_of(&info));
        }
        if datagram.local.is_v4() {
            return;
        }
        if wanted & flags::RECVHOPLIMIT != 0 {
            self.put(
                IPPROTO_IPV6,
                libc::IPV6_HOPLIMIT,
                bytes_of(&c_int::from(datagram.ttl)),
            );
        }
        if wanted & flags::RECVTCLASS != 0 {
            self.put(
                IPPROTO_IPV6,
                libc::IPV6_TCLASS,
                bytes_of(&c_int::from(datagram.tos)),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use bypass_stack::IpAddress;

    use super::super::asked::read;
    use super::*;

    #[test]
    fn what_does_not_fit_is_cut_and_flagged() {
        let mut buffer = [0_u8; HEADER + 2];
        let mut writer = Writer::new(&mut buffer);
        writer.put(1, 2, &[9, 9, 9, 9]);
        assert!(writer.truncated());
        assert_eq!(writer.used(), HEADER + 2);
    }

    #[test]
    fn a_written_source_is_read_back() {
        let mut buffer = [0_u8; 64];
        let mut writer = Writer::new(&mut buffer);
        let address = in_addr {
            s_addr: u32::from_ne_bytes([198, 18, 0, 1]),
        };
        let info = in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: address,
            ipi_addr: address,
        };
        writer.put(IPPROTO_IP, libc::IP_PKTINFO, bytes_of(&info));
        let used = writer.used();
        let asked = read(&buffer[..used]);
        assert_eq!(asked.source, Some(IpAddress::from_v4([198, 18, 0, 1])));
        assert!(!asked.foreign);
    }

    /// A datagram to this address, with something of everything.
    fn datagram(local: IpAddress) -> Datagram {
        Datagram {
            chunk: bypass_stack::ChunkId(0),
            offset: 0,
            len: 1,
            remote: bypass_stack::SocketAddress::UNSPECIFIED,
            local,
            tos: 7,
            ttl: 64,
            queue_pair: 0,
            timestamp_ns: u64::MAX,
            drops: u32::MAX,
        }
    }

    #[test]
    fn whatever_is_wanted_fits_any_room() {
        for local in [IpAddress::from_v4([198, 18, 0, 1]), IpAddress([0xfd; 16])] {
            let mut room = [0xaa_u8; 600];
            for length in 0..room.len() {
                let mut writer = Writer::new(&mut room[..length]);
                let place = (Family::Dual, 7);
                writer.datagram(&datagram(local), place, u32::MAX, (3, 1), Some(u32::MAX));
                assert!(writer.used() <= length);
            }
            assert!(room.ends_with(&[0xaa; 200]));
        }
    }
}

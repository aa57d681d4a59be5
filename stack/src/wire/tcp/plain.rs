//! The plain form of a segment: IPv4 without options, and a TCP header with ACK, perhaps PSH, and
//! the timestamps where Linux puts them. Nearly every segment of an established connection has it,
//! so its headers are one fixed layout: one bound to check, and fields that are compared words at a
//! time. Whatever else comes is for [`super::parse`], which also says what is wrong with it.

use super::options::NOP_NOP_TIMESTAMPS;
use super::{DONT_FRAGMENT, HEADER, TCP, flags};
use crate::stack::RxChecksum;
use crate::wire::checksum::Sum;
use crate::wire::{TxChecksum, ethernet, ipv4};
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute_mut, transmute_ref,
};

/// Bytes of the headers.
pub(crate) const PLAIN: usize = ethernet::HEADER + ipv4::HEADER + HEADER + 12;
/// EtherType IPv4, version 4, header of five words.
const IPV4_45: u32 = 0x0800_4500;
/// A TCP header of eight words with ACK.
const WORDS_AND_ACK: u16 = 8 << 12 | flags::ACK;

/// The headers of a plain segment.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Plain {
    pub(crate) destination_mac: [u8; 6],
    pub(crate) source_mac: [u8; 6],
    /// EtherType, version and length, TOS.
    kind_and_tos: U32,
    total_length: U16,
    id: U16,
    /// Flags and fragment offset, TTL, protocol.
    fragment_ttl_protocol: U32,
    ip_checksum: U16,
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
    pub(crate) source_port: U16,
    pub(crate) destination_port: U16,
    pub(crate) seq: U32,
    pub(crate) ack: U32,
    words_and_flags: U16,
    pub(crate) window: U16,
    checksum: U16,
    urgent: U16,
    options: U32,
    /// TSval and TSecr.
    pub(crate) value: U32,
    pub(crate) echo: U32,
}

/// What a plain segment says; numbers in host order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields {
    pub(crate) destination_mac: [u8; 6],
    pub(crate) source_mac: [u8; 6],
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    /// Its timestamps.
    pub(crate) value: u32,
    pub(crate) echo: u32,
    pub(crate) push: bool,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) ipv4_id: u16,
    pub(crate) checksum: TxChecksum,
}

impl Plain {
    /// The headers of a frame that is a sound plain segment for this MAC address, and how many
    /// bytes of payload follow. `known` is [`super::parse`]'s. A TOS with a congestion mark is
    /// not plain.
    #[inline(always)]
    pub(crate) fn of<'a>(
        frame: &'a [u8],
        mac: &[u8; 6],
        known: RxChecksum,
    ) -> Option<(&'a Self, u16)> {
        let headers = frame.first_chunk::<PLAIN>()?;
        let plain: &Self = transmute_ref!(headers);
        let kind = plain.kind_and_tos.get();
        let rest = plain.fragment_ttl_protocol.get();
        let is_plain = kind & 0xffff_ff00 == IPV4_45
            && rest & 0x3fff_00ff == u32::from(TCP)
            && rest & 0xff00 != 0
            && plain.words_and_flags.get() & !flags::PSH == WORDS_AND_ACK
            && plain.options.get() == NOP_NOP_TIMESTAMPS
            && plain.destination_mac == *mac
            && mac[0] & 1 == 0;
        if !is_plain || kind & 3 == 3 {
            return None;
        }
        let total = usize::from(plain.total_length.get());
        let payload = frame.get(PLAIN..total.wrapping_add(ethernet::HEADER))?;
        (plain.is_sound(headers, payload, known)).then_some((plain, payload.len() as u16))
    }

    /// Whether both checksums are right.
    #[inline(always)]
    fn is_sound(&self, headers: &[u8; PLAIN], payload: &[u8], known: RxChecksum) -> bool {
        let (_, behind) = headers.split_at(ethernet::HEADER);
        let (ip, segment) = behind.split_at(ipv4::HEADER);
        let len = self.total_length.get().wrapping_sub(ipv4::HEADER as u16);
        let pseudo = Sum::new()
            .bytes(ip.last_chunk::<8>().unwrap_or(&[0; 8]))
            .pair(u32::from(TCP) << 16 | u32::from(len));
        Sum::new().bytes(ip).fold() == 0xffff
            && (known == RxChecksum::Good
                || pseudo.bytes(segment).payload(payload).fold() == 0xffff
                || known == RxChecksum::Partial && self.checksum.get() == pseudo.fold())
    }

    /// Writes the headers into the first [`PLAIN`] bytes of a frame whose payload follows, as
    /// [`super::emit`] would. The caller has checked that the length fits 16 bits.
    #[inline(always)]
    pub(crate) fn write(frame: &mut [u8], fields: &Fields) {
        let Some((headers, payload)) = frame.split_first_chunk_mut::<PLAIN>() else {
            return;
        };
        let len = payload.len().wrapping_add(HEADER + 12) as u16;
        let total = len.wrapping_add(ipv4::HEADER as u16);
        let flags = WORDS_AND_ACK | if fields.push { flags::PSH } else { 0 };
        let kind = IPV4_45 | u32::from(fields.tos);
        let rest = u32::from(DONT_FRAGMENT) << 16 | u32::from(fields.ttl) << 8 | u32::from(TCP);
        let ports = u32::from(fields.source_port) << 16 | u32::from(fields.destination_port);
        let addresses = Sum::new().bytes(&fields.source).bytes(&fields.destination);
        let ip = addresses
            .pair(kind << 16 | u32::from(total))
            .field(fields.ipv4_id)
            .pair(rest);
        // The sum is taken from registers: the bytes just written would have to be waited for.
        let pseudo = addresses.pair(u32::from(TCP) << 16 | u32::from(len));
        let sum = pseudo
            .pair(ports)
            .pair(fields.seq)
            .pair(fields.ack)
            .pair(u32::from(flags) << 16 | u32::from(fields.window))
            .pair(NOP_NOP_TIMESTAMPS)
            .pair(fields.value)
            .pair(fields.echo);
        let checksum = match fields.checksum {
            TxChecksum::Pseudo => pseudo.fold(),
            TxChecksum::Whole | TxChecksum::Off => !sum.payload(payload).fold(),
        };
        let plain: &mut Self = transmute_mut!(headers);
        *plain = Self {
            destination_mac: fields.destination_mac,
            source_mac: fields.source_mac,
            kind_and_tos: kind.into(),
            total_length: total.into(),
            id: fields.ipv4_id.into(),
            fragment_ttl_protocol: rest.into(),
            ip_checksum: (!ip.fold()).into(),
            source: fields.source,
            destination: fields.destination,
            source_port: fields.source_port.into(),
            destination_port: fields.destination_port.into(),
            seq: fields.seq.into(),
            ack: fields.ack.into(),
            words_and_flags: flags.into(),
            window: fields.window.into(),
            checksum: checksum.into(),
            urgent: 0.into(),
            options: NOP_NOP_TIMESTAMPS.into(),
            value: fields.value.into(),
            echo: fields.echo.into(),
        };
    }
}

//! What a relay needs of a port.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::memory::Memory;
use super::rings::Departure;
/// A filter of a card.
pub use crate::af_xdp::Rule as CardFilter;

/// An address and its port; IPv4 addresses are mapped ones.
pub type End = ([u8; 16], u16);

/// A filter that a card has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InCard {
    /// What it leads.
    pub filter: CardFilter,
    /// Number of the card's queue that it leads to.
    pub queue: u32,
    /// What the card's library knows it by: a number and a kind. Of a DPDK port's physical function
    /// ([`super::PHYSICAL`]) the place in the card.
    pub cookie: [i32; 2],
}

/// What a port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u16,
    /// What drives it, for people.
    pub driver: String,
    /// Whether the kernel has the port as an interface of its own, which keeps whatever no filter
    /// of the card matches. Otherwise everything comes here.
    pub is_bifurcated: bool,
    /// What it does with checksums.
    pub offloads: Offloads,
    /// Whether it tells when frames have left.
    pub stamps_sent: bool,
    /// Why it takes no rules of its own, if it does not: the relay matches frames then.
    pub no_rules: Option<String>,
    /// Whether frames can stay in the stack's chunks, see [`InPlace`], or why not; `None` = nobody
    /// has asked for it.
    pub in_place: Option<Result<(), String>>,
}

/// What a port does with the checksums of UDP and TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// It says of frames that come in whether theirs is right.
    pub rx_checksums: bool,
    /// It completes one that is only the sum of the pseudo-header, in frames that go out.
    pub tx_checksums: bool,
}

/// What a port tells with a frame that came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// When it came by the device's clock, in nanoseconds since 1970; 0 = not known.
    pub stamp: u64,
    /// The UDP or TCP checksum was found right.
    pub is_checksum_good: bool,
}

/// Frames in, frames out. For one thread.
pub trait Port: Debug {
    /// What it is.
    fn facts(&self) -> Facts;
    /// Calls `each` with the frames of one burst, at most [`BURST`]; how many there were.
    fn receive(&mut self, each: &mut dyn FnMut(&[u8], Told)) -> usize;
    /// How many frames [`Self::send`] has room for now, as far as it knows: the rest waits with
    /// whoever sends it. Room comes with [`Self::receive`].
    fn room(&self) -> usize {
        usize::MAX
    }
    /// Takes a copy of a frame for sending, with the next [`Self::flush`]; whether there was room.
    ///
    /// # Safety
    /// - The bytes are mapped. They may change meanwhile: then it is the frame that changes.
    #[expect(unsafe_code, reason = "UNSAFETY: bytes that others may change")]
    unsafe fn send(&mut self, bytes: *const u8, length: u32) -> bool;
    /// The same with a frame whose departure is told by this number, of a port that tells it.
    ///
    /// # Safety
    /// - As for [`Self::send`].
    #[expect(unsafe_code, reason = "UNSAFETY: bytes that others may change")]
    unsafe fn send_stamped(&mut self, bytes: *const u8, length: u32, _number: u32) -> bool {
        // SAFETY: the caller's word.
        unsafe { self.send(bytes, length) }
    }
    /// Departures that [`Self::receive`] has heard of since the last call.
    fn departed(&mut self) -> Vec<Departure> {
        Vec::new()
    }
    /// Sends what was taken; how many frames still wait here.
    fn flush(&mut self) -> u32;
    /// The port's own statistics: name and value.
    fn statistics(&self) -> Vec<(String, u64)>;
    /// Descriptor that is readable while frames wait; `None` = it must be polled.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;
    /// Changes when [`Self::wait_fd`] is another one.
    fn epoch(&self) -> u64 {
        0
    }
    /// Makes the descriptor readable with the next frame; whether one may sleep until then.
    fn prime(&mut self) -> bool {
        true
    }
    /// Whether the device is to go, or must be opened anew: then the relay is to end, and the
    /// daemon starts another one.
    fn is_lost(&self) -> bool {
        false
    }
    /// Makes these the card's filters, and no others: of a bifurcated port; or, from time to time,
    /// the rules of another.
    ///
    /// # Errors
    /// A sentence, when one of them cannot be. Those that can, are.
    fn lead(&mut self, _wanted: &BTreeSet<CardFilter>) -> Result<(), String> {
        Ok(())
    }
    /// The filters that the card has now: of such a port.
    fn in_card(&self) -> Vec<InCard> {
        Vec::new()
    }
    /// The same port without copies, if it can and was asked to.
    fn in_place(&mut self) -> Option<&mut dyn InPlace> {
        None
    }
}

/// A frame of a burst, which stays until the burst ends.
#[derive(Clone, Copy, Debug)]
pub struct Lent {
    /// Its bytes: mapped, and of a frame in a chunk others may change them meanwhile.
    pub bytes: *const u8,
    /// How many.
    pub length: u32,
    /// The chunk of the stack that it came into; `None` = memory of the port's own.
    pub chunk: Option<u32>,
    /// What the port tells of it.
    pub told: Told,
}

/// A port that uses the stack's packet memory itself, as far as there are chunks.
///
/// A chunk is the port's from [`Self::supply`] until a frame in it was kept, and from
/// [`Self::send`] until [`Self::completed`]; or until [`Self::disown`].
pub trait InPlace: Port {
    /// Uses the memory of the stack that has come, whose frames begin behind `headroom` bytes of a
    /// chunk. It stays mapped as long as the card has something of it.
    ///
    /// # Errors
    /// A sentence: then frames are copied.
    fn adopt(&mut self, memory: Rc<Memory>, headroom: u32) -> Result<(), String>;
    /// The stack is gone: from now on frames are copied.
    fn disown(&mut self);
    /// How many chunks [`Self::supply`] has room for.
    fn wants(&self) -> usize;
    /// Takes chunks for frames to come into, each of which is in the memory and not the port's yet.
    fn supply(&mut self, chunks: &[u32]);
    /// As [`Port::receive`]. `each` says whether the stack keeps the chunk of a frame in one.
    fn lend(&mut self, each: &mut dyn FnMut(Lent) -> bool) -> usize;
    /// Most frames that are on their way out of chunks at a time.
    fn most_sending(&self) -> usize;
    /// As [`Port::send`], but takes the frame as it is in its chunk.
    ///
    /// # Safety
    /// - The bytes are in that chunk of the memory, which is not the port's yet.
    #[expect(unsafe_code, reason = "UNSAFETY: bytes that others may change")]
    unsafe fn send_chunk(&mut self, bytes: *mut u8, length: u32, chunk: u32) -> bool;
    /// Chunks whose frames have left; how many.
    fn completed(&mut self, into: &mut [u32]) -> usize;
}

/// Most frames of one burst.
pub(super) const BURST: usize = 64;

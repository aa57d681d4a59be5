//! What the stack counts: [`Counter`] for events and [`DropReason`] for frames thrown away.
//!
//! Both are tables: each entry has a stable kebab-case name (for tools and `--json`) and one
//! sentence that says what it means. The values are `u64` arrays in the image, so anybody who maps
//! the image can read them without stopping the program. The position in the table is part of the
//! image layout: append, and raise `LAYOUT_VERSION` when an entry moves.

use core::fmt;

/// Places for counters, and for drop reasons, in the image.
pub(crate) const COUNTER_SLOTS: usize = 72;

macro_rules! table {
    ($(#[$meta:meta])* $type:ident { $($variant:ident $name:literal $sentence:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $type {
            $(#[doc = $sentence] $variant,)*
        }

        impl $type {
            /// Every entry, in the order of the image.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Stable name for tools, in kebab-case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence that says what is counted.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        const _: () = assert!($type::ALL.len() <= COUNTER_SLOTS);
    };
}

table! {
    /// Events that the stack counts.
    Counter {
        DatagramsReceived "datagrams-received" "Datagrams from the wire put on an endpoint's receive queue.",
        DatagramsSent "datagrams-sent" "Datagrams built and put on a transmit list.",
        BytesReceived "bytes-received" "Payload bytes of datagrams received.",
        BytesSent "bytes-sent" "Payload bytes of datagrams sent.",
        HairpinDelivered "hairpin-delivered" "Datagrams and segments sent by an endpoint to another endpoint of the same stack.",
        HairpinDropped "hairpin-dropped" "Hairpin datagrams and segments thrown away because the receiver or the packet memory was full.",
        EndpointsOpened "endpoints-opened" "Endpoints created.",
        EndpointsDestroyed "endpoints-destroyed" "Endpoints destroyed because their last holder was gone.",
        EndpointsFull "endpoints-full" "Requests for an endpoint refused because the slab was full.",
        NoChunk "no-chunk" "Sends and fills that found no free chunk.",
        SendTooBig "send-too-big" "Sends left to the kernel because the datagram is larger than the interface's MTU.",
        DoubleRelease "double-release" "Chunks released although they were free already; ignored.",
        BadChunk "bad-chunk" "Chunk ids out of range or in the wrong state for the call; ignored.",
        CorruptList "corrupt-list" "Lists in the image found broken (bad index, cycle, member of another list) and cut there.",
        Recoveries "recoveries" "Times the lists were rebuilt because a lock owner died inside an update.",
        RecoveredDatagrams "recovered-datagrams" "Frames, segments and datagrams thrown away by a recovery.",
        ProcessesAdded "processes-added" "Process slots given out.",
        ProcessesRemoved "processes-removed" "Process slots given back.",
        ProcessesFull "processes-full" "Requests for a process or waiter slot refused because all 128 were taken.",
        TransmitReturned "transmit-returned" "Frames put back on a transmit list because the TX ring was full.",
        TcpSegmentsReceived "tcp-segments-received" "TCP segments with a good checksum.",
        TcpSegmentsSent "tcp-segments-sent" "TCP segments put on a transmit list, retransmissions included.",
        TcpActiveOpens "tcp-active-opens" "Connections opened by connect.",
        TcpPassiveOpens "tcp-passive-opens" "SYNs that a listener has answered.",
        TcpSimultaneousOpens "tcp-simultaneous-opens" "Connections whose SYNs have crossed.",
        TcpListenOverflows "tcp-listen-overflows" "SYNs and final ACKs dropped because a queue of the listener was full.",
        TcpResetsSent "tcp-resets-sent" "Resets sent.",
        TcpResetsReceived "tcp-resets-received" "Connections that the peer has reset.",
        TcpRetransmits "tcp-retransmits" "Segments sent again.",
        TcpTimeouts "tcp-timeouts" "Retransmission timeouts.",
        TcpTailProbes "tcp-tail-probes" "Tail loss probes sent.",
        TcpLost "tcp-lost" "Segments believed lost.",
        TcpRecoveries "tcp-recoveries" "Fast recoveries begun.",
        TcpUndone "tcp-undone" "Window reductions undone because the loss was none.",
        TcpReordering "tcp-reordering" "Segments that the network delivered late and out of order.",
        TcpDsackReceived "tcp-dsack-received" "Duplicates that the peer has told of.",
        TcpOutOfOrder "tcp-out-of-order" "Segments that came before their predecessors.",
        TcpDelayedAcks "tcp-delayed-acks" "Acknowledgements sent because their delay was over.",
        TcpChallengeAcks "tcp-challenge-acks" "Acknowledgements sent because a segment looked forged.",
        TcpZeroWindows "tcp-zero-windows" "Times the receive window was closed.",
        TcpWindowProbes "tcp-window-probes" "Probes of a closed window.",
        TcpKeepalives "tcp-keepalives" "Keepalive probes.",
        TcpEcnReductions "tcp-ecn-reductions" "Window reductions because of ECN.",
        TcpCompacted "tcp-compacted" "Received payloads copied together because the reader was slow.",
        TcpTimeWaitFull "tcp-time-wait-full" "Time waits that ended early, or were left out, because there was no room for them.",
        TcpFlowChangesLost "tcp-flow-changes-lost" "Changes of steering that were lost because nobody took them.",
        TcpGapFloods "tcp-gap-floods" "Out-of-order segments dropped because hundreds of others lay before them.",
        TcpPathMtu "tcp-path-mtu" "Times a path's MTU was found to be smaller.",
        TcpTailRepairs "tcp-tail-repairs" "Losses at the tail that a probe has repaired.",
        TcpReneged "tcp-reneged" "Timeouts at which the peer had thrown away what it had told as received.",
        TcpWindowsTakenBack "tcp-windows-taken-back" "Times the window was closed, against its promise, because the packet memory was full.",
        TcpStarvedOpened "tcp-starved-opened" "Windows opened because others have given packet memory back.",
        TcpHandedOver "tcp-handed-over" "Connections that have moved to the kernel.",
        TcpProbesUnsent "tcp-probes-unsent" "Probes of a window or of the peer's life that found no packet memory, to be tried again.",
        TcpIcmpErrors "tcp-icmp-errors" "ICMP errors that a connection or a request has believed.",
        TcpIcmpIgnored "tcp-icmp-ignored" "ICMP errors that quote a segment which is not in flight, or are about a time wait.",
        TcpTimeoutsReverted "tcp-timeouts-reverted" "Doublings of a timeout undone because a router had no way for the segment.",
        DatagramsByGso "datagrams-by-gso" "Datagrams of one sendmmsg that the kernel has cut out of one large send, faster than one frame each in copy mode.",
        TcpBlackHoles "tcp-black-holes" "Timeouts at which segments were made smaller, because the path may swallow long ones without a word.",
        TcpMtuProbes "tcp-mtu-probes" "Segments sent to learn whether the path takes one so long.",
        TcpMtuProbesLost "tcp-mtu-probes-lost" "Such segments that were lost.",
        TcpPressed "tcp-pressed" "Times a listener, or all listeners of the stack together, had so many half-open connections that new ones went to the kernel, which has SYN cookies.",
        TcpFastOpens "tcp-fast-opens" "Connections that a SYN with data or a cookie has made at once (TCP Fast Open).",
        TcpFastOpensRefused "tcp-fast-opens-refused" "SYNs whose Fast Open cookie was wrong.",
        TcpFastOpensFull "tcp-fast-opens-full" "SYNs for Fast Open that became ordinary, because as many as TCP_FASTOPEN allows waited for the end of their handshake.",
        TcpFastConnects "tcp-fast-connects" "Connections whose SYN had data that the peer has taken (TCP Fast Open).",
        TcpFastConnectsFailed "tcp-fast-connects-failed" "Connections whose SYN had data that had to be sent again, or that a path may have swallowed.",
        TcpFastConnectsPaused "tcp-fast-connects-paused" "Times connections began to do without Fast Open, because a path seems not to carry it.",
    }
}

table! {
    /// Why a frame was thrown away. Every frame ends as delivered or with exactly one of these.
    DropReason {
        BadChunk "bad-chunk" "The frame's chunk is out of range or was not in a fill ring; it is left alone.",
        Truncated "truncated" "The frame is too short for its headers or lies outside its chunk.",
        OtherHost "other-host" "The destination MAC address is neither the interface's nor a group address.",
        Vlan "vlan" "The frame carries a VLAN tag.",
        EtherType "ether-type" "The frame is neither IPv4 nor IPv6.",
        IpVersion "ip-version" "The version field of the IP header contradicts the EtherType.",
        IpHeaderLength "ip-header-length" "The IPv4 header length is below 20 bytes.",
        IpOptions "ip-options" "The IPv4 header has options, which are the kernel's business.",
        IpLength "ip-length" "The IP length is larger than the frame or smaller than the headers.",
        IpChecksum "ip-checksum" "The IPv4 header checksum is wrong.",
        IpTtl "ip-ttl" "The TTL or hop limit is zero.",
        Fragment "fragment" "The packet is a fragment, which only the kernel reassembles.",
        ExtensionHeader "extension-header" "The IPv6 packet has an extension header.",
        Protocol "protocol" "The packet is neither UDP nor TCP.",
        MartianSource "martian-source" "The source address cannot send: unspecified, loopback, multicast or broadcast.",
        MartianDestination "martian-destination" "The destination is unspecified, loopback or multicast, which never comes by a filter.",
        UdpLength "udp-length" "The UDP length is below 8 or larger than the IP payload.",
        ZeroPort "zero-port" "The destination port is zero.",
        ChecksumBad "checksum-bad" "The UDP or TCP checksum is wrong.",
        ChecksumMissing "checksum-missing" "A UDP datagram over IPv6 without checksum.",
        NoEndpoint "no-endpoint" "No endpoint takes this address and port.",
        BufferFull "buffer-full" "The endpoint's receive buffer is full.",
        ChunkShare "chunk-share" "The endpoint already holds a quarter of all chunks.",
        Corrupt "corrupt" "The endpoint's receive queue is broken in the image.",
        TcpHeader "tcp-header" "The TCP data offset is below 5 words or points behind the packet.",
        NotUnicast "not-unicast" "A TCP segment to a group or broadcast address, which is never answered.",
        TcpDuplicate "tcp-duplicate" "All data of the segment had come before.",
        TcpWindow "tcp-window" "The segment is outside the receive window.",
        TcpOldTimestamp "tcp-old-timestamp" "The segment's timestamp is older than one seen (PAWS).",
        TcpFlags "tcp-flags" "The segment's flags make no sense in this state.",
        TcpAck "tcp-ack" "The segment acknowledges what was never sent, or what is long past.",
        TcpBacklog "tcp-backlog" "A queue of the listener is full.",
        TcpLeft "tcp-left" "The connection has moved to the kernel; the segment was on its way here.",
    }
}

/// The counters of a stack, as they are now.
#[derive(Clone, Copy, Debug)]
pub struct Counters<'a> {
    pub(crate) counters: &'a [u64; COUNTER_SLOTS],
    pub(crate) drops: &'a [u64; COUNTER_SLOTS],
}

impl Counters<'_> {
    /// Value of a counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters.get(counter as usize).copied().unwrap_or(0)
    }

    /// Frames dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or(0)
    }

    /// Frames dropped for any reason.
    #[must_use]
    pub fn dropped_in_all(&self) -> u64 {
        self.drops
            .iter()
            .fold(0, |sum, value| sum.wrapping_add(*value))
    }
}

//! Why a socket, or one call on it, is served by the kernel.
//!
//! Every socket that is not accelerated has exactly one [`FallThrough`] reason; `bypassctl explain`
//! prints its sentence and what to do about it. The discriminants are stored in the process report
//! and never change their meaning.

/// Declares the reasons once: variant, number, sentence, advice.
macro_rules! reasons {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident = $value:literal, $slug:literal, $advice:literal;
    )+) => {
        /// Why the kernel serves a socket (or one call on an accelerated socket).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum FallThrough { $( $(#[doc = $doc])+ $name = $value, )+ }

        impl FallThrough {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )+ ];

            /// Stable name for `--json` and counters.
            #[must_use]
            pub fn name(self) -> &'static str { match self { $( Self::$name => $slug, )+ } }

            /// One sentence for a person.
            #[must_use]
            pub fn sentence(self) -> &'static str {
                match self { $( Self::$name => concat!($( $doc ),+).trim_ascii(), )+ }
            }

            /// What to do about it; empty when nothing is to be done.
            #[must_use]
            pub fn advice(self) -> &'static str { match self { $( Self::$name => $advice, )+ } }

            /// The reason with this number.
            #[must_use]
            pub fn from_number(value: u8) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| *reason as u8 == value)
            }
        }
    };
}

reasons! {
    /// The socket is not an IPv4 or IPv6 socket.
    NotInet = 1, "not-inet", "";
    /// The socket type is not accelerated (only UDP and TCP are).
    SocketType = 2, "socket-type", "";
    /// TCP acceleration is switched off (BYPASS_TCP=0).
    TcpOff = 3, "tcp-off", "unset BYPASS_TCP, or remove tcp from the options of bypass.toml";
    /// No address has been fixed yet: the decision falls at bind, connect or the first send.
    Undecided = 4, "undecided", "";
    /// A rule of the configuration says kernel.
    Rule = 5, "rule", "see the rule's number and change it in bypass.toml";
    /// The program is one that must stay with the kernel (sshd, inetd, xinetd, sudo, setuid).
    Program = 6, "program", "";
    /// The address is a loopback address.
    Loopback = 7, "loopback", "";
    /// Multicast is not accelerated.
    Multicast = 8, "multicast", "";
    /// Broadcast is not accelerated.
    Broadcast = 9, "broadcast", "";
    /// The remote address is one of this host's own.
    LocalRoute = 10, "local-route", "";
    /// No interface with a usable backend has this address.
    NoInterface = 11, "no-interface", "run bypassctl doctor: it tests every interface";
    /// The interface's queue belongs to another user's stack or to another program.
    QueueBusy = 12, "queue-busy", "see bypassctl stacks for the owner";
    /// No daemon answers and this process may not start one.
    NoDaemon = 13, "no-daemon", "start bypassctl daemon as root";
    /// The daemon speaks another protocol version.
    Version = 14, "version", "restart the daemon from the same package as libbypass.so";
    /// The daemon's policy does not allow this user.
    NotAllowed = 15, "not-allowed", "allow the user in bypass.toml of the daemon";
    /// A limit is reached: endpoints, chunks, processes, filters or clients.
    Limit = 16, "limit", "close sockets or raise the limit in bypass.toml";
    /// A static filter keeps the address in the kernel.
    StaticFilter = 17, "static-filter", "see bypassctl filters list";
    /// The operating system refused a step.
    System = 18, "system", "see the errno, and bypassctl doctor";
    /// The configuration could not be read, so everything stays with the kernel.
    BadConfig = 19, "bad-config", "run bypassctl explain --dry-run to see line and column";
    /// BYPASS_DISABLE is set.
    Disabled = 20, "disabled", "unset BYPASS_DISABLE";
    /// An option was set on the socket that only the kernel provides.
    Option = 21, "option", "";
    /// The daemon refused a malformed request.
    Refused = 22, "refused", "report this: shim and daemon disagree";
    /// The socket was inherited or received and its origin is unknown.
    Inherited = 23, "inherited", "";
    /// The process runs with raised privilege (AT_SECURE).
    Secure = 24, "secure", "";
    /// The destination has no usable route or neighbour yet: this datagram went by the kernel.
    NextHop = 25, "next-hop", "";
    /// The descriptor was passed to another process, which may be any program.
    Passed = 29, "passed", "";
    /// No interface has the backend that the rule wants.
    Backend = 30, "backend", "write backend = \"auto\", leave it out, or name a [[device]] for it";
    /// Programs of the same user in another pid namespace (container) have the stack.
    PidNamespace = 31, "pid-namespace", "give the containers users or network namespaces of their own";
    /// The program uses io_uring, which works on the kernel's sockets.
    IoUring = 32, "io_uring", "if its rings serve files only, set BYPASS_IO_URING=ignore";
    /// The connection kept packet memory of the stack while that was short.
    Memory = 33, "memory", "raise chunks in the [daemon] part of bypass.toml";
    /// The descriptor was handed to the kernel by rollback.
    Rollback = 28, "rollback", "";
}

#[cfg(test)]
mod tests {
    use super::FallThrough;

    #[test]
    fn numbers_are_unique_and_found_again() {
        for reason in FallThrough::ALL {
            assert_eq!(FallThrough::from_number(*reason as u8), Some(*reason));
            assert!(!reason.sentence().is_empty());
        }
        assert_eq!(FallThrough::from_number(0), None);
    }
}

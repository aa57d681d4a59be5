//! What the daemon counts about itself: a table of names and sentences, values by index.

/// Declares the counters once: variant, name, sentence.
macro_rules! counters {
    ($($variant:ident $name:literal $sentence:literal,)*) => {
        /// Something that the daemon counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Counter {
            $(#[doc = $sentence] $variant,)*
        }

        impl Counter {
            /// Every counter, in the order of its values.
            pub(super) const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Stable name, in snake case as all of the JSON.
            pub(super) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence that says what is counted.
            pub(super) fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

counters! {
    ClientsAccepted "clients_accepted" "Connections accepted.",
    ClientsDropped "clients_dropped" "Connections closed because the client never read its replies or kept sending rubbish.",
    ClientsTurnedAway "clients_turned_away" "Connections closed at once because far too many were open.",
    Requests "requests" "Requests received.",
    RequestsRefused "requests_refused" "Requests that were refused, for whatever reason.",
    RefusedVersion "refused_version" "Requests refused because of another protocol version.",
    RefusedMalformed "refused_malformed" "Requests refused because of length, magic, kind, fields or descriptors.",
    RefusedNotOwner "refused_not_owner" "Requests refused because the socket is not bound to the address they name.",
    RefusedNoInterface "refused_no_interface" "Requests refused because no usable interface has the address.",
    RefusedQueueBusy "refused_queue_busy" "Requests refused because the interface belongs to another stack or program.",
    RefusedNotAllowed "refused_not_allowed" "Requests refused by the policy or for want of privilege.",
    RefusedLimit "refused_limit" "Requests refused because a limit was reached.",
    RefusedSystem "refused_system" "Requests refused because the operating system refused a step.",
    RefusedConflict "refused_conflict" "Requests refused because a static filter keeps the address in the kernel.",
    RefusedPidNamespace "refused_pid_namespace" "Requests refused because programs of another pid namespace have the user's stack.",
    StacksMade "stacks_made" "Stacks made.",
    StacksAdopted "stacks_adopted" "Stacks taken over from a daemon that is gone.",
    StacksDropped "stacks_dropped" "Stacks dropped because their last process was gone.",
    StackLocksBusy "stack_locks_busy" "Times a stack's lock was not to be had in time, so that the work was put off or refused.",
    StacksCrowded "stacks_crowded" "Times new connections were left to the kernel for want of endpoints in a stack, or led to it again ([daemon] endpoints).",
    StacksPumped "stacks_pumped" "Times frames were taken in for programs that did not do it themselves.",
    FramesPumped "frames_pumped" "Frames taken in that way.",
    FiltersAdded "filters_added" "Filters added.",
    FiltersRemoved "filters_removed" "Filters removed at their owner's request.",
    DatagramsMoved "datagrams_moved" "Unread datagrams given to the kernel's socket when an endpoint ended (exec, SCM_RIGHTS).",
    ConnectionsMoved "connections_moved" "TCP connections that have become the kernel's.",
    ConnectionsRelieved "connections_relieved" "Of these, TCP connections that kept a stack's packet memory while it was short ([daemon] chunks).",
    ConnectionsRecalled "connections_recalled" "TCP connections that have come (back) from the kernel.",
    IcmpErrors "icmp_errors" "ICMP errors about TCP connections of a stack.",
    FiltersSwept "filters_swept" "Filters removed because their endpoint was gone.",
    FilterFailures "filter_failures" "Entries of filters that could not be written into an interface's map.",
    ProcessesGone "processes_gone" "Processes whose end was noticed.",
    ProcessesFound "processes_found" "Forked processes found in a stack image before anybody had told.",
    InterfacesOpened "interfaces_opened" "Interfaces opened (XDP program attached).",
    InterfacesClosed "interfaces_closed" "Interfaces closed (XDP program detached).",
    InterfaceFailures "interface_failures" "Interfaces that could not be opened.",
    NetlinkMessages "netlink_messages" "Announcements of the kernel about links, addresses, routes, rules and neighbours.",
    NetlinkOverruns "netlink_overruns" "Times announcements were lost, after which everything is read again.",
    NetlinkDumps "netlink_dumps" "Times links, addresses, routes or neighbours were read as a whole.",
    NetlinkFailures "netlink_failures" "Such readings that failed; until the next one every route is left to the kernel.",
}

/// The values.
#[derive(Debug)]
pub(super) struct Counters {
    values: [u64; Counter::ALL.len()],
}

impl Counters {
    /// All zero.
    pub(super) fn new() -> Self {
        Self {
            values: [0; Counter::ALL.len()],
        }
    }

    /// Adds one.
    pub(super) fn add(&mut self, counter: Counter) {
        self.add_many(counter, 1);
    }

    /// Adds some.
    pub(super) fn add_many(&mut self, counter: Counter, amount: u64) {
        if let Some(value) = self.values.get_mut(counter as usize) {
            *value = value.wrapping_add(amount);
        }
    }

    /// The value.
    pub(super) fn get(&self, counter: Counter) -> u64 {
        self.values.get(counter as usize).copied().unwrap_or(0)
    }
}

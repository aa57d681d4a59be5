//! Static filters: an administrator's word on addresses, whoever asks for them.
//!
//! One *keeps* an address or a flow in the kernel; another *reserves* an address for the programs
//! of a user, or of a name, so that everybody else's sockets there stay in the kernel. A flow is
//! steered only if every static filter that covers it allows that, so their order does not matter.
//! TCP connections that live when one is added are served to their end.
//!
//! They live as long as the daemon or any program: their records stand in the daemon's part of
//! every control-plane table, which only root can write, and from there the next daemon has them.
//! Nothing of them outlives a reboot.

use bypass_proto::control::Request;
use bypass_runtime::cplane::{NOTES_BYTES, NOTES_OFFSET};
use bypass_stack::{IpAddress, SocketAddress};
use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::filters::{Flow, Wish};

/// Most static filters.
pub(super) const MOST: usize = NOTES_BYTES / size_of::<Record>() - 1;

/// Who asks for a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker<'a> {
    /// User of the stack.
    pub uid: u32,
    /// Name of the program without its folder.
    pub program: &'a str,
}

/// What a static filter is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The kernel has it.
    Keep,
    /// Only these programs may have it steered.
    Reserve {
        /// User; `None` = any.
        user: Option<u32>,
        /// Program name; empty = any.
        program: String,
    },
}

/// A static filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StaticFilter {
    /// Its id, from the same numbers as the others'.
    pub id: u32,
    /// What it covers.
    pub wish: Wish,
    /// What is to become of that.
    pub purpose: Purpose,
}

impl StaticFilter {
    /// What a request says; `None` when it makes no sense.
    pub(super) fn of_request(id: u32, wish: Wish, request: &Request) -> Option<Self> {
        let program = text(&request.program)?;
        let user = (request.has_user != 0).then_some(request.user);
        let purpose = match (request.keep_in_kernel, user, program.as_str()) {
            (1, None, "") => Purpose::Keep,
            // For nobody in particular.
            (0, None, "") => return None,
            (0, user, _) if wish.remote == SocketAddress::UNSPECIFIED => {
                Purpose::Reserve { user, program }
            }
            _ => return None,
        };
        // All that comes to the address, also on connections.
        let wish = Wish {
            listens: true,
            ..wish
        };
        Some(Self { id, wish, purpose })
    }

    /// Whether it lets this program have what it covers.
    pub(super) fn allows(&self, asker: &Asker<'_>) -> bool {
        match &self.purpose {
            Purpose::Keep => false,
            Purpose::Reserve { user, program } => {
                user.is_none_or(|user| user == asker.uid)
                    && (program.is_empty() || program == asker.program)
            }
        }
    }

    /// Whether it keeps one flow of an address in the kernel whose others may be steered.
    pub(super) fn keeps_flow(&self) -> bool {
        self.purpose == Purpose::Keep && self.wish.remote != SocketAddress::UNSPECIFIED
    }
}

/// All static filters.
#[derive(Debug, Default)]
pub(super) struct Statics(Vec<StaticFilter>);

impl Statics {
    /// Adds one; `false` when there are too many.
    pub(super) fn insert(&mut self, filter: StaticFilter) -> bool {
        let has_room = self.0.len() < MOST;
        if has_room {
            self.0.push(filter);
        }
        has_room
    }

    /// The one that says the same already.
    pub(super) fn same(&self, filter: &StaticFilter) -> Option<u32> {
        let is_same = |known: &&StaticFilter| {
            (&known.wish, &known.purpose) == (&filter.wish, &filter.purpose)
        };
        self.iter().find(is_same).map(|known| known.id)
    }

    /// Removes one.
    pub(super) fn remove(&mut self, id: u32) -> Option<StaticFilter> {
        let place = self.0.iter().position(|filter| filter.id == id)?;
        Some(self.0.remove(place))
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &StaticFilter> {
        self.0.iter()
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one forbids that this program has a flow.
    pub(super) fn withhold(&self, ifindex: u32, flow: &Flow, asker: &Asker<'_>) -> bool {
        self.iter()
            .any(|filter| filter.wish.covers(ifindex, flow) && !filter.allows(asker))
    }

    /// Writes them for the next daemon; `write` puts bytes at an offset of a table's file.
    ///
    /// # Errors
    /// What `write` answers.
    pub(super) fn save(
        &self,
        mut write: impl FnMut(&[u8], usize) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let count = |count: usize| Record {
            id: count as u32,
            ..Record::new_zeroed()
        };
        // A daemon that dies in between leaves none rather than a wrong one.
        write(count(0).as_bytes(), NOTES_OFFSET)?;
        for (index, filter) in self.iter().enumerate() {
            let offset = NOTES_OFFSET + (index + 1) * size_of::<Record>();
            write(Record::of(filter).as_bytes(), offset)?;
        }
        write(count(self.0.len()).as_bytes(), NOTES_OFFSET)
    }

    /// What the daemon before has written.
    ///
    /// # Errors
    /// What `read` answers.
    pub(super) fn load(
        mut read: impl FnMut(&mut [u8], usize) -> Result<(), Errno>,
    ) -> Result<Self, Errno> {
        let mut record = Record::new_zeroed();
        read(record.as_mut_bytes(), NOTES_OFFSET)?;
        let count = (record.id as usize).min(MOST);
        let mut all = Vec::with_capacity(count);
        for index in 1..=count {
            read(
                record.as_mut_bytes(),
                NOTES_OFFSET + index * size_of::<Record>(),
            )?;
            all.extend(record.filter());
        }
        Ok(Self(all))
    }
}

/// A static filter in a table's file; the first one only counts.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Record {
    id: u32,
    ifindex: u32,
    local: [u8; 16],
    remote: [u8; 16],
    local_port: u16,
    remote_port: u16,
    user: u32,
    protocol: u8,
    v4: u8,
    v6: u8,
    /// 0 = keep, 1 = reserve, 3 = reserve for a user.
    purpose: u8,
    program: [u8; 28],
}

impl Record {
    fn of(filter: &StaticFilter) -> Self {
        let mut record = Self {
            id: filter.id,
            ifindex: filter.wish.ifindex,
            local: filter.wish.local.ip.0,
            remote: filter.wish.remote.ip.0,
            local_port: filter.wish.local.port,
            remote_port: filter.wish.remote.port,
            protocol: filter.wish.protocol,
            v4: filter.wish.v4.into(),
            v6: filter.wish.v6.into(),
            ..Self::new_zeroed()
        };
        if let Purpose::Reserve { user, program } = &filter.purpose {
            record.purpose = if user.is_some() { 3 } else { 1 };
            record.user = user.unwrap_or(0);
            for (to, from) in record.program.iter_mut().zip(program.bytes()) {
                *to = from;
            }
        }
        record
    }

    fn filter(&self) -> Option<StaticFilter> {
        let purpose = match self.purpose {
            0 => Purpose::Keep,
            1 | 3 => Purpose::Reserve {
                user: (self.purpose == 3).then_some(self.user),
                program: text(&self.program)?,
            },
            _ => return None,
        };
        let wish = Wish {
            local: SocketAddress::new(IpAddress(self.local), self.local_port),
            remote: SocketAddress::new(IpAddress(self.remote), self.remote_port),
            protocol: self.protocol,
            v4: self.v4 != 0,
            v6: self.v6 != 0,
            ifindex: self.ifindex,
            listens: true,
        };
        Some(StaticFilter {
            id: self.id,
            wish,
            purpose,
        })
    }
}

/// Text padded with NULs.
fn text(bytes: &[u8]) -> Option<String> {
    let length = bytes.iter().position(|byte| *byte == 0);
    let (text, padding) = bytes.split_at(length.unwrap_or(bytes.len()));
    if padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::super::filters::FlowKind;
    use super::*;

    const KNOT: Asker<'static> = Asker {
        uid: 101,
        program: "knotd",
    };

    fn wish(local: IpAddress) -> Wish {
        Wish {
            local: SocketAddress::new(local, 53),
            remote: SocketAddress::UNSPECIFIED,
            protocol: 17,
            v4: true,
            v6: true,
            ifindex: 0,
            listens: true,
        }
    }

    fn reserve(user: Option<u32>, program: &str) -> StaticFilter {
        StaticFilter {
            id: 7,
            wish: wish(IpAddress::from_v4([198, 18, 1, 1])),
            purpose: Purpose::Reserve {
                user,
                program: program.to_owned(),
            },
        }
    }

    fn keep() -> StaticFilter {
        StaticFilter {
            purpose: Purpose::Keep,
            ..reserve(None, "")
        }
    }

    #[test]
    fn a_static_filter_covers_what_is_inside_it() {
        let flow = |port| Flow {
            local: SocketAddress::new(IpAddress::from_v4([198, 18, 1, 1]), port),
            remote: SocketAddress::UNSPECIFIED,
            protocol: 17,
            kind: FlowKind::Packets,
        };
        let mut statics = Statics::default();
        assert!(statics.insert(keep()));
        assert!(statics.withhold(3, &flow(53), &KNOT));
        assert!(!statics.withhold(3, &flow(54), &KNOT));
        assert!(statics.remove(7).is_some() && statics.remove(7).is_none());
        assert!(!statics.withhold(3, &flow(53), &KNOT));
        for (filter, allowed) in [
            (reserve(Some(101), ""), true),
            (reserve(Some(102), ""), false),
            (reserve(None, "knotd"), true),
            (reserve(None, "knot"), false),
            (reserve(Some(101), "knotd"), true),
            (reserve(Some(101), "nsd"), false),
        ] {
            let mut statics = Statics::default();
            statics.insert(filter);
            assert_eq!(statics.withhold(3, &flow(53), &KNOT), !allowed);
            // Whoever is allowed by one is not by the other.
            statics.insert(keep());
            assert!(statics.withhold(3, &flow(53), &KNOT));
        }
    }

    #[test]
    fn the_next_daemon_reads_what_was_written() {
        let mut bytes = vec![0xa5; NOTES_OFFSET + NOTES_BYTES];
        let longest = "a".repeat(28);
        let all = vec![keep(), reserve(Some(0), ""), reserve(None, &longest)];
        let mut statics = Statics(all);
        for _ in 0..2 {
            let write = |what: &[u8], at: usize| {
                bytes[at..at + what.len()].copy_from_slice(what);
                Ok(())
            };
            statics.save(write).expect("write");
            let read = |what: &mut [u8], at: usize| {
                what.copy_from_slice(&bytes[at..at + what.len()]);
                Ok(())
            };
            let loaded = Statics::load(read).expect("read");
            assert_eq!(loaded.0, statics.0);
            statics.0.remove(0);
        }
    }

    #[test]
    fn there_is_a_limit() {
        let mut statics = Statics::default();
        assert_eq!((0..1000).filter(|_| statics.insert(keep())).count(), MOST);
    }
}

//! Taking over what a daemon that is gone has left with running programs.
//!
//! Programs hold copies of everything: image, packet memory, control-plane table, XSKs, links.
//! A new daemon looks through the descriptors of every process of its network namespace, takes
//! copies of those that it knows, and goes on:
//!
//! ```text
//!   /proc/PID/fd -> memfds by name, XSKs and bells by their note, XDP links by fdinfo
//!   stack: image + packets + table       owner: the image file's (only root gives files away)
//!                                        of which namespace: see the table's file (`Published`)
//!   interface: link -> program -> maps   queue pair: note in the XSK (sockopt::tag_queue)
//!   port of a device: its relay, which has the rings and filters
//!   filters: endpoints of the image, as far as the program's maps already have their entries
//!   TCP flows: the BPF map by its name      their grants: those in the program's maps
//! ```
//!
//! Names and images are the programs' word and prove nothing, so what they say is taken only for
//! their own user's stack, and no filter comes out of it that the daemon before has not granted.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use bypass_backends::af_xdp::FlowTable;
use bypass_proto::policy::Backend;
use bypass_runtime::image::copy_stack;
use bypass_runtime::map::is_sealed;
use bypass_runtime::{cplane, image, packets};
use bypass_stack::inspect::{EndpointView, Image};
use bypass_stack::{EndpointId, Family, QUEUE_PAIRS, QueuePairInfo, SocketAddress, TcpState};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::counters::Counter;
use super::filters::{Entry, Filter, Flow, Wish};
use super::foreign::Foreign;
use super::nics::OpenNic;
use super::process::{self, Process};
use super::published::{Belongs, Published};
use super::server::Server;
use super::sockopt as own;
use super::stacks::{self, Origin, Parts, Queue, StackEntry};

/// Descriptors of one stack, from whatever processes have them.
#[derive(Debug)]
struct Found {
    image: OwnedFd,
    uid: u32,
    packets: OwnedFd,
    cplane: OwnedFd,
    flows: Option<OwnedFd>,
    /// By index of the queue pair, with the entries of its rings.
    queue_fds: BTreeMap<u8, (OwnedFd, u32)>,
    /// By interface index.
    links: BTreeMap<u32, OwnedFd>,
}

/// The descriptors of one process that may matter.
#[derive(Debug, Default)]
struct Held {
    image: Option<OwnedFd>,
    packets: Option<OwnedFd>,
    cplane: Option<OwnedFd>,
    flows: Option<OwnedFd>,
    queue_fds: BTreeMap<u8, (OwnedFd, u32)>,
    links: BTreeMap<u32, OwnedFd>,
}

impl Server {
    /// Finds the stacks of this network namespace that programs have mapped, and goes on with them;
    /// at a later opportunity with those whose lock somebody keeps.
    pub(super) fn adopt_stacks(&mut self) {
        let devices = self.devices.count();
        for found in find_all(self.namespace) {
            if self.stacks.get(found.uid).is_some() {
                continue;
            }
            let uid = found.uid;
            match self.adopt(found) {
                Ok(()) => {
                    self.counters.add(Counter::StacksAdopted);
                    self.find_relatives(uid);
                    self.drop_stack_without_process(uid);
                }
                Err(Errno::AGAIN) => {
                    self.counters.add(Counter::StackLocksBusy);
                    self.chores.look_for_stacks();
                }
                Err(_) => {}
            }
        }
        if self.devices.count() > devices {
            // What no configuration names ends, and the next backend has its interface.
            self.follow_devices();
            self.reconcile_all();
        }
        self.publish();
    }

    fn adopt(&mut self, found: Found) -> Result<(), Errno> {
        let Found {
            image,
            uid,
            packets,
            cplane,
            flows,
            queue_fds,
            links,
        } = found;
        let bytes = copy_stack(&image)?;
        let view = Image::attach(&bytes).map_err(|_| Errno::INVAL)?;
        let policy = &self.config.policy.daemon;
        let entries = queue_fds.values().next().map_or_else(
            || stacks::ring_entries(policy.chunks, links.len() as u32),
            |(_, entries)| *entries,
        );
        let belongs = Belongs {
            namespace: self.namespace,
            image: process::inode(&image),
            packets: process::inode(&packets),
        };
        let parts = Parts {
            image,
            packets,
            cplane: Published::adopt(cplane, belongs)?,
            flows: flows.map_or_else(|| stacks::make_flows(policy), Ok)?,
        };
        let mut stack = StackEntry::join(uid, parts, entries, Origin::Adopted)?;
        let infos = view.queue_pairs();
        self.find_relays(infos);
        let mut nics = adopt_links(links, infos, &stack);
        nics.extend(self.adopt_relayed(infos, &stack));
        stack.install_adopted(adopt_queues(queue_fds, entries, infos, &nics))?;
        // The daemon before may have been killed between serving the stack and waking its programs.
        if let Ok(mut locked) = stack.lock() {
            locked.stack().wake_everybody();
        }
        if self.filters.statics.is_empty()
            && let Ok(statics) = stack.cplane.load()
        {
            let highest = statics.iter().map(|filter| filter.id).max();
            self.filters.reserve_ids(highest.unwrap_or(0));
            self.filters.statics = statics;
        }
        self.stacks.insert(stack);
        self.watch_queues(uid);
        // Not before all else has succeeded: without its interface a stack's rules go.
        for mut nic in nics {
            for _ in 0..nic.take_over_queue(infos) {
                self.counters.add(Counter::FilterFailures);
            }
            self.tell_again(&mut nic);
            self.nics.insert(nic.ifindex(), nic);
        }
        self.adopt_filters(uid, &view);
        self.keep_flows();
        self.unpublished = true;
        Ok(())
    }

    /// See [`OpenNic::tell_again`].
    fn tell_again(&self, nic: &mut OpenNic) {
        let ifindex = nic.ifindex();
        let (Some(link), Some(stack)) = (self.mirror.link(ifindex), self.stacks.get(nic.owner))
        else {
            return;
        };
        let queues = stack.queues().iter().flatten();
        let mut copied = queues.filter(|it| it.ifindex == ifindex && !it.is_zero_copy());
        let copied = copied.next().map(|queue| (queue.queue, stack.chunk_size));
        nic.tell_again(&self.config.policy, &link.name, copied);
    }

    /// Connects to the relays of a stack's ports that are no devices of ours.
    fn find_relays(&mut self, infos: &[QueuePairInfo]) {
        for info in infos {
            let is_port = info.is_live() && Backend::is_relayed(info.backend);
            let link = self.mirror.link(info.ifindex).filter(|_| is_port);
            if let Some(name) = link.map(|link| link.name.clone()) {
                self.find_relay(&name);
            }
        }
    }

    /// The ports that a stack has, as their relays say.
    fn adopt_relayed(&self, infos: &[QueuePairInfo], stack: &StackEntry) -> Vec<OpenNic> {
        let mut nics = Vec::new();
        for (first, info) in infos.iter().enumerate() {
            let is_port = info.is_live() && Backend::is_relayed(info.backend);
            let port = self.devices.port(info.ifindex).filter(|_| is_port);
            let Some((nic, link)) = port else { continue };
            let rings = nic.rings.as_ref().and_then(|rings| rings.try_clone().ok());
            let Some(rings) = rings else { continue };
            let mut nic = OpenNic::of_port(nic.clone(), link, stack, Some(rings));
            if nic.set_flows(stack.flows_fd()).is_ok() {
                nic.first_queue_pair = first as u8;
                nic.queue_pairs = 1;
                nics.push(nic);
            }
        }
        nics
    }

    /// Filters of the image's endpoints, as far as they were granted before.
    fn adopt_filters(&mut self, uid: u32, view: &Image<'_>) {
        for endpoint in view.endpoints().filter(|endpoint| endpoint.filter != 0) {
            let wish = wish_of(&endpoint);
            let mut known = Vec::new();
            let mut is_whole = true;
            for (ifindex, flow) in self.wanted_by(&wish, uid) {
                let is_there = self
                    .nics
                    .get(ifindex)
                    .is_some_and(|nic| nic.has_filter(&flow));
                is_whole &= is_there;
                if is_there {
                    known.push((ifindex, flow));
                }
            }
            if known.is_empty() {
                continue;
            }
            let holder = view
                .processes()
                .find(|process| endpoint.is_held_by(process.id));
            let id = if self.filters.get(endpoint.filter).is_some() {
                self.filters.new_id()
            } else {
                endpoint.filter
            };
            let entries = known
                .into_iter()
                .filter_map(|place| self.adopt_entry(place));
            let entries = entries.collect();
            self.filters.reserve_ids(id);
            self.filters.insert(Filter {
                id,
                uid,
                pid: holder.map_or(0, |holder| holder.pid),
                program: holder
                    .and_then(|holder| Process::find(holder.pid))
                    .map_or_else(String::new, |process| process.name().to_owned()),
                endpoint: endpoint.id,
                wish,
                entries,
                rests: endpoint.rests,
                is_lent: false,
                is_port: false,
                may_grow: is_whole,
                proof: None,
                socket: None,
                is_missed: false,
            });
        }
        self.adopt_ports(uid, view);
        self.adopt_grants(uid);
        for (ifindex, nic) in self.nics.of_owner(uid) {
            nic.retain_filters(|flow| self.filters.is_shared(ifindex, flow));
        }
    }

    /// An entry that the daemon before has made; it counts from here on.
    pub(super) fn adopt_entry(&mut self, (ifindex, flow): (u32, Flow)) -> Option<Entry> {
        self.add_entry(ifindex, &flow).ok()?;
        Some(Entry {
            ifindex,
            flow,
            before: Default::default(),
        })
    }

    /// Grants of TCP connections that live. Which filters they were is not known: they stay as
    /// closing ones, so that every connection is served to its end, also by the next backend of an
    /// interface that has another one then. What begins goes to the kernel's listeners.
    fn adopt_grants(&mut self, uid: u32) {
        let open = self.nics.of_owner(uid);
        let grants: Vec<(u32, Flow)> = open
            .flat_map(|(ifindex, nic)| nic.grants().into_iter().map(move |flow| (ifindex, flow)))
            .collect();
        for (ifindex, flow) in grants {
            let has_flows = self.stacks.get(uid).is_some_and(|stack| {
                let mut flows = stack.flows.iter();
                flows.any(|known| known.local == flow.local)
            });
            if !has_flows || self.filters.is_shared(ifindex, &flow) {
                continue;
            }
            let Some(entry) = self.adopt_entry((ifindex, flow)) else {
                continue;
            };
            let id = self.filters.new_id();
            self.filters.insert(Filter {
                id,
                uid,
                pid: 0,
                program: String::new(),
                endpoint: EndpointId::NONE,
                wish: Wish {
                    local: flow.local,
                    remote: flow.remote,
                    protocol: flow.protocol,
                    v4: flow.local.ip.is_v4(),
                    v6: !flow.local.ip.is_v4(),
                    ifindex: 0,
                    listens: false,
                },
                entries: vec![entry],
                rests: false,
                is_lent: false,
                is_port: false,
                may_grow: true,
                proof: None,
                socket: None,
                is_missed: false,
            });
        }
    }

    /// What a wish means on the interfaces that are open.
    fn wanted_by(&self, wish: &Wish, uid: u32) -> Vec<(u32, Flow)> {
        let open = self.nics.of_owner(uid);
        open.flat_map(|(ifindex, _)| {
            let flows = wish.flows(ifindex, self.mirror.addresses());
            flows.into_iter().map(move |flow| (ifindex, flow))
        })
        .collect()
    }
}

fn wish_of(endpoint: &EndpointView) -> Wish {
    let is_any = endpoint.local.ip.is_unspecified();
    let is_v4 = endpoint.local.ip.is_v4();
    Wish {
        local: endpoint.local,
        remote: endpoint
            .remote
            .filter(|_| endpoint.tcp.is_none())
            .unwrap_or(SocketAddress::UNSPECIFIED),
        protocol: if endpoint.tcp.is_some() { 6 } else { 17 },
        v4: endpoint.family != Family::V6 && (is_any || is_v4),
        v6: endpoint.family != Family::V4 && (is_any || !is_v4),
        ifindex: endpoint.ifindex,
        listens: endpoint.tcp.is_none_or(|state| state == TcpState::Listen),
    }
}

/// The interfaces of a stack, with the queue pairs that the image says are theirs.
fn adopt_links(
    links: BTreeMap<u32, OwnedFd>,
    infos: &[QueuePairInfo; QUEUE_PAIRS],
    stack: &StackEntry,
) -> Vec<OpenNic> {
    let mut nics = Vec::new();
    for (ifindex, link) in links {
        let is_here = |info: &QueuePairInfo| info.is_live() && info.ifindex == ifindex;
        let Some(first) = infos.iter().position(is_here) else {
            continue;
        };
        let native = infos[first].flags & QueuePairInfo::NATIVE != 0;
        let queues = infos.iter().filter(|info| is_here(info)).count();
        if let Ok(mut nic) = OpenNic::from_link(link, stack, native) {
            nic.first_queue_pair = first as u8;
            nic.queue_pairs = queues as u8;
            nics.push(nic);
        }
    }
    nics
}

/// The queues of these interfaces, by index of the queue pair; not those whose rings have another
/// size than the stack's.
fn adopt_queues(
    fds: BTreeMap<u8, (OwnedFd, u32)>,
    entries: u32,
    infos: &[QueuePairInfo],
    nics: &[OpenNic],
) -> Vec<Option<Queue>> {
    let mut queues: Vec<Option<Queue>> = Vec::new();
    for (index, (fd, ring)) in fds {
        let index = usize::from(index);
        let Some(info) = infos.get(index).filter(|info| info.is_live()) else {
            continue;
        };
        let Some(nic) = nics.iter().find(|nic| nic.ifindex() == info.ifindex) else {
            continue;
        };
        if ring != entries {
            continue;
        }
        queues.resize_with(queues.len().max(index + 1), || None);
        let rings = Some(nic)
            .filter(|nic| nic.backend().has_relay())
            .and_then(|nic| nic.link()?.try_clone_to_owned().ok());
        queues[index] = Some(Queue {
            ifindex: info.ifindex,
            queue: info.queue_id,
            fd,
            rings,
            backend: nic.backend(),
        });
    }
    queues
}

/// Every stack that a process of this network namespace holds, those with queues first.
fn find_all(cookie: u64) -> Vec<Found> {
    let mut found: BTreeMap<u64, Found> = BTreeMap::new();
    let namespace = process::own_namespace();
    for pid in process::others() {
        if process::namespace_of(pid) != namespace {
            continue;
        }
        let Some(held) = look_into(pid, cookie) else {
            continue;
        };
        let (Some(image), Some(packets), Some(cplane)) = (held.image, held.packets, held.cplane)
        else {
            continue;
        };
        let (Some(uid), Some(cplane)) = (owner(&image), reopen(&cplane)) else {
            continue;
        };
        // The memory must be the same user's, and the table the daemon's.
        if owner(&packets) != Some(uid) || owner(&cplane) != Some(0) {
            continue;
        }
        let stack = found
            .entry(process::inode(&image))
            .or_insert_with(|| Found {
                image,
                uid,
                packets,
                cplane,
                flows: None,
                queue_fds: BTreeMap::new(),
                links: BTreeMap::new(),
            });
        stack.flows = stack.flows.take().or(held.flows);
        stack.queue_fds.extend(held.queue_fds);
        stack.links.extend(held.links);
    }
    let mut found: Vec<Found> = found.into_values().collect();
    found.sort_by_key(|stack| std::cmp::Reverse(stack.queue_fds.len()));
    found
}

/// Copies of a process's descriptors that belong to a stack; `None` when it has no image.
fn look_into(pid: u32, cookie: u64) -> Option<Held> {
    let folder = format!("/proc/{pid}/fd");
    let mut names: Vec<(i32, String)> = Vec::new();
    for entry in fs::read_dir(&folder).ok()?.flatten() {
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let target = fs::read_link(entry.path());
        if let (Some(number), Ok(target)) = (number, target) {
            names.push((number, target.to_string_lossy().into_owned()));
        }
    }
    let is_memfd = |name: &str, of: &str| {
        name.strip_prefix("/memfd:")
            .is_some_and(|rest| rest.trim_end_matches(" (deleted)") == of)
    };
    if !names.iter().any(|(_, name)| is_memfd(name, image::NAME)) {
        return None;
    }
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty()).ok()?;
    let mut held = Held::default();
    for (number, name) in names {
        let taken = || pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).map(Foreign::from);
        let copy = || taken().ok().map(Foreign::into_inner);
        let sealed = || taken().ok().and_then(as_memfd);
        if is_memfd(&name, image::NAME) {
            held.image = held.image.or_else(sealed);
        } else if is_memfd(&name, packets::NAME) {
            held.packets = held.packets.or_else(sealed);
        } else if is_memfd(&name, cplane::NAME) {
            held.cplane = held.cplane.or_else(sealed);
        } else if name.starts_with("socket:") {
            held.queue_fds
                .extend(taken().ok().and_then(|fd| as_queue(fd, cookie)));
        } else if name.starts_with("anon_inode:bpf-map") {
            let is_table = |fd: &OwnedFd| FlowTable::is_one(fd) && FlowTable::map(fd).is_ok();
            held.flows = held.flows.or_else(|| copy().filter(is_table));
        } else if name.starts_with("anon_inode:bpf") {
            held.links.extend(copy().and_then(as_link));
        }
    }
    Some(held)
}

/// A memfd of ours. A name proves nothing: in a mount namespace of his own a user can give it to
/// any file that he can see, devices included, and only memfds can be sealed. (Files of FUSE too.)
fn as_memfd(fd: Foreign) -> Option<OwnedFd> {
    is_sealed(&fd).then(|| fd.into_inner())
}

/// An XSK, or the stack's end of a bell, that a daemon of this network namespace has made, with
/// what it is.
fn as_queue(fd: Foreign, cookie: u64) -> Option<(u8, (OwnedFd, u32))> {
    let domain = sockopt::socket_domain(&fd).ok()?;
    if ![AddressFamily::XDP, AddressFamily::UNIX].contains(&domain)
        || own::namespace_cookie(&fd) != Ok(cookie)
    {
        return None;
    }
    let (index, entries) = own::queue_tag(&fd)?;
    Some((index, (fd.into_inner(), entries)))
}

/// A link that attaches an XDP program, with its interface.
fn as_link(fd: OwnedFd) -> Option<(u32, OwnedFd)> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let field = |name: &str| {
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    };
    let ifindex = field("ifindex")?.parse().ok()?;
    (field("link_type") == Some("xdp") && ifindex != 0).then_some((ifindex, fd))
}

/// User who owns an open file.
fn owner(fd: impl AsFd) -> Option<u32> {
    rustix::fs::fstat(fd).ok().map(|stat| stat.st_uid)
}

/// The same file, opened for writing.
fn reopen(fd: &OwnedFd) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", BorrowedFd::as_raw_fd(&fd.as_fd()));
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()
}

//! What this process knows: configuration, the daemon, the stack, its report.
//!
//! Everything is made lazily, at the first socket that needs it, never in a constructor: a program
//! that has no such socket pays for nothing but the table look-up.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use bypass_proto::control::{Refusal, Request, RequestKind};
use bypass_proto::options::Log;
use bypass_proto::policy::Backend;
use bypass_proto::reason::FallThrough;
use bypass_runtime::attachment::{Attachment, Leases};
use bypass_runtime::clock;
use bypass_runtime::control::{Answer, Control, ControlError};
use bypass_runtime::cplane::Cplane;
use bypass_runtime::flows::Flows;
use bypass_runtime::image::{Image, ImageError};
use bypass_runtime::packets::Packets;
use bypass_runtime::queues;
use bypass_runtime::wake::Ringer;
use bypass_stack::{EndpointId, ProcessId, QueuePairInfo};
use rustix::io::Errno;

use crate::config;
use crate::locks::Mutex;
use crate::{autostart, log, private, process, report};

/// After a failure to attach, new sockets go straight to the kernel for this long.
const RETRY_AFTER_NS: u64 = 5_000_000_000;

/// Descriptors that come with the attachment, before those of interfaces: image, packet memory,
/// control-plane table, TCP flows.
const SHARED: usize = 4;

/// A stack this process has joined.
#[derive(Debug)]
pub struct Joined {
    /// Image, memory, queues.
    pub attachment: Attachment,
    /// Routes and neighbours.
    pub cplane: Cplane,
    chunk_size: u32,
    leases: Mutex<Leases>,
    seen_queue_pairs: AtomicU32,
}

static JOINED: AtomicPtr<Joined> = AtomicPtr::new(std::ptr::null_mut());
static PROCESS: AtomicU32 = AtomicU32::new(u32::MAX);
static CONTROL: Mutex<Option<Control>> = Mutex::new(None);
static FAILED_AT: AtomicU64 = AtomicU64::new(0);
static FAILED_WITH: AtomicU32 = AtomicU32::new(0);
static FAILED_ERRNO: AtomicI32 = AtomicI32::new(0);

/// The stack, if this process has joined it.
#[inline]
pub fn joined() -> Option<&'static Joined> {
    let joined = JOINED.load(Ordering::Acquire);
    // SAFETY: the pointer is null or comes from a leaked box, set once in `join`.
    #[expect(unsafe_code, reason = "UNSAFETY: reads a leaked box")]
    unsafe {
        joined.as_ref()
    }
}

/// This process's slot in the image.
#[inline]
pub fn process() -> ProcessId {
    ProcessId(PROCESS.load(Ordering::Relaxed) as u8)
}

/// Notes the slot that the parent has made for this forked child; without one it holds nothing.
pub fn set_process(process: Option<ProcessId>) {
    let number = process.map_or(u32::MAX, |process| u32::from(process.0));
    PROCESS.store(number, Ordering::Relaxed);
}

/// Whether the endpoint was rolled back: what it still holds came before what the kernel has.
pub fn rests(endpoint: EndpointId) -> bool {
    joined().is_some_and(|joined| {
        let locked = joined.attachment.lock();
        locked.is_ok_and(|mut locked| locked.stack().rests(endpoint))
    })
}

/// Joins the stack of this user, starting the daemon if need be and allowed.
///
/// # Errors
/// Why it cannot be: the reason of the socket that asked.
pub fn join() -> Result<&'static Joined, FallThrough> {
    if let Some(joined) = joined() {
        return Ok(joined);
    }
    let _own = private::own();
    let mut control = CONTROL.lock();
    if let Some(joined) = joined() {
        return Ok(joined);
    }
    let now = clock::now().0;
    if now.wrapping_sub(FAILED_AT.load(Ordering::Relaxed)) < RETRY_AFTER_NS
        && let Some(reason) = FallThrough::from_number(FAILED_WITH.load(Ordering::Relaxed) as u8)
    {
        // Not every failure has an errno, and 0 is none.
        let errno = FAILED_ERRNO.load(Ordering::Relaxed);
        if errno != 0 {
            report::because(Errno::from_raw_os_error(errno));
        }
        return Err(reason);
    }
    match attach(&mut control) {
        Ok(joined) => {
            let joined = Box::leak(Box::new(joined));
            let stack = joined.attachment.id();
            log::at(Log::Debug, format_args!("joined stack {stack:x}"));
            JOINED.store(joined, Ordering::Release);
            Ok(joined)
        }
        Err(reason) => {
            *control = None;
            FAILED_WITH.store(reason as u32, Ordering::Relaxed);
            FAILED_ERRNO.store(report::cause(), Ordering::Relaxed);
            FAILED_AT.store(now.max(1), Ordering::Relaxed);
            Err(reason)
        }
    }
}

/// Connects to the daemon; one that does not run is started, if this process may.
fn connect() -> Result<Control, ControlError> {
    let connected = match Control::connect() {
        Err(_) if config::get().autostart() && autostart::start_daemon().is_ok() => {
            Control::connect()
        }
        connected => connected,
    };
    Ok(connected?.moved(private::hide))
}

/// Connects and asks for the stack.
fn introduce() -> Result<(Control, Answer), ControlError> {
    let mut connected = connect()?;
    let answer = connected.ask(Request::new(RequestKind::Attach), None)?;
    Ok((connected, answer))
}

fn attach(control: &mut Option<Control>) -> Result<Joined, FallThrough> {
    let introduced = match introduce() {
        // It was about to end.
        Err(ControlError::NoDaemon(_)) => introduce(),
        introduced => introduced,
    };
    let (connected, answer) = introduced.map_err(reason_of)?;
    *control = Some(connected);
    let Answer { reply, fds } = answer;
    let [image, packets, cplane, flows] =
        <[_; SHARED]>::try_from(fds).map_err(|_| FallThrough::Refused)?;
    let image_map = Image::map(&image).map_err(|error| match error {
        ImageError::System(errno) => report::because(errno),
        ImageError::NotAnImage | ImageError::Layout(_) => FallThrough::Refused,
    })?;
    let packets_map = Packets::map(&packets, reply.chunk_size).map_err(report::because)?;
    let cplane_map = Cplane::map(&cplane).map_err(report::because)?;
    let flows_map = Flows::map(&flows).map_err(report::because)?;
    let ringer = Ringer::new().map_err(report::because)?;
    let ringer = Ringer::from_fd(private::hide(ringer.into_fd()));
    let attachment = Attachment::new(image_map, packets_map, flows_map, ringer)
        .map_err(|_| FallThrough::Refused)?;
    PROCESS.store(reply.process, Ordering::Relaxed);
    let flows = private::hide(flows);
    #[expect(unsafe_code, reason = "UNSAFETY: says that a descriptor stays")]
    // SAFETY: the leases keep the descriptor beside the attachment, and our hooks keep the program
    // and its children from closing it.
    let attachment = unsafe {
        attachment.leaving_flows_out_of_forks(flows.as_raw_fd(), process::begins_in_child)
    };
    // The descriptors stay open: a new daemon finds the stack through them.
    let leases = Leases(vec![
        private::hide(image),
        private::hide(packets),
        private::hide(cplane),
        flows,
    ]);
    Ok(Joined {
        attachment,
        cplane: cplane_map,
        chunk_size: reply.chunk_size,
        leases: Mutex::new(leases),
        seen_queue_pairs: AtomicU32::new(0),
    })
}

/// The reason that a failed request is for a socket.
pub fn reason_of(error: ControlError) -> FallThrough {
    match error {
        ControlError::NoDaemon(errno) => {
            report::because(errno);
            FallThrough::NoDaemon
        }
        ControlError::Malformed => FallThrough::Refused,
        ControlError::Refused { refusal, detail } => match refusal {
            Refusal::Version => FallThrough::Version,
            Refusal::Malformed | Refusal::NotOwner => FallThrough::Refused,
            Refusal::NoInterface => FallThrough::NoInterface,
            Refusal::QueueBusy => FallThrough::QueueBusy,
            Refusal::NotAllowed => FallThrough::NotAllowed,
            Refusal::Limit => FallThrough::Limit,
            Refusal::System => report::because(Errno::from_raw_os_error(detail.cast_signed())),
            Refusal::Conflict => FallThrough::StaticFilter,
            Refusal::PidNamespace => FallThrough::PidNamespace,
        },
    }
}

/// Runs `ask` with a connection to the daemon, connecting again when it was restarted.
///
/// # Errors
/// What `ask` answers the second time.
pub fn with_control<T>(
    mut ask: impl FnMut(&mut Control) -> Result<T, ControlError>,
) -> Result<T, ControlError> {
    let _own = private::own();
    let mut control = CONTROL.lock();
    if let Some(connected) = control.as_mut() {
        match ask(connected) {
            Err(ControlError::NoDaemon(_)) => *control = None,
            answer => return answer,
        }
    }
    ask(control.insert(connect()?))
}

/// Whether the daemon that this process is connected to still runs.
pub fn has_daemon() -> bool {
    let control = CONTROL.lock();
    control.as_ref().is_some_and(Control::is_up)
}

/// Waits until the daemon, if there is one, has done what it was told: it answers in order. Whether
/// there is one.
pub fn settle_if_running() -> bool {
    let _own = private::own();
    let mut control = CONTROL.lock();
    let ask = |control: &mut Control| {
        let request = Request::new(RequestKind::QueuePairs);
        !matches!(control.ask(request, None), Err(ControlError::NoDaemon(_)))
    };
    if let Some(connected) = control.as_mut() {
        return ask(connected);
    }
    Control::connect().is_ok_and(|mut connected| ask(&mut connected))
}

/// A forked child: its parent's connection is not its own, and no thread of the parent lives here.
pub fn after_fork_in_child() {
    #[expect(
        unsafe_code,
        reason = "UNSAFETY: the holder of the lock did not survive the fork"
    )]
    // SAFETY: this is the only thread of the process; whoever held the lock does not exist here.
    unsafe {
        if CONTROL.is_locked() {
            CONTROL.force_unlock();
        }
    }
    let _own = private::own();
    if let Some(control) = CONTROL.lock().take() {
        // Closing our copy leaves the parent's connection open.
        drop(control);
    }
}

impl Joined {
    /// Maps queue pairs that the daemon has opened since we last looked.
    pub fn refresh(&self) {
        let Ok(mut locked) = self.attachment.lock() else {
            return;
        };
        let generation = locked.stack().queue_pairs_generation();
        if self.seen_queue_pairs.load(Ordering::Relaxed) == generation {
            return;
        }
        drop(locked);
        let answer =
            with_control(|control| control.ask(Request::new(RequestKind::QueuePairs), None));
        // Whatever has changed meanwhile is seen by the next look.
        if let Ok(answer) = answer
            && self.map_queue_pairs(answer, generation)
        {
            self.seen_queue_pairs.store(generation, Ordering::Relaxed);
        }
    }

    /// Whether queue pairs have come or gone since [`Self::refresh`].
    pub fn is_stale(&self, generation: u32) -> bool {
        self.seen_queue_pairs.load(Ordering::Relaxed) != generation
    }

    /// Maps what the answer brings, unless the table has changed since it had this generation: then
    /// its descriptors may be others than those the table tells of.
    fn map_queue_pairs(&self, answer: Answer, generation: u32) -> bool {
        let _own = private::own();
        // A child would find the leases locked by a thread that it does not have.
        let _fork = process::no_fork();
        let mut fds = answer.fds.into_iter();
        let count = answer.reply.count as usize;
        let queues: Vec<_> = fds.by_ref().take(count).collect();
        let mut leases = self.leases.lock();
        leases.0.truncate(SHARED);
        leases.0.extend(fds.map(private::hide));
        let links = leases.0.get(SHARED..).unwrap_or_default();
        let Ok(mut locked) = self.attachment.lock() else {
            return false;
        };
        if locked.stack().queue_pairs_generation() != generation {
            return false;
        }
        let infos: Vec<QueuePairInfo> = locked.stack().queue_pairs().to_vec();
        let mut mapped_now = 0;
        for (index, fd) in queues.into_iter().enumerate() {
            let live = infos.get(index).filter(|info| info.is_live());
            let Some(info) = live else {
                self.attachment.uninstall(&mut locked, index);
                continue;
            };
            if locked.has_queue(index) {
                continue;
            }
            let rings = link_of(info, &infos, links).filter(|_| Backend::is_relayed(info.backend));
            let (chunk_size, entries) = (self.chunk_size, answer.reply.ring_entries);
            let mapped = queues::map(private::hide(fd), rings, chunk_size, entries);
            if let Ok(pair) = mapped {
                self.attachment.install(&mut locked, index, pair);
                mapped_now += 1;
            }
        }
        drop(locked);
        log::at(Log::Debug, format_args!("mapped {mapped_now} queue pairs"));
        true
    }
}

/// The link of a queue pair's interface: there is one for each interface, in the order of their
/// indexes.
fn link_of<'a>(
    info: &QueuePairInfo,
    infos: &[QueuePairInfo],
    links: &'a [OwnedFd],
) -> Option<BorrowedFd<'a>> {
    let live = infos.iter().filter(|info| info.is_live());
    let mut before: Vec<u32> = live
        .map(|other| other.ifindex)
        .filter(|ifindex| *ifindex < info.ifindex)
        .collect();
    before.sort_unstable();
    before.dedup();
    links.get(before.len()).map(AsFd::as_fd)
}

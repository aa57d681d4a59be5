//! A link between two TAP devices, with rate, delay, loss, duplicates and disorder from a seed.
//!
//! The kernels at its ends are real, and so is the AF_XDP queue on the server's TAP; only what is
//! between the devices is emulated, by a thread that carries frames through
//! [`Transit`](bypass_backends::sim::Transit).

use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bypass_backends::sim::{Faults, Statistics, Transit};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::Result;
use crate::tap::Tap;

/// Frames read from a device before the other is looked at.
const BURST: usize = 64;
/// Longest frame.
const FRAME: usize = 16 << 10;

/// The running link; it ends with the value.
#[derive(Debug)]
pub struct EmulatedLink {
    stop: OwnedFd,
    carrier: Option<JoinHandle<Statistics>>,
}

impl EmulatedLink {
    pub(crate) fn start(taps: [Tap; 2], faults: Faults, seed: u64) -> Result<Self> {
        let stop = eventfd(0, EventfdFlags::NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let carry = move || carry(&taps, Transit::new(faults, seed), &stopped);
        let carrier = std::thread::Builder::new()
            .name("emulated-link".to_owned())
            .spawn(carry)?;
        Ok(Self {
            stop,
            carrier: Some(carrier),
        })
    }
}

impl Drop for EmulatedLink {
    fn drop(&mut self) {
        // An eventfd takes eight bytes always; a carrier that panicked has said so.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(Ok(statistics)) = self.carrier.take().map(JoinHandle::join) {
            println!("emulated link: {statistics:?}");
        }
    }
}

/// Carries frames until `stop` is readable.
fn carry(taps: &[Tap; 2], mut transit: Transit, stop: &OwnedFd) -> Statistics {
    let begun = Instant::now();
    let now = || begun.elapsed().as_nanos() as u64;
    let mut bytes = vec![0; FRAME];
    loop {
        let next = transit.next_arrival();
        let pause = next.map(|next| Duration::from_nanos(next.saturating_sub(now())));
        if wait(taps, stop, pause) {
            return transit.statistics();
        }
        for (end, tap) in taps.iter().enumerate() {
            for _ in 0..BURST {
                let Some(frame) = tap.read(&mut bytes) else {
                    break;
                };
                transit.carry(1 - end, frame.to_vec(), now());
            }
        }
        transit.arrive(now(), &mut |end, frame| taps[end].write(frame));
    }
}

/// Waits for frames, the next arrival or the end; whether it is the end.
fn wait(taps: &[Tap; 2], stop: &OwnedFd, pause: Option<Duration>) -> bool {
    let pause = pause.map(|pause| Timespec {
        tv_sec: pause.as_secs() as i64,
        tv_nsec: pause.subsec_nanos().into(),
    });
    let [one, two] = taps;
    let mut fds = [stop.as_fd(), one.as_fd(), two.as_fd()].map(|fd| {
        // By value: a descriptor borrowed for the length of this call.
        PollFd::from_borrowed_fd(fd, PollFlags::IN)
    });
    poll(&mut fds, pause.as_ref()).is_ok() && !fds[0].revents().is_empty()
}

//! A line on standard error for everything that takes time.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How often a step that still runs says so.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Says what begins, does it, says how long it took.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> T) -> T {
    eprintln!(":: {what} ...");
    let start = Instant::now();
    let (ended, end) = mpsc::channel::<()>();
    let name = what.to_owned();
    let heart = thread::spawn(move || {
        while end.recv_timeout(HEARTBEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!(":: {name}: {} s so far", start.elapsed().as_secs());
        }
    });
    let result = work();
    drop(ended);
    // It only prints; it cannot have failed.
    let _ = heart.join();
    let took = start.elapsed();
    if took >= Duration::from_secs(2) {
        eprintln!(":: {what}: {:.1} s", took.as_secs_f64());
    }
    result
}

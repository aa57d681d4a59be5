//! Threads take turns: the script's, which moves the clock, and the one in which packetdrill makes
//! a call that blocks.
//!
//! The clock moves only while the other thread sleeps: in a call here that waits, or in packetdrill
//! waiting for its next one. So what a call returns and when is the same in every run.

use std::fs;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::world::World;

static WORLD: Mutex<Option<World>> = Mutex::new(None);
static CHANGED: Condvar = Condvar::new();
/// The thread that began the world and moves its clock.
static MOVER: OnceLock<thread::ThreadId> = OnceLock::new();

/// Virtual time after which a script that waits will wait for ever, in nanoseconds.
const ENDLESS: u64 = 3_600_000_000_000;

fn locked() -> MutexGuard<'static, Option<World>> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a world; this thread moves its clock.
pub fn begin() {
    let _ = MOVER.set(thread::current().id());
    *locked() = World::new();
}

/// Ends it.
pub fn end() {
    *locked() = None;
}

/// Does something with the world, and wakes who waits for what that may have changed.
pub fn with<T>(act: impl FnOnce(&mut World) -> T) -> Option<T> {
    let result = locked().as_mut().map(act);
    CHANGED.notify_all();
    result
}

/// Tries until there is a result or the time has come (nanoseconds of the world's clock, `None` =
/// never). The mover lets time pass meanwhile, another thread sleeps.
pub fn wait<T>(
    deadline: Option<u64>,
    mut attempt: impl FnMut(&mut World) -> Option<T>,
) -> Option<T> {
    let moves = MOVER.get() == Some(&thread::current().id());
    let mut guard = locked();
    loop {
        let world = guard.as_mut()?;
        let found = attempt(world);
        if found.is_some() || deadline.is_some_and(|at| at <= world.now) {
            drop(guard);
            CHANGED.notify_all();
            return found;
        }
        if moves {
            let end = world.now + ENDLESS;
            if !world.pass(deadline.unwrap_or(end)) && deadline.is_none() {
                give_up("a call that the script does not let block waits for ever");
            }
        } else {
            world.deadlines.extend(deadline);
            guard = CHANGED.wait(guard).unwrap_or_else(PoisonError::into_inner);
            if let (Some(world), Some(deadline)) = (guard.as_mut(), deadline)
                && let Some(place) = world.deadlines.iter().position(|at| *at == deadline)
            {
                world.deadlines.swap_remove(place);
            }
        }
    }
}

/// Lets so many nanoseconds pass.
pub fn sleep(span: u64) {
    settle();
    let Some(until) = with(|world| world.now + span) else {
        return;
    };
    while with(|world| world.pass(until)) == Some(true) {
        settle();
    }
}

/// The next packet that leaves, and when in nanoseconds.
pub fn next_packet() -> (Vec<u8>, u64) {
    settle();
    let end = with(|world| world.now).unwrap_or(0) + ENDLESS;
    loop {
        match with(|world| world.sent.pop_front().ok_or_else(|| world.pass(end))) {
            Some(Ok(sent)) => return sent,
            Some(Err(true)) => settle(),
            Some(Err(false)) | None => give_up("the stack sends nothing more"),
        }
    }
}

/// packetdrill has no way to hear that it waits in vain.
fn give_up(why: &str) -> ! {
    eprintln!("bypass: {why}");
    std::process::exit(1);
}

/// Waits until every other thread sleeps.
pub fn settle() {
    while others_run() {
        thread::sleep(Duration::from_micros(10));
    }
}

fn others_run() -> bool {
    // The link names the thread.
    let own = fs::read_link("/proc/thread-self").unwrap_or_default();
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return false;
    };
    tasks.flatten().any(|task| {
        Some(task.file_name().as_os_str()) != own.file_name()
            && fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| {
                // proc(5): the state is behind the name, which is in parentheses.
                let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
                !state.starts_with(['S', 'Z', 'X'])
            })
    })
}

//! A model of how a connection goes from a stack to the kernel, in every order of its steps, by
//! loom: ctl/src/daemon/transfer.rs.
//!
//! The steering program leads each segment by what the table of flows says at that moment, without
//! a lock: to the ring, from which whoever has the stack's lock takes it, or to the kernel. A
//! segment that the kernel has no socket for would be answered with a reset, and one that the stack
//! had before its record was copied must be in the record.

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Mutex};

/// Segments on their way.
const SEGMENTS: usize = 2;

/// Who knows the connection in a stack.
#[derive(Clone, Copy, PartialEq)]
enum Stack {
    Endpoint,
    /// What is left of one that has gone: it drops what is late, and answers nothing.
    Gone,
}

/// In which order the daemon goes about it.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    AsItIs,
    /// The flow is taken out before the kernel has the socket.
    FlowFirst,
    /// Nobody looks into the ring at the end.
    RingLeft,
}

struct World {
    /// The table's entry.
    flow: AtomicBool,
    /// The kernel's socket can be found.
    socket: AtomicBool,
    ring: Mutex<Vec<usize>>,
    /// Under the stack's lock: who has the connection, and what it has received.
    stack: Mutex<(Stack, Vec<usize>)>,
    /// What the kernel's socket has, from the record and by itself.
    kernel: Mutex<Vec<usize>>,
    dropped: Mutex<Vec<usize>>,
}

impl World {
    fn new() -> Self {
        Self {
            flow: AtomicBool::new(true),
            socket: AtomicBool::new(false),
            ring: Mutex::new(Vec::new()),
            stack: Mutex::new((Stack::Endpoint, Vec::new())),
            kernel: Mutex::new(Vec::new()),
            dropped: Mutex::new(Vec::new()),
        }
    }

    /// The steering program on one segment.
    fn steer(&self, segment: usize) {
        if self.flow.load(Ordering::Acquire) {
            self.ring.lock().unwrap().push(segment);
        } else {
            assert!(self.socket.load(Ordering::Acquire), "answered with a reset");
            self.kernel.lock().unwrap().push(segment);
        }
    }

    /// What whoever has the lock does with the ring.
    fn pump(&self, (state, received): &mut (Stack, Vec<usize>)) {
        for segment in self.ring.lock().unwrap().drain(..) {
            match state {
                Stack::Endpoint => received.push(segment),
                Stack::Gone => self.dropped.lock().unwrap().push(segment),
            }
        }
    }

    fn hand_over(&self, order: Order) {
        let mut stack = self.stack.lock().unwrap();
        self.pump(&mut stack);
        let record = std::mem::take(&mut stack.1);
        if order == Order::FlowFirst {
            self.flow.store(false, Ordering::Release);
        }
        self.kernel.lock().unwrap().extend(record);
        self.socket.store(true, Ordering::Release);
        self.flow.store(false, Ordering::Release);
        stack.0 = Stack::Gone;
        if order != Order::RingLeft {
            let left: Vec<usize> = self.ring.lock().unwrap().drain(..).collect();
            self.kernel.lock().unwrap().extend(left);
        }
    }
}

/// One segment may be dropped as late: the steering program, which takes one after the other, had
/// looked for its flow already. The peer sends it again.
fn every_order(order: Order) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let world = Arc::new(World::new());
        let wire = Arc::clone(&world);
        let wire = loom::thread::spawn(move || (0..SEGMENTS).for_each(|it| wire.steer(it)));
        let program = Arc::clone(&world);
        let program = loom::thread::spawn(move || {
            let mut stack = program.stack.lock().unwrap();
            program.pump(&mut stack);
        });
        world.hand_over(order);
        program.join().unwrap();
        wire.join().unwrap();
        world.pump(&mut world.stack.lock().unwrap());
        let (kernel, dropped) = (world.kernel.lock().unwrap(), world.dropped.lock().unwrap());
        assert!(dropped.len() <= 1, "lost: {dropped:?}");
        assert!(world.stack.lock().unwrap().1.is_empty(), "nobody has it");
        let mut all: Vec<usize> = kernel.iter().chain(&*dropped).copied().collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..SEGMENTS), "each is somewhere once");
    });
}

#[test]
fn nothing_is_lost_but_what_was_being_steered_and_nothing_is_reset() {
    every_order(Order::AsItIs);
}

#[test]
#[should_panic(expected = "answered with a reset")]
fn the_socket_must_be_there_before_the_flow_goes() {
    every_order(Order::FlowFirst);
}

#[test]
#[should_panic(expected = "lost")]
fn the_ring_must_be_looked_into_at_the_end() {
    every_order(Order::RingLeft);
}

//! Takes frames out of a VI's event loop, or sends them, and prints how many; no stack, no wire.
//!
//! For instruction counts: libciul is the tests' stand-in with its wire `null`, whose frames are
//! always there and which keeps none. What the stand-in does is in an object of its own and left
//! out: `valgrind --tool=callgrind target/release/examples/ef_vi_events in 100000` (or `out`).
//!
//! Arguments: `in` or `out`; count of frames.

#![expect(unsafe_code, reason = "UNSAFETY: sends bytes of its own")]

use std::path::PathBuf;

use bypass_backends::ef_vi::{EfViPort, Settings};
use bypass_backends::relay::{CardFilter, Port};

/// Frames for each doorbell; the stand-in gives as many at a time.
const BATCH: u32 = 16;

/// Where cargo puts the stand-in: beside `examples/`.
fn stand_in() -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    let release = own.parent().and_then(|examples| examples.parent());
    release.expect("a folder").join("libfake_ciul.so")
}

/// One look at the events; frames and the sum of their lengths, as the proof of work.
#[inline(never)]
fn look(port: &mut EfViPort) -> (u64, u64) {
    let mut bytes = 0;
    let frames = port.receive(&mut |frame, _| bytes += frame.len() as u64);
    (frames as u64, bytes)
}

/// One batch out, and a look at the events of it.
#[inline(never)]
fn send(port: &mut EfViPort, frame: &[u8]) -> (u64, u64) {
    for _ in 0..BATCH {
        // SAFETY: the frame's own bytes.
        assert!(unsafe { port.send(frame.as_ptr(), frame.len() as u32) });
    }
    port.flush();
    let (received, _) = look(port);
    assert_eq!(received, 0, "no filter leads anything here");
    (BATCH.into(), u64::from(BATCH) * frame.len() as u64)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [way, count] = &arguments[..] else {
        panic!("in or out, and a count");
    };
    let count: u64 = count.parse().expect("a count");
    let port = EfViPort::open(&stand_in(), "eth9", Settings::default());
    let mut port = port.expect("the stand-in");
    let frame = [0xff; 60];
    if way == "in" {
        // What the wire `null` brings: see tests/fake-ciul/src/wire.rs.
        let local = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, 0, 1];
        let filter = CardFilter {
            protocol: 17,
            local: (local, 7007),
            remote: None,
        };
        port.add_filter(filter).expect("a filter");
    }
    let (mut frames, mut bytes) = (0, 0);
    while frames < count {
        let (more, length) = match way.as_str() {
            "in" => look(&mut port),
            _ => send(&mut port, &frame),
        };
        frames += more;
        bytes += length;
    }
    println!("{frames} frames, {bytes} bytes");
}

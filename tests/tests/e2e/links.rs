//! Streams over bad links: every byte compared by the scenes of [`streams`] and [`stores`].
//!
//! The links are emulated between two TAP devices (`bypass_tests::emulated_link`), from a fixed
//! seed; which frames it meets depends on when the programs send.

use bypass_backends::sim::Faults;
use bypass_tests::Result;
use bypass_tests::paths;
use bypass_tests::testbed::{Options, Side, Testbed};

use super::harness::{Carried, Scene, proven};
use super::{stores, streams};

/// 100 Mbit/s, a round trip of 4 ms, and a queue of 200 frames.
const LINK: Faults = Faults {
    loss: 0,
    duplicate: 0,
    reorder: 0,
    corrupt: 0,
    delay_ns: 2_000_000,
    jitter_ns: 0,
    bits_per_second: 100_000_000,
    longest: 0,
    in_flight: 240,
};

/// The same with frames lost, doubled, overtaken, damaged and late.
const EVERYTHING: Faults = Faults {
    loss: 5,
    duplicate: 10,
    reorder: 20,
    corrupt: 5,
    jitter_ns: 300_000,
    ..LINK
};

/// A scene of the same column whose two sides have a link with these faults between them.
fn linked(scene: &Scene, faults: Faults) -> Result<Scene> {
    Ok(Scene {
        bed: Testbed::with(Options {
            emulated: Some((faults, 1)),
            ..Options::default()
        })?,
        column: scene.column,
    })
}

/// Runs streams to, from and both ways over a link, and proves who carried them.
fn over(scene: &Scene, faults: Faults) -> Result<()> {
    let bad = linked(scene, faults)?;
    proven(&bad, Carried::Segments, |bad| {
        streams::python_http_server(bad)?;
        streams::curl_client(bad)?;
        streams::python_asyncio_streams(bad)
    })
}

pub(crate) fn link_with_delay(scene: &Scene) -> Result<()> {
    over(scene, LINK)
}

pub(crate) fn link_with_loss(scene: &Scene) -> Result<()> {
    let faults = Faults { loss: 10, ..LINK };
    over(scene, faults)
}

pub(crate) fn link_with_everything(scene: &Scene) -> Result<()> {
    over(scene, EVERYTHING)
}

/// iperf3 to the program under test, from it, and both ways at once.
pub(crate) fn link_with_iperf3(scene: &Scene) -> Result<()> {
    let bad = linked(scene, EVERYTHING)?;
    proven(&bad, Carried::Segments, |bad| {
        for direction in [&[][..], &["-R"], &["--bidir"]] {
            streams::iperf3(bad, direction, streams::SLOW)?;
        }
        Ok(())
    })
}

/// redis replicates in both directions, and both have the same data after each.
pub(crate) fn link_with_replicas(scene: &Scene) -> Result<()> {
    let bad = linked(scene, EVERYTHING)?;
    proven(&bad, Carried::Segments, stores::both_replicate)
}

/// A program that wrote and makes no call any more: all of it arrives, though segments and
/// acknowledgements are lost, and what its peer sends is acknowledged.
pub(crate) fn link_to_a_sleeper(scene: &Scene) -> Result<()> {
    let faults = Faults { loss: 60, ..LINK };
    let bad = linked(scene, faults)?;
    let script = paths::repository().join("tests/e2e/asleep.py");
    let mut sleeper = streams::subject(&bad, Side::Server, "/usr/bin/python3");
    sleeper.arg("-I").arg(script).args([&bad.host(), "9100"]);
    let sleeper = streams::started(&bad, &sleeper, 9100)?;
    let peer = format!(
        "import fcntl,socket,struct,termios,time\n\
         s=socket.create_connection(('{}',9100)); s.sendall(b'x'*20000); want=256<<10\n\
         while want: d=s.recv(65536); assert d,want; want-=len(d)\n\
         left=lambda: struct.unpack('i',fcntl.ioctl(s,termios.TIOCOUTQ,b'    '))[0]\n\
         while left(): time.sleep(.05)",
        bad.host()
    );
    streams::client(&bad, "python3", &["-c", &peer])?;
    if sleeper.stdout() != "asleep\n" {
        return Err(format!("it said {:?}", sleeper.stdout()).into());
    }
    sleeper.kill();
    Ok(())
}

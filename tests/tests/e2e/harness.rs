//! Runs one test in one column and proves who carried the datagrams.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bypass_tests::counters::{KernelUdp, interface_frames, kernel_segments};
use bypass_tests::leftovers::Leftovers;
use bypass_tests::plugin;
use bypass_tests::program::Column;
use bypass_tests::testbed::{Options, Side, Testbed};
use bypass_tests::vdev::Vdev;
use bypass_tests::{Result, paths};

/// Who is to carry the datagrams of the program under test in the shim column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    /// The bypass, but for a few.
    Bypass,
    /// The bypass, but for a few TCP segments.
    Segments,
    /// No demand, or one that the test makes itself.
    Any,
}

/// What a test gets: its test bed and its column.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) bed: Testbed,
    pub(crate) column: Column,
}

impl Scene {
    /// IPv4 address of the program under test.
    pub(crate) fn host(&self) -> String {
        self.bed.ipv4(Side::Server)
    }

    /// IPv4 address of its peers.
    pub(crate) fn peer(&self) -> String {
        self.bed.ipv4(Side::Client)
    }

    /// Whether the shim is there.
    pub(crate) fn has_shim(&self) -> bool {
        self.column == Column::Shim
    }
}

/// Runs a test with the default test bed; where `BYPASS_TEST_BACKEND` is `ef_vi`, on a card's
/// stand-in.
pub(crate) fn check(column: Column, carried: Carried, body: fn(&Scene) -> Result<()>) {
    if is_on_card() {
        return check_card(column, carried, body);
    }
    check_veth(column, carried, body);
}

fn is_on_card() -> bool {
    std::env::var_os("BYPASS_TEST_BACKEND").is_some_and(|name| name == "ef_vi")
}

/// Runs a test that no card changes, or that is of AF_XDP itself: with the default test bed only.
pub(crate) fn check_veth(column: Column, carried: Carried, body: fn(&Scene) -> Result<()>) {
    if is_on_card() {
        println!("skipped: not for a card");
        return;
    }
    if !Column::available().contains(&column) {
        return;
    }
    if let Err(error) = run(column, carried, body) {
        panic!("{}: {error}", column.name());
    }
}

/// Runs a test with a DPDK port (a virtual device, no card) in the place of the veth, where there
/// is DPDK.
pub(crate) fn check_port(column: Column, carried: Carried, body: fn(&Scene) -> Result<()>) {
    check_vdev(Vdev::Tap, column, carried, body);
}

/// The same, where the port is another virtual device.
pub(crate) fn check_vdev(
    vdev: Vdev,
    column: Column,
    carried: Carried,
    body: fn(&Scene) -> Result<()>,
) {
    if !Column::available().contains(&column) {
        return;
    }
    let missing = plugin::path().err().map(str::to_owned);
    if let Some(why) = missing.or_else(|| vdev.is_missing()) {
        println!("skipped: {why}");
        return;
    }
    if let Err(error) = run_on_port(vdev, false, column, carried, body) {
        panic!("{}, DPDK {}: {error}", column.name(), vdev.driver());
    }
}

/// The same without copies.
pub(crate) fn check_in_place(
    vdev: Vdev,
    column: Column,
    carried: Carried,
    body: fn(&Scene) -> Result<()>,
) {
    if !Column::available().contains(&column) {
        return;
    }
    if let Err(why) = plugin::path() {
        println!("skipped: {why}");
        return;
    }
    if let Err(error) = run_on_port(vdev, true, column, carried, body) {
        let (column, driver) = (column.name(), vdev.driver());
        panic!("{column}, DPDK {driver} without copies: {error}");
    }
}

/// Runs a test with the server's interface as a card by ef_vi: its queue is the one of libciul's
/// stand-in, no card; or the vendor's library has it, where `BYPASS_TEST_LIBCIUL` names one.
pub(crate) fn check_card(column: Column, carried: Carried, body: fn(&Scene) -> Result<()>) {
    check_faults("", column, carried, body);
}

/// The same with a card that says when frames have come, and have left.
pub(crate) fn check_stamped(column: Column, carried: Carried, body: fn(&Scene) -> Result<()>) {
    check_times("", column, carried, body);
}

/// The same, where that comes late.
pub(crate) fn check_stamped_late(column: Column, carried: Carried, body: fn(&Scene) -> Result<()>) {
    check_times("late", column, carried, body);
}

fn check_times(
    faults: &'static str,
    column: Column,
    carried: Carried,
    body: fn(&Scene) -> Result<()>,
) {
    let options = Options {
        card: Some(faults),
        timestamps: true,
        ..Options::default()
    };
    check_options(options, column, carried, body);
}

/// The same with a card that spreads flows over four queues, of which one dies.
pub(crate) fn check_spread(column: Column, carried: Carried, body: fn(&Scene) -> Result<()>) {
    let options = Options {
        card: Some("reset@1000"),
        card_queues: 4,
        ..Options::default()
    };
    check_options(options, column, carried, body);
}

/// The same with two queues that live.
pub(crate) fn check_pair(column: Column, carried: Carried, body: fn(&Scene) -> Result<()>) {
    let options = Options {
        card: Some(""),
        card_queues: 2,
        ..Options::default()
    };
    check_options(options, column, carried, body);
}

/// The same, where completions come late and in bundles.
pub(crate) fn check_late(column: Column, carried: Carried, body: fn(&Scene) -> Result<()>) {
    check_faults("late", column, carried, body);
}

/// The same, where the card is reset, loses events and stops sending, and the next queue is not to
/// be had at once.
pub(crate) fn check_dying(column: Column, carried: Carried, body: fn(&Scene) -> Result<()>) {
    const DEATHS: &str = "reset@500,oflow@2000,txerr@4000,alloc:EBUSY@2,alloc:EBUSY@3";
    check_faults(DEATHS, column, carried, body);
}

/// The same, where the card has room for one filter.
pub(crate) fn check_full(column: Column, carried: Carried, body: fn(&Scene) -> Result<()>) {
    check_faults("filter1", column, carried, body);
}

fn check_faults(
    faults: &'static str,
    column: Column,
    carried: Carried,
    body: fn(&Scene) -> Result<()>,
) {
    let options = Options {
        card: Some(faults),
        ..Options::default()
    };
    check_options(options, column, carried, body);
}

fn check_options(
    options: Options,
    column: Column,
    carried: Carried,
    body: fn(&Scene) -> Result<()>,
) {
    if !Column::available().contains(&column) {
        return;
    }
    let faults = options.card.unwrap_or_default();
    let run = || {
        let bed = Testbed::with(options)?;
        proven(&Scene { bed, column }, carried, body)
    };
    if let Err(error) = run() {
        panic!("{}, ef_vi's stand-in ({faults}): {error}", column.name());
    }
}

fn run_on_port(
    vdev: Vdev,
    zero_copy: bool,
    column: Column,
    carried: Carried,
    body: fn(&Scene) -> Result<()>,
) -> Result<()> {
    let options = Options {
        port: Some(vdev),
        zero_copy,
        ..Options::default()
    };
    let bed = Testbed::with(options)?;
    proven(&Scene { bed, column }, carried, body)
}

fn run(column: Column, carried: Carried, body: fn(&Scene) -> Result<()>) -> Result<()> {
    let scene = Scene {
        bed: Testbed::with(Options {
            queues: 1,
            ..Options::default()
        })?,
        column,
    };
    proven(&scene, carried, body)?;
    if column == Column::Native {
        return Ok(());
    }
    let left = Leftovers::after(&scene.bed, Duration::from_secs(60));
    if left != Leftovers::default() {
        return Err(format!("left behind: {left}").into());
    }
    Ok(())
}

/// Runs a body in its scene and proves who carried what it sent and received.
pub(crate) fn proven(
    scene: &Scene,
    carried: Carried,
    body: impl Fn(&Scene) -> Result<()>,
) -> Result<()> {
    let kernel = KernelUdp::read(&scene.bed, Side::Server)?;
    let counting = scene.bed.counting_side();
    let frames = interface_frames(&scene.bed, counting)?;
    let segments = kernel_segments(&scene.bed, Side::Server)?;
    body(scene)?;
    if !scene.has_shim() {
        return Ok(());
    }
    let kernel = KernelUdp::read(&scene.bed, Side::Server)?.since(kernel);
    // A scene may have taken the device away, or put another in its place.
    let after = interface_frames(&scene.bed, counting).unwrap_or(frames);
    let frames = after.0.saturating_sub(frames.0) + after.1.saturating_sub(frames.1);
    if carried == Carried::Bypass && kernel.total() > frames / 20 + 20 {
        let carried = kernel.total();
        return Err(format!("the kernel carried {carried} datagrams of {frames} frames").into());
    }
    let segments = kernel_segments(&scene.bed, Side::Server)? - segments;
    if carried == Carried::Segments && segments > frames / 20 + 20 {
        return Err(format!("the kernel carried {segments} segments of {frames} frames").into());
    }
    Ok(())
}

/// A program of this C source of `tests/e2e`, linked with these libraries, in the bed's folder.
pub(crate) fn compiled(scene: &Scene, name: &str, libraries: &[&str]) -> Result<String> {
    let program = scene.bed.folder().join(name).display().to_string();
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-o", &program])
        .arg(script(&format!("{name}.c")))
        .args(libraries);
    let run = cc.output()?;
    let why = String::from_utf8_lossy(&run.stderr);
    let is_made = run.status.success().then_some(program);
    is_made.ok_or_else(|| format!("cc: {why}").into())
}

/// A program of `tests/e2e`.
pub(crate) fn script(name: &str) -> PathBuf {
    paths::repository().join("tests/e2e").join(name)
}

//! One case run in two columns, its output compared line by line.
//!
//! A case is a name of the C program in `tests/conformance` or a Python script there. It runs on
//! the server side of a fresh test bed with `peer` on the client side. Natively it runs twice and
//! must print the same twice: what varies would hide what differs. Under the shim it must print
//! what it prints natively, and the kernel must not have carried its datagrams.

use std::time::Duration;

use crate::counters::{KernelUdp, kernel_segments, wait_for_tcp_port};
use crate::leftovers::Leftovers;
use crate::program::{Column, Program, Running};
use crate::testbed::{Options, Side, Testbed};
use crate::{Result, daemon, paths};

/// TCP port on which the peer takes commands.
const CONTROL: u16 = 7000;
/// Longest time that one case takes.
const LIMIT: Duration = Duration::from_secs(60);
/// Time that the daemon has to leave when it is asked to.
const DAEMON_EXIT: Duration = Duration::from_secs(15);

/// What the shim column must show about a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The kernel carries (nearly) none of its datagrams.
    Accelerated,
    /// Some of its datagrams are the kernel's on purpose.
    Mixed,
    /// It checks that something stays with the kernel.
    Kernel,
}

/// Cases whose outcome is the wire's, where the server's interface is a DPDK port: there the native
/// column is a TAP device, and the stack's must be what the kernel prints on a veth.
const AS_ON_VETH: [(&str, &str); 3] = [
    (
        "options_rcvbuf_asleep",
        "the kernel charges other sums for frames of a TAP device, so other numbers of them fit",
    ),
    ("options_rcvbuf_keeps", "the same"),
    (
        "sizes_udp_gro_joined",
        "the kernel joins no datagrams that come by a TAP device",
    ),
];

/// What one run gave.
#[derive(Debug)]
pub struct Outcome {
    /// Everything that it printed, then its exit status.
    pub text: String,
    /// Datagrams, or in a case of TCP the segments, that the kernel carried meanwhile.
    pub kernel: u64,
    /// What the bypass left behind.
    pub left: Leftovers,
}

/// Names of all cases of the C program, with what they must show.
///
/// # Errors
/// When the program cannot be built or prints something else.
pub fn list() -> Result<Vec<(String, How)>> {
    let program = paths::test_program("conformance", "conformance")?;
    let run = std::process::Command::new(program).arg("--list").output()?;
    let text = String::from_utf8(run.stdout)?;
    text.lines()
        .map(|line| {
            let (name, how) = line.split_once(' ').ok_or("a line without a blank")?;
            let how = match how {
                "accelerated" => How::Accelerated,
                "mixed" => How::Mixed,
                "kernel" => How::Kernel,
                other => return Err(format!("{name}: {other}?").into()),
            };
            Ok((name.to_owned(), how))
        })
        .collect()
}

/// Runs one case in one column.
///
/// # Errors
/// When the test bed fails or the case does not end in time.
pub fn run(case: &str, column: Column) -> Result<Outcome> {
    run_on(Options::of_backend()?, case, column)
}

fn run_on(options: Options, case: &str, column: Column) -> Result<Outcome> {
    let bed = Testbed::with(options)?;
    let peer = start_peer(&bed)?;
    let before = carried(&bed, case)?;
    let mut program = program(&bed, case)?;
    let run = with_addresses(&mut program, &bed)
        .column(column)
        .timeout(LIMIT)
        .run()?;
    let kernel = carried(&bed, case)?.saturating_sub(before);
    drop(peer);
    let left = match column {
        Column::Native => Leftovers::default(),
        Column::Shim => {
            // Its exit by itself takes longer, and is tested end to end.
            daemon::stop_all(&bed);
            Leftovers::after(&bed, DAEMON_EXIT)
        }
    };
    let text = format!("{}{}\n{}", run.stdout, run.status, run.stderr);
    Ok(Outcome { text, kernel, left })
}

/// Whether the case is about TCP sockets.
fn is_tcp(case: &str) -> bool {
    case.starts_with("tcp_") || case.starts_with("python_tcp")
}

/// What the server side's kernel has carried of the protocol of the case.
fn carried(bed: &Testbed, case: &str) -> Result<u64> {
    if is_tcp(case) {
        kernel_segments(bed, Side::Server)
    } else {
        Ok(KernelUdp::read(bed, Side::Server)?.total())
    }
}

/// Starts the peer on the client side.
///
/// # Errors
/// When it does not listen in time.
pub fn start_peer(bed: &Testbed) -> Result<Running> {
    let mut peer = bed.program(Side::Client, paths::test_program("conformance", "peer")?);
    let peer = peer
        .args([bed.ipv4(Side::Client), bed.ipv6(Side::Client)])
        .spawn()?;
    wait_for_tcp_port(bed, Side::Client, CONTROL)?;
    Ok(peer)
}

/// Sets the variables that a case reads.
pub fn with_addresses<'p, 'b>(program: &'p mut Program<'b>, bed: &Testbed) -> &'p mut Program<'b> {
    program
        .env("HOST4", bed.ipv4(Side::Server))
        .env("HOST6", bed.ipv6(Side::Server))
        .env("PEER4", bed.ipv4(Side::Client))
        .env("PEER6", bed.ipv6(Side::Client))
        .env("PYTHONDONTWRITEBYTECODE", "1")
}

fn program<'b>(bed: &'b Testbed, case: &str) -> Result<Program<'b>> {
    if case.starts_with("python_") {
        let script = paths::repository()
            .join("tests/conformance")
            .join(format!("{case}.py"));
        let mut python = bed.program(Side::Server, "/usr/bin/python3");
        python.arg("-I").arg(script);
        return Ok(python);
    }
    let mut program = bed.program(
        Side::Server,
        paths::test_program("conformance", "conformance")?,
    );
    program.arg(case);
    Ok(program)
}

/// The case runs twice natively, to its end, and prints the same.
///
/// # Errors
/// When it does not; the text shows where.
pub fn check_native(case: &str) -> Result<()> {
    let first = run(case, Column::Native)?;
    if !first.text.contains("\nend\n") {
        return Err(format!("{case} did not reach its end natively:\n{}", first.text).into());
    }
    let second = run(case, Column::Native)?;
    compare(case, "first run", &first.text, "second run", &second.text)
}

/// The case prints under the shim what it prints natively, by the bypass, and leaves nothing.
///
/// # Errors
/// When it does not; the text shows where.
pub fn check_shim(case: &str, how: How) -> Result<()> {
    let mut options = Options::of_backend()?;
    if options.port.is_some()
        && let Some((_, why)) = AS_ON_VETH.iter().find(|(name, _)| *name == case)
    {
        println!("compared with the kernel on a veth: {why}");
        options = Options::default();
    }
    let native = run_on(options, case, Column::Native)?;
    let shim = run(case, Column::Shim)?;
    compare(case, "kernel", &native.text, "shim", &shim.text)?;
    let (with, without) = (shim.kernel, native.kernel);
    let most = match how {
        // One in eight: a datagram may go by the kernel while the daemon starts. What is left of a
        // connection when its program ends is the kernel's: the peer's ACK and FIN, and the answer.
        How::Accelerated => without / 8 + 1 + 2 * u64::from(is_tcp(case)),
        How::Mixed => without.saturating_sub(1),
        How::Kernel => u64::MAX,
    };
    if with > most {
        return Err(format!(
            "{case}: the kernel carried {with} datagrams or segments under the shim, {without} natively, \
             allowed are {most}"
        )
        .into());
    }
    if shim.left != Leftovers::default() {
        return Err(format!("{case}: left behind: {}", shim.left).into());
    }
    Ok(())
}

fn compare(case: &str, left: &str, a: &str, right: &str, b: &str) -> Result<()> {
    if a == b {
        return Ok(());
    }
    let mut text = format!("{case}: {left} (-) and {right} (+) differ:\n");
    let (a, b): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
    let same = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    for line in &a[same.saturating_sub(6)..same] {
        text += &format!("   {line}\n");
    }
    let most = 25;
    text.extend(
        a[same..]
            .iter()
            .take(most)
            .map(|line| format!("-  {line}\n")),
    );
    text.extend(
        b[same..]
            .iter()
            .take(most)
            .map(|line| format!("+  {line}\n")),
    );
    Err(text.into())
}

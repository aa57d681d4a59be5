//! Measurements that `demo` and `bench` share: a server on the server side, a client on the client
//! side, what both tell, and who carried the datagrams.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use bypass_tests::counters::{KernelUdp, interface_frames, wait_for_udp_port};
use bypass_tests::program::{Column, Program, Running, wait_until};
use bypass_tests::services::server_processor_time;
use bypass_tests::testbed::{Side, Testbed};
use bypass_tests::{Result, paths};

/// What one run of one program gave. Zero: not measured.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Sample {
    /// Datagrams, queries or round trips per second.
    pub(crate) rate: f64,
    /// Median time in microseconds.
    pub(crate) p50_us: f64,
    /// 99th percentile of the time in microseconds.
    pub(crate) p99_us: f64,
    /// Processor time of the server process per datagram in or out, in nanoseconds.
    pub(crate) cpu_ns_per_packet: f64,
    /// Datagrams, in and out, that came and went by the bypass.
    pub(crate) by_bypass: u64,
    /// Datagrams, in and out, that the kernel carried.
    pub(crate) by_kernel: u64,
}

/// Counters at the start of a measurement.
#[derive(Debug)]
pub(crate) struct Meter {
    kernel: KernelUdp,
    frames: (u64, u64),
    cpu: Duration,
}

impl Meter {
    /// Starts to count on the server side.
    pub(crate) fn start(bed: &Testbed) -> Result<Self> {
        Ok(Self {
            kernel: KernelUdp::read(bed, Side::Server)?,
            frames: interface_frames(bed, Side::Server)?,
            cpu: server_processor_time(bed),
        })
    }

    /// Adds who carried what, and the processor time per datagram, to a sample. The server must
    /// still run.
    pub(crate) fn stop(&self, bed: &Testbed, sample: &mut Sample) -> Result<()> {
        let cpu = server_processor_time(bed).saturating_sub(self.cpu);
        let kernel = KernelUdp::read(bed, Side::Server)?.since(self.kernel);
        let frames = interface_frames(bed, Side::Server)?;
        let frames = (frames.0 - self.frames.0) + (frames.1 - self.frames.1);
        let lost = kernel.full + kernel.no_port;
        sample.by_kernel = kernel.total();
        sample.by_bypass = frames.saturating_sub(kernel.total() + lost);
        // A handful of frames are ARP and the like.
        if sample.by_bypass < 50 {
            sample.by_bypass = 0;
        }
        let carried = sample.by_bypass + sample.by_kernel;
        if carried > 0 {
            sample.cpu_ns_per_packet = cpu.as_nanos() as f64 / carried as f64;
        }
        Ok(())
    }
}

/// How long a processor has not been idle, in the clock ticks of proc_stat(5).
#[derive(Debug)]
pub(crate) struct Busy {
    cpu: u32,
    ticks: u64,
}

impl Busy {
    /// Starts to count.
    pub(crate) fn start(cpu: u32) -> Result<Self> {
        let ticks = Self::ticks(cpu)?;
        Ok(Self { cpu, ticks })
    }

    /// What has come together.
    pub(crate) fn stop(&self) -> Result<Duration> {
        let ticks = Self::ticks(self.cpu)?.saturating_sub(self.ticks);
        Ok(Duration::from_millis(ticks.saturating_mul(10)))
    }

    /// User, nice, system, irq and softirq time: hundredths of a second on every Linux.
    fn ticks(cpu: u32) -> Result<u64> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let name = format!("cpu{cpu}");
        let line = stat
            .lines()
            .find_map(|line| line.strip_prefix(&name)?.strip_prefix(' '));
        let numbers: Vec<u64> = line
            .ok_or_else(|| format!("/proc/stat has no {name}"))?
            .split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, ..] = numbers[..] else {
            return Err("/proc/stat: too few numbers".into());
        };
        Ok(user + nice + system + irq + softirq)
    }
}

/// A program of `examples/c` on a side.
pub(crate) fn example<'b>(
    bed: &'b Testbed,
    side: Side,
    column: Column,
    name: &str,
) -> Result<Program<'b>> {
    let mut program = bed.program(side, paths::example(name)?);
    program.column(column);
    Ok(program)
}

/// Starts a program and waits for its UDP port.
pub(crate) fn start(
    bed: &Testbed,
    side: Side,
    program: &Program<'_>,
    port: u16,
) -> Result<Running> {
    let running = program.spawn()?;
    wait_for_udp_port(bed, side, port)
        .map_err(|error| format!("{error}\n{}{}", running.stdout(), running.stderr()))?;
    Ok(running)
}

/// Starts a program of `examples/c/bare` and waits until it says `ready`.
pub(crate) fn start_bare(program: &Program<'_>) -> Result<Running> {
    let running = program.spawn()?;
    wait_until("the bare program is ready", Duration::from_secs(5), || {
        running.stderr().contains("ready")
    })
    .map_err(|error| format!("{error}: {}", running.stderr()))?;
    Ok(running)
}

/// A number of a JSON object; zero when it is not there.
pub(crate) fn field(json: &Value, name: &str) -> f64 {
    json[name].as_f64().unwrap_or(0.0)
}

/// The middle value; zero of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// `a / b`, zero when `b` is.
pub(crate) fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([]), 0.0);
    }
}

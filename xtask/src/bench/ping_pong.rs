//! `udp-rr`: round trips of a blocking kernel client with an echo: on the kernel, under the shim
//! with and without spinning, and on a bare AF_XDP socket.

use std::collections::BTreeMap;

use bypass_tests::Result;
use bypass_tests::program::{Column, Running};
use bypass_tests::testbed::{Side, Testbed};

use super::{Row, columns};
use crate::measure::{example, field, median, ratio, start, start_bare};
use crate::progress::step;

const PORT: u16 = 7007;
/// Largest share of the kernel's time with spinning, and without.
const SPINNING: f64 = 0.45;
const SLEEPING: f64 = 1.05;

/// The ways to echo, each with its column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Kernel,
    ShimSpins,
    ShimSleeps,
    BareSpins,
    BareSleeps,
}

impl Way {
    const ALL: [Self; 5] = [
        Self::Kernel,
        Self::ShimSpins,
        Self::ShimSleeps,
        Self::BareSpins,
        Self::BareSleeps,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::ShimSpins => "shim spins",
            Self::ShimSleeps => "shim sleeps",
            Self::BareSpins => "bare spins",
            Self::BareSleeps => "bare sleeps",
        }
    }

    fn needs_shim(self) -> bool {
        matches!(self, Self::ShimSpins | Self::ShimSleeps)
    }

    fn start(self, bed: &Testbed) -> Result<Running> {
        let interface = bed.interface(Side::Server);
        let mut bare = example(bed, Side::Server, Column::Native, "bare/echo")?;
        let column = if self.needs_shim() {
            Column::Shim
        } else {
            Column::Native
        };
        let mut echo = example(bed, Side::Server, column, "udpecho")?;
        echo.cpu(0).args([
            "--bind",
            &bed.ipv4(Side::Server),
            "--port",
            &PORT.to_string(),
        ]);
        bare.cpu(0).args(["--port", &PORT.to_string()]);
        match self {
            Self::Kernel => start(bed, Side::Server, &echo, PORT),
            Self::ShimSpins => start(bed, Side::Server, echo.env("BYPASS_SPIN_US", "1000"), PORT),
            Self::ShimSleeps => start(bed, Side::Server, echo.env("BYPASS_SPIN_US", "0"), PORT),
            Self::BareSpins => start_bare(bare.arg(interface)),
            Self::BareSleeps => start_bare(bare.arg("--poll").arg(interface)),
        }
    }
}

pub(super) fn run(rounds: u32) -> Result<Vec<Row>> {
    let shim = columns().contains(&Column::Shim);
    let ways: Vec<Way> = Way::ALL
        .into_iter()
        .filter(|way| shim || !way.needs_shim())
        .collect();
    let mut results: BTreeMap<(Way, &str), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        for way in &ways {
            let what = format!("round {} of {rounds}, {}", round + 1, way.name());
            let json = step(&what, || -> Result<_> {
                let bed = Testbed::new()?;
                let _echo = way.start(&bed)?;
                let mut client = example(&bed, Side::Client, Column::Native, "udprr")?;
                client
                    .cpu(1)
                    .args(["--json", "--count", "20000", "--port", &PORT.to_string()]);
                client.arg(bed.ipv4(Side::Server)).run()?.check()?.json()
            })?;
            for name in ["p50_us", "p99_us", "p999_us"] {
                results
                    .entry((*way, name))
                    .or_default()
                    .push(field(&json, name));
            }
        }
    }
    let of = |way, name| median(results.get(&(way, name)).cloned().unwrap_or_default());
    let mut rows = Vec::new();
    for (name, title) in [("p50_us", "p50"), ("p99_us", "p99"), ("p999_us", "p99.9")] {
        let kernel = of(Way::Kernel, name);
        for (way, most) in [(Way::ShimSpins, SPINNING), (Way::ShimSleeps, SLEEPING)] {
            let figure = ratio(of(way, name), kernel);
            let bound = name != "p999_us";
            rows.push(Row {
                what: format!("{title} (us), {} / kernel", way.name()),
                medians: Way::ALL
                    .iter()
                    .map(|w| (w.name().to_owned(), of(*w, name)))
                    .collect(),
                figure,
                target: if bound {
                    format!("<= {most}")
                } else {
                    String::new()
                },
                met: (shim && bound).then_some(figure <= most),
            });
        }
    }
    Ok(rows)
}

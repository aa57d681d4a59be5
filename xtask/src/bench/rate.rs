//! `udp-rx` and `udp-e2e`: how many datagrams a second arrive.

use std::collections::BTreeMap;
use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::program::{Column, Running};
use bypass_tests::testbed::{Side, Testbed};

use super::{Row, columns};
use crate::measure::{example, field, median, ratio, start, start_bare};
use crate::progress::step;

const PORT: u16 = 4321;
/// Smallest share of the bare receiver's rate, and smallest multiple of the kernel's.
const RECEIVE: f64 = 0.95;
const END_TO_END: f64 = 2.5;
/// UDP payload of a 64-byte frame.
const PAYLOAD: &str = "22";

/// Who stands at an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Kernel,
    Shim,
    Bare,
}

impl End {
    const ALL: [Self; 3] = [Self::Kernel, Self::Shim, Self::Bare];

    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Shim => "shim",
            Self::Bare => "bare",
        }
    }

    fn column(self) -> Column {
        if self == Self::Shim {
            Column::Shim
        } else {
            Column::Native
        }
    }

    fn receiver(self, bed: &Testbed) -> Result<Running> {
        let port = PORT.to_string();
        let common = ["--json", "--seconds", "2", "--port", &port];
        if self == Self::Bare {
            let mut bare = example(bed, Side::Server, Column::Native, "bare/receiver")?;
            return start_bare(bare.cpu(0).args(common).arg(bed.interface(Side::Server)));
        }
        let mut receiver = example(bed, Side::Server, self.column(), "udpreceiver")?;
        receiver
            .cpu(0)
            .args(common)
            .args(["--bind", &bed.ipv4(Side::Server)]);
        let running = start(bed, Side::Server, &receiver, PORT)?;
        // The port is bound by the kernel before the bypass serves it.
        std::thread::sleep(Duration::from_millis(300));
        Ok(running)
    }

    fn sender(self, bed: &Testbed) -> Result<Running> {
        let port = PORT.to_string();
        let common = [
            "--json",
            "--seconds",
            "3",
            "--size",
            PAYLOAD,
            "--port",
            &port,
        ];
        let host = bed.ipv4(Side::Server);
        if self == Self::Bare {
            let mut bare = example(bed, Side::Client, Column::Native, "bare/sender")?;
            return bare
                .cpu(1)
                .args(common)
                .args([bed.interface(Side::Client), &host])
                .spawn();
        }
        let mut sender = example(bed, Side::Client, self.column(), "udpsender")?;
        sender.cpu(1).args(common).arg(&host).spawn()
    }
}

/// Datagrams per second that arrive, and the receiver's processor time for each.
fn measure(sender: End, receiver: End) -> Result<(f64, f64)> {
    let bed = Testbed::new()?;
    let receiving = receiver.receiver(&bed)?;
    let sending = sender.sender(&bed)?;
    let result = receiving.wait(Duration::from_secs(20))?.check()?.json()?;
    sending.wait(Duration::from_secs(20))?.check()?;
    Ok((field(&result, "rate"), field(&result, "cpu_ns_per_packet")))
}

/// Medians of rate and processor time for each pair of ends.
fn medians(rounds: u32, pairs: &[(End, End)]) -> Result<BTreeMap<(End, End), (f64, f64)>> {
    let mut rates: BTreeMap<(End, End), Vec<(f64, f64)>> = BTreeMap::new();
    for round in 0..rounds {
        for (sender, receiver) in pairs {
            let what = format!(
                "round {} of {rounds}, {} to {}",
                round + 1,
                sender.name(),
                receiver.name()
            );
            let result = step(&what, || measure(*sender, *receiver))?;
            rates.entry((*sender, *receiver)).or_default().push(result);
        }
    }
    let of = |values: &[(f64, f64)]| {
        (
            median(values.iter().map(|v| v.0)),
            median(values.iter().map(|v| v.1)),
        )
    };
    Ok(rates
        .iter()
        .map(|(pair, values)| (*pair, of(values)))
        .collect())
}

/// Rows "rate" and "processor time" with a column for each end.
fn rows(
    results: &BTreeMap<(End, End), (f64, f64)>,
    pair: impl Fn(End) -> (End, End),
    (against, least): (End, f64),
) -> Vec<Row> {
    let of = |end| results.get(&pair(end)).copied().unwrap_or_default();
    let shim = results.contains_key(&pair(End::Shim));
    let figure = ratio(of(End::Shim).0, of(against).0);
    let columns = |pick: fn((f64, f64)) -> f64| {
        End::ALL
            .iter()
            .map(|end| (end.name().to_owned(), pick(of(*end))))
            .collect()
    };
    vec![
        Row {
            what: format!("datagrams/s, shim / {}", against.name()),
            medians: columns(|v| v.0),
            figure,
            target: format!(">= {least}"),
            met: shim.then_some(figure >= least),
        },
        Row {
            what: format!("receiver's ns each, shim / {}", against.name()),
            medians: columns(|v| v.1),
            figure: ratio(of(End::Shim).1, of(against).1),
            ..Row::default()
        },
    ]
}

fn ends() -> Vec<End> {
    let shim = columns().contains(&Column::Shim);
    End::ALL
        .into_iter()
        .filter(|end| shim || *end != End::Shim)
        .collect()
}

/// One bare AF_XDP sender to each receiver.
pub(super) fn receive(rounds: u32) -> Result<Vec<Row>> {
    let pairs: Vec<(End, End)> = ends().into_iter().map(|end| (End::Bare, end)).collect();
    let results = medians(rounds, &pairs)?;
    Ok(rows(&results, |end| (End::Bare, end), (End::Bare, RECEIVE)))
}

/// The same at both ends.
pub(super) fn end_to_end(rounds: u32) -> Result<Vec<Row>> {
    let pairs: Vec<(End, End)> = ends().into_iter().map(|end| (end, end)).collect();
    let results = medians(rounds, &pairs)?;
    Ok(rows(&results, |end| (end, end), (End::Kernel, END_TO_END)))
}

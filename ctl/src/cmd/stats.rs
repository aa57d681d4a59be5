//! `bypassctl stats`: every counter with its sentence.
//!
//! The stacks' counters come from their images, reasons for staying in the kernel from the process
//! reports, the daemon's own and those of DPDK ports from the daemon when one answers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bypass_proto::control::QueryKind;
use bypass_proto::reason::FallThrough;
use bypass_runtime::image;
use bypass_stack::inspect::Image;
use bypass_stack::{Counter, DropReason};
use serde_json::{Value, json};

use crate::{Failure, render, source};

/// Every counter with its sentence.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bypassctl stats                  counters that are not zero
  bypassctl stats --zeros --json   all of them
  bypassctl stats --watch 5        again every five seconds, with rates")]
pub struct Stats {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print again after this many seconds, with the change per second.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    watch: Option<u32>,
    /// Also counters that are zero.
    #[arg(long)]
    zeros: bool,
}

impl Stats {
    /// Prints the counters, once or again and again.
    ///
    /// # Errors
    /// Exit code 3 when nothing has counted anything.
    pub fn execute(&self) -> Result<(), Failure> {
        let mut before: Option<(Instant, Vec<Value>)> = None;
        loop {
            let (now, mut counters) = (Instant::now(), read());
            if let Some((then, earlier)) = &before {
                add_rates(&mut counters, earlier, now.duration_since(*then));
            }
            self.print(&counters)?;
            let Some(seconds) = self.watch else {
                return Ok(());
            };
            before = Some((now, counters));
            std::thread::sleep(Duration::from_secs(u64::from(seconds)));
        }
    }

    fn print(&self, counters: &[Value]) -> Result<(), Failure> {
        let shown: Vec<Value> = counters
            .iter()
            .filter(|counter| self.zeros || self.json || counter["value"] != 0)
            .cloned()
            .collect();
        if self.json {
            render::json(&Value::Array(shown));
            return Ok(());
        }
        if shown.is_empty() {
            let text = "nothing has counted anything: no accelerated program has run here";
            if self.watch.is_none() {
                return Err(Failure::nothing(text));
            }
            render::line(text);
            return Ok(());
        }
        let rate = [("PER SECOND", "per_second")];
        let columns = [
            ("OF", "of"),
            ("KIND", "kind"),
            ("NAME", "name"),
            ("VALUE", "value"),
        ]
        .into_iter()
        .chain(rate.into_iter().filter(|_| self.watch.is_some()))
        .chain([("MEANING", "sentence")]);
        render::objects(&columns.collect::<Vec<_>>(), &shown);
        if self.watch.is_some() {
            render::line("");
        }
        Ok(())
    }
}

/// Every counter of this network namespace.
fn read() -> Vec<Value> {
    let pids = source::in_this_namespace();
    let mut counters = Vec::new();
    for held in source::memfds(image::NAME, &pids) {
        let Some(copy) = held.read_image() else {
            continue;
        };
        if let Ok(image) = Image::attach(copy.stack()) {
            of_stack(&image, &copy.name(), &mut counters);
        }
    }
    for (pid, report) in source::reports(&pids) {
        let program = source::program(pid);
        for &reason in FallThrough::ALL {
            counters.push(json!({
                "of": format!("{program}/{pid}"), "pid": pid, "program": program,
                "kind": "fall-through", "name": reason.name(),
                "value": report.header.count_of(reason), "sentence": reason.sentence(),
            }));
        }
    }
    if let Ok(daemon) = source::query(QueryKind::Daemon) {
        for counter in daemon["counters"].as_array().into_iter().flatten() {
            counters.push(json!({
                "of": "daemon", "kind": "daemon", "name": counter["name"],
                "value": counter["value"], "sentence": counter["sentence"],
            }));
        }
        for port in daemon["ports"].as_array().into_iter().flatten() {
            for counter in port["counters"].as_array().into_iter().flatten() {
                counters.push(json!({
                    "of": port["name"], "kind": port["backend"], "name": counter["name"],
                    "value": counter["value"], "sentence": counter["sentence"],
                }));
            }
        }
    }
    counters
}

fn of_stack(image: &Image<'_>, stack: &str, counters: &mut Vec<Value>) {
    let mut add = |kind: &str, name: &str, sentence: &str, value: u64| {
        counters.push(json!({
            "of": stack, "stack": stack, "kind": kind, "name": name, "value": value,
            "sentence": sentence,
        }));
    };
    for &counter in Counter::ALL {
        add(
            "counter",
            counter.name(),
            counter.sentence(),
            image.counter(counter),
        );
    }
    for &reason in DropReason::ALL {
        add(
            "drop",
            reason.name(),
            reason.sentence(),
            image.dropped(reason),
        );
    }
    let pairs = image.queue_pairs().iter().enumerate();
    for (index, pair) in pairs.filter(|(_, pair)| pair.is_live()) {
        for (name, value, sentence) in [
            (
                "rx-packets",
                pair.rx_packets,
                "Frames received by the queue pair.",
            ),
            ("rx-bytes", pair.rx_bytes, "Their bytes."),
            (
                "tx-packets",
                pair.tx_packets,
                "Frames sent by the queue pair.",
            ),
            ("tx-bytes", pair.tx_bytes, "Their bytes."),
            (
                "tx-doorbells",
                pair.tx_doorbells,
                "Times the driver was told of frames to send: a system call each with AF_XDP.",
            ),
            (
                "rx-missed",
                u64::from(pair.rx_missed),
                "Frames lost because nobody took frames in or gave chunks in time, as of the last look.",
            ),
        ] {
            add("queue", &format!("{index}-{name}"), sentence, value);
        }
    }
}

/// Adds the change per second to each counter that was there before.
fn add_rates(counters: &mut [Value], earlier: &[Value], passed: Duration) {
    let key = |counter: &Value| ["of", "kind", "name"].map(|field| render::cell(&counter[field]));
    let before: HashMap<_, _> = earlier
        .iter()
        .map(|counter| (key(counter), counter["value"].as_u64()))
        .collect();
    for counter in counters {
        let now = counter["value"].as_u64();
        if let (Some(now), Some(Some(then))) = (now, before.get(&key(counter))) {
            let rate = now.saturating_sub(*then) as f64 / passed.as_secs_f64().max(0.001);
            counter["per_second"] = (rate.round() as u64).into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_and_never_negative() {
        let counter = |name: &str, value: u64| json!({"of": "s", "kind": "counter", "name": name, "value": value});
        let mut now = [counter("a", 300), counter("b", 1), counter("c", 5)];
        add_rates(
            &mut now,
            &[counter("a", 100), counter("b", 9)],
            Duration::from_secs(2),
        );
        assert_eq!(now[0]["per_second"], 100);
        assert_eq!(now[1]["per_second"], 0);
        assert!(now[2].get("per_second").is_none());
    }
}

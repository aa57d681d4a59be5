//! `bypassctl stats`: every counter of every stack, with its sentence.

use bypass_stack::inspect::Image;
use bypass_stack::{Counter, DropReason};
use serde_json::{Value, json};

use crate::{Failure, render, source};

/// Every counter with its sentence.
#[derive(Debug, clap::Args)]
pub struct Stats {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print again every second.
    #[arg(long)]
    watch: bool,
    /// Also counters that are zero.
    #[arg(long)]
    zeros: bool,
}

fn read() -> Vec<Value> {
    let mut counters = Vec::new();
    for held in source::memfds(bypass_runtime::image::NAME, &source::pids()) {
        let Some(bytes) = held.read_stack() else { continue };
        let Ok(image) = Image::attach(bytes.bytes()) else { continue };
        let mut add = |kind: &str, name: &str, sentence: &str, value: u64| {
            counters.push(json!({
                "stack": held.pid, "kind": kind, "name": name, "value": value, "sentence": sentence,
            }));
        };
        for &counter in Counter::ALL {
            add("counter", counter.name(), counter.sentence(), image.counter(counter));
        }
        for &reason in DropReason::ALL {
            add("drop", reason.name(), reason.sentence(), image.dropped(reason));
        }
    }
    counters
}

impl Stats {
    /// Prints the counters, once or every second.
    pub fn execute(&self) -> Result<(), Failure> {
        loop {
            let mut counters = read();
            if !self.zeros && !self.json {
                counters.retain(|counter| counter["value"] != 0);
            }
            if self.json {
                render::json(&Value::Array(counters));
            } else if counters.is_empty() {
                return Err(Failure::nothing("no stack has counted anything"));
            } else {
                let columns = [
                    ("STACK", "stack"),
                    ("KIND", "kind"),
                    ("NAME", "name"),
                    ("VALUE", "value"),
                    ("MEANING", "sentence"),
                ];
                render::objects(&columns, &counters);
            }
            if !self.watch {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    }
}

//! `bypassctl stacks` and `bypassctl dump`: stack images, read live.

use bypass_proto::control::QueryKind;
use bypass_stack::inspect::Image;
use serde_json::{Value, json};

use super::Json;
use crate::{Failure, render, source};

/// Problems of one image that are printed; a corrupted one has thousands.
const PROBLEMS: usize = 20;

/// What can be said of one image.
fn describe(image: &Image<'_>, pid: u32) -> Value {
    let (caps, chunks) = (image.capacities(), image.chunks());
    let processes: Vec<Value> = image
        .processes()
        .map(|process| {
            json!({
                "slot": process.id.0,
                "pid": process.pid,
                "program": source::program(process.pid),
                "uid": process.uid,
            })
        })
        .collect();
    let queue_pairs: Vec<Value> = image
        .queue_pairs()
        .iter()
        .enumerate()
        .filter(|(_, pair)| pair.is_live())
        .map(|(index, pair)| {
            json!({
                "index": index, "ifindex": pair.ifindex, "queue": pair.queue_id,
                "backend": "af_xdp",
                "rx_packets": pair.rx_packets, "rx_bytes": pair.rx_bytes,
                "tx_packets": pair.tx_packets, "tx_bytes": pair.tx_bytes,
            })
        })
        .collect();
    json!({
        "found_in": pid,
        "endpoints": image.endpoints().count(), "endpoints_max": caps.endpoints,
        "chunks": caps.chunks, "chunks_free": chunks.free, "chunks_posted": chunks.posted,
        "chunks_queued": chunks.queued, "chunks_sending": chunks.sending,
        "chunk_size": caps.chunk_size,
        "processes": processes, "queue_pairs": queue_pairs,
    })
}

/// Images as they are in memory, with what is wrong with them.
fn images() -> Vec<Value> {
    source::memfds(bypass_runtime::image::NAME, &source::pids())
        .iter()
        .map(|held| {
            let Some(bytes) = held.read_stack() else {
                return json!({ "found_in": held.pid, "problem": "cannot be read" });
            };
            match Image::attach(bytes.bytes()) {
                Err(error) => json!({ "found_in": held.pid, "problem": format!("{error:?}") }),
                Ok(image) => {
                    let mut problems = Vec::new();
                    image.check(&mut |problem| {
                        if problems.len() < PROBLEMS {
                            problems.push(format!("{problem:?}"));
                        }
                    });
                    let mut description = describe(&image, held.pid);
                    description["problems"] = json!(problems);
                    description
                }
            }
        })
        .collect()
}

/// Prints the stacks: as the daemon knows them, or from memory when there is no daemon.
pub fn list(json: &Json) -> Result<(), Failure> {
    let answer = source::query(QueryKind::Stacks).unwrap_or_else(|_| Value::Array(images()));
    if json.json {
        render::json(&answer);
        return Ok(());
    }
    let stacks = answer.as_array().map_or(&[][..], Vec::as_slice);
    if stacks.is_empty() {
        return Err(Failure::nothing("no stacks"));
    }
    let columns = [
        ("STACK", "id"),
        ("USER", "user"),
        ("ENDPOINTS", "endpoints"),
        ("CHUNKS", "chunks"),
        ("FREE", "chunks_free"),
        ("FILTERS", "filters"),
        ("STATE", "state"),
    ];
    render::objects(&columns, stacks);
    Ok(())
}

/// Prints every image with its problems. Exit code 1 when one has any.
pub fn dump(json: &Json) -> Result<(), Failure> {
    let images = images();
    if images.is_empty() && !json.json {
        return Err(Failure::nothing("no stack images"));
    }
    let broken = images.iter().any(|image| {
        image.get("problem").is_some()
            || image["problems"].as_array().is_some_and(|problems| !problems.is_empty())
    });
    render::json(&Value::Array(images));
    if broken {
        return Err(Failure::new(
            "an image has problems (a live one may look so for a moment: ask again)",
        ));
    }
    Ok(())
}

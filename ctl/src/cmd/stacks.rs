//! `bypassctl stacks` and `bypassctl dump`: stacks as the daemon knows them, and stack images read
//! live, checked, and never believed.

use std::time::Duration;

use bypass_proto::control::QueryKind;
use bypass_proto::policy::Backend;
use bypass_runtime::image;
use bypass_stack::QueuePairInfo;
use bypass_stack::inspect::{Image, ProcessView};
use serde_json::{Value, json};

use super::Json;
use crate::source::Held;
use crate::{Failure, render, source};

/// Problems of one image that are printed; a corrupted one has thousands.
const PROBLEMS: usize = 20;
/// How often an image with problems is copied again: an update half done looks like damage.
const LOOKS: usize = 4;
/// Time between two looks; an update takes microseconds.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// Read stack images and check them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bypassctl dump
  bypassctl dump 4e1f --json

Exit code 1 when an image is damaged.")]
pub struct Dump {
    /// Beginning of the id of one stack (see bypassctl stacks).
    stack: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Images as they are in memory, with what is wrong with them.
fn images() -> Vec<Value> {
    let pids = source::in_this_namespace();
    source::memfds(image::NAME, &pids)
        .iter()
        .map(look)
        .collect()
}

fn look(held: &Held) -> Value {
    for turn in 1.. {
        let description = look_once(held);
        let sound = description["problems"]
            .as_array()
            .is_some_and(Vec::is_empty);
        if sound || turn == LOOKS {
            return description;
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    Value::Null
}

fn look_once(held: &Held) -> Value {
    let Some(copy) = held.read_image() else {
        return json!({ "found_in": held.pid, "problems": ["it cannot be read"] });
    };
    let mut description = match Image::attach(copy.stack()) {
        Err(error) => json!({ "problems": [format!("it is no stack image: {error:?}")] }),
        Ok(image) => describe(&image),
    };
    description["id"] = copy.name().into();
    description["found_in"] = held.pid.into();
    description
}

/// What can be said of one image.
fn describe(image: &Image<'_>) -> Value {
    let (caps, chunks) = (image.capacities(), image.chunks());
    let mut problems = Vec::new();
    let mut count = 0_usize;
    image.check(&mut |problem| {
        count += 1;
        if problems.len() < PROBLEMS {
            problems.push(problem.to_string());
        }
    });
    if count > problems.len() {
        problems.push(format!("and {} more", count - problems.len()));
    }
    let processes: Vec<Value> = image.processes().map(process).collect();
    let pairs = image.queue_pairs().iter().enumerate();
    let queue_pairs: Vec<Value> = pairs
        .filter(|(_, pair)| pair.is_live())
        .map(|(index, pair)| queue_pair(index, pair))
        .collect();
    let uid = image.processes().next().map(|process| process.uid);
    json!({
        "uid": uid, "user": uid.and_then(source::user_name),
        "endpoints": image.endpoints().count(), "endpoints_max": caps.endpoints,
        "chunks": caps.chunks, "chunks_free": chunks.free, "chunks_posted": chunks.posted,
        "chunks_queued": chunks.queued, "chunks_sending": chunks.sending,
        "chunk_size": caps.chunk_size, "waiters": image.waiters().count(),
        "processes": processes, "queue_pairs": queue_pairs, "problems": problems,
    })
}

fn process(process: ProcessView) -> Value {
    json!({
        "slot": process.id.0, "pid": process.pid, "program": source::program(process.pid),
        "uid": process.uid,
    })
}

fn queue_pair(index: usize, pair: &QueuePairInfo) -> Value {
    let native = pair.flags & QueuePairInfo::NATIVE != 0;
    let mode = if native { "native" } else { "generic" };
    let mut backends = Backend::ALL.iter();
    let backend = backends.find(|backend| **backend as u8 == pair.backend);
    let name = std::fs::read_dir("/sys/class/net")
        .ok()
        .and_then(|entries| {
            entries.flatten().find_map(|entry| {
                let number = std::fs::read_to_string(entry.path().join("ifindex")).ok()?;
                (number.trim().parse() == Ok(pair.ifindex))
                    .then(|| entry.file_name().to_string_lossy().into_owned())
            })
        });
    json!({
        "index": index, "ifindex": pair.ifindex, "interface": name, "queue": pair.queue_id,
        "backend": backend.map(|backend| backend.word()),
        "mode": (backend == Some(&Backend::AfXdp)).then_some(mode),
        "zero_copy": pair.flags & QueuePairInfo::ZERO_COPY != 0, "live": true,
        "rx_packets": pair.rx_packets, "rx_bytes": pair.rx_bytes,
        "tx_packets": pair.tx_packets, "tx_bytes": pair.tx_bytes,
        "tx_doorbells": pair.tx_doorbells,
    })
}

/// Prints the stacks: as the daemon knows them, or from memory when there is no daemon.
///
/// # Errors
/// Exit code 3 when there are none.
pub fn list(json: &Json) -> Result<(), Failure> {
    let answer = source::query(QueryKind::Stacks).unwrap_or_else(|_| Value::Array(images()));
    if json.json {
        render::json(&answer);
        return Ok(());
    }
    let stacks = answer.as_array().map_or(&[][..], Vec::as_slice);
    if stacks.is_empty() {
        return Err(Failure::nothing(
            "no stacks: no program has run under the bypass here",
        ));
    }
    let shown: Vec<Value> = stacks
        .iter()
        .filter(|stack| stack.is_object())
        .cloned()
        .map(with_texts)
        .collect();
    let columns = [
        ("STACK", "id"),
        ("USER", "user"),
        ("STATE", "state"),
        ("ENDPOINTS", "endpoints"),
        ("CHUNKS", "chunks"),
        ("FREE", "chunks_free"),
        ("FILTERS", "filters"),
        ("INTERFACES", "interfaces_text"),
        ("PROGRAMS", "programs_text"),
    ];
    render::objects(&columns, &shown);
    Ok(())
}

/// Adds the lists of a stack as one cell each.
fn with_texts(mut stack: Value) -> Value {
    let join = |list: &Value, text: &dyn Fn(&Value) -> String| {
        let mut texts: Vec<String> = list.as_array().into_iter().flatten().map(text).collect();
        texts.dedup();
        texts.join(" ")
    };
    let cell = render::cell;
    let pair = |pair: &Value| format!("{}:{}", cell(&pair["interface"]), cell(&pair["queue"]));
    let name = |process: &Value| format!("{}/{}", cell(&process["program"]), cell(&process["pid"]));
    stack["interfaces_text"] = join(&stack["queue_pairs"], &pair).into();
    stack["programs_text"] = join(&stack["processes"], &name).into();
    stack
}

impl Dump {
    /// Prints every image with its problems.
    ///
    /// # Errors
    /// Exit code 1 when one has any, 3 when there is none.
    pub fn execute(&self) -> Result<(), Failure> {
        let mut images = images();
        if let Some(wanted) = &self.stack {
            images.retain(|image| {
                image["id"]
                    .as_str()
                    .is_some_and(|id| id.starts_with(wanted))
            });
        }
        if self.json {
            render::json(&Value::Array(images.clone()));
        } else if images.is_empty() {
            return Err(Failure::nothing("no such stack image here"));
        } else {
            images
                .iter()
                .flat_map(lines)
                .for_each(|line| render::line(&line));
        }
        let damaged = |image: &&Value| {
            image["problems"]
                .as_array()
                .is_none_or(|list| !list.is_empty())
        };
        match images.iter().filter(damaged).count() {
            0 => Ok(()),
            count => Err(Failure::new(format!(
                "{count} of {} images are damaged: restart the programs that hold them",
                images.len()
            ))),
        }
    }
}

/// An image as a person reads it.
fn lines(image: &Value) -> Vec<String> {
    let cell = |field: &str| render::cell(&image[field]);
    let list = |field: &str| image[field].as_array().cloned().unwrap_or_default();
    let mut lines = vec![format!(
        "stack {}, user {}, found in process {}",
        cell("id"),
        cell("user"),
        cell("found_in")
    )];
    if image.get("chunks").is_some() {
        lines.push(format!(
            "  endpoints: {} of {}",
            cell("endpoints"),
            cell("endpoints_max")
        ));
        lines.push(format!(
            "  chunks of {} bytes: {} = {} free + {} posted + {} queued + {} sending",
            cell("chunk_size"),
            cell("chunks"),
            cell("chunks_free"),
            cell("chunks_posted"),
            cell("chunks_queued"),
            cell("chunks_sending")
        ));
    }
    for process in list("processes") {
        let cell = |field: &str| render::cell(&process[field]);
        lines.push(format!(
            "  process {} in slot {}: {}, uid {}",
            cell("pid"),
            cell("slot"),
            cell("program"),
            cell("uid")
        ));
    }
    for pair in list("queue_pairs") {
        let cell = |field: &str| render::cell(&pair[field]);
        lines.push(format!(
            "  queue pair {}: {} queue {}, {} {}, {} frames in, {} out",
            cell("index"),
            cell("interface"),
            cell("queue"),
            cell("backend"),
            cell("mode"),
            cell("rx_packets"),
            cell("tx_packets")
        ));
    }
    let problems = list("problems");
    let problems = problems.iter().map(render::cell);
    lines.extend(problems.map(|problem| format!("  PROBLEM: {problem}")));
    lines
}

#[cfg(test)]
mod tests {
    use bypass_stack::{Capacities, Stack, image_bytes};
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn an_image_is_described_and_a_damaged_one_too() {
        let caps = Capacities {
            endpoints: 8,
            chunks: 16,
            chunk_size: 2048,
        };
        let mut words = vec![0_u64; image_bytes(&caps) / 8];
        let mut stack = Stack::create(words.as_mut_bytes(), caps, 1).expect("capacities");
        stack.add_process(std::process::id(), 1, 0).expect("a slot");
        let image = Image::attach(words.as_bytes()).expect("an image");
        let sound = describe(&image);
        assert_eq!(
            (&sound["problems"], &sound["chunks_free"]),
            (&json!([]), &json!(16))
        );
        assert_eq!(sound["user"], "root");
        assert_eq!(lines(&sound).len(), 4, "{:?}", lines(&sound));
        let half = words.len() / 2;
        for word in &mut words[half..] {
            *word = 0x5a5a_5a5a_5a5a_5a5a;
        }
        let damaged = describe(&Image::attach(words.as_bytes()).expect("its head is whole"));
        let problems = damaged["problems"].as_array().expect("a list");
        assert!((1..=PROBLEMS + 1).contains(&problems.len()));
        assert!(lines(&damaged).len() > problems.len());
    }

    #[test]
    fn a_stack_of_any_shape_has_its_cells() {
        for odd in [json!({}), json!({"processes": 3, "queue_pairs": [null, 1]})] {
            let _ = with_texts(odd);
        }
        let stack = json!({"queue_pairs": [{"interface": "veth0", "queue": 0}], "processes": []});
        assert_eq!(with_texts(stack)["interfaces_text"], "veth0:0");
    }
}

//! SO_REUSEPORT groups whose members come and go in the middle of traffic.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bypass_tests::program::{Running, wait_until};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon, paths};

use super::harness::Scene;

const PORT: &str = "7020";
/// So many that every member has some.
const FLOWS: u32 = 128;
/// How many datagrams a member reads before it leaves: several of each of its flows.
const STAY: u64 = 200;
/// Members that leave in the whole.
const LEAVERS: usize = 9;
const LIMIT: Duration = Duration::from_secs(60);

/// Who read a datagram, by flow and number. The name of a member that stays begins with `s`.
type Readers = BTreeMap<(u32, u32), String>;

/// A group and the folder of its logs.
struct Group<'a> {
    scene: &'a Scene,
    address: String,
    folder: PathBuf,
}

impl Group<'_> {
    /// Starts a process with these members, `NAME` or `NAME=COUNT`, and waits until they take part.
    fn join(&self, members: &[&str]) -> Result<Running> {
        let mut process = self.scene.bed.program(Side::Server, "/usr/bin/python3");
        process.column(self.scene.column).arg("-I");
        process
            .arg(script("group_member.py"))
            .args([&self.address, PORT]);
        process.args(members.iter().map(|member| self.folder.join(member)));
        let process = process.spawn()?;
        for member in members {
            let name = member.split('=').next().unwrap_or(member);
            wait_until(&format!("{member} takes part"), LIMIT, || {
                self.log(name).is_some()
            })
            .map_err(|error| format!("{error}: {}", process.stderr()))?;
        }
        Ok(process)
    }

    /// Waits until a member has read what it stays for.
    fn had_its_time(&self, member: &str) -> Result<()> {
        wait_until(&format!("{member} has read"), LIMIT, || {
            self.log(member).is_some_and(|bytes| bytes >= 8 * STAY)
        })
    }

    /// Bytes of a member's log.
    fn log(&self, member: &str) -> Option<u64> {
        Some(fs::metadata(self.folder.join(member)).ok()?.len())
    }

    /// After one has left: waits until every flow reaches members that are there to stay.
    fn settle(&self, leaver: &str) -> Result<()> {
        fs::write(self.folder.join(format!("left-{leaver}")), "")?;
        let newest = |readers: &Readers, flow| {
            let mut numbers = readers.range((flow, 0)..(flow + 1, 0));
            numbers
                .rfind(|(_, reader)| stays(reader))
                .map(|(at, _)| at.1)
        };
        let readers = read(&self.folder)?;
        let now = readers.keys().map(|at| at.1).max();
        wait_until("every flow is read", LIMIT, || {
            read(&self.folder)
                .is_ok_and(|readers| (0..FLOWS).all(|flow| newest(&readers, flow) > now))
        })
    }
}

fn script(name: &str) -> PathBuf {
    paths::repository().join("tests/e2e").join(name)
}

fn stays(reader: &str) -> bool {
    reader.starts_with('s')
}

/// Reads the logs.
fn read(folder: &Path) -> Result<Readers> {
    let mut readers = Readers::new();
    for file in fs::read_dir(folder)? {
        let file = file?;
        let name = file.file_name().to_string_lossy().into_owned();
        for entry in fs::read(file.path())?.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *entry;
            let at = (
                u32::from_le_bytes([a, b, c, d]),
                u32::from_le_bytes([e, f, g, h]),
            );
            if let Some(other) = readers.insert(at, name.clone()) {
                return Err(format!("{at:?} is read twice, by {other} and {name}").into());
            }
        }
    }
    Ok(readers)
}

/// Datagrams that nobody read though nobody who left had them: what comes after one that a leaver
/// read may have been in its queue.
fn missing(readers: &Readers, rounds: u32) -> Vec<String> {
    let mut missing = Vec::new();
    for flow in 0..FLOWS {
        let mut last = "nobody";
        for number in 0..rounds {
            match readers.get(&(flow, number)) {
                Some(reader) => last = reader,
                None if stays(last) || last == "nobody" => {
                    let later = readers.range((flow, number)..(flow + 1, 0)).next();
                    let next = later.map_or("nobody", |(_, reader)| reader);
                    missing.push(format!(
                        "{number} of flow {flow}, between what {last} and {next} read"
                    ));
                }
                None => {}
            }
        }
    }
    missing
}

/// A flood from the kernel's side. It prints how many rounds it had when it has been told to stop.
fn flood(group: &Group<'_>) -> Result<Running> {
    let mut flood = group.scene.bed.program(Side::Client, "/usr/bin/python3");
    flood.arg("-I").arg(script("group_flood.py"));
    flood.args([&group.scene.host(), PORT, &FLOWS.to_string()]);
    flood.arg(&group.folder).spawn()
}

/// Fails unless all is read of so many rounds. The kernel may give a datagram to a socket that is
/// leaving just then, whosever flow it is of (net/ipv4/udp.c: one that is in its table, but not in
/// its group any more, is taken as it is).
fn all_is_read(group: &Group<'_>, rounds: u32) -> Result<()> {
    let excused = if group.scene.has_shim() { 0 } else { LEAVERS };
    let mut lost = Vec::new();
    let all_is_read = wait_until("all is read", Duration::from_secs(30), || {
        lost = read(&group.folder).map_or_else(
            |error| vec![error.to_string()],
            |readers| missing(&readers, rounds),
        );
        lost.len() <= excused
    });
    all_is_read.map_err(|error| {
        let counters = daemon::bypassctl(&group.scene.bed, &["stats"]);
        let counters = counters.map_or_else(|error| error.to_string(), |run| run.stdout);
        format!("{error}: of {rounds} rounds {lost:#?}\n{counters}").into()
    })
}

/// A thread closes its socket, a process exits, one is killed, each while others go on and join:
/// nobody who stays misses a datagram.
fn come_and_go(group: &Group<'_>) -> Result<()> {
    let mut members = vec![group.join(&["s-first"])?];
    let flood = flood(group)?;
    for turn in 0..3 {
        let name = |what: &str| format!("{what}{turn}");
        let leaving = |what: &str| format!("{what}{turn}={STAY}");
        members.push(group.join(&[&name("s-process")])?);
        members.push(group.join(&[&name("s-thread"), &leaving("closed")])?);
        group.had_its_time(&name("closed"))?;
        group.settle(&name("closed"))?;
        group.join(&[&leaving("exited")])?.wait(LIMIT)?.check()?;
        group.settle(&name("exited"))?;
        let doomed = group.join(&[&name("killed")])?;
        group.had_its_time(&name("killed"))?;
        doomed.kill();
        group.settle(&name("killed"))?;
    }
    fs::write(group.folder.join("stop"), "")?;
    let rounds = flood.wait(LIMIT)?.check()?.stdout.trim().parse()?;
    all_is_read(group, rounds)
}

fn group_of(scene: &Scene, address: &str) -> Result<()> {
    let folder = scene.bed.folder().join("group");
    fs::create_dir(&folder)?;
    let address = address.to_owned();
    come_and_go(&Group {
        scene,
        address,
        folder,
    })
}

/// A group on an address.
pub(crate) fn group_comes_and_goes(scene: &Scene) -> Result<()> {
    group_of(scene, &scene.host())
}

/// A group on any address.
pub(crate) fn group_on_any_address(scene: &Scene) -> Result<()> {
    group_of(scene, "0.0.0.0")
}

/// A group of listeners, and connections to it.
struct Listeners<'a> {
    scene: &'a Scene,
    folder: PathBuf,
    clients: Option<Running>,
    counts: u32,
}

impl Listeners<'_> {
    /// Starts a member.
    fn join(&self, name: &str) -> Result<Running> {
        let mut member = self.scene.bed.program(Side::Server, "/usr/bin/python3");
        member.column(self.scene.column).arg("-I");
        member.arg(script("group_listener.py"));
        member.args([&self.scene.host(), PORT, name]);
        let member = member.arg(self.leave(name)).spawn()?;
        wait_until(&format!("{name} listens"), LIMIT, || {
            member.stdout().contains("listens")
        })
        .map_err(|error| format!("{error}: {}", member.stderr()))?;
        Ok(member)
    }

    fn leave(&self, name: &str) -> PathBuf {
        self.folder.join(format!("leave-{name}"))
    }

    /// New connections by member: fails unless each of these members has a share, and no other.
    fn shared_by(&mut self, members: &[&str]) -> Result<()> {
        self.counts += 1;
        let file = self.folder.join(format!("count{}", self.counts));
        fs::write(&file, "")?;
        let clients = &self.clients;
        let mut text = String::new();
        wait_until("400 connections", LIMIT, || {
            text = fs::read_to_string(&file).unwrap_or_default();
            !text.is_empty()
        })
        .map_err(|error| {
            let told = clients.as_ref().map(Running::stderr);
            format!("{error}: {}", told.unwrap_or_default())
        })?;
        let count = |member: &&str| {
            let line = text.lines().find_map(|line| line.strip_prefix(member));
            line.and_then(|rest| rest.trim().parse::<usize>().ok())
        };
        let counts: Option<Vec<usize>> = members.iter().map(count).collect();
        let least = 400 / members.len() / 3;
        let is_shared = counts.is_some_and(|counts| counts.iter().all(|&count| count > least));
        if is_shared && text.lines().count() == members.len() {
            return Ok(());
        }
        Err(format!("members {members:?}, connections {text}").into())
    }
}

/// A listener for each process: flows are spread, members come, go and are killed, and what is
/// established stays where it is.
pub(crate) fn listeners_come_and_go(scene: &Scene) -> Result<()> {
    let folder = scene.bed.folder().join("group");
    fs::create_dir(&folder)?;
    let mut group = Listeners {
        scene,
        folder,
        clients: None,
        counts: 0,
    };
    let (first, second) = (group.join("m1")?, group.join("m2")?);
    let third = group.join("m3")?;
    let mut clients = scene.bed.program(Side::Client, "/usr/bin/python3");
    clients.arg("-I").arg(script("group_connections.py"));
    clients.args([&scene.host(), PORT, "120"]);
    group.clients = Some(clients.arg(&group.folder).spawn()?);
    group.shared_by(&["m1", "m2", "m3"])?;
    let fourth = group.join("m4")?;
    group.shared_by(&["m1", "m2", "m3", "m4"])?;
    fs::write(group.leave("m2"), "")?;
    fs::write(group.folder.join("killed-m3"), "")?;
    third.kill();
    group.shared_by(&["m1", "m4"])?;
    let fifth = group.join("m5")?;
    group.shared_by(&["m1", "m4", "m5"])?;
    fs::write(group.folder.join("stop"), "")?;
    let clients = group.clients.take().ok_or("no clients")?;
    let told = clients.wait(LIMIT)?.check()?.stdout;
    // In the two moments in which a listener ended.
    let resets = told.split_whitespace().nth(1);
    let resets = resets.and_then(|it| it.parse().ok()).unwrap_or(u32::MAX);
    if resets > 4 {
        return Err(told.into());
    }
    for (name, member) in [("m1", first), ("m2", second), ("m4", fourth), ("m5", fifth)] {
        fs::write(group.leave(name), "")?;
        member.wait(LIMIT)?.check()?;
    }
    Ok(())
}

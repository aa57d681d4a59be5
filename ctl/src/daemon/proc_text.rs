//! The texts of `/proc`, as far as the daemon reads them. What is odd is skipped.

/// What `/proc/PID/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat<'a> {
    /// Name of the program or thread, which may have set it to anything, parentheses too.
    pub name: &'a str,
    /// "R", "S", "Z", …
    pub state: &'a str,
    /// Process id of the parent.
    pub parent: u32,
    /// Ticks since the boot.
    pub start_time: u64,
}

/// Reads `/proc/PID/stat`. `None` when it is cut off.
pub(super) fn stat(text: &str) -> Option<Stat<'_>> {
    let (head, tail) = text.rsplit_once(')')?;
    // Behind the name: state is field 3, the parent 4, the start time 22.
    let mut fields = tail.split_whitespace();
    Some(Stat {
        name: head.split_once('(').map_or("", |(_, name)| name),
        state: fields.next()?,
        parent: fields.next()?.parse().ok()?,
        start_time: fields.nth(17)?.parse().ok()?,
    })
}

/// The numbers of one field of `/proc/PID/status`, whose name ends with a colon.
pub(super) fn numbers(status: &str, field: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// Inodes of the mappings in `/proc/PID/maps` whose names have `wanted` in them and whose files are
/// on this device, given as it stands there ("00:01"). One after another counts once.
pub(super) fn mapped(maps: &str, wanted: &str, device: &str) -> Vec<u64> {
    let inode = |line: &str| {
        let mut fields = line.split_whitespace().skip(3);
        // A file elsewhere may have the same name and number.
        fields.next().filter(|found| *found == device)?;
        fields.next()?.parse().ok()
    };
    let lines = maps.lines().filter(|line| line.contains(wanted));
    let mut inodes: Vec<u64> = lines.filter_map(inode).collect();
    inodes.dedup();
    inodes
}

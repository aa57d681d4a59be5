//! Output: aligned tables for people, JSON for machines.
//!
//! Tables have a heading, columns as wide as their widest cell, two blanks between them, and no
//! borders. Program names and the like come from others: what is not printable becomes U+FFFD, so
//! that nothing can talk to the terminal.
//!
//! # JSON
//!
//! Every list prints one JSON array (an empty one when there is nothing, with exit code 0).
//! `filters list`, `stacks` pass the daemon's objects through; the others:
//!
//! - `sockets`: `pid program fd protocol local remote backend state recv_queued send_queued
//!   recv_queued_bytes drops rx_packets tx_packets`; `backend` is `kernel` for a socket that
//!   `--all` adds; `pid` is null where no program has the socket (any more, or yet).
//! - `stats`: `kind` (`counter drop queue fall-through daemon`), `stack` or `pid` and `program`,
//!   `name value sentence`; with `--watch` `per_second`.
//! - `explain`: `pid program fd protocol local remote role served_by backend reason sentence
//!   advice errno rule config`; `rule` is the number of the rule in the file, from 1.
//! - `explain --dry-run`: an object with `program config notes rules sockets`, sockets as above.
//! - `doctor`: `state` (`ok warn fail`) `what do`.
//! - `dump`: an object per image with everything that it says and `problems`.

use std::io::Write;

use serde_json::Value;

/// Writes one piece of text to standard output. A reader that has gone ends the program: there is
/// nobody to tell.
pub fn text(text: &str) {
    let mut out = std::io::stdout().lock();
    if out
        .write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .is_err()
    {
        std::process::exit(1);
    }
}

/// One line on standard error.
#[expect(clippy::print_stderr, reason = "the one place that does")]
pub fn complain(message: &str) {
    eprintln!("bypassctl: {}", printable(message));
}

/// One line on standard output.
pub fn line(line: &str) {
    text(&(printable(line) + "\n"));
}

/// JSON on standard output.
pub fn json(value: &Value) {
    text(&format!("{value:#}\n"));
}

/// A table with these columns.
pub fn table(columns: &[&str], rows: &[Vec<String>]) {
    text(&aligned(columns, rows));
}

fn aligned(columns: &[&str], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = columns.iter().map(|title| (*title).to_owned()).collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let lines = || [&heading].into_iter().chain(&rows);
    let width = |index: usize| {
        let cells = lines().filter_map(|row| row.get(index));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in lines() {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A JSON value as a cell: "-" where there is none.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A table of chosen fields of JSON objects; `a.b` goes into an object.
pub fn objects(columns: &[(&str, &str)], list: &[Value]) {
    let titles: Vec<&str> = columns.iter().map(|(title, _)| *title).collect();
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|object| {
            let find = |path: &str| path.split('.').fold(object, |value, part| &value[part]);
            columns.iter().map(|(_, path)| cell(find(path))).collect()
        })
        .collect();
    table(&titles, &rows);
}

fn printable(text: &str) -> String {
    let replace = |c: char| {
        if c.is_control() {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(replace).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["1".to_owned(), "naïve".to_owned(), "x".to_owned()],
            vec!["12345".to_owned(), "\u{1b}[2J".to_owned(), String::new()],
        ];
        assert_eq!(
            aligned(&["PID", "NAME", "REST"], &rows),
            "PID    NAME   REST\n1      naïve  x\n12345  \u{fffd}[2J\n"
        );
    }

    #[test]
    fn a_row_may_be_short_or_long() {
        let rows = [vec![], vec!["a".to_owned(), "b".to_owned()]];
        assert_eq!(aligned(&["X"], &rows), "X\n\na\n");
    }
}

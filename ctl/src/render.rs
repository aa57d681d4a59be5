//! Output: aligned tables for people, JSON for machines.
//!
//! Tables have a heading, columns as wide as their widest cell, two blanks between them, and no
//! borders. Program names and the like come from others: what is not printable becomes U+FFFD in
//! text and an escape in JSON, so that nothing can talk to the terminal or hide.
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
//! - `devices list`: `address interfaces driver physical virtuals most_virtuals iommu_group
//!   default_route`; `physical` is the function that it is a virtual one of.
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
    text(&escaped(&format!("{value:#}\n")));
}

/// JSON with hidden characters as escapes. Only strings have such, but for the line breaks between.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || !is_hidden(c) {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            text += &format!("\\u{unit:04x}");
        }
    }
    text
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
        if is_hidden(c) {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(replace).collect()
}

/// Whether a character talks to the terminal, takes no place, or changes the order of others:
/// controls, separators of lines, and Unicode's Default_Ignorable_Code_Point.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
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
    fn nothing_hidden_is_printed_and_json_keeps_it() {
        let name = "a\u{202e}b\u{200b}c\u{9b}d\u{e0041}é\n";
        assert_eq!(
            printable(name),
            "a\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}é\u{fffd}"
        );
        let value = serde_json::json!([name, 1]);
        let text = escaped(&format!("{value:#}\n"));
        assert!(text.chars().all(|c| c == '\n' || !is_hidden(c)), "{text}");
        assert!(
            text.contains(r"a\u202eb\u200bc\u009bd\udb40\udc41é\n"),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), value);
    }

    #[test]
    fn a_row_may_be_short_or_long() {
        let rows = [vec![], vec!["a".to_owned(), "b".to_owned()]];
        assert_eq!(aligned(&["X"], &rows), "X\n\na\n");
    }
}

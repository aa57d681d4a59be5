//! Output: aligned tables for people, JSON for machines.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the one place that prints")]

use serde_json::Value;

/// One line on standard error.
pub fn complain(message: &str) {
    eprintln!("bypassctl: {message}");
}

/// One line on standard output.
pub fn line(text: &str) {
    println!("{text}");
}

/// JSON on standard output.
pub fn json(value: &Value) {
    println!("{value:#}");
}

/// A table with these columns.
pub fn table(columns: &[&str], rows: &[Vec<String>]) {
    let width = |index: usize| {
        rows.iter()
            .filter_map(|row| row.get(index))
            .map(|cell| cell.chars().count())
            .chain([columns[index].len()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let text: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", text.join("  ").trim_end());
    };
    print(&mut columns.iter().copied());
    for row in rows {
        print(&mut row.iter().map(String::as_str));
    }
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

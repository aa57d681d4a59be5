//! A plain text table: first column to the left, the others to the right.

use std::fmt::Write as _;

/// Rows of cells, the first one the heading.
#[derive(Debug, Default)]
pub(crate) struct Table(pub(crate) Vec<Vec<String>>);

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self(vec![
            headings.iter().map(|text| (*text).to_owned()).collect(),
        ])
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }

    /// The table as text.
    pub(crate) fn render(&self) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|at| {
                self.0
                    .iter()
                    .filter_map(|row| row.get(at))
                    .map(|c| c.chars().count())
                    .max()
            })
            .map(|width| width.unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.0 {
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // Writing into a string does not fail.
                let _ = if at == 0 {
                    write!(text, "{cell:<width$}")
                } else {
                    write!(text, "  {cell:>width$}")
                };
            }
            text.push('\n');
        }
        text
    }
}

/// A number with as many decimals as make sense for its size.
pub(crate) fn number(value: f64) -> String {
    match value {
        0.0 => "-".to_owned(),
        v if v >= 1000.0 => thousands(v),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// 1234567 as `1 234 567`.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Table, number};

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["what", "rate"]);
        table.row(vec!["a".into(), number(1_234_567.0)]);
        assert_eq!(table.render(), "what       rate\na     1 234 567\n");
    }

    #[test]
    fn numbers_have_sensible_decimals() {
        assert_eq!(number(0.0), "-");
        assert_eq!(number(0.357), "0.36");
        assert_eq!(number(19.07), "19.1");
        assert_eq!(number(245_986.4), "245 986");
    }
}

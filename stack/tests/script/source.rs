//! A script's lines, with what it includes.

use super::words::{Outcome, Words, fit};
use std::path::Path;

/// What a file says.
#[derive(Debug)]
pub struct Source {
    /// Chunks of the packet memory.
    pub chunks: u32,
    /// Line numbers and actions.
    pub lines: Vec<(usize, String)>,
}

/// File and line, for messages.
pub fn place(path: &Path, line: usize, is_v4: bool) -> String {
    let family = if is_v4 { 4 } else { 6 };
    format!("{}:{line} (IPv{family})", path.display())
}

impl Source {
    /// Reads a script; none if it is for the other family only.
    pub fn read(path: &Path, is_v4: bool) -> Outcome<Option<Self>> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{path:?}: {error}"))?;
        let mut this = Self {
            chunks: 512,
            lines: Vec::new(),
        };
        for (nth, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            let mut words = Words::of(line);
            match words.next() {
                None => {}
                Some("include") => {
                    let name = words.want("name")?;
                    let part = path.with_file_name(format!("../{name}.part"));
                    let text = std::fs::read_to_string(&part)
                        .map_err(|error| format!("{}: {error}", place(path, nth + 1, is_v4)))?;
                    let part = text
                        .lines()
                        .map(|line| line.split('#').next().unwrap_or("").trim());
                    this.lines.extend(
                        part.filter(|line| !line.is_empty())
                            .map(|line| (nth + 1, line.to_owned())),
                    );
                }
                Some("family") => {
                    let only: u64 = fit(words.want("4 or 6")?)?;
                    if (only == 4) != is_v4 {
                        return Ok(None);
                    }
                }
                Some("chunks") => this.chunks = fit(words.want("count")?)?,
                Some(_) => this.lines.push((nth + 1, line.to_owned())),
            }
        }
        Ok(Some(this))
    }
}

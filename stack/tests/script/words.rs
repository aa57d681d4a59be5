//! Words of a line: numbers with units, `name=value` pairs, errno names.

/// Why a script did not run to its end.
pub type Outcome<T> = Result<T, String>;

/// Errors that scripts name.
const ERRNO: [(&str, i32); 11] = [
    ("EAGAIN", 11),
    ("EPIPE", 32),
    ("ECONNRESET", 104),
    ("ENOTCONN", 107),
    ("ETIMEDOUT", 110),
    ("ECONNREFUSED", 111),
    ("EHOSTUNREACH", 113),
    ("EINVAL", 22),
    ("EINPROGRESS", 115),
    ("EPROTO", 71),
    ("none", 0),
];

/// The number of an errno name.
pub fn errno(name: &str) -> Option<i32> {
    ERRNO
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

/// The name of an errno.
pub fn errno_name(number: i32) -> String {
    ERRNO
        .iter()
        .find(|(_, known)| *known == number)
        .map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

/// A span of time in nanoseconds: `5s`, `40ms`, `10us`, `7ns`, `0`.
pub fn span(word: &str) -> Outcome<u64> {
    let cut = word
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(word.len());
    let (digits, unit) = word.split_at(cut);
    let unit = match unit {
        "s" => 1e9,
        "ms" => 1e6,
        "us" => 1e3,
        "ns" => 1.0,
        "" if digits == "0" => 1.0,
        _ => return Err(format!("no span of time: {word}")),
    };
    let number: f64 = digits
        .parse()
        .map_err(|_| format!("no span of time: {word}"))?;
    Ok((number * unit).round() as u64)
}

/// A plain number, or a span in microseconds; `max` is the largest of 32 bits.
pub fn number(word: &str) -> Outcome<u64> {
    if word == "max" {
        return Ok(u64::from(u32::MAX));
    }
    match word.parse() {
        Ok(number) => Ok(number),
        Err(_) => span(word)
            .map(|ns| ns / 1000)
            .map_err(|_| format!("no number: {word}")),
    }
}

/// A number that fits the type.
pub fn fit<T: TryFrom<u64>>(word: &str) -> Outcome<T> {
    T::try_from(number(word)?).map_err(|_| format!("too large: {word}"))
}

/// `name=value`, `name>=value`, `name<=value`: the name, the comparison, the value.
pub fn comparison(word: &str) -> Outcome<(&str, &str, &str)> {
    for sign in [">=", "<=", "!=", "="] {
        if let Some((name, value)) = word.split_once(sign) {
            return Ok((name, sign, value));
        }
    }
    Err(format!("no comparison: {word}"))
}

/// Whether the comparison holds.
pub fn holds(found: u64, sign: &str, wanted: u64) -> bool {
    match sign {
        ">=" => found >= wanted,
        "<=" => found <= wanted,
        "!=" => found != wanted,
        _ => found == wanted,
    }
}

/// Words that are taken one after the other.
pub struct Words<'a>(std::vec::IntoIter<&'a str>);

impl<'a> Words<'a> {
    pub fn of(line: &'a str) -> Self {
        Self(line.split_whitespace().collect::<Vec<_>>().into_iter())
    }

    pub fn next(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    pub fn peek(&self) -> Option<&'a str> {
        self.0.as_slice().first().copied()
    }

    /// The next word, which must be there.
    pub fn want(&mut self, what: &str) -> Outcome<&'a str> {
        self.next().ok_or_else(|| format!("{what} is missing"))
    }

    /// Nothing may follow.
    pub fn end(&mut self) -> Outcome<()> {
        match self.next() {
            Some(word) => Err(format!("unexpected word: {word}")),
            None => Ok(()),
        }
    }
}

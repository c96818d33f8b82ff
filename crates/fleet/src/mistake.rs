//! What is wrong with a fleet file, and how it is shown.
//!
//! A [`Mistake`] has a stable code, says what is wrong and where, and what to write instead. Mistakes are sorted by place and none
//! is said twice. Lines of the file are shown, but never what may be a secret: values of secret keys, and whatever follows a key
//! that sounds like one, are covered with asterisks.

use std::fmt;

/// A place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// Characters that are meant, at least 1.
    pub width: u32,
}

impl At {
    /// The first character of the file.
    pub const START: Self = Self { line: 1, column: 1, width: 1 };

    /// Whether both begin at the same character.
    fn begins_with(self, other: Self) -> bool {
        (self.line, self.column) == (other.line, other.column)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// What kind, as `unknown-key`: stable, for scripts. [`crate::codes`] has them all.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// The file, as it was named.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// What to write instead, or what to do next.
    pub hint: String,
    /// The line itself, secrets covered; empty if there is none.
    pub source: String,
    /// How many characters of it are meant.
    pub width: u32,
}

/// All that is wrong with one file, sorted by place. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Mistake {
    /// Message, line, caret and hint, on up to five lines, without one at its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {} [{}]", self.file, self.line, self.column, self.message, self.code)?;
        if !self.source.is_empty() {
            let (source, column) = window(&self.source, self.column as usize - 1);
            let number = self.line.to_string();
            let margin = " ".repeat(number.len());
            let room = source.chars().count().saturating_sub(column).max(1);
            let carets = "^".repeat((self.width as usize).clamp(1, room));
            write!(f, "\n {number} | {source}\n {margin} | {}{carets}", " ".repeat(column))?;
        }
        if !self.hint.is_empty() {
            write!(f, "\n   hint: {}", self.hint)?;
        }
        Ok(())
    }
}

/// Most characters of a line that are shown.
const SHOWN_MAX: usize = 160;

/// What is shown of a line, and where `column` (from 0) is in it: tabs as one space, control characters as dots, and of a very
/// long line the part around the column.
fn window(line: &str, column: usize) -> (String, usize) {
    let from = if line.chars().count() > SHOWN_MAX { column.saturating_sub(SHOWN_MAX / 2) } else { 0 };
    let shown = line.chars().skip(from).take(SHOWN_MAX).map(|c| match c {
        '\t' => ' ',
        c if c.is_control() => '·',
        c => c,
    });
    (shown.collect(), column - from)
}

/// Most mistakes that are told of one file: nobody reads more, and a file that is none has one on every line.
const MISTAKES_MAX: usize = 1000;

/// Gathers mistakes while a file is read.
#[derive(Default)]
pub struct Report {
    found: Vec<(At, &'static str, String, String)>,
    secrets: Vec<At>,
    forms: usize,
}

impl Report {
    /// Notes a mistake.
    pub fn add(&mut self, code: &'static str, at: At, message: impl Into<String>, hint: impl Into<String>) {
        self.found.push((at, code, message.into(), hint.into()));
    }

    /// Remembers that a secret stands there.
    pub fn cover(&mut self, at: At) {
        self.secrets.push(at);
    }

    /// What is noted from here on by [`Self::add_judged`] is about values that have the right form, or it is not noted.
    pub fn forms_are_checked(&mut self) {
        self.forms = self.found.len();
    }

    /// Notes a mistake unless the form of that very value was found wrong, of which it would be a mere consequence.
    pub fn add_judged(
        &mut self,
        code: &'static str,
        at: At,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if !self.found[..self.forms].iter().any(|(other, ..)| other.begins_with(at)) {
            self.add(code, at, message, hint);
        }
    }

    /// Whether a mistake was noted there.
    pub fn has(&self, at: At) -> bool {
        self.found.iter().any(|(other, ..)| other.begins_with(at))
    }

    /// Whether a mistake of that kind was noted there.
    pub fn has_kind(&self, code: &str, at: At) -> bool {
        self.found.iter().any(|(other, kind, ..)| *kind == code && other.begins_with(at))
    }

    /// The mistakes in order, or nothing if there are none.
    pub fn finish(mut self, text: &str, file: &str) -> Option<Mistakes> {
        self.found.sort();
        self.found.dedup();
        self.found.truncate(MISTAKES_MAX);
        let lines: Vec<&str> = text.lines().collect();
        let make = |(at, code, message, hint): (At, &'static str, String, String)| {
            let (line, column, source) = self.locate(&lines, at);
            // The parser counts the spaces behind a quoted text to it.
            let meant: String = source.chars().skip(column as usize - 1).take(at.width as usize).collect();
            let width = u32::try_from(meant.trim_end().chars().count()).unwrap_or(1).max(1);
            Mistake { code, message, file: file.to_owned(), line, column, hint, source, width }
        };
        let mistakes: Vec<Mistake> = self.found.iter().cloned().map(make).collect();
        if mistakes.is_empty() { None } else { Some(Mistakes(mistakes)) }
    }

    /// The line and column, within the file whatever the parser said (it speaks of a line behind the last one), and the line.
    fn locate(&self, lines: &[&str], at: At) -> (u32, u32, String) {
        let count = u32::try_from(lines.len()).unwrap_or(u32::MAX).max(1);
        let line = at.line.clamp(1, count);
        let Some(source) = lines.get(line as usize - 1) else { return (1, 1, String::new()) };
        let length = u32::try_from(source.chars().count()).unwrap_or(u32::MAX);
        let column = if line < at.line { length.max(1) } else { at.column.clamp(1, length.max(1)) };
        let mut chars: Vec<char> = source.chars().collect();
        cover_by_key(&mut chars);
        for secret in self.secrets.iter().filter(|secret| secret.line == line) {
            // A secret over several lines has width 1: then all the rest of the line is covered.
            let from = (secret.column as usize - 1).min(chars.len());
            let to =
                if secret.width > 1 { (from + secret.width as usize).min(chars.len()) } else { chars.len() };
            chars[from..to].fill('*');
        }
        (line, column, chars.into_iter().collect())
    }
}

/// Parts of keys whose values are secret, wherever they stand: a misspelt key, a file that is not YAML, an engine's own setting.
const SECRET_WORDS: [&str; 6] = ["pass", "pasw", "secret", "masterauth", "token", "private"];

/// Covers the value that follows `key:` or `key=` where the key sounds like a secret and the value is no reference to one: to the
/// closing quote, within braces to the next comma or brace, else to the end of the line.
fn cover_by_key(line: &mut [char]) {
    let mut i = 0;
    while i < line.len() {
        let here = i;
        i += 1;
        if line[here] != ':' && line[here] != '=' {
            continue;
        }
        let in_key = |c: char| c.is_alphanumeric() || "-_\"'. ".contains(c);
        let key_start = line[..here].iter().rposition(|c| !in_key(*c)).map_or(0, |p| p + 1);
        let key: String = line[key_start..here].iter().collect::<String>().to_lowercase();
        let Some(start) = (here + 1..line.len()).find(|p| line[*p] != ' ') else { return };
        if line[start] == '{' || !SECRET_WORDS.iter().any(|word| key.contains(word)) {
            continue;
        }
        let quoted = line[start] == '"' || line[start] == '\'';
        let ends =
            |c: char| if quoted { c == line[start] } else { ",}".contains(c) && line[..here].contains(&'{') };
        let end = (start + 1..line.len()).find(|p| ends(line[*p])).unwrap_or(line.len());
        let value: String = line[start + usize::from(quoted)..end].iter().collect();
        if !["env:", "file:", "exec:"].iter().any(|kind| value.starts_with(kind)) {
            line[start..end].fill('*');
            i = end;
        }
    }
}

/// The name among `known` that was most likely meant, if any is near.
pub fn nearest<'k>(written: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let written = written.to_lowercase().replace('_', "-");
    let limit = match written.chars().count() {
        0..=2 => 1,
        3..=5 => 2,
        _ => 3,
    };
    known
        .into_iter()
        .map(|name| (distance(&written, &name.to_lowercase().replace('_', "-")), name))
        .filter(|(distance, name)| *distance <= limit && *distance < name.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Edits between two words: a letter put in, taken out, replaced, or two neighbours swapped. Words above 64 letters are far from all.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found() {
        let known = ["keep", "follow", "snapshot", "recovery_groups"];
        for (written, expect) in [
            ("kep", Some("keep")),
            ("folow", Some("follow")),
            ("ofllow", Some("follow")),
            ("Snapshots", Some("snapshot")),
            ("recovery-group", Some("recovery_groups")),
            ("password", None),
            ("x", None),
        ] {
            assert_eq!(nearest(written, known), expect, "{written}");
        }
    }

    #[test]
    fn secrets_are_covered_wherever_they_stand() {
        for (line, expect) in [
            ("password: hunter2", "password: *******"),
            ("{ pasword: \"hunt,r2\", user: a }", "{ pasword: ********\", user: a }"),
            ("{ pasword: hunter2, user: a }", "{ pasword: *******, user: a }"),
            ("  requirepass: hunter2, and more", "  requirepass: *****************"),
            ("password: \"env:PGPASSWORD\"", "password: \"env:PGPASSWORD\""),
            ("tokens: { engine: redis }", "tokens: { engine: redis }"),
            ("url: \"postgres://u?password=x\"", "url: \"postgres://u?password=**"),
            ("password:", "password:"),
        ] {
            let mut chars: Vec<char> = line.chars().collect();
            cover_by_key(&mut chars);
            assert_eq!(chars.into_iter().collect::<String>(), expect);
        }
    }
}

//! The two ways out: stdout is data, stderr is talk.
//!
//! With `--output json`, stdout is one JSON value and nothing else; talk goes to stderr in either case. All printing of the crate
//! is here.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::args::Output;
use crate::failure::{Failure, Result};

/// Where a command's results go.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    /// What stdout is.
    pub output: Output,
}

impl Printer {
    /// Prints a result: `value` as JSON, or what `text` writes.
    ///
    /// # Errors
    /// When stdout cannot be written to (a pipe that was closed is not an error).
    pub fn result<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result {
        let rendered = match self.output {
            Output::Text => text(value),
            Output::Json => serde_json::to_string_pretty(value)
                .map_err(|e| Failure::of("internal", &e, Some("report this as a bug".to_owned())))?,
        };
        self.line(&rendered)
    }

    /// Prints text to stdout, with a line's end.
    ///
    /// # Errors
    /// As [`Self::result`].
    pub fn line(self, text: &str) -> Result {
        let mut out = io::stdout().lock();
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        match write!(out, "{text}{end}").and_then(|()| out.flush()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::of("stdout", &e, Some("give stdout somewhere to go".to_owned())))
            }
            _ => Ok(()),
        }
    }

    /// Says something to the person at the terminal.
    pub fn say(self, text: impl AsRef<str>) {
        // There is nobody to tell when stderr itself is gone.
        let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
    }

    /// Prints a failure: to stderr for people, and to stdout as JSON where that was asked for.
    pub fn failure(self, failure: &Failure) {
        if self.output == Output::Json && !failure.printed {
            let body = mainstay_api::FailureBody {
                code: failure.code.clone(),
                message: failure.message.clone(),
                hint: Some(failure.hint.clone()),
            };
            // A broken stdout cannot be reported on stdout.
            let _ = self.result(&mainstay_api::Failure { error: body }, |_| String::new());
        }
        self.say(format!("error[{}]: {}", failure.code, failure.message));
        self.say(format!("next: {}", failure.hint));
    }

    /// Asks before something is destroyed. Without a terminal nothing is asked and the answer is no.
    ///
    /// # Errors
    /// When the answer is no.
    pub fn confirm(self, question: &str, yes: bool) -> Result {
        if yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::usage(
                "not-confirmed",
                format!("{question} Nobody is here to say yes"),
                "add --yes",
            ));
        }
        let _ = write!(io::stderr().lock(), "{question} [y/N] ");
        let mut answer = String::new();
        let _ = io::stdin().read_line(&mut answer);
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(());
        }
        Err(Failure::failed("not-confirmed", "stopped: the answer was no", "nothing was changed"))
    }
}

/// A table without a frame, legible in any terminal and to `awk`.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Bytes for people: `1.2 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut size = n as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

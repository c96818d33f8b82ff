//! Which process this is, told so that another one on this machine can see whether it still lives.

use std::fs;

use serde::{Deserialize, Serialize};

/// A process, now and on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// The machine's boot, and the namespace that process ids count in: two containers on one machine do not see each other's.
    pub machine: String,
    pub pid: u32,
    /// When it started, in clock ticks since boot: process ids are used again.
    pub start: String,
}

/// What can be told of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// This very process.
    Ours,
    Alive,
    Dead,
    /// It is on another machine.
    Unknown,
}

impl Process {
    pub fn ours() -> Self {
        let pid = std::process::id();
        Self { machine: machine(), pid, start: start_of(pid).unwrap_or_default() }
    }

    pub fn life(&self) -> Life {
        let machine = machine();
        if machine.is_empty() || self.machine != machine || self.start.is_empty() {
            return Life::Unknown;
        }
        match start_of(self.pid) {
            Some(start) if start == self.start => match self.pid == std::process::id() {
                true => Life::Ours,
                false => Life::Alive,
            },
            _ => Life::Dead,
        }
    }
}

fn machine() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    match boot.trim() {
        "" => String::new(),
        boot => format!("{boot} {}", namespace.display()),
    }
}

fn start_of(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything; the state is the first after it, the start the 20th.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // A zombie holds nothing any more.
    (state != "Z" && state != "X").then_some(())?;
    fields.nth(18).map(str::to_owned)
}

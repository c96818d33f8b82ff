//! Processes told apart for good: a process id with its start time and the boot that it belongs to.

use std::fs;
use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One process, never mistaken for a later one that was given the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// Clock ticks from boot to its start.
    pub(crate) start: u64,
    pub(crate) boot: String,
}

impl Identity {
    /// The process that has this id now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = Stat::of(pid)?;
        Some(Self { pid, start: stat.start, boot: boot_id().to_owned() })
    }

    /// Ourselves.
    pub(crate) fn own() -> Self {
        let pid = std::process::id();
        Self::of(pid).unwrap_or(Self { pid, start: 0, boot: boot_id().to_owned() })
    }

    /// Whether it lives. One that ended and was not yet buried by its parent does not.
    pub(crate) fn alive(&self) -> bool {
        self.boot == boot_id()
            && Stat::of(self.pid).is_some_and(|stat| stat.start == self.start && stat.lives())
    }

    /// Sends a signal, if it still lives.
    pub(crate) fn signal(&self, signal: Signal) -> nix::Result<()> {
        if !self.alive() {
            return Ok(());
        }
        match kill(pid(self.pid), signal) {
            Err(nix::errno::Errno::ESRCH) => Ok(()),
            other => other,
        }
    }
}

/// What we read of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    pub(crate) group: u32,
    pub(crate) start: u64,
    state: char,
}

impl Stat {
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name stands in parentheses and may hold anything, parentheses too: fields are counted from the last one.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (pid, rest) = line.split_once(" (")?;
        let fields: Vec<&str> = rest.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        Some(Self {
            pid: pid.trim().parse().ok()?,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }

    pub(crate) fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

/// All that descends from a process, and all in its group, without itself.
pub(crate) fn family(of: u32) -> Vec<Identity> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let all: Vec<Stat> = entries
        .filter_map(|entry| Stat::of(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .filter(Stat::lives)
        .collect();
    let mut family = vec![of];
    let mut next = 0;
    while let Some(parent) = family.get(next).copied() {
        let more = all.iter().filter(|s| s.parent == parent || (s.group == of && parent == of));
        let more: Vec<u32> = more.map(|s| s.pid).filter(|pid| !family.contains(pid)).collect();
        family.extend(more);
        next += 1;
    }
    let boot = boot_id();
    all.iter()
        .filter(|s| s.pid != of && family.contains(&s.pid))
        .map(|s| Identity { pid: s.pid, start: s.start, boot: boot.to_owned() })
        .collect()
}

/// Which boot of the machine this is.
pub(crate) fn boot_id() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        text.trim().to_owned()
    })
}

pub(crate) fn pid(number: u32) -> Pid {
    // Process ids never exceed 2^22; one that does not fit is nobody's.
    Pid::from_raw(i32::try_from(number).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_the_same_number() {
        let own = Identity::own();
        assert!(own.alive());
        assert!(!Identity { start: own.start + 1, ..own.clone() }.alive());
        assert!(!Identity { boot: "another".into(), ..own }.alive());
    }

    #[test]
    fn names_with_parentheses_do_not_confuse() {
        let rest = "S 7 8 9 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1 1";
        let stat = Stat::parse(&format!("42 (a) b (c)) {rest}")).unwrap();
        assert_eq!((stat.pid, stat.parent, stat.group, stat.start), (42, 7, 8, 4711));
        assert!(stat.lives());
        assert_eq!(Stat::parse("42 (a"), None);
    }
}

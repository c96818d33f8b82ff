//! Starting a process that is not tied to us: the one place that needs `unsafe`, since what runs between `fork` and `exec` does.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use mainstay_engine::{NodeCommand, RunAs};

/// What becomes of the process when we end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Life<'a> {
    /// It outlives us, in a session of its own. Before it becomes the program, it writes its line of `/proc` into this file: from
    /// then on it can be found, whether we live or not.
    Own(&'a File),
    /// It is killed when the thread that started it ends.
    Ours,
}

/// The program with a minimal environment, its user and folder, and nothing that we have open but the three streams.
pub(crate) fn command(what: &NodeCommand, life: Life<'_>) -> Command {
    let mut command = Command::new(&what.program);
    command.args(&what.args).current_dir(&what.cwd).env_clear();
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let home = what.log.parent().unwrap_or(&what.cwd);
    command.env("PATH", path).env("LANG", "C.UTF-8").env("HOME", home);
    command.envs(what.env.iter().map(|(name, value)| (name, value)));
    if let Some(RunAs { uid, gid }) = what.owner {
        command.uid(uid).gid(gid); // and no further groups: the standard library drops them for root
    }
    let record = match life {
        Life::Own(file) => Some(file.as_raw_fd()),
        Life::Ours => None,
    };
    let parent = std::process::id();
    #[expect(unsafe_code, reason = "between fork and exec; calls nothing that is not async-signal-safe")]
    unsafe {
        command.pre_exec(move || before_exec(record, parent));
    }
    command
}

#[expect(unsafe_code, reason = "plain system calls on descriptors that are open and a buffer on the stack")]
fn before_exec(record: Option<RawFd>, parent: u32) -> io::Result<()> {
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    unsafe {
        libc::umask(0o077);
        check(libc::setsid())?;
        match record {
            Some(record) => {
                let mut line = [0_u8; 1024];
                let stat = check(libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC))?;
                let read = libc::read(stat, line.as_mut_ptr().cast(), line.len());
                if read <= 0 || libc::write(record, line.as_ptr().cast(), read.cast_unsigned()) != read {
                    return Err(io::Error::last_os_error());
                }
            }
            None => {
                check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
                if libc::getppid().cast_unsigned() != parent {
                    return Err(io::ErrorKind::BrokenPipe.into()); // it ended before we asked to be told
                }
            }
        }
        // What we were given open by our own parent would otherwise stay open in the server for as long as it runs.
        let closed = libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        if closed < 0 {
            // A kernel before 5.11.
            for fd in 3..1024 {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
    }
    Ok(())
}

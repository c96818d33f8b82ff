//! Fetching the secrets that a fleet file refers to.
//!
//! A secret is looked up when it is needed and never kept in the model. Errors say which reference failed and why, never what was
//! found. A command has [`EXEC_DEADLINE`] and may print [`SECRET_BYTES_MAX`].

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mainstay_engine::Secret;
use mainstay_model::SecretRef;

/// How long a command may take to print a secret.
pub const EXEC_DEADLINE: Duration = Duration::from_secs(30);
/// Longest secret.
pub const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// A secret could not be had.
#[derive(Debug, thiserror::Error)]
#[error("read the secret {reference}")]
pub struct SecretError {
    /// The reference, as the fleet file has it.
    pub reference: SecretRef,
    /// Why not.
    pub source: Reason,
}

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// The environment variable is not set.
    #[error("the environment variable is not set")]
    NotSet,
    /// The file cannot be read, or the command not be started.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The command ended with another code than 0.
    #[error("the command failed: {0}")]
    Failed(std::process::ExitStatus),
    /// The command did not end in time.
    #[error("the command took longer than {} s", EXEC_DEADLINE.as_secs())]
    Deadline,
    /// Nothing is there.
    #[error("it is empty")]
    Empty,
    /// It is longer than any secret.
    #[error("it is longer than {SECRET_BYTES_MAX} bytes")]
    TooLong,
    /// It is not text.
    #[error("it is not UTF-8 text")]
    NotText,
}

/// Fetches a secret. `base_dir`: [`mainstay_model::Fleet::base_dir`]. Blocks, for as long as `EXEC_DEADLINE`.
pub fn resolve(reference: &SecretRef, base_dir: &Path) -> Result<Secret, SecretError> {
    let found = match reference {
        SecretRef::Env(name) => {
            std::env::var_os(name).map(|value| value.into_encoded_bytes()).ok_or(Reason::NotSet)
        }
        SecretRef::File(path) => {
            std::fs::File::open(base_dir.join(path)).map_err(Reason::Io).and_then(read_limited)
        }
        SecretRef::Exec(command) => run(command, base_dir),
    };
    found.and_then(tidy).map_err(|source| SecretError { reference: reference.clone(), source })
}

/// Without the newline that editors and `echo` put at the end.
fn tidy(bytes: Vec<u8>) -> Result<Secret, Reason> {
    let text = String::from_utf8(bytes).map_err(|_| Reason::NotText)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() { Err(Reason::Empty) } else { Ok(Secret::new(text)) }
}

fn read_limited(from: impl Read) -> Result<Vec<u8>, Reason> {
    let mut bytes = Vec::new();
    from.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX { Err(Reason::TooLong) } else { Ok(bytes) }
}

/// Runs a shell command. What it says on stderr goes to ours, since it may have to ask for something.
fn run(command: &str, base_dir: &Path) -> Result<Vec<u8>, Reason> {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command).current_dir(base_dir).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = shell.spawn()?;
    let stdout = child.stdout.take();
    // Reading happens beside waiting, since a command that prints more than a pipe holds would never end.
    let reader = std::thread::spawn(move || stdout.map_or(Ok(Vec::new()), read_limited));
    let status = wait(&mut child)?;
    // A process that the command left behind may hold the pipe open: then there is no end to what it prints.
    let until = Instant::now() + Duration::from_secs(5);
    while !reader.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    if !reader.is_finished() {
        return Err(Reason::Deadline);
    }
    let printed = reader.join().map_err(|_| Reason::Deadline)??;
    if status.success() { Ok(printed) } else { Err(Reason::Failed(status)) }
}

fn wait(child: &mut Child) -> Result<std::process::ExitStatus, Reason> {
    let until = Instant::now() + EXEC_DEADLINE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Err(Reason::Deadline);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reference: &str, expect: Result<&str, &str>) {
        let dir = std::env::temp_dir();
        let found = resolve(&reference.parse().unwrap(), &dir);
        let found = found.as_ref().map(Secret::expose).map_err(|error| error.source.to_string());
        assert_eq!(found, expect.map_err(str::to_owned), "{reference}");
    }

    #[test]
    fn secrets_are_fetched() {
        let path = std::env::temp_dir().join(format!("mainstay-secret-{}", std::process::id()));
        std::fs::write(&path, "hunter2\n").unwrap();
        check(&format!("file:{}", path.display()), Ok("hunter2"));
        check(&format!("file:{}", path.file_name().unwrap().to_str().unwrap()), Ok("hunter2"));
        std::fs::remove_file(&path).unwrap();
        check("exec:echo hunter2", Ok("hunter2"));
        check("exec:printf 'two words'", Ok("two words"));
    }

    #[test]
    fn what_cannot_be_fetched_says_why_and_shows_nothing() {
        check("env:MAINSTAY_TEST_THAT_NOBODY_SETS", Err("the environment variable is not set"));
        check("exec:true", Err("it is empty"));
        check("exec:echo hunter2; exit 3", Err("the command failed: exit status: 3"));
        check("exec:printf '\\377'", Err("it is not UTF-8 text"));
        check("exec:head -c 70000 /dev/zero", Err("it is longer than 65536 bytes"));
        assert!(resolve(&"file:/no/such/file".parse().unwrap(), Path::new("/")).is_err());
    }
}

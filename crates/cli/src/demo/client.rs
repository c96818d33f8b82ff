//! The engines' own clients, kept running as child processes: what a shop's application would be.
//!
//! Passwords travel in the environment, never in arguments. An answer ends with a token that the client itself echoes.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use url::Url;

/// `psql` or `redis-cli`, connected and waiting for the next line.
pub struct Client {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    echo: &'static str,
    asked: u64,
}

/// Lines of answer that are kept of one statement.
const LINES_MAX: usize = 5_000_000;

impl Client {
    /// Starts the client that `uri` belongs to.
    ///
    /// # Errors
    /// When the URI is of no known kind, or the client is not installed.
    pub fn open(uri: &str) -> io::Result<Self> {
        let (command, echo) = command(uri)?;
        let mut child = heard(command, echo).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(to), Some(out)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the client has no pipes"));
        };
        Ok(Self { child, to, from: BufReader::new(out), echo, asked: 0 })
    }

    /// Runs one statement and gives the lines of its answer. Server errors are lines too (redis-cli) or nothing (psql).
    ///
    /// # Errors
    /// When the client is gone.
    pub fn ask(&mut self, statement: &str) -> io::Result<Vec<String>> {
        self.asked += 1;
        let token = format!("mainstay-{}-{}", std::process::id(), self.asked);
        write!(self.to, "{statement}\n{} {token}\n", self.echo)?;
        self.to.flush()?;
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.from.read_line(&mut line)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client ended"));
            }
            let line = line.trim_end_matches(['\n', '\r']);
            if line == token {
                return Ok(lines);
            }
            // A redis-cli without a connection answers every command, the echo too, with its complaint.
            if line.starts_with("Could not connect to ") || line.starts_with("Error: ") {
                return Err(io::Error::new(io::ErrorKind::NotConnected, line.to_owned()));
            }
            if lines.len() >= LINES_MAX {
                return Err(io::Error::other("the answer is too long"));
            }
            lines.push(line.to_owned());
        }
    }

    /// As [`Self::ask`], and an answer of redis-cli's that is an error is one.
    ///
    /// # Errors
    /// Also when the server refused.
    pub fn must(&mut self, statement: &str) -> io::Result<Vec<String>> {
        let lines = self.ask(statement)?;
        let refused = lines.iter().find(|l| {
            ["ERR ", "MOVED ", "CLUSTERDOWN", "READONLY", "LOADING", "MASTERDOWN"]
                .iter()
                .any(|p| l.starts_with(p))
        });
        match refused {
            Some(line) => Err(io::Error::other(line.clone())),
            None => Ok(lines),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both are best effort: the client may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client whose complaints are heard where they stand for an answer: a redis-cli that lost its server answers no command, and says so on
/// stderr alone. What psql says there is about statements that its server refused, and no answer.
fn heard(mut client: Command, echo: &str) -> Command {
    if echo != ECHO_REDIS {
        client.stderr(Stdio::null());
        return client;
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 2>&1"]).arg(client.get_program()).args(client.get_args());
    shell.envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

/// redis-cli's word for "echo": the server answers it.
const ECHO_REDIS: &str = "ECHO";

/// The client's command line for a URI, and its own word for "echo".
///
/// # Errors
/// When the URI is of no known kind.
pub fn command(uri: &str) -> io::Result<(Command, &'static str)> {
    let url = Url::parse(uri).map_err(|_| io::Error::other("not a URI"))?;
    let (host, port) =
        (url.host_str().unwrap_or("127.0.0.1").to_owned(), url.port().unwrap_or(0).to_string());
    match url.scheme() {
        "postgresql" | "postgres" => {
            let mut psql = Command::new("psql");
            psql.args(["-X", "-qAt"]).env("PGHOST", host).env("PGPORT", port).env("PGUSER", url.username());
            psql.env("PGDATABASE", url.path().trim_start_matches('/')).env("PGCONNECT_TIMEOUT", "10");
            if let Some(password) = url.password() {
                psql.env("PGPASSWORD", decoded(password));
            }
            Ok((psql, "\\echo"))
        }
        "redis" => {
            let mut cli = Command::new("redis-cli");
            cli.args(["-c", "-h", &host, "-p", &port]);
            if let Some(password) = url.password() {
                cli.env("REDISCLI_AUTH", decoded(password));
            }
            if !url.username().is_empty() {
                cli.args(["--user", url.username()]);
            }
            Ok((cli, ECHO_REDIS))
        }
        other => Err(io::Error::other(format!("no client for `{other}`"))),
    }
}

/// A URI's percent-escapes undone.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped =
            (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|h| std::str::from_utf8(h).ok());
        match escaped.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_an_argument() {
        for uri in
            ["postgresql://mainstay:s3cr%65t@127.0.0.1:1/postgres", "redis://default:s3cr%65t@127.0.0.1:2"]
        {
            let (command, _) = command(uri).unwrap();
            assert!(command.get_args().all(|a| !a.to_string_lossy().contains("s3cr")));
            assert!(command.get_envs().any(|(_, v)| v.is_some_and(|v| v == "s3cret")));
        }
        assert!(command("mysql://x").is_err());
    }
}

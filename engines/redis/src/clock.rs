//! The time and the offset of a server's stream, read in one transaction.
//!
//! A stream has no times in it. What is known of when its bytes came about is what a server's own clock showed when its offset was
//! this or that, so both are read at once, on the server that takes the writes: its clock is the one that counts.

use mainstay_engine::{Error, Kind, Result};
use mainstay_model::Instant;

use crate::connect::{Answer, Client};

/// A server's clock and offset at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// All bytes below it had been written.
    pub offset: u64,
    /// By the server's clock.
    pub at: Instant,
}

/// Reads the clock and the offset of a master.
///
/// # Errors
/// `Unreachable` when it is no longer a master or does not answer, `Refused`.
pub async fn sample(client: &Client) -> Result<Sample> {
    let answers = client.calls(&[vec!["MULTI"], vec!["TIME"], vec!["ROLE"], vec!["EXEC"]]).await?;
    parse(client, answers.last())
}

/// Reads what `EXEC` answered to `TIME` and `ROLE`.
pub fn parse(client: &Client, exec: Option<&Answer>) -> Result<Sample> {
    let node = client.node();
    let [time, role, ..] = exec.map(Answer::list).unwrap_or_default() else {
        let text = exec.map(Answer::text).unwrap_or_default();
        let kind = if text.starts_with("NOPERM") { Kind::Refused } else { Kind::Unreachable };
        return Err(Error::new(kind, format!("read clock and offset of {node}: {text}")));
    };
    if role.list().first().map(Answer::text).as_deref() != Some("master") {
        return Err(Error::new(
            Kind::Unreachable,
            format!("read clock and offset of {node}: it is no longer a master"),
        ));
    }
    let offset = role.list().get(1).and_then(Answer::int).and_then(|offset| u64::try_from(offset).ok());
    let (Some(at), Some(offset)) = (time_of(time), offset) else {
        return Err(Error::new(Kind::Server, format!("read clock and offset of {node}: no answer")));
    };
    Ok(Sample { offset, at })
}

fn time_of(time: &Answer) -> Option<Instant> {
    let [seconds, micros] = time.list() else { return None };
    Some(Instant(seconds.int()?.checked_mul(1_000_000)?.checked_add(micros.int()?)?))
}

//! The log as it is written: START_REPLICATION.
//!
//! The caller says what is durable with [`WalStream::status`]; nothing is acknowledged by itself, because an
//! acknowledgement lets the server forget log and may count for a synchronous commit. A caller that cannot flush must
//! drop the stream rather than answer keepalives: a receiver that answers without moving on blocks a server's fast
//! shutdown for ever.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Buf, Bytes};

use super::wire::{self, message};
use super::{Client, ReplicationError, parsed, quote_name, unexpected};
use crate::lsn::{Lsn, Timeline};

/// Microseconds from the Unix epoch to PostgreSQL's (2000-01-01 UTC).
pub const EPOCH_OFFSET_US: i64 = 946_684_800_000_000;

/// What a request for log led to.
pub enum Started {
    /// Log follows.
    Streaming(WalStream),
    /// The timeline ends exactly at the requested place; the connection can be used again.
    Ended(Client, NextTimeline),
}

/// Where a historic timeline goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextTimeline {
    /// The timeline that follows.
    pub timeline: Timeline,
    /// Where it left the one before.
    pub at: Lsn,
}

/// One message of the stream.
#[derive(Debug)]
pub enum Streamed {
    /// Log, from `start` on.
    Data {
        /// Place of the first byte.
        start: Lsn,
        /// The end of the server's log when it sent this.
        server_end: Lsn,
        /// The server's clock, microseconds since the Unix epoch.
        server_time_us: i64,
        /// The bytes.
        bytes: Bytes,
    },
    /// Nothing new, or a request to answer. With `server_end` at or below what was received, it proves that the server
    /// had nothing newer at `server_time_us`.
    Keepalive {
        /// The end of the server's log.
        server_end: Lsn,
        /// The server's clock, microseconds since the Unix epoch.
        server_time_us: i64,
        /// The server wants a status at once.
        reply: bool,
    },
    /// The timeline is at its end; [`WalStream::finish`] says what follows.
    TimelineEnd,
}

/// A running stream of log.
pub struct WalStream {
    client: Client,
    ended: bool,
}

impl Client {
    /// Asks for log of `timeline` from `at` on, through `slot` if one is named.
    ///
    /// # Errors
    /// The log is gone (58P01), the place is not on that timeline (the DETAIL names the fork), the slot is in use.
    pub async fn start(
        mut self,
        slot: Option<&str>,
        at: Lsn,
        timeline: Timeline,
    ) -> Result<Started, ReplicationError> {
        let slot = slot.map(|name| format!("SLOT {} ", quote_name(name))).unwrap_or_default();
        self.send_query(&format!("START_REPLICATION {slot}PHYSICAL {at} TIMELINE {timeline}")).await?;
        let frame = self.wire.frame().await?;
        match frame.tag {
            b'W' => Ok(Started::Streaming(WalStream { client: self, ended: false })),
            b'T' => {
                let next = self.next_timeline().await?;
                Ok(Started::Ended(self, next))
            }
            _ => Err(unexpected(&frame, "START_REPLICATION")),
        }
    }

    /// Reads the row that ends a historic timeline, to the point where the connection is ready again.
    async fn next_timeline(&mut self) -> Result<NextTimeline, ReplicationError> {
        let mut next = None;
        loop {
            let frame = self.wire.frame().await?;
            match frame.tag {
                b'T' | b'C' | b'c' => {}
                // Log that was under way when the end came.
                b'd' => {}
                b'D' => {
                    let mut columns = wire::row(frame.body)?.into_iter();
                    let timeline = parsed(columns.next(), "next timeline")?;
                    next = Some(NextTimeline {
                        timeline,
                        at: parsed(columns.next(), "place of the next timeline")?,
                    });
                }
                b'Z' => {
                    return next.ok_or_else(|| {
                        ReplicationError::Protocol("end of a timeline without a next".into())
                    });
                }
                _ => return Err(unexpected(&frame, "the end of a timeline")),
            }
        }
    }
}

impl WalStream {
    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// The connection ended, or said something else.
    pub async fn next(&mut self) -> Result<Streamed, ReplicationError> {
        let frame = self.client.wire.frame().await?;
        match frame.tag {
            b'd' => decode(frame.body),
            b'c' => {
                self.ended = true;
                Ok(Streamed::TimelineEnd)
            }
            // A server that shuts down says that the command is complete, when all was acknowledged.
            b'C' => Err(ReplicationError::Closed),
            _ => Err(unexpected(&frame, "the stream of log")),
        }
    }

    /// Says what was written and what is durable. Nothing was applied, ever.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn status(&mut self, written: Lsn, flushed: Lsn) -> Result<(), ReplicationError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
        let bytes = message(b'd', |bytes| {
            bytes.push(b'r');
            for value in [written.0, flushed.0, 0] {
                bytes.extend_from_slice(&value.to_be_bytes());
            }
            bytes.extend_from_slice(&(now - EPOCH_OFFSET_US).to_be_bytes());
            bytes.push(0);
        });
        self.client.wire.send(&bytes).await
    }

    /// Ends the stream from the timeline's end and gives the connection back with the timeline that follows.
    ///
    /// # Errors
    /// The server does not say what follows.
    pub async fn finish(mut self) -> Result<(Client, NextTimeline), ReplicationError> {
        self.client.wire.send(&message(b'c', |_| {})).await?;
        let next = self.client.next_timeline().await?;
        Ok((self.client, next))
    }
}

fn decode(mut body: Bytes) -> Result<Streamed, ReplicationError> {
    let short = |_| ReplicationError::Protocol("stream message cut short".into());
    match body.try_get_u8().map_err(short)? {
        b'w' => {
            let start = Lsn(body.try_get_u64().map_err(short)?);
            let server_end = Lsn(body.try_get_u64().map_err(short)?);
            let server_time_us = body.try_get_i64().map_err(short)?.saturating_add(EPOCH_OFFSET_US);
            Ok(Streamed::Data { start, server_end, server_time_us, bytes: body })
        }
        b'k' => {
            let server_end = Lsn(body.try_get_u64().map_err(short)?);
            let server_time_us = body.try_get_i64().map_err(short)?.saturating_add(EPOCH_OFFSET_US);
            Ok(Streamed::Keepalive {
                server_end,
                server_time_us,
                reply: body.try_get_u8().map_err(short)? != 0,
            })
        }
        other => Err(ReplicationError::Protocol(format!("stream message {:?}", char::from(other)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let _ = decode(Bytes::from(bytes));
        }
    }
}

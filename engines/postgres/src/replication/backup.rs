//! Base backups: BASE_BACKUP in the form of PostgreSQL 15 and later, as a sequence of archives.
//!
//! The server sends the tar archives one after another on one connection: one for each tablespace, then `base.tar`
//! (with `backup_label`, `tablespace_map` and, last, `pg_control`), then the manifest.

use bytes::{Buf, Bytes};

use super::wire;
use super::{Client, ReplicationError, parsed, quote_text, unexpected};
use crate::lsn::{Lsn, Timeline};

/// How the backup is made.
#[derive(Clone, Debug, Default)]
pub struct BackupOptions {
    /// What `backup_label` is to say.
    pub label: String,
    /// The server sends at most this much; it takes 32 KiB/s to 1 GiB/s.
    pub kib_per_second_max: Option<u32>,
    /// Whether the server writes a checkpoint as fast as it can, or spread out.
    pub fast_checkpoint: bool,
}

/// A tablespace that is not inside the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, which names the link in `pg_tblspc`.
    pub oid: u32,
    /// Where it lies at the source.
    pub location: String,
}

/// What the server says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupStart {
    /// Where redo has to start.
    pub lsn: Lsn,
    /// On which timeline.
    pub timeline: Timeline,
    /// The tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
}

/// One message of the copy.
#[derive(Debug)]
pub enum Archive {
    /// A new archive begins. `location` is the tablespace's path at the source, empty for `base.tar`.
    New {
        /// `base.tar`, or the tablespace's OID and `.tar`.
        name: String,
        /// The tablespace's path at the source.
        location: String,
    },
    /// The manifest begins.
    Manifest,
    /// Bytes of what began last.
    Data(Bytes),
    /// How much was done, in bytes of all archives.
    Progress(u64),
    /// All was sent; the log is needed up to `lsn`.
    End {
        /// Where the backup ends.
        lsn: Lsn,
        /// On which timeline.
        timeline: Timeline,
    },
}

/// A running base backup.
pub struct BaseBackup {
    client: Client,
    copying: bool,
}

impl Client {
    /// Starts a base backup.
    ///
    /// # Errors
    /// The server refuses (no walsender free, not the right to, a version before 15).
    pub async fn base_backup(
        mut self,
        options: &BackupOptions,
    ) -> Result<(BackupStart, BaseBackup), ReplicationError> {
        let mut words = vec![
            format!("LABEL {}", quote_text(&options.label)),
            format!("CHECKPOINT {}", if options.fast_checkpoint { "'fast'" } else { "'spread'" }),
            "TABLESPACE_MAP true".to_owned(),
            "WAL false".to_owned(),
            // The log comes over another connection of ours; there may be no archive at all.
            "WAIT false".to_owned(),
            // The server reads a torn page again, which we cannot; one that stays bad ends the backup with an error.
            "VERIFY_CHECKSUMS true".to_owned(),
            "MANIFEST 'no'".to_owned(),
        ];
        if let Some(rate) = options.kib_per_second_max {
            words.push(format!("MAX_RATE {}", rate.clamp(32, 1 << 20)));
        }
        self.send_query(&format!("BASE_BACKUP ({})", words.join(", "))).await?;
        let mut place = None;
        let mut tablespaces = Vec::new();
        let mut sets = 0;
        loop {
            let frame = self.wire.frame().await?;
            match frame.tag {
                b'T' => sets += 1,
                b'D' if sets == 1 => {
                    let mut columns = wire::row(frame.body)?.into_iter();
                    let lsn = parsed(columns.next(), "start of the backup")?;
                    place = Some((lsn, parsed(columns.next(), "timeline of the backup")?));
                }
                b'D' => {
                    let mut columns = wire::row(frame.body)?.into_iter();
                    if let (Some(oid), Some(location)) = (columns.next().flatten(), columns.next().flatten())
                    {
                        let oid = parsed(Some(Some(oid)), "OID of a tablespace")?;
                        let location = String::from_utf8_lossy(&location).into_owned();
                        tablespaces.push(Tablespace { oid, location });
                    }
                }
                b'C' => {}
                b'H' => break,
                _ => return Err(unexpected(&frame, "BASE_BACKUP")),
            }
        }
        let (lsn, timeline) =
            place.ok_or_else(|| ReplicationError::Protocol("a base backup without its start".into()))?;
        Ok((BackupStart { lsn, timeline, tablespaces }, BaseBackup { client: self, copying: true }))
    }
}

impl BaseBackup {
    /// The next message of the copy; `None` once the end was given.
    ///
    /// # Errors
    /// The server failed while it read, or the connection ended.
    pub async fn next(&mut self) -> Result<Option<Archive>, ReplicationError> {
        if self.copying {
            let frame = self.client.wire.frame().await?;
            match frame.tag {
                b'd' => return decode(frame.body).map(Some),
                b'c' => return self.end().await.map(Some),
                _ => return Err(unexpected(&frame, "BASE_BACKUP")),
            }
        }
        Ok(None)
    }

    async fn end(&mut self) -> Result<Archive, ReplicationError> {
        self.copying = false;
        let mut end = None;
        loop {
            let frame = self.client.wire.frame().await?;
            match frame.tag {
                b'T' | b'C' => {}
                b'D' => {
                    let mut columns = wire::row(frame.body)?.into_iter();
                    let lsn = parsed(columns.next(), "end of the backup")?;
                    end = Some(Archive::End {
                        lsn,
                        timeline: parsed(columns.next(), "timeline of the backup's end")?,
                    });
                }
                b'Z' => {
                    return end
                        .ok_or_else(|| ReplicationError::Protocol("a base backup without its end".into()));
                }
                _ => return Err(unexpected(&frame, "the end of BASE_BACKUP")),
            }
        }
    }
}

fn decode(mut body: Bytes) -> Result<Archive, ReplicationError> {
    let short = |_| ReplicationError::Protocol("archive message cut short".into());
    match body.try_get_u8().map_err(short)? {
        b'n' => {
            let name = String::from_utf8_lossy(&wire::cstr(&mut body)?).into_owned();
            Ok(Archive::New { name, location: String::from_utf8_lossy(&wire::cstr(&mut body)?).into_owned() })
        }
        b'm' => Ok(Archive::Manifest),
        b'd' => Ok(Archive::Data(body)),
        b'p' => Ok(Archive::Progress(body.try_get_u64().map_err(short)?)),
        other => Err(ReplicationError::Protocol(format!("archive message {:?}", char::from(other)))),
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

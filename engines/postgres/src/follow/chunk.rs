//! What is known of a piece of log as it passes: the times of its commits, and where its records begin.

use bytes::Bytes;
use mainstay_engine::{Chunk, TimeMark};
use mainstay_model::{Bracket, Epoch, Instant};

use crate::lsn::{self, Lsn};
use crate::wal::{Event, Scanner, decode};

/// A message shorter than this is copied out of the buffer that it was read into.
const COPY_BELOW: usize = 32 << 10;

/// Reads the log as it passes, for the times of its commits and for where its records begin.
pub(super) struct Scan {
    pub scanner: Scanner,
    pub segment_size: u64,
}

impl Scan {
    pub fn chunk(&mut self, epoch: &Epoch, start: Lsn, bytes: Bytes) -> Chunk {
        let carry = self.scanner.carry();
        let mut seen: Option<(i64, i64)> = None;
        let scanned = self.scanner.push(&bytes, |record| {
            if let Some(Event::Commit { time_us } | Event::Abort { time_us }) = decode(record) {
                let (earliest, latest) = seen.unwrap_or((time_us, time_us));
                seen = Some((earliest.min(time_us), latest.max(time_us)));
            }
        });
        let end = start.plus(bytes.len() as u64);
        // A short message would keep the whole buffer that it was read into for as long as somebody holds it.
        let bytes = if bytes.len() < COPY_BELOW { Bytes::copy_from_slice(&bytes) } else { bytes };
        if let Err(error) = scanned {
            // Kept all the same, byte for byte; a restore through it will say so.
            tracing::warn!(%error, "log of the source cannot be read");
            self.scanner = Scanner::new(end, self.segment_size, None);
        }
        let at = |(earliest, latest)| Bracket { earliest: Instant(earliest), latest: Instant(latest) };
        let times = seen.map(|seen| TimeMark { offset: end.0.into(), at: at(seen) }).into_iter().collect();
        Chunk { at: lsn::place(epoch, start), bytes, times, carry: Some(carry) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::testing::Log;

    #[test]
    fn chunks_carry_times_and_where_records_begin() {
        let mut log = Log::new(Lsn(1 << 20), 1 << 20);
        log.commit(5_000_000);
        log.commit(7_000_000);
        let length = log.bytes.len();
        log.append(10, 0, &[1; 5000]);
        log.restore_point("x", 1);
        let mut scan = Scan { scanner: Scanner::new(log.first, 1 << 20, None), segment_size: 1 << 20 };
        let epoch = Epoch("1".into());
        let first = scan.chunk(&epoch, log.first, Bytes::copy_from_slice(&log.bytes[..length + 100]));
        assert_eq!(first.carry.as_deref(), Some(""));
        assert_eq!(first.times.len(), 1);
        assert_eq!(first.times[0].at, Bracket { earliest: Instant(5_000_000), latest: Instant(7_000_000) });
        let second = scan.chunk(
            &epoch,
            log.first.plus(length as u64 + 100),
            Bytes::copy_from_slice(&log.bytes[length + 100..]),
        );
        assert_eq!((second.carry.as_deref(), second.times.len()), (Some("4929"), 0));
    }
}

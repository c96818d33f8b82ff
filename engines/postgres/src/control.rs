//! `pg_control`, as far as it can be read without knowing the version's layout.

/// Whether the file is whole: its CRC-32C stands behind the fields, and zeros follow. Where the fields end differs between
/// versions, so every place that it may stand at is tried.
pub fn is_whole(bytes: &[u8]) -> bool {
    (200..=400).step_by(4).any(|at| {
        let Some(stored) = bytes.get(at..).and_then(<[u8]>::first_chunk) else { return false };
        u32::from_le_bytes(*stored) == crc32c::crc32c(&bytes[..at])
            && bytes[at + 4..].iter().all(|byte| *byte == 0)
    })
}

/// The cluster's identifier.
pub fn system_id(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_is_found() {
        let mut file = vec![0; 8192];
        file[..288].fill(5);
        let sum = crc32c::crc32c(&file[..288]);
        file[288..292].copy_from_slice(&sum.to_le_bytes());
        assert!(is_whole(&file));
        file[17] ^= 1;
        assert!(!is_whole(&file) && !is_whole(&[]) && !is_whole(&[1; 200]));
    }
}

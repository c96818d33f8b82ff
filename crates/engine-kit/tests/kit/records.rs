//! The Fake's records, read from anywhere.

use mainstay_engine_kit::fake::{Op, Record};
use mainstay_model::Instant;
use proptest::prelude::*;

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (".*", ".*").prop_map(|(key, value)| Op::Set(key, value)),
        ".*".prop_map(Op::Delete),
        "[a-z0-9-]{1,60}".prop_map(Op::Mark),
        Just(Op::Ping),
    ]
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let record = (any::<i64>(), op()).prop_map(|(time, op)| Record { time: Instant(time), op });
    proptest::collection::vec(record, 0..8)
}

proptest! {
    #[test]
    fn what_was_written_is_read(records in records(), cut in any::<prop::sample::Index>()) {
        let bytes: Vec<u8> = records.iter().flat_map(Record::encode).collect();
        let read = Record::decode_all(&bytes).unwrap();
        prop_assert_eq!(read.iter().map(|(record, _)| record.clone()).collect::<Vec<_>>(), records);
        // Cut off anywhere, what is whole is still read.
        let cut = cut.index(bytes.len() + 1);
        let whole = read.iter().filter(|(_, end)| *end <= cut).count();
        prop_assert_eq!(Record::decode_all(&bytes[..cut]).unwrap().len(), whole);
    }

    #[test]
    fn a_flipped_bit_is_found(records in records(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let mut bytes: Vec<u8> = records.iter().flat_map(Record::encode).collect();
        prop_assume!(!bytes.is_empty());
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        // Damaged, or (where a length was hit) cut off: never another record.
        if let Ok(read) = Record::decode_all(&bytes) {
            let as_written = read.iter().zip(&records).all(|((read, _), written)| read == written);
            prop_assert!(read.len() < records.len() && as_written);
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Record::decode_all(&bytes);
    }
}

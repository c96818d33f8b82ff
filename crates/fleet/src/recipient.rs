//! Whether a text is an age X25519 recipient: Bech32 (BIP 173) with the prefix `age` and 32 bytes. A typing error is found by its
//! checksum, before a backup is encrypted to nobody.

/// Bech32's alphabet, by value.
const ALPHABET: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";

/// Says what is wrong.
pub fn check(text: &str) -> Result<(), &'static str> {
    let data = text.strip_prefix("age1").ok_or("it does not begin with `age1`")?;
    if data.len() != 58 {
        return Err("it is not 62 characters long");
    }
    let mut sum = "age".bytes().map(|b| u32::from(b >> 5)).fold(1, step);
    sum = step(sum, 0);
    sum = "age".bytes().map(|b| u32::from(b & 31)).fold(sum, step);
    for c in data.chars() {
        let value = ALPHABET.find(c).ok_or("it has a character that keys do not have")?;
        sum = step(sum, u32::try_from(value).unwrap_or(0));
    }
    if sum == 1 { Ok(()) } else { Err("its checksum is wrong, so it has a typing error") }
}

/// One step of BIP 173's checksum.
fn step(sum: u32, value: u32) -> u32 {
    const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    let top = sum >> 25;
    let sum = (sum & 0x01ff_ffff) << 5 ^ value;
    GENERATOR.iter().enumerate().filter(|(bit, _)| top >> bit & 1 == 1).fold(sum, |sum, (_, part)| sum ^ part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_from_what_is_none() {
        let key = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
        assert_eq!(check(key), Ok(()));
        for wrong in [
            "",
            "age1",
            "ssh-ed25519 AAAA",
            &key.replace("ql3z", "q13z"),
            &key.replace("hjy", "hyj"),
            &key[..61],
            "age1…",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}

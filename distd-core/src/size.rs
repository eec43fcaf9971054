//! Sizes as people write them.

use std::num::NonZeroU64;

/// Parses a whole number with or without a binary unit: `4096`, `500M`, `20G`, `3GiB`.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_suffix("iB").or_else(|| unit.strip_suffix('B')).unwrap_or(unit);
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Parses bytes a second, as [`parse_size`] does; none at all is no limit. An error says what was expected.
pub fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    let expected = || format!("'{text}': expected bytes a second, such as 500K or 10M");
    parse_size(text).and_then(NonZeroU64::new).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units_and_do_not_overflow() {
        for (text, size) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("2M", Some(2 << 20)),
            ("3GiB", Some(3 << 30)),
            ("1TB", Some(1 << 40)),
            ("", None),
            ("M", None),
            ("-1", None),
            ("1.5G", None),
            ("1 G", None),
            ("99999999999999T", None),
        ] {
            assert_eq!(parse_size(text), size, "{text}");
        }
    }
}

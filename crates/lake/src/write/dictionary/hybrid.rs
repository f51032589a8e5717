//! Parquet's hybrid of runs and bit-packed numbers (`RLE` in the format's `Encodings.md`).

/// Appends `values`, each below 2^`width`; `width` is at most 32.
pub(super) fn encode(values: &[u32], width: u32, out: &mut Vec<u8>) {
    let Some(first) = values.first() else {
        return;
    };
    if width == 0 {
        return encode_run(*first, width, values.len(), out);
    }
    // A run takes a header and the value, and what is packed behind it another header.
    let worth = ((2 + width.div_ceil(8)) * 8 / width).max(8) as usize;
    let (mut packed, mut at) = (0, 0);
    while at < values.len() {
        let equal = values[at..]
            .iter()
            .take_while(|v| **v == values[at])
            .count();
        if equal >= worth {
            pack(&values[packed..at], width, out);
            encode_run(values[at], width, equal, out);
            at += equal;
            packed = at;
        } else {
            // Packed values come in eights.
            at = (at + 8).min(values.len());
        }
    }
    pack(&values[packed..], width, out);
}

/// Appends `length` times the same value, which is below 2^`width`.
pub(super) fn encode_run(value: u32, width: u32, length: usize, out: &mut Vec<u8>) {
    varint(length << 1, out);
    out.extend_from_slice(&value.to_le_bytes()[..width.div_ceil(8) as usize]);
}

fn varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The last eight may lack some; readers know how many values there are.
fn pack(values: &[u32], width: u32, out: &mut Vec<u8>) {
    if values.is_empty() {
        return;
    }
    let eights = values.len().div_ceil(8);
    varint(eights << 1 | 1, out);
    let end = out.len() + eights * width as usize;
    let (mut word, mut bits) = (0u64, 0);
    for value in values {
        word |= u64::from(*value) << bits;
        bits += width;
        if bits >= 32 {
            out.extend_from_slice(&(word as u32).to_le_bytes());
            word >>= 32;
            bits -= 32;
        }
    }
    out.extend_from_slice(&(word as u32).to_le_bytes());
    out.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads as the format says, value by value.
    fn decode(mut bytes: &[u8], width: u32, count: usize) -> Vec<u32> {
        let mut values = Vec::new();
        while values.len() < count {
            let (mut header, mut shift) = (0usize, 0);
            while let Some((byte, rest)) = bytes.split_first() {
                bytes = rest;
                header |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            if header & 1 == 0 {
                let (value, rest) = bytes.split_at(width.div_ceil(8) as usize);
                bytes = rest;
                let mut word = [0; 4];
                word[..value.len()].copy_from_slice(value);
                values.extend(std::iter::repeat_n(u32::from_le_bytes(word), header >> 1));
            } else {
                let (packed, rest) = bytes.split_at((header >> 1) * width as usize);
                bytes = rest;
                let bit = |at: usize| u32::from(packed[at / 8] >> (at % 8) & 1);
                for at in 0..(header >> 1) * 8 {
                    let first = at * width as usize;
                    values.push((0..width).map(|b| bit(first + b as usize) << b).sum());
                }
            }
        }
        assert!(bytes.is_empty(), "bytes behind the last value");
        assert!(values.len() < count + 8, "more than padding");
        values.truncate(count);
        values
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_read_again(
            width in 0u32..=32,
            runs in proptest::collection::vec((any::<u32>(), 1usize..40), 0..60),
        ) {
            let mask = (1u64 << width) as u32;
            let below = mask.wrapping_sub(1);
            let values: Vec<u32> = runs
                .iter()
                .flat_map(|(value, times)| std::iter::repeat_n(value & below, *times))
                .collect();
            let mut bytes = Vec::new();
            encode(&values, width, &mut bytes);
            prop_assert_eq!(decode(&bytes, width, values.len()), values);
        }
    }

    #[test]
    fn equal_values_take_a_few_bytes() {
        let mut bytes = Vec::new();
        encode(&vec![5; 20_000], 3, &mut bytes);
        assert_eq!(bytes.len(), 4);
    }
}

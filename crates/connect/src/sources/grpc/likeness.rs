//! Whether a message is the one that came before, though the server may have been upgraded since.
//!
//! A message is remembered by the hashes of its values, each with the numbers of the fields that it is
//! in. It is the same when all of them are in it still: fields that a newer version adds do not count,
//! nor do those that our descriptors do not know, nor the order of fields.

use prost_reflect::{Kind, MessageDescriptor};
use sha2::{Digest, Sha256};

use super::wire::{Unreadable, Wire};

/// Deeper messages are taken for bytes.
const MOST_DEPTH: usize = 64;

/// A checkpoint keeps so many hashes at the most.
const MOST_KEPT: usize = 256;

/// What is kept of a message to know it again: its parts, or some of them where it has very many.
pub(super) fn kept(message: &[u8], of: Option<&MessageDescriptor>) -> Vec<u32> {
    let mut parts = parts(message, of);
    // They are in order of their hashes, so that these are no special ones.
    parts.truncate(MOST_KEPT);
    parts
}

/// The hashes of a message's values, in order. Without a type, and of what is no message, one of the
/// whole.
pub(super) fn parts(message: &[u8], of: Option<&MessageDescriptor>) -> Vec<u32> {
    let mut found = Vec::new();
    let whole = match of {
        Some(of) => walk(message, of, &mut Vec::new(), &mut found).is_err(),
        None => true,
    };
    if whole {
        return vec![hash(&[], message)];
    }
    found.sort_unstable();
    found
}

/// Whether all that was there is there now. Both are in order.
pub(super) fn is_like(before: &[u32], now: &[u32]) -> bool {
    let mut now = now.iter();
    // Each stands for one value, so that a value that was there twice must be there twice.
    before.iter().all(|part| now.by_ref().any(|n| n == part))
}

fn walk(
    bytes: &[u8],
    of: &MessageDescriptor,
    path: &mut Vec<u32>,
    found: &mut Vec<u32>,
) -> Result<(), Unreadable> {
    let mut wire = Wire(bytes);
    while !wire.0.is_empty() {
        let (number, kind) = wire.key()?;
        let before = wire.0;
        let Some(field) = of.get_field(number) else {
            wire.skip(number, kind)?;
            continue;
        };
        path.push(number);
        match field.kind() {
            Kind::Message(inner) if kind == 2 && path.len() < MOST_DEPTH => {
                // That it is there counts, too.
                found.push(hash(path, &[]));
                walk(wire.block()?, &inner, path, found)?;
            }
            _ => {
                wire.skip(number, kind)?;
                found.push(hash(path, &before[..before.len() - wire.0.len()]));
            }
        }
        path.pop();
    }
    Ok(())
}

fn hash(path: &[u32], value: &[u8]) -> u32 {
    let mut sha = Sha256::new();
    for number in path {
        sha.update(number.to_le_bytes());
    }
    // Field numbers are above zero, so that path and value cannot be taken for each other.
    sha.update(0_u32.to_le_bytes());
    sha.update(value);
    let sha = sha.finalize();
    u32::from_le_bytes([sha[0], sha[1], sha[2], sha[3]])
}

#[cfg(test)]
mod tests {
    use prost_reflect::{DynamicMessage, prost::Message};

    use super::*;

    /// Two versions of a service's messages.
    fn types() -> [MessageDescriptor; 2] {
        ["", "uint32 added = 9;"].map(|added| {
            let text = format!(
                "syntax = \"proto3\"; package p; message Event {{ Meta meta = 1; repeated string names = 2; \
                 map<string, int64> sums = 3; {added} }} message Meta {{ uint32 ledger = 1; {added} }}"
            );
            let pool = crate::sources::testing::pool_of(&text);
            pool.get_message_by_name("p.Event").expect("the message")
        })
    }

    #[test]
    fn what_a_newer_version_adds_does_not_count() {
        let [old, new] = types();
        let bytes = |of: &MessageDescriptor, text: &str| {
            let mut text = serde_json::Deserializer::from_str(text);
            let message = DynamicMessage::deserialize(of.clone(), &mut text);
            message.expect("a message").encode_to_vec()
        };
        let first = bytes(
            &old,
            r#"{"meta":{"ledger":7},"names":["a","a"],"sums":{"x":"1"}}"#,
        );
        let before = parts(&first, Some(&old));
        let more = bytes(
            &new,
            r#"{"meta":{"ledger":7,"added":5},"names":["a","a"],"sums":{"x":"1"},"added":6}"#,
        );
        // Whether our descriptors were renewed as well, or not.
        assert!(is_like(&before, &parts(&more, Some(&old))));
        assert!(is_like(&before, &parts(&more, Some(&new))));
        assert_eq!(
            before,
            parts(&more, Some(&old)),
            "unknown fields are left out"
        );
        let other_order = [&first[4..], &first[..4]].concat();
        assert_eq!(before, parts(&other_order, Some(&old)));
        for other in [
            r#"{"meta":{"ledger":8},"names":["a","a"],"sums":{"x":"1"}}"#,
            r#"{"meta":{"ledger":7},"names":["a"],"sums":{"x":"1"}}"#,
            r#"{"meta":{"ledger":7},"names":["a","b"],"sums":{"x":"1"}}"#,
            r#"{"meta":{"ledger":7},"names":["a","a"],"sums":{"x":"2"}}"#,
            r#"{"meta":{},"names":["a","a"],"sums":{"x":"1"},"added":7}"#,
            "{}",
        ] {
            let now = parts(&bytes(&new, other), Some(&new));
            assert!(!is_like(&before, &now), "{other}");
        }
    }

    #[test]
    fn of_many_values_some_are_kept() {
        let [old, _] = types();
        let names = |count: u32| -> Vec<u8> {
            let name = |n: u32| [&[0x12, 4][..], &n.to_le_bytes()].concat();
            (0..count).flat_map(name).collect()
        };
        let before = kept(&names(5000), Some(&old));
        assert_eq!(before.len(), MOST_KEPT);
        assert!(is_like(&before, &parts(&names(5000), Some(&old))));
        assert!(is_like(&before, &parts(&names(5001), Some(&old))));
        assert!(!is_like(&before, &parts(&names(2500), Some(&old))));
    }

    #[test]
    fn what_is_no_message_is_remembered_as_bytes() {
        let [old, _] = types();
        let whole = parts(&[0x0a, 0xff], Some(&old));
        assert_eq!(whole, parts(&[0x0a, 0xff], None));
        assert!(!is_like(&whole, &parts(&[0x0a, 0xfe], Some(&old))));
        assert_eq!(parts(&[], Some(&old)), [0; 0]);
    }
}

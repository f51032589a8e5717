//! A field of a message, read straight from the wire bytes: what a stream is resumed from.
//!
//! Only one number is wanted of each message, so nothing is decoded that lies beside its path. As in
//! protobuf the last occurrence counts, and messages that come twice are merged.

use calve_engine::{Error, Result};
use prost_reflect::{Cardinality, Kind, MessageDescriptor};

/// Deeper groups than this are no messages that anyone sends.
const MOST_GROUPS: u32 = 100;

/// Where in a message a number is, or a timestamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FieldPath {
    /// Field numbers, from the outside in.
    steps: Vec<u32>,
    leaf: Leaf,
    /// The leaf is zero where it is left out, if the message that it is in is there.
    implicit: bool,
    shown: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaf {
    Unsigned,
    Signed,
    ZigZag,
    Fixed32 { signed: bool },
    Fixed64 { signed: bool },
    Timestamp,
}

/// Why a message has no such number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The field is not there.
    Missing,
    /// It is below zero (or before 1970), or beyond 64 bits.
    Range,
    /// The bytes are no message.
    Malformed,
}

impl Unreadable {
    pub(super) fn why(self) -> &'static str {
        match self {
            Self::Missing => "a message lacks the field",
            Self::Range => "the field is below zero, or too large",
            Self::Malformed => "a message is no protobuf",
        }
    }
}

impl FieldPath {
    /// Finds `path` (names with dots between them) in messages of a type.
    ///
    /// # Errors
    /// `Config` for a name that is not known, and for a field that is no whole number and no
    /// timestamp.
    pub(super) fn compile(message: &MessageDescriptor, path: &str) -> Result<Self> {
        let mut steps = Vec::new();
        let mut at = message.clone();
        let mut names = path.split('.').peekable();
        loop {
            let name = names.next().unwrap_or_default();
            let field = at.get_field_by_name(name).ok_or_else(|| {
                let known: Vec<String> = at.fields().map(|f| f.name().to_owned()).collect();
                Error::config(format!(
                    "unknown field: path={path} field={name} message={}",
                    at.full_name()
                ))
                .hint(format!("it has: {}", known.join(", ")))
            })?;
            if field.cardinality() == Cardinality::Repeated {
                return Err(Error::config(format!(
                    "a repeated field has no single value: path={path} field={name}"
                )));
            }
            steps.push(field.number());
            let last = names.peek().is_none();
            let leaf = match field.kind() {
                Kind::Message(inner)
                    if inner.full_name() == "google.protobuf.Timestamp" && last =>
                {
                    Leaf::Timestamp
                }
                Kind::Message(inner) if !last && !field.is_group() => {
                    at = inner;
                    continue;
                }
                Kind::Uint32 | Kind::Uint64 => Leaf::Unsigned,
                Kind::Int32 | Kind::Int64 => Leaf::Signed,
                Kind::Sint32 | Kind::Sint64 => Leaf::ZigZag,
                Kind::Fixed32 => Leaf::Fixed32 { signed: false },
                Kind::Sfixed32 => Leaf::Fixed32 { signed: true },
                Kind::Fixed64 => Leaf::Fixed64 { signed: false },
                Kind::Sfixed64 => Leaf::Fixed64 { signed: true },
                _ => {
                    return Err(Error::config(format!(
                        "not a whole number or timestamp: path={path} field={name}"
                    ))
                    .hint("name a field of an integer type, or a google.protobuf.Timestamp"));
                }
            };
            if !last {
                return Err(Error::config(format!(
                    "not a message, so nothing is in it: path={path} field={name}"
                )));
            }
            return Ok(Self {
                steps,
                leaf,
                implicit: !field.supports_presence(),
                shown: path.to_owned(),
            });
        }
    }

    /// The path as it was written.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Whether it is a timestamp; its number counts nanoseconds since 1970.
    pub(super) fn is_timestamp(&self) -> bool {
        self.leaf == Leaf::Timestamp
    }

    /// The number in a message.
    pub(super) fn read(&self, message: &[u8]) -> Result<u64, Unreadable> {
        let mut seen = Seen {
            inside: self.steps.len() == 1,
            ..Seen::default()
        };
        seen.scan(message, &self.steps, self.leaf)?;
        let number = match (self.leaf, seen.value) {
            (Leaf::Timestamp, Some(_)) => {
                i128::from(seen.seconds) * 1_000_000_000 + i128::from(seen.nanos)
            }
            (_, Some(value)) => value,
            (_, None) if self.implicit && seen.inside => 0,
            (_, None) => return Err(Unreadable::Missing),
        };
        u64::try_from(number).map_err(|_| Unreadable::Range)
    }
}

/// What was found so far.
#[derive(Default)]
struct Seen {
    /// The message that the leaf is in was there.
    inside: bool,
    value: Option<i128>,
    seconds: i64,
    nanos: i32,
}

impl Seen {
    fn scan(&mut self, bytes: &[u8], steps: &[u32], leaf: Leaf) -> Result<(), Unreadable> {
        let mut wire = Wire(bytes);
        while !wire.0.is_empty() {
            let (number, kind) = wire.key()?;
            if number != steps[0] {
                wire.skip(number, kind)?;
                continue;
            }
            match (steps.len(), leaf, kind) {
                (1, Leaf::Timestamp, 2) => {
                    let inner = wire.block()?;
                    self.value = Some(0);
                    self.timestamp(inner)?;
                }
                (1, Leaf::Unsigned, 0) => self.value = Some(i128::from(wire.varint()?)),
                (1, Leaf::Signed, 0) => self.value = Some(i128::from(wire.varint()? as i64)),
                (1, Leaf::ZigZag, 0) => {
                    let value = wire.varint()?;
                    let value = (value >> 1) as i64 ^ -((value & 1) as i64);
                    self.value = Some(i128::from(value));
                }
                (1, Leaf::Fixed32 { signed }, 5) => {
                    let value = u32::from_le_bytes(wire.fixed()?);
                    self.value = Some(if signed {
                        i128::from(value as i32)
                    } else {
                        i128::from(value)
                    });
                }
                (1, Leaf::Fixed64 { signed }, 1) => {
                    let value = u64::from_le_bytes(wire.fixed()?);
                    self.value = Some(if signed {
                        i128::from(value as i64)
                    } else {
                        i128::from(value)
                    });
                }
                (2.., _, 2) => {
                    let inner = wire.block()?;
                    self.inside |= steps.len() == 2;
                    self.scan(inner, &steps[1..], leaf)?;
                }
                // Of another type than the descriptor says: unknown, as protobuf has it.
                _ => wire.skip(number, kind)?,
            }
        }
        Ok(())
    }

    fn timestamp(&mut self, bytes: &[u8]) -> Result<(), Unreadable> {
        let mut wire = Wire(bytes);
        while !wire.0.is_empty() {
            match wire.key()? {
                (1, 0) => self.seconds = wire.varint()? as i64,
                (2, 0) => self.nanos = wire.varint()? as i32,
                (number, kind) => wire.skip(number, kind)?,
            }
        }
        Ok(())
    }
}

/// Bytes of a message that are not read yet.
struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    fn varint(&mut self) -> Result<u64, Unreadable> {
        let mut value = 0;
        for (at, byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                // The tenth byte holds one bit.
                if at == 9 && *byte > 1 {
                    break;
                }
                self.0 = &self.0[at + 1..];
                return Ok(value);
            }
        }
        Err(Unreadable::Malformed)
    }

    /// Field number and wire type.
    fn key(&mut self) -> Result<(u32, u8), Unreadable> {
        let key = u32::try_from(self.varint()?).map_err(|_| Unreadable::Malformed)?;
        match key >> 3 {
            0 => Err(Unreadable::Malformed),
            number => Ok((number, (key & 7) as u8)),
        }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self
            .0
            .split_at_checked(bytes)
            .ok_or(Unreadable::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn block(&mut self) -> Result<&'a [u8], Unreadable> {
        let length = usize::try_from(self.varint()?).map_err(|_| Unreadable::Malformed)?;
        self.take(length)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| Unreadable::Malformed)
    }

    fn skip(&mut self, number: u32, kind: u8) -> Result<(), Unreadable> {
        match kind {
            0 => self.varint().map(drop),
            1 => self.take(8).map(drop),
            2 => self.block().map(drop),
            5 => self.take(4).map(drop),
            3 => self.skip_group(number),
            _ => Err(Unreadable::Malformed),
        }
    }

    fn skip_group(&mut self, number: u32) -> Result<(), Unreadable> {
        let mut open = vec![number];
        while let Some(&innermost) = open.last() {
            match self.key()? {
                (number, 4) if number == innermost => {
                    open.pop();
                }
                (number, 3) if open.len() < MOST_GROUPS as usize => open.push(number),
                (_, 3 | 4) => return Err(Unreadable::Malformed),
                (number, kind) => self.skip(number, kind)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::{DescriptorPool, DynamicMessage, Value, prost::Message};

    use super::*;

    const PROTO: &str = r#"
        syntax = "proto3";
        package p;
        import "google/protobuf/timestamp.proto";
        message Event {
            string noise = 15;
            Meta meta = 1;
            repeated uint32 many = 3;
            uint64 top = 4;
            optional uint32 maybe = 5;
        }
        message Meta {
            uint32 ledger = 1;
            google.protobuf.Timestamp closed_at = 2;
            sint64 zigzag = 3;
            sfixed32 fixed = 4;
            int64 signed = 5;
            fixed64 wide = 6;
            string text = 20;
        }
    "#;

    fn event() -> MessageDescriptor {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("p.proto");
        std::fs::write(&file, PROTO).expect("write");
        let set = protox::compile([&file], [folder.path()]).expect("compiles");
        let pool = DescriptorPool::from_file_descriptor_set(set).expect("a pool");
        pool.get_message_by_name("p.Event").expect("the message")
    }

    fn json(text: &str) -> Vec<u8> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let message = DynamicMessage::deserialize(event(), &mut deserializer).expect("a message");
        message.encode_to_vec()
    }

    fn read(path: &str, bytes: &[u8]) -> Result<u64, Unreadable> {
        FieldPath::compile(&event(), path).expect(path).read(bytes)
    }

    #[test]
    fn numbers_of_every_type_are_read() {
        let bytes = json(
            r#"{"noise":"x","many":[1,2],"top":"18446744073709551615","meta":{"text":"t","ledger":7,
            "closedAt":"2024-09-02T10:50:19.5Z","zigzag":"9","fixed":8,"signed":"6","wide":"5"}}"#,
        );
        for (path, expected) in [
            ("meta.ledger", 7),
            ("meta.closed_at", 1_725_274_219_500_000_000),
            ("meta.zigzag", 9),
            ("meta.fixed", 8),
            ("meta.signed", 6),
            ("meta.wide", 5),
            ("top", u64::MAX),
        ] {
            assert_eq!(read(path, &bytes), Ok(expected), "{path}");
        }
    }

    #[test]
    fn what_is_left_out_is_zero_or_missing() {
        assert_eq!(read("meta.ledger", &json(r#"{"meta":{}}"#)), Ok(0));
        assert_eq!(read("top", b""), Ok(0));
        let missing = Err(Unreadable::Missing);
        assert_eq!(read("meta.ledger", &json(r#"{"top":"1"}"#)), missing);
        assert_eq!(read("meta.closed_at", &json(r#"{"meta":{}}"#)), missing);
        assert_eq!(read("maybe", b""), missing);
        assert_eq!(read("maybe", &json(r#"{"maybe":0}"#)), Ok(0));
        let negative = json(r#"{"meta":{"signed":"-1","zigzag":"-1","fixed":-1}}"#);
        for path in ["meta.signed", "meta.zigzag", "meta.fixed"] {
            assert_eq!(read(path, &negative), Err(Unreadable::Range), "{path}");
        }
    }

    #[test]
    fn the_last_counts_and_messages_are_merged() {
        let (first, second) = (
            json(r#"{"meta":{"ledger":7}}"#),
            json(r#"{"meta":{"text":"t"}}"#),
        );
        let both = [first.clone(), second].concat();
        assert_eq!(read("meta.ledger", &both), Ok(7));
        let twice = [first, json(r#"{"meta":{"ledger":8}}"#)].concat();
        assert_eq!(read("meta.ledger", &twice), Ok(8));
    }

    #[test]
    fn no_bytes_make_it_fail_otherwise_than_by_an_error() {
        let whole = json(r#"{"noise":"x","meta":{"ledger":300,"text":"some text"}}"#);
        assert_eq!(read("meta.ledger", &whole), Ok(300));
        for length in 0..whole.len() {
            let _ = read("meta.ledger", &whole[..length]);
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                let ours = read("meta.ledger", &changed);
                // What protobuf reads, we read alike. (It also checks what lies beside the path.)
                if let Ok(message) = DynamicMessage::decode(event(), &*changed) {
                    let meta = message
                        .get_field_by_name("meta")
                        .expect("a field")
                        .into_owned();
                    let there = message.has_field_by_name("meta");
                    let ledger = match &meta {
                        Value::Message(meta) if there => {
                            let ledger = meta.get_field_by_name("ledger").expect("a field");
                            ledger.as_u32().map(u64::from)
                        }
                        _ => None,
                    };
                    assert_eq!(
                        ours.ok().map(|n| u64::from(n as u32)),
                        ledger,
                        "at={at} byte={byte}"
                    );
                }
            }
        }
        let group = [0x13, 0x08, 0x01, 0x14, 0x20, 0x05];
        assert_eq!(read("top", &group), Ok(5), "a group is skipped");
        assert_eq!(read("top", &[0x13, 0x08]), Err(Unreadable::Malformed));
        assert_eq!(read("top", &[0x00]), Err(Unreadable::Malformed));
        assert_eq!(read("top", &[0x80; 11]), Err(Unreadable::Malformed));
    }

    #[test]
    fn wrong_paths_are_refused_by_name() {
        for (path, why) in [
            ("meta.ledgr", "unknown field"),
            ("many", "repeated"),
            ("noise", "not a whole number"),
            ("meta", "not a whole number"),
            ("top.more", "nothing is in it"),
            ("", "unknown field"),
        ] {
            let error = FieldPath::compile(&event(), path).expect_err(path);
            assert!(error.message().contains(why), "{path}: {error}");
        }
    }
}

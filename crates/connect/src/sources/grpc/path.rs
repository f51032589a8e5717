//! A field of a message, read straight from the wire bytes: what a stream is resumed from.
//!
//! Only one number is wanted of each message, so nothing is decoded that lies beside its path. As in
//! protobuf the last occurrence counts, and messages that come twice are merged.

use calve_engine::{Error, Result};
use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor};

use super::wire::{Unreadable, Wire};

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

/// A field by its name, or by that of protobuf's JSON mapping (`endLedger`).
pub(super) fn field(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    let by_name = message.get_field_by_name(name);
    by_name.or_else(|| message.get_field_by_json_name(name))
}

impl FieldPath {
    /// Finds `path` (names with dots between them) in messages of a type. The names are those of
    /// the `.proto` file, or of the JSON mapping.
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
            let field = field(&at, name).ok_or_else(|| {
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

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
